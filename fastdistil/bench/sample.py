"""The English sentences that come with fastdistil: as text, and as token ids."""

from __future__ import annotations

import json
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def sentences() -> list[str]:
    """The lines of sentences.txt."""
    return (_FOLDER / "sentences.txt").read_text(encoding="utf-8").splitlines()


def token_ids() -> list[tuple[int, ...]]:
    """The same sentences in DistilBERT's uncased WordPiece vocabulary, [CLS] and [SEP] included.

    For models that come without a tokenizer. Ids are below 30,522.
    """
    ids = json.loads((_FOLDER / "sample.json").read_text(encoding="utf-8"))
    return [tuple(sentence) for sentence in ids]
