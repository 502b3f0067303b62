"""The benchmarks' own logic: turns, ratios, tables, verdicts, checks of the engines. No times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import accuracy, forward, goals, harness, ours, peers, workloads
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


def results(mixed: dict[str, float], *, amx: bool) -> dict[str, Any]:
    """Results of a run in which only the mixed sentences were measured, with these medians."""
    engines = [
        {"name": name, "precision": "?", "configuration": "?", "seconds": [seconds] * 3}
        for name, seconds in mixed.items()
    ]
    return {
        "environment": {"flags": ["amx_bf16"] if amx else ["avx512f"]},
        "workloads": [{"name": "mixed", "tokens": 100, "repeats": 1, "engines": engines}],
    }


def test_verdicts() -> None:
    medians = {
        "fastdistil bf16": 1.0,
        "fastdistil fp32": 8.0,
        "eager PyTorch fp32": 20.0,
        "eager PyTorch bf16": 4.0,
        "ONNX Runtime int8": 2.0,
    }
    rows = goals.rows(results(medians, amx=True))
    against_best, against_eager, fp32, *others = [row[1:] for row in rows]
    assert against_best == ("2.5x", "2.00x (ONNX Runtime int8)", "not met")  # the best peer counts
    assert against_eager == ("20x", "20.00x", "met")
    assert fp32 == ("2.5x", "2.50x", "met")
    assert {row[1:] for row in others} == {("-", "not measured")}

    rows = goals.rows(results(medians, amx=False))
    assert [row[3] for row in rows[:3]] == ["set for AMX, none here"] * 2 + ["met"]


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


def test_random_weights_leave_nothing_at_a_constant() -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    first = workloads.random_distilbert(**TINY).state_dict()
    again = workloads.random_distilbert(**TINY).state_dict()
    for name, weights in first.items():
        if weights.is_floating_point():
            assert weights.std() > 0.01, name
        assert weights.equal(again[name]), name


def echo(value: float) -> Engine:
    """An engine that answers `value` everywhere."""

    def tokens(workload: Workload, result: Any) -> Any:
        return np.full((workload.tokens, 4), value, np.float32)

    return Engine("echo", "fp32", (Variant("as it is", lambda workload: None, tokens),))


@pytest.mark.parametrize(("value", "timed"), [(2.0, True), (-1.0, False), (float("nan"), False)])
def test_only_right_answers_are_timed(value: float, timed: bool) -> None:
    workload = Workload("w", ((1, 2, 3), (4, 5)))
    refused: list[str] = []
    expected = np.ones((workload.tokens, 4), np.float32)
    chosen = list(forward._choose([echo(value)], workload, expected, refused, quick=True))
    assert bool(chosen) is timed
    assert refused == (
        [] if timed else [f"echo, w: wrong answers (cosine {-1 if value < 0 else value:.4f})"]
    )


def needs(name: str) -> None:
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
    expected = forward._expected(model, workload)
    engine = peers.PEERS[name](model)
    assert len({variant.configuration for variant in engine.variants}) == len(engine.variants) == 2
    for variant in engine.variants:
        got = variant.tokens(workload, variant.run(workload))
        least = accuracy.least_cosine(got.astype(float), expected.astype(float))
        assert least >= forward.LEAST_COSINE[engine.precision], variant.configuration


@pytest.mark.parametrize("make", [ours.packed, ours.drop_in])
def test_fastdistil_computes_the_model(make: Any, minilm_folder: Path) -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    model = workloads.random_distilbert(**TINY)
    workload = workloads.mixed_sentences(70)
    engine = make(model, "fp32")
    (variant,) = engine.variants
    got = variant.tokens(workload, variant.run(workload))
    np.testing.assert_allclose(got, forward._expected(model, workload), rtol=0, atol=1e-4)


def test_forward_command_from_measurement_to_table(
    minilm_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    tiny = workloads.random_distilbert(**TINY)
    monkeypatch.setattr(workloads, "random_distilbert", lambda: tiny)
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
        assert names == ["fastdistil bf16", "fastdistil fp32", "eager PyTorch fp32"]
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


def test_unknown_peers_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        forward.main(["--peers", "eager-fp32,tensorrt"])
    assert "unknown: tensorrt; known: eager-fp32" in capsys.readouterr().err


def test_accuracy_command(minilm_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert accuracy.main(["--sentences", "40"]) == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "kept" in line]
    assert [row[1].strip() for row in rows] == ["fp32", "bf16"]


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
