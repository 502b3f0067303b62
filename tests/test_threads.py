"""benchmarks.threads: who computes beside whom, what the tables say of it. No times."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import SOME_ENVIRONMENT

from benchmarks import cpu_engine, threads
from fastdistil.bench import ours, timing


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(threads, "COMPANY_SECONDS", 0)
    monkeypatch.setattr(threads, "IDLE_SECONDS", 0.01)
    monkeypatch.setattr(threads, "TURN_SECONDS", 1e-9)


def results() -> dict[str, Any]:
    name = "fastdistil int8"
    seconds = {"1": [4.0, 4.0, 9.0], "2": [2.0], "8": [2.2]}
    alone = {"alone": [2.0], **{c.name: [2.5] for c in threads.COMPANIES}}
    return {
        "environment": SOME_ENVIRONMENT,
        "quick": True,
        "cores": 2,
        "scaling": [{"workload": "mixed", "engines": [{"name": name, "seconds": seconds}]}],
        "callers": [
            {
                "workload": "16 x 128",
                "engines": [{"name": name, "seconds": {"1": [2.0, 1.0, 3.0], "4": [2.5]}}],
            }
        ],
        "company": [
            {
                "workload": "1 x 16",
                "equal_share": {c.name: c.equal_share(2) for c in threads.COMPANIES},
                "engines": [{"name": name, "seconds": alone}],
            }
        ],
        "idle_cpu_seconds": 0.0005,
        "idle_engine": name,
        "idle_seconds": 2.0,
        "missing": ["fastdistil fp9: no"],
    }


def test_tables() -> None:
    printed = threads.report(results())
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in printed.splitlines()
        if line.startswith("|") and not line.startswith("|-")
    ]
    name = "fastdistil int8"
    assert rows[1] == ["mixed", name, "4,000.00", "2,000.00", "2.00x", "2,200.00", "+10%"]
    assert rows[3] == ["16 x 128", name, "2,000.00", "2,500.00", "+25%"]
    assert rows[5] == ["1 x 16", name, "2,000.00", *["2,500.00 (1.25x)"] * 3]
    # Three threads on two cores; four; a program that is over does not count.
    assert rows[6] == ["1 x 16", "an equal share", "-", "1.50x", "2.00x", "1.00x"]
    assert "8 threads (ms)" in printed
    assert "In the 2 s after a forward (fastdistil int8)" in printed
    assert "0.5 ms of CPU time" in printed
    assert "Not for publishing" in printed
    assert printed.endswith("not measured: fastdistil fp9: no")


def test_company_is_there_and_then_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = []

    class Program(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            programs.append(self)

    monkeypatch.setattr(subprocess, "Popen", Program)
    with threads.busy_program():
        (program,) = programs
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(timeout=0.5)
    assert program.returncode is not None

    multiplied = threading.Event()
    monkeypatch.setattr(threads, "_multiply", multiplied.set)
    before = threading.active_count()
    with threads.busy_torch():
        assert multiplied.wait(timeout=60)
    assert threading.active_count() == before


def test_callers_share_the_work() -> None:
    calls = []
    barrier = threading.Barrier(3)  # all of them call at the same time

    def run() -> None:
        barrier.wait(timeout=60)
        calls.append(threading.get_ident())

    assert threads.seconds_with_callers(run, callers=3, repeats=5) > 0
    assert len(calls) == 15
    assert len(set(calls)) == 3


def test_a_caller_that_fails_is_not_taken_for_a_fast_one() -> None:
    def run() -> None:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        threads.seconds_with_callers(run, callers=2, repeats=1)


def test_what_comes_before_a_forward_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])

    def work(seconds: float) -> None:
        now[0] += seconds

    assert threads.turn(lambda: work(2), 3, before=lambda: work(100)) == 2.0
    assert now[0] == 3 * 102


def test_turns_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(threads.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(threads, "TURN_SECONDS", 6.0)
    calls = []

    def work(name: str, seconds: float) -> None:
        calls.append(name)
        now[0] += seconds

    runs = {"a": lambda: work("a", 2), "b": lambda: work("b", 7)}
    assert threads.take_turns(runs, rounds=2) == {"a": [2.0] * 2, "b": [7.0] * 2}
    # Two forwards each to see how long one takes; then turns of at least one.
    assert "".join(calls) == "aabb" + "aaab" * 2


def test_command_from_measurement_to_table(
    minilm_folder: Path,
    tiny_benchmark_model: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "threads.json"
    assert threads.main(["--quick", "--json", str(file)]) == 0
    saved = json.loads(file.read_text())
    names = [f"fastdistil {name}" for name in ours.precisions(tiny_benchmark_model, [])]
    assert [s["workload"] for s in saved["scaling"]] == [
        "mixed",
        "16 x 128",
        "1 x 512",
        "1 x 128",
        "1 x 16",
    ]
    counts = {str(n * saved["cores"]) for n in (1, 4)} | {"1"}
    for measured in saved["scaling"]:
        assert [engine["name"] for engine in measured["engines"]] == names
        assert all(set(engine["seconds"]) == counts for engine in measured["engines"])
    for measured in saved["callers"]:
        assert [engine["name"] for engine in measured["engines"]] == names
        assert all(set(engine["seconds"]) == {"1", "4"} for engine in measured["engines"])
    for measured in saved["company"]:
        assert [e["name"] for e in measured["engines"]] == [*names, "eager PyTorch fp32"]
        for engine in measured["engines"]:
            assert list(engine["seconds"]) == ["alone", *(c.name for c in threads.COMPANIES)]
            assert all(min(turns) > 0 for turns in engine["seconds"].values())
    assert threads.report(saved) in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_benchmark_model", "minilm_folder")
def test_without_kernels_it_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    with pytest.raises(SystemExit, match="threads: fastdistil int8: "):
        threads.main(["--precisions", "int8"])


def test_without_the_extension_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_engine, "extension_error", lambda: "no extension here")
    with pytest.raises(SystemExit, match="threads: no extension here"):
        threads.main([])
