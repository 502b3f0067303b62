"""Making packed batches: from padded tensors, from lists of ids, from a stream of tokens; and back.

Tensors on the CPU are handled through numpy views: a batch of one short sentence is a dozen small
operations, and numpy starts one several times faster than torch does. Padded tensors on a GPU are
packed there, and looked at once: whoever asks a GPU for a number waits until it has caught up.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .packed_batch import (
    NOTHING,
    SEGMENT_IDS,
    Extent,
    HostFacts,
    PackedBatch,
    host_facts,
    validate,
)

__all__ = [
    "DeviceFacts",
    "HostFacts",
    "PackedBatch",
    "PaddedFacts",
    "host_facts",
    "pack_flat",
    "pack_ids",
    "pack_padded",
    "padded_facts",
    "plan_batches",
    "unpack",
    "validate",
]

_INT32_MAX = 2**31 - 1
_INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class PaddedFacts(NamedTuple):
    """What the host learns about a padded batch before it is packed.

    Attributes:
        keeps_all: whether the mask keeps (is not zero at) every token.
        is_binary: whether it holds nothing but 0 and 1.
        has_empty_row: whether it keeps nothing of some row.
        keeps_first: whether it keeps the first token of every row.
        on_device: what else is needed to pack on a device; None on the CPU.
    """

    keeps_all: bool
    is_binary: bool
    has_empty_row: bool
    keeps_first: bool
    on_device: DeviceFacts | None = None


class DeviceFacts(NamedTuple):
    """What the host must know about padded tensors to pack them without looking at them again.

    Attributes:
        lengths: int64 [B], how many tokens of each row are kept.
        input_ids, positions, segment_ids: the smallest and the largest kept, as in `HostFacts`.
    """

    lengths: npt.NDArray[np.int64]
    input_ids: Extent
    positions: Extent
    segment_ids: Extent | None


_UNPADDED = PaddedFacts(keeps_all=True, is_binary=True, has_empty_row=False, keeps_first=True)


def padded_facts(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> PaddedFacts:
    """What the host must know to pack this: on a GPU the only time that it waits for it.

    Args:
        input_ids, attention_mask, segment_ids, position_ids: as for `pack_padded`, which raises
            what there is to say against them.
    """
    if input_ids.device.type == "cpu":
        return _UNPADDED if attention_mask is None else _mask_facts_numpy(attention_mask)
    return _padded_facts_device(
        input_ids, attention_mask, segment_ids, position_ids, _kernels(input_ids.device)
    )


def pack_padded(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    facts: PaddedFacts | None = None,
) -> tuple[PackedBatch, Tensor]:
    """Drop the padding of a padded batch.

    Args:
        input_ids: integers [B, S].
        attention_mask: [B, S], integer, bool or floating; nonzero keeps a token, wherever the
            zeros are (right, left, in the middle, the whole row). None keeps all.
        segment_ids: integers [B, S] or [1, S], for checkpoints with segment embeddings.
        position_ids: integers [B, S] or [1, S]; by default a token's column, also under left
            padding, as Hugging Face's encoders have it.
        facts: what `padded_facts` said about these four, for callers that asked already.

    Returns:
        The packed batch, and `indices`: int64 [T], each token's place in the flattened [B * S],
        which is what `unpack` needs.

    Raises:
        ValueError: a shape or a device that does not fit.
        TypeError: an argument that is no tensor, or one of a wrong kind.
    """
    _check_padded(input_ids, attention_mask, segment_ids, position_ids)
    if facts is None and input_ids.device.type != "cpu":
        facts = padded_facts(input_ids, attention_mask, segment_ids, position_ids)
    if facts is not None and facts.keeps_all:
        attention_mask = None
    if facts is None or facts.on_device is None:
        return _pack_padded_numpy(input_ids, attention_mask, segment_ids, position_ids)
    return _pack_padded_device(
        input_ids,
        attention_mask,
        segment_ids,
        position_ids,
        facts.on_device,
        _kernels(input_ids.device),
    )


def unpack(hidden: Tensor, indices: Tensor, batch_size: int, seq_len: int) -> Tensor:
    """Back to the padded shape: [T, D] to [batch_size, seq_len, D], zeros at the pads.

    Without padding the result is a view of `hidden`.
    """
    size = (batch_size, seq_len, hidden.shape[1])
    if hidden.shape[0] == batch_size * seq_len:
        return hidden.reshape(size)
    padded = hidden.new_zeros(batch_size * seq_len, hidden.shape[1])
    return padded.index_copy_(0, indices, hidden).view(size)


def pack_ids(
    sequences: Sequence[Sequence[int] | npt.NDArray[Any] | Tensor],
    segment_ids: Sequence[Sequence[int] | npt.NDArray[Any] | Tensor] | None = None,
) -> PackedBatch:
    """Lay lists of token ids end to end, on the CPU. Positions count from 0 in each.

    Args:
        sequences: one sequence of ids per text: lists, 1-D integer arrays or tensors; empty is
            legal.
        segment_ids: the same lengths, for checkpoints with segment embeddings.

    Raises:
        TypeError: something other than integers.
        ValueError: an id beyond 32 bits, or segment ids of other lengths than the ids.
    """
    flat, lengths = _concatenate(sequences, "sequences")
    segments = None
    if segment_ids is not None:
        segments, segment_lengths = _concatenate(segment_ids, "segment_ids")
        _check_same_lengths(lengths, segment_lengths)
    return pack_flat(flat, lengths, segments)


def pack_flat(
    ids: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.int64],
    segment_ids: npt.NDArray[np.int32] | None = None,
) -> PackedBatch:
    """A batch of sequences that lie end to end already, on the CPU. Positions count from 0 in each.

    Args:
        ids: [T], without a copy.
        lengths: [B], of sum T.
        segment_ids: [T], for checkpoints with segment embeddings.

    Raises:
        ValueError: more tokens than 32 bits count.
    """
    cu_seqlens = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=cu_seqlens[1:])
    if cu_seqlens[-1] > _INT32_MAX:
        raise ValueError(f"sequences: {cu_seqlens[-1]} tokens in one batch; at most {_INT32_MAX}")
    positions = np.arange(len(ids), dtype=np.int32)
    positions -= np.repeat(cu_seqlens[:-1].astype(np.int32), lengths)
    return PackedBatch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        None if segment_ids is None else torch.from_numpy(segment_ids),
        torch.from_numpy(cu_seqlens.astype(np.int32)),
        int(lengths.max(initial=0)),
    )


def plan_batches(
    lengths: Sequence[int] | npt.NDArray[Any], batch_tokens: int
) -> list[npt.NDArray[np.int64]]:
    """Cut sequences, in the given order, into batches of at most `batch_tokens` tokens.

    Each batch is a consecutive run, as long as fits. A sequence longer than the budget is a batch
    of its own. Sorting by length beforehand, where that is wanted, is the caller's business.

    Args:
        lengths: tokens in each sequence.
        batch_tokens: the budget, at least 1.

    Returns:
        The indices of each batch; every index exactly once.

    Raises:
        ValueError: a budget below 1 or a negative length.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens: got {batch_tokens}; at least 1 token is allowed")
    counts = np.asarray(lengths, np.int64)
    if counts.size and counts.min() < 0:
        raise ValueError(f"lengths: got {counts.min()}; lengths are 0 or more")
    ends = np.cumsum(counts)
    batches = []
    start = used = 0
    while start < len(counts):
        stop = max(int(np.searchsorted(ends, used + batch_tokens, side="right")), start + 1)
        batches.append(np.arange(start, stop, dtype=np.int64))
        start, used = stop, int(ends[stop - 1])
    return batches


