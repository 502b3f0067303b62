"""Tuning: tries launch settings on this GPU and writes those that win into its table.

For each operation and size the candidates take turns with the present setting, in CUDA graphs over
rotating operands. A candidate is taken if it wins by more than the present setting's own repeats
differ, and if a row's bits stay what they are at every other size. Faster settings with other bits,
cuBLAS among them, go to the table's section "fastest", for callers who do without batch invariance.

The most valuable sizes come first: the budget may end before the list does.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.gpu import device as devices
from benchmarks.gpu import tables, tune_forward
from benchmarks.gpu.compile_pool import CompilePool
from benchmarks.gpu.session import TUNING, Job, Session, reason_of
from benchmarks.gpu.store import Store
from benchmarks.gpu.timing import Call, Timer, Turn
from benchmarks.gpu.tune_cases import (
    ROW_OPERATIONS,
    AttentionSpec,
    LinearSpec,
    Operands,
    RowsSpec,
    Setting,
    Spec,
)
from fastdistil.bench.timing import Timing
from fastdistil.kernels.settings import RowSetting, Settings, load_settings

# (out_features, in_features, activation)
Layer = tuple[int, int, str | None]

# The costliest layers first.
DISTILBERT: tuple[Layer, ...] = (
    (3072, 768, "gelu"),
    (768, 3072, None),
    (2304, 768, None),
    (768, 768, None),
)
MINILM: tuple[Layer, ...] = (
    (1536, 384, "gelu"),
    (384, 1536, None),
    (1152, 384, None),
    (384, 384, None),
)
TINY: tuple[Layer, ...] = ((128, 64, "gelu"), (64, 128, None))

# Operands rotate over so many bytes: more than twice the largest L2 cache there is.
_ROTATED_BYTES = 256 * 2**20
_MOST_SETS = 48
_SCREENING_ROUNDS = 5
_FINAL_ROUNDS = 21
_FINALISTS = 3
_TOKENS = 16384


def run(session: Session) -> bool:
    """The stage; False where something failed."""
    before = load_settings(session.target)
    store = session.store()
    first, rest = (list(specs) for specs in (most_valuable(session.dry), others(session.dry)))
    pool = CompilePool(before.table, before.target, idle=session.dry)
    bench = Bench(session, before, pool)
    for spec in (*first, *rest):
        if not store.has(spec.name):
            bench.compile_ahead(spec)
    try:
        session.work(store, [Job(spec.name, bench.job(spec), 3.0) for spec in first])
        # Whole forwards, which shall run with what was just found.
        write(session, store, before)
        session.work(store, tune_forward.jobs(session))
        session.work(store, [Job(spec.name, bench.job(spec), 3.0) for spec in rest])
    finally:
        write(session, store, before)
        pool.close()
    return session.finish(store)


def most_valuable(dry: bool) -> Iterator[Spec]:
    """What DistilBERT's large and smallest batches spend their time in."""
    if dry:
        yield from (LinearSpec("half", n, *shape, 64) for n in (16, 64) for shape in TINY)
        yield from (AttentionSpec("half", 32, n, 48, num_heads=2) for n in (16, 32))
        return
    for tokens in (16384, 16, 4096, 1024):
        yield from _linear("half", tokens, DISTILBERT)
    yield from _attention("half", 64, (128, 32, 512, 64, 16))


def others(dry: bool) -> Iterator[Spec]:
    """The rest, in the order of what it brings."""
    if dry:
        yield from (RowsSpec(operation, "half", 16, 64) for operation in ROW_OPERATIONS)
        return
    for tokens in (64, 256):
        yield from _linear("half", tokens, DISTILBERT)
    yield from (RowsSpec(name, "half", n, 768) for name in ROW_OPERATIONS for n in (_TOKENS, 16))
    for tokens in (16384, 4096):
        yield from _linear("fp32", tokens, DISTILBERT)
    for tokens in (16384, 16, 4096, 1024, 64, 256):
        yield from _linear("half", tokens, MINILM)
    yield from _attention("half", 32, (128, 32, 512, 64, 16))
    for tokens in (16, 64, 256, 1024):
        yield from _linear("fp32", tokens, DISTILBERT)
    yield from _attention("fp32", 64, (128, 32, 512, 64, 16))


