"""A real model on real sentences: searches a person can judge, and the speed beside eager PyTorch.

python -m benchmarks.demo [--sentences N]        # what `make demo` runs
"""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.corpora import ROOT, load_corpus, minilm_folder
from benchmarks.distillation import CLASSIFIER
from fastdistil.bench.timing import alternate, ratio

Vectors = npt.NDArray[np.float32]

QUERIES = (
    "The battery is empty after an hour.",
    "A beautiful film with a wonderful leading actress.",
    "Parliament should vote on the budget soon.",
    "So happy to be with my friends tonight!",
    "They made me wait for ages and nobody helped.",
)
BEST = 3

# Eager PyTorch is timed on as many sentences as it does in about this time, and at most so many.
EAGER_TURN_SECONDS = 5.0
COMPARED_SENTENCES = 1024
EAGER_BATCH = 32
TURNS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--sentences", type=int, default=4000, metavar="N", help="how many")
    options = parser.parse_args(arguments)
    try:
        show(options.sentences)
    except (ImportError, LookupError) as missing:
        cure = "; `make demo` installs everything" if isinstance(missing, ImportError) else ""
        print(f"demo: {missing}{cure}", file=sys.stderr)
        return 1
    return 0


def show(count: int) -> None:
    """The whole demo, printed. LookupError or ImportError where something is missing."""
    folder = minilm_folder()
    eager = eager_encoder(folder)  # first, so that what is missing is said before anything runs
    import fastdistil

    corpus = load_corpus()
    sentences = corpus.sentences[:count]
    encoder = fastdistil.Encoder(folder)
    engine = encoder.model.explain()
    _say("model", "all-MiniLM-L6-v2, its real weights")
    _say("engine", f"{engine['backend']} backend, {engine['precision']}: {engine['reason']}")
    _say("sentences", f"{len(sentences):,} real ones, from {corpus.source}")
    print(flush=True)

    start = time.perf_counter()
    vectors = encoder.encode(sentences, normalize=True, show_progress=True)
    print(f"\n{len(vectors):,} vectors in {time.perf_counter() - start:.1f} s\n")
    queries = encoder.encode(QUERIES, normalize=True)
    for query, found in zip(QUERIES, search(queries, vectors, BEST), strict=True):
        print(f"  {query}")
        for index, cosine in found:
            text = textwrap.shorten(sentences[index], 90, placeholder=" ...")
            print(f"      {cosine:.2f}  {text}")
        print()
    print(classified(CLASSIFIER) + "\n")
    print(speed(encoder, eager, sentences[: affordable(eager, sentences)]))


def search(queries: Vectors, vectors: Vectors, best: int) -> list[list[tuple[int, float]]]:
    """For each query the `best` rows of `vectors` and their cosines; all rows have length 1."""
    cosines = queries @ vectors.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :best]
    return [
        [(int(i), float(row[i])) for i in places]
        for row, places in zip(cosines, order, strict=True)
    ]


def classified(folder: Path) -> str:
    """What the distilled classifier says of the queries, if it has been made."""
    if not (folder / "config.json").is_file():
        where = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
        return f"no distilled classifier in {where}; `make distill-demo` makes it"
    import fastdistil
    from fastdistil.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(folder)
    tensors = [*checkpoint.state_dict.values(), *checkpoint.head.values()]
    millions = sum(tensor.numel() for tensor in tensors) / 1e6
    lines = [
        f"of film reviews, says a distilled classifier of {checkpoint.config.num_layers} layers "
        f"and {millions:.1f} million parameters:"
    ]
    classify = fastdistil.pipeline("text-classification", folder)
    for query, found in zip(QUERIES, classify(list(QUERIES)), strict=True):
        lines.append(f"  {found['label']:<8} {found['score']:.2f}  {query}")
    return "\n".join(lines)


def affordable(eager: Callable[[Sequence[str]], Vectors], sentences: Sequence[str]) -> int:
    """How many sentences to time eager PyTorch on, by its speed on two warm batches."""
    few = sentences[: 2 * EAGER_BATCH]
    eager(few)
    start = time.perf_counter()
    eager(few)
    rate = len(few) / (time.perf_counter() - start)
    return max(len(few), min(COMPARED_SENTENCES, int(rate * EAGER_TURN_SECONDS)))


def speed(encoder: Any, eager: Callable[[Sequence[str]], Vectors], sentences: Sequence[str]) -> str:
    """Sentences and tokens per second of both, from text to vectors, taking turns."""
    ours = encoder.encode(sentences, normalize=True)
    cosine = float((ours * eager(sentences)).sum(axis=1).min())  # and everything is warm now
    turns = alternate(
        {
            "fastdistil": lambda: encoder.encode(sentences, normalize=True),
            "eager": lambda: eager(sentences),
        },
        TURNS,
        warm_up=False,
    )
    tokens = int(encoder.tokenizer(list(sentences)).lengths.sum())

    def rates(name: str) -> str:
        seconds = turns[name].median
        return f"{len(sentences) / seconds:,.0f} sentences/s, {tokens / seconds:,.0f} tokens/s"

    precision = encoder.model.explain()["precision"]
    times = ratio(turns["fastdistil"], turns["eager"])
    return (
        f"fastdistil {precision}: {rates('fastdistil')}; eager PyTorch fp32: {rates('eager')}; "
        f"{times:.1f} times as fast\n"
        f"(the same {len(sentences):,} sentences, from text to vectors, medians of {TURNS} "
        f"alternating turns; eager: transformers, padded batches of {EAGER_BATCH};\n"
        f"least cosine between the two's vectors of a sentence: {cosine:.5f})"
    )


def eager_encoder(folder: Path) -> Callable[[Sequence[str]], Vectors]:
    """What a user of transformers has today: padded batches in the given order, fp32, mean pooling.

    Tokens past the first 256 are cut, as the checkpoint's sentence-transformers settings say.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(sentences: Sequence[str]) -> Vectors:
        parts = []
        for start in range(0, len(sentences), EAGER_BATCH):
            batch = tokenizer(
                list(sentences[start : start + EAGER_BATCH]),
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            hidden = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(2)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(mean))
        return torch.cat(parts).numpy()

    return encode


def _say(what: str, text: str) -> None:
    print(f"{what:<10} {text}")


if __name__ == "__main__":
    sys.exit(main())
