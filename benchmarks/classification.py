"""A classifier of real film reviews: as often right at every precision, and how many it serves.

    python -m benchmarks.classification                  # some minutes on two cores
    python -m benchmarks.classification --quick
    python -m benchmarks.classification --precisions int8,bf16
    python -m benchmarks.classification --json           # also writes it to results/<device>/

The checkpoint is what `python -m examples.classify_reviews` saves; where it is not there, that runs
first and takes some minutes more. The sentences are its test side, which the training never saw.

Accuracy: `fastdistil.pipeline("text-classification", folder)` beside transformers' model in fp32.
Exits with 1 if one precision's accuracy is off by more than half a point.

Speed: from text to labels on the CPU, all sentences in one call, beside the pipeline of
transformers, in the order given and, as a favour, sorted by length, in fp32 and in bf16. Each of
the four has the batch size that was fastest for it on the first sentences. Turns alternate; figures
are medians.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import fastdistil
from benchmarks.command import add_json_option, add_quick_option, command_parser, save
from examples import classify_reviews
from fastdistil.bench import ours, timing
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import say

ACCURACY_HEADER = ("precision", "accuracy", "off by (points)", "labels as PyTorch's")
SPEED_HEADER = ("engine", "sentences/s", "times transformers' fp32", "times its best")
# What a precision may cost, in points.
PROMISE = 0.5

BATCH_SIZES = (1, 8, 16, 32, 64, 128)
TUNING_SENTENCES = 384
PEER_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEER = "transformers' pipeline"

Classify = Callable[[list[str]], list[dict[str, Any]]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("benchmarks.classification", __doc__)
    add_quick_option(parser)
    ours.add_precisions_option(parser)
    parser.add_argument("--folder", type=Path, default=classify_reviews.FOLDER)
    add_json_option(parser, "classification.json")
    options = parser.parse_args(arguments)
    try:
        if not (options.folder / "config.json").is_file():
            say(f"training {options.folder}")
            classify_reviews.train(options.folder, classify_reviews.Settings())
        results = measure(options.folder, options.precisions, quick=options.quick)
    except LookupError as missing:
        sys.exit(f"classification: {missing}")
    print(report(results))
    save(options.json, results)
    return 0 if kept(results) else 1


def measure(folder: Path, precisions: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes.

    Raises:
        LookupError: the sentences cannot be had here.
    """
    reviews = classify_reviews.load_reviews()["test"].head(256 if quick else None)
    missing: list[str] = []
    config = fastdistil.EncoderConfig.from_folder(folder)
    engines: dict[str, Classify] = {}
    for precision in precisions:
        if (why := ours.refusal(config, precision, "cpu")) is not None:
            missing.append(f"fastdistil {precision}: {why}")
            continue
        engines[precision] = fastdistil.pipeline(
            "text-classification", folder, device="cpu", precision=precision
        )
    say("accuracy")
    plain, accuracy = accuracies(folder, engines, reviews)
    return {
        "environment": environment(),
        "quick": quick,
        "sentences": len(reviews.texts),
        "plain_accuracy": plain,
        "accuracy": accuracy,
        "speed": speeds(folder, engines, reviews.texts, rounds=2 if quick else 7),
        "missing": missing,
    }


