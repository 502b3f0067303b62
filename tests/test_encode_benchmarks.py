"""benchmarks.encode: engines in processes of their own, their checks, their rows. No times."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from benchmarks.encode import contenders
from benchmarks.encode.contenders import Checked, Contender, Worker, check, race, race_starts
from benchmarks.encode.engines import COMMANDS, ENGINES, MAX_LENGTH, OTHERS, OURS, TextEngine
from benchmarks.encode.exports import EXPORTS
from benchmarks.encode.texts import Texts, written
from fastdistil.bench import timing
from fastdistil.bench.race import least_cosine

# A worker that answers with its own process id, and does what its one argument says.
FAKE = """
import json, os, sys
import numpy as np
kind, log = sys.argv[1:]
if kind == "dies at once":
    sys.exit("no such model")
for line in sys.stdin:
    request = json.loads(line)
    rows = len(open(request["texts"]).read().splitlines())
    vectors = np.ones((rows, 384))
    if kind == "dies":
        print("Traceback (most recent call last):", file=sys.stderr)
        sys.exit("no such luck\\n")
    if kind == "dies silently":
        os._exit(3)
    if kind == "wrong":
        vectors[-1, :200] *= -1
    if kind == "not a number":
        vectors[-1, 0] = np.nan
    if kind == "too few":
        vectors = vectors[1:]
    if request["vectors"]:
        np.save(request["vectors"], vectors)
    with open(log, "a") as file:
        file.write(f"{os.getpid()} ")
    print(json.dumps({"configuration": kind, "peak_process_bytes": os.getpid()}), flush=True)
"""

Start = Callable[..., Worker]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SETTLE_SECONDS", 0)


@pytest.fixture
def ones(tmp_path: Path) -> Texts:
    """Three texts, of which vectors of ones are expected."""
    file = tmp_path / "three.txt"
    file.write_text("a\nb\nc\n")
    texts = Texts(file, [(101, 5, 102)] * 3)
    texts.__dict__["expected"] = np.ones((3, 384))  # where cached_property keeps it
    return texts


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The process ids of the fakes, in the order of their answers."""
    return tmp_path / "log"


@pytest.fixture
def start(log: Path) -> Iterator[Start]:
    """Starts fakes."""
    with ExitStack() as ended:

        def started(kind: str, name: str = "fake", precision: str = "fp32") -> Worker:
            contender = Contender(name, precision, [sys.executable, "-c", FAKE, kind, str(log)])
            return ended.enter_context(contender.started())

        yield started


def test_texts_are_lines_and_tokens_those_after_the_cut(
    minilm_folder: Path, tmp_path: Path
) -> None:
    texts = written(["One \u2028 line.", "word " * 400], tmp_path / "texts.txt")
    assert texts.file.read_text(encoding="utf-8") == "One \u2028 line.\n" + "word " * 400 + "\n"
    assert [len(ids) for ids in texts.ids] == [5, MAX_LENGTH]
    assert texts.tokens == 5 + MAX_LENGTH
    assert texts.expected.shape == (2, 384)


def test_right_vectors_pass_and_say_how_right(start: Start, ones: Texts) -> None:
    left_out: list[str] = []
    worker = start("right")
    assert check([worker], ones, left_out) == [Checked(worker, pytest.approx(1.0))]
    assert left_out == []


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("wrong", "wrong answers (cosine -0.0417)"),
        ("not a number", "wrong answers (cosine nan)"),
        ("too few", "shapes (2, 384) and (3, 384) differ"),
        ("dies at once", "no such model"),
        ("dies", "no such luck"),
        ("dies silently", "ended with 3"),
    ],
)
def test_others_are_left_out_with_the_reason(
    kind: str, told: str, start: Start, ones: Texts
) -> None:
    left_out: list[str] = []
    good, bad = start("right", "good"), start(kind, "bad", "int8")
    assert [entry.worker for entry in check([bad, good], ones, left_out)] == [good]
    assert left_out == [f"bad, three: {told}"]
    assert check([bad], ones, left_out) == []  # also where nobody is there any more


