"""What a forward's time is held against, and the batch at each point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks import workloads
from benchmarks.corpora import real_sentences
from fastdistil.backends.threads import usable_cpus
from fastdistil.bench.workloads import Workload

TOKENS_FOR_THREADS = 1024


@dataclass(frozen=True)
class Axis:
    """One quantity that grows while the others stay as they are.

    Attributes:
        unit: of x, for people.
        points: every x, rising.
        few: those of a quick run.
        batch: what runs at x.
    """

    unit: str
    points: tuple[int, ...]
    few: tuple[int, ...]
    batch: Callable[[int], Workload]


def thread_counts(cpus: int) -> tuple[int, ...]:
    """1, 2, 4, ... below `cpus`, then `cpus`."""
    return (*(1 << bit for bit in range((cpus - 1).bit_length())), cpus)


def natural(tokens: int) -> Workload:
    """Real sentences of that many tokens in all, or a few less; longest first.

    Sorted, as a careful user of an engine that pads has them: this is about tokens, not padding.

    Raises:
        LookupError: there are too few sentences.
    """
    taken, left = [], tokens
    # A sentence has 25 tokens on average.
    for ids in workloads.token_ids(real_sentences()[: tokens // 8]):
        if len(ids) <= left:
            taken.append(ids)
            left -= len(ids)
    if left > tokens // 16:
        raise LookupError(f"{tokens} tokens of real sentences wanted, {tokens - left} here")
    return Workload("natural", tuple(taken)).sorted_by_length()


AXES = {
    "tokens": Axis("tokens", (64, 512, 2048, 8192), (64, 512), natural),
    "length": Axis(
        "tokens of one sequence",
        (16, 32, 64, 128, 256, 512),
        (16, 128),
        lambda length: workloads.full_rows(1, length),
    ),
    "batch": Axis(
        "sequences of 32 tokens",
        (1, 4, 16, 64),
        (1, 4),
        lambda rows: workloads.full_rows(rows, 32),
    ),
    "threads": Axis(
        "threads",
        thread_counts(usable_cpus()),
        thread_counts(usable_cpus()),
        lambda _: natural(TOKENS_FOR_THREADS),
    ),
}


def workload(axis: str, x: int) -> Workload:
    """The batch at a point, named after it."""
    return replace(AXES[axis].batch(x), name=f"{axis}: {x}")
