"""DistilBERT-base forwards, fastdistil beside the engines people use, taking turns in one run.

    python -m pytest benchmarks/models -o addopts= --benchmark-only
    python -m pytest benchmarks/models -o addopts= --benchmark-only --quick -k "mixed"
    python -m pytest benchmarks/models -o addopts= --benchmark-only --peers openvino-bf16

Workloads: real sentences in the order they come, the same sorted by length (what a careful user of
a padding engine does), batches of one size, one sentence. Peers get batches of 32, padded; their
batches are made before the clock starts, fastdistil's packing is inside the timing.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest

from benchmarks import workloads
from benchmarks.conftest import Record
from benchmarks.models.workloads import CASES, workload
from fastdistil.bench import ours
from fastdistil.bench.engines import Engine
from fastdistil.bench.peers import PEERS
from fastdistil.bench.race import choose, original, prepare, race

# They compile for longer than everything else takes.
COMPILED = tuple(name for name in PEERS if name.startswith("compile"))


class Field:
    """Everybody who takes part, made ready once."""

    def __init__(self, model: Any, peers: list[str], left_out: list[str]) -> None:
        self.model = model
        self.left_out = left_out
        self.precisions = ours.precisions(model, left_out)
        self.peers = prepare(model, peers, left_out, left_out)

    @functools.cached_property
    def packed(self) -> list[Engine]:
        return [ours.packed(self.model, precision) for precision in self.precisions]

    @functools.cached_property
    def drop_in(self) -> list[Engine]:
        return [ours.drop_in(self.model, precision) for precision in self.precisions]


@pytest.fixture(scope="module")
def field(quick: bool, chosen_peers: list[str] | None, left_out: list[str]) -> Field:
    peers = list(PEERS) if chosen_peers is None else chosen_peers
    if quick and chosen_peers is None:
        peers = [name for name in peers if name not in COMPILED]
    return Field(workloads.random_distilbert(), peers, left_out)


@pytest.mark.parametrize("name", CASES)
def test_forward(name: str, field: Field, record: Record, quick: bool) -> None:
    case, work = CASES[name], workload(name, quick=quick)
    own = field.drop_in if case.drop_in else field.packed
    peers = [e for key, e in field.peers.items() if case.compiled or key not in COMPILED]
    expected = original(field.model, work)
    chosen = list(choose([*own, *peers], work, expected, field.left_out, quick=quick))
    record(race(work, chosen, case.rounds[quick], quick=quick))


def test_pooled(field: Field, record: Record, quick: bool) -> None:
    """The mixed sentences once more as `Encoder.encode_ids` runs them, to pooled vectors."""
    work = workload("mixed", quick=quick)
    engines = [ours.pooled(field.model, precision) for precision in field.precisions]
    expected = ours.means(work, original(field.model, work))
    chosen = list(choose(engines, work, expected, field.left_out, quick=quick))
    rows = race(work, chosen, 3 if quick else 5, quick=quick)
    record(dataclasses.replace(row, group="mixed, to vectors") for row in rows)
