"""A picture of a training's log: its losses, and what was measured on the held-out texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..run_folder import atomic_file
from .log import EVALUATION, FIRST_COLUMNS, STEP, TOTAL, read_log

# Okabe and Ito's, which the colour-blind tell apart; the total is black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# From here on a line of single steps is a band of noise: it is drawn pale, its running mean over
# it.
_NOISY_STEPS = 100
_MEANS = 40
# Values whose largest is more than so many times the smallest are read better on a log scale.
_LINEAR_RANGE = 20.0
_SIZE = (8.0, 3.4)  # inches: of one panel
_DOTS_PER_INCH = 130

_Points = tuple[list[float], list[float]]


def plot(log_path: str | Path, image_path: str | Path) -> bool:
    """Draws a log's losses over its steps and, if there are any, its other measurements below.

    Args:
        log_path: a CSV file of `TrainingLog`.
        image_path: where the picture goes; its ending says what kind, for example .png.

    Returns:
        False where nothing was drawn since matplotlib is not installed
        (pip install "fastdistil[distill]").

    Raises:
        ValueError: a log without rows, or one that cannot be read.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = read_log(log_path)
    if not rows:
        raise ValueError(f"{log_path} has no rows to draw")
    losses = [TOTAL, *(name for name in rows[0] if _is_term(name))]
    metrics = [
        name
        for name in rows[0]
        if name.startswith(EVALUATION) and name.removeprefix(EVALUATION) not in losses
    ]
    panels = 2 if metrics else 1
    size = (_SIZE[0], panels * _SIZE[1])
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    _draw_losses(axes[0], {name: _points(rows, name) for name in losses}, rows)
    if metrics:
        _draw_metrics(axes[1], {name: _points(rows, name) for name in metrics})
    axes[-1].set_xlabel("step")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    kind = Path(image_path).suffix.removeprefix(".") or "png"
    with atomic_file(Path(image_path)) as stream:
        figure.savefig(stream, format=kind)
    return True


def _is_term(name: str) -> bool:
    return name not in FIRST_COLUMNS and not name.startswith(EVALUATION)


def _points(rows: Sequence[Mapping[str, float | None]], name: str) -> _Points:
    """The steps which have a finite value in a column, and the values."""
    found = [
        (step, value)
        for row in rows
        if (step := row[STEP]) is not None
        and (value := row.get(name)) is not None
        and math.isfinite(value)
    ]
    return [step for step, _ in found], [value for _, value in found]


def _draw_losses(
    axes: Any, losses: Mapping[str, _Points], rows: Sequence[Mapping[str, float | None]]
) -> None:
    drawn: list[float] = []
    evaluated = False
    for colour, (name, (steps, values)) in zip(_colours(losses), losses.items(), strict=True):
        label = "loss: weighted sum" if name == TOTAL else name
        width = 2.0 if name == TOTAL else 1.4
        if len(values) >= _NOISY_STEPS:
            axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.25)
            steps, values = _running_mean(steps, values)
        axes.plot(steps, values, color=colour, linewidth=width, label=label)
        marked = _points(rows, EVALUATION + name)
        axes.plot(*marked, color=colour, linestyle="none", marker="o", markersize=4.5, zorder=3)
        evaluated = evaluated or bool(marked[0])
        drawn += [*losses[name][1], *marked[1]]
    if evaluated:
        held_out = {"color": "0.4", "linestyle": "none", "marker": "o", "markersize": 4.5}
        axes.plot([], [], label="on held-out texts", **held_out)
    axes.set_ylabel("loss")
    if drawn and min(drawn) > 0 and max(drawn) > _LINEAR_RANGE * min(drawn):
        _set_log_scale(axes)
    _finish(axes)


def _draw_metrics(axes: Any, metrics: Mapping[str, _Points]) -> None:
    for colour, (name, points) in zip(_colours(metrics, 1), metrics.items(), strict=True):
        label = name.removeprefix(EVALUATION).replace("_", " ")
        axes.plot(*points, color=colour, linewidth=1.6, marker="o", markersize=4.5, label=label)
    axes.set_ylabel("on held-out texts")
    _finish(axes)


def _colours(names: Mapping[str, Any], first: int = 0) -> list[str]:
    """One for each name: black, unless `first` is 1, then the others in turn."""
    return ["black", *(_COLOURS[index % len(_COLOURS)] for index in range(len(names)))][
        first : first + len(names)
    ]


def _running_mean(steps: Sequence[float], values: Sequence[float]) -> _Points:
    """Means over so many steps that about `_MEANS` of them do not overlap, at their middles."""
    width = max(len(values) // _MEANS, 2)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    places = range(len(values) - width + 1)
    means = [(sums[place + width] - sums[place]) / width for place in places]
    return [(steps[place] + steps[place + width - 1]) / 2 for place in places], means


def _set_log_scale(axes: Any) -> None:
    """Marked as people write numbers: 0.2, not 2 x 10^-1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _finish(axes: Any) -> None:
    """A grid, and the names beside the panel, where no line can be."""
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
