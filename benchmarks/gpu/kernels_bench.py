"""Each kernel alone, beside PyTorch's own, torch.compile's, flash-attn's, and ours in CUDA C++.

"Ours" is the Triton kernel; peers that are not there say why.

In bf16 on 16,384 tokens of DistilBERT-base, in CUDA graphs over rotating operands, so that nothing
but the GPU's work is timed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu import inputs
from benchmarks.gpu.session import Job, OutOfTimeError, Session, reason_of, time_limit
from fastdistil import cuda_kernels

_ROUNDS = 21
_SETS = 3
_EPS = 1e-12
# Of the sequences that are pooled and packed.
_LENGTH = 128
# Seconds that torch.compile may take for one of these.
_SECONDS_TO_COMPILE = 12.0
# Of the largest value: bf16 keeps 8 bits, and an operation rounds a few times.
_TOLERANCE = 4 * 2.0**-8

Operands = dict[str, Any]
Result = Tensor | tuple[Tensor, ...]
Function = Callable[[Operands], Result]
# A peer's function, or why it is not there.
Peer = Function | str


@dataclass(frozen=True)
class Sizes:
    """What the kernels run on."""

    tokens: int = 16384
    width: int = 768
    inner: int = 3072
    heads: int = 12
    vocabulary: int = 30522
    positions: int = 512


TINY = Sizes(tokens=32, width=64, inner=128, heads=2, vocabulary=100, positions=64)


@dataclass(frozen=True)
class Alone:
    """One kernel's comparison: ours, plain PyTorch, and other peers, all of the same result.

    `cuda`: the same in CUDA C++, or why it does not exist. `moved`: bytes that a kernel has to move
    which does little but that; None for others.
    """

    name: str
    operands: Callable[[Sizes, torch.device, int], Operands]
    own: Function
    plain: Function
    cuda: Peer
    peers: dict[str, Peer] = field(default_factory=dict)
    moved: Callable[[Operands], int] | None = None


def jobs(session: Session, compiled: bool) -> Iterator[Job]:
    """One for every kernel and peer.

    Args:
        session: the stage.
        compiled: torch.compile's only, or all others.
    """
    for kernel in kernels():
        peers: dict[str, Peer] = {"torch": kernel.plain, "CUDA C++": _here(kernel.cuda)}
        peers |= kernel.peers
        if compiled:
            peers = {"torch.compile": _compiled(kernel.plain, session.dry)}
        for peer, function in peers.items():
            work = functools.partial(_item, session, kernel, peer, function)
            yield Job(f"{kernel.name} | {peer}", work, _SECONDS_TO_COMPILE if compiled else 1.0)


def kernels() -> list[Alone]:
    """Every comparison."""
    return [
        Alone(
            f"attention, {label}",
            functools.partial(_attention_operands, length),
            _varlen,
            _sdpa,
            _varlen_cuda if length != 512 else "takes up to 128 tokens",
            _attention_peers(),
        )
        for label, length in (("length 128", 128), ("mixed lengths", None), ("length 512", 512))
    ] + [
        Alone(
            "layernorm + residual",
            _rows_operands,
            _layernorm,
            lambda o: F.layer_norm(
                o["x"] + o["residual"], o["weight"].shape, o["weight"], o["bias"], _EPS
            ),
            _layernorm_cuda,
            moved=_layernorm_bytes,
        ),
        Alone(
            "linear + gelu",
            _linear_operands,
            _linear,
            lambda o: F.gelu(F.linear(o["x"], o["weight"], o["bias"])),
            "products are Triton's or cuBLAS's",
        ),
        Alone(
            "bias + gelu",
            _inner_operands,
            _bias_gelu,
            lambda o: F.gelu(o["x"] + o["bias"]),
            _bias_gelu_cuda,
            moved=_bias_gelu_bytes,
        ),
        Alone(
            "embedding + layernorm",
            _embedding_operands,
            _embed,
            _embed_torch,
            _embed_cuda,
            moved=_embed_bytes,
        ),
        Alone(
            "mean pooling + norm",
            _pooling_operands,
            _pool,
            _pool_torch,
            _pool_cuda,
            moved=_pool_bytes,
        ),
        Alone("pack", _packing_operands, _pack, _pack_torch, _pack_cuda),
    ]


def _here(peer: Peer) -> Peer:
    """A kernel in CUDA C++, or why there is none."""
    return peer if isinstance(peer, str) else cuda_kernels.available() or peer


def _item(session: Session, kernel: Alone, peer: str, function: Peer) -> dict[str, Any]:
    record: dict[str, Any] = {"kernel": kernel.name, "peer": peer}
    if isinstance(function, str):
        return record | {"missing": function}
    sizes = TINY if session.dry else Sizes()
    count = 1 if session.dry else _SETS
    sets = [kernel.operands(sizes, session.device, seed) for seed in range(count)]
    with torch.inference_mode(), time_limit(session.left()):
        own = [functools.partial(kernel.own, one) for one in sets]
        try:
            theirs = [functools.partial(function, one) for one in sets]
            want = theirs[0]()
            turns = {"own": session.timer.graphed(own), "peer": session.timer.graphed(theirs)}
        except OutOfTimeError:
            raise
        except Exception as error:
            if session.left() <= 0:
                raise OutOfTimeError from error
            return record | {"failed": reason_of(error)}
        error_ = _relative_error(own[0](), want)
        if not error_ <= _TOLERANCE:
            raise ValueError(f"{kernel.name}: differs from {peer} by {error_:.2g} of the largest")
        timings = session.timer.race(turns, _ROUNDS)
    if kernel.moved is not None:
        record["moved"] = kernel.moved(sets[0])
    return record | {
        "own_seconds": list(timings["own"].seconds),
        "peer_seconds": list(timings["peer"].seconds),
        "difference": error_,
    }


def _relative_error(got: Result, want: Result) -> float:
    if isinstance(got, tuple):
        return max(_relative_error(*pair) for pair in zip(got, want, strict=True))
    assert isinstance(want, Tensor)
    got, want = got.flatten().double(), want.flatten().double()
    return float((got - want).abs().max() / want.abs().max())


def _compiled(function: Function, dry: bool) -> Function:
    backend = "eager" if dry else "inductor"
    return torch.compile(function, dynamic=False, backend=backend)


def _normal(device: torch.device, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return functools.partial(torch.randn, dtype=torch.bfloat16, device=device, generator=generator)


def _attention_operands(
    length: int | None, sizes: Sizes, device: torch.device, seed: int
) -> Operands:
    """qkv of sequences of one length, or of mixed ones; and the same padded, for those who pad."""
    if length is None:
        lengths, _ = inputs.mixed_lengths(sizes.tokens // int(inputs.MEAN_LENGTH), seed)
    else:
        length = min(length, sizes.tokens)
        lengths = (length,) * (sizes.tokens // length)
    width = sizes.width // sizes.heads
    qkv = _normal(device, seed)(sum(lengths), 3, sizes.heads, width)
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
        "real": real,
        # Fixed before a graph is captured: a selection by mask would ask the device for its size.
        "places": real.flatten().nonzero().squeeze(1),
        **_results(len(qkv), sizes.heads * width, device),
    }


def _varlen(o: Operands) -> Tensor:
    from fastdistil.kernels.attention import varlen_attention

    return varlen_attention(o["qkv"], o["cu_seqlens"], o["max_seqlen"], out=o["out"])


def _varlen_cuda(o: Operands) -> Tensor:
    places = (o["qkv"], o["cu_seqlens"], o["max_seqlen"])
    return cuda_kernels.varlen_attention(*places, out=o["cuda_out"])


def _sdpa(o: Operands) -> Tensor:
    """PyTorch's fused attention over the padded batch, and the real tokens of it."""
    query, key, value = o["padded"]
    found = F.scaled_dot_product_attention(query, key, value, attn_mask=o["mask"])
    flat = found.transpose(1, 2).flatten(2).flatten(0, 1)
    return flat if o["mask"] is None else flat.index_select(0, o["places"])


