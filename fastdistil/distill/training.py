"""The training loop: batches without padding through plain PyTorch, step by step, resumable.

A step depends on the weights, the optimizer's state and its own number, and on nothing else. All
that is random (order, maskings) is drawn anew from the seed and that number. So a run that was
killed goes on from the last checkpoint and makes the weights that it would have made; on a CPU, and
with as many threads as before, the same bits. There is no dropout.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..progress import Progress
from .batches import Step, StepPlan, TrainingBatch, batches_in_order, make_batch
from .corpus import Corpus
from .log import EVALUATION, STEP, TOTAL, TrainingLog, log_columns, read_log
from .masking import Masking
from .objectives.base import Objective
from .settings import Settings
from .state import StateFile, TrainingState
from .student import Student
from .teacher import Source, Teacher

# As DistilBERT's authors train.
_BETAS, _EPS = (0.9, 0.98), 1e-6
_EVALUATIONS = 10
# Of a long step's work: then it is saved before `checkpoint_every` steps are over.
_MOST_SECONDS_TO_LOSE = 60.0
# An evaluation keeps no activations, so its batches may be larger.
_EVALUATION_TOKENS = 8192
# The masking that held-out texts are asked with, every time; training's count from 0.
_HELD_OUT_MASKING = 2**32


class DivergedError(RuntimeError):
    """A loss or a gradient that is no number; the message says at which step, and what helps."""


@dataclass
class Training:
    """All that a run needs.

    Attributes:
        student: trained in place.
        objective, settings: what is asked of it, and how.
        source: the teacher's hidden states of the training texts, and `eval_source` of those held
            out.
        corpus, held_out: the texts; `held_out` is None where nothing is evaluated.
        masking: the rule, for a masked language model.
        device: where everything is.
        precision: "fp32" or "bf16", what the student's matrices are multiplied in.
        plan: the steps.
        started: when the run began, by `time.monotonic`.
    """

    student: Student
    objective: Objective
    settings: Settings
    source: Source
    eval_source: Teacher
    corpus: Corpus
    held_out: Corpus | None
    masking: Masking | None
    device: torch.device
    precision: str
    plan: StepPlan
    started: float

    def multiplying(self) -> AbstractContextManager[None]:
        """Products in the precision; sums, norms and losses stay in float32."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.precision == "bf16", cache_enabled=True
        )

    def masking_of(self, epoch: int) -> int:
        """The number of the masking of an epoch."""
        if self.masking is None:
            return 0
        return epoch if self.settings.maskings is None else epoch % self.settings.maskings


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Attributes:
        state: at the end.
        resumed_step: where it went on; 0: at the beginning.
        before, after: evaluations, empty where nothing is held out.
    """

    state: TrainingState
    resumed_step: int
    before: dict[str, float]
    after: dict[str, float]


def columns(objective: Objective) -> tuple[str, ...]:
    """The log's: the losses, and what an evaluation says."""
    losses = list(objective.weights)
    return log_columns(losses, [TOTAL, *losses, *objective.metrics])


