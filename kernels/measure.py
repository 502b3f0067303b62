"""What the host must know to pack a padded batch, in one small tensor: one copy, one wait.

    ids, mask, positions, segments [B, S] -> facts [B + 6] or [B + 8]

Whoever asks a GPU for a number waits until it has caught up; so everything is asked at once: how
many tokens each row keeps, the range of the ids, and what kind of mask it is. One launch looks at
each row and leaves what it found; a second one puts that together. All numbers are integers, so no
order of taking them is better than another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import IDS, MASKS, check_padded, check_rowwise, check_tensor, rowwise, size_of
from .launch import Launch, check_same_device, submit
from .packing import as_numbers, block_of, row_stride
from .settings import Settings, settings_for

# The smallest and the largest of no numbers: the largest and the smallest there are.
_LARGEST = tl.constexpr(2**63 - 1)
_SMALLEST = tl.constexpr(-(2**63))


@triton.jit
def widen(
    row_ptr,  # [width], any integers
    columns,  # [BLOCK]
    keeps,  # [BLOCK]
    low,  # int64 [BLOCK]
    high,  # int64 [BLOCK]
):
    """The range so far, made as wide as it takes for the kept numbers of a block."""
    values = tl.load(row_ptr + columns, mask=keeps, other=0).to(tl.int64)
    return tl.where(keeps, tl.minimum(low, values), low), tl.where(
        keeps, tl.maximum(high, values), high
    )


@triton.jit
def store_range(partial_ptr, rows, low, high):
    """The range of a row: its two ends are `rows` numbers apart."""
    tl.store(partial_ptr, tl.min(low, axis=0))
    tl.store(partial_ptr + rows, tl.max(high, axis=0))


@triton.jit(
    do_not_specialize=["ids_stride", "mask_stride", "positions_stride", "segments_stride", "width"]
)
def measure_kernel(
    ids_ptr,  # [rows, width], rows ids_stride apart
    mask_ptr,  # likewise, or None: all are kept
    positions_ptr,  # likewise, or None: columns
    segments_ptr,  # likewise, or None
    facts_ptr,  # int64 [rows + ...]: kept of each row
    partial_ptr,  # int64 [6 or 8, rows]: of each row, what `facts` says of all
    ids_stride,
    mask_stride,
    positions_stride,
    segments_stride,
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    step = row.to(tl.int64)
    kept = tl.zeros((BLOCK,), dtype=tl.int32)
    binary = tl.full((BLOCK,), 1, dtype=tl.int32)
    first = tl.full((BLOCK,), 1, dtype=tl.int32)
    low = tl.full((BLOCK,), _LARGEST, dtype=tl.int64)
    high = tl.full((BLOCK,), _SMALLEST, dtype=tl.int64)
    least_place, last_place = low, high
    least_segment, last_segment = low, high
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        keeps = columns < width
        if mask_ptr is not None:
            mask = tl.load(mask_ptr + step * mask_stride + columns, mask=keeps, other=0)
            keeps = mask != 0
            binary = tl.where(keeps & (mask != 1), 0, binary)
            first = tl.where((columns == 0) & (mask == 0), 0, first)
        kept += keeps.to(tl.int32)
        low, high = widen(ids_ptr + step * ids_stride, columns, keeps, low, high)
        if positions_ptr is None:
            places = columns.to(tl.int64)
            least_place = tl.where(keeps, tl.minimum(least_place, places), least_place)
            last_place = tl.where(keeps, tl.maximum(last_place, places), last_place)
        else:
            least_place, last_place = widen(
                positions_ptr + step * positions_stride, columns, keeps, least_place, last_place
            )
        if segments_ptr is not None:
            least_segment, last_segment = widen(
                segments_ptr + step * segments_stride, columns, keeps, least_segment, last_segment
            )
    tl.store(facts_ptr + row, tl.sum(kept, axis=0).to(tl.int64))
    partial_ptr += step
    tl.store(partial_ptr, tl.min(binary, axis=0).to(tl.int64))
    tl.store(partial_ptr + rows, tl.min(first, axis=0).to(tl.int64))
    store_range(partial_ptr + 2 * rows, rows, low, high)
    store_range(partial_ptr + 4 * rows, rows, least_place, last_place)
    if segments_ptr is not None:
        store_range(partial_ptr + 6 * rows, rows, least_segment, last_segment)


@triton.jit(do_not_specialize=["rows"])
def gather_kernel(
    partial_ptr,  # int64 [facts, rows]
    facts_ptr,  # int64 [rows + facts]
    rows,
    BLOCK: tl.constexpr,
):
    fact = tl.program_id(0)
    low = tl.full((BLOCK,), _LARGEST, dtype=tl.int64)
    high = tl.full((BLOCK,), _SMALLEST, dtype=tl.int64)
    for start in range(0, rows, BLOCK):
        at = start + tl.arange(0, BLOCK)
        there = at < rows
        values = tl.load(partial_ptr + fact * rows + at, mask=there, other=0)
        low = tl.where(there, tl.minimum(low, values), low)
        high = tl.where(there, tl.maximum(high, values), high)
    # Two truths, which hold of no rows too; then ranges: a smallest, a largest, and so on.
    smallest = tl.min(low, axis=0)
    smallest = tl.where((fact < 2) & (rows == 0), 1, smallest)
    largest = tl.max(high, axis=0)
    is_largest = (fact >= 2) & (fact % 2 == 1)
    tl.store(facts_ptr + rows + fact, tl.where(is_largest, largest, smallest))


def measure_launches(
    input_ids: Tensor,
    mask: Tensor | None,
    position_ids: Tensor | None,
    segment_ids: Tensor | None,
    facts: Tensor,
    partial: Tensor,
    settings: Settings,
) -> tuple[Launch, Launch]:
    """The two launches that write `measure`'s facts: of each row, then of all of them.

    Args:
        input_ids: [B, S], one of IDS, contiguous within rows.
        mask: [B, S], one of MASKS, contiguous within rows, or None.
        position_ids, segment_ids: as input_ids, or None.
        facts: int64 [B + 6], or [B + 8] with segment_ids.
        partial: int64 [6, B], or [8, B]: what the first launch leaves for the second.
        settings: for the GPU that they will run on.

    Raises:
        TypeError: a dtype the kernels do not read or write.
        ValueError: shapes, devices or gaps that do not fit.
    """
    check_padded("input_ids", input_ids, tuple(input_ids.shape), IDS)
    check_rowwise("input_ids", input_ids)
    batch, width = input_ids.shape
    kinds = {"mask": MASKS, "position_ids": IDS, "segment_ids": IDS}
    given = {"mask": mask, "position_ids": position_ids, "segment_ids": segment_ids}
    for name, tensor in given.items():
        if tensor is not None:
            check_padded(name, tensor, (batch, width), kinds[name])
            check_rowwise(name, tensor)
    numbers = _number_of_facts(segment_ids)
    check_tensor("facts", facts, (batch + numbers,), (torch.int64,))
    check_tensor("partial", partial, (numbers, batch), (torch.int64,))
    check_same_device("input_ids", input_ids, {**given, "facts": facts, "partial": partial})
    warps = settings.rows("pack", input_ids.dtype).num_warps
    by_row = Launch(
        name="measure",
        kernel=measure_kernel,
        grid=(batch,),
        arguments={
            "ids_ptr": input_ids,
            "mask_ptr": None if mask is None else as_numbers(mask),
            "positions_ptr": position_ids,
            "segments_ptr": segment_ids,
            "facts_ptr": facts,
            "partial_ptr": partial,
            "ids_stride": input_ids.stride(0),
            "mask_stride": row_stride(mask),
            "positions_stride": row_stride(position_ids),
            "segments_stride": row_stride(segment_ids),
            "width": width,
        },
        constants={"BLOCK": block_of(width)},
        num_warps=warps,
        num_stages=1,
        flops=0,
        moved=size_of(input_ids, mask, position_ids, segment_ids, partial) + 8 * batch,
    )
    of_all = Launch(
        name="measure_all",
        kernel=gather_kernel,
        grid=(numbers,),
        arguments={"partial_ptr": partial, "facts_ptr": facts, "rows": batch},
        constants={"BLOCK": block_of(batch)},
        num_warps=warps,
        num_stages=1,
        flops=0,
        moved=size_of(partial) + 8 * numbers,
    )
    return by_row, of_all


def measure(
    input_ids: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """What the host must know to pack a padded batch, in one small tensor: one copy, one wait.

    Args:
        input_ids: integers [B, S].
        mask: [B, S], bool, integers or floats; anything but zero keeps a token. None: all are kept.
        position_ids: integers [B, S] or [1, S]. None: columns.
        segment_ids: integers [B, S] or [1, S], or None.

    Returns:
        int64 [B + 6], or [B + 8] with segment_ids, on input_ids' device:

            [0 : B]          how many tokens each row keeps
            [B]              1 where every mask value is 0 or 1, else 0
            [B + 1]          1 where column 0 is kept in all rows, else 0
            [B + 2 : B + 4]  the smallest and the largest kept input id
            [B + 4 : B + 6]  the smallest and the largest kept position
            [B + 6 : B + 8]  the smallest and the largest kept segment id

        Where nothing is kept the smallest is the largest int64 and the largest the smallest.

    Raises:
        TypeError, ValueError: as `measure_launches`.
    """
    return _measure(input_ids, mask, position_ids, segment_ids)


@torch.library.custom_op("fastdistil::measure", mutates_args=())
def _measure(
    input_ids: Tensor,
    mask: Tensor | None,
    position_ids: Tensor | None,
    segment_ids: Tensor | None,
) -> Tensor:
    check_padded("input_ids", input_ids, tuple(input_ids.shape), IDS)
    wide = [
        _as_wide_as(input_ids, name, tensor)
        for name, tensor in (("position_ids", position_ids), ("segment_ids", segment_ids))
    ]
    facts = _empty_facts(input_ids, segment_ids)
    partial = facts.new_empty(_number_of_facts(segment_ids), len(input_ids))
    rows = (rowwise(input_ids), None if mask is None else rowwise(mask), *wide)
    for launch in measure_launches(*rows, facts, partial, settings_for(input_ids.device)):
        submit(launch, input_ids.device)
    return facts


@_measure.register_fake
def _(
    input_ids: Tensor,
    mask: Tensor | None,
    position_ids: Tensor | None,
    segment_ids: Tensor | None,
) -> Tensor:
    return _empty_facts(input_ids, segment_ids)


def _number_of_facts(segment_ids: Tensor | None) -> int:
    return 6 if segment_ids is None else 8


def _empty_facts(input_ids: Tensor, segment_ids: Tensor | None) -> Tensor:
    numbers = input_ids.shape[0] + _number_of_facts(segment_ids)
    return input_ids.new_empty(numbers, dtype=torch.int64)


def measure_reference(
    input_ids: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """The definition."""
    batch, width = input_ids.shape
    if mask is None:
        mask = input_ids.new_ones(batch, width)
    if position_ids is None:
        position_ids = torch.arange(width, device=input_ids.device).expand(batch, width)
    keep = mask != 0
    truths = [((mask == 1) | ~keep).all(), keep[:, :1].all()]
    ends = []
    for tensor in (input_ids, position_ids, segment_ids):
        if tensor is not None:
            kept = tensor.expand(batch, width)[keep].long()
            limits = torch.tensor([_LARGEST.value, _SMALLEST.value], device=kept.device)
            ends += [torch.cat([kept, limits[:1]]).amin(), torch.cat([kept, limits[1:]]).amax()]
    return torch.cat([keep.sum(dim=1), torch.stack([n.long() for n in truths + ends])])


def _as_wide_as(input_ids: Tensor, name: str, tensor: Tensor | None) -> Tensor | None:
    """Position or segment ids for every row; one row of them serves all, uncopied."""
    if tensor is None:
        return None
    batch, width = input_ids.shape
    if tensor.shape not in ((batch, width), (1, width)):
        raise ValueError(
            f"{name}: got shape {list(tensor.shape)}; [{batch}, {width}] like input_ids or "
            f"[1, {width}] is allowed"
        )
    return rowwise(tensor).expand(batch, width)
