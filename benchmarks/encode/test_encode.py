"""all-MiniLM-L6-v2 from text to vectors, tokenisation included: fastdistil beside what people use.

    python -m pytest benchmarks/encode -o addopts= --benchmark-only
    python -m pytest benchmarks/encode -o addopts= --benchmark-only --quick -k sentences

Each engine lives in a process of its own, so that its memory is its own; the processes take turns,
and while one encodes the others sleep. Everybody gets the same texts in the same order, whole, and
may batch and sort them as it likes; all cut them at 256 tokens. `make optimum` installs what
sentence-transformers' onnx and openvino backends need, and fastembed. Together they hold 12 GB.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.conftest import Record
from benchmarks.corpora import bbc_articles, minilm_folder, real_sentences
from benchmarks.encode.contenders import Worker, check, contenders, race, race_starts
from benchmarks.encode.engines import COMMANDS, OTHERS, OURS
from benchmarks.encode.texts import Texts, written
from benchmarks.first_vector import SENTENCE

WHOLE = {"sentences": real_sentences, "articles": lambda: bbc_articles()[0]}
# Of a run, and of a quick one: how many of them everybody encodes; turns. For a whole file a quick
# run takes ten times as many.
SENTENCES, ARTICLES = (1000, 100), (60, 10)
TURNS = (3, 1)
QUICK = (*OURS, "SentenceTransformer torch fp32", "fastembed fp32")
# The start of everybody would take too long.
OF_EACH_KIND = (*QUICK, "SentenceTransformer onnx int8", "SentenceTransformer openvino bf16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def sentences(folder: Path, quick: bool) -> Texts:
    return written(real_sentences(SENTENCES[quick])[: SENTENCES[quick]], folder / "sentences.txt")


@pytest.fixture(scope="module")
def articles(folder: Path, quick: bool) -> Texts:
    return written(bbc_articles()[0][: ARTICLES[quick]], folder / "articles.txt")


@pytest.fixture(scope="module")
def field(quick: bool, left_out: list[str]) -> Iterator[list[Worker]]:
    """Everybody who takes part, each in a process."""
    engines = {n: e for n, e in (OURS | OTHERS).items() if not quick or n in QUICK}
    with contextlib.ExitStack() as ended:
        found = contenders(engines, minilm_folder(), left_out)
        yield [ended.enter_context(contender.started()) for contender in found]


def test_sentences(
    sentences: Texts, field: list[Worker], record: Record, left_out: list[str], quick: bool
) -> None:
    record(race("sentences", sentences, check(field, sentences, left_out), TURNS[quick]))


def test_articles(
    articles: Texts, field: list[Worker], record: Record, left_out: list[str], quick: bool
) -> None:
    record(race("articles", articles, check(field, articles, left_out), TURNS[quick]))


def test_first_vector(
    folder: Path, field: list[Worker], record: Record, left_out: list[str], quick: bool
) -> None:
    """From the start of a process, imports included. It is not its first: its files are cached."""
    one = written([SENTENCE], folder / "one sentence.txt")
    some = [worker for worker in field if worker.name in OF_EACH_KIND]
    record(race_starts("first vector", one, check(some, one, left_out), TURNS[quick]))


@pytest.mark.parametrize("what", ["sentences", "articles"])
def test_whole_file(
    what: str,
    folder: Path,
    record: Record,
    left_out: list[str],
    quick: bool,
    request: pytest.FixtureRequest,
) -> None:
    """`fastdistil encode`, as a process: first some of the texts, to be checked, then all."""
    some: Texts = request.getfixturevalue(what)
    count = 10 * len(some.ids) if quick else None
    everything = written(WHOLE[what]()[:count], folder / f"all {what}.txt")
    with contextlib.ExitStack() as ended:
        commands = contenders(COMMANDS, minilm_folder(), left_out)
        workers = [ended.enter_context(command.started()) for command in commands]
        right = check(workers, some, left_out)
        record(race(f"whole file, {what}", everything, right, TURNS[quick]))
