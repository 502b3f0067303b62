"""The guard of instruction counts can fail: what it reads, what it compares, what it says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import instruction_counts
import pytest
from instruction_counts import (
    LEAST,
    LIBRARIES,
    RECORD,
    SOURCES,
    TOLERANCE,
    Change,
    by_source,
    changes,
    lacking,
    read_profile,
)

GUARD = Path(instruction_counts.__file__)

# A function with another file's inlined in it, which calls another, and one of the C library's.
PROFILE = f"""# callgrind format
version: 1
creator: callgrind-3.19.0
positions: line
events: Ir
summary: 1111

ob=program
fl={SOURCES}/cpu/forward.h
fn=fastdistil::cpu::Forward<fastdistil::cpu::(anonymous namespace)::Avx2Fp32>::run(int)
10 100
fi={SOURCES}/cpu/../common/tiles.h
7 10
fe={SOURCES}/cpu/forward.h
cfi={SOURCES}/cpu/gemm.h
cfn=void fastdistil::cpu::gemm<fastdistil::cpu::Rows>(int)
calls=1 30
11 1001
12 0

fl={SOURCES}/cpu/gemm.h
fn=void fastdistil::cpu::gemm<fastdistil::cpu::Rows>(int)
30 900
31 100

fl=/usr/lib/musl/memcpy.c
fn=memcpy
1 1

totals: 1111
"""


# --- callgrind's file -----------------------------------------------------------------------------


def test_each_instruction_is_counted_once_where_it_stands() -> None:
    profile = read_profile(PROFILE)
    assert +profile == {
        ("forward.h", "Forward<Avx2Fp32>::run"): 100,
        ("tiles.h", "Forward<Avx2Fp32>::run"): 10,
        ("gemm.h", "gemm<Rows>"): 1000,
        (LIBRARIES, "memcpy"): 1,
    }
    assert by_source(profile) == {"forward.h": 100, "gemm.h": 1000, LIBRARIES: 1, "tiles.h": 10}


@pytest.mark.parametrize("text", ["", PROFILE.replace("30 900", "30 899")])
def test_a_file_that_does_not_add_up_is_refused(text: str) -> None:
    with pytest.raises(RuntimeError, match="callgrind's file has"):
        read_profile(text)


# --- the comparison -------------------------------------------------------------------------------

RECORDED = {"gemm.h": 900_000, "layernorm.h": 90_000, "plan.cpp": 10_000}


def test_what_is_as_recorded_is_nothing_to_speak_of() -> None:
    assert changes(RECORDED, RECORDED) == []


def test_a_rise_within_the_tolerance_is_allowed_and_one_more_is_not() -> None:
    allowed = RECORDED["gemm.h"] + int(TOLERANCE * RECORDED["gemm.h"])
    assert changes(RECORDED, RECORDED | {"gemm.h": allowed}) == []
    assert changes(RECORDED, RECORDED | {"gemm.h": allowed + 1}) == [
        Change("gemm.h", RECORDED["gemm.h"], allowed + 1)
    ]


def test_the_sum_is_held_too() -> None:
    # Each file rises by no more than its part of the whole.
    recorded = {f"{i}.h": 1_000 for i in range(100)}
    counted = dict.fromkeys(recorded, 1_100)
    assert changes(recorded, counted) == [Change("in all", 100_000, 110_000)]


def test_a_part_that_the_sum_does_not_show_is_found() -> None:
    # An extra pass in LayerNorm: 1 % of the forward.
    counted = RECORDED | {"layernorm.h": 100_000}
    assert changes(RECORDED, counted) == [Change("layernorm.h", 90_000, 100_000)]


def test_a_small_file_may_rise_by_its_part_of_the_whole() -> None:
    allowed = RECORDED["plan.cpp"] + int(LEAST * sum(RECORDED.values()))
    assert changes(RECORDED, RECORDED | {"plan.cpp": allowed}) == []
    assert changes(RECORDED, RECORDED | {"plan.cpp": allowed + 1})


def test_files_that_come_and_go() -> None:
    renamed = {"product.h" if file == "gemm.h" else file: n for file, n in RECORDED.items()}
    told = list(map(str, changes(RECORDED, renamed)))
    assert told == ["gemm.h 900,000 -> 0 (-100.0%)", "product.h 0 -> 900,000 (new)"]


# --- the command, with a valgrind that counts what it is told -------------------------------------

VALGRIND = """#!{python}
import json, pathlib, sys
(name,) = [a.split("=", 1)[1] for a in sys.argv if a.startswith("--callgrind-out-file=")]
out = open(name, "w")
counts = json.loads(pathlib.Path(__file__).with_name("counts.json").read_text())[sys.argv[-1]]
for file, n in counts.items():
    print(f"fl={sources}/cpu/{{file}}\\nfn=step_in_{{file[:-2]}}\\n1 {{n}}", file=out)
