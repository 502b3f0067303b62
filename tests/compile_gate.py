"""The compile gate: every shipped launch setting, compiled for GPUs that are not here and checked.

    python tests/compile_gate.py                                # everything
    python tests/compile_gate.py --target sm_90 --only linear
    python tests/compile_gate.py --target sm_90 --settings tuned.json

Each setting of each kernel is compiled to machine code for the generation that its file is for, on
the shapes of DistilBERT-base and MiniLM, and must compile; fit shared memory, tensor memory and the
register file; spill nothing; use tensor cores where there is a product, without serialised wgmma;
copy asynchronously, in full width, where there is a pipeline; load by TMA where there is a
descriptor; and wait for the launch before, ahead of all memory, where they may be launched as
dependents. A layer must meet one family of tensor-core instructions over all numbers of tokens, and
a head size over all lengths, since results that must not depend on them hang on it.

Kernels of "half" settings are compiled in bf16, and for sm_90 in fp16 too: nothing but the operand
type differs in their code. Compiled code is kept, so a second run only checks. It takes the triton
that is importable, runs in seconds a kernel, and needs no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.runtime.driver import driver

from fastdistil.kernels import (
    attention,
    embedding,
    gelu,
    layernorm,
    linear,
    measure,
    packing,
    pooling,
)
from fastdistil.kernels.launch import Launch, interpreted
from fastdistil.kernels.settings import (
    TARGETS,
    AttentionSetting,
    LinearSetting,
    Settings,
    load_settings,
)

ROOT = Path(__file__).resolve().parent.parent

# Bytes of shared memory that one block can have: NVIDIA's CUDA programming guide, table of
# technical specifications, less the one kilobyte that the system keeps.
SHARED_MEMORY = {
    "sm_80": 166912,
    "sm_86": 101376,
    "sm_89": 101376,
    "sm_90": 232448,
    "sm_100": 232448,
}
REGISTERS = 65536
TENSOR_MEMORY_COLUMNS = 512
# The instructions that keep a generation's tensor cores busy; an older one's run too, slowly.
TENSOR_CORES = {
    "sm_80": r"HMMA",
    "sm_86": r"HMMA",
    "sm_89": r"HMMA",
    "sm_90": r"HGMMA",
    "sm_100": r"UTC\w*MMA",
}

# What waits for the launch before, and what must not come ahead of it: reads and writes of the
# memory that launches share, and ways around the wait. A fetch into the cache is neither.
WAIT = "ACQBULK"
PREFETCH = r"UBLKPF"
SHARED_WITH_OTHERS = r"LDG|LDGSTS|LD|STG|ST|ATOMG?|REDG?|UTMA\w+|UBLK(?!PF)\w+"
BRANCHES = r"BRA|BRX|BRXU|JMP|JMX|CALL|EXIT|RET|SYNC|BREAK"

# (hidden, intermediate) of DistilBERT-base and of MiniLM-L6.
MODELS = ((768, 3072), (384, 1536))
# BERT-large's row is a power of two, which its blocks must take as well.
ROWS = (*MODELS, (1024, 4096))
HEADS = 12
TOKENS = 8192
SEQUENCES = 64
LONGEST = 512
VOCABULARY = 30522


@dataclass(frozen=True)
class Case:
    """One launch to compile.

    Attributes:
        target: the generation, one of TARGETS.
        operation, setting: for people.
        launch: over tensors without memory.
        steps: how often the loop over the operands of a product goes round, if there is one.
        sums: the layer or head size within which all sizes must be summed in one order, if any.
        order: what that order depends on besides the instructions.
    """

    target: str
    operation: str
    setting: str
    launch: Launch
    steps: int = 1
    sums: str | None = None
    order: str = ""


@dataclass(frozen=True)
class MachineCode:
    """What the checks look at in a compiled kernel.

    Attributes:
        instructions: times that an opcode occurs.
        before_the_wait: opcodes ahead of the wait for the launch before, in order, less the jumps
            that lead to it all the same; None where there is no wait.
    """

    registers: int
    stack: int
    shared: int
    tensor_memory: int
    serialised: list[str]
    instructions: dict[str, int]
    before_the_wait: list[str] | None

    def count(self, pattern: str) -> int:
        """Instructions whose opcode, up to its first dot, the pattern matches."""
        opcodes = self.instructions.items()
        return sum(n for opcode, n in opcodes if re.fullmatch(pattern, opcode.split(".")[0]))

    def families(self) -> frozenset[str]:
        """Tensor-core instructions without what does not touch the order of sums: width, height."""
        opcodes = (code for code in self.instructions if re.match(r"\w*MMA\b", code))
        return frozenset(re.sub(r"\.\d+x\d+x(\d+)", r".k\1", code) for code in opcodes)


@dataclass(frozen=True)
class Verdict:
    """What became of a case: its code, or None where it did not compile, and what is wrong."""

    code: MachineCode | None
    seconds: float
    faults: list[str]


# --- what is compiled -----------------------------------------------------------------------------


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """A tensor without memory: a launch needs shapes and types only."""
    return torch.empty(shape, dtype=dtype, device="meta")


def dtypes_of(kind: str, target: str) -> tuple[torch.dtype, ...]:
    """The types to compile the settings of "half" or "fp32" in."""
    if kind == "fp32":
        return (torch.float32,)
    return (torch.bfloat16, torch.float16) if target == "sm_90" else (torch.bfloat16,)


def short(dtype: torch.dtype) -> str:
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
    return names.get(dtype, str(dtype).removeprefix("torch."))


def models(settings: Settings) -> Iterator[tuple[torch.dtype, int, int]]:
    """dtype, hidden size and intermediate size of what is compiled."""
    for kind in ("half", "fp32"):
        for dtype in dtypes_of(kind, settings.target):
            for hidden, intermediate in ROWS:
                yield dtype, hidden, intermediate


def layers(key: str) -> list[tuple[int, int, str | None]]:
    """out_features, in_features and activation of the layers that a key of the settings covers."""
    (hidden, intermediate), (narrow, narrow_intermediate) = MODELS
    known = [
        (3 * hidden, hidden, None),
        (hidden, hidden, None),
        (intermediate, hidden, "gelu"),
        (hidden, intermediate, None),
        (narrow_intermediate, narrow, "gelu"),
        (narrow, narrow_intermediate, None),
    ]
    covered = [layer for layer in known if key in ("*", f"{layer[0]}x{layer[1]}")]
    return covered or [(*map(int, key.split("x")), None)]


def linear_cases(settings: Settings) -> Iterator[Case]:
    """Every rule with every layer it may meet; the epilogues that engines lack with the first.

    Where kernels may start early, few rows are multiplied by other code: that is compiled too.
    """
    table = {**settings.table, "dependent_launch": settings.waits}
    early = Settings(settings.target, table, settings.source)
    tried = set()
    for kind, key, limit, setting in settings.all_linear():
        for dtype in dtypes_of(kind, settings.target):
            wanted = [(*layer, False) for layer in layers(key)]
            if dtype not in tried:
                tried.add(dtype)
                wanted += [(*wanted[0][:2], name, True) for name in gelu.ACTIVATIONS]
            for layer in wanted:
                for tokens in (limit or TOKENS, (limit or TOKENS) - 1):
                    yield linear_case(settings, setting, dtype, tokens, *layer)
                    if settings.waits and tokens <= setting.block_m:
                        yield linear_case(early, setting, dtype, tokens, *layer)


def linear_case(
    settings: Settings,
    setting: LinearSetting,
    dtype: torch.dtype,
    tokens: int,
    out_features: int,
    in_features: int,
    activation: str | None,
    residual: bool,
) -> Case:
    launch = linear.linear_launch(
        empty(tokens, in_features, dtype=dtype),
        empty(out_features, in_features, dtype=dtype),
        empty(out_features, dtype=dtype),
        activation,
        empty(tokens, out_features, dtype=dtype) if residual else None,
        empty(tokens, out_features, dtype=dtype),
        settings,
        setting=setting,
    )
    tile = f"{setting.block_m}x{setting.block_n}x{setting.block_k} w{setting.num_warps}"
    epilogue = f"{activation or 'none'}{' residual' if residual else ''}"
    epilogue += " early" if launch.constants["PREFETCH"] else ""
    programs = f" p{setting.programs}" if setting.programs else ""
    shape = f"{out_features}x{in_features}"
    text = f"{short(dtype)} {shape} {setting.variant} {tile} s{setting.num_stages}{programs}"
    # Three passes over tf32 parts take turns by steps of block_k.
    order = f"in steps of {setting.block_k}" if dtype == torch.float32 else ""
    invariant = setting in met(settings, dtype, out_features, in_features)
    sums = f"linear {short(dtype)} {shape}" if invariant else None
    steps = triton.cdiv(in_features, setting.block_k)
    return Case(settings.target, "linear", f"{text} {epilogue}", launch, steps, sums, order)


def met(
    settings: Settings, dtype: torch.dtype, out_features: int, in_features: int
) -> set[LinearSetting]:
    """What a layer meets over all numbers of tokens: settings that must agree on the bits."""
    limits = {limit for _, _, limit, _ in settings.all_linear() if limit is not None}
    counts = {1} | {limit + 1 for limit in limits}
    return {settings.linear(dtype, count, out_features, in_features) for count in counts}


def attention_cases(settings: Settings) -> Iterator[Case]:
    """Every rule at lengths around its tile's sizes: as graphs call it; at 64 as people do too."""
    above: dict[tuple[str, int], int] = {}
    for kind, head_dim, limit, setting in settings.all_attention():
        first, last = above.get((kind, head_dim), 1), limit or LONGEST
        above[kind, head_dim] = last + 1
        sizes = {setting.slot, setting.block_q, setting.key_block}
        lengths = {first, last} | {size + more for size in sizes for more in (0, 1)}
        for dtype, length in itertools.product(
            dtypes_of(kind, settings.target), sorted(n for n in lengths if first <= n <= last)
        ):
            yield attention_case(settings, setting, dtype, head_dim, length, True)
            if dtype != torch.float16 and head_dim == 64:
                yield attention_case(settings, setting, dtype, head_dim, length, False)


