"""The frozen teacher, run by the fastest engine there is: most of what distillation costs."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from typing import Protocol

import torch
from torch import Tensor

from ..checkpoint import Checkpoint, add_to_digest
from ..model import DistilBertModel
from .batches import TrainingBatch


class Source(Protocol):
    """Where the teacher's hidden states come from: the teacher, or what was kept of it."""

    seconds: float
    """Time spent so far."""

    def hidden(self, batch: TrainingBatch) -> Tensor:
        """Last hidden states of a batch's tokens: float16 [T, D], on the batch's device."""


class Teacher:
    """A checkpoint's encoder as an accelerated program, batches without padding.

    Args:
        checkpoint: its weights.
        device: where it runs, and where its batches are.
        precision: as for `fastdistil.Encoder`.

    Attributes:
        model: the encoder.
        seconds: time spent in `hidden`.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, precision: str) -> None:
        self.model = DistilBertModel.from_checkpoint(checkpoint, device, precision)
        self.seconds = 0.0
        self._checkpoint = checkpoint

    def hidden(self, batch: TrainingBatch) -> Tensor:
        """Last hidden states of a batch's tokens.

        They are rounded to float16, 11 bits, whether they are kept or not: a run that reads them
        from the disk learns the same, to the bit.

        Raises:
            ValueError: a state that float16 does not reach.
        """
        start = time.monotonic()
        with torch.no_grad():
            hidden = self.model.forward_packed(batch.packed).to(torch.float16)
            if not torch.isfinite(hidden).all():
                raise ValueError(
                    "teacher: its hidden states are not finite, or beyond float16 (65504); check "
                    "its weights, or give teacher_precision='fp32'"
                )
        self.seconds += time.monotonic() - start
        return hidden

    def engine(self) -> dict[str, str]:
        """What runs it; see `fastdistil.explain`."""
        return self.model.explain()

    def fingerprint(self) -> str:
        """A hash of its config and weights, the head's included."""
        sizes = json.dumps(asdict(self._checkpoint.config), sort_keys=True)
        digest = hashlib.sha256(sizes.encode())
        add_to_digest(digest, self._checkpoint.state_dict)
        add_to_digest(digest, self._checkpoint.head)
        return digest.hexdigest()
