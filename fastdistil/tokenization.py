"""Texts to token ids: the checkpoint's own tokenizer, without padding, as one flat array.

The tokenizer is the folder's tokenizer.json, or, for an older BERT folder, one built from vocab.txt
the way transformers builds it. Whatever padding and truncation tokenizer.json carries is replaced:
there is no padding in this package, and the limit is the sentence model's (see `max_length_of`).

Numbers that matter on two cores: `tokenizers` itself makes about a million tokens/s with its own
threads and without the GIL; what Python adds here (ids out of Encoding objects into one array) is
under a tenth of that.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from .sentence_settings import read_json, transformer_settings


@dataclass(frozen=True)
class TokenizedTexts:
    """Token ids of consecutive texts, one after the other."""

    ids: NDArray[np.int32]
    """[T], T the total of `lengths`."""
    lengths: NDArray[np.int64]
    """[N], tokens of each text."""
    truncated: int = 0
    """Texts that were longer than the limit and were cut."""
    replaced: int = 0
    """Texts that were not valid Unicode (lone surrogates) and had U+FFFD put in."""
    segments: NDArray[np.int32] | None = None
    """[T], rows of the segment table; None: 0 everywhere."""
    reads: NDArray[np.bool_] | None = None
    """[T], the tokens whose hidden states are wanted; None: all."""


class TextTokenizer:
    """A checkpoint's tokenizer. Texts are cut at `max_length` tokens, special ones included.

    Safe to use from several threads.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        truncation_side: str = "right",
        lowercase: bool = False,
    ) -> None:
        check_room(max_length, tokenizer.num_special_tokens_to_add(False))
        if lowercase and not _lowercases(tokenizer.normalizer):
            steps = [normalizers.Lowercase()]
            if tokenizer.normalizer is not None:
                steps.append(tokenizer.normalizer)
            tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length, direction=truncation_side)
        self.max_length = max_length
        self._tokenizer = tokenizer
        # Long enough that hardly any text has fewer than max_length tokens in it (about 5
        # characters a token).
        self._prefix = 10 * max_length if _splits_at_whitespace(tokenizer) else None
        if truncation_side != "right":
            self._prefix = None

    @classmethod
    def from_folder(
        cls, folder: Path, max_positions: int, max_length: int | None = None
    ) -> TextTokenizer | None:
        """The tokenizer of a checkpoint folder; None if the folder has none.

        Args:
            folder: a local checkpoint.
            max_positions: rows of the model's position table, the most tokens a text can have.
            max_length: the limit to use in place of the checkpoint's own.
        """
        settings = read_json(folder / "tokenizer_config.json")
        sentence = transformer_settings(folder)
        tokenizer = read_tokenizer(folder, settings)
        if tokenizer is None:
            return None
        return cls(
            tokenizer,
            max_length_of(folder, max_positions, max_length),
            truncation_side=settings.get("truncation_side", "right"),
            lowercase=bool(sentence.get("do_lower_case", False)),
        )

    def __call__(self, texts: Sequence[str]) -> TokenizedTexts:
        """Token ids of each text, special tokens included. Lone surrogates count as U+FFFD."""
        heads, cut = self._heads(texts)
        heads, replaced = replace_lone_surrogates(heads)
        encodings = self._tokenizer.encode_batch_fast(heads)
        lengths = _lengths(encodings)
        full = {int(row) for row in np.flatnonzero(lengths >= self.max_length)}
        overflowed = {row for row in full if encodings[row].overflowing}
        # A head of a long text that did not run over the limit says nothing yet: take the whole
        # text.
        for row in cut - overflowed:
            whole, _ = replace_lone_surrogates([texts[row]])
            encodings[row] = self._tokenizer.encode_batch_fast(whole)[0]
            if encodings[row].overflowing:
                overflowed.add(row)
            lengths[row] = len(encodings[row])
        ids = np.fromiter(
            chain.from_iterable(encoding.ids for encoding in encodings),
            dtype=np.int32,
            count=int(lengths.sum()),
        )
        return TokenizedTexts(ids, lengths, len(overflowed), replaced)

    def _heads(self, texts: Sequence[str]) -> tuple[list[str], set[int]]:
        """Long texts cut at a space far behind the limit, and which they are.

        Tokenising a book to keep its first 256 tokens is nearly all waste. A tokenizer that splits
        at whitespace before anything else gives the same first tokens for the head as for the whole
        text; when the head alone runs over the limit, those are all the tokens there will be.
        """
        if self._prefix is None:
            return list(texts), set()
        heads, cut = list(texts), set()
        for row, text in enumerate(heads):
            if len(text) > 2 * self._prefix and (end := text.find(" ", self._prefix)) >= 0:
                heads[row] = text[:end]
                cut.add(row)
        return heads, cut

    def uncut(self) -> Tokenizer:
        """A copy of the tokenizer inside, which cuts nothing."""
        copy = Tokenizer.from_str(self._tokenizer.to_str())
        copy.no_truncation()
        return copy

    def fingerprint(self) -> str:
        """A hash of everything that decides the ids of a text."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()


def replace_lone_surrogates(texts: Iterable[str]) -> tuple[list[str], int]:
    """Texts made valid Unicode: pairs of surrogates are joined, lone ones become U+FFFD.

    What the tokenizer does with them depends on its version; most refuse the whole batch.

    Returns the texts and how many of them had to be changed.
    """
    texts = list(texts)
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        pass
    else:
        return texts, 0
    valid = [
        text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts
    ]
    return valid, sum(map(operator.ne, texts, valid))


def max_length_of(folder: Path, max_positions: int, asked: int | None = None) -> int:
    """The most tokens a text may have: `asked`, or sentence-transformers' max_seq_length, or the
    tokenizer's model_max_length, or the position table's length; never more than the position
    table.

    Raises:
        ValueError: `asked` is not between 1 and `max_positions`.
    """
    if asked is not None:
        return limited(None, max_positions, asked)
    limit = transformer_settings(folder).get("max_seq_length")
    if limit is None:
        limit = read_json(folder / "tokenizer_config.json").get("model_max_length")
    return limited(limit, max_positions, None)


def limited(limit: float | None, max_positions: int, asked: int | None) -> int:
    """The most tokens a text may have: `asked`, or a checkpoint's own limit, which may be beyond
    the position table.

    Raises:
        ValueError: `asked` is not between 1 and `max_positions`.
    """
    if asked is None:
        return max_positions if limit is None else min(int(limit), max_positions)
    if not isinstance(asked, int) or not 1 <= asked <= max_positions:
        raise ValueError(
            f"max_length is {asked!r}; this model takes from 1 to {max_positions} tokens"
        )
    return asked


def check_room(max_length: int, special: int) -> None:
    """Raise ValueError unless there is room for a text beside so many special tokens."""
    if max_length <= special:
        raise ValueError(
            f"max_length is {max_length}, but the tokenizer itself adds {special} tokens to "
            f"every text: it must be at least {special + 1}"
        )


def _lengths(encodings: Sequence[Any]) -> NDArray[np.int64]:
    return np.fromiter(map(len, encodings), dtype=np.int64, count=len(encodings))


def read_tokenizer(folder: Path, settings: dict[str, Any]) -> Tokenizer | None:
    """A folder's tokenizer as its files have it; None if it has none.

    Args:
        settings: of tokenizer_config.json.
    """
    if (folder / "tokenizer.json").is_file():
        return _load_tokenizer(folder / "tokenizer.json")
    return _wordpiece(folder, settings) if (folder / "vocab.txt").is_file() else None


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for every kind of bad file
        raise ValueError(f"{path} cannot be read as a tokenizer: {error}") from error


def _wordpiece(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    """BERT's WordPiece tokenizer from vocab.txt, as transformers' BertTokenizer sets it up."""
    special = {**read_json(folder / "special_tokens_map.json"), **settings}
    names = {
        role: token_text(special.get(f"{role}_token", f"[{role.upper()}]"))
        for role in ("unk", "sep", "pad", "cls", "mask")
    }
    try:
        model = WordPiece.from_file(
            str(folder / "vocab.txt"), unk_token=names["unk"], max_input_chars_per_word=100
        )
    except Exception as error:  # see _load_tokenizer
        raise ValueError(f"{folder / 'vocab.txt'} cannot be read: {error}") from error
    tokenizer = Tokenizer(model)
    missing = [name for name in names.values() if tokenizer.token_to_id(name) is None]
    if missing:
        raise ValueError(f"{folder / 'vocab.txt'} has no {', '.join(missing)}")
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
        lowercase=settings.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names['cls']}:0 $A:0 {names['sep']}:0",
        pair=f"{names['cls']}:0 $A:0 {names['sep']}:0 $B:1 {names['sep']}:1",
        special_tokens=[
            (names[role], tokenizer.token_to_id(names[role])) for role in ("cls", "sep")
        ],
    )
    tokenizer.add_special_tokens(list(names.values()))
    return tokenizer


def token_text(token: Any) -> str:
    """A special token's text: configs have it as a string or as an object with "content"."""
    return token["content"] if isinstance(token, dict) else str(token)


def _lowercases(normalizer: Any) -> bool:
    """True when a tokenizer's normalizer lower-cases already."""
    if normalizer is None:
        return False
    if isinstance(normalizer, normalizers.Sequence):
        return any(_lowercases(normalizer[index]) for index in range(len(normalizer)))
    if isinstance(normalizer, normalizers.BertNormalizer):
        return bool(normalizer.lowercase)
    return isinstance(normalizer, normalizers.Lowercase)


def _splits_at_whitespace(tokenizer: Tokenizer) -> bool:
    """True when no token can reach across a space: BERT's own chain, no added token with one."""
    return (
        isinstance(tokenizer.normalizer, normalizers.BertNormalizer)
        and isinstance(tokenizer.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        and not any(
            character.isspace()
            for token in tokenizer.get_added_tokens_decoder().values()
            for character in token.content
        )
    )
