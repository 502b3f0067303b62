"""What is run: rows of the table, each as several sets of inputs that lie on the device already.

Real sentences' lengths where a corpus is at hand (nothing is downloaded here); otherwise lengths
drawn from the percentiles that were measured on one. Token ids are random: speed does not depend
on them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks import corpora, workloads
from fastdistil.bench.workloads import pad
from fastdistil.packing import PackedBatch, pack_ids

SETS = 3
# Rows of a batch where a careful user of a padding engine sorts by length first.
SORTED_BATCH = 128

MEAN_LENGTH = 30.0
# Tokens of film-review sentences at these percentiles (vaderSentiment 3.3.2, WordPiece).
_PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)
_LENGTHS = (4, 10, 19, 26, 34, 46, 55, 70)
# Ids below are the vocabulary's special ones.
_FIRST_WORD = 5


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: for people, and the key among the results.
        lengths: of its sequences.
        latency: whether one call's duration counts rather than the throughput.
        target: what it shall reach on an H100: sequences per second, or seconds a call.
        source: where the lengths come from.
    """

    name: str
    lengths: tuple[int, ...]
    latency: bool = False
    target: float | None = None
    source: str = "all equal"

    @property
    def tokens(self) -> int:
        """Real tokens; padding is never counted."""
        return sum(self.lengths)

    @property
    def ragged(self) -> bool:
        """Whether engines that pad have something to pad."""
        return len(set(self.lengths)) > 1


@dataclass(frozen=True)
class Padded:
    """int64 [B, S]: ids, and the mask, which is None where every token is real."""

    input_ids: Tensor
    attention_mask: Tensor | None

    def real(self, hidden: Tensor) -> Tensor:
        """[B, S, D] to [T, D]."""
        if self.attention_mask is None:
            return hidden.flatten(0, 1)
        return hidden[self.attention_mask.bool()]


@dataclass(frozen=True)
class Inputs:
    """One set of inputs in every form, on the device.

    Attributes:
        packed: all of it.
        padded: all of it as one batch.
        batches: sorted by length, in batches of SORTED_BATCH.
        order: int64 [T]: the place in `packed` of each real token of `batches`.
    """

    packed: PackedBatch
    padded: Padded
    batches: tuple[Padded, ...]
    order: Tensor


def rows(dry: bool) -> list[Row]:
    """The table's rows, with their targets."""
    if dry:
        return [
            Row("mixed", (5, 1, 3), target=1.0, source="a dry run"),
            full_rows("1 x 8", 1, 8, latency=True, target=1.0),
        ]
    lengths, source = mixed_lengths(1024)
    return [
        full_rows("256 x 128", 256, 128, target=55_000.0),
        Row("mixed", lengths, target=215_000.0, source=source),
        full_rows("64 x 512", 64, 512, target=12_000.0),
        full_rows("1 x 16", 1, 16, latency=True, target=60e-6),
        full_rows("1 x 128", 1, 128, latency=True, target=80e-6),
    ]


def full_rows(
    name: str, count: int, length: int, latency: bool = False, target: float | None = None
) -> Row:
    """`count` sequences of `length` tokens: no padding for anybody."""
    return Row(name, (length,) * count, latency, target)


def mixed_lengths(count: int, seed: int = 0) -> tuple[tuple[int, ...], str]:
    """Natural lengths in mixed order, stretched to a mean of 30, and where they come from."""
    natural, source = _natural_lengths(count, seed)
    lengths = np.rint(natural * (MEAN_LENGTH / natural.mean())).astype(int)
    source += f", stretched to a mean of {MEAN_LENGTH:g}"
    return tuple(int(length) for length in lengths), source


def _natural_lengths(count: int, seed: int) -> tuple[npt.NDArray[np.float64], str]:
    if (corpora.CACHE / "vaderSentiment-3.3.2.txt").is_file():
        # Without MiniLM's tokenizer or enough sentences there is the other way.
        with contextlib.suppress(LookupError, ImportError):
            sequences = workloads.mixed_sentences(count).sequences
            return np.array([len(s) for s in sequences], np.float64), "real sentences"
    uniform = np.random.default_rng(seed).uniform(0, 100, count)
    drawn = np.interp(uniform, _PERCENTILES, _LENGTHS)
    return drawn, "drawn by percentiles of film-review sentences"


def input_sets(row: Row, vocabulary: int, device: torch.device, count: int = SETS) -> list[Inputs]:
    """`count` sets: the same lengths in other orders, other ids."""
    found = []
    for seed in range(count):
        generator = np.random.default_rng(seed)
        lengths = generator.permutation(row.lengths)
        ids = [generator.integers(_FIRST_WORD, vocabulary, n, dtype=np.int32) for n in lengths]
        found.append(_inputs(ids, device))
    return found


def _inputs(ids: Sequence[npt.NDArray[np.int32]], device: torch.device) -> Inputs:
    starts = np.cumsum([0, *map(len, ids)])
    by_length = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
    groups = [by_length[i : i + SORTED_BATCH] for i in range(0, len(ids), SORTED_BATCH)]
    order = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in by_length])
    return Inputs(
        pack_ids(ids).to(device),
        _pad(ids, device),
        tuple(_pad([ids[i] for i in group], device) for group in groups),
        torch.from_numpy(order).to(device),
    )


def _pad(ids: Sequence[npt.NDArray[np.int32]], device: torch.device) -> Padded:
    batch = pad(ids)
    full = bool(batch.attention_mask.all())
    return Padded(
        torch.from_numpy(batch.input_ids).to(device),
        None if full else torch.from_numpy(batch.attention_mask).to(device),
    )
