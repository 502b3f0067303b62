"""Where the time of a forward goes, and its products under the roofline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import parts
from benchmarks.figures import Point, roofline, stacked

from . import Block, Picture, folded

# The products with weights; attention has none.
PRODUCTS = {part: parts.NAMES[part] for part in ("qkv", "attention_out", "ffn_in", "ffn_out")}
WEIGHT_BYTES = {"int8": 1, "bf16": 2, "fp32": 4}
IDLE = "idle"


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """Of what `benchmarks.parts --json` has measured."""
    threads = results["threads"]
    roof = roofline(
        list(points(results)),
        results["read_bytes_per_second"],
        {f["precision"]: f["peak"]["products"] for f in results["forwards"]},
        "FLOP for each byte of weights",
        f"GFLOP/s, {threads} threads",
    )
    shares = stacked(dict(stacks(results)), "share of the time of all threads (%)")
    return [
        Picture("parts", "Time by part of a forward", shares),
        "Each product under what the cores do at most, and what the memory gives if a forward "
        "reads each byte of its weights once; what stays in a cache from one forward to the next "
        "may be above the slope.",
        Picture("roofline", "Roofline of the products of a forward", roof),
        folded("Every part", parts.report(results)),
    ]


def points(results: Mapping[str, Any]) -> Iterator[Point]:
    """Every product of every forward."""
    threads = results["threads"]
    for forward in results["forwards"]:
        precision = forward["precision"]
        # A weight is multiplied and added once for each token.
        intensity = 2 * forward["tokens"] / WEIGHT_BYTES[precision]
        place = f"{forward['workload']}, {precision}"
        for part, kind in PRODUCTS.items():
            rate = threads * forward["flop"][part] / forward["parts"][part]
            yield Point(intensity, rate, "fastdistil", kind, place)


def stacks(results: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """By forward, the share of each part in the time of all threads."""
    for forward in results["forwards"]:
        whole = forward["clocked_seconds"] * results["threads"]
        shares = {
            parts.NAMES[part]: seconds / whole
            for part, seconds in forward["parts"].items()
            if seconds
        }
        idle = max(0.0, 1 - sum(shares.values()))
        name = f"{forward['workload']}, {forward['precision']}"
        yield f"{name}: {1000 * forward['clocked_seconds']:,.2f} ms", {**shares, IDLE: idle}