class Bench:
    """Measures specs against the settings that held when the stage began."""

    def __init__(self, session: Session, before: Settings, pool: CompilePool):
        self._session, self._before, self._pool = session, before, pool
        self._processors = devices.multiprocessors(session.device)

    def compile_ahead(self, spec: Spec) -> None:
        """Queue all that `job` will run."""
        for setting in self._tried(spec):
            self._pool.submit(spec, spec.reference(setting, self._before))
            self._pool.submit(spec, setting)

    def job(self, spec: Spec) -> Any:
        """A function that measures the spec and gives its item."""
        return lambda: self._measure(spec)

    def _tried(self, spec: Spec) -> list[Setting]:
        """The present setting first."""
        found = spec.candidates(self._before, self._processors)
        return [spec.incumbent(self._before), *(found[:2] if self._session.dry else found)]

    def _measure(self, spec: Spec) -> dict[str, Any]:
        sets = 1 if self._session.dry else _sets(spec.moved())
        operands = [spec.operands(self._session.device, seed) for seed in range(sets)]
        skipped: Counter[str] = Counter()
        tried = self._tried(spec)
        turns: dict[Setting, Turn] = {}
        groups: dict[Setting, str | None] = {}
        expected: dict[Setting, torch.Tensor] = {}
        for setting in tried:
            problem = self._pool.problem(spec, setting, self._session.left())
            if problem is not None:
                skipped[problem] += 1
                continue
            try:
                reference = spec.reference(setting, self._before)
                if reference not in expected:
                    expected[reference] = spec.expected(operands[0], reference, self._before)
                calls = self._calls(spec, setting, operands)
                operands[0]["out"].fill_(math.nan)
                calls[0]()
                groups[setting] = spec.group(operands[0], setting, expected[reference])
                turns[setting] = self._session.timer.graphed(calls)
            except Exception as error:
                _raise_if_device_is_lost(self._session)
                skipped[reason_of(error, limit=120)] += 1
        if tried[0] not in turns:
            raise RuntimeError(f"the present setting does not run: {', '.join(skipped)}")
        record = race(self._session.timer, tried[0], turns, groups)
        return {"spec": asdict(spec), "tried": len(tried), "skipped": dict(skipped), **record}

    def _calls(self, spec: Spec, setting: Setting, operands: Sequence[Operands]) -> list[Call]:
        found: list[Call] = []
        for one in operands:
            launches = spec.launches(one, setting, self._before)
            found.append(functools.partial(_run_all, launches))
        return found


def _run_all(launches: Sequence[Any]) -> None:
    for launch in launches:
        launch.run()


def race(
    timer: Timer,
    incumbent: Setting,
    turns: Mapping[Setting, Turn],
    groups: Mapping[Setting, str | None],
) -> dict[str, Any]:
    """Screen all, then take the best of each group into a longer race with the incumbent.

    Args:
        timer: the clock.
        incumbent: the present setting; one of `turns`.
        turns: what was found to run.
        groups: each setting's group; None where its bits are none that may be taken.
    """
    allowed = {setting: turn for setting, turn in turns.items() if groups[setting] is not None}
    allowed[incumbent] = turns[incumbent]
    names = {f"{index}": setting for index, setting in enumerate(allowed)}
    screened = timer.race({n: allowed[s] for n, s in names.items()}, _SCREENING_ROUNDS)
    order = sorted(names, key=lambda name: screened[name].median)
    finalists = {name for name, setting in names.items() if setting == incumbent}
    for group in {groups[setting] for setting in allowed}:
        members = [name for name in order if groups[names[name]] == group]
        finalists.update(members[:_FINALISTS])
    final = timer.race({n: allowed[names[n]] for n in order if n in finalists}, _FINAL_ROUNDS)
    return {
        "incumbent": _entry(incumbent, groups[incumbent], _of(final, names, incumbent)),
        "best": {
            str(group): _best(final, names, groups, group)
            for group in sorted({str(groups[names[n]]) for n in final} - {"None"})
        },
        "not_identical": sum(group is None for group in groups.values()),
    }


