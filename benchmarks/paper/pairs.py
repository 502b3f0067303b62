"""Pairs of real sentences, one at a time, in the place of STS-B's.

No STS-B can be installed as a package. The sentences here are real, but other ones, and only those
of at most LONGEST tokens take part: a pair has 27 tokens then, where any two have 48, since STS-B
is made of headlines, captions and remarks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.corpora import real_sentences
from benchmarks.workloads import token_ids
from fastdistil.bench.engines import Floats, Variant
from fastdistil.bench.workloads import Workload

GROUP = "batch 1, pairs"
# Of a sentence, [CLS] and [SEP] included.
LONGEST = 20


def pairs(count: int) -> Workload:
    """Neighbours among the short real sentences, as [CLS] a [SEP] b [SEP]; one is a batch.

    Raises:
        LookupError: there are fewer.
    """
    # Two in five are short enough.
    short = [ids for ids in token_ids(real_sentences()[: 6 * count]) if len(ids) <= LONGEST]
    if len(short) < 2 * count:
        raise LookupError(f"{count} pairs of short sentences wanted, {len(short) // 2} here")
    joined = (a + b[1:] for a, b in zip(short[::2], short[1::2], strict=False))
    return Workload(GROUP, tuple(joined)[:count], batch=1)


def pair_variant(model: Any, configuration: str) -> Variant:
    """A transformers model, or what stands in for one. BERT is told which tokens are the second's.

    DistilBERT has no segments: its `forward` takes none.
    """
    segments = model.config.model_type == "bert"

    @torch.inference_mode()
    def run(workload: Workload) -> list[Tensor]:
        return [model(**inputs(pair, segments)).last_hidden_state for pair in workload.sequences]

    def rows(workload: Workload, outputs: Sequence[Tensor]) -> Floats:
        return torch.cat([output[0] for output in outputs]).float().numpy()

    return Variant(configuration, run, rows)


# The untimed check of each engine's answers comes first, so nobody pays for it.
@functools.cache
def inputs(pair: tuple[int, ...], segments: bool) -> dict[str, Tensor]:
    """What a tokenizer gives for a pair of S tokens: int64 [1, S] each."""
    input_ids = torch.tensor([pair])
    found = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if segments:
        second = torch.arange(len(pair)) > pair.index(pair[-1])  # behind the first [SEP]
        found["token_type_ids"] = second.long().unsqueeze(0)
    return found
