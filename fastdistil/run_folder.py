"""The folder of a long run: what it has done so far, kept until it is finished.

A run that makes OUT works in OUT.partial beside it; a store of results that are to be kept is such
a folder under a name of its own. It is locked against a second run. What decides the results
besides the input (the model, the options and so on) is in manifest.json, and must be the same for
a later run to continue. The manifest is the first file to come and the last to go, so a folder
without one is somebody else's.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from .text_io import UsageError

if TYPE_CHECKING:
    from typing import Self

_MANIFEST = "manifest.json"
TEMPORARY = ".tmp"


class ResumeError(RuntimeError):
    """A folder cannot be continued; the message says why and what to do."""


def partial_folder(output: Path) -> Path:
    """OUT.partial, where the run that makes OUT works until it is finished."""
    return output.with_name(output.name + ".partial")


def check_new_folder(output: Path, argument: str) -> None:
    """Refuse to make a folder where something is.

    Args:
        argument: what names it, for the message.

    Raises:
        UsageError: a file, or a folder that holds something.
    """
    if output.is_dir():
        if any(output.iterdir()):
            raise UsageError(
                f"{argument}: {output} holds something: choose another name, or remove it"
            )
        if output.is_mount():  # what is renamed must be on the same file system
            raise UsageError(f"{argument}: {output} is a mounted volume: name a folder in it")
    elif output.exists():
        raise UsageError(f"{argument}: {output} is a file; a folder that is not there is wanted")


class RunFolder:
    """A run's folder, as a context manager: locked against a second run meanwhile.

    Attributes:
        layout: number of the form in which a subclass keeps its files; another one is not read.
        names: patterns of the files and folders in it that are a subclass's own, besides the
            manifest and files that end in TEMPORARY.
        achieved: patterns of those that are worth keeping when a run stops; without any, the whole
            folder goes.
    """

    layout: ClassVar[int] = 1
    names: ClassVar[tuple[str, ...]] = ()
    achieved: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        folder: Path,
        *,
        noun: str = "an unfinished run",
        cure: str = "use those to continue it, or --restart (resume=False) to throw it away",
        place: str = "output name",
    ) -> None:
        """Touches nothing yet.

        Args:
            folder: made when it is not there; its parent must be.
            noun: what errors say that the folder holds.
            cure: what they advise when that was made with other settings.
            place: of what they advise to choose another where the folder is somebody else's.
        """
        self.folder = folder
        self._noun = noun
        self._cure = cure
        self._place = place
        self._lock: int | None = None
        self._begun = False

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        self._lock = _locked(self.folder)
        return self

    def __exit__(self, *_: object) -> None:
        if self._begun and not any(any(self.folder.glob(pattern)) for pattern in self.achieved):
            self.remove()  # nothing was achieved: leave nothing behind
        if self._lock is not None:
            os.close(self._lock)

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> None:
        """Makes ready for a run with these settings.

        Args:
            settings: JSON values by name, everything that decides the results besides the input.
            resume: keep what is done; False throws it away.

        Raises:
            ResumeError: the folder holds a run with other settings, or files that are not ours.
        """
        # As they will be read again: JSON has lists only.
        wanted = json.loads(json.dumps({"layout": self.layout, **settings}))
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
                f"{self.folder} holds {self._noun} with other settings "
                f"({'; '.join(different)}): {self._cure}"
            )
        self._begun = True

    def remove(self) -> None:
        """Removes the folder, its manifest last: what is left of it is always recognised."""
        self._begun = False
        self._clear()
        with suppress(OSError):  # somebody else's file is in there: leave it
            self.folder.rmdir()

    def _clear(self) -> None:
        ours = [path for path in self.folder.iterdir() if self._is_ours(path)]
        for path in sorted(ours, key=lambda path: path.name == _MANIFEST):
            if _is_folder(path):
                shutil.rmtree(path)
            else:
                path.unlink()

    def _is_ours(self, path: Path) -> bool:
        if any(path.match(pattern) for pattern in self.names):
            return True
        return path.name == _MANIFEST or _is_temporary(path)

    def _refuse_foreign_files(self) -> None:
        """Without a manifest the folder is new, or is not ours to write in."""
        for path in self.folder.iterdir():
            if not _is_temporary(path):
                raise ResumeError(
                    f"{self.folder} exists and is not {self._noun} (it holds {path.name!r}): "
                    f"move it away or choose another {self._place}"
                )

    def _manifest(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / _MANIFEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None


@contextmanager
def full_disk_explained(folder: Path) -> Iterator[None]:
    """Has the error of a full disk say that nothing is lost, and how to go on.

    Args:
        folder: where what is done so far is kept.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            error.errno,
            "no space left on the disk; what is done so far is kept in "
            f"{folder}: make room and run the same again to continue",
        ) from error


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_temporary(path: Path) -> bool:
    return path.suffix == TEMPORARY and not _is_folder(path)


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
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
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
