"""`python -m benchmarks.gpu`: what it keeps, decides and writes. No times are asserted, no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import (
    candidates,
    check,
    device,
    inputs,
    report,
    session,
    tables,
    tune,
    tune_forward,
)
from benchmarks.gpu.session import Job, OutOfTimeError, Session
from benchmarks.gpu.store import Store, read_items, read_results
from benchmarks.gpu.timing import HostTimer, Turn
from fastdistil.bench.timing import Timing
from fastdistil.kernels.settings import LinearSetting, RowSetting, Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "device": "NVIDIA H100 80GB HBM3",
    "capability": "9.0",
    "cuda": "13.0",
    "python": "3.12.3",
    "packages": {"torch": "2.11.0"},
    "commit": "abc1234",
    "date": "2026-01-01T00:00:00+00:00",
}
POINTER = {
    "variant": "pointer",
    "block_m": 64,
    "block_n": 64,
    "block_k": 64,
    "group_m": 8,
    "num_warps": 4,
    "num_stages": 3,
}
WIDE = {**POINTER, "block_n": 128, "num_warps": 8}


def store_of(folder: Path, fingerprint: str = "one", again: bool = False) -> Store:
    return Store(folder / "gpu-tune.json", ENVIRONMENT, fingerprint, again)


def dry_session(folder: Path, budget: float = 60.0) -> Session:
    return Session("tune", dry=True, again=False, folder=folder, budget=budget)


# --- results that survive -------------------------------------------------------------------------


def test_items_are_there_for_the_next_run(tmp_path: Path) -> None:
    first = store_of(tmp_path)
    first.put("a", {"seconds": 1.0})
    first.put("b", {"seconds": 2.0})
    second = store_of(tmp_path)
    assert second.has("a")
    assert second.has("b")
    assert second.items["b"]["seconds"] == 2.0
    assert read_results(first.path)["environment"] == ENVIRONMENT


def test_other_code_or_again_measures_anew(tmp_path: Path) -> None:
    store_of(tmp_path).put("a", {"seconds": 1.0})
    assert not store_of(tmp_path, "two").has("a")
    assert not store_of(tmp_path, again=True).has("a")
    assert store_of(tmp_path).has("a")


def test_a_damaged_file_counts_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "gpu-tune.json").write_text('{"items": {"a"', encoding="utf-8")
    assert store_of(tmp_path).items == {}
    assert read_items(tmp_path / "absent.json") == {}


def test_work_goes_on_after_a_failure_and_stops_when_time_is_up(tmp_path: Path) -> None:
    stage = dry_session(tmp_path)
    store = stage.store()

    def broken() -> dict[str, Any]:
        raise ValueError("no such\nthing")

    def late() -> dict[str, Any]:
        raise OutOfTimeError

    stage.work(
        store,
        [
            Job("broken", broken),
            Job("late", late),
            Job("good", lambda: {"value": 1}),
            Job("long", lambda: {"value": 2}, seconds=1e6),
        ],
    )
    assert store.failed == {"broken": "ValueError: no such thing"}
    assert store.left_out == ["late", "long"]
    assert store.items["good"]["value"] == 1
    assert not stage.finish(store)

    again = stage.store()
    stage.work(again, [Job("good", broken), Job("long", lambda: {"value": 2})])
    assert set(again.items) == {"good", "long"}
    assert stage.finish(again)


def test_what_runs_too_long_is_interrupted() -> None:
    def forever() -> None:
        while True:
            pass

    with pytest.raises(OutOfTimeError), session.time_limit(0.05):
        forever()


def test_the_fingerprint_follows_contents_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("one", encoding="utf-8")
    first = device.digest([file], "bench", False)
    assert device.digest([file], "bench", False) == first
    assert device.digest([file], "bench", True) != first
    file.write_text("two", encoding="utf-8")
    assert device.digest([file], "bench", False) != first


def test_a_copy_without_git_is_told_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("FASTDISTIL_COMMIT", raising=False)
    assert device.commit() == "unknown"
    monkeypatch.setenv("FASTDISTIL_COMMIT", "abc1234")
    assert device.commit() == "abc1234"


def test_folders_are_named_after_devices() -> None:
    assert device.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


# --- what tuning accepts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("candidate", "identical", "incumbent_identical", "taken"),
    [
        ([0.80] * 5, True, True, True),
        ([0.80] * 5, False, True, False),  # other bits
        ([0.95] * 5, True, True, False),  # within the incumbent's own spread
        ([1.20] * 5, True, True, False),
        ([1.20] * 5, True, False, True),  # the incumbent breaks batch invariance
        ([1.20] * 5, False, False, False),
    ],
)
def test_a_candidate_wins_by_more_than_the_spread(
    candidate: list[float], identical: bool, incumbent_identical: bool, taken: bool
) -> None:
    incumbent = [0.95, 0.98, 1.0, 1.02, 1.05]
    assert tables.accepts(incumbent, candidate, identical, incumbent_identical) is taken


def test_one_turn_has_no_spread() -> None:
    assert tables.spread([1.0]) == 0.0
    assert tables.spread([1.0, 1.0, 1.0]) == 0.0
    assert tables.spread([1.0, 2.0, 3.0]) == pytest.approx(1.6)


class Scripted(HostTimer):
    """A clock on which each turn takes as long as its number of calls says, in microseconds."""

    def race(self, contenders: Any, rounds: int) -> Any:

        return {name: Timing((turn.calls * 1e-6,) * rounds) for name, turn in contenders.items()}


def test_a_race_keeps_the_best_of_each_group_and_the_incumbent() -> None:
    settings = [LinearSetting(block_m=m) for m in (16, 32, 64, 128)]
    turns = {s: Turn(lambda: None, calls) for s, calls in zip(settings, (9, 5, 3, 1), strict=True)}
    groups: dict[Any, str | None] = dict(
        zip(settings, ("invariant", "invariant", "any", None), strict=True)
    )
    found = tune.race(Scripted(), settings[0], turns, groups)
    assert found["incumbent"]["setting"]["block_m"] == 16
    assert {g: best["setting"]["block_m"] for g, best in found["best"].items()} == {
        "invariant": 32,
        "any": 64,
    }
    assert found["not_identical"] == 1


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"1 x 8": (9, 8), "2 x 8": (9, 9)}, True),
        ({"1 x 8": (9, 8), "2 x 8": (8, 9)}, False),  # what it wins here it loses there
        ({"1 x 8": (9, 9), "2 x 8": (9, 9)}, False),
    ],
)
def test_kernels_start_early_where_that_wins_somewhere_and_loses_nowhere(
    seconds: dict[str, tuple[int, int]],
    chosen: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def race(_session: Session, row: inputs.Row, entry: str, values: list[bool]) -> Any:
        assert entry == "dependent_launch"
        return {v: Timing((s * 1e-6,)) for v, s in zip(values, seconds[row.name], strict=True)}

    monkeypatch.setattr(tune_forward, "_race", race)
    (_, _, job) = tune_forward.jobs(dry_session(tmp_path))
    found = job.run()
    assert found["chosen"] is chosen
    assert found["seconds"]["1 x 8"]["False"] == seconds["1 x 8"][0] * 1e-6


def test_other_bits_are_told_and_never_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Moody:
        """A model that answers differently every time."""

        answers = iter(range(100))

        @property
        def model(self) -> Moody:
            return self

        def load(self, _setup: Any) -> Moody:
            return self

        def forward_packed(self, _batch: Any) -> torch.Tensor:
            return torch.tensor([next(self.answers)], dtype=torch.bfloat16)

    monkeypatch.setattr(tune_forward.contenders, "ours", lambda _precision: Moody())
    monkeypatch.delenv("FASTDISTIL_TUNING", raising=False)
    (_, chunk, _) = tune_forward.jobs(dry_session(tmp_path))
    with pytest.raises(ValueError, match="chunk_tokens 8192: other bits on 2 x 8"):
        chunk.run()
    assert "FASTDISTIL_TUNING" not in os.environ


# --- the table it writes --------------------------------------------------------------------------


def test_equal_neighbours_become_one_rule() -> None:
    rules = [(16, POINTER), (64, POINTER), (256, WIDE), (None, POINTER)]
    assert tables.collapse(rules, "max_tokens") == [
        {"max_tokens": 64, **POINTER},
        {"max_tokens": 256, **WIDE},
        {"max_tokens": None, **POINTER},
    ]


def test_sizes_that_were_not_measured_keep_their_rules() -> None:
    before = load_settings("sm_90")
    shape = (3072, 768)
    rules = tables.linear_rules(before, "half", shape, {256: WIDE})
    table = tables.changed(before.table, "linear", "half", "3072x768", value=rules)
    after = Settings("sm_90", table, "test")
    for tokens in (1, 16, 64, 65, 128, 256, 257, 1024, 5000, 1 << 20):
        found = after.linear(torch.bfloat16, tokens, *shape)
        if 64 < tokens <= 256:
            assert tables.plain(found) == WIDE
        else:
            assert found == before.linear(torch.bfloat16, tokens, *shape)


def test_attention_rules_keep_slots_that_hold_a_sequence() -> None:
    present = [
        {"max_seqlen": 24, "block_q": 64, "slot": 32, "num_warps": 4},
        {"max_seqlen": None, "block_q": 64, "slot": 64, "num_warps": 4},
    ]
    shared = {"block_q": 64, "slot": 32, "num_warps": 8}
    rules = tables.attention_rules(present, {32: shared})
    assert [rule["max_seqlen"] for rule in rules] == [16, 32, None]
    assert rules[1] == {"max_seqlen": 32, **shared}
    assert rules[2] == present[1]


def test_one_key_block_needs_every_length() -> None:
    lengths = tables.LENGTH_CLASSES
    present, other = dict.fromkeys(lengths, 1.0), dict.fromkeys(lengths, 0.8)
    assert tables.choose_key_block({64: present, 128: other}, 64, margin=0.05) == 128
    assert tables.choose_key_block({64: present, 128: other}, 64, margin=0.3) == 64
    del other[512]
    assert tables.choose_key_block({64: present, 128: other}, 64, margin=0.05) == 64


def test_the_file_is_read_as_it_was_meant_and_by_people(tmp_path: Path) -> None:
    table = tables.changed(load_settings("sm_90").table, "measured_on", value="some GPU")
    path = tmp_path / "sm_90.json"
    tables.write_table(path, table, "sm_90")
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == table
    rules = [line for line in text.splitlines() if '"max_tokens"' in line]
    assert all(line.strip().rstrip(",").endswith("}") for line in rules)
    assert len(rules) == text.count('"max_tokens"')


def test_the_shipped_tables_survive_a_round_trip(tmp_path: Path) -> None:
    for target in ("sm_80", "sm_90", "sm_100"):
        table = load_settings(target).table
        tables.write_table(tmp_path / "table.json", table, target)
        assert json.loads((tmp_path / "table.json").read_text(encoding="utf-8")) == table


def test_a_table_that_settings_refuse_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "sm_90.json"
    path.write_text("as it was", encoding="utf-8")
    table = tables.changed(load_settings("sm_90").table, "linear", "half", value={})
    with pytest.raises(ValueError, match="launch settings"):
        tables.write_table(path, table, "sm_90")
    assert path.read_text(encoding="utf-8") == "as it was"


def test_a_measurement_decides_the_table() -> None:
    before = load_settings("sm_90")
    rows = {"setting": {"rows": 2, "num_warps": 8}, "seconds": [0.5] * 5}
    items = {
        **{
            f"linear half 768x768 at {tokens}": linear_item(tokens)
            for tokens in tables.TOKEN_CLASSES
        },
        "layernorm half at 16384": {
            "spec": {"operation": "layernorm", "kind": "half", "tokens": 16384},
            "incumbent": {"setting": {"rows": 1, "num_warps": 4}, "seconds": [1.0] * 5},
            "best": {"close": rows},
        },
        tune_forward.CHUNK: {"chosen": 4096},
        tune_forward.DEPENDENT: {"chosen": True},
    }
    table = tune.decide(before, items, "some GPU")
    after = Settings("sm_90", table, "test")
    assert after.measured_on == "some GPU"
    assert after.chunk_tokens == 4096
    assert after.table["dependent_launch"] is True
    assert after.rows("layernorm", torch.float16) == RowSetting(2, 8)
    assert tables.plain(after.linear(torch.float16, 5, 768, 768)) == WIDE
    fastest = after.linear(torch.float16, 5, 768, 768, deterministic=False)
    assert fastest.variant == "cublas"
    untouched = after.linear(torch.float16, 5, 3072, 768)
    assert untouched == before.linear(torch.float16, 5, 3072, 768)


def linear_item(tokens: int) -> dict[str, Any]:
    spec = {"kind": "half", "tokens": tokens, "out_features": 768, "in_features": 768}
    return {
        "spec": spec,
        "incumbent": {"setting": POINTER, "group": "invariant", "seconds": [1.0] * 5},
        "best": {
            "invariant": {"setting": WIDE, "seconds": [0.8] * 5},
            "any": {"setting": {"variant": "cublas"}, "seconds": [0.7] * 5},
        },
    }


@pytest.mark.parametrize("target", ["sm_80", "sm_86", "sm_90", "sm_100"])
def test_every_candidate_is_one_that_a_table_may_hold(target: str) -> None:
    before = load_settings(target)
    for kind, tokens in (("half", 16), ("half", 256), ("half", 16384), ("fp32", 16384)):
        dtype = torch.float32 if kind == "fp32" else torch.bfloat16
        present = before.linear(dtype, tokens, 768, 768)
        found = candidates.linear(target, kind, tokens, 132, present)
        assert present not in found
        assert len(set(found)) == len(found)
        for setting in found:
            rules = [{"max_tokens": None, **tables.plain(setting)}]
            Settings(target, tables.changed(before.table, "linear", kind, "8x8", value=rules), "")
    for length in tables.LENGTH_CLASSES:
        incumbent = before.attention(torch.bfloat16, 64, length)
        for setting in candidates.attention(target, "half", 64, length, 132, incumbent):
            rule = {"max_seqlen": length, **tables.plain(setting)}
            entry = {"key_block": setting.key_block, "rules": [rule]}
            Settings(
                target, tables.changed(before.table, "attention", "half", "64", value=entry), ""
            )


# --- inputs and report ----------------------------------------------------------------------------


def test_mixed_lengths_have_the_mean_they_claim() -> None:
    lengths, source = inputs.mixed_lengths(2000)
    assert len(lengths) == 2000
    assert sum(lengths) / 2000 == pytest.approx(30, rel=0.02)
    assert source
    assert inputs.mixed_lengths(2000)[0] == lengths


def test_all_forms_of_an_input_hold_the_same_tokens() -> None:
    row = inputs.Row("mixed", (5, 9, 2, 7))
    for one in inputs.input_sets(row, 100, torch.device("cpu")):
        packed = one.packed.input_ids
        assert one.packed.num_tokens == row.tokens
        ids = one.padded.input_ids.unsqueeze(2)
        assert torch.equal(one.padded.real(ids).flatten().int(), packed)
        by_length = [batch.real(batch.input_ids.unsqueeze(2)).flatten() for batch in one.batches]
        assert torch.equal(torch.cat(by_length).int(), packed[one.order])


def test_rows_without_padding_have_no_mask() -> None:
    one = inputs.input_sets(inputs.full_rows("2 x 3", 2, 3), 100, torch.device("cpu"))[0]
    assert one.padded.attention_mask is None


def test_junit_is_read(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    file.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1">'
        '<testcase name="good" time="0.5"/>'
        '<testcase name="bad" time="1.5"><failure message="assert 1 == 2&#10;more"/></testcase>'
        '<testcase name="gone"><skipped/></testcase></testsuite></testsuites>',
        encoding="utf-8",
    )
    found = check.read_junit(file)
    assert found["summary"] == "1 passed, 1 failed, 1 skipped"
    assert found["failures"] == ["bad: assert 1 == 2"]
    assert next(iter(found["slowest"])) == "bad"


def test_the_report_says_what_was_met_and_what_is_missing() -> None:
    text = report.report(sample_results())
    rows = [line for line in text.splitlines() if "55,000 seq/s" in line]
    assert "64,000 seq/s" in rows[0]
    assert "| met " in rows[0]
    assert "yes, of 1 timed: 2.00x transformers bf16, sdpa" in rows[0]
    latency = next(line for line in text.splitlines() if "60 us" in line)
    assert "not met" in latency
    assert "NO, of 1 timed: 0.50x torch.compile" in latency
    assert "TensorRT fp16: not installed" in text
    assert "no time for 64 x 512 | fastdistil bf16" in text
    assert "profile: did not run" in text
    assert "NVIDIA H100 80GB HBM3" in text


def test_a_report_of_nothing_says_so() -> None:
    assert "Nothing was measured." in report.report({})


def sample_results() -> dict[str, dict[str, Any]]:
    entry = {
        "form": "packed",
        "precision": "bf16",
        "sequences": 256,
        "tokens": 256 * 128,
        "lengths": "all equal",
        "latency": False,
        "target": 55000.0,
        "cosine": 0.9999,
    }
    many = {**entry, "row": "256 x 128"}
    one = {**entry, "row": "1 x 16", "sequences": 1, "tokens": 16, "latency": True, "target": 6e-5}
    peer = {"ours": False, "form": "padded"}
    items = {
        "a": {**many, "contender": "fastdistil bf16", "ours": True, "seconds": [0.004] * 3},
        "b": {
            **many,
            **peer,
            "contender": "transformers bf16, sdpa",
            "seconds": [0.008] * 3,
            "anchor_seconds": [0.004] * 3,
        },
        "c": {**many, **peer, "contender": "TensorRT fp16", "missing": "not installed"},
        "d": {
            **one,
            "contender": "fastdistil bf16",
            "ours": True,
            "seconds": [1e-4] * 3,
            "wall_own": 1.1e-4,
        },
        "e": {
            **one,
            **peer,
            "contender": "torch.compile",
            "seconds": [5e-5] * 3,
            "anchor_seconds": [1e-4] * 3,
            "wall_own": 7e-5,
            "wall_anchor": 1.1e-4,
        },
    }
    bench = {
        "environment": ENVIRONMENT,
        "items": items,
        "failed": {},
        "left_out": ["64 x 512 | fastdistil bf16"],
    }
    return {"bench": bench}


# --- the command ----------------------------------------------------------------------------------


def test_without_a_gpu_it_says_what_would_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run_command("ceilings")
    assert done.returncode == 2
    assert "--dry" in done.stderr


@pytest.mark.slow
def test_a_dry_run_walks_through_every_stage(tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (ROOT / "kernels" / "tuning").iterdir()}
    done = run_command("all", "--dry", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in report.STAGES:
        found = read_results(tmp_path / f"gpu-{stage}.json")
        assert found["items"], stage
        assert found["failed"] == {}
        assert found["left_out"] == []
    failed = [item for item in read_items(tmp_path / "gpu-bench.json").values() if "failed" in item]
    assert failed == []
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    for title in (
        "Targets",
        "Few tokens",
        "Kernels that only move numbers",
        "Each kernel alone",
        "Where the time goes",
        "Tuning",
        "Tests",
    ):
        assert f"## {title}" in page
    assert before == {path: path.read_bytes() for path in (ROOT / "kernels" / "tuning").iterdir()}


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: v for name, v in os.environ.items() if name != "FASTDISTIL_TUNING"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
