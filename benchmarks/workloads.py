"""What is run: DistilBERT-base with seeded random weights, and real sentences cut into workloads.

No DistilBERT weights can be installed as a package, and speed does not depend on their values as
long as they are ordinary numbers (zeros run faster on some hardware: never time on them). The
vocabulary is DistilBERT's own: MiniLM's WordPiece tokenizer is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.corpora import minilm_folder, real_sentences

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
    """Sequences that one timed turn runs through, `repeats` times.

    Engines that pad see them as `batches`: consecutive groups of `batch`, in the order given here.
    """

    name: str
    sequences: tuple[tuple[int, ...], ...]
    repeats: int = 1
    batch: int = PEER_BATCH

    @property
    def tokens(self) -> int:
        """Real tokens in one pass; padding is never counted, whoever computes it."""
        return sum(map(len, self.sequences))

    @cached_property
    def batches(self) -> list[Padded]:
        starts = range(0, len(self.sequences), self.batch)
        return [_pad(self.sequences[start : start + self.batch]) for start in starts]

    def sorted_by_length(self) -> Workload:
        """The same sequences as a careful user of a padding engine would batch them."""
        longest_first = tuple(sorted(self.sequences, key=len, reverse=True))
        return replace(self, name=self.name + ", sorted", sequences=longest_first)

    def head(self, sequences: int) -> Workload:
        """The first few sequences only, once."""
        return replace(self, sequences=self.sequences[:sequences], repeats=1)


def mixed_sentences(count: int) -> Workload:
    """Real sentences with their natural lengths, in the corpus's own (mixed) order."""
    return Workload("mixed", tuple(token_ids(real_sentences(count)[:count])))


def full_rows(rows: int, length: int, repeats: int = 1) -> Workload:
    """A batch of `rows` sequences of exactly `length` tokens of running text: nobody pads."""
    inner = length - 2  # a [CLS] before, a [SEP] behind
    needed = rows * inner
    words: list[int] = []
    for ids in token_ids(real_sentences()[:needed]):
        cls, sep = ids[0], ids[-1]
        words.extend(ids[1:-1])
        if len(words) >= needed:
            break
    texts = (tuple(words[row * inner : (row + 1) * inner]) for row in range(rows))
    sequences = tuple((cls, *text, sep) for text in texts)
    if any(len(sequence) != length for sequence in sequences):
        raise LookupError(f"not enough text for {rows} x {length} tokens")
    return Workload(f"{rows} x {length}", sequences, repeats, batch=rows)


def one_sentence(length: int, repeats: int) -> Workload:
    """The first real sentence of exactly `length` tokens, `repeats` times a turn."""
    for ids in token_ids(real_sentences()[:2000]):
        if len(ids) == length:
            return Workload(f"1 x {length}", (ids,), repeats)
    raise LookupError(f"no sentence of {length} tokens")


def random_distilbert(**sizes: Any) -> Any:
    """transformers' DistilBertModel (base sizes unless given), seeded, in eval mode, fp32.

    Nothing is left at an initialiser's constant: biases are not zero and LayerNorm weights are not
    one, so an engine that forgets either fails its check.
    """
    from transformers import DistilBertConfig, DistilBertModel

    model = DistilBertModel(DistilBertConfig(**sizes)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        parameter.normal_(std=0.04, generator=generator)
        if name.endswith("LayerNorm.weight") or name.endswith("layer_norm.weight"):
            parameter.add_(1.0)
    return model


def _pad(sequences: Sequence[Sequence[int]]) -> Padded:
    longest = max(map(len, sequences))
    input_ids = np.zeros((len(sequences), longest), np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = sequence
        attention_mask[row, : len(sequence)] = 1
    return Padded(input_ids, attention_mask)


def token_ids(sentences: Sequence[str], max_length: int = 512) -> list[tuple[int, ...]]:
    """WordPiece ids of each sentence, [CLS] and [SEP] included, cut at `max_length`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return [tuple(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(sentences))]
