"""Text classification: a text, or a pair of texts, to labels with scores.

Also what a cross-encoder is: a pair in, one number out. As transformers' TextClassificationPipeline
in arguments and results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..batch_stream import Vectors, joined
from ..checkpoint import Checkpoint
from ..tokenization import TokenizedTexts
from .base import LabellingPipeline, Prepared, first_tokens_read, refuse_cut
from .heads import Head, sequence_classification_head
from .labels import Labels
from .tokens import TaskTokenizer

FUNCTIONS = ("sigmoid", "softmax", "none")


@dataclass(frozen=True)
class TextClassificationOptions:
    """Options of `text-classification`.

    Attributes:
        top_k: the best labels, in a list; None: all, the best first. 1 by default, and then, unless
            it is given in the call or to the pipeline, a result is not a list but the best itself.
        function_to_apply: "softmax", "sigmoid" or "none"; by default what transformers applies:
            none for regression, sigmoid for several labels at once or one output, else softmax.
        truncation: texts longer than the model takes are cut; False: they are an error.
        max_length: cuts them at so many tokens.
    """

    top_k: int | str | None = ""
    function_to_apply: str | None = None
    truncation: bool = True
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.top_k not in ("", None) and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k is {self.top_k!r}; a whole number from 1, or None for all")
        # transformers' enumeration of them will do.
        function = getattr(self.function_to_apply, "value", self.function_to_apply)
        if function is not None and str(function).lower() not in FUNCTIONS:
            raise ValueError(
                f"function_to_apply is {function!r}; it can be {', '.join(FUNCTIONS)}, or None for "
                "what suits the checkpoint"
            )


class TextClassificationPipeline(LabellingPipeline[TextClassificationOptions]):
    """Labels of texts.

    An input is a string, or {"text": ..., "text_pair": ...} for a pair, longer texts cut first. A
    result is {"label": name, "score": probability}, or with `top_k` a list of them. As with
    transformers, one string without `top_k` in the call gives a list of one result.
    """

    task = "text-classification"
    options_type = TextClassificationOptions
    wanted_input = 'a string, or {"text": ..., "text_pair": ...}'

    def build_head(self, checkpoint: Checkpoint) -> Head:
        return sequence_classification_head(checkpoint)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See `TaskPipeline.__call__`; one string without `top_k` gives a list of one."""
        results = super().__call__(inputs, **options)
        return [results] if isinstance(inputs, str) and "top_k" not in options else results

    def is_one_input(self, inputs: Any) -> bool:
        return isinstance(inputs, str | dict)

    def characters(self, one: tuple[str, str | None]) -> int:
        return len(one[0]) + len(one[1] or "")

    def check_input(self, one: Any, name: str) -> tuple[str, str | None]:
        if isinstance(one, str):
            return one, None
        if isinstance(one, dict) and "text" in one and one.keys() <= {"text", "text_pair"}:
            pair = one.get("text_pair")
            if isinstance(one["text"], str) and isinstance(pair, str | None):
                return one["text"], pair or None  # an empty one is none, as with transformers
        what = f"a dict of {sorted(map(str, one))}" if isinstance(one, dict) else type(one).__name__
        raise TypeError(f"{name} is {what}; {self.wanted_input} with strings is wanted")

    def prepare(
        self, inputs: Sequence[tuple[str, str | None]], options: TextClassificationOptions
    ) -> Prepared:
        """A sequence for each input, of which the first token is read."""
        tokenizer = self.tokenizer.limited(options.max_length)
        tokens = _tokens(tokenizer, inputs)
        refuse_cut(tokens.truncated, len(inputs), options.truncation, tokenizer.max_length)
        return Prepared(first_tokens_read(tokens), len(inputs))

    def results(
        self, prepared: Prepared, rows: Vectors, options: TextClassificationOptions
    ) -> list[Any]:
        scores = apply_function(rows, options.function_to_apply, self.labels)
        names = self.labels.names
        if options.top_k == "":
            best = scores.argmax(axis=1)
            top = scores[np.arange(len(scores)), best]
            return [
                {"label": names[label], "score": score}
                for label, score in zip(best.tolist(), top.tolist(), strict=True)
            ]
        # Stable, as Python's sort: of equal scores the first label comes first.
        order = np.argsort(-scores, axis=1, kind="stable")[:, : options.top_k]
        ranked = np.take_along_axis(scores, order, axis=1)
        return [
            [{"label": names[label], "score": score} for label, score in zip(*each, strict=True)]
            for each in zip(order.tolist(), ranked.tolist(), strict=True)
        ]


def _tokens(tokenizer: TaskTokenizer, inputs: Sequence[tuple[str, str | None]]) -> TokenizedTexts:
    pairs = [(text, pair) for text, pair in inputs if pair is not None]
    if not pairs:
        return tokenizer.singles([text for text, _ in inputs])
    if len(pairs) == len(inputs):
        return tokenizer.pairs(pairs)
    return joined(
        [
            tokenizer.singles([text]) if pair is None else tokenizer.pairs([(text, pair)])
            for text, pair in inputs
        ]
    )


def apply_function(
    logits: Vectors, function: str | None, labels: Labels
) -> NDArray[np.floating[Any]]:
    """Scores [N, labels] of logits [N, labels], float32, by the function asked for or fitting."""
    chosen = (function or _fitting(labels)).lower()
    if chosen == "none":
        return logits
    if chosen == "sigmoid":
        return 1.0 / (1.0 + np.exp(-logits))
    return softmax(logits)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Over the last dimension."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _fitting(labels: Labels) -> str:
    if labels.problem_type == "regression":
        return "none"
    if labels.problem_type == "multi_label_classification" or len(labels) == 1:
        return "sigmoid"
    return "softmax"
