"""From text to vectors, tokenising included."""

from __future__ import annotations

from benchmarks.figures import OURS, Bars, bars, colour
from fastdistil.bench import summary
from fastdistil.bench.results import Results, Row
from fastdistil.bench.tables import markdown_table

from . import Block, Group, Picture, per_second, seconds, with_spread


def blocks(results: Results) -> list[Block]:
    groups = results.groups()
    compared = {name: group for name, group in groups.items() if {*map(colour, group)} != {OURS}}
    picture = bars([_panel(name, group) for name, group in compared.items()])
    tables = (_table(name, group) for name, group in groups.items())
    return [Picture("encode", "From text to vectors: speed by engine", picture), *tables]


def _panel(name: str, group: Group) -> Bars:
    if summary.is_single(group):
        return Bars(name, "s, less is better", {n: seconds(row) for n, row in group.items()})
    return Bars(name, "texts/s", {n: per_second(row, "sequences") for n, row in group.items()})


def _table(name: str, group: Group) -> str:
    """An engine a row: its speed, its memory, its error."""
    speed = ("s",) if summary.is_single(group) else ("texts/s", "tokens/s")
    header = (name, *speed, "peak memory (MB)", "least cosine")
    return markdown_table(header, [_line(row) for row in group.values()])


def _line(row: Row) -> tuple[str, ...]:
    median = row.timing.median
    if row.info["sequences"] == 1:
        speed = [with_spread(row, f"{median:.2f}")]
    else:
        rate = row.info["sequences"] / median
        digits = 0 if rate >= 100 else 1
        speed = [with_spread(row, f"{rate:,.{digits}f}"), f"{row.tokens_per_second:,.0f}"]
    memory = f"{row.info['peak_process_bytes'] / 1e6:,.0f}"
    return row.name, *speed, memory, f"{row.info['least_cosine']:.5f}"
