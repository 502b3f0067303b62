"""What a student is taught, as the training sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ...tasks.heads import Head
from ..batches import TrainingBatch
from ..settings import WEIGHTS, Settings
from ..student import Student


class Objective(Protocol):
    """Losses and metrics over a batch. Each is a sum over rows, so that batches can be added up."""

    @property
    def name(self) -> str:
        """ "embedding", "mlm" or "classification"."""

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the losses, in the order of the log; only those above 0."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """What else an evaluation says."""

    @property
    def needs_teacher(self) -> bool:
        """Whether any of it looks at the teacher."""

    def counts(self, batch: TrainingBatch) -> dict[str, int]:
        """Over how many rows each loss and metric is summed."""

    def sums(
        self,
        student: Student,
        hidden: Tensor,
        teacher: Tensor | None,
        batch: TrainingBatch,
        metrics: bool,
    ) -> dict[str, Tensor]:
        """The losses, and the metrics if they are wanted, summed.

        Args:
            student: whose head is asked.
            hidden: its last hidden states [T, D].
            teacher: the teacher's, float16 [T, D']; None where none is needed.
        """


def loss_weights(
    settings: Settings, objective: str, usual: Mapping[str, float]
) -> dict[str, float]:
    """The weights of the losses that count.

    Args:
        usual: what an objective's losses weigh where the settings do not say.

    Raises:
        ValueError: a weight for a loss that the objective has not, or none above 0.
    """
    for name in WEIGHTS:
        if getattr(settings, name) and name.removesuffix("_weight") not in usual:
            raise ValueError(
                f"{name}: got {getattr(settings, name)}, but the {objective} objective has no such "
                f"loss; it has {', '.join(usual)}"
            )
    asked = {name: getattr(settings, f"{name}_weight") for name in usual}
    weights = {name: usual[name] if w is None else w for name, w in asked.items()}
    found = {name: weight for name, weight in weights.items() if weight > 0}
    if not found:
        raise ValueError(
            f"{', '.join(f'{name}_weight' for name in usual)}: all are 0, so there is nothing to "
            "learn; one above 0 is wanted"
        )
    return found


def teacher_logits(head: Head, hidden: Tensor) -> Tensor:
    """What a teacher's head makes of its hidden states [R, D]: float32, whatever runs around it."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.float())
