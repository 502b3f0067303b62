"""The CUDA gate: every kernel in csrc/cuda, compiled for GPUs that are not here and checked.

    python tests/cuda_gate.py                              # everything
    python tests/cuda_gate.py --target sm_90a --only layernorm
    python tests/cuda_gate.py --kernels                    # with a row for each kernel

Each file is compiled by nvcc to machine code for every GPU that wheels are built for, and once more
as wheels compile it for GPUs to come, with its host code, all without a warning. Each kernel in it
must be one that RULES knows; spill nothing; leave room on a multiprocessor for as many blocks as it
is meant to have there; and hold the instructions that it is written for: tensor cores, loads and
stores of 16 bytes, copies in the background.

What was found is kept, so a second run only checks. No GPU is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "csrc" / "cuda"


@dataclass(frozen=True)
class Multiprocessor:
    """What blocks share: NVIDIA's CUDA programming guide, table of technical specifications."""

    threads: int
    blocks: int
    shared: int
    registers: int = 65536

    def shared_of_block(self) -> int:
        """The most that one block can have: all but what the system keeps."""
        return self.shared - SYSTEM_SHARED


SYSTEM_SHARED = 1024  # bytes that each block costs besides its own

# CMakeLists.txt has the same, as FASTDISTIL_CUDA_ARCHITECTURES.
TARGETS = {
    "sm_80": Multiprocessor(threads=2048, blocks=32, shared=164 << 10),
    "sm_86": Multiprocessor(threads=1536, blocks=16, shared=100 << 10),
    "sm_89": Multiprocessor(threads=1536, blocks=24, shared=100 << 10),
    "sm_90a": Multiprocessor(threads=2048, blocks=32, shared=228 << 10),
    "sm_100": Multiprocessor(threads=2048, blocks=32, shared=228 << 10),
}
# PTX for what is newer than all of those, and what runs on the host.
LATER = "compute_100"

FLAGS = ("-std=c++17", "-O3", "-DNDEBUG", "--Werror", "all-warnings")
HOST_FLAGS = ("-Xcompiler=-Wall,-Wextra,-Werror,-fPIC,-fvisibility=hidden",)

# What a rule can ask for, and the opcodes that are it.
NEEDS = {
    "HMMA": r"HMMA\..+",
    "HGMMA": r"HGMMA\..+",
    "LDSM": r"LDSM\..+",
    "LDG.128": r"LDG\.(\w+\.)*128(\.\w+)*",
    # ld.relaxed.gpu: of what other blocks are writing.
    "LDG.128.STRONG.GPU": r"LDG\.(\w+\.)*128\.STRONG\.GPU",
    "STG.128": r"STG\.(\w+\.)*128(\.\w+)*",
    "LDGSTS.64": r"LDGSTS\.(\w+\.)*64(\.\w+)*",
    "LDGSTS.128": r"LDGSTS\.(\w+\.)*128(\.\w+)*",
}


@dataclass(frozen=True)
class Rule:
    """What kernels are meant to be like.

    Attributes:
        kernel: matches all of the kernel's name with its template arguments, less namespaces.
        threads: in a block, at most.
        blocks: that must fit on a multiprocessor at once; where it has too few places for so many
            threads, as many as it has places for.
        shared: bytes of dynamic shared memory in a block, at most; by target, if not the same.
        needs: instructions that must be there, of NEEDS.
        stack: bytes of local memory that a thread may have, for arrays that are indexed by what is
            known at run time only.
    """

    kernel: str
    threads: int
    blocks: int
    shared: int | dict[str, int] = 0
    needs: tuple[str, ...] = ()
    stack: int = 0

    def shared_on(self, target: str) -> int:
        return self.shared if isinstance(self.shared, int) else self.shared[target]


def rounded_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def attention_shared(head_dim: int, length: int = 128) -> int:
    """Keys and values of 16 bits, rows of eight numbers more than a head has."""
    return 2 * length * (head_dim + 8) * 2


WIDE = ("LDG.128", "STG.128")
ATTENTION = ("HMMA", "LDSM", "LDGSTS.128")
ROWS = r"(embed_)?layernorm_kernel<RowShape"
HALF = r"B?Float16"
# packing.cu's and pooling.cu's: a float for each warp, and for the widest row that they take.
PARTIAL, WIDEST = 32 * 4, 8192 * 4

