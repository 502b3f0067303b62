"""The machine a measurement belongs to: the GPU and its state, the software, the code."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from benchmarks.corpora import ROOT
from fastdistil.kernels.settings import target_of

_PACKAGES = ("torch", "triton", "transformers", "numpy", "pytest")
_OPTIONAL = ("tensorrt", "onnxruntime", "onnxruntime-gpu", "flash-attn")

# What nvidia-smi reports about the state of the card. It is only ever read.
_STATE = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
)
_SECONDS = 20.0


def environment(device: torch.device) -> dict[str, Any]:
    """Facts about a run, for its results.

    Args:
        device: a CUDA device, or the CPU, where kernels are only interpreted.
    """
    return {
        **_hardware(device),
        "python": platform.python_version(),
        "packages": {name: v for name in (*_PACKAGES, *_OPTIONAL) if (v := _version(name))},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def target(device: torch.device) -> str:
    """The generation whose launch settings `device` takes; an H100's in the interpreter."""
    if device.type != "cuda":
        return "sm_90"
    return target_of(torch.cuda.get_device_capability(device))


def multiprocessors(device: torch.device) -> int:
    """How many the device has; an H100's number in the interpreter."""
    if device.type != "cuda":
        return 132
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def slug(name: str) -> str:
    """A folder name: ``NVIDIA H100 80GB HBM3`` to ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def describe(record: dict[str, Any]) -> str:
    """One line for people about an `environment` record."""
    versions = ", ".join(f"{name} {v}" for name, v in record["packages"].items())
    driver = record.get("driver_version", "unknown")
    clocks = f"SM {record.get('clocks.sm', '?')}, memory {record.get('clocks.mem', '?')}"
    return (
        f"{record['device']} (compute capability {record['capability']}, driver {driver}, clocks "
        f"at the start: {clocks}); Python {record['python']}, CUDA {record['cuda']}, {versions}; "
        f"commit {record['commit']}; {record['date']}"
    )


def digest(paths: Iterable[Path], *settings: object) -> str:
    """A short fingerprint of files' contents and of settings: the same run gives the same one."""
    state = hashlib.sha256(repr(settings).encode())
    for path in sorted(paths):
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def commit() -> str:
    """Short commit of the checkout, with ``+`` when tracked files differ from it.

    In a copy without git: what ``FASTDISTIL_COMMIT`` says.
    """
    try:
        head = _run("git", "rev-parse", "--short", "HEAD")
        changed = _run("git", "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("FASTDISTIL_COMMIT", "unknown")
    return head + ("+" if changed else "")


def _hardware(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {
            "device": "Triton's interpreter",
            "capability": "none",
            "cuda": "none",
            "multiprocessors": 0,
        }
    facts = torch.cuda.get_device_properties(device)
    return {
        "device": facts.name,
        "capability": f"{facts.major}.{facts.minor}",
        "cuda": str(torch.version.cuda),
        "multiprocessors": facts.multi_processor_count,
        "memory_gib": round(facts.total_memory / 2**30, 1),
        "l2_mib": round(getattr(facts, "L2_cache_size", 0) / 2**20, 1),
        **_state(),
    }


def _state() -> dict[str, str]:
    query = f"--query-gpu={','.join(_STATE)}"
    try:
        lines = _run("nvidia-smi", query, "--format=csv,noheader").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in lines[0].split(",")] if lines else []
    return dict(zip(_STATE, values, strict=False))


def _run(*command: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=_SECONDS
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
