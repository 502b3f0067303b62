"""A linear layer in one launch: y = act(x W^T + b) + residual.

    x [T, K], W [N, K] as torch.nn.Linear keeps it, b [N], residual [T, N] -> y [T, N]

A program computes a tile of y, BLOCK_M tokens by BLOCK_N features, in float32 accumulators, by
steps of BLOCK_K along K. What follows the product happens while the tile is in registers: bias,
activation, residual, one rounding. A pass of its own for the activation would read and write all
of y once more: behind DistilBERT's 768 -> 3072 layer that is more time than the product takes.

Two kernels compute the same. The pointer kernel loads through addresses that its threads compute,
on every GPU. The descriptor kernel, for Hopper and later, names rectangles of x, W, y and the
residual; the tensor memory accelerator moves them without registers or address arithmetic and
clips them at the edges, but wants rows that begin at multiples of 16 bytes. Where they do not, the
builder takes the pointer kernel with the same tile.

Tiles are taken in groups: GROUP_M tiles along T for one block of W's rows, then the next block, so
that programs in flight find in the L2 cache what others read. With PERSISTENT there are fewer
programs than tiles; each loads its next tile while it finishes one.

Bits: an element of y is summed along K from 0 upwards, never in parts, by instructions that know
neither T nor where in the tile it lies. So a row comes out the same in a batch of any size, as long
as the settings for all sizes lead to one kind of tensor-core instruction and, for float32, have one
BLOCK_K: three products of tf32 parts, of which the small two are summed apart within a step.

Source: tutorials 03 and 09 of Triton for the order of tiles, the two halves of the epilogue and the
flattened loop; https://triton-lang.org/main/getting-started/tutorials.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .checks import DTYPES, check_activation, check_tensor, size_of
from .gelu import ACTIVATIONS, activate
from .launch import Launch, check_same_device, submit, wait_for_the_launch_before
from .settings import LinearSetting, Settings, settings_for

# Accumulators per thread from which the epilogue goes over a tile in two halves: the activation of
# all at once would not fit in the registers beside them.
_SPLIT_FROM = 128


@triton.jit
def turns(
    tokens,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PERSISTENT: tl.constexpr,
):
    """How many tiles are this program's. The constant 1 lets the compiler drop the loop."""
    if PERSISTENT:
        tiles = tl.cdiv(tokens, BLOCK_M) * tl.cdiv(WIDTH, BLOCK_N)
        return tl.cdiv(tiles - tl.program_id(0), tl.num_programs(0))
    else:
        return 1