def _attention_peers() -> dict[str, Peer]:
    """Attention over packed sequences that others have."""
    gpu = torch.cuda.is_available()
    installed = importlib.util.find_spec("flash_attn") is not None
    return {
        "torch, variable-length flash": _flash_in_torch if gpu else "needs a GPU",
        "flash-attn": _flash_attn if installed else "not installed",
    }


def _flash_in_torch(o: Operands) -> Tensor:
    query, key, value = o["qkv"].unbind(1)
    ends, longest = o["cu_seqlens"], o["max_seqlen"]
    found = torch.ops.aten._flash_attention_forward(
        query, key, value, ends, ends, longest, longest, 0.0, False, False
    )
    return found[0].flatten(1)


def _flash_attn(o: Operands) -> Tensor:
    flash_attn = importlib.import_module("flash_attn")
    found = flash_attn.flash_attn_varlen_qkvpacked_func(o["qkv"], o["cu_seqlens"], o["max_seqlen"])
    return found.flatten(1)


def _rows_operands(sizes: Sizes, device: torch.device, seed: int) -> Operands:
    make = _normal(device, seed)
    shape = (sizes.tokens, sizes.width)
    return {
        "x": make(*shape),
        "residual": make(*shape),
        "weight": make(sizes.width),
        "bias": make(sizes.width),
        **_results(*shape, device),
    }


