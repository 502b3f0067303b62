"""Question answering: the part of a context that answers a question.

As transformers' QuestionAnsweringPipeline (up to 4.57; 5 has none) in arguments and results. A
context is tokenised once for all questions about it that come together, and cut into overlapping
windows where it is long. Only the context's tokens and [CLS] are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ..batch_stream import Vectors
from ..checkpoint import Checkpoint
from .base import Prepared, TaskPipeline
from .heads import Head, question_answering_head
from .text_classification import softmax
from .tokens import Piece, windows

_MAX_SEQ_LEN = 384
_DOC_STRIDE = 128


@dataclass(frozen=True)
class QuestionAnsweringOptions:
    """Options of `question-answering`.

    Attributes:
        top_k: how many answers; with more than 1 a result is a list of them.
        doc_stride: tokens that consecutive windows of a long context share; by default 128, or half
            of max_seq_len where that is less.
        max_answer_len: the most tokens of an answer.
        max_seq_len: tokens of a window, question and special tokens included; by default 384, or
            what the model takes where that is less.
        max_question_len: longer questions are cut to so many tokens; None: they never are.
        handle_impossible_answer: lets "" be an answer, with the score of there being none.
        align_to_words: an answer is whole words.
    """

    top_k: int = 1
    doc_stride: int | None = None
    max_answer_len: int = 15
    max_seq_len: int | None = None
    max_question_len: int | None = None
    handle_impossible_answer: bool = False
    align_to_words: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "max_seq_len", "max_question_len"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} is {value!r}; a whole number from 1 is wanted")
        stride = self.doc_stride
        if stride is not None and (not isinstance(stride, int) or stride < 0):
            raise ValueError(f"doc_stride is {stride!r}; a whole number from 0 is wanted")


@dataclass(frozen=True)
class _Window:
    """A question beside a part of its context."""

    start: int
    """The number of the first of the context's tokens in it."""
    reads: NDArray[np.bool_]
    """Which of the window's tokens are read: [CLS], and the context's."""
    offset: int
    """Where in the window the context's tokens begin."""


@dataclass(frozen=True)
class _Asked:
    """A question and its context, as tokens."""

    context: str
    encoding: Encoding
    offsets: list[tuple[int, int]]
    """Of the encoding, which would make the list anew each time."""
    windows: list[_Window]


