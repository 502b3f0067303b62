"""What only whole forwards can decide: entries of the settings' table that every kernel shares.

An entry's values take turns, each in a model of its own that was prepared with it. The present
value stays unless another wins by more than the present one's own repeats differ. All of them must
give the very same bits: an entry moves work about, it computes nothing. Only the low-latency kernel
sums in another order, for callers who gave up the bits: it must come as close as its precision.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks.gpu import contenders, inputs, latency, tables
from benchmarks.gpu.inputs import Inputs, Row
from benchmarks.gpu.session import Job, Session
from benchmarks.gpu.timing import Turn
from fastdistil.backends import cuda_latency
from fastdistil.bench.timing import Timing
from fastdistil.kernels.settings import load_settings

CHUNK, DEPENDENT = "chunk_tokens", "dependent_launch"
# Two entries that one race decides: up to how many tokens the low-latency kernel runs, and whether
# as a chain.
LATENCY = "latency"
LATENCY_TOKENS, LATENCY_CHAIN = "latency_tokens", "latency_chain"

_CHUNKS = (4096, 8192, 16384, 32768)
_ROUNDS = 21
# A launch that does not wait as it should need not go wrong the first time.
_REPEATS = 20
# Tokens up to which a forward may take the GPU less time than the host.
_HIDDEN_BY_THE_HOST = 1024

_LATENCY_SIZES = ((1, 16), (1, 32), (1, 64), (1, 128), (2, 64), (8, 16), (1, 256))
_LATENCY_ROUNDS = 201
LAUNCH, CHAINED, TRITON = "one launch", "chain", "Triton"
_LATENCY_WAYS = {
    TRITON: latency.TRITON,
    LAUNCH: latency.ONE_LAUNCH,
    CHAINED: latency.CHAIN,
}


def jobs(session: Session) -> Iterator[Job]:
    """One for every entry that this GPU has a choice of."""
    yield Job(LATENCY, functools.partial(_latency_item, session), seconds=10.0)
    yield Job(CHUNK, functools.partial(_chunk_item, session), seconds=8.0)
    if load_settings(session.target).waits or session.dry:
        yield Job(DEPENDENT, functools.partial(_dependent_item, session), seconds=8.0)


def decide(table: Mapping[str, Any], items: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The table with what the items chose."""
    found = dict(table)
    for entry in (CHUNK, DEPENDENT):
        if entry in items:
            found = tables.changed(found, entry, value=items[entry]["chosen"])
    return {**found, **items.get(LATENCY, {}).get("chosen", {})}


def _chunk_item(session: Session) -> dict[str, Any]:
    """How many tokens the encoder takes at once: batches of 256 x 128."""
    present = load_settings(session.target).chunk_tokens
    values = [present, *(size for size in _CHUNKS if size != present)]
    row = _row(session, 256, 128)
    timings = _race(session, row, CHUNK, values[:2] if session.dry else values)
    best = min(timings, key=lambda value: timings[value].median)
    chosen = best if _wins(timings, best, present) else present
    return {"chosen": chosen, "seconds": {row.name: _medians(timings)}}


def _dependent_item(session: Session) -> dict[str, Any]:
    """Whether kernels start before those in front of them end: must win somewhere, lose nowhere."""
    present = load_settings(session.target).dependent_launch
    rows = [_row(session, *size) for size in ((1, 16), (1, 128), (256, 128))]
    races = {row.name: _race(session, row, DEPENDENT, [present, not present]) for row in rows}
    wins = any(_wins(timings, not present, present) for timings in races.values())
    loses = any(_wins(timings, present, not present) for timings in races.values())
    return {
        "chosen": not present if wins and not loses else present,
        "seconds": {name: _medians(timings) for name, timings in races.items()},
    }


def _latency_item(session: Session) -> dict[str, Any]:
    """Up to how many tokens the low-latency kernel runs, and in one launch or as a chain."""
    setup = contenders.Setup(session.device, session.dry, low_latency=True)
    why = cuda_latency.refusal(setup.config, session.device, "bf16")
    if why is not None:
        return {"missing": why}
    load = {
        way: contenders.ours("bf16", deterministic=False, entries=entries).load
        for way, entries in _LATENCY_WAYS.items()
    }
    models = {way: make(setup).model for way, make in load.items()}  # type: ignore[attr-defined]
    sizes = [_latency_size(session, *size) for size in _LATENCY_SIZES]
    races = {size: _latency_race(session, setup, models, size) for size in dict.fromkeys(sizes)}
    present = load_settings(session.target).latency_chain
    return {
        "chosen": choose_latency(races, present),
        "seconds": {f"{n} x {length}": _medians(races[n, length]) for n, length in races},
    }


def choose_latency(
    races: Mapping[tuple[int, int], Mapping[str, Timing]], present: bool
) -> dict[str, Any]:
    """The two entries; pure.

    Args:
        races: (sequences, length) to each way's timing; without LAUNCH where the driver refuses it,
            which the engine finds out itself.
        present: whether the chain is chosen now.
    """
    ways = {False: LAUNCH, True: CHAINED}
    chain = present
    both = [timings for timings in races.values() if _is_for_kernel(timings)]
    wins = any(_wins(timings, ways[not present], ways[present]) for timings in both)
    loses = any(_wins(timings, ways[present], ways[not present]) for timings in both)
    if wins and not loses:
        chain = not present
    return {LATENCY_TOKENS: _latency_tokens(races, ways[chain]), LATENCY_CHAIN: chain}


