"""The contract between the model and the engines that run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..config import EncoderConfig
from ..packing import PackedBatch


@dataclass(frozen=True)
class EngineOptions:
    """How an engine may compute; what an engine has no choice about, it ignores.

    Attributes:
        deterministic: a sequence's bits depend on nothing but the sequence. False lets the GPU
            engine take the fastest kernel for each size, whose roundings differ, and one launch
            for all of a few tokens.
        cuda_graphs: whether the GPU engine replays CUDA graphs instead of launching each kernel.
    """

    deterministic: bool = True
    cuda_graphs: bool = True


DEFAULT_OPTIONS = EngineOptions()


class Program(Protocol):
    """One model prepared for one engine: weights folded, packed and converted once.

    Immutable, and safe to call from several threads at once.
    """

    @property
    def backend(self) -> str:
        """Name of the backend that made it."""

    @property
    def precision(self) -> str:
        """ "fp32", "bf16", "fp16" or "int8"."""

    @property
    def instruction_set(self) -> str:
        """What runs it, for people: "avx512", "PyTorch on cpu"... The same while the bits are."""

    @property
    def note(self) -> str:
        """How it is doing now, for people; "" where that never changes."""

    @property
    def resident_bytes(self) -> int:
        """Memory of the weights it reads, those included that it reads in place."""

    def run(self, batch: PackedBatch) -> Tensor:
        """Last hidden states [T, D] of a batch, which is validated before any kernel runs."""

    def run_rows(self, batch: PackedBatch, rows: Tensor) -> Tensor:
        """Last hidden states [R, D] of some tokens only: exactly `run(batch)[rows]`.

        An engine may leave out of the last layer whatever no other row needs.

        Args:
            rows: int64 or int32 [R], as `check_rows` wants them; R may be 0.
        """

    def run_pooled(self, batch: PackedBatch, pooling: str, normalize: bool) -> Tensor:
        """One float32 vector per sequence, [B, D], as `fastdistil.pooling.pool` defines it."""

    def warmup(self, tokens: Sequence[int] | None, max_seqlen: int | None) -> None:
        """Do now what a first batch of that size would wait for; see DistilBertModel.warmup."""


def check_rows(rows: Tensor, batch: PackedBatch) -> Tensor:
    """Rows on the CPU; raises unless they are the batch's tokens, in strictly ascending order.

    The host looks at them; where they are on a GPU it waits for all that is queued before them.

    Args:
        rows: int64 or int32 [R] on the batch's device or on the CPU; R may be 0.

    Raises:
        TypeError: no tensor, or one of another dtype.
        ValueError: another shape or device, a number that is no token's, or a wrong order.
    """
    if not isinstance(rows, Tensor):
        raise TypeError(f"rows: got {type(rows).__name__}; a torch.Tensor is allowed")
    if rows.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"rows: got {rows.dtype}; torch.int64 or torch.int32 is allowed")
    if rows.dim() != 1:
        raise ValueError(f"rows: got shape {list(rows.shape)}; one dimension is allowed")
    if rows.device not in (batch.device, torch.device("cpu")):
        raise ValueError(
            f"rows: on {rows.device}, but the batch is on {batch.device}; they may be there or on "
            "the CPU"
        )
    here, tokens = rows.cpu(), batch.num_tokens
    values = here.numpy()
    falls = values[1:] <= values[:-1]
    if falls.any():
        where = int(falls.argmax()) + 1
        raise ValueError(
            f"rows: got {values[where]} after {values[where - 1]} at index {where}; each must be "
            "above the one before"
        )
    for value in values[:1], values[-1:]:
        if value.size and not 0 <= value[0] < tokens:
            allowed = f"0 to {tokens - 1}, the batch's tokens," if tokens else "of no tokens none"
            raise ValueError(f"rows: got {value[0]}; {allowed} is allowed")
    return here


class Backend(Protocol):
    """An engine. Stateless: what it keeps is in the programs it prepares."""

    @property
    def name(self) -> str:
        """ "reference", "cpu", ..."""

    def supports(self, config: EncoderConfig, device: torch.device, precision: str) -> str | None:
        """None where it can run this, else why it cannot, as a clause for people."""

    def auto_precision(
        self, config: EncoderConfig, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> str:
        """The fastest precision with an error no larger than bfloat16's on this hardware.

        `dtype` is what the weights are in.
        """

    def describe(self, config: EncoderConfig, device: torch.device, precision: str) -> str:
        """What would run, as a phrase for people: "AVX-512 bf16 kernels on this CPU"."""

    def prepare(
        self,
        config: EncoderConfig,
        state_dict: Mapping[str, Tensor],
        device: torch.device,
        precision: str,
        options: EngineOptions = DEFAULT_OPTIONS,
    ) -> Program:
        """A program from canonically named weights, which it copies what it needs of."""
