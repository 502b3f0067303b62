"""Part 1: MiniLM, six layers, to a student of three that gives the same vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fastdistil
from benchmarks import probe
from benchmarks.accuracy import refused
from benchmarks.corpora import minilm_folder, movie_reviews, real_sentences
from benchmarks.demo import EAGER_BATCH, eager_encoder
from benchmarks.distillation.likeness import likeness
from benchmarks.distillation.runs import distilled
from fastdistil.bench.ours import PRECISIONS
from fastdistil.bench.timing import alternate, say
from fastdistil.checkpoint import load_checkpoint
from fastdistil.distill import student as students
from fastdistil.distill.result import write_checkpoint, write_sentence_settings
from fastdistil.sentence_settings import read_sentence_settings

SETTINGS: dict[str, Any] = {
    "objective": "embedding",
    "learning_rate": 1e-3,
    "batch_tokens": 2048,
}


@dataclass(frozen=True)
class Amount:
    """How much of everything.

    Attributes:
        sentences: of the real ones, those held out included; None for all.
        held_out: so many of them are for evaluation only.
        reviews: for the probes; None for all.
        timed: held-out sentences in a timed pass.
        rounds: timed passes of every engine.
    """

    sentences: int | None = None
    held_out: int = 2000
    epochs: int = 5
    reviews: int | None = None
    timed: int = 1000
    rounds: int = 5


FULL = Amount()
QUICK = Amount(sentences=2000, held_out=200, epochs=1, reviews=600, timed=64, rounds=2)


def measure(amount: Amount, work: Path) -> dict[str, Any]:
    """Distil and measure everything.

    Args:
        work: an empty folder for the student, and for what the teacher says.

    Raises:
        LookupError: the weights or the sentences cannot be had here.
    """
    teacher = minilm_folder()
    held_out, training = sentences(amount)
    run = distilled(
        teacher,
        training,
        work / "student",
        eval_texts=held_out,
        teacher_cache=work / "teacher-cache",
        epochs=amount.epochs,
        **SETTINGS,
    )
    models = {
        "teacher": teacher,
        "before": first_student(teacher, work / "first-student"),
        "student": work / "student",
    }
    say("vectors of held-out sentences")
    vectors = {name: vectors_of(folder, held_out) for name, folder in models.items()}
    missing: list[str] = []
    return {
        "training": run,
        "settings": {**SETTINGS, "epochs": amount.epochs},
        "held_out_tokens": tokens_of(teacher, held_out),
        "likeness": {
            name: likeness(vectors[name], vectors["teacher"]) for name in ("before", "student")
        },
        "probe": probes(models, held_out, amount.reviews),
        "sizes": {name: sizes(models[name]) for name in ("teacher", "student")},
        "speed": {
            "sentences": len(held_out[: amount.timed]),
            "batch": EAGER_BATCH,
            "turns": speeds(models, held_out[: amount.timed], amount.rounds, missing),
        },
        "missing": missing,
    }


def sentences(amount: Amount) -> tuple[list[str], list[str]]:
    """Held-out ones, and those to train on. Any prefix of the corpus is a fair sample of it."""
    texts = real_sentences(2 * amount.held_out)[: amount.sentences]
    return texts[: amount.held_out], texts[amount.held_out :]


def first_student(teacher: Path, folder: Path) -> Path:
    """The student as it is before its first step, saved in `folder`."""
    checkpoint = load_checkpoint(teacher)
    layers = students.chosen_layers(None, checkpoint.config.num_layers)
    config = students.student_config(checkpoint.config, layers)
    encoder = students.new_encoder(config, students.first_weights(checkpoint, layers))
    write_checkpoint(folder, students.Student(encoder, None), teacher)
    write_sentence_settings(folder, teacher, read_sentence_settings(teacher))
    return folder


def vectors_of(folder: Path, texts: Sequence[str]) -> probe.Doubles:
    """[N, D] in fp32, pooled as the checkpoint's files say."""
    return fastdistil.Encoder(folder, "cpu", "fp32").encode(texts).astype(np.float64)


