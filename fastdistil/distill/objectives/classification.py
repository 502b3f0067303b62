"""Labels: the teacher's probabilities, and people's labels where there are any."""

from __future__ import annotations

from torch import Tensor

from ...tasks.heads import Head
from ..batches import TrainingBatch
from ..losses import cosine_loss, hard_label_loss, soft_target_loss
from ..settings import Settings
from ..student import ClassificationHead, Student
from .base import loss_weights, teacher_logits


class ClassificationObjective:
    """soft_weight * L_soft + hard_weight * L_hard + hidden_weight * L_hidden.

    `soft`: cross-entropy with the teacher's softened probabilities (Hinton, Vinyals and Dean, arXiv
    1503.02531); `hard`: with the labels; `hidden`: 1 - cosine of all tokens' last hidden states
    (Sanh et al., arXiv 1910.01108).

    Args:
        teacher_head: from first tokens' hidden states to the teacher's logits.
        labelled: whether the texts have labels; without, `hard` is left out.

    Raises:
        ValueError: a hard_weight without labels.
    """

    name = "classification"

    def __init__(self, settings: Settings, teacher_head: Head, labelled: bool) -> None:
        if settings.hard_weight and not labelled:
            raise ValueError(
                f"hard_weight: got {settings.hard_weight}, but the texts have no labels; name "
                "their column with label_column, or leave hard_weight out"
            )
        usual = {"soft": 1.0, "hard": float(labelled), "hidden": 1.0}
        self.weights = loss_weights(settings, self.name, usual)
        self.needs_teacher = "soft" in self.weights or "hidden" in self.weights
        self.metrics = ("accuracy",) * labelled + ("agreement",) * self.needs_teacher
        self._head = teacher_head
        self._temperature = settings.temperature

    def counts(self, batch: TrainingBatch) -> dict[str, int]:
        """Texts; tokens, of `hidden`."""
        texts = dict.fromkeys(("soft", "hard", "accuracy", "agreement"), batch.packed.num_sequences)
        return texts | {"hidden": batch.packed.num_tokens}

    def sums(
        self,
        student: Student,
        hidden: Tensor,
        teacher: Tensor | None,
        batch: TrainingBatch,
        metrics: bool,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        assert isinstance(student.head, ClassificationHead)
        first = batch.packed.cu_seqlens[:-1].long()
        logits = student.head(hidden[first])
        found = {}
        if teacher is not None:
            wanted = teacher_logits(self._head, teacher[first])
            if "soft" in self.weights:
                found["soft"] = soft_target_loss(logits, wanted, self._temperature)
            if "hidden" in self.weights:
                found["hidden"] = cosine_loss(hidden, teacher)
            if metrics:
                agree = logits.argmax(dim=1) == wanted.argmax(dim=1)
                found["agreement"] = agree.sum()
        if "hard" in self.weights:
            assert batch.labels is not None
            found["hard"] = hard_label_loss(logits, batch.labels)
        if metrics and "accuracy" in self.metrics:
            assert batch.labels is not None
            found["accuracy"] = (logits.argmax(dim=1) == batch.labels).sum()
        return found
