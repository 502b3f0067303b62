"""What a distillation is asked to do, checked when it is asked, and what came of it.

Imports no torch, so that a command line with a mistake in it is answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

OBJECTIVES = ("mlm", "embedding", "classification")
POOLED_LOSSES = ("cosine", "mse")
SOFT_TARGETS = ("masked", "all")
PRECISIONS = ("auto", "fp32", "bf16")
# fastdistil.backends has them too, but imports torch. Which of them run here is its to say.
TEACHER_PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8", "fp8")
WEIGHTS = ("soft_weight", "hard_weight", "hidden_weight", "pooled_weight")
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class Settings:
    """How a student is trained. Immutable; checked when made.

    Numbers may be NumPy's; they are kept as Python's, and lists as tuples.

    Attributes:
        objective: "mlm", "embedding" or "classification"; None: what the teacher's config.json
            says it is for.
        layers: how many layers the student has, spread over the teacher's, or which of the
            teacher's layers it begins with, counted from 0; None: half of them.
        epochs: how often every text is seen.
        max_steps: stop after so many steps; None: when the epochs are over.
        batch_tokens: the most tokens that are run at a time.
        accumulation: batches whose gradients make one step.
        learning_rate: AdamW's, at the end of the warm-up; from there it falls linearly to 0.
        warmup: the share of the steps in which it rises linearly from 0.
        weight_decay: AdamW's, for weight matrices.
        max_gradient_norm: longer gradients are scaled down to this length.
        temperature: of the soft targets.
        soft_weight: of the teacher's predictions; None (here and below): the objective's own.
        hard_weight: of the masked words, or of the labels.
        hidden_weight: of the last hidden states.
        pooled_weight: of the pooled vectors.
        pooled_loss: "cosine" or "mse".
        mask_probability: the share of the tokens that is masked.
        maskings: so many different maskings of a text, in turn; None: a new one every epoch.
        soft_targets: the teacher's predictions of "masked" tokens only, or of "all".
        train_embeddings: False keeps the embeddings as they are in the teacher.
        held_out: the share of the texts to evaluate on, chosen by a digest of the text.
        max_length: cut texts at so many tokens; None: what the teacher says.
        evaluate_every: steps; None: ten times a run.
        checkpoint_every: steps between two savings of an unfinished run.
        precision: what the student multiplies in: "auto", "fp32" or "bf16".
        teacher_precision: what the teacher runs in, as Encoder's `precision`.
        seed: of the maskings, the order of the texts and all else that is drawn.

    Raises:
        TypeError: a value of the wrong kind; the message names the field.
        ValueError: a value that is out of range; the message names the field and the range.
    """

    objective: str | None = None
    layers: int | tuple[int, ...] | None = None
    epochs: int = 3
    max_steps: int | None = None
    batch_tokens: int = 2048
    accumulation: int = 1
    learning_rate: float = 5e-4
    warmup: float = 0.05
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    temperature: float = 2.0
    soft_weight: float | None = None
    hard_weight: float | None = None
    hidden_weight: float | None = None
    pooled_weight: float | None = None
    pooled_loss: str = "cosine"
    mask_probability: float = 0.15
    maskings: int | None = None
    soft_targets: str = "masked"
    train_embeddings: bool = True
    held_out: float = 0.05
    max_length: int | None = None
    evaluate_every: int | None = None
    checkpoint_every: int = 200
    precision: str = "auto"
    teacher_precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if all(getattr(self, name) == 0 for name in WEIGHTS):
            raise ValueError(f"{', '.join(WEIGHTS)} are all 0; there would be nothing to learn")

    def to_json(self) -> dict[str, Any]:
        """All fields by name, as JSON has them: tuples are lists."""
        fields = asdict(self)
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }


@dataclass(frozen=True)
class Summary:
    """What a distillation did and what was measured.

    Attributes:
        output: the finished checkpoint's folder.
        objective: "mlm", "embedding" or "classification".
        steps: of the optimizer, with those of a run before that was interrupted.
        epochs: how often every training text was seen.
        tokens: that the student was trained on, counted again in every epoch.
        seconds: that all this took, with those of a run before that was interrupted.
        resumed_step: where this run went on; 0: it began at the beginning.
        teacher_seconds: those of `seconds` in which the teacher ran.
        training_texts: how many there were.
        eval_texts: how many texts were evaluated on; none of them was trained on, blanks around
            them aside.
        parameters: numbers in the student's weights.
        teacher_parameters: numbers in the teacher's.
        before: the evaluation of the student's first weights, by metric.
        after: the evaluation of its last.
    """

    output: Path
    objective: str
    steps: int
    epochs: float
    tokens: int
    seconds: float
    resumed_step: int
    teacher_seconds: float
    training_texts: int
    eval_texts: int
    parameters: int
    teacher_parameters: int
    before: dict[str, float]
    after: dict[str, float]


_Check = Callable[[str, Any], Any]


def _optional(check: _Check) -> _Check:
    return lambda name, value: None if value is None else check(name, value)


def _one_of(allowed: tuple[str, ...]) -> _Check:
    def check(name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong_type(name, value, f"one of {', '.join(allowed)}")
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}; it can be {', '.join(allowed)}")
        return value

    return check


def _whole(least: int, most: float = math.inf) -> _Check:
    wanted = f"a whole number from {least} " + ("up" if most == math.inf else f"to {most}")

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise _wrong_type(name, value, wanted)
        number = int(value)
        if not least <= number <= most:
            raise ValueError(f"{name} is {value!r}; {wanted} is allowed")
        return number

    return check


def _number(wanted: str, allowed: Callable[[float], bool]) -> _Check:
    """A finite number which is `allowed`, that is to say `wanted`."""

    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, Real):
            raise _wrong_type(name, value, wanted)
        number = float(value)
        if not math.isfinite(number) or not allowed(number):
            raise ValueError(f"{name} is {value!r}; {wanted} is allowed")
        return number

    return check


def _layers(name: str, value: Any) -> int | tuple[int, ...]:
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError(f"{name} is {value!r}; at least one layer is needed")
        chosen = tuple(_whole(0)(f"{name}[{place}]", each) for place, each in enumerate(value))
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"{name} is {value!r}; every layer can be there once")
        return chosen
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _wrong_type(name, value, "how many layers, or a list of the teacher's, from 0 up,")
    return _whole(1)(name, value)


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong_type(name, value, "True or False")
    return value


def _wrong_type(name: str, value: Any, wanted: str) -> TypeError:
    return TypeError(f"{name} is {value!r}, a {type(value).__name__}; {wanted} is allowed")


_POSITIVE = _number("a number above 0", lambda value: value > 0)
_FROM_ZERO = _number("a number from 0 up", lambda value: value >= 0)
_SHARE = _number("a share from 0 to below 1", lambda value: 0 <= value < 1)
_COUNT = _whole(1)

_CHECKS: dict[str, _Check] = {
    "objective": _optional(_one_of(OBJECTIVES)),
    "layers": _optional(_layers),
    "epochs": _COUNT,
    "max_steps": _optional(_COUNT),
    "batch_tokens": _COUNT,
    "accumulation": _COUNT,
    "learning_rate": _POSITIVE,
    "warmup": _SHARE,
    "weight_decay": _FROM_ZERO,
    "max_gradient_norm": _POSITIVE,
    "temperature": _POSITIVE,
    **dict.fromkeys(WEIGHTS, _optional(_FROM_ZERO)),
    "pooled_loss": _one_of(POOLED_LOSSES),
    "mask_probability": _number("a share above 0 and below 1", lambda value: 0 < value < 1),
    "maskings": _optional(_COUNT),
    "soft_targets": _one_of(SOFT_TARGETS),
    "train_embeddings": _switch,
    "held_out": _SHARE,
    "max_length": _optional(_COUNT),
    "evaluate_every": _optional(_COUNT),
    "checkpoint_every": _COUNT,
    "precision": _one_of(PRECISIONS),
    "teacher_precision": _one_of(TEACHER_PRECISIONS),
    "seed": _whole(0, _LARGEST_SEED),
}
