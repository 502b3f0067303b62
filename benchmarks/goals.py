"""What fastdistil sets out to reach, and whether a measurement shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Timing, ratio, timings

HEADER = ("goal", "wanted", "measured", "verdict")

EVERY_PEER = (
    "eager PyTorch fp32",
    "eager PyTorch bf16",
    "PyTorch oneDNN fp32",
    "PyTorch oneDNN int8",
    "PyTorch FBGEMM int8",
    "torch.compile bf16",
    "OpenVINO fp32",
    "OpenVINO bf16",
    "ONNX Runtime fp32",
    "ONNX Runtime int8",
)


@dataclass(frozen=True)
class Goal:
    """`ours` on `workload` at least `factor` times as fast as the fastest of `peers`.

    Attributes:
        needs_amx: set for a machine with AMX tiles; elsewhere its figure comes without a verdict.
        peers_workload: what the peers run, if that is another: the same sequences in another order.
    """

    text: str
    workload: str
    ours: str
    peers: tuple[str, ...]
    factor: float
    needs_amx: bool
    peers_workload: str | None = None


GOALS = (
    Goal(
        "real sentences, given order: bf16 against the best peer",
        "mixed",
        "fastdistil bf16",
        EVERY_PEER,
        7.5,
        needs_amx=True,
    ),
    Goal(
        "real sentences: bf16 in the given order against the best peer, sorted by length",
        "mixed",
        "fastdistil bf16",
        EVERY_PEER,
        3.5,
        needs_amx=True,
        peers_workload="mixed, sorted",
    ),
    Goal(
        "real sentences: int8 in the given order against the best peer, sorted by length",
        "mixed",
        "fastdistil int8",
        EVERY_PEER,
        5.0,
        needs_amx=True,
        peers_workload="mixed, sorted",
    ),
    Goal(
        "real sentences, given order: fp32 against eager fp32",
        "mixed",
        "fastdistil fp32",
        ("eager PyTorch fp32",),
        2.5,
        needs_amx=False,
    ),
    Goal(
        "16 x 128: bf16 drop-in against the best peer",
        "16 x 128",
        "fastdistil bf16",
        EVERY_PEER,
        2.4,
        needs_amx=True,
    ),
    Goal(
        "16 x 128: int8 drop-in against the best peer",
        "16 x 128",
        "fastdistil int8",
        EVERY_PEER,
        3.5,
        needs_amx=True,
    ),
    Goal(
        "one sentence of 16 tokens: bf16 drop-in against OpenVINO bf16",
        "1 x 16",
        "fastdistil bf16",
        ("OpenVINO bf16",),
        2.5,
        needs_amx=True,
    ),
    Goal(
        "one sentence of 16 tokens: int8 drop-in against ONNX Runtime int8",
        "1 x 16",
        "fastdistil int8",
        ("ONNX Runtime int8",),
        2.5,
        needs_amx=True,
    ),
)


def rows(results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """One row per goal for a table under HEADER, from what `benchmarks.forward` measured."""
    has_amx = "amx_bf16" in results["environment"]["flags"]
    measured = {workload["name"]: timings(workload) for workload in results["workloads"]}
    return [_row(goal, measured, has_amx) for goal in GOALS]


def _row(
    goal: Goal, measured: Mapping[str, Mapping[str, Timing]], has_amx: bool
) -> tuple[str, str, str, str]:
    wanted = f"{goal.factor:g}x"
    ours = measured.get(goal.workload, {})
    theirs = measured.get(goal.peers_workload or goal.workload, {})
    peers = [name for name in goal.peers if name in theirs]
    if goal.ours not in ours or not peers:
        return goal.text, wanted, "-", "not measured"
    best = min(peers, key=lambda name: theirs[name].median)
    reached = ratio(ours[goal.ours], theirs[best])
    figure = f"{reached:.2f}x" if len(goal.peers) == 1 else f"{reached:.2f}x ({best})"
    if goal.needs_amx and not has_amx:
        return goal.text, wanted, figure, "set for AMX, none here"
    return goal.text, wanted, figure, "met" if reached >= goal.factor else "not met"
