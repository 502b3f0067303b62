"""PackedBatch: B sequences laid end to end, what the host knows about them, and what is refused.

Whoever asks a GPU for a number waits until it has caught up. So a batch that goes to a GPU takes
along what the host will want to know: its `HostFacts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .config import EncoderConfig

# A model's callers know them under BERT's name.
SEGMENT_IDS = "segment_ids (token_type_ids)"

# The smallest and the largest of some numbers.
Extent = tuple[int, int]
# Of no numbers at all: inside every table.
NOTHING: Extent = (0, -1)

# Parts of one copy start at multiples of this many int32 numbers: 256 bytes, as torch's own
# allocations do, so that kernels find the alignment they were compiled for.
_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class HostFacts:
    """What the host knows about a packed batch on a device without asking the device.

    They hold as long as nobody writes to the batch's tensors.

    Attributes:
        cu_seqlens: int32 [B+1], the batch's own.
        input_ids, positions, segment_ids: the smallest and the largest; (0, -1) where there are no
            tokens. None for segment_ids where the batch has none.
        tensors: the batch's tensors, by which it is told whether these are its facts.
    """

    cu_seqlens: npt.NDArray[np.int32]
    input_ids: Extent
    positions: Extent
    segment_ids: Extent | None
    tensors: tuple[Tensor | None, ...] = field(repr=False)


@dataclass(frozen=True, eq=False)  # tensors have no equality that is one bool
class PackedBatch:
    """B sequences laid end to end.

    Attributes:
        input_ids: int32 [T], token ids.
        positions: int32 [T], rows of the position table.
        segment_ids: int32 [T], rows of the segment table; None means segment 0 everywhere.
        cu_seqlens: int32 [B+1]; sequence b is tokens cu_seqlens[b] to cu_seqlens[b+1], maybe none.
        max_seqlen: length of the longest sequence (or more), known on the host.
        facts: what the host knows about a batch on another device; see `host_facts`. Facts of
            other tensors (after `dataclasses.replace`) are dropped.
    """

    input_ids: Tensor
    positions: Tensor
    segment_ids: Tensor | None
    cu_seqlens: Tensor
    max_seqlen: int
    facts: HostFacts | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.facts is not None and not _are_of(self.facts, self):
            object.__setattr__(self, "facts", None)

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
        """The same batch with its tensors on `device`.

        From the CPU to a GPU that is one copy, queued on the current stream: nobody waits for it.
        What the host knows goes along as `facts`.

        Raises:
            TypeError, ValueError: tensors that are no batch, see `validate`.
        """
        device = torch.device(device)
        if device == self.device:
            return self
        facts = host_facts(self) if self.device.type == "cpu" else self.facts
        if self.device.type == "cpu" and device.type == "cuda":
            there = _copied_at_once(_tensors_of(self), device)
        else:
            there = [None if tensor is None else tensor.to(device) for tensor in _tensors_of(self)]
        return _batch_of(there, self.max_seqlen, None if device.type == "cpu" else facts)


def host_facts(batch: PackedBatch) -> HostFacts:
    """What the host knows about a batch, or finds out now.

    A batch on a GPU that has no `facts` is waited for, and costs one copy. One on the CPU is looked
    at every time.

    Raises:
        TypeError, ValueError: tensors that are no batch, see `validate`.
    """
    if batch.device.type == "cpu":
        _check_layout(batch)
        return _facts_numpy(batch)
    if batch.facts is not None:
        return batch.facts
    _check_layout(batch)
    return _facts_device(batch)


def validate(batch: PackedBatch, config: EncoderConfig) -> HostFacts:
    """Refuse a batch that would read outside a table or a buffer.

    A batch on another device is judged by its facts; only to say what is wrong with it is more of
    it copied to the host.

    Returns:
        the batch's facts, which it was judged by.

    Raises:
        TypeError: a tensor of another dtype than int32.
        ValueError: anything else, naming the argument, what came and what is allowed.
    """
    facts = host_facts(batch)
    cu_seqlens = facts.cu_seqlens
    _check_cu_seqlens(cu_seqlens, batch.num_tokens, batch.max_seqlen)
    _check_range(
        batch.input_ids, facts.input_ids, config.vocab_size, cu_seqlens, "input_ids", "vocabulary"
    )
    _check_range(
        batch.positions,
        facts.positions,
        config.max_positions,
        cu_seqlens,
        "positions",
        "position table",
    )
    if batch.segment_ids is None or facts.segment_ids is None:
        return facts
    if config.num_segments == 0:
        raise ValueError(
            f"{SEGMENT_IDS}: this checkpoint has no segment embeddings; leave them out"
        )
    _check_range(
        batch.segment_ids,
        facts.segment_ids,
        config.num_segments,
        cu_seqlens,
        SEGMENT_IDS,
        "segment table",
    )
    return facts


def _tensors_of(batch: PackedBatch) -> list[Tensor | None]:
    """input_ids, positions, segment_ids and cu_seqlens."""
    return [batch.input_ids, batch.positions, batch.segment_ids, batch.cu_seqlens]


def _batch_of(
    tensors: Sequence[Tensor | None], max_seqlen: int, facts: HostFacts | None = None
) -> PackedBatch:
    """A batch of the tensors that `_tensors_of` names, with the facts of their equals elsewhere."""
    input_ids, positions, segment_ids, cu_seqlens = tensors
    assert input_ids is not None
    assert positions is not None
    assert cu_seqlens is not None
    if facts is not None:
        facts = replace(facts, cu_seqlens=facts.cu_seqlens.copy(), tensors=tuple(tensors))
    return PackedBatch(input_ids, positions, segment_ids, cu_seqlens, max_seqlen, facts)


def _are_of(facts: HostFacts, batch: PackedBatch) -> bool:
    return all(a is b for a, b in zip(facts.tensors, _tensors_of(batch), strict=True))


def _copied_at_once(tensors: Sequence[Tensor | None], device: torch.device) -> list[Tensor | None]:
    """int32 vectors on the CPU, copied to a GPU in one go; views of one buffer there.

    The copy is from pinned memory and in nobody's way. The pinned buffer may be dropped at once:
    torch's allocator of pinned memory notes the stream of every copy that does not block, and gives
    the memory to nobody else before that copy is done.
    """
    sizes = [0 if tensor is None else tensor.shape[0] for tensor in tensors]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    is_gpu = device.type == "cuda"
    buffer = torch.empty(starts[-1], dtype=torch.int32, device="cpu", pin_memory=is_gpu)
    values = buffer.numpy()
    for tensor, start, size in zip(tensors, starts, sizes, strict=False):
        if tensor is not None:
            values[start : start + size] = tensor.numpy()
    there = buffer.to(device, non_blocking=True)
    return [
        None if tensor is None else there[start : start + size]
        for tensor, start, size in zip(tensors, starts, sizes, strict=False)
    ]


def _extent(values: npt.NDArray[Any]) -> Extent:
    return (int(values.min()), int(values.max())) if values.size else NOTHING


def _facts_numpy(batch: PackedBatch) -> HostFacts:
    segments = batch.segment_ids
    return HostFacts(
        batch.cu_seqlens.numpy(),
        _extent(batch.input_ids.numpy()),
        _extent(batch.positions.numpy()),
        None if segments is None else _extent(segments.numpy()),
        tuple(_tensors_of(batch)),
    )


def _facts_device(batch: PackedBatch) -> HostFacts:
    """The same for a batch elsewhere, with one copy to the host."""
    looked_at = [t for t in (batch.input_ids, batch.positions, batch.segment_ids) if t is not None]
    ends = [end for tensor in looked_at if batch.num_tokens for end in torch.aminmax(tensor)]
    numbers = torch.cat([*(end.reshape(1) for end in ends), batch.cu_seqlens]).cpu().numpy()
    extents = [(int(low), int(high)) for low, high in numbers[: len(ends)].reshape(-1, 2)]
    ids, positions, *segments = extents or [NOTHING] * len(looked_at)
    return HostFacts(
        numbers[len(ends) :],
        ids,
        positions,
        segments[0] if segments else None,
        tuple(_tensors_of(batch)),
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
    lengths = cu_seqlens[1:] - cu_seqlens[:-1]  # np.diff takes twice as long for a few
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
    tensor: Tensor,
    extent: Extent,
    size: int,
    cu_seqlens: npt.NDArray[np.int32],
    name: str,
    table: str,
) -> None:
    if extent[0] >= 0 and extent[1] < size:
        return
    values = tensor.cpu().numpy()
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
