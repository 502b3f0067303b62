"""What only whole forwards can decide: entries of the settings' table that every kernel shares.

An entry's values take turns, each in a model of its own that was prepared with it. The present
value stays unless another wins by more than the present one's own repeats differ. All of them must
give the very same bits: an entry moves work about, it computes nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from benchmarks.gpu import contenders, inputs, tables
from benchmarks.gpu.inputs import Inputs, Row
from benchmarks.gpu.session import Job, Session
from benchmarks.gpu.timing import Turn
from benchmarks.harness import Timing
from fastdistil.kernels.settings import load_settings

CHUNK, DEPENDENT = "chunk_tokens", "dependent_launch"

_CHUNKS = (4096, 8192, 16384, 32768)
_ROUNDS = 21
# A launch that does not wait as it should need not go wrong the first time.
_REPEATS = 20
# Tokens up to which a forward may take the GPU less time than the host.
_HIDDEN_BY_THE_HOST = 1024


def jobs(session: Session) -> Iterator[Job]:
    """One for every entry that this GPU has a choice of."""
    yield Job(CHUNK, functools.partial(_chunk_item, session), seconds=8.0)
    if load_settings(session.target).waits or session.dry:
        yield Job(DEPENDENT, functools.partial(_dependent_item, session), seconds=8.0)


def decide(table: Mapping[str, Any], items: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The table with what the items chose."""
    found = dict(table)
    for entry in (CHUNK, DEPENDENT):
        if entry in items:
            found = tables.changed(found, entry, value=items[entry]["chosen"])
    return found


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
    with _settings_with(session, entry, value):
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


def _wins(timings: Mapping[Any, Timing], one: Any, other: Any) -> bool:
    return one != other and tables.accepts(timings[other].seconds, timings[one].seconds, True)


def _medians(timings: Mapping[Any, Timing]) -> dict[str, float]:
    return {str(value): timing.median for value, timing in timings.items()}


@contextlib.contextmanager
def _settings_with(session: Session, entry: str, value: Any) -> Iterator[None]:
    """Within it, models are prepared with the present table and another value of one entry."""
    settings = load_settings(session.target)
    table = tables.changed(settings.table, entry, value=value)
    path = session.folder / "tuning" / f"{entry}-{value}.json"
    tables.write_table(path, table, settings.target)
    before = os.environ.get("FASTDISTIL_TUNING")
    os.environ["FASTDISTIL_TUNING"] = str(path)
    try:
        yield
    finally:
        path.unlink()
        if before is None:
            del os.environ["FASTDISTIL_TUNING"]
        else:
            os.environ["FASTDISTIL_TUNING"] = before
