"""Token classification: named entities, parts of speech: a label for every token or word.

As transformers' TokenClassificationPipeline in arguments and results. Texts longer than the model
takes are read in overlapping windows, and what two windows find of the same words is merged.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ..batch_stream import Vectors
from ..checkpoint import Checkpoint
from .base import LabellingPipeline, Prepared, check_text
from .entities import STRATEGIES, TaggedToken, entities_of, merge_overlapping
from .heads import Head, token_classification_head
from .text_classification import softmax
from .tokens import valid_texts, windows

# What windows of a long text share where the caller does not say, of what a window holds. Tokens
# near a window's edge lack the words around them; an eighth on either side is enough for names.
_DEFAULT_OVERLAP = 4


@dataclass(frozen=True)
class TokenClassificationOptions:
    """Options of `token-classification`.

    Attributes:
        aggregation_strategy: "none": a result for each token. "simple": neighbouring tokens of one
            label together. "first", "max", "average": the same of whole words, whose label is that
            of the first token, of the surest one, or of the average.
        ignore_labels: labels to leave out; by default ["O"].
        stride: tokens that consecutive windows of a long text share; by default a quarter.
        is_split_into_words: an input is a list of words.
        delimiter: what stands between the words in the text that `start` and `end` count in.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Sequence[str] | None = None
    stride: int | None = None
    is_split_into_words: bool = False
    delimiter: str | None = " "

    def __post_init__(self) -> None:
        # transformers' enumeration of them will do.
        chosen = str(getattr(self.aggregation_strategy, "value", self.aggregation_strategy)).lower()
        if chosen not in STRATEGIES:
            raise ValueError(
                f"aggregation_strategy is {self.aggregation_strategy!r}; it can be "
                f"{', '.join(STRATEGIES)}"
            )
        object.__setattr__(self, "aggregation_strategy", chosen)
        ignored = ["O"] if self.ignore_labels is None else self.ignore_labels
        if isinstance(ignored, str) or not isinstance(ignored, Collection):
            raise TypeError(f"ignore_labels is {ignored!r}; a list of labels is wanted")
        if not isinstance(self.delimiter, str | None):
            raise TypeError(f"delimiter is {self.delimiter!r}; a string is wanted")
        if self.delimiter is None:
            object.__setattr__(self, "delimiter", " ")
        object.__setattr__(self, "ignore_labels", tuple(ignored))
        if self.stride is not None and (not isinstance(self.stride, int) or self.stride < 0):
            raise ValueError(f"stride is {self.stride!r}; a whole number from 0 is wanted")


@dataclass(frozen=True)
class _Text:
    """A text, its tokens without special ones, and its windows: (first token, end) each."""

    text: str
    # Of an Encoding, which makes these lists anew whenever it is asked.
    ids: list[int]
    offsets: list[tuple[int, int]]
    word_ids: list[int | None]
    word_starts: list[int] | None
    """Where in the text each word begins, where the text came as words."""
    windows: list[tuple[int, int]]


