"""The machine, the software and the commit that a measurement belongs to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import allocator

# Without one of these a result is not a result; see `results.read`.
REQUIRED = (
    "device",
    "cores",
    "threads",
    "flags",
    "platform",
    "python",
    "fastdistil",
    "packages",
    "commit",
    "date",
)

# The instruction sets that decide which kernels an engine may choose.
_FLAGS = (
    "avx2",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "tokenizers",
    "numpy",
    "openvino",
    "nncf",
    "onnxruntime",
    "ctranslate2",
    "triton",
)

# Names for the best of them, best first.
_ISA_OF_FLAG = {
    "amx": "amx_bf16",
    "avx512-bf16": "avx512_bf16",
    "avx512": "avx512f",
    "avx2": "avx2",
}

_CPU0 = Path("/sys/devices/system/cpu/cpu0")
_POWER_LIMIT = Path("/sys/class/powercap/intel-rapl:0/constraint_0_power_limit_uw")
_GPU_STATE = ("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit")
_SECONDS = 20.0


def environment() -> dict[str, Any]:
    """Facts about this run, for its results. What the machine does not tell is None."""
    import torch

    import fastdistil

    model, flags = cpu()
    return {
        "device": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "clock_mhz": clock_mhz(),
        "clock_max_mhz": _number(_CPU0 / "cpufreq" / "cpuinfo_max_freq", 1e3),
        "clock_governor": _line(_CPU0 / "cpufreq" / "scaling_governor"),
        "power_limit_watts": _number(_POWER_LIMIT, 1e6),
        "caches": _caches(),
        "memory_bytes": _memory_bytes(),
        "allocator": allocator.describe(),
        "gpus": _gpus(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "fastdistil": fastdistil.__version__,
        "packages": {name: v for name in _PACKAGES if (v := _version(name)) is not None},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def cpu() -> tuple[str, frozenset[str]]:
    """Model name and feature flags, as Linux reports them for the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", text.split("\n\n")[0], re.MULTILINE))
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name") or platform.machine(), frozenset(flags.split())


def clock_mhz() -> float | None:
    """What the first core runs at now, in MHz; None where Linux does not say."""
    current = _number(_CPU0 / "cpufreq" / "scaling_cur_freq", 1e3)
    if current is not None:
        return current
    match = re.search(r"^cpu MHz\s*: ([\d.]+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return float(match[1]) if match else None


def device_folder(record: Mapping[str, Any]) -> str:
    """A folder name for the machine of an `environment` record: ``amd-epyc-2-cores-avx512``."""
    name = re.sub(r"\((r|tm)\)|@.*|\bcpu\b|\bprocessor\b", " ", str(record["device"]).lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "cpu"
    flags = record["flags"]
    # Two machines may report the same vague model name and differ in what decides the speed.
    isa = next((i for i, flag in _ISA_OF_FLAG.items() if flag in flags), "portable")
    return f"{slug}-{record['cores']}-cores-{isa}"


def describe(record: Mapping[str, Any]) -> str:
    """One line for people about an `environment` record."""
    versions = ", ".join(f"{name} {v}" for name, v in record["packages"].items())
    return (
        f"{record['device']}, {record['cores']} cores, {record['threads']} threads "
        f"({' '.join(record['flags'])}){_state(record)}; "
        f"fastdistil {record['fastdistil']} at {record['commit']}, "
        f"{versions}; {record['date']}"
    )


def _state(record: Mapping[str, Any]) -> str:
    """Clock and power limit, as far as the machine told them."""
    clock, limit = record.get("clock_mhz"), record.get("power_limit_watts")
    told = f", {clock:,.0f} MHz" if clock else ""
    return told + (f", power limit {limit:.0f} W" if limit else "")


def _caches() -> dict[str, str]:
    """Sizes by name, as in {"L1d": "48K"}, of the first core."""
    found = {}
    for folder in sorted((_CPU0 / "cache").glob("index*")):
        level, kind = _line(folder / "level"), _line(folder / "type")
        size = _line(folder / "size")
        if level and size and kind != "Instruction":
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = size
    return found


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> list[dict[str, str]]:
    """What nvidia-smi says of each GPU; it is only ever read."""
    query = f"--query-gpu={','.join(_GPU_STATE)}"
    try:
        lines = _run("nvidia-smi", query, "--format=csv,noheader").splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    return [dict(zip(_GPU_STATE, map(str.strip, line.split(",")), strict=False)) for line in lines]


def _number(file: Path, scale: float) -> float | None:
    """A number in a file of Linux's, divided by `scale`."""
    text = _line(file)
    return float(text) / scale if text and text.isdecimal() else None


def _line(file: Path) -> str | None:
    return _text(file).strip() or None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """Short commit of the checkout, with ``+`` when tracked files differ from it.

    In a copy without git what ``FASTDISTIL_COMMIT`` says; of an installed package its release.
    """
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / "setup.py").is_file():
        return "release"
    try:
        return _run("git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("FASTDISTIL_COMMIT", "no commit")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
    return done.stdout.strip()
