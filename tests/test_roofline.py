"""benchmarks.roofline: where the points lie, and a picture with everything named in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import roofline


def results() -> dict[str, Any]:
    """Two threads: 16 tokens of int8, a product of 64 FLOP a part in 4 s of one thread."""
    forward = {
        "workload": "1 x 16",
        "precision": "int8",
        "tokens": 16,
        "flop": {**dict.fromkeys(roofline.PRODUCTS, 64e9), "attention": 1e9},
        "parts": {**dict.fromkeys(roofline.PRODUCTS, 4.0), "attention": 1.0},
        "peak": {"products": 50e9, "attention": 20e9},
    }
    return {
        "environment": {"device": "Some CPU"},
        "threads": 2,
        "read_bytes_per_second": 1e9,
        "forwards": [forward, {**forward, "workload": "mixed", "precision": "fp32"}],
    }


def test_points_are_of_all_threads_and_of_each_byte_once() -> None:
    found = list(roofline.points(results()))
    assert [point.part for point in found] == [*roofline.PRODUCTS] * 2
    assert {(p.workload, p.precision, p.intensity, p.rate) for p in found} == {
        ("1 x 16", "int8", 32.0, 32e9),
        ("mixed", "fp32", 8.0, 32e9),
    }


def test_picture_names_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason='runs where `pip install -e ".[test]"` was done')
    file, picture = tmp_path / "parts.json", tmp_path / "roofline.svg"
    file.write_text(json.dumps(results()))
    assert roofline.main([str(file), str(picture)]) == 0
    drawn = picture.read_text()
    for text in ("Some CPU", "memory 1 GB/s", "int8 50", "fp32 50", "1 x 16", "GFLOP/s, 2 threads"):
        assert text in drawn
    assert all(name in drawn for name in roofline.PRODUCTS.values())
    assert str(picture) in capsys.readouterr().out
    roofline.draw(results(), list(roofline.points(results())), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn


@pytest.mark.parametrize("name", ["folder/roofline.svg", "roofline.nothing"])
def test_pictures_that_cannot_be_written_are_named(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib", reason='runs where `pip install -e ".[test]"` was done')
    file = tmp_path / "parts.json"
    file.write_text(json.dumps(results()))
    with pytest.raises(SystemExit, match=f"roofline: {tmp_path / name}: "):
        roofline.main([str(file), str(tmp_path / name)])


@pytest.mark.parametrize("text", ["{}", "[]", "nothing"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "parts.json"
    file.write_text(text)
    with pytest.raises(SystemExit, match=r"not what benchmarks\.parts writes"):
        roofline.main([str(file), str(tmp_path / "roofline.svg")])
