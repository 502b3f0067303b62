"""What a distillation is given, read and checked: the teacher's checkpoint, and the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..backends import select
from ..checkpoint import Checkpoint, load_checkpoint, resolve_folder
from ..sentence_settings import SentenceSettings, read_sentence_settings
from ..tasks.heads import sequence_classification_head
from ..tasks.labels import Labels, read_labels
from ..tokenization import TextTokenizer
from .corpus import Corpus, Label, Texts, read_texts, split_held_out, tokenised, without
from .settings import Settings


@dataclass(frozen=True)
class Inputs:
    """The teacher and the texts, read and checked.

    Attributes:
        folder: of the teacher's encoder.
        sentence: how the teacher makes vectors.
        held_out: None where nothing is evaluated.
    """

    checkpoint: Checkpoint
    folder: Path
    sentence: SentenceSettings
    tokenizer: TextTokenizer
    corpus: Corpus
    held_out: Corpus | None
    labels: Labels | None


def read_inputs(
    teacher: str | Path,
    texts: tuple[Any, Sequence[Label] | None],
    eval_texts: tuple[Any, Sequence[Label] | None],
    columns_of_files: tuple[str | None, str | None, str | None],
    settings: Settings,
    device: torch.device,
) -> tuple[Inputs, Settings]:
    """Everything read; and the settings, the objective among them.

    Args:
        texts, eval_texts: a file or strings, and the strings' labels.
        columns_of_files: input_format, text_column and label_column.
        device: where the teacher is to run.
    """
    root = resolve_folder(teacher)
    sentence = read_sentence_settings(root)
    folder = root / sentence.transformer
    checkpoint = load_checkpoint(folder)
    _check_teacher_runs(checkpoint, settings, device)
    objective = settings.objective or objective_of(checkpoint, (root / "modules.json").is_file())
    settings = replace(settings, objective=objective)
    if objective == "embedding" and sentence.unsupported is not None:
        raise ValueError(f"teacher: {root} asks for {sentence.unsupported}")
    tokenizer = TextTokenizer.from_folder(
        folder, checkpoint.config.max_positions, settings.max_length
    )
    if tokenizer is None:
        raise ValueError(f"teacher: {folder} has no tokenizer.json or vocab.txt; add one")
    names = None
    if objective == "classification":
        outputs = sequence_classification_head(checkpoint).outputs
        names = read_labels(checkpoint.hf_config, outputs, str(folder / "config.json"))
    learned, kept = _read_both(texts, eval_texts, columns_of_files, settings)
    labels = _label_numbers(learned, names)
    kept_labels = None if kept is None else _label_numbers(kept, names)
    if kept is not None and (labels is None) != (kept_labels is None):
        raise ValueError("labels: of texts or of eval_texts only; both or neither are wanted")
    corpus = tokenised(learned, tokenizer, labels)
    held_out = None if kept is None else tokenised(kept, tokenizer, kept_labels)
    inputs = Inputs(checkpoint, folder, sentence, tokenizer, corpus, held_out, names)
    return inputs, settings


def objective_of(checkpoint: Checkpoint, is_sentence_encoder: bool) -> str:
    """What a checkpoint is for, by the class that its config.json names.

    Args:
        is_sentence_encoder: whether it comes with sentence-transformers' files.

    Raises:
        ValueError: a class that there is no objective for.
    """
    names = [str(name) for name in checkpoint.hf_config.get("architectures") or ()]
    if is_sentence_encoder:
        return "embedding"
    for name in names:
        if name.endswith("ForMaskedLM"):
            return "mlm"
        if name.endswith("ForSequenceClassification"):
            return "classification"
        if name.endswith(("ForTokenClassification", "ForQuestionAnswering", "ForMultipleChoice")):
            raise ValueError(
                f"objective: the teacher is a {name}, which there is no objective for; name one "
                "(embedding teaches its hidden states) to distil it without its head"
            )
    return "embedding"


def _check_teacher_runs(checkpoint: Checkpoint, settings: Settings, device: torch.device) -> None:
    """Before anything takes long."""
    try:
        select(checkpoint.config, device, settings.teacher_precision)
    except ValueError as error:
        raise ValueError(f"teacher_precision: {error}") from None


def _read_both(
    texts: tuple[Any, Sequence[Label] | None],
    eval_texts: tuple[Any, Sequence[Label] | None],
    columns_of_files: tuple[str | None, str | None, str | None],
    settings: Settings,
) -> tuple[Texts, Texts | None]:
    """Texts to train on and texts held out: none is both."""
    learned = read_texts(*texts, "texts", *columns_of_files)
    if eval_texts[0] is None:
        if eval_texts[1] is not None:
            raise ValueError("eval_labels: given without eval_texts, whose labels they would be")
        return split_held_out(learned, settings.held_out)
    kept = read_texts(*eval_texts, "eval_texts", *columns_of_files)
    return without(learned, kept), kept


def _label_numbers(texts: Texts, names: Labels | None) -> NDArray[np.int64] | None:
    """The number of each text's label, which may be given as its number or as its name."""
    if texts.labels is None or names is None:
        if texts.labels is not None:
            raise ValueError("labels: only the classification objective takes them; leave them out")
        return None
    by_number: dict[Label, int] = {number: number for number in range(len(names))}
    by_name: dict[Label, int] = {name: number for number, name in enumerate(names.names)}
    if not any(name.isdecimal() for name in names.names):  # a .csv has numbers as strings
        by_name |= {str(number): number for number in range(len(names))}
    numbers = []
    for row, label in enumerate(texts.labels):
        number = (by_name if isinstance(label, str) else by_number).get(label)
        if number is None:
            raise ValueError(
                f"labels: {label!r} of {texts.source}, text {row} (counting from 0), is none of "
                f"the teacher's; they are {', '.join(names.names)}, or 0 to {len(names) - 1}"
            )
        numbers.append(number)
    return np.array(numbers, np.int64)
