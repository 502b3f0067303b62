"""A kernel launch as data: what runs, on how many programs, with which settings, at which cost.

Every operation in this folder builds a `Launch` before it runs one. So one description serves all:
the operation runs it, the engine keeps a list of them per batch size, the compile gate compiles it
for GPUs that are not there, and the launch plan adds up its bytes and operations.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# What a kernel may read and write: the precisions of the engine.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, eq=False)
class Launch:
    """One launch of one Triton kernel, ready to go. Building it touches no device.

    Attributes:
        name: the operation, for people and profiles.
        kernel: the `triton.jit` function.
        grid: programs along each axis; a zero makes `run` do nothing.
        arguments: run-time arguments by parameter name.
        constants: `tl.constexpr` parameters by name.
        num_warps, num_stages: Triton's launch options.
        flops: floating-point operations of the mathematics, a multiply-add counted as two.
        moved: bytes that have to move, each operand read once and each result written once.
        tensor_cores: whether the compiled code must hold tensor-core instructions.
    """

    name: str
    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    flops: int
    moved: int
    tensor_cores: bool = False

    def run(self) -> None:
        """Launch on the current device and stream."""
        if 0 in self.grid:
            return
        # Spelled out because its default differs between versions of Triton.
        self.kernel[self.grid](
            **self.arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            enable_fp_fusion=True,
        )

    def compile(self) -> Any:
        """Compile for Triton's active target without running; returns Triton's compiled kernel.

        None under the interpreter, which compiles nothing.
        """
        return self.kernel.warmup(
            **self.arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            enable_fp_fusion=True,
            grid=(1,),
        )


def submit(launch: Launch, device: torch.device) -> None:
    """Run a launch on the device that its tensors are on, whichever is current."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            launch.run()
    else:
        launch.run()


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels: on CPU tensors, slowly, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """Refuse a tensor that a kernel would misread.

    Args:
        name: the argument's, for the message.
        tensor: contiguous, of that shape (None stands for any size) and one of those dtypes.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, or gaps between the elements.
    """
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: got {got}; allowed: {allowed}")
    fits = len(tensor.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: got shape {list(tensor.shape)}; [{wanted}] is allowed")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: not contiguous; call .contiguous() on it")


def check_same_device(first: str, tensor: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Refuse operands that are not all where the first one is.

    Raises:
        ValueError: a tensor elsewhere, or one on a device that no kernel runs on.
    """
    runs = tensor.device.type == "cuda" or interpreted()
    if not runs and not tensor.is_meta:
        raise ValueError(
            f"{first}: on {tensor.device}; the kernels run on CUDA devices (and, with "
            "TRITON_INTERPRET=1 in the environment, in Triton's interpreter)"
        )
    for name, other in others.items():
        if other is not None and other.device != tensor.device:
            raise ValueError(f"{name}: on {other.device}, but {first} is on {tensor.device}")


def size_of(*tensors: Tensor | None) -> int:
    """Bytes that some tensors hold."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
