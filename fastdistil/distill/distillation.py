"""`distill`: a small encoder from a large one, from texts to a finished checkpoint."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..checkpoint import Checkpoint, add_to_digest
from ..progress import Progress
from ..run_folder import (
    RunFolder,
    atomic_file,
    check_new_folder,
    full_disk_explained,
    partial_folder,
    sync_folder,
)
from ..text_io import UsageError
from .batches import StepPlan
from .build import make_masking, make_objective, make_student, open_source, student_precision
from .card import Facts, model_card
from .corpus import Label
from .inputs import Inputs, read_inputs
from .log import TrainingLog
from .plot import plot
from .result import copy_file, write_checkpoint, write_sentence_settings
from .settings import Settings, Summary
from .state import StateFile
from .student import Student
from .teacher import Teacher
from .training import Trained, Training, columns, train

_LOG, _STATE, _RESULT, _PLOT = "log.csv", "state.safetensors", "result", "losses.png"


class DistillFolder(RunFolder):
    """OUT.partial: the log, the last checkpoint, and at the end what becomes OUT."""

    layout = 1
    names = (_LOG, _STATE, _RESULT)
    achieved = (_STATE,)


def distill(
    teacher: str | Path,
    texts: str | Path | Sequence[str],
    out: str | Path,
    *,
    labels: Sequence[Label] | None = None,
    eval_texts: str | Path | Sequence[str] | None = None,
    eval_labels: Sequence[Label] | None = None,
    student: str | Path | None = None,
    input_format: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    teacher_cache: str | Path | None = None,
    device: torch.device | str | None = None,
    resume: bool = True,
    show_progress: bool | None = None,
    **settings: Any,
) -> Summary:
    """Makes a DistilBERT with some of a teacher's layers, taught by it on texts.

    Until it is done the work lies in OUT.partial. Interrupted in any way, the same call goes on
    from the last checkpoint there, and makes the weights that an uninterrupted one makes: on a CPU
    the same bits, as long as the number of threads is the same.

    Args:
        teacher: a checkpoint's folder or hub id: a DistilBERT, BERT or sentence encoder.
        texts: a file (.txt, .jsonl, .csv, .parquet; "-" is standard input), or strings.
        out: the folder to make. It must not be there, or be empty.
        labels: of strings in `texts`: the teacher's label names, or their numbers.
        eval_texts, eval_labels: what to evaluate on, in place of a share of `texts`.
        student: a DistilBERT checkpoint to begin with, in place of the teacher's layers.
        input_format, text_column: as for `Encoder.encode_file`.
        label_column: the key or column with the labels, of files.
        teacher_cache: a folder that keeps the teacher's outputs, for later epochs and later runs.
        device: of teacher and student; by default the CPU.
        resume: go on with what is in OUT.partial; False begins again.
        show_progress: on stderr; None: if that is a terminal.
        settings: the fields of `Settings`.

    Returns:
        what was done and measured.

    Raises:
        FileNotFoundError: no such checkpoint or file.
        UsageError, InputError, TypeError, ValueError: a setting, text or checkpoint that does not
            do; the message names it.
        ResumeError: OUT.partial is of another run.
        DivergedError: a loss that is no number; the last checkpoint is kept.
        OSError: files that cannot be written; a full disk says how to continue.
    """
    started = time.monotonic()
    asked = Settings(**settings)
    output = Path(os.path.realpath(Path(out).expanduser()))
    check_new_folder(output, "out")
    _check_cache(output, teacher_cache)
    place = _device(device)
    shown = sys.stderr.isatty() if show_progress is None else show_progress
    of_files = (input_format, text_column, label_column)
    inputs, asked = read_inputs(
        teacher, (texts, labels), (eval_texts, eval_labels), of_files, asked, place
    )
    learner, layers = make_student(inputs, student, asked)
    runner = Teacher(inputs.checkpoint, place, asked.teacher_precision)
    training = Training(
        student=learner.to(place),
        objective=make_objective(inputs, asked, place),
        settings=asked,
        source=runner,
        eval_source=runner,
        corpus=inputs.corpus,
        held_out=inputs.held_out,
        masking=make_masking(inputs, asked),
        device=place,
        precision=student_precision(learner.encoder.config, place, asked.precision),
        plan=_plan(inputs, asked),
        started=started,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with DistillFolder(partial_folder(output)) as work:
        with full_disk_explained(work.folder):
            work.begin(_manifest(training, inputs, layers), resume=resume)
        with (
            open_source(training, teacher_cache, shown) as training.source,
            full_disk_explained(work.folder),
        ):
            trained = _train(training, work.folder, shown)
        summary = _summary(output, training, trained, inputs)
        facts = _facts(str(teacher), student, inputs, training, summary, layers, eval_texts)
        with full_disk_explained(work.folder):
            _finish(work, output, training, inputs, facts)
    return summary


def _check_cache(output: Path, folder: str | Path | None) -> None:
    """The cache is there before OUT is, which would then hold something."""
    if folder is not None:
        place = Path(os.path.realpath(Path(folder).expanduser()))
        if place == output or output in place.parents:
            raise UsageError(f"teacher_cache: {place} is in {output}, which is made at the end")


def _device(asked: torch.device | str | None) -> torch.device:
    """The device, found to be there before anything takes long."""
    try:
        device = torch.device("cpu" if asked is None else asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device: {asked} cannot be used here ({error})") from None
    return device


def _plan(inputs: Inputs, settings: Settings) -> StepPlan:
    return StepPlan(
        inputs.corpus.lengths,
        settings.batch_tokens,
        settings.accumulation,
        settings.epochs,
        settings.max_steps,
        settings.seed,
    )


def _manifest(training: Training, inputs: Inputs, layers: tuple[int, ...]) -> Mapping[str, Any]:
    """What decides the weights."""
    engine = training.eval_source.engine()
    values = training.settings.to_json()
    del values["checkpoint_every"]
    held_out = training.held_out
    return {
        "fastdistil": __version__,
        "torch": torch.__version__,
        "teacher": training.eval_source.fingerprint(),
        "texts": training.corpus.digest(),
        "held-out texts": None if held_out is None else held_out.digest(),
        "first weights": _digest_of(training.student),
        "pooling": [inputs.sentence.pooling, inputs.sentence.normalize],
        "masking": None if training.masking is None else asdict(training.masking),
        **values,
        "layers": list(layers),
        "precision": training.precision,
        "device": training.device.type,
        **{f"teacher's {name}": engine[name] for name in ("precision", "instruction_set")},
    }


def _digest_of(student: Student) -> str:
    """A hash of its weights."""
    digest = hashlib.sha256()
    add_to_digest(digest, student.state_dict())
    return digest.hexdigest()


def _train(training: Training, folder: Path, shown: bool) -> Trained:
    with ExitStack() as stack:
        log = stack.enter_context(TrainingLog(folder / _LOG, columns(training.objective)))
        progress = stack.enter_context(Progress(shown, training.plan.total, "student"))
        return train(training, StateFile(folder / _STATE), log, progress)


def _summary(output: Path, training: Training, trained: Trained, inputs: Inputs) -> Summary:
    state = trained.state
    texts = len(training.corpus)
    tokens = int(training.corpus.lengths.sum())
    return Summary(
        output=output,
        objective=training.objective.name,
        steps=state.step,
        epochs=state.tokens / tokens,
        tokens=state.tokens,
        seconds=state.seconds,
        resumed_step=trained.resumed_step,
        teacher_seconds=state.teacher_seconds,
        training_texts=texts,
        eval_texts=0 if training.held_out is None else len(training.held_out),
        parameters=sum(weight.numel() for weight in training.student.parameters()),
        teacher_parameters=_parameters(inputs.checkpoint),
        before=trained.before,
        after=trained.after,
    )


def _parameters(checkpoint: Checkpoint) -> int:
    """Numbers in a checkpoint's weights, those of its head included."""
    words = checkpoint.state_dict["embeddings.word_embeddings.weight"]
    head = [tensor for tensor in checkpoint.head.values() if tensor.is_floating_point()]
    own = [t for t in head if t.shape != words.shape or not torch.equal(t, words)]  # not the tied
    return sum(tensor.numel() for tensor in [*checkpoint.state_dict.values(), *own])


