"""The kernels' tests run where kernels run: on a GPU, or in Triton's interpreter on the CPU.

TRITON_INTERPRET=1 python -m pytest tests/gpu_kernels     # `make pytest-kernels`; no GPU needed
python -m pytest tests/gpu_kernels                        # `make gpu-test`, on a GPU
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
# They find out for themselves where they run: on the CPU, too, where the kernels are emulated.
WITHOUT_TRITON = ("test_cuda_kernels.py",)
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")

if INTERPRETED:
    from benchmarks.gpu.interpreter import repair_bf16, sequential_dots

    repair_bf16()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if INTERPRETED or torch.cuda.is_available():
        return
    reason = "no GPU here; `make pytest-kernels` runs this in Triton's interpreter"
    for item in items:
        if HERE in item.path.parents and item.path.name not in WITHOUT_TRITON:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device() -> torch.device:
    """Where this run's kernels run: the CPU in the interpreter, else the GPU."""
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(params=["fp32", "fp16", "bf16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype the kernels take."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[request.param]


@pytest.fixture
def ordered_sums() -> Iterator[None]:
    """Products that are summed in one order whatever the tile, as hardware does it."""
    if INTERPRETED:
        with sequential_dots():
            yield
    else:
        yield
