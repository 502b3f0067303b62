"""What it is worth to compute a task's head, and the last layer, only for the rows it reads.

    python -m benchmarks.heads                       # two minutes on two cores
    python -m benchmarks.heads --quick
    python -m benchmarks.heads --json                # also writes results/<device>/heads.json

DistilBERT-base with seeded random weights on real sentences, packed. For each task, by turns in one
run: the last layer and the head on every token, as a model around an encoder computes them (but
without padding, which would cost as much again); the whole last layer, and the head on what it
reads; and both on what it reads, as `fastdistil.pipeline` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import workloads
from benchmarks.cpu_engine import run_command
from fastdistil import DistilBertModel, EncoderConfig
from fastdistil.bench import ours
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import Timing, alternate, ratio, repeats, say
from fastdistil.bench.workloads import Workload
from fastdistil.packing import PackedBatch, pack_ids
from fastdistil.tasks.heads import Dense, Head, Norm

TURN_SECONDS = 0.4
ALL, HEAD, BOTH = "everything", "head on what it reads", "last layer too"
# Which of a sentence's tokens a task reads, by its length.
Reads = Callable[[int], Sequence[int]]

TASKS: dict[str, Reads] = {
    "text-classification": lambda length: [0],
    # One mask in the middle of every sentence.
    "fill-mask": lambda length: [length // 2],
    "token-classification": lambda length: range(1, length - 1),
    # A question of a quarter of the tokens, and [CLS].
    "question-answering": lambda length: [0, *range(length // 4 + 1, length - 1)],
}


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command("heads", __doc__, measure, report, arguments)


def measure(precisions: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Seconds of every task, by precision and by what is computed."""
    source = workloads.random_distilbert()
    missing: list[str] = []
    found = ours.precisions(source, missing, precisions)
    if not found:
        raise LookupError("; ".join(missing))
    # A row of the vocabulary's logits for each token takes 122 KB: few sentences at a time.
    sentences = workloads.mixed_sentences(16 if quick else 64)
    results = []
    for precision in found:
        model = _model(source, precision)
        for task, reads in TASKS.items():
            say(f"{task} in {precision}")
            results.append(_measure(model, precision, task, reads, sentences, quick=quick))
    return {
        "environment": environment(),
        "quick": quick,
        "sentences": len(sentences.sequences),
        "tokens": sentences.tokens,
        "tasks": results,
        "missing": missing,
    }


def _model(source: Any, precision: str) -> DistilBertModel:
    model = DistilBertModel(EncoderConfig.from_hf(source.config), precision=precision)
    model.load_state_dict(source.state_dict())
    return model.eval().requires_grad_(False)


def random_head(task: str, config: EncoderConfig) -> Head:
    """A head of the task's sizes with seeded random weights."""
    width = config.hidden_size
    generator = torch.Generator().manual_seed(0)

    def dense(outputs: int, activation: str | None = None) -> Dense:
        weight = torch.randn(outputs, width, generator=generator) / width**0.5
        return Dense(weight, torch.zeros(outputs), activation)

    if task == "text-classification":
        return Head((dense(width, "relu"), dense(2)))
    if task == "fill-mask":
        norm = Norm(torch.ones(width), torch.zeros(width), 1e-12)
        return Head((dense(width, "gelu"), norm, dense(config.vocab_size)))
    return Head((dense(9 if task == "token-classification" else 2),))


def rows_read(batch: PackedBatch, reads: Reads) -> Tensor:
    """int64 [R], the tokens of a batch that a task reads."""
    ends = batch.cu_seqlens.tolist()
    rows = [begin + place for begin, end in pairwise(ends) for place in reads(end - begin)]
    return torch.tensor(rows)


def _measure(
    model: DistilBertModel,
    precision: str,
    task: str,
    reads: Reads,
    workload: Workload,
    *,
    quick: bool,
) -> dict[str, Any]:
    head = random_head(task, model.config)
    batch = pack_ids([list(sequence) for sequence in workload.sequences])
    rows = rows_read(batch, reads)

    def everything() -> Tensor:
        return head(model.forward_packed(batch))[rows]

    def head_only() -> Tensor:
        return head(model.forward_packed(batch)[rows])

    def both() -> Tensor:
        return head(model.forward_rows(batch, rows))

    runs = {ALL: everything, HEAD: head_only, BOTH: both}
    with torch.inference_mode():
        _check(runs)
        times = {
            name: repeats(run, TURN_SECONDS / (10 if quick else 1)) for name, run in runs.items()
        }
        turns = {name: _turn(run, times[name]) for name, run in runs.items()}
        timings = alternate(turns, 2 if quick else 7, warm_up=False)
    once = {
        name: Timing(tuple(turn / times[name] for turn in timing.seconds))
        for name, timing in timings.items()
    }
    return {
        "task": task,
        "precision": precision,
        "rows": len(rows),
        "seconds": {name: list(timing.seconds) for name, timing in once.items()},
        "gain": {name: ratio(timing, once[ALL]) for name, timing in once.items()},
    }


def _turn(run: Callable[[], Tensor], times: int) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(times):
            run()

    return turn


def _check(runs: Mapping[str, Callable[[], Tensor]]) -> None:
    """All three compute the same, within the rounding of the head's products."""
    answers = [run() for run in runs.values()]
    largest = float(answers[0].abs().max())
    for answer in answers[1:]:
        error = float((answer - answers[0]).abs().max())
        if error > 2e-5 * largest:
            raise AssertionError(f"answers differ by {error:.3g} of {largest:.3g}")


def report(results: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        [
            f"{each['task']}, {each['precision']}",
            f"{each['rows']} of {results['tokens']}",
            *(f"{1e3 * float(np.median(each['seconds'][name])):.1f}" for name in (ALL, HEAD, BOTH)),
            *(f"{each['gain'][name]:.2f}" for name in (HEAD, BOTH)),
        ]
        for each in results["tasks"]
    ]
    header = ["task", "tokens read", f"{ALL} (ms)", f"{HEAD} (ms)", f"{BOTH} (ms)"]
    header += [f"times as fast: {HEAD}", BOTH]
    table = markdown_table(header, rows)
    said = f"{results['sentences']} real sentences, {results['tokens']} tokens, one batch."
    return f"{table}\n\n{said}\n\n> {describe(results['environment'])}"


if __name__ == "__main__":
    sys.exit(main())
