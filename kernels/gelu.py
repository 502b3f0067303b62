"""Bias and activation in one pass: y = act(x + b), by default with the exact GELU.

    x [T, N], bias [N] -> y [T, N]

    gelu(x)      = x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2)))       BERT's and DistilBERT's own
    gelu_tanh(x) = x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))      "gelu_new" in checkpoints
    relu(x)      = max(x, 0)
    silu(x)      = x * sigmoid(x)

Both GELUs are those of Hendrycks and Gimpel, arXiv:1606.08415. Their second is usually written
with tanh(u), which is 2 sigmoid(2u) - 1: the same number from instructions that every Triton has.

The linear layer's epilogue applies the same `activate`, so this kernel runs only where a library
did the product. It moves 2 T N elements and computes next to nothing: a program takes a few rows of
a block of columns, wide enough that every thread loads 16 bytes at a time, and reads the block's
bias once. Arithmetic is in float32; one rounding, at the end.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .checks import APPROXIMATIONS, check_approximate, check_bias_gelu
from .launch import Launch, check_runs, submit, wait_for_the_launch_before
from .settings import Settings, settings_for

# Eight elements to each of 128 threads.
_BLOCK_COLUMNS = 1024

# The definitions. "none" is the bias alone.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


@triton.jit
def gelu(x):
    """The exact GELU, of float32 of any shape.

    With a = |x|, gelu(x) = max(x, 0) - a Phi(-a). Phi(-a) is 2^-p(a) with a p so smooth that a
    polynomial of degree 8 makes it as good as float32 allows: fitted for the least largest error
    of a Phi(-a), which is below 1e-7. Half the instructions of x / 2 (1 + erf), which matters
    behind a product on tensor cores, and a smaller error: nothing cancels where x is negative.
    """
    # From 13 on, 2^-p(a) is zero in float32, as Phi(-a) almost is.
    a = tl.minimum(tl.abs(x), 14.0)
    p = 1.0511693e-06 * a - 1.6535600e-05
    p = p * a + 6.9320296e-05
    p = p * a + 4.4280044e-04
    p = p * a - 7.4981647e-03
    p = p * a + 5.2823107e-02
    p = p * a + 4.5909271e-01
    p = p * a + 1.1511189
    p = p * a + 1.0
    # Not tl.maximum, which drops NaN.
    return tl.where(x < 0.0, 0.0, x) - a * tl.exp2(-p)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """One of ACTIVATIONS, of float32 of any shape."""
    if ACTIVATION == "gelu":
        return gelu(x)
    elif ACTIVATION == "gelu_tanh":
        u = 0.7978845608028654 * x * (1.0 + 0.044715 * x * x)
        return x / (1.0 + tl.exp2(u * -2.885390081777927))  # 2 log2(e)
    elif ACTIVATION == "relu":
        # A comparison, not a maximum: NaN stays NaN.
        return tl.where(x < 0.0, 0.0, x)
    elif ACTIVATION == "silu":
        return x / (1.0 + tl.exp2(x * -1.4426950408889634))
    else:
        tl.static_assert(ACTIVATION == "none", "unknown activation")
        return x


@triton.jit(do_not_specialize=["tokens"])
def bias_gelu_kernel(
    x_ptr,  # [tokens, WIDTH]
    bias_ptr,  # [WIDTH]
    out_ptr,  # [tokens, WIDTH]; may be x_ptr
    tokens,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    ACTIVATION: tl.constexpr,
    WAITS: tl.constexpr,
):
    wait_for_the_launch_before(WAITS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    inside = (rows < tokens)[:, None] & (columns < WIDTH)[None, :]
    bias = tl.load(bias_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    y = activate(x + bias[None, :], ACTIVATION)
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=inside)


def bias_gelu_launch(
    x: Tensor, bias: Tensor, activation: str, out: Tensor, settings: Settings
) -> Launch:
    """The launch that writes act(x + bias).

    Args:
        x: [T, N], bf16, fp16 or fp32, contiguous.
        bias: [N], in x's dtype.
        activation: a key of ACTIVATIONS.
        out: [T, N], in x's dtype; may be x itself.
        settings: for the GPU that it will run on.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices or gaps that do not fit; an unknown activation.
    """
    cost = check_bias_gelu(x, bias, activation, out)
    check_runs("x", x)
    tokens, width = x.shape
    setting = settings.rows("bias_gelu", x.dtype)
    block = min(triton.next_power_of_2(max(width, 1)), _BLOCK_COLUMNS)
    return Launch(
        name=f"bias_{activation}",
        kernel=bias_gelu_kernel,
        grid=(triton.cdiv(tokens, setting.rows), triton.cdiv(width, block)),
        arguments={"x_ptr": x, "bias_ptr": bias, "out_ptr": out, "tokens": tokens},
        constants={
            "WIDTH": width,
            "ROWS": setting.rows,
            "BLOCK": block,
            "ACTIVATION": activation,
            "WAITS": settings.waits,
        },
        num_warps=setting.num_warps,
        num_stages=1,
        flops=cost.flops,
        moved=cost.moved,
        dependent=settings.dependent_launch,
    )


def bias_gelu(
    x: Tensor, bias: Tensor, approximate: str = "none", out: Tensor | None = None
) -> Tensor:
    """GELU of x + bias.

    Args:
        x: [T, N], bf16, fp16 or fp32, contiguous.
        bias: [N], in x's dtype.
        approximate: "none" for the exact GELU or "tanh", as torch.nn.functional.gelu has it.
        out: where the result goes, [T, N]; may be x itself. None allocates.

    Returns:
        [T, N], in x's dtype.

    Raises:
        TypeError, ValueError: as `bias_gelu_launch`; an unknown `approximate`.
    """
    check_approximate(approximate)
    if out is None:
        return _bias_gelu(x, bias, approximate)
    _bias_gelu_out(x, bias, approximate, out)
    return out


@torch.library.custom_op("fastdistil::bias_gelu", mutates_args=())
def _bias_gelu(x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    out = torch.empty_like(x)
    _run(x, bias, approximate, out)
    return out


@_bias_gelu.register_fake
def _(x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fastdistil::bias_gelu_out", mutates_args=("out",))
def _bias_gelu_out(x: Tensor, bias: Tensor, approximate: str, out: Tensor) -> None:
    _run(x, bias, approximate, out)


@_bias_gelu_out.register_fake
def _(x: Tensor, bias: Tensor, approximate: str, out: Tensor) -> None:
    return None


def _run(x: Tensor, bias: Tensor, approximate: str, out: Tensor) -> None:
    activation = APPROXIMATIONS[approximate]
    submit(bias_gelu_launch(x, bias, activation, out, settings_for(x.device)), x.device)


def bias_gelu_reference(x: Tensor, bias: Tensor, approximate: str = "none") -> Tensor:
    """The definition: in float32, or in float64 where x is, and rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    summed = x.to(wide) + bias.to(wide)
    return F.gelu(summed, approximate=approximate).to(x.dtype)
