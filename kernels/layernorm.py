"""LayerNorm of a sum: y = (s - mean(s)) / sqrt(var(s) + eps) * weight + bias; s = x + residual.

    x [T, D], residual [T, D] or none, weight [D], bias [D] -> y [T, D]

mean and var are of one row; var is that of the population, taken in a second pass over the
differences (Ba et al., arXiv:1607.06450, and torch.nn.functional.layer_norm). The sum, the
statistics and the result are in float32, rounded once at the end.

A program holds a few rows in registers: they are read once and written once, so y may be x or the
residual. A block of registers has a power of two of columns, and 768 in one of 1024 would leave a
quarter of the threads idle; so a row is kept as two blocks, the largest power of two in D and the
smallest around the rest: 512 + 256. How many rows a program holds is one setting for all sizes:
the order in which a row is added up never changes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_layernorm
from .launch import Launch, check_runs, submit, wait_for_the_launch_before
from .settings import RowSetting, Settings, settings_for

# A thread's registers hold its part of a row, as long as it has no more numbers than this.
_MOST_NUMBERS = 64


@triton.jit
def load_row_parts(
    ptr,  # [any, WIDTH]
    rows,  # [ROWS], which of them
    exist,  # [ROWS], whether they are there
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
):
    """Rows in float32 as their first columns [ROWS, FIRST] and the others [ROWS, REST]."""
    start = ptr + rows.to(tl.int64)[:, None] * WIDTH
    columns = tl.arange(0, FIRST)[None, :]
    others = FIRST + tl.arange(0, REST)[None, :]
    inside = exist[:, None] & (others < WIDTH)
    first = tl.load(start + columns, mask=exist[:, None], other=0.0).to(tl.float32)
    rest = tl.load(start + others, mask=inside, other=0.0).to(tl.float32)
    return first, rest


@triton.jit
def store_row_parts(
    ptr, rows, exist, first, rest, WIDTH: tl.constexpr, FIRST: tl.constexpr, REST: tl.constexpr
):
    """The way back of `load_row_parts`, rounded to what `ptr` points at."""
    start = ptr + rows.to(tl.int64)[:, None] * WIDTH
    columns = tl.arange(0, FIRST)[None, :]
    others = FIRST + tl.arange(0, REST)[None, :]
    inside = exist[:, None] & (others < WIDTH)
    tl.store(start + columns, first.to(ptr.dtype.element_ty), mask=exist[:, None])
    tl.store(start + others, rest.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def normalize_row_parts(
    first,
    rest,
    weight_ptr,  # [WIDTH]
    bias_ptr,  # [WIDTH]
    eps,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
):
    """LayerNorm of rows in two parts; columns past WIDTH hold zeros and are not counted."""
    columns = tl.arange(0, FIRST)[None, :]
    others = FIRST + tl.arange(0, REST)[None, :]
    mean = ((tl.sum(first, 1) + tl.sum(rest, 1)) / WIDTH)[:, None]
    first = first - mean
    rest = tl.where(others < WIDTH, rest - mean, 0.0)
    squares = tl.sum(first * first, 1) + tl.sum(rest * rest, 1)
    scale = (1.0 / tl.sqrt(squares / WIDTH + eps))[:, None]
    weight = tl.load(weight_ptr + columns).to(tl.float32)
    bias = tl.load(bias_ptr + columns).to(tl.float32)
    first = first * scale * weight + bias
    weight = tl.load(weight_ptr + others, mask=others < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + others, mask=others < WIDTH, other=0.0).to(tl.float32)
    rest = rest * scale * weight + bias
    return first, rest


@triton.jit(do_not_specialize=["tokens", "eps"])
def layernorm_kernel(
    x_ptr,  # [tokens, WIDTH]
    residual_ptr,  # [tokens, WIDTH] or None
    weight_ptr,  # [WIDTH]
    bias_ptr,  # [WIDTH]
    out_ptr,  # [tokens, WIDTH]; may be x_ptr or residual_ptr
    tokens,
    eps,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
    WAITS: tl.constexpr,
):
    wait_for_the_launch_before(WAITS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exist = rows < tokens
    first, rest = load_row_parts(x_ptr, rows, exist, WIDTH, FIRST, REST)
    if residual_ptr is not None:
        more, others = load_row_parts(residual_ptr, rows, exist, WIDTH, FIRST, REST)
        first += more
        rest += others
    first, rest = normalize_row_parts(first, rest, weight_ptr, bias_ptr, eps, WIDTH, FIRST, REST)
    store_row_parts(out_ptr, rows, exist, first, rest, WIDTH, FIRST, REST)


def row_parts(width: int) -> dict[str, int]:
    """The constants WIDTH, FIRST and REST of a row: its two powers of two.

    A power of two is two halves: Triton has no block of no columns.
    """
    first = 1 << max((width - 1).bit_length() - 1, 0)
    rest = triton.next_power_of_2(max(width - first, 1))
    return {"WIDTH": width, "FIRST": first, "REST": rest}


def warps_for(setting: RowSetting, width: int) -> int:
    """The setting's warps, or as many more as it takes to hold its rows; the same for any T."""
    needed = triton.cdiv(setting.rows * width, 32 * _MOST_NUMBERS)
    return max(setting.num_warps, triton.next_power_of_2(needed))


