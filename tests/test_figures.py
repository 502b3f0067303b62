"""The report's pictures: where points lie, what is written on them, that they are seen."""

from __future__ import annotations

import re
from typing import Any

import pytest

from benchmarks import figures
from benchmarks.figures import Bars, Lines, Point, Value
from benchmarks.sections import parts

pytest.importorskip("matplotlib", reason='runs where `pip install -e ".[test]"` was done')

BACKGROUNDS = ("#ffffff", "#0d1117")


def of_parts() -> dict[str, Any]:
    """Two threads: 16 tokens of int8, a product of 64 GFLOP a part in 4 s of one thread."""
    forward = {
        "workload": "1 x 16",
        "precision": "int8",
        "kernels": "some kernels",
        "tokens": 16,
        "seconds": [10.0],
        "clocked_seconds": 10.0,
        "flop": {**dict.fromkeys(parts.PRODUCTS, 64e9), "attention": 1e9},
        "parts": {**dict.fromkeys(parts.PRODUCTS, 4.0), "attention": 1.0, "pool": 0.0},
        "peak": {"products": 50e9, "attention": 20e9},
        "weight_bytes": 10,
    }
    return {
        "threads": 2,
        "read_bytes_per_second": 1e9,
        "forwards": [forward, {**forward, "workload": "mixed", "precision": "fp32"}],
    }


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def luminance(colour: str) -> float:
    """Relative, as WCAG defines it."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_everything_is_seen_on_white_and_on_black(background: str) -> None:
    engines = ("fastdistil int8", "eager PyTorch fp32", "torch.compile bf16", "OpenVINO bf16")
    others = ("ONNX Runtime int8", "CTranslate2 int8", "somebody else")
    colours = {figures.colour(engine) for engine in (*engines, *others)}
    assert len(colours) == 7
    assert contrast(figures.INK, background) > 4.3  # no grey has more on both
    assert all(contrast(colour, background) >= 3 for colour in colours)


def test_a_family_has_one_colour() -> None:
    for name in ("fastdistil encode", "C++ amx bf16", "CUDA C++", "Triton bf16"):
        assert figures.colour(name) == figures.OURS
    torch = {figures.colour(name) for name in ("eager PyTorch bf16", "PyTorch FBGEMM int8")}
    assert torch == {figures.colour("SentenceTransformer fp32")}
    assert figures.colour("SentenceTransformer onnx") == figures.colour("ONNX Runtime fp32")


def test_bars_say_their_medians_and_units() -> None:
    panels = [
        Bars("mixed", "tok/s", {"fastdistil": Value(1234, 1200, 1300), "other": Value(99, 98, 99)}),
        Bars("1 x 16", "ms", {"fastdistil": Value(2.5, 2.4, 2.6)}),
    ]
    written = texts(figures.bars(panels))
    for text in ("mixed", "1 x 16", "tok/s", "ms", "fastdistil", "other", "1,234", "99.0", "2.50"):
        assert text in written
    assert figures.bars(panels) == figures.bars(panels)


def test_lines_say_their_axes_and_names() -> None:
    line = {16.0: Value(1, 1, 2), 512.0: Value(30, 29, 31)}
    panels = [Lines("tokens", "ms", {"fastdistil bf16": line}), Lines("threads", "ms", {"x": line})]
    written = texts(figures.lines(panels))
    for text in ("tokens", "threads", "fastdistil bf16", "x", "16", "512"):
        assert text in written


def test_points_are_of_all_threads_and_of_each_byte_once() -> None:
    found = list(parts.points(of_parts()))
    assert [point.kind for point in found] == [*parts.PRODUCTS.values()] * 2
    assert {(p.place, p.intensity, p.rate) for p in found} == {
        ("1 x 16, int8", 32.0, 32e9),
        ("mixed, fp32", 8.0, 32e9),
    }


def test_shares_are_of_all_threads_and_what_is_left_is_idle() -> None:
    (name, shares), _ = parts.stacks(of_parts())
    assert name == "1 x 16, int8: 10,000.00 ms"
    assert shares == pytest.approx(
        {**dict.fromkeys(parts.PRODUCTS.values(), 0.2), "attention": 0.05, "idle": 0.15}
    )
    written = texts(figures.stacked({name: shares}, "share (%)"))
    assert written.count("20") >= 4
    assert {name, "share (%)", "attention", "idle", "15", "5"} <= set(written)


def test_roofline_names_what_it_shows() -> None:
    points = [*parts.points(of_parts()), Point(1.0, 1e9, "eager PyTorch", "Q, K, V", "there")]
    svg = figures.roofline(points, 1e9, {"int8": 50e9, "fp32": 20e9}, "FLOP/byte", "GFLOP/s")
    names = {"memory 1 GB/s", "int8 50 GFLOP/s", "fp32 20 GFLOP/s", "FLOP/byte", "GFLOP/s"}
    places = {"1 x 16, int8", "mixed, fp32", "there", "fastdistil", "eager PyTorch"}
    assert names | places | set(parts.PRODUCTS.values()) <= set(texts(svg))