# --- the low-latency encoder: latency_layout.h, weight_stream.h, LatencyShared in latency_kernel.h

LATENCY_HEAD_DIMS = {128: 64, 384: 32, 768: 64, 1024: 64}
PANELS_AHEAD, PANELS_AHEAD_SMALL, TILES_AT_ONCE = 6, 3, 4
# Those with three panels under way; and of them, those whose blocks have 99 KB.
FEW_PANELS, SMALL = ("sm_80", "sm_86", "sm_89"), ("sm_86", "sm_89")

# The longest sequence for which a block must have room. The host takes two row tiles only where
# they fit, and refuses what does not fit with one: this is what a GPU is meant to be able to do.
LATENCY_LONGEST = 128
# And with 99 KB: short ones, of hidden sizes up to so many, with one row tile.
LATENCY_LONGEST_SMALL, LATENCY_WIDEST_SMALL = 16, 768


def latency_threads(hidden: int) -> int:
    return 256 if hidden >= 768 else 128


def latency_shared(int8: str, hidden: int, row_tiles: int, panels: int, longest: int) -> int:
    """LatencyShared::bytes."""
    warps = latency_threads(hidden) // 32
    states = row_tiles * 16 * hidden * 2
    norm, statistics = 2 * hidden * 4, 2 * warps * row_tiles * 16 * 4
    partial = warps * row_tiles * TILES_AT_ONCE * 32 * 16
    keys = attention_shared(LATENCY_HEAD_DIMS[hidden], rounded_up(longest, 16))
    panel = hidden * (8 if int8 == "true" else 16)
    return panels * panel + states + norm + statistics + max(keys, partial)


def latency_shared_on(target: str, int8: str, hidden: int, row_tiles: int) -> int:
    """What a block must have room for on a GPU; 0 if nothing is asked of that."""
    panels = PANELS_AHEAD_SMALL if target in FEW_PANELS else PANELS_AHEAD
    longest = LATENCY_LONGEST
    if target in SMALL:
        runs = row_tiles == 1 and hidden <= LATENCY_WIDEST_SMALL
        longest = LATENCY_LONGEST_SMALL if runs else 0
    return latency_shared(int8, hidden, row_tiles, panels, longest) if longest else 0


def latency_rule(int8: str, hidden: int, row_tiles: int) -> Rule:
    """A block has the multiprocessor to itself."""
    # A lane takes eight weights at a time.
    copies = "LDGSTS.64" if int8 == "true" else "LDGSTS.128"
    return Rule(
        rf"latency_kernel<{HALF}, {int8}, {hidden}, {row_tiles}>",
        threads=latency_threads(hidden),
        blocks=1,
        shared={target: latency_shared_on(target, int8, hidden, row_tiles) for target in TARGETS},
        needs=("HMMA", "LDSM", "LDG.128.STRONG.GPU", copies),
    )


LATENCY_RULES = tuple(
    latency_rule(int8, hidden, row_tiles)
    for int8 in ("false", "true")
    for hidden in LATENCY_HEAD_DIMS
    for row_tiles in (1, 2)
)

# --- all of them

