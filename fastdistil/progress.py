"""Progress on stderr: a bar on a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

# Often enough to see that it lives, rarely enough that the log of a night's run can be read.
_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Shows rows done, sentences/s, tokens/s and, where the total is known, the time left.

    Args:
        show: False for silence.
        total: the whole amount of work, in the unit of `update`'s position; None if not known.
        label: put in front.
        stream: where to write; a bar if it is a terminal.
    """

    def __init__(
        self, show: bool, total: int | None, label: str = "", stream: TextIO | None = None
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._show = show
        self._total = total
        self._label = f"{label}: " if label else ""
        self._note = ""
        self._rows = self._rows_skipped = self._tokens = 0
        self._position = self._position_skipped = 0.0
        self._start = self._last_line = time.monotonic()
        self._bar = _bar(total, self._stream) if show and self._stream.isatty() else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(done=kind is None)

    def skip(self, rows: int, position: float) -> None:
        """Counts rows that were done before, which say nothing about the speed."""
        self._rows_skipped += rows
        self._rows += rows
        self._position_skipped += position - self._position
        self._position = position
        self._draw()

    def update(self, rows: int, tokens: int, position: float | None = None, note: str = "") -> None:
        """Counts `rows` more rows of `tokens` tokens; all work up to `position` is now done.

        Args:
            note: put at the end.
        """
        self._note = note
        self._rows += rows
        self._tokens += tokens
        self._position = self._position + rows if position is None else position
        self._draw()

    def say(self, line: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        elif self._show:
            print(line, file=self._stream, flush=True)

    def close(self, done: bool = True) -> None:
        """Ends the bar; `done`: all of the work is, so that what stays on the screen says so."""
        if self._bar is None:
            return
        if done and self._bar.total:
            self._bar.n = self._bar.total
        self._bar.refresh()
        self._bar.close()

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.set_description_str(self._text(), refresh=False)
            self._bar.update(self._position - self._bar.n)
        elif self._show and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(self._text(), file=self._stream, flush=True)

    def _text(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-9)
        rate = (self._rows - self._rows_skipped) / seconds
        parts = [f"{self._rows:,} rows"]
        if self._tokens:
            parts += [f"{rate:,.0f} sentences/s", f"{self._tokens / seconds:,.0f} tokens/s"]
        worked = self._position - self._position_skipped
        if self._total and worked > 0:
            left = max(self._total - self._position, 0.0) * seconds / worked
            if self._bar is None:
                parts.insert(1, f"{min(self._position / self._total, 1.0):.0%}")
            parts.append(f"{duration(left)} left")
        if self._note:
            parts.append(self._note)
        return self._label + ", ".join(parts)


def _bar(total: int | None, stream: TextIO) -> Any:
    from tqdm import tqdm

    shape = "{percentage:3.0f}%|{bar:24}| {desc}" if total else "{desc}"
    return tqdm(
        total=total, bar_format=shape, file=stream, mininterval=0.2, miniters=0, dynamic_ncols=True
    )


def duration(seconds: float) -> str:
    """A time for people: "8 s", "2 min 5 s", "3 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
