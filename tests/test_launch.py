"""A launch as data: what the kernel is called with, and compiling many of them. Needs no GPU."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import torch

from fastdistil.kernels.launch import Launch, compile_all


class Kernel:
    """Stands in for a Triton function, and notes its calls and their threads."""

    def __init__(self, broken: bool = False) -> None:
        self.calls: list[dict[str, Any]] = []
        self.threads: set[int] = set()
        self._broken = broken

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **call: self.calls.append({"grid": grid, **call})

    def warmup(self, **call: Any) -> None:
        self.threads.add(threading.get_ident())
        self.calls.append(call)
        if self._broken:
            raise RuntimeError("ptxas is out of registers")


def launch(kernel: Kernel, name: str = "it", **changes: Any) -> Launch:
    fields: dict[str, Any] = {
        "name": name,
        "kernel": kernel,
        "grid": (3,),
        "arguments": {"x_ptr": 1},
        "constants": {"BLOCK": 64},
        "num_warps": 4,
        "num_stages": 2,
        "flops": 0,
        "moved": 0,
    }
    return Launch(**(fields | changes))


def test_a_launch_says_everything() -> None:
    kernel = Kernel()
    launch(kernel).run()
    assert kernel.calls == [
        {
            "grid": (3,),
            "x_ptr": 1,
            "BLOCK": 64,
            "num_warps": 4,
            "num_stages": 2,
            "enable_fp_fusion": True,
        }
    ]


def test_a_dependent_launch_is_compiled_and_launched_as_one() -> None:
    kernel = Kernel()
    dependent = launch(kernel, dependent=True)
    dependent.compile()
    dependent.run()
    assert [call["launch_pdl"] for call in kernel.calls] == [True, True]


def test_no_programs_no_launch() -> None:
    kernel = Kernel()
    launch(kernel, grid=(0, 5)).run()
    assert kernel.calls == []


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _device: contextlib.nullcontext())


@pytest.mark.usefixtures("no_device")
def test_equal_launches_are_compiled_once() -> None:
    kernel, other = Kernel(), Kernel()
    many = [launch(kernel, arguments={"x_ptr": n}) for n in range(6)]
    many += [launch(kernel, constants={"BLOCK": 128}), launch(kernel, name="with a residual")]
    compile_all([*many, launch(other), launch(other)], torch.device("cuda"))
    assert len(kernel.calls) == 3
    assert len(other.calls) == 1
    assert threading.get_ident() not in kernel.threads


@pytest.mark.usefixtures("no_device")
def test_what_does_not_compile_is_raised() -> None:
    with pytest.raises(RuntimeError, match="out of registers"):
        compile_all([launch(Kernel()), launch(Kernel(broken=True))], torch.device("cuda"))
    compile_all([], torch.device("cuda"))