def _layernorm(o: Operands) -> Tensor:
    from fastdistil.kernels.layernorm import layernorm

    return layernorm(o["x"], o["weight"], o["bias"], _EPS, residual=o["residual"], out=o["out"])


def _layernorm_cuda(o: Operands) -> Tensor:
    rows = (o["x"], o["weight"], o["bias"])
    return cuda_kernels.layernorm(*rows, _EPS, residual=o["residual"], out=o["cuda_out"])


def _layernorm_bytes(o: Operands) -> int:
    return 3 * o["x"].nbytes  # and the residual, and the result


def _linear_operands(sizes: Sizes, device: torch.device, seed: int) -> Operands:
    make = _normal(device, seed)
    return {
        "x": make(sizes.tokens, sizes.width),
        "weight": make(sizes.inner, sizes.width) / math.sqrt(sizes.width),
        "bias": make(sizes.inner),
        "out": torch.empty(sizes.tokens, sizes.inner, dtype=torch.bfloat16, device=device),
    }


def _linear(o: Operands) -> Tensor:
    from fastdistil.kernels.linear import linear

    return linear(o["x"], o["weight"], o["bias"], activation="gelu", out=o["out"])


def _inner_operands(sizes: Sizes, device: torch.device, seed: int) -> Operands:
    make = _normal(device, seed)
    shape = (sizes.tokens, sizes.inner)
    return {"x": make(*shape), "bias": make(sizes.inner), **_results(*shape, device)}


def _bias_gelu(o: Operands) -> Tensor:
    from fastdistil.kernels.gelu import bias_gelu

    return bias_gelu(o["x"], o["bias"], out=o["out"])


def _bias_gelu_cuda(o: Operands) -> Tensor:
    return cuda_kernels.bias_gelu(o["x"], o["bias"], out=o["cuda_out"])


def _bias_gelu_bytes(o: Operands) -> int:
    return 2 * o["x"].nbytes


def _embedding_operands(sizes: Sizes, device: torch.device, seed: int) -> Operands:
    make = _normal(device, seed)
    generator = torch.Generator(device).manual_seed(seed)

    def ids(below: int) -> Tensor:
        shape = (sizes.tokens,)
        return torch.randint(below, shape, dtype=torch.int32, device=device, generator=generator)

    return {
        "ids": ids(sizes.vocabulary),
        "positions": ids(sizes.positions),
        "words": make(sizes.vocabulary, sizes.width),
        "places": make(sizes.positions, sizes.width),
        "weight": make(sizes.width),
        "bias": make(sizes.width),
        "errors": torch.zeros(1, dtype=torch.int32, device=device),
    }


