"""What is run: token ids of real sentences cut into workloads, and models to run them.

Speed does not depend on the values of weights as long as they are ordinary numbers (zeros run
faster on some hardware: never time on them), so where no checkpoint is at hand a model of the
wanted sizes with seeded random weights serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

PEER_BATCH = 32
SEED = 0


@dataclass(frozen=True)
class Padded:
    """A padded batch as every other engine wants it.

    Attributes:
        input_ids: int64 [B, S], 0 at the pads.
        attention_mask: int64 [B, S], 1 at real tokens.
    """

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Workload:
    """Sequences that are run through in one pass.

    Engines that pad see them as `batches`: consecutive groups of `batch`, in the order given here.
    """

    name: str
    sequences: tuple[tuple[int, ...], ...]
    batch: int = PEER_BATCH

    @property
    def tokens(self) -> int:
        """Real tokens in one pass; padding is never counted, whoever computes it."""
        return sum(map(len, self.sequences))

    @cached_property
    def batches(self) -> list[Padded]:
        starts = range(0, len(self.sequences), self.batch)
        return [pad(self.sequences[start : start + self.batch]) for start in starts]

    def sorted_by_length(self) -> Workload:
        """The same sequences as a careful user of a padding engine would batch them."""
        longest_first = tuple(sorted(self.sequences, key=len, reverse=True))
        return replace(self, name=self.name + ", sorted", sequences=longest_first)

    def head(self, sequences: int) -> Workload:
        """The first few sequences only."""
        return replace(self, sequences=self.sequences[:sequences])


def full_rows(texts: Iterable[Sequence[int]], rows: int, length: int) -> Workload:
    """A batch of `rows` sequences of exactly `length` tokens of running text: nobody pads.

    Args:
        texts: token ids, a first and a last special token in each; as many are read as needed.

    Raises:
        LookupError: they are too few.
    """
    inner = length - 2  # a [CLS] before, a [SEP] behind
    needed = rows * inner
    words: list[int] = []
    ends: tuple[int, int] | None = None
    for ids in texts:
        ends = ids[0], ids[-1]
        words.extend(ids[1:-1])
        if len(words) >= needed:
            break
    if ends is None or len(words) < needed:
        raise LookupError(f"not enough text for {rows} x {length} tokens")
    cuts = (tuple(words[row * inner : (row + 1) * inner]) for row in range(rows))
    sequences = tuple((ends[0], *cut, ends[1]) for cut in cuts)
    return Workload(f"{rows} x {length}", sequences, batch=rows)


def one_of_length(texts: Iterable[Sequence[int]], length: int) -> Workload:
    """The first text of exactly `length` tokens.

    Raises:
        LookupError: there is none.
    """
    for ids in texts:
        if len(ids) == length:
            return Workload(f"1 x {length}", (tuple(ids),))
    raise LookupError(f"no sentence of {length} tokens")


def random_model(config: Any) -> Any:
    """transformers' model of a transformers config, seeded, in eval mode, fp32, without a pooler.

    Nothing is left at an initialiser's constant: biases are not zero and LayerNorm weights are not
    one, so an engine that forgets either fails its check.
    """
    import transformers

    if config.model_type == "bert":
        model: Any = transformers.BertModel(config, add_pooling_layer=False)
    else:
        model = transformers.DistilBertModel(config)
    model.eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        parameter.normal_(std=0.04, generator=generator)
        if name.endswith("LayerNorm.weight") or name.endswith("layer_norm.weight"):
            parameter.add_(1.0)
    return model


def pad(sequences: Sequence[Sequence[int] | npt.NDArray[np.int32]]) -> Padded:
    """One batch, as wide as its longest sequence."""
    longest = max(map(len, sequences))
    input_ids = np.zeros((len(sequences), longest), np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        attention_mask[row, : len(sequence)] = 1
    return Padded(input_ids, attention_mask)
