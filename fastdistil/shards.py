"""Shards: the results of a long run over many records, some thousands of rows a file.

A shard is some thousands of consecutive rows in one file, written under a temporary name, flushed
to the disk and renamed: it is there whole or not at all, whenever the power goes. Each carries a
hash of the very records it was made from. A later run reads the input again and takes over every
shard whose hash is that of the records it finds, so an input that was touched, appended to or
mended after row n keeps the work up to row n, and no other input can get another's results. A
hash of its data tells whether shards which are kept for long are still what was written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .run_folder import RunFolder, atomic_file

_SHARDS = "shard-*.safetensors"


@dataclass(frozen=True)
class Shard:
    """What is known about one finished shard."""

    rows: int
    tokens: int
    truncated: int
    replaced: int


class ShardStore(RunFolder):
    """A folder of shards."""

    layout = 3
    names = (_SHARDS,)
    achieved = (_SHARDS,)

    def find(self, index: int, digest: str) -> Shard | None:
        """The finished shard number `index`, if there is one made from just these records."""
        try:
            with safe_open(self._path(index), framework="np") as opened:
                metadata = opened.metadata() or {}
        except (FileNotFoundError, SafetensorError):
            return None
        if metadata.get("records") != digest:
            return None
        return Shard(**{name: int(metadata[name]) for name in Shard.__dataclass_fields__})

    def write(self, index: int, digest: str, data: NDArray[Any], shard: Shard) -> None:
        """Makes shard number `index` be there, whole, on the disk.

        Args:
            data: what was made of its records: vectors [rows, D], or the bytes of results.
        """
        data = np.ascontiguousarray(data)  # save() mixes up the numbers of others
        metadata = {name: str(getattr(shard, name)) for name in Shard.__dataclass_fields__}
        metadata |= {"records": digest, "sha256": _checksum(data)}
        with atomic_file(self._path(index)) as stream:
            stream.write(save({"data": data}, metadata))

    def read(self, index: int) -> NDArray[Any]:
        """What a finished shard was written with."""
        with safe_open(self._path(index), framework="np") as opened:
            return opened.get_tensor("data")

    def rows(self, index: int, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop - 1 of a finished shard; nothing else is read from the disk.

        Opening the file is part of it, and takes some 60 microseconds.

        Raises:
            ValueError: the shard has no such rows, or there are none of them.
        """
        with safe_open(self._path(index), framework="np") as opened:
            data = opened.get_slice("data")
            count = data.get_shape()[0]
            if not 0 <= start < stop <= count:
                raise ValueError(
                    f"rows {start} to {stop} of shard {index}, which has {count}: "
                    "0 <= start < stop <= rows is needed"
                )
            return data[start:stop]

    def check(self, index: int) -> bool:
        """Whether a shard is there and holds, to the bit, what it was written with."""
        try:
            with safe_open(self._path(index), framework="np") as opened:
                metadata = opened.metadata() or {}
                return metadata.get("sha256") == _checksum(opened.get_tensor("data"))
        except (FileNotFoundError, SafetensorError):
            return False

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index:08d}.safetensors"


def _checksum(data: NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()