def write(session: Session, store: Store, before: Settings) -> None:
    """Put what was decided so far into the table, and a copy beside the results."""
    if not store.items:
        return
    table = decide(before, store.items, session.environment["device"])
    tables.write_table(session.table, table, before.target)
    if session.table.parent == TUNING:
        tables.write_table(session.folder / "tuning" / session.table.name, table, before.target)


def decide(
    before: Settings, items: Mapping[str, Mapping[str, Any]], measured_on: str
) -> dict[str, Any]:
    """The table with everything that the items justify; pure.

    Args:
        before: the settings they were measured against.
        items: as the stage stores them.
        measured_on: the GPU.
    """
    table = tables.changed(before.table, "measured_on", value=measured_on)
    for kind, shape, found in _by_layer(items):
        chosen = {tokens: _choice(item) for tokens, item in found.items()}
        key = f"{shape[0]}x{shape[1]}"
        rules = tables.linear_rules(before, kind, shape, chosen)
        table = tables.changed(table, "linear", kind, key, value=rules)
        if set(found) >= set(tables.TOKEN_CLASSES):
            after = Settings(before.target, table, before.source)
            quick = {tokens: _fastest(item) for tokens, item in found.items()}
            fastest = tables.linear_rules(after, kind, shape, quick)
            if fastest != rules:
                table = tables.changed(table, "fastest", kind, key, value=fastest)
    for kind, head_dim, found in _by_head_size(items):
        entry = _attention_entry(before.table["attention"][kind][head_dim], found)
        table = tables.changed(table, "attention", kind, head_dim, value=entry)
    for operation, kind, item in _by_row_operation(items):
        table = tables.changed(table, "rows", operation, kind, value=item["setting"])
    return tune_forward.decide(table, items)


def _linear(kind: str, tokens: int, shapes: Sequence[Layer]) -> Iterator[LinearSpec]:
    for shape in shapes:
        yield LinearSpec(kind, tokens, *shape, _TOKENS)


def _attention(kind: str, head_dim: int, lengths: Sequence[int]) -> Iterator[AttentionSpec]:
    for length in lengths:
        yield AttentionSpec(kind, head_dim, length, _TOKENS)


def _sets(bytes_each: int) -> int:
    return max(2, min(math.ceil(_ROTATED_BYTES / bytes_each), _MOST_SETS))


def _raise_if_device_is_lost(session: Session) -> None:
    """After an illegal access nothing runs any more: better said at once."""
    if session.device.type == "cuda":
        torch.cuda.synchronize()


def _entry(setting: Setting, group: str | None, timing: Timing) -> dict[str, Any]:
    return {
        "setting": _plain(setting),
        "key_block": getattr(setting, "key_block", None),
        "group": group,
        "seconds": list(timing.seconds),
    }


def _plain(setting: Setting) -> dict[str, Any]:
    return asdict(setting) if isinstance(setting, RowSetting) else tables.plain(setting)


def _of(timings: Mapping[str, Timing], names: Mapping[str, Setting], setting: Setting) -> Timing:
    return next(timings[name] for name in timings if names[name] == setting)


def _best(
    timings: Mapping[str, Timing],
    names: Mapping[str, Setting],
    groups: Mapping[Setting, str | None],
    group: str,
) -> dict[str, Any]:
    members = [name for name in timings if groups[names[name]] == group]
    best = min(members, key=lambda name: timings[name].median)
    return _entry(names[best], group, timings[best])