def _latency_tokens(races: Mapping[tuple[int, int], Mapping[str, Timing]], way: str) -> int:
    """The most tokens up to which a way of launching the kernel wins at every size."""
    found = 0
    by_tokens: dict[int, list[Mapping[str, Timing]]] = {}
    for (count, length), timings in races.items():
        by_tokens.setdefault(count * length, []).append(timings)
    for tokens in sorted(by_tokens):
        if not all(_kernel_wins(timings, way) for timings in by_tokens[tokens]):
            break
        found = tokens
    return found


def _kernel_wins(timings: Mapping[str, Timing], way: str) -> bool:
    """Against Triton; the chain in place of a launch that is refused, as in the engine."""
    return _wins(timings, way if way in timings else CHAINED, TRITON)


def _is_for_kernel(timings: Mapping[str, Timing]) -> bool:
    """Whether there is a choice of how to launch the kernel, and one of both beats Triton."""
    return LAUNCH in timings and any(_kernel_wins(timings, way) for way in (LAUNCH, CHAINED))


def _latency_race(
    session: Session,
    setup: contenders.Setup,
    models: Mapping[str, Any],
    size: tuple[int, int],
) -> dict[str, Timing]:
    """Seconds from a call with a batch on the device until its vectors are there, by each way."""
    row = inputs.full_rows("latency", *size)
    one = inputs.input_sets(row, setup.vocabulary, session.device, 1)[0]
    expected, vectors = _forward(models[TRITON], one), _vectors(models[TRITON], one)
    for way, model in models.items():
        for _ in range(1 if session.dry else _REPEATS):
            pairs = ((_forward(model, one), expected), (_vectors(model, one), vectors))
            cosine = min(contenders.least_cosine(*pair) for pair in pairs)
            if not cosine >= contenders.LEAST_COSINE["bf16"]:
                raise ValueError(f"{way}: least cosine {cosine:.5f} with Triton's at {size}")
    running = {
        way: functools.partial(_vectors, model, one)
        for way, model in models.items()
        if latency.refused(model.program(), _LATENCY_WAYS[way]) is None
    }
    return session.timer.wall(running, _LATENCY_ROUNDS)


def _latency_size(session: Session, count: int, length: int) -> tuple[int, int]:
    return (min(count, 2), min(length, 8)) if session.dry else (count, length)


def _row(session: Session, count: int, length: int) -> Row:
    if session.dry:
        count, length = min(count, 2), min(length, 8)
    return inputs.full_rows(f"{count} x {length}", count, length)


def _race(session: Session, row: Row, entry: str, values: Sequence[Any]) -> dict[Any, Timing]:
    """Seconds of a forward of the row by each value.

    Raises:
        ValueError: two values, or two runs with one of them, differ in their bits.
    """
    setup = contenders.Setup(session.device, session.dry)
    count = 1 if session.dry else inputs.SETS
    sets = inputs.input_sets(row, setup.vocabulary, session.device, count)
    models = {value: _model(session, setup, entry, value, sets[0]) for value in values}
    expected = _forward(models[values[0]], sets[0])
    for value, model in models.items():
        for _ in range(1 if session.dry else _REPEATS):
            found = _forward(model, sets[0])
            if not torch.equal(found.view(torch.int16), expected.view(torch.int16)):
                raise ValueError(f"{entry} {value}: other bits on {row.name} than {values[0]} had")
    turns = {str(value): _turn(session, model, sets) for value, model in models.items()}
    timings = session.timer.race(turns, _ROUNDS)
    return {value: timings[str(value)] for value in values}


def _model(session: Session, setup: contenders.Setup, entry: str, value: Any, one: Inputs) -> Any:
    """A model prepared with that value; the first call prepares it and reads the settings."""
    with tables.settings_with(session.target, {entry: value}):
        model = contenders.ours("bf16").load(setup).model  # type: ignore[attr-defined]
        _forward(model, one)
    return model


def _turn(session: Session, model: Any, sets: Sequence[Inputs]) -> Turn:
    """Forwards of the sets; of small ones only the kernels, since the host would hide them."""
    batch = sets[0].packed
    if batch.num_tokens > _HIDDEN_BY_THE_HOST:
        return session.timer.plain([functools.partial(_forward, model, one) for one in sets])
    steps = model.program().launches(batch.num_tokens, batch.max_seqlen)
    return session.timer.graphed([lambda: [step.run() for step in steps]])


@torch.inference_mode()
def _forward(model: Any, one: Inputs) -> torch.Tensor:
    hidden: torch.Tensor = model.forward_packed(one.packed)
    return hidden


@torch.inference_mode()
def _vectors(model: Any, one: Inputs) -> torch.Tensor:
    vectors: torch.Tensor = model.encode_packed(one.packed)
    return vectors


def _wins(timings: Mapping[Any, Timing], one: Any, other: Any) -> bool:
    return one != other and tables.accepts(timings[other].seconds, timings[one].seconds, True)


def _medians(timings: Mapping[Any, Timing]) -> dict[str, float]:
    return {str(value): timing.median for value, timing in timings.items()}
