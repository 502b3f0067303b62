"""What the host does for one forward on a GPU beside launching its kernels, under pytest-benchmark.

    TRITON_INTERPRET=1 python -m pytest benchmarks/test_host_overhead.py -o addopts= \
        --benchmark-only

One short sentence takes an H100 some tens of microseconds, so the host must not take longer. With
the list of kernels empty, what is left is finding the program, checking and cutting the batch, and
copies in and out; on tensors of the CPU, so no GPU is needed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdistil
from benchmarks.workloads import random_distilbert
from fastdistil.backends.cuda import CudaProgram
from fastdistil.kernels.launch import interpreted
from fastdistil.packing import PackedBatch, pack_ids

pytestmark = pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
# The names of the weights decide what there is to look after; their sizes do not.
SMALL = {"dim": 64, "n_heads": 2, "hidden_dim": 128, "vocab_size": 500}
CALLS = {"warmup_rounds": 5, "rounds": 50, "iterations": 100}


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    return pack_ids([list(range(100, 116))])


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> fastdistil.DistilBertModel:
    original = random_distilbert(**SMALL)
    config = fastdistil.EncoderConfig.from_hf(original.config)
    model = fastdistil.DistilBertModel(config, precision="fp32", backend="cuda")
    model.load_state_dict(original.state_dict())
    monkeypatch.setattr(CudaProgram, "_steps_of", lambda *_: [])
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def test_host_overhead_of_states(
    benchmark: Any, model: fastdistil.DistilBertModel, batch: PackedBatch
) -> None:
    benchmark.pedantic(model.forward_packed, (batch,), **CALLS)


@torch.inference_mode()
def test_host_overhead_of_finding_the_program(
    benchmark: Any, model: fastdistil.DistilBertModel
) -> None:
    benchmark.pedantic(model.program, **CALLS)
