"""Operations on the CPU: PyTorch's, and the CPU engine's C++ in every instruction set."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Iterator, Mapping

import torch

from benchmarks.kernels import cases, operations
from benchmarks.kernels.cases import Case
from benchmarks.kernels.comparison import (
    NOT_COMPILED,
    Call,
    Contender,
    Facts,
    prove,
    pytorch,
    race,
    repeats,
)
from benchmarks.kernels.one_layer import NOT_APART, OneLayer
from benchmarks.kernels.operations import CUDA, PRECISIONS, TRITON, Function, Operands, Operation
from fastdistil.backends.cpu import extension_error
from fastdistil.backends.threads import num_threads
from fastdistil.bench.allocator import keep_freed_memory
from fastdistil.bench.results import Row
from fastdistil.bench.timing import say
from fastdistil.bench.workloads import SEED

# Nothing is moved out of the caches between two passes: the forward finds there what it has just
# written, too. Bytes are held against a copy of as many, repeated likewise.
CACHE = "the same operands in every pass: in a cache, where they fit"
# A copy of fewer bytes takes hardly longer than its start does; no operation here moves more.
_BYTES = tuple(1 << power for power in range(20, 29))
_COPY_SECONDS = 0.3
_CPU = torch.device("cpu")


class Cpu:
    """The CPU of this machine.

    Args:
        left_out: takes a line for each contender that is not timed.
        quick: take peaks for a shorter time.

    Raises:
        LookupError: the C++ extension is missing.
    """

    def __init__(self, left_out: list[str], *, quick: bool) -> None:
        problem = extension_error()
        if problem is not None:
            raise LookupError(problem)
        keep_freed_memory()
        self._left_out = left_out
        left_out += [f"{who}: no CUDA device here" for who in (TRITON, CUDA)]
        left_out += NOT_APART
        if quick:
            left_out.append(NOT_COMPILED)
        say("peaks")
        self._peaks = {
            (engine.isa, engine.precision): engine.peaks(quick=quick)["products"]
            for engine in self._layer(cases.MINILM).engines
        }
        seconds = _COPY_SECONDS / 10 if quick else _COPY_SECONDS
        self._bandwidths = {size: _bandwidth(size, seconds) for size in _BYTES}

    @torch.inference_mode()
    def rows(self, case: Case) -> list[Row]:
        """Everybody on one case."""
        say(f"{case.name}: checking")
        sizes = case.sizes
        operands = {
            each.name: each.operands(sizes, torch.float32, _CPU, SEED) for each in case.operations
        }
        contenders = list(self._pytorch(case, operands))
        # Packing comes before the encoder.
        if operations.HOST_PACKING not in case.operations:
            contenders += self._layer(case.shape).contenders(case, self._left_out)
        facts = {"threads": num_threads(), "cache": CACHE}
        return race(case, operands, contenders, self, facts)

    def flops(self, precision: str, isa: str | None) -> float:
        """FLOP/s of all threads that do nothing but multiply and add.

        In fp32 where there are no products of the precision: they are computed as that.
        """
        kinds = [kind for kind in self._peaks if isa in (None, kind[0])]
        known = [kind for kind in kinds if kind[1] == precision]
        return max(self._peaks[kind] for kind in known or kinds if kind[1] in (precision, "fp32"))

    def bytes_per_second(self, moved: int) -> float:
        """What all threads sum, or copy, of so many bytes; more of them are never faster."""
        least = min(moved, _BYTES[-1])
        return max(rate for size, rate in self._bandwidths.items() if size >= least)

    @functools.cache  # noqa: B019 - lives as long as the suite
    def _layer(self, shape: str) -> OneLayer:
        return OneLayer(cases.config(shape))

    def _pytorch(self, case: Case, operands: Mapping[str, Operands]) -> Iterator[Contender]:
        """PyTorch, and what else takes the same operands."""
        for precision in case.operations[0].precisions:
            calls: dict[str, dict[str, Call]] = {}
            facts: dict[str, dict[str, Facts]] = {}
            for operation in case.operations:
                own = operations.cast(operands[operation.name], PRECISIONS[precision].dtype)
                want = operations.truth(operation, own)
                where = f"{operation.name}, {case.name}"
                for who, function in _functions(operation, case):
                    call = functools.partial(function, own)
                    error = prove(who, where, precision, call, want, self._left_out)
                    if error is not None:
                        calls.setdefault(who, {})[operation.name] = call
                        known = Facts(repeats(call), error, "the operation")
                        facts.setdefault(who, {})[operation.name] = known
            for who in calls:
                turn = functools.partial(_turn, calls[who], facts[who])
                yield Contender(who, precision, turn, facts[who], f"torch {torch.__version__}")


def _functions(operation: Operation, case: Case) -> Iterator[tuple[str, Function]]:
    """PyTorch's, and what of ours needs no GPU."""
    yield from pytorch(operation, compile=case.compiled)
    for who, function in operation.ours.items():
        if who not in (TRITON, CUDA) and callable(function):
            yield who, function


def _turn(calls: Mapping[str, Call], facts: Mapping[str, Facts]) -> dict[str, float]:
    """Seconds of all passes of each, after one that is not timed: nobody pays for the pause."""
    seconds = {}
    with torch.inference_mode():
        for name, call in calls.items():
            call()
            start = time.perf_counter()
            for _ in range(facts[name].repeats):
                call()
            seconds[name] = time.perf_counter() - start
    return seconds


def _bandwidth(size: int, seconds: float) -> float:
    """The faster of a sum over so many bytes and a copy of half of them, tried for so long."""
    numbers = torch.rand(size // 4)
    source, target = numbers.chunk(2)
    best = math.inf
    for run in (numbers.sum, lambda: target.copy_(source)):
        run()
        end = time.perf_counter() + seconds / 2
        while (start := time.perf_counter()) < end:
            run()
            best = min(best, time.perf_counter() - start)
    return size / best
