"""Batches to a GPU, on it and back: the same as on the CPU, and hardly ever waited for.

In Triton's interpreter what is tested is packing with the kernels; the rest needs a GPU.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_fp32_budget, padded_batch, random_hf_model, tiny_config
from tiny_checkpoint import write_tiny_checkpoint
from torch import Tensor

import fastdistil
from fastdistil import Encoder
from fastdistil.model import DistilBertModel
from fastdistil.packing import (
    PackedBatch,
    _pack_padded_device,
    _padded_facts_device,
    _triton_kernels,
    host_facts,
    pack_ids,
    pack_padded,
    padded_facts,
    validate,
)

KERNELS = _triton_kernels()
FIELDS = ("input_ids", "positions", "segment_ids", "cu_seqlens")


@pytest.fixture
def gpu(device: torch.device) -> torch.device:
    if device.type != "cuda":
        pytest.skip("needs a GPU; `make gpu-test` runs it on one")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def no_waiting() -> Iterator[None]:
    """Whatever waits for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def assert_same_batch(got: PackedBatch, wanted: PackedBatch) -> None:
    assert got.max_seqlen == wanted.max_seqlen
    for name in FIELDS:
        ours, theirs = getattr(got, name), getattr(wanted, name)
        assert (ours is None) == (theirs is None), name
        if ours is not None:
            assert ours.dtype == torch.int32
            assert torch.equal(ours.cpu(), theirs), name
    facts, known = got.facts, host_facts(wanted)
    assert facts is not None
    assert np.array_equal(facts.cu_seqlens, known.cu_seqlens)
    for name in FIELDS[:3]:
        assert getattr(facts, name) == getattr(known, name), name


# ---- packing, also in the interpreter

