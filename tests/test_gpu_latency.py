"""`python -m benchmarks.gpu` and the low-latency encoder: what it decides, asks for and writes.

No times are asserted, no GPU. That the measurements run is what its dry run is for.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import (
    __main__ as command,
)
from benchmarks.gpu import (
    bench,
    contenders,
    inputs,
    kernels_bench,
    latency,
    report,
    tables,
    tune,
    tune_forward,
)
from benchmarks.gpu.session import OutOfTimeError, Session
from benchmarks.gpu.timing import HostTimer
from fastdistil.bench.timing import Timing
from fastdistil.kernels.settings import Settings, load_settings

H100, OTHER = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
LAUNCH, CHAINED, TRITON = tune_forward.LAUNCH, tune_forward.CHAINED, tune_forward.TRITON


def dry_session(folder: Path, budget: float = 60.0) -> Session:
    return Session("bench", dry=True, again=False, folder=folder, budget=budget)


def setup_of(session: Session) -> contenders.Setup:
    return contenders.Setup(session.device, session.dry, low_latency=True)


def race(triton: float, **others: float) -> dict[str, Timing]:
    """Timings by way, without any spread."""
    ways = {"launch": LAUNCH, "chain": CHAINED}
    found = {ways[name]: Timing((seconds,) * 5) for name, seconds in others.items()}
    return {TRITON: Timing((triton,) * 5), **found}


# --- what tuning chooses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("races", "present", "tokens", "chain"),
    [
        # One launch wins up to 128 tokens.
        (
            {
                (1, 16): race(9, launch=5, chain=6),
                (1, 128): race(9, launch=8, chain=9),
                (8, 16): race(9, launch=8, chain=9),
                (1, 256): race(9, launch=12, chain=12),
            },
            False,
            128,
            False,
        ),
        # Of two shapes of 128 tokens it loses one.
        (
            {
                (1, 64): race(9, launch=5, chain=6),
                (1, 128): race(9, launch=8, chain=9),
                (8, 16): race(9, launch=10, chain=10),
                (1, 256): race(9, launch=8, chain=9),
            },
            False,
            64,
            False,
        ),
        # It never wins.
        ({(1, 16): race(5, launch=6, chain=7)}, False, 0, False),
        # The chain wins somewhere and loses nowhere, and reaches further.
        (
            {
                (1, 16): race(9, launch=6, chain=5),
                (1, 128): race(9, launch=9, chain=8),
            },
            False,
            128,
            True,
        ),
        # The chain wins here and loses there: what is present stays, either way.
        ({(1, 16): race(9, launch=5, chain=6), (1, 32): race(9, launch=6, chain=5)}, 0, 32, False),
        ({(1, 16): race(9, launch=5, chain=6), (1, 32): race(9, launch=6, chain=5)}, 1, 32, True),
        # Where both lose to Triton it does not matter which of them is better.
        (
            {(1, 16): race(9, launch=5, chain=6), (1, 32): race(3, launch=6, chain=5)},
            False,
            16,
            False,
        ),
        # The driver refuses to run all blocks at once: the engine runs the chain by itself.
        ({(1, 16): race(9, chain=5), (1, 32): race(9, chain=9)}, False, 16, False),
    ],
)
def test_the_way_that_wins_and_how_far(
    races: dict[tuple[int, int], dict[str, Timing]], present: bool, tokens: int, chain: bool
) -> None:
    found = tune_forward.choose_latency(races, bool(present))
    assert found == {"latency_tokens": tokens, "latency_chain": chain}


def test_a_win_within_the_spread_is_none() -> None:
    timings = {TRITON: Timing((8.0, 9.0, 10.0, 11.0, 12.0)), LAUNCH: Timing((9.5,) * 5)}
    timings[CHAINED] = timings[LAUNCH]
    found = tune_forward.choose_latency({(1, 16): timings}, present=False)
    assert found["latency_tokens"] == 0


def test_both_entries_go_to_the_table() -> None:
    before = load_settings("sm_90")
    chosen = {"latency_tokens": 64, "latency_chain": True}
    after = Settings("sm_90", tune.decide(before, {"latency": {"chosen": chosen}}, "it"), "test")
    assert after.latency_tokens == 64
    assert after.latency_chain is True
    table = tune.decide(before, {"latency": {"missing": "no compiler"}}, before.measured_on or "")
    assert table.get("latency_tokens") == before.table.get("latency_tokens")


def test_without_the_kernel_tuning_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_forward.cuda_latency, "refusal", lambda *_: "not compiled")
    job = next(iter(tune_forward.jobs(dry_session(tmp_path))))
    assert job.name == "latency"
    assert job.run() == {"missing": "not compiled"}


class Fixed:
    """A model that always gives the same."""

    def __init__(self, states: torch.Tensor, note: str = "in one launch"):
        self.states, self.note = states, note

    def program(self) -> Fixed:
        return self

    def forward_packed(self, _batch: Any) -> torch.Tensor:
        return self.states

    def encode_packed(self, _batch: Any) -> torch.Tensor:
        return self.states.mean(0, keepdim=True)


def raced(session: Session, launched: Fixed) -> dict[str, Timing]:
    right = Fixed(torch.eye(8))
    models = {TRITON: right, LAUNCH: launched, CHAINED: right}
    return tune_forward._latency_race(session, setup_of(session), models, (1, 8))


def test_other_bits_are_taken_and_wrong_numbers_are_not(tmp_path: Path) -> None:
    session = dry_session(tmp_path)
    close = torch.eye(8) + 1e-3
    assert set(raced(session, Fixed(close))) == {TRITON, LAUNCH, CHAINED}
    with pytest.raises(ValueError, match=r"one launch: least cosine .* at \(1, 8\)"):
        raced(session, Fixed(torch.eye(8).flip(0)))
    with pytest.raises(ValueError, match="least cosine"):
        raced(session, Fixed(close * torch.nan))


def test_a_launch_that_became_a_chain_is_not_raced_as_one(tmp_path: Path) -> None:
    found = raced(dry_session(tmp_path), Fixed(torch.eye(8), "in a chain of launches (too small)"))
    assert set(found) == {TRITON, CHAINED}


def test_settings_with_other_entries_hold_only_within(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDISTIL_TUNING", raising=False)
    before = load_settings("sm_90")
    with tables.settings_with("sm_90", latency.CHAIN):
        within = load_settings("sm_90")
        assert (within.latency_tokens, within.latency_chain) == (256, True)
        assert within.table["linear"] == before.table["linear"]
        path = Path(os.environ["FASTDISTIL_TUNING"])
    assert not path.exists()
    assert load_settings("sm_90") is before
    monkeypatch.setenv("FASTDISTIL_TUNING", before.source)
    with tables.settings_with("sm_90", latency.TRITON):
        assert load_settings("sm_90").latency_tokens == 0
    assert os.environ["FASTDISTIL_TUNING"] == before.source


# --- what is measured -----------------------------------------------------------------------------


def test_every_size_and_way_is_measured_and_compilers_come_late(tmp_path: Path) -> None:
    session = dry_session(tmp_path)
    names = [job.name for job in bench.jobs(session)]
    assert names[0] == "latency 1 x 8 | fastdistil bf16, one launch"
    quick, compiled = latency.quick(setup_of(session)), latency.slow()
    for contender in (*quick, *compiled):
        for size in ("1 x 8", "2 x 5"):
            assert names.count(f"latency {size} | {contender.name}") == 1
    late = names.index(f"latency 1 x 8 | {compiled[0].name}")
    assert names.index(f"latency 2 x 5 | {quick[-1].name}") < names.index("mixed | fastdistil bf16")
    assert names.index("mixed | transformers bf16, sdpa") < late
    assert names[-1] == f"latency 2 x 5 | {compiled[0].name}"


def test_the_sizes_and_targets_of_one_h100() -> None:
    assert set(latency.SIZES) == {(1, 16), (1, 32), (1, 64), (1, 128), (2, 64), (8, 16)}
    assert latency.TARGETS[1, 16] == {"device": 60e-6, "answer": 90e-6, "of_copy": 0.45}
    assert latency.TARGETS[1, 128] == {"device": 80e-6}
    assert latency.quick(contenders.Setup(torch.device("cpu"), dry=True))[0].name == latency.ANCHOR


def test_without_the_kernel_its_items_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency.cuda_latency, "refusal", lambda *_: "not compiled")
    few = latency.Latency(dry_session(tmp_path))
    jobs = list(few.jobs(latency.quick(few.setup)))
    assert {job.run()["missing"] for job in jobs[:6]} == {"not compiled"}
    assert all("latency" in job.name for job in jobs)


def test_peers_are_timed_without_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency.cuda_latency, "refusal", lambda *_: "not compiled")
    few = latency.Latency(dry_session(tmp_path))
    (peer,) = (one for one in latency.quick(few.setup) if not one.ours)
    job = next(iter(few.jobs([peer])))
    found = job.run()
    assert found["cosine"] > 0.999
    assert {"device", "p50", "p99"} <= set(found)
    assert "anchor_p50" not in found
    assert "moved" not in found


def test_a_launch_that_is_refused_is_told() -> None:
    one, chain = SimpleNamespace(note="in one launch"), SimpleNamespace(note="in a chain (why)")
    assert latency.refused(one, latency.ONE_LAUNCH) is None
    assert latency.refused(chain, latency.ONE_LAUNCH) == "in a chain (why)"
    assert latency.refused(chain, latency.CHAIN) is None
    assert latency.refused(chain, latency.TRITON) is None


def test_percentiles() -> None:
    seconds = [float(n) for n in range(101)]
    assert latency.percentile(seconds, 50) == pytest.approx(50)
    assert latency.percentile(seconds, 99) == pytest.approx(99)
    assert latency.percentile([3.0], 99) == 3.0


def test_cosines_see_the_worst_row_and_what_is_no_number() -> None:
    want = torch.eye(4)
    assert contenders.least_cosine(want * 3, want) == pytest.approx(1.0)
    wrong = want.clone()
    wrong[2] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert contenders.least_cosine(wrong, want) == pytest.approx(0.0)
    assert contenders.least_cosine(want * torch.nan, want) == -1.0
    with pytest.raises(ValueError, match="wrong shape"):
        contenders.least_cosine(want[:2], want)


def test_all_peers_see_the_same_ids() -> None:
    row = inputs.full_rows("2 x 3", 2, 3)
    one = inputs.input_sets(row, 100, torch.device("cpu"))[0]
    lists = contenders.lists_of(one)
    assert [len(ids) for ids in lists] == [3, 3]
    assert [*lists[0], *lists[1]] == one.packed.input_ids.tolist()


def test_calls_that_follow_one_another_are_each_timed() -> None:
    seen: list[int] = []
    calls = [lambda n=n: seen.append(n) for n in range(3)]
    assert len(HostTimer().apart(calls, 5)) == 3
    assert seen == [0, 1, 2]
    assert HostTimer().queued(calls).calls == 3


def test_attempts_say_why_they_failed_where_they_may(tmp_path: Path) -> None:
    def broken() -> dict[str, Any]:
        raise ValueError("no such thing")

    session = dry_session(tmp_path)
    assert session.attempt(broken, may_fail=True) == {"failed": "ValueError: no such thing"}
    with pytest.raises(ValueError, match="no such thing"):
        session.attempt(broken, may_fail=False)
    with pytest.raises(OutOfTimeError):
        dry_session(tmp_path, budget=-1.0).attempt(broken, may_fail=True)


def test_all_of_it_fits_into_nine_minutes() -> None:
    assert sum(command.BUDGETS.values()) + command.GRACE <= 9 * 60


def test_kernels_that_only_move_know_their_bytes() -> None:
    sizes, cpu = kernels_bench.TINY, torch.device("cpu")
    found = {
        kernel.name: kernel.moved(kernel.operands(sizes, cpu, 0))
        for kernel in kernels_bench.kernels()
        if kernel.moved is not None
    }
    states = sizes.tokens * sizes.width * 2
    assert found == {
        "layernorm + residual": 3 * states,
        "bias + gelu": 2 * sizes.tokens * sizes.inner * 2,
        "embedding + layernorm": 2 * states + 2 * 4 * sizes.tokens,
        "mean pooling + norm": states + sizes.width * 4,
    }
    assert kernels_bench.Sizes().tokens >= 16384


# --- what the report says -------------------------------------------------------------------------


def results_on(device: str) -> dict[str, dict[str, Any]]:
    environment = {
        "device": device,
        "capability": "9.0",
        "cuda": "13.0",
        "python": "3.12.3",
        "packages": {"torch": "2.11.0"},
        "commit": "abc1234",
        "date": "2026-01-01T00:00:00+00:00",
    }
    entry = {"latency_size": [1, 16], "cosine": 0.9999, "p99": 2e-4, "targets": {}}
    own = {"device": 5e-5, "p50": 1e-4, "moved": 85_000_000}
    items = {
        "a": {
            **entry,
            **own,
            "contender": latency.ANCHOR,
            "targets": dict(latency.TARGETS[1, 16]),
        },
        "b": {
            **entry,
            "contender": "transformers bf16, sdpa",
            "device": 1e-3,
            "p50": 4e-3,
            "anchor_p50": 1e-4,
        },
        "c": {"latency_size": [1, 16], "contender": "fastdistil int8", "missing": "not here"},
        "d": {
            "kernel": "bias + gelu",
            "peer": "CUDA C++",
            "moved": 200_000_000,
            "own_seconds": [1e-4] * 3,
            "peer_seconds": [8e-5] * 3,
        },
    }
    copied = {"device copy": {"seconds": 1e-3, "tbytes_per_second": 2.5}}
    stages = {"bench": items, "ceilings": copied}
    return {
        stage: {"environment": environment, "items": found, "failed": {}, "left_out": []}
        for stage, found in stages.items()
    }


def line_with(text: str, *parts: str) -> str:
    return next(line for line in text.splitlines() if all(part in line for part in parts))


def test_an_h100_is_held_to_its_targets() -> None:
    text = report.report(results_on(H100))
    own = line_with(text, "| fastdistil bf16, one launch")
    assert "50.0 (reached: 60)" in own
    assert "100.0 (not reached: 90)" in own
    assert "68.0% (reached: 45%)" in own
    peer = line_with(text, "| transformers bf16, sdpa", "4000.0")
    assert "40.00" in peer
    assert "reached" not in peer
    assert "fastdistil int8: not here" in text
    kernel = line_with(text, "bias + gelu", "200.0")
    assert "100.0% (reached: 90%)" in kernel
    assert "80.0%" in kernel


def test_another_gpu_is_measured_without_a_verdict() -> None:
    text = report.report(results_on(OTHER))
    assert "reached:" not in text
    assert "68.0%" in line_with(text, "| fastdistil bf16, one launch")
    assert "100.0%" in line_with(text, "bias + gelu", "200.0")


def test_without_a_measured_copy_there_is_no_share() -> None:
    results = results_on(H100)
    del results["ceilings"]
    text = report.report(results)
    assert "50.0 (reached: 60)" in text
    assert "45%" not in text
    assert "Kernels that only move numbers" not in text


def test_tuning_is_told_with_both_entries() -> None:
    seconds = {"1 x 16": {TRITON: 9e-5, LAUNCH: 5e-5, CHAINED: 6e-5}}
    chosen = {"latency_tokens": 16, "latency_chain": False}
    results = results_on(H100)
    results["tune"] = {
        **results["bench"],
        "items": {"latency": {"chosen": chosen} | {"seconds": seconds}},
    }
    line = line_with(report.report(results), "latency_tokens")
    assert "`latency_tokens`, `latency_chain`: 16, false" in line
    assert "50.0 us with one launch" in line
    results["tune"]["items"] = {"latency": {"missing": "not compiled"}}
    assert "`latency`: not compiled." in report.report(results)