def test_workers_take_turns_on_what_they_have_proved(start: Start, ones: Texts, log: Path) -> None:
    entries = check([start("right", "a"), start("right", "b", "int8")], ones, [])
    rows = race("three texts", ones, entries, 2)
    a, b = (int(pid) for pid in log.read_text().split()[:2])
    assert log.read_text().split() == [str(pid) for pid in (a, b, a, b, b, a)]
    assert [(row.group, row.name, len(row.seconds)) for row in rows] == [
        ("three texts", "a", 2),
        ("three texts", "b", 2),
    ]
    assert rows[1].info == {
        "precision": "int8",
        "configuration": "right",
        "least_cosine": pytest.approx(1.0),
        "sequences": 3,
        "tokens": 9,
        "peak_process_bytes": b,
        "repeats": 1,
    }
    json.dumps([dict(row.info) for row in rows])  # as a results file needs it


def test_every_start_is_a_new_process_and_ends(start: Start, ones: Texts, log: Path) -> None:
    entries = check([start("right", "a")], ones, [])
    (row,) = race_starts("first vector", ones, entries, 3)
    checked, *started = log.read_text().split()
    assert len({checked, *started}) == 4
    assert len(row.seconds) == 3
    assert row.info["peak_process_bytes"] == int(started[-1])
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)


def test_a_process_of_our_own(minilm_folder: Path, tmp_path: Path) -> None:
    left_out: list[str] = []
    texts = written(["A stitch in time saves nine.", "", "One. " * 300], tmp_path / "texts.txt")
    name = "fastdistil fp32"
    (contender,) = contenders.contenders({name: ENGINES[name]}, minilm_folder, left_out)
    with contender.started() as worker:
        assert [entry.worker for entry in check([worker], texts, left_out)] == [worker], left_out
        assert worker.reply["configuration"].startswith("Encoder.encode; cpu backend")
        assert worker.reply["peak_process_bytes"] > 1e8  # torch alone takes more


@pytest.mark.parametrize(
    "engine", [COMMANDS["fastdistil encode bf16"], OTHERS["SentenceTransformer torch fp32"]]
)
def test_engines_that_need_no_export(
    engine: TextEngine, minilm_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sentence_transformers")
    texts = written(["A stitch in time saves nine.", "One. " * 300], tmp_path / "texts.txt")
    vectors = engine.load(minilm_folder).encode(texts.file)
    if isinstance(vectors, Path):
        vectors = np.load(vectors)
    least = contenders.LEAST_COSINE[engine.precision]
    assert least_cosine(vectors.astype(float), texts.expected) >= least


def test_what_is_not_installed_is_left_out_with_the_cure(
    minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out: list[str] = []
    exported = {name: engine for name, engine in OTHERS.items() if engine.export is not None}
    monkeypatch.setattr(contenders, "OPTIMUM", tmp_path / "none")
    assert contenders.contenders(exported, minilm_folder, left_out) == []
    assert len(left_out) == len(exported) == 8
    assert all(line.endswith("`make optimum` installs it") for line in left_out)


def test_an_export_that_fails_says_why(
    minilm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_out: list[str] = []
    monkeypatch.setattr(contenders, "OPTIMUM", tmp_path)  # and nothing is in there
    assert contenders.contenders({"x": OTHERS["fastembed fp32"]}, minilm_folder, left_out) == []
    assert left_out == [
        "x: importlib.metadata.PackageNotFoundError: No package metadata was found for optimum-onnx"
    ]


def test_every_name_says_its_precision() -> None:
    assert {engine.export for engine in ENGINES.values()} - {None} == set(EXPORTS)
    assert list(ENGINES) == [*OURS, *OTHERS, *COMMANDS]
    for name, engine in ENGINES.items():
        assert engine.precision == name.split()[-1].replace("O3", "fp32")
