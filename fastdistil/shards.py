"""The unfinished part of a long run, on disk: the folder OUT.partial beside the output OUT.

A shard is some thousands of consecutive rows in one file, written under a temporary name, flushed
to the disk and renamed: it is there whole or not at all, whenever the power goes. Each carries a
hash of the very records it was made from. A later run reads the input again and takes over every
shard whose hash is that of the records it finds, so an input that was touched, appended to or
mended after row n keeps the work up to row n, and no other input can get another's results. What
decides the results besides the records (the model, the options and so on) is in manifest.json, and
must be the same.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

_LAYOUT = 2
_MANIFEST = "manifest.json"
_SHARDS = "shard-*.safetensors"
TEMPORARY = ".tmp"


class ResumeError(RuntimeError):
    """OUT.partial cannot be continued; the message says why and what to do."""


@dataclass(frozen=True)
class Shard:
    """What is known about one finished shard."""

    rows: int
    tokens: int
    truncated: int
    replaced: int


class ShardStore:
    """The folder OUT.partial, as a context manager: locked against a second run meanwhile."""

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(output.name + ".partial")
        self._lock: int | None = None
        self._begun = False

    def __enter__(self) -> ShardStore:
        self.folder.mkdir(exist_ok=True)
        self._lock = _locked(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun and not any(self.folder.glob(_SHARDS)):
            self.remove()  # nothing was achieved: leave nothing behind
        if self._lock is not None:
            os.close(self._lock)

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Makes ready for a run with these settings.

        Args:
            settings: JSON values by name, everything that decides the results besides the records.
            resume: keep finished shards; False throws them away.

        Raises:
            ResumeError: the folder holds a run with other settings, or files that are not ours.
        """
        wanted = {"layout": _LAYOUT, **settings}
        found = self._manifest()
        if found is not None and not resume:
            self._clear()
            found = None
        if found is None:
            self._refuse_foreign_files()
            self._begun = True
            with atomic_file(self.folder / _MANIFEST) as stream:
                stream.write(json.dumps(wanted, indent=1).encode())
            return
        different = [
            f"{name}: {found.get(name)!r} there, {wanted.get(name)!r} now"
            for name in {**found, **wanted}
            if found.get(name) != wanted.get(name)
        ]
        if different:
            raise ResumeError(
                f"{self.folder} holds an unfinished run with other settings "
                f"({'; '.join(different)}): use those to continue it, or --restart (resume=False) "
                "to throw it away"
            )
        self._begun = True

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
        counts = {name: str(getattr(shard, name)) for name in Shard.__dataclass_fields__}
        with atomic_file(self._path(index)) as stream:
            stream.write(save({"data": data}, {"records": digest, **counts}))

    def read(self, index: int) -> NDArray[Any]:
        """What a finished shard was written with."""
        with safe_open(self._path(index), framework="np") as opened:
            return opened.get_tensor("data")

    def remove(self) -> None:
        """Removes the folder, its manifest last: what is left of it is always recognised."""
        self._begun = False
        self._clear()
        with suppress(OSError):  # somebody else's file is in there: leave it
            self.folder.rmdir()

    def _path(self, index: int) -> Path:
        return self.folder / f"shard-{index:08d}.safetensors"

    def _clear(self) -> None:
        ours = [path for path in self.folder.iterdir() if _is_ours(path)]
        for path in sorted(ours, key=lambda path: path.name == _MANIFEST):
            path.unlink()

    def _refuse_foreign_files(self) -> None:
        """Without a manifest the folder is new, or is not ours to write in."""
        for path in self.folder.iterdir():
            if path.suffix != TEMPORARY:
                raise ResumeError(
                    f"{self.folder} exists and is not an unfinished run (it holds {path.name!r}): "
                    "move it away or choose another output name"
                )

    def _manifest(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None


def _locked(folder: Path) -> int | None:
    """A handle that keeps other runs out for as long as it is open and its process lives."""
    if sys.platform == "win32":  # no such locks: two runs at once are the user's to avoid
        return None
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ResumeError(f"another run is writing to {folder}: wait for it") from None
    except OSError:  # a file system without locks
        pass
    return handle


def _is_ours(path: Path) -> bool:
    return path.name == _MANIFEST or path.suffix == TEMPORARY or path.match(_SHARDS)


@contextmanager
def atomic_file(path: Path, temporary: Path | None = None) -> Iterator[BinaryIO]:
    """A file that appears under its name only when it is complete and on the disk.

    Args:
        path: the final name.
        temporary: the name until then, on the same file system; by default `path` with TEMPORARY
            added.
    """
    temporary = temporary or path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut, where the file system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        with suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