def _embed(o: Operands) -> Tensor:
    from fastdistil.kernels.embedding import embed_layernorm

    tables = (o["words"], o["places"], None, o["weight"], o["bias"], _EPS)
    return embed_layernorm(o["ids"], o["positions"], None, *tables, errors=o["errors"])


def _embed_cuda(o: Operands) -> Tensor:
    ids, tables = (o["ids"], o["positions"], None), (o["words"], o["places"], None)
    norm = (o["weight"], o["bias"])
    return cuda_kernels.embed_layernorm(*ids, *tables, *norm, _EPS, o["errors"])


def _embed_bytes(o: Operands) -> int:
    """Ids and positions; of each token a row of words and the result. The places stay in cache."""
    row = o["words"].shape[1] * o["words"].element_size()
    return o["ids"].nbytes + o["positions"].nbytes + 2 * len(o["ids"]) * row


def _embed_torch(o: Operands) -> Tensor:
    summed = F.embedding(o["ids"], o["words"]) + F.embedding(o["positions"], o["places"])
    return F.layer_norm(summed, o["weight"].shape, o["weight"], o["bias"], _EPS)


def _pooling_operands(sizes: Sizes, device: torch.device, seed: int) -> Operands:
    """Sequences of 128 tokens each."""
    length = min(_LENGTH, sizes.tokens)
    count = sizes.tokens // length
    return {
        "hidden": _normal(device, seed)(count * length, sizes.width),
        "length": length,
        "cu_seqlens": torch.arange(0, count + 1, dtype=torch.int32, device=device) * length,
        **_results(count, sizes.width, device, torch.float32),
    }


def _pool(o: Operands) -> Tensor:
    from fastdistil.kernels.pooling import pool

    return pool(o["hidden"], o["cu_seqlens"], "mean", True, out=o["out"])


def _pool_cuda(o: Operands) -> Tensor:
    return cuda_kernels.pool(o["hidden"], o["cu_seqlens"], "mean", True, out=o["cuda_out"])


def _pool_bytes(o: Operands) -> int:
    return o["hidden"].nbytes + o["out"].nbytes


def _pool_torch(o: Operands) -> Tensor:
    """With what only it is told: that all are equally long."""
    sequences = o["hidden"].unflatten(0, (-1, o["length"]))
    return F.normalize(sequences.mean(1, dtype=torch.float32), dim=1)


def _packing_operands(sizes: Sizes, device: torch.device, seed: int) -> Operands:
    """The mask of a padded batch, as tokenizers give it."""
    width = min(_LENGTH, sizes.tokens)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (sizes.tokens // width, 1), generator=generator)
    return {"mask": (torch.arange(width) < lengths).long().to(device)}


def _pack(o: Operands) -> Result:
    from fastdistil.kernels.packing import pack

    return pack(o["mask"])


def _pack_cuda(o: Operands) -> Result:
    return cuda_kernels.pack(o["mask"])


def _pack_torch(o: Operands) -> Result:
    """Without asking the device how many tokens there are, which a graph could not."""
    keep = o["mask"] != 0
    kept_first = keep.flatten().logical_not().to(torch.uint8).argsort(stable=True)
    ends = F.pad(keep.sum(1).cumsum(0), (1, 0))
    counts = torch.arange(keep.numel(), device=keep.device) < ends[-1]
    indices = torch.where(counts, kept_first, 0)
    return (indices % keep.shape[1]).int(), indices, ends.int()


def _results(
    rows: int, width: int, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> Operands:
    """Where our two kernels write: apart, so that one's result is compared with the other's."""
    shape = (rows, width)
    return {name: torch.empty(shape, dtype=dtype, device=device) for name in ("out", "cuda_out")}