def _choice(item: Mapping[str, Any]) -> dict[str, Any]:
    """The setting that keeps the layer's bits: the present one unless another won."""
    incumbent = item["incumbent"]
    best = item["best"].get("invariant")
    keeps = incumbent["group"] == "invariant"
    if best and tables.accepts(incumbent["seconds"], best["seconds"], True, keeps):
        return dict(best["setting"])
    return dict(incumbent["setting"])


def _fastest(item: Mapping[str, Any]) -> dict[str, Any]:
    """The setting with any bits: the invariant choice unless another won against that one."""
    choice = _choice(item)
    entries = [item["incumbent"], *item["best"].values()]
    seconds = next(entry["seconds"] for entry in entries if entry["setting"] == choice)
    best = item["best"].get("any")
    if best and tables.accepts(seconds, best["seconds"], True):
        return dict(best["setting"])
    return choice


def _by_layer(
    items: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, tuple[int, int], dict[int, Mapping[str, Any]]]]:
    layers: dict[tuple[str, tuple[int, int]], dict[int, Mapping[str, Any]]] = {}
    for name, item in items.items():
        if name.startswith("linear "):
            spec = item["spec"]
            key = (spec["kind"], (spec["out_features"], spec["in_features"]))
            layers.setdefault(key, {})[spec["tokens"]] = item
    for (kind, shape), found in layers.items():
        yield kind, shape, found


def _by_head_size(
    items: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str, dict[int, Mapping[str, Any]]]]:
    sizes: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for name, item in items.items():
        if name.startswith("attention "):
            spec = item["spec"]
            sizes.setdefault((spec["kind"], str(spec["head_dim"])), {})[spec["length"]] = item
    for (kind, head_dim), found in sizes.items():
        yield kind, head_dim, found


def _attention_entry(
    present: Mapping[str, Any], found: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    """The rules of one head size, under one key block."""
    medians: dict[int, dict[int, float]] = {}
    for length, item in found.items():
        for key_block, best in item["best"].items():
            medians.setdefault(int(key_block), {})[length] = statistics.median(best["seconds"])
    margin = max(
        tables.spread(item["incumbent"]["seconds"])
        / statistics.median(item["incumbent"]["seconds"])
        for item in found.values()
    )
    key_block = tables.choose_key_block(medians, present["key_block"], margin)
    chosen = {length: _for_key_block(item, key_block) for length, item in found.items()}
    wins = {length: setting for length, setting in chosen.items() if setting is not None}
    rules = tables.attention_rules(present["rules"], wins)
    return {"key_block": key_block, "rules": rules}


def _for_key_block(item: Mapping[str, Any], key_block: int) -> dict[str, Any] | None:
    """The best setting under a key block; the present one where that is its own and not beaten."""
    incumbent = item["incumbent"]
    best = item["best"].get(str(key_block))
    if incumbent["key_block"] != key_block:
        return dict(best["setting"]) if best else None
    keeps = incumbent["group"] is not None
    if best and tables.accepts(incumbent["seconds"], best["seconds"], True, keeps):
        return dict(best["setting"])
    return dict(incumbent["setting"])


def _by_row_operation(
    items: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where the best setting for many rows wins there, and loses nothing where rows are few."""
    sizes: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for item in items.values():
        spec = item.get("spec", {})
        if "operation" in spec:
            sizes.setdefault((spec["operation"], spec["kind"]), {})[spec["tokens"]] = item
    for (operation, kind), found in sizes.items():
        item = found[max(found)]
        best = item["best"]["close"]
        if not tables.accepts(item["incumbent"]["seconds"], best["seconds"], True):
            continue
        few = found[min(found)]["best"]["close"]
        loses = few["setting"] != best["setting"] and tables.accepts(
            found[min(found)]["incumbent"]["seconds"], few["seconds"], True
        )
        if not loses:
            yield operation, kind, {"setting": best["setting"]}
