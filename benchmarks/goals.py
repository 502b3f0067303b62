"""What fastdistil sets out to reach, and whether a measurement shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastdistil.bench.results import Results, Row
from fastdistil.bench.timing import ratio

HEADER = ("goal", "wanted", "measured", "verdict")


@dataclass(frozen=True)
class Goal:
    """`ours` on `workload` at least `factor` times as fast as `peer`.

    Attributes:
        peer: None for the fastest of all.
        needs_amx: set for a machine with AMX tiles; elsewhere its figure comes without a verdict.
        peers_workload: what the peers run, if that is another: the same sequences in another order.
    """

    text: str
    workload: str
    ours: str
    peer: str | None
    factor: float
    needs_amx: bool
    peers_workload: str | None = None


GOALS = (
    Goal(
        "real sentences, given order: bf16 against the best peer",
        "mixed",
        "fastdistil bf16",
        None,
        7.5,
        needs_amx=True,
    ),
    Goal(
        "real sentences: bf16 in the given order against the best peer, sorted by length",
        "mixed",
        "fastdistil bf16",
        None,
        3.5,
        needs_amx=True,
        peers_workload="mixed, sorted",
    ),
    Goal(
        "real sentences: int8 in the given order against the best peer, sorted by length",
        "mixed",
        "fastdistil int8",
        None,
        5.0,
        needs_amx=True,
        peers_workload="mixed, sorted",
    ),
    Goal(
        "real sentences, given order: fp32 against eager fp32",
        "mixed",
        "fastdistil fp32",
        "eager PyTorch fp32",
        2.5,
        needs_amx=False,
    ),
    Goal(
        "16 x 128: bf16 drop-in against the best peer",
        "16 x 128",
        "fastdistil bf16",
        None,
        2.4,
        needs_amx=True,
    ),
    Goal(
        "16 x 128: int8 drop-in against the best peer",
        "16 x 128",
        "fastdistil int8",
        None,
        3.5,
        needs_amx=True,
    ),
    Goal(
        "one sentence of 16 tokens: bf16 drop-in against OpenVINO bf16",
        "1 x 16",
        "fastdistil bf16",
        "OpenVINO bf16",
        2.5,
        needs_amx=True,
    ),
    Goal(
        "one sentence of 16 tokens: int8 drop-in against ONNX Runtime int8",
        "1 x 16",
        "fastdistil int8",
        "ONNX Runtime int8",
        2.5,
        needs_amx=True,
    ),
)


def rows(results: Results) -> list[tuple[str, str, str, str]]:
    """One row per goal for a table under HEADER, from what `benchmarks.models` measured."""
    has_amx = "amx_bf16" in results.environment["flags"]
    groups = results.groups()
    return [_row(goal, groups, has_amx) for goal in GOALS]


def _row(
    goal: Goal, groups: Mapping[str, Mapping[str, Row]], has_amx: bool
) -> tuple[str, str, str, str]:
    wanted = f"{goal.factor:g}x"
    ours = groups.get(goal.workload, {}).get(goal.ours)
    peers = [
        row
        for row in groups.get(goal.peers_workload or goal.workload, {}).values()
        if row.name == goal.peer or (goal.peer is None and not row.name.startswith("fastdistil"))
    ]
    if ours is None or not peers:
        return goal.text, wanted, "-", "not measured"
    best = min(peers, key=lambda row: row.timing.median)
    reached = ratio(ours.timing, best.timing)
    figure = f"{reached:.2f}x" if goal.peer else f"{reached:.2f}x ({best.name})"
    if goal.needs_amx and not has_amx:
        return goal.text, wanted, figure, "set for AMX, none here"
    return goal.text, wanted, figure, "met" if reached >= goal.factor else "not met"