def _check_padded(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    segment_ids: Tensor | None,
    position_ids: Tensor | None,
) -> None:
    _check_integers("input_ids", input_ids)
    if input_ids.dim() != 2:
        raise ValueError(
            f"input_ids: got shape {list(input_ids.shape)}; [batch, sequence length] is allowed"
        )
    if input_ids.is_meta:
        raise ValueError("input_ids: on the meta device, which holds no data")
    if attention_mask is not None:
        _check_tensor("attention_mask", attention_mask, input_ids)
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask: got shape {list(attention_mask.shape)}; "
                f"{list(input_ids.shape)} like input_ids is allowed"
            )
    for name, tensor in ((SEGMENT_IDS, segment_ids), ("position_ids", position_ids)):
        if tensor is None:
            continue
        _check_tensor(name, tensor, input_ids)
        _check_integers(name, tensor)
        if tensor.dim() != 2 or not _broadcasts(tensor, input_ids):
            raise ValueError(
                f"{name}: got shape {list(tensor.shape)}; {list(input_ids.shape)} like input_ids "
                f"or [1, {input_ids.shape[1]}] is allowed"
            )


def _broadcasts(tensor: Tensor, input_ids: Tensor) -> bool:
    return tensor.shape[1] == input_ids.shape[1] and tensor.shape[0] in (1, input_ids.shape[0])


