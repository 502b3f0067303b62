"""Fine-tune the real MiniLM encoder to tell praise from panning, in minutes on two cores.

    python -m examples.classify_reviews                  # saves .cache/review-classifier
    python -m examples.classify_reviews --folder mine
    python -m examples.classify_reviews --quick          # two layers, few sentences: some seconds
    fastdistil classify "A film to see twice." --model .cache/review-classifier

The data are the 10,605 sentences of film reviews that `benchmarks.corpora` fetches. 15 to 29 people
scored each, from -4 (pans the film) to 4. A mean above 0 is praise, one below is panning; of
sentences within half a point of 0 even people could not say, so they are left out (5%). What is
left is split by a digest of the text, so no text is on two sides, and everybody's test is the same.

What comes out is a standard folder: a BertForSequenceClassification of transformers with its
tokenizer and the names of its labels. Nothing in it knows of fastdistil.

The matrices are multiplied in bf16 (autocast; the weights stay fp32). That is several times as fast
on CPUs with instructions for it, and slower on others: `--fp32` is for those. The seed is fixed.
What other cores and other versions of PyTorch round differently still moves the accuracy a little.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.corpora import minilm_folder, movie_reviews

FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "review-classifier"
LABELS = {0: "panning", 1: "praise"}
# Closer to 0 than this, people did not agree.
UNDECIDED = 0.5
# The longest sentence has 79.
MAX_TOKENS = 128
# Sentences of like length go into a batch: those of so many batches are sorted together.
POOL_BATCHES = 16


@dataclass(frozen=True)
class Reviews:
    """Sentences, and for each 1 for praise or 0 for panning."""

    texts: list[str]
    labels: list[int]

    def head(self, count: int | None) -> Reviews:
        return Reviews(self.texts[:count], self.labels[:count])


@dataclass(frozen=True)
class Settings:
    """How much is trained, how long.

    Attributes:
        sentences: at most so many of each side; None for all.
    """

    sentences: int | None = None
    epochs: int = 2
    batch: int = 32
    learning_rate: float = 1e-4
    seed: int = 0
    bf16: bool = True


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Attributes:
        losses: the mean of each epoch.
        validation: the accuracy after each epoch. The best one's weights are kept.
        test: the accuracy of what was kept, plain PyTorch in fp32.
    """

    losses: list[float]
    validation: list[float]
    test: float


QUICK = Settings(sentences=192, epochs=2, batch=16, learning_rate=2e-4)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m examples.classify_reviews",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, help=f"where it is saved (default: {FOLDER})")
    parser.add_argument("--quick", action="store_true", help="few sentences")
    parser.add_argument("--fp32", action="store_true", help="train in fp32, without autocast")
    options = parser.parse_args(arguments)
    settings = QUICK if options.quick else Settings()
    settings = replace(settings, bf16=not options.fp32)
    folder = options.folder or FOLDER.with_name(FOLDER.name + "-quick" * options.quick)
    try:
        trained = train(folder, settings)
    except LookupError as missing:
        sys.exit(f"classify_reviews: {missing}")
    print(f"test accuracy, plain PyTorch: {trained.test:.2%}\nsaved in {folder}")
    return 0


# --- data -----------------------------------------------------------------------------------------


def load_reviews() -> dict[str, Reviews]:
    """ "train" (70%), "validation" (10%) and "test" (20%).

    Raises:
        LookupError: the sentences cannot be had here.
    """
    sides = {side: Reviews([], []) for side in ("train", "validation", "test")}
    for text, score in zip(*movie_reviews(), strict=True):
        if abs(score) >= UNDECIDED:
            reviews = sides[side_of(text)]
            reviews.texts.append(text)
            reviews.labels.append(int(score > 0))
    return sides


def side_of(text: str) -> str:
    """By a digest of the text: the same on every machine, and for a text that comes twice."""
    # The corpus is ordered by the digest of the text alone: with it, the test would be its start.
    digest = hashlib.sha256(f"side of {text}".encode()).digest()
    place = int.from_bytes(digest[:4], "big") / 2**32
    if place < 0.7:
        return "train"
    return "validation" if place < 0.8 else "test"


# --- training -------------------------------------------------------------------------------------