def _facts(
    teacher: str,
    student: str | Path | None,
    inputs: Inputs,
    training: Training,
    summary: Summary,
    layers: tuple[int, ...],
    eval_texts: object,
) -> Facts:
    config = inputs.checkpoint.config
    mask = None
    if training.masking is not None:
        mask = inputs.tokenizer.uncut().id_to_token(training.masking.mask_id)
    return Facts(
        teacher=teacher,
        settings=training.settings,
        summary=summary,
        layers=layers,
        teacher_layers=config.num_layers,
        weights=training.objective.weights,
        precision=training.precision,
        teacher_precision=training.eval_source.engine()["precision"],
        device=training.device.type,
        student=None if student is None else str(student),
        student_layers=training.student.encoder.config.num_layers,
        segments_folded=config.num_segments > 0,
        pooler_dropped=any(name.startswith("pooler.") for name in inputs.checkpoint.head),
        layer_norm_eps=config.layer_norm_eps,
        eval_given=eval_texts is not None,
        pooling=inputs.sentence.pooling,
        normalize=inputs.sentence.normalize,
        mask_token=mask or "",
    )


def _finish(
    work: DistillFolder, output: Path, training: Training, inputs: Inputs, facts: Facts
) -> None:
    """Puts the folder together beside OUT and renames it."""
    result = work.folder / _RESULT
    shutil.rmtree(result, ignore_errors=True)  # of a run that was killed in here
    write_checkpoint(result, training.student, inputs.folder, inputs.labels)
    if training.objective.name == "embedding":
        write_sentence_settings(result, inputs.folder, inputs.sentence)
    copy_file(work.folder / _LOG, result / _LOG)
    drawn = plot(result / _LOG, result / _PLOT)
    card = model_card(replace(facts, image=_PLOT if drawn else None))
    with atomic_file(result / "README.md") as stream:
        stream.write(card.encode())
    check_new_folder(output, "out")
    os.replace(result, output)
    sync_folder(output.parent)  # before the state goes, from which it could be made again
    work.remove()
