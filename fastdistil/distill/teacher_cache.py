"""A teacher's hidden states on disk: computed once, read in every epoch, by this run and by others.

A store of shards (see `fastdistil.shards`), memory-mapped when they are read: of each masking, all
texts of the corpus in order, float16, so two bytes a number (of 384 numbers a token, 768 bytes).
Each shard carries a hash of the tokens it is of, and a checksum of its data, which is compared when
a run begins. What is missing, damaged or of other texts is computed again; an interrupted run goes
on behind the last shard.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .._version import __version__
from ..packing import plan_batches
from ..progress import Progress
from ..run_folder import full_disk_explained
from ..shards import Shard, ShardStore
from .batches import TrainingBatch, make_batch
from .corpus import Corpus
from .masking import Masking
from .teacher import Teacher

# What is lost at most when a run is killed: less than a second of work on a fast machine.
_SHARD_TOKENS = 1 << 16
_BATCH_TOKENS = 8192


class TeacherCache:
    """Hidden states of a corpus, as `Source` gives them. A context manager: locked meanwhile.

    Args:
        teacher: computes what is missing.
        folder: of the store; made where there is none.
        corpus: the texts.
        masking: the rule for a masked language model; None: texts as they are.
        maskings: how many of each text.
        show: progress on stderr.

    Attributes:
        seconds: time spent so far on files, in which the teacher did not run.
        computed: tokens that were not there yet.
    """

    def __init__(
        self,
        teacher: Teacher,
        folder: Path,
        corpus: Corpus,
        masking: Masking | None,
        maskings: int,
        show: bool,
    ) -> None:
        self.seconds = 0.0
        self.computed = 0
        self._teacher = teacher
        self._corpus = corpus
        self._masking = masking
        self._maskings = maskings
        self._show = show
        self._blocks = plan_batches(corpus.lengths, _SHARD_TOKENS)
        self._block_of, self._row_of = _places(corpus, self._blocks)
        self._store = ShardStore(
            folder,
            noun="a teacher's outputs",
            cure="name another folder for these, or remove that one",
            place="folder",
        )

    def __enter__(self) -> TeacherCache:
        self._store.folder.parent.mkdir(parents=True, exist_ok=True)
        self._store.__enter__()
        try:
            with full_disk_explained(self._store.folder):
                self._store.begin(self._settings(), resume=True)
                self._complete()
        except BaseException:
            self._store.__exit__()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._store.__exit__()

    def hidden(self, batch: TrainingBatch) -> Tensor:
        """Last hidden states of a batch's tokens, float16 [T, D] on the batch's device."""
        start = time.monotonic()
        first = batch.masking * len(self._blocks)
        parts = []
        for text in batch.texts.tolist():
            row = int(self._row_of[text])
            shard = first + int(self._block_of[text])
            parts.append(self._store.rows(shard, row, row + int(self._corpus.lengths[text])))
        hidden = torch.from_numpy(np.concatenate(parts)).to(batch.packed.device)
        self.seconds += time.monotonic() - start
        return hidden

    def _settings(self) -> Mapping[str, Any]:
        engine = self._teacher.engine()
        rule = self._masking
        return {
            "fastdistil": __version__,
            "teacher": self._teacher.fingerprint(),
            **{name: engine[name] for name in ("backend", "precision", "instruction_set")},
            "masking": None if rule is None else [rule.seed, rule.probability, rule.mask_id],
        }

    def _complete(self) -> None:
        """Computes what is not there."""
        start, done = time.monotonic() - self._teacher.seconds, 0
        total = self._maskings * int(self._corpus.lengths.sum())
        with Progress(self._show, total, "teacher") as progress:
            for index in range(self._maskings * len(self._blocks)):
                texts = self._blocks[index % len(self._blocks)]
                tokens = int(self._corpus.lengths[texts].sum())
                done += tokens
                if self._ensured(index, texts):
                    progress.skip(len(texts), done)
                else:
                    progress.update(len(texts), tokens, done)
                    self.computed += tokens
        self.seconds += time.monotonic() - self._teacher.seconds - start

    def _ensured(self, index: int, texts: NDArray[np.int64]) -> bool:
        """Makes sure that a shard is there; whether it was already."""
        pieces = list(self._pieces(texts, index // len(self._blocks)))
        digest = _digest(pieces)
        if self._store.find(index, digest) is not None and self._store.check(index):
            return True
        data = np.concatenate([self._teacher.hidden(piece).cpu().numpy() for piece in pieces])
        self._store.write(index, digest, data, Shard(len(data), len(data), 0, 0))
        return False

    def _pieces(self, texts: NDArray[np.int64], number: int) -> Iterator[TrainingBatch]:
        """A shard's texts, in order, in batches for the teacher."""
        device = self._teacher.model.device
        for places in plan_batches(self._corpus.lengths[texts], _BATCH_TOKENS):
            yield make_batch(self._corpus, texts[places], self._masking, number).to(device)


def _digest(pieces: list[TrainingBatch]) -> str:
    """A hash of what the teacher reads."""
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece.packed.cu_seqlens.cpu().numpy().data)
        found.update(piece.packed.input_ids.cpu().numpy().data)
    return found.hexdigest()


def _places(
    corpus: Corpus, blocks: list[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each text its block, and the row of its first token in it."""
    block_of = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])
    ends = np.cumsum(corpus.lengths)
    starts = ends - corpus.lengths
    first = starts[[block[0] for block in blocks]]
    return block_of, starts - first[block_of]
