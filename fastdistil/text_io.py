"""Reads texts, and the ids that go with them, from .txt, .jsonl, .csv and .parquet in blocks.

Every record of the input is exactly one row of the output, so row numbers can be joined back:

- .txt: a record is a line, ended by a newline (a carriage return before it is dropped). Empty lines
  are empty texts. Other line separators of Unicode are characters of the text.
- .jsonl: a record is a line holding a JSON object. A blank line is an error, not a record.
- .csv: RFC 4180 with a header line, so a quoted field may hold line ends. With a single column a
  blank line is an empty text; with more it is an error.
- .parquet: a record is a row (needs pyarrow).

Text is UTF-8, with or without a byte order mark. Anything wrong with a record is an InputError that
says in which file and line, what was there and what would do. Nothing here imports torch.
"""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

INPUT_FORMATS = ("txt", "jsonl", "csv", "parquet")
STDIN = "-"
DEFAULT_TEXT_COLUMN = "text"

# One block of records: large enough that per-block work vanishes, small enough that a few blocks in
# flight are nothing beside a model.
_BLOCK_BYTES = 1 << 18
_BLOCK_ROWS = 1024
# csv's own limit is 128 KB a field, and a field may well be a whole book. (The largest C long
# everywhere.)
_CSV_FIELD_LIMIT = 2**31 - 1
_UTF8_MARK = b"\xef\xbb\xbf"

RecordId = str | int


class InputError(ValueError):
    """The input's content cannot be used as it is; the message says where and what would do."""


class UsageError(ValueError):
    """The request makes no sense whatever the input holds: an unknown format, say."""


class Records(NamedTuple):
    """Some consecutive records of an input."""

    texts: list[str]
    ids: list[RecordId] | None
    """One id per text, where an id column was asked for."""
    position: int
    """How much of the input has been read up to the last of these, in the source's unit."""


@dataclass(frozen=True)
class RecordSource:
    """An open input: iterate over `blocks`, once."""

    name: str
    unit: str
    """What positions and `total` count: "bytes" or "rows"."""
    total: int | None
    """The input's size in that unit, None where it cannot be known (a pipe)."""
    blocks: Iterator[Records]


@dataclass(frozen=True)
class Column:
    """A column, or key, that is read.

    Attributes:
        role: what its values are: "text", "id" or "label".
    """

    name: str
    role: str

    @property
    def one(self) -> str:
        """One of its values, with its article."""
        return f"an {self.role}" if self.role == "id" else f"a {self.role}"

    @property
    def option(self) -> str:
        """What names it, on the command line and in Python."""
        return f"--{self.role}-column ({self.role}_column=)"


def format_of_input(
    source: str | Path,
    input_format: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
) -> str:
    """The format of an input by its name, or `input_format` where that is given.

    Raises:
        UsageError: see `open_records`.
    """
    if input_format is not None:
        if input_format not in INPUT_FORMATS:
            raise UsageError(
                f"input_format is {input_format!r}; it can be {', '.join(INPUT_FORMATS)}"
            )
        chosen = input_format
    elif str(source) == STDIN:
        chosen = "txt"
    else:
        chosen = Path(source).suffix.lower().removeprefix(".")
        if chosen not in INPUT_FORMATS:
            endings = ", ".join("." + name for name in INPUT_FORMATS)
            raise UsageError(
                f"cannot tell the format of {str(source)!r} from its name: it should end in "
                f"{endings}, or name the format with --input-format (input_format=)"
            )
    if chosen == "parquet" and str(source) == STDIN:
        raise UsageError("standard input cannot be parquet, which needs a file one can seek in")
    if chosen == "txt" and (text_column is not None or id_column is not None):
        raise UsageError(
            "a .txt input has no columns: they are named for .jsonl, .csv and .parquet only"
        )
    return chosen


@contextmanager
def open_records(
    source: str | Path,
    input_format: str | None = None,
    text_column: str | None = None,
    id_column: str | None = None,
    id_role: str = "id",
) -> Iterator[RecordSource]:
    """Opens a file of texts ("-" is standard input) and closes it again.

    Args:
        source: path of the input, or "-".
        input_format: "txt", "jsonl", "csv" or "parquet"; by default what the name ends in, "txt"
            for "-".
        text_column: key or column holding the text; by default "text". Not for .txt.
        id_column: key or column whose values (strings or integers) name the rows. Not for .txt.
        id_role: what messages call those: "id", or "label" where they are that.

    Raises:
        UsageError: unknown format, or a column asked of a .txt file.
        InputError: on opening or while iterating, what is wrong with the content and where.
    """
    chosen = format_of_input(source, input_format, text_column, id_column)
    columns = (
        Column(text_column or DEFAULT_TEXT_COLUMN, "text"),
        None if id_column is None else Column(id_column, id_role),
    )
    name = "standard input" if str(source) == STDIN else str(source)
    if chosen == "parquet":
        with _open_parquet(name, *columns) as opened:
            yield opened
        return
    with nullcontext(sys.stdin.buffer) if str(source) == STDIN else open(source, "rb") as stream:
        lines = _LineReader(name, stream)
        if chosen == "txt":
            blocks = _txt_records(lines)
        elif chosen == "jsonl":
            blocks = _jsonl_records(lines, *columns)
        else:
            blocks = _csv_records(lines, *columns)
        with closing(blocks):
            yield RecordSource(name, "bytes", _size(stream), blocks)


