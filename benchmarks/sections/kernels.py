"""Each operation by itself: implementations side by side, under what the machine allows."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.figures import OURS, Point, colour, roofline
from fastdistil.bench.results import Results, Row
from fastdistil.bench.tables import markdown_table

from . import Block, Picture, folded, with_spread

HEADER = ("operation", "implementation", "us", "GB/s", "GFLOP/s", "of the ceiling", "error")
NOTE = """\
Of the ceiling: the time that the arithmetic takes at the measured peak, or as many bytes at the
measured bandwidth, whichever is longer, as a part of the time taken. The error is the largest, as a
part of the largest number, against float64; for C++, which runs fused, that of its whole layer.
Operands are the same in every pass: in a cache, where they fit."""


def blocks(results: Results) -> list[Block]:
    operations: dict[str, list[Row]] = {}
    for row in results.rows:
        operations.setdefault(row.info["operation"], []).append(row)
    shown = [row for rows in operations.values() for row in _at_most_tokens(rows)]
    every = (folded(f"Every size: {name}", _table(rows)) for name, rows in operations.items())
    return [_picture(shown), _table(shown), NOTE, *every]


def of_the_ceiling(row: Row) -> float:
    """The least time that the operation can take, as a part of what it takes."""
    info = row.info
    computing = info["flops"] / info["ceiling_flops"]
    moving = info["bytes"] / info["ceiling_bytes_per_second"]
    return float(max(computing, moving) / row.timing.median)


def _table(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        seconds, info = row.timing.median, row.info
        lines.append(
            (
                row.group,
                row.name,
                with_spread(row, f"{1e6 * seconds:,.1f}"),
                f"{info['bytes'] / seconds / 1e9:,.1f}",
                f"{info['flops'] / seconds / 1e9:,.1f}",
                f"{of_the_ceiling(row):.0%}",
                f"{info['error']:.1e}",
            )
        )
    return markdown_table(HEADER, lines)


def _at_most_tokens(rows: Sequence[Row]) -> list[Row]:
    """Of one shape, by the best instruction set; none of an operation that computes nothing."""
    same = [row for row in rows if row.info["shape"] == rows[0].info["shape"] and row.info["flops"]]
    most = max((row.info["tokens"] for row in same), default=0)
    peaks = _peaks(rows)
    return [
        row
        for row in same
        if row.info["tokens"] == most and row.info["ceiling_flops"] == peaks[row.info["precision"]]
    ]


def _peaks(rows: Sequence[Row]) -> dict[str, float]:
    """By precision, with the best instruction set."""
    found: dict[str, float] = {}
    for row in rows:
        precision = row.info["precision"]
        found[precision] = max(row.info["ceiling_flops"], found.get(precision, 0))
    return found


def _picture(rows: Sequence[Row]) -> Picture:
    largest = max(rows, key=lambda row: row.info["bytes"])
    svg = roofline(
        [_point(row) for row in rows],
        largest.info["ceiling_bytes_per_second"],
        _peaks(rows),
        "FLOP for each byte to be moved",
        f"GFLOP/s, {largest.info['threads']} threads",
    )
    return Picture("kernels", f"Roofline of the operations of {largest.info['shape']}", svg)


def _point(row: Row) -> Point:
    info = row.info
    name = row.name.removesuffix(f" {info['precision']}")
    return Point(
        info["flops"] / info["bytes"],
        info["flops"] / row.timing.median,
        "fastdistil" if colour(name) == OURS else name,
        info["precision"],
        info["operation"],
    )
