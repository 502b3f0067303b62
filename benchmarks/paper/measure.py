"""DistilBERT-base and BERT-base, each by eager PyTorch and by fastdistil, all taking turns."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import fastdistil
from benchmarks.paper.pairs import pair_variant
from fastdistil.bench import ours
from fastdistil.bench.engines import Engine
from fastdistil.bench.peers.common import copy_of
from fastdistil.bench.race import Contender, choose, race
from fastdistil.bench.results import Row
from fastdistil.bench.workloads import Workload, random_model
from fastdistil.drop_in import Explanation

# Pairs in STS-B's development set, which the paper's times are for.
PAIRS_OF_A_PASS = 1500


def measure(
    configs: Mapping[str, Any], pairs: Workload, rounds: int, left_out: list[str], *, quick: bool
) -> list[Row]:
    """A row for each engine on each model. All models take turns with each other.

    Args:
        configs: transformers' configs by the names that models have in the table.
        left_out: gets a line for each contender that is not timed.
        quick: one turn to choose between an engine's variants, not two.
    """
    contenders: list[Contender] = []
    facts: dict[str, dict[str, Any]] = {}
    for label, config in configs.items():
        model = random_model(config)
        found = {f"{label}, {engine.name}": engine for engine in engines(model, left_out)}
        about = sizes(model)
        for name, engine in found.items():
            facts[name] = {"model": label, "engine": engine.name, **about}
        named = [replace(engine, name=name) for name, engine in found.items()]
        original = pair_variant(model, "the original")
        expected = original.rows(pairs, original.run(pairs))
        contenders += choose(named, pairs, expected, left_out, quick=quick)
    return [
        replace(row, info={**facts[row.name], "pairs_of_a_pass": PAIRS_OF_A_PASS, **row.info})
        for row in race(pairs, contenders, rounds, quick=quick)
    ]


def engines(model: Any, left_out: list[str]) -> list[Engine]:
    """Eager PyTorch as in the paper and in bf16, then fastdistil's drop-in at every precision."""
    found = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        variants = tuple(
            pair_variant(copy_of(model, attention, dtype), f"transformers, {attention} attention")
            for attention in ("sdpa", "eager")
        )
        found.append(Engine(f"eager PyTorch {precision}", precision, variants))
    for precision in ours.precisions(model, left_out):
        twin = fastdistil.accelerate(copy.deepcopy(model), precision=precision)
        facts = fastdistil.explain(twin)
        assert isinstance(facts, Explanation)
        configuration = f"accelerate(); {facts.backend} backend, {facts.instruction_set}"
        variant = pair_variant(twin, configuration)
        found.append(Engine(f"fastdistil {precision}", precision, (variant,)))
    return found


def sizes(model: Any) -> dict[str, int]:
    """Of the encoder with its embeddings; pooler and head are in neither count.

    Returns:
        parameters, layers, and bytes_on_disk of its fp32 weights in safetensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "bytes_on_disk": size,
    }