# The first that matches holds. What moves rows does so 16 bytes at a time where they are aligned
# ("true"). float32 has half as many numbers in 16 bytes, and so twice as many registers for a row.
RULES = (
    Rule(rf"{ROWS}<{HALF}, WarpGroup, \d, true>>", 128, 4, 0, WIDE),
    Rule(rf"{ROWS}<{HALF}, WarpGroup, \d, false>>", 128, 4),
    Rule(rf"{ROWS}<float, WarpGroup, \d, true>>", 128, 2, 0, WIDE),
    Rule(rf"{ROWS}<float, WarpGroup, \d, false>>", 128, 2),
    Rule(rf"{ROWS}<{HALF}, BlockGroup, 2, true>>", 512, 2, 2 * PARTIAL, WIDE),
    Rule(rf"{ROWS}<{HALF}, BlockGroup, 2, false>>", 512, 2, 2 * PARTIAL),
    Rule(rf"{ROWS}<float, BlockGroup, 4, true>>", 512, 1, 2 * PARTIAL, WIDE),
    Rule(rf"{ROWS}<float, BlockGroup, 4, false>>", 512, 1, 2 * PARTIAL),
    Rule(r"bias_activation_kernel<\w+, \d, true>", 128, 10, 0, WIDE),
    Rule(r"bias_activation_kernel<\w+, \d, false>", 128, 6),
    Rule(r"pool_kernel<\w+, \d, true>", 512, 2, PARTIAL + WIDEST, ("LDG.128",)),
    Rule(r"pool_kernel<\w+, \d, false>", 512, 2, PARTIAL + WIDEST),
    Rule(r"(count|place)_kernel<unsigned \w+>", 128, 10),
    Rule(r"scan_kernel", 1024, 1, PARTIAL),
    Rule(r"short_attention_kernel<\w+, 32>", 256, 2, attention_shared(32), ATTENTION),
    Rule(r"short_attention_kernel<\w+, 64>", 256, 2, attention_shared(64), ATTENTION),
    Rule(r"short_attention_kernel<\w+, 128>", 256, 1, attention_shared(128), ATTENTION),
    *LATENCY_RULES,
)


@dataclass(frozen=True)
class MachineCode:
    """What the checks look at in a compiled kernel.

    Attributes:
        shared: bytes of static shared memory.
        instructions: times that an opcode occurs.
    """

    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]

    def count(self, pattern: str) -> int:
        """Instructions whose opcode the pattern matches."""
        return sum(n for code, n in self.instructions.items() if re.fullmatch(pattern, code))


@dataclass(frozen=True)
class Case:
    """One run of the compiler: a file for one of TARGETS, or for LATER."""

    source: Path
    target: str


@dataclass(frozen=True)
class Verdict:
    """What became of a case: its kernels by name, how long it took, and what is wrong."""

    kernels: dict[str, MachineCode]
    seconds: float
    faults: list[str]


# --- compiling and looking ------------------------------------------------------------------------


def find_nvcc() -> str | None:
    """The compiler that `make cuda-gate` installs, else whatever there is."""
    installed = sorted(ROOT.glob(".venv/cuda-*/nvidia/*/bin/nvcc"))
    return str(installed[-1]) if installed else shutil.which("nvcc")


def cuobjdump() -> Path:
    """The one in triton's package, which has nvdisasm beside it."""
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        raise RuntimeError("triton is not installed, and cuobjdump comes with it")
    return Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compile_case(case: Case, nvcc: str, output: Path) -> None:
    """Raises RuntimeError with the compiler's words."""
    if case.target == LATER:
        flags = [*HOST_FLAGS, "-c", f"-gencode=arch={LATER},code={LATER}"]
    else:
        flags = ["-cubin", f"-arch={case.target}"]
    output_of(nvcc, *FLAGS, *flags, case.source, "-o", output)


def kernels_of(case: Case, nvcc: str) -> dict[str, MachineCode]:
    """Compile, and disassemble what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        compile_case(case, nvcc, output)
        if case.target == LATER:
            return {}
        usage = output_of(cuobjdump(), "-res-usage", output)
        assembly = output_of(cuobjdump(), "-sass", output)
    found = read_kernels(usage, assembly, case.target)
    names = output_of("c++filt", *found).splitlines() if found else []
    kernels = {short(name): code for name, code in zip(names, found.values(), strict=True)}
    if len(kernels) != len(found):
        raise RuntimeError(f"{case.source.name} has kernels of the same name in two namespaces")
    return kernels


def read_kernels(usage: str, assembly: str, target: str) -> dict[str, MachineCode]:
    """From what cuobjdump prints, by mangled name."""
    # From Hopper on, a file's kernels count the system's part if one of them has shared memory.
    system = SYSTEM_SHARED if TARGETS[target].shared >= 228 << 10 else 0
    used = re.findall(r"^ *Function (\S+):\n(.*)$", usage, re.MULTILINE)
    parts = re.split(r"^\s*Function : (\S+)$", assembly, flags=re.MULTILINE)
    opcodes = {
        name: instructions(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    if {name for name, _ in used} != set(opcodes) or not all(opcodes.values()):
        raise RuntimeError("cuobjdump does not show the same kernels twice, or not their code")
    return {
        name: MachineCode(
            registers=resource(numbers, "REG"),
            stack=resource(numbers, "STACK"),
            shared=max(resource(numbers, "SHARED") - system, 0),
            instructions=dict(Counter(opcodes[name])),
        )
        for name, numbers in used
    }


def instructions(assembly: str) -> list[str]:
    """The opcode of each, in order."""
    pattern = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)"
    return re.findall(pattern, assembly, re.MULTILINE)


def resource(usage: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    if not found:
        raise RuntimeError(f"cuobjdump says nothing of {name}: {usage!r}")
    return int(found.group(1))


def short(name: str) -> str:
    """A demangled name less its return type, parameters and namespaces; enumerators as numbers."""
    name = re.sub(r"\(anonymous namespace\)::|\b\w+::", "", name).removeprefix("void ")
    name = re.sub(r"\(\w+\)(?=[-\w])", "", name)
    return name.split("(")[0].replace("> >", ">>").replace("> >", ">>")


def output_of(*command: str | Path) -> str:
    """What a tool prints; an error with what it printed if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


