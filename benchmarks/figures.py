"""The report's pictures: SVG that reads on white and on black alike, byte for byte the same again.

A colour is an engine's and a marker a precision's, the same in every picture. A bar or a point is
the median of the turns; a thin line reaches from the quickest turn to the slowest.
"""

from __future__ import annotations

import contextlib
import io
import re
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# The grey whose contrast is the same on white and on GitHub's black.
INK = "#797979"
OURS = "#d55e00"
# By what an engine's name holds, the first that fits. The colour-blind tell them apart as far as so
# many can be; every bar and line has its name as well.
_COLOURS = (
    (r"fastdistil|^C\+\+|^CUDA C\+\+|^Triton", OURS),
    (r"torch\.compile", "#c46a9b"),
    (r"OpenVINO", "#009e73"),
    (r"ONNX|fastembed", "#9a7b00"),
    (r"CTranslate2", "#7b5fb0"),
    (r"torch|SentenceTransformer", "#1a80c4"),
)
_MARKERS = {"int8": "o", "bf16": "s", "fp32": "^", "fp16": "D"}
_DASHES = {"int8": "-", "bf16": "--", "fp32": ":", "fp16": "-."}

# Pieces of a stack, in their order; none is an engine's.
_PIECES = (
    "#5f7f95",
    "#a8552a",
    "#2f8f83",
    "#98703c",
    "#8d5a8f",
    "#6a6fb0",
    "#5d8a3c",
    "#b04a5a",
)
# Less is too narrow for a figure.
_SHARE_WITH_A_FIGURE = 0.03
# Between pieces, in percent.
_GAP = 0.15


class Value(NamedTuple):
    """The median of some turns, and what they range over."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Bars:
    """A panel of bars, one for each engine it has a value of."""

    title: str
    unit: str
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Lines:
    """A panel of lines, logarithmic both ways: by engine, its values by x."""

    x_label: str
    y_label: str
    lines: Mapping[str, Mapping[float, Value]]


class Point(NamedTuple):
    """Something computed, under the roof.

    Attributes:
        intensity: FLOP for each byte.
        rate: FLOP a second, all threads.
        name: whose it is; its colour.
        kind: what it is; its marker.
        place: what to write below it.
    """

    intensity: float
    rate: float
    name: str
    kind: str
    place: str


def colour(engine: str) -> str:
    """An engine's, by its name in the results."""
    found = (c for pattern, c in _COLOURS if re.search(pattern, engine, re.IGNORECASE))
    return next(found, INK)


def bars(panels: Sequence[Bars]) -> str:
    """Side by side, engines from top to bottom in the order in which they come."""
    engines = list(dict.fromkeys(engine for panel in panels for engine in panel.values))
    height = 0.2 * len(engines) + 0.8
    with _figure((10, height), 1, len(panels), sharey=True) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=True):
            _draw_bars(axis, panel, engines)
        axes[0].set_yticks(range(len(engines)), engines)
        for engine, label in zip(engines, axes[0].get_yticklabels(), strict=True):
            if colour(engine) == OURS:
                label.set(color=OURS, weight="bold")
        axes[0].set_ylim(len(engines) - 0.4, -0.6)
        return _svg(figure)


def lines(panels: Sequence[Lines]) -> str:
    """Two panels a row, with one legend for all."""
    rows = (len(panels) + 1) // 2
    with _figure((10, 3.3 * rows + 0.5), rows, min(2, len(panels))) as (figure, axes):
        for axis, panel in zip(axes, panels, strict=False):
            _draw_lines(axis, panel)
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        found = {
            line.get_label(): line for axis in axes for line in axis.get_legend_handles_labels()[0]
        }
        _legend(figure, found.values(), found)
        return _svg(figure)


