"""Distillation shown on real models and real sentences, everything held out that is judged.

    python -m benchmarks.distillation                    # what `make distill-demo` runs
    python -m benchmarks.distillation --quick            # two minutes: the same on little
    python -m benchmarks.distillation --only embedding,teacher-cost
    python -m benchmarks.distillation --json             # also writes it to results/<device>/

- embedding: MiniLM, six layers, to a student of three: how like its vectors are, what a probe reads
  from them, size, speed; beside the paper's figures of DistilBERT and BERT.
- classifier: a classifier of film reviews to a student of three layers, with what the teacher says
  and from labels alone, over three seeds. Where .cache/review-classifier is not there, that teacher
  is fine-tuned first. The distilled student with the best validation stays in
  .cache/distilled-classifier, and `make demo` asks it, too.
- masked-words: a masked language model of two layers to one, with the teacher and without.
- teacher-cost: what runs the teacher how fast, and what that is of a whole distillation.

The full run takes some twenty minutes on two cores, and exits with 1 if it misses a goal. What it
works with (the teacher's states take half a gigabyte) lies in a folder in .cache until it ends.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.command import add_json_option, add_quick_option, command_parser, save
from benchmarks.corpora import CACHE
from benchmarks.distillation import (
    CLASSIFIER,
    classifier,
    embedding,
    goals,
    masked_words,
    teacher_cost,
)
from benchmarks.distillation.report import report
from fastdistil.bench.environment import environment
from fastdistil.bench.peers import known_names
from fastdistil.text_io import UsageError

PARTS = ("embedding", "classifier", "masked-words", "teacher-cost")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("benchmarks.distillation", __doc__)
    add_quick_option(parser)
    parser.add_argument(
        "--only",
        type=lambda text: known_names(text, PARTS),
        default=",".join(PARTS),
        metavar="NAME,NAME",
        help="which parts (default: %(default)s)",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the distilled classifier stays; what is there is replaced (default: "
        f"{CLASSIFIER}; with --quick: nowhere)",
    )
    add_json_option(parser, "distillation.json")
    options = parser.parse_args(arguments)
    kept = options.folder or (None if options.quick else CLASSIFIER)
    try:
        if kept is not None:
            classifier.check_kept(kept)
        results = measure(options.only, kept, quick=options.quick)
    except LookupError as missing:
        sys.exit(f"distillation: {missing}")
    except UsageError as mistake:
        sys.exit(f"distillation: {mistake}")
    except ImportError as missing:
        sys.exit(f"distillation: {missing}; `make distill-demo` installs everything")
    print(report(results))
    save(options.json, results)
    return 0 if options.quick or goals.all_met(results) else 1


def measure(parts: Sequence[str], kept: Path | None, *, quick: bool) -> dict[str, Any]:
    """Run the parts; what comes back is what `report` prints and `--json` writes.

    Args:
        parts: some of PARTS.
        kept: where the distilled classifier stays; None: nowhere.

    Raises:
        LookupError: weights or sentences cannot be had here.
    """
    learned = embedding.QUICK if quick else embedding.FULL
    results: dict[str, Any] = {"environment": environment(), "quick": quick}
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="distillation-", dir=CACHE) as folder:
        work = Path(folder)
        if "embedding" in parts:
            results["embedding"] = embedding.measure(learned, work / "embedding")
        if "classifier" in parts:
            amount = classifier.QUICK if quick else classifier.FULL
            results["classifier"] = classifier.measure(amount, work / "classifier", kept)
        if "masked-words" in parts:
            amount_of_words = masked_words.QUICK if quick else masked_words.FULL
            results["masked_words"] = masked_words.measure(amount_of_words, work / "masked-words")
        if "teacher-cost" in parts:
            cost = teacher_cost.QUICK if quick else teacher_cost.FULL
            results["teacher_cost"] = teacher_cost.measure(cost, learned)
    return results


if __name__ == "__main__":
    sys.exit(main())
