"""Summaries of the sentences that say most, chosen by their vectors and left as they were.

A text is split into sentences, a sentence encoder makes a vector of each, and the most central ones
are taken in the text's own order. Nothing is ever written that the text does not say. What that is
worth on news, in figures: docs/summarization.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .centrality import Floats, centroid_relevance, choose, lexrank, position_weights
from .options import chosen_options, refuse_unknown
from .sentence_split import Span, sentence_spans
from .vector_task import VectorTask

if TYPE_CHECKING:
    from ..encoder import Encoder

Summary: TypeAlias = dict[str, Any]

METHODS = ("lexrank", "mmr", "lead")
BUDGETS = ("sentences", "words", "ratio")
DEFAULT_SENTENCES = 3

# Sentences encoded together: a dozen full batches, so that the last one, which is not full, costs
# little; some 10 MB of vectors.
_TOGETHER = 4096

# As many as a reader of Chinese or Japanese counts: each character, and no punctuation. Elsewhere
# what lies between spaces, as `wc -w` counts.
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\s{_IDEOGRAPHS}\u3000-\u303f\uff00-\uffef]+")


@dataclass(frozen=True)
class SummaryOptions:
    """Checked options of one call; see `SummarizationPipeline.__call__`."""

    method: str = "lexrank"
    sentences: int | None = None
    words: int | None = None
    ratio: float | None = None
    lead_bias: float = 0.0
    diversity: float = 0.3
    redundancy: float = 0.9
    min_sentence_words: int = 4

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; it can be {', '.join(METHODS)}")
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; a summary has one budget: give one")
        _check_whole("sentences", self.sentences, 1)
        _check_whole("words", self.words, 1)
        _check_whole("min_sentence_words", self.min_sentence_words, 0)
        if self.ratio is not None:
            _check_number("ratio", self.ratio, 0.0, 1.0)
            if self.ratio == 0:
                raise ValueError("ratio is 0; it must be above 0 and at most 1")
        _check_number("lead_bias", self.lead_bias, 0.0, 10.0)
        _check_number("diversity", self.diversity, 0.0, 1.0)
        _check_number("redundancy", self.redundancy, 0.0, 1.0)

    def most_sentences(self, count: int) -> int:
        """How many of a text's sentences may be chosen."""
        if self.words is not None:
            return count
        if self.ratio is not None:
            return max(1, round(self.ratio * count))
        return DEFAULT_SENTENCES if self.sentences is None else self.sentences


@dataclass(frozen=True)
class _Document:
    """A text, its sentences, and the words in each (int64 [sentences])."""

    text: str
    spans: list[Span]
    words: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def split(cls, text: str) -> _Document:
        spans = sentence_spans(text)
        words = [count_words(text[start:end]) for start, end in spans]
        return cls(text, spans, np.array(words, np.int64))

    def fits(self, options: SummaryOptions) -> bool:
        """Whether the whole text is within the budget."""
        if options.words is not None:
            return int(self.words.sum()) <= options.words
        return len(self.spans) <= options.most_sentences(len(self.spans))

    def summary(self, chosen: Iterable[int]) -> Summary:
        """The result for these sentences, in the text's order."""
        sentences = sorted(chosen)
        spans = [self.spans[index] for index in sentences]
        pieces = (" ".join(self.text[start:end].split()) for start, end in spans)
        return {"summary_text": _joined(pieces), "sentences": sentences, "spans": spans}


