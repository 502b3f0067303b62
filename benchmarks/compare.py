"""Two runs of a suite: what became slower, beyond the noise measured in the same runs.

    python -m benchmarks.compare A.json B.json
    python -m benchmarks.compare A.json B.json --relative-to "eager PyTorch fp32"

A contender became slower if B's median is above A's by more than 3 x (its noise in A + its noise
in B). Noise is the spread of its turns (half the range of their middle half, as a part of the
median), but at least the median spread of all who took turns with it: a few turns may agree by
chance. Where nothing has changed, that still calls slower 1 contender in 300 with 3 turns, 1 in
2,000 with 5 (simulated: normal, one-sided and outlying noise); of those who ran alone 1 in 50, 1 in
100. With fewer than 3 turns nothing is compared. A rank test has no more power: of 3 and 3 turns
even the most extreme order comes by chance 1 time in 20.

What the machine did for minutes is not in that noise. The other engines show it, whose code is the
same in both runs: what a workload became slower by is reckoned from their median, where there are
five of them, and counts if it is more than three times their scatter, too. Where there are fewer,
the scatter of all of them counts. Of 146 figures of two runs of one commit, one right after the
other on two cores of a shared machine, that called 4 slower and 2 faster, none of them ours; the
turns' noise alone had called 7 and 9.

--relative-to divides each turn by the turn that another contender had in the same round, which
cancels what both had in common. Exit status: 0; 1 where something became slower; 2 where nothing
can be compared.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.command import command_parser
from fastdistil.bench import results
from fastdistil.bench.environment import describe, device_folder
from fastdistil.bench.results import Results
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import Timing, ratio

HEADER = ("workload", "contender", "A", "B", "times as long", "the others", "noise")
FEWEST_TURNS = 3
TIMES_THE_NOISE = 3

# In the names of what is compared, as opposed to those whose code is the same in both runs.
OURS = ("fastdistil", "C++", "Triton", "CUDA")
FEWEST_OTHERS = 5
# A standard deviation, where numbers are normal, in median distances from the median.
_DEVIATION = 1.4826


@dataclass(frozen=True)
class Drift:
    """What became of those whose code is the same in both runs: the machine's doing.

    Attributes:
        times: as long as before.
        noise: what one of them may differ by from that without meaning anything.
    """

    times: float = 1.0
    noise: float = 0.0


@dataclass(frozen=True)
class Measured:
    """A contender of one run.

    Attributes:
        timing: in seconds, or in turns of the one that it is relative to.
        noise: what its median may differ by in another run without meaning anything.
        tokens: of a pass; None where a row does not say.
    """

    timing: Timing
    noise: float
    tokens: int | None


@dataclass(frozen=True)
class Change:
    """A contender in both runs, and what the machine did meanwhile."""

    group: str
    name: str
    before: Measured
    after: Measured
    drift: Drift = Drift()

    @property
    def times(self) -> float:
        """As long as before."""
        return ratio(self.before.timing, self.after.timing)

    @property
    def noise(self) -> float:
        of_turns = TIMES_THE_NOISE * (self.before.noise + self.after.noise)
        return max(of_turns, self.drift.noise)

    @property
    def is_slower(self) -> bool:
        return self.times / self.drift.times > 1 + self.noise

    @property
    def is_faster(self) -> bool:
        return self.drift.times / self.times > 1 + self.noise


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        before, after = results.read(options.before), results.read(options.after)
    except (OSError, ValueError) as problem:
        parser.error(str(problem))
    first, second = (device_folder(run.environment) for run in (before, after))
    if first != second and not options.any_device:
        parser.error(f"{first} and {second} are not the same machine (--any-device compares them)")
    not_compared: list[str] = []
    found = drifted(changes(before, after, not_compared, options.relative_to))
    if not found:
        parser.error("\n".join(["nothing to compare", *not_compared]))
    print(report(before, after, found, not_compared))
    return 1 if any(change.is_slower for change in found) else 0


def changes(
    before: Results, after: Results, not_compared: list[str], relative_to: str | None = None
) -> Iterator[Change]:
    """Every contender that is in both runs, changed or not.

    Args:
        not_compared: gets a line for each that is not, with the reason.
        relative_to: whose turns the others' are divided by, group by group.
    """
    first, second = (measured(run, not_compared, relative_to) for run in (before, after))
    for group, name in dict.fromkeys([*first, *second]):
        was, now = first.get((group, name)), second.get((group, name))
        if was is None or now is None:
            why = f"only in {'A' if now is None else 'B'}"
        elif was.tokens != now.tokens:
            why = f"{was.tokens} tokens in A, {now.tokens} in B"
        elif min(len(was.timing.seconds), len(now.timing.seconds)) < FEWEST_TURNS:
            why = f"fewer than {FEWEST_TURNS} turns"
        else:
            yield Change(group, name, was, now)
            continue
        not_compared.append(f"{group}: {name}: {why}")


def drifted(changes: Iterable[Change]) -> list[Change]:
    """The same, reckoned from what became of the others."""
    found = list(changes)
    others = [c for c in found if not any(name in c.name for name in OURS)]
    everywhere = _scatter([math.log(c.times) for c in others], around=0.0)
    drifts = {}
    for group in dict.fromkeys(c.group for c in found):
        logs = [math.log(c.times) for c in others if c.group == group]
        few = len(logs) < FEWEST_OTHERS
        drifts[group] = everywhere if few else _scatter(logs, around=statistics.median(logs))
    return [replace(change, drift=drifts[change.group]) for change in found]


def _scatter(logs: Sequence[float], around: float) -> Drift:
    if len(logs) < FEWEST_OTHERS:
        return Drift()
    deviation = _DEVIATION * statistics.median(abs(log - around) for log in logs)
    return Drift(math.exp(around), math.expm1(TIMES_THE_NOISE * deviation))


def measured(
    run: Results, not_compared: list[str], relative_to: str | None
) -> dict[tuple[str, str], Measured]:
    """By group and name; the arguments as those of `changes`."""
    found = {}
    for group, rows in run.groups().items():
        timings = {name: row.timing for name, row in rows.items()}
        if relative_to is not None:
            timings = _relative(timings, relative_to)
            alone = [name for name in rows if name not in timings and name != relative_to]
            not_compared += [f"{group}: {name}: no such turns of {relative_to}" for name in alone]
        common = statistics.median([timing.spread for timing in timings.values()] or [0.0])
        for name, timing in timings.items():
            noise = max(timing.spread, common)
            found[group, name] = Measured(timing, noise, rows[name].info.get("tokens"))
    return found


def _relative(timings: dict[str, Timing], to: str) -> dict[str, Timing]:
    """Turn by turn: turns of a round have the machine's mood in common."""
    theirs = timings.get(to, Timing(())).seconds
    return {
        name: Timing(tuple(a / b for a, b in zip(timing.seconds, theirs, strict=True)))
        for name, timing in timings.items()
        if name != to and len(timing.seconds) == len(theirs)
    }


