"""The fused operations in CUDA C++: the functions of `fastdistil.kernels`, compiled ahead of time.

Names, arguments, results and errors are those of the Triton kernels, and so is what a launch says
it costs. What they compute is described there, how in csrc/cuda. Each is a `torch.library`
operation too, so torch.compile(fullgraph=True) traces over it.

They take CUDA tensors; CPU tensors where the extension was built with emulated kernels. `available`
says whether there are any.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cuda_launch import CudaLaunch, call_of, check_runs
from .cuda_launch import available as available
from .cuda_launch import emulated as emulated
from .kernels.checks import (
    APPROXIMATIONS,
    MASKS,
    check_approximate,
    check_attention,
    check_bias_gelu,
    check_embed_layernorm,
    check_errors,
    check_layernorm,
    check_pack,
    check_padded,
    check_pool,
    check_tensor,
    check_total,
    rowwise,
    score_scale,
)

# What `varlen_attention` takes.
LONGEST_SEQUENCE = 128
HEAD_DIMS = (32, 64, 128)
HALVES = (torch.bfloat16, torch.float16)

_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}

# Attention reads and writes so many bytes at a time.
_ALIGNMENT = 16


# --- layernorm ------------------------------------------------------------------------------------


def layernorm_launch(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, out: Tensor
) -> CudaLaunch:
    """The launch that writes LayerNorm(x + residual).

    Args:
        x: [T, D], bf16, fp16 or fp32, contiguous; D at most 8192.
        weight: [D]; bias: [D]; both in x's dtype.
        eps: added to the variance.
        residual: [T, D] in x's dtype, or None.
        out: [T, D], in x's dtype; may be x or the residual itself.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices or gaps that do not fit.
        RuntimeError: there are no such kernels here; see `available`.
    """
    cost = check_layernorm(x, weight, bias, residual, out)
    check_runs("x", x)
    tokens, width = x.shape
    tensors = {"x": x, "residual": residual, "weight": weight, "bias": bias, "out": out}
    numbers = {"dtype": _NAMES[x.dtype], "tokens": tokens, "width": width, "eps": eps}
    return CudaLaunch("layernorm", call_of("layernorm", tensors, numbers), *cost)


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
        TypeError, ValueError, RuntimeError: as `layernorm_launch`.
    """
    if out is None:
        return _layernorm(x, weight, bias, eps, residual)
    if out is x or out is residual:
        # torch wants an operation's results apart from its inputs.
        layernorm_launch(x, weight, bias, eps, residual, out).run()
    else:
        _layernorm_out(x, weight, bias, eps, residual, out)
    return out


@torch.library.custom_op("fastdistil::cuda_layernorm", mutates_args=())
def _layernorm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None
) -> Tensor:
    out = torch.empty_like(x)
    layernorm_launch(x, weight, bias, eps, residual, out).run()
    return out


@_layernorm.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fastdistil::cuda_layernorm_out", mutates_args=("out",))
def _layernorm_out(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, out: Tensor
) -> None:
    layernorm_launch(x, weight, bias, eps, residual, out).run()


@_layernorm_out.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, out: Tensor
) -> None:
    return None


# --- embed_layernorm ------------------------------------------------------------------------------


def embed_layernorm_launch(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out: Tensor,
    errors: Tensor,
) -> CudaLaunch:
    """The launch that writes the embeddings.

    Args:
        input_ids, positions, segment_ids: int32 [T]; segment_ids may be None, for row 0.
        word: [V, D]; position: [P, D]; segment: [S, D], or None for no segment embeddings; bf16,
            fp16 or fp32, all of one dtype; D at most 8192.
        weight, bias: [D], in that dtype.
        eps: added to the variance.
        out: [T, D], in that dtype.
        errors: int32 [1]: bits 1, 2 and 4 are set where an id, a position or a segment is outside
            its table; the nearest row there is is read then.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices or gaps that do not fit; an empty table; segment ids without a
            segment table.
        RuntimeError: there are no such kernels here; see `available`.
    """
    ids = (input_ids, positions, segment_ids)
    cost = check_embed_layernorm(*ids, word, position, segment, weight, bias, out, errors)
    check_runs("word", word)
    tokens, width = out.shape
    tensors = {
        "input_ids": input_ids,
        "positions": positions,
        "segment_ids": segment_ids,
        "word": word,
        "position": position,
        "segment": segment,
        "weight": weight,
        "bias": bias,
        "out": out,
        "errors": errors,
    }
    numbers = {
        "dtype": _NAMES[word.dtype],
        "tokens": tokens,
        "width": width,
        "words": word.shape[0],
        "position_rows": position.shape[0],
        "segments": 0 if segment is None else segment.shape[0],
        "eps": eps,
    }
    return CudaLaunch("embed_layernorm", call_of("embed_layernorm", tensors, numbers), *cost)


