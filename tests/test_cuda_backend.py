"""The GPU engine's host side: what it refuses and why, how sizes are rounded, how batches are cut.

What it computes is tested in `gpu_kernels/`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_config
from hypothesis import given
from hypothesis import strategies as st

import fastdistil
from fastdistil.backends import cuda, select
from fastdistil.backends.cuda import CudaBackend, cut
from fastdistil.backends.cuda_plan import bucket_of, length_class_of
from fastdistil.config import EncoderConfig

GPU = torch.device("cuda", 0)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A GPU of any compute capability, as far as the choice of a backend can see."""

    def pretend(capability: tuple[int, int], name: str = "NVIDIA Test") -> None:
        monkeypatch.setattr(cuda, "_triton_problem", lambda: None)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)

    return pretend


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)])
def test_a_gpu_runs_the_kernels(a_gpu: Any, capability: tuple[int, int]) -> None:
    a_gpu(capability)
    chosen = select(EncoderConfig(), GPU)
    assert isinstance(chosen.backend, CudaBackend)
    assert chosen.precision == "bf16"
    assert chosen.reason == "Triton bf16 kernels on NVIDIA Test"


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float32, "bf16")],
)
def test_16_bit_models_stay_in_their_type(a_gpu: Any, dtype: torch.dtype, precision: str) -> None:
    a_gpu((9, 0))
    assert select(EncoderConfig(), GPU, dtype=dtype).precision == precision


def test_an_old_gpu_is_told_what_is_needed(a_gpu: Any) -> None:
    a_gpu((7, 5), "Tesla T4")
    why = "it needs compute capability 8.0 or newer; Tesla T4 has 7.5"
    chosen = select(EncoderConfig(), GPU)
    assert chosen.backend.name == "reference"
    assert why in chosen.reason
    with pytest.raises(ValueError, match=why):
        select(EncoderConfig(), GPU, backend="cuda")


def test_heads_of_other_sizes_are_refused(a_gpu: Any) -> None:
    a_gpu((9, 0))
    chosen = select(tiny_config(), GPU)
    assert chosen.backend.name == "reference"
    assert "its attention takes heads of 32, 64, 128 numbers, not 16" in chosen.reason


def test_a_cpu_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(cuda, "_triton_problem", lambda: None)
    with pytest.raises(ValueError, match="it runs on cuda devices, not on cpu"):
        select(EncoderConfig(), torch.device("cpu"), backend="cuda")


@pytest.mark.parametrize(("found", "accepted"), [("3.5.1", False), ("3.6.0", True), ("4.0", True)])
def test_old_versions_of_triton_are_refused(
    monkeypatch: pytest.MonkeyPatch, found: str, accepted: bool
) -> None:
    monkeypatch.setattr(cuda, "version", lambda _: found)
    problem = cuda._triton_problem()
    assert (problem is None) == accepted
    assert accepted or problem == f"it needs triton 3.6 or newer; this is {found}"


# ---- sizes


@given(st.integers(1, 1 << 20))
def test_buckets_hold_and_waste_little(tokens: int) -> None:
    bucket = bucket_of(tokens)
    assert tokens <= bucket <= max(tokens + 15, tokens * 17 / 16)
    assert bucket % 16 == 0
    assert bucket_of(bucket) == bucket
    assert bucket_of(tokens + 1) >= bucket


def test_there_are_few_buckets() -> None:
    assert len({bucket_of(tokens) for tokens in range(1, 8193)}) <= 100


@pytest.mark.parametrize(
    ("length", "rounded"), [(0, 16), (1, 16), (16, 16), (17, 32), (128, 128), (511, 512)]
)
def test_lengths_are_rounded_to_powers_of_two(length: int, rounded: int) -> None:
    assert length_class_of(length) == rounded


# ---- cutting a batch


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 100))
def test_cut_takes_every_sequence_once(lengths: list[int], most: int) -> None:
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    pieces = cut(cu_seqlens, most)
    assert [i for p in pieces for i in range(p.sequences.start, p.sequences.stop)] == list(
        range(len(lengths))
    )
    for piece in pieces:
        first, last = piece.sequences.start, piece.sequences.stop
        assert piece.tokens == slice(cu_seqlens[first], cu_seqlens[last])
        assert piece.max_seqlen == max(lengths[first:last])
        assert last - first <= most
        assert piece.count <= most or last - first == 1


def test_cut_makes_pieces_of_about_equal_size() -> None:
    cu_seqlens = np.arange(0, 1001, 10).astype(np.int32)  # 100 sequences of 10
    assert [piece.count for piece in cut(cu_seqlens, 400)] == [340, 340, 320]


# ---- options reach the engine


def test_options_are_kept_through_copies_and_pickles() -> None:
    import pickle

    from fastdistil.program_cache import ProgramCache

    cache = ProgramCache(EncoderConfig(), "bf16", "auto", deterministic=False, cuda_graphs=False)
    again = pickle.loads(pickle.dumps(cache))
    assert (again.options.deterministic, again.options.cuda_graphs) == (False, False)


def test_warmup_of_a_model_that_is_not_accelerated_says_so() -> None:
    with pytest.raises(ValueError, match=r"is not accelerated; call fastdistil\.accelerate"):
        fastdistil.warmup(torch.nn.Linear(2, 2))
