"""What goes into the operations of this folder: what is refused, and what the rest costs.

Plain PyTorch. The Triton kernels call these before a launch, and so does whoever computes the same
operations another way: same arguments, same errors, same accounting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# What a kernel may read and write: the precisions of the engine.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
IDS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
MASKS = (torch.bool, *IDS, torch.bfloat16, torch.float16, torch.float32, torch.float64)

# Registers end somewhere: a row of this many float32 numbers still fits a program's.
WIDEST = 8192

# The activations; operations per element, a function such as erf, exp or the reciprocal counted as
# one. "none" is the bias alone.
ACTIVATION_FLOPS = {"none": 0, "gelu": 5, "gelu_tanh": 10, "relu": 1, "silu": 4}
# What torch.nn.functional.gelu calls them.
APPROXIMATIONS = {"none": "gelu", "tanh": "gelu_tanh"}

POOLINGS = ("mean", "cls", "max")

WORD, POSITION, SEGMENT = 1, 2, 4  # bits of `errors`


class Cost(NamedTuple):
    """What an operation takes, however it is done.

    Attributes:
        flops: floating-point operations of the mathematics, a multiply-add counted as two.
        moved: bytes that have to move, each operand read once and each result written once.
    """

    flops: int
    moved: int


# --- the operations -------------------------------------------------------------------------------


def check_layernorm(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, out: Tensor
) -> Cost:
    """Refuse what `layernorm_launch` does not take; what the rest costs.

    Raises:
        TypeError, ValueError: as `layernorm_launch`.
    """
    check_tensor("x", x, (None, None), DTYPES)
    tokens, width = x.shape
    check_width("x", width)
    check_tensor("weight", weight, (width,), (x.dtype,))
    check_tensor("bias", bias, (width,), (x.dtype,))
    if residual is not None:
        check_tensor("residual", residual, (tokens, width), (x.dtype,))
    check_tensor("out", out, (tokens, width), (x.dtype,))
    others = {"weight": weight, "bias": bias, "residual": residual, "out": out}
    check_together("x", x, others)
    # Sum, difference, square, sum, scale, weight, bias; and the residual.
    return Cost(x.numel() * (7 + (residual is not None)), size_of(x, residual, weight, bias, out))


def check_embed_layernorm(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    errors: Tensor,
) -> Cost:
    """Refuse what `embed_layernorm_launch` does not take; what the rest costs.

    Raises:
        TypeError, ValueError: as `embed_layernorm_launch`.
    """
    check_tensor("word", word, (None, None), DTYPES)
    (tokens,), width = input_ids.shape, word.shape[1]
    check_width("word", width)
    if segment_ids is not None and segment is None:
        raise ValueError("segment_ids: given without a segment table; None is allowed then")
    for name, table in (("word", word), ("position", position), ("segment", segment)):
        if table is None:
            continue
        check_tensor(name, table, (None, width), (word.dtype,))
        if not table.shape[0]:
            raise ValueError(f"{name}: got no rows; at least one is needed")
    names = {"input_ids": input_ids, "positions": positions, "segment_ids": segment_ids}
    for name, ids in names.items():
        if ids is not None:
            check_tensor(name, ids, (tokens,), (torch.int32,))
    for name, vector in (("weight", weight), ("bias", bias)):
        check_tensor(name, vector, (width,), (word.dtype,))
    check_tensor("out", out, (tokens, width), (word.dtype,))
    check_tensor("errors", errors, (1,), (torch.int32,))
    others = {**names, "position": position, "segment": segment, "weight": weight, "bias": bias}
    check_together("word", word, {**others, "out": out, "errors": errors})
    tables = 2 + (segment is not None)
    # A row of every table for each token, and the ids.
    moved = (tables + 1) * size_of(out) + size_of(weight, bias, *names.values())
    return Cost(out.numel() * (7 + tables - 1), moved)


def check_errors(errors: Tensor, word: Tensor, position: Tensor, segment: Tensor | None) -> None:
    """Raise if the kernel has met an id outside its table. Waits for the GPU.

    Raises:
        ValueError: naming the ids and what is allowed.
    """
    found = int(errors.item())
    tables = (
        (WORD, "input_ids", word),
        (POSITION, "positions", position),
        (SEGMENT, "segment_ids", segment),
    )
    for bit, name, table in tables:
        if found & bit and table is not None:
            raise ValueError(
                f"{name}: some are outside the table; 0 to {table.shape[0] - 1} is allowed"
            )


def check_bias_gelu(x: Tensor, bias: Tensor, activation: str, out: Tensor) -> Cost:
    """Refuse what `bias_gelu_launch` does not take; what the rest costs.

    Raises:
        TypeError, ValueError: as `bias_gelu_launch`.
    """
    check_activation(activation)
    check_tensor("x", x, (None, None), DTYPES)
    check_tensor("bias", bias, (x.shape[1],), (x.dtype,))
    check_tensor("out", out, tuple(x.shape), (x.dtype,))
    check_together("x", x, {"bias": bias, "out": out})
    return Cost(x.numel() * (1 + ACTIVATION_FLOPS[activation]), size_of(x, bias, out))


def check_activation(activation: str) -> None:
    """Refuse a name that is no key of ACTIVATION_FLOPS.

    Raises:
        ValueError: naming those there are.
    """
    if activation not in ACTIVATION_FLOPS:
        raise ValueError(f"activation: got {activation!r}; allowed: {', '.join(ACTIVATION_FLOPS)}")


def check_approximate(approximate: str) -> None:
    """Refuse a name that is no key of APPROXIMATIONS.

    Raises:
        ValueError: naming those there are.
    """
    if approximate not in APPROXIMATIONS:
        raise ValueError(f"approximate: got {approximate!r}; allowed: {', '.join(APPROXIMATIONS)}")


def check_pool(
    hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool, out: Tensor
) -> Cost:
    """Refuse what `pool_launch` does not take; what the rest costs.

    Raises:
        TypeError, ValueError: as `pool_launch`.
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling: got {pooling!r}; allowed: {', '.join(POOLINGS)}")
    check_tensor("hidden", hidden, (None, None), DTYPES)
    tokens, width = hidden.shape
    check_width("hidden", width)
    check_ends(cu_seqlens)
    sequences = cu_seqlens.numel() - 1
    check_tensor("out", out, (sequences, width), (torch.float32,))
    check_together("hidden", hidden, {"cu_seqlens": cu_seqlens, "out": out})
    read = sequences if pooling == "cls" else tokens
    return Cost(
        read * width + 3 * normalize * out.numel(),
        read * width * hidden.element_size() + size_of(cu_seqlens, out),
    )


