"""The programs in examples/ do what they say, on small tasks; so does benchmarks.classification."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SOME_ENVIRONMENT

import fastdistil
from fastdistil.backends.cpu import extension_error
from fastdistil.bench import timing

transformers = pytest.importorskip("transformers")

from benchmarks import classification  # noqa: E402
from examples import classify_reviews, translate_numbers  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PRECISIONS = ["fp32", "bf16", "int8"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def engine_or_skip(precision: str) -> str:
    if precision != "fp32" and extension_error() is not None:
        pytest.skip(f"{precision} needs the C++ extension; runs where it is built")
    return precision


# examples/translate_numbers.py


@pytest.fixture(scope="module")
def translation(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where `--quick` saved its translator, and what it printed."""
    folder, printed = tmp_path_factory.mktemp("translator"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert translate_numbers.main(["--quick", "--folder", str(folder)]) == 0
    return folder, printed.getvalue()


@pytest.fixture
def translator(translation: tuple[Path, str]) -> translate_numbers.Translator:
    return translate_numbers.Translator.load(translation[0])


def test_the_translator_learns_and_says_how_well(translation: tuple[Path, str]) -> None:
    _, printed = translation
    losses = [float(loss) for loss in re.findall(r"of 250: loss ([\d.]+)", printed)]
    assert len(losses) == 4
    assert losses[-1] < losses[0] / 10
    for precision in PRECISIONS:
        line = rf"{precision}: (\d+) of 20 right, \1 before; 20 token for token the same"
        found = re.search(line, printed)
        assert found or f"{precision}: precision" in printed
        assert found is None or int(found[1]) > 15


@pytest.mark.parametrize("precision", PRECISIONS)
def test_held_out_numbers_are_translated_token_for_token_the_same(
    translator: translate_numbers.Translator, precision: str
) -> None:
    _, held_out = translate_numbers.split(translate_numbers.QUICK)
    texts = [translate_numbers.english_words(number) for number in held_out]
    model = translator.model
    ways: list[dict[str, Any]] = [{}, {"num_beams": 3}]
    wants = [translator.tokens(texts, **how) for how in ways]
    fastdistil.accelerate(model, precision=engine_or_skip(precision))
    assert [translator.tokens(texts, **how) for how in ways] == wants
    assert fastdistil.explain(model).precision == precision
    assert fastdistil.explain(model).fast_calls == 2


def test_the_report_leaves_the_translator_as_it_was(
    translator: translate_numbers.Translator,
) -> None:
    report = translate_numbers.compare(translator, [3, 12, 60], "fp32")
    assert (report.texts, report.same) == (3, 3)
    assert report.right_after == report.right_before >= 2
    assert 0 < report.encoder_before < report.seconds_before
    assert "forward" not in translator.model.encoder.__dict__


def test_the_translator_is_used_from_the_command_line(translation: tuple[Path, str]) -> None:
    folder, _ = translation
    command = [sys.executable, "examples/translate_numbers.py", "--folder", str(folder)]
    done = subprocess.run(
        [*command, "nine", "twenty"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    )
    assert done.stdout.split("\n") == ["neun", "zwanzig", ""]


@pytest.mark.parametrize(
    ("number", "english", "german"),
    [
        (0, "zero", "null"),
        (1, "one", "eins"),
        (17, "seventeen", "siebzehn"),
        (21, "twenty-one", "einundzwanzig"),
        (30, "thirty", "dreißig"),
        (101, "one hundred and one", "einhunderteins"),
        (342, "three hundred and forty-two", "dreihundertzweiundvierzig"),
        (1000, "one thousand", "eintausend"),
        (2042, "two thousand and forty-two", "zweitausendzweiundvierzig"),
        (
            9999,
            "nine thousand nine hundred and ninety-nine",
            "neuntausendneunhundertneunundneunzig",
        ),
    ],
)
def test_number_words(number: int, english: str, german: str) -> None:
    assert translate_numbers.english_words(number) == english
    assert translate_numbers.german_words(number) == german


def test_no_number_is_on_both_sides() -> None:
    settings = translate_numbers.Settings()
    train, held_out = translate_numbers.split(settings)
    assert len(held_out) == 2000
    assert min(held_out) > 20  # whoever has not seen "twelve" cannot know it
    assert sorted(train + held_out) == list(range(10_000))


def test_tokenizers_lose_nothing(translator: translate_numbers.Translator) -> None:
    words = [translate_numbers.german_words(number) for number in range(100)]
    ids = translator.german(words)["input_ids"]
    assert translator.german.batch_decode(ids, skip_special_tokens=True) == words
    numbers = [translate_numbers.english_words(number) for number in range(100)]
    unknown = translator.english.unk_token_id
    assert not any(unknown in row for row in translator.english(numbers)["input_ids"])


# examples/classify_reviews.py


@pytest.fixture(scope="module")
def classifier(
    tmp_path_factory: pytest.TempPathFactory, minilm_folder: Path, movie_reviews: object
) -> tuple[Path, classify_reviews.Trained]:
    """A classifier fine-tuned on few sentences, and what came of it."""
    folder = tmp_path_factory.mktemp("classifier")
    return folder, classify_reviews.train(folder, classify_reviews.QUICK)


def few_test_sentences() -> classify_reviews.Reviews:
    return classify_reviews.load_reviews()["test"].head(classify_reviews.QUICK.sentences)


def test_the_classifier_learns(classifier: tuple[Path, classify_reviews.Trained]) -> None:
    _, trained = classifier
    assert len(trained.losses) == len(trained.validation) == 2
    assert trained.losses[1] < trained.losses[0] - 0.05
    assert max(trained.validation) > 0.6
    assert trained.test > 0.6


def test_the_saved_classifier_answers_alike_in_transformers_and_here(
    classifier: tuple[Path, classify_reviews.Trained],
) -> None:
    folder, trained = classifier
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model) is transformers.BertForSequenceClassification
    assert model.config.id2label == {0: "panning", 1: "praise"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    reviews = few_test_sentences()
    assert classify_reviews.accuracy(model, tokenizer, reviews) == trained.test
    theirs = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    want = theirs(reviews.texts[:64], batch_size=16)
    got = fastdistil.pipeline("text-classification", folder, precision="fp32")(reviews.texts[:64])
    assert [each["label"] for each in got] == [each["label"] for each in want]
    scores = [each["score"] for each in want]
    assert [each["score"] for each in got] == pytest.approx(scores, abs=1e-4)


def test_no_text_is_on_two_sides(movie_reviews: tuple[list[str], list[float]]) -> None:
    sides = classify_reviews.load_reviews()
    texts = [set(reviews.texts) for reviews in sides.values()]
    everything = set.union(*texts)
    assert sum(map(len, texts)) == len(everything)
    shares = {side: len(reviews.texts) / len(everything) for side, reviews in sides.items()}
    assert shares == pytest.approx({"train": 0.7, "validation": 0.1, "test": 0.2}, abs=0.02)
    for reviews in sides.values():
        assert sum(reviews.labels) / len(reviews.labels) == pytest.approx(0.5, abs=0.05)
    scores = dict(zip(*movie_reviews, strict=True))
    assert min(abs(scores[text]) for text in everything) == classify_reviews.UNDECIDED
    test = sides["test"]
    assert all((scores[t] > 0) == bool(y) for t, y in zip(test.texts, test.labels, strict=True))


def test_batches_hold_every_row_once_and_rows_of_like_length() -> None:
    lengths = torch.randint(5, 80, (1000,), generator=torch.Generator().manual_seed(0)).tolist()

    def drawn(seed: int) -> list[list[int]]:
        return list(classify_reviews.batches(lengths, 16, torch.Generator().manual_seed(seed)))

    found = drawn(0)
    assert sorted(row for batch in found for row in batch) == list(range(1000))
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in found)
    assert padded < 1.1 * sum(lengths)
    assert drawn(0) == found
    assert drawn(1) != found


# benchmarks/classification.py


@pytest.fixture
def quick_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)
    monkeypatch.setattr(classification, "BATCH_SIZES", (8, 16))
    monkeypatch.setattr(classification, "TUNING_SENTENCES", 8)
    sides = {"test": few_test_sentences().head(24)}
    monkeypatch.setattr(classify_reviews, "load_reviews", lambda: sides)


