"""A checkpoint's encoder with its task head: packed sequences in, the head's numbers out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..batch_stream import (
    Lane,
    TokenLimit,
    Vectors,
    batches_of,
    in_order,
)
from ..checkpoint import Checkpoint, add_to_digest
from ..encoder import DEFAULT_BATCH_TOKENS, batch_tokens_for, checked_devices
from ..model import DistilBertModel
from ..packing import pack_flat
from ..tokenization import TokenizedTexts
from .heads import Head

Finish = Callable[[Tensor], Tensor]
"""What is done with a head's output [R, outputs] where it was computed."""


class TaskModel:
    """An encoder, on one device or several, and a head.

    Args:
        checkpoint: the encoder's weights, and the head's.
        head: what is computed of hidden states; None for a task that wants those.
        device, precision, backend, deterministic, cuda_graphs: as for `fastdistil.Encoder`.
        batch_tokens: tokens in a batch; changes speed and memory only.

    Attributes:
        config: the whole parsed config.json.
        folder: where the checkpoint is.
        encoder: the DistilBertModel (the first of several).
        head: the Head, or None.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        head: Head | None,
        device: Any = None,
        precision: str = "auto",
        backend: str = "auto",
        batch_tokens: int | None = None,
        deterministic: bool = True,
        cuda_graphs: bool = True,
    ) -> None:
        if batch_tokens is not None and (not isinstance(batch_tokens, int) or batch_tokens < 1):
            raise ValueError(f"batch_tokens is {batch_tokens!r}; a whole number from 1 is wanted")
        self.config = checkpoint.hf_config
        self.folder: Path = checkpoint.folder
        self.head = head
        self._encoders = [
            DistilBertModel.from_checkpoint(
                checkpoint, each, precision, backend, deterministic, cuda_graphs
            )
            for each in checked_devices(device, deterministic)
        ]
        self._heads = [
            None if head is None else head.to(encoder.device) for encoder in self._encoders
        ]
        self._limit = TokenLimit()
        self._batch_tokens = batch_tokens

    @property
    def encoder(self) -> DistilBertModel:
        """The encoder; with several devices the one on the first."""
        return self._encoders[0]

    def run(
        self, chunks: Iterable[TokenizedTexts], finish: Finish | None = None
    ) -> Generator[Vectors, None, None]:
        """The numbers of all tokens that are read, in order, a batch at a time.

        Args:
            chunks: texts with `reads`.
            finish: applied to the head's output; each of its rows must depend on that row only.

        Yields:
            float32 [R, outputs] (hidden states [R, D] without a head).
        """
        lanes = [
            Lane(encoder.device, _work(encoder, head, finish), self._limit)
            for encoder, head in zip(self._encoders, self._heads, strict=True)
        ]
        batches = batches_of(chunks, self.batch_tokens, self._limit)
        with closing(in_order(lanes, batches)) as results:
            for _, numbers in results:
                yield numbers

    def fingerprint(self) -> str:
        """A hash of the config and of all weights."""
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True, default=str).encode())
        add_to_digest(digest, self.encoder.state_dict())
        for index, layer in enumerate(self.head.layers if self.head is not None else ()):
            add_to_digest(digest, {f"head.{index}.{k}": t for k, t in layer.tensors().items()})
        return digest.hexdigest()

    @property
    def batch_tokens(self) -> int:
        """Tokens in a batch."""
        if self._batch_tokens is None:
            is_gpu = self.encoder.device.type == "cuda"
            self._batch_tokens = (
                batch_tokens_for(self._encoders) if is_gpu else DEFAULT_BATCH_TOKENS
            )
        return self._batch_tokens


def _work(
    encoder: DistilBertModel, head: Head | None, finish: Finish | None
) -> Callable[[TokenizedTexts], Tensor]:
    """What is computed of a batch: the head, on the tokens that are read and on no others."""

    def work(batch: TokenizedTexts) -> Tensor:
        packed = pack_flat(batch.ids, batch.lengths, batch.segments).to(encoder.device)
        if batch.reads is None or batch.reads.all():
            hidden = encoder.forward_packed(packed)
        else:
            hidden = encoder.forward_rows(packed, torch.from_numpy(batch.reads.nonzero()[0]))
        out = hidden.float()
        # The head is float32 as its weights are; an autocast around the caller is not about it.
        with torch.autocast(out.device.type, enabled=False):
            scores = out if head is None else head(out)
            return scores if finish is None else finish(scores)

    return work
