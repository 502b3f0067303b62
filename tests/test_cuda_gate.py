"""The CUDA gate can fail: every kind of fault, and kernels known to have it."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cuda_gate import (
    LATENCY_HEAD_DIMS,
    LATER,
    PANELS_AHEAD,
    PANELS_AHEAD_SMALL,
    TARGETS,
    TILES_AT_ONCE,
    MachineCode,
    Rule,
    blocks_that_fit,
    faults,
    find_nvcc,
    latency_shared,
    latency_threads,
    read_kernels,
    rule_of,
    short,
    with_headers,
)

GATE = Path(__file__).parent / "cuda_gate.py"
ROOT = GATE.parent.parent
compiles = pytest.mark.skipif(
    find_nvcc() is None, reason="needs nvcc, which `make cuda-gate` installs; CI runs that first"
)

# --- planted kernels ------------------------------------------------------------------------------

GOOD = """
__global__ void __launch_bounds__(1024) scan_kernel(int* values) { values[threadIdx.x] += 1; }
"""
SPILLS = """
__global__ void __launch_bounds__(1024) scan_kernel(float* values) {
  float mine[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) mine[i] = values[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) values[threadIdx.x * 128 + i] = mine[127 - i] * mine[i];
}
"""
NO_PRODUCT = """
template <class T, int kHeadDim>
__global__ void short_attention_kernel(T* out) { out[threadIdx.x] = kHeadDim; }
template __global__ void short_attention_kernel<float, 64>(float*);
"""
NARROW = """
template <class T, int kActivation, bool kAligned>
__global__ void bias_activation_kernel(T* x) { x[threadIdx.x] += 1; }
template __global__ void bias_activation_kernel<float, 1, true>(float*);
"""
TOO_MUCH_SHARED = """
__global__ void scan_kernel(float* x) {
  __shared__ float all[12224];
  all[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = all[12223 - threadIdx.x];
}
"""
UNKNOWN = "__global__ void nobodys_kernel(int* x) { *x = 1; }"
WARNS = "__global__ void scan_kernel(int* x) { int unused = 1; *x = 1; }"
HOST_WARNS = GOOD + "int ignores(int argument) { return 1; }"


def gate(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit status and output, with nothing compiled before."""
    done = subprocess.run(
        [sys.executable, str(GATE), "--sources", folder, "--cache", folder / "cache", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def gate_on(folder: Path, source: str, target: str) -> tuple[int, str]:
    (folder / "planted.cu").write_text(source)
    return gate(folder, "--target", target)


@compiles
@pytest.mark.parametrize("target", [*TARGETS, LATER])
def test_a_good_kernel_passes_and_is_remembered(target: str, tmp_path: Path) -> None:
    for _ in range(2):
        status, told = gate_on(tmp_path, GOOD, target)
        assert status == 0, told
        assert f"1 compilations, {0 if target == LATER else 1} kernels, 0 with faults" in told
        assert len(list((tmp_path / "cache").glob("planted-*.json"))) == 1


@compiles
@pytest.mark.parametrize(
    ("source", "target", "told"),
    [
        (SPILLS, "sm_80", r"scan_kernel: spills: stack \d+ > 0, \d+ moves"),
        (NO_PRODUCT, "sm_90a", r"short_attention_kernel<float, 64>: no HMMA"),
        (NARROW, "sm_100", r"bias_activation_kernel<float, 1, true>: no LDG.128"),
        (TOO_MUCH_SHARED, "sm_90a", None),
        (UNKNOWN, "sm_86", r"nobodys_kernel: RULES does not know it"),
        (WARNS, "sm_89", r"does not compile: nvcc: (?s:.*)never referenced"),
        (HOST_WARNS, LATER, r"does not compile: nvcc: (?s:.*)unused parameter"),
        (HOST_WARNS, "sm_80", None),
    ],
)
def test_planted_kernels(source: str, target: str, told: str | None, tmp_path: Path) -> None:
    status, said = gate_on(tmp_path, source, target)
    assert (status == 0) == (told is None), said
    assert told is None or re.search(f"FAIL.*{told}", said), said


@compiles
def test_nothing_to_compile_fails(tmp_path: Path) -> None:
    status, told = gate(tmp_path)
    assert status == 1
    assert "nothing was compiled" in told


# --- what is read ---------------------------------------------------------------------------------

USAGE = """
Resource usage:
 Common:
  GLOBAL:0
 Function _Z3oneIfEvPT_:
  REG:40 STACK:16 SHARED:2224 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z3twoPf:
  REG:8 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
ASSEMBLY = """
\tcode for sm_90a
\t\tFunction : _Z3twoPf
\t.headerflags\t@"EF_CUDA_ACCELERATORS EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;           /* 0x00000a00ff017b82 */
                                                                    /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/              @UP1 EXIT ;                           /* 0x000000000000794d */
\t\t..........

\t\tFunction : _Z3oneIfEvPT_
        /*0000*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ; /* 0x0000000402007981 */
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ; /* 0x0000000402007981 */
"""


def test_reads_what_cuobjdump_prints() -> None:
    found = read_kernels(USAGE, ASSEMBLY, "sm_90a")
    assert found == {
        "_Z3oneIfEvPT_": MachineCode(40, 16, 1200, {"HMMA.16816.F32.BF16": 2}),
        "_Z3twoPf": MachineCode(8, 0, 0, {"LDC": 1, "LDG.E.128.CONSTANT": 1, "EXIT": 1}),
    }
    assert read_kernels(USAGE, ASSEMBLY, "sm_80")["_Z3oneIfEvPT_"].shared == 2224


def test_a_kernel_without_code_is_an_error() -> None:
    for assembly in (ASSEMBLY.replace("HMMA", "/"), ASSEMBLY.replace(": _Z3two", ": _Z3three")):
        with pytest.raises(RuntimeError, match="not show the same kernels"):
            read_kernels(USAGE, assembly, "sm_80")


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("scan_kernel(int*, int)", "scan_kernel"),
        (
            "void fastdistil::cuda::(anonymous namespace)::act_kernel<float, "
            "(fastdistil::cuda::Activation)4, (bool)0>(fastdistil::cuda::ActivationArguments)",
            "act_kernel<float, 4, 0>",
        ),
        (
            "void fastdistil::cuda::_GLOBAL__N__4b_12_layernorm_cu_9c::layernorm_kernel<"
            "fastdistil::cuda::RowShape<float, fastdistil::cuda::WarpGroup, 8, true> >("
            "void (*)(int), std::pair<int, int>)",
            "layernorm_kernel<RowShape<float, WarpGroup, 8, true>>",
        ),
    ],
)
def test_names_are_short(name: str, kernel: str) -> None:
    assert short(name) == kernel


# --- what is checked ------------------------------------------------------------------------------

RULE = Rule("anybodys_kernel", 256, 2, 40000, ("HMMA", "LDG.128", "STG.128", "LDGSTS.128", "LDSM"))
CODE = MachineCode(
    registers=128,
    stack=0,
    shared=1024,
    instructions={
        "HMMA.16816.F32.BF16": 4,
        "LDG.E.128.CONSTANT": 2,
        "STG.E.128": 1,
        "LDGSTS.E.BYPASS.128": 8,
        "LDSM.16.MT88.4": 2,
        "EXIT": 1,
    },
)


def code_without(opcode: str, **instead: int) -> MachineCode:
    kept = {name: n for name, n in CODE.instructions.items() if not name.startswith(opcode)}
    more = {name.replace("_", "."): n for name, n in instead.items()}
    return replace(CODE, instructions=kept | more)


@pytest.mark.parametrize("target", TARGETS)
def test_good_code_has_no_faults(target: str) -> None:
    assert faults(CODE, RULE, target) == []


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (replace(CODE, registers=129), ["registers: 1 blocks of 256 threads fit, not 2"]),
        (replace(CODE, shared=11000), ["shared memory: 1 blocks of 256 threads fit, not 2"]),
        (
            replace(CODE, shared=70000),
            ["shared memory 110000 > 101376", "shared memory: 0 blocks of 256 threads fit, not 2"],
        ),
        (replace(CODE, stack=8), ["spills: stack 8 > 0, 0 moves"]),
        (code_without("EXIT", STL_64=2, LDL=1), ["spills: stack 0 > 0, 3 moves"]),
        (code_without("HMMA", IMMA_16816=4), ["no HMMA"]),
        (code_without("LDG.", LDG_E_64=4), ["no LDG.128"]),
        (code_without("STG", STG_E=4), ["no STG.128"]),
        (code_without("LDSM", LDS_128=4), ["no LDSM"]),
        (code_without("LDGSTS"), ["no LDGSTS.128"]),
        (
            code_without("EXIT", LDGSTS_E_64=4),
            ["4 copies in the background of less than 16 bytes"],
        ),
    ],
)
def test_each_fault_is_told(code: MachineCode, told: list[str]) -> None:
    assert faults(code, RULE, "sm_86") == told


def test_an_array_on_the_stack_must_be_allowed() -> None:
    code = code_without("EXIT", STL=2, LDL=1)
    assert faults(replace(code, stack=64), replace(RULE, stack=64), "sm_80") == []
    told = faults(replace(code, stack=72), replace(RULE, stack=64), "sm_80")
    assert told == ["spills: stack 72 > 64, 3 moves"]


@pytest.mark.parametrize(
    ("registers", "threads", "blocks"),
    # Of NVIDIA's occupancy calculator: warps are dealt out to the four quarters.
    [(32, 128, 16), (40, 128, 12), (64, 512, 2), (65, 512, 1), (72, 96, 9), (168, 384, 1)],
)
def test_blocks_by_registers(registers: int, threads: int, blocks: int) -> None:
    code = replace(CODE, registers=registers)
    assert blocks_that_fit(code, replace(RULE, threads=threads), "sm_80")["registers"] == blocks


def test_shared_memory_may_differ_by_target() -> None:
    rule = replace(RULE, shared={"sm_90a": 120000, "sm_86": 40000})
    assert faults(CODE, rule, "sm_86") == []
    assert faults(CODE, rule, "sm_90a") == ["shared memory: 1 blocks of 256 threads fit, not 2"]


def test_the_latency_rules_have_the_numbers_of_the_headers(tmp_path: Path) -> None:
    claims = [
        f"kPanelsAhead == {PANELS_AHEAD}",
        f"kPanelsAheadSmall == {PANELS_AHEAD_SMALL}",
        f"kTilesAtOnce == {TILES_AT_ONCE}",
        f"std::size(kLatencyHidden) == {len(LATENCY_HEAD_DIMS)}",
    ]
    for hidden in LATENCY_HEAD_DIMS:
        claims.append(f"latency_warps({hidden}) * kWarpSize == {latency_threads(hidden)}")
        for int8 in ("false", "true"):
            for tiles in (1, 2):
                # The keys of 20 tokens, and those of 200, are fewer and more than the partial sums.
                for panels, longest in ((6, 20), (3, 200)):
                    claims.append(
                        f"LatencyShared<{int8}, {hidden}, {tiles}>::bytes({panels}, {longest}) == "
                        f"{latency_shared(int8, hidden, tiles, panels, longest)}"
                    )
    program = tmp_path / "claims.cpp"
    program.write_text(
        f'#include <iterator>\n#include "{ROOT}/csrc/cuda/latency_kernel.h"\n'
        "using namespace fastdistil::cuda;\n"
        + "".join(f'static_assert({claim}, "");\n' for claim in claims)
    )
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    command = [*compiler, "-std=c++17", "-fsyntax-only", "-w", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_what_a_file_is_compiled_from(tmp_path: Path) -> None:
    for name in ("a.cu", "b.h", "c.h", "emulation/d.h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "a.cu").write_text('#include <c.h>\n#include "b.h"\n#include "nowhere.h"\n')
    (tmp_path / "b.h").write_text('#include "b.h"\n#  include "emulation/d.h"\n')
    assert [path.name for path in with_headers(tmp_path / "a.cu")] == ["a.cu", "b.h"]


def test_a_rule_matches_whole_names() -> None:
    rules = (RULE, Rule(r"anybodys_kernel<\w+>", 32, 1))
    assert rule_of("anybodys_kernel", rules) is RULE
    assert rule_of("anybodys_kernel<float>", rules) is rules[1]
    assert rule_of("anybodys_kernel<float, 2>", rules) is None


def test_targets_are_those_that_wheels_are_built_for() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    found = re.search(r'set\(FASTDISTIL_CUDA_ARCHITECTURES "(.+?)"', text)
    assert found
    later = LATER.replace("compute_", "") + "-virtual"
    assert found[1].split(";") == [f"{name.removeprefix('sm_')}-real" for name in TARGETS] + [later]
