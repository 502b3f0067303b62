"""The engines, and the one function that chooses between them and says why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..config import EncoderConfig
from .base import Backend, EngineOptions, Program
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "Backend",
    "EngineOptions",
    "Program",
    "Selection",
    "check_names",
    "select",
]

PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "fp8")
BACKENDS = ("auto", "cuda", "cpu", "reference")

_AVAILABLE_PRECISIONS = ("fp32", "bf16", "fp16", "int8")
_REFERENCE = ReferenceBackend()
_CPU = CpuBackend()
_CUDA = CudaBackend()
# What is tried on a type of device, fastest first; plain PyTorch is tried last everywhere.
_ENGINES: dict[str, tuple[Backend, ...]] = {"cuda": (_CUDA,), "cpu": (_CPU,)}


@dataclass(frozen=True)
class Selection:
    """A backend, the precision it will run in, and a sentence for people on why this one."""

    backend: Backend
    precision: str
    reason: str


def select(
    config: EncoderConfig,
    device: torch.device,
    precision: str = "auto",
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
) -> Selection:
    """Choose what runs a model.

    Args:
        config: the encoder.
        device: where its weights and inputs are.
        precision: one of PRECISIONS; "auto" is the backend's fastest with bf16-class error.
        backend: one of BACKENDS; "auto" takes the first that can, and keeps why the others cannot.
        dtype: what its weights are in.

    Raises:
        ValueError: an unknown name, a precision that is not available yet, or nothing (or not the
            backend asked for) that can run this.
    """
    check_names(precision, backend)
    if backend == "auto":
        order = [*_ENGINES.get(device.type, ()), _REFERENCE]
    else:
        order = [engine for engine in (_CUDA, _CPU, _REFERENCE) if engine.name == backend]
    refusals: list[str] = []
    for candidate in order:
        wanted = precision
        if precision == "auto":
            wanted = candidate.auto_precision(config, device, dtype)
        refusal = candidate.supports(config, device, wanted)
        if refusal is None:
            what = candidate.describe(config, device, wanted)
            reason = "; ".join([*refusals, f"so {what}"]) if refusals else what
            return Selection(candidate, wanted, reason)
        refusals.append(f"the {candidate.name} backend cannot run this: {refusal}")
    raise ValueError(
        f"precision {precision!r} with backend {backend!r} on {device} is not available: "
        + "; ".join(refusals)
    )


def check_names(precision: str, backend: str) -> None:
    """Raise ValueError unless both are known and the precision exists in this version."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: got {precision!r}; allowed: {', '.join(PRECISIONS)}")
    if precision != "auto" and precision not in _AVAILABLE_PRECISIONS:
        raise ValueError(
            f"precision: {precision!r} is not available yet; "
            f"available: auto, {', '.join(_AVAILABLE_PRECISIONS)}"
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend: got {backend!r}; available: {', '.join(BACKENDS)}")
