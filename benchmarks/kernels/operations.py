"""Every operation once: operands, definition in PyTorch, cost, and what runs it on a GPU.

The definition is what eager PyTorch and torch.compile run, and on float64 operands the truth.
A cost is what has to be done, however it is done: a multiply-add is two operations, and of bytes
those count that grow with the tokens, and the weights of a product, read or written once each.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdistil import cuda_kernels
from fastdistil.kernels.checks import ACTIVATION_FLOPS, Cost
from fastdistil.packing import pack_padded

Operands = dict[str, Any]
Result = Tensor | tuple[Tensor, ...]
Function = Callable[[Operands], Result]

TRITON, CUDA = "Triton", "CUDA C++"

EPS = 1e-12


@dataclass(frozen=True)
class Precision:
    """Numbers of a kind.

    Attributes:
        dtype: of the operands.
        size: bytes of a number.
        tolerance: what a right result may be off by, of its largest magnitude.
    """

    dtype: torch.dtype
    size: int
    tolerance: float


# bf16 keeps 8 bits and int8 7, and an operation rounds a few times. In float32 it is the sums that
# round: what the project promises of a whole forward.
PRECISIONS = {
    "fp32": Precision(torch.float32, 4, 2e-5),
    "bf16": Precision(torch.bfloat16, 2, 4 * 2.0**-8),
    "int8": Precision(torch.int8, 1, 4 * 2.0**-7),
    "integers": Precision(torch.int64, 8, 0.0),
}


@dataclass(frozen=True)
class Sizes:
    """What an operation runs on: the lengths of sequences, and the sizes of an encoder."""

    lengths: tuple[int, ...] = (128,) * 128
    width: int = 768
    inner: int = 3072
    heads: int = 12
    vocabulary: int = 30522
    positions: int = 512
    segments: int = 0

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return sum(self.lengths)


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation.

    Attributes:
        name: for people, and the key among the results.
        operands: for sizes, numbers of a dtype on a device, seeded; none of them are all zero.
        plain: the definition, in PyTorch.
        cost: of those operands, were numbers of so many bytes each.
        ours: what this project has for it beside the CPU engine, by name; or why it has not.
        precisions: keys of PRECISIONS that PyTorch computes it in.
    """

    name: str
    operands: Callable[[Sizes, torch.dtype, torch.device, int], Operands]
    plain: Function
    cost: Callable[[Operands, int], Cost]
    ours: Mapping[str, Function | str]
    precisions: tuple[str, ...] = ("fp32", "bf16")


def relative_error(got: Result, want: Result) -> float:
    """The largest absolute error as a part of the largest magnitude; NaN where anything is NaN."""
    if isinstance(got, tuple):
        return max(relative_error(*pair) for pair in zip(got, want, strict=True))
    assert isinstance(want, Tensor)
    if got.shape != want.shape:
        raise ValueError(f"shape {list(got.shape)}; {list(want.shape)} is right")
    got, want = got.double(), want.double()
    return float((got - want).abs().max() / want.abs().max())


def cast(operands: Operands, dtype: torch.dtype) -> Operands:
    """The same with other floating-point numbers."""
    return {name: _cast(value, dtype) for name, value in operands.items()}


def truth(operation: Operation, operands: Operands) -> Result:
    """The operation's result in float64."""
    return operation.plain(cast(operands, torch.float64))


