"""What the host does for one forward on a GPU beside launching its kernels, under pytest-benchmark.

    TRITON_INTERPRET=1 python -m pytest benchmarks/test_host_overhead.py -o addopts= \
        --benchmark-only

One short sentence takes an H100 some tens of microseconds, so the host must not take longer. With
the list of kernels empty, what is left is finding the program, checking and cutting the batch, and
copies in and out; on tensors of the CPU, so no GPU is needed.

For the low-latency kernel, which needs an extension with emulated kernels here, what is left is
everything in Python around the one call into C++, which does nothing: `wrapper` is that for a batch
that is prepared; it shall stay below 15 us. Batches are taken for ones on a GPU, whose facts are
known; what torch.cuda is asked for on a GPU (device, stream) is not in it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastdistil
from benchmarks.workloads import random_distilbert
from fastdistil import packed_batch
from fastdistil.backends.cuda import CudaProgram
from fastdistil.backends.cuda_latency import refusal
from fastdistil.kernels.launch import interpreted
from fastdistil.packing import PackedBatch, host_facts, pack_ids

pytestmark = pytest.mark.skipif(not interpreted(), reason="needs TRITON_INTERPRET=1")
# The names of the weights decide what there is to look after; their sizes do not.
SMALL = {"dim": 64, "n_heads": 2, "hidden_dim": 128, "vocab_size": 500}
# The smallest sizes that the low-latency kernel takes.
LOW_LATENCY = {"dim": 128, "n_heads": 2, "hidden_dim": 512, "vocab_size": 500}
IDS = [list(range(100, 116))]
CALLS = {"warmup_rounds": 5, "rounds": 50, "iterations": 100}


@pytest.fixture(scope="module")
def batch() -> PackedBatch:
    return pack_ids(IDS)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> fastdistil.DistilBertModel:
    original = random_distilbert(**SMALL)
    config = fastdistil.EncoderConfig.from_hf(original.config)
    model = fastdistil.DistilBertModel(config, precision="fp32", backend="cuda")
    model.load_state_dict(original.state_dict())
    monkeypatch.setattr(CudaProgram, "_cached", lambda *_: [])
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


class Nothing:
    """In place of the C++ object that launches the kernel."""

    def run(self, *_: Any) -> None:
        """Launch nothing."""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, batch: PackedBatch) -> fastdistil.DistilBertModel:
    """A model whose forwards of few tokens go to the low-latency kernel, which does nothing."""
    original = random_distilbert(**LOW_LATENCY)
    config = fastdistil.EncoderConfig.from_hf(original.config)
    if why := refusal(config, torch.device("cpu"), "bf16"):
        pytest.skip(why)
    options: dict[str, Any] = {"precision": "bf16", "backend": "cuda", "deterministic": False}
    model = fastdistil.DistilBertModel(config, **options)
    model.load_state_dict(original.state_dict())
    program = model.eval().requires_grad_(False).program()
    assert isinstance(program, CudaProgram)
    monkeypatch.setattr(program._latency, "_encoder", Nothing())
    facts = host_facts(batch)
    monkeypatch.setattr(packed_batch, "host_facts", lambda _: facts)
    return model


@torch.inference_mode()
def test_host_overhead_of_the_low_latency_wrapper(
    benchmark: Any, quick: fastdistil.DistilBertModel, batch: PackedBatch
) -> None:
    program, out = quick.program(), torch.empty(1, LOW_LATENCY["dim"])
    assert isinstance(program, CudaProgram)
    results = {"pooled": out, "pooling": "mean", "normalize": False}
    assert program._run_at_once(batch, **results)
    benchmark.pedantic(program._run_at_once, (batch,), results, **CALLS)


@torch.inference_mode()
def test_host_overhead_of_low_latency_vectors(
    benchmark: Any, quick: fastdistil.DistilBertModel, batch: PackedBatch
) -> None:
    benchmark.pedantic(quick.encode_packed, (batch,), **CALLS)


@torch.inference_mode()
def test_host_overhead_of_low_latency_from_ids_to_numpy(
    benchmark: Any, quick: fastdistil.DistilBertModel
) -> None:
    benchmark.pedantic(lambda: quick.encode_packed(pack_ids(IDS).to("cpu")).numpy(), **CALLS)
