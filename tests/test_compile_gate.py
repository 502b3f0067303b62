"""The compile gate can fail: every kind of fault, and settings known to have it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

GATE = Path(__file__).parent / "compile_gate.py"
TUNING = GATE.parent.parent / "kernels" / "tuning"
SMALL = {
    "variant": "pointer",
    "block_m": 64,
    "block_n": 32,
    "block_k": 32,
    "num_warps": 4,
    "num_stages": 2,
}
CUBLAS = [{"max_tokens": None, "variant": "cublas"}]


def settings_file(folder: Path, target: str, *rules: dict[str, Any]) -> str:
    """Shipped settings in which those rules of one layer are all that the gate has to compile."""
    table = json.loads((TUNING / f"{target}.json").read_text(encoding="utf-8"))
    layer = [{**rule, "max_tokens": None if rule is rules[-1] else 64} for rule in rules]
    table["linear"] = {"half": {"*": CUBLAS, "384x384": layer or CUBLAS}, "fp32": {"*": CUBLAS}}
    table.pop("fastest", None)
    path = folder / f"{target}.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return str(path)


def gate(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it as `make compile-gate` does, with nothing compiled before."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, str(GATE), *arguments],
        env={**inherited, "TRITON_CACHE_DIR": str(folder / "cache"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def gate_on(folder: Path, target: str, *rules: dict[str, Any]) -> tuple[int, str]:
    """Exit status and output for rules of one linear layer."""
    settings = settings_file(folder, target, *rules)
    done = gate(folder, "--target", target, "--only", "linear", "--settings", settings)
    return done.returncode, done.stdout + done.stderr


def test_a_good_setting_passes(tmp_path: Path) -> None:
    shipped = json.loads((TUNING / "sm_80.json").read_text(encoding="utf-8"))
    rule = shipped["linear"]["half"]["*"][0]
    status, told = gate_on(tmp_path, "sm_80", rule)
    assert status == 0, told
    assert " 0 with faults, 0 mixed orders" in told
    assert "384x384" in told


def test_spills_fail(tmp_path: Path) -> None:
    status, told = gate_on(tmp_path, "sm_80", {**SMALL, "block_n": 128, "num_warps": 1})
    assert status == 1, told
    assert "FAIL spills: stack" in told


def test_too_much_shared_memory_fails(tmp_path: Path) -> None:
    status, told = gate_on(tmp_path, "sm_86", {**SMALL, "block_k": 128, "num_stages": 6})
    assert status == 1, told
    assert "FAIL shared memory" in told
    assert "> 101376" in told


def test_what_does_not_compile_fails(tmp_path: Path) -> None:
    status, told = gate_on(tmp_path, "sm_80", {**SMALL, "block_m": 48})
    assert status == 1, told
    assert "FAIL does not compile" in told


def test_sums_in_another_order_at_other_sizes_fail(tmp_path: Path) -> None:
    status, told = gate_on(tmp_path, "sm_90", {**SMALL, "block_m": 16}, SMALL)
    assert status == 1, told
    assert "rows are summed in several orders" in told
    assert "tensor cores: HMMA" in told


def test_nothing_to_compile_fails(tmp_path: Path) -> None:
    status, told = gate_on(tmp_path, "sm_80")
    assert status == 1, told
    assert "nothing was compiled" in told


def test_the_benchmarks_kernel_compiles(tmp_path: Path) -> None:
    """The one of which only the launch is timed: nothing else here compiles it."""
    program = """
