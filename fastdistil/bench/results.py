"""What a run leaves behind: rows of timed turns, and the record of where they were taken.

A file is pytest-benchmark's JSON, so its own tools read it too; whoever wrote it, the machine's
record (`environment`) stands under ``machine_info``, each turn under ``stats.data``.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .environment import REQUIRED
from .timing import Timing

# Of files that no pytest wrote.
_VERSION = "fastdistil"


@dataclass(frozen=True)
class Row:
    """One contender in one comparison.

    Attributes:
        group: what is compared: a workload, or an operation and its size.
        name: who.
        seconds: of each timed turn, in the order they were taken; a turn is `repeats` passes.
        info: what else is known. Of rows of forwards: precision, configuration, least_cosine,
            sequences, tokens (real ones in a pass), padded_tokens, repeats.
    """

    group: str
    name: str
    seconds: tuple[float, ...]
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def timing(self) -> Timing:
        """Of one pass."""
        repeats = self.info.get("repeats", 1)
        return Timing(tuple(turn / repeats for turn in self.seconds))

    @property
    def tokens_per_second(self) -> float:
        """Real tokens; padding is never counted."""
        return float(self.info["tokens"] / self.timing.median)


@dataclass(frozen=True)
class Results:
    """One run.

    Attributes:
        suite: which benchmarks: "models", "kernels", ...
        environment: what `environment.environment` said.
        rows: everything that was timed.
        left_out: a line for each contender that was not, with the reason.
        quick: few turns, not for publishing.
    """

    suite: str
    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    left_out: tuple[str, ...] = ()
    quick: bool = False

    def __post_init__(self) -> None:
        _check(self)

    def groups(self) -> dict[str, dict[str, Row]]:
        """Rows by group and name, in the order they were taken."""
        found: dict[str, dict[str, Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, {})[row.name] = row
        return found


def to_json(results: Results) -> dict[str, Any]:
    """As pytest-benchmark writes it."""
    return {
        "machine_info": dict(results.environment),
        "commit_info": {"id": results.environment["commit"]},
        "benchmarks": [_row_to_json(row) for row in results.rows],
        "datetime": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "version": _VERSION,
        **header(results.suite, results.left_out, quick=results.quick),
    }


def header(suite: str, left_out: Iterable[str], *, quick: bool) -> dict[str, Any]:
    """What a file of ours has beside what pytest-benchmark writes."""
    return {"suite": suite, "quick": quick, "left_out": list(left_out)}


def read(path: Path) -> Results:
    """The results in a file.

    Raises:
        ValueError: it is not such a file, lacks the machine's record, or holds figures that cannot
            be: the message names the file and what is wrong.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    try:
        rows = tuple(
            Row(
                str(entry["group"]),
                str(entry["name"]),
                tuple(float(turn) for turn in entry["stats"]["data"]),
                entry["extra_info"],
            )
            for entry in content["benchmarks"]
        )
        left_out, quick = tuple(content["left_out"]), bool(content["quick"])
        return Results(content["suite"], content.get("machine_info") or {}, rows, left_out, quick)
    except (KeyError, TypeError, AttributeError) as problem:
        raise ValueError(
            f"{path}: not what a benchmark of fastdistil writes ({problem!r})"
        ) from None
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def write(path: Path, results: Results) -> None:
    """`read` gives the same results back."""
    write_json(path, to_json(results))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write aside, then rename: an interrupted run leaves the last results as they were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _check(results: Results) -> None:
    missing = [name for name in REQUIRED if name not in results.environment]
    if missing:
        raise ValueError(
            f"no record of the machine: {', '.join(missing)} missing; a figure without it says "
            "nothing, measure again"
        )
    seen = set()
    for row in results.rows:
        where = f"{row.group}: {row.name}"
        if not row.seconds or not all(0 < turn < float("inf") for turn in row.seconds):
            raise ValueError(f"{where}: turns of {row.seconds} s; each takes more than 0 s")
        if row.info.get("tokens", 1) < 1:
            raise ValueError(f"{where}: {row.info['tokens']} tokens; at least one is real")
        if (row.group, row.name) in seen:
            raise ValueError(f"{where}: stands there twice")
        seen.add((row.group, row.name))


def _row_to_json(row: Row) -> dict[str, Any]:
    turns = row.seconds
    stats = {
        "min": min(turns),
        "max": max(turns),
        "mean": statistics.fmean(turns),
        "stddev": statistics.stdev(turns) if len(turns) > 1 else 0.0,
        "rounds": len(turns),
        "median": statistics.median(turns),
        "iterations": 1,
        "data": list(turns),
    }
    fullname = f"{row.group}[{row.name}]"
    return {
        "group": row.group,
        "name": row.name,
        "fullname": fullname,
        "params": None,
        "param": None,
        "extra_info": dict(row.info),
        "options": {},
        "stats": stats,
    }
