"""Encoder: texts in, vectors out.

Texts are tokenised in chunks by a thread that runs ahead; the caller's thread lays the tokens end
to end, cuts them into batches of about `batch_tokens` tokens in the order given, and runs the
model. Nothing is sorted by length and nothing is padded: a batch costs its tokens, whatever the
mixture, and a text's vector does not depend on its batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .checkpoint import resolve_folder
from .model import DistilBertModel
from .overlap import overlapped
from .packing import PackedBatch, pack_flat, pack_ids, plan_batches, validate
from .progress import Progress
from .sentence_settings import POOLINGS, read_sentence_settings
from .tokenization import TextTokenizer, TokenizedTexts

if TYPE_CHECKING:
    from .encode_file import EncodeSummary

# A CPU engine hands each thread row blocks of some 512 tokens: this is one for each of 16 threads,
# and many enough for a few threads that the last one is not waited for long. On a GPU it fills the
# machine. The widest activation of a 768-wide model (3072 float32 a token) then takes 100 MB in
# plain PyTorch, and nothing like it in the engines.
DEFAULT_BATCH_TOKENS = 8192

# Texts tokenised at a time: enough to keep the tokenizer's own threads busy, and the first chunk is
# soon there. The limit in characters keeps chunks of long documents small in memory.
_CHUNK_TEXTS = 512
_CHUNK_CHARACTERS = 1 << 20
# Chunks waiting for the model: tokenising is faster, and one in hand is enough.
CHUNKS_AHEAD = 3
# For fewer texts than this, starting a thread costs more than it hides.
_SMALL_INPUT = 64

Vectors = NDArray[np.float32]


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
        device: where the model runs; by default the CPU.
        precision: "auto" (the fastest with an error no larger than bfloat16's), "fp32", "bf16" or
            "fp16".
        backend: "auto", "cpu" or "reference".
        max_length: most tokens of a text, special tokens included; longer texts are cut. By default
            what the folder's sentence_bert_config.json or tokenizer_config.json says.
        pooling: "mean", "cls", "max", or "none" for every token's vector. By default what the
            folder's sentence-transformers files say, "mean" where there are none.
        normalize: scale vectors to length 1. By default what those files say, False where there are
            none.

    Attributes:
        model: the DistilBertModel.
        tokenizer: its TextTokenizer; None for a folder without one, which takes `encode_ids` only.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: an unsupported checkpoint or option; sentence-transformers files that ask for
            something that is not supported (give `pooling` to use the encoder without it).
    """

    def __init__(
        self,
        path_or_id: str | Path,
        device: torch.device | str | None = None,
        precision: str = "auto",
        backend: str = "auto",
        max_length: int | None = None,
        pooling: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        self.folder = resolve_folder(path_or_id)
        settings = read_sentence_settings(self.folder)
        if pooling is None and settings.unsupported is not None:
            raise ValueError(
                f"{path_or_id} asks for {settings.unsupported}; there is mean, cls or max pooling, "
                "and normalisation. Give pooling= (--pooling) to use the encoder without it"
            )
        self.pooling = _checked_pooling(settings.pooling if pooling is None else pooling)
        self.normalize = settings.normalize if normalize is None else normalize
        self.model = DistilBertModel.from_pretrained(
            self.folder / settings.transformer, device, precision, backend
        )
        self.tokenizer = TextTokenizer.from_folder(
            self.folder / settings.transformer, self.model.config.max_positions, max_length
        )

    @property
    def dim(self) -> int:
        """D, the length of a vector."""
        return self.model.config.hidden_size

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
            batch_tokens: tokens in a batch; changes speed and memory only.
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
            _check_texts(texts, 0)
            known = len(texts)
        chunks = text_chunks(_iterable(texts))
        if known is not None and known < _SMALL_INPUT:
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
        if batch_tokens is not None and batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        return EncodeOptions(
            chosen,
            self.normalize if normalize is None else normalize,
            DEFAULT_BATCH_TOKENS if batch_tokens is None else batch_tokens,
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
    ) -> Iterator[tuple[list[Vectors] | Vectors, int]]:
        """Vectors of a stream of tokenised texts, a batch at a time, in order.

        Yields:
            the vectors of some consecutive texts, [n, D] (or a list of n arrays [tokens, D] for
            pooling "none"), and how many tokens they had.
        """
        for ids, lengths in _batches(chunks, options.batch_tokens):
            yield self._run(pack_flat(ids, lengths), lengths, options), len(ids)

    def fingerprint(self) -> str:
        """A hash of all that decides a text's vector, save for the arithmetic."""
        digest = hashlib.sha256(json.dumps(asdict(self.model.config), sort_keys=True).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            flat = tensor.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        digest.update(self.require_tokenizer().fingerprint().encode())
        return digest.hexdigest()

    def _run(
        self, batch: PackedBatch, lengths: NDArray[np.int64], options: EncodeOptions
    ) -> list[Vectors] | Vectors:
        batch = batch.to(self.model.device)
        with torch.inference_mode():
            if options.pooling != "none":
                vectors = self.model.encode_packed(batch, options.pooling, options.normalize)
                return vectors.cpu().numpy()
            hidden = self.model.forward_packed(batch).float().cpu().numpy()
        return np.split(hidden, np.cumsum(lengths)[:-1])

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
        for vectors, tokens in self.encode_chunks(chunks, options):
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


def _checked_pooling(pooling: str) -> str:
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is {pooling!r}; it can be {', '.join(POOLINGS)}")
    return pooling


def _iterable(values: Any, name: str = "texts") -> Iterable[Any]:
    try:
        return iter(values)
    except TypeError:
        raise TypeError(
            f"{name} is {type(values).__name__}; a list or another iterable is wanted"
        ) from None


def _check_texts(texts: Sequence[Any], first: int) -> None:
    """Raises TypeError unless all are strings; `first` is the caller's number of the first."""
    if {*map(type, texts)} <= {str}:
        return
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{first + index}] is {type(text).__name__}; a string is wanted")


def text_chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts, checked, in lists small enough to tokenise in one go."""
    chunk: list[str] = []
    characters = first = 0
    for text in texts:
        chunk.append(text)
        characters += len(text) if isinstance(text, str) else 0
        if len(chunk) == _CHUNK_TEXTS or characters >= _CHUNK_CHARACTERS:
            _check_texts(chunk, first)
            yield chunk
            first += len(chunk)
            chunk, characters = [], 0
    if chunk:
        _check_texts(chunk, first)
        yield chunk


def _batches(
    chunks: Iterable[TokenizedTexts], batch_tokens: int
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """Token ids and lengths of consecutive texts, as many as fit in `batch_tokens`, at least one.

    What is left of a chunk goes with the next one, so only the last batch is short.
    """
    ids, lengths = np.empty(0, np.int32), np.empty(0, np.int64)
    for chunk in chunks:
        ids = np.concatenate([ids, chunk.ids])
        lengths = np.concatenate([lengths, chunk.lengths])
        *full, rest = plan_batches(lengths, batch_tokens) or [np.arange(0)]
        for texts in full:
            part = lengths[texts]
            yield ids[: part.sum()], part
            ids = ids[part.sum() :]
        lengths = lengths[rest]
    if len(lengths):
        yield ids, lengths
