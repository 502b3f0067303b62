"""The results of `fastdistil bench` as one page: bars, the table, the settings, the machine.

The page needs nothing from elsewhere, and follows the reader's light or dark colours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from . import summary
from .results import Results, Row

_STYLE = """
:root { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --ours: #0969da; --theirs: #8c959f; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --ink: #e6edf3; --soft: #9198a1;
  --line: #3d444d; --ours: #4493f8; --theirs: #656c76; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
p.soft, li, dd { color: var(--soft); } dd { margin: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.5rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font-size: 13px;
  paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
svg .soft { fill: var(--soft); } svg line { stroke: var(--line); }
svg .ours { fill: var(--ours); } svg .theirs { fill: var(--theirs); }
svg line.spread { stroke: var(--ink); stroke-width: 1.5; } svg .bold { font-weight: 600; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
"""

# Of a figure, in its own units: all of it; where bars begin; what their values need beside them.
_WIDTH, _LEFT, _RIGHT = 800, 190, 90
_BAR, _STEP, _AXIS = 16, 26, 44
_TICKS = 6


def page(results: Results, price_per_hour: float | None = None) -> str:
    """A whole HTML document."""
    header, body = summary.table(results, price_per_hour)
    parts = [f"<h1>{escape(summary.sentence(results))}</h1>"]
    parts += [_soft(summary.QUICK)] if results.quick else []
    parts += [_soft(summary.about(results))]
    sizes = summary.workloads(results)
    for name, rows in results.groups().items():
        parts += [f"<h2>{escape(summary.label(name))}</h2>", _soft(sizes[name]), bars(name, rows)]
    parts += ["<h2>All figures</h2>", _table(header, body), _soft(summary.METHOD)]
    parts += ["<h2>Settings</h2>", _list(summary.settings(results))]
    left_out = summary.told_left_out(results.left_out)
    parts += ["<h2>Left out</h2>", _list(left_out)] if left_out else []
    parts += ["<h2>Machine and software</h2>", _record(results.environment)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>fastdistil bench: {escape(str(results.environment['device']))}</title>\n"
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def bars(name: str, rows: Mapping[str, Row]) -> str:
    """A workload's figures as an SVG, the fastest engine first; lines show the spread of turns."""
    single = summary.is_single(rows)
    axis = (
        "milliseconds a sequence (less is better)"
        if single
        else "real tokens a second (more is better)"
    )
    ordered = sorted(rows.values(), key=lambda row: row.timing.median)
    most = max(high for _, high in map(_range, ordered))
    step = _tick(most)
    ticks = math.ceil(most / step)
    scale = (_WIDTH - _LEFT - _RIGHT) / (ticks * step)
    bottom = _STEP * len(ordered)
    parts = []
    for tick in range(ticks + 1):
        x = _LEFT + tick * step * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 16, f"{tick * step:,g}", "soft", "middle"))
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, bottom + 36, axis, "soft", "middle"))
    for place, row in enumerate(ordered):
        parts += _bar(row, place * _STEP, scale)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {bottom + _AXIS}" role="img" '
        f'aria-label="{escape(summary.label(name))}: {axis}">' + "".join(parts) + "</svg>"
    )


def _bar(row: Row, top: int, scale: float) -> list[str]:
    kind, weight = ("ours", "bold") if row.name.startswith(summary.OURS) else ("theirs", "")
    y, middle = top + (_STEP - _BAR) / 2, top + _STEP / 2
    width = summary.figure(row) * scale
    low, high = (_LEFT + end * scale for end in _range(row))
    return [
        _text(_LEFT - 8, middle + 5, row.name, weight, "end"),
        f'<rect class="{kind}" x="{_LEFT}" y="{y:g}" width="{width:.1f}" height="{_BAR}"/>',
        f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle:g}" y2="{middle:g}"/>',
        _text(high + 6, middle + 5, summary.cell(row), weight, "start"),
    ]


def _range(row: Row) -> tuple[float, float]:
    """A row's figure, less and more the spread of its turns."""
    value, spread = summary.figure(row), row.timing.spread
    return value * (1 - spread), value * (1 + spread)


def _tick(most: float) -> float:
    """1, 2 or 5 times a power of ten, of which not too many reach `most`."""
    power = 10.0 ** math.floor(math.log10(most / _TICKS))
    return next(power * nice for nice in (1, 2, 5, 10) if power * nice * _TICKS >= most)


def _text(x: float, y: float, text: str, kind: str, anchor: str) -> str:
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:g}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _soft(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


def _list(lines: list[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(header: list[str], body: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    rows = ("".join(f"<td>{escape(cell)}</td>" for cell in line) for line in body)
    lines = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{lines}\n</table></div>'


def _record(environment: Mapping[str, object]) -> str:
    """Everything that is known; of what the machine does not tell, that it does not."""
    items = (
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(_told(value))}</dd>"
        for name, value in environment.items()
    )
    return "<dl>" + "".join(items) + "</dl>"


def _told(value: object) -> str:
    if value is None:
        return "not told by this machine"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_told(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value)) or "none"
    return str(value)