def attention_case(
    settings: Settings,
    setting: AttentionSetting,
    dtype: torch.dtype,
    head_dim: int,
    length: int,
    counted: bool,
) -> Case:
    launch = attention.attention_launch(
        empty(TOKENS, 3, HEADS, head_dim, dtype=dtype),
        empty(SEQUENCES + 1),
        length,
        empty(TOKENS, HEADS * head_dim, dtype=dtype),
        settings,
        scale_folded=counted,
        num_sequences=empty(1) if counted else None,
    )
    tile = f"q{setting.block_q}/{setting.slot} k{setting.key_block} w{setting.num_warps}"
    text = f"{short(dtype)} d{head_dim} {tile} s{setting.num_stages} to {length}"
    text += " counted" if counted else ""
    steps = triton.cdiv(length, setting.key_block)
    sums = f"attention {short(dtype)} d{head_dim}"
    return Case(settings.target, "attention", text, launch, steps, sums)


def layernorm_cases(settings: Settings) -> Iterator[Case]:
    for (dtype, hidden, _), residual in itertools.product(models(settings), (False, True)):
        x, weight = empty(TOKENS, hidden, dtype=dtype), empty(hidden, dtype=dtype)
        launch = layernorm.layernorm_launch(
            x, weight, weight, 1e-12, x if residual else None, x, settings
        )
        text = f"{short(dtype)} {hidden} {'residual' if residual else ''}"
        yield Case(settings.target, "layernorm", text, launch)


