"""Operations side by side: results are checked against float64, then everybody takes turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.kernels.cases import Case
from benchmarks.kernels.operations import (
    PRECISIONS,
    Function,
    Operands,
    Operation,
    Result,
    compiled,
    relative_error,
)
from benchmarks.kernels.turns import Turn, alternate
from fastdistil.bench.results import Row
from fastdistil.bench.timing import say

EAGER, COMPILED = "eager PyTorch", "torch.compile"
# Its line among those left out of a quick run.
NOT_COMPILED = f"{COMPILED}: compiles for longer than a quick run takes"

# An operation is repeated in a turn until it has taken about so long.
TURN_SECONDS = 5e-3

Call = Callable[[], Result]


class Device(Protocol):
    """What runs the operations, and what it can do at most, measured."""

    def rows(self, case: Case) -> list[Row]:
        """Everybody on one case."""

    def flops(self, precision: str, isa: str | None) -> float:
        """Operations a second, of an instruction set; None for the best one."""

    def bytes_per_second(self, moved: int) -> float:
        """Of that many bytes, moved again and again."""


@dataclass(frozen=True)
class Facts:
    """What is known of somebody's operation that has proved right.

    Attributes:
        repeats: passes in a turn.
        error: as `relative_error` has it, of what `error_of` says.
    """

    repeats: int
    error: float
    error_of: str


@dataclass(frozen=True)
class Contender:
    """Somebody at one precision.

    Attributes:
        turn: runs those operations of a case that proved right, `repeats` passes of each.
        facts: by operation.
        configuration: for people.
        isa: the instruction set it is held to; None for the best there is.
    """

    who: str
    precision: str
    turn: Turn
    facts: Mapping[str, Facts]
    configuration: str
    isa: str | None = None

    @property
    def name(self) -> str:
        """Of its rows."""
        return name(self.who, self.precision)


def name(who: str, precision: str) -> str:
    """A row's: who, and the precision where there is a choice."""
    return who if precision == "integers" else f"{who} {precision}"


def prove(
    who: str, what: str, precision: str, call: Call, want: Result, wrong: list[str]
) -> float | None:
    """The error of what a call gives; None, and a line in `wrong`, where it fails or is too far."""
    try:
        error = relative_error(call(), want)
    except (RuntimeError, TypeError, ValueError) as why:
        reason = f"{type(why).__name__}: {' '.join(str(why).split())[:300]}"
    else:
        if error <= PRECISIONS[precision].tolerance:
            return error
        reason = f"wrong results (error {error:.1e})"
    wrong.append(f"{name(who, precision)}, {what}: {reason}")
    say(wrong[-1])
    return None


def pytorch(operation: Operation, *, compile: bool) -> Iterator[tuple[str, Function]]:
    """PyTorch's ways of doing it, by name."""
    yield EAGER, operation.plain
    if compile:
        yield COMPILED, compiled(operation.plain)


def repeats(call: Callable[[], object], operations: int = 1) -> int:
    """How many passes make a turn of a call that does so many of them, by the fastest of some."""
    begin, fastest = time.perf_counter(), math.inf
    while time.perf_counter() - begin < 2 * TURN_SECONDS:
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
    return math.ceil(operations * TURN_SECONDS / fastest)


def race(
    case: Case,
    operands: Mapping[str, Operands],
    contenders: Sequence[Contender],
    device: Device,
    facts: Mapping[str, Any],
) -> list[Row]:
    """Time them on the host's clock: a row for each operation and contender.

    Args:
        operands: by operation, for what it costs.
        facts: the same for all rows.
    """
    say(f"{case.name}: {case.rounds} turns each")
    timings = alternate({c.name: c.turn for c in contenders}, case.rounds)
    return [
        row(
            case,
            operation,
            operands[operation.name],
            contender.who,
            contender.precision,
            timings[contender.name][operation.name],
            device,
            {
                **facts,
                **vars(contender.facts[operation.name]),
                "configuration": contender.configuration,
            },
            contender.isa,
        )
        for operation in case.operations
        for contender in contenders
        if operation.name in contender.facts
    ]


def row(
    case: Case,
    operation: Operation,
    operands: Operands,
    who: str,
    precision: str,
    seconds: Sequence[float],
    device: Device,
    facts: Mapping[str, Any],
    isa: str | None = None,
) -> Row:
    """One contender in one operation, beside what the device can do at most."""
    cost = operation.cost(operands, PRECISIONS[precision].size)
    info = {
        "operation": operation.name,
        "shape": case.shape,
        "layout": case.layout,
        "precision": precision,
        "tokens": case.sizes.tokens,
        "sequences": len(case.sizes.lengths),
        "flops": cost.flops,
        "bytes": cost.moved,
        "ceiling_flops": device.flops(precision, isa),
        "ceiling_bytes_per_second": device.bytes_per_second(cost.moved),
    }
    group = f"{operation.name}, {case.name}"
    return Row(group, name(who, precision), tuple(seconds), {**info, **facts})
