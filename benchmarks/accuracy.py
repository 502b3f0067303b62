"""How far fastdistil is from the original: MiniLM's real weights, real sentences, every token.

    python -m benchmarks.accuracy [--sentences N] [--precisions fp32,bf16,int8]

The original is transformers' BertModel in float64, so that its own rounding counts for nothing.
Exits with 1 if a promise is broken.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import fastdistil
from benchmarks.corpora import minilm_folder, real_sentences
from benchmarks.workloads import token_ids
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.ours import refusal
from fastdistil.bench.race import least_cosine
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.workloads import PEER_BATCH, Workload
from fastdistil.packing import pack_ids

Doubles = npt.NDArray[np.float64]

HEADER = ("precision", "engine", "token cosine", "pooled cosine", "max abs error", "promise")


@dataclass(frozen=True)
class Promise:
    """What a precision keeps. None: nothing promised about it."""

    token_cosine: float | None = None
    pooled_cosine: float | None = None
    relative_error: float | None = None


PROMISES = {
    "fp32": Promise(relative_error=2e-5),
    "bf16": Promise(token_cosine=0.9998, pooled_cosine=0.9999),
    "fp16": Promise(token_cosine=0.9998, pooled_cosine=0.9999),
    "int8": Promise(token_cosine=0.995, pooled_cosine=0.998),
}


@dataclass(frozen=True)
class Accuracy:
    """Over all real tokens of all sentences.

    Attributes:
        token_cosine: the least cosine of a token's state with the original's.
        pooled_cosine: the least cosine of a sentence's mean vector with the original's.
        relative_error: largest absolute error, as a part of the largest output magnitude.
    """

    token_cosine: float
    pooled_cosine: float
    relative_error: float

    def keeps(self, promise: Promise) -> bool:
        """False also where anything is NaN."""
        return (
            (promise.token_cosine is None or self.token_cosine >= promise.token_cosine)
            and (promise.pooled_cosine is None or self.pooled_cosine >= promise.pooled_cosine)
            and (promise.relative_error is None or self.relative_error <= promise.relative_error)
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--sentences", type=int, default=2000, metavar="N")
    parser.add_argument("--precisions", default="fp32,bf16,int8", metavar="NAME,NAME")
    options = parser.parse_args(arguments)
    try:
        folder = minilm_folder()
        sentences = real_sentences(options.sentences)[: options.sentences]
    except LookupError as missing:
        sys.exit(f"accuracy: {missing}")
    sequences = token_ids(sentences, 256)
    expected = original(folder, sequences)
    rows, kept, skipped = [], True, []
    for precision in options.precisions.split(","):
        if (why := refused(folder, precision)) is not None:
            skipped.append(f"not measured: {precision}: {why}")
            continue
        model = fastdistil.DistilBertModel.from_pretrained(folder, precision=precision)
        measured = compare(model, sequences, expected)
        good = measured.keeps(PROMISES[precision])
        kept = kept and good
        rows.append(_row(precision, model.explain(), measured, good))
    print(markdown_table(HEADER, rows))
    tokens = sum(map(len, sequences))
    print(
        f"\nall-MiniLM-L6-v2, {len(sequences):,} real sentences, {tokens:,} tokens, against "
        "transformers in float64: the worst token, the worst sentence (mean pooling), the largest "
        "error as a part of the largest output.\n\n" + describe(environment())
    )
    print("\n".join(skipped), end="\n" if skipped else "")
    return 0 if kept else 1


def refused(folder: Path, precision: str) -> str | None:
    """Why nothing on this machine's CPU runs a checkpoint so; None if something does."""
    return refusal(fastdistil.EncoderConfig.from_folder(folder), precision, "auto")


def original(folder: Path, sequences: Sequence[Sequence[int]]) -> list[Doubles]:
    """transformers' last hidden states in float64: one [tokens, D] for each sequence."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(folder, dtype=torch.float64).eval()
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    states: list[Any] = [None] * len(sequences)
    for start in range(0, len(order), PEER_BATCH):
        group = order[start : start + PEER_BATCH]
        (batch,) = Workload("", tuple(tuple(sequences[i]) for i in group)).batches
        with torch.inference_mode():
            hidden = model(
                input_ids=torch.from_numpy(batch.input_ids),
                attention_mask=torch.from_numpy(batch.attention_mask),
            ).last_hidden_state.numpy()
        for row, i in enumerate(group):
            states[i] = hidden[row, : len(sequences[i])]
    return states


def compare(
    model: fastdistil.DistilBertModel,
    sequences: Sequence[Sequence[int]],
    expected: Sequence[Doubles],
) -> Accuracy:
    """`model` on the sequences, all packed into one batch, beside the expected states."""
    batch = pack_ids(sequences)
    with torch.inference_mode():
        got = model.forward_packed(batch).double().numpy()
        pooled = model.encode_packed(batch, "mean").double().numpy()
    states = np.concatenate(expected)
    means = np.stack([sentence.mean(axis=0) for sentence in expected])
    return Accuracy(
        least_cosine(got, states),
        least_cosine(pooled, means),
        float(np.abs(got - states).max() / np.abs(states).max()),
    )


def _row(precision: str, engine: dict[str, str], measured: Accuracy, good: bool) -> tuple[str, ...]:
    return (
        precision,
        f"{engine['backend']}, {engine['instruction_set']}",
        f"{measured.token_cosine:.6f}",
        f"{measured.pooled_cosine:.6f}",
        f"{measured.relative_error:.1e}",
        "kept" if good else "BROKEN",
    )


if __name__ == "__main__":
    sys.exit(main())
