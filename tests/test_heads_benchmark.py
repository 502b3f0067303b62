"""benchmarks.heads: which rows a task reads, and a run on a tiny model. No times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import heads
from fastdistil.bench import timing
from fastdistil.packing import pack_ids


def test_rows_are_those_of_each_sentence() -> None:
    batch = pack_ids([[1] * 8, [1] * 4])
    rows = {task: heads.rows_read(batch, reads).tolist() for task, reads in heads.TASKS.items()}
    assert rows == {
        "text-classification": [0, 8],
        "fill-mask": [4, 10],
        "token-classification": [1, 2, 3, 4, 5, 6, 9, 10],
        "question-answering": [0, 3, 4, 5, 6, 8, 10],
    }


def test_answers_that_differ_are_refused() -> None:
    one = torch.ones(2, 3)
    heads._check({"a": lambda: one, "b": lambda: one + 1e-6})
    with pytest.raises(AssertionError, match="answers differ"):
        heads._check({"a": lambda: one, "b": lambda: one + 1e-3})


def test_a_run_on_a_tiny_model(
    tiny_benchmark_model: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(heads, "TURN_SECONDS", 0.001)
    file = tmp_path / "heads.json"
    assert heads.main(["--quick", "--precisions", "fp32", "--json", str(file)]) == 0
    table = capsys.readouterr().out
    told = json.loads(file.read_text())
    assert [each["task"] for each in told["tasks"]] == list(heads.TASKS)
    for each in told["tasks"]:
        assert f"| {each['task']}, fp32" in table
        assert set(each["gain"]) == {heads.ALL, heads.HEAD, heads.BOTH}
    assert heads.report(told) in table