@triton.jit
def tile_position(
    turn,
    tokens,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Where the first row and column of this program's tile are, in the order told above."""
    tile = tl.program_id(0) + turn * tl.num_programs(0)
    down = tl.cdiv(tokens, BLOCK_M)
    per_group = GROUP_M * tl.cdiv(WIDTH, BLOCK_N)
    first = tile // per_group * GROUP_M
    group = min(down - first, GROUP_M)
    inside = tile % per_group
    return (first + inside % group) * BLOCK_M, inside // group * BLOCK_N


@triton.jit
def halves(acc):
    """The left and the right half of the columns, without moving them between threads."""
    M: tl.constexpr = acc.shape[0]
    N: tl.constexpr = acc.shape[1]
    return tl.split(tl.permute(tl.reshape(acc, (M, 2, N // 2)), (0, 2, 1)))


@triton.jit
def add_bias_and_activate(acc, bias_ptr, columns, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr):
    """act(acc + bias) for the columns of the tile that `columns` numbers."""
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=columns < WIDTH, other=0.0)
        acc += bias.to(tl.float32)[None, :]
    return activate(acc, ACTIVATION)


@triton.jit
def store_by_pointer(
    acc, operands, row, column, tokens, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr
):
    """Epilogue of the tile `acc`, whose first element is out[row, column]."""
    bias_ptr, residual_ptr, out_ptr = operands
    rows = row + tl.arange(0, acc.shape[0])
    columns = column + tl.arange(0, acc.shape[1])
    offsets = rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    inside = (rows < tokens)[:, None] & (columns < WIDTH)[None, :]
    y = add_bias_and_activate(acc, bias_ptr, columns, WIDTH, ACTIVATION)
    if residual_ptr is not None:
        y += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def prefetch_weights(
    weight_ptr,  # [WIDTH, DEPTH], rows of a multiple of 16 bytes
    tokens,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Have the weights of this program's first tile brought to the L2 cache; nobody waits."""
    _, column = tile_position(0, tokens, WIDTH, BLOCK_M, BLOCK_N, GROUP_M)
    rows = tl.minimum(BLOCK_N, WIDTH - column)
    size = rows * (DEPTH * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8))
    address = (weight_ptr + column * DEPTH).to(tl.int64, bitcast=True)
    # The rows of a tile lie end to end, so one thread can ask for all of it at once.
    tl.inline_asm_elementwise(
        """{
        .reg .pred is_first;
        .reg .u32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 is_first, thread, 0;
        @is_first cp.async.bulk.prefetch.L2.global [$1], $2;
        mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [address, size],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit(do_not_specialize=["tokens", "depth"])
def linear_pointer_kernel(
    x_ptr,  # [tokens, DEPTH]
    weight_ptr,  # [WIDTH, DEPTH]
    bias_ptr,  # [WIDTH] or None
    residual_ptr,  # [tokens, WIDTH] or None
    out_ptr,  # [tokens, WIDTH]; may be residual_ptr
    tokens,
    depth,  # DEPTH, not known in advance: else all of the loop is unrolled
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PREFETCH: tl.constexpr,
    WAITS: tl.constexpr,
):
    if PREFETCH:
        prefetch_weights(weight_ptr, tokens, WIDTH, DEPTH, BLOCK_M, BLOCK_N, GROUP_M)
    wait_for_the_launch_before(WAITS)
    for turn in tl.range(0, turns(tokens, WIDTH, BLOCK_M, BLOCK_N, PERSISTENT), flatten=PERSISTENT):
        row, column = tile_position(turn, tokens, WIDTH, BLOCK_M, BLOCK_N, GROUP_M)
        # Rows and columns past the edge read the last one instead: no mask, and nothing of theirs
        # is stored. Along K there must be a mask, since those products would count.
        rows = tl.minimum(row + tl.arange(0, BLOCK_M), tokens - 1)
        columns = tl.minimum(column + tl.arange(0, BLOCK_N), WIDTH - 1)
        steps = tl.arange(0, BLOCK_K)
        x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * DEPTH + steps[None, :]
        weight_ptrs = weight_ptr + columns[None, :] * DEPTH + steps[:, None]
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for start in tl.range(0, depth, BLOCK_K):
            if DEPTH % BLOCK_K == 0:
                x = tl.load(x_ptrs)
                weight = tl.load(weight_ptrs)
            else:
                exists = start + steps < DEPTH
                x = tl.load(x_ptrs, mask=exists[None, :], other=0.0)
                weight = tl.load(weight_ptrs, mask=exists[:, None], other=0.0)
            acc = tl.dot(x, weight, acc, input_precision=PRECISION)
            x_ptrs += BLOCK_K
            weight_ptrs += BLOCK_K
        operands = (bias_ptr, residual_ptr, out_ptr)
        if SPLIT:
            left, right = halves(acc)
            store_by_pointer(left, operands, row, column, tokens, WIDTH, ACTIVATION)
            store_by_pointer(right, operands, row, column + BLOCK_N // 2, tokens, WIDTH, ACTIVATION)
        else:
            store_by_pointer(acc, operands, row, column, tokens, WIDTH, ACTIVATION)


@triton.jit
def store_by_descriptor(acc, operands, row, column, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr):
    """Epilogue of the tile `acc`, whose first element is out[row, column]."""
    bias_ptr, residual, out = operands
    columns = column + tl.arange(0, acc.shape[1])
    y = add_bias_and_activate(acc, bias_ptr, columns, WIDTH, ACTIVATION)
    if residual is not None:
        y += residual.load([row, column]).to(tl.float32)
    out.store([row, column], y.to(out.dtype))


@triton.jit(do_not_specialize=["tokens"])
def linear_descriptor_kernel(
    x,  # descriptor of [tokens, DEPTH], blocks [BLOCK_M, BLOCK_K]
    weight,  # descriptor of [WIDTH, DEPTH], blocks [BLOCK_N, BLOCK_K]
    weight_ptr,  # the same memory
    bias_ptr,  # [WIDTH] or None
    residual,  # descriptor of [tokens, WIDTH], blocks as out's, or None
    out,  # descriptor of [tokens, WIDTH], blocks [BLOCK_M, BLOCK_N], or half as wide if SPLIT
    tokens,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    ACTIVATION: tl.constexpr,
    PRECISION: tl.constexpr,
    SPLIT: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PREFETCH: tl.constexpr,
    WAITS: tl.constexpr,
):
    if PREFETCH:
        prefetch_weights(weight_ptr, tokens, WIDTH, DEPTH, BLOCK_M, BLOCK_N, GROUP_M)
    wait_for_the_launch_before(WAITS)
    for turn in tl.range(0, turns(tokens, WIDTH, BLOCK_M, BLOCK_N, PERSISTENT), flatten=PERSISTENT):
        row, column = tile_position(turn, tokens, WIDTH, BLOCK_M, BLOCK_N, GROUP_M)
        # What lies outside of a tensor is read as zero and not written.
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        # A bound known in advance: behind a loop that might not run at all, CUDA 12.8's ptxas makes
        # the products wait for each other (C7515).
        for start in tl.range(0, DEPTH, BLOCK_K):
            weight_t = weight.load([column, start]).T
            acc = tl.dot(x.load([row, start]), weight_t, acc, input_precision=PRECISION)
        operands = (bias_ptr, residual, out)
        if SPLIT:
            left, right = halves(acc)
            store_by_descriptor(left, operands, row, column, WIDTH, ACTIVATION)
            store_by_descriptor(right, operands, row, column + BLOCK_N // 2, WIDTH, ACTIVATION)
        else:
            store_by_descriptor(acc, operands, row, column, WIDTH, ACTIVATION)


def linear_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out: Tensor,
    settings: Settings,
    setting: LinearSetting | None = None,
) -> Launch:
    """The launch that writes act(x W^T + bias) + residual.

    Args:
        x: [T, K], bf16, fp16 or fp32, contiguous.
        weight: [N, K]; bias: [N] or None; both in x's dtype.
        activation: a key of `gelu.ACTIVATIONS`, or None for none.
        residual: [T, N] in x's dtype, or None.
        out: [T, N], in x's dtype; may be `residual` itself, but neither x nor a part of it.
        settings: for the GPU that it will run on.
        setting: instead of the one that `settings` has for these sizes.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices or gaps that do not fit; no input features; an unknown
            activation; a setting of a variant that is none of the kernels here.
    """
    activation = activation or "none"
    _check(x, weight, bias, activation, residual, out)
    (tokens, depth), width = x.shape, weight.shape[0]
    setting = setting or settings.linear(x.dtype, tokens, width, depth)
    if setting.variant not in ("pointer", "descriptor"):
        raise ValueError(f"setting: got variant {setting.variant!r}; allowed: pointer, descriptor")
    tiles = triton.cdiv(tokens, setting.block_m) * triton.cdiv(width, setting.block_n)
    operands = {"x": x, "weight": weight, "residual": residual, "out": out}
    split = _splits(setting)
    if setting.variant == "descriptor" and _describable(*operands.values()):
        kernel, arguments = linear_descriptor_kernel, _describe(operands, setting, split)
        arguments["weight_ptr"] = weight
    else:
        kernel = linear_pointer_kernel
        arguments = {f"{name}_ptr": tensor for name, tensor in operands.items()}
        arguments["depth"] = depth
    return Launch(
        name="linear" if activation == "none" else f"linear_{activation}",
        kernel=kernel,
        grid=(tiles if setting.programs is None else min(tiles, setting.programs),),
        arguments={**arguments, "bias_ptr": bias, "tokens": tokens},
        constants={
            "WIDTH": width,
            "DEPTH": depth,
            "BLOCK_M": setting.block_m,
            "BLOCK_N": setting.block_n,
            "BLOCK_K": setting.block_k,
            "GROUP_M": setting.group_m,
            "ACTIVATION": activation,
            "PRECISION": setting.precision if x.dtype == torch.float32 else "ieee",
            "SPLIT": split,
            "PERSISTENT": setting.programs is not None,
            "PREFETCH": _prefetches(weight, tokens, setting, settings),
            "WAITS": settings.waits,
        },
        num_warps=setting.num_warps,
        num_stages=setting.num_stages,
        # The epilogue's operations are left out: there are K times as many in the product.
        flops=2 * tokens * width * depth,
        moved=size_of(x, weight, bias, residual, out),
        tensor_cores=x.dtype != torch.float32 or setting.precision == "tf32x3",
        dependent=settings.dependent_launch,
    )


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    check_activation(activation)
    check_tensor("x", x, (None, None), DTYPES)
    if not x.shape[1]:
        raise ValueError(f"x: got shape {list(x.shape)}; at least one column is needed")
    check_tensor("weight", weight, (None, x.shape[1]), (x.dtype,))
    result = (x.shape[0], weight.shape[0])
    check_tensor("out", out, result, (x.dtype,))
    if bias is not None:
        check_tensor("bias", bias, result[1:], (x.dtype,))
    if residual is not None:
        check_tensor("residual", residual, result, (x.dtype,))
    check_same_device("x", x, {"weight": weight, "bias": bias, "residual": residual, "out": out})


def _prefetches(weight: Tensor, tokens: int, setting: LinearSetting, settings: Settings) -> bool:
    """Whether to fetch weights while the launch before still runs.

    Where there are several tiles along T, all but one program of a column would ask in vain.
    """
    return settings.dependent_launch and tokens <= setting.block_m and _describable(weight)


def _splits(setting: LinearSetting) -> bool:
    threads = 32 * setting.num_warps
    return setting.block_m * setting.block_n >= _SPLIT_FROM * threads


def _describable(*tensors: Tensor | None) -> bool:
    """Whether the tensor memory accelerator can address them: rows at multiples of 16 bytes."""
    return all(
        tensor.numel() > 0
        and tensor.data_ptr() % 16 == 0
        and tensor.stride(0) * tensor.element_size() % 16 == 0
        for tensor in tensors
        if tensor is not None
    )


def _describe(
    operands: dict[str, Tensor | None], setting: LinearSetting, split: bool
) -> dict[str, TensorDescriptor | Tensor | None]:
    result = [setting.block_m, setting.block_n // 2 if split else setting.block_n]
    blocks = {
        "x": [setting.block_m, setting.block_k],
        "weight": [setting.block_n, setting.block_k],
        "residual": result,
        "out": result,
    }
    return {
        name: None if tensor is None else TensorDescriptor.from_tensor(tensor, blocks[name])
        for name, tensor in operands.items()
    }


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None = None,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """act(x W^T + bias) + residual, as the settings of x's device have it: here or by cuBLAS.

    Args:
        x: [T, K], bf16, fp16 or fp32, contiguous.
        weight: [N, K]; bias: [N] or None; both in x's dtype.
        activation: None, "gelu" (exact), "gelu_tanh", "relu" or "silu".
        residual: [T, N] in x's dtype, or None.
        out: where the result goes, [T, N]; may be `residual` itself. None allocates.

    Returns:
        [T, N], in x's dtype.

    Raises:
        TypeError, ValueError: as `linear_launch`.
    """
    if out is None:
        return _linear(x, weight, bias, activation, residual)
    _linear_out(x, weight, bias, activation, residual, out)
    return out


@torch.library.custom_op("fastdistil::linear", mutates_args=())
def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[0])
    _run(x, weight, bias, activation, residual, out)
    return out


@_linear.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("fastdistil::linear_out", mutates_args=("out",))
def _linear_out(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    _run(x, weight, bias, activation, residual, out)


@_linear_out.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    return None


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None,
    out: Tensor,
) -> None:
    _check(x, weight, bias, activation or "none", residual, out)
    settings = settings_for(x.device)
    setting = settings.linear(x.dtype, x.shape[0], *weight.shape)
    if setting.variant == "cublas":
        y = ACTIVATIONS[activation or "none"](F.linear(x, weight, bias))
        out.copy_(y if residual is None else y + residual)
        return
    launch = linear_launch(x, weight, bias, activation, residual, out, settings, setting)
    submit(launch, x.device)


def linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """The definition: in float32, or in float64 where x is, and rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide) @ weight.to(wide).T
    if bias is not None:
        y = y + bias.to(wide)
    y = ACTIVATIONS[activation or "none"](y)
    if residual is not None:
        y = y + residual.to(wide)
    return y.to(x.dtype)