MASKS = {
    "right": padded_batch([5, 9, 1, 16], side="right"),
    "left": padded_batch([5, 9, 1, 16], side="left"),
    "holes": padded_batch([5, 9, 1, 16], side="holes"),
    "full": padded_batch([7, 7, 7]),
    "empty row": padded_batch([5, 0, 3], side="holes"),
    "nothing kept": padded_batch([0, 0], width=4),
    "one": padded_batch([1]),
    "wide": padded_batch([130, 257, 3]),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("beside", ["nothing", "segments", "one row of positions"])
def test_kernels_pack_as_the_cpu_does(
    name: str, dtype: torch.dtype, beside: str, device: torch.device
) -> None:
    ids, mask = MASKS[name]
    segments = ids % 2 if beside == "segments" else None
    columns = torch.arange(ids.shape[1]).flip(0).unsqueeze(0)
    positions = columns if beside == "one row of positions" else None
    wanted, wanted_indices = pack_padded(ids, mask, segments, positions)
    there = [
        None if tensor is None else tensor.to(device)
        for tensor in (ids, mask.to(dtype), segments, positions)
    ]
    facts = _padded_facts_device(*there, KERNELS)
    assert facts.on_device is not None
    kept = None if facts.keeps_all else there[1]
    got, indices = _pack_padded_device(
        there[0], kept, there[2], there[3], facts.on_device, _triton_kernels()
    )
    assert_same_batch(got, wanted)
    assert torch.equal(indices.cpu(), wanted_indices)
    assert facts[:4] == padded_facts(ids, mask)[:4]


@pytest.mark.parametrize("value", [1.0, 2.0, 0.5, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (1, 2), (1, 3)])
def test_kernels_learn_the_same_about_a_mask(
    value: float, place: tuple[int, int], device: torch.device
) -> None:
    ids, mask = padded_batch([3, 2], width=4)
    odd = mask.float()
    odd[place] = value
    got = _padded_facts_device(ids.to(device), odd.to(device), None, None, KERNELS)
    assert got[:4] == padded_facts(ids, odd)[:4]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_kernels_take_ids_of_any_integer_dtype(dtype: torch.dtype, device: torch.device) -> None:
    ids, mask = padded_batch([4, 2])
    wanted, _ = pack_padded(ids, mask)
    there = ids.to(device, dtype), mask.to(device)
    facts = _padded_facts_device(*there, None, None, KERNELS)
    assert facts.on_device is not None
    got, _ = _pack_padded_device(*there, None, None, facts.on_device, KERNELS)
    assert_same_batch(got, wanted)


def test_ids_beyond_int32_are_refused(device: torch.device) -> None:
    ids = torch.ones(2, 3, dtype=torch.long, device=device)
    facts = _padded_facts_device(ids + 2**32, None, None, ids - 2**40, KERNELS)
    assert facts.on_device is not None
    batch, _ = _pack_padded_device(
        ids + 2**32, None, None, ids - 2**40, facts.on_device, _triton_kernels()
    )
    with pytest.raises(ValueError, match=r"input_ids: .* is outside the vocabulary"):
        validate(batch, tiny_config())


# ---- to the GPU and what waits for it


@pytest.mark.parametrize("segmented", [False, True])
def test_a_batch_goes_to_the_gpu_in_one_copy(segmented: bool, gpu: torch.device) -> None:
    ids = [[5, 6, 7], [], [8], list(range(1, 90))]
    batch = pack_ids(ids, [[0] * len(row) for row in ids] if segmented else None)
    batch.to(gpu)  # whatever a first time waits for
    with no_waiting():
        there = batch.to(gpu)
        facts = validate(there, tiny_config("bert", max_positions=90))
    assert facts is there.facts
    assert_same_batch(there, batch)
    tensors = [tensor for name in FIELDS if (tensor := getattr(there, name)) is not None]
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
    assert all(tensor.data_ptr() % 16 == 0 for tensor in tensors)


def test_many_batches_on_their_way_at_once_stay_apart(gpu: torch.device) -> None:
    """Pinned buffers are given out again only when what is in them has been copied."""
    torch.cuda._sleep(200_000_000)  # the copies queue up behind this
    batches = [pack_ids([[number] * 500, [number]]) for number in range(60)]
    there = [batch.to(gpu) for batch in batches]
    for got, wanted in zip(there, batches, strict=True):
        assert_same_batch(got, wanted)


def test_facts_are_found_out_on_the_gpu(gpu: torch.device) -> None:
    batch = pack_ids([[5, 6, 98], [], [8]], [[0, 1, 1], [], [0]])
    there = dataclasses.replace(batch.to(gpu), input_ids=batch.input_ids.to(gpu))
    assert there.facts is None
    facts = host_facts(there)
    assert facts.input_ids == (5, 98)
    assert facts.segment_ids == (0, 1)
    assert facts.cu_seqlens.tolist() == [0, 3, 3, 4]
    with pytest.raises(ValueError, match="98 at token 2 of sequence 0 is outside the vocabulary"):
        validate(there, tiny_config("bert", vocab_size=98))


@pytest.mark.parametrize("padded", [False, True])
def test_a_padded_forward_waits_once(padded: bool, gpu: torch.device) -> None:
    ids, mask = (t.to(gpu) for t in padded_batch([9, 3, 6] if padded else [9, 9]))
    model = DistilBertModel(tiny_config(num_heads=1, hidden_size=64), gpu).eval()
    model.requires_grad_(False)
    wanted = model(ids, mask).last_hidden_state
    facts = padded_facts(ids, mask)  # here it waits
    with no_waiting():
        batch, _ = pack_padded(ids, mask, facts=facts)
        hidden = model.forward_packed(batch)
    assert torch.equal(hidden, wanted[mask == 1])


@pytest.mark.parametrize("side", ["right", "left"])
def test_an_accelerated_model_waits_once(side: str, gpu: torch.device) -> None:
    pytest.importorskip("transformers")
    model = random_hf_model("distilbert", hidden_size=64, num_heads=2).to(gpu)
    ids, mask = (t.to(gpu) for t in padded_batch([9, 3, 6], side=side))
    with torch.inference_mode():
        wanted = model(ids, attention_mask=mask).last_hidden_state
        fastdistil.accelerate(model, precision="fp32")
        model(ids, attention_mask=mask)
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            got = model(ids, attention_mask=mask).last_hidden_state
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing" in str(warning.message) for warning in caught) == 1
    assert_fp32_budget(got[mask == 1], wanted[mask == 1])
    assert not got[mask == 0].any()
    assert fastdistil.explain(model).fast_calls == 2


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        ([[1, 1, 2], [1, 1, 0]], "values other than 0 and 1"),
        ([[1, 1, 1], [0, 0, 0]], "a row of attention_mask is all zeros"),
        ([[0, 1, 1], [1, 1, 1]], "the first position is padding"),
    ],
)
def test_masks_that_are_more_than_padding_are_seen_on_the_gpu(
    mask: list[list[int]], why: str, gpu: torch.device
) -> None:
    pytest.importorskip("transformers")
    sizes = {"hidden_size": 64, "num_heads": 2}
    model = random_hf_model("distilbert", "DistilBertForSequenceClassification", **sizes).to(gpu)
    fastdistil.accelerate(model)
    with torch.inference_mode():
        model(torch.full((2, 3), 7, device=gpu), attention_mask=torch.tensor(mask, device=gpu))
    assert why in str(fastdistil.explain(model).last_fallback)


