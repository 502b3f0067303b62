"""Texts to token sequences for tasks: singles, pairs, windows over long texts, and back to text.

The ids are those of transformers' tokenizer for the same folder. What this adds to
`fastdistil.tokenization` is what tasks need of a token beside its id: where it lies in the text,
its word, and which part of a pair it is of.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ..sentence_settings import read_json
from ..tokenization import (
    TextTokenizer,
    TokenizedTexts,
    check_room,
    limited,
    read_tokenizer,
    replace_lone_surrogates,
    token_text,
)

_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Piece:
    """One sequence for the model.

    Attributes:
        ids: its tokens, special ones included.
        segments: for each the row of the segment table; None: 0.
        reads: for each whether its hidden state is wanted.
    """

    ids: Sequence[int]
    segments: Sequence[int] | None
    reads: Sequence[bool]


@dataclass(frozen=True)
class Template:
    """The special tokens around one text, or around two: prefix A middle B suffix."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    pair_prefix: tuple[int, ...]
    middle: tuple[int, ...]
    pair_suffix: tuple[int, ...]

    @property
    def single_size(self) -> int:
        """Special tokens of a single text."""
        return len(self.prefix) + len(self.suffix)

    @property
    def pair_size(self) -> int:
        """Special tokens of a pair."""
        return len(self.pair_prefix) + len(self.middle) + len(self.pair_suffix)


