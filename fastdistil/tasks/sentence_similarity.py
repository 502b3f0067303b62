"""Sentence similarity: how alike in meaning texts are, by the cosine of their vectors.

Each text is encoded once, whatever it is compared with (a bi-encoder: Reimers and Gurevych, arXiv
1908.10084). For the few best of many, `text-ranking` reads pairs together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from ..encoder import Encoder
from .base import check_text
from .options import chosen_options
from .vector_task import VectorTask

# Inputs whose texts are encoded together.
_GROUP = 256


@dataclass(frozen=True)
class SentenceSimilarityOptions:
    """Options of `sentence-similarity`.

    Attributes:
        top_k: None: the similarity of every sentence, in their order. A number: the best so many,
            as {"index", "score", "sentence"}, the most alike first.
    """

    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k is {self.top_k!r}; a whole number from 1, or None for all")


class SentenceSimilarityPipeline(VectorTask):
    """Similarities of a sentence to others.

    An input is {"source_sentence": ..., "sentences": [...]}, as the Hugging Face inference API has
    it; or call with `source_sentence=` and `sentences=`. A result is a list of cosines, from -1 to
    1, or with `top_k` the best sentences.

    Args:
        encoder: a sentence encoder.
        defaults: options for every call.

    Attributes:
        task: "sentence-similarity".
        encoder: as given.
    """

    task = "sentence-similarity"
    wanted_input = '{"source_sentence": ..., "sentences": [...]}'

    def __init__(self, encoder: Encoder, **defaults: Any) -> None:
        self.encoder = encoder
        self._defaults = defaults
        self._options({})  # says now what makes no sense

    def __call__(
        self,
        inputs: Any = None,
        *,
        source_sentence: Any = None,
        sentences: Any = None,
        **options: Any,
    ) -> Any:
        """Results of one input, of a list of them, or of a stream.

        Raises:
            TypeError: an unknown option, or an input of another form.
        """
        chosen = self._options(options)
        if inputs is None:
            inputs = {"source_sentence": source_sentence, "sentences": sentences}
        elif source_sentence is not None or sentences is not None:
            raise ValueError("source_sentence and sentences: give them, or inputs, not both")
        if isinstance(inputs, Mapping | str):  # of a string the message says what is wanted
            return next(self._results(iter([inputs]), chosen))
        results = self._results(iter(inputs), chosen)
        return list(results) if isinstance(inputs, list | tuple) else results

    def _options(self, given: Mapping[str, Any]) -> SentenceSimilarityOptions:
        return chosen_options(SentenceSimilarityOptions, self.task, self._defaults, given)

    def _results(self, inputs: Iterator[Any], options: SentenceSimilarityOptions) -> Iterator[Any]:
        numbered = enumerate(inputs)
        while group := list(islice(numbered, _GROUP)):
            checked = [self._checked(one, f"inputs[{number}]") for number, one in group]
            # A text that comes several times is encoded once.
            texts = list(dict.fromkeys(t for source, others in checked for t in (source, *others)))
            row = {text: number for number, text in enumerate(texts)}
            vectors = self.encoder.encode(texts, normalize=True)
            for source, others in checked:
                cosines = vectors[[row[other] for other in others]] @ vectors[row[source]]
                yield _result(others, cosines, options.top_k)

    def _checked(self, one: Any, name: str) -> tuple[str, list[str]]:
        if not isinstance(one, Mapping) or not {"source_sentence", "sentences"} <= one.keys():
            what = f"a dict of {sorted(one)}" if isinstance(one, Mapping) else type(one).__name__
            raise TypeError(f"{name} is {what}; {self.wanted_input} is wanted")
        others = one["sentences"]
        if not isinstance(others, list | tuple):
            kind = type(others).__name__
            raise TypeError(f"{name}: sentences is {kind}; a list of strings is wanted")
        return check_text(one["source_sentence"], f"{name}: source_sentence"), [
            check_text(each, f"{name}: sentences[{index}]") for index, each in enumerate(others)
        ]


def _result(sentences: list[str], cosines: Any, top_k: int | None) -> list[Any]:
    if top_k is None:
        return [float(cosine) for cosine in cosines]
    order = np.argsort(-cosines, kind="stable")[:top_k].tolist()
    return [
        {"index": index, "score": float(cosines[index]), "sentence": sentences[index]}
        for index in order
    ]