def test_a_run_of_the_benchmark(
    classifier: tuple[Path, classify_reviews.Trained],
    quick_benchmark: None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if extension_error() is not None:
        pytest.skip("the benchmark measures the CPU engine; runs where the C++ extension is built")
    file = tmp_path / "classification.json"
    arguments = ["--quick", "--precisions", "fp32", "--folder", str(classifier[0])]
    assert classification.main([*arguments, "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    assert results["sentences"] == 24
    assert results["accuracy"] == [
        {"precision": "fp32", "accuracy": results["plain_accuracy"], "agreement": 1.0}
    ]
    peers, ours = results["speed"][:4], results["speed"][4:]
    assert [row["name"] for row in ours] == ["fastdistil fp32"]
    assert all(row["batch_size"] in (8, 16) for row in peers)
    assert all(len(row["seconds"]) == 2 for row in results["speed"])
    assert classification.report(results) in capsys.readouterr().out


def some_results(**changes: Any) -> dict[str, Any]:
    speed = [
        {"name": f"{classification.PEER} {name}", "batch_size": 8, "seconds": [seconds] * 3}
        for name, seconds in (("fp32, in order", 10.0), ("bf16, in order", 5.0))
    ]
    speed.append({"name": "fastdistil int8", "batch_size": None, "seconds": [1.0, 2.0, 9.0]})
    return {
        "environment": SOME_ENVIRONMENT,
        "quick": True,
        "sentences": 1000,
        "plain_accuracy": 0.86,
        "accuracy": [{"precision": "int8", "accuracy": 0.857, "agreement": 0.99}],
        "speed": speed,
        "missing": ["fastdistil fp9: no"],
    } | changes


def test_speeds_are_of_medians_and_held_against_the_usual_and_the_best() -> None:
    assert list(classification.speed_rows(some_results())) == [
        ("transformers' pipeline fp32, in order, batches of 8", "100", "1.0x", "0.5x"),
        ("transformers' pipeline bf16, in order, batches of 8", "200", "2.0x", "1.0x"),
        ("fastdistil int8", "500", "5.0x", "2.5x"),
    ]


def test_accuracy_is_kept_within_half_a_point() -> None:
    results = some_results()
    assert list(classification.accuracy_rows(results)) == [("int8", "85.70%", "-0.30", "99.00%")]
    assert classification.kept(results)
    assert not classification.kept(some_results(plain_accuracy=0.8651))
    assert not classification.kept(some_results(plain_accuracy=0.8519))
    assert classification.report(results).endswith("not measured: fastdistil fp9: no")


def test_batch_sizes_are_tried_on_the_first_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def classify(texts: list[str], batch_size: int) -> list[dict[str, Any]]:
        asked.append((texts, batch_size))
        return []

    def fastest(runs: dict[str, Any]) -> str:
        for run in runs.values():
            run()
        return "32"

    monkeypatch.setattr(timing, "fastest", fastest)
    texts = ["longer"] + ["x"] * 500
    assert classification.tuned_batch_size(classify, texts, by_length=True) == 32
    assert {size for _, size in asked} == set(classification.BATCH_SIZES)
    assert all(tried == ["x"] * 383 + ["longer"] for tried, _ in asked)


def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> Any:
        raise LookupError("no film reviews here")

    monkeypatch.setattr(classify_reviews, "movie_reviews", fail)
    with pytest.raises(SystemExit, match="classify_reviews: no film reviews here"):
        classify_reviews.main(["--folder", str(tmp_path)])
    with pytest.raises(SystemExit, match="classification: no film reviews here"):
        classification.main(["--folder", str(tmp_path / "none")])