# --- checks ---------------------------------------------------------------------------------------


def rule_of(kernel: str, rules: tuple[Rule, ...] = RULES) -> Rule | None:
    return next((rule for rule in rules if re.fullmatch(rule.kernel, kernel)), None)


def blocks_that_fit(code: MachineCode, rule: Rule, target: str) -> dict[str, int]:
    """Blocks on a multiprocessor, by what sets the limit."""
    there = TARGETS[target]
    warps = rounded_up(rule.threads, 32) // 32
    # Registers are dealt out to a warp by 256, each quarter of a multiprocessor having a quarter.
    of_warp = rounded_up(code.registers * 32, 256)
    shared = rounded_up(code.shared + rule.shared_on(target) + SYSTEM_SHARED, 128)
    return {
        "registers": there.registers // 4 // of_warp * 4 // warps,
        "shared memory": there.shared // shared,
    }


def faults(code: MachineCode, rule: Rule, target: str) -> list[str]:
    """Everything that is wrong with a kernel's code, in words; empty if nothing is."""
    there = TARGETS[target]
    found = []
    spilled = code.count(r"(STL|LDL)(\..+)?")
    if code.stack > rule.stack or (spilled and not rule.stack):
        found.append(f"spills: stack {code.stack} > {rule.stack}, {spilled} moves")
    shared = code.shared + rule.shared_on(target)
    if shared > there.shared_of_block():
        found.append(f"shared memory {shared} > {there.shared_of_block()}")
    wanted = min(rule.blocks, there.blocks, there.threads // rule.threads)
    for limit, fit in blocks_that_fit(code, rule, target).items():
        if fit < wanted:
            found.append(f"{limit}: {fit} blocks of {rule.threads} threads fit, not {wanted}")
    found += [f"no {need}" for need in rule.needs if not code.count(NEEDS[need])]
    narrow = code.count(r"LDGSTS\..+") - code.count(NEEDS["LDGSTS.128"])
    if narrow and "LDGSTS.64" not in rule.needs:
        found.append(f"{narrow} copies in the background of less than 16 bytes")
    return found


def verdict(case: Case, nvcc: str, edition: str, cache: Path) -> Verdict:
    """Compile a case, or recall what came of it, and look at the code.

    `edition` stands for all that its code depends on besides the file and what that includes.
    """
    began = time.perf_counter()
    identity = hashlib.sha256(f"{edition} {case.target}".encode())
    for path in with_headers(case.source):
        identity.update(path.name.encode() + path.read_bytes())
    kept = cache / f"{case.source.stem}-{case.target}-{identity.hexdigest()[:16]}.json"
    if kept.exists():
        os.utime(kept)
        known = json.loads(kept.read_text())
        kernels = {name: MachineCode(**code) for name, code in known.items()}
    else:
        try:
            kernels = kernels_of(case, nvcc)
        except RuntimeError as error:
            return Verdict({}, time.perf_counter() - began, [f"does not compile: {error}"])
        cache.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({name: asdict(code) for name, code in kernels.items()}))
        partial.replace(kept)
    found = []
    for name, code in kernels.items():
        rule = rule_of(name)
        told = ["RULES does not know it"] if rule is None else faults(code, rule, case.target)
        found += [f"{name}: {fault}" for fault in told]
    return Verdict(kernels, time.perf_counter() - began, found)


