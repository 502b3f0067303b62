"""Encoder: texts in, vectors out.

Texts are tokenised in chunks by a thread that runs ahead; the caller's thread lays the tokens end
to end, cuts them into batches of about `batch_tokens` tokens in the order given, and runs the
model. Nothing is sorted by length and nothing is padded: a batch costs its tokens, whatever the
mixture, and a text's vector does not depend on its batch. On GPUs, `batch_stream` keeps several
batches on their way at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .batch_stream import (
    Lane,
    TokenLimit,
    Vectors,
    Work,
    batches_of,
    budget_from_memory,
    free_memory,
    in_order,
)
from .checkpoint import add_to_digest, resolve_folder
from .model import DistilBertModel
from .overlap import overlapped
from .packing import pack_flat, pack_ids, validate
from .progress import Progress
from .sentence_settings import POOLINGS, read_sentence_settings
from .tokenization import TextTokenizer, TokenizedTexts

if TYPE_CHECKING:
    from .encode_file import EncodeSummary

__all__ = ["EncodeOptions", "Encoder", "Vectors", "text_chunks"]

# A CPU engine hands each thread row blocks of some 512 tokens: this is one for each of 16 threads,
# and many enough for a few threads that the last one is not waited for long. The widest activation
# of a 768-wide model (3072 float32 a token) then takes 100 MB in plain PyTorch, and nothing like it
# in the engines. The GPU engine takes what there is memory for.
DEFAULT_BATCH_TOKENS = 8192

# Texts tokenised at a time: enough to keep the tokenizer's own threads busy, and the first chunk is
# soon there. The limit in characters keeps chunks of long documents small in memory.
_CHUNK_TEXTS = 512
_CHUNK_CHARACTERS = 1 << 20
# Chunks waiting for the model: tokenising is faster, and one in hand is enough.
CHUNKS_AHEAD = 3
# For fewer texts than this, starting a thread costs more than it hides.
SMALL_INPUT = 64


@dataclass(frozen=True)
class EncodeOptions:
    """Checked options of one call."""

    pooling: str
    normalize: bool
    batch_tokens: int


class Encoder:
    """A sentence encoder: a checkpoint's tokenizer, its encoder, and its pooling. Safe to use from
    several threads.

    Args:
        path_or_id: a local checkpoint folder or a Hugging Face hub id.
        device: where the model runs; by default the CPU. A list of GPUs of one kind: a copy of the
            model on each, and the batches are shared out among them.
        precision: "auto" (the fastest with an error no larger than bfloat16's), "fp32", "bf16",
            "fp16" (GPUs) or "int8" (on a GPU for weights only).
        backend: "auto", "cuda", "cpu" or "reference".
        max_length: most tokens of a text, special tokens included; longer texts are cut. By default
            what the folder's sentence_bert_config.json or tokenizer_config.json says.
        pooling: "mean", "cls", "max", or "none" for every token's vector. By default what the
            folder's sentence-transformers files say, "mean" where there are none.
        normalize: scale vectors to length 1. By default what those files say, False where there are
            none.
        deterministic, cuda_graphs: as for `DistilBertModel`.
        batch_tokens: tokens in a batch where a call does not say; changes speed and memory only. By
            default 8192, and on a GPU what its memory allows.

    Attributes:
        model: the DistilBertModel; with several devices the one on the first. What is done to it is
            not done to its copies.
        tokenizer: its TextTokenizer; None for a folder without one, which takes `encode_ids` only.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unsupported checkpoint or option; devices that would not compute the same;
            sentence-transformers files that ask for something that is not supported (give `pooling`
            to use the encoder without it).
    """

    def __init__(
        self,
        path_or_id: str | Path,
        device: torch.device | str | Sequence[torch.device | str] | None = None,
        precision: str = "auto",
        backend: str = "auto",
        max_length: int | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
        deterministic: bool = True,
        cuda_graphs: bool = True,
        batch_tokens: int | None = None,
    ) -> None:
        _check_batch_tokens(batch_tokens)
        self.folder = resolve_folder(path_or_id)
        settings = read_sentence_settings(self.folder)
        if pooling is None and settings.unsupported is not None:
            raise ValueError(
                f"{path_or_id} asks for {settings.unsupported}; there is mean, cls or max pooling, "
                "and normalisation. Give pooling= (--pooling) to use the encoder without it"
            )
        self.pooling = _checked_pooling(settings.pooling if pooling is None else pooling)
        self.normalize = settings.normalize if normalize is None else normalize
        self.model, *self._copies = (
            DistilBertModel.from_pretrained(
                self.folder / settings.transformer,
                each,
                precision,
                backend,
                deterministic=deterministic,
                cuda_graphs=cuda_graphs,
            )
            for each in checked_devices(device, deterministic)
        )
        self._deterministic = deterministic
        self._limit = TokenLimit()
        self._default_batch_tokens = batch_tokens
        self.tokenizer = TextTokenizer.from_folder(
            self.folder / settings.transformer, self.model.config.max_positions, max_length
        )

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.model.config.hidden_size

    @property
    def batch_invariant(self) -> bool:
        """Whether a text's vector has the same bits in any batch.

        The engines promise that, the GPU's unless `deterministic` is False. Plain PyTorch, whose
        matrix products round by size, does not.
        """
        backend = self.model.explain()["backend"]
        return backend == "cpu" or (backend == "cuda" and self._deterministic)

    def warmup(
        self, tokens: int | Sequence[int] | None = None, max_seqlen: int | None = None
    ) -> None:
        """Do now what first batches would wait for; see `DistilBertModel.warmup`.

        Args:
            tokens: total tokens of the batches to come; by default a ladder of sizes.
            max_seqlen: their longest text; by default the tokenizer's max_length.
        """
        if max_seqlen is None and self.tokenizer is not None:
            max_seqlen = self.tokenizer.max_length
        for model in self._models():
            model.warmup(tokens, max_seqlen)

    def encode(
        self,
        texts: str | Iterable[str],
        pooling: str | None = None,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
    ) -> Any:
        """Vectors of texts, in the order given.

        Any string is a text: the empty one, megabytes, NULs; lone surrogates are read as U+FFFD.

        Args:
            texts: a list, another iterable, a generator (drawn from in this thread), or one string.
            pooling: "mean", "cls", "max" or "none"; by default the encoder's.
            normalize: scale to length 1; by default the encoder's.
            batch_tokens: tokens in a batch; by default the encoder's.
            show_progress: a bar on a terminal, plain lines otherwise, on stderr; None is False.

        Returns:
            float32 [N, D], [D] for one string; for pooling "none" a list of float32 [tokens, D], or
            one.

        Raises:
            TypeError: something that is not a string; the message names its place.
            ValueError: an option that makes no sense, or a checkpoint without a tokenizer.
        """
        options = self.options(pooling, normalize, batch_tokens)
        tokenizer = self.require_tokenizer()
        if isinstance(texts, str):
            return self._gather(map(tokenizer, [[texts]]), 1, options, False)[0]
        known = None
        if isinstance(texts, Sized):
            texts = list(texts)
            check_texts(texts, 0)
            known = len(texts)
        chunks = text_chunks(_iterable(texts))
        if known is not None and known < SMALL_INPUT:
            return self._gather(map(tokenizer, chunks), known, options, show_progress)
        with closing(overlapped(tokenizer, chunks, CHUNKS_AHEAD)) as tokenised:
            return self._gather(tokenised, known, options, show_progress)

    def encode_ids(
        self,
        sequences: Iterable[Sequence[int] | NDArray[Any] | torch.Tensor],
        pooling: str | None = None,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        show_progress: bool | None = None,
    ) -> Any:
        """The same for texts that are token ids already, special tokens included.

        Args:
            sequences: for each text a list, array or one-dimensional tensor of ids; an empty one
                gives zeros.

        Raises:
            TypeError: sequences that are not of integers.
            ValueError: an id outside the vocabulary, or a sequence longer than the model's position
                table.
        """
        options = self.options(pooling, normalize, batch_tokens)
        sequences = list(_iterable(sequences, "sequences"))
        for index, sequence in enumerate(sequences):
            if isinstance(sequence, str | bytes) or not hasattr(sequence, "__len__"):
                raise TypeError(
                    f"sequences[{index}] is {type(sequence).__name__}; a list, array or tensor of "
                    "token ids is wanted (for one text, a list of one such list)"
                )
        everything = pack_ids(sequences)
        validate(everything, self.model.config)
        lengths = np.diff(everything.cu_seqlens.numpy()).astype(np.int64)
        chunk = TokenizedTexts(everything.input_ids.numpy(), lengths)
        return self._gather(iter([chunk]), len(sequences), options, show_progress)

    def encode_file(self, source: str | Path, output: str | Path, **options: Any) -> EncodeSummary:
        """Vectors of a file of texts, in a file: see `fastdistil.encode_file.encode_file`."""
        from .encode_file import encode_file

        return encode_file(self, source, output, **options)

    def options(
        self, pooling: str | None, normalize: bool | None, batch_tokens: int | None
    ) -> EncodeOptions:
        """A call's options, the encoder's own where none are given.

        Raises:
            ValueError: an unknown pooling, a budget below 1, or normalised vectors of every token.
        """
        chosen = self.pooling if pooling is None else _checked_pooling(pooling)
        if normalize and chosen == "none":
            raise ValueError(
                "normalize is for one vector per text; with pooling 'none' leave it out"
            )
        _check_batch_tokens(batch_tokens)
        return EncodeOptions(
            chosen,
            self.normalize if normalize is None else normalize,
            self._batch_tokens() if batch_tokens is None else batch_tokens,
        )

    def require_tokenizer(self) -> TextTokenizer:
        """The tokenizer.

        Raises:
            ValueError: the checkpoint has none.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"{self.folder} has no tokenizer.json or vocab.txt, so it cannot take texts: add "
                "one, or give token ids to encode_ids"
            )
        return self.tokenizer

    def encode_chunks(
        self, chunks: Iterable[TokenizedTexts], options: EncodeOptions
    ) -> Generator[tuple[list[Vectors] | Vectors, int], None, None]:
        """Vectors of a stream of tokenised texts, a batch at a time, in order.

        Yields:
            the vectors of some consecutive texts, [n, D] (or a list of n arrays [tokens, D] for
            pooling "none"), and how many tokens they had.

        Raises:
            torch.cuda.OutOfMemoryError: one text is too much for a GPU's memory. What is only too
                much together is computed in smaller batches.
        """
        lanes = [Lane(m.device, _work(m, options), self._limit) for m in self._models()]
        batches = batches_of(chunks, options.batch_tokens, self._limit)
        with closing(in_order(lanes, batches)) as results:
            for batch, vectors in results:
                if options.pooling == "none":
                    yield np.split(vectors, np.cumsum(batch.lengths)[:-1]), len(batch.ids)
                else:
                    yield vectors, len(batch.ids)

    def fingerprint(self) -> str:
        """A hash of all that decides a text's vector, save for the arithmetic."""
        digest = hashlib.sha256(json.dumps(asdict(self.model.config), sort_keys=True).encode())
        add_to_digest(digest, self.model.state_dict())
        digest.update(self.require_tokenizer().fingerprint().encode())
        return digest.hexdigest()

    def _models(self) -> list[DistilBertModel]:
        """One for each device."""
        return [self.model, *self._copies]

    def _batch_tokens(self) -> int:
        """Tokens in a batch where the caller does not say."""
        if self._default_batch_tokens is None:
            self._default_batch_tokens = self._find_batch_tokens()
        return self._default_batch_tokens

    def _find_batch_tokens(self) -> int:
        # Where the batch decides some bits, it must not depend on what memory is free today.
        if self.model.device.type != "cuda" or not self.batch_invariant:
            return DEFAULT_BATCH_TOKENS
        return batch_tokens_for(self._models())

    def _gather(
        self,
        chunks: Iterator[TokenizedTexts],
        known: int | None,
        options: EncodeOptions,
        show_progress: bool | None,
    ) -> Any:
        """All vectors of a stream; `known` is how many there will be, where that is known."""
        progress = Progress(bool(show_progress), known)
        whole = None
        if known is not None and options.pooling != "none":
            whole = np.empty((known, self.dim), np.float32)
        parts: list[Any] = []
        row = 0
        with closing(self.encode_chunks(chunks, options)) as results:
            for vectors, tokens in results:
                if whole is not None:
                    whole[row : row + len(vectors)] = vectors
                else:
                    parts.append(vectors)
                row += len(vectors)
                progress.update(len(vectors), tokens)
        progress.close()
        if whole is not None:
            return whole
        if options.pooling == "none":
            return [vectors for part in parts for vectors in part]
        return np.concatenate(parts) if parts else np.empty((0, self.dim), np.float32)


