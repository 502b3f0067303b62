"""Texts to learn from: read, split into those to train on and those held out, and tokenised.

Token ids stay in memory, four bytes a token; the texts only until they are tokenised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..encoder import CHUNKS_AHEAD, check_texts, text_chunks
from ..overlap import overlapped
from ..text_io import InputError, open_records
from ..tokenization import TextTokenizer

# Evaluation is for a figure with two or three digits: more texts say it no better.
MOST_HELD_OUT = 2000

Label = str | int


@dataclass(frozen=True)
class Texts:
    """Texts and, where there are any, their labels."""

    texts: Sequence[str]
    labels: Sequence[Label] | None
    source: str

    def take(self, rows: NDArray[np.int64]) -> Texts:
        """Some of them."""
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return Texts([self.texts[row] for row in rows], labels, self.source)


@dataclass(frozen=True)
class Corpus:
    """Tokenised texts, one after the other.

    Attributes:
        ids: int32 [T].
        starts, lengths: int64 [N], where each text's tokens begin and how many they are.
        labels: int64 [N], or None.
        truncated: texts that were cut.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    truncated: int

    def __len__(self) -> int:
        return len(self.lengths)

    def ids_of(self, texts: NDArray[np.int64]) -> NDArray[np.int32]:
        """Token ids of some texts, end to end."""
        lengths = self.lengths[texts]
        ends = np.cumsum(lengths)
        places = np.arange(int(lengths.sum())) + np.repeat(
            self.starts[texts] - ends + lengths, lengths
        )
        return self.ids[places]

    def digest(self) -> str:
        """A hash of all that is trained on."""
        found = hashlib.sha256(self.lengths.tobytes())
        found.update(self.ids.tobytes())
        if self.labels is not None:
            found.update(self.labels.tobytes())
        return found.hexdigest()


def read_texts(
    source: Any,
    labels: Sequence[Label] | None,
    name: str,
    input_format: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
) -> Texts:
    """All texts of a file, or a sequence of them.

    Args:
        source: a path ("-" is standard input), or strings.
        labels: of strings; a file has them in `label_column`.
        name: the argument's, for messages.

    Raises:
        TypeError, ValueError: what is wrong with which text or label.
        UsageError, InputError: as `open_records` raises them.
    """
    if isinstance(source, str | Path):
        if labels is not None:
            raise ValueError("labels: given beside a file; name the file's with label_column")
        with open_records(source, input_format, text_column, label_column, "label") as records:
            blocks = list(records.blocks)
            texts = [text for block in blocks for text in block.texts]
            found = [one for block in blocks for one in block.ids or ()]
        if not texts:
            raise InputError(f"{records.name}: no texts; a text a line or a row is wanted")
        return Texts(texts, found if label_column is not None else None, records.name)
    named = {"input_format": input_format, "text_column": text_column}
    for option, value in (named | {"label_column": label_column}).items():
        if value is not None:
            raise ValueError(f"{option}: got {value!r}, but {name} is no file; leave it out")
    texts = list(source)
    check_texts(texts, 0, name)
    if not texts:
        raise ValueError(f"{name}: no texts; at least one is wanted")
    if labels is not None and len(labels) != len(texts):
        raise ValueError(f"labels: {len(labels)} labels for {len(texts)} texts of {name}")
    return Texts(texts, labels, name)


def split_held_out(texts: Texts, share: float) -> tuple[Texts, Texts | None]:
    """Texts to train on, and those held out.

    By a digest of the text: the same on every machine, and a text that comes twice is on one side.

    Args:
        share: of the texts that are held out, at most MOST_HELD_OUT; 0: none.

    Raises:
        ValueError: nothing would be left to train on.
    """
    if not share:
        return texts, None
    places = np.array([_place(text) for text in texts.texts], np.uint64)
    wanted = min(max(round(share * len(places)), 1), MOST_HELD_OUT)
    held = places <= np.partition(places, wanted - 1)[wanted - 1]
    if held.all():
        raise ValueError(
            f"held_out: {texts.source} has {len(np.unique(places))} different text(s), so none "
            "would be left to train on; give more, or held_out=0"
        )
    return texts.take(np.flatnonzero(~held)), texts.take(np.flatnonzero(held))


def without(texts: Texts, others: Texts) -> Texts:
    """The texts that are none of the others, whatever blanks are around them.

    Raises:
        ValueError: none is left.
    """
    known = {text.strip() for text in others.texts}
    rows = [row for row, text in enumerate(texts.texts) if text.strip() not in known]
    if not rows:
        raise ValueError(
            f"eval_texts: all of {texts.source} are among them, so none is left to train on"
        )
    return texts.take(np.array(rows, np.int64))


def _place(text: str) -> int:
    """By what a tokenizer makes of it: blanks around it are no other text."""
    known = text.strip().encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(b"held out?" + known).digest()
    return int.from_bytes(digest[:8], "big")


def tokenised(texts: Texts, tokenizer: TextTokenizer, labels: NDArray[np.int64] | None) -> Corpus:
    """A corpus of texts; those without a token of their own (blank lines) are left out.

    Args:
        labels: [N], the numbers of the texts' labels.

    Raises:
        InputError: no text has a token.
    """
    with closing(overlapped(tokenizer, text_chunks(iter(texts.texts)), CHUNKS_AHEAD)) as chunks:
        parts = list(chunks)
    lengths = np.concatenate([part.lengths for part in parts])
    ids = np.concatenate([part.ids for part in parts])
    some = lengths > tokenizer.uncut().num_special_tokens_to_add(False)
    if not some.any():
        raise InputError(f"{texts.source}: no texts, only blanks; a text a line or a row is wanted")
    return Corpus(
        ids,
        (np.cumsum(lengths) - lengths)[some],
        lengths[some],
        None if labels is None else labels[some],
        sum(part.truncated for part in parts),
    )
