"""Where a forward's time goes: every kernel of its plan alone, as a fraction of the ceilings.

Kernels of one kind (the same operation over the same sizes, once in every layer) are timed together
in one graph, so that weights come from memory as they do in a forward; activations are those of
the forward before. The whole forward's graph is timed beside them.

The low-latency kernel's steps wait for one another, so none of them can run alone: they run as the
chain, in order, with an event after each. Each then pays for a launch that one launch spares.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.gpu import ceilings, inputs, latency
from benchmarks.gpu.contenders import Setup, ours
from benchmarks.gpu.session import Job, Session
from benchmarks.gpu.store import read_items
from fastdistil.backends import cuda_latency

_ROUNDS = 11
# (sequences, length)
_SIZES = ((256, 128), (64, 512), (1, 16), (1, 128))
_DRY_SIZES = ((2, 8), (1, 8))
_LATENCY_SIZES = ((1, 16), (1, 128))
_DRY_LATENCY_SIZES = ((1, 8),)


def run(session: Session) -> bool:
    """The stage; False where something failed."""
    store = session.store(session.table) if session.table.is_file() else session.store()
    profiler = Profiler(session)
    session.work(store, profiler.jobs())
    return session.finish(store)


class Profiler:
    """Times the steps of one program."""

    def __init__(self, session: Session):
        self._session = session
        found = read_items(session.folder / "gpu-ceilings.json")
        self._flops = found.get(ceilings.PRODUCT, {}).get("tflops", 0.0) * 1e12
        self._bytes = found.get(ceilings.COPY, {}).get("tbytes_per_second", 0.0) * 1e12

    def jobs(self) -> Iterator[Job]:
        """One for every size."""
        for count, length in _DRY_SIZES if self._session.dry else _SIZES:
            work = functools.partial(self._item, count, length)
            yield Job(f"{count} x {length}", work, seconds=3.0)
        setup = Setup(self._session.device, self._session.dry, low_latency=True)
        # Where there is no such kernel, bench says why.
        if cuda_latency.refusal(setup.config, setup.device, "bf16") is None:
            for count, length in _DRY_LATENCY_SIZES if self._session.dry else _LATENCY_SIZES:
                work = functools.partial(self._latency_item, setup, count, length)
                yield Job(f"low latency, {count} x {length}", work, seconds=3.0)

    @functools.cached_property
    def _model(self) -> Any:
        runner = ours("bf16").load(Setup(self._session.device, self._session.dry))
        return runner.model  # type: ignore[attr-defined]

    def _item(self, count: int, length: int) -> dict[str, Any]:
        from fastdistil.kernels.settings import load_settings

        session, model = self._session, self._model
        # What does not fit into one turn goes in several of this size.
        most = load_settings(session.target).chunk_tokens
        rows = min(count, max(most // length, 1))
        row = inputs.full_rows("profile", rows, length)
        batch = inputs.input_sets(row, model.config.vocab_size, session.device, 1)[0].packed
        with torch.inference_mode():
            model.forward_packed(batch)  # leaves this batch in the program's buffers
            steps = model.program().launches(batch.num_tokens, batch.max_seqlen)
            turns = {
                kind: session.timer.graphed([step.run for step in members])
                for kind, members in by_kind(steps).items()
            }
            turns["whole"] = session.timer.graphed([lambda: [step.run() for step in steps]])
            timings = session.timer.race(turns, _ROUNDS)
        kinds = [
            self._entry(kind, members, timings[kind].median)
            for kind, members in by_kind(steps).items()
        ]
        turns_needed, whole = -(-count // rows), timings["whole"].median
        return _item_of(kinds, batch.num_tokens, turns_needed, whole, len(steps))

    def _latency_item(self, setup: Setup, count: int, length: int) -> dict[str, Any]:
        """The chain's steps apart; the whole as one graph of them."""
        session = self._session
        runner = ours("bf16", deterministic=False, entries=latency.CHAIN).load(setup)
        model = runner.model  # type: ignore[attr-defined]
        row = inputs.full_rows("profile", count, length)
        batch = inputs.input_sets(row, setup.vocabulary, session.device, 1)[0].packed
        with torch.inference_mode():
            model.forward_packed(batch)  # leaves this batch in the program's buffers
            steps = model.program().launches(batch.num_tokens, batch.max_seqlen)
            apart = session.timer.apart([step.run for step in steps], _ROUNDS)
            whole = session.timer.graphed([lambda: [step.run() for step in steps]])
            whole_seconds = session.timer.race({"whole": whole}, _ROUNDS)["whole"].median
        spent = dict(zip(steps, (timing.median for timing in apart), strict=True))
        kinds = [
            self._entry(kind, members, sum(spent[step] for step in members) / len(members))
            for kind, members in by_kind(steps).items()
        ]
        return _item_of(kinds, batch.num_tokens, 1, whole_seconds, len(steps))

    def _entry(self, kind: str, steps: Sequence[Any], seconds: float) -> dict[str, Any]:
        """One kind's figures; `seconds` is per launch, what is kept is all launches together."""
        flops, moved = steps[0].flops, steps[0].moved
        return {
            "kind": kind,
            "count": len(steps),
            "seconds": seconds * len(steps),
            "tflops": flops / seconds / 1e12,
            "tbytes_per_second": moved / seconds / 1e12,
            "of_flops": flops / seconds / self._flops if self._flops else None,
            "of_bytes": moved / seconds / self._bytes if self._bytes else None,
        }


def _item_of(
    kinds: list[dict[str, Any]], tokens: int, turns: int, whole: float, launches: int
) -> dict[str, Any]:
    total = sum(entry["seconds"] for entry in kinds)
    for entry in kinds:
        entry["share"] = entry["seconds"] / total
    return {
        "tokens": tokens,
        "turns": turns,
        "kinds": kinds,
        "sum_seconds": total,
        "whole_seconds": whole,
        "launches": launches,
    }


def by_kind(steps: Sequence[Any]) -> dict[str, list[Any]]:
    """Steps by operation and sizes, in the order in which each kind first comes."""
    found: dict[str, list[Any]] = {}
    for step in steps:
        found.setdefault(_kind(step), []).append(step)
    return found


def _kind(step: Any) -> str:
    """The operation, and for a linear layer what it maps to what."""
    constants = getattr(step, "constants", {})
    if "WIDTH" in constants and "DEPTH" in constants:
        return f"{step.name} {constants['DEPTH']} -> {constants['WIDTH']}"
    if hasattr(step, "weight"):
        return f"{step.name} {step.weight.shape[1]} -> {step.weight.shape[0]}"
    return str(step.name)
