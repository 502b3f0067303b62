"""benchmarks.parts: what is counted, what the tables say of it, a run on a tiny model. No times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import SOME_ENVIRONMENT

from benchmarks import cpu_engine, parts
from fastdistil import EncoderConfig
from fastdistil.bench import ours, timing
from fastdistil.bench.workloads import Workload


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)


def test_operations_are_those_of_the_matrices() -> None:
    config = EncoderConfig(
        vocab_size=10, hidden_size=4, num_heads=2, num_layers=3, intermediate_size=8
    )
    flop = cpu_engine.flops(config, Workload("w", ((1, 2, 3), (4, 5))))
    tokens, layers = 5, 3
    assert flop == {
        "qkv": 2 * layers * tokens * 4 * 12,
        # Scores and weighted sums, of every token with every token of its own sentence.
        "attention": 2 * layers * 2 * (3 * 3 + 2 * 2) * 4,
        "attention_out": 2 * layers * tokens * 4 * 4,
        "ffn_in": 2 * layers * tokens * 4 * 8,
        "ffn_out": 2 * layers * tokens * 8 * 4,
    }


def forward(name: str = "1 x 16") -> dict[str, Any]:
    """On two threads: 4 s on the wall, 8 s of threads, one of them in no part."""
    return {
        "workload": name,
        "precision": "int8",
        "kernels": "some kernels",
        "tokens": 16,
        "seconds": [2.0, 4.0, 6.0],
        "clocked_seconds": 4.0,
        "parts": {"embed": 1.0, "qkv": 4.0, "attention": 2.0, "pool": 0.0},
        "flop": {"qkv": 16e9, "attention": 2e9},
        "peak": {"products": 16e9, "attention": 4e9},
        "weight_bytes": 8_000_000_000,
    }


def test_rates_are_of_a_thread_and_shares_of_all() -> None:
    rows = list(parts.rows(forward(), threads=2))
    assert rows == [
        ("embeddings", "12.5%", "-", "-"),
        ("Q, K, V", "50.0%", "4", "50%"),
        ("attention", "25.0%", "1", "50%"),
        ("idle: no work left, starting", "12.5%", "-", "-"),
        # 18 GFLOP in 8 s of threads; at the two peaks it would be 2 s and 1 s.
        ("the whole, no stop-watches", "100%", "2", "38%"),
    ]


def test_weights_are_held_against_the_memory_for_one_sentence() -> None:
    results = {
        "environment": SOME_ENVIRONMENT,
        "quick": False,
        "threads": 2,
        "missing": ["fp9: no"],
    }
    results |= {"read_bytes_per_second": 8e9, "forwards": [forward("mixed"), forward()]}
    printed = parts.report(results)
    assert "**mixed, int8**: 4,000.00 ms, 4 tok/s; peak 16 GFLOP/s, 4 for attention" in printed
    assert printed.count("8,000 MB of weights, 2.0 GB/s: 25% of the 8.0 GB/s") == 1
    assert printed.endswith("not measured: fp9: no")


def test_command_from_measurement_to_table(
    minilm_folder: Path,
    tiny_benchmark_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(parts, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(cpu_engine, "PEAK_SECONDS", 0.01)
    file = tmp_path / "parts.json"
    assert parts.main(["--quick", "--json", str(file)]) == 0
    saved = json.loads(file.read_text())
    precisions = ours.precisions(tiny_benchmark_model, [])
    assert [(f["workload"], f["precision"]) for f in saved["forwards"]] == [
        (workload, precision)
        for workload in ("mixed", "16 x 128", "1 x 16")
        for precision in precisions
    ]
    for each in saved["forwards"]:
        assert set(each["parts"]) == set(parts.NAMES)
        # The stop-watches of all threads together cannot have run for longer than there was time.
        assert 0 < sum(each["parts"].values()) <= saved["threads"] * each["clocked_seconds"]
        assert all(each["parts"][part] > 0 for part in each["flop"])
        assert (each["parts"]["quantise"] > 0) is (each["precision"] == "int8")
        assert each["peak"]["products"] > 0
        assert each["weight_bytes"] > 0
    assert saved["read_bytes_per_second"] > 0
    assert parts.report(saved) in capsys.readouterr().out


def test_precisions_without_kernels_are_named(
    minilm_folder: Path, tiny_benchmark_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(cpu_engine, "PEAK_SECONDS", 0.01)
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    results = parts.measure(["fp32", "int8"], quick=True)
    assert {forward["precision"] for forward in results["forwards"]} == {"fp32"}
    (missing,) = results["missing"]
    assert missing.startswith("fastdistil int8: ")


def test_unknown_precisions_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parts.main(["--precisions", "fp32,int9"])
    assert "unknown: int9; known: int8, bf16, fp32" in capsys.readouterr().err


def test_without_the_extension_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_engine, "extension_error", lambda: "no extension here")
    with pytest.raises(SystemExit, match="parts: no extension here"):
        parts.main([])