class TaskTokenizer:
    """A checkpoint's tokenizer as tasks use it. Safe to use from several threads.

    Attributes:
        max_length: the most tokens of a sequence, special ones included.
        mask, pad, unknown, first: ids of those special tokens; None where there is none. `first` is
            [CLS].
        template: the special tokens around texts.
    """

    def __init__(
        self, folder: Path, max_positions: int, segments: bool, max_length: int | None
    ) -> None:
        settings = read_json(folder / "tokenizer_config.json")
        self.folder = folder
        self.max_length = limited(settings.get("model_max_length"), max_positions, max_length)
        self.truncation_side = str(settings.get("truncation_side", "right"))
        self._segments = segments
        self._max_positions = max_positions
        self._limited: dict[int, TaskTokenizer] = {}
        self._cleans_up = bool(settings.get("clean_up_tokenization_spaces", False))
        self._settings = settings
        # Up to three of one kind, because what a tokenizer cuts is part of its state.
        self._whole = _load(folder, settings)
        self.template = _template(self._whole)
        check_room(self.max_length, self.template.single_size)
        ids = _special_tokens(folder, settings, self._whole)
        self.mask, self.pad, self.unknown, self.first = (
            ids[role] for role in ("mask", "pad", "unk", "cls")
        )
        self.special_ids = frozenset(
            id for id, token in self._whole.get_added_tokens_decoder().items() if token.special
        )
        prefix = getattr(self._whole.model, "continuing_subword_prefix", None)
        self.marks_subwords = bool(prefix)
        """Whether a token that continues a word says so ("##ing")."""

    @cached_property
    def _pairs(self) -> Tokenizer:
        tokenizer = _load(self.folder, self._settings)
        tokenizer.enable_truncation(self.max_length, direction=self.truncation_side)
        return tokenizer

    @cached_property
    def _texts(self) -> TextTokenizer:
        tokenizer = _load(self.folder, self._settings)
        return TextTokenizer(tokenizer, self.max_length, truncation_side=self.truncation_side)

    @property
    def vocab_size(self) -> int:
        """Tokens, added ones included."""
        return self._whole.get_vocab_size()

    def fingerprint(self) -> str:
        """A hash of everything that decides the ids of a text."""
        whole = f"{self.max_length} {self.truncation_side} {self._whole.to_str()}"
        return hashlib.sha256(whole.encode()).hexdigest()

    def limited(self, max_length: int | None) -> TaskTokenizer:
        """The same tokenizer with another limit; None: this one.

        Raises:
            ValueError: a limit that makes no sense.
        """
        if max_length in (None, self.max_length):
            return self
        if max_length not in self._limited:
            self._limited[max_length] = TaskTokenizer(
                self.folder, self._max_positions, self._segments, max_length
            )
        return self._limited[max_length]

    def singles(self, texts: Sequence[str]) -> TokenizedTexts:
        """Each text with its special tokens, cut at max_length."""
        return self._texts(texts)

    def pairs(self, pairs: Sequence[tuple[str, str]]) -> TokenizedTexts:
        """Each pair with its special tokens; the longer text of a pair is cut first."""
        flat, replaced = replace_lone_surrogates(text for pair in pairs for text in pair)
        inputs = list(zip(flat[::2], flat[1::2], strict=True))
        encodings = self._pairs.encode_batch_fast(inputs)
        return TokenizedTexts(
            _flat([encoding.ids for encoding in encodings], np.int32),
            np.array([len(encoding) for encoding in encodings], np.int64),
            sum(bool(encoding.overflowing) for encoding in encodings),
            replaced,
            _flat([encoding.type_ids for encoding in encodings], np.int32)
            if self._segments
            else None,
        )

    def plain(self, texts: Sequence[str]) -> list[Encoding]:
        """Each text whole, without special tokens; offsets count its characters."""
        return self._whole.encode_batch(valid_texts(texts), add_special_tokens=False)

    def plain_words(self, words: Sequence[Sequence[str]]) -> list[Encoding]:
        """The same for texts that are cut into words; offsets count each word's characters."""
        valid = [valid_texts(each) for each in words]
        return self._whole.encode_batch(valid, is_pretokenized=True, add_special_tokens=False)

    def single(self, ids: Sequence[int], reads: Sequence[bool]) -> Piece:
        """Tokens of a text between its special tokens, which nobody reads."""
        template = self.template
        before, after = template.prefix, template.suffix
        return Piece(
            (*before, *ids, *after),
            None,
            (*[False] * len(before), *reads, *[False] * len(after)),
        )

    def pair(
        self,
        first: Sequence[int],
        second: Sequence[int],
        reads: Sequence[bool],
    ) -> Piece:
        """Tokens of two texts between their special tokens.

        Args:
            reads: for all of the piece's tokens.
        """
        template = self.template
        ids = (
            *template.pair_prefix,
            *first,
            *template.middle,
            *second,
            *template.pair_suffix,
        )
        return Piece(ids, self.pair_segments(len(first), len(second)), reads)

    def pair_segments(self, first: int, second: int) -> list[int] | None:
        """Segment ids of a pair of so many tokens; None where the model has no segments."""
        if not self._segments:
            return None
        head = len(self.template.pair_prefix) + first + len(self.template.middle)
        return [0] * head + [1] * (second + len(self.template.pair_suffix))

    def packed(self, pieces: Sequence[Piece]) -> TokenizedTexts:
        """Sequences laid end to end."""
        segments = None
        if self._segments and any(piece.segments is not None for piece in pieces):
            segments = _flat([piece.segments or [0] * len(piece.ids) for piece in pieces], np.int32)
        return TokenizedTexts(
            _flat([piece.ids for piece in pieces], np.int32),
            np.array([len(piece.ids) for piece in pieces], np.int64),
            segments=segments,
            reads=_flat([piece.reads for piece in pieces], np.bool_),
        )

    def token(self, token_id: int) -> str:
        """A token as the vocabulary spells it: "##ing"."""
        return str(self._whole.id_to_token(token_id))

    def id_of(self, token: str) -> int | None:
        """The id of a token of the vocabulary, added ones included; None for any other string."""
        return self._whole.token_to_id(token)

    def joined(self, tokens: Sequence[str]) -> str:
        """Tokens as the vocabulary spells them, put together to a text."""
        decoder = self._whole.decoder
        return str(decoder.decode(list(tokens))) if decoder is not None else " ".join(tokens)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Ids as a text."""
        text = str(self._whole.decode(list(ids), skip_special_tokens=skip_special_tokens))
        return _without_spaces(text) if self._cleans_up else text


def valid_texts(texts: Sequence[str]) -> list[str]:
    """Texts with U+FFFD for every surrogate, of unchanged length, so that offsets stay right."""
    return [_SURROGATE.sub("\ufffd", text) for text in texts]


def _without_spaces(text: str) -> str:
    """A decoded English text without the spaces that tokenising put in, as transformers does it."""
    for end in (".", "?", "!", ","):
        text = text.replace(f" {end}", end)
    text = text.replace(" ' ", "'")
    for end in ("n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {end}", end)
    return text


def windows(tokens: int, size: int, overlap: int) -> list[tuple[int, int]]:
    """Windows over `tokens` tokens, each of `size` or fewer, `overlap` of them in common.

    At least one, and none that lies in another.

    Args:
        overlap: less than `size`.
    """
    spans: list[tuple[int, int]] = []
    for begin in range(0, max(tokens, 1), size - overlap):
        end = min(begin + size, tokens)
        spans.append((begin, end))
        if end == tokens:
            break
    return spans


def _flat(parts: Iterable[Sequence[Any]], dtype: Any) -> NDArray[Any]:
    parts = list(parts)
    total = sum(map(len, parts))
    return np.fromiter((value for part in parts for value in part), dtype, count=total)


def _load(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    tokenizer = read_tokenizer(folder, settings)
    if tokenizer is None:
        raise ValueError(
            f"{folder} has no tokenizer.json or vocab.txt, so it cannot take texts: add one"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _template(tokenizer: Tokenizer) -> Template:
    """The special tokens as the tokenizer's own post-processor puts them."""
    single, pair = tokenizer.encode(""), tokenizer.encode("", "")
    probe = tokenizer.encode("a")
    own = probe.sequence_ids
    text = [place for place, part in enumerate(own) if part is not None]
    before = text[0] if text else len(single.ids)
    pair_probe = tokenizer.encode("a", "a").sequence_ids
    if not text or len(pair_probe) != len(pair.ids) + 2 * len(text):
        return Template(tuple(single.ids), (), tuple(pair.ids), (), ())
    first, second = pair_probe.index(0), pair_probe.index(1)
    middle = second - first - len(text)
    return Template(
        tuple(single.ids[:before]),
        tuple(single.ids[before:]),
        tuple(pair.ids[:first]),
        tuple(pair.ids[first : first + middle]),
        tuple(pair.ids[first + middle :]),
    )


def _special_tokens(
    folder: Path, settings: dict[str, Any], tokenizer: Tokenizer
) -> dict[str, int | None]:
    """Ids of the special tokens by role: what the folder's files say, else BERT's own names."""
    named = {**read_json(folder / "special_tokens_map.json"), **settings}
    found: dict[str, int | None] = {}
    for role in ("mask", "pad", "unk", "cls", "sep"):
        token = named.get(f"{role}_token") or f"[{role.upper()}]"
        found[role] = tokenizer.token_to_id(token_text(token))
    return found
