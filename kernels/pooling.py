"""One vector per sequence: the mean of its tokens, its first token, or the largest of each column.

    hidden [T, D], cu_seqlens [B + 1] -> float32 [B, D]

    mean: sum of the tokens / their number        (Reimers and Gurevych, arXiv:1908.10084)
    cls:  the first token
    max:  the largest value of each column
    with normalize: v / max(|v|, 1e-12)           (torch.nn.functional.normalize)

A sequence of no tokens gives zeros. Everything is in float32. A program takes one sequence, a few
tokens of it at a time from its first to its last, and holds the whole row in registers (in two
parts, as `layernorm.py` does), so that the length of the vector is known when it is written. The
order of the sum depends on the sequence's length alone.
"""

from __future__ import annotations

import itertools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import POOLINGS as POOLINGS
from .checks import check_pool
from .launch import Launch, check_runs, submit
from .layernorm import load_row_parts, row_parts, store_row_parts, warps_for
from .settings import Settings, settings_for


@triton.jit
def larger(a, b):
    """The larger of two, NaN where either is one, as torch.amax has it."""
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def reduce_rows(values, exist, POOLING: tl.constexpr):
    """Tokens [ROWS, COLUMNS] to one row, [1, COLUMNS]; those that do not exist count nothing."""
    if POOLING == "max":
        # What Triton's own maximum makes of NaN differs from GPU to GPU.
        broken = tl.max((values != values).to(tl.int32), 0) > 0
        largest = tl.max(tl.where(exist[:, None], values, float("-inf")), 0)
        return tl.where(broken, float("nan"), largest)[None, :]
    return tl.sum(values, 0)[None, :]


@triton.jit
def pool_kernel(
    hidden_ptr,  # [T, WIDTH]
    cu_seqlens_ptr,  # int32 [sequences + 1]
    out_ptr,  # float32 [sequences, WIDTH]
    POOLING: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
):
    sequence = tl.program_id(0)
    start = tl.load(cu_seqlens_ptr + sequence)
    length = tl.load(cu_seqlens_ptr + sequence + 1) - start
    count = tl.minimum(length, 1) if POOLING == "cls" else length
    first = tl.zeros((1, FIRST), dtype=tl.float32)
    rest = tl.zeros((1, REST), dtype=tl.float32)
    if POOLING == "max" and length > 0:
        first += float("-inf")
        rest += float("-inf")
    for done in tl.range(0, count, ROWS):
        rows = done + tl.arange(0, ROWS)
        exist = rows < count
        more, others = load_row_parts(hidden_ptr, start + rows, exist, WIDTH, FIRST, REST)
        if POOLING == "max":
            first = larger(first, reduce_rows(more, exist, POOLING))
            rest = larger(rest, reduce_rows(others, exist, POOLING))
        else:
            first += reduce_rows(more, exist, POOLING)
            rest += reduce_rows(others, exist, POOLING)
    if POOLING == "mean":
        tokens = tl.maximum(length, 1).to(tl.float32)
        first = tl.div_rn(first, tokens)
        rest = tl.div_rn(rest, tokens)
    if NORMALIZE:
        squares = tl.sum(first * first, 1) + tl.sum(rest * rest, 1)
        norm = tl.sqrt_rn(squares)[:, None]
        norm = tl.where(norm < 1e-12, 1e-12, norm)  # NaN stays NaN
        first = tl.div_rn(first, norm)
        rest = tl.div_rn(rest, norm)
    one = tl.zeros((1,), dtype=tl.int32) + sequence
    store_row_parts(out_ptr, one, one >= 0, first, rest, WIDTH, FIRST, REST)


def pool_launch(
    hidden: Tensor,
    cu_seqlens: Tensor,
    pooling: str,
    normalize: bool,
    out: Tensor,
    settings: Settings,
) -> Launch:
    """The launch that writes one vector per sequence.

    Args:
        hidden: [T, D], bf16, fp16 or fp32, contiguous; D at most 8192.
        cu_seqlens: int32 [B + 1], rising from 0, to T at most.
        pooling: one of POOLINGS.
        normalize: scale every vector to length 1.
        out: float32 [B, D].
        settings: for the GPU that it will run on.

    Raises:
        TypeError: a dtype the kernel does not read or write.
        ValueError: shapes, devices or gaps that do not fit; an unknown pooling.
    """
    cost = check_pool(hidden, cu_seqlens, pooling, normalize, out)
    check_runs("hidden", hidden)
    sequences, width = out.shape
    setting = settings.rows("pool", hidden.dtype)
    return Launch(
        name=f"pool_{pooling}",
        kernel=pool_kernel,
        grid=(sequences,),
        arguments={"hidden_ptr": hidden, "cu_seqlens_ptr": cu_seqlens, "out_ptr": out},
        constants={
            "POOLING": pooling,
            "NORMALIZE": normalize,
            **row_parts(width),
            "ROWS": setting.rows,
        },
        num_warps=warps_for(setting, width),
        num_stages=1,
        flops=cost.flops,
        moved=cost.moved,
    )


def pool(
    hidden: Tensor,
    cu_seqlens: Tensor,
    pooling: str,
    normalize: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """One vector per sequence.

    Args:
        hidden: [T, D], bf16, fp16 or fp32, contiguous; D at most 8192.
        cu_seqlens: int32 [B + 1], where each sequence begins and where the last one ends (T).
        pooling: "mean", "cls" or "max".
        normalize: scale every vector to length 1.
        out: where the result goes, float32 [B, D]. None allocates.

    Returns:
        float32 [B, D]; zeros for a sequence of no tokens.

    Raises:
        TypeError, ValueError: as `pool_launch`.
    """
    if out is None:
        return _pool(hidden, cu_seqlens, pooling, normalize)
    _pool_out(hidden, cu_seqlens, pooling, normalize, out)
    return out


@torch.library.custom_op("fastdistil::pool", mutates_args=())
def _pool(hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool) -> Tensor:
    out = _empty_result(hidden, cu_seqlens)
    _run(hidden, cu_seqlens, pooling, normalize, out)
    return out


@_pool.register_fake
def _(hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool) -> Tensor:
    return _empty_result(hidden, cu_seqlens)


@torch.library.custom_op("fastdistil::pool_out", mutates_args=("out",))
def _pool_out(
    hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool, out: Tensor
) -> None:
    _run(hidden, cu_seqlens, pooling, normalize, out)


@_pool_out.register_fake
def _(hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool, out: Tensor) -> None:
    return None


def _empty_result(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    return hidden.new_empty(cu_seqlens.shape[0] - 1, hidden.shape[1], dtype=torch.float32)


def _run(hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool, out: Tensor) -> None:
    if hidden.data_ptr() % 16:
        # Narrower loads are laid out otherwise, and summed in another order: other bits.
        hidden = hidden.clone()
    launch = pool_launch(hidden, cu_seqlens, pooling, normalize, out, settings_for(hidden.device))
    submit(launch, hidden.device)


def pool_reference(
    hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool = False
) -> Tensor:
    """The definition: in float32, or in float64 where hidden is."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    out = hidden.new_zeros(cu_seqlens.shape[0] - 1, hidden.shape[1], dtype=wide)
    bounds = cu_seqlens.tolist()
    for row, (start, end) in enumerate(itertools.pairwise(bounds)):
        tokens = hidden[start:end].to(wide)
        if start < end:
            out[row] = {
                "mean": tokens.mean(0),
                "cls": tokens[0],
                "max": tokens.amax(0),
            }[pooling]
    return torch.nn.functional.normalize(out, dim=1) if normalize else out
