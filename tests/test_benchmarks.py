"""The benchmarks' own logic: turns, ratios, tables, verdicts, checks of the engines. No times."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import accuracy, forward, goals, harness, ours, peers, race, workloads
from benchmarks.harness import Timing
from benchmarks.peers import Engine, Variant
from benchmarks.workloads import Workload

TINY = {"n_layers": 2, "dim": 48, "n_heads": 3, "hidden_dim": 96}


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def worker(self, name: str, *seconds: float) -> Any:
        remaining = iter(seconds)

        def work() -> None:
            self.log.append(name)
            self.now += next(remaining)

        return work


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "SETTLE_SECONDS", 0)


def test_engines_take_turns_after_one_untimed_run_each() -> None:
    clock = Clock()
    contenders = {"a": clock.worker("a", 9, 1, 2, 6), "b": clock.worker("b", 9, 4, 3, 5)}
    timings = harness.alternate(contenders, 3, clock=lambda: clock.now)
    assert "".join(clock.log) == "ababababab"[:8]
    assert timings["a"] == Timing((1, 2, 6))
    assert timings["b"] == Timing((4, 3, 5))
    assert (timings["a"].median, timings["a"].best) == (2, 1)
    assert harness.ratio(ours=timings["a"], theirs=timings["b"]) == 2.0


def test_without_warm_up_every_run_is_timed() -> None:
    clock = Clock()
    contenders = {"a": clock.worker("a", 3, 1)}
    timings = harness.alternate(contenders, 2, warm_up=False, clock=lambda: clock.now)
    assert timings["a"].seconds == (3, 1)


def test_no_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        harness.alternate({}, 0)


def test_table_aligns_figures_right() -> None:
    table = harness.markdown_table(
        ("engine", "tok/s", "how"), [("eager", "1,008", "sdpa"), ("x", "-", "queue")]
    )
    assert table.splitlines() == [
        "| engine | tok/s | how   |",
        "|--------|------:|-------|",
        "| eager  | 1,008 | sdpa  |",
        "| x      |     - | queue |",
    ]
    with pytest.raises(ValueError, match="1 cells, the header 2"):
        harness.markdown_table(("a", "b"), [("only",)])


@pytest.mark.parametrize(
    ("device", "flags", "folder"),
    [
        ("Intel(R) Xeon(R) Processor @ 2.10GHz", ["avx2", "amx_bf16"], "intel-xeon-2-cores-amx"),
        ("AMD EPYC 9R14", ["avx512f", "avx512_bf16"], "amd-epyc-9r14-2-cores-avx512-bf16"),
        ("aarch64", [], "aarch64-2-cores-portable"),
    ],
)
def test_results_folder_names_the_machine(device: str, flags: list[str], folder: str) -> None:
    assert harness.device_folder({"device": device, "flags": flags, "cores": 2}) == folder


def test_environment_says_what_a_figure_belongs_to() -> None:
    record = harness.environment()
    assert record["cores"] >= 1
    assert record["threads"] >= 1
    assert {"torch", "numpy"} <= set(record["packages"])
    line = harness.describe(record)
    assert record["device"] in line
    assert f"torch {record['packages']['torch']}" in line


def workload(name: str, medians: dict[str, float]) -> dict[str, Any]:
    """A workload of 100 tokens in the results, with these medians (seconds) of engines."""
    engines = [
        {
            "name": engine,
            "precision": engine.split()[-1],
            "configuration": "as it is",
            "seconds": [seconds] * 3,
        }
        for engine, seconds in medians.items()
    ]
    return {
        "name": name,
        "sequences": 4,
        "tokens": 100,
        "padded_tokens": 200,
        "repeats": 1,
        "engines": engines,
    }


def results(*measured: dict[str, Any], amx: bool) -> dict[str, Any]:
    flags = ["amx_bf16"] if amx else ["avx512f"]
    return {"environment": {"flags": flags}, "workloads": list(measured)}


def test_verdicts() -> None:
    mixed = workload(
        "mixed",
        {
            "fastdistil bf16": 1.0,
            "fastdistil int8": 0.5,
            "fastdistil fp32": 8.0,
            "eager PyTorch fp32": 20.0,
            "eager PyTorch bf16": 8.0,
            "ONNX Runtime int8": 6.0,
        },
    )
    by_length = workload("mixed, sorted", {"fastdistil bf16": 1.0, "OpenVINO bf16": 4.0})
    one = workload("1 x 16", {"fastdistil int8": 1.0, "OpenVINO bf16": 4.0})
    rows = goals.rows(results(mixed, by_length, one, amx=True))
    against_best, sorted_bf16, sorted_int8, fp32, *others = [row[1:] for row in rows]
    assert against_best == ("7.5x", "6.00x (ONNX Runtime int8)", "not met")  # the best peer counts
    assert sorted_bf16 == ("3.5x", "4.00x (OpenVINO bf16)", "met")
    assert sorted_int8 == ("5x", "8.00x (OpenVINO bf16)", "met")  # ours in the order given
    assert fp32 == ("2.5x", "2.50x", "met")
    assert {row[1:] for row in others} == {("-", "not measured")}

    rows = goals.rows(results(mixed, by_length, amx=False))
    assert [row[3] for row in rows[:4]] == ["set for AMX, none here"] * 3 + ["met"]


def test_goals_name_what_is_measured() -> None:
    names = {forward.MIXED, forward.SORTED, forward.ROWS, forward.ONE}
    assert {goal.workload for goal in goals.GOALS} < names
    assert {goal.peers_workload for goal in goals.GOALS} - {None} == {forward.SORTED}
    assert {goal.ours for goal in goals.GOALS} == {f"fastdistil {p}" for p in ours.PRECISIONS}
    assert len(goals.EVERY_PEER) == len(peers.PEERS)


def test_workloads_are_what_their_names_say(minilm_folder: Path) -> None:
    mixed = workloads.mixed_sentences(70)
    assert [len(batch.input_ids) for batch in mixed.batches] == [32, 32, 6]
    assert mixed.tokens == sum(int(batch.attention_mask.sum()) for batch in mixed.batches)
    first = mixed.batches[0]
    assert tuple(first.input_ids[3][first.attention_mask[3] > 0]) == mixed.sequences[3]
    lengths = [len(sequence) for sequence in mixed.sorted_by_length().sequences]
    assert lengths == sorted(map(len, mixed.sequences), reverse=True)

    rows = workloads.full_rows(3, 50)
    assert [len(sequence) for sequence in rows.sequences] == [50, 50, 50]
    assert {(s[0], s[-1]) for s in rows.sequences} == {(101, 102)}
    one = workloads.one_sentence(16, repeats=4)
    assert [len(sequence) for sequence in one.sequences] == [16]
    large = workloads.full_rows(40, 8, repeats=3)  # more than the peers' batches are otherwise
    assert [batch.input_ids.shape for batch in large.batches] == [(40, 8)]
    assert (large.repeats, large.head(64).repeats, large.head(64).batch) == (3, 1, 40)


def test_random_weights_leave_nothing_at_a_constant() -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    first = workloads.random_distilbert(**TINY).state_dict()
    again = workloads.random_distilbert(**TINY).state_dict()
    for name, weights in first.items():
        if weights.is_floating_point():
            assert weights.std() > 0.01, name
        assert weights.equal(again[name]), name


PAIR = Workload("w", ((1, 2, 3), (4, 5)))
ONES = np.ones((PAIR.tokens, 4), np.float32)


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
    assert failed == (
        [] if timed else [f"echo, w: wrong answers (cosine {-1 if value < 0 else value:.4f})"]
    )


def test_an_engine_that_fails_is_left_out() -> None:
    def run(workload: Workload) -> None:
        raise RuntimeError("Exception from src/plugins/node.cpp:823:\nno such kernel\n\n")

    broken = Engine("broken", "fp32", (Variant("as it is", run, lambda workload, result: ONES),))
    failed: list[str] = []
    chosen = list(race.choose([broken, echo(1.0)], PAIR, ONES, failed, quick=True))
    assert [contender.engine.name for contender in chosen] == ["echo"]
    assert failed == ["broken, w: no such kernel"]


def test_peers_that_cannot_be_prepared_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(model: Any) -> Engine:
        raise ModuleNotFoundError("No module named 'absent'")

    def unfit(model: Any) -> Engine:
        raise ImportError("this torch cannot do that")

    def broken(model: Any) -> Engine:
        raise RuntimeError

    known = {"absent": absent, "unfit": unfit, "broken": broken, "echo": lambda model: echo(1.0)}
    monkeypatch.setattr(race, "PEERS", known)
    missing: list[str] = []
    failed: list[str] = []
    assert list(race.prepare(None, list(known), missing, failed)) == ["echo"]
    assert missing == [
        "absent: No module named 'absent'; `python -m pip install -e \".[bench]\"` brings it",
        "unfit: this torch cannot do that",
    ]
    assert failed == ["broken: RuntimeError"]


def needs(name: str) -> None:
    library, _, precision = name.partition("-")
    if name == "onednn-fp32" and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN here; runs with the builds for x86")
    quantising = torch.backends.quantized.supported_engines
    if library in ("onednn", "fbgemm") and precision == "int8" and library not in quantising:
        pytest.skip(f"torch quantises with {', '.join(quantising)} here; {library} is for x86")
    package = {"openvino": "openvino", "onnxruntime": "onnxruntime"}.get(name.split("-")[0])
    if package is not None:
        why = f'{package} is not here; runs where `pip install -e ".[bench]"` was done'
        pytest.importorskip(package, reason=why)


@pytest.mark.parametrize("name", [name for name in peers.PEERS if not name.startswith("compile")])
def test_every_variant_of_every_peer_computes_the_model(
    name: str, minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padded batches of several shapes. (torch.compile is left out: it takes half a minute.)"""
    needs(name)
    monkeypatch.setattr(peers, "CACHE", tmp_path)
    model = workloads.random_distilbert(**TINY)
    workload = workloads.mixed_sentences(70)
    expected = race.original(model, workload)
    engine = peers.PEERS[name](model)
    assert len({variant.configuration for variant in engine.variants}) == len(engine.variants) == 2
    for variant in engine.variants:
        got = variant.rows(workload, variant.run(workload))
        least = accuracy.least_cosine(got.astype(float), expected.astype(float))
        assert least >= race.LEAST_COSINE[engine.precision], variant.configuration