def _size(stream: BinaryIO) -> int | None:
    """The size in bytes of a regular file; None for a pipe or the like, whose end is not known."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, io.UnsupportedOperation):
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


class _LineReader:
    """Lines of a stream, decoded, and how many lines and bytes have gone by."""

    def __init__(self, name: str, stream: BinaryIO) -> None:
        self.name = name
        self.number = 0
        self.position = 0
        self._stream = stream

    def blocks(self) -> Iterator[list[bytes]]:
        """Raw lines as they are in the file, about `_BLOCK_BYTES` at a time."""
        while lines := self._stream.readlines(_BLOCK_BYTES):
            first = self.position == 0
            self.position += sum(map(len, lines))
            if first and lines[0].startswith(_UTF8_MARK):
                lines[0] = lines[0].removeprefix(_UTF8_MARK)
                if not lines[0]:  # a file of nothing but the mark has no line
                    continue
            yield lines

    def decode(self, line: bytes) -> str:
        """The next line as text; counts it."""
        self.number += 1
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(
                f"byte 0x{line[error.start]:02x} at offset {error.start} of the line is not UTF-8; "
                "convert the file first, for example: iconv -f WINDOWS-1252 -t UTF-8 IN > OUT"
            ) from None

    def error(self, message: str, number: int | None = None) -> InputError:
        return InputError(f"{self.name}, line {number or self.number}: {message}")


def _txt_records(lines: _LineReader) -> Generator[Records, None, None]:
    for block in lines.blocks():
        texts = [lines.decode(line).removesuffix("\n").removesuffix("\r") for line in block]
        yield Records(texts, None, lines.position)


def _jsonl_records(
    lines: _LineReader, text_column: Column, id_column: Column | None
) -> Generator[Records, None, None]:
    for block in lines.blocks():
        texts: list[str] = []
        ids: list[RecordId] | None = None if id_column is None else []
        for line in block:
            record = _json_object(lines, lines.decode(line))
            texts.append(_checked_text(lines, record, text_column))
            if ids is not None and id_column is not None:
                ids.append(_checked_id(lines, record, id_column))
        yield Records(texts, ids, lines.position)


def _json_object(lines: _LineReader, line: str) -> dict[str, Any]:
    if not line.strip():
        raise lines.error("the line is blank; every line must hold one JSON object: remove it")
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise lines.error(
            f"not valid JSON ({error.msg} at column {error.colno}); every line must hold one JSON "
            "object"
        ) from None
    except (RecursionError, ValueError) as error:
        raise lines.error(f"JSON that cannot be read ({error})") from None
    if not isinstance(record, dict):
        raise lines.error(
            f"a JSON {_json_kind(record)}; every line must hold one JSON object, "
            f'for example {{"{DEFAULT_TEXT_COLUMN}": "..."}}'
        )
    return record


def _checked_text(lines: _LineReader, record: dict[str, Any], column: Column) -> str:
    text = _checked_value(lines, record, column)
    if not isinstance(text, str):
        raise lines.error(f"{column.name!r} is a JSON {_json_kind(text)}; a text must be a string")
    return text


def _checked_id(lines: _LineReader, record: dict[str, Any], column: Column) -> RecordId:
    value = _checked_value(lines, record, column)
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise lines.error(
            f"{column.name!r} is a JSON {_json_kind(value)}; {column.one} must be a string or an "
            "integer"
        )
    return value


def _checked_value(lines: _LineReader, record: dict[str, Any], column: Column) -> Any:
    if column.name not in record:
        raise lines.error(
            f"no key {column.name!r}; the keys are {_listed(record)}: name one with {column.option}"
        )
    return record[column.name]


def _json_kind(value: Any) -> str:
    kinds: list[tuple[type, str]] = [
        (bool, "boolean"),
        (int, "number"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
        (dict, "object"),
    ]
    return next((kind for cls, kind in kinds if isinstance(value, cls)), "null")


def _csv_records(
    lines: _LineReader, text_column: Column, id_column: Column | None
) -> Generator[Records, None, None]:
    rows = _csv_rows(lines)
    _, header = next(rows, (1, []))
    text_at = _column_index(lines, header, text_column)
    id_at = None
    if id_column is not None:
        id_at = _column_index(lines, header, id_column)
    texts: list[str] = []
    ids: list[RecordId] = []
    characters = 0
    for number, row in rows:
        if not row and len(header) == 1:
            row = [""]
        if len(row) != len(header):
            raise lines.error(
                f"{len(row)} fields where the header has {len(header)}; fields that hold commas, "
                "quotes or line ends must be in double quotes",
                number,
            )
        texts.append(row[text_at])
        characters += len(row[text_at])
        if id_at is not None:
            ids.append(row[id_at])
        if len(texts) == _BLOCK_ROWS or characters >= _BLOCK_BYTES:
            yield Records(texts, None if id_at is None else ids, lines.position)
            texts, ids, characters = [], [], 0
    if texts:
        yield Records(texts, None if id_at is None else ids, lines.position)


def _csv_rows(lines: _LineReader) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of the line where it begins.

    strict: without it a stray quote swallows records up to the next one, and rows shift unnoticed.
    """
    decoded = (lines.decode(line) for block in lines.blocks() for line in block)
    before = csv.field_size_limit(_CSV_FIELD_LIMIT)
    try:
        reader = csv.reader(decoded, strict=True)
        begin = 1
        while (row := next(reader, None)) is not None:
            yield begin, row
            begin = reader.line_num + 1
    except csv.Error as error:
        raise lines.error(
            f"not valid CSV ({error}) in the record that begins here; fields that hold commas, "
            'quotes or line ends must be in double quotes, with quotes inside doubled ("")',
            begin,
        ) from None
    finally:
        csv.field_size_limit(before)


