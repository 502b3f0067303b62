"""Dialogue by choosing: the reply, of many written beforehand, that fits a conversation best.

A sentence encoder makes a vector of the conversation and has made one of every reply, once
(`reply_index`); the reply with the largest cosine is the answer. A cross-encoder, which reads both
together, may then put the best few in a better order. Nothing is ever said that nobody wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..tokenization import TextTokenizer, replace_lone_surrogates
from .options import WITHOUT_EFFECT
from .reply_index import ReplyIndex, checked_strings, unit_vectors

if TYPE_CHECKING:
    from ..encoder import Encoder

Reply: TypeAlias = dict[str, Any]
Ranker: TypeAlias = Callable[[list[dict[str, str]]], Sequence[Mapping[str, Any]]]
Candidates: TypeAlias = ReplyIndex | Path | Iterable[str]

DEFAULT_RERANK = 50

# What the ranker is asked at once: some thousand pairs.
_CONVERSATIONS_AT_A_TIME = 256


class DialoguePipeline:
    """The best reply to a conversation, of those that there are.

    Args:
        encoder: the bi-encoder. Best one that was trained on questions and answers.
        candidates: the replies to choose from: strings, a `ReplyIndex`, or the `pathlib.Path` of a
            saved one. None: every call brings its own.
        ranker: a cross-encoder: called with a list of {"text": conversation, "text_pair": reply},
            gives for each {"label": ..., "score": ...}, the larger the better; such as
            `fastdistil.pipeline("text-classification", ...)` of a checkpoint with one output.
        defaults: `top_k` and `rerank` of `__call__`, where a call gives none.

    Raises:
        TypeError, ValueError: an argument that makes no sense; an index of another model.
    """

    task = "dialogue"

    def __init__(
        self,
        encoder: Encoder,
        candidates: Candidates | None = None,
        ranker: Ranker | None = None,
        **defaults: Any,
    ) -> None:
        if unknown := sorted(defaults.keys() - {"top_k", "rerank"}):
            raise TypeError(f"{unknown[0]} is not an option; there are rerank, top_k")
        if ranker is not None and not callable(ranker):
            raise TypeError(f"ranker is {type(ranker).__name__}; something to call is wanted")
        self.encoder = encoder
        self.ranker = ranker
        self._top_k = _count("top_k", defaults.get("top_k", 1))
        self._rerank = _count("rerank", defaults.get("rerank", DEFAULT_RERANK))
        self._newest = _NewestText(encoder.require_tokenizer())
        self.index = None if candidates is None else self._index(candidates)

    def __call__(
        self,
        context: str | Iterable[Any],
        candidates: Candidates | None = None,
        top_k: int | None = None,
        rerank: int | None = None,
        **without_effect: Any,
    ) -> Any:
        """The best replies to one conversation or to several.

        A conversation is a string, or a list of strings: its utterances, the newest last. So a list
        of strings is *one* conversation; several are a list of lists. Any other iterable, such as a
        generator, is a stream of conversations, strings or lists, whichever.

        The utterances are joined by spaces. What is more than the model's max_length is cut off in
        front, at a word: the newest words stay. The ranker, which reads the reply besides, gets
        half as much.

        Args:
            context: the conversation or conversations.
            candidates: the replies to choose from in this call, in place of the pipeline's own.
            top_k: how many replies; 1.
            rerank: how many of the best replies the ranker is asked about; 50. At least `top_k`.
            without_effect: `batch_size` and `num_workers`, for transformers' sake.

        Returns:
            for one conversation a list of {"reply": str, "score": float, "index": its place among
            the candidates}, the best first. The score is the cosine, or what the ranker gave. For
            several a list of such lists, for a stream a generator of them.

        Raises:
            TypeError: something that is no conversation, or candidates that are not strings.
            ValueError: no candidates; a conversation without utterances; an option below 1.
        """
        if unknown := sorted(without_effect.keys() - WITHOUT_EFFECT):
            raise TypeError(f"{unknown[0]} is not an option; there are rerank, top_k")
        index = self.index if candidates is None else self._index(candidates)
        if index is None or len(index) == 0:
            raise ValueError("candidates: there are none; give at least one reply to choose from")
        most = self._top_k if top_k is None else _count("top_k", top_k)
        pool = self._rerank if rerank is None else _count("rerank", rerank)
        if isinstance(context, str):
            return next(self._replies(iter([[context]]), index, most, pool))
        if isinstance(context, list | tuple):
            if not any(isinstance(each, list | tuple) for each in context):
                one = _utterances(context, "context")
                return next(self._replies(iter([one]), index, most, pool))
            several = [_several(each, f"context[{i}]") for i, each in enumerate(context)]
            return list(self._replies(iter(several), index, most, pool))
        if isinstance(context, bytes | Mapping) or not isinstance(context, Iterable):
            raise TypeError(
                f"context is {type(context).__name__}; a string, a list of utterances, a list of "
                "such lists, or an iterable of conversations is wanted"
            )
        stream = (_utterances(each, f"context[{i}]") for i, each in enumerate(context))
        return self._replies(stream, index, most, pool)

    def _index(self, candidates: Any) -> ReplyIndex:
        if isinstance(candidates, Path):
            return ReplyIndex.load(candidates, self.encoder)
        if not isinstance(candidates, ReplyIndex):
            return ReplyIndex(self.encoder, checked_strings(candidates, "candidates"))
        same = candidates.encoder is self.encoder
        if not same and candidates.identity != ReplyIndex(self.encoder).identity:
            raise ValueError(
                f"candidates is an index of {candidates.encoder.folder}, whose vectors are not "
                f"those of {self.encoder.folder}; encode the replies with this one"
            )
        return candidates

    def _replies(
        self, conversations: Iterator[Sequence[str]], index: ReplyIndex, top_k: int, rerank: int
    ) -> Iterator[list[Reply]]:
        while group := list(islice(conversations, _CONVERSATIONS_AT_A_TIME)):
            texts = [" ".join(utterances) for utterances in group]
            queries = unit_vectors(self.encoder, self._newest(texts))
            scores: NDArray[np.floating[Any]]
            if self.ranker is None:
                scores, indices = index.search(queries, top_k)
            else:
                _, near = index.search(queries, max(top_k, rerank))
                pairs = [
                    {"text": text, "text_pair": index.replies[reply]}
                    for text, row in zip(self._newest(texts, part=2), near.tolist(), strict=True)
                    for reply in row
                ]
                ranked = _scores(self.ranker(pairs), len(pairs)).reshape(near.shape)
                order = np.argsort(-ranked, axis=1, kind="stable")[:, :top_k]
                scores = np.take_along_axis(ranked, order, 1)
                indices = np.take_along_axis(near, order, 1)
            for row in zip(scores.tolist(), indices.tolist(), strict=True):
                yield [
                    {"reply": index.replies[reply], "score": score, "index": reply}
                    for score, reply in zip(*row, strict=True)
                ]


class _NewestText:
    """The end of a text, as much of it as a model reads."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer.uncut()  # the encoder's own cuts behind
        self._room = tokenizer.max_length - self._tokenizer.num_special_tokens_to_add(False)

    def __call__(self, texts: Sequence[str], part: int = 1) -> list[str]:
        """Each text's last tokens, whole words if it is not all one word.

        Args:
            part: 2 for half as many tokens as the model takes.
        """
        return [self._end(text, max(1, self._room // part)) for text in texts]

    def _end(self, text: str, room: int) -> str:
        (text,), _ = replace_lone_surrogates([text])
        # Nearly always enough of a long text, at 5 characters a token.
        space = text.find(" ", max(0, len(text) - 10 * room))
        for tail in [text] if space <= 0 else [text[space:], text]:
            encoding = self._tokenizer.encode(tail, add_special_tokens=False)
            if len(encoding) > room:
                return tail[_word_start(encoding, len(encoding) - room) :]
        return text


def _word_start(encoding: Any, token: int) -> int:
    """Where the first word at or behind a token begins, in characters; else where it does."""
    words, offsets = encoding.word_ids, encoding.offsets
    for later in range(token, len(words)):
        if words[later] != words[later - 1]:
            return int(offsets[later][0])
    return int(offsets[token][0])


def _several(conversation: Any, name: str) -> list[str]:
    if isinstance(conversation, str):
        raise TypeError(
            f"{name} is a string among lists; several conversations are a list of lists of "
            "utterances, one is a list of strings"
        )
    return _utterances(conversation, name)


def _utterances(conversation: Any, name: str) -> list[str]:
    """A conversation's utterances, checked."""
    if isinstance(conversation, str):
        return [conversation]
    if not isinstance(conversation, list | tuple):
        raise TypeError(
            f"{name} is {type(conversation).__name__}; a conversation is a string or a list of "
            "strings"
        )
    if not conversation:
        raise ValueError(f"{name} is empty; a conversation has at least one utterance")
    return list(checked_strings(conversation, name))


def _scores(ranked: Any, wanted: int) -> NDArray[np.float64]:
    """The ranker's scores, [wanted].

    Raises:
        TypeError, ValueError: it did not do as it should.
    """
    ranked = list(ranked)
    if len(ranked) != wanted:
        raise ValueError(f"ranker gave {len(ranked)} results for {wanted} pairs")
    for index, each in enumerate(ranked):
        if not isinstance(each, Mapping) or "score" not in each:
            raise TypeError(
                f'ranker gave {each!r} for pair {index}; {{"label": ..., "score": ...}} is wanted'
            )
    return np.array([each["score"] for each in ranked], np.float64)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}; a whole number is wanted")
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return int(value)
