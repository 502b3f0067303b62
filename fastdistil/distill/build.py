"""What a training is made of: the student, the rule of masking, the objective, the teacher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..backends import select
from ..checkpoint import Checkpoint, load_checkpoint
from ..config import EncoderConfig
from ..tasks.heads import masked_lm_head as teacher_masked_lm_head
from ..tasks.heads import sequence_classification_head
from ..tasks.tokens import TaskTokenizer
from ..tokenization import TextTokenizer
from . import student as students
from .inputs import Inputs
from .masking import Masking
from .objectives.base import Objective
from .objectives.classification import ClassificationObjective
from .objectives.embedding import EmbeddingObjective
from .objectives.mlm import MaskedLMObjective
from .settings import Settings
from .student import Student
from .teacher import Source
from .teacher_cache import TeacherCache
from .training import Training


def make_student(
    inputs: Inputs, begin_with: str | Path | None, settings: Settings
) -> tuple[Student, tuple[int, ...]]:
    """The student with its first weights, and the teacher's layers among them."""
    teacher = inputs.checkpoint
    if begin_with is None:
        layers = students.chosen_layers(settings.layers, teacher.config.num_layers)
        config = students.student_config(teacher.config, layers)
        encoder = students.new_encoder(config, students.first_weights(teacher, layers))
        own = None
    else:
        own = _own_student(inputs, begin_with, settings)
        layers, config = (), own.config
        weights = {name: tensor.float() for name, tensor in own.state_dict.items()}
        encoder = students.new_encoder(config, weights)
    if settings.objective == "mlm":
        has_head = own is not None and "vocab_transform.weight" in own.head
        if own is not None and not has_head and config.hidden_size != teacher.config.hidden_size:
            raise ValueError(
                f"student: {begin_with} has no masked-LM head, and the teacher's is of another "
                "width; give one that has"
            )
        source = own if own is not None and has_head else teacher
        return Student(encoder, students.masked_lm_head(config, source)), layers
    if settings.objective == "classification":
        assert inputs.labels is not None
        head = students.classification_head(
            config, own or teacher, len(inputs.labels), settings.seed
        )
        return Student(encoder, head), layers
    return Student(encoder, None), layers


def _own_student(inputs: Inputs, begin_with: str | Path, settings: Settings) -> Checkpoint:
    """A checkpoint to begin with, which must read what the teacher reads."""
    if settings.layers is not None:
        raise ValueError("layers: given beside student, which has its own; leave one out")
    own = load_checkpoint(begin_with)
    theirs, ours = inputs.checkpoint.config, own.config
    if ours.model_type != "distilbert":
        raise ValueError(f"student: {begin_with} is a {ours.model_type}; a distilbert is wanted")
    if ours.vocab_size != theirs.vocab_size:
        raise ValueError(
            f"student: its vocabulary has {ours.vocab_size} tokens, the teacher's "
            f"{theirs.vocab_size}; both must read the same tokens"
        )
    tokenizer = TextTokenizer.from_folder(own.folder, ours.max_positions)
    if tokenizer is not None:
        _check_same_tokens(tokenizer, inputs.tokenizer)
    if ours.max_positions < inputs.tokenizer.max_length:
        raise ValueError(
            f"student: it takes {ours.max_positions} tokens, but texts may have "
            f"{inputs.tokenizer.max_length}; give max_length={ours.max_positions}"
        )
    if ours.hidden_size != theirs.hidden_size and (
        settings.hidden_weight != 0 or settings.objective == "embedding"
    ):
        cure = "" if settings.objective == "embedding" else "hidden_weight=0, or "
        raise ValueError(
            f"student: its hidden states have {ours.hidden_size} numbers, the teacher's "
            f"{theirs.hidden_size}: they cannot be compared; give {cure}another student"
        )
    return own


def _check_same_tokens(student: TextTokenizer, teacher: TextTokenizer) -> None:
    ours, theirs = student.uncut().get_vocab(), teacher.uncut().get_vocab()
    different = sorted(ours.items() ^ theirs.items(), key=lambda item: item[1])
    if different:
        token, _ = different[0]
        raise ValueError(
            f"student: its vocabulary is another than the teacher's: {token!r} is token "
            f"{ours.get(token, 'none')} there and {theirs.get(token, 'none')} here (the first of "
            f"{len({token for token, _ in different})} that differ); both must read the same tokens"
        )


def make_masking(inputs: Inputs, settings: Settings) -> Masking | None:
    if settings.objective != "mlm":
        return None
    config = inputs.checkpoint.config
    tokenizer = TaskTokenizer(inputs.folder, config.max_positions, False, settings.max_length)
    if tokenizer.mask is None:
        raise ValueError(
            f"teacher: the tokenizer of {inputs.folder} has no mask token; mlm needs it"
        )
    return Masking(
        tokenizer.mask,
        tuple(sorted(tokenizer.special_ids)),
        config.vocab_size,
        settings.mask_probability,
        settings.seed,
    )


def make_objective(inputs: Inputs, settings: Settings, device: torch.device) -> Objective:
    if settings.objective == "embedding":
        return EmbeddingObjective(settings, inputs.sentence.pooling, inputs.sentence.normalize)
    if settings.objective == "mlm":
        return MaskedLMObjective(settings, teacher_masked_lm_head(inputs.checkpoint).to(device))
    problem = inputs.labels.problem_type if inputs.labels is not None else None
    if problem not in (None, "single_label_classification"):
        raise ValueError(
            f"teacher: its problem_type is {problem!r}; the classification objective is for "
            "texts of one label each"
        )
    head = sequence_classification_head(inputs.checkpoint).to(device)
    if head.outputs < 2:
        raise ValueError(
            "teacher: its head has one output, a number to each text; the classification objective "
            "is for labels, two or more"
        )
    return ClassificationObjective(settings, head, inputs.corpus.labels is not None)


@contextmanager
def open_source(training: Training, folder: str | Path | None, shown: bool) -> Iterator[Source]:
    """The teacher, or its outputs in a folder."""
    if folder is None or not training.objective.needs_teacher:
        yield training.eval_source
        return
    place = Path(os.path.realpath(Path(folder).expanduser()))
    numbers = {training.masking_of(epoch) for epoch in range(training.plan.epochs)}
    with TeacherCache(
        training.eval_source, place, training.corpus, training.masking, len(numbers), shown
    ) as cache:
        yield cache


def student_precision(config: EncoderConfig, device: torch.device, asked: str) -> str:
    """What the student's matrices are multiplied in: "auto" is bf16 where that is in hardware."""
    if asked != "auto":
        return asked
    return "bf16" if select(config, device, "auto").precision in ("bf16", "fp16") else "fp32"
