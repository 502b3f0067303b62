"""From a checkpoint on disk to the first vector: how long that takes, and how much memory.

    python -m benchmarks.load                        # under a minute on two cores
    python -m benchmarks.load --rounds 2
    python -m benchmarks.load --json                 # also writes results/<device>/load.json

A checkpoint of DistilBERT-base (66 million parameters in float32, 265 MB) is read, prepared and
asked for the vector of one sentence, every time in a new process: programs of one process would
share what is packed. transformers in eager PyTorch does the same beside it. The file has been read
before, so it comes from the operating system's memory; importing the libraries is not counted, and
stands in a column of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import workloads
from benchmarks.command import add_json_option, command_parser, save
from benchmarks.corpora import ROOT, minilm_folder
from benchmarks.first_vector import EAGER
from fastdistil.bench import ours
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import say

HEADER = (
    "engine",
    "to the first vector (s)",
    "of it: the first sentence (s)",
    "imports (s)",
    "weights a forward reads (MB)",
    "process then (MB)",
    "at its peak (MB)",
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        results = measure(options.rounds)
    except LookupError as missing:
        sys.exit(f"load: {missing}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"load: {failure.cmd[-2]} ended with {failure.returncode}")
    print(report(results))
    save(options.json, results)
    return 0


def measure(rounds: int) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes."""
    model = workloads.random_distilbert()
    missing: list[str] = []
    names = [f"fastdistil {precision}" for precision in ours.precisions(model, missing)]
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in (*names, EAGER)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(minilm_folder() / file, folder)
        for turn in range(rounds):
            say(f"turn {turn + 1} of {rounds}")
            for name, taken in turns.items():
                taken.append(_in_a_process(name, folder))
    return {
        "environment": environment(),
        "engines": [{"name": name, "turns": taken} for name, taken in turns.items()],
        "missing": missing,
    }


def report(results: Mapping[str, Any]) -> str:
    """Everything that was measured, in Markdown: medians."""
    rows = []
    for engine in results["engines"]:
        first = _median(engine, "first_seconds")
        rows.append(
            (
                engine["name"],
                f"{_median(engine, 'load_seconds') + first:.2f}",
                f"{first:.2f}",
                f"{_median(engine, 'import_seconds'):.2f}",
                f"{_median(engine, 'weight_bytes') / 1e6:,.0f}",
                f"{_median(engine, 'process_bytes') / 1e6:,.0f}",
                f"{_median(engine, 'peak_process_bytes') / 1e6:,.0f}",
            )
        )
    parts = [markdown_table(HEADER, rows), describe(results["environment"])]
    parts += [f"not measured: {line}" for line in results["missing"]]
    return "\n\n".join(parts)


def _median(engine: Mapping[str, Any], what: str) -> float:
    return statistics.median(turn[what] for turn in engine["turns"])


def _in_a_process(name: str, folder: str) -> dict[str, Any]:
    """What `benchmarks.first_vector` measures, in a process that has done nothing else."""
    command = [sys.executable, "-m", "benchmarks.first_vector", name, folder]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("benchmarks.load", __doc__)
    parser.add_argument(
        "--rounds", type=_positive, default=5, metavar="N", help="processes for each (default: 5)"
    )
    add_json_option(parser, "load.json")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; a whole number from 1 up is allowed")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