def _check_tensor(name: str, tensor: Tensor, input_ids: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}; a torch.Tensor is allowed")
    if tensor.device != input_ids.device:
        raise ValueError(
            f"{name}: on {tensor.device}, but input_ids is on {input_ids.device}; "
            "both must be on one device"
        )


def _check_integers(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: got {type(tensor).__name__}; a torch.Tensor is allowed")
    if tensor.dtype not in _INTEGER_DTYPES:
        raise TypeError(f"{name}: got {tensor.dtype}; an integer dtype is allowed")


def _pack_padded_numpy(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    segment_ids: Tensor | None,
    position_ids: Tensor | None,
) -> tuple[PackedBatch, Tensor]:
    batch, length = input_ids.shape
    kept = None if attention_mask is None else _kept_places(attention_mask)
    ids = _flat_int32(input_ids, (batch, length), "input_ids")
    segments = (
        None if segment_ids is None else _flat_int32(segment_ids, (batch, length), SEGMENT_IDS)
    )
    if position_ids is not None:
        positions = _flat_int32(position_ids, (batch, length), "position_ids")
    else:
        positions = np.tile(np.arange(length, dtype=np.int32), batch)
    if kept is None:
        indices = np.arange(batch * length)
        cu_seqlens = np.arange(batch + 1, dtype=np.int32) * np.int32(length)
        longest = length if batch else 0
    else:
        indices, cu_seqlens, longest = kept
        ids, positions = ids[indices], positions[indices]
        segments = None if segments is None else segments[indices]
    packed = PackedBatch(
        torch.from_numpy(ids),
        torch.from_numpy(positions),
        None if segments is None else torch.from_numpy(segments),
        torch.from_numpy(cu_seqlens),
        longest,
    )
    return packed, torch.from_numpy(indices)


def _kept_places(
    attention_mask: Tensor,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int] | None:
    """Flat places of the kept tokens, cu_seqlens and the longest length; None if all are kept."""
    if attention_mask.dtype == torch.bfloat16:  # numpy has no such type
        attention_mask = attention_mask != 0
    mask = attention_mask.detach().numpy()
    if mask.all():
        return None
    keep = mask != 0
    lengths = keep.sum(axis=1, dtype=np.int32)
    cu_seqlens = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    return np.flatnonzero(keep), cu_seqlens, int(lengths.max(initial=0))


def _flat_int32(tensor: Tensor, shape: tuple[int, int], name: str) -> npt.NDArray[np.int32]:
    """A fresh int32 copy of the whole [B, S], flat. Ids that int32 cannot hold are refused."""
    values = tensor.detach().numpy()
    if not _fits_int32(values):
        raise ValueError(
            f"{name}: {_first_outside_int32(values)} is no id; 32-bit numbers are allowed"
        )
    if values.shape != shape:
        values = np.broadcast_to(values, shape)
    return values.astype(np.int32).reshape(-1)


def _fits_int32(values: npt.NDArray[Any]) -> bool:
    if (values.itemsize <= 4 and values.dtype != np.uint32) or not values.size:
        return True
    return bool(values.max() <= _INT32_MAX and values.min() >= -_INT32_MAX - 1)


def _first_outside_int32(values: npt.NDArray[Any]) -> int:
    outside = (values > _INT32_MAX) | (values < -_INT32_MAX - 1)
    return int(values[outside][0])


def _mask_facts_numpy(attention_mask: Tensor) -> PaddedFacts:
    if attention_mask.dtype == torch.bfloat16:  # numpy has no such type
        attention_mask = attention_mask.float()
    mask = attention_mask.detach().numpy()
    ones = mask == 1
    if ones.all():
        return _UNPADDED
    keep = mask != 0
    return PaddedFacts(
        keeps_all=bool(keep.all()),
        is_binary=bool((keep == ones).all()),
        has_empty_row=not keep.any(axis=1).all(),
        keeps_first=bool(keep[:, :1].all()),
    )


class _Kernels(NamedTuple):
    """What packs on a device."""

    measure: Callable[..., Tensor]
    pack: Callable[..., tuple[Tensor, Tensor, Tensor]]


@functools.cache
def _triton_kernels() -> _Kernels | None:
    """The Triton kernels, or None without Triton."""
    try:
        from .kernels.measure import measure
        from .kernels.packing import pack
    except ImportError:
        return None
    return _Kernels(measure, pack)


def _kernels(device: torch.device) -> _Kernels | None:
    """What packs on that device: the Triton kernels; None where plain PyTorch does."""
    return _triton_kernels() if device.type == "cuda" else None


def _padded_facts_device(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    segment_ids: Tensor | None,
    position_ids: Tensor | None,
    kernels: _Kernels | None,
) -> PaddedFacts:
    batch, width = input_ids.shape
    if input_ids.numel() == 0:
        nothing = DeviceFacts(
            np.full(batch, width), NOTHING, NOTHING, None if segment_ids is None else NOTHING
        )
        return _UNPADDED._replace(on_device=nothing)
    measure = _measure if kernels is None else kernels.measure
    numbers = measure(input_ids, attention_mask, position_ids, segment_ids).tolist()
    lengths, (is_binary, keeps_first, *ends) = np.array(numbers[:batch]), numbers[batch:]
    pairs = zip(ends[::2], ends[1::2], strict=True)
    extents = [(low, high) if low <= high else NOTHING for low, high in pairs]
    segments = None if segment_ids is None else extents[2]
    return PaddedFacts(
        bool((lengths == width).all()),
        bool(is_binary),
        not lengths.all(),
        bool(keeps_first),
        DeviceFacts(lengths, extents[0], extents[1], segments),
    )


def _measure(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    segment_ids: Tensor | None,
) -> Tensor:
    """What `fastdistil.kernels.measure` does, in plain PyTorch."""
    batch, width = input_ids.shape
    device = input_ids.device
    if attention_mask is None:
        attention_mask = torch.ones(batch, width, dtype=torch.bool, device=device)
    keep = attention_mask != 0
    numbers = [((attention_mask == 1) == keep).all(), keep[:, 0].all()]
    if position_ids is None:
        position_ids = torch.arange(width, device=device).unsqueeze(0)
    limits = torch.iinfo(torch.int64)
    for tensor in (input_ids, position_ids, segment_ids):
        if tensor is not None:
            values = tensor.to(torch.int64)
            numbers.append(torch.where(keep, values, limits.max).amin())
            numbers.append(torch.where(keep, values, limits.min).amax())
    return torch.cat([keep.sum(dim=1), torch.stack([n.to(torch.int64) for n in numbers])])


def _pack_padded_device(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    segment_ids: Tensor | None,
    position_ids: Tensor | None,
    facts: DeviceFacts,
    kernels: _Kernels | None,
) -> tuple[PackedBatch, Tensor]:
    """Packs where the tensors are. With the facts at hand nothing here waits for the device."""
    batch, width = input_ids.shape
    cu_seqlens = np.zeros(batch + 1, np.int32)
    np.cumsum(facts.lengths, out=cu_seqlens[1:])
    places = _places(input_ids, attention_mask, int(cu_seqlens[-1]), kernels)
    positions, indices, cu_seqlens_there = places

    def packed(tensor: Tensor, extent: Extent) -> Tensor:
        flat = tensor.expand(batch, width).flatten()
        kept = flat if attention_mask is None else flat[indices]
        if not -_INT32_MAX - 1 <= extent[0] <= extent[1] <= _INT32_MAX:
            # Clamped, an id that int32 cannot hold stays what it is: outside every table.
            kept = kept.to(torch.int64).clamp(-1, _INT32_MAX)
        return kept.to(torch.int32, copy=attention_mask is None)

    ids = packed(input_ids, facts.input_ids)
    if position_ids is not None:
        positions = packed(position_ids, facts.positions)
    segments = None
    if segment_ids is not None and facts.segment_ids is not None:
        segments = packed(segment_ids, facts.segment_ids)
    known = HostFacts(
        cu_seqlens,
        facts.input_ids,
        facts.positions,
        facts.segment_ids,
        (ids, positions, segments, cu_seqlens_there),
    )
    longest = int(facts.lengths.max(initial=0))
    return PackedBatch(ids, positions, segments, cu_seqlens_there, longest, known), indices


def _places(
    input_ids: Tensor, mask: Tensor | None, total: int, kernels: _Kernels | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns of the kept tokens, int32 [T]; their flat places, int64 [T]; cu_seqlens."""
    batch, width = input_ids.shape
    device = input_ids.device
    if mask is None:
        columns = torch.arange(width, dtype=torch.int32, device=device).repeat(batch)
        ends = torch.arange(batch + 1, dtype=torch.int32, device=device) * width
        return columns, torch.arange(batch * width, device=device), ends
    if kernels is not None:
        positions, indices, cu_seqlens = kernels.pack(mask, total)
        return positions, indices, cu_seqlens
    keep = mask != 0
    # Where the kept tokens are, in order: a stable sort, because nonzero() would wait to count.
    indices = keep.flatten().argsort(descending=True, stable=True)[:total]
    ends = keep.sum(dim=1).cumsum(0)
    return (
        (indices % width).to(torch.int32),
        indices,
        torch.nn.functional.pad(ends, (1, 0)).to(torch.int32),
    )


def _concatenate(
    sequences: Sequence[Any], name: str
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """All ids in one int32 array, and the length of each sequence."""
    lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
    if not lengths.sum():
        return np.zeros(0, np.int32), lengths
    if all(type(sequence) is list for sequence in sequences):
        return _concatenate_lists(sequences, name), lengths
    flat = np.concatenate([_as_integers(s, index, name) for index, s in enumerate(sequences)])
    if not _fits_int32(flat):
        outside = _first_outside_int32(flat)
        raise ValueError(f"{name}: {outside} is no id; 32-bit numbers are allowed")
    return flat.astype(np.int32), lengths


def _concatenate_lists(sequences: Sequence[list[int]], name: str) -> npt.NDArray[np.int32]:
    flat = array("i")  # 32 bits wherever torch runs; refuses floats and larger numbers
    for index, ids in enumerate(sequences):
        try:
            flat.fromlist(ids)
        except TypeError as error:
            raise TypeError(f"{name}: sequence {index}: {error}; integers are allowed") from None
        except OverflowError as error:
            raise ValueError(
                f"{name}: sequence {index}: {error}; 32-bit numbers are allowed"
            ) from None
    return np.frombuffer(flat, np.int32)


def _as_integers(sequence: Any, index: int, name: str) -> npt.NDArray[Any]:
    values = sequence.cpu().numpy() if isinstance(sequence, Tensor) else np.asarray(sequence)
    if values.ndim != 1:
        raise ValueError(
            f"{name}: sequence {index} has shape {list(values.shape)}; one dimension is allowed"
        )
    if values.size == 0:  # whatever dtype an empty list became
        return np.zeros(0, np.int32)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name}: sequence {index} holds {values.dtype}; integers are allowed")
    return values


def _check_same_lengths(
    lengths: npt.NDArray[np.int64], segment_lengths: npt.NDArray[np.int64]
) -> None:
    if len(lengths) != len(segment_lengths):
        raise ValueError(
            f"segment_ids: {len(segment_lengths)} sequences for {len(lengths)} sequences of ids"
        )
    wrong = np.flatnonzero(lengths != segment_lengths)
    if wrong.size:
        raise ValueError(
            f"segment_ids: sequence {wrong[0]} has {segment_lengths[wrong[0]]} segment ids for "
            f"{lengths[wrong[0]]} token ids"
        )
