"""The rules that make a comparison honest, each held by a test. No times are asserted."""

from __future__ import annotations

import ctypes
import json
import mmap
import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import SOME_ENVIRONMENT

from benchmarks import workloads
from fastdistil.bench import race, results, timing
from fastdistil.bench.engines import Engine, Variant
from fastdistil.bench.environment import REQUIRED, environment
from fastdistil.bench.results import Results, Row
from fastdistil.bench.timing import Timing
from fastdistil.bench.workloads import Workload

TINY = {"n_layers": 2, "dim": 48, "n_heads": 3, "hidden_dim": 96}
PAIR = Workload("w", ((1, 2, 3), (4, 5)))
ONES = np.ones((PAIR.tokens, 4), np.float32)


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def worker(self, name: str, *seconds: float) -> Callable[[], None]:
        remaining = iter(seconds)

        def work() -> None:
            self.log.append(name)
            self.now += next(remaining)

        return work


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)


# --- warm-up excluded, order rotated, medians with spread -----------------------------------------


def test_warm_up_is_not_timed_and_every_round_begins_with_the_next() -> None:
    clock = Clock()
    contenders = {
        "a": clock.worker("a", 90, 1, 2, 6),
        "b": clock.worker("b", 90, 4, 3, 5),
        "c": clock.worker("c", 90, 7, 7, 7),
    }
    timings = timing.alternate(contenders, 3, clock=lambda: clock.now)
    assert "".join(clock.log) == "abc" + "abc" + "bca" + "cab"
    assert timings["a"] == Timing((1, 2, 6))
    assert timings["b"] == Timing((4, 3, 5))
    assert (timings["a"].median, timings["a"].best) == (2, 1)
    assert timing.ratio(ours=timings["a"], theirs=timings["b"]) == 2.0


def test_turns_begin_with_what_is_not_timed() -> None:
    clock = Clock()
    contenders = {"a": clock.worker("a", 1, 2), "b": clock.worker("b", 3, 4)}
    lead_ins = {"a": clock.worker("!", 70, 70), "b": clock.worker("?", 90, 90)}
    timings = timing.alternate(
        contenders, 2, warm_up=False, lead_ins=lead_ins, clock=lambda: clock.now
    )
    assert "".join(clock.log) == "!a?b" + "?b!a"
    assert timings == {"a": Timing((1, 2)), "b": Timing((3, 4))}


def test_a_turn_is_as_many_passes_as_it_takes_to_last(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now)
    monkeypatch.setattr(race, "TURN_SECONDS", (12.0, 3.0))
    workload = Workload("w", ((1, 2),) * 6, batch=2)
    passes: list[int] = []

    def contender(name: str, seconds_a_sequence: float) -> race.Contender:
        def run(workload: Workload) -> None:
            passes.append(len(workload.sequences))
            clock.now += seconds_a_sequence * len(workload.sequences)

        (answers,) = echo(1.0).variants
        variant = Variant("as it is", run, answers.rows)
        return race.Contender(Engine(name, "fp32", (variant,)), variant, 1.0)

    fast, slow = contender("fast", 0.5), contender("slow", 4.0)
    rows = race.race(workload, [fast, slow], 1, quick=False)
    assert [row.info["repeats"] for row in rows] == [4, 1]
    # Two of its batches to see how long it takes; then one untimed, and the passes.
    assert passes == [*[2] * 4, *[2, 6, 6, 6, 6], *[2, 6]]


def test_without_warm_up_every_run_is_timed() -> None:
    clock = Clock()
    contenders = {"a": clock.worker("a", 3, 1)}
    timings = timing.alternate(contenders, 2, warm_up=False, clock=lambda: clock.now)
    assert timings["a"].seconds == (3, 1)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        timing.alternate({}, 0)


def test_spread_is_half_the_middle_half() -> None:
    assert Timing((1.0, 2.0, 3.0, 4.0, 5.0)).spread == pytest.approx(1 / 3)
    assert Timing((1.0, 2.0, 3.0, 4.0, 1000.0)).spread == pytest.approx(1 / 3)  # one bad turn
    assert Timing((2.0, 2.0)).spread == 0
    assert Timing((2.0,)).spread == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc can be told")
def test_one_engine_s_heap_does_not_slow_another() -> None:
    """A freed block's pages are still there, so nobody pays for new ones."""
    assert list(race.choose([echo(1.0)], PAIR, ONES, [], quick=True))
    assert environment()["allocator"] == "malloc keeps freed memory"
    size = 64 << 20
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        block = libc.malloc(ctypes.c_size_t(size))
        ctypes.memset(block, 1, size)
        libc.free(block)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert faults < size // mmap.PAGESIZE // 10


# --- answers first --------------------------------------------------------------------------------


def echo(value: float) -> Engine:
    """An engine that answers `value` everywhere."""

    def rows(workload: Workload, result: Any) -> Any:
        return np.full((workload.tokens, 4), value, np.float32)

    return Engine("echo", "fp32", (Variant("as it is", lambda workload: None, rows),))