class TokenClassificationPipeline(LabellingPipeline[TokenClassificationOptions]):
    """Entities of texts.

    An input is a string (or a list of words, see `is_split_into_words`). A result is a list:
    {"entity": label, "score", "index": the token's number in its window, "word", "start", "end"}
    for each token, or with an aggregation strategy {"entity_group", "score", "word", "start",
    "end"} for each entity. `start` and `end` count the text's characters.
    """

    task = "token-classification"
    options_type = TokenClassificationOptions

    def build_head(self, checkpoint: Checkpoint) -> Head:
        return token_classification_head(checkpoint)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """See `TaskPipeline.__call__`. A list of words is one input, of lists of words several."""
        chosen = self.options({k: v for k, v in options.items() if k != "show_progress"})
        if not chosen.is_split_into_words:
            return super().__call__(inputs, **options)
        if isinstance(inputs, list | tuple) and all(isinstance(word, str) for word in inputs):
            return super().__call__([inputs], **options)  # a list of one, as with transformers
        return super().__call__(inputs, **options)

    def characters(self, one: str | list[str]) -> int:
        return len(one) if isinstance(one, str) else sum(map(len, one))

    def check_input(self, one: Any, name: str) -> str | list[str]:
        if isinstance(one, list | tuple):
            return [check_text(word, f"{name}[{place}]") for place, word in enumerate(one)]
        return check_text(one, name)

    def prepare(
        self, inputs: Sequence[str | list[str]], options: TokenClassificationOptions
    ) -> Prepared:
        """The windows of each text, of which all but the special tokens are read."""
        texts = self._texts(inputs, options)
        pieces = [
            self.tokenizer.single(text.ids[begin:end], [True] * (end - begin))
            for text in texts
            for begin, end in text.windows
        ]
        return self.packed(pieces, len(inputs), texts)

    def _texts(
        self, inputs: Sequence[str | list[str]], options: TokenClassificationOptions
    ) -> list[_Text]:
        if options.is_split_into_words:
            return self._texts_of_words(inputs, options)
        for one in inputs:
            if not isinstance(one, str):
                raise TypeError(
                    "inputs: a list of words; is_split_into_words=True is wanted for those"
                )
        texts = valid_texts([str(one) for one in inputs])
        return [
            self._text(text, encoding, None, options)
            for text, encoding in zip(texts, self.tokenizer.plain(texts), strict=True)
        ]

    def _texts_of_words(
        self, inputs: Sequence[str | list[str]], options: TokenClassificationOptions
    ) -> list[_Text]:
        found = []
        delimiter = options.delimiter or ""
        for one in inputs:
            if isinstance(one, str):
                raise TypeError("inputs: a string; with is_split_into_words=True a list of words")
        for words, encoding in zip(
            inputs, self.tokenizer.plain_words([list(one) for one in inputs]), strict=True
        ):
            lengths = [len(word) + len(delimiter) for word in words]
            starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
            text = delimiter.join(valid_texts(words))
            found.append(self._text(text, encoding, starts, options))
        return found

    def _text(
        self,
        text: str,
        encoding: Encoding,
        word_starts: list[int] | None,
        options: TokenClassificationOptions,
    ) -> _Text:
        ids = encoding.ids
        parts = self._windows(len(ids), options)
        return _Text(text, ids, encoding.offsets, encoding.word_ids, word_starts, parts)

    def _windows(self, tokens: int, options: TokenClassificationOptions) -> list[tuple[int, int]]:
        size = self.tokenizer.max_length - self.tokenizer.template.single_size
        stride = size // _DEFAULT_OVERLAP if options.stride is None else options.stride
        if stride >= size:
            raise ValueError(
                f"stride is {stride}; this model takes {size} tokens of a text at a time, and "
                "windows must share fewer than that"
            )
        return windows(tokens, size, stride)

    def results(
        self, prepared: Prepared, rows: Vectors, options: TokenClassificationOptions
    ) -> list[Any]:
        parts = iter(prepared.split(softmax(rows) if len(rows) else rows))
        return [
            self._entities(text, [next(parts) for _ in text.windows], options)
            for text in prepared.state
        ]

    def _entities(
        self, text: _Text, scores: list[NDArray[Any]], options: TokenClassificationOptions
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for (begin, end), each in zip(text.windows, scores, strict=True):
            tokens = self._tagged(text, begin, end, each)
            found += [
                entity
                for entity in entities_of(
                    tokens, options.aggregation_strategy, self.labels.names, self.tokenizer.joined
                )
                if entity.get("entity", entity.get("entity_group")) not in self._ignored(options)
            ]
        return found if len(text.windows) == 1 else merge_overlapping(found)

    def _ignored(self, options: TokenClassificationOptions) -> Sequence[str]:
        return options.ignore_labels or ()

    def _tagged(self, text: _Text, begin: int, end: int, scores: NDArray[Any]) -> list[TaggedToken]:
        """The tokens of a window with their scores."""
        first = len(self.tokenizer.template.prefix)
        tagged = []
        for place in range(begin, end):
            start, stop = text.offsets[place]
            if text.word_starts is not None:
                before = text.word_starts[text.word_ids[place] or 0]
                start, stop = start + before, stop + before
            word, there = self.tokenizer.token(text.ids[place]), text.text[start:stop]
            if self.tokenizer.marks_subwords:
                # "##ing" is longer than what it stands for; so is a token of another spelling.
                continues = len(word) != len(there)
            else:
                continues = start > 0 and " " not in text.text[start - 1 : start + 1]
            if text.ids[place] == self.tokenizer.unknown:
                word, continues = there, False
            tagged.append(
                TaggedToken(
                    word, scores[place - begin], start, stop, first + place - begin, continues
                )
            )
        return tagged