def batch_tokens_for(models: Sequence[DistilBertModel]) -> int:
    """Tokens in a batch that the memory of all these models' GPUs allows."""
    for model in models:
        model.program()  # its weights and buffers are to be there already
    # Beside those buffers: ids, positions, and hidden states in two types of at most 4 bytes.
    bytes_per_token = 8 + 2 * 4 * models[0].config.hidden_size
    return min(budget_from_memory(free_memory(model.device), bytes_per_token) for model in models)


def _check_batch_tokens(batch_tokens: int | None) -> None:
    if batch_tokens is not None and batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")


def _checked_pooling(pooling: str) -> str:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}; it can be {', '.join(POOLINGS)}")
    return pooling


def checked_devices(device: Any, deterministic: bool) -> list[torch.device | str | None]:
    """The devices asked for, which all compute the same; None is torch's default."""
    if device is None or isinstance(device, str | torch.device):
        return [device]
    devices = list(device)
    if not devices:
        raise ValueError("device is an empty list; give at least one device, or None for the CPU")
    kinds = {_kind(torch.device(each)): str(each) for each in devices}
    if deterministic and len(kinds) > 1:
        found = ", ".join(f"{each} ({kind})" for kind, each in kinds.items())
        raise ValueError(
            f"device lists different kinds: {found}. A text's vector would depend on which one it "
            "met; give devices of one kind, or deterministic=False"
        )
    return devices