def train(folder: Path, settings: Settings) -> Trained:
    """Fine-tune and save in `folder`.

    Raises:
        LookupError: the sentences or the encoder cannot be had here.
    """
    from transformers import AutoTokenizer

    sides = {side: reviews.head(settings.sentences) for side, reviews in load_reviews().items()}
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder(), model_max_length=MAX_TOKENS)
    torch.manual_seed(settings.seed)
    model = new_model()
    losses, validation = fine_tune(model, tokenizer, sides, settings)
    test = accuracy(model, tokenizer, sides["test"])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Trained(losses, validation, test)


def new_model() -> Any:
    """The real encoder under a head that knows nothing yet."""
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(
        minilm_folder(), id2label=LABELS, label2id={v: k for k, v in LABELS.items()}
    )
    # Half of all weights, of which a batch touches few: left as they are, a step takes less time,
    # and words that the training never sees stay beside those they are like.
    model.bert.embeddings.requires_grad_(False)
    return model


def fine_tune(
    model: Any, tokenizer: Any, sides: dict[str, Reviews], settings: Settings
) -> tuple[list[float], list[float]]:
    """Train in place; loss and validation accuracy of each epoch. The best epoch's weights stay."""
    reviews = sides["train"]
    ids, labels = token_ids(tokenizer, reviews.texts), torch.tensor(reviews.labels)
    steps = settings.epochs * -(-len(ids) // settings.batch)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.learning_rate,
        total_steps=steps,
        pct_start=0.1,
        anneal_strategy="linear",
    )
    order = torch.Generator().manual_seed(settings.seed)
    losses: list[float] = []
    validation: list[float] = []
    best: dict[str, Tensor] = {}
    for epoch in range(settings.epochs):
        start, total = time.perf_counter(), 0.0
        model.train()
        for rows in batches([len(row) for row in ids], settings.batch, order):
            loss = loss_of(model, padded(tokenizer, ids, rows), labels[rows], settings.bf16)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item() * len(rows)
        losses.append(total / len(ids))
        validation.append(accuracy(model, tokenizer, sides["validation"]))
        if validation[-1] == max(validation):
            best = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        print(
            f"epoch {epoch + 1} of {settings.epochs}: loss {losses[-1]:.4f}, validation accuracy "
            f"{validation[-1]:.2%} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
    model.load_state_dict(best)
    return losses, validation


def batches(lengths: Sequence[int], size: int, order: torch.Generator) -> Iterator[list[int]]:
    """All rows in random order, yet with rows of like length together, so that little is padded."""
    shuffled = torch.randperm(len(lengths), generator=order).tolist()
    found = []
    for start in range(0, len(shuffled), size * POOL_BATCHES):
        pool = sorted(shuffled[start : start + size * POOL_BATCHES], key=lambda row: lengths[row])
        found += [pool[first : first + size] for first in range(0, len(pool), size)]
    for index in torch.randperm(len(found), generator=order).tolist():
        yield found[index]


def loss_of(model: Any, batch: Any, labels: Tensor, bf16: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(**batch).logits
    return cross_entropy(logits.float(), labels)


# --- plain PyTorch --------------------------------------------------------------------------------


def accuracy(model: Any, tokenizer: Any, reviews: Reviews) -> float:
    """The share of `reviews` that the model gets right, in its own precision."""
    found = predict(model, tokenizer, reviews.texts)
    return (found == torch.tensor(reviews.labels)).float().mean().item()


@torch.inference_mode()
def predict(model: Any, tokenizer: Any, texts: Sequence[str], batch: int = 64) -> Tensor:
    """The label of each text [N], int64."""
    model.eval()
    ids = token_ids(tokenizer, texts)
    by_length = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    labels = torch.empty(len(ids), dtype=torch.int64)
    for start in range(0, len(ids), batch):
        rows = by_length[start : start + batch]
        labels[rows] = model(**padded(tokenizer, ids, rows)).logits.argmax(dim=1)
    return labels


def token_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    found: list[list[int]] = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)[
        "input_ids"
    ]
    return found


def padded(tokenizer: Any, ids: Sequence[list[int]], rows: Sequence[int]) -> Any:
    return tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")


if __name__ == "__main__":
    sys.exit(main())