print(f"totals: {{sum(counts.values())}}", file=out)
"""


class Desk:
    """A copy of the guard with a record of its own, a program and a valgrind that play along."""

    def __init__(self, folder: Path) -> None:
        self.guard = folder / "tests" / GUARD.name
        self.record = self.guard.with_suffix(".json")
        self.tools = folder / "tools"
        for path in (self.guard.parent, self.tools):
            path.mkdir()
        for name in (GUARD.name, "cuda_gate.py"):
            (self.guard.parent / name).write_text(GUARD.with_name(name).read_text())
        self.write("valgrind", VALGRIND.format(python=sys.executable, sources=folder / "csrc"))

    def write(self, name: str, text: str) -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def run(self, counts: Mapping[str, Mapping[str, int]], *flags: str) -> tuple[int, str]:
        """Exit status and what was said, where the program has those cases with those counts."""
        self.write("counts.json", json.dumps(counts))
        self.write("program", "#!/bin/sh\n" + "".join(f"echo '{case}'\n" for case in counts))
        return self.run_with_path(f"{self.tools}{os.pathsep}{os.environ['PATH']}", *flags)

    def run_with_path(self, path: str, *flags: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, self.guard, self.tools / "program", *flags],
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    pytest.importorskip("ziglang", reason="the compiler on record, of the extra dev")
    return Desk(tmp_path)


linux = pytest.mark.skipif(
    (lacking() or "").startswith("this is"), reason="the guard is for Linux on x86-64"
)
CASES = {"avx2, short": {"gemm.h": 5000, "layernorm.h": 500}, "avx2, long": {"gemm.h": 9000}}


@linux
def test_what_was_recorded_is_what_is_compared(desk: Desk) -> None:
    assert desk.run(CASES, "--update") == (0, "instruction counts: 2 cases recorded\n")
    status, said = desk.run(CASES)
    assert status == 0
    assert "2 cases, 0 counts too high" in said
    assert re.search(r"avx2, short +5,500 instructions", said)


@linux
def test_a_rise_fails_and_says_where(desk: Desk) -> None:
    desk.run(CASES, "--update")
    before = desk.record.read_text()
    status, said = desk.run(CASES | {"avx2, short": {"gemm.h": 5000, "layernorm.h": 600}})
    assert status == 1
    assert "FAIL avx2, short: layernorm.h 500 -> 600 (+20.0%)" in said
    assert re.search(r" 600  step_in_layernorm", said)
    assert "1 counts too high" in said
    assert desk.record.read_text() == before


@linux
def test_a_fall_passes_and_asks_to_be_recorded(desk: Desk) -> None:
    desk.run(CASES, "--update")
    status, said = desk.run(CASES | {"avx2, long": {"gemm.h": 8000}})
    assert status == 0
    assert "less avx2, long: in all 9,000 -> 8,000 (-11.1%); make instruction-counts UPDATE" in said


@linux
def test_a_case_that_is_not_counted_fails(desk: Desk) -> None:
    desk.run(CASES, "--update")
    status, said = desk.run({"avx2, long": CASES["avx2, long"]})
    assert status == 1
    assert "FAIL avx2, short: recorded only" in said


@linux
def test_a_case_that_is_not_recorded_fails(desk: Desk) -> None:
    desk.run({"avx2, long": CASES["avx2, long"]}, "--update")
    status, said = desk.run(CASES)
    assert status == 1
    assert "FAIL avx2, short: counted only" in said


@linux
def test_another_compiler_has_other_counts(desk: Desk) -> None:
    desk.run(CASES, "--update")
    desk.record.write_text(desk.record.read_text().replace("ziglang ", "ziglang 0."))
    status, said = desk.run(CASES)
    assert status == 1
    assert "FAIL the record is of ziglang 0." in said


@linux
def test_a_program_that_fails_fails_the_guard(desk: Desk) -> None:
    desk.run(CASES, "--update")
    desk.write("valgrind", "#!/bin/sh\necho avx2 is wrong >&2\nexit 1\n")
    status, said = desk.run(CASES)
    assert status == 1
    assert "avx2 is wrong" in said


def test_without_valgrind_it_says_so(desk: Desk) -> None:
    status, said = desk.run_with_path("/nonexistent")
    assert status == 0
    assert "NOT COUNTED" in said


# --- the record -----------------------------------------------------------------------------------


def test_the_record_is_of_the_compiler_that_is_pinned() -> None:
    pins = GUARD.parent.parent / "constraints.txt"
    (version,) = re.findall(r"^ziglang==(\S+)$", pins.read_text(), re.MULTILINE)
    assert json.loads(RECORD.read_text())["compiler"] == f"ziglang {version}"


def test_the_record_has_every_case() -> None:
    cases = json.loads(RECORD.read_text())["instructions"]
    kernels = ("avx2 fp32", "avx2-emulated int8", "portable fp32")
    workloads = ("1 x 16", "16 pooled", "16 first")
    assert set(cases) == {f"{name}, {w}" for name in kernels for w in workloads}
    assert all({"gemm.h", "attention.h", "layernorm.h"} <= set(counts) for counts in cases.values())
