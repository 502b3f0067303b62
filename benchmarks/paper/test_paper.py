"""DistilBERT-base against BERT-base at batch 1 on the CPU, as in table 3 of DistilBERT's paper.

    python -m pytest benchmarks/paper -o addopts= --benchmark-only
    python -m pytest benchmarks/paper -o addopts= --benchmark-only --quick

Sanh et al. 2019, arXiv 1910.01108, give the time of a pass over STS-B's 1,500 pairs at batch 1:
668 seconds for BERT-base, 410 for DistilBERT. Here it is a sample of other pairs (`pairs`), scaled
to 1,500 (`table`), and encoders without heads: transformers' default sizes, random weights.
"""

from __future__ import annotations

from benchmarks.conftest import Record
from benchmarks.paper.measure import measure
from benchmarks.paper.pairs import pairs
from benchmarks.paper.table import STUDENT, TEACHER


def test_pairs_at_batch_1(record: Record, quick: bool, left_out: list[str]) -> None:
    from transformers import BertConfig, DistilBertConfig

    configs = {TEACHER: BertConfig(), STUDENT: DistilBertConfig()}
    sample, rounds = (5, 3) if quick else (75, 5)
    record(measure(configs, pairs(sample), rounds, left_out, quick=quick))
