"""The CPU engine's C++ by the operation: the stop-watches of an encoder of one layer.

Its kernels are fused and work on tiles: none can be called alone, so each is measured where it
runs, and its error is the whole layer's. Its seconds are its share of what the stop-watches
counted, of the forward's time on the wall: a thread that waits, or has nothing to do, is charged
to all of them alike. Embeddings and LayerNorm are those with the rounding for the product behind
them. int8 products begin with operands that are rounded already.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cpu_engine import CpuEngine
from benchmarks.kernels import operations
from benchmarks.kernels.cases import Case
from benchmarks.kernels.comparison import Contender, Facts, prove, repeats
from fastdistil import DistilBertModel, EncoderConfig
from fastdistil.backends import reference
from fastdistil.backends.cpu import CpuProgram, instruction_sets
from fastdistil.backends.threads import num_threads
from fastdistil.bench.workloads import SEED, random_model
from fastdistil.packing import PackedBatch, pack_ids
from fastdistil.pooling import pool

LAYER, VECTORS = "the layer", "the pooled vectors"


@dataclass(frozen=True)
class Part:
    """Where an operation runs in the engine.

    Attributes:
        name: the stop-watch's.
        times: how often a layer runs it.
        precisions: in which it is an operation of its own; others share one of these.
    """

    name: str
    times: int = 1
    precisions: tuple[str, ...] = ("fp32", "bf16", "int8")


PARTS = {
    operations.EMBEDDING.name: Part("embed"),
    operations.LINEAR_BIAS.name: Part("qkv"),
    operations.ATTENTION.name: Part("attention", precisions=("fp32", "bf16")),
    operations.SQUARE_LINEAR_RESIDUAL.name: Part("attention_out"),
    operations.LAYERNORM.name: Part("layer_norm", times=2),
    operations.LINEAR_GELU.name: Part("ffn_in"),
    operations.LINEAR_RESIDUAL.name: Part("ffn_out"),
    operations.POOLING.name: Part("pool", precisions=("fp32",)),
}
NOT_APART = (
    "C++ on the CPU, layernorm + residual: the product before adds the residual, see linear + "
    "residual",
    "C++ on the CPU, bias + gelu: a part of the product before, see linear + gelu",
    "C++ int8 on the CPU, attention: it runs in bf16 or fp32 there",
    "C++ bf16 and int8 on the CPU, mean pooling + norm: it runs in fp32 there",
    "C++ int8 on the CPU, rounding of what attention and GELU give: it has a stop-watch of its "
    "own, and no operation here",
)


class OneLayer:
    """A shape's layer with random weights, in every set of kernels that this machine has.

    Args:
        config: transformers', of one layer.
    """

    def __init__(self, config: Any) -> None:
        self.config = EncoderConfig.from_hf(config)
        model = DistilBertModel(self.config)
        model.load_state_dict(random_model(config).state_dict())
        self._weights = {name: weight.detach() for name, weight in model.named_parameters()}
        kernels: dict[tuple[str, str], str] = {}
        for found in instruction_sets()["kernels"]:  # the fastest of a kind comes first
            kernels.setdefault((found["isa"], found["precision"]), found["description"])
        self.engines = [
            CpuEngine(CpuProgram(self.config, self._weights, precision, isa), isa, precision, said)
            for (isa, precision), said in kernels.items()
        ]

    def contenders(self, case: Case, wrong: list[str]) -> list[Contender]:
        """Those whose layer and vectors are right; a line in `wrong` for each other."""
        batch = self._batch(case.sizes.lengths)
        want = self._truth(batch)
        found = (self._contender(engine, case, batch, want, wrong) for engine in self.engines)
        return [contender for contender in found if contender is not None]

    def _contender(
        self,
        engine: CpuEngine,
        case: Case,
        batch: PackedBatch,
        want: Mapping[str, Tensor],
        wrong: list[str],
    ) -> Contender | None:
        names = [
            operation.name
            for operation in case.operations
            if operation.name in PARTS and engine.precision in PARTS[operation.name].precisions
        ]
        if not names:
            return None
        who, program = f"C++ {engine.isa}", engine.program
        calls = {
            LAYER: lambda: program.run(batch),
            VECTORS: lambda: program.run_pooled(batch, "mean", True),
        }
        errors = {}
        for what, call in calls.items():
            where = f"{case.name}, {what}"
            error = prove(who, where, engine.precision, call, want[what], wrong)
            if error is None:
                return None
            errors[what] = error
        forward = _Forward(engine, batch)
        passes = repeats(forward, len(names))

        def turn() -> dict[str, float]:
            forward()  # not timed: nobody pays for the pause
            taken = [forward() for _ in range(passes)]
            return {name: sum(seconds[name] for seconds in taken) for name in names}

        facts = {name: Facts(passes, errors[e := _error_of(name)], e) for name in names}
        return Contender(who, engine.precision, turn, facts, engine.description, engine.isa)

    def _batch(self, lengths: Sequence[int]) -> PackedBatch:
        random = np.random.default_rng(SEED)
        ids = [random.integers(self.config.vocab_size, size=length) for length in lengths]
        segments = self.config.num_segments
        return pack_ids(
            ids,
            [random.integers(segments, size=length) for length in lengths] if segments else None,
        )

    def _truth(self, batch: PackedBatch) -> dict[str, Tensor]:
        """In float64; the means are taken in float32, by the reference."""
        weights = {name: weight.double() for name, weight in self._weights.items()}
        layer = reference.forward(self.config, weights, batch)
        return {LAYER: layer, VECTORS: pool(layer, batch.cu_seqlens, "mean", normalize=True)}


class _Forward:
    """A batch to pooled vectors, with the stop-watches on: seconds of each operation."""

    def __init__(self, engine: CpuEngine, batch: PackedBatch) -> None:
        self._encoder = engine.program._encoder
        self._batch = batch  # the engine is told addresses
        self._out = torch.empty(batch.num_sequences, engine.program._config.hidden_size)
        segments = batch.segment_ids
        self._arguments = {
            "input_ids": batch.input_ids.data_ptr(),
            "positions": batch.positions.data_ptr(),
            "segment_ids": 0 if segments is None else segments.data_ptr(),
            "cu_seqlens": batch.cu_seqlens.data_ptr(),
            "sequences": batch.num_sequences,
            "tokens": batch.num_tokens,
            "out": self._out.data_ptr(),
            "pooling": "mean",
            "normalize": True,
            "threads": num_threads(),
            "parts": True,
        }

    def __call__(self) -> dict[str, float]:
        start = time.perf_counter()
        parts = self._encoder.run(**self._arguments)
        return seconds_of_operations(parts, time.perf_counter() - start)


def seconds_of_operations(parts: Mapping[str, float], wall: float) -> dict[str, float]:
    """By operation, from the stop-watches of all threads together and the time on the wall."""
    scale = wall / sum(parts.values())
    return {name: scale * parts[part.name] / part.times for name, part in PARTS.items()}


def _error_of(name: str) -> str:
    return VECTORS if name == operations.POOLING.name else LAYER