@pytest.mark.parametrize("make", [ours.packed, ours.drop_in])
def test_fastdistil_computes_the_model(make: Any, minilm_folder: Path) -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    model = workloads.random_distilbert(**TINY)
    workload = workloads.mixed_sentences(70)
    engine = make(model, "fp32")
    (variant,) = engine.variants
    got = variant.rows(workload, variant.run(workload))
    np.testing.assert_allclose(got, race.original(model, workload), rtol=0, atol=1e-4)


def test_fastdistil_pools_the_model(minilm_folder: Path) -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    model = workloads.random_distilbert(**TINY)
    workload = workloads.mixed_sentences(70)
    (variant,) = ours.pooled(model, "fp32").variants
    got = variant.rows(workload, variant.run(workload))
    assert got.shape == (70, TINY["dim"])
    expected = ours.means(workload, race.original(model, workload))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_means_are_of_each_sequence() -> None:
    states = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert ours.means(PAIR, states).tolist() == [[2, 3], [7, 8]]


def test_precisions_without_kernels_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    pytest.importorskip("fastdistil._C", reason="kernels are in the C++ extension")
    model = workloads.random_distilbert(**TINY)
    monkeypatch.setenv("FASTDISTIL_CPU_ISA", "portable")
    missing: list[str] = []
    assert ours.precisions(model, missing) == ["fp32"]
    assert [line.split(":")[0] for line in missing] == ["fastdistil int8", "fastdistil bf16"]
    assert "no int8 kernels for this CPU" in missing[0]


