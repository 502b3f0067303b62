"""Writes vectors as .npy, .safetensors, .jsonl or .parquet, one block of rows at a time.

Every writer takes the number of rows beforehand, so that it can begin with a header and never look
back. The same rows give the same bytes, however they are cut into blocks (for .parquet, in the same
blocks).
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from .text_io import STDIN, RecordId, UsageError, format_of_input, import_pyarrow
from .tokenization import replace_lone_surrogates

OUTPUT_FORMATS = ("npy", "parquet", "jsonl", "safetensors")
FORMATS_WITH_IDS = ("jsonl", "parquet")
"""Formats whose rows carry an id; beside the others the ids lie in a file of their own."""

Vectors = NDArray[np.float32]
"""[rows, D]"""
Block = tuple[Vectors, Sequence[RecordId]]
"""Consecutive rows, and their ids (used by the formats that carry them)."""


def format_of_output(path: str | Path) -> str:
    """The format that a file's name asks for.

    Raises:
        UsageError: the name ends in none of the known endings.
    """
    chosen = Path(path).suffix.lower().removeprefix(".")
    if chosen not in OUTPUT_FORMATS:
        endings = ", ".join("." + name for name in OUTPUT_FORMATS)
        raise UsageError(
            f"cannot tell the format of {str(path)!r} from its name: it should end in {endings}"
        )
    return chosen


def check_files(
    source: str | Path,
    output: str | Path,
    input_format: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
) -> None:
    """All that can be told about a request before a model is loaded, let alone run for hours.

    Raises:
        UsageError: formats that are not known, or columns of a format without any.
        OSError: an input that is not there, an output that cannot be.
        ImportError: a library that is missing.
    """
    format_of_input(source, input_format, text_column, id_column)
    if format_of_output(output) == "parquet":
        import_pyarrow("writing .parquet")
    check_output(output)
    check_input(source, output)


def check_output(output: str | Path) -> None:
    """That a file can be written there, as far as can be told without writing it.

    Raises:
        OSError: it cannot.
    """
    folder = Path(output).parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder to write to", str(folder))
    if Path(output).is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder; a file is wanted", str(output))
    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "this folder cannot be written to", str(folder))


def check_input(source: str | Path, output: str | Path) -> None:
    """That there is an input, and that it is not the output.

    Raises:
        UsageError: both are the same file.
        OSError: there is no input.
    """
    if str(source) == STDIN:
        return
    status = os.stat(source)
    if os.path.exists(output) and os.path.samestat(status, os.stat(output)):
        raise UsageError(f"input and output are the same file, {output}")


def write_vectors(
    output_format: str,
    stream: BinaryIO,
    rows: int,
    dim: int,
    blocks: Iterable[Block],
    *,
    text_ids: bool = False,
) -> None:
    """Writes a whole file.

    Args:
        output_format: one of OUTPUT_FORMATS.
        stream: binary, at its beginning.
        rows: rows in all blocks together.
        dim: D, numbers in each row.
        blocks: the rows in order.
        text_ids: .parquet only: the id column is of strings; by default of 64-bit integers.
    """
    writers: dict[str, Callable[[], None]] = {
        "npy": lambda: _write_npy(stream, rows, dim, blocks),
        "safetensors": lambda: _write_safetensors(stream, rows, dim, blocks),
        "jsonl": lambda: _write_jsonl(stream, dim, blocks),
        "parquet": lambda: _write_parquet(stream, dim, blocks, text_ids),
    }
    writers[output_format]()


def _write_npy(stream: BinaryIO, rows: int, dim: int, blocks: Iterable[Block]) -> None:
    """What numpy.save writes for a float32 array [rows, dim]."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, dim)}
    np.lib.format.write_array_header_1_0(stream, header)
    _write_numbers(stream, blocks)


def _write_safetensors(stream: BinaryIO, rows: int, dim: int, blocks: Iterable[Block]) -> None:
    """One tensor "vectors". The library's own writer wants it whole in memory; the format is simple
    enough (https://github.com/huggingface/safetensors#format): length of header, header,
    numbers."""
    size = rows * dim * np.dtype(np.float32).itemsize
    tensor = {"dtype": "F32", "shape": [rows, dim], "data_offsets": [0, size]}
    header = json.dumps({"vectors": tensor}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    stream.write(len(header).to_bytes(8, "little") + header)
    _write_numbers(stream, blocks)


def _write_numbers(stream: BinaryIO, blocks: Iterable[Block]) -> None:
    for vectors, _ in blocks:
        stream.write(np.ascontiguousarray(vectors, dtype="<f4").data)


def _write_jsonl(stream: BinaryIO, dim: int, blocks: Iterable[Block]) -> None:
    """{"id": ..., "vector": [...]} a line; 9 significant digits, from which float32 reads back
    exactly.

    One format string for a whole row is 2.7 times as fast as json.dumps, which would also print
    float64's 17 digits.
    """
    numbers = ", ".join(["%.9g"] * dim)
    for vectors, ids in blocks:
        lines = [
            f'{{"id": {json.dumps(record_id)}, "vector": [{numbers % tuple(row)}]}}\n'
            for row, record_id in zip(vectors.tolist(), ids, strict=True)
        ]
        stream.write("".join(lines).encode("ascii"))


def _write_parquet(stream: BinaryIO, dim: int, blocks: Iterable[Block], text_ids: bool) -> None:
    """Columns "id" and "vector" (a list of D float32), a row group per block."""
    parquet = import_pyarrow("writing .parquet")
    import pyarrow

    id_type = pyarrow.string() if text_ids else pyarrow.int64()
    vector_type = pyarrow.list_(pyarrow.float32(), dim)
    schema = pyarrow.schema([("id", id_type), ("vector", vector_type)])
    # Vectors do not compress, and a dictionary of them would only be thrown away again.
    with parquet.ParquetWriter(stream, schema, compression="none", use_dictionary=False) as writer:
        for vectors, ids in blocks:
            values = replace_lone_surrogates(map(str, ids))[0] if text_ids else ids
            flat = pyarrow.array(np.ascontiguousarray(vectors).reshape(-1))
            columns = [
                pyarrow.array(values, id_type),
                pyarrow.FixedSizeListArray.from_arrays(flat, dim),
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))
