"""From a checkpoint on disk to the first vector: how long that takes, and what stays in memory.

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
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import ours, workloads
from benchmarks.corpora import ROOT, minilm_folder
from benchmarks.harness import (
    add_json_option,
    command_parser,
    describe,
    environment,
    markdown_table,
    save,
    say,
)

SENTENCE = "A stitch in time saves nine."
HEADER = (
    "engine",
    "to the first vector (s)",
    "of it: the first sentence (s)",
    "imports (s)",
    "weights (MB)",
    "process at its peak (MB)",
)
EAGER = "eager PyTorch fp32"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.child is not None:
        name, folder = options.child
        print(json.dumps(measure_one(name, Path(folder))))
        return 0
    try:
        results = measure(options.rounds)
    except LookupError as missing:
        sys.exit(f"load: {missing}")
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


def measure_one(name: str, folder: Path) -> dict[str, Any]:
    """One engine, in a process that has done nothing else yet."""
    start = time.perf_counter()
    load = _eager() if name == EAGER else _fastdistil(name.rpartition(" ")[2])
    imported = time.perf_counter()
    encode, weight_bytes = load(folder)
    loaded = time.perf_counter()
    encode()
    end = time.perf_counter()
    return {
        "import_seconds": imported - start,
        "load_seconds": loaded - imported,
        "first_seconds": end - loaded,
        "weight_bytes": weight_bytes(),
        "peak_process_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


# What a loaded engine is asked: for a vector; for the bytes of its weights.
_Loaded = tuple[Callable[[], object], Callable[[], int]]


def _fastdistil(precision: str) -> Callable[[Path], _Loaded]:
    import fastdistil

    def load(folder: Path) -> _Loaded:
        encoder = fastdistil.Encoder(folder, "cpu", precision)
        return lambda: encoder.encode([SENTENCE]), lambda: encoder.model.resident_bytes() or 0

    return load


def _eager() -> Callable[[Path], _Loaded]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    def load(folder: Path) -> _Loaded:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder).eval()

        def encode() -> object:
            with torch.inference_mode():
                return model(**tokenizer([SENTENCE], return_tensors="pt")).last_hidden_state

        return encode, lambda: sum(parameter.nbytes for parameter in model.parameters())

    return load


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
                f"{_median(engine, 'peak_process_bytes') / 1e6:,.0f}",
            )
        )
    parts = [markdown_table(HEADER, rows), describe(results["environment"])]
    parts += [f"not measured: {line}" for line in results["missing"]]
    return "\n\n".join(parts)


def _median(engine: Mapping[str, Any], what: str) -> float:
    return statistics.median(turn[what] for turn in engine["turns"])


def _in_a_process(name: str, folder: str) -> dict[str, Any]:
    """`measure_one` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", "--child", name, folder]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("benchmarks.load", __doc__)
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="processes for each (default: 5)"
    )
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    add_json_option(parser, "load.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