def _column_index(lines: _LineReader, header: list[str], wanted: Column) -> int:
    column = wanted.name
    if not header:
        raise lines.error("no header; the first line must name the columns", 1)
    if column not in header:
        raise lines.error(
            f"no column {column!r}; the columns are {_listed(header)}: name one with "
            f"{wanted.option}",
            1,
        )
    if header.count(column) > 1:
        raise lines.error(f"{header.count(column)} columns are named {column!r}: rename one", 1)
    return header.index(column)


def _listed(names: Any, most: int = 12) -> str:
    """Names for a message, at most `most` of them."""
    known = [repr(name) for name in names]
    if not known:
        return "none"
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")


def import_pyarrow(purpose: str) -> Any:
    """pyarrow's parquet module, or an ImportError that says how to get it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs pyarrow, which is not installed: pip install 'fastdistil[parquet]' "
            f"({error})"
        ) from error
    return pyarrow.parquet


@contextmanager
def _open_parquet(
    name: str, text_column: Column, id_column: Column | None
) -> Iterator[RecordSource]:
    parquet = import_pyarrow("reading .parquet")
    import pyarrow

    try:
        # So a column chunk of gigabytes is streamed; either argument alone has it read whole.
        opened = parquet.ParquetFile(name, buffer_size=1 << 20, pre_buffer=False)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{name}: not a parquet file ({error})") from None
    with opened:
        _check_parquet_column(name, opened, text_column)
        if id_column is not None:
            _check_parquet_column(name, opened, id_column)
        rows = opened.metadata.num_rows
        with closing(_parquet_records(name, opened, text_column, id_column)) as blocks:
            yield RecordSource(name, "rows", rows, blocks)


def _check_parquet_column(name: str, opened: Any, wanted: Column) -> None:
    from pyarrow import types

    schema, column, ids = opened.schema_arrow, wanted.name, wanted.role != "text"
    if schema.names.count(column) != 1:
        raise InputError(
            f"{name}: {schema.names.count(column) or 'no'} column {column!r}; the columns are "
            f"{_listed(schema.names)}: name one with {wanted.option}"
        )
    kind = schema.field(column).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind) or (ids and types.is_integer(kind)):
        return
    allowed = "strings or integers" if ids else "strings"
    raise InputError(f"{name}: column {column!r} holds {kind}; {wanted.role}s must be {allowed}")


def _parquet_records(
    name: str, opened: Any, text_column: Column, id_column: Column | None
) -> Generator[Records, None, None]:
    import pyarrow

    row = 0
    columns = [text_column.name] if id_column is None else [text_column.name, id_column.name]
    try:
        for batch in opened.iter_batches(batch_size=_BLOCK_ROWS, columns=columns):
            for column in columns:
                if batch.column(column).null_count:
                    at = row + batch.column(column).is_null().index(True).as_py()
                    raise InputError(
                        f"{name}, row {at} (counting from 0): {column!r} is null; fill it or drop "
                        "the row"
                    )
            row += batch.num_rows
            ids = None if id_column is None else batch.column(id_column.name).to_pylist()
            yield Records(batch.column(text_column.name).to_pylist(), ids, row)
    except UnicodeDecodeError:
        raise InputError(f"{name}, at row {row} or soon before: text that is not UTF-8") from None
    except pyarrow.ArrowException as error:
        raise InputError(f"{name}, after row {row}: {error}") from None
