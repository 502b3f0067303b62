"""What is run here: DistilBERT-base with seeded random weights, and real sentences.

No DistilBERT weights can be installed as a package. The vocabulary is DistilBERT's own: MiniLM's
WordPiece tokenizer is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.corpora import minilm_folder, real_sentences
from fastdistil.bench import workloads
from fastdistil.bench.workloads import Workload


def mixed_sentences(count: int) -> Workload:
    """Real sentences with their natural lengths, in the corpus's own (mixed) order."""
    return Workload("mixed", tuple(token_ids(real_sentences(count)[:count])))


def full_rows(rows: int, length: int) -> Workload:
    """A batch of `rows` sequences of exactly `length` tokens of running text: nobody pads."""
    # A sentence has a word at least.
    return workloads.full_rows(token_ids(real_sentences()[: rows * length]), rows, length)


def one_sentence(length: int) -> Workload:
    """The first real sentence of exactly `length` tokens."""
    return workloads.one_of_length(token_ids(real_sentences()[:2000]), length)


def random_distilbert(**sizes: Any) -> Any:
    """transformers' DistilBertModel (base sizes unless given); see `workloads.random_model`."""
    from transformers import DistilBertConfig

    return workloads.random_model(DistilBertConfig(**sizes))


def token_ids(sentences: Sequence[str], max_length: int = 512) -> list[tuple[int, ...]]:
    """WordPiece ids of each sentence, [CLS] and [SEP] included, cut at `max_length`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return [tuple(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(sentences))]