class QuestionAnsweringPipeline(TaskPipeline[QuestionAnsweringOptions]):
    """Answers that are parts of a text.

    An input is {"question": ..., "context": ...}; or call with `question=` and `context=`, either
    of them a list (one context may serve many questions). A result is {"score": probability,
    "start" and "end": characters of the context, "answer": what is between them}.
    """

    task = "question-answering"
    options_type = QuestionAnsweringOptions
    wanted_input = '{"question": ..., "context": ...}'

    def build_head(self, checkpoint: Checkpoint) -> Head:
        return question_answering_head(checkpoint)

    def __call__(
        self,
        inputs: Any = None,
        *rest: Any,
        question: Any = None,
        context: Any = None,
        **options: Any,
    ) -> Any:
        """See `TaskPipeline.__call__`; a list of one is answered as one, as transformers does.

        Args:
            inputs: {"question": ..., "context": ...}, a list of them, or a stream.
            question, context: in place of `inputs`.
            options: see `QuestionAnsweringOptions`.
        """
        if "topk" in options:
            options["top_k"] = options.pop("topk")
        if isinstance(inputs, str) and len(rest) == 1 and isinstance(rest[0], str):
            inputs = {"question": inputs, "context": rest[0]}  # as transformers takes them, too
        elif rest:
            raise TypeError(f"inputs: {1 + len(rest)} of them; {self.wanted_input} is wanted")
        if inputs is None:
            inputs = _asked_apart(question, context)
        elif question is not None or context is not None:
            raise ValueError("question and context: give them, or inputs, not both")
        if isinstance(inputs, list | tuple) and len(inputs) == 1:
            inputs = inputs[0]
        return super().__call__(inputs, **options)

    def is_one_input(self, inputs: Any) -> bool:
        return isinstance(inputs, dict)

    def characters(self, one: tuple[str, str]) -> int:
        return len(one[0]) + len(one[1])

    def check_input(self, one: Any, name: str) -> tuple[str, str]:
        if not isinstance(one, Mapping):
            raise TypeError(f"{name} is {type(one).__name__}; {self.wanted_input} is wanted")
        for key in ("question", "context"):
            value = one.get(key)
            if not isinstance(value, str):
                what = type(value).__name__ if key in one else f"missing from {sorted(one)}"
                raise TypeError(f"{name}: {key} is {what}; a string is wanted")
            if not value:
                raise ValueError(f"{name}: {key} is empty; some text is wanted")
        return one["question"], one["context"]

    def prepare(
        self, inputs: Sequence[tuple[str, str]], options: QuestionAnsweringOptions
    ) -> Prepared:
        """The windows of each context beside its question."""
        contexts = list(dict.fromkeys(context for _, context in inputs))
        encoded = {
            context: (encoding, encoding.offsets, encoding.ids)
            for context, encoding in zip(contexts, self.tokenizer.plain(contexts), strict=True)
        }
        questions = self.tokenizer.plain([question for question, _ in inputs])
        pieces: list[Piece] = []
        asked: list[_Asked] = []
        for (_, context), question in zip(inputs, questions, strict=True):
            ids = question.ids[: options.max_question_len]
            encoding, offsets, context_ids = encoded[context]
            found = list(self._windows(ids, context_ids, options))
            pieces += [piece for piece, _ in found]
            asked.append(_Asked(context, encoding, offsets, [window for _, window in found]))
        return self.packed(pieces, len(inputs), asked)

    def _windows(
        self, question: list[int], context: list[int], options: QuestionAnsweringOptions
    ) -> Iterator[tuple[Piece, _Window]]:
        template = self.tokenizer.template
        size, stride = self._sizes(options)
        room = size - template.pair_size - len(question)
        if room < min(stride + 1, max(len(context), 1)):
            raise ValueError(
                f"question: {len(question)} tokens, which with {template.pair_size} special tokens "
                f"and a doc_stride of {stride} leaves no room for a context in max_seq_len "
                f"{size}: give a smaller doc_stride, or a max_question_len"
            )
        before = len(template.pair_prefix) + len(question) + len(template.middle)
        for begin, end in windows(len(context), room, min(stride, room - 1)):
            piece = self.tokenizer.pair(question, context[begin:end], ())
            tokens = np.array(piece.ids)
            reads = tokens == (-1 if self.tokenizer.first is None else self.tokenizer.first)
            reads[before : before + end - begin] = True
            reads[0] = True
            yield (
                Piece(piece.ids, piece.segments, reads.tolist()),
                _Window(begin, reads, before),
            )

    def _sizes(self, options: QuestionAnsweringOptions) -> tuple[int, int]:
        """Tokens of a window, and of what windows share."""
        most = self.tokenizer.max_length
        size = min(_MAX_SEQ_LEN, most) if options.max_seq_len is None else options.max_seq_len
        if size > most:
            raise ValueError(f"max_seq_len is {size}; this model takes at most {most} tokens")
        stride = min(size // 2, _DOC_STRIDE) if options.doc_stride is None else options.doc_stride
        return size, stride

    def results(
        self, prepared: Prepared, rows: Vectors, options: QuestionAnsweringOptions
    ) -> list[Any]:
        parts = iter(prepared.split(rows))
        return [
            self._answers(asked, [next(parts) for _ in asked.windows], options)
            for asked in prepared.state
        ]

    def _answers(
        self, asked: _Asked, logits: list[Vectors], options: QuestionAnsweringOptions
    ) -> Any:
        found: dict[str, dict[str, Any]] = {}  # by the answer's words, whatever their case
        null_score = 1.0
        # Aligned to words, several spans may become one.
        most = 2 * options.top_k + 10 if options.align_to_words else options.top_k
        for window, numbers in zip(asked.windows, logits, strict=True):
            starts, ends = softmax(numbers[:, 0]), softmax(numbers[:, 1])
            null_score = min(null_score, float(starts[0] * ends[0]))
            places = np.flatnonzero(window.reads)
            inside = places >= window.offset
            inside[0] = False  # [CLS] is the answer that there is none
            tokens = places[inside] - window.offset + window.start
            spans = best_spans(starts[inside], ends[inside], most, options.max_answer_len)
            for first, last, score in spans:
                span = _characters(
                    asked, tokens[first], tokens[last], options.align_to_words, tokens
                )
                _add(found, asked.context, span, score)
        answers = list(found.values())
        if options.handle_impossible_answer or not answers:
            score = null_score if options.handle_impossible_answer else 0.0
            answers.append({"score": score, "start": 0, "end": 0, "answer": ""})
        answers.sort(key=lambda answer: answer["score"], reverse=True)
        return answers[0] if len(answers[: options.top_k]) == 1 else answers[: options.top_k]


def best_spans(
    starts: NDArray[Any], ends: NDArray[Any], most: int, longest: int
) -> list[tuple[int, int, float]]:
    """The likeliest spans of tokens, and their probabilities, the best first.

    A span's probability is that of its first token to be a start times that of its last to be an
    end (Chen et al., arXiv 1704.00051). Only spans of at most `longest` tokens are looked at, a
    diagonal band of [tokens, longest].

    Args:
        starts, ends: [tokens], probabilities.
        most: how many spans at most.
        longest: tokens of a span at most.

    Returns:
        (first token, last token, probability) each.
    """
    tokens = len(starts)
    if tokens == 0:
        return []
    longest = min(longest, tokens)
    padded = np.concatenate([ends, np.zeros(longest - 1, ends.dtype)])
    band = starts[:, None] * np.lib.stride_tricks.sliding_window_view(padded, longest)
    flat = band.ravel()
    if most < len(flat):
        order = np.argpartition(-flat, most)[:most]
        order = order[np.argsort(-flat[order], kind="stable")]
    else:
        order = np.argsort(-flat, kind="stable")
    first, length = np.divmod(order, longest)
    return [
        (int(begin), int(begin + more), float(flat[place]))
        for begin, more, place in zip(first, length, order, strict=True)
        if begin + more < tokens and flat[place] > 0
    ]


def _characters(
    asked: _Asked, first: int, last: int, align_to_words: bool, window: NDArray[np.int64]
) -> tuple[int, int]:
    """Where in the context a span of tokens of a window lies.

    Of a word that the window cuts it has a part, as with transformers.
    """
    encoding, offsets = asked.encoding, asked.offsets
    most_left, most_right = offsets[window[0]][0], offsets[window[-1]][1]
    if align_to_words:
        first_word, last_word = (
            encoding.token_to_word(int(first)),
            encoding.token_to_word(int(last)),
        )
        if first_word is not None and last_word is not None:
            begin, end = encoding.word_to_chars(first_word), encoding.word_to_chars(last_word)
            if begin is not None and end is not None:
                return max(begin[0], most_left), min(end[1], most_right)
    return offsets[first][0], offsets[last][1]


def _add(
    answers: dict[str, dict[str, Any]], context: str, span: tuple[int, int], score: float
) -> None:
    """One more answer; the same words again add to the score of the first."""
    words = context[span[0] : span[1]]
    known = answers.get(words.lower())
    if known is None:
        answers[words.lower()] = {
            "score": score,
            "start": span[0],
            "end": span[1],
            "answer": words,
        }
    else:
        known["score"] += score


def _asked_apart(question: Any, context: Any) -> Any:
    """question= and context= as inputs."""
    if question is None or context is None:
        missing = "question" if question is None else "context"
        raise ValueError(f"{missing}: none given; question= and context= are wanted, or inputs")
    if isinstance(question, str) and isinstance(context, str):
        return {"question": question, "context": context}
    if isinstance(question, list) and isinstance(context, str):
        return [{"question": each, "context": context} for each in question]
    if isinstance(question, list) and isinstance(context, list):
        if len(question) != len(context):
            raise ValueError(
                f"question: {len(question)} of them for {len(context)} contexts; as many are "
                "wanted, or one context for all"
            )
        return [
            {"question": each, "context": text}
            for each, text in zip(question, context, strict=True)
        ]
    raise TypeError(
        f"question is {type(question).__name__} and context {type(context).__name__}; strings are "
        "wanted, or lists of them, or a list of questions about one context"
    )
