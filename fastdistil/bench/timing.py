"""Turns, medians, spread.

Engines are compared inside one run and take turns (A B C, B C A, C A B, ...), so that a noisy
neighbour, a clock that throttles or a cache that warms up meets all of them alike, and nobody
always follows the same one. Figures are medians of the turns.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# An engine's worker threads keep spinning for a moment after it returns, which would be charged to
# the next one on a machine with few cores. 50 ms is longer than any of their spin loops.
SETTLE_SECONDS = 0.05


@dataclass(frozen=True)
class Timing:
    """The timed turns of one engine, in seconds, in the order they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the range of the middle half of the turns, as a part of the median.

        What two runs of the same thing may differ by without meaning anything. 0 for one turn.
        """
        if len(self.seconds) < 2:
            return 0.0
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (upper - lower) / 2 / self.median


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: bool = True,
    lead_ins: Mapping[str, Callable[[], object]] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every contender `rounds` times, taking turns; each round begins with the next one.

    Before that each runs once untimed, unless `warm_up` is false because each already has.

    Args:
        lead_ins: by name, what runs untimed at the beginning of a contender's every turn. After
            others' turns the caches are theirs, threads sleep and the clock may be down; what that
            costs would weigh heavier on a short turn than on a long one.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    for run in contenders.values() if warm_up else ():
        run()
    order = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(rounds):
        first = turn % max(1, len(order))
        for name in order[first:] + order[:first]:
            time.sleep(SETTLE_SECONDS)
            if lead_ins is not None:
                lead_ins[name]()
            start = clock()
            contenders[name]()
            seconds[name].append(clock() - start)
    return {name: Timing(tuple(turns)) for name, turns in seconds.items()}


def fastest(contenders: Mapping[str, Callable[[], object]], rounds: int = 2) -> str:
    """The name with the shortest turn. All must have run before: there is no warm-up."""
    if len(contenders) == 1:
        return next(iter(contenders))
    timings = alternate(contenders, rounds, warm_up=False)
    return min(timings, key=lambda name: timings[name].best)


def repeats(run: Callable[[], object], seconds: float) -> int:
    """How many runs last about so long, by the second of two: the first may prepare something."""
    run()
    start = time.perf_counter()
    run()
    return max(1, math.ceil(seconds / (time.perf_counter() - start)))


def ratio(ours: Timing, theirs: Timing) -> float:
    """How many times faster `ours` is, by medians: above 1 is faster."""
    return theirs.median / ours.median


def say(line: str) -> None:
    """Tell whoever waits what is going on."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)