class SummarizationPipeline(VectorTask):
    """Extractive summaries by a sentence encoder.

    Args:
        encoder: best one that was trained for sentences, such as all-MiniLM-L6-v2.
        defaults: options of `__call__` to use where a call gives none.

    Raises:
        TypeError: a default that is not an option.
        ValueError: an option that makes no sense.
    """

    task = "summarization"

    def __init__(self, encoder: Encoder, **defaults: Any) -> None:
        encoder.require_tokenizer()
        self.encoder = encoder
        self._defaults = {name: value for name, value in defaults.items() if value is not None}
        self._options({})

    def __call__(
        self,
        documents: str | Iterable[str],
        *,
        method: str | None = None,
        sentences: int | None = None,
        words: int | None = None,
        ratio: float | None = None,
        lead_bias: float | None = None,
        diversity: float | None = None,
        redundancy: float | None = None,
        min_sentence_words: int | None = None,
        **without_effect: Any,
    ) -> Any:
        """Summaries of documents, each of its own sentences in their own order.

        Options left out are the pipeline's own defaults, else those below. At most one of the
        three budgets may be given; without one it is 3 sentences.

        Args:
            documents: one string; a list of them; or any other iterable, such as a generator, which
                is read as the summaries are asked for, some thousand sentences ahead.
            method: "lexrank" (the default), "mmr" or "lead", the first sentences, which runs no
                model.
            sentences: the most of them.
            words: the most of them, as `wc -w` counts (every character where Chinese or Japanese is
                written). The most central sentences are taken as long as they fit; those that do
                not are passed over. If no sentence fits, the most central one is the summary all
                the same.
            ratio: the share of a document's sentences, above 0 to 1; at least one sentence.
            lead_bias: how much earlier sentences are favoured: the weight of the sentence at place
                i, from 0, is (1 + i) ** -lead_bias. 0 (the default) not at all; 1 suits news.
            diversity: "mmr" only: 0 for relevance alone to 1 for novelty alone; 0.3.
            redundancy: a sentence with so large a cosine with a chosen one is taken only when no
                other is left; 0.9. 1 turns that off.
            min_sentence_words: sentences with fewer words are taken only when no other is left; 4.
            without_effect: `batch_size` and `num_workers`, for transformers' sake.

        Returns:
            for a string or a list a list of {"summary_text": str, "sentences": indices of the
            chosen sentences, "spans": their characters, as (start, end)}. For any other iterable a
            generator of lists of one such dict, as transformers' pipelines give.

        Raises:
            TypeError: documents that are not strings.
            ValueError: an option that makes no sense, or two budgets.
        """
        refuse_unknown(without_effect, SummaryOptions, self.task)
        given = {
            "method": method,
            "sentences": sentences,
            "words": words,
            "ratio": ratio,
            "lead_bias": lead_bias,
            "diversity": diversity,
            "redundancy": redundancy,
            "min_sentence_words": min_sentence_words,
        }
        options = self._options({k: v for k, v in given.items() if v is not None})
        if isinstance(documents, str):
            return list(self._summaries([documents], options))
        if isinstance(documents, list | tuple):
            return list(self._summaries(list(_checked(documents)), options))
        if isinstance(documents, bytes | Mapping) or not isinstance(documents, Iterable):
            raise TypeError(
                f"documents is {type(documents).__name__}; a string, a list of strings or another "
                "iterable of strings is wanted"
            )
        return ([summary] for summary in self._summaries(_checked(documents), options))

    def _options(self, given: Mapping[str, Any]) -> SummaryOptions:
        defaults = self._defaults
        if any(name in given for name in BUDGETS):
            defaults = {k: v for k, v in defaults.items() if k not in BUDGETS}
        return chosen_options(SummaryOptions, self.task, defaults, given)

    def _summaries(self, documents: Iterable[str], options: SummaryOptions) -> Iterator[Summary]:
        for group in _groups(map(_Document.split, documents)):
            wanted = [each for each in group if not each.fits(options)]
            vectors = iter(self._vectors(wanted, options))
            for document in group:
                if document.fits(options):
                    yield document.summary(range(len(document.spans)))
                else:
                    yield document.summary(_chosen(document, next(vectors), options))

    def _vectors(self, documents: Sequence[_Document], options: SummaryOptions) -> list[Floats]:
        """float32 [sentences, D] of length 1 for each document; D is 0 where none is needed."""
        if options.method == "lead":
            return [np.zeros((len(each.spans), 0), np.float32) for each in documents]
        texts = [each.text[start:end] for each in documents for start, end in each.spans]
        pooling = "mean" if self.encoder.pooling == "none" else None
        vectors = self.encoder.encode(texts, pooling=pooling, normalize=True)
        ends = np.cumsum([len(each.spans) for each in documents])
        return np.split(vectors, ends[:-1]) if documents else []


def count_words(text: str) -> int:
    """Words as the budget counts them: what lies between spaces, and each CJK character."""
    return sum(1 for _ in _WORD.finditer(text))


def _chosen(document: _Document, vectors: Floats, options: SummaryOptions) -> list[int]:
    """Indices of the sentences of a summary, the best first."""
    count = len(document.spans)
    weights = position_weights(count, options.lead_bias)
    if options.method == "lexrank":
        relevance = lexrank(vectors, weights)
    elif options.method == "mmr":
        relevance = centroid_relevance(vectors, weights)
    else:
        relevance = -np.arange(count, dtype=np.float64)
    leading = options.method == "lead"
    short = None if leading else document.words < options.min_sentence_words
    found = choose(
        relevance,
        vectors,
        most=options.most_sentences(count),
        costs=None if options.words is None else document.words,
        budget=options.words or 0,
        diversity=options.diversity if options.method == "mmr" else 0.0,
        redundancy=1.0 if leading else options.redundancy,
        last_resort=short,
    )
    return found or choose(relevance, vectors, most=1, last_resort=short)


def _groups(documents: Iterable[_Document]) -> Iterator[list[_Document]]:
    """Consecutive documents with _TOGETHER sentences or a little more."""
    group: list[_Document] = []
    sentences = 0
    for document in documents:
        group.append(document)
        sentences += max(1, len(document.spans))
        if sentences >= _TOGETHER:
            yield group
            group, sentences = [], 0
    if group:
        yield group


def _joined(sentences: Iterable[str]) -> str:
    """Sentences with a space between, but behind a full-width stop."""
    parts: list[str] = []
    for sentence in sentences:
        if parts and unicodedata.east_asian_width(parts[-1][-1]) not in "WF":
            parts.append(" ")
        parts.append(sentence)
    return "".join(parts)


def _checked(documents: Iterable[Any]) -> Iterator[str]:
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise TypeError(f"documents[{index}] is {type(document).__name__}; a string is wanted")
        yield document


def _check_whole(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; a whole number is wanted")
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")


def _check_number(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError(f"{name} is {value!r}; a number is wanted")
    if not least <= value <= most:  # false for NaN too
        raise ValueError(f"{name} is {value}; it must be from {least:g} to {most:g}")
