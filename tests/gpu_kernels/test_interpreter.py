"""The canary: bf16 in Triton's interpreter is bf16, and would not be without the repair.

Every other test of a bf16 kernel that runs in the interpreter leans on this one. On a GPU the same
kernels run on hardware, which then vouches for what is expected here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
CANARIES = ("dot", "arithmetic", "cast", "compare", "absolute")


@triton.jit
def dot_kernel(
    a_ptr,  # bf16 [16, 32]
    b_ptr,  # bf16 [32, 16]
    out_ptr,  # float32 [16, 16]
):
    rows, middle = tl.arange(0, 16), tl.arange(0, 32)
    a = tl.load(a_ptr + rows[:, None] * 32 + middle[None, :])
    b = tl.load(b_ptr + middle[:, None] * 16 + rows[None, :])
    tl.store(out_ptr + rows[:, None] * 16 + rows[None, :], tl.dot(a, b))


@triton.jit
def arithmetic_kernel(
    x_ptr,  # bf16 [256]
    y_ptr,  # bf16 [256]
    out_ptr,  # bf16 [3, 256]
):
    at = tl.arange(0, 256)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    tl.store(out_ptr + at, x + y)
    tl.store(out_ptr + 256 + at, x - y)
    tl.store(out_ptr + 512 + at, x * y)


@triton.jit
def cast_kernel(
    x_ptr,  # float32 [1024]
    narrow_ptr,  # bf16 [1024]
    wide_ptr,  # float32 [1024]
):
    at = tl.arange(0, 1024)
    narrow = tl.load(x_ptr + at).to(tl.bfloat16)
    tl.store(narrow_ptr + at, narrow)
    tl.store(wide_ptr + at, narrow.to(tl.float32))


@triton.jit
def compare_kernel(
    x_ptr,  # bf16 [256]
    y_ptr,  # bf16 [256]
    out_ptr,  # int32 [3, 256]
):
    at = tl.arange(0, 256)
    x, y = tl.load(x_ptr + at), tl.load(y_ptr + at)
    tl.store(out_ptr + at, (x < y).to(tl.int32))
    tl.store(out_ptr + 256 + at, (x == y).to(tl.int32))
    tl.store(out_ptr + 512 + at, (x != 0.0).to(tl.int32))


@triton.jit
def absolute_kernel(
    x_ptr,  # bf16 [256]
    out_ptr,  # bf16 [2, 256]
):
    at = tl.arange(0, 256)
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, tl.abs(x))
    tl.store(out_ptr + 256 + at, -x)


def numbers(shape: tuple[int, ...], device: torch.device, seed: int) -> Tensor:
    """float32, of many magnitudes; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(shape, generator=generator)).to(device)


def pair(device: torch.device) -> tuple[Tensor, Tensor]:
    """Two bf16 [256] with equal numbers, zeros of both signs, and all signs among them."""
    x, y = numbers((256,), device, 0).bfloat16(), numbers((256,), device, 1).bfloat16()
    y[:32] = x[:32]
    x[32], y[32], x[33], y[33] = 0.0, -0.0, -0.0, 1.0
    return x, y


def check_dot(device: torch.device) -> None:
    a = numbers((16, 32), device, 2).bfloat16()
    b = numbers((32, 16), device, 3).bfloat16()
    out = torch.full((16, 16), float("nan"), device=device)
    dot_kernel[(1,)](a, b, out)
    # Products of bf16 are exact in float32; only the sum's order is free.
    allowed = 32 * torch.finfo(torch.float32).eps * (a.double().abs() @ b.double().abs())
    assert bool(((out.double() - a.double() @ b.double()).abs() <= allowed).all())


def check_arithmetic(device: torch.device) -> None:
    x, y = pair(device)
    out = torch.full((3, 256), float("nan"), dtype=torch.bfloat16, device=device)
    arithmetic_kernel[(1,)](x, y, out)
    assert torch.equal(out, torch.stack([x + y, x - y, x * y]))


def check_cast(device: torch.device) -> None:
    x = numbers((1024,), device, 4)
    # Halfway between two bf16: to the even one, down and up; then the ends, and beyond.
    x[:3] = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, -1 - 3 * 2**-8], device=device)
    ends = [float("inf"), -float("inf"), 3.4e38, -3.4e38, 0.0, -0.0, 1e-40, float("nan")]
    x[3:11] = torch.tensor(ends, device=device)
    narrow = torch.zeros(1024, dtype=torch.bfloat16, device=device)
    wide = torch.zeros(1024, device=device)
    cast_kernel[(1,)](x, narrow, wide)
    # By bits, but for NaN, of which there are many.
    for got, want in ((narrow, x.bfloat16()), (wide, x.bfloat16().float())):
        real = ~want.isnan()
        assert torch.equal(got.isnan(), ~real)
        bits = torch.int16 if got.dtype == torch.bfloat16 else torch.int32
        assert torch.equal(got.view(bits)[real], want.view(bits)[real])


def check_compare(device: torch.device) -> None:
    x, y = pair(device)
    out = torch.full((3, 256), -1, dtype=torch.int32, device=device)
    compare_kernel[(1,)](x, y, out)
    assert torch.equal(out, torch.stack([x < y, x == y, x != 0]).int())


def check_absolute(device: torch.device) -> None:
    x, _ = pair(device)
    out = torch.full((2, 256), float("nan"), dtype=torch.bfloat16, device=device)
    absolute_kernel[(1,)](x, out)
    assert torch.equal(out, torch.stack([x.abs(), -x]))


@pytest.mark.parametrize("canary", CANARIES)
def test_bf16_is_bf16(canary: str, device: torch.device) -> None:
    globals()[f"check_{canary}"](device)


@pytest.mark.skipif(not INTERPRETED, reason="there is nothing to repair on a GPU")
def test_a_second_repair_changes_nothing(device: torch.device) -> None:
    from benchmarks.gpu.interpreter import repair_bf16

    repair_bf16()
    for canary in CANARIES:
        globals()[f"check_{canary}"](device)


# Prints the canaries that die in an interpreter that nobody has repaired.
_WITHOUT_REPAIR = """
import torch, test_interpreter as canaries
for name in canaries.CANARIES:
    try:
        getattr(canaries, f"check_{name}")(torch.device("cpu"))
    except Exception:
        print(name)
"""


@pytest.mark.skipif(not INTERPRETED, reason="there is nothing to repair on a GPU")
def test_the_canaries_die_without_the_repair() -> None:
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_REPAIR],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    died = done.stdout.split()
    assert {"dot", "arithmetic", "cast", "compare"} <= set(died), done.stdout + done.stderr
