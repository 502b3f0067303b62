"""The log of a training: a CSV file, a row a step, which grows while the training runs.

A row is written at once, so that the file can be watched. A run that goes on after a crash cuts off
the rows behind its checkpoint and writes them again: the finished log has every step once.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from ..run_folder import atomic_file

STEP = "step"
TOTAL = "loss"
EVALUATION = "eval_"
FIRST_COLUMNS = (STEP, "epoch", "tokens", "seconds", "learning_rate", "gradient_norm", TOTAL)
"""Every log's; the objective's losses and what is evaluated follow."""


def log_columns(losses: Iterable[str], evaluations: Iterable[str]) -> tuple[str, ...]:
    """The columns of an objective's log.

    Args:
        losses: names of its terms, such as "hidden".
        evaluations: names of what is measured on the held-out texts, without "eval_".
    """
    return (*FIRST_COLUMNS, *losses, *(EVALUATION + name for name in evaluations))


class TrainingLog:
    """A log that is being written.

    Args:
        path: the CSV file; one that exists is continued.
        columns: its columns, "step" among them.

    Raises:
        ValueError: a column twice, no column "step", or a file with other columns.
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = tuple(columns)
        if STEP not in self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError(f"columns are {list(columns)}; {STEP!r} and each only once is wanted")
        if self.path.exists():
            self._check_columns()
        else:
            with atomic_file(self.path) as stream:
                stream.write(_line(self.columns))
        self._stream = self._opened()

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, row: Mapping[str, float | int]) -> None:
        """Adds a row. A column that `row` does not have is blank in it.

        Raises:
            ValueError: no "step" in the row, or a name that is no column.
            OSError: the disk is full, for example; the message names the file.
        """
        unknown = [name for name in row if name not in self.columns]
        if unknown or STEP not in row:
            raise ValueError(
                f"row has {', '.join(row) or 'nothing'}; {STEP!r} and any of "
                f"{', '.join(self.columns)} are allowed"
            )
        line = memoryview(_line(_cell(row.get(name)) for name in self.columns))
        try:
            while line:
                line = line[self._stream.write(line) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def flush(self) -> None:
        """Makes all rows so far survive a power cut.

        Raises:
            OSError: the disk cannot take them; the message names the file.
        """
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def cut(self, step: int) -> None:
        """Drops every row behind `step`, and what a crash has left half-written."""
        self._stream.close()
        header, *lines = _whole_lines(self.path)
        kept = [header]
        for line in lines:
            row = _row(self.columns, line)
            at = None if row is None else row[STEP]
            if at is None or at > step:
                break  # steps only rise
            kept.append(line)
        with atomic_file(self.path) as stream:
            stream.writelines(kept)
        self._stream = self._opened()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    def _opened(self) -> io.FileIO:
        """The file for appending, behind its last whole line."""
        whole = sum(map(len, _whole_lines(self.path)))
        stream = io.FileIO(self.path, "r+b")  # without a buffer: a row is there at once
        stream.truncate(whole)
        stream.seek(whole)
        return stream

    def _check_columns(self) -> None:
        found = _header(self.path)
        if found != self.columns:
            raise ValueError(
                f"{self.path} is a log with the columns {', '.join(found)}; wanted here are "
                f"{', '.join(self.columns)}"
            )


def read_log(path: str | Path) -> list[dict[str, float | None]]:
    """The rows of a log, None where a cell is blank. A half-written last line is left out.

    Raises:
        ValueError: a line that is no row of numbers, by its number.
    """
    columns = _header(Path(path))
    rows = []
    for number, line in enumerate(_whole_lines(Path(path))[1:], start=2):
        row = _row(columns, line)
        if row is None:
            raise ValueError(f"{path}, line {number}: not {len(columns)} numbers or blanks")
        rows.append(row)
    return rows


def _header(path: Path) -> tuple[str, ...]:
    lines = _whole_lines(path)
    cells = _cells(lines[0]) if lines else None
    if not cells or STEP not in cells:
        raise ValueError(f"{path} is no log of a training: its first line must have {STEP!r} in it")
    return tuple(cells)


def _whole_lines(path: Path) -> list[bytes]:
    """The lines that have an end; a process killed while writing leaves one without."""
    return [line + b"\n" for line in path.read_bytes().split(b"\n")[:-1]]


def _line(cells: Iterable[str]) -> bytes:
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerow(cells)
    return written.getvalue().encode()


def _cell(value: Any) -> str:
    """A number of Python's or NumPy's. Nine digits give every fp32 back."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, Integral) else format(float(value), ".9g")


def _cells(line: bytes) -> list[str] | None:
    """None where a power cut left something that is no CSV."""
    try:
        return next(csv.reader([line.decode()], strict=True))
    except (UnicodeDecodeError, csv.Error):
        return None


def _row(columns: Sequence[str], line: bytes) -> dict[str, float | None] | None:
    """A line's numbers by column; None if it is none of ours."""
    cells = _cells(line)
    if cells is None or len(cells) != len(columns):
        return None
    try:
        return {
            name: float(cell) if cell else None for name, cell in zip(columns, cells, strict=True)
        }
    except ValueError:
        return None