def embed_layernorm_cases(settings: Settings) -> Iterator[Case]:
    """With segments as BERT has them and without as DistilBERT."""
    for (dtype, hidden, _), segments in itertools.product(models(settings), (False, True)):
        ids, weight = empty(TOKENS), empty(hidden, dtype=dtype)
        launch = embedding.embed_layernorm_launch(
            ids,
            ids,
            ids if segments else None,
            empty(VOCABULARY, hidden, dtype=dtype),
            empty(LONGEST, hidden, dtype=dtype),
            empty(2, hidden, dtype=dtype) if segments else None,
            weight,
            weight,
            1e-12,
            empty(TOKENS, hidden, dtype=dtype),
            empty(1),
            settings,
        )
        text = f"{short(dtype)} {hidden} {'segments' if segments else ''}"
        yield Case(settings.target, "embed_layernorm", text, launch)


def bias_gelu_cases(settings: Settings) -> Iterator[Case]:
    """GELU for every model; what checkpoints rarely ask for once."""
    asked = [(*model, "gelu") for model in models(settings)]
    asked += [(*asked[0][:3], activation) for activation in gelu.ACTIVATIONS]
    for dtype, _, width, activation in asked:
        x, bias = empty(TOKENS, width, dtype=dtype), empty(width, dtype=dtype)
        launch = gelu.bias_gelu_launch(x, bias, activation, x, settings)
        yield Case(settings.target, "bias_gelu", f"{short(dtype)} {width} {activation}", launch)