def stacked(stacks: Mapping[str, Mapping[str, float]], x_label: str) -> str:
    """By name of a bar: its pieces, from left to right, in shares of it."""
    pieces = list(dict.fromkeys(piece for stack in stacks.values() for piece in stack))
    colours = dict(zip(pieces, [*_PIECES, *[INK] * len(pieces)], strict=False))
    with _figure((10, 0.32 * len(stacks) + 1.1)) as (figure, (axis,)):
        for row, stack in enumerate(stacks.values()):
            left = 0.0
            for piece, share in stack.items():
                seen = max(0.0, 100 * share - _GAP)
                axis.barh(row, seen, 0.72, 100 * left, color=colours[piece], ec="none")
                if share >= _SHARE_WITH_A_FIGURE:
                    middle = 100 * (left + share / 2)
                    figures = {"ha": "center", "va": "center", "color": "white", "fontsize": 7}
                    axis.text(middle, row, f"{100 * share:.0f}", **figures)
                left += share
        axis.set_yticks(range(len(stacks)), stacks)
        axis.set(xlim=(0, 100), ylim=(len(stacks) - 0.5, -0.5), xlabel=x_label)
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        handles = [_patch(colours[piece]) for piece in pieces]
        _legend(figure, handles, pieces)
        return _svg(figure)


def roofline(
    points: Collection[Point],
    bytes_per_second: float,
    peaks: Mapping[str, float],
    x_label: str,
    y_label: str,
) -> str:
    """Points under what the memory and the cores allow.

    Williams, Waterman and Patterson, "Roofline", CACM 2009. Level lines: what the cores do at most,
    by precision, in FLOP a second; the slope: what the memory gives. What stays in a cache from one
    run to the next may be above the slope.
    """
    with _figure((10, 4.5)) as (figure, (axis,)):
        axis.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
        _draw_roof(axis, points, bytes_per_second, peaks)
        found = zip(dict.fromkeys(point.kind for point in points), "os^DvPX", strict=False)
        kinds = {kind: _MARKERS.get(kind, marker) for kind, marker in found}
        for point in points:
            own = colour(point.name)
            face = own if own == OURS else "none"
            style = {"ls": "none", "ms": 5, "color": own, "mfc": face}
            axis.plot(point.intensity, point.rate / 1e9, marker=kinds[point.kind], **style)
        _name_places(axis, points)
        handles = [_marker(marker, INK) for marker in kinds.values()]
        names = {colour(point.name): point.name for point in points}
        if len(names) > 1:
            handles += [_patch(own) for own in names]
        _legend(figure, handles, [*kinds, *(names.values() if len(names) > 1 else ())])
        return _svg(figure)


def _draw_bars(axis: Any, panel: Bars, engines: Sequence[str]) -> None:
    furthest = max(value.high for value in panel.values.values())
    for row, engine in enumerate(engines):
        if engine not in panel.values:
            continue
        value, own = panel.values[engine], colour(engine)
        axis.barh(row, value.median, 0.7, color=own, ec="none")
        axis.plot([value.low, value.high], [row, row], color=INK, lw=0.8)
        axis.annotate(
            _short(value.median),
            (value.high, row),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            weight="bold" if own == OURS else "normal",
        )
    axis.set_title(panel.title, fontsize=8)
    axis.set(xlabel=panel.unit, xlim=(0, 1.3 * furthest))
    axis.locator_params(axis="x", nbins=3)
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)


def _short(figure: float) -> str:
    """Three digits or more."""
    return f"{figure:,.{0 if figure >= 100 else 1 if figure >= 10 else 2}f}"


def _draw_lines(axis: Any, panel: Lines) -> None:
    from matplotlib.ticker import LogLocator

    places = sorted({x for line in panel.lines.values() for x in line})
    for engine, line in panel.lines.items():
        precision = engine.rsplit(" ", 1)[-1]
        xs = sorted(line)
        middles = [line[x].median for x in xs]
        reach = [
            [line[x].median - line[x].low for x in xs],
            [line[x].high - line[x].median for x in xs],
        ]
        axis.errorbar(
            xs,
            middles,
            reach,
            color=colour(engine),
            lw=1.8 if colour(engine) == OURS else 1,
            ls=_DASHES.get(precision, "-"),
            marker=_MARKERS.get(precision, "o"),
            ms=4,
            elinewidth=0.8,
            label=engine,
        )
    axis.set(xscale="log", yscale="log", xlabel=panel.x_label, ylabel=panel.y_label)
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:,g}")
    axis.set_xticks(places, [f"{x:g}" for x in places])
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)


