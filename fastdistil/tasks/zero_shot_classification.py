"""Zero-shot classification: labels made up on the spot, judged by a model of entailment.

Each label becomes a hypothesis ("This example is sports."), and the score is how far the text
entails it (Yin, Hay and Roth, arXiv 1909.00161). As transformers' ZeroShotClassificationPipeline in
arguments and results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..batch_stream import Vectors
from ..checkpoint import Checkpoint
from .base import LabellingPipeline, Prepared, check_text
from .heads import Head, sequence_classification_head
from .text_classification import softmax
from .tokens import Piece

_NO_LABELS = (
    "candidate_labels: none given; a list of labels is wanted, or a string with commas between them"
)


@dataclass(frozen=True)
class ZeroShotClassificationOptions:
    """Options of `zero-shot-classification`.

    Attributes:
        candidate_labels: a list of labels, or one string with commas between them. Needed, in the
            call or by `pipeline`.
        hypothesis_template: has {} where the label goes.
        multi_label: True judges each label by itself; False has the scores add up to 1.
    """

    candidate_labels: str | Sequence[str] | None = None
    hypothesis_template: str = "This example is {}."
    multi_label: bool = False

    def __post_init__(self) -> None:
        labels = self.candidate_labels
        if labels is None:
            return  # to be given in the call
        if isinstance(labels, str):
            labels = [label.strip() for label in labels.split(",") if label.strip()]
        if not isinstance(labels, list | tuple):
            raise TypeError(
                f"candidate_labels is {type(labels).__name__}; a list of labels is wanted, or a "
                "string with commas between them"
            )
        if not labels:
            raise ValueError(_NO_LABELS)
        if not all(isinstance(label, str) for label in labels):
            kinds = sorted({type(label).__name__ for label in labels})
            raise TypeError(f"candidate_labels holds {', '.join(kinds)}; strings are wanted")
        object.__setattr__(self, "candidate_labels", tuple(labels))
        if not _takes_a_label(self.hypothesis_template):
            raise ValueError(
                f"hypothesis_template is {self.hypothesis_template!r}; a string with {{}} where "
                "the label goes is wanted"
            )


def _takes_a_label(template: Any) -> bool:
    try:
        return isinstance(template, str) and template.format("label") != template
    except (LookupError, ValueError):  # {other}, or a brace by itself
        return False


class ZeroShotClassificationPipeline(LabellingPipeline[ZeroShotClassificationOptions]):
    """Labels that the checkpoint never saw, by entailment.

    An input is a string. A result is {"sequence": the text, "labels": the labels, the likeliest
    first, "scores": theirs}. Long texts are cut, hypotheses never.
    """

    task = "zero-shot-classification"
    options_type = ZeroShotClassificationOptions

    def __init__(self, checkpoint: Checkpoint, *args: Any, **kwargs: Any) -> None:
        super().__init__(checkpoint, *args, **kwargs)
        entailment = self.labels.starting_with("entail")
        if entailment is None or len(self.labels) < 2:
            raise ValueError(
                f"{checkpoint.folder / 'config.json'}: none of the labels "
                f"{', '.join(map(repr, self.labels.names))} begins with 'entail'; "
                "zero-shot-classification needs a model trained on entailment, whose id2label says "
                "which output that is"
            )
        self._entailment = entailment
        self._contradiction = len(self.labels) - 1 if entailment == 0 else 0

    def build_head(self, checkpoint: Checkpoint) -> Head:
        return sequence_classification_head(checkpoint)

    def __call__(self, inputs: Any, candidate_labels: Any = None, **options: Any) -> Any:
        """See `TaskPipeline.__call__`; labels may be the second argument."""
        if candidate_labels is not None:
            options["candidate_labels"] = candidate_labels
        chosen = {k: v for k, v in options.items() if k != "show_progress"}
        if self.options(chosen).candidate_labels is None:
            raise ValueError(_NO_LABELS)
        return super().__call__(inputs, **options)

    def check_input(self, one: Any, name: str) -> str:
        return check_text(one, name)

    def prepare(self, inputs: Sequence[str], options: ZeroShotClassificationOptions) -> Prepared:
        """A pair for each label of each text, of which the first token is read."""
        assert options.candidate_labels is not None
        template = options.hypothesis_template
        hypotheses = self.tokenizer.plain(
            [template.format(label) for label in options.candidate_labels]
        )
        pieces: list[Piece] = []
        for text in self.tokenizer.plain(inputs):
            for label, hypothesis in zip(options.candidate_labels, hypotheses, strict=True):
                premise = self._cut(text.ids, len(hypothesis.ids), label)
                size = self.tokenizer.template.pair_size + len(premise) + len(hypothesis.ids)
                reads = [True] + [False] * (size - 1)
                pieces.append(self.tokenizer.pair(premise, hypothesis.ids, reads))
        return self.packed(pieces, len(inputs), list(inputs))

    def _cut(self, ids: list[int], taken: int, label: str) -> list[int]:
        room = self.tokenizer.max_length - self.tokenizer.template.pair_size - taken
        if len(ids) <= room:
            return ids
        if room < 1:
            raise ValueError(
                f"candidate_labels: {label!r} makes a hypothesis of {taken} tokens, which leaves "
                f"no room for a text in the {self.tokenizer.max_length} that this model takes"
            )
        return ids[-room:] if self.tokenizer.truncation_side == "left" else ids[:room]

    def results(
        self, prepared: Prepared, rows: Vectors, options: ZeroShotClassificationOptions
    ) -> list[Any]:
        labels = options.candidate_labels
        assert labels is not None
        logits = rows.reshape(prepared.inputs, len(labels), -1)
        scores = self._scores(logits, options.multi_label or len(labels) == 1)
        found = []
        for text, row in zip(prepared.state, scores, strict=True):
            order = row.argsort()[::-1]
            found.append(
                {
                    "sequence": text,
                    "labels": [labels[index] for index in order],
                    "scores": row[order].tolist(),
                }
            )
        return found

    def _scores(self, logits: NDArray[np.float32], each_alone: bool) -> NDArray[Any]:
        """[texts, labels] of logits [texts, labels, outputs]."""
        if each_alone:
            return softmax(logits[..., [self._contradiction, self._entailment]])[..., 1]
        return softmax(logits[..., self._entailment])