def edition_of(nvcc: str) -> str:
    """Of the compiler, its flags and what is read from its code."""
    everything = hashlib.sha256(output_of(nvcc, "--version").encode())
    everything.update(" ".join((*FLAGS, *HOST_FLAGS)).encode())
    for function in (compile_case, kernels_of, read_kernels, instructions, resource, short):
        everything.update(inspect.getsource(function).encode())
    return everything.hexdigest()


def with_headers(source: Path) -> list[Path]:
    """A file and all that nvcc reads of this project with it, each once."""
    found = [source.resolve()]
    for path in found:  # which grows
        for name in re.findall(r'^\s*#\s*include\s+"(.+?)"', path.read_text(), re.MULTILINE):
            header = (path.parent / name).resolve()
            if header.exists() and header not in found and header.parent.name != "emulation":
                found.append(header)
    return found


# --- the command ----------------------------------------------------------------------------------


def verdicts(
    cases: list[Case], nvcc: str, jobs: int, cache: Path
) -> Iterator[tuple[Case, Verdict]]:
    """Each case with its verdict, in order, as they come; in threads, as nvcc is a process."""
    edition = edition_of(nvcc)
    with ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda case: verdict(case, nvcc, edition, cache), cases)
        yield from zip(cases, results, strict=True)


def forget_old(cache: Path) -> None:
    """What was kept of editions that nobody asked for in a month."""
    for path in cache.glob("*.json"):
        if path.stat().st_mtime < time.time() - 30 * 86400:
            path.unlink(missing_ok=True)


def lines(case: Case, result: Verdict, each_kernel: bool) -> Iterator[str]:
    """The rows of a case: its own, its kernels' if asked for, its faults."""
    codes = result.kernels.values()
    about = "the host's code and PTX"
    if case.target != LATER:
        registers = max((code.registers for code in codes), default=0)
        about = f"{len(codes):3} kernels, {registers:3} registers at most"
    told = f"FAIL {len(result.faults)} faults" if result.faults else "ok"
    yield f"{case.target:12}{case.source.name:24}{about:36}{result.seconds:5.1f} s  {told}"
    for name, code in result.kernels.items() if each_kernel else ():
        yield f"{case.target:12}  {code.registers:4} regs {code.shared:6} B  {name}"
    for fault in result.faults:
        yield f"FAIL {case.target:7}{case.source.name} {fault}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=(*TARGETS, LATER), help="one GPU; default: all")
    parser.add_argument("--only", help="one file, less .cu; default: all")
    parser.add_argument("--kernels", action="store_true", help="print a row for each kernel")
    parser.add_argument("--nvcc", default=find_nvcc(), help="CUDA's compiler")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compiler processes")
    parser.add_argument("--sources", type=Path, default=SOURCES, help="instead of csrc/cuda")
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".cache" / "cuda-gate", help="what was found before"
    )
    return parser.parse_args()


def main() -> int:
    wanted = arguments()
    if wanted.nvcc is None:
        print("CUDA gate: there is no nvcc; make cuda-gate installs one")
        return 2
    began = time.perf_counter()
    sources = sorted(wanted.sources.glob(f"{wanted.only or '*'}.cu"))
    targets = [name for name in (*TARGETS, LATER) if wanted.target in (None, name)]
    cases = [Case(source, target) for source in sources for target in targets]
    failed = kernels = 0
    for case, result in verdicts(cases, wanted.nvcc, wanted.jobs, wanted.cache):
        for line in lines(case, result, wanted.kernels):
            print(line, flush=True)
        failed += bool(result.faults)
        kernels += len(result.kernels)
    forget_old(wanted.cache)
    print(
        f"CUDA gate: {len(cases)} compilations, {kernels} kernels, {failed} with faults, "
        f"{time.perf_counter() - began:.0f} s"
    )
    if not cases:
        print("CUDA gate: nothing was compiled")
    return 1 if failed or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
