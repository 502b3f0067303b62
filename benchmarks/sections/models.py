"""Whole forwards: fastdistil beside its peers, workload by workload."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from benchmarks import goals
from benchmarks.figures import Bars, bars
from benchmarks.models.workloads import MIXED, ONE, ROWS, SORTED
from fastdistil.bench import summary
from fastdistil.bench.ours import PRECISIONS
from fastdistil.bench.results import Results
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import ratio
from fastdistil.bench.workloads import PEER_BATCH

from . import Block, Group, Picture, folded, milliseconds, per_second

STANDARD = (MIXED, SORTED, ROWS, ONE)
POOLED = "mixed, to vectors"
# An example, near what two virtual CPUs of a cloud cost.
PRICE_PER_HOUR = 0.10

# Whom each precision has to be ahead of: peers with no larger an error than its own.
OPPONENTS = {precision: summary.OPPONENTS[precision] for precision in PRECISIONS}


def blocks(results: Results, price_per_hour: float = PRICE_PER_HOUR) -> list[Block]:
    standard = _only(results, STANDARD)
    return [
        _picture(standard),
        markdown_table(*summary.table(standard, price_per_hour)),
        "What a million tokens cost is reckoned from a price that is an example, whatever the "
        "currency.",
        _padding(standard),
        *_pooled(results),
        *_grid(results),
        "Times as fast as the best peer that gives up no more accuracy:",
        leads(results),
        "What was set out for:",
        markdown_table(goals.HEADER, goals.rows(results)),
    ]


def figures(results: Results) -> str:
    """The table of README: an engine a row, a workload a column."""
    return markdown_table(*summary.table(_only(results, STANDARD)))


def leads(results: Results) -> str:
    """How far fastdistil is ahead on each workload, and of whom."""
    header = ("workload", *(f"{own} / the best of {', '.join(o)}" for own, o in OPPONENTS.items()))
    rows = [
        (name, *(_lead(group, *pair) for pair in OPPONENTS.items()))
        for name, group in results.groups().items()
        if name != POOLED
    ]
    return markdown_table(header, rows)


def _lead(group: Group, precision: str, opponents: Sequence[str]) -> str:
    own = group.get(f"fastdistil {precision}")
    peers = [
        row
        for row in group.values()
        if not row.name.startswith("fastdistil") and row.info["precision"] in opponents
    ]
    if own is None or not peers:
        return "-"
    best = min(peers, key=lambda row: row.timing.median)
    return f"{ratio(own.timing, best.timing):.2f}x ({best.name})"


def _only(results: Results, groups: Collection[str]) -> Results:
    return replace(results, rows=tuple(row for row in results.rows if row.group in groups))


def _picture(results: Results) -> Picture:
    panels = []
    for name, group in results.groups().items():
        if summary.is_single(group):
            unit, values = "ms, less is better", {n: milliseconds(row) for n, row in group.items()}
        else:
            unit, values = "tok/s", {n: per_second(row, "tokens") for n, row in group.items()}
        panels.append(Bars(summary.label(name), unit, values))
    title = "DistilBERT-base: speed by engine, workload by workload"
    return Picture("models", title, bars(panels))


def _padding(results: Results) -> str:
    shares = []
    for name, group in results.groups().items():
        info = next(iter(group.values())).info
        shares.append(f"{1 - info['tokens'] / info['padded_tokens']:.0%} ({summary.label(name)})")
    return f"Padding in the batches of {PEER_BATCH} of the engines that pad: {', '.join(shares)}."


def _pooled(results: Results) -> Iterator[str]:
    """fastdistil's figures from token ids to one vector a sentence."""
    rates = [f"{row.name} {summary.cell(row)}" for row in results.rows if row.group == POOLED]
    if rates:
        yield (
            f"`Encoder.encode_ids`, {summary.label(MIXED)}, to mean-pooled vectors (tok/s): "
            f"{', '.join(rates)}."
        )


def _grid(results: Results) -> Iterator[str]:
    """Single sentences and batches of more sizes."""
    sizes = {
        (int(match[1]), int(match[2])): name
        for name in results.groups()
        if (match := re.fullmatch(r"(\d+) x (\d+)", name))
    }
    if set(sizes.values()) <= set(STANDARD):
        return
    for title, single in (("One sentence", True), ("Batches (sequences x tokens)", False)):
        chosen = [sizes[size] for size in sorted(sizes) if single == (size[0] == 1)]
        rows = sorted(_only(results, chosen).rows, key=lambda row: chosen.index(row.group))
        if rows:
            table = markdown_table(*summary.table(replace(results, rows=tuple(rows))))
            yield folded(f"{title}, more sizes", table)
