"""benchmarks.probe: the probes, the rank correlation, the folds, and what a broken promise does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import probe
from benchmarks.probe import Linear, Measured

Reviews = tuple[list[str], list[float]]


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


def test_separable_classes_are_told_apart(generator: np.random.Generator) -> None:
    labels = generator.random(500) < 0.3
    vectors = generator.normal(size=(500, 8)) * 1e-2 + 5
    vectors[:, 3] += labels  # far beyond the noise of the other features
    vectors[:, 6] = 7  # a constant
    probes = probe.cross_fit(probe.fit_logistic, vectors, labels)
    assert ((probe.out_of_fold(probes, vectors) > 0) == labels).all()


def test_shuffled_labels_cannot_be_told(generator: np.random.Generator) -> None:
    vectors = generator.normal(size=(4000, 16))
    labels = generator.permutation(np.arange(4000) % 2 == 0)
    probes = probe.cross_fit(probe.fit_logistic, vectors, labels)
    share = ((probe.out_of_fold(probes, vectors) > 0) == labels).mean()
    assert abs(share - 0.5) < 3 * 0.5 / np.sqrt(4000)


def test_logistic_probe_is_at_its_optimum(generator: np.random.Generator) -> None:
    """The gradient of the penalised loss vanishes there, and the loss grows around it."""
    vectors = generator.normal(size=(300, 4)) * [1, 10, 0.1, 3] + [0, 5, -2, 1]
    labels = vectors @ [1, 0.1, 2, 0] + generator.normal(size=300) > 0
    fitted = probe.fit_logistic(vectors, labels)

    def loss(weights: Any, bias: float) -> float:
        answers = Linear(weights, bias)(vectors)
        penalty = probe.PENALTY * len(vectors) / 2 * ((weights * vectors.std(axis=0)) ** 2).sum()
        return float(np.logaddexp(0, np.where(labels, -answers, answers)).sum() + penalty)

    least = loss(fitted.weights, fitted.bias)
    for shift in 1e-4 * np.eye(5) / [*vectors.std(axis=0), 1]:
        above, below = (
            loss(fitted.weights + side * shift[:4], fitted.bias + side * shift[4])
            for side in (1, -1)
        )
        assert above > least < below
        assert above - least == pytest.approx(below - least, rel=1e-2)


def test_vectors_that_are_not_finite_have_no_optimum() -> None:
    with pytest.raises(ArithmeticError, match="not done after 25 Newton steps"):
        probe.fit_logistic(np.full((10, 2), np.nan), np.arange(10) % 2 == 0)


def test_ridge_finds_a_line(generator: np.random.Generator) -> None:
    vectors = generator.normal(size=(2000, 3))
    targets = vectors @ [1.0, -2.0, 0.5] + 3
    fitted = probe.fit_ridge(vectors, targets)
    shrunk = 1 / (1 + probe.PENALTY)  # what the penalty leaves of uncorrelated features
    np.testing.assert_allclose(fitted.weights, shrunk * np.array([1.0, -2.0, 0.5]), atol=0.01)
    assert fitted.bias == pytest.approx(3, abs=0.01)


def test_nobody_judges_what_he_was_trained_on() -> None:
    """Probes that remember their targets, and answer with how many of these they saw."""
    targets = np.arange(23.0)
    vectors = targets[:, None]

    class Memory(Linear):
        def __call__(self, asked: Any) -> Any:
            return np.isin(asked[:, 0], self.weights).astype(float)

    probes = probe.cross_fit(lambda _, seen: Memory(seen, 0), vectors, targets)
    assert len(probes) == probe.FOLDS
    assert not probe.out_of_fold(probes, vectors).any()
    assert sum(len(each.weights) for each in probes) == (probe.FOLDS - 1) * 23


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 100, 1000, 1001], 1.0),
        ([1, 2, 3, 4], [0, -1, -2, -30], -1.0),
        # Ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: 4.5 / sqrt(4.5 * 5).
        ([1, 5, 5, 9], [1, 3, 2, 4], 4.5 / np.sqrt(22.5)),
        # Ranks 2, 2, 2, 4 and 1, 3, 3, 3: deviations -.5 -.5 -.5 1.5 and -1.5 .5 .5 .5, over 3.
        ([0, 0, 0, 1], [0, 1, 1, 1], 1 / 3),
        ([7, 7, 7, 7], [1, 2, 3, 4], 0.0),
    ],
)
def test_spearman(first: list[float], second: list[float], expected: float) -> None:
    got = probe.spearman(np.array(first, float), np.array(second, float))
    assert got == pytest.approx(expected, abs=1e-12)


def right(count: int) -> Any:
    """`count` right answers of 1000."""
    return np.arange(1000) < count


@pytest.mark.parametrize(
    ("precision", "measured", "difference", "kept"),
    [
        ("int8", Measured(right(800), right(795), 0.703), -0.5, True),
        ("int8", Measured(right(794), right(800), 0.7), -0.6, False),
        ("int8", Measured(right(800), right(794), 0.7), -0.6, False),
        ("bf16", Measured(right(801), right(800), 0.694), -0.6, False),
        ("bf16", Measured(right(806), right(800), 0.7), 0.6, False),  # not the same vectors either
        ("fp16", Measured(right(700), right(700), 0.7), -10, None),
    ],
)
def test_verdicts(precision: str, measured: Measured, difference: float, kept: bool | None) -> None:
    fp32 = Measured(right(800), right(800), 0.7)
    engine = {"backend": "cpu", "instruction_set": "?"}
    row = probe.compare(precision, engine, measured, fp32)
    assert row.difference == pytest.approx(difference)
    assert row.kept is kept


def test_standard_error_is_of_paired_answers() -> None:
    assert probe.standard_error(right(800), right(800)) == 0
    share = 0.1  # of the answers changed, as many for the better as for the worse
    first, second = right(50), np.roll(right(50), 500)
    assert probe.standard_error(first, second) == pytest.approx(np.sqrt(share / 1000))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, generator: np.random.Generator) -> dict[str, Any]:
    """Reviews and their fp32 vectors without a model; what other precisions make of the latter."""
    vectors = generator.normal(size=(400, 6))
    scores = vectors @ generator.normal(size=6) + generator.normal(size=400)
    distortions: dict[str, Callable[[Any], Any]] = {"fp32": lambda v: v, "bf16": lambda v: v}

    def encode(_: Path, precision: str, texts: list[str]) -> tuple[Any, dict[str, str]]:
        engine = {"backend": "cpu", "instruction_set": "none"}
        return distortions[precision](vectors[: len(texts)].copy()), engine

    texts = [f"text {n}" for n in range(400)]
    monkeypatch.setattr(probe, "minilm_folder", Path)
    monkeypatch.setattr(probe, "movie_reviews", lambda: (texts, scores.tolist()))
    monkeypatch.setattr(probe, "encode", encode)
    monkeypatch.setattr(
        probe, "refused", lambda _, name: None if name in distortions else f"no {name} here"
    )
    return distortions


def not_finite(vectors: Any) -> Any:
    vectors[17, 2] = np.nan
    return vectors


def sentences_mixed_up(vectors: Any) -> Any:
    return vectors[::-1]


def another_space(vectors: Any) -> Any:
    """Nothing is lost, but no probe of fp32 vectors can read it."""
    return -vectors


@pytest.mark.parametrize("distort", [not_finite, sentences_mixed_up, another_space, np.zeros_like])
def test_a_broken_precision_fails(
    distort: Callable[[Any], Any], made_up: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    made_up["int8"] = distort
    assert probe.main([]) == 1
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
    verdicts = {row[1].strip(): row[-2].strip() for row in rows[1:]}
    assert verdicts == {"fp32": "-", "bf16": "kept", "int8": "BROKEN"}


def test_command_from_measurement_to_file(
    made_up: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fp32 is measured although not asked for; what cannot run is skipped and says why."""
    file = tmp_path / "results" / "probe.json"
    asked = ["--precisions", "bf16,int8", "--sentences", "300", "--json", str(file)]
    assert probe.main(asked) == 0
    printed = capsys.readouterr().out
    assert "not measured: int8: no int8 here" in printed
    assert "A look at a part" in printed
    saved = json.loads(file.read_text())
    assert [row["precision"] for row in saved["precisions"]] == ["fp32", "bf16"]
    assert saved["precisions"][1]["difference"] == 0
    assert saved["sentences"] == 300
    assert saved["clear"] < 300
    assert probe.report(saved) in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precisions", "fp32,int9"], "unknown: int9; known: fp32, bf16"),
        (["--sentences", "99"], "99: a number from 100 up is wanted"),
        (["--sentences", "-1"], "-1: a number from 100 up is wanted"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        probe.main(arguments)
    assert message in capsys.readouterr().err


def test_without_the_reviews_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Reviews:
        raise LookupError("no reviews here")

    monkeypatch.setattr(probe, "minilm_folder", Path)
    monkeypatch.setattr(probe, "movie_reviews", missing)
    with pytest.raises(SystemExit, match="probe: no reviews here"):
        probe.main([])


def test_real_reviews_and_weights(minilm_folder: Path, movie_reviews: Reviews) -> None:
    """Few sentences: one answer is a quarter of a point, half of what is promised of all."""
    results = probe.measure(["bf16", "fp8"], 400)
    fp32, bf16 = results["precisions"]
    assert fp32["accuracy"] == fp32["fp32_probe_accuracy"] > 60
    assert fp32["spearman"] > 0.3
    assert fp32["kept"] is None
    assert abs(bf16["difference"]) < 3
    assert results["praised"] in range(150, 250)
    (skipped,) = results["skipped"]
    assert skipped.startswith("fp8: precision")