def check_pack(mask: Tensor, cu_seqlens: Tensor, positions: Tensor, indices: Tensor) -> Cost:
    """Refuse what `pack_launch` does not take; what the rest costs.

    Raises:
        TypeError, ValueError: as `pack_launch`.
    """
    check_padded("mask", mask, tuple(mask.shape), MASKS)
    check_rowwise("mask", mask)
    check_tensor("cu_seqlens", cu_seqlens, (mask.shape[0] + 1,), (torch.int32,))
    check_tensor("positions", positions, (None,), (torch.int32,))
    check_total("positions", len(positions), mask)
    check_tensor("indices", indices, (len(positions),), (torch.int64,))
    others = {"cu_seqlens": cu_seqlens, "positions": positions, "indices": indices}
    check_together("mask", mask, others)
    return Cost(0, size_of(mask, cu_seqlens, positions, indices))


def check_total(name: str, total: int, mask: Tensor) -> None:
    """Refuse more tokens than a batch has places for.

    Raises:
        ValueError: naming the limit.
    """
    if not 0 <= total <= mask.numel():
        raise ValueError(f"{name}: got {total} tokens; 0 to {mask.numel()} is allowed")


def check_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    out: Tensor,
    num_sequences: Tensor | None = None,
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> Cost:
    """Refuse what `attention_launch` does not take, scales apart; what the rest costs.

    Raises:
        TypeError, ValueError: as `attention_launch`.
    """
    check_tensor("qkv", qkv, (None, 3, None, None), dtypes)
    tokens, _, heads, head_dim = qkv.shape
    check_ends(cu_seqlens)
    if max_seqlen < 0:
        raise ValueError(f"max_seqlen: got {max_seqlen}; 0 or more is allowed")
    check_tensor("out", out, (tokens, heads * head_dim), (qkv.dtype,))
    if num_sequences is not None:
        check_tensor("num_sequences", num_sequences, (1,), (torch.int32,))
    others = {"cu_seqlens": cu_seqlens, "out": out, "num_sequences": num_sequences}
    check_together("qkv", qkv, others)
    # As if all sequences were of the greatest length: the true ones are on the device.
    flops = 4 * tokens * min(max_seqlen, tokens) * heads * head_dim
    return Cost(flops, size_of(qkv, cu_seqlens, num_sequences, out))


