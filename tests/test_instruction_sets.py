"""benchmarks.instruction_sets, benchmarks.peer_limits: who is compared with whom, who is held."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers import SOME_ENVIRONMENT

from benchmarks import instruction_sets, peer_limits
from fastdistil.backends import cpu
from fastdistil.bench import environment, peers, timing

pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
pytest.importorskip("fastdistil._C", reason="kernels are in the C++ extension")


TORCH_SAYS = """\
MKL_VERBOSE oneMKL 2024.0 Update 2 Product build 20240605 for Intel(R) 64 architecture Intel(R) \
Advanced Vector Extensions 2 (Intel(R) AVX2) enabled processors, Lnx 2.10GHz lp64 gnu_thread
MKL_VERBOSE SGEMM(T,N,64,64,64,0x7ffc) 8.01ms CNR:OFF Dyn:1 FastMM:1 TID:0  NThr:2
onednn_verbose,v1,info,oneDNN v3.12.0 (commit 80afa71049cd69a3df32adcccb623b12cd7baa22)
onednn_verbose,v1,info,cpu,isa:Intel AVX2 with Intel DL Boost
onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx2,forward_training

capability AVX2
"""
OPENVINO_SAYS = """\
onednn_verbose,v1,info,cpu,isa:Intel AVX-512 with Intel DL Boost and bfloat16 support

fp32 gemm_mlas_f32

