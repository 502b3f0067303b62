"""The workloads of the forward, by name: real sentences, batches of one size, one sentence."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import workloads
from fastdistil.bench.workloads import Workload

MIXED, SORTED, ROWS, ONE = "mixed", "mixed, sorted", "16 x 128", "1 x 16"

# The grid: (sequences, tokens of each).
GRID = (
    (1, 64),
    (1, 128),
    (1, 512),
    (4, 128),
    (16, 64),
)


@dataclass(frozen=True)
class Case:
    """A workload, and how it is run.

    Attributes:
        rounds: turns of each engine; of a quick run.
        drop_in: whether fastdistil takes the same padded batches as everybody, as its drop-in does;
            otherwise lists of token ids, as `DistilBertModel.forward_packed` does.
        compiled: whether torch.compile takes part; compiling for one more shape takes it a minute.
    """

    rounds: tuple[int, int]
    drop_in: bool
    compiled: bool = True


CASES = {
    MIXED: Case((3, 3), drop_in=False),
    SORTED: Case((3, 3), drop_in=False),
    ROWS: Case((3, 3), drop_in=True),
    ONE: Case((5, 3), drop_in=True),
    **{f"{rows} x {length}": Case((3, 2), drop_in=True, compiled=False) for rows, length in GRID},
}


def workload(name: str, *, quick: bool) -> Workload:
    """What that name says."""
    if name == MIXED:
        return workloads.mixed_sentences(64 if quick else 96)
    if name == SORTED:
        return workload(MIXED, quick=quick).sorted_by_length()
    if name == ONE:
        return workloads.one_sentence(16)
    rows, length = map(int, name.split(" x "))
    return workloads.full_rows(rows, length)