def report(
    before: Results, after: Results, found: Sequence[Change], not_compared: Sequence[str]
) -> str:
    """What changed, in Markdown; how much did not; what could not be compared."""
    slower = [change for change in found if change.is_slower]
    faster = [change for change in found if change.is_faster]
    parts = []
    for run, where in ((before, "A"), (after, "B")):
        remark = " A quick run." if run.quick else ""
        parts.append(f"{where}: {describe(run.environment)}.{remark}")
    for title, some in (("Slower", slower), ("Faster", faster)):
        if some:
            parts.append(f"{title}, beyond the noise:")
            parts.append(markdown_table(HEADER, [_cells(change) for change in some]))
    same = len(found) - len(slower) - len(faster)
    parts.append(f"{len(slower)} slower, {len(faster)} faster, {same} within the noise.")
    parts += [f"not compared: {line}" for line in dict.fromkeys(not_compared)]
    return "\n\n".join(parts)


def _cells(change: Change) -> tuple[str, ...]:
    medians = (f"{m.timing.median:.4g}" for m in (change.before, change.after))
    ratios = (f"{times:.3f}" for times in (change.times, change.drift.times))
    return (change.group, change.name, *medians, *ratios, f"{change.noise:.1%}")


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("benchmarks.compare", __doc__)
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    parser.add_argument(
        "--relative-to", metavar="CONTENDER", help="compare ratios to this one, run by run"
    )
    parser.add_argument(
        "--any-device", action="store_true", help="also runs of two different machines"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