bf16 brgemm_avx512_bf16
"""


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)


def test_what_libraries_say_is_understood() -> None:
    assert peer_limits.understood("torch", TORCH_SAYS) == {
        "torch": "AVX2",
        "MKL": "Intel(R) Advanced Vector Extensions 2 (Intel(R) AVX2) enabled processors",
        "oneDNN of torch": "Intel AVX2 with Intel DL Boost",
    }
    assert peer_limits.understood("openvino", OPENVINO_SAYS) == {
        "oneDNN of OpenVINO": "Intel AVX-512 with Intel DL Boost and bfloat16 support",
        "OpenVINO fp32": "gemm_mlas_f32",
        "OpenVINO bf16": "brgemm_avx512_bf16",
    }
    assert set(peer_limits.understood("openvino", "Traceback: no such module").values()) == {""}


@pytest.mark.parametrize(
    ("peer", "isa", "reason"),
    [
        ("eager PyTorch fp32", "avx2", None),
        ("eager PyTorch bf16", "avx2", None),
        ("eager PyTorch bf16", "portable", "torch uses AVX2"),
        ("PyTorch oneDNN int8", "avx2", None),
        ("PyTorch oneDNN fp32", "portable", "torch uses AVX2"),
        ("PyTorch FBGEMM int8", "avx2", "it has no such setting"),
        ("OpenVINO bf16", "avx512", None),
        (
            "OpenVINO bf16",
            "avx2",
            "oneDNN of OpenVINO uses Intel AVX-512 with Intel DL Boost and bfloat16 support",
        ),
        (
            "OpenVINO fp32",
            "avx512",
            "OpenVINO fp32 multiplies with gemm_mlas_f32, which has no such setting",
        ),
        (
            "OpenVINO int8",
            "avx2",
            "oneDNN of OpenVINO uses Intel AVX-512 with Intel DL Boost and bfloat16 support",
        ),
        ("ONNX Runtime int8", "avx2", "it has no such setting"),
        ("CTranslate2 int8", "avx2", "it does not say what it uses"),
    ],
)
def test_who_is_held(peer: str, isa: str, reason: str | None) -> None:
    said = {
        **peer_limits.understood("torch", TORCH_SAYS),
        **peer_limits.understood("openvino", OPENVINO_SAYS),
    }
    assert peer_limits.not_limited(peer, isa, said) == reason


def test_only_what_is_known_counts_as_held() -> None:
    amd = {"torch": "AVX2", "MKL": "Intel(R) Architecture processors"}
    why = "MKL chooses by itself on CPUs that are not Intel's"
    assert peer_limits.not_limited("eager PyTorch fp32", "avx2", amd) == why
    silent = {"torch": "AVX2"}
    why = "MKL does not say what it uses"
    assert peer_limits.not_limited("eager PyTorch fp32", "avx2", silent) == why


def test_limits_are_in_the_environment() -> None:
    held = peer_limits.environment("avx2", limited=True)
    assert held["FASTDISTIL_CPU_ISA"] == "avx2"
    assert held["ONEDNN_MAX_CPU_ISA"] == held["OV_CPU_MAX_ISA"] == "AVX2_VNNI"
    free = peer_limits.environment("avx2", limited=False)
    assert set(held) - set(free) <= set(peer_limits.LIMITS["avx2"])
    # There is nothing better than amx to be held from.
    assert set(peer_limits.LIMITS) == set(cpu.INSTRUCTION_SETS) - {"amx"}


@pytest.mark.skipif(
    "avx2" not in environment.cpu()[1], reason="oneDNN's names are of x86 with AVX2"
)
def test_torch_is_held_and_says_so() -> None:
    said = peer_limits.understood("torch", peer_limits.output_of("torch", "portable"))
    assert said["torch"] == "DEFAULT"
    assert said["oneDNN of torch"] == "Intel SSE4.1"
    assert peer_limits.not_limited("eager PyTorch bf16", "portable", said) is None


def workload(name: str, medians: dict[str, float]) -> dict[str, Any]:
    engines = [
        {"name": engine, "precision": engine.split()[-1], "seconds": [seconds]}
        for engine, seconds in medians.items()
    ]
    return {"name": name, "tokens": 1000, "repeats": 1, "engines": engines}


def measured(isa: str, medians: dict[str, float], **not_limited: str) -> dict[str, Any]:
    """An instruction set in the results: sorted, everything takes half as long."""
    half = {engine: seconds / 2 for engine, seconds in medians.items()}
    return {
        "isa": isa,
        "workloads": [workload("mixed", medians), workload("mixed, sorted", half)],
        "refused": [],
        "seconds_at_peak": {name.split()[-1]: 0.5 for name in medians},
        "missing": ["openvino-fp32: not here"],
        "said": {"torch": "AVX2"} if not_limited else {},
        "not_limited": not_limited,
    }


def test_table_and_notes() -> None:
    first = measured("avx512", {"fastdistil bf16": 1, "OpenVINO bf16": 2, "OpenVINO fp32": 0.1})
    medians = {"fastdistil int8": 1, "fastdistil fp32": 4, "eager PyTorch fp32": 5, "MLAS fp32": 4}
    second = measured("avx2", medians, **{"MLAS fp32": "it is free"})
    results = {"environment": SOME_ENVIRONMENT, "quick": True, "sets": [first, second]}
    printed = instruction_sets.report(results)
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in printed.splitlines()
        if line.startswith("| avx")
    ]
    alone = ["-", "-", "-", "nobody to compare with"]
    given, free = "given order", "MLAS fp32"
    assert rows == [
        ["avx512", "bf16", given, "1,000", "50%", "OpenVINO bf16", "500", "2.00x", "ahead"],
        ["avx512", "bf16", "sorted", "2,000", "100%", "OpenVINO bf16", "1,000", "2.00x", "ahead"],
        ["avx2", "int8", given, "1,000", "50%", *alone],
        ["avx2", "int8", "sorted", "2,000", "100%", *alone],
        ["avx2", "fp32", given, "250", "12%", f"{free} (not limited)", "250", "1.00x", "level"],
        ["avx2", "fp32", given, "250", "12%", "eager PyTorch fp32", "200", "1.25x", "ahead"],
        ["avx2", "fp32", "sorted", "500", "25%", f"{free} (not limited)", "500", "1.00x", "level"],
        ["avx2", "fp32", "sorted", "500", "25%", "eager PyTorch fp32", "400", "1.25x", "ahead"],
    ]
    assert "Not limited to avx2:\n- MLAS fp32: it is free" in printed
    assert "Not limited to avx512" not in printed
    assert "Held to avx2, they say they use:\n- torch: AVX2" in printed
    assert "avx2: not timed: openvino-fp32: not here" in printed
    assert "Not for publishing" in printed


def test_who_is_faster_than_the_instruction_set_can_be_is_marked() -> None:
    # Nobody is known to be free, but nobody who is held takes less than half a second.
    found = measured("avx2", {"fastdistil fp32": 1.2, "MLAS fp32": 0.4, "eager PyTorch fp32": 1.1})
    assert [(row[2], row[5]) for row in instruction_sets._rows(found)] == [
        ("given order", "MLAS fp32 (beyond the peak)"),
        ("given order", "eager PyTorch fp32"),
        ("sorted", "MLAS fp32 (beyond the peak)"),
        ("sorted", "eager PyTorch fp32"),
    ]


@pytest.mark.parametrize(
    ("times", "word"),
    [(1.5, "ahead"), (1.03, "ahead"), (1.02, "level"), (0.98, "level"), (0.97, "behind")],
)
def test_words(times: float, word: str) -> None:
    assert instruction_sets.verdict(times) == word


@pytest.mark.usefixtures("tiny_benchmark_model", "minilm_folder")
def test_one_instruction_set_is_measured_on_its_own_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    found = instruction_sets.measure_one("portable", ["eager-fp32", "eager-bf16"], quick=True)
    assert [w["name"] for w in found["workloads"]] == ["mixed", "mixed, sorted"]
    for each in found["workloads"]:
        # No bf16: these kernels have none, so there is nothing to hold a peer's against.
        names = [engine["name"] for engine in each["engines"]]
        assert names == ["fastdistil fp32", "eager PyTorch fp32"]
        assert each["engines"][0]["configuration"].endswith("portable")
    assert set(found["seconds_at_peak"]) == {"fp32"}
    assert found["seconds_at_peak"]["fp32"] > 0
    assert found["refused"] == found["missing"] == []


def test_command_holds_peers_where_the_machine_has_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The processes are not started here: what they would be is looked at."""
    started = []

    def child(isa: str, peers: Any, limited: bool, quick: bool) -> dict[str, Any]:
        started.append((isa, list(peers), limited, quick))
        found = measured(isa, {"fastdistil fp32": 1, "ONNX Runtime fp32": 2})
        return {key: value for key, value in found.items() if key not in ("said", "not_limited")}

    monkeypatch.setattr(instruction_sets, "_in_a_process", child)
    monkeypatch.setattr(instruction_sets, "available", lambda: ["avx512", "portable"])
    monkeypatch.setattr(peer_limits, "ask", lambda isa: {"torch": "DEFAULT"})
    file = tmp_path / "sets.json"
    arguments = ["--quick", "--peers", "onnxruntime-fp32", "--json", str(file)]
    assert instruction_sets.main(arguments) == 0
    assert started == [
        ("avx512", ["onnxruntime-fp32"], False, True),
        ("portable", ["onnxruntime-fp32"], True, True),
    ]
    saved = json.loads(file.read_text())
    assert [each["not_limited"] for each in saved["sets"]] == [
        {},
        {"ONNX Runtime fp32": "it has no such setting"},
    ]
    assert instruction_sets.report(saved) in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_benchmark_model", "minilm_folder")
def test_child_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    file = tmp_path / "child.json"
    arguments = ["--child", "portable", "--quick", "--peers", "eager-fp32", "--json", str(file)]
    assert instruction_sets.main(arguments) == 0
    assert json.loads(file.read_text())["isa"] == "portable"


def test_a_cap_of_the_user_s_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Peers would be held to nothing: the capped best looks like the best there is."""
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    with pytest.raises(SystemExit, match="FASTDISTIL_CPU_ISA is set"):
        instruction_sets.main([])


def test_a_process_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> dict[str, Any]:
        raise subprocess.CalledProcessError(3, "python")

    monkeypatch.setattr(instruction_sets, "_in_a_process", failing)
    monkeypatch.setattr(peer_limits, "ask", lambda isa: {})
    with pytest.raises(SystemExit, match="the measuring process ended with 3"):
        instruction_sets.main([])


def test_unknown_instruction_sets_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        instruction_sets.main(["--isas", "portable,avx10"])
    assert "not on this machine: avx10; it has " in capsys.readouterr().err


def test_compiling_peers_are_left_out_unless_named() -> None:
    left_out = set(peers.PEERS) - set(instruction_sets.DEFAULT_PEERS)
    assert left_out == {"compile-bf16", "compile-max-autotune-bf16"}
