"""The roofline of the CPU engine: every product under what the cores and the memory allow.

    python -m benchmarks.roofline benchmarks/results/<device>/parts.json docs/roofline-zen5.svg

A picture of what `benchmarks.parts --json` has measured (Williams, Waterman and Patterson,
"Roofline", CACM 2009). Across: floating-point operations for each byte of a product's weights, if a
forward reads each byte once; it grows with the tokens of a batch. Upwards: operations a second, by
all threads. Level lines: what the kernels' own multiply-add reaches; the slope: what a sum over
memory reads. Weights that stay in a cache from one forward to the next may be above the slope.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import parts
from benchmarks.harness import command_parser

# The products with weights; attention has none.
PRODUCTS = {part: parts.NAMES[part] for part in ("qkv", "attention_out", "ffn_in", "ffn_out")}
WEIGHT_BYTES = {"int8": 1, "bf16": 2, "fp32": 4}
# Readable on white and on black.
COLOURS = {"int8": "#c8503c", "bf16": "#3c82c8", "fp32": "#5a9646"}
MARKERS = ("o", "s", "^", "D")
INK = "#808080"


class Point(NamedTuple):
    """One product of one forward."""

    workload: str
    precision: str
    part: str
    intensity: float  # FLOP a byte of weights
    rate: float  # FLOP a second, all threads


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("benchmarks.roofline", __doc__)
    parser.add_argument("results", type=Path, metavar="PARTS.json")
    parser.add_argument("picture", type=Path, metavar="PICTURE.svg")
    options = parser.parse_args(arguments)
    try:
        results = json.loads(options.results.read_text(encoding="utf-8"))
        found = list(points(results))
    except (OSError, ValueError, TypeError, LookupError, ZeroDivisionError) as problem:
        sys.exit(f"roofline: {options.results}: not what benchmarks.parts writes ({problem!r})")
    try:
        draw(results, found, options.picture)
    except ImportError as missing:
        sys.exit(f'roofline: {missing}; `python -m pip install -e ".[bench]"` brings it')
    except (OSError, ValueError) as problem:
        sys.exit(f"roofline: {options.picture}: {problem}")
    print(f"written to {options.picture}")
    return 0


def points(results: Mapping[str, Any]) -> Iterator[Point]:
    """Every product of every forward in the results of `benchmarks.parts`."""
    threads = results["threads"]
    for forward in results["forwards"]:
        precision = forward["precision"]
        # A weight is multiplied and added once for each token.
        intensity = 2 * forward["tokens"] / WEIGHT_BYTES[precision]
        for part in PRODUCTS:
            rate = threads * forward["flop"][part] / forward["parts"][part]
            yield Point(forward["workload"], precision, part, intensity, rate)


def draw(results: Mapping[str, Any], found: Sequence[Point], picture: Path) -> None:
    """Write the picture, in the format that its name ends with."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings: Any = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "roofline",  # the same figures give the same file
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor"), INK),
        **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    }
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        axes.set(xscale="log", yscale="log")
        _draw_roofs(axes, results, found)
        _draw_points(axes, found)
        axes.set_xlabel("FLOP for each byte of weights")
        axes.set_ylabel(f"GFLOP/s, {results['threads']} threads")
        axes.set_title(results["environment"]["device"], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="lower center")
        figure.savefig(picture, transparent=True, metadata={"Date": None})
        pyplot.close(figure)


def _draw_roofs(axes: Any, results: Mapping[str, Any], found: Sequence[Point]) -> None:
    bandwidth = results["read_bytes_per_second"]
    left = min(point.intensity for point in found) / 2
    right = max(point.intensity for point in found) * 2
    peaks = {f["precision"]: f["peak"]["products"] for f in results["forwards"]}
    top = max(peaks.values()) / bandwidth
    axes.plot([left, top], [left * bandwidth / 1e9, top * bandwidth / 1e9], color=INK, lw=1)
    axes.annotate(
        f"memory {bandwidth / 1e9:.0f} GB/s",
        (left, left * bandwidth / 1e9),
        xytext=(4, -12),
        textcoords="offset points",
        fontsize=8,
    )
    for precision, peak in peaks.items():
        axes.plot(
            [peak / bandwidth, right], [peak / 1e9] * 2, color=COLOURS[precision], lw=1, ls="--"
        )
        axes.annotate(
            f"{precision} {peak / 1e9:,.0f}",
            (right, peak / 1e9),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=COLOURS[precision],
        )


def _draw_points(axes: Any, found: Sequence[Point]) -> None:
    """A colour for each precision, a marker for each product."""
    markers = dict(zip(PRODUCTS, MARKERS, strict=True))
    for point in found:
        axes.plot(
            point.intensity,
            point.rate / 1e9,
            marker=markers[point.part],
            color=COLOURS[point.precision],
            mfc="none",
            ls="none",
        )
    for part, marker in markers.items():
        axes.plot([], [], marker=marker, color=INK, mfc="none", ls="none", label=PRODUCTS[part])
    bottom = axes.get_ylim()[0] / 2
    axes.set_ylim(bottom=bottom)
    places = {(p.workload, p.precision, p.intensity) for p in found}
    for workload, precision, intensity in sorted(places):
        axes.annotate(
            workload,
            (intensity, 1.05 * bottom),
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=7,
            color=COLOURS[precision],
        )


if __name__ == "__main__":
    sys.exit(main())
