"""Masked words: the objective that DistilBERT was made with."""

from __future__ import annotations

from torch import Tensor

from ...tasks.heads import Head
from ..batches import TrainingBatch
from ..losses import cosine_loss, hard_label_loss, soft_target_loss
from ..settings import Settings
from ..student import MaskedLMHead, Student
from .base import loss_weights, teacher_logits

# Those of the training that made distilbert-base-uncased (Sanh et al.'s own scripts; the paper
# names the three losses, not their weights), with the temperature 2.
_USUAL = {"soft": 5.0, "hard": 2.0, "hidden": 1.0}


class MaskedLMObjective:
    """soft_weight * L_ce + hard_weight * L_mlm + hidden_weight * L_cos.

    The triple loss of Sanh et al. (arXiv 1910.01108, section 3): `soft` is the distillation loss
    over the teacher's softened distribution, `hard` the masked-LM loss, `hidden` 1 - cosine of last
    hidden states, over all tokens.

    Args:
        teacher_head: from the teacher's hidden states to its logits.

    `soft` is over the masked tokens; with soft_targets="all" over all of them, as in the authors'
    scripts, which multiplies the matrix of the whole vocabulary with all tokens and not with 15%.
    """

    name = "mlm"

    def __init__(self, settings: Settings, teacher_head: Head) -> None:
        self.weights = loss_weights(settings, self.name, _USUAL)
        self.needs_teacher = "soft" in self.weights or "hidden" in self.weights
        self.metrics: tuple[str, ...] = ("accuracy",)
        if self.needs_teacher:
            self.metrics += ("agreement",)
        self._head = teacher_head
        self._temperature = settings.temperature
        self._all = settings.soft_targets == "all"

    def counts(self, batch: TrainingBatch) -> dict[str, int]:
        """Masked tokens, or all of them."""
        assert batch.rows is not None
        masked, tokens = len(batch.rows), batch.packed.num_tokens
        return {
            "soft": tokens if self._all else masked,
            "hard": masked,
            "hidden": tokens,
            **dict.fromkeys(("accuracy", "agreement"), masked),
        }

    def sums(
        self,
        student: Student,
        hidden: Tensor,
        teacher: Tensor | None,
        batch: TrainingBatch,
        metrics: bool,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        assert isinstance(student.head, MaskedLMHead)
        assert batch.rows is not None
        assert batch.targets is not None
        rows = batch.rows
        soft, found = "soft" in self.weights, {}
        # Of all tokens the whole vocabulary's logits are computed only where they are asked for.
        everywhere = soft and self._all
        logits = student.head(hidden if everywhere else hidden[rows], student.words)
        wanted = None
        if teacher is not None and (soft or metrics):
            wanted = teacher_logits(self._head, teacher if everywhere else teacher[rows])
        if soft:
            assert wanted is not None
            found["soft"] = soft_target_loss(logits, wanted, self._temperature)
        if everywhere:
            assert wanted is not None
            logits, wanted = logits[rows], wanted[rows]
        if "hard" in self.weights:
            found["hard"] = hard_label_loss(logits, batch.targets)
        if "hidden" in self.weights:
            assert teacher is not None
            found["hidden"] = cosine_loss(hidden, teacher)
        if metrics:
            best = logits.argmax(dim=1)
            found["accuracy"] = (best == batch.targets).sum()
            if wanted is not None:
                found["agreement"] = (best == wanted.argmax(dim=1)).sum()
        return found
