"""Whole forwards: ours beside every peer, and each kernel beside PyTorch's.

A peer's item is a race of its own against our default, so items can be measured in separate runs
and ratios still come from alternating turns. Whoever is wrong is not timed: results are compared
with eager fp32 first.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from benchmarks.gpu import inputs, kernels_bench, latency
from benchmarks.gpu.contenders import (
    LEAST_COSINE,
    Contender,
    Runner,
    Setup,
    contenders,
    eager,
    least_cosine,
    ours,
)
from benchmarks.gpu.inputs import Inputs, Row
from benchmarks.gpu.session import Job, Session
from benchmarks.gpu.timing import Call

# Ours, beside which every peer is timed.
ANCHOR = ours("bf16")

_ROUNDS = 11
_WALL_ROUNDS = 101


def run(session: Session) -> bool:
    """The stage; False where ours failed or was wrong."""
    store = session.store(session.table) if session.table.is_file() else session.store()
    session.work(store, jobs(session))
    return session.finish(store)


def jobs(session: Session) -> Iterator[Job]:
    """Few tokens, ours, quick peers, kernels alone, then whatever has to be compiled first."""
    bench, few = Bench(session), latency.Latency(session)
    quick, slow, slowest = contenders()
    yield from few.jobs(latency.quick(few.setup))
    yield from bench.jobs(quick)
    yield from kernels_bench.jobs(session, compiled=False)
    yield from few.jobs(latency.slow(), with_target=True)
    yield from bench.jobs(slow)
    yield from kernels_bench.jobs(session, compiled=True)
    yield from bench.jobs(slowest)
    yield from few.jobs(latency.slow(), with_target=False)


class Bench:
    """Keeps what several items need: inputs, right answers, our default, the last contender."""

    def __init__(self, session: Session):
        self._session = session
        self._setup = Setup(session.device, session.dry)
        self._rows = inputs.rows(session.dry)
        self._loaded: tuple[str, Runner] | None = None

    def jobs(self, group: list[Contender]) -> Iterator[Job]:
        """One for every contender, row and form; a contender's rows follow one another."""
        for contender in group:
            for row in self._rows:
                for form in contender.forms:
                    if form == "sorted" and not row.ragged:
                        continue
                    name = f"{row.name} | {contender.name}"
                    name += " | sorted" if form == "sorted" else ""
                    work = functools.partial(self._item, contender, row, form)
                    yield Job(name, work, 0.0 if contender.missing else contender.seconds)

    def _item(self, contender: Contender, row: Row, form: str) -> dict[str, Any]:
        record = {
            "row": row.name,
            "contender": contender.name,
            "form": form,
            "ours": contender.ours,
            "precision": contender.precision,
            "sequences": len(row.lengths),
            "tokens": row.tokens,
            "lengths": row.source,
            "latency": row.latency,
            "target": row.target,
        }
        if contender.missing is not None:
            return record | {"missing": contender.missing}
        work = functools.partial(self._measured, contender, row, form)
        return record | self._session.attempt(work, may_fail=not contender.ours)

    def _measured(self, contender: Contender, row: Row, form: str) -> dict[str, Any]:
        sets = self._inputs(row)
        runner = self._runner(contender)
        calls = [runner.call(one, form) for one in sets]
        cosine = self._least_cosine(runner, calls, row, form)
        if not cosine >= LEAST_COSINE[contender.precision]:
            raise ValueError(f"wrong results: least cosine {cosine:.5f} with eager fp32")
        racers = {"own": calls}
        if contender.name != ANCHOR.name:
            # Where ours does not run, its own item says why; peers are timed all the same.
            with contextlib.suppress(Exception):
                racers = {"anchor": self._anchor_calls(row), **racers}
        timer = self._session.timer
        turns = {name: timer.plain(found) for name, found in racers.items()}
        timings = timer.race(turns, _ROUNDS)
        found: dict[str, Any] = {"cosine": cosine, "seconds": list(timings["own"].seconds)}
        if "anchor" in timings:
            found["anchor_seconds"] = list(timings["anchor"].seconds)
        if row.latency:
            walls = timer.wall({name: found_[0] for name, found_ in racers.items()}, _WALL_ROUNDS)
            found |= {f"wall_{name}": timing.median for name, timing in walls.items()}
        return found

    def _runner(self, contender: Contender) -> Runner:
        if contender.name == ANCHOR.name:
            return self._anchor
        if self._loaded is None or self._loaded[0] != contender.name:
            self._loaded = None  # its memory is free before the next one needs it
            self._loaded = contender.name, contender.load(self._setup)
        return self._loaded[1]

    @functools.cached_property
    def _anchor(self) -> Runner:
        return ANCHOR.load(self._setup)

    @functools.cache  # noqa: B019 - lives as long as the stage
    def _anchor_calls(self, row: Row) -> list[Call]:
        return [self._anchor.call(one, "packed") for one in self._inputs(row)]

    @functools.cache  # noqa: B019
    def _inputs(self, row: Row) -> list[Inputs]:
        count = 1 if self._session.dry else inputs.SETS
        return inputs.input_sets(row, self._setup.vocabulary, self._session.device, count)

    @functools.cache  # noqa: B019
    def _expected(self, row: Row) -> list[Tensor]:
        """Eager fp32's answer for each set, [T, D]."""
        runner = eager("fp32").load(self._setup)
        sets = self._inputs(row)
        return [runner.tokens(one, "padded", runner.call(one, "padded")()) for one in sets]

    def _least_cosine(self, runner: Runner, calls: list[Call], row: Row, form: str) -> float:
        """Over every token of every set."""
        worst = 1.0
        for one, call, want in zip(self._inputs(row), calls, self._expected(row), strict=True):
            worst = min(worst, least_cosine(runner.tokens(one, form, call()), want))
        return worst
