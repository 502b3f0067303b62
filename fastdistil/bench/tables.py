"""Tables for people and for Markdown at once."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also aligned for people: columns of figures right, others left."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
    figures = [all(_is_figure(row[i]) for row in rows) for i in range(len(header))]
    widths = [max(3, *(len(line[i]) for line in [header, *rows])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        columns = zip(cells, widths, figures, strict=True)
        return "| " + " | ".join(c.rjust(w) if f else c.ljust(w) for c, w, f in columns) + " |"

    ends = ("-:" if figure else "--" for figure in figures)
    rules = ("-" * width + end for width, end in zip(widths, ends, strict=True))
    rule = "|" + "|".join(rules) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def _is_figure(cell: str) -> bool:
    return cell.lstrip("+-")[:1].isdigit() or cell == "-"