def _draw_roof(
    axis: Any, points: Collection[Point], bandwidth: float, peaks: Mapping[str, float]
) -> None:
    """The roof, and its names; the lower third of the picture is left for those of places."""
    left = min(point.intensity for point in points) / 6
    corners = [peak / bandwidth for peak in peaks.values()]
    right = 2 * max([*(point.intensity for point in points), *corners])
    slope = [left, max(corners)]
    axis.plot(slope, [x * bandwidth / 1e9 for x in slope], color=INK, lw=1)
    for corner, peak in zip(corners, peaks.values(), strict=True):
        axis.plot([corner, right], [peak / 1e9] * 2, color=INK, lw=1)
    low = min(left * bandwidth, *(point.rate for point in points)) / 1e9
    high = 2 * max(*peaks.values(), *(point.rate for point in points)) / 1e9
    low *= (low / high) ** 0.5
    axis.set(xlim=(left, right), ylim=(low, high))
    beside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
    axis.annotate(
        f"memory {bandwidth / 1e9:,.0f} GB/s", (left, 4 * left * bandwidth / 1e9), **beside
    )
    rising = sorted(peaks, key=lambda precision: peaks[precision])
    heights = _apart([peaks[precision] / 1e9 for precision in rising], (high / low) ** 0.04)
    for precision, height in zip(rising, heights, strict=True):
        name = f"{precision} {peaks[precision] / 1e9:,.0f} GFLOP/s"
        axis.annotate(name, (right, height), **beside)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.set_major_formatter("{x:,g}")
    axis.yaxis.set_major_formatter("{x:,g}")


def _name_places(axis: Any, points: Iterable[Point]) -> None:
    """Below the points, once for each place."""
    found: dict[str, list[float]] = {}
    for point in points:
        found.setdefault(point.place, []).append(point.intensity)
    places = {place: statistics.geometric_mean(where) for place, where in found.items()}
    names = sorted(places, key=lambda place: places[place])
    left, right = axis.get_xlim()
    centres = _apart([places[name] for name in names], (right / left) ** 0.018)
    bottom = 1.1 * axis.get_ylim()[0]
    for name, centre in zip(names, centres, strict=True):
        axis.text(centre, bottom, name, rotation=90, ha="center", va="bottom", fontsize=7)


def _apart(rising: Iterable[float], times: float) -> list[float]:
    """Moved up where they must be, until each is so many times the one before."""
    moved: list[float] = []
    for value in rising:
        moved.append(max(value, times * moved[-1]) if moved else value)
    return moved


def _legend(figure: Any, handles: Iterable[Any], labels: Iterable[str]) -> None:
    """Above everything, to be read row by row (matplotlib fills columns)."""
    entries = list(zip(handles, labels, strict=True))
    columns = min(5, len(entries))
    ordered = [entry for column in range(columns) for entry in entries[column::columns]]
    style = {"frameon": False, "fontsize": 8, "ncols": columns}
    figure.legend(*zip(*ordered, strict=True), loc="outside upper center", **style)


def _patch(own: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=own, edgecolor="none")


def _marker(marker: str, own: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker=marker, color=own, ls="none", ms=5)


@contextlib.contextmanager
def _figure(
    size: tuple[float, float], rows: int = 1, columns: int = 1, **settings: Any
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure in the house's style and its axes, row by row; closed at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "fastdistil",  # the same figures give the same file
        "font.size": 9,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
        **dict.fromkeys(("axes.titlecolor", "xtick.color", "ytick.color"), INK),
    }
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, **settings
        )
        try:
            yield figure, list(axes.flat)
        finally:
            pyplot.close(figure)


def _svg(figure: Any) -> str:
    written = io.StringIO()
    # Neither a date nor matplotlib's version: both change while the figures do not.
    nothing = dict.fromkeys(("Date", "Creator"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    return re.sub(r"[ \t]+$", "", written.getvalue(), flags=re.MULTILINE)
