"""The CPU engine: hands whole forwards to the C++ extension (csrc/cpu).

Instruction sets are chosen at run time. ``FASTDISTIL_CPU_ISA`` = amx, avx512, avx2 or portable caps
the choice; how many threads: `threads.num_threads`.
"""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..config import EncoderConfig
from ..packing import PackedBatch, validate
from ..pooling import check_pooling
from .base import DEFAULT_OPTIONS, EngineOptions, Program, check_rows
from .threads import num_threads

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
        return {"kernels": [], "unusable": [], "features": [], "cap": instruction_set_cap()}
    found = _C.cpu.detect()
    cap = instruction_set_cap()
    if cap is not None:
        allowed = INSTRUCTION_SETS[INSTRUCTION_SETS.index(cap) :]
        found["kernels"] = [entry for entry in found["kernels"] if entry["isa"] in allowed]
    return {**found, "cap": cap}


def instruction_set_cap() -> str | None:
    """FASTDISTIL_CPU_ISA, checked; None where it is not set."""
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


def _no_kernels(precision: str) -> str:
    """Why nothing here computes in that precision, and what would."""
    found = instruction_sets()
    cap = f", and FASTDISTIL_CPU_ISA={found['cap']} caps those it has" if found["cap"] else ""
    why = [reason for reason in found["unusable"] if f" {precision}: " in reason]
    missing = f" ({'; '.join(why)})" if why else ""
    return f"it has no {precision} kernels for this CPU{missing}{cap}"


class CpuProgram:
    """One model's weights packed for one instruction set. Immutable, safe from several threads."""

    backend = "cpu"
    note = ""

    def __init__(
        self, config: EncoderConfig, state_dict: Mapping[str, Tensor], precision: str, isa: str
    ) -> None:
        # The engine reads weights as contiguous fp32 and packs them, except the embedding tables:
        # those it reads in place, so they are kept.
        weights = _floats(state_dict)
        self._tables = _tables(weights)
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
            weights=_addresses(weights),
        )
        self.precision = precision

    def twin(self, state_dict: Mapping[str, Tensor]) -> CpuProgram:
        """A program for an equal copy of the weights.

        It shares what is packed. The embedding tables it reads are the copy's own, so that nobody
        sees a change that somebody else makes to theirs.
        """
        twin = copy.copy(self)
        twin._tables = _tables(
            _floats({name: t for name, t in state_dict.items() if _is_table(name)})
        )
        twin._encoder = self._encoder.twin(tables=_addresses(twin._tables))
        return twin

    @property
    def instruction_set(self) -> str:
        """ "amx", "avx512", "avx2" or "portable", what really runs.

        With int8 also what attention computes in: other bits.
        """
        isa = str(self._encoder.isa)
        attention = f", attention in {self._encoder.attention_precision}"
        return isa + attention if self.precision == "int8" else isa

    @property
    def resident_bytes(self) -> int:
        """Bytes of the packed weights and of the embedding tables."""
        return int(self._encoder.packed_bytes) + sum(
            table.nbytes for table in self._tables.values()
        )

    def run(self, batch: PackedBatch) -> Tensor:
        """Last hidden states, float32 [T, D]."""
        return self._run(batch, batch.num_tokens, "none", False)

    def run_rows(self, batch: PackedBatch, rows: Tensor) -> Tensor:
        """Last hidden states of some tokens, float32 [R, D], in the very bits that `run` gives.

        The last layer computes K and V of all tokens, and the rest for these only. Sequences of
        which no token is asked for are not computed at all.
        """
        rows = check_rows(rows, batch).to(torch.int32).contiguous()
        return self._run(batch, len(rows), "none", False, rows)

    def run_pooled(self, batch: PackedBatch, pooling: str, normalize: bool) -> Tensor:
        """One float32 vector per sequence, [B, D]; "cls" asks for the first tokens only."""
        check_pooling(pooling)
        return self._run(batch, batch.num_sequences, pooling, normalize)

    def warmup(self, tokens: Sequence[int] | None, max_seqlen: int | None) -> None:
        """Nothing is left to do: weights are packed, and sizes need no preparation."""

    def _run(
        self,
        batch: PackedBatch,
        outputs: int,
        pooling: str,
        normalize: bool,
        rows: Tensor | None = None,
    ) -> Tensor:
        arrays = [batch.input_ids, batch.positions, batch.cu_seqlens]
        if batch.segment_ids is not None:
            arrays.append(batch.segment_ids)
        if not _plain(arrays, batch.num_tokens):
            validate(batch, self._config)  # says what is wrong, unless it is only the strides
            arrays = [array.contiguous() for array in arrays]
            if batch.device.type != "cpu":
                raise ValueError(f"batch: on {batch.device}, but the weights are on cpu")
        ids, positions, cu_seqlens, *segments = (array.data_ptr() for array in arrays)
        some = {} if rows is None else {"rows": rows.data_ptr(), "row_count": len(rows)}
        out = torch.empty(outputs, self._config.hidden_size, dtype=torch.float32, device="cpu")
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
                **some,
            )
        except ValueError:
            validate(batch, self._config)  # the same finding with the sequence's number
            raise
        return out


def _floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous float32 on the CPU; the very memory where it is that already."""
    return {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in tensors.items()
    }


def _is_table(name: str) -> bool:
    return name.split(".")[1] in _EMBEDDINGS


def _tables(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights.items() if _is_table(name)}


def _addresses(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


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
        return None if _best_kernels(precision) is not None else _no_kernels(precision)

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
