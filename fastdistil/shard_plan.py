"""What runs over files share: the input cut into shards, and the rows' ids.

A run works through its input a shard at a time (see `shards`), whatever it makes of the texts:
vectors (`encode_file`) or a task's results (`tasks.task_file`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .run_folder import TEMPORARY
from .text_io import RecordId, RecordSource

# What is lost at most when a run is killed: seconds of work on a fast machine, a minute or two on a
# slow one. A million rows make 245 files.
SHARD_ROWS = 4096
# Shards of long documents end earlier, so that the texts of a few fit in memory easily.
SHARD_CHARACTERS = 1 << 24
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Plan:
    """A shard before its texts have been worked on."""

    index: int
    rows: int
    digest: str
    """Hash of its texts."""
    begin: int
    """Position in the source, about, before its first record; `end`: after its last."""
    end: int


class IdSpool:
    """The ids of all rows, one JSON value a line, in a file until it is known what they are for.

    Every run writes it anew: each reads the whole input anyway, and ids are not what takes time.
    """

    def __init__(self, folder: Path, wanted: bool) -> None:
        self.wanted = wanted
        self.text = False
        """True when not all ids are 64-bit integers."""
        self._path = folder / f"ids.jsonl{TEMPORARY}"
        self._stream: BinaryIO | None = None

    def __enter__(self) -> IdSpool:
        if self.wanted:
            self._stream = open(self._path, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def write(self, ids: Sequence[RecordId]) -> None:
        assert self._stream is not None
        self.text = self.text or not all(type(one) is int and one in _INT64 for one in ids)
        self._stream.write("".join(json.dumps(one) + "\n" for one in ids).encode("ascii"))

    def move_to(self, path: Path) -> None:
        """Gives the complete file its final name."""
        assert self._stream is not None
        self._stream.flush()
        os.fsync(self._stream.fileno())
        os.replace(self._path, path)

    def blocks(self, sizes: Iterable[int]) -> Iterator[list[RecordId]]:
        """The ids again, in blocks of the given sizes; row numbers where there are none."""
        if self._stream is None:
            row = 0
            for size in sizes:
                yield list(range(row, row + size))
                row += size
            return
        self._stream.flush()
        with open(self._path, "rb") as lines:
            for size in sizes:
                yield [json.loads(line) for line in islice(lines, size)]


def plans(records: RecordSource, ids: IdSpool) -> Iterator[tuple[Plan, list[str]]]:
    """Cuts the input into shards, by nothing but its texts."""
    index = begin = end = characters = 0
    texts: list[str] = []
    for block in records.blocks:
        if block.ids is not None:
            ids.write(block.ids)
        size = block.position - end
        for row, text in enumerate(block.texts, start=1):
            texts.append(text)
            characters += len(text)
            if len(texts) == SHARD_ROWS or characters >= SHARD_CHARACTERS:
                # Where in its block a record ends is only for the progress bar: a guess will do.
                here = end + size * row // len(block.texts)
                yield Plan(index, len(texts), digest_of(texts), begin, here), texts
                index, begin, texts, characters = index + 1, here, [], 0
        end = block.position
    if texts:
        yield Plan(index, len(texts), digest_of(texts), begin, end), texts


def digest_of(texts: Sequence[str]) -> str:
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    digest = hashlib.sha256(lengths.tobytes())
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
