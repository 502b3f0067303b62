"""Padded batches to packed ones and back, on the device.

    pack:   mask [B, S] -> positions [N], indices [N], cu_seqlens [B + 1]
    unpack: hidden [T, D], indices [T] -> [B, S, D], zeros at pads

Whoever asks a GPU for a number waits until it has caught up. So `pack` asks nothing: a row's tokens
go from cu_seqlens[b] on, which a kernel that counts and a cumulative sum over B numbers give, and
each finds its own place from how many in its row come before it. What the host wants to know
beforehand, it asks all at once: `measure.py`.

All numbers are integers, so no order of adding them is better than another. A program takes one row
of the mask, a block of columns at a time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import (
    DTYPES,
    MASKS,
    check_pack,
    check_padded,
    check_rowwise,
    check_tensor,
    check_total,
    rowwise,
    size_of,
)
from .launch import Launch, check_runs, check_same_device, submit
from .settings import Settings, settings_for

# Columns of a mask that a program looks at together.
_BLOCK_COLUMNS = 1024
# Numbers of a row of states that are copied together: at least what fills a warp's widest loads.
_LEAST_COPIED, _MOST_COPIED = 256, 512

# --- pack -----------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["row_stride", "width"])
def count_kernel(
    mask_ptr,  # [rows, width], rows row_stride apart
    counts_ptr,  # int32 [rows + 1]: 0, then how many each row keeps
    row_stride,
    width,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    start_ptr = mask_ptr + row.to(tl.int64) * row_stride
    kept = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = tl.load(start_ptr + columns, mask=columns < width, other=0)
        kept += (mask != 0).to(tl.int32)
    tl.store(counts_ptr + row + 1, tl.sum(kept, axis=0))
    tl.store(counts_ptr, 0, mask=row == 0)


@triton.jit(do_not_specialize=["row_stride", "width", "places"])
def pack_kernel(
    mask_ptr,  # [rows, width], rows row_stride apart
    cu_seqlens_ptr,  # int32 [rows + 1]
    positions_ptr,  # int32 [places]
    indices_ptr,  # int64 [places]
    row_stride,
    width,
    places,  # at most rows * width
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    start_ptr = mask_ptr + row.to(tl.int64) * row_stride
    kept = tl.load(cu_seqlens_ptr + row).to(tl.int64)
    cells = tl.num_programs(0).to(tl.int64) * width
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        there = columns < width
        mask = tl.load(start_ptr + columns, mask=there, other=0)
        keeps = (mask != 0).to(tl.int32)
        before = kept + (tl.cumsum(keeps, axis=0) - keeps)
        index = row.to(tl.int64) * width + columns
        # What is dropped fills the end, from behind, so that every place is written.
        place = tl.where(keeps != 0, before, cells - 1 - (index - before))
        inside = there & (place < places)
        tl.store(positions_ptr + place, tl.where(keeps != 0, columns, 0), mask=inside)
        tl.store(indices_ptr + place, tl.where(keeps != 0, index, 0), mask=inside)
        kept += tl.sum(keeps, axis=0)


def count_launch(mask: Tensor, counts: Tensor, settings: Settings) -> Launch:
    """The launch that writes 0 and then how many entries of each row are not zero.

    Args:
        mask: [B, S], one of MASKS, contiguous within rows.
        counts: int32 [B + 1]; left alone where B is 0.
        settings: for the GPU that it will run on.

    Raises:
        TypeError: a dtype the kernel does not read or write.
        ValueError: shapes, devices or gaps that do not fit.
    """
    check_padded("mask", mask, tuple(mask.shape), MASKS)
    check_rowwise("mask", mask)
    batch, width = mask.shape
    check_tensor("counts", counts, (batch + 1,), (torch.int32,))
    check_same_device("mask", mask, {"counts": counts})
    return Launch(
        name="count",
        kernel=count_kernel,
        grid=(batch,),
        arguments={
            "mask_ptr": as_numbers(mask),
            "counts_ptr": counts,
            "row_stride": mask.stride(0),
            "width": width,
        },
        constants={"BLOCK": block_of(width)},
        num_warps=settings.rows("pack", mask.dtype).num_warps,
        num_stages=1,
        flops=0,
        moved=size_of(mask, counts),
    )


def pack_launch(
    mask: Tensor, cu_seqlens: Tensor, positions: Tensor, indices: Tensor, settings: Settings
) -> Launch:
    """The launch that writes where the kept tokens are.

    Args:
        mask: [B, S], one of MASKS, contiguous within rows.
        cu_seqlens: int32 [B + 1], the cumulative sum of `count_launch`'s counts.
        positions, indices: int32 and int64 [N], N at most B * S.
        settings: for the GPU that it will run on.

    Raises:
        TypeError: a dtype the kernel does not read or write.
        ValueError: shapes, devices or gaps that do not fit.
    """
    cost = check_pack(mask, cu_seqlens, positions, indices)
    check_runs("mask", mask)
    batch, width = mask.shape
    return Launch(
        name="pack",
        kernel=pack_kernel,
        grid=(batch,),
        arguments={
            "mask_ptr": as_numbers(mask),
            "cu_seqlens_ptr": cu_seqlens,
            "positions_ptr": positions,
            "indices_ptr": indices,
            "row_stride": mask.stride(0),
            "width": width,
            "places": len(positions),
        },
        constants={"BLOCK": block_of(width)},
        num_warps=settings.rows("pack", mask.dtype).num_warps,
        num_stages=1,
        flops=0,
        moved=cost.moved,
    )


def pack(mask: Tensor, total: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Where the kept tokens of a padded batch are, without waiting for the device.

    Args:
        mask: [B, S], bool, integers or floats; anything but zero keeps a token.
        total: how many are kept, where the host knows that; up to B * S. With fewer than there are,
            the last ones are left out.

    Returns:
        positions, int32 [N]: the column of each kept token.
        indices, int64 [N]: its place in the flattened batch, ascending.
        cu_seqlens, int32 [B + 1]: where each row begins among them.
        N is `total`; without it B * S, of which the first cu_seqlens[B] count and the others are 0.

    Raises:
        TypeError, ValueError: as `pack_launch`.
    """
    positions, indices, cu_seqlens = _pack(mask, total)
    return positions, indices, cu_seqlens


