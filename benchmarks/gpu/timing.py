"""Clocks. On a GPU: CUDA events around graph replays or plain calls. In a dry run: the host's.

Contenders take turns (A B C A B C ...), so that a clock that throttles or a neighbour meets all of
them alike. A turn makes enough calls, over several sets of inputs, that starting it costs nothing
and that no cache holds what the next call reads.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from fastdistil.bench.timing import Timing

Call = Callable[[], object]

# A turn lasts at least so long, by graph and by plain calls.
_GRAPH_SECONDS = 2e-4
_PLAIN_SECONDS = 1e-2
_MOST_NODES = 512
# For a graph's replay: the host has queued it by then.
_HEAD_START = 5e-5
_CYCLES_A_SECOND = 2e9
# Calls in a turn that is queued at once: as many as leave the driver's queue room for the launches
# of engines that launch a hundred kernels a call.
_QUEUED_CALLS = 6


@dataclass(frozen=True)
class Turn:
    """What is timed at once: `calls` calls.

    `head_start`: seconds for the host to queue all of it first, so that only the GPU is timed.
    """

    run: Call
    calls: int
    head_start: float = 0.0


class Timer(Protocol):
    """What the stages need of a clock."""

    def graphed(self, calls: Sequence[Call]) -> Turn:
        """A turn of launches without the host between them: captured once, replayed."""

    def plain(self, calls: Sequence[Call]) -> Turn:
        """A turn as a program makes the calls, one after the other, host included."""

    def queued(self, calls: Sequence[Call]) -> Turn:
        """A turn of calls as a program makes them, all queued before the GPU begins."""

    def race(self, contenders: Mapping[str, Turn], rounds: int) -> dict[str, Timing]:
        """Seconds per call of each, turn by turn."""

    def apart(self, calls: Sequence[Call], rounds: int) -> list[Timing]:
        """Seconds of each of some calls that have to follow one another."""

    def wall(self, contenders: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
        """Seconds from a call until its result is there, each call by itself."""


class EventTimer:
    """CUDA events on the current device."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()

    def graphed(self, calls: Sequence[Call]) -> Turn:
        """See `Timer`. Each call runs plainly first: kernels get compiled and loaded there."""
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph, passes = self._capture(calls), 1
        once = self._seconds(Turn(graph.replay, 1, _HEAD_START))
        if once < _GRAPH_SECONDS:
            passes = min(math.ceil(_GRAPH_SECONDS / once), max(_MOST_NODES // len(calls), 1))
            graph = self._capture([*calls] * passes)
        return Turn(graph.replay, len(calls) * passes, _HEAD_START)

    def plain(self, calls: Sequence[Call]) -> Turn:
        """See `Timer`."""
        for call in calls:
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize()
        passes = math.ceil(_PLAIN_SECONDS / (time.perf_counter() - start))

        def run() -> None:
            for _ in range(passes):
                for call in calls:
                    call()

        return Turn(run, passes * len(calls))

    def queued(self, calls: Sequence[Call]) -> Turn:
        """See `Timer`. A call that waits for the GPU itself is timed with its waiting."""
        repeated = [*calls] * max(_QUEUED_CALLS // len(calls), 1)
        run = functools.partial(_run_all, repeated)
        run()
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        spent = time.perf_counter() - start
        torch.cuda.synchronize()
        return Turn(run, len(repeated), _HEAD_START + 1.5 * spent)

    def race(self, contenders: Mapping[str, Turn], rounds: int) -> dict[str, Timing]:
        """See `Timer`. The GPU does not idle between the turns of a round."""
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            marks = {name: self._mark(turn) for name, turn in contenders.items()}
            torch.cuda.synchronize()
            for name, (start, stop) in marks.items():
                spent = start.elapsed_time(stop) / 1e3
                seconds[name].append(spent / contenders[name].calls)
        return {name: Timing(tuple(turns)) for name, turns in seconds.items()}

    def apart(self, calls: Sequence[Call], rounds: int) -> list[Timing]:
        """See `Timer`. An event lies between any two calls, which keeps them apart on the GPU."""
        head_start = self.queued([functools.partial(_run_all, calls)]).head_start
        seconds: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds):
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
            torch.cuda._sleep(int(head_start * _CYCLES_A_SECOND))
            marks[0].record()
            for call, mark in zip(calls, marks[1:], strict=True):
                call()
                mark.record()
            torch.cuda.synchronize()
            for found, start, stop in zip(seconds, marks, marks[1:], strict=False):
                found.append(start.elapsed_time(stop) / 1e3)
        return [Timing(tuple(found)) for found in seconds]

    def wall(self, contenders: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
        """See `Timer`."""
        return _walls(contenders, rounds, torch.cuda.synchronize)

    def _mark(self, turn: Turn) -> tuple[Any, Any]:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if turn.head_start:
            torch.cuda._sleep(int(turn.head_start * _CYCLES_A_SECOND))
        start.record()
        turn.run()
        stop.record()
        return start, stop

    def _seconds(self, turn: Turn) -> float:
        start, stop = self._mark(turn)
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3

    def _capture(self, calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
        # Not torch.cuda.graph(): it collects garbage each time, which takes longer than the rest.
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream), torch.inference_mode(False):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                for call in calls:
                    call()
            finally:
                graph.capture_end()
        return graph


class HostTimer:
    """A dry run's clock: the code of a measurement is walked, its figures mean nothing."""

    def graphed(self, calls: Sequence[Call]) -> Turn:
        """The calls as they are."""
        return self.plain(calls)

    def plain(self, calls: Sequence[Call]) -> Turn:
        """One pass over the calls."""
        return Turn(functools.partial(_run_all, calls), len(calls))

    def queued(self, calls: Sequence[Call]) -> Turn:
        """The same."""
        return self.plain(calls)

    def apart(self, calls: Sequence[Call], rounds: int) -> list[Timing]:
        """One call of each."""
        return [self.race({"it": self.plain([call])}, 1)["it"] for call in calls]

    def race(self, contenders: Mapping[str, Turn], rounds: int) -> dict[str, Timing]:
        """One turn each."""
        found = {}
        for name, turn in contenders.items():
            start = time.perf_counter()
            turn.run()
            found[name] = Timing(((time.perf_counter() - start) / turn.calls,))
        return found

    def wall(self, contenders: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
        """One call each."""
        return _walls(contenders, 1, lambda: None)


def _run_all(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def _walls(
    contenders: Mapping[str, Call], rounds: int, synchronize: Callable[[], None]
) -> dict[str, Timing]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(turns)) for name, turns in seconds.items()}