# ---- the encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes = {"hidden_size": 64, "num_heads": 2, "max_positions": 64}
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), **sizes)


TEXTS = [" ".join("abcdefgh"[: 1 + row % 8]) for row in range(3000)]


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_batches_in_flight_do_not_mix(folder: Path, pooling: str, gpu: torch.device) -> None:
    enc = Encoder(folder, device=gpu)
    wanted = enc.encode(TEXTS, pooling=pooling, batch_tokens=10**6)  # one batch
    got = enc.encode(TEXTS, pooling=pooling, batch_tokens=150)
    for ours, theirs in zip(got, wanted, strict=True):
        assert np.array_equal(ours, theirs)
    plain = Encoder(folder, precision="fp32").encode(TEXTS[:50], pooling="mean")
    close = Encoder(folder, device=gpu, precision="fp32").encode(TEXTS[:50], pooling="mean")
    np.testing.assert_allclose(close, plain, atol=2e-5 * np.abs(plain).max())


def test_the_host_runs_ahead_of_the_gpu(folder: Path, gpu: torch.device) -> None:
    """Between beginning with a batch and taking its result, nothing waits."""
    enc = Encoder(folder, device=gpu)
    enc.encode(TEXTS[:200], batch_tokens=100)
    options = enc.options(None, None, 100)
    tokenised = enc.require_tokenizer()(TEXTS[:200])
    results = enc.encode_chunks(iter([tokenised]), options)
    with no_waiting():
        next(results)  # three begun, one taken: waiting for an event is no waiting for the GPU
    results.close()
    assert np.isfinite(enc.encode(TEXTS[:50])).all()


def test_memory_that_runs_out_on_the_gpu(
    folder: Path, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    enc = Encoder(folder, device=gpu)
    wanted = enc.encode(TEXTS)
    run = enc.model.encode_packed

    def hungry(batch: PackedBatch, *options: object) -> Tensor:
        if batch.num_tokens > 300:  # more than any GPU has
            torch.empty(1 << 50, dtype=torch.uint8, device=gpu)
        return run(batch, *options)

    monkeypatch.setattr(enc.model, "encode_packed", hungry)
    assert np.array_equal(enc.encode(TEXTS), wanted)
    assert enc._limit.tokens <= 300


def test_several_lanes_on_one_gpu(folder: Path, gpu: torch.device) -> None:
    wanted = Encoder(folder, device=gpu).encode(TEXTS)
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    kinds = {torch.cuda.get_device_name(device) for device in devices}
    shared = devices if len(devices) > 1 and len(kinds) == 1 else [str(gpu), str(gpu)]
    enc = Encoder(folder, device=shared)
    for batch_tokens in (100, 1000, None):
        assert np.array_equal(enc.encode(TEXTS, batch_tokens=batch_tokens), wanted)


def test_the_default_budget_is_from_memory(folder: Path, gpu: torch.device) -> None:
    tokens = Encoder(folder, device=gpu).options(None, None, None).batch_tokens
    assert 4096 <= tokens <= 65536