import torch
from compile_gate import StandIn
from triton.runtime.driver import driver
from benchmarks.gpu.ceilings import empty_kernel
driver.set_active(StandIn("sm_90"))
print(empty_kernel.warmup(torch.empty(1, device="meta"), grid=(1,)).asm["ptx"])
"""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(GATE.parent), str(GATE.parent.parent), inherited.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={
            **inherited,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TRITON_CACHE_DIR": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ".entry empty_kernel" in done.stdout


def test_the_interpreter_is_refused(tmp_path: Path) -> None:
    done = gate(tmp_path, "--target", "sm_80", "--only", "layernorm", TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "TRITON_INTERPRET is set" in done.stdout


CLEAN: dict[str, Any] = {
    "registers": 128,
    "stack": 0,
    "shared": 65536,
    "tensor_memory": 0,
    "serialised": [],
    "instructions": {"HGMMA.64x128x16.F32.BF16": 4, "LDGSTS.E.BYPASS.128": 24, "EXIT": 1},
    "before_the_wait": None,
}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, None),
        ({"shared": 232449}, "shared memory"),
        ({"tensor_memory": 1024}, "tensor memory"),
        ({"registers": 257}, "registers 67584 >"),
        ({"stack": 8}, "spills"),
        ({"instructions": {**CLEAN["instructions"], "LDL.LU.64": 2}}, "spills"),
        ({"serialised": ["C7510"]}, "serialised wgmma: C7510"),
        ({"instructions": {"HMMA.16816.F32": 4, "LDGSTS.128": 24}}, "tensor cores: HMMA"),
        ({"instructions": {"FFMA": 64, "LDGSTS.128": 24}}, "tensor cores: none"),
        ({"instructions": {"HGMMA.64x64x16": 4, "LDG.E.128": 24}}, "asynchronous copies for"),
        ({"instructions": {"HGMMA.64x64x16": 4, "LDGSTS.E": 24}}, "of less than 16 bytes"),
    ],
)
def test_each_fault_is_told(change: dict[str, Any], told: str | None) -> None:
    from compile_gate import Case, MachineCode, faults

    found = faults(MachineCode(**{**CLEAN, **change}), Case("sm_90", "linear", "", product(), 12))
    assert found == [] if told is None else told in "; ".join(found)


def test_a_descriptor_must_be_loaded_by_tma() -> None:
    from compile_gate import Case, MachineCode, faults
    from triton.tools.tensor_descriptor import TensorDescriptor

    x = torch.empty(64, 64, dtype=torch.bfloat16, device="meta")
    case = Case("sm_90", "linear", "", product(x=TensorDescriptor.from_tensor(x, [64, 64])), 12)
    assert faults(MachineCode(**CLEAN), case) == ["descriptors but no TMA load"]
    loaded = {**CLEAN["instructions"], "UTMALDG.2D": 6}
    assert faults(MachineCode(**{**CLEAN, "instructions": loaded}), case) == []


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ([], None),
        (["LDC", "S2R", "STS.128", "ULDC.64", "LDS", "STSM.16.M88.4", "UBLKPF.L2"], None),
        (None, "does not wait for the launch before"),
        (["LDC", "LDG.E.128"], "ahead of the wait for the launch before: LDG.E.128"),
        (["UTMALDG.2D", "BRA.U"], "ahead of the wait for the launch before: UTMALDG.2D BRA.U"),
        (["UBLKCP.S.G"], "ahead of the wait for the launch before: UBLKCP.S.G"),
        (["EXIT"], "ahead of the wait for the launch before: EXIT"),
    ],
)
def test_what_comes_ahead_of_the_wait(before: list[str] | None, told: str | None) -> None:
    from compile_gate import Case, MachineCode, faults

    launch = replace(product(), constants={"WAITS": True}, dependent=True)
    code = MachineCode(**{**CLEAN, "before_the_wait": before})
    assert faults(code, Case("sm_90", "linear", "", launch, 12)) == ([told] if told else [])


def test_jumps_ahead_of_the_wait_must_lead_to_it() -> None:
    from compile_gate import before_the_wait

    assembly = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/               @P1 BRA `(.L_x_0) ;
.L_x_1:
        /*0020*/                   BRA.U !UP0, `(.L_x_1) ;
        /*0030*/                   CALL.REL.NOINC `($__internal_1_$__tcgen05_guardrail_trap_x) ;
        /*0040*/               @P2 BRA `(.L_x_2) ;
        /*0050*/              @!P3 EXIT ;
.L_x_0:
        /*0060*/                   ACQBULK ;
        /*0070*/                   LDG.E R2, desc[UR4][R2.64] ;
.L_x_2:
        /*0080*/                   EXIT ;
"""
    assert before_the_wait(assembly) == ["S2R", "BRA", "EXIT"]
    assert before_the_wait(assembly.replace("ACQBULK", "NOP")) is None


def test_weights_that_are_to_be_fetched_early_must_be() -> None:
    from compile_gate import Case, MachineCode, faults

    launch = replace(product(), constants={"PREFETCH": True, "WAITS": True}, dependent=True)
    case = Case("sm_90", "linear", "", launch, 12)
    code = {**CLEAN, "before_the_wait": []}
    assert faults(MachineCode(**code), case) == ["fetches no weights ahead of the wait"]
    fetched = {**CLEAN["instructions"], "UBLKPF.L2": 1}
    assert faults(MachineCode(**{**code, "instructions": fetched}), case) == []


def test_a_dependent_launch_of_a_kernel_that_does_not_wait() -> None:
    from compile_gate import Case, MachineCode, faults

    launch = replace(product(), dependent=True)
    found = faults(MachineCode(**CLEAN), Case("sm_90", "linear", "", launch, 12))
    assert found == ["a dependent launch of a kernel that does not wait"]


def product(**arguments: Any) -> Any:
    """A launch that multiplies, in eight warps and three stages, of no kernel."""
    from fastdistil.kernels.launch import Launch

    return Launch("linear", None, (1,), arguments, {}, 8, 3, 0, 0, tensor_cores=True)
