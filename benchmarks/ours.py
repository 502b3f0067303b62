"""fastdistil as an engine of the benchmarks: its own model on packed tokens, and the drop-in."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

import fastdistil
from benchmarks.peers import Engine, Floats, Variant, torch_variant
from benchmarks.workloads import Workload
from fastdistil.drop_in import Explanation
from fastdistil.packing import pack_ids


def packed(hf_model: Any, precision: str) -> Engine:
    """`DistilBertModel.forward_packed`: from lists of token ids (packing is timed) to [T, D]."""
    config = fastdistil.EncoderConfig.from_hf(hf_model.config)
    model = fastdistil.DistilBertModel(config, precision=precision).eval().requires_grad_(False)
    model.load_state_dict(hf_model.state_dict())

    @torch.inference_mode()
    def run(workload: Workload) -> Tensor:
        return model.forward_packed(pack_ids(workload.sequences))

    def tokens(workload: Workload, hidden: Tensor) -> Floats:
        return hidden.float().numpy()

    facts = model.explain()
    configuration = f"forward_packed; {facts['backend']} backend, {facts['instruction_set']}"
    return Engine(f"fastdistil {precision}", precision, (Variant(configuration, run, tokens),))


def drop_in(hf_model: Any, precision: str) -> Engine:
    """`accelerate` on a transformers model: padded tensors in, padded tensors out."""
    model = fastdistil.accelerate(copy.deepcopy(hf_model), precision=precision)
    facts = fastdistil.explain(model)
    assert isinstance(facts, Explanation)
    configuration = f"accelerate(); {facts.backend} backend, {facts.instruction_set}"
    return Engine(f"fastdistil {precision}", precision, (torch_variant(model, configuration),))
