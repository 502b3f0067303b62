"""Text ranking: documents by how well they answer a query, by a cross-encoder.

A cross-encoder reads query and document together (Nogueira and Cho, arXiv 1901.04085): slower than
comparing vectors, and better, so it ranks what a search by vectors has found. Checkpoints are
sequence classifiers with one output, as sentence-transformers' CrossEncoder has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..batch_stream import Vectors
from ..checkpoint import Checkpoint
from .base import Prepared, TaskPipeline, check_text, first_tokens_read
from .heads import Head, sequence_classification_head

FUNCTIONS = ("sigmoid", "none")


@dataclass(frozen=True)
class TextRankingOptions:
    """Options of `text-ranking`.

    Attributes:
        top_k: the best documents only; None: all.
        function_to_apply: "sigmoid" for scores from 0 to 1, "none" for the head's own numbers; by
            default what the checkpoint says to sentence-transformers, else sigmoid.
        return_documents: puts each document in its result.
    """

    top_k: int | None = None
    function_to_apply: str | None = None
    return_documents: bool = True

    def __post_init__(self) -> None:
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k is {self.top_k!r}; a whole number from 1, or None for all")
        function = self.function_to_apply
        if function is not None and function not in FUNCTIONS:
            raise ValueError(
                f"function_to_apply is {function!r}; it can be {', '.join(FUNCTIONS)}, or None for "
                "what the checkpoint says"
            )


class TextRankingPipeline(TaskPipeline[TextRankingOptions]):
    """Documents in the order of their scores.

    An input is {"query": ..., "documents": [...]}; or call with `query=` and `documents=`. A result
    is a list of {"index": the document's place, "score", "document"}, the best first.
    """

    task = "text-ranking"
    options_type = TextRankingOptions
    wanted_input = '{"query": ..., "documents": [...]}'

    def __init__(self, checkpoint: Checkpoint, *args: Any, **kwargs: Any) -> None:
        super().__init__(checkpoint, *args, **kwargs)
        self._function = "none" if _asks_for_identity(self.model.config) else "sigmoid"

    def build_head(self, checkpoint: Checkpoint) -> Head:
        head = sequence_classification_head(checkpoint)
        if head.outputs != 1:
            raise ValueError(
                f"{checkpoint.folder}: the head has {head.outputs} outputs; a cross-encoder that "
                "ranks has one. For labels of pairs there is text-classification"
            )
        return head

    def __call__(
        self, inputs: Any = None, *, query: Any = None, documents: Any = None, **options: Any
    ) -> Any:
        """See `TaskPipeline.__call__`; `query` and `documents` may stand in for `inputs`."""
        if inputs is None:
            inputs = {"query": query, "documents": documents}
        elif query is not None or documents is not None:
            raise ValueError("query and documents: give them, or inputs, not both")
        return super().__call__(inputs, **options)

    def is_one_input(self, inputs: Any) -> bool:
        return isinstance(inputs, dict)

    def characters(self, one: tuple[str, list[str]]) -> int:
        return sum(len(one[0]) + len(document) for document in one[1])

    def check_input(self, one: Any, name: str) -> tuple[str, list[str]]:
        if not isinstance(one, Mapping) or not {"query", "documents"} <= one.keys():
            what = f"a dict of {sorted(one)}" if isinstance(one, Mapping) else type(one).__name__
            raise TypeError(f"{name} is {what}; {self.wanted_input} is wanted")
        documents = one["documents"]
        if not isinstance(documents, list | tuple):
            kind = type(documents).__name__
            raise TypeError(f"{name}: documents is {kind}; a list of strings is wanted")
        return check_text(one["query"], f"{name}: query"), [
            check_text(each, f"{name}: documents[{index}]") for index, each in enumerate(documents)
        ]

    def prepare(
        self, inputs: Sequence[tuple[str, list[str]]], options: TextRankingOptions
    ) -> Prepared:
        """A pair for each document, of which the first token is read."""
        pairs = [(query, document) for query, documents in inputs for document in documents]
        if not pairs:
            return self.packed([], len(inputs), list(inputs))
        return Prepared(first_tokens_read(self.tokenizer.pairs(pairs)), len(inputs), list(inputs))

    def results(self, prepared: Prepared, rows: Vectors, options: TextRankingOptions) -> list[Any]:
        scores: Any = rows.reshape(-1)
        if (options.function_to_apply or self._function) == "sigmoid":
            scores = 1.0 / (1.0 + np.exp(-scores))
        ends = np.cumsum([len(documents) for _, documents in prepared.state])
        return [
            self._ranked(documents, part, options)
            for (_, documents), part in zip(
                prepared.state, np.split(scores, ends[:-1]), strict=True
            )
        ]

    def _ranked(
        self, documents: list[str], scores: Vectors, options: TextRankingOptions
    ) -> list[dict[str, Any]]:
        order = np.argsort(-scores, kind="stable")[: options.top_k].tolist()
        ranked = [{"index": index, "score": float(scores[index])} for index in order]
        if options.return_documents:
            for result in ranked:
                result["document"] = documents[result["index"]]
        return ranked


def _asks_for_identity(config: Mapping[str, Any]) -> bool:
    """Whether a config tells sentence-transformers to leave the head's numbers as they are."""
    settings = config.get("sentence_transformers") or {}
    named = settings.get("activation_fn") or config.get("sbert_ce_default_activation_function")
    return str(named).endswith("Identity")
