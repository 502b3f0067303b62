"""What fastdistil sets out to reach, and whether a measurement shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Timing, ratio

HEADER = ("goal", "wanted", "measured", "verdict")


@dataclass(frozen=True)
class Goal:
    """`ours` on `workload` at least `factor` times as fast as the fastest of `peers`.

    A goal that `needs_amx` was set for a machine with AMX tiles: elsewhere its figure is shown
    without a verdict.
    """

    text: str
    workload: str
    ours: str
    peers: tuple[str, ...]
    factor: float
    needs_amx: bool


GOALS = (
    Goal(
        "real sentences, given order: bf16 against the best of eager bf16, OpenVINO bf16, "
        "ONNX Runtime int8",
        "mixed",
        "fastdistil bf16",
        ("eager PyTorch bf16", "OpenVINO bf16", "ONNX Runtime int8"),
        2.5,
        needs_amx=True,
    ),
    Goal(
        "real sentences, given order: bf16 against eager fp32",
        "mixed",
        "fastdistil bf16",
        ("eager PyTorch fp32",),
        20.0,
        needs_amx=True,
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
        "16 x 128: bf16 drop-in against the best bf16 peer",
        "16 x 128",
        "fastdistil bf16",
        ("eager PyTorch bf16", "torch.compile bf16", "OpenVINO bf16"),
        1.5,
        needs_amx=True,
    ),
    Goal(
        "one sentence of 16 tokens: bf16 drop-in against OpenVINO bf16",
        "1 x 16",
        "fastdistil bf16",
        ("OpenVINO bf16",),
        1.0,
        needs_amx=True,
    ),
)


def rows(results: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """One row per goal for a table under HEADER, from what `benchmarks.forward` measured."""
    has_amx = "amx_bf16" in results["environment"]["flags"]
    timings = {
        workload["name"]: {e["name"]: Timing(tuple(e["seconds"])) for e in workload["engines"]}
        for workload in results["workloads"]
    }
    return [_row(goal, timings.get(goal.workload, {}), has_amx) for goal in GOALS]


def _row(goal: Goal, timings: Mapping[str, Timing], has_amx: bool) -> tuple[str, str, str, str]:
    wanted = f"{goal.factor:g}x"
    peers = [name for name in goal.peers if name in timings]
    if goal.ours not in timings or not peers:
        return goal.text, wanted, "-", "not measured"
    best = min(peers, key=lambda name: timings[name].median)
    reached = ratio(timings[goal.ours], timings[best])
    measured = f"{reached:.2f}x" if len(goal.peers) == 1 else f"{reached:.2f}x ({best})"
    if goal.needs_amx and not has_amx:
        return goal.text, wanted, measured, "set for AMX, none here"
    return goal.text, wanted, measured, "met" if reached >= goal.factor else "not met"