def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _work(model: DistilBertModel, options: EncodeOptions) -> Work:
    """What is computed of a batch: the vectors of its texts, or of all of its tokens."""

    def work(batch: TokenizedTexts) -> torch.Tensor:
        packed = pack_flat(batch.ids, batch.lengths).to(model.device)
        if options.pooling == "none":
            return model.forward_packed(packed).float()
        return model.encode_packed(packed, options.pooling, options.normalize)

    return work


def _iterable(values: Any, name: str = "texts") -> Iterable[Any]:
    try:
        return iter(values)
    except TypeError:
        raise TypeError(
            f"{name} is {type(values).__name__}; a list or another iterable is wanted"
        ) from None


def check_texts(texts: Sequence[Any], first: int, name: str = "texts") -> None:
    """Raises TypeError unless all are strings.

    Args:
        first: the caller's number of the first.
        name: the caller's argument.
    """
    if {*map(type, texts)} <= {str}:
        return
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{first + index}] is {type(text).__name__}; a string is wanted")


def text_chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts, checked, in lists small enough to tokenise in one go."""
    chunk: list[str] = []
    characters = first = 0
    for text in texts:
        chunk.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(chunk) == _CHUNK_TEXTS or characters >= _CHUNK_CHARACTERS:
            check_texts(chunk, first)
            yield chunk
            first += len(chunk)
            chunk, characters = [], 0
    if chunk:
        check_texts(chunk, first)
        yield chunk
