"""benchmarks.load: every engine in a process of its own, and the table of it. No times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import SOME_ENVIRONMENT

from benchmarks import load
from benchmarks.first_vector import EAGER
from fastdistil.bench import ours


def test_table_is_of_medians() -> None:
    turns = [
        {
            "import_seconds": 1.0,
            "load_seconds": seconds,
            "first_seconds": 0.25,
            "weight_bytes": 3_000_000,
            "process_bytes": 60_000_000,
            "peak_process_bytes": 70_000_000,
        }
        for seconds in (0.5, 9.0, 0.25)
    ]
    engines = [{"name": "fastdistil bf16", "turns": turns}]
    printed = load.report(
        {"environment": SOME_ENVIRONMENT, "engines": engines, "missing": ["x: no"]}
    )
    row = [cell.strip() for cell in printed.splitlines()[2].split("|")[1:-1]]
    assert row == ["fastdistil bf16", "0.75", "0.25", "1.00", "3", "60", "70"]
    assert printed.endswith("not measured: x: no")


def test_command_from_measurement_to_table(
    minilm_folder: Path,
    tiny_benchmark_model: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "load.json"
    assert load.main(["--rounds", "1", "--json", str(file)]) == 0
    saved = json.loads(file.read_text())
    names = [f"fastdistil {name}" for name in ours.precisions(tiny_benchmark_model, [])]
    assert [engine["name"] for engine in saved["engines"]] == [*names, EAGER]
    for engine in saved["engines"]:
        (turn,) = engine["turns"]
        assert all(value > 0 for value in turn.values()), engine
    weights = {engine["name"]: engine["turns"][0]["weight_bytes"] for engine in saved["engines"]}
    assert weights["fastdistil fp32"] >= weights[EAGER]
    assert load.report(saved) in capsys.readouterr().out


@pytest.mark.parametrize("rounds", ["0", "-1", "few"])
def test_rounds_are_counted_from_one(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load.main(["--rounds", rounds])
    assert "a whole number from 1 up is allowed" in capsys.readouterr().err


def test_an_engine_that_fails_is_named(
    minilm_folder: Path, tiny_benchmark_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "EAGER", "fastdistil fp9")
    with pytest.raises(SystemExit, match="load: fastdistil fp9 ended with 1"):
        load.main(["--rounds", "1"])
