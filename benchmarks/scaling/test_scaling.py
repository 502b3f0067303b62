"""DistilBERT-base forwards against tokens, length, batch size and threads; engines take turns.

    python -m pytest benchmarks/scaling -o addopts= --benchmark-only
    python -m pytest benchmarks/scaling -o addopts= --benchmark-only --quick -k threads
    python -m pytest benchmarks/scaling -o addopts= --benchmark-only --peers eager-bf16

fastdistil gets lists of token ids, and packing them is inside the timing. Peers get what was padded
before the clock starts: natural sentences in batches of 32, sorted by length; else the whole batch.
"""

from __future__ import annotations

import pytest

from benchmarks import workloads
from benchmarks.conftest import Record
from benchmarks.scaling.axes import AXES
from benchmarks.scaling.measure import DEFAULT_PEERS, Field, measure


@pytest.fixture(scope="module")
def field(chosen_peers: list[str] | None, left_out: list[str]) -> Field:
    peers = DEFAULT_PEERS if chosen_peers is None else chosen_peers
    return Field(workloads.random_distilbert(), peers, left_out)


@pytest.mark.parametrize("axis", AXES)
def test_scaling(axis: str, field: Field, record: Record, quick: bool) -> None:
    points = AXES[axis].few if quick else AXES[axis].points
    record(row for x in points for row in measure(field, axis, x, quick=quick))
