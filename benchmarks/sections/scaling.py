"""Time against tokens, length, batch and threads."""

from __future__ import annotations

from benchmarks.figures import Lines, lines
from fastdistil.bench.results import Results, Row
from fastdistil.bench.tables import markdown_table

from . import Block, Picture, folded, milliseconds, with_spread

# By engine: its row at each x.
Engines = dict[str, dict[float, Row]]


def blocks(results: Results) -> list[Block]:
    axes = by_axis(results)
    panels = [
        Lines(
            _unit(engines),
            "ms a pass",
            {
                name: {x: milliseconds(row) for x, row in rows.items()}
                for name, rows in engines.items()
            },
        )
        for engines in axes.values()
    ]
    title = f"DistilBERT-base: time against {', '.join(axes)}"
    tables = (_table(engines) for engines in axes.values())
    return [
        Picture("scaling", title, lines(panels)),
        folded("Every point, in ms", "\n\n".join(tables)),
    ]


def by_axis(results: Results) -> dict[str, Engines]:
    """The rows of each axis; an axis's points are in the order they were taken."""
    found: dict[str, Engines] = {}
    for row in results.rows:
        engines = found.setdefault(row.info["axis"], {})
        engines.setdefault(row.info["engine"], {})[row.info["x"]] = row
    return found


def _unit(engines: Engines) -> str:
    """Of x, as in "tokens of one sequence"."""
    return next(str(row.info["x_unit"]) for rows in engines.values() for row in rows.values())


def _table(engines: Engines) -> str:
    """An engine a row, an x a column."""
    places = sorted({x for rows in engines.values() for x in rows})
    cells = [(name, *(_cell(rows.get(x)) for x in places)) for name, rows in engines.items()]
    return markdown_table((_unit(engines), *(f"{x:g}" for x in places)), cells)


def _cell(row: Row | None) -> str:
    return "-" if row is None else with_spread(row, f"{1000 * row.timing.median:,.2f}")