def layernorm_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None,
    out: Tensor,
    settings: Settings,
) -> Launch:
    """The launch that writes LayerNorm(x + residual).

    Args:
        x: [T, D], bf16, fp16 or fp32, contiguous; D at most 8192.
        weight: [D]; bias: [D]; both in x's dtype.
        eps: added to the variance.
        residual: [T, D] in x's dtype, or None.
        out: [T, D], in x's dtype; may be x or the residual itself.
        settings: for the GPU that it will run on.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices or gaps that do not fit.
    """
    cost = check_layernorm(x, weight, bias, residual, out)
    check_runs("x", x)
    tokens, width = x.shape
    setting = settings.rows("layernorm", x.dtype)
    return Launch(
        name="layernorm",
        kernel=layernorm_kernel,
        grid=(triton.cdiv(tokens, setting.rows),),
        arguments={
            "x_ptr": x,
            "residual_ptr": residual,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "out_ptr": out,
            "tokens": tokens,
            "eps": eps,
        },
        constants={**row_parts(width), "ROWS": setting.rows, "WAITS": settings.waits},
        num_warps=warps_for(setting, width),
        num_stages=1,
        flops=cost.flops,
        moved=cost.moved,
        dependent=settings.dependent_launch,
    )


def layernorm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """LayerNorm of x + residual.

    Args:
        x: [T, D], bf16, fp16 or fp32, contiguous; D at most 8192.
        weight: [D]; bias: [D]; both in x's dtype.
        eps: added to the variance.
        residual: [T, D] in x's dtype, or None.
        out: where the result goes, [T, D]; may be x or the residual itself. None allocates.

    Returns:
        [T, D], in x's dtype.

    Raises:
        TypeError, ValueError: as `layernorm_launch`.
    """
    if out is None:
        return _layernorm(x, weight, bias, eps, residual)
    if out is x or out is residual:
        # torch wants an operation's results apart from its inputs.
        _run(x, weight, bias, eps, residual, out)
    else:
        _layernorm_out(x, weight, bias, eps, residual, out)
    return out


@torch.library.custom_op("fastdistil::layernorm", mutates_args=())
def _layernorm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None
) -> Tensor:
    out = torch.empty_like(x)
    _run(x, weight, bias, eps, residual, out)
    return out


@_layernorm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fastdistil::layernorm_out", mutates_args=("out",))
def _layernorm_out(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, out: Tensor
) -> None:
    _run(x, weight, bias, eps, residual, out)


@_layernorm_out.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, out: Tensor
) -> None:
    return None


def _run(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, out: Tensor
) -> None:
    settings = settings_for(x.device)
    submit(layernorm_launch(x, weight, bias, eps, residual, out, settings), x.device)


def layernorm_reference(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    """The definition: in float32, or in float64 where x is, and rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide) if residual is None else x.to(wide) + residual.to(wide)
    normed = torch.nn.functional.layer_norm(
        total, (x.shape[1],), weight.to(wide), bias.to(wide), eps
    )
    return normed.to(x.dtype)
