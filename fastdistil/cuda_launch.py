"""Launches of the CUDA C++ kernels (csrc/cuda) as data, and whether there are such kernels here.

They are in the extension fastdistil._C where it was built with them: compiled by nvcc, for tensors
on a GPU; or emulated, by the host's compiler, for tensors in the CPU's memory, which is for tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .backends import cpu


@dataclass(frozen=True, eq=False)
class CudaLaunch:
    """One operation of csrc/cuda, ready to go. Building it touches no device.

    Attributes:
        name: the operation, for people and profiles.
        call: queues it on the current stream of its tensors' device; keeps the tensors alive.
        flops: floating-point operations of the mathematics, a multiply-add counted as two.
        moved: bytes that have to move, each operand read once and each result written once.
    """

    name: str
    call: Callable[[], None]
    flops: int
    moved: int

    def run(self) -> None:
        """Queue it on the current stream of its tensors' device.

        Raises:
            RuntimeError: the driver will not have it; or no such kernels are here (`available`).
            ValueError: its tensors are on "meta".
        """
        self.call()


def available() -> str | None:
    """Why there are no CUDA C++ kernels for this process, and how to get them; None if there are.

    Emulated ones count: they take CPU tensors (`emulated`).
    """
    problem = cpu.extension_error()
    if problem is not None:
        return problem
    if kernels() is None:
        return (
            "fastdistil._C was built without CUDA C++ kernels; on a machine with an NVIDIA GPU and "
            "CUDA's compiler nvcc, installing fastdistil again from its source builds them (with "
            "FASTDISTIL_CUDA=1 in the environment for every kind of GPU; with "
            "FASTDISTIL_CUDA=emulated, for tests on a CPU)"
        )
    if not emulated() and not torch.cuda.is_available():
        return "PyTorch finds no CUDA device here, and these CUDA C++ kernels run on nothing else"
    return None


def emulated() -> bool:
    """Whether the kernels of this build are emulated and take CPU tensors; False without any."""
    found = kernels()
    return found is not None and bool(found.emulated)


def check_runs(name: str, tensor: Tensor) -> None:
    """Refuse a tensor on a device that no kernel runs on; "meta" is for building launches.

    Args:
        name: the argument's, for the message.

    Raises:
        RuntimeError: there are no kernels here; the reason is that of `available`.
        ValueError: naming the argument and the devices where they run.
    """
    wanted = "cpu" if emulated() else "cuda"
    if tensor.is_meta or (kernels() is not None and tensor.device.type == wanted):
        return
    problem = available()
    if problem is not None:
        raise RuntimeError(f"CUDA C++ kernels are not available: {problem}")
    allowed = "are emulated here and take CPU tensors" if emulated() else "run on CUDA devices"
    raise ValueError(f"{name}: on {tensor.device}; the CUDA C++ kernels {allowed}")


def call_of(
    function: str, tensors: Mapping[str, Tensor | None], numbers: Mapping[str, Any]
) -> Callable[[], None]:
    """What `CudaLaunch.call` is.

    Args:
        function: one of fastdistil._C.cuda.
        tensors: its addresses, by name; None for those that are not given. All on one device.
        numbers: its other arguments, by name, the stream excepted.
    """
    return functools.partial(_queue, function, dict(tensors), dict(numbers))


def _queue(function: str, tensors: Mapping[str, Tensor | None], numbers: Mapping[str, Any]) -> None:
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for name, tensor in given.items():
        if tensor.is_meta:
            raise ValueError(f"{name}: on meta; a launch runs on tensors that hold numbers")
        check_runs(name, tensor)
    device = next(iter(given.values())).device
    addresses = {name: 0 if t is None else t.data_ptr() for name, t in tensors.items()}
    run = getattr(kernels(), function)
    if device.type != "cuda":
        run(**addresses, **numbers, stream=0)
        return
    with torch.cuda.device(device):
        run(**addresses, **numbers, stream=torch.cuda.current_stream(device).cuda_stream)


def kernels() -> Any:
    """fastdistil._C.cuda, or None."""
    return getattr(cpu._C, "cuda", None)
