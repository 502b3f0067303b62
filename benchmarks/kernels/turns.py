"""Turns of contenders that run several operations at once and have a clock of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from fastdistil.bench import timing

# One turn: the seconds of each operation.
Turn = Callable[[], Mapping[str, float]]


def alternate(contenders: Mapping[str, Turn], rounds: int) -> dict[str, dict[str, list[float]]]:
    """As `timing.alternate`, which orders and spaces the turns: warm-up, rotation.

    Returns:
        by contender and operation: the seconds of each of its `rounds` turns.
    """
    taken: dict[str, list[Mapping[str, float]]] = {name: [] for name in contenders}

    def take(name: str) -> None:
        taken[name].append(contenders[name]())

    timing.alternate({name: functools.partial(take, name) for name in contenders}, rounds)
    return {
        name: {operation: [turn[operation] for turn in turns[1:]] for operation in turns[0]}
        for name, turns in taken.items()
    }
