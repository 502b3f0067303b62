"""A kernel launch as data: what runs, on how many programs, with which settings, at which cost.

Every operation in this folder builds a `Launch` before it runs one. So one description serves all:
the operation runs it, the engine keeps a list of them per batch size, the compile gate compiles it
for GPUs that are not there, and the launch plan adds up its bytes and operations.

Between two launches of a stream a GPU idles for a microsecond: the second one's programs start when
the first one's have all ended. A dependent launch (from Hopper on; CUDA C++ programming guide,
"Programmatic Dependent Launch and Synchronization") starts them earlier, beside the last of the
first's, and the kernel itself waits before it touches memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .checks import check_together


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
        dependent: whether it may start before the launch before it in the stream has ended. Only
            for kernels that call `wait_for_the_launch_before`.
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
    dependent: bool = False

    def run(self) -> None:
        """Launch on the current device and stream."""
        if 0 not in self.grid:
            self.kernel[self.grid](**self._call())

    def compile(self) -> Any:
        """Compile for Triton's active target without running; returns Triton's compiled kernel.

        None under the interpreter, which compiles nothing.
        """
        return self.kernel.warmup(**self._call(), grid=(1,))

    def _call(self) -> dict[str, Any]:
        """All that the kernel is called with."""
        return {
            **self.arguments,
            **self.constants,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            # Spelled out because its default differs between versions of Triton.
            "enable_fp_fusion": True,
            # The interpreter does not know the word.
            **({"launch_pdl": True} if self.dependent else {}),
        }


@triton.jit
def wait_for_the_launch_before(WAITS: tl.constexpr):
    """The first thing that every program of a kernel does, if it may be launched as a dependent.

    Every program, also one that has nothing to do: only so does the end of a launch mean that all
    those before it have ended. Behind the wait their results are there. In a launch that is no
    dependent neither instruction does anything.
    """
    if WAITS:
        # The next launch may move in once all programs of this one have come this far, so it takes
        # no place from any of them. It need not wait for this one's own wait to be over: small
        # launches queue up several deep.
        gdc_launch_dependents()
        gdc_wait()


def compile_all(launches: Iterable[Launch], device: torch.device) -> None:
    """Compile what some launches need, side by side: most of it happens outside of Python.

    Args:
        launches: those whose kernels, names and constants are equal are taken for one another.
        device: the GPU that they will run on.
    """
    distinct = {
        (one.kernel, one.name, one.num_warps, one.num_stages, *one.constants.values()): one
        for one in launches
    }

    def compile_one(launch: Launch) -> None:
        with torch.cuda.device(device):  # which is a thread's own
            launch.compile()

    with ThreadPoolExecutor(max(min(len(distinct), os.cpu_count() or 1), 1)) as pool:
        list(pool.map(compile_one, distinct.values()))


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


def check_same_device(first: str, tensor: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Refuse operands that are not all where the first one is, and kernels run.

    Raises:
        ValueError: a tensor elsewhere, or one on a device that no kernel runs on.
    """
    check_runs(first, tensor)
    check_together(first, tensor, others)


def check_runs(name: str, tensor: Tensor) -> None:
    """Refuse a tensor on a device that no kernel runs on; "meta" is for building launches.

    Raises:
        ValueError: naming those where they run.
    """
    runs = tensor.device.type == "cuda" or interpreted()
    if not runs and not tensor.is_meta:
        raise ValueError(
            f"{name}: on {tensor.device}; the kernels run on CUDA devices (and, with "
            "TRITON_INTERPRET=1 in the environment, in Triton's interpreter)"
        )
