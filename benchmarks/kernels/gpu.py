"""Operations on a GPU: PyTorch's, Triton's and CUDA C++'s, in CUDA graphs."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from benchmarks.gpu import ceilings
from benchmarks.gpu.session import Session
from benchmarks.gpu.timing import Turn
from benchmarks.kernels.cases import Case
from benchmarks.kernels.comparison import NOT_COMPILED, name, prove, pytorch, row
from benchmarks.kernels.operations import CUDA, PRECISIONS, Function, Operands, Operation, truth
from fastdistil import cuda_kernels
from fastdistil.bench.results import Row
from fastdistil.bench.timing import say

_ROUNDS = 21
_SETS = 3
CACHE = f"{_SETS} sets of operands in turn"


class Gpu:
    """The session's device.

    Args:
        left_out: takes a line for each contender that is not timed.
    """

    def __init__(self, session: Session, left_out: list[str], *, quick: bool) -> None:
        self._session = session
        self._left_out = left_out
        left_out.append("C++ on the CPU: a GPU is measured here")
        if quick:
            left_out.append(NOT_COMPILED)
        say("ceilings")
        jobs = list(ceilings.jobs(session))
        self._products = {
            precision: 1e12 * max(j.run()["tflops"] for j in jobs if j.name.split()[0] == precision)
            for precision in ("fp32", "bf16")
        }
        (copy,) = (job for job in jobs if job.name == ceilings.COPY)
        self._copied = 1e12 * float(copy.run()["tbytes_per_second"])

    @torch.inference_mode()
    def rows(self, case: Case) -> list[Row]:
        """Everybody on one case."""
        say(case.name)
        return [row for operation in case.operations for row in self._rows(case, operation)]

    def flops(self, precision: str, isa: str | None) -> float:
        """FLOP/s of large products; of fp32 where there are none."""
        return self._products["fp32" if precision == "integers" else precision]

    def bytes_per_second(self, moved: int) -> float:
        """Of a copy from the device's memory to itself."""
        return self._copied

    def _rows(self, case: Case, operation: Operation) -> Iterator[Row]:
        turns: dict[tuple[str, str], Turn] = {}
        errors: dict[tuple[str, str], float] = {}
        operands: dict[str, Operands] = {}
        where = f"{operation.name}, {case.name}"
        for precision in operation.precisions:
            sets = [self._operands(case, operation, precision, seed) for seed in range(_SETS)]
            operands[precision] = sets[0]
            want = truth(operation, sets[0])
            for who, function in self._functions(operation, case):
                calls = [functools.partial(function, one) for one in sets]
                error = prove(who, where, precision, calls[0], want, self._left_out)
                if error is not None:
                    errors[who, precision] = error
                    turns[who, precision] = self._session.timer.graphed(calls)
        by_name = {name(*key): turn for key, turn in turns.items()}
        timings = self._session.timer.race(by_name, _ROUNDS)
        for (who, precision), error in errors.items():
            facts = {
                "error": error,
                "error_of": "the operation",
                "configuration": self._session.environment["device"],
                "threads": 1,  # of the host
                "repeats": 1,
                "cache": CACHE,
            }
            seconds = timings[name(who, precision)].seconds
            yield row(case, operation, operands[precision], who, precision, seconds, self, facts)

    def _operands(self, case: Case, operation: Operation, precision: str, seed: int) -> Operands:
        dtype = PRECISIONS[precision].dtype
        return operation.operands(case.sizes, dtype, self._session.device, seed)

    def _functions(self, operation: Operation, case: Case) -> Iterator[tuple[str, Function]]:
        yield from pytorch(operation, compile=case.compiled)
        for who, function in operation.ours.items():
            if who == CUDA and callable(function):
                function = cuda_kernels.available() or function
            if callable(function):
                yield who, function
            else:
                self._left_out.append(f"{who}, {operation.name}: {function}")
