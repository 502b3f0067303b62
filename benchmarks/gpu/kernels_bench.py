"""Each kernel alone, beside PyTorch's own, torch.compile's, flash-attn's, and ours in CUDA C++.

"Ours" is the Triton kernel; peers that are not there say why. What the operations are is in
benchmarks/kernels/operations.py.

In bf16 on 16,384 tokens of DistilBERT-base, in CUDA graphs over rotating operands, so that nothing
but the GPU's work is timed.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import inputs
from benchmarks.gpu.session import Job, OutOfTimeError, Session, reason_of, time_limit
from benchmarks.kernels import operations
from benchmarks.kernels.operations import (
    CUDA,
    TRITON,
    Function,
    Operands,
    Operation,
    Sizes,
    relative_error,
)
from fastdistil import cuda_kernels

_ROUNDS = 21
_SETS = 3
# Seconds that torch.compile may take for one of these.
_SECONDS_TO_COMPILE = 12.0
# Of the largest value: bf16 keeps 8 bits, and an operation rounds a few times.
_TOLERANCE = 4 * 2.0**-8

# A peer's function, or why it is not there.
Peer = Function | str

TINY = Sizes((32,), width=64, inner=128, heads=2, vocabulary=100, positions=64)


@dataclass(frozen=True)
class Alone:
    """One kernel's comparison: ours, plain PyTorch, and other peers, all of the same result.

    Attributes:
        name: its key among the results.
        operation: what is computed.
        lengths: of the sequences, for sizes and a seed.
        peers: beside PyTorch and CUDA C++, or in the latter's place.
        moves: whether the kernel does little but move bytes.
    """

    name: str
    operation: Operation
    lengths: Callable[[Sizes, int], tuple[int, ...]] = lambda sizes, seed: sizes.lengths
    peers: Mapping[str, Peer] = field(default_factory=dict)
    moves: bool = False

    def operands(self, sizes: Sizes, device: torch.device, seed: int) -> Operands:
        """In bf16."""
        sizes = replace(sizes, lengths=self.lengths(sizes, seed))
        return self.operation.operands(sizes, torch.bfloat16, device, seed)

    @property
    def moved(self) -> Callable[[Operands], int] | None:
        """Bytes that have to move, of kernels that do little else; None for others."""
        return (lambda o: self.operation.cost(o, 2).moved) if self.moves else None


def jobs(session: Session, compiled: bool) -> Iterator[Job]:
    """One for every kernel and peer.

    Args:
        session: the stage.
        compiled: torch.compile's only, or all others.
    """
    for kernel in kernels():
        cuda = _here(kernel.operation.ours[CUDA])
        peers: dict[str, Peer] = {"torch": kernel.operation.plain, CUDA: cuda, **kernel.peers}
        if compiled:
            backend = "eager" if session.dry else "inductor"
            peers = {"torch.compile": operations.compiled(kernel.operation.plain, backend)}
        for peer, function in peers.items():
            work = functools.partial(_item, session, kernel, peer, function)
            yield Job(f"{kernel.name} | {peer}", work, _SECONDS_TO_COMPILE if compiled else 1.0)


def kernels() -> list[Alone]:
    """Every comparison."""
    peers = _attention_peers()
    few = {CUDA: f"takes up to {cuda_kernels.LONGEST_SEQUENCE} tokens"}
    return [
        Alone("attention, length 128", operations.ATTENTION, peers=peers),
        Alone("attention, mixed lengths", operations.ATTENTION, _mixed, peers),
        Alone("attention, length 512", operations.ATTENTION, _longest, {**peers, **few}),
        Alone("layernorm + residual", operations.RESIDUAL_LAYERNORM, moves=True),
        Alone("linear + gelu", operations.LINEAR_GELU),
        Alone("bias + gelu", operations.BIAS_GELU, moves=True),
        Alone("embedding + layernorm", operations.EMBEDDING, moves=True),
        Alone("mean pooling + norm", operations.POOLING, moves=True),
        Alone("pack", operations.PACKING, _ragged),
    ]


def _mixed(sizes: Sizes, seed: int) -> tuple[int, ...]:
    """Natural lengths."""
    return inputs.mixed_lengths(sizes.tokens // int(inputs.MEAN_LENGTH), seed)[0]


def _longest(sizes: Sizes, seed: int) -> tuple[int, ...]:
    """As many tokens in sequences of 512."""
    length = min(512, sizes.tokens)
    return (length,) * (sizes.tokens // length)


def _ragged(sizes: Sizes, seed: int) -> tuple[int, ...]:
    """As many sequences, of any length up to the longest."""
    generator = torch.Generator().manual_seed(seed)
    longest, count = max(sizes.lengths), len(sizes.lengths)
    return tuple(torch.randint(1, longest + 1, (count,), generator=generator).tolist())


def _here(peer: Peer) -> Peer:
    """A kernel in CUDA C++, or why there is none."""
    return peer if isinstance(peer, str) else cuda_kernels.available() or peer


def _item(session: Session, kernel: Alone, peer: str, function: Peer) -> dict[str, Any]:
    record: dict[str, Any] = {"kernel": kernel.name, "peer": peer}
    if isinstance(function, str):
        return record | {"missing": function}
    triton = kernel.operation.ours[TRITON]
    assert callable(triton)
    sizes = TINY if session.dry else Sizes()
    count = 1 if session.dry else _SETS
    sets = [kernel.operands(sizes, session.device, seed) for seed in range(count)]
    with torch.inference_mode(), time_limit(session.left()):
        own = [functools.partial(triton, one) for one in sets]
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
        error_ = relative_error(own[0](), want)
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
