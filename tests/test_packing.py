"""Packing and its inverse, planning, and what is refused before any kernel runs."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from helpers import padded_batch, tiny_config
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from fastdistil.packed_batch import _ALIGNMENT, _copied_at_once, _facts_device
from fastdistil.packing import (
    HostFacts,
    PackedBatch,
    _pack_padded_device,
    _padded_facts_device,
    host_facts,
    pack_flat,
    pack_ids,
    pack_padded,
    padded_facts,
    plan_batches,
    unpack,
    validate,
)

# Masks of any pattern: padding on either side, holes, rows of nothing, no rows, no columns.
masks = hnp.arrays(np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=7))
# The same of something: what is empty never gets as far as the code for other devices.
filled_masks = hnp.arrays(
    np.bool_, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=7)
)
ragged = st.lists(st.lists(st.integers(0, 98), max_size=9), max_size=8)


def pack_on_device(
    ids: Tensor,
    mask: Tensor | None = None,
    segments: Tensor | None = None,
    positions: Tensor | None = None,
) -> tuple[PackedBatch, Tensor]:
    """What `pack_padded` does on other devices, in plain PyTorch, here on the CPU."""
    facts = _padded_facts_device(ids, mask, segments, positions, None)
    assert facts.on_device is not None
    kept = None if facts.keeps_all else mask
    return _pack_padded_device(ids, kept, segments, positions, facts.on_device, None)


def ids_like(mask: np.ndarray) -> Tensor:
    return torch.arange(mask.size).reshape(mask.shape) + 1


@given(masks)
def test_unpack_undoes_pack_and_leaves_zeros_at_the_pads(mask: np.ndarray) -> None:
    ids, kept = ids_like(mask), torch.from_numpy(mask)
    batch, indices = pack_padded(ids, kept)
    hidden = torch.stack([batch.input_ids, -batch.input_ids], dim=1).float()
    back = unpack(hidden, indices, *mask.shape)
    assert torch.equal(back[..., 0], torch.where(kept, ids, 0).float())
    assert torch.equal(back[..., 1], -back[..., 0])


@given(masks)
def test_packed_layout(mask: np.ndarray) -> None:
    ids = ids_like(mask)
    batch, indices = pack_padded(ids, torch.from_numpy(mask))
    lengths = mask.sum(axis=1)
    assert batch.num_sequences == len(mask)
    assert batch.num_tokens == mask.sum() == len(indices)
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum(lengths)]
    assert batch.max_seqlen == lengths.max(initial=0)
    for row, (begin, end) in enumerate(itertools.pairwise(batch.cu_seqlens)):
        columns = np.flatnonzero(mask[row])
        assert batch.positions[begin:end].tolist() == columns.tolist()
        assert batch.input_ids[begin:end].tolist() == ids[row, columns].tolist()
    for tensor in (batch.input_ids, batch.positions, batch.cu_seqlens):
        assert tensor.dtype == torch.int32


@given(
    masks, st.sampled_from([torch.int64, torch.int32, torch.uint8, torch.float32, torch.bfloat16])
)
def test_every_kind_of_mask_means_the_same(mask: np.ndarray, dtype: torch.dtype) -> None:
    ids = ids_like(mask)
    wanted, _ = pack_padded(ids, torch.from_numpy(mask))
    got, _ = pack_padded(ids, torch.from_numpy(mask).to(dtype) * 3)
    assert_same_batch(got, wanted)


@given(
    filled_masks,
    st.booleans(),
    st.sampled_from(["columns", "one row", "all rows"]),
    st.sampled_from([torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]),
)
def test_tensors_of_other_devices_are_packed_alike(
    mask: np.ndarray, with_segments: bool, which_positions: str, dtype: torch.dtype
) -> None:
    ids, kept = ids_like(mask).to(dtype), torch.from_numpy(mask)
    segments = ids % 2 if with_segments else None
    positions = torch.arange(mask.shape[1]).flip(0).unsqueeze(0)
    given_positions = {
        "columns": None,
        "one row": positions,
        "all rows": positions.expand(mask.shape),
    }[which_positions]
    wanted, wanted_indices = pack_padded(ids, kept, segments, given_positions)
    got, indices = pack_on_device(ids, kept, segments, given_positions)
    assert_same_batch(got, wanted)
    assert torch.equal(indices, wanted_indices)
    assert_facts(got.facts, wanted)


@given(filled_masks, st.sampled_from([1.0, 2.0, 0.5, float("nan")]))
def test_what_is_learnt_about_a_mask_is_the_same_on_every_device(
    mask: np.ndarray, value: float
) -> None:
    ids = ids_like(mask)
    for dtype in (torch.float32, torch.bfloat16):
        odd = torch.where(torch.from_numpy(mask), 1.0, 0.0).to(dtype)
        odd[0, 0] = value
        kept = odd.numpy(force=True) if dtype == torch.float32 else odd.float().numpy()
        for facts in (padded_facts(ids, odd), _padded_facts_device(ids, odd, None, None, None)):
            assert facts.is_binary == (value == 1)
            assert facts.keeps_first == bool((kept[:, 0] != 0).all())
            assert facts.keeps_all == bool((kept != 0).all())
            assert facts.has_empty_row == bool((kept == 0).all(axis=1).any())


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_a_padded_batch_of_nothing_is_never_looked_at(shape: tuple[int, int]) -> None:
    facts = padded_facts(torch.empty(shape, dtype=torch.long, device="meta"))
    assert facts.keeps_all
    assert facts.on_device is not None
    assert facts.on_device.lengths.tolist() == [shape[1]] * shape[0]
    nothing = torch.empty(shape, dtype=torch.long)
    assert_same_batch(pack_on_device(nothing)[0], pack_padded(nothing)[0])


@given(ragged)
def test_lists_of_ids_give_the_batch_that_their_padded_form_gives(ids: list[list[int]]) -> None:
    width = max(map(len, ids), default=0)
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids]).reshape(len(ids), width)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    wanted, _ = pack_padded(padded.long(), mask.reshape(padded.shape))
    assert_same_batch(pack_ids(ids), wanted)
    assert_same_batch(pack_ids([np.array(row, np.int64) for row in ids]), wanted)
    assert_same_batch(pack_ids([torch.tensor(row, dtype=torch.int32) for row in ids]), wanted)
    validate(wanted, tiny_config())


def assert_same_batch(got: PackedBatch, wanted: PackedBatch) -> None:
    assert got.max_seqlen == wanted.max_seqlen
    assert (got.segment_ids is None) == (wanted.segment_ids is None)
    for field in ("input_ids", "positions", "segment_ids", "cu_seqlens"):
        ours, theirs = getattr(got, field), getattr(wanted, field)
        if ours is not None:
            assert ours.dtype == torch.int32
            assert torch.equal(ours, theirs), field


def assert_facts(facts: HostFacts | None, batch: PackedBatch) -> None:
    """They are those of `batch`, which is on the CPU."""
    assert facts is not None
    assert facts.cu_seqlens.dtype == np.int32
    assert facts.cu_seqlens.tolist() == batch.cu_seqlens.tolist()
    for name in ("input_ids", "positions", "segment_ids"):
        tensor, extent = getattr(batch, name), getattr(facts, name)
        if tensor is None:
            assert extent is None, name
        else:
            ends = (tensor.min().item(), tensor.max().item()) if len(tensor) else (0, -1)
            assert extent == ends, name


def test_any_memory_layout_is_read_in_order() -> None:
    ids, mask = padded_batch([2, 3, 1])
    wanted, _ = pack_padded(ids, mask)
    got, _ = pack_padded(ids.T.contiguous().T, mask.T.contiguous().T, None, None)
    assert_same_batch(got, wanted)
    wide = torch.stack([ids, ids * 0], dim=2).flatten(1)
    assert_same_batch(pack_padded(wide[:, ::2], mask)[0], wanted)


def test_the_ids_given_are_copied() -> None:
    ids = torch.ones(1, 3, dtype=torch.int32)
    batch, _ = pack_padded(ids)
    ids.zero_()
    assert batch.input_ids.tolist() == [1, 1, 1]


def test_segments_follow_the_ids() -> None:
    batch = pack_ids([[5, 6], [], [7]], segment_ids=[[0, 1], [], [1]])
    assert batch.segment_ids is not None
    assert batch.segment_ids.tolist() == [0, 1, 1]
    ids, mask = torch.tensor([[5, 6, 0]]), torch.tensor([[1, 1, 0]])
    batch, _ = pack_padded(ids, mask, torch.tensor([[0, 1, 1]]))
    assert batch.segment_ids is not None
    assert batch.segment_ids.tolist() == [0, 1]


def test_gradients_go_through_unpack() -> None:
    _, indices = pack_padded(*padded_batch([2, 3]))
    hidden = torch.randn(5, 4, requires_grad=True)
    unpack(hidden, indices, 2, 3).square().sum().backward()
    assert hidden.grad is not None
    assert torch.equal(hidden.grad, 2 * hidden.detach())


def test_moving_a_batch() -> None:
    batch = pack_ids([[5, 6], [7]], segment_ids=[[0, 1], [1]]).to("meta")
    assert batch.device.type == "meta"
    assert {t.device.type for t in (batch.positions, batch.cu_seqlens)} == {"meta"}
    assert batch.segment_ids is not None
    assert batch.segment_ids.device.type == "meta"
    assert batch.max_seqlen == 2


# ---- what the host knows

SEGMENTED = [[5, 6], [], [7]], [[0, 1], [], [1]]


@pytest.mark.parametrize("batch", [pack_ids(*SEGMENTED), pack_ids([[9, 4]]), pack_ids([])])
def test_facts_go_along_to_another_device(batch: PackedBatch) -> None:
    assert batch.facts is None
    assert_facts(host_facts(batch), batch)
    there = batch.to("meta")
    assert_facts(there.facts, batch)
    assert host_facts(there) is there.facts
    assert batch.to("cpu") is batch
    assert_facts(_facts_device(batch), batch)


def test_facts_are_a_copy_of_what_the_batch_was() -> None:
    lengths = np.array([2, 1])
    batch = pack_flat(np.array([5, 6, 7], np.int32), lengths)
    there = batch.to("meta")
    batch.cu_seqlens.zero_()
    assert there.facts is not None
    assert there.facts.cu_seqlens.tolist() == [0, 2, 3]
    with pytest.raises(ValueError, match="cu_seqlens: got 0 to 0"):
        validate(batch, tiny_config())


def test_facts_of_other_tensors_are_dropped() -> None:
    there = pack_ids(*SEGMENTED).to("meta")
    for name in ("input_ids", "positions", "segment_ids", "cu_seqlens"):
        changed = dataclasses.replace(there, **{name: getattr(there, name).clone()})
        assert changed.facts is None, name
    assert dataclasses.replace(there, max_seqlen=3).facts is there.facts
    assert copy.deepcopy(pack_ids(*SEGMENTED)).facts is None


def test_a_batch_with_good_facts_is_not_looked_at() -> None:
    """Tensors on the meta device cannot be."""
    config = tiny_config("bert")
    there = pack_ids(*SEGMENTED).to("meta")
    assert validate(there, config) is there.facts
    with pytest.raises(ValueError, match="max_seqlen: got 1, but the longest sequence has 2"):
        validate(dataclasses.replace(there, max_seqlen=1), config)
    with pytest.raises(NotImplementedError):  # it would say where, and looks
        validate(pack_ids([[5, 99]]).to("meta"), config)


def test_tensors_that_are_no_batch_go_nowhere() -> None:
    batch = pack_ids([[5, 6]])
    with pytest.raises(TypeError, match=r"positions: got torch\.int64; torch\.int32 is"):
        dataclasses.replace(batch, positions=batch.positions.long()).to("meta")


@given(st.lists(st.integers(0, 3 * _ALIGNMENT), min_size=1, max_size=4))
def test_one_copy_of_several_tensors(sizes: list[int]) -> None:
    """On the CPU, where the buffer copied is the buffer returned."""
    tensors = [torch.arange(size, dtype=torch.int32) if size else None for size in sizes]
    views = _copied_at_once(tensors, torch.device("cpu"))
    for tensor, view in zip(tensors, views, strict=True):
        if tensor is None:
            assert view is None
        else:
            assert view is not None
            assert torch.equal(view, tensor)
            assert view.is_contiguous()
            assert view.storage_offset() % _ALIGNMENT == 0


# ---- planning


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 50))
def test_every_index_once_in_order_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    flat = [int(index) for batch in batches for index in batch]
    assert flat == list(range(len(lengths)))
    for batch in batches:
        assert batch.dtype == np.int64
        assert sum(lengths[i] for i in batch) <= budget or len(batch) == 1


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 50))
def test_no_batch_could_have_taken_the_next_sequence(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    for batch, following in itertools.pairwise(batches):
        assert sum(lengths[i] for i in batch) + lengths[following[0]] > budget


@pytest.mark.parametrize(
    ("lengths", "budget", "message"),
    [
        ([3], 0, "batch_tokens: got 0; at least 1"),
        ([3, -2], 9, "lengths: got -2; lengths are 0 or more"),
    ],
)
def test_plans_that_cannot_be(lengths: list[int], budget: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_batches(lengths, budget)


# ---- what is refused

IDS = torch.ones(2, 3, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"input_ids": [[1]]}, TypeError, "input_ids: got list; a torch.Tensor is allowed"),
        ({"input_ids": IDS.float()}, TypeError, "input_ids: got torch.float32; an integer dtype"),
        ({"input_ids": IDS.bool()}, TypeError, "input_ids: got torch.bool; an integer dtype"),
        (
            {"input_ids": IDS.to("meta")},
            ValueError,
            "input_ids: on the meta device, which holds no",
        ),
        ({"input_ids": IDS[0]}, ValueError, "input_ids: got shape [3]; [batch, sequence length]"),
        ({"attention_mask": [[1]]}, TypeError, "attention_mask: got list; a torch.Tensor"),
        (
            {"attention_mask": torch.ones(2, 4)},
            ValueError,
            "attention_mask: got shape [2, 4]; [2, 3] like input_ids is allowed",
        ),
        (
            {"attention_mask": torch.ones(2, 3, 3)},
            ValueError,
            "attention_mask: got shape [2, 3, 3]; [2, 3] like input_ids is allowed",
        ),
        (
            {"attention_mask": torch.ones(2, 1, 3, 3)},
            ValueError,
            "attention_mask: got shape [2, 1, 3, 3]; [2, 3] like input_ids is allowed",
        ),
        (
            {"attention_mask": torch.ones(2, 3, device="meta")},
            ValueError,
            "attention_mask: on meta, but input_ids is on cpu; both must be on one device",
        ),
        (
            {"segment_ids": torch.zeros(2, 3)},
            TypeError,
            "segment_ids (token_type_ids): got torch.float32; an integer dtype",
        ),
        (
            {"segment_ids": IDS.to("meta")},
            ValueError,
            "segment_ids (token_type_ids): on meta, but input_ids is on cpu",
        ),
        (
            {"segment_ids": IDS.T},
            ValueError,
            "segment_ids (token_type_ids): got shape [3, 2]; [2, 3] like input_ids or [1, 3] is",
        ),
        (
            {"position_ids": IDS[0]},
            ValueError,
            "position_ids: got shape [3]; [2, 3] like input_ids or [1, 3] is allowed",
        ),
        (
            {"input_ids": IDS + 2**32},
            ValueError,
            "input_ids: 4294967297 is no id; 32-bit numbers are allowed",
        ),
        ({"position_ids": IDS - 2**40}, ValueError, "position_ids: -1099511627775 is no id"),
    ],
)
def test_padded_input_that_does_not_fit(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=re.escape(message)):
        pack_padded(**({"input_ids": IDS} | arguments))


def test_ids_beyond_int32_are_refused_on_other_devices_too() -> None:
    batch, _ = pack_on_device(IDS + 2**32, None, None, IDS - 2**40)
    with pytest.raises(ValueError, match=r"input_ids: .* is outside the vocabulary"):
        validate(batch, tiny_config())
    with pytest.raises(ValueError, match=r"positions: .* is outside the position table"):
        validate(dataclasses.replace(batch, input_ids=batch.positions * 0), tiny_config())


@pytest.mark.parametrize(
    ("sequences", "segments", "error", "message"),
    [
        ([[1], [2.5]], None, TypeError, "sequences: sequence 1: .* integers are allowed"),
        ([[1], ["a"]], None, TypeError, "sequences: sequence 1: .* integers are allowed"),
        ([[2**31]], None, ValueError, "sequences: sequence 0: .* 32-bit numbers are allowed"),
        ([np.array([2**31])], None, ValueError, "sequences: 2147483648 is no id"),
        ([np.array([1.0])], None, TypeError, "sequence 0 holds float64; integers are allowed"),
        ([np.ones((1, 2), int)], None, ValueError, r"sequence 0 has shape \[1, 2\]; one dimension"),
        ([[1, 2], [3]], [[0, 0]], ValueError, "segment_ids: 1 sequences for 2 sequences of ids"),
        (
            [[1, 2], [3]],
            [[0, 0], [1, 1]],
            ValueError,
            "segment_ids: sequence 1 has 2 segment ids for 1 token ids",
        ),
    ],
)
def test_lists_that_are_no_ids(
    sequences: Any, segments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        pack_ids(sequences, segments)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"input_ids": int32(5, 6, 99)},
            ValueError,
            "input_ids: 99 at token 0 of sequence 2 is outside the vocabulary; 0 to 98 is allowed",
        ),
        (
            {"input_ids": int32(5, -1, 7)},
            ValueError,
            "input_ids: -1 at token 1 of sequence 0 is outside the vocabulary; 0 to 98 is allowed",
        ),
        (
            {"positions": int32(0, 40, 0)},
            ValueError,
            "positions: 40 at token 1 of sequence 0 is outside the position table; 0 to 39 is "
            "allowed (the sequence is longer than the checkpoint's position table)",
        ),
        (
            {"positions": int32(0, 1, -3)},
            ValueError,
            "positions: -3 at token 0 of sequence 2 is outside the position table; 0 to 39 is",
        ),
        (
            {"segment_ids": int32(0, 2, 0)},
            ValueError,
            "segment_ids (token_type_ids): 2 at token 1 of sequence 0 is outside the segment "
            "table; 0 to 1 is allowed",
        ),
        ({"input_ids": int32(5, 6)}, ValueError, "positions: 3 values for 2 tokens in input_ids"),
        ({"segment_ids": int32(0)}, ValueError, "segment_ids: 1 values for 3 tokens in input_ids"),
        (
            {"input_ids": int32(5, 6, 7).long()},
            TypeError,
            "input_ids: got torch.int64; torch.int32 is allowed",
        ),
        (
            {"positions": int32(0, 1, 0).reshape(3, 1)},
            ValueError,
            "positions: got shape [3, 1]; one dimension is allowed",
        ),
        (
            {"cu_seqlens": int32(0, 2, 2, 3).to("meta")},
            ValueError,
            "cu_seqlens: on meta, but input_ids is on cpu; both must be on one device",
        ),
        ({"cu_seqlens": int32()}, ValueError, "cu_seqlens: got nothing; it must go from 0 to 3"),
        (
            {"cu_seqlens": int32(1, 2, 3)},
            ValueError,
            "cu_seqlens: got 1 to 3; it must go from 0 to 3, the tokens",
        ),
        ({"cu_seqlens": int32(0, 2)}, ValueError, "cu_seqlens: got 0 to 2; it must go from 0 to 3"),
        (
            {"cu_seqlens": int32(0, 2, 1, 3)},
            ValueError,
            "cu_seqlens: falls from 2 to 1 at sequence 1; it must never fall",
        ),
        (
            {"max_seqlen": 1},
            ValueError,
            "max_seqlen: got 1, but the longest sequence has 2 tokens",
        ),
    ],
)
def test_batches_that_would_read_out_of_bounds(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    good = pack_ids([[5, 6], [], [7]], segment_ids=[[0, 1], [], [1]])
    validate(good, tiny_config("bert"))
    with pytest.raises(error, match=re.escape(message)):
        validate(dataclasses.replace(good, **changes), tiny_config("bert"))


def test_segments_for_a_checkpoint_without() -> None:
    with pytest.raises(ValueError, match="this checkpoint has no segment embeddings"):
        validate(pack_ids([[5]], segment_ids=[[0]]), tiny_config("distilbert"))
