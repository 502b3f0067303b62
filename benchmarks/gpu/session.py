"""What the stages share: where they run, how long they may, how they go through their work."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import RESULTS
from benchmarks.corpora import ROOT
from benchmarks.gpu import device as devices
from benchmarks.gpu.store import Store
from benchmarks.gpu.timing import EventTimer, HostTimer, Timer

TUNING = ROOT / "kernels" / "tuning"

# Changing these changes no measurement.
_NOT_MEASURING = ("__main__.py", "report.py")


class OutOfTimeError(Exception):
    """There is no time for this item; what `time_limit` raises."""


@dataclass(frozen=True)
class Job:
    """One item of a stage.

    Attributes:
        name: its key among the results.
        run: measures it; gives values that JSON knows.
        seconds: it is not begun with less time left than this.
    """

    name: str
    run: Callable[[], dict[str, Any]]
    seconds: float = 1.0


class Session:
    """One stage's run.

    Args:
        stage: its name.
        dry: whether everything is tiny and interpreted on the CPU.
        again: whether items that were measured before are measured anew.
        folder: where results go; None: the device's folder below benchmarks/results.
        budget: seconds after which no more work is begun.
    """

    def __init__(self, stage: str, dry: bool, again: bool, folder: Path | None, budget: float):
        self.stage = stage
        self.dry = dry
        self._again = again
        self._deadline = time.monotonic() + budget
        self.device = torch.device("cpu") if dry else torch.device("cuda", 0)
        self.target = devices.target(self.device)
        self.environment = devices.environment(self.device)
        self.folder = folder or RESULTS / devices.slug(self.environment["device"])
        # A dry run leaves the project as it was.
        self.table = (self.folder / "tuning" if dry else TUNING) / f"{self.target}.json"
        self.timer: Timer = HostTimer() if dry else EventTimer()

    def left(self) -> float:
        """Seconds until nothing more is begun."""
        return self._deadline - time.monotonic()

    def say(self, line: str) -> None:
        """Tell people how it is going."""
        print(f"[{time.strftime('%H:%M:%S')}] {self.stage}: {line}", file=sys.stderr, flush=True)

    def store(self, *depends: Path) -> Store:
        """The stage's results so far, as far as the code and the files `depends` are the same."""
        path = self.folder / f"gpu-{self.stage}.json"
        fingerprint = devices.digest([*_sources(), *depends], self.stage, self.dry)
        return Store(path, self.environment, fingerprint, self._again)

    def work(self, store: Store, jobs: Iterable[Job]) -> None:
        """Do what is not done yet, in the given order, until the time is up."""
        for job in jobs:
            if store.has(job.name):
                continue
            if self.left() < job.seconds:
                store.leave_out(job.name)
                continue
            start = time.monotonic()
            try:
                store.put(job.name, job.run())
            except OutOfTimeError:
                store.leave_out(job.name)
            except Exception as error:
                store.fail(job.name, reason_of(error))
                self.say(f"{job.name}: FAILED: {store.failed[job.name]}")
            else:
                self.say(f"{job.name} ({time.monotonic() - start:.1f} s)")
        store.save()

    def attempt(self, work: Callable[[], dict[str, Any]], may_fail: bool) -> dict[str, Any]:
        """What `work` gives in the time that is left; if it may fail, else "failed" and why.

        Raises:
            OutOfTimeError: the time was up first.
        """
        try:
            with time_limit(self.left()):
                return work()
        except OutOfTimeError:
            raise
        except Exception as error:
            # A compiler that was interrupted reports that in its own words.
            if self.left() <= 0:
                raise OutOfTimeError from error
            if not may_fail:
                raise
            return {"failed": reason_of(error)}

    def finish(self, store: Store) -> bool:
        """Say what is missing; whether nothing failed."""
        if store.left_out:
            self.say(f"no time for {len(store.left_out)}: {', '.join(store.left_out)}")
        if store.failed:
            self.say(f"{len(store.failed)} failed: {', '.join(store.failed)}")
        return not store.failed


def reason_of(error: BaseException, limit: int = 300) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())[:limit]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt what does not look at the clock itself, such as a compiler. Main thread only.

    Raises:
        OutOfTimeError: the time is up.
    """

    def stop(signum: int, frame: object) -> None:
        raise OutOfTimeError(f"stopped after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _sources() -> list[Path]:
    """The code that figures depend on."""
    here = Path(__file__).resolve().parent
    measuring = [path for path in here.glob("*.py") if path.name not in _NOT_MEASURING]
    measuring.append(here.parent / "kernels" / "operations.py")
    product = [*(ROOT / "kernels").glob("*.py"), *(ROOT / "fastdistil").rglob("*.py")]
    compiled = [*(ROOT / "csrc" / "cuda").glob("*.cu"), *(ROOT / "csrc" / "cuda").glob("*.h")]
    return [*measuring, *product, *compiled]
