"""Workloads, records, tables, fastdistil as an engine, the suites as they are run. No times."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as suites
from benchmarks import accuracy, command, workloads
from benchmarks.corpora import ROOT
from fastdistil.bench import ours, race, results
from fastdistil.bench.environment import describe, device_folder, environment
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.workloads import Workload

TINY = {"n_layers": 2, "dim": 48, "n_heads": 3, "hidden_dim": 96}


def test_table_aligns_figures_right() -> None:
    table = markdown_table(
        ("engine", "tok/s", "how"), [("eager", "1,008", "sdpa"), ("x", "-", "queue")]
    )
    assert table.splitlines() == [
        "| engine | tok/s | how   |",
        "|--------|------:|-------|",
        "| eager  | 1,008 | sdpa  |",
        "| x      |     - | queue |",
    ]
    with pytest.raises(ValueError, match="1 cells, the header 2"):
        markdown_table(("a", "b"), [("only",)])


@pytest.mark.parametrize(
    ("device", "flags", "folder"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.10GHz", ["avx2", "amx_bf16"], "intel-xeon-2-cores-amx"),
        ("AMD EPYC 9R14", ["avx512f", "avx512_bf16"], "amd-epyc-9r14-2-cores-avx512-bf16"),
        ("aarch64", [], "aarch64-2-cores-portable"),
    ],
)
def test_results_folder_names_the_machine(device: str, flags: list[str], folder: str) -> None:
    assert device_folder({"device": device, "flags": flags, "cores": 2}) == folder


def test_environment_says_what_a_figure_belongs_to() -> None:
    record = environment()
    assert record["cores"] >= 1
    assert record["threads"] >= 1
    assert {"torch", "numpy"} <= set(record["packages"])
    line = describe(record)
    assert record["device"] in line
    assert f"torch {record['packages']['torch']}" in line


def test_workloads_are_what_their_names_say(minilm_folder: Path) -> None:
    mixed = workloads.mixed_sentences(70)
    assert [len(batch.input_ids) for batch in mixed.batches] == [32, 32, 6]
    assert mixed.tokens == sum(int(batch.attention_mask.sum()) for batch in mixed.batches)
    first = mixed.batches[0]
    assert tuple(first.input_ids[3][first.attention_mask[3] > 0]) == mixed.sequences[3]
    lengths = [len(sequence) for sequence in mixed.sorted_by_length().sequences]
    assert lengths == sorted(map(len, mixed.sequences), reverse=True)

    rows = workloads.full_rows(3, 50)
    assert [len(sequence) for sequence in rows.sequences] == [50, 50, 50]
    assert {(s[0], s[-1]) for s in rows.sequences} == {(101, 102)}
    one = workloads.one_sentence(16)
    assert [len(sequence) for sequence in one.sequences] == [16]
    large = workloads.full_rows(40, 8)  # more than the peers' batches are otherwise
    assert [batch.input_ids.shape for batch in large.batches] == [(40, 8)]
    assert (len(large.head(2).sequences), large.head(2).batch) == (2, 40)


PAIR = Workload("w", ((1, 2, 3), (4, 5)))


@pytest.mark.parametrize("make", [ours.packed, ours.drop_in])
def test_fastdistil_computes_the_model(make: Any, minilm_folder: Path) -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    model = workloads.random_distilbert(**TINY)
    workload = workloads.mixed_sentences(70)
    engine = make(model, "fp32")
    (variant,) = engine.variants
    got = variant.rows(workload, variant.run(workload))
    np.testing.assert_allclose(got, race.original(model, workload), rtol=0, atol=1e-4)


def test_fastdistil_pools_the_model(minilm_folder: Path) -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    model = workloads.random_distilbert(**TINY)
    workload = workloads.mixed_sentences(70)
    (variant,) = ours.pooled(model, "fp32").variants
    got = variant.rows(workload, variant.run(workload))
    assert got.shape == (70, TINY["dim"])
    expected = ours.means(workload, race.original(model, workload))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_means_are_of_each_sequence() -> None:
    states = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert ours.means(PAIR, states).tolist() == [[2, 3], [7, 8]]


def test_precisions_without_kernels_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    pytest.importorskip("fastdistil._C", reason="kernels are in the C++ extension")
    model = workloads.random_distilbert(**TINY)
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    missing: list[str] = []
    assert ours.precisions(model, missing) == ["fp32"]
    assert [line.split(":")[0] for line in missing] == ["fastdistil int8", "fastdistil bf16"]
    assert "no int8 kernels for this CPU" in missing[0]


def test_results_without_a_file_go_to_the_machine_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    parser = argparse.ArgumentParser()
    command.add_json_option(parser, "some.json")
    machine = {"device": "Some CPU", "flags": [], "cores": 2}
    for arguments in ([], ["--json"], ["--json", str(tmp_path / "here" / "other.json")]):
        command.save(parser.parse_args(arguments).json, {"environment": machine})
    written = {file.relative_to(tmp_path).as_posix() for file in tmp_path.glob("*/*")}
    assert written == {"some-2-cores-portable/some.json", "here/other.json"}


def test_accuracy_command(minilm_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--sentences", "40"]) == 0
    out = capsys.readouterr().out
    rows = [line.split("|") for line in out.splitlines() if "kept" in line]
    measured = [row[1].strip() for row in rows]
    # A narrow type that this CPU does not multiply may be left out, with the reason.
    assert measured[0] == "fp32"
    left_out = re.findall(r"not measured: (\w+): ", out)
    assert {*measured, *left_out} == {"fp32", "bf16", "int8"}


@pytest.mark.parametrize(
    ("measured", "kept"),
    [
        (accuracy.Accuracy(0.9998, 0.9999, 1.0), True),
        (accuracy.Accuracy(0.99979, 0.9999, 0.0), False),
        (accuracy.Accuracy(0.9999, 0.99989, 0.0), False),
        (accuracy.Accuracy(float("nan"), 1.0, 0.0), False),
    ],
)
def test_bf16_promise(measured: accuracy.Accuracy, kept: bool) -> None:
    assert measured.keeps(accuracy.PROMISES["bf16"]) is kept


def test_least_cosine_sees_one_bad_row() -> None:
    states = np.eye(3)
    assert race.least_cosine(2 * states, states) == 1.0
    bad = states.copy()
    bad[2] = [0, 0.6, 0.8]
    assert race.least_cosine(bad, states) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="differ"):
        race.least_cosine(states[:2], states)


# A suite as `python -m benchmarks` runs it, but on a tiny model.
ON_A_TINY_MODEL = """
import sys, pytest
from benchmarks import workloads
from fastdistil.bench import timing
timing.SETTLE_SECONDS = 0
tiny = workloads.random_distilbert(n_layers=2, dim=48, n_heads=3, hidden_dim=96)
workloads.random_distilbert = lambda: tiny
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_a_suite_s_rows_are_results(minilm_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastdistil._C", reason="kernels are in the C++ extension")
    file = tmp_path / "models.json"
    options = ["-o", "addopts=", "--benchmark-only", f"--benchmark-json={file}", "--quick"]
    options += ["--peers", "eager-fp32", "-k", "mixed or pooled"]
    run = [sys.executable, "-c", ON_A_TINY_MODEL, "benchmarks/models", *options]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results.read(file)
    assert (found.suite, found.quick) == ("models", True)
    assert found.environment["device"] == environment()["device"]
    own = [f"fastdistil {p}" for p in ours.PRECISIONS]
    own = [name for name in own if not any(line.startswith(name) for line in found.left_out)]
    names = {group: list(rows) for group, rows in found.groups().items()}
    assert names == {
        "mixed": [*own, "eager PyTorch fp32"],
        "mixed, sorted": [*own, "eager PyTorch fp32"],
        "mixed, to vectors": own,
    }
    assert all(len(row.seconds) == 3 for row in found.rows)
    mixed = found.groups()["mixed"]["eager PyTorch fp32"]
    assert mixed.info["tokens"] < mixed.info["padded_tokens"]
    assert mixed.info["least_cosine"] == pytest.approx(1, abs=1e-5)


def test_a_failed_suite_leaves_the_results_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.json").write_text("from before")
    statuses = iter((1, 0))

    def run(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        Path(arguments[arguments.index("--benchmark-json") + 1]).write_text("new")
        return subprocess.CompletedProcess(arguments, next(statuses))

    monkeypatch.setattr(suites.subprocess, "run", run)
    assert suites.main(["--suites", "models,encode", "--out", str(tmp_path)]) == 1
    kept = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert kept == {"models.json": "from before", "encode.json": "new"}
