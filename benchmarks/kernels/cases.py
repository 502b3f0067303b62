"""What the operations run on: encoders' shapes, a sweep of tokens, sequences of several lengths."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import workloads
from benchmarks.kernels.operations import ATTENTION, EMBEDDING, ENCODER, Operation, Sizes
from fastdistil import EncoderConfig

DISTILBERT, BERT, MINILM = "DistilBERT", "BERT", "MiniLM"
# Sequences x tokens of each, or tokens in all in sentences of real lengths: the sweep of tokens,
# other lengths of 1,024 tokens, and what is packed.
SWEEP = ("1 x 16", "1 x 128", "8 x 128", "32 x 128")
OTHER_LENGTHS = ("64 x 16", "2 x 512", "mixed, 1024")
MIXED = ("mixed, 128", "mixed, 1024", "mixed, 4096")


@dataclass(frozen=True)
class Case:
    """Operations of one shape on the same sequences.

    Attributes:
        shape: a key of `config`.
        layout: of SWEEP, OTHER_LENGTHS or MIXED.
        operations: which ones.
        compiled: whether torch.compile takes part: compiling takes it seconds for each operation.
        rounds: turns of everybody.
    """

    shape: str
    layout: str
    operations: tuple[Operation, ...]
    compiled: bool
    rounds: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.shape}, {self.layout}"

    @property
    def sizes(self) -> Sizes:
        """What the operations' operands are made from."""
        encoder = EncoderConfig.from_hf(config(self.shape))
        return Sizes(
            lengths(self.layout),
            encoder.hidden_size,
            encoder.intermediate_size,
            encoder.num_heads,
            encoder.vocab_size,
            encoder.max_positions,
            encoder.num_segments,
        )


def cases(packing: Operation, *, quick: bool) -> Iterator[Case]:
    """All of them; few sizes and turns if `quick`, and nothing compiled.

    Args:
        packing: what packs on the device.
    """
    for shape in (DISTILBERT, MINILM):
        for layout in SWEEP[:2] if quick else SWEEP:
            compiled = not quick and (shape, layout) == (DISTILBERT, "8 x 128")
            rounds = 2 if quick else 3 if layout == SWEEP[-1] else 5
            yield Case(shape, layout, ENCODER, compiled, rounds)
        for layout in MIXED[:1] if quick else OTHER_LENGTHS:
            yield Case(shape, layout, (ATTENTION,), compiled=False, rounds=2 if quick else 3)
    for layout in MIXED[:2] if quick else MIXED:
        yield Case(DISTILBERT, layout, (packing,), compiled=False, rounds=2 if quick else 5)
    # All that BERT-base has and DistilBERT has not.
    for layout in ("1 x 16",) if quick else ("1 x 128", "8 x 128"):
        yield Case(BERT, layout, (EMBEDDING,), compiled=False, rounds=2 if quick else 5)


def config(shape: str) -> Any:
    """transformers' config of one layer of that shape."""
    from transformers import BertConfig, DistilBertConfig

    if shape == DISTILBERT:
        return DistilBertConfig(n_layers=1)
    if shape == BERT:
        return BertConfig(num_hidden_layers=1)
    return BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=1)


@functools.cache
def lengths(layout: str) -> tuple[int, ...]:
    """Tokens of each sequence; of sentences the last one is cut to fit."""
    if layout not in MIXED:
        count, length = map(int, layout.split(" x "))
        return (length,) * count
    left = int(layout.removeprefix("mixed, "))
    found = []
    for sequence in workloads.mixed_sentences(256).sequences:
        found.append(min(len(sequence), left))
        left -= found[-1]
        if not left:
            break
    return tuple(found)