def pool_cases(settings: Settings) -> Iterator[Case]:
    ways = (("mean", True), ("cls", False), ("max", False))
    for (dtype, hidden, _), (way, normalize) in itertools.product(models(settings), ways):
        launch = pooling.pool_launch(
            empty(TOKENS, hidden, dtype=dtype),
            empty(SEQUENCES + 1),
            way,
            normalize,
            empty(SEQUENCES, hidden, dtype=torch.float32),
            settings,
        )
        text = f"{short(dtype)} {hidden} {way} {'normalize' if normalize else ''}"
        yield Case(settings.target, "pool", text, launch)


def pack_cases(settings: Settings) -> Iterator[Case]:
    """Padded batches of 64 x 128, their masks in the types that people have; and back to padded."""
    cells = (SEQUENCES, TOKENS // SEQUENCES)
    ids, places = empty(*cells, dtype=torch.int64), empty(TOKENS, dtype=torch.int64)
    counts, positions = empty(SEQUENCES + 1), empty(TOKENS)
    launches = []
    for dtype in (torch.bool, torch.int64, torch.float32):
        mask = empty(*cells, dtype=dtype)
        launches.append((dtype, packing.count_launch(mask, counts, settings)))
        launches.append((dtype, packing.pack_launch(mask, counts, positions, places, settings)))
    for numbers, others in ((6, (None, None)), (8, (ids, ids))):
        facts = empty(SEQUENCES + numbers, dtype=torch.int64)
        partial = empty(numbers, SEQUENCES, dtype=torch.int64)
        measured = measure.measure_launches(ids, ids, *others, facts, partial, settings)
        launches += [(torch.int64, launch) for launch in measured]
    for dtype, hidden, _ in models(settings):
        padded = empty(*cells, hidden, dtype=dtype)
        flat = padded.view(TOKENS, hidden)
        launches.append((dtype, packing.unpack_launch(flat, places, padded, settings)))
    for dtype, launch in launches:
        width = launch.constants.get("WIDTH", "")
        yield Case(settings.target, "pack", f"{launch.name} {short(dtype)} {width}", launch)


OPERATIONS = {
    "linear": linear_cases,
    "attention": attention_cases,
    "layernorm": layernorm_cases,
    "embed_layernorm": embed_layernorm_cases,
    "bias_gelu": bias_gelu_cases,
    "pool": pool_cases,
    "pack": pack_cases,
}


def distinct(cases: Iterator[Case]) -> list[Case]:
    """Without those that Triton would compile to what another was compiled to."""
    found: dict[Any, Case] = {}
    key: str | None = None

    def note(**call: Any) -> bool:
        nonlocal key
        key = str(call["key"])
        return True  # and so nothing is compiled

    knobs.runtime.jit_cache_hook = note
    try:
        for case in cases:
            driver.set_active(StandIn(case.target))
            key = None
            with contextlib.suppress(Exception):  # said again, and kept, when it is compiled
                case.launch.compile()
            identity = (case.target, case.launch.kernel, key or case)
            if identity not in found or not found[identity].sums:
                found[identity] = case
    finally:
        knobs.runtime.jit_cache_hook = None
    return list(found.values())


# --- compiling and looking ------------------------------------------------------------------------


class StandIn:
    """Triton's driver for a GPU that is not there."""

    def __init__(self, target: str):
        self.capability = int(target.removeprefix("sm_"))

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        """Another one per target: kernels keep what they compiled by device."""
        return self.capability

    def get_current_stream(self, _device: int) -> int:
        return 0


def machine_code(compiled: Any, target: str) -> MachineCode:
    """What is in a compiled kernel; read once per kernel and edition of this file."""
    edition = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    kept = Path(knobs.cache.dir) / f"machine-code-{edition}" / f"{compiled.hash}.json"
    if kept.exists():
        return MachineCode(**json.loads(kept.read_text()))
    code = read_machine_code(compiled, target)
    kept.parent.mkdir(parents=True, exist_ok=True)
    partial = kept.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(asdict(code)))
    partial.replace(kept)
    return code


def read_machine_code(compiled: Any, target: str) -> MachineCode:
    """Disassemble, with the tools in triton's own package."""
    tools = Path(get_ptxas(80).path).parent
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        assembly = output_of(tools / "nvdisasm", "-c", cubin)
        usage = output_of(tools / "cuobjdump", "-res-usage", cubin)
    opcodes = [opcode for opcode, _ in instructions(assembly)]
    if not opcodes:
        raise RuntimeError("nvdisasm showed no instructions")
    return MachineCode(
        registers=resource(usage, "REG"),
        stack=resource(usage, "STACK"),
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        serialised=serialised(compiled.asm["ptx"], target),
        instructions=dict(Counter(opcodes)),
        before_the_wait=before_the_wait(assembly),
    )


