"""Kernels compiled by all cores into Triton's cache, where the measuring process finds them.

Compiling a candidate takes a second or two, timing it a few milliseconds. So other processes
compile ahead, in the order in which candidates will be looked at. They build launches over tensors
without memory and run nothing.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from typing import Any

import torch

from benchmarks.gpu.session import reason_of
from benchmarks.gpu.tune_cases import Setting, Spec
from fastdistil.kernels.settings import LinearSetting, Settings

# Left to the measuring process.
_SPARE_CORES = 2
_MOST_WORKERS = 24
# How long one candidate is waited for once its turn has come.
_PATIENCE = 30.0


class CompilePool:
    """Compiles candidates.

    Args:
        table: the settings that hold now, for what a launch needs of them.
        target: the GPU's generation.
        idle: compile nothing, as in the interpreter.
    """

    def __init__(self, table: Mapping[str, Any], target: str, idle: bool):
        self._table, self._target = table, target
        self._jobs: dict[tuple[object, ...], Future[str | None]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if not idle:
            workers = max(1, min((os.cpu_count() or 1) - _SPARE_CORES, _MOST_WORKERS))
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(workers, mp_context=spawn)

    def submit(self, spec: Spec, setting: Setting) -> None:
        """Compile this some time, unless that is under way already."""
        key = spec.compile_key(setting)
        if self._pool is None or key in self._jobs or _is_cublas(setting):
            return
        try:
            self._jobs[key] = self._pool.submit(
                compile_one, spec, setting, self._table, self._target
            )
        except (BrokenExecutor, RuntimeError):
            self._pool = None

    def problem(self, spec: Spec, setting: Setting, seconds: float) -> str | None:
        """Wait for it, at most so long: why it did not compile, or None where it did.

        None also where the processes are gone: then it is compiled when it is first run.
        """
        job = self._jobs.get(spec.compile_key(setting))
        if job is None:
            return None
        start = time.monotonic()
        try:
            return job.result(timeout=max(min(seconds, _PATIENCE), 0.0))
        except TimeoutError:
            return f"not compiled within {time.monotonic() - start:.0f} s"
        except BrokenExecutor:
            return None

    def close(self) -> None:
        """Drop what has not begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def compile_one(spec: Spec, setting: Setting, table: Mapping[str, Any], target: str) -> str | None:
    """Compile one candidate in this process; why it did not, if it did not."""
    settings = Settings(target, table, "the table being tuned")
    try:
        operands = spec.operands(torch.device("meta"), seed=1)
        # What Triton prints when its assembler fails is the whole program.
        with contextlib.redirect_stdout(io.StringIO()):
            compiled = [launch.compile() for launch in spec.launches(operands, setting, settings)]
        return _load(compiled)
    except Exception as error:
        return reason_of(error, limit=120)


def _load(compiled: Sequence[Any]) -> str | None:
    """Put the code on the GPU, if there is one: what is wrong with it, or None."""
    if not torch.cuda.is_available():
        return None
    for kernel in compiled:
        _ = kernel.run  # raises where shared memory or threads do not suffice
        if kernel.n_spills:
            return "spills registers"
    return None


def _is_cublas(setting: Setting) -> bool:
    return isinstance(setting, LinearSetting) and setting.variant == "cublas"
