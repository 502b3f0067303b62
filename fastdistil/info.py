"""What this machine has, what would run on it and why, and what is missing: `fastdistil info`."""

from __future__ import annotations

import importlib.metadata
import platform
from importlib.util import find_spec
from pathlib import Path

import torch

from ._version import __version__
from .backends import select
from .backends.cpu import extension_error, instruction_sets
from .backends.cuda_latency import refusal
from .backends.threads import num_threads
from .config import EncoderConfig

# Optional packages: what for, and the extra that brings them.
_OPTIONAL = {
    "pyarrow": (".parquet files", "parquet"),
    "transformers": ("accelerate() on a Hugging Face model", "transformers"),
    "sentence_transformers": ("accelerate() on a SentenceTransformer", "sentence-transformers"),
}


def report() -> str:
    """The whole report, some twenty lines for people."""
    lines = [
        f"fastdistil {__version__}, torch {torch.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}",
        f"CPU: {_cpu_name()}, {num_threads()} threads",
        *_gpus(),
        "",
        *_engines(),
        "",
        *_optional(),
    ]
    return "\n".join(lines)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "none found"
        return [f"GPU: {why}"]
    return [
        f"GPU: {torch.cuda.get_device_name(index)} (cuda:{index})"
        for index in range(torch.cuda.device_count())
    ]


def _gpu_engines() -> list[str]:
    """What would run on each GPU; what is missing, where torch could use one."""
    if not torch.cuda.is_available():
        return []
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    lines = [f"{device}: {_chosen(device, 'auto')}" for device in devices]
    return lines + [f"{device}: {few_tokens(device)}" for device in devices]


def few_tokens(device: torch.device) -> str:
    """Whether there is a low-latency kernel, or why not."""
    why = refusal(EncoderConfig(), device, "bf16")
    if why is not None:
        return f"no kernel for few tokens: {why}"
    return "few tokens in one launch with deterministic=False"


def _chosen(device: torch.device, precision: str) -> str:
    try:
        chosen = select(EncoderConfig(), device, precision)
    except ValueError as error:
        return str(error)
    return f"{chosen.precision} on the {chosen.backend.name} backend: {chosen.reason}"


def _engines() -> list[str]:
    found = instruction_sets()
    lines = [f"C++ extension: {extension_error() or 'there'}"]
    if found["features"]:
        lines.append(f"CPU features: {', '.join(found['features'])}")
    lines += [f"  can run: {kernels['description']}" for kernels in found["kernels"]]
    lines += [f"  cannot run: {reason}" for reason in found["unusable"]]
    if found["cap"] is not None:
        lines.append(f"  FASTDISTIL_CPU_ISA={found['cap']}: nothing above it is used")
    cpu = torch.device("cpu")
    for precision in ("auto", "fp32", "bf16", "int8"):
        lines.append(f"precision {precision}: {_chosen(cpu, precision)}")
    return lines + _gpu_engines()


def _optional() -> list[str]:
    lines = []
    for module, (purpose, extra) in _OPTIONAL.items():
        name = module.replace("_", "-")
        if find_spec(module) is None:
            lines.append(f"{name}: missing, for {purpose}: pip install 'fastdistil[{extra}]'")
        else:
            lines.append(f"{name} {importlib.metadata.version(name)}: {purpose}")
    return lines
