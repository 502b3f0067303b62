"""Engines in processes of their own: started, checked, and timed in turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import ROOT
from benchmarks.encode.engines import TextEngine
from benchmarks.encode.texts import Texts
from fastdistil.bench.race import LEAST_COSINE, least_cosine
from fastdistil.bench.results import Row
from fastdistil.bench.timing import Timing, alternate, say

# requirements-optimum.txt, installed beside everything else.
OPTIMUM = Path(sys.prefix) / "optimum"


@dataclass(frozen=True)
class Contender:
    """An engine that can be started.

    Attributes:
        command: of a process that does as `worker` does.
        environment: what it finds there beside what is there anyway.
    """

    name: str
    precision: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def started(self) -> Iterator[Worker]:
        """In a new process, which ends with the block."""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
            process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=os.environ | self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            # What a dead one has not read cannot be flushed.
            with contextlib.suppress(BrokenPipeError), process:
                try:
                    yield Worker(self, process, errors)
                finally:
                    process.kill()


class Worker:
    """A contender's process, which waits for files of texts.

    Attributes:
        reply: what it said last.
    """

    def __init__(self, contender: Contender, process: Any, errors: Any) -> None:
        self.contender = contender
        self.reply: Mapping[str, Any] = {}
        self._process = process
        self._errors = errors

    def encode(self, texts: Path, vectors: Path | None = None) -> None:
        """Encode a file, and write the vectors where that is said.

        Raises:
            RuntimeError: the process has ended; the message is the last that it wrote.
        """
        request = {"texts": str(texts), "vectors": None if vectors is None else str(vectors)}
        with contextlib.suppress(BrokenPipeError):  # what it wrote tells more
            print(json.dumps(request), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(_last_line(self._errors) or f"ended with {status}")
        self.reply = json.loads(line)

    @property
    def name(self) -> str:
        return self.contender.name

    def kill(self) -> None:
        """Without waiting until it has ended."""
        self._process.kill()


@dataclass(frozen=True)
class Checked:
    """A worker whose vectors are right.

    Attributes:
        cosine: the least of any of them with the original's.
    """

    worker: Worker
    cosine: float


def contenders(
    engines: Mapping[str, TextEngine], checkpoint: Path, left_out: list[str]
) -> list[Contender]:
    """Those that can be had here; a line for each other."""
    found = []
    for name, engine in engines.items():
        folder, environment = checkpoint, {"HF_HUB_OFFLINE": "1"}
        if engine.export is not None:
            environment["PYTHONPATH"] = str(OPTIMUM)
            try:
                folder = _exported(engine.export, checkpoint, environment)
            except RuntimeError as error:
                left_out.append(f"{name}: {error}")
                say(left_out[-1])
                continue
        command = [sys.executable, "-m", "benchmarks.encode.worker", name, str(folder)]
        found.append(Contender(name, engine.precision, command, environment))
    return found


def check(workers: Iterable[Worker], texts: Texts, left_out: list[str]) -> list[Checked]:
    """Those whose vectors are right; a line for each whose are not, or that gives none."""
    right = []
    for worker in workers:
        contender = worker.contender
        file = texts.file.with_suffix(".npy")
        try:
            worker.encode(texts.file, file)
            cosine = least_cosine(np.load(file).astype(float), texts.expected)
            if not cosine >= LEAST_COSINE[contender.precision]:
                raise ValueError(f"wrong answers (cosine {cosine:.4f})")
        except (RuntimeError, ValueError) as error:
            left_out.append(f"{contender.name}, {texts.file.stem}: {error}")
            say(left_out[-1])
            continue
        say(f"{texts.file.stem}: {contender.name} (cosine {cosine:.5f})")
        right.append(Checked(worker, cosine))
    return right


def race(group: str, texts: Texts, entries: Sequence[Checked], rounds: int) -> list[Row]:
    """The file in turns, each worker as it stands there."""
    say(f"{group}: {rounds} turns each")
    workers = {entry.worker.name: entry.worker for entry in entries}
    turns = {name: partial(worker.encode, texts.file) for name, worker in workers.items()}
    timings = alternate(turns, rounds, warm_up=False)
    return _rows(group, texts, entries, timings, workers)


def race_starts(group: str, texts: Texts, entries: Sequence[Checked], rounds: int) -> list[Row]:
    """Turns are new processes, from their start until they have encoded the file."""
    say(f"{group}: {rounds} turns each")
    last: dict[str, Worker] = {}
    with contextlib.ExitStack() as ended:

        def turn(contender: Contender) -> None:
            worker = ended.enter_context(contender.started())
            worker.encode(texts.file)
            worker.kill()
            last[contender.name] = worker

        turns = {e.worker.name: partial(turn, e.worker.contender) for e in entries}
        timings = alternate(turns, rounds, warm_up=False)
    return _rows(group, texts, entries, timings, last)


def _rows(
    group: str,
    texts: Texts,
    entries: Sequence[Checked],
    timings: Mapping[str, Timing],
    workers: Mapping[str, Worker],
) -> list[Row]:
    return [
        Row(
            group,
            entry.worker.name,
            timings[entry.worker.name].seconds,
            {
                "precision": entry.worker.contender.precision,
                "least_cosine": entry.cosine,
                "sequences": len(texts.ids),
                "tokens": texts.tokens,
                "repeats": 1,
                **workers[entry.worker.name].reply,
            },
        )
        for entry in entries
    ]


def _exported(name: str, checkpoint: Path, environment: Mapping[str, str]) -> Path:
    """What `exports` makes of the checkpoint."""
    if not OPTIMUM.is_dir():
        raise RuntimeError("requirements-optimum.txt is needed; `make optimum` installs it")
    say(f"exporting: {name}")
    command = [sys.executable, "-m", "benchmarks.encode.exports", name, str(checkpoint)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(_last_line(done.stderr.splitlines()))
    return Path(done.stdout.strip())


def _last_line(lines: Iterable[str]) -> str:
    """Where Python says what went wrong."""
    return next((line for line in reversed(list(lines)) if line.strip()), "").strip()