def embed_layernorm(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    errors: Tensor | None = None,
) -> Tensor:
    """LayerNorm of the sum of the embeddings.

    Args:
        input_ids, positions, segment_ids: int32 [T]; segment_ids may be None, for row 0.
        word: [V, D]; position: [P, D]; segment: [S, D], or None for no segment embeddings.
        weight, bias: [D], in the tables' dtype.
        eps: added to the variance.
        errors: int32 [1], where bits are set for ids outside their tables; the caller looks at it
            when it likes. None: this call looks, which waits for the GPU.

    Returns:
        [T, D], in the tables' dtype.

    Raises:
        TypeError, ValueError, RuntimeError: as `embed_layernorm_launch`; without `errors`, also a
            ValueError for an id outside its table.
    """
    operands = (input_ids, positions, segment_ids, word, position, segment, weight, bias, eps)
    if errors is not None:
        return _embed_layernorm(*operands, errors)
    errors = torch.zeros(1, dtype=torch.int32, device=word.device)
    out = _embed_layernorm(*operands, errors)
    check_errors(errors, word, position, segment)
    return out


@torch.library.custom_op("fastdistil::cuda_embed_layernorm", mutates_args=("errors",))
def _embed_layernorm(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    errors: Tensor,
) -> Tensor:
    out = word.new_empty(input_ids.shape[0], word.shape[1])
    tables = (word, position, segment, weight, bias)
    embed_layernorm_launch(input_ids, positions, segment_ids, *tables, eps, out, errors).run()
    return out


@_embed_layernorm.register_fake
def _(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    errors: Tensor,
) -> Tensor:
    return word.new_empty(input_ids.shape[0], word.shape[1])


# --- bias_gelu ------------------------------------------------------------------------------------


def bias_gelu_launch(x: Tensor, bias: Tensor, activation: str, out: Tensor) -> CudaLaunch:
    """The launch that writes act(x + bias).

    Args:
        x: [T, N], bf16, fp16 or fp32, contiguous.
        bias: [N], in x's dtype.
        activation: "none", "gelu", "gelu_tanh", "relu" or "silu".
        out: [T, N], in x's dtype; may be x itself.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices or gaps that do not fit; an unknown activation.
        RuntimeError: there are no such kernels here; see `available`.
    """
    cost = check_bias_gelu(x, bias, activation, out)
    check_runs("x", x)
    tokens, width = x.shape
    tensors = {"x": x, "bias": bias, "out": out}
    numbers = {
        "dtype": _NAMES[x.dtype],
        "activation": activation,
        "tokens": tokens,
        "width": width,
    }
    return CudaLaunch(f"bias_{activation}", call_of("bias_activation", tensors, numbers), *cost)


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
        TypeError, ValueError, RuntimeError: as `bias_gelu_launch`; an unknown `approximate`.
    """
    check_approximate(approximate)
    if out is None:
        return _bias_gelu(x, bias, approximate)
    _bias_gelu_out(x, bias, approximate, out)
    return out


@torch.library.custom_op("fastdistil::cuda_bias_gelu", mutates_args=())
def _bias_gelu(x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    out = torch.empty_like(x)
    bias_gelu_launch(x, bias, APPROXIMATIONS[approximate], out).run()
    return out


@_bias_gelu.register_fake
def _(x: Tensor, bias: Tensor, approximate: str) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("fastdistil::cuda_bias_gelu_out", mutates_args=("out",))
def _bias_gelu_out(x: Tensor, bias: Tensor, approximate: str, out: Tensor) -> None:
    bias_gelu_launch(x, bias, APPROXIMATIONS[approximate], out).run()


@_bias_gelu_out.register_fake
def _(x: Tensor, bias: Tensor, approximate: str, out: Tensor) -> None:
    return None


# --- pool -----------------------------------------------------------------------------------------


def pool_launch(
    hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool, out: Tensor
) -> CudaLaunch:
    """The launch that writes one vector per sequence.

    Args:
        hidden: [T, D], bf16, fp16 or fp32, contiguous; D at most 8192.
        cu_seqlens: int32 [B + 1], rising from 0, to T at most.
        pooling: "mean", "cls" or "max".
        normalize: scale every vector to length 1.
        out: float32 [B, D].

    Raises:
        TypeError: a dtype the kernel does not read or write.
        ValueError: shapes, devices or gaps that do not fit; an unknown pooling.
        RuntimeError: there are no such kernels here; see `available`.
    """
    cost = check_pool(hidden, cu_seqlens, pooling, normalize, out)
    check_runs("hidden", hidden)
    sequences, width = out.shape
    tensors = {"hidden": hidden, "cu_seqlens": cu_seqlens, "out": out}
    numbers = {
        "dtype": _NAMES[hidden.dtype],
        "pooling": pooling,
        "normalize": normalize,
        "sequences": sequences,
        "width": width,
    }
    return CudaLaunch(f"pool_{pooling}", call_of("pool", tensors, numbers), *cost)


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
        TypeError, ValueError, RuntimeError: as `pool_launch`.
    """
    if out is None:
        return _pool(hidden, cu_seqlens, pooling, normalize)
    _pool_out(hidden, cu_seqlens, pooling, normalize, out)
    return out


