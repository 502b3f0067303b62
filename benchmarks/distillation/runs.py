"""Calls of `distill`, timed, and told in a form that JSON has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastdistil.bench.timing import say
from fastdistil.distill import distill
from fastdistil.distill.log import read_log


def distilled(teacher: Path, texts: Sequence[str], out: Path, **how: Any) -> dict[str, Any]:
    """Make a student in `out`.

    Args:
        how: what else `distill` takes.

    Returns:
        the fields of `distill`'s Summary but the folder; wall_seconds, of the whole call; and
        evaluations, how often the held-out texts were evaluated.
    """
    say(f"distilling {out.name}: {len(texts):,} texts")
    start = time.perf_counter()
    summary = distill(teacher, texts, out, **how)
    seconds = time.perf_counter() - start
    told = asdict(summary)
    del told["output"]
    rows = read_log(out / "log.csv")
    evaluations = sum(row.get("eval_loss") is not None for row in rows)
    return {**told, "wall_seconds": seconds, "evaluations": evaluations}
