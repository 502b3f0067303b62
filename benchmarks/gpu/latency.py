"""Few tokens: what the GPU takes for a forward, and what a caller waits from ids to vectors.

On the device: from ids that lie there to pooled vectors, by CUDA events around calls that were all
queued before. From call to return: lists of token ids in, numpy out, each call by itself. Every
engine takes turns with our low-latency kernel in one launch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from benchmarks.gpu import inputs
from benchmarks.gpu.contenders import (
    LEAST_COSINE,
    Contender,
    Packed,
    Runner,
    Setup,
    eager,
    least_cosine,
    ours,
    pooling,
)
from benchmarks.gpu.inputs import Inputs, Row
from benchmarks.gpu.session import Job, Session
from fastdistil.backends import cuda_latency

# Seconds on one H100 in bf16: on the device, and from call to return; by (sequences, length).
TARGETS: Mapping[tuple[int, int], Mapping[str, float]] = {
    (1, 16): {"device": 60e-6, "answer": 90e-6, "of_copy": 0.45},
    (1, 128): {"device": 80e-6},
}
# Those with targets first.
SIZES = (*TARGETS, (1, 32), (1, 64), (2, 64), (8, 16))
_DRY_TARGETS: Mapping[tuple[int, int], Mapping[str, float]] = {
    (1, 8): {"device": 1.0, "answer": 1.0, "of_copy": 0.1}
}
_DRY_SIZES = (*_DRY_TARGETS, (2, 5))

# What the launch settings say for each way; more tokens than this the kernel never takes.
MOST_TOKENS = 256
ONE_LAUNCH = {"latency_tokens": MOST_TOKENS, "latency_chain": False}
CHAIN = {"latency_tokens": MOST_TOKENS, "latency_chain": True}
TRITON = {"latency_tokens": 0, "latency_chain": False}

_ROUNDS = 11
_WALL_ROUNDS = 301


def quick(setup: Setup) -> list[Contender]:
    """What is ready at once, our low-latency kernel in one launch first."""
    return [
        *(_of_kernel(setup, *way) for way in _WAYS),
        _named(ours("bf16"), "fastdistil bf16, Triton"),
        pooling("bf16"),
    ]


def slow() -> list[Contender]:
    """What compiles first."""
    return [pooling("bf16", compiled=True)]


# Precision, how it is launched, launch settings.
_WAYS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("bf16", "one launch", ONE_LAUNCH),
    ("bf16", "chain in a graph", CHAIN),
    ("int8", "one launch", ONE_LAUNCH),
)
ANCHOR = "fastdistil bf16, one launch"
# Those that the targets are for: the engine takes the faster one.
TARGETED = (ANCHOR, "fastdistil bf16, chain in a graph")


def refused(program: Any, entries: Mapping[str, Any]) -> str | None:
    """Why a program that shall run in one launch does not, once it has run; else None."""
    wanted = entries["latency_tokens"] and not entries["latency_chain"]
    if wanted and not str(program.note).endswith("in one launch"):
        return str(program.note)
    return None


class Latency:
    """Keeps what several items need: inputs, right answers, the kernel in one launch."""

    def __init__(self, session: Session):
        self._session = session
        self.setup = Setup(session.device, session.dry, low_latency=True)
        self._targets = _DRY_TARGETS if session.dry else TARGETS
        self._loaded: tuple[str, Runner] | None = None

    def jobs(self, group: Sequence[Contender], with_target: bool | None = None) -> Iterator[Job]:
        """One for every contender and size; of sizes with or without targets only, if said."""
        for contender in group:
            for size in _DRY_SIZES if self._session.dry else SIZES:
                if with_target is None or (size in self._targets) is with_target:
                    work = functools.partial(self._item, contender, size)
                    seconds = 0.0 if contender.missing else contender.seconds
                    yield Job(f"{_name(size)} | {contender.name}", work, seconds)

    def _item(self, contender: Contender, size: tuple[int, int]) -> dict[str, Any]:
        record: dict[str, Any] = {
            "latency_size": list(size),
            "contender": contender.name,
            "targets": dict(self._targets.get(size, {})) if contender.name in TARGETED else {},
        }
        if contender.missing is not None:
            return record | {"missing": contender.missing}
        work = functools.partial(self._measured, contender, size)
        return record | self._session.attempt(work, may_fail=not contender.ours)

    def _measured(self, contender: Contender, size: tuple[int, int]) -> dict[str, Any]:
        runner, row = self._runner(contender), _row(size)
        cosine = self._least_cosine(contender, runner, row)
        if not cosine >= LEAST_COSINE[contender.precision]:
            raise ValueError(f"wrong results: least cosine {cosine:.5f} with eager fp32")
        if isinstance(runner, Packed) and contender.name == ANCHOR:
            why = refused(runner.model.program(), ONE_LAUNCH)
            if why is not None:
                return {"missing": why}
        racers = {"own": runner}
        if contender.name != ANCHOR:
            # Where ours does not run, its own item says why; others are timed all the same.
            with contextlib.suppress(Exception):
                racers = {"anchor": self._anchor, **racers}
        found = {"cosine": cosine, **self._timed(racers, self._inputs(row))}
        if contender.ours:
            cost = cuda_latency.cost_of(self.setup.config, row.lengths, contender.precision)
            found["moved"] = cost.moved
        return found

    def _timed(self, racers: Mapping[str, Runner], sets: Sequence[Inputs]) -> dict[str, Any]:
        timer = self._session.timer
        queued = {
            name: timer.queued([runner.call(one, "pooled") for one in sets])
            for name, runner in racers.items()
        }
        device = timer.race(queued, _ROUNDS)
        answers = {name: runner.call(sets[0], "answer") for name, runner in racers.items()}
        for call in answers.values():
            call()
        walls = timer.wall(answers, _WALL_ROUNDS)
        found: dict[str, Any] = {}
        for name, prefix in (("own", ""), ("anchor", "anchor_")):
            if name in racers:
                found[f"{prefix}device"] = device[name].median
                found[f"{prefix}p50"] = percentile(walls[name].seconds, 50)
                found[f"{prefix}p99"] = percentile(walls[name].seconds, 99)
        return found

    def _runner(self, contender: Contender) -> Runner:
        if contender.name == ANCHOR:
            return self._anchor
        if self._loaded is None or self._loaded[0] != contender.name:
            self._loaded = None  # its memory is free before the next one needs it
            self._loaded = contender.name, contender.load(self.setup)
        return self._loaded[1]

    @functools.cached_property
    def _anchor(self) -> Runner:
        contender = _of_kernel(self.setup, *_WAYS[0])
        if contender.missing is not None:
            raise RuntimeError(contender.missing)
        return contender.load(self.setup)

    @functools.cache  # noqa: B019 - lives as long as the stage
    def _inputs(self, row: Row) -> list[Inputs]:
        count = 1 if self._session.dry else inputs.SETS
        return inputs.input_sets(row, self.setup.vocabulary, self._session.device, count)

    @functools.cache  # noqa: B019
    def _expected(self, row: Row) -> dict[str, list[Tensor]]:
        """Eager fp32's states of each set, and its vectors."""
        states, vectors = (one.load(self.setup) for one in (eager("fp32"), pooling("fp32")))
        forms = {"packed": (states, "padded"), "pooled": (vectors, "pooled")}
        found = {
            name: [runner.tokens(one, form, runner.call(one, form)()) for one in self._inputs(row)]
            for name, (runner, form) in forms.items()
        }
        return {**found, "answer": found["pooled"]}

    def _least_cosine(self, contender: Contender, runner: Runner, row: Row) -> float:
        """Over every vector of every set, in each form; and every token, where ours gives them."""
        expected = self._expected(row)
        forms = ("packed", "pooled", "answer") if contender.ours else ("pooled", "answer")
        return min(
            least_cosine(runner.tokens(one, form, runner.call(one, form)()), want)
            for form in forms
            for one, want in zip(self._inputs(row), expected[form], strict=True)
        )


def percentile(seconds: Sequence[float], percent: int) -> float:
    """Of some calls' seconds."""
    if len(seconds) < 2:
        return seconds[0]
    return statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]


def _of_kernel(
    setup: Setup, precision: str, launched: str, entries: Mapping[str, Any]
) -> Contender:
    """The low-latency kernel, launched in one way or the other."""
    contender = ours(precision, deterministic=False, entries=entries)
    missing = cuda_latency.refusal(setup.config, setup.device, precision)
    contender = dataclasses.replace(contender, missing=missing)
    return _named(contender, f"fastdistil {precision}, {launched}")


def _named(contender: Contender, name: str) -> Contender:
    return dataclasses.replace(contender, name=name)


def _name(size: tuple[int, int]) -> str:
    return f"latency {size[0]} x {size[1]}"


def _row(size: tuple[int, int]) -> Row:
    return inputs.full_rows(_name(size), *size)
