"""Replies and their vectors: encoded once, kept in a folder, searched exactly.

The folder has two files: replies.jsonl, a JSON string a line, and vectors.safetensors, whose header
says which model made them and which replies.jsonl is theirs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

if TYPE_CHECKING:
    from ..encoder import Encoder, Vectors

REPLIES_FILE = "replies.jsonl"
VECTORS_FILE = "vectors.safetensors"
_LAYOUT = "fastdistil reply index 1"

# 16 MB of scores at a time.
_REPLIES_AT_A_TIME = 16384
_QUERIES_AT_A_TIME = 256


class ReplyIndex:
    """Replies and their vectors, encoded once; searched exactly.

    Args:
        encoder: the bi-encoder that makes the vectors.
        replies: the first ones; more by `add`.

    Raises:
        TypeError: replies that are not strings.
        ValueError: a checkpoint without a tokenizer.
    """

    def __init__(self, encoder: Encoder, replies: Iterable[str] = ()) -> None:
        encoder.require_tokenizer()
        self.encoder = encoder
        self.replies: list[str] = []
        self._rows = np.empty((0, encoder.dim), np.float32)
        self.add(replies)

    def __len__(self) -> int:
        return len(self.replies)

    @property
    def vectors(self) -> Vectors:
        """[N, D], of length 1."""
        return self._rows[: len(self)]

    @cached_property
    def identity(self) -> str:
        """A hash of all that decides a vector, save for the arithmetic."""
        return f"{self.encoder.fingerprint()} {_pooling(self.encoder)}"

    def add(self, replies: Iterable[str]) -> None:
        """Encode more replies; they get the next indices.

        Raises:
            TypeError: replies that are not strings; then none is added.
        """
        new = list(checked_strings(replies, "replies"))
        vectors = unit_vectors(self.encoder, new)
        end = len(self) + len(new)
        if end > len(self._rows):  # twice as much room as before, so that adding stays linear
            rows = np.empty((max(end, 2 * len(self)), self.encoder.dim), np.float32)
            rows[: len(self)] = self.vectors
            self._rows = rows
        self._rows[len(self) : end] = vectors
        self.replies += new

    def search(self, queries: Vectors, top_k: int) -> tuple[Vectors, NDArray[np.int64]]:
        """The replies with the largest cosines, the best first; the earlier of two alike.

        Exact: every reply is looked at. Memory beside the index: some megabytes.

        Args:
            queries: float32 [Q, D], of length 1.
            top_k: how many; of fewer replies all.

        Returns:
            cosines and indices, [Q, k] each.
        """
        parts = [
            self._search(queries[row : row + _QUERIES_AT_A_TIME], min(top_k, len(self)))
            for row in range(0, max(1, len(queries)), _QUERIES_AT_A_TIME)
        ]
        scores, indices = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(indices)

    def _search(self, queries: Vectors, top_k: int) -> tuple[Vectors, NDArray[np.int64]]:
        scores = np.empty((len(queries), 0), np.float32)
        indices = np.empty((len(queries), 0), np.int64)
        for start in range(0, len(self), _REPLIES_AT_A_TIME):
            rows = self.vectors[start : start + _REPLIES_AT_A_TIME]
            found = queries @ rows.T
            keep = np.argpartition(-found, min(top_k, len(rows)) - 1, axis=1)[:, :top_k]
            scores = np.concatenate([scores, np.take_along_axis(found, keep, 1)], axis=1)
            indices = np.concatenate([indices, keep + start], axis=1)
            order = np.lexsort((indices, -scores), axis=1)[:, :top_k]
            scores = np.take_along_axis(scores, order, 1)
            indices = np.take_along_axis(indices, order, 1)
        return scores, indices

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder, made if need be; what lay there is replaced.

        A save that was cut short is noticed by `load`.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        replies = "".join(json.dumps(reply) + "\n" for reply in self.replies).encode("ascii")
        metadata = {
            "layout": _LAYOUT,
            "model": self.identity,
            "replies": hashlib.sha256(replies).hexdigest(),
        }
        vectors = np.ascontiguousarray(self.vectors)
        _write(folder / REPLIES_FILE, replies)
        _write(folder / VECTORS_FILE, save({"vectors": vectors}, metadata))

    @classmethod
    def load(cls, folder: str | Path, encoder: Encoder) -> ReplyIndex:
        """The index in a folder.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is another model's, or damaged.
        """
        folder = Path(folder)
        vectors, metadata = _read_vectors(folder / VECTORS_FILE)
        text = (folder / REPLIES_FILE).read_bytes()
        index = cls(encoder)
        if metadata.get("model") != index.identity:
            raise ValueError(
                f"{folder} was made by another model than {encoder.folder}, or with another "
                "pooling or max_length; encode the replies anew"
            )
        if metadata.get("replies") != hashlib.sha256(text).hexdigest():
            raise ValueError(
                f"{folder}: {REPLIES_FILE} is not the one that {VECTORS_FILE} was made of; encode "
                "the replies anew"
            )
        index.replies = [json.loads(line) for line in text.splitlines()]
        if vectors.dtype != np.float32 or vectors.shape != (len(index), encoder.dim):
            raise ValueError(
                f"{folder / VECTORS_FILE} holds {vectors.dtype} {list(vectors.shape)}; float32 "
                f"{[len(index), encoder.dim]} is wanted"
            )
        index._rows = vectors
        return index


def _pooling(encoder: Encoder) -> str:
    return "mean" if encoder.pooling == "none" else encoder.pooling


def unit_vectors(encoder: Encoder, texts: Sequence[str]) -> Vectors:
    """float32 [N, D], of length 1."""
    return np.asarray(encoder.encode(texts, pooling=_pooling(encoder), normalize=True))


def checked_strings(values: Any, name: str) -> Iterator[str]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} is {type(values).__name__}; a list of strings is wanted")
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise TypeError(f"{name}[{index}] is {type(value).__name__}; a string is wanted")
        yield value


def _read_vectors(file: Path) -> tuple[NDArray[Any], dict[str, str]]:
    """The vectors, and what the header says of them."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there, so {file.parent} is no reply index")
    try:
        with safe_open(file, framework="numpy") as tensors:
            metadata = tensors.metadata() or {}
            if metadata.get("layout") != _LAYOUT:
                raise ValueError(f"{file} is not the vectors of a reply index")
            return tensors.get_tensor("vectors"), metadata
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _write(file: Path, content: bytes) -> None:
    """Write a file aside and rename it: it is there whole or not at all."""
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(file)
