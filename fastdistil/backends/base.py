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

    def run_pooled(self, batch: PackedBatch, pooling: str, normalize: bool) -> Tensor:
        """One float32 vector per sequence, [B, D], as `fastdistil.pooling.pool` defines it."""

    def warmup(self, tokens: Sequence[int] | None, max_seqlen: int | None) -> None:
        """Do now what a first batch of that size would wait for; see DistilBertModel.warmup."""


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
