"""Part 2: a classifier of film reviews to a student of half its layers, with and without it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.distillation.runs import distilled
from examples import classify_reviews
from examples.classify_reviews import Reviews
from fastdistil.bench.timing import say
from fastdistil.run_folder import check_new_folder
from fastdistil.sentence_settings import read_json

SETTINGS: dict[str, Any] = {
    "objective": "classification",
    "learning_rate": 3e-4,
    "batch_tokens": 1024,
    "train_embeddings": False,
    "evaluate_every": 200,
}
# What differs is the soft labels, and nothing else.
DISTILLED, ALONE = "labels and soft labels", "labels alone"
WAYS: dict[str, dict[str, float]] = {
    DISTILLED: {"hidden_weight": 0.0},
    ALONE: {"hidden_weight": 0.0, "soft_weight": 0.0},
}


@dataclass(frozen=True)
class Amount:
    """How much of everything.

    Attributes:
        teacher: its folder, where it stays for later runs; None: it is made anew.
        training: the teacher's; `sentences` is the student's limit, too.
        epochs: of a student.
    """

    teacher: Path | None
    training: classify_reviews.Settings
    epochs: int
    seeds: tuple[int, ...]


FULL = Amount(classify_reviews.FOLDER, classify_reviews.Settings(), epochs=3, seeds=(0, 1, 2))
QUICK = Amount(None, classify_reviews.QUICK, epochs=1, seeds=(0, 1))


def measure(amount: Amount, work: Path, kept: Path | None) -> dict[str, Any]:
    """Distil and measure everything.

    Args:
        work: an empty folder for the students, and for what the teacher says.
        kept: where to put the distilled one that is best on the validation side; None: nowhere.

    Raises:
        LookupError: the weights or the sentences cannot be had here.
    """
    teacher = the_teacher(amount, work)
    sides = {
        side: reviews.head(amount.training.sentences)
        for side, reviews in classify_reviews.load_reviews().items()
    }
    test = sides["test"]
    labels = torch.tensor(test.labels)
    theirs = predictions(teacher, test.texts)
    ways: dict[str, list[dict[str, Any]]] = {}
    right: dict[str, list[Tensor]] = {}
    for way, weights in WAYS.items():
        ways[way], right[way] = [], []
        for seed in amount.seeds:
            out = work / f"{way}-{seed}".replace(" ", "-")
            run = student(teacher, sides, out, weights, epochs=amount.epochs, seed=seed)
            found = predictions(out, test.texts)
            right[way].append(found == labels)
            ways[way].append(
                {
                    "seed": seed,
                    "accuracy": _share(found == labels),
                    "agreement": _share(found == theirs),
                    "validation": run["after"]["accuracy"],
                    "training": run,
                }
            )
    if kept is not None:
        best = max(ways[DISTILLED], key=lambda row: row["validation"])["seed"]
        keep(work / f"{DISTILLED}-{best}".replace(" ", "-"), kept)
    difference, error = compared(right[DISTILLED], right[ALONE])
    return {
        "settings": {**SETTINGS, "epochs": amount.epochs},
        "sentences": {side: len(reviews.texts) for side, reviews in sides.items()},
        "teacher_accuracy": _share(theirs == labels),
        "ways": ways,
        "difference": difference,
        "standard_error": error,
    }


def the_teacher(amount: Amount, work: Path) -> Path:
    """Its folder; it is trained where it is not there yet, which takes some minutes."""
    folder = amount.teacher or work / "teacher"
    if not (folder / "config.json").is_file():
        say(f"training {folder}")
        classify_reviews.train(folder, amount.training)
    return folder


def student(
    teacher: Path, sides: Mapping[str, Reviews], out: Path, weights: Mapping[str, float], **how: Any
) -> dict[str, Any]:
    """One student, evaluated on the validation side. The test side it never sees."""
    train, validation = sides["train"], sides["validation"]
    return distilled(
        teacher,
        train.texts,
        out,
        labels=train.labels,
        eval_texts=validation.texts,
        eval_labels=validation.labels,
        teacher_cache=out.parent / "teacher-cache",
        **SETTINGS,
        **weights,
        **how,
    )


def predictions(folder: Path, texts: Sequence[str]) -> Tensor:
    """The label of each text, by transformers in fp32: int64 [N]."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    return classify_reviews.predict(model, AutoTokenizer.from_pretrained(folder), texts)


def compared(some: Sequence[Tensor], others: Sequence[Tensor]) -> tuple[float, float]:
    """How much more often some runs are right than others, about the same N sentences, in points.

    Args:
        some, others: bool [N] for each run.

    Returns:
        the difference of the mean accuracies, and its standard error: that of the mean over
        sentences of how much more of `some` are right about it. It says how much other sentences
        would change the difference, not how much other seeds would.
    """
    means = [torch.stack(list(runs)).double().mean(dim=0).numpy() for runs in (some, others)]
    gains = means[0] - means[1]
    return 100 * float(gains.mean()), 100 * float(gains.std() / np.sqrt(len(gains)))


def check_kept(folder: Path) -> None:
    """Refuse to replace what is no classifier of ours.

    Raises:
        UsageError: something else lies there.
    """
    config = read_json(folder / "config.json") if folder.is_dir() else {}
    if config.get("architectures") != ["DistilBertForSequenceClassification"]:
        check_new_folder(folder, "--folder")


def keep(student: Path, folder: Path) -> None:
    """Put a copy there, in place of what is there."""
    check_kept(folder)
    aside = folder.with_name(folder.name + ".part")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(student, aside)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)


def _share(right: Tensor) -> float:
    return right.double().mean().item()