def train(training: Training, states: StateFile, log: TrainingLog, progress: Progress) -> Trained:
    """Runs all steps that are left.

    Raises:
        DivergedError: a loss or gradient that is not finite; no weight has been touched by it.
    """
    settings, student, total = training.settings, training.student, training.plan.total
    optimizer, names = new_optimizer(student, settings)
    weights = dict(student.named_parameters())
    state = states.load(weights, optimizer, names) or TrainingState(0, 0, 0.0, 0.0)
    before, resumed = state, state.step
    log.cut(resumed or -1)  # at the beginning, not even the evaluation of step 0 is kept
    if resumed:
        progress.skip(0, resumed)
    else:
        _write(log, {STEP: 0, "epoch": 0, "tokens": 0}, evaluate(training), progress)
    every = settings.evaluate_every or -(-total // _EVALUATIONS)
    tokens, saved = state.tokens, time.monotonic()
    for step in training.plan.after(resumed):
        texts, row = _take(training, optimizer, step)
        tokens += int(row["tokens"])
        last = step.number == total
        evaluated = evaluate(training) if last or step.number % every == 0 else {}
        state = _so_far(training, before, step.number, tokens)
        progress.update(texts, int(row["tokens"]), step.number, f"loss {row[TOTAL]:.4f}")
        _write(log, row | {"tokens": tokens, "seconds": state.seconds}, evaluated, progress)
        late = time.monotonic() - saved > _MOST_SECONDS_TO_LOSE
        if last or late or step.number % settings.checkpoint_every == 0:
            log.flush()
            states.save(state, weights, optimizer, names)
            saved = time.monotonic()
    return Trained(state, resumed, *_evaluations(log))


def new_optimizer(student: Student, settings: Settings) -> tuple[torch.optim.AdamW, list[str]]:
    """AdamW, and the names of its parameters in its order.

    Vectors (biases, LayerNorms) do not decay. Frozen embeddings are left out.
    """
    student.encoder.embeddings.requires_grad_(settings.train_embeddings)
    trained = {name: w for name, w in student.named_parameters() if w.requires_grad}
    matrices = {name: weight for name, weight in trained.items() if weight.dim() > 1}
    vectors = {name: weight for name, weight in trained.items() if weight.dim() < 2}
    groups = [
        {"params": list(matrices.values()), "weight_decay": settings.weight_decay},
        {"params": list(vectors.values()), "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=_BETAS, eps=_EPS, fused=True)
    return optimizer, [*matrices, *vectors]


def learning_rate(step: int, total: int, settings: Settings) -> float:
    """Of step 1 to `total`: rises linearly during the warm-up, then falls linearly towards 0."""
    rise = settings.warmup * total
    share = step / rise if step < rise else (total - step + 1) / (total - math.ceil(rise) + 1)
    return settings.learning_rate * min(share, 1.0)


def losses_of(
    training: Training, batch: TrainingBatch, source: Source, metrics: bool
) -> dict[str, Tensor]:
    """Sums of the losses, and of the metrics if they are wanted, of one batch."""
    teacher = source.hidden(batch) if training.objective.needs_teacher else None
    with training.multiplying():
        hidden = training.student.encoder.forward_packed(batch.packed)
    # What is measured is measured in float32: bf16 logits often have two largest ones.
    with nullcontext() if metrics else training.multiplying():
        return training.objective.sums(training.student, hidden, teacher, batch, metrics)


@torch.no_grad()
def evaluate(training: Training) -> dict[str, float]:
    """Means over the held-out texts: "loss", each loss, each metric. Empty where there are none."""
    if training.held_out is None:
        return {}
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for batch in batches_in_order(
        training.held_out, _EVALUATION_TOKENS, training.masking, _HELD_OUT_MASKING
    ):
        batch = batch.to(training.device)
        for name, total in losses_of(training, batch, training.eval_source, True).items():
            sums[name] += total.item()
            counts[name] += training.objective.counts(batch)[name]
    means = {name: total / max(counts[name], 1) for name, total in sums.items()}
    return {TOTAL: _total(training.objective, means), **means}


def _take(
    training: Training, optimizer: torch.optim.Optimizer, step: Step
) -> tuple[int, dict[str, float]]:
    """One step: how many texts it had, and its row of the log.

    The gradient is that of the mean over all rows of the step, however it is cut into pieces.
    """
    batches = [
        make_batch(training.corpus, texts, training.masking, training.masking_of(step.epoch))
        for texts in step.pieces
    ]
    optimizer.zero_grad(set_to_none=True)
    found = _gradients(training, batches)
    total = _total(training.objective, found)
    norm = _clipped(training, optimizer)
    if not math.isfinite(total + norm):
        raise DivergedError(_diverged(step.number, total, found, norm))
    rate = learning_rate(step.number, training.plan.total, training.settings)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    row = {
        STEP: step.number,
        "epoch": step.epoch,
        "tokens": sum(batch.packed.num_tokens for batch in batches),
        "learning_rate": rate,
        "gradient_norm": norm,
        TOTAL: total,
        **found,
    }
    return sum(len(batch.texts) for batch in batches), row


def _gradients(training: Training, batches: list[TrainingBatch]) -> dict[str, float]:
    """Adds up the gradients of all pieces of a step; the losses, each the mean over its rows."""
    weights = training.objective.weights
    counts = _counts(training.objective, batches)
    found = dict.fromkeys(weights, 0.0)
    for batch in batches:
        sums = losses_of(training, batch.to(training.device), training.source, False)
        means = {name: total / counts[name] for name, total in sums.items()}
        torch.stack([weights[name] * mean for name, mean in means.items()]).sum().backward()
        for name, mean in means.items():
            found[name] += mean.item()
    return found


def _total(objective: Objective, losses: Mapping[str, float]) -> float:
    """The weighted sum of the losses."""
    return sum(weight * losses[name] for name, weight in objective.weights.items())


def _counts(objective: Objective, batches: list[TrainingBatch]) -> dict[str, int]:
    """Rows of all pieces together, at least 1."""
    each = [objective.counts(batch) for batch in batches]
    return {name: max(sum(counts[name] for counts in each), 1) for name in objective.weights}


def _clipped(training: Training, optimizer: torch.optim.Optimizer) -> float:
    """Scales gradients that are too long, and gives the length they had."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    return nn.utils.clip_grad_norm_(weights, training.settings.max_gradient_norm).item()


def _diverged(step: int, total: float, losses: Mapping[str, float], norm: float) -> str:
    each = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
    return (
        f"step {step}: the loss is {total:.4g} ({each}) and the length of its gradient {norm:.4g}, "
        "which no step can be made of. A smaller learning_rate, a longer warmup or "
        "precision='fp32' may help; with another setting, begin again: --restart (resume=False)"
    )


def _write(
    log: TrainingLog,
    row: Mapping[str, float],
    evaluated: Mapping[str, float],
    progress: Progress,
) -> None:
    """A row of the log; an evaluation is told on the screen, too."""
    log.append({**row, **{EVALUATION + name: value for name, value in evaluated.items()}})
    if evaluated:
        told = ", ".join(f"{name} {value:.4f}" for name, value in evaluated.items())
        progress.say(f"step {row[STEP]}, held-out texts: {told}")


def _evaluations(log: TrainingLog) -> tuple[dict[str, float], dict[str, float]]:
    """The first and the last one in the log; empty where nothing is held out."""
    rows = [
        {
            name.removeprefix(EVALUATION): value
            for name, value in row.items()
            if name.startswith(EVALUATION) and value is not None
        }
        for row in read_log(log.path)
    ]
    evaluated = [row for row in rows if row]
    return (evaluated[0], evaluated[-1]) if evaluated else ({}, {})


def _so_far(training: Training, before: TrainingState, step: int, tokens: int) -> TrainingState:
    """How far the run is now, its parts before this one included."""
    teachers: dict[int, Source] = {id(one): one for one in (training.source, training.eval_source)}
    return TrainingState(
        step,
        tokens,
        before.seconds + time.monotonic() - training.started,
        before.teacher_seconds + sum(one.seconds for one in teachers.values()),
    )
