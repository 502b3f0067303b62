"""Distillation with teacher and student on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_checkpoint import write_tiny_checkpoint

from fastdistil.bench.sample import sentences
from fastdistil.distill import distill

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; `make gpu-test`"),
]
TEXTS = sentences()[:150]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("cached", [False, True])
def test_learns_what_it_learns_on_a_cpu(tmp_path: Path, precision: str, cached: bool) -> None:
    # Heads of a width that the GPU engine has kernels for.
    sizes = {"hidden_size": 64, "num_heads": 2, "max_positions": 300}
    teacher = write_tiny_checkpoint(tmp_path / "teacher", **sizes)
    found = [
        distill(
            teacher,
            TEXTS,
            tmp_path / device,
            device=device,
            epochs=2,
            batch_tokens=1024,
            learning_rate=2e-3,
            precision=precision,
            teacher_precision=precision,
            teacher_cache=tmp_path / f"cache-{device}" if cached else None,
        )
        for device in ("cuda", "cpu")
    ]
    there, here = (summary.after for summary in found)
    assert there["loss"] < 0.95 * found[0].before["loss"]
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-3 if precision == "fp32" else 3e-2)
