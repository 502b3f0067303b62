"""Which texts make which step, and what of them goes into the models.

The plan of an epoch is a function of the lengths, the settings and the epoch's number, so a run
that goes on at step n does what it would have done. Texts of like length are put together: nothing
is padded, but products over many sequences of one length are fewer and larger.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..packed_batch import PackedBatch
from ..packing import pack_flat, plan_batches
from .corpus import Corpus
from .masking import Masking

# Texts that are sorted by length together. More would put still liker lengths in a batch, but make
# it less of a random one.
_POOL = 2048


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """Texts for student and teacher, which read the same.

    Attributes:
        packed: their tokens; masked ones, for a masked language model.
        texts: int64 [B], their numbers in the corpus.
        masking: the number of the masking; 0 where nothing is masked.
        rows, targets: int64 [M], the chosen tokens and what they were; None where nothing is
            masked.
        labels: int64 [B], or None.
    """

    packed: PackedBatch
    texts: NDArray[np.int64]
    masking: int
    rows: Tensor | None
    targets: Tensor | None
    labels: Tensor | None

    def to(self, device: torch.device) -> TrainingBatch:
        """The same with its tensors on `device`."""

        def there(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            packed=self.packed.to(device),
            rows=there(self.rows),
            targets=there(self.targets),
            labels=there(self.labels),
        )


def make_batch(
    corpus: Corpus, texts: NDArray[np.int64], masking: Masking | None, number: int
) -> TrainingBatch:
    """Some texts of a corpus, in the order given, on the CPU.

    Args:
        number: of the masking.
    """
    ids, lengths = corpus.ids_of(texts), corpus.lengths[texts]
    rows = targets = labels = None
    if masking is not None:
        masked, chosen = masking(ids, lengths.tolist(), texts.tolist(), number)
        rows, targets = torch.from_numpy(chosen), torch.from_numpy(ids[chosen].astype(np.int64))
        ids = masked
    if corpus.labels is not None:
        labels = torch.from_numpy(corpus.labels[texts])
    return TrainingBatch(pack_flat(ids, lengths), texts, number, rows, targets, labels)


def batches_in_order(
    corpus: Corpus, batch_tokens: int, masking: Masking | None, number: int
) -> Iterator[TrainingBatch]:
    """All of a corpus, the shortest texts first: for evaluation."""
    by_length = np.argsort(corpus.lengths, kind="stable")
    for places in plan_batches(corpus.lengths[by_length], batch_tokens):
        yield make_batch(corpus, by_length[places], masking, number)


class Step(NamedTuple):
    """One step of the optimizer.

    Attributes:
        number: from 1.
        epoch: from 0.
        pieces: the texts of each batch, whose gradients are added up.
    """

    number: int
    epoch: int
    pieces: list[NDArray[np.int64]]


class StepPlan:
    """All steps of a run.

    Args:
        lengths: int64 [N], tokens of each text.
        batch_tokens, accumulation, epochs, max_steps, seed: see `Settings`.
    """

    def __init__(
        self,
        lengths: NDArray[np.int64],
        batch_tokens: int,
        accumulation: int,
        epochs: int,
        max_steps: int | None,
        seed: int,
    ) -> None:
        self._lengths = lengths
        self._batch_tokens = batch_tokens
        self._accumulation = accumulation
        self._seed = seed
        self._counts = [-(-len(self._batches(epoch)) // accumulation) for epoch in range(epochs)]
        planned = sum(self._counts)
        self.total = planned if max_steps is None else min(planned, max_steps)
        """Steps of the whole run."""
        ends = np.cumsum(self._counts)
        self.epochs = int(np.searchsorted(ends, self.total)) + 1
        """Epochs that it comes to, the last one maybe not to its end."""

    def after(self, done: int) -> Iterator[Step]:
        """The steps that are left after the first `done`."""
        number = 0
        for epoch, count in enumerate(self._counts):
            if number + count > done and number < self.total:
                batches = self._batches(epoch)
                for index in range(max(done - number, 0), min(count, self.total - number)):
                    pieces = batches[index * self._accumulation : (index + 1) * self._accumulation]
                    yield Step(number + index + 1, epoch, pieces)
            number += count

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        """An epoch's batches, in order."""
        draws = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        order = draws.permutation(len(self._lengths))
        found = []
        for start in range(0, len(order), _POOL):
            pool = order[start : start + _POOL]
            pool = pool[np.argsort(self._lengths[pool], kind="stable")]
            found += [
                pool[places] for places in plan_batches(self._lengths[pool], self._batch_tokens)
            ]
        return [found[index] for index in draws.permutation(len(found))]