def test_forward_command_from_measurement_to_table(
    minilm_folder: Path,
    tiny_benchmark_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = [f"fastdistil {precision}" for precision in ours.precisions(tiny_benchmark_model, [])]
    file = tmp_path / "results" / "forward.json"
    assert forward.main(["--quick", "--peers", "eager-fp32", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    saved = json.loads(file.read_text())
    assert [w["name"] for w in saved["workloads"]] == [
        "mixed",
        "mixed, sorted",
        "16 x 128",
        "1 x 16",
    ]
    for workload in saved["workloads"]:
        names = [engine["name"] for engine in workload["engines"]]
        assert names == [*own, "eager PyTorch fp32"]
    assert [engine["name"] for engine in saved["pooled"]["engines"]] == own
    assert "grid" not in saved
    assert "| real sentences, given order: fp32 against eager fp32" in printed
    assert forward.main(["--show", str(file)]) == 0
    assert capsys.readouterr().out.strip() in printed

    readme = "# Title\n\n<!-- forward: by whom -->\nold figures\n<!-- /forward -->\n\nThe rest.\n"
    written = forward.with_figures(readme, saved, forward.ROOT / "results.json")
    assert written.startswith("# Title\n\n<!-- forward: by whom -->\n| DistilBERT-base ")
    assert written.endswith("<!-- /forward -->\n\nThe rest.\n")
    assert "old figures" not in written
    assert "--show results.json" in written
    assert forward.with_figures(written, saved, forward.ROOT / "results.json") == written
    with pytest.raises(ValueError, match="no <!-- forward"):
        forward.with_figures("# Title\n", saved, forward.ROOT / "results.json")


def test_grid_command(
    minilm_folder: Path,
    tiny_benchmark_model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(forward, "GRID", ((1, 16), (1, 40), (3, 40), (16, 128)))
    file = tmp_path / "forward.json"
    arguments = ["--quick", "--grid", "--peers", "eager-fp32", "--json", str(file)]
    assert forward.main(arguments) == 0
    saved = json.loads(file.read_text())
    # What the standard workloads have is not measured again.
    assert [(w["name"], w["repeats"]) for w in saved["grid"]] == [("1 x 40", 8), ("3 x 40", 2)]
    printed = capsys.readouterr().out
    assert "| 1 x 16 (ms) | 1 x 40 (ms) | 3 x 40 (tok/s) | 16 x 128 (tok/s) |" in printed
    assert forward.main(["--show", str(file)]) == 0
    assert capsys.readouterr().out.strip() in printed


def test_leads_are_over_the_best_peer_of_the_right_kind() -> None:
    mixed = workload(
        "mixed",
        {"fastdistil int8": 1, "fastdistil bf16": 2, "OpenVINO bf16": 3, "ONNX Runtime int8": 1.5},
    )
    one = workload("1 x 16", {"fastdistil int8": 1, "OpenVINO fp32": 2})
    alone = workload("1 x 64", {"fastdistil int8": 1})
    table = forward.leads({**results(mixed, amx=False), "grid": [one, alone]})
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows == [
        ["mixed", "1.50x (ONNX Runtime int8)", "1.50x (OpenVINO bf16)"],
        ["1 x 16", "2.00x (OpenVINO fp32)", "-"],
        ["1 x 64", "-", "-"],
    ]


def test_results_without_a_file_go_to_the_machine_s_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    parser = argparse.ArgumentParser()
    harness.add_json_option(parser, "some.json")
    machine = {"device": "Some CPU", "flags": [], "cores": 2}
    for arguments in ([], ["--json"], ["--json", str(tmp_path / "here" / "other.json")]):
        harness.save(parser.parse_args(arguments).json, {"environment": machine})
    written = {file.relative_to(tmp_path).as_posix() for file in tmp_path.glob("*/*")}
    assert written == {"some-2-cores-portable/some.json", "here/other.json"}


def test_unknown_peers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        forward.main(["--peers", "eager-fp32,tensorrt"])
    assert "unknown: tensorrt; known: eager-fp32" in capsys.readouterr().err


def test_accuracy_command(minilm_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--sentences", "40"]) == 0
    out = capsys.readouterr().out
    rows = [line.split("|") for line in out.splitlines() if "kept" in line]
    measured = [row[1].strip() for row in rows]
    # A narrow type that this CPU does not multiply may be left out, with the reason.
    assert measured[0] == "fp32"
    left_out = re.findall(r"not measured: (\w+): ", out)
    assert {*measured, *left_out} == {"fp32", "bf16", "int8"}


@pytest.mark.parametrize(
    ("measured", "kept"),
    [
        (accuracy.Accuracy(0.9998, 0.9999, 1.0), True),
        (accuracy.Accuracy(0.99979, 0.9999, 0.0), False),
        (accuracy.Accuracy(0.9999, 0.99989, 0.0), False),
        (accuracy.Accuracy(float("nan"), 1.0, 0.0), False),
    ],
)
def test_bf16_promise(measured: accuracy.Accuracy, kept: bool) -> None:
    assert measured.keeps(accuracy.PROMISES["bf16"]) is kept


def test_least_cosine_sees_one_bad_row() -> None:
    states = np.eye(3)
    assert accuracy.least_cosine(2 * states, states) == 1.0
    bad = states.copy()
    bad[2] = [0, 0.6, 0.8]
    assert accuracy.least_cosine(bad, states) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="differ"):
        accuracy.least_cosine(states[:2], states)
