"""The CPU engine: hands whole forwards to the C++ extension (csrc/cpu).

Instruction sets are chosen at run time. ``FASTDISTIL_CPU_ISA`` = amx, avx512, avx2 or portable caps
the choice; ``FASTDISTIL_NUM_THREADS`` overrides torch.get_num_threads().
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import EncoderConfig
from ..packing import PackedBatch, validate
from ..pooling import check_pooling
from .base import DEFAULT_OPTIONS, EngineOptions, Program

_C: Any = None
_IMPORT_ERROR: ImportError | None = None
try:
    _C = importlib.import_module("fastdistil._C")
except ImportError as error:
    _IMPORT_ERROR = error

INSTRUCTION_SETS = ("amx", "avx512", "avx2", "portable")

_EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")


def extension_error() -> str | None:
    """Why the C++ extension is missing and how to get it; None where it is there."""
    if _C is not None:
        return None
    return (
        f"the C++ extension fastdistil._C is missing ({_IMPORT_ERROR}); with a C++ compiler there "
        "(on Debian or Ubuntu: apt install g++ python3-dev), installing fastdistil again from its "
        "source builds it"
    )


def instruction_sets() -> dict[str, Any]:
    """What this CPU can run, for `fastdistil info`.

    Returns:
        kernels: list of dicts (isa, precision, description), fastest first, within the cap;
        unusable: a reason for each set of kernels that cannot run here; features: CPU features;
        cap: FASTDISTIL_CPU_ISA or None. Empty lists without the extension.
    """
    if _C is None:
        return {"kernels": [], "unusable": [], "features": [], "cap": _isa_cap()}
    found = _C.cpu.detect()
    cap = _isa_cap()
    if cap is not None:
        allowed = INSTRUCTION_SETS[INSTRUCTION_SETS.index(cap) :]
        found["kernels"] = [entry for entry in found["kernels"] if entry["isa"] in allowed]
    return {**found, "cap": cap}


def num_threads() -> int:
    """Threads a forward uses: FASTDISTIL_NUM_THREADS, else torch.get_num_threads().

    Raises:
        ValueError: the variable is set to something other than a whole number from 1 up.
    """
    value = os.environ.get("FASTDISTIL_NUM_THREADS")
    if value is None:
        return torch.get_num_threads()
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(
            f"FASTDISTIL_NUM_THREADS: got {value!r}; a whole number from 1 up is allowed"
        )
    return int(value)


def _isa_cap() -> str | None:
    value = os.environ.get("FASTDISTIL_CPU_ISA")
    if value is not None and value not in INSTRUCTION_SETS:
        raise ValueError(
            f"FASTDISTIL_CPU_ISA: got {value!r}; allowed: {', '.join(INSTRUCTION_SETS)}"
        )
    return value


def _best_kernels(precision: str) -> dict[str, str] | None:
    """The fastest kernels of that precision that may run here."""
    entries = instruction_sets()["kernels"]
    return next((entry for entry in entries if entry["precision"] == precision), None)


class CpuProgram:
    """One model's weights packed for one instruction set. Immutable, safe from several threads."""

    backend = "cpu"
    note = ""

    def __init__(
        self, config: EncoderConfig, state_dict: Mapping[str, Tensor], precision: str, isa: str
    ) -> None:
        # The engine reads weights as contiguous fp32 and packs them, except the embedding tables:
        # those it reads in place, so they are kept.
        weights = {
            name: tensor.detach().to("cpu", torch.float32).contiguous()
            for name, tensor in state_dict.items()
        }
        self._tables = [
            tensor for name, tensor in weights.items() if name.split(".")[1] in _EMBEDDINGS
        ]
        self._config = config
        self._encoder = _C.cpu.Encoder(
            isa=isa,
            precision=precision,
            sizes={
                name: getattr(config, name)
                for name in (
                    "hidden_size",
                    "num_heads",
                    "intermediate_size",
                    "num_layers",
                    "vocab_size",
                    "max_positions",
                    "num_segments",
                )
            },
            activation=config.activation,
            eps=config.layer_norm_eps,
            weights={name: tensor.data_ptr() for name, tensor in weights.items()},
        )
        self.precision = precision

    @property
    def instruction_set(self) -> str:
        """ "amx", "avx512", "avx2" or "portable": what really runs."""
        return str(self._encoder.isa)

    def run(self, batch: PackedBatch) -> Tensor:
        """Last hidden states, float32 [T, D]."""
        return self._run(batch, batch.num_tokens, "none", False)

    def run_pooled(self, batch: PackedBatch, pooling: str, normalize: bool) -> Tensor:
        """One float32 vector per sequence, [B, D]."""
        check_pooling(pooling)
        return self._run(batch, batch.num_sequences, pooling, normalize)

    def warmup(self, tokens: Sequence[int] | None, max_seqlen: int | None) -> None:
        """Nothing is left to do: weights are packed, and sizes need no preparation."""

    def _run(self, batch: PackedBatch, rows: int, pooling: str, normalize: bool) -> Tensor:
        arrays = [batch.input_ids, batch.positions, batch.cu_seqlens]
        if batch.segment_ids is not None:
            arrays.append(batch.segment_ids)
        if not _plain(arrays, batch.num_tokens):
            validate(batch, self._config)  # says what is wrong, unless it is only the strides
            arrays = [array.contiguous() for array in arrays]
            if batch.device.type != "cpu":
                raise ValueError(f"batch: on {batch.device}, but the weights are on cpu")
        ids, positions, cu_seqlens, *segments = (array.data_ptr() for array in arrays)
        out = torch.empty(rows, self._config.hidden_size, dtype=torch.float32, device="cpu")
        try:
            self._encoder.run(
                input_ids=ids,
                positions=positions,
                segment_ids=segments[0] if segments else 0,
                cu_seqlens=cu_seqlens,
                sequences=batch.num_sequences,
                tokens=batch.num_tokens,
                out=out.data_ptr(),
                pooling=pooling,
                normalize=normalize,
                threads=num_threads(),
            )
        except ValueError:
            validate(batch, self._config)  # the same finding with the sequence's number
            raise
        return out