def compiled(function: Function, backend: str = "inductor") -> Function:
    """By torch.compile, for the very sizes that it is called with."""
    found: Function = torch.compile(function, dynamic=False, fullgraph=True, backend=backend)
    return found


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, list):
        return [_cast(each, dtype) for each in value]
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def _normal(dtype: torch.dtype, device: torch.device, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return functools.partial(torch.randn, dtype=dtype, device=device, generator=generator)


def _results(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Operands:
    """Where our two GPU kernels write: apart, so that neither result is taken for the other's."""
    shape = (rows, width)
    return {name: torch.empty(shape, dtype=dtype, device=device) for name in ("out", "cuda_out")}


# --- attention ------------------------------------------------------------------------------------


def _attention_operands(
    sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int
) -> Operands:
    """qkv of packed sequences; and the same padded, for those who pad."""
    lengths, width = sizes.lengths, sizes.width // sizes.heads
    qkv = _normal(dtype, device, seed)(sizes.tokens, 3, sizes.heads, width)
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    longest = max(lengths)
    real = torch.arange(longest)[None, :] < torch.tensor(lengths)[:, None]
    real = real.to(device)
    padded = qkv.new_zeros(len(lengths), longest, 3, sizes.heads, width)
    padded[real] = qkv
    return {
        "qkv": qkv,
        "cu_seqlens": ends,
        "max_seqlen": longest,
        "padded": [part.transpose(1, 2).contiguous() for part in padded.unbind(2)],
        "mask": None if bool(real.all()) else real[:, None, None, :],
        # Fixed before a graph is captured: a selection by mask would ask the device for its size.
        "places": real.flatten().nonzero().squeeze(1),
        **_results(sizes.tokens, sizes.width, dtype, device),
    }


def _attention(o: Operands) -> Tensor:
    """PyTorch's fused attention over the padded batch, and the real tokens of it."""
    query, key, value = o["padded"]
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=o["mask"])
    flat = found.transpose(1, 2).flatten(2).flatten(0, 1)
    return flat if o["mask"] is None else flat.index_select(0, o["places"])


def _attention_cost(o: Operands, size: int) -> Cost:
    """Products of each sequence with itself; none of the padding."""
    tokens, _, heads, width = o["qkv"].shape
    squares = int(o["cu_seqlens"].diff().square().sum())
    return Cost(4 * squares * heads * width, 4 * tokens * heads * width * size)


def _attention_triton(o: Operands) -> Tensor:
    from fastdistil.kernels.attention import varlen_attention

    return varlen_attention(o["qkv"], o["cu_seqlens"], o["max_seqlen"], out=o["out"])


def _attention_cuda(o: Operands) -> Tensor:
    places = (o["qkv"], o["cu_seqlens"], o["max_seqlen"])
    return cuda_kernels.varlen_attention(*places, out=o["cuda_out"])


ATTENTION = Operation(
    "attention",
    _attention_operands,
    _attention,
    _attention_cost,
    {TRITON: _attention_triton, CUDA: _attention_cuda},
)


# --- LayerNorm ------------------------------------------------------------------------------------


def _rows_operands(
    residual: bool, sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int
) -> Operands:
    make = _normal(dtype, device, seed)
    shape = (sizes.tokens, sizes.width)
    return {
        "x": make(*shape),
        "residual": make(*shape) if residual else None,
        "weight": make(sizes.width),
        "bias": make(sizes.width),
        **_results(*shape, dtype, device),
    }


def _layernorm(o: Operands) -> Tensor:
    summed = o["x"] if o["residual"] is None else o["x"] + o["residual"]
    return F.layer_norm(summed, o["weight"].shape, o["weight"], o["bias"], EPS)


def _layernorm_cost(o: Operands, size: int) -> Cost:
    # Sum, difference, square, sum, scale, weight, bias; and the residual.
    numbers, added = o["x"].numel(), o["residual"] is not None
    return Cost((7 + added) * numbers, (2 + added) * numbers * size)


def _layernorm_triton(o: Operands) -> Tensor:
    from fastdistil.kernels.layernorm import layernorm

    return layernorm(o["x"], o["weight"], o["bias"], EPS, residual=o["residual"], out=o["out"])


def _layernorm_cuda(o: Operands) -> Tensor:
    rows = (o["x"], o["weight"], o["bias"])
    return cuda_kernels.layernorm(*rows, EPS, residual=o["residual"], out=o["cuda_out"])


LAYERNORM, RESIDUAL_LAYERNORM = (
    Operation(
        name,
        functools.partial(_rows_operands, residual),
        _layernorm,
        _layernorm_cost,
        {TRITON: _layernorm_triton, CUDA: _layernorm_cuda},
    )
    for name, residual in (("layernorm", False), ("layernorm + residual", True))
)


# --- bias and GELU --------------------------------------------------------------------------------


def _inner_operands(sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int) -> Operands:
    make = _normal(dtype, device, seed)
    shape = (sizes.tokens, sizes.inner)
    return {"x": make(*shape), "bias": make(sizes.inner), **_results(*shape, dtype, device)}


def _bias_gelu_cost(o: Operands, size: int) -> Cost:
    numbers = o["x"].numel()
    return Cost((1 + ACTIVATION_FLOPS["gelu"]) * numbers, 2 * numbers * size)


def _bias_gelu_triton(o: Operands) -> Tensor:
    from fastdistil.kernels.gelu import bias_gelu

    return bias_gelu(o["x"], o["bias"], out=o["out"])


def _bias_gelu_cuda(o: Operands) -> Tensor:
    return cuda_kernels.bias_gelu(o["x"], o["bias"], out=o["cuda_out"])


BIAS_GELU = Operation(
    "bias + gelu",
    _inner_operands,
    lambda o: F.gelu(o["x"] + o["bias"]),
    _bias_gelu_cost,
    {TRITON: _bias_gelu_triton, CUDA: _bias_gelu_cuda},
)


# --- linear ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Linear:
    """A linear layer of the encoder: (out_features, in_features) by sizes, and its epilogue."""

    features: Callable[[Sizes], tuple[int, int]]
    activation: str | None = None
    residual: bool = False

    def operands(
        self, sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int
    ) -> Operands:
        make = _normal(dtype, device, seed)
        out_features, in_features = self.features(sizes)
        shape = (sizes.tokens, out_features)
        return {
            "x": make(sizes.tokens, in_features),
            "weight": make(out_features, in_features) / math.sqrt(in_features),
            "bias": make(out_features),
            "residual": make(*shape) if self.residual else None,
            "out": torch.empty(shape, dtype=dtype, device=device),
        }

    def plain(self, o: Operands) -> Tensor:
        found = F.linear(o["x"], o["weight"], o["bias"])
        if self.activation == "gelu":
            found = F.gelu(found)
        return found + o["residual"] if self.residual else found

    def cost(self, o: Operands, size: int) -> Cost:
        x, weight, out = o["x"].numel(), o["weight"].numel(), o["out"].numel()
        epilogue = 1 + ACTIVATION_FLOPS[self.activation or "none"] + self.residual
        moved = x + weight + (1 + self.residual) * out
        return Cost(2 * len(o["x"]) * weight + epilogue * out, moved * size)

    def triton(self, o: Operands) -> Tensor:
        from fastdistil.kernels.linear import linear

        rows = (o["x"], o["weight"], o["bias"])
        return linear(*rows, activation=self.activation, residual=o["residual"], out=o["out"])


def _linear(name: str, layer: _Linear) -> Operation:
    ours: dict[str, Function | str] = {
        TRITON: layer.triton,
        CUDA: "products are Triton's or cuBLAS's",
    }
    return Operation(name, layer.operands, layer.plain, layer.cost, ours)


LINEAR_BIAS = _linear("linear + bias", _Linear(lambda s: (3 * s.width, s.width)))
LINEAR_GELU = _linear("linear + gelu", _Linear(lambda s: (s.inner, s.width), activation="gelu"))
LINEAR_RESIDUAL = _linear("linear + residual", _Linear(lambda s: (s.width, s.inner), residual=True))
SQUARE_LINEAR_RESIDUAL = _linear(
    "square linear + residual", _Linear(lambda s: (s.width, s.width), residual=True)
)


# --- embedding and LayerNorm ----------------------------------------------------------------------


def _embedding_operands(
    sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int
) -> Operands:
    make = _normal(dtype, device, seed)
    generator = torch.Generator(device).manual_seed(seed)

    def ids(below: int) -> Tensor:
        shape = (sizes.tokens,)
        return torch.randint(below, shape, dtype=torch.int32, device=device, generator=generator)

    return {
        "ids": ids(sizes.vocabulary),
        "positions": ids(sizes.positions),
        "segment_ids": ids(sizes.segments) if sizes.segments else None,
        "words": make(sizes.vocabulary, sizes.width),
        "places": make(sizes.positions, sizes.width),
        "segments": make(sizes.segments, sizes.width) if sizes.segments else None,
        "weight": make(sizes.width),
        "bias": make(sizes.width),
        "errors": torch.zeros(1, dtype=torch.int32, device=device),
    }


def _embed(o: Operands) -> Tensor:
    summed = F.embedding(o["ids"], o["words"]) + F.embedding(o["positions"], o["places"])
    if o["segments"] is not None:
        summed = summed + F.embedding(o["segment_ids"], o["segments"])
    return F.layer_norm(summed, o["weight"].shape, o["weight"], o["bias"], EPS)


def _embed_cost(o: Operands, size: int) -> Cost:
    """Ids; of each token a row of words and the result. The other tables stay in cache."""
    ids = [o[name] for name in ("ids", "positions", "segment_ids") if o[name] is not None]
    numbers = len(o["ids"]) * o["words"].shape[1]
    moved = sum(each.nbytes for each in ids) + 2 * numbers * size
    return Cost((7 + len(ids) - 1) * numbers, moved)


def _embed_triton(o: Operands) -> Tensor:
    from fastdistil.kernels.embedding import embed_layernorm

    ids, tables = _ids_and_tables(o)
    return embed_layernorm(*ids, *tables, o["weight"], o["bias"], EPS, errors=o["errors"])


def _embed_cuda(o: Operands) -> Tensor:
    ids, tables = _ids_and_tables(o)
    return cuda_kernels.embed_layernorm(
        *ids, *tables, o["weight"], o["bias"], EPS, errors=o["errors"]
    )


def _ids_and_tables(o: Operands) -> tuple[tuple[Any, Any, Any], tuple[Any, Any, Any]]:
    return (
        (o["ids"], o["positions"], o["segment_ids"]),
        (o["words"], o["places"], o["segments"]),
    )


EMBEDDING = Operation(
    "embedding + layernorm",
    _embedding_operands,
    _embed,
    _embed_cost,
    {TRITON: _embed_triton, CUDA: _embed_cuda},
)


# --- pooling --------------------------------------------------------------------------------------


def _pooling_operands(
    sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int
) -> Operands:
    """Sequences of one length."""
    (length,) = set(sizes.lengths)
    count = len(sizes.lengths)
    return {
        "hidden": _normal(dtype, device, seed)(count * length, sizes.width),
        "length": length,
        "cu_seqlens": torch.arange(0, count + 1, dtype=torch.int32, device=device) * length,
        **_results(count, sizes.width, torch.float32, device),
    }


def _pool(o: Operands) -> Tensor:
    """With what only it is told: that all are equally long."""
    hidden = o["hidden"].unflatten(0, (-1, o["length"]))
    wide = torch.promote_types(hidden.dtype, torch.float32)
    return F.normalize(hidden.mean(1, dtype=wide), dim=1)


def _pool_cost(o: Operands, size: int) -> Cost:
    numbers, out = o["hidden"].numel(), o["out"]
    return Cost(numbers + 3 * out.numel(), numbers * size + out.nbytes)


def _pool_triton(o: Operands) -> Tensor:
    from fastdistil.kernels.pooling import pool

    return pool(o["hidden"], o["cu_seqlens"], "mean", True, out=o["out"])


def _pool_cuda(o: Operands) -> Tensor:
    return cuda_kernels.pool(o["hidden"], o["cu_seqlens"], "mean", True, out=o["cuda_out"])


POOLING = Operation(
    "mean pooling + norm",
    _pooling_operands,
    _pool,
    _pool_cost,
    {TRITON: _pool_triton, CUDA: _pool_cuda},
)


# --- packing --------------------------------------------------------------------------------------


def _packing_operands(
    sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int
) -> Operands:
    """The mask of a batch padded to its longest sequence, as tokenizers give it; its ids."""
    longest = max(sizes.lengths)
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(longest) < torch.tensor(sizes.lengths)[:, None]).long()
    ids = torch.randint(1, sizes.vocabulary, mask.shape, generator=generator)
    return {"mask": mask.to(device), "input_ids": (mask * ids).to(device)}