@torch.library.custom_op("fastdistil::cuda_pool", mutates_args=())
def _pool(hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool) -> Tensor:
    out = _empty_vectors(hidden, cu_seqlens)
    pool_launch(hidden, cu_seqlens, pooling, normalize, out).run()
    return out


@_pool.register_fake
def _(hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool) -> Tensor:
    return _empty_vectors(hidden, cu_seqlens)


@torch.library.custom_op("fastdistil::cuda_pool_out", mutates_args=("out",))
def _pool_out(
    hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool, out: Tensor
) -> None:
    pool_launch(hidden, cu_seqlens, pooling, normalize, out).run()


@_pool_out.register_fake
def _(hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool, out: Tensor) -> None:
    return None


def _empty_vectors(hidden: Tensor, cu_seqlens: Tensor) -> Tensor:
    return hidden.new_empty(cu_seqlens.shape[0] - 1, hidden.shape[1], dtype=torch.float32)


# --- pack -----------------------------------------------------------------------------------------


def pack_launch(mask: Tensor, cu_seqlens: Tensor, positions: Tensor, indices: Tensor) -> CudaLaunch:
    """The launch that writes where the kept tokens are, and where each row begins among them.

    Args:
        mask: [B, S], bool, integers or floats, contiguous within rows; zero drops a token.
        cu_seqlens: int32 [B + 1]; unlike the Triton kernel's, a result.
        positions, indices: int32 and int64 [N], N at most B * S.

    Raises:
        TypeError: a dtype the kernel does not read or write.
        ValueError: shapes, devices or gaps that do not fit.
        RuntimeError: there are no such kernels here; see `available`.
    """
    cost = check_pack(mask, cu_seqlens, positions, indices)
    check_runs("mask", mask)
    rows, width = mask.shape
    tensors = {
        "mask": mask,
        "cu_seqlens": cu_seqlens,
        "positions": positions,
        "indices": indices,
    }
    numbers = {
        "row_stride": mask.stride(0),
        "mask_bytes": mask.element_size(),
        "mask_is_float": mask.dtype.is_floating_point,
        "rows": rows,
        "width": width,
        "places": len(positions),
    }
    return CudaLaunch("pack", call_of("pack", tensors, numbers), *cost)


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
        TypeError, ValueError, RuntimeError: as `pack_launch`.
    """
    positions, indices, cu_seqlens = _pack(mask, total)
    return positions, indices, cu_seqlens


@torch.library.custom_op("fastdistil::cuda_pack", mutates_args=())
def _pack(mask: Tensor, total: int | None) -> tuple[Tensor, Tensor, Tensor]:
    check_padded("mask", mask, tuple(mask.shape), MASKS)
    places = mask.numel() if total is None else total
    check_total("total", places, mask)
    positions, indices, cu_seqlens = _empty_places(mask, places)
    pack_launch(rowwise(mask), cu_seqlens, positions, indices).run()
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


# --- varlen_attention -----------------------------------------------------------------------------


def attention_launch(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    out: Tensor,
    scale: float | None = None,
    scale_folded: bool = False,
) -> CudaLaunch:
    """The launch that writes the attention of each sequence over itself.

    Args:
        qkv: [T, 3, H, Dh]: queries, keys and values; bf16 or fp16, contiguous, at a multiple of 16
            bytes; Dh is 32, 64 or 128.
        cu_seqlens: int32 [B + 1], where each sequence begins and, last, where the last one ends:
            rising from 0, to T at most. Empty sequences may be among them.
        max_seqlen: no sequence is longer; up to 128.
        out: [T, H * Dh], in qkv's dtype, at a multiple of 16 bytes; no part of qkv. Rows past the
            end of the last sequence stay as they are.
        scale: of the scores, above zero; None for 1 / sqrt(Dh).
        scale_folded: the queries carry scale * log2(e) already. Leaves no place for `scale`.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices, addresses or gaps that do not fit; a longer max_seqlen; another
            head_dim; a scale that is no positive number, or one beside `scale_folded`.
        RuntimeError: there are no such kernels here; see `available`.
    """
    cost = check_attention(qkv, cu_seqlens, max_seqlen, out, dtypes=HALVES)
    _, _, heads, head_dim = qkv.shape
    if max_seqlen > LONGEST_SEQUENCE:
        raise ValueError(
            f"max_seqlen: got {max_seqlen}; 0 to {LONGEST_SEQUENCE} is allowed here, the Triton "
            "kernel takes any"
        )
    if head_dim not in HEAD_DIMS:
        allowed = ", ".join(map(str, HEAD_DIMS))
        raise ValueError(f"qkv: got a head_dim of {head_dim}; allowed: {allowed}")
    factor = score_scale(head_dim, scale, scale_folded)
    check_runs("qkv", qkv)
    for name, tensor in (("qkv", qkv), ("out", out)):
        if not _aligned(tensor):
            raise ValueError(f"{name}: not at a multiple of {_ALIGNMENT} bytes; .clone() it")
    tensors = {"qkv": qkv, "cu_seqlens": cu_seqlens, "out": out}
    numbers = {
        "dtype": _NAMES[qkv.dtype],
        "sequences": cu_seqlens.numel() - 1,
        "heads": heads,
        "head_dim": head_dim,
        "longest": max_seqlen,
        "scale": factor,
    }
    return CudaLaunch("varlen_attention", call_of("short_attention", tensors, numbers), *cost)


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    out: Tensor | None = None,
    scale: float | None = None,
    scale_folded: bool = False,
) -> Tensor:
    """softmax(scale Q K^T) V within each sequence, of up to 128 tokens.

    Args:
        qkv: [T, 3, H, Dh], bf16 or fp16, contiguous; Dh is 32, 64 or 128.
        cu_seqlens: int32 [B + 1], where each sequence begins and where the last one ends (T).
        max_seqlen: no sequence is longer; up to 128.
        out: where the result goes, [T, H * Dh]. None allocates.
        scale: of the scores, above zero; None for 1 / sqrt(Dh).
        scale_folded: the queries carry scale * log2(e) already.

    Returns:
        [T, H * Dh], in qkv's dtype.

    Raises:
        TypeError, ValueError, RuntimeError: as `attention_launch`.
    """
    if out is None:
        return _varlen_attention(qkv, cu_seqlens, max_seqlen, scale, scale_folded)
    _varlen_attention_out(qkv, cu_seqlens, max_seqlen, scale, scale_folded, out)
    return out


@torch.library.custom_op("fastdistil::cuda_varlen_attention", mutates_args=())
def _varlen_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float | None, scale_folded: bool
) -> Tensor:
    out = _empty_context(qkv)
    _attend(qkv, cu_seqlens, max_seqlen, scale, scale_folded, out)
    return out


@_varlen_attention.register_fake
def _(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float | None, scale_folded: bool
) -> Tensor:
    return _empty_context(qkv)


@torch.library.custom_op("fastdistil::cuda_varlen_attention_out", mutates_args=("out",))
def _varlen_attention_out(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
    scale_folded: bool,
    out: Tensor,
) -> None:
    _attend(qkv, cu_seqlens, max_seqlen, scale, scale_folded, out)


@_varlen_attention_out.register_fake
def _(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
    scale_folded: bool,
    out: Tensor,
) -> None:
    return None


def _empty_context(qkv: Tensor) -> Tensor:
    check_tensor("qkv", qkv, (None, 3, None, None), HALVES)
    return qkv.new_empty(qkv.shape[0], qkv.shape[2] * qkv.shape[3])


def _attend(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
    scale_folded: bool,
    out: Tensor,
) -> None:
    """Wherever qkv and out begin: the rare ones that begin elsewhere are moved."""
    source = qkv if _aligned(qkv) else qkv.clone()
    target = out if _aligned(out) else out.clone()
    attention_launch(source, cu_seqlens, max_seqlen, target, scale, scale_folded).run()
    if target is not out:
        out.copy_(target)


def _aligned(tensor: Tensor) -> bool:
    return tensor.is_meta or tensor.data_ptr() % _ALIGNMENT == 0
