"""The engines at one point of an axis."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from benchmarks.scaling.axes import AXES, workload
from fastdistil.backends.threads import num_threads
from fastdistil.bench import ours
from fastdistil.bench.engines import Engine
from fastdistil.bench.race import choose, original, prepare, race
from fastdistil.bench.results import Row

DEFAULT_PEERS = ("eager-fp32", "eager-bf16", "openvino-bf16", "onnxruntime-int8")
THREADS = "threads"
# Turns of each engine: of a run, of a quick one.
ROUNDS = (3, 2)


class Field:
    """Everybody who takes part, made ready once.

    Attributes:
        engines: fastdistil at each precision, from lists of token ids; peers.
        flexible: those of them that heed torch.set_num_threads at every call.
    """

    def __init__(self, model: Any, peers: Sequence[str], left_out: list[str]) -> None:
        self.model = model
        self.left_out = left_out
        own = [ours.packed(model, precision) for precision in ours.precisions(model, left_out)]
        found = prepare(model, peers, left_out, left_out)
        eager = [engine for name, engine in found.items() if name.startswith("eager")]
        self.engines: list[Engine] = [*own, *found.values()]
        self.flexible = [*own, *eager]
        left_out += [
            f"{engine.name}, {THREADS}: how many it uses is fixed when it is prepared"
            for engine in self.engines
            if engine not in self.flexible
        ]


def measure(field: Field, axis: str, x: int, *, quick: bool) -> list[Row]:
    """A row for each engine at that point."""
    work = workload(axis, x)
    expected = original(field.model, work)
    with threads(x if axis == THREADS else num_threads()) as count:
        engines = field.flexible if axis == THREADS else field.engines
        chosen = list(choose(engines, work, expected, field.left_out, quick=quick))
        rows = race(work, chosen, ROUNDS[quick], quick=quick)
    point = {"axis": axis, "x": x, "x_unit": AXES[axis].unit, "threads": count}
    return [replace(row, info={"engine": row.name, **point, **row.info}) for row in rows]


@contextlib.contextmanager
def threads(count: int) -> Iterator[int]:
    """So many for torch and, whatever the environment says, for fastdistil."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with mock.patch.dict(os.environ, FASTDISTIL_NUM_THREADS=str(count)):
            yield count
    finally:
        torch.set_num_threads(before)
