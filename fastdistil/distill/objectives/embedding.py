"""Vectors like the teacher's: for encoders without a head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...pooling import pool
from ..batches import TrainingBatch
from ..losses import cosine_loss, squared_error_loss
from ..settings import Settings
from ..student import Student
from .base import loss_weights


class EmbeddingObjective:
    """pooled_weight * L_pooled + hidden_weight * L_hidden.

    L_hidden: 1 - cosine of each token's last hidden states (L_cos of Sanh et al., arXiv
    1910.01108). L_pooled: of each text's vector, pooled as the teacher pools, 1 - cosine; or the
    squared distance (Reimers and Gurevych, arXiv 2004.09813), of vectors of length 1 where the
    teacher normalises.

    Args:
        pooling, normalize: how the teacher makes a vector; see `fastdistil.pooling.pool`.
    """

    name = "embedding"
    metrics = ("pooled_cosine", "token_cosine")
    needs_teacher = True

    def __init__(self, settings: Settings, pooling: str, normalize: bool) -> None:
        self.weights = loss_weights(settings, self.name, {"pooled": 1.0, "hidden": 1.0})
        self._pooling = pooling
        self._normalize = normalize
        self._squared = settings.pooled_loss == "mse"

    def counts(self, batch: TrainingBatch) -> dict[str, int]:
        """Texts, and tokens."""
        texts, tokens = batch.packed.num_sequences, batch.packed.num_tokens
        return {"pooled": texts, "hidden": tokens, "pooled_cosine": texts, "token_cosine": tokens}

    def sums(
        self,
        student: Student,
        hidden: Tensor,
        teacher: Tensor | None,
        batch: TrainingBatch,
        metrics: bool,
    ) -> dict[str, Tensor]:
        """See `Objective`."""
        assert teacher is not None
        teacher, found = teacher.to(hidden.dtype), {}
        vectors, wanted = (
            pool(states, batch.packed.cu_seqlens, self._pooling) for states in (hidden, teacher)
        )
        if "pooled" in self.weights:
            found["pooled"] = self._pooled(vectors, wanted)
        if "hidden" in self.weights:
            found["hidden"] = cosine_loss(hidden, teacher)
        if metrics:
            found["pooled_cosine"] = F.cosine_similarity(vectors, wanted).sum()
            found["token_cosine"] = F.cosine_similarity(hidden, teacher).sum()
        return found

    def _pooled(self, vectors: Tensor, wanted: Tensor) -> Tensor:
        if not self._squared:
            return cosine_loss(vectors, wanted)
        if self._normalize:
            vectors, wanted = F.normalize(vectors), F.normalize(wanted)
        return squared_error_loss(vectors, wanted)