def accuracies(
    folder: Path, engines: Mapping[str, Classify], reviews: classify_reviews.Reviews
) -> tuple[float, list[dict[str, Any]]]:
    """Of plain PyTorch in fp32; and of each precision, with how many labels are PyTorch's."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = model.config.id2label
    predicted = classify_reviews.predict(model, tokenizer, reviews.texts).tolist()
    wanted, plain = [names[label] for label in reviews.labels], [names[i] for i in predicted]
    found = []
    for precision, classify in engines.items():
        labels = [result["label"] for result in classify(reviews.texts)]
        found.append(
            {
                "precision": precision,
                "accuracy": _share_equal(labels, wanted),
                "agreement": _share_equal(labels, plain),
            }
        )
    return _share_equal(plain, wanted), found


def _share_equal(some: Sequence[str], others: Sequence[str]) -> float:
    return statistics.fmean(a == b for a, b in zip(some, others, strict=True))


def speeds(
    folder: Path, engines: Mapping[str, Classify], texts: list[str], rounds: int
) -> list[dict[str, Any]]:
    """Seconds for all texts, a number for each turn, by engine."""
    runs: dict[str, Callable[[], object]] = {}
    batch_sizes: dict[str, int] = {}
    for precision, dtype in PEER_DTYPES.items():
        classify = transformers_pipeline(folder, dtype)
        for order, ordered in (("in order", texts), ("sorted by length", sorted(texts, key=len))):
            name = f"{PEER} {precision}, {order}"
            say(name)
            batch_sizes[name] = tuned_batch_size(classify, texts, by_length=ordered is not texts)
            runs[name] = bind(classify, ordered, batch_size=batch_sizes[name])
    for precision, classify in engines.items():
        runs[f"fastdistil {precision}"] = bind(classify, texts)
    say("turns")
    turns = timing.alternate(runs, rounds)
    return [
        {"name": name, "batch_size": batch_sizes.get(name), "seconds": turns[name].seconds}
        for name in runs
    ]


def transformers_pipeline(folder: Path, dtype: torch.dtype) -> Classify:
    """As its documentation says; the tokenizer is the fast one."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made: Classify = pipeline("text-classification", model=model, tokenizer=tokenizer, device=-1)
    return made


def tuned_batch_size(classify: Classify, texts: list[str], *, by_length: bool) -> int:
    """The one of BATCH_SIZES that is fastest on the first texts, by the better of two turns."""
    few = texts[:TUNING_SENTENCES]
    if by_length:
        few = sorted(few, key=len)
    runs = {str(size): bind(classify, few, batch_size=size) for size in BATCH_SIZES}
    runs[str(BATCH_SIZES[-1])]()  # nobody pays for the first call
    return int(timing.fastest(runs))


def bind(classify: Any, texts: list[str], **options: Any) -> Callable[[], object]:
    """A run from all texts to all labels."""
    return lambda: classify(texts, **options)


def kept(results: Mapping[str, Any]) -> bool:
    """Whether every precision is as often right as PyTorch, within PROMISE."""
    return all(abs(_points_off(results, row)) <= PROMISE for row in results["accuracy"])


def _points_off(results: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    points: float = 100 * (row["accuracy"] - results["plain_accuracy"])
    return points


def report(results: Mapping[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    plain = results["plain_accuracy"]
    parts = [
        f"{results['sentences']:,} sentences that the training never saw. Plain PyTorch in fp32 is "
        f"right in {plain:.2%}.",
        markdown_table(ACCURACY_HEADER, list(accuracy_rows(results))),
        markdown_table(SPEED_HEADER, list(speed_rows(results))),
        describe(results["environment"]),
    ]
    if results["quick"]:
        parts.append("A quick run: few sentences, few turns. Not for publishing.")
    parts += [f"not measured: {line}" for line in results["missing"]]
    return "\n\n".join(parts)


def accuracy_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """By precision: how often right, and how often as PyTorch in fp32."""
    for row in results["accuracy"]:
        off = f"{_points_off(results, row):+.2f}"
        yield row["precision"], f"{row['accuracy']:.2%}", off, f"{row['agreement']:.2%}"


def speed_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """By engine: sentences/s, and how many times what transformers' pipeline serves.

    Its fp32 is in the order given; its best is the fastest of its four.
    """
    rates = {
        row["name"]: results["sentences"] / statistics.median(row["seconds"])
        for row in results["speed"]
    }
    usual = rates[f"{PEER} fp32, in order"]
    best = max(rate for name, rate in rates.items() if name.startswith(PEER))
    for row in results["speed"]:
        name, rate = row["name"], rates[row["name"]]
        size = "" if row["batch_size"] is None else f", batches of {row['batch_size']}"
        yield f"{name}{size}", f"{rate:,.0f}", f"{rate / usual:.1f}x", f"{rate / best:.1f}x"


if __name__ == "__main__":
    sys.exit(main())
