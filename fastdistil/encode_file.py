"""A file of texts in, a file of vectors out: streaming, and resumable to the bit.

    records -> shards of thousands -> tokenised chunks -> batches -> vectors -> shard on disk -> OUT
    `----------- a thread running ahead ------------'    `- the caller -'   `- another -'

Memory holds a few shards, whatever the size of the input. A finished shard stays in OUT.partial
(see `shards`) until all are there; then OUT is put together under a temporary name and renamed.
Batches never reach across shards, so shards come out the same in any run even where an engine's
rounding depends on the batch.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ._version import __version__
from .encoder import CHUNKS_AHEAD, EncodeOptions, Encoder, Vectors, text_chunks
from .overlap import overlapped
from .progress import Progress
from .run_folder import TEMPORARY, atomic_file, full_disk_explained, partial_folder
from .shard_plan import IdSpool, Plan, plans
from .shards import Shard, ShardStore
from .text_io import UsageError, open_records
from .tokenization import TextTokenizer, TokenizedTexts
from .vector_io import FORMATS_WITH_IDS, Block, check_files, format_of_output, write_vectors


@dataclass(frozen=True)
class EncodeSummary:
    """What a finished run did."""

    output: Path
    ids_output: Path | None
    """Where the ids lie, for formats that do not carry them; None without an id column."""
    rows: int
    dim: int
    tokens: int
    truncated: int
    """Texts longer than max_length tokens, of which the beginning was encoded."""
    replaced: int
    """Texts with lone surrogates, which were read as U+FFFD."""
    resumed: int
    """Rows taken over from an earlier run that was interrupted."""
    seconds: float
    max_length: int


@dataclass(frozen=True)
class _Piece:
    """Some texts of a shard on their way to the model; or `done`, where it is on disk already."""

    plan: Plan
    tokenised: TokenizedTexts
    last: bool
    """True for the last piece of its shard."""
    done: Shard | None = None


@dataclass(frozen=True)
class _Encoded:
    """A whole shard; `vectors` where they are yet to be written."""

    plan: Plan
    shard: Shard
    vectors: Vectors | None


def encode_file(
    encoder: Encoder,
    source: str | Path,
    output: str | Path,
    *,
    input_format: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    batch_tokens: int | None = None,
    resume: bool = True,
    show_progress: bool | None = None,
) -> EncodeSummary:
    """Encodes every record of a file, one row each, in order.

    Interrupted in any way (Ctrl-C, SIGKILL, a full disk, a bad line), the same call continues where
    it stopped, and the finished file is bitwise what an uninterrupted run writes.

    Args:
        encoder: the model, its tokenizer and its defaults.
        source: .txt (a text a line), .jsonl, .csv or .parquet; "-" is standard input.
        output: .npy (float32 [N, D]), .safetensors (the same, named "vectors"), .jsonl ({"id": ...,
            "vector": [...]} a line) or .parquet (columns "id" and "vector"). Replaced if it exists.
        input_format: "txt", "jsonl", "csv" or "parquet" where the name of the source does not say.
        text_column: key or column with the text; by default "text".
        id_column: key or column with strings or integers that name the rows. In .jsonl and .parquet
            they are the ids (without it, row numbers from 0); for .npy and .safetensors they go to
            a file beside it, OUT with the ending .ids.jsonl, one JSON value a line.
        pooling, normalize, batch_tokens: as for `Encoder.encode`; pooling "none" is not for files.
        resume: continue an interrupted run; False begins again.
        show_progress: on stderr; None: if that is a terminal.

    Raises:
        UsageError: formats or options that cannot go together.
        InputError: a record that cannot be used; what was done before it is kept.
        ResumeError: OUT.partial belongs to a run with another model or other options.
        OSError: files that cannot be read or written; a full disk says how to continue.
    """
    started = time.monotonic()
    output = Path(os.path.realpath(output))
    options = encoder.options(pooling, normalize, batch_tokens)
    tokenizer = encoder.require_tokenizer()
    if options.pooling == "none":
        raise UsageError(
            "pooling 'none' gives many vectors per row: for a file use mean, cls or max"
        )
    check_files(source, output, input_format, text_column, id_column)
    shown = sys.stderr.isatty() if show_progress is None else show_progress
    with (
        open_records(source, input_format, text_column, id_column) as records,
        ShardStore(partial_folder(output)) as store,
        full_disk_explained(store.folder),
    ):
        store.begin(_settings(encoder, options, tokenizer), resume=resume)
        with IdSpool(store.folder, id_column is not None) as ids:
            with Progress(shown, records.total) as progress:
                pieces = _pieces(plans(records, ids), store, tokenizer)
                with closing(_read_ahead(pieces)) as ready:
                    done = list(_written(store, _encoded(encoder, options, ready, progress)))
            shards = [shard for shard, _ in done]
            ids_output = _assemble(output, store, shards, encoder.dim, ids, shown)
        store.remove()
    return EncodeSummary(
        output,
        ids_output,
        rows=sum(shard.rows for shard in shards),
        dim=encoder.dim,
        tokens=sum(shard.tokens for shard in shards),
        truncated=sum(shard.truncated for shard in shards),
        replaced=sum(shard.replaced for shard in shards),
        resumed=sum(shard.rows for shard, was_there in done if was_there),
        seconds=time.monotonic() - started,
        max_length=tokenizer.max_length,
    )


def _settings(encoder: Encoder, options: EncodeOptions, tokenizer: TextTokenizer) -> dict[str, Any]:
    """What decides the vectors besides the records, for the manifest."""
    engine = encoder.model.explain()
    settings = {
        "fastdistil": __version__,
        "model": encoder.fingerprint(),
        "max_length": tokenizer.max_length,
        "pooling": options.pooling,
        "normalize": options.normalize,
        **{name: engine[name] for name in ("backend", "precision", "instruction_set")},
    }
    if not encoder.batch_invariant:
        # The engines promise the same bits in any batch; torch's matrix products do not.
        settings |= {"torch": torch.__version__, "batch_tokens": options.batch_tokens}
    return settings


def _pieces(
    plans: Iterable[tuple[Plan, list[str]]], store: ShardStore, tokenizer: TextTokenizer
) -> Iterator[_Piece]:
    """Tokenises what is not on disk yet."""
    for plan, texts in plans:
        done = store.find(plan.index, plan.digest)
        if done is not None:
            yield _Piece(plan, tokenizer([]), True, done)
            continue
        rows = 0
        for chunk in text_chunks(texts):
            rows += len(chunk)
            yield _Piece(plan, tokenizer(chunk), rows == plan.rows)


def _read_ahead(pieces: Iterator[_Piece]) -> Generator[_Piece, None, None]:
    """The same pieces, made by a thread that runs ahead."""
    with closing(overlapped(lambda _: next(pieces, None), repeat(None), CHUNKS_AHEAD)) as made:
        for piece in made:
            if piece is None:
                return
            yield piece


def _encoded(
    encoder: Encoder, options: EncodeOptions, pieces: Iterator[_Piece], progress: Progress
) -> Iterator[_Encoded]:
    """Runs the model, one shard after the other."""
    for first in pieces:
        if first.done is not None:
            progress.skip(first.plan.rows, first.plan.end)
            yield _Encoded(first.plan, first.done, None)
        else:
            chunks = _chunks_of_shard(first, pieces)
            yield _encode_shard(encoder, options, first.plan, chunks, progress)


def _chunks_of_shard(piece: _Piece, pieces: Iterator[_Piece]) -> Iterator[TokenizedTexts]:
    """What is left of a shard from its first piece on. Does not wait for the shard after it."""
    yield piece.tokenised
    while not piece.last:
        piece = next(pieces)
        yield piece.tokenised


def _encode_shard(
    encoder: Encoder,
    options: EncodeOptions,
    plan: Plan,
    chunks: Iterable[TokenizedTexts],
    progress: Progress,
) -> _Encoded:
    truncated = replaced = 0

    def counted() -> Iterator[TokenizedTexts]:
        nonlocal truncated, replaced
        for chunk in chunks:
            truncated += chunk.truncated
            replaced += chunk.replaced
            yield chunk

    vectors = np.empty((plan.rows, encoder.dim), np.float32)
    row = total_tokens = 0
    for some, tokens in encoder.encode_chunks(counted(), options):
        vectors[row : row + len(some)] = some
        row += len(some)
        total_tokens += tokens
        progress.update(len(some), tokens, plan.begin + (plan.end - plan.begin) * row / plan.rows)
    return _Encoded(plan, Shard(plan.rows, total_tokens, truncated, replaced), vectors)


def _written(store: ShardStore, encoded: Iterable[_Encoded]) -> Iterator[tuple[Shard, bool]]:
    """Puts shards on the disk, in a thread of its own, while the model is at the next.

    Yields:
        what is known about each shard, and whether it was there before.
    """

    def write(one: _Encoded) -> tuple[Shard, bool]:
        if one.vectors is not None:
            store.write(one.plan.index, one.plan.digest, one.vectors, one.shard)
        return one.shard, one.vectors is None

    return overlapped(write, encoded, 2)


def _assemble(
    output: Path, store: ShardStore, shards: Sequence[Shard], dim: int, ids: IdSpool, shown: bool
) -> Path | None:
    """Makes the output, and the file of ids beside it where one is due; returns that one's path."""
    output_format = format_of_output(output)
    sizes = [shard.rows for shard in shards]
    with Progress(shown, sum(sizes), f"writing {output.name}") as progress:

        def blocks() -> Iterator[Block]:
            for index, block_ids in enumerate(ids.blocks(sizes)):
                yield store.read(index), block_ids
                progress.update(len(block_ids), 0)

        with atomic_file(output, store.folder / f"output{TEMPORARY}") as stream:
            write_vectors(output_format, stream, sum(sizes), dim, blocks(), text_ids=ids.text)
            ids_output = None
            if ids.wanted and output_format not in FORMATS_WITH_IDS:
                ids_output = output.with_suffix(".ids.jsonl")
                ids.move_to(ids_output)
    return ids_output