def score_scale(head_dim: int, scale: float | None, scale_folded: bool) -> float:
    """What scores are multiplied with before powers of 2 are taken of them.

    Raises:
        ValueError: no positive number, or one beside `scale_folded`.
    """
    if scale_folded:
        if scale is not None:
            raise ValueError(f"scale: got {scale} beside scale_folded=True; None is allowed there")
        return 1.0
    scale = head_dim**-0.5 if scale is None else scale
    if not 0 < scale < math.inf:
        raise ValueError(f"scale: got {scale}; a positive number is allowed")
    return scale * math.log2(math.e)


# --- tensors --------------------------------------------------------------------------------------


def check_tensor(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """Refuse a tensor that a kernel would misread.

    Args:
        name: the argument's, for the message.
        tensor: contiguous, of that shape (None stands for any size) and one of those dtypes.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, or gaps between the elements.
    """
    if tensor.dtype not in dtypes:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name}: got {got}; allowed: {allowed}")
    fits = len(tensor.shape) == len(shape) and all(
        want is None or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: got shape {list(tensor.shape)}; [{wanted}] is allowed")
    if not tensor.is_contiguous():
        raise ValueError(f"{name}: not contiguous; call .contiguous() on it")


def check_together(first: str, tensor: Tensor, others: Mapping[str, Tensor | None]) -> None:
    """Refuse operands that are not all where the first one is.

    Raises:
        ValueError: naming the one that is elsewhere.
    """
    for name, other in others.items():
        if other is not None and other.device != tensor.device:
            raise ValueError(f"{name}: on {other.device}, but {first} is on {tensor.device}")


def check_width(name: str, width: int) -> None:
    """Refuse rows that no program can hold.

    Raises:
        ValueError: no columns, or more than WIDEST.
    """
    if not 1 <= width <= WIDEST:
        raise ValueError(f"{name}: got rows of {width} numbers; 1 to {WIDEST} is allowed")


def check_ends(cu_seqlens: Tensor) -> None:
    """Refuse what cannot say where sequences begin and end.

    Raises:
        TypeError, ValueError: another dtype, another shape.
    """
    check_tensor("cu_seqlens", cu_seqlens, (None,), (torch.int32,))
    if not cu_seqlens.numel():
        raise ValueError("cu_seqlens: got shape [0]; at least the 0 that it begins with is needed")


def check_padded(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """Refuse what is no [B, S] of those dtypes.

    Raises:
        TypeError, ValueError: another dtype, another shape.
    """
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: got {tensor.dtype}; allowed: {', '.join(map(str, dtypes))}")
    if tensor.dim() != 2 or tuple(tensor.shape) != shape:
        wanted = list(shape) if len(shape) == 2 else "[B, S]"
        raise ValueError(f"{name}: got shape {list(tensor.shape)}; {wanted} is allowed")


def check_rowwise(name: str, tensor: Tensor) -> None:
    """Refuse rows with gaps; rows themselves may lie anywhere.

    Raises:
        ValueError: gaps.
    """
    if not is_rowwise(tensor):
        raise ValueError(f"{name}: its rows are not contiguous; call .contiguous() on it")


def is_rowwise(tensor: Tensor) -> bool:
    """Whether the numbers of each row of [B, S] lie side by side."""
    return tensor.shape[1] <= 1 or tensor.stride(1) == 1


def rowwise(tensor: Tensor) -> Tensor:
    """The same numbers, without gaps within a row."""
    return tensor if is_rowwise(tensor) else tensor.contiguous()


def size_of(*tensors: Tensor | None) -> int:
    """Bytes that some tensors hold."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
