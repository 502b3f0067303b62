"""From labelled tokens to entities: the aggregation strategies of token classification.

The rules are those of transformers' TokenClassificationPipeline, token for token. Labels like
"B-PER" and "I-PER" are in IOB form: a B begins an entity, an I continues one of its kind; a label
without such a beginning counts as an I.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STRATEGIES = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class TaggedToken:
    """A token and what the model says of it."""

    word: str
    """As the vocabulary spells it."""
    scores: NDArray[Any]
    """[labels], probabilities."""
    start: int
    end: int
    """Where it lies in the text, in characters."""
    index: int
    """Its number in its sequence, special tokens counted."""
    continues: bool
    """Whether it goes on with the word of the token before it."""


def entities_of(
    tokens: Sequence[TaggedToken],
    strategy: str,
    labels: Sequence[str],
    join: Callable[[Sequence[str]], str],
) -> list[dict[str, Any]]:
    """What a sequence's tokens amount to.

    Args:
        tokens: in order.
        strategy: one of STRATEGIES.
        labels: names by number.
        join: puts tokens as the vocabulary spells them together to a text.

    Returns:
        for "none" {"entity", "score", "index", "word", "start", "end"} for each token, otherwise
        {"entity_group", "score", "word", "start", "end"} for each entity.
    """
    if strategy in ("none", "simple"):
        tagged = [_token_entity(token, labels) for token in tokens]
    else:
        tagged = [_word_entity(word, strategy, labels, join) for word in _words(tokens)]
    return tagged if strategy == "none" else _grouped(tagged, join)


def merge_overlapping(entities: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of entities that begin inside one another the longest; of equally long ones the surest.

    Args:
        entities: of all windows of a text.
    """
    merged: list[dict[str, Any]] = []
    for entity in sorted(entities, key=lambda each: each["start"]):
        if merged and merged[-1]["start"] <= entity["start"] < merged[-1]["end"]:
            kept = merged[-1]
            length, kept_length = entity["end"] - entity["start"], kept["end"] - kept["start"]
            if (length, entity["score"]) > (kept_length, kept["score"]):
                merged[-1] = entity
        else:
            merged.append(entity)
    return merged


def _token_entity(token: TaggedToken, labels: Sequence[str]) -> dict[str, Any]:
    label = int(token.scores.argmax())
    return {
        "entity": labels[label],
        "score": float(token.scores[label]),
        "index": token.index,
        "word": token.word,
        "start": token.start,
        "end": token.end,
    }


def _words(tokens: Sequence[TaggedToken]) -> list[list[TaggedToken]]:
    words: list[list[TaggedToken]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word_entity(
    word: Sequence[TaggedToken],
    strategy: str,
    labels: Sequence[str],
    join: Callable[[Sequence[str]], str],
) -> dict[str, Any]:
    if strategy == "first":
        scores = word[0].scores
    elif strategy == "max":
        scores = max(word, key=lambda token: token.scores.max()).scores
    else:
        scores = np.mean([token.scores for token in word], axis=0)
    label = int(scores.argmax())
    return {
        "entity": labels[label],
        "score": float(scores[label]),
        "word": join([token.word for token in word]),
        "start": word[0].start,
        "end": word[-1].end,
    }


def _grouped(
    entities: Sequence[dict[str, Any]], join: Callable[[Sequence[str]], str]
) -> list[dict[str, Any]]:
    groups: list[list[dict[str, Any]]] = []
    for entity in entities:
        begins, kind = _kind(entity["entity"])
        if groups and not begins and kind == _kind(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(np.mean([entity["score"] for entity in group])),
            "word": join([entity["word"] for entity in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _kind(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of which kind."""
    if label.startswith(("B-", "I-")):
        return label.startswith("B-"), label[2:]
    return False, label