def instructions(assembly: str) -> list[tuple[str, str]]:
    """Opcode and operands of each, in order."""
    pattern = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)"
    return re.findall(pattern, assembly, re.MULTILINE)


def before_the_wait(assembly: str) -> list[str] | None:
    """What `MachineCode` says of it."""
    ahead, found, _ = assembly.partition(f" {WAIT} ")
    if not found:
        return None
    labels = set(re.findall(r"^(\S+):", ahead, re.MULTILINE))

    def leads_to_the_wait(operands: str) -> bool:
        target = re.search(r"`\((.+?)\)", operands)
        # Tensor memory is taken ahead of the wait; the checks of that end the program.
        return bool(target and (target[1] in labels or "guardrail_trap" in target[1]))

    return [opcode for opcode, rest in instructions(ahead) if not leads_to_the_wait(rest)]


def resource(usage: str, name: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    if not found:
        raise RuntimeError(f"cuobjdump says nothing of {name}: {usage!r}")
    return int(found.group(1))


def serialised(ptx: str, target: str) -> list[str]:
    """ptxas' warnings that it made asynchronous products wait for each other: C7510 to C7519."""
    if "wgmma" not in ptx:
        return []
    capability = int(target.removeprefix("sm_"))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        generation = f"--gpu-name={sm_arch_from_capability(capability)}"
        log = output_of(
            get_ptxas(capability).path, "-v", generation, source, "-o", source.with_suffix(".cubin")
        )
    return sorted(set(re.findall(r"C75\d\d", log)))


def output_of(*command: str | Path) -> str:
    """What a tool prints; an error with what it printed if it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name}: {done.stderr.strip()[:200]}")
    return done.stdout + done.stderr


def faults(code: MachineCode, case: Case) -> list[str]:
    """Everything that is wrong with the code, in words; empty if nothing is."""
    launch, target = case.launch, case.target
    found = []
    if code.shared > SHARED_MEMORY[target]:
        found.append(f"shared memory {code.shared} > {SHARED_MEMORY[target]}")
    if code.tensor_memory > TENSOR_MEMORY_COLUMNS:
        found.append(f"tensor memory {code.tensor_memory} > {TENSOR_MEMORY_COLUMNS}")
    # Registers are dealt out to a warp by 256.
    registers = math.ceil(code.registers * 32 / 256) * 256 * launch.num_warps
    if registers > REGISTERS:
        found.append(f"registers {registers} > {REGISTERS}")
    spilled = code.count("STL|LDL")
    if code.stack or spilled:
        found.append(f"spills: stack {code.stack}, {spilled} moves")
    if code.serialised:
        found.append(f"serialised wgmma: {', '.join(code.serialised)}")
    described = sum(hasattr(value, "block_shape") for value in launch.arguments.values())
    if described and not code.count("UTMALDG"):
        found.append("descriptors but no TMA load")
    if launch.constants.get("PREFETCH") and not code.count(PREFETCH):
        found.append("fetches no weights ahead of the wait")
    if launch.tensor_cores:
        found += product_faults(code, case)
    if launch.constants.get("WAITS"):
        found += wait_faults(code)
    elif launch.dependent:
        found.append("a dependent launch of a kernel that does not wait")
    return found


def wait_faults(code: MachineCode) -> list[str]:
    """What is wrong with how a kernel waits for the launch before it."""
    if code.before_the_wait is None:
        return ["does not wait for the launch before"]
    early = [
        opcode
        for opcode in code.before_the_wait
        if re.fullmatch(f"{SHARED_WITH_OTHERS}|{BRANCHES}", opcode.split(".")[0])
    ]
    return [f"ahead of the wait for the launch before: {' '.join(early)}"] if early else []


def product_faults(code: MachineCode, case: Case) -> list[str]:
    """What is wrong with how a kernel multiplies, and with how its operands come in."""
    found = []
    if not code.count(TENSOR_CORES[case.target]):
        instead = " ".join(sorted(code.families())) or "none"
        found.append(f"tensor cores: {instead} instead of {TENSOR_CORES[case.target]}")
    stages = min(case.launch.num_stages, case.steps)
    copies = code.count("LDGSTS|UTMALDG")
    # Two operands are fetched ahead, once per stage: before the loop for all but one, and in it.
    if stages > 1 and copies < 2 * stages:
        found.append(f"{copies} asynchronous copies for {stages} stages")
    narrow = sum(
        times
        for opcode, times in code.instructions.items()
        if opcode.startswith("LDGSTS") and not opcode.endswith(".128")
    )
    if narrow:
        found.append(f"{narrow} asynchronous copies of less than 16 bytes")
    return found


def verdict(case: Case) -> Verdict:
    """Compile a case for its target and look at the code."""
    driver.set_active(StandIn(case.target))
    began = time.perf_counter()
    try:
        # What Triton prints when ptxas fails is the whole program.
        with contextlib.redirect_stdout(io.StringIO()):
            code = machine_code(case.launch.compile(), case.target)
    except Exception as error:  # whatever a compiler dies of is a fault of the setting
        lines = str(error).strip().splitlines() or [""]
        reason = f"does not compile: {type(error).__name__}: {lines[-1][:120]}"
        return Verdict(None, time.perf_counter() - began, [reason])
    return Verdict(code, time.perf_counter() - began, faults(code, case))


def order_faults(results: list[tuple[Case, Verdict]]) -> list[str]:
    """Layers and head sizes whose rows would be summed in another order at other sizes."""
    orders: dict[tuple[str, str], dict[frozenset[str], str]] = {}
    for case, result in results:
        if case.sums and result.code:
            order = result.code.families() | ({case.order} if case.order else set())
            orders.setdefault((case.target, case.sums), {})[order] = case.setting
    return [
        f"{target:7}{sums}: rows are summed in several orders: "
        + "; ".join(f"{' '.join(sorted(order))} ({setting})" for order, setting in found.items())
        for (target, sums), found in orders.items()
        if len(found) > 1
    ]


# --- the command ----------------------------------------------------------------------------------

_cases: list[Case] = []


def _verdict_of(number: int) -> Verdict:
    """In a forked worker, which has the cases in its memory."""
    return verdict(_cases[number])


def verdicts(cases: list[Case], jobs: int) -> Iterator[tuple[Case, Verdict]]:
    """Each case with its verdict, in order, as they come."""
    _cases[:] = cases
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = [pool.submit(_verdict_of, number) for number in range(len(cases))]
        for case, future in zip(cases, futures, strict=True):
            try:
                yield case, future.result()
            except BrokenProcessPool:
                yield case, Verdict(None, 0.0, ["not compiled: a compiler process died"])


def line(case: Case, result: Verdict) -> str:
    """One row of the table."""
    size = " " * 20
    if result.code:
        size = f"{result.code.registers:4} regs {result.code.shared / 1024:6.1f} KB"
    told = "FAIL " + "; ".join(result.faults) if result.faults else "ok"
    return (
        f"{case.target:7}{case.operation:16}{case.setting:62}{size} {result.seconds:5.1f} s  {told}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", choices=TARGETS, help="one generation; default: all")
    parser.add_argument("--only", choices=OPERATIONS, help="one operation; default: all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compiler processes")
    parser.add_argument("--settings", help="a file, or folder of files, instead of kernels/tuning")
    return parser.parse_args()


def main() -> int:
    wanted = arguments()
    if interpreted():
        print(
            "compile gate: TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it"
        )
        return 2
    os.environ.setdefault(
        "TRITON_CACHE_DIR", str(ROOT / f".cache/triton-gate-{triton.__version__}")
    )
    if wanted.settings:
        os.environ["FASTDISTIL_TUNING"] = wanted.settings
    began = time.perf_counter()
    tables = [load_settings(t) for t in TARGETS if wanted.target in (None, t)]
    builders = [OPERATIONS[name] for name in OPERATIONS if wanted.only in (None, name)]
    cases = distinct(case for settings in tables for build in builders for case in build(settings))
    results = []
    for case, result in verdicts(cases, wanted.jobs):
        results.append((case, result))
        print(line(case, result), flush=True)
    failed = sum(bool(result.faults) for _, result in results)
    orders = order_faults(results)
    for told in orders:
        print(f"FAIL {told}")
    print(
        f"triton {triton.__version__}: {len(results)} compilations, {failed} with faults, "
        f"{len(orders)} mixed orders, {time.perf_counter() - began:.0f} s"
    )
    if not results:
        print("compile gate: nothing was compiled")
    return 1 if failed or orders or not results else 0


if __name__ == "__main__":
    sys.exit(main())