def _plain(arrays: list[Tensor], tokens: int) -> bool:
    """Contiguous int32 vectors on the CPU, one value per token but for cu_seqlens (the third)."""
    return (
        all(
            array.dtype == torch.int32
            and array.dim() == 1
            and array.device.type == "cpu"
            and array.is_contiguous()
            and (index == 2 or array.shape[0] == tokens)
            for index, array in enumerate(arrays)
        )
        and arrays[2].shape[0] > 0
    )


class CpuBackend:
    """csrc/cpu: AMX, AVX-512, AVX2 or portable kernels over packed tokens."""

    name = "cpu"

    def supports(self, config: EncoderConfig, device: torch.device, precision: str) -> str | None:
        """None where it can run this, else why it cannot."""
        if device.type != "cpu":
            return f"it runs on cpu, not on {device.type}"
        problem = extension_error()
        if problem is not None:
            return problem
        if config.num_layers == 0:
            return "a model without layers has nothing to run"
        if _best_kernels(precision) is None:
            return f"it has no {precision} kernels for this CPU"
        return None

    def auto_precision(
        self, config: EncoderConfig, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> str:
        """bf16 where the CPU multiplies bf16 in hardware (AMX, AVX-512 BF16), else fp32."""
        return "bf16" if _best_kernels("bf16") is not None else "fp32"

    def describe(self, config: EncoderConfig, device: torch.device, precision: str) -> str:
        """The kernels, for people."""
        kernels = _best_kernels(precision)
        return f"{kernels['description']} on this CPU" if kernels else f"no {precision} kernels"

    def prepare(
        self,
        config: EncoderConfig,
        state_dict: Mapping[str, Tensor],
        device: torch.device,
        precision: str,
        options: EngineOptions = DEFAULT_OPTIONS,
    ) -> Program:
        """Packed weights; the embedding tables are read in place where they are float32."""
        kernels = _best_kernels(precision)
        if kernels is None:
            raise ValueError(f"precision {precision!r}: {self.supports(config, device, precision)}")
        return CpuProgram(config, state_dict, precision, kernels["isa"])