@pytest.mark.parametrize(("value", "timed"), [(2.0, True), (-1.0, False), (float("nan"), False)])
def test_only_right_answers_are_timed(value: float, timed: bool) -> None:
    failed: list[str] = []
    chosen = list(race.choose([echo(value)], PAIR, ONES, failed, quick=True))
    assert bool(chosen) is timed
    told = f"answers too far off (least cosine {-1 if value < 0 else value:.4f}, wanted 0.9999)"
    assert failed == ([] if timed else [f"echo, w: {told}"])


def test_every_variant_must_be_right_before_any_is_timed() -> None:
    calls: list[str] = []

    def variant(name: str, value: float) -> Variant:
        (answer,) = echo(value).variants
        return Variant(name, lambda workload: calls.append(name), answer.rows)

    engine = Engine("two", "fp32", (variant("right", 1.0), variant("wrong", -1.0)))
    failed: list[str] = []
    assert list(race.choose([engine], PAIR, ONES, failed, quick=True)) == []
    assert calls == ["right", "wrong"]  # once each, to be looked at; no turn was taken
    assert failed == ["two, w: answers too far off (least cosine -1.0000, wanted 0.9999)"]


def test_an_engine_that_fails_is_left_out_by_name() -> None:
    def run(workload: Workload) -> None:
        raise ValueError("Exception from src/plugins/node.cpp:823:\nno such kernel\n\n")

    broken = Engine("broken", "fp32", (Variant("as it is", run, lambda workload, result: ONES),))
    failed: list[str] = []
    chosen = list(race.choose([broken, echo(1.0)], PAIR, ONES, failed, quick=True))
    assert [contender.engine.name for contender in chosen] == ["echo"]
    assert failed == ["broken, w: no such kernel"]


# --- never zeros ----------------------------------------------------------------------------------


def test_a_reference_of_zeros_is_refused() -> None:
    with pytest.raises(ValueError, match="w: the reference is all zeros"):
        list(race.choose([echo(1.0)], PAIR, 0 * ONES, [], quick=True))


def test_random_weights_leave_nothing_at_a_constant() -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    first = workloads.random_distilbert(**TINY).state_dict()
    again = workloads.random_distilbert(**TINY).state_dict()
    for name, weights in first.items():
        if weights.is_floating_point():
            assert weights.std() > 0.01, name
        assert weights.equal(again[name]), name


# --- real tokens only -----------------------------------------------------------------------------


def test_throughput_counts_real_tokens_and_never_padding() -> None:
    (contender,) = race.choose([echo(1.0)], PAIR, ONES, [], quick=True)
    (row,) = race.race(PAIR, [contender], 1, quick=True)
    assert (row.info["tokens"], row.info["padded_tokens"]) == (5, 6)
    timed = Row("w", "echo", (4.0, 2.0, 3.0), {**row.info, "repeats": 2})
    assert timed.timing == Timing((2.0, 1.0, 1.5))  # of one pass
    assert timed.tokens_per_second == pytest.approx(5 / 1.5)


# --- nothing without the machine's record ---------------------------------------------------------


def some_results(**changes: Any) -> Results:
    facts = {"tokens": 5, "padded_tokens": 6, "repeats": 1}
    rows = (Row("w", "echo", (1.0, 2.0), facts), Row("w", "other", (3.0, 2.5), facts))
    given = {"suite": "models", "environment": SOME_ENVIRONMENT, "rows": rows}
    return Results(**(given | {"left_out": ("third: not installed",), "quick": True} | changes))


def test_results_come_back_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "models.json"
    results.write(file, some_results())
    assert results.read(file) == some_results()
    assert [file.name for file in file.parent.iterdir()] == ["models.json"]
    assert list(results.read(file).groups()["w"]) == ["echo", "other"]


@pytest.mark.parametrize("missing", REQUIRED)
def test_results_without_the_machine_s_record_are_refused(missing: str, tmp_path: Path) -> None:
    partial = {name: value for name, value in SOME_ENVIRONMENT.items() if name != missing}
    with pytest.raises(ValueError, match=f"no record of the machine: {missing} missing"):
        some_results(environment=partial)
    file = tmp_path / "models.json"
    content = results.to_json(some_results())
    file.write_text(json.dumps({**content, "machine_info": partial}))
    with pytest.raises(ValueError, match=f"models.json: no record of the machine: {missing}"):
        results.read(file)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((Row("w", "a", ()),), "w: a: turns of"),
        ((Row("w", "a", (0.0,)),), "each takes more than 0 s"),
        ((Row("w", "a", (float("nan"),)),), "each takes more than 0 s"),
        ((Row("w", "a", (1.0,), {"tokens": 0}),), "w: a: 0 tokens"),
        ((Row("w", "a", (1.0,)), Row("w", "a", (2.0,))), "w: a: stands there twice"),
    ],
)
def test_figures_that_cannot_be_are_refused(rows: tuple[Row, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        some_results(rows=rows)


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    for text, said in (("{", "not JSON"), ("[]", "not what a benchmark"), ("{}", "not what a")):
        file.write_text(text)
        with pytest.raises(ValueError, match=f"x.json: {said}"):
            results.read(file)
