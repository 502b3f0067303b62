"""Each operation alone, every implementation side by side: time, rates, error against float64.

    python -m pytest benchmarks/kernels -o addopts= --benchmark-only
    python -m pytest benchmarks/kernels -o addopts= --benchmark-only --quick -k "MiniLM"

On the CPU: eager PyTorch, torch.compile (one size of DistilBERT only, since it compiles for
seconds for each operation and size), and the CPU engine's C++ in every instruction set that the
machine has. Where there is a CUDA device, the same on it: eager PyTorch, torch.compile, Triton and
CUDA C++. Shapes are DistilBERT-base's, MiniLM's and, where it has more, BERT-base's.

A row's info has what the operation costs and what the device can do at most, both measured here
but for the counting: multiply-adds of all threads at that precision, and bytes of a copy. Bytes
are those that have to move; whoever moves more gets no credit for it.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import Record
from benchmarks.kernels.cases import Case, cases
from benchmarks.kernels.comparison import Device
from benchmarks.kernels.cpu import Cpu
from benchmarks.kernels.operations import HOST_PACKING, PACKING


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    packing = PACKING if torch.cuda.is_available() else HOST_PACKING
    found = list(cases(packing, quick=metafunc.config.getoption("quick")))
    metafunc.parametrize("case", found, ids=[case.name for case in found])


@pytest.fixture(scope="module")
def device(quick: bool, left_out: list[str]) -> Device:
    if torch.cuda.is_available():
        # What these import needs Triton.
        from benchmarks.gpu.session import Session
        from benchmarks.kernels.gpu import Gpu

        session = Session("kernels", dry=False, again=True, folder=None, budget=float("inf"))
        return Gpu(session, left_out, quick=quick)
    return Cpu(left_out, quick=quick)


def test_operations(case: Case, device: Device, record: Record) -> None:
    record(device.rows(case))
