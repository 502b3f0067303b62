"""What a distillation is given, read and checked: the teacher's checkpoint, and the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoint import Checkpoint, load_checkpoint, resolve_folder
from ..sentence_settings import SentenceSettings, read_sentence_settings
from ..tasks.heads import sequence_classification_head
from ..tasks.labels import Labels, read_labels
from ..tokenization import TextTokenizer
from .corpus import Corpus, Label, Texts, read_texts, split_held_out, tokenised
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
) -> tuple[Inputs, Settings]:
    """Everything read; and the settings, the objective among them."""
    root = resolve_folder(teacher)
    sentence = read_sentence_settings(root)
    folder = root / sentence.transformer
    checkpoint = load_checkpoint(folder)
    objective = settings.objective or objective_of(checkpoint)
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
    learned = read_texts(*texts, "texts", *columns_of_files)
    if eval_texts[0] is not None:
        kept: Texts | None = read_texts(*eval_texts, "eval_texts", *columns_of_files)
    else:
        learned, kept = split_held_out(learned, settings.held_out)
    corpus = tokenised(learned, tokenizer, _label_numbers(learned, names))
    held_out = None if kept is None else tokenised(kept, tokenizer, _label_numbers(kept, names))
    if held_out is not None and (held_out.labels is None) != (corpus.labels is None):
        raise ValueError("labels: of texts or of eval_texts only; both or neither are wanted")
    given = Inputs(checkpoint, folder, sentence, tokenizer, corpus, held_out, names)
    return given, settings


def objective_of(checkpoint: Checkpoint) -> str:
    """What a checkpoint is for, by the class that its config.json names."""
    for name in checkpoint.hf_config.get("architectures") or ():
        if str(name).endswith("ForMaskedLM"):
            return "mlm"
        if str(name).endswith("ForSequenceClassification"):
            return "classification"
    return "embedding"


def _label_numbers(texts: Texts, names: Labels | None) -> NDArray[np.int64] | None:
    """The number of each text's label, which may be given as its number or as its name."""
    if texts.labels is None or names is None:
        if texts.labels is not None:
            raise ValueError("labels: only the classification objective takes them; leave them out")
        return None
    known: dict[Label, int] = {name: number for number, name in enumerate(names.names)}
    known |= {str(number): number for number in range(len(names)) if str(number) not in known}
    numbers = []
    for row, label in enumerate(texts.labels):
        number = known.get(label if isinstance(label, str) else str(label))
        if number is None:
            raise ValueError(
                f"labels: {label!r} of {texts.source}, text {row} (counting from 0), is none of "
                f"the teacher's; they are {', '.join(names.names)}, or 0 to {len(names) - 1}"
            )
        numbers.append(number)
    return np.array(numbers, np.int64)
