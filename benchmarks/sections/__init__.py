"""The report, suite by suite: from results to Markdown and pictures.

Each module has `blocks`, which makes its section of `python -m benchmarks.report`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.figures import Value
from fastdistil.bench.results import Row

Group = Mapping[str, Row]


@dataclass(frozen=True)
class Picture:
    """A figure of a section.

    Attributes:
        name: of its file, after the device's.
        title: what it shows, for those who cannot see it too.
        svg: the file's content.
    """

    name: str
    title: str
    svg: str


Block = str | Picture


def folded(title: str, text: str) -> str:
    """Markdown that only those see who open it."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def seconds(row: Row) -> Value:
    """Of a pass."""
    turns = row.timing.seconds
    return Value(row.timing.median, min(turns), max(turns))


def milliseconds(row: Row) -> Value:
    """Of a pass."""
    return Value(*(1000 * each for each in seconds(row)))


def per_second(row: Row, what: str) -> Value:
    """`what`, as in "tokens", of a pass a second; the slowest turn is the lowest rate."""
    median, quickest, slowest = seconds(row)
    return Value(*(row.info[what] / each for each in (median, slowest, quickest)))


def with_spread(row: Row, figure: str) -> str:
    """The cell of a median; one turn has no spread."""
    return f"{figure} ±{row.timing.spread:.0%}" if len(row.seconds) > 1 else figure
