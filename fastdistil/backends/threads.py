"""How many threads a forward on the CPU uses, and how a process is held to a number."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import torch


def num_threads() -> int:
    """Threads a forward uses: FASTDISTIL_NUM_THREADS, else torch.get_num_threads().

    Never more than `usable_cpus()`: more threads would find nothing to run on, and cut a batch into
    smaller chunks, each of which reads all weights again.

    Raises:
        ValueError: the variable is set to something other than a whole number from 1 up.
    """
    value = os.environ.get("FASTDISTIL_NUM_THREADS")
    if value is None:
        wanted = torch.get_num_threads()
    elif value.isdecimal() and int(value) >= 1:
        wanted = int(value)
    else:
        raise ValueError(
            f"FASTDISTIL_NUM_THREADS: got {value!r}; a whole number from 1 up is allowed"
        )
    return min(wanted, usable_cpus())


def use_threads(count: int) -> None:
    """Holds this process to so many threads: the engine, torch, and the tokenizer (which reads its
    variable once, at its first text)."""
    os.environ["FASTDISTIL_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)


def usable_cpus() -> int:
    """CPUs that this process may use at once, by its affinity and its container's share."""
    try:
        affinity = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on this operating system
        affinity = os.cpu_count() or 1
    return max(1, min(affinity, _container_cpus()))


@functools.cache
def _container_cpus(root: Path = Path("/sys/fs/cgroup")) -> int:
    """CPUs' worth of time that Linux control groups grant, rounded up; a large number without them.

    Read once: a container's limit rarely changes while it runs.
    """
    try:
        if (root / "cpu.max").is_file():  # version 2: "quota period", microseconds, or "max period"
            quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
        else:
            folder = root / "cpu"
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        limit = 0
    return limit if limit > 0 else 1 << 20