@torch.library.custom_op("fastdistil::pack", mutates_args=())
def _pack(mask: Tensor, total: int | None) -> tuple[Tensor, Tensor, Tensor]:
    check_padded("mask", mask, tuple(mask.shape), MASKS)
    places = mask.numel() if total is None else total
    check_total("total", places, mask)
    mask = rowwise(mask)
    settings = settings_for(mask.device)
    counts = mask.new_empty(len(mask) + 1, dtype=torch.int32)
    if not len(mask):
        counts.zero_()
    submit(count_launch(mask, counts, settings), mask.device)
    cu_seqlens = counts.cumsum(0, dtype=torch.int32)
    positions, indices, _ = _empty_places(mask, places)
    submit(pack_launch(mask, cu_seqlens, positions, indices, settings), mask.device)
    return positions, indices, cu_seqlens


@_pack.register_fake
def _(mask: Tensor, total: int | None) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_places(mask, mask.numel() if total is None else total)


def _empty_places(mask: Tensor, places: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        mask.new_empty(places, dtype=torch.int32),
        mask.new_empty(places, dtype=torch.int64),
        mask.new_empty(mask.shape[0] + 1, dtype=torch.int32),
    )


def pack_reference(mask: Tensor, total: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The definition."""
    keep = mask != 0
    kept = keep.flatten().nonzero().flatten()
    indices = torch.nn.functional.pad(kept, (0, mask.numel() - len(kept)))
    indices = indices[:total]
    ends = torch.nn.functional.pad(keep.sum(dim=1).cumsum(0), (1, 0))
    positions = indices % max(mask.shape[1], 1)
    return positions.to(torch.int32), indices, ends.to(torch.int32)


# --- unpack ---------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["tokens", "cells", "steps"])
def unpack_kernel(
    hidden_ptr,  # [tokens, WIDTH]
    indices_ptr,  # int64 [tokens], ascending
    out_ptr,  # [cells, WIDTH]
    tokens,
    cells,
    steps,  # halvings that leave one of `tokens` and one more
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # One pass over the result, pads included: each row of it looks for its token by bisection.
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    low = tl.zeros((ROWS,), dtype=tl.int32)
    high = low + tokens
    for _ in range(steps):
        middle = low + (high - low) // 2
        going = low < high
        smaller = tl.load(indices_ptr + middle, mask=going, other=0) < row
        low = tl.where(going & smaller, middle + 1, low)
        high = tl.where(going & (smaller == 0), middle, high)
    found = tl.load(indices_ptr + low, mask=low < tokens, other=-1) == row
    for start in tl.static_range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)[None, :]
        there = columns < WIDTH
        source_ptr = hidden_ptr + low.to(tl.int64)[:, None] * WIDTH + columns
        values = tl.load(source_ptr, mask=found[:, None] & there, other=0.0)
        inside = (row < cells)[:, None] & there
        tl.store(out_ptr + row[:, None] * WIDTH + columns, values, mask=inside)


def unpack_launch(hidden: Tensor, indices: Tensor, out: Tensor, settings: Settings) -> Launch:
    """The launch that puts each token where it was, and zeros elsewhere.

    Args:
        hidden: [T, D], bf16, fp16 or fp32, contiguous.
        indices: int64 [T], ascending: places in the flattened batch.
        out: [B, S, D], in hidden's dtype.
        settings: for the GPU that it will run on.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices or gaps that do not fit.
    """
    check_tensor("hidden", hidden, (None, None), DTYPES)
    tokens, width = hidden.shape
    check_tensor("indices", indices, (tokens,), (torch.int64,))
    check_tensor("out", out, (None, None, width), (hidden.dtype,))
    check_same_device("hidden", hidden, {"indices": indices, "out": out})
    setting = settings.rows("pack", hidden.dtype)
    cells = out.shape[0] * out.shape[1]
    return Launch(
        name="unpack",
        kernel=unpack_kernel,
        # A row of no numbers is written as it is.
        grid=(triton.cdiv(cells, setting.rows) if width else 0,),
        arguments={
            "hidden_ptr": hidden,
            "indices_ptr": indices,
            "out_ptr": out,
            "tokens": tokens,
            "cells": cells,
            "steps": tokens.bit_length(),
        },
        constants={"WIDTH": width, "ROWS": setting.rows, "BLOCK": _copied_together(width)},
        num_warps=setting.num_warps,
        num_stages=1,
        flops=0,
        moved=size_of(hidden, indices, out),
    )


def unpack(hidden: Tensor, indices: Tensor, batch_size: int, seq_len: int) -> Tensor:
    """Packed states as a padded batch.

    Args:
        hidden: [T, D], bf16, fp16 or fp32, contiguous.
        indices: int64 [T], as `pack` gives them: each token's place in the flattened batch,
            ascending. A place outside the batch is left out.
        batch_size, seq_len: B and S.

    Returns:
        [B, S, D], in hidden's dtype; zeros where no token goes.

    Raises:
        TypeError, ValueError: as `unpack_launch`.
    """
    return _unpack(hidden, indices, batch_size, seq_len)


@torch.library.custom_op("fastdistil::unpack", mutates_args=())
def _unpack(hidden: Tensor, indices: Tensor, batch_size: int, seq_len: int) -> Tensor:
    check_tensor("hidden", hidden, (None, None), DTYPES)
    out = hidden.new_empty(batch_size, seq_len, hidden.shape[1])
    submit(unpack_launch(hidden, indices, out, settings_for(hidden.device)), hidden.device)
    return out


@_unpack.register_fake
def _(hidden: Tensor, indices: Tensor, batch_size: int, seq_len: int) -> Tensor:
    return hidden.new_empty(batch_size, seq_len, hidden.shape[1])


def unpack_reference(hidden: Tensor, indices: Tensor, batch_size: int, seq_len: int) -> Tensor:
    """The definition."""
    out = hidden.new_zeros(batch_size * seq_len, hidden.shape[1])
    out[indices] = hidden
    return out.view(batch_size, seq_len, -1)


# --- what they share ------------------------------------------------------------------------------


def block_of(count: int) -> int:
    return min(triton.next_power_of_2(max(count, 32)), _BLOCK_COLUMNS)


def _copied_together(width: int) -> int:
    """Columns of a block: such that the width is a multiple of it, where that fills a warp."""
    largest_divisor = width & -width
    if largest_divisor >= _LEAST_COPIED:
        return min(largest_divisor, _MOST_COPIED)
    return min(block_of(width), _MOST_COPIED)


def as_numbers(mask: Tensor) -> Tensor:
    """A mask of bools as the bytes that it is."""
    return mask.view(torch.uint8) if mask.dtype == torch.bool else mask


def row_stride(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.stride(0)