def _pack(o: Operands) -> Result:
    """Positions, places and ends, without asking the device how many tokens there are."""
    keep = o["mask"] != 0
    kept_first = keep.flatten().logical_not().to(torch.uint8).argsort(stable=True)
    ends = F.pad(keep.sum(1).cumsum(0), (1, 0))
    counts = torch.arange(keep.numel(), device=keep.device) < ends[-1]
    indices = torch.where(counts, kept_first, 0)
    return (indices % keep.shape[1]).int(), indices, ends.int()


def _pack_cost(o: Operands, size: int) -> Cost:
    """The mask; of each token its position in 4 bytes and its place in 8; ends in 4."""
    mask = o["mask"]
    return Cost(0, mask.nbytes + 12 * int(mask.count_nonzero()) + 4 * (len(mask) + 1))


def _pack_triton(o: Operands) -> Result:
    from fastdistil.kernels.packing import pack

    return pack(o["mask"])


def _pack_cuda(o: Operands) -> Result:
    return cuda_kernels.pack(o["mask"])


PACKING = Operation(
    "pack",
    _packing_operands,
    _pack,
    _pack_cost,
    {TRITON: _pack_triton, CUDA: _pack_cuda},
    precisions=("integers",),
)


def _host_pack(o: Operands) -> Result:
    """Ids, positions, places and ends, where asking costs nothing."""
    keep = o["mask"] != 0
    indices = keep.flatten().nonzero().squeeze(1)
    ends = F.pad(keep.sum(1).cumsum(0), (1, 0))
    ids = o["input_ids"].flatten()[indices]
    return ids.int(), (indices % keep.shape[1]).int(), indices, ends.int()


def _host_pack_cost(o: Operands, size: int) -> Cost:
    """Ids too, and theirs as 4 bytes."""
    more = o["input_ids"].nbytes + 4 * int(o["mask"].count_nonzero())
    return Cost(0, _pack_cost(o, size).moved + more)


def _pack_padded(o: Operands) -> Result:
    batch, indices = pack_padded(o["input_ids"], o["mask"])
    return batch.input_ids, batch.positions, indices, batch.cu_seqlens


HOST_PACKING = Operation(
    "pack",
    _packing_operands,
    _host_pack,
    _host_pack_cost,
    {"fastdistil.packing": _pack_padded},
    precisions=("integers",),
)

# What an encoder's forward is made of.
ENCODER = (
    EMBEDDING,
    LINEAR_BIAS,
    ATTENTION,
    SQUARE_LINEAR_RESIDUAL,
    LAYERNORM,
    RESIDUAL_LAYERNORM,
    LINEAR_GELU,
    BIAS_GELU,
    LINEAR_RESIDUAL,
    POOLING,
)
