"""Packed batches: a flat run of T tokens and where each sequence begins. No padding anywhere.

Tensors on the CPU are handled through numpy views: a batch of one short sentence is a dozen small
operations, and numpy starts one several times faster than torch does.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .config import EncoderConfig

_INT32_MAX = 2**31 - 1
# A model's callers know them under BERT's name.
_SEGMENT_IDS = "segment_ids (token_type_ids)"
_INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)  # tensors have no equality that is one bool
class PackedBatch:
    """B sequences laid end to end.

    Attributes:
        input_ids: int32 [T], token ids.
        positions: int32 [T], rows of the position table.
        segment_ids: int32 [T], rows of the segment table; None means segment 0 everywhere.
        cu_seqlens: int32 [B+1]; sequence b is tokens cu_seqlens[b] to cu_seqlens[b+1], maybe none.
        max_seqlen: length of the longest sequence (or more), known on the host.
    """

    input_ids: Tensor
    positions: Tensor
    segment_ids: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int

    @property
    def num_tokens(self) -> int:
        """T, the number of tokens."""
        return self.input_ids.shape[0]

    @property
    def num_sequences(self) -> int:
        """B, the number of sequences."""
        return self.cu_seqlens.shape[0] - 1

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.input_ids.device

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch with its tensors on `device`."""
        return PackedBatch(
            self.input_ids.to(device),
            self.positions.to(device),
            None if self.segment_ids is None else self.segment_ids.to(device),
            self.cu_seqlens.to(device),
            self.max_seqlen,
        )


