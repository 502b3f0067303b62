"""gpu.md: everything that the stages measured, in Markdown, from their JSON files."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import ceilings, latency, tables, tune_forward
from benchmarks.gpu.device import describe
from benchmarks.gpu.store import read_results
from fastdistil.bench.tables import markdown_table

STAGES = ("check", "ceilings", "tune", "bench", "profile")

# What the targets were set for.
_TARGET_DEVICE = "H100"
# Of a copy's bandwidth.
_MOVING_GOAL = 0.9

Item = Mapping[str, Any]
Items = Mapping[str, Item]


def write_report(folder: Path) -> Path:
    """Write gpu.md beside the stages' files; its path."""
    results = {stage: read_results(folder / f"gpu-{stage}.json") for stage in STAGES}
    path = folder / "gpu.md"
    part = path.with_suffix(".part")
    part.write_text(report(results), encoding="utf-8")
    part.replace(path)
    return path


def report(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The whole page.

    Args:
        results: what each stage wrote, by stage; empty where it did not run.
    """
    parts = [*_about(results), *_targets(_items(results, "bench"), _items(results, "profile"))]
    parts += [*_few_tokens(results), *_moving(results)]
    for stage, section in (
        ("bench", _rows),
        ("bench", _kernels),
        ("profile", _profile),
        ("ceilings", _ceilings),
        ("tune", _tuning),
        ("check", _check),
    ):
        items = _items(results, stage)
        if items:
            parts += section(items)
    parts += _owed(results)
    return "\n\n".join(parts) + "\n"


def _about(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    records = [found["environment"] for found in results.values() if found]
    yield "# What this GPU proved"
    yield "Written by `make gpu` (`python -m benchmarks.gpu`); not by hand."
    if not records:
        yield "Nothing was measured."
        return
    yield describe(max(records, key=lambda record: str(record["date"])))
    if records[0]["capability"] == "none":
        yield "**A dry run: the code was walked through, the figures mean nothing.**"
    commits = sorted({str(record["commit"]) for record in records})
    if len(commits) > 1:
        yield f"The stages ran at different commits: {', '.join(commits)}."


def _items(results: Mapping[str, Mapping[str, Any]], stage: str) -> Items:
    found: Items = results.get(stage, {}).get("items", {})
    return found


def _targets(items: Items, profile: Items) -> Iterator[str]:
    rows = []
    for name, entries in _by_row(items).items():
        own = [e for e in entries if e["ours"] and "seconds" in e and e["precision"] == "bf16"]
        if not own:
            continue
        best = min(own, key=_median)
        met = _median(best) <= _seconds_wanted(best)
        rows.append(
            [
                name,
                _wanted(best),
                _figure(best),
                best["contender"],
                _alone(profile.get(name)),
                "met" if met else "not met",
                _standing(entries),
            ]
        )
    if rows:
        yield "## Targets"
        header = ["row", "target", "reached", "by", "GPU alone", "verdict", "ahead of every peer"]
        yield markdown_table(header, rows)
        yield (
            f"The targets were set for one {_TARGET_DEVICE}; the GPU here is named above. What was "
            "reached is calls one after the other, host included; the tables below have single "
            "calls by the wall clock too. GPU alone: our default's kernels as one graph. A peer "
            "counts as beaten where our default was faster in the turns that the two took."
        )


def _alone(item: Item | None) -> str:
    """Microseconds of a whole forward's kernels, from the profile."""
    return "-" if item is None else f"{1e6 * item['whole_seconds'] * item['turns']:.1f} us"


def _standing(entries: Sequence[Item]) -> str:
    """Whether our default beat every peer that was timed; how many those are."""
    peers = [e for e in entries if not e["ours"] and "anchor_seconds" in e]
    if not peers:
        return "no peer timed"
    ratios = {e["contender"]: _ratio(e) for e in peers}
    closest = min(ratios, key=lambda name: ratios[name])
    verdict = "yes" if ratios[closest] > 1.0 else "NO"
    return f"{verdict}, of {len(peers)} timed: {ratios[closest]:.2f}x {closest}"


def _few_tokens(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What was reached at each size of few tokens, beside the targets."""
    sizes: dict[str, list[Item]] = {}
    for item in _items(results, "bench").values():
        if "latency_size" in item:
            sizes.setdefault(" x ".join(map(str, item["latency_size"])), []).append(item)
    if not sizes:
        return
    judges = _judges(results, "bench")
    copy = _copied_per_second(results)
    yield "## Few tokens"
    yield (
        "On the device: ids to vectors there, by events around queued calls. From call to return: "
        "lists of ids to vectors in numpy, each call by itself. Of copy: the weights and what else "
        "has to come from memory, over the time on the device, as a part of the measured copy's "
        f"bandwidth. Ratio: how many times faster `{latency.ANCHOR}` was from call to return in "
        f"the turns the two took. Targets are for one {_TARGET_DEVICE}, and judged there only."
    )
    for name, items in sizes.items():
        timed = [item for item in items if "device" in item]
        header = ["engine", "device, us", "call to return, us", "p99, us", "of copy", "ratio"]
        header.append("least cosine")
        rows = [_few_row(item, copy, judges) for item in timed]
        yield f"### {name}\n\n{markdown_table(header, rows)}"
        yield from _not_timed(items)


def _few_row(item: Item, copy: float, judges: bool) -> list[str]:
    targets = item["targets"] if judges else {}
    device, answer = item["device"], item["p50"]
    cells = [
        item["contender"],
        f"{1e6 * device:.1f}" + _at_most(device, targets.get("device")),
        f"{1e6 * answer:.1f}" + _at_most(answer, targets.get("answer")),
        f"{1e6 * item['p99']:.1f}",
        _part_of_copy(item.get("moved"), device, copy, targets.get("of_copy")),
        f"{answer / item['anchor_p50']:.2f}" if "anchor_p50" in item else "-",
        f"{item['cosine']:.5f}",
    ]
    return cells


def _at_most(seconds: float, target: float | None) -> str:
    if target is None:
        return ""
    return f" ({_verdict(seconds <= target)}: {1e6 * target:.0f})"


def _part_of_copy(moved: int | None, seconds: float, copy: float, target: float | None) -> str:
    """A part of the measured copy's bandwidth, and whether that is enough."""
    if moved is None or not copy:
        return "-"
    part = moved / seconds / copy
    verdict = "" if target is None else f" ({_verdict(part >= target)}: {target:.0%})"
    return f"{part:.1%}{verdict}"


def _verdict(reached: bool) -> str:
    return "reached" if reached else "not reached"


def _judges(results: Mapping[str, Mapping[str, Any]], stage: str) -> bool:
    """Whether a stage ran on what the targets are for."""
    return _TARGET_DEVICE in str(results[stage]["environment"]["device"])


def _copied_per_second(results: Mapping[str, Mapping[str, Any]]) -> float:
    """Bytes, read and written, of the measured copy; 0 where it was not measured."""
    item = _items(results, "ceilings").get(ceilings.COPY, {})
    return float(item.get("tbytes_per_second", 0.0)) * 1e12


def _moving(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """The kernels that move numbers and hardly compute: their share of what a copy moves."""
    copy = _copied_per_second(results)
    items = [
        item
        for item in _items(results, "bench").values()
        if item.get("peer") == "CUDA C++" and "moved" in item
    ]
    if not items or not copy:
        return
    goal = _MOVING_GOAL if _judges(results, "bench") else None
    yield "## Kernels that only move numbers"
    yield (
        f"bf16, {ceilings.TOKENS:,} tokens: bytes that have to move over the time of the kernel, "
        f"as a part of the measured copy's bandwidth; {_MOVING_GOAL:.0%} of it is the goal on one "
        f"{_TARGET_DEVICE}."
    )
    rows = [
        [
            item["kernel"],
            f"{item['moved'] / 1e6:.1f}",
            _part_of_copy(item["moved"], statistics.median(item["peer_seconds"]), copy, goal),
            _part_of_copy(item["moved"], statistics.median(item["own_seconds"]), copy, None),
        ]
        for item in items
    ]
    yield markdown_table(["kernel", "MB", "CUDA C++, of copy", "Triton, of copy"], rows)


def _rows(items: Items) -> Iterator[str]:
    for name, entries in _by_row(items).items():
        first = entries[0]
        yield f"## {name}"
        yield (
            f"{first['sequences']:,} sequences, {first['tokens']:,} tokens, lengths: "
            f"{first['lengths']}. Ratio: our default's speed over this one's, in the turns they "
            "took with each other."
        )
        latency = any("wall_own" in entry for entry in entries)
        header = ["engine", "us" if latency else "seq/s"]
        header += ["us, one call" if latency else "Mtok/s", "ratio", "least cosine"]
        timed = sorted((e for e in entries if "seconds" in e), key=_median)
        yield markdown_table(header, [_row(entry, latency) for entry in timed])
        yield from _not_timed(entries)


def _row(entry: Item, latency: bool) -> list[str]:
    seconds = _median(entry)
    name = entry["contender"] + (", sorted batches" if entry["form"] == "sorted" else "")
    ratio = f"{_ratio(entry):.2f}" if "anchor_seconds" in entry else "-"
    if latency:
        speeds = [f"{1e6 * seconds:.1f}", f"{1e6 * entry['wall_own']:.1f}"]
    else:
        speeds = [f"{entry['sequences'] / seconds:,.0f}", f"{entry['tokens'] / seconds / 1e6:.2f}"]
    return [name, *speeds, ratio, f"{entry['cosine']:.5f}"]


def _not_timed(entries: Sequence[Item]) -> Iterator[str]:
    """Peers that are missing, failed or were wrong."""
    lines = [
        f"- {entry['contender']}: {entry.get('missing') or entry.get('failed')}"
        for entry in entries
        if "missing" in entry or "failed" in entry
    ]
    if lines:
        yield "Not timed:\n" + "\n".join(dict.fromkeys(lines))


def _kernels(items: Items) -> Iterator[str]:
    found = [item for item in items.values() if "kernel" in item]
    timed = [item for item in found if "own_seconds" in item]
    if timed:
        yield "## Each kernel alone"
        yield "bf16, 16,384 tokens of DistilBERT-base, in CUDA graphs over rotating operands."
        yield markdown_table(
            ["kernel", "beside", "ours, us", "theirs, us", "ratio"],
            [
                [item["kernel"], item["peer"], *_two(item["own_seconds"], item["peer_seconds"])]
                for item in timed
            ],
        )
    lines = [
        f"- {item['kernel']}, {item['peer']}: {item.get('missing') or item.get('failed')}"
        for item in found
        if item not in timed
    ]
    if lines:
        yield "Not timed:\n" + "\n".join(lines)


def _two(own: Sequence[float], peer: Sequence[float]) -> list[str]:
    mine, theirs = statistics.median(own), statistics.median(peer)
    return [f"{1e6 * mine:.1f}", f"{1e6 * theirs:.1f}", f"{theirs / mine:.2f}"]


def _profile(items: Items) -> Iterator[str]:
    yield "## Where the time goes"
    yield (
        "Every kernel of a forward alone, all its launches together; fractions are of the measured "
        "ceilings below. Activations may lie in the L2 cache, as they do in a forward."
    )
    for name, item in items.items():
        turns = f", {item['turns']} times" if item["turns"] > 1 else ""
        yield (
            f"### {name}\n\n{item['tokens']:,} tokens at once{turns}: {item['launches']} launches, "
            f"{1e6 * item['whole_seconds']:.1f} us as one graph, "
            f"{1e6 * item['sum_seconds']:.1f} us one by one."
        )
        yield markdown_table(
            ["kernel", "launches", "us", "share", "TFLOP/s", "of ceiling", "TB/s", "of copy"],
            [_profile_row(entry) for entry in item["kinds"]],
        )


def _profile_row(entry: Item) -> list[str]:
    return [
        entry["kind"],
        str(entry["count"]),
        f"{1e6 * entry['seconds']:.1f}",
        f"{entry['share']:.1%}",
        f"{entry['tflops']:.1f}",
        "-" if entry["of_flops"] is None else f"{entry['of_flops']:.1%}",
        f"{entry['tbytes_per_second']:.2f}",
        "-" if entry["of_bytes"] is None else f"{entry['of_bytes']:.1%}",
    ]


def _ceilings(items: Items) -> Iterator[str]:
    yield "## Ceilings"
    rows = []
    for name, item in items.items():
        if "tflops" in item:
            rows.append([name, f"{item['tflops']:.1f} TFLOP/s", f"{1e6 * item['seconds']:.1f}"])
        elif "tbytes_per_second" in item:
            speed = f"{item['tbytes_per_second']:.2f} TB/s"
            rows.append([name, speed, f"{1e6 * item['seconds']:.1f}"])
    yield markdown_table(["what", "rate", "us"], rows)
    launch = items.get(ceilings.LAUNCH)
    if launch:
        wall = 1e6 * launch["graph_wall_seconds"]
        yield (
            f"An empty kernel: {1e6 * launch['launch_seconds']:.1f} us a plain launch, "
            f"{1e6 * launch['graph_node_seconds']:.2f} us a node of a graph; "
            f"{wall:.1f} us for a graph of {launch['nodes']} by the wall clock."
        )


def _tuning(items: Items) -> Iterator[str]:
    yield "## Tuning"
    rows = []
    for name, item in items.items():
        if "incumbent" not in item:
            continue
        before = statistics.median(item["incumbent"]["seconds"])
        cells = [name, f"{1e6 * before:.2f}", f"{100 * _spread(item) / before:.1f}"]
        entries = item["best"]
        best = min(entries, key=lambda g: statistics.median(entries[g]["seconds"]), default=None)
        if best is None:
            rows.append([*cells, "-", "-", "none ran"])
            continue
        after = statistics.median(entries[best]["seconds"])
        cells += [f"{1e6 * after:.2f}", f"{before / after:.2f}"]
        rows.append([*cells, f"{_short(entries[best]['setting'])} ({best})"])
    yield markdown_table(
        ["what", "present, us", "its spread, %", "best, us", "gain", "best setting (bits)"], rows
    )
    broken = [
        name
        for name, item in items.items()
        if "incumbent" in item and item["incumbent"]["group"] in ("any", None)
    ]
    if broken:
        yield f"The present setting breaks batch invariance at: {', '.join(broken)}."
    skipped = sum(sum(item.get("skipped", {}).values()) for item in items.values())
    tried = sum(item.get("tried", 0) for item in items.values())
    other = sum(item.get("not_identical", 0) for item in items.values())
    yield f"{tried} settings tried, {skipped} did not compile or run, {other} had other bits."
    for entry in (tune_forward.LATENCY, tune_forward.CHUNK, tune_forward.DEPENDENT):
        if entry in items:
            yield _whole_forwards(entry, items[entry])


def _whole_forwards(entry: str, item: Item) -> str:
    """What whole forwards chose, and their times by row and value."""
    if "missing" in item:
        return f"`{entry}`: {item['missing']}."
    rows = [
        f"{row}: " + ", ".join(f"{1e6 * s:.1f} us with {value}" for value, s in seconds.items())
        for row, seconds in item["seconds"].items()
    ]
    chosen = item["chosen"]
    if isinstance(chosen, Mapping):
        entry, chosen = "`, `".join(chosen), ", ".join(map(str, chosen.values()))
    return f"`{entry}`: {str(chosen).lower()} ({'; '.join(rows)})."


def _spread(item: Item) -> float:
    return tables.spread(item["incumbent"]["seconds"])


def _short(setting: Item) -> str:
    """A setting on a few characters."""
    if setting.get("variant") == "cublas":
        return "cuBLAS"
    if "block_m" in setting:
        tile = "x".join(str(setting[name]) for name in ("block_m", "block_n", "block_k"))
        text = f"{setting['variant']} {tile} g{setting['group_m']}"
    elif "block_q" in setting:
        text = f"q{setting['block_q']}/{setting['slot']}"
    else:
        return f"{setting['rows']} rows w{setting['num_warps']}"
    text += f" w{setting['num_warps']} s{setting['num_stages']}"
    return text + (f" p{setting['programs']}" if setting.get("programs") else "")


def _check(items: Items) -> Iterator[str]:
    yield "## Tests"
    rows = [
        [name, item["summary"], "passed" if item["passed"] else "FAILED"]
        for name, item in items.items()
    ]
    yield markdown_table(["what", "result", "verdict"], rows)
    for name, item in items.items():
        if item["failures"]:
            lines = "\n".join(f"    {line}" for line in item["failures"])
            yield f"{name}:\n\n{lines}"


def _owed(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What is missing from this page."""
    lines = []
    for stage in STAGES:
        found = results.get(stage, {})
        if not found:
            lines.append(f"- {stage}: did not run")
            continue
        lines += [f"- {stage}: no time for {name}" for name in found["left_out"]]
        lines += [f"- {stage}: {name} failed: {why}" for name, why in found["failed"].items()]
    if lines:
        yield "## Left out and failed"
        yield "The same command again goes on where this run stopped.\n\n" + "\n".join(lines)


def _by_row(items: Items) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = {}
    for item in items.values():
        if "row" in item:
            found.setdefault(item["row"], []).append(item)
    return found


def _median(entry: Item) -> float:
    return statistics.median(entry["seconds"])


def _ratio(entry: Item) -> float:
    """How many times faster our default was: above 1 is ahead."""
    return _median(entry) / statistics.median(entry["anchor_seconds"])


def _seconds_wanted(entry: Item) -> float:
    target = float(entry["target"])
    return target if entry["latency"] else entry["sequences"] / target


def _wanted(entry: Item) -> str:
    target = entry["target"]
    return f"{1e6 * target:.0f} us" if entry["latency"] else f"{target:,.0f} seq/s"


def _figure(entry: Item) -> str:
    seconds = _median(entry)
    if entry["latency"]:
        return f"{1e6 * seconds:.1f} us"
    return f"{entry['sequences'] / seconds:,.0f} seq/s"
