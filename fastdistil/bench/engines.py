"""Who takes part: an engine, the settings to choose from, and how its answers are looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .workloads import Workload

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Variant:
    """One way to run an engine.

    Attributes:
        configuration: for people, what was set.
        run: a workload, once: its last hidden states or its vectors. This is what is timed.
        rows: the result of `run` as fp32 [rows, D], to be checked; not timed. A row for each real
            token of the workload, in order, or for each sequence where `run` pools.
    """

    configuration: str
    run: Callable[[Workload], Any]
    rows: Callable[[Workload, Any], Floats]


@dataclass(frozen=True)
class Engine:
    """A named engine at one precision, with the variants to choose from."""

    name: str
    precision: str
    variants: tuple[Variant, ...]


def torch_variant(model: Any, configuration: str) -> Variant:
    """A transformers model, or what stands in for one, on padded batches."""

    @torch.inference_mode()
    def run(workload: Workload) -> list[torch.Tensor]:
        return [
            model(
                input_ids=torch.from_numpy(batch.input_ids),
                attention_mask=torch.from_numpy(batch.attention_mask),
            ).last_hidden_state
            for batch in workload.batches
        ]

    def rows(workload: Workload, outputs: Sequence[torch.Tensor]) -> Floats:
        return tokens_of_batches(workload, [output.float().numpy() for output in outputs])

    return Variant(configuration, run, rows)


def tokens_of_batches(workload: Workload, outputs: Sequence[Floats]) -> Floats:
    """[B, S, D] per batch to [T, D], pads dropped."""
    pairs = zip(workload.batches, outputs, strict=True)
    return np.concatenate([output[batch.attention_mask > 0] for batch, output in pairs])
