"""What is encoded: real sentences, and real articles, in a file with a text a line."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.accuracy import Doubles, original
from benchmarks.corpora import minilm_folder
from benchmarks.encode.engines import MAX_LENGTH
from benchmarks.workloads import token_ids


@dataclass(frozen=True)
class Texts:
    """Texts that are encoded in one go.

    Attributes:
        file: a text a line.
        ids: the token ids of each, cut at MAX_LENGTH.
    """

    file: Path
    ids: Sequence[tuple[int, ...]]

    @functools.cached_property
    def expected(self) -> Doubles:
        """[N, D]: the means of transformers' last hidden states in float64; of any length."""
        states = original(minilm_folder(), self.ids)
        return np.stack([tokens.mean(axis=0) for tokens in states])

    @property
    def tokens(self) -> int:
        """Real tokens: none of what was cut away, no padding."""
        return sum(map(len, self.ids))


def written(texts: Sequence[str], file: Path) -> Texts:
    """Texts without line ends, as a new file."""
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return Texts(file, token_ids(texts, MAX_LENGTH))
