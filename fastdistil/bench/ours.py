"""fastdistil as an engine of the benchmarks: its own model on packed tokens, and the drop-in."""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastdistil

from ..backends import select
from ..drop_in import Explanation
from ..packing import pack_ids
from .engines import Engine, Floats, Variant, torch_variant
from .peers import known_names
from .workloads import Workload

PRECISIONS = ("int8", "bf16", "fp32")


def add_precisions_option(parser: argparse.ArgumentParser) -> None:
    """`--precisions NAME,NAME`: a list, of PRECISIONS."""
    parser.add_argument(
        "--precisions",
        type=lambda text: known_names(text, PRECISIONS),
        default=",".join(PRECISIONS),
        metavar="NAME,NAME",
        help="which (default: %(default)s); one without kernels for this CPU is left out",
    )


def refusal(config: fastdistil.EncoderConfig, precision: str, backend: str) -> str | None:
    """Why nothing on this machine's CPU, or not that backend, runs a model of these sizes so."""
    try:
        select(config, torch.device("cpu"), precision, backend)
    except ValueError as why:
        return str(why)
    return None


def precisions(hf_model: Any, missing: list[str], among: Sequence[str] = PRECISIONS) -> list[str]:
    """Those the CPU engine has kernels for here; a line for each other."""
    config = fastdistil.EncoderConfig.from_hf(hf_model.config)
    # Not "auto": plain PyTorch would stand in for kernels that are not there.
    reasons = {
        precision: refusal(config, precision, "cpu")
        for precision in PRECISIONS
        if precision in among
    }
    missing += [f"fastdistil {name}: {why}" for name, why in reasons.items() if why is not None]
    return [name for name, why in reasons.items() if why is None]


def packed(hf_model: Any, precision: str) -> Engine:
    """`DistilBertModel.forward_packed`: from lists of token ids (packing is timed) to [T, D]."""
    config = fastdistil.EncoderConfig.from_hf(hf_model.config)
    model = fastdistil.DistilBertModel(config, precision=precision).eval().requires_grad_(False)
    model.load_state_dict(hf_model.state_dict())

    @torch.inference_mode()
    def run(workload: Workload) -> Tensor:
        return model.forward_packed(pack_ids(workload.sequences))

    def rows(workload: Workload, hidden: Tensor) -> Floats:
        return hidden.float().numpy()

    facts = model.explain()
    configuration = f"forward_packed; {facts['backend']} backend, {facts['instruction_set']}"
    return Engine(f"fastdistil {precision}", precision, (Variant(configuration, run, rows),))


def pooled(hf_model: Any, precision: str) -> Engine:
    """`Encoder.encode_ids`: from lists of token ids to one vector a sequence, [B, D], by mean."""
    with tempfile.TemporaryDirectory() as folder:
        hf_model.save_pretrained(folder)
        encoder = fastdistil.Encoder(folder, "cpu", precision, pooling="mean", normalize=False)

    def run(workload: Workload) -> Floats:
        vectors: Floats = encoder.encode_ids(workload.sequences, show_progress=False)
        return vectors

    def rows(workload: Workload, vectors: Floats) -> Floats:
        return vectors

    facts = encoder.model.explain()
    configuration = f"encode_ids; {facts['backend']} backend, {facts['instruction_set']}"
    return Engine(f"fastdistil {precision}", precision, (Variant(configuration, run, rows),))


def drop_in(hf_model: Any, precision: str) -> Engine:
    """`accelerate` on a transformers model: padded tensors in, padded tensors out."""
    model = fastdistil.accelerate(copy.deepcopy(hf_model), precision=precision)
    facts = fastdistil.explain(model)
    assert isinstance(facts, Explanation)
    configuration = f"accelerate(); {facts.backend} backend, {facts.instruction_set}"
    return Engine(f"fastdistil {precision}", precision, (torch_variant(model, configuration),))


def means(workload: Workload, states: Floats) -> Floats:
    """[B, D]: what `pooled` should give where the last hidden states [T, D] are these."""
    ends = np.cumsum([len(sequence) for sequence in workload.sequences])[:-1]
    return np.stack([sentence.mean(axis=0) for sentence in np.split(states, ends)])