def tokens_of(folder: Path, texts: Sequence[str]) -> int:
    """How many tokens a checkpoint's tokenizer makes of the texts."""
    tokenizer = fastdistil.Encoder(folder, "cpu").tokenizer
    assert tokenizer is not None, "the models of the demonstration have tokenizers"
    return int(tokenizer(texts).lengths.sum())


def probes(
    models: Mapping[str, Path], held_out: Sequence[str], count: int | None
) -> dict[str, Any]:
    """Praise or panning, told from each model's vectors: see `benchmarks.probe`.

    Returns:
        for each model its accuracy by its own probe, by the teacher's, and by its own about
        sentences that no student saw, all in percent; Spearman's correlation; and of the
        difference to the teacher's accuracy the standard error, in points.
    """
    texts, scores = movie_reviews()
    task = probe.Task(texts[:count], np.array(scores[:count]))
    say(f"probes of {len(task.texts):,} sentences of film reviews")
    vectors = {name: vectors_of(folder, task.texts) for name, folder in models.items()}
    of_teacher = probe.cross_fit(probe.fit_logistic, vectors["teacher"][task.clear], task.praised)
    answers = {name: probe.answers(task, each, of_teacher) for name, each in vectors.items()}
    unseen = np.isin(np.array(task.texts)[task.clear], held_out)
    rows = {}
    for name, measured in answers.items():
        own, teachers_probe, spearman = map(float, measured.figures())
        rows[name] = {
            "accuracy": own,
            "teachers_probe": teachers_probe,
            "unseen": 100 * float(measured.own[unseen].mean()) if unseen.any() else None,
            "spearman": spearman / 100,
            "standard_error": 100 * probe.standard_error(measured.own, answers["teacher"].own),
        }
    return {"clear": int(task.clear.sum()), "unseen": int(unseen.sum()), "models": rows}


def sizes(folder: Path) -> dict[str, int]:
    """Of a checkpoint's encoder: a pooler or a head is in no count but the bytes on disk."""
    checkpoint = load_checkpoint(folder)
    counts = {name: tensor.numel() for name, tensor in checkpoint.state_dict.items()}
    embeddings = sum(n for name, n in counts.items() if name.startswith("embeddings."))
    return {
        "layers": checkpoint.config.num_layers,
        "parameters": sum(counts.values()),
        "embeddings": embeddings,
        "bytes_on_disk": (folder / "model.safetensors").stat().st_size,
    }


def speeds(
    models: Mapping[str, Path], texts: Sequence[str], rounds: int, missing: list[str]
) -> list[dict[str, Any]]:
    """Seconds from the texts to their vectors, by engine and model; all take turns with all.

    Args:
        missing: gets a line for each engine that there is none of here.
    """
    runs: dict[str, Callable[[], object]] = {}
    about = []
    for name in ("teacher", "student"):
        for engine, run in engines(models[name], texts, missing).items():
            runs[f"{name}, {engine}"] = run
            about.append({"model": name, "engine": engine})
    say(f"turns of {len(runs)} engines")
    turns = alternate(runs, rounds)
    return [
        {**row, "seconds": list(turns[name].seconds)} for row, name in zip(about, runs, strict=True)
    ]


def engines(
    folder: Path, texts: Sequence[str], missing: list[str]
) -> dict[str, Callable[[], object]]:
    """What a user of transformers has, and fastdistil, bound to the texts."""
    eager = eager_encoder(folder)

    def autocast() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return eager(texts)

    found: dict[str, Callable[[], object]] = {
        "eager PyTorch fp32": lambda: eager(texts),
        "eager PyTorch bf16": autocast,
    }
    for precision in reversed(PRECISIONS):
        if (why := refused(folder, precision)) is not None:
            line = f"fastdistil {precision}: {why}"
            missing += [line] * (line not in missing)
            continue
        found[f"fastdistil {precision}"] = _encode(folder, precision, texts)
    return found


def _encode(folder: Path, precision: str, texts: Sequence[str]) -> Callable[[], object]:
    encoder = fastdistil.Encoder(folder, "cpu", precision)
    return lambda: encoder.encode(texts)