def pack_padded(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> tuple[PackedBatch, Tensor]:
    """Drop the padding of a padded batch.

    Args:
        input_ids: integers [B, S].
        attention_mask: [B, S], integer, bool or floating; nonzero keeps a token, wherever the
            zeros are (right, left, in the middle, the whole row). None keeps all.
        segment_ids: integers [B, S] or [1, S], for checkpoints with segment embeddings.
        position_ids: integers [B, S] or [1, S]; by default a token's column, also under left
            padding, as Hugging Face's encoders have it.

    Returns:
        The packed batch, and `indices`: int64 [T], each token's place in the flattened [B * S],
        which is what `unpack` needs.

    Raises:
        ValueError: a shape or a device that does not fit.
        TypeError: an argument that is no tensor, or one of a wrong kind.
    """
    _check_padded(input_ids, attention_mask, segment_ids, position_ids)
    if input_ids.device.type == "cpu":
        return _pack_padded_numpy(input_ids, attention_mask, segment_ids, position_ids)
    return _pack_padded_torch(input_ids, attention_mask, segment_ids, position_ids)


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


def validate(batch: PackedBatch, config: EncoderConfig) -> None:
    """Refuse a batch that would read outside a table or a buffer.

    Copies what is on another device to the host to look at it.

    Raises:
        TypeError: a tensor of another dtype than int32.
        ValueError: anything else, naming the argument, what came and what is allowed.
    """
    _check_layout(batch)
    cu_seqlens = batch.cu_seqlens.cpu().numpy()
    _check_cu_seqlens(cu_seqlens, batch.num_tokens, batch.max_seqlen)
    _check_range(batch.input_ids, config.vocab_size, cu_seqlens, "input_ids", "vocabulary")
    _check_range(batch.positions, config.max_positions, cu_seqlens, "positions", "position table")
    if batch.segment_ids is None:
        return
    if config.num_segments == 0:
        raise ValueError(
            f"{_SEGMENT_IDS}: this checkpoint has no segment embeddings; leave them out"
        )
    _check_range(batch.segment_ids, config.num_segments, cu_seqlens, _SEGMENT_IDS, "segment table")


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
    for name, tensor in ((_SEGMENT_IDS, segment_ids), ("position_ids", position_ids)):
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
        None if segment_ids is None else _flat_int32(segment_ids, (batch, length), _SEGMENT_IDS)
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


def _pack_padded_torch(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    segment_ids: Tensor | None,
    position_ids: Tensor | None,
) -> tuple[PackedBatch, Tensor]:
    batch, length = input_ids.shape
    device = input_ids.device
    if attention_mask is None:
        keep = torch.ones(batch, length, dtype=torch.bool, device=device)
    else:
        keep = attention_mask != 0
    lengths = keep.sum(dim=1, dtype=torch.int32)
    indices = keep.flatten().nonzero().squeeze(1)
    if position_ids is None:
        position_ids = torch.arange(length, device=device).unsqueeze(0)

    def packed(tensor: Tensor) -> Tensor:
        # Clamped, an id that int32 cannot hold stays what it is: outside every table.
        kept = tensor.expand(batch, length).flatten()[indices]
        return kept.to(torch.int64).clamp(-1, _INT32_MAX).to(torch.int32)

    return PackedBatch(
        packed(input_ids),
        packed(position_ids),
        None if segment_ids is None else packed(segment_ids),
        torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
        int(lengths.max()) if batch else 0,
    ), indices


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


def _check_layout(batch: PackedBatch) -> None:
    tensors = {
        "input_ids": batch.input_ids,
        "positions": batch.positions,
        "cu_seqlens": batch.cu_seqlens,
    }
    if batch.segment_ids is not None:
        tensors["segment_ids"] = batch.segment_ids
    for name, tensor in tensors.items():
        if tensor.dtype != torch.int32:
            raise TypeError(f"{name}: got {tensor.dtype}; torch.int32 is allowed")
        if tensor.dim() != 1:
            raise ValueError(f"{name}: got shape {list(tensor.shape)}; one dimension is allowed")
        if tensor.device != batch.device:
            raise ValueError(
                f"{name}: on {tensor.device}, but input_ids is on {batch.device}; "
                "both must be on one device"
            )
        if name != "cu_seqlens" and tensor.shape[0] != batch.num_tokens:
            raise ValueError(
                f"{name}: {tensor.shape[0]} values for {batch.num_tokens} tokens in input_ids"
            )


def _check_cu_seqlens(cu_seqlens: npt.NDArray[np.int32], num_tokens: int, max_seqlen: int) -> None:
    if cu_seqlens.size == 0 or cu_seqlens[0] != 0 or cu_seqlens[-1] != num_tokens:
        ends = f"{cu_seqlens[0]} to {cu_seqlens[-1]}" if cu_seqlens.size else "nothing"
        raise ValueError(f"cu_seqlens: got {ends}; it must go from 0 to {num_tokens}, the tokens")
    lengths = np.diff(cu_seqlens)
    if lengths.size and lengths.min() < 0:
        where = int(lengths.argmin())
        raise ValueError(
            f"cu_seqlens: falls from {cu_seqlens[where]} to {cu_seqlens[where + 1]} at sequence "
            f"{where}; it must never fall"
        )
    if lengths.max(initial=0) > max_seqlen:
        raise ValueError(
            f"max_seqlen: got {max_seqlen}, but the longest sequence has {lengths.max()} tokens"
        )


def _check_range(
    tensor: Tensor, size: int, cu_seqlens: npt.NDArray[np.int32], name: str, table: str
) -> None:
    values = tensor.cpu().numpy()
    if values.size == 0 or (values.min() >= 0 and values.max() < size):
        return
    token = int(np.flatnonzero((values < 0) | (values >= size))[0])
    sequence = int(np.searchsorted(cu_seqlens, token, side="right")) - 1
    hint = (
        " (the sequence is longer than the checkpoint's position table)"
        if name == "positions" and values[token] >= size
        else ""
    )
    raise ValueError(
        f"{name}: {values[token]} at token {token - cu_seqlens[sequence]} of sequence {sequence} "
        f"is outside the {table}; 0 to {size - 1} is allowed{hint}"
    )
