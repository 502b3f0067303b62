"""Reading texts and writing vectors: a record is a row, and what is wrong is said with its line."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from fastdistil.text_io import InputError, UsageError, format_of_input, open_records
from fastdistil.vector_io import check_files, format_of_output, write_vectors


def read(path: Path, **options):
    """All texts, all ids, and the last position beside the total."""
    texts, ids, position = [], [], 0
    with open_records(path, **options) as source:
        for block in source.blocks:
            texts += block.texts
            ids += block.ids or []
            assert block.position >= position
            position = block.position
        return texts, ids, position, source.total


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


# .txt ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"one", ["one"]),
        (b"one\n", ["one"]),
        (b"one\n\n", ["one", ""]),
        (b"\n\n\n", ["", "", ""]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\rb\n", ["a\rb"]),
        (b"a\r\r\n", ["a\r"]),
        ("a\u2028b\x0bc\x85d\x1ce\n".encode(), ["a\u2028b\x0bc\x85d\x1ce"]),
        (b"nul\x00inside\n", ["nul\x00inside"]),
        (b"\xef\xbb\xbfmarked\nsecond\n", ["marked", "second"]),
        (b"\xef\xbb\xbf", []),
        (b"a\n\xef\xbb\xbfb\n", ["a", "\ufeffb"]),
    ],
)
def test_txt_lines(tmp_path, content, texts):
    assert read(written(tmp_path, "in.txt", content))[0] == texts


def test_txt_has_as_many_rows_as_wc_counts_lines(tmp_path):
    lines = [f"line {number} " + "x" * (number % 301) for number in range(20_000)]
    path = written(tmp_path, "in.txt", "".join(line + "\n" for line in lines).encode())
    texts, _, position, total = read(path)
    assert texts == lines
    assert position == total == path.stat().st_size


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r"))))
def test_txt_round_trip(tmp_path_factory, texts):
    content = "".join(text + "\n" for text in texts).encode()
    # A mark of byte order is only one at the very beginning of a file.
    expected = "".join(text + "\n" for text in texts).removeprefix("\ufeff").split("\n")[:-1]
    assert read(written(tmp_path_factory.getbasetemp(), "in.txt", content))[0] == expected


def test_a_line_of_megabytes(tmp_path):
    long = "word " * 800_000
    assert read(written(tmp_path, "in.txt", f"a\n{long}\nb".encode()))[0] == ["a", long, "b"]


def test_a_pipe_has_no_total(tmp_path):
    path = tmp_path / "pipe.txt"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"a\nb\n",))
    writer.start()
    assert read(path) == (["a", "b"], [], 4, None)
    writer.join()


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("in.txt", b"fine\nna\xefve\n", 2),
        ("in.jsonl", b'{"text": "fine"}\n{"text": "na\xefve"}\n', 2),
        ("in.csv", b"text\nfine\nna\xefve\n", 3),
        ("in.txt", "utf-16".encode("utf-16"), 1),
    ],
)
def test_bytes_that_are_not_utf8(tmp_path, name, content, line):
    with pytest.raises(InputError, match=rf"{name}, line {line}: byte 0x.. at .*iconv"):
        read(written(tmp_path, name, content))


# .jsonl -------------------------------------------------------------------------------------------


def test_jsonl(tmp_path):
    records = [
        {"id": 7, "text": "one\ntwo", "more": [1]},
        {"text": "", "id": "b"},
        {"id": 2**80, "text": "\ud800 é \U0001f600"},
    ]
    content = "".join(json.dumps(record) + "\n" for record in records).encode()
    texts, ids, position, total = read(written(tmp_path, "in.jsonl", content), id_column="id")
    assert texts == [record["text"] for record in records]
    assert ids == [7, "b", 2**80]
    assert position == total


def test_jsonl_with_another_key_and_byte_order_mark(tmp_path):
    path = written(tmp_path, "in.jsonl", b'\xef\xbb\xbf{"body": "x"}')
    assert read(path, text_column="body")[:2] == (["x"], [])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "x"', r"not valid JSON \(.* at column \d+\)"),
        (b"", "the line is blank"),
        (b'"only a string"', r"a JSON string; every line must hold one JSON object"),
        (b"[1]", "a JSON array"),
        (b"null", "a JSON null"),
        (b"12", "a JSON number"),
        (b'{"txt": 1, "b": 2}', r"no key 'text'; the keys are 'txt', 'b': name one with --text-c"),
        (b'{"text": 5, "id": 1}', "'text' is a JSON number; a text must be a string"),
        (b'{"text": null, "id": 1}', "'text' is a JSON null; a text must be a string"),
        (b'{"text": "x"}', r"no key 'id'; the keys are 'text': name one with --id-column"),
        (b'{"text": "x", "id": true}', "'id' is a JSON boolean; an id must be a string or an int"),
        (b'{"text": "x", "id": 1.5}', "'id' is a JSON number; an id must be a string or an int"),
        (
            b'{"text": "x", "id": ' + b"[" * 100_000 + b"}",
            "JSON that cannot be read|not valid JSON",
        ),
        (b'{"text": "x", "id": ' + b"1" * 5000 + b"}", "JSON that cannot be read"),
    ],
)
def test_a_bad_jsonl_line(tmp_path, line, message):
    good = b'{"text": "x", "id": 1}\n'
    path = written(tmp_path, "in.jsonl", good * 2 + line + b"\n" + good)
    with pytest.raises(InputError, match=rf"in\.jsonl, line 3: ({message})"):
        read(path, id_column="id")


# .csv ---------------------------------------------------------------------------------------------


def test_csv(tmp_path):
    rows = [["1", 'say "hi", twice'], ["2", "two\nlines\r\nthree"], ["3", ""], ["4", " a "]] * 700
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["id", "text"], *rows])
    path = written(tmp_path, "in.csv", b"\xef\xbb\xbf" + text.getvalue().encode())
    texts, ids, position, total = read(path, id_column="id")
    assert texts == [row[1] for row in rows]
    assert ids == [row[0] for row in rows]
    assert position == total


def test_csv_with_one_column_has_empty_lines_for_empty_texts(tmp_path):
    path = written(tmp_path, "in.csv", b'text\na\n\n""\nb\n')
    assert read(path)[0] == ["a", "", "", "b"]


def test_csv_fields_may_be_long_and_the_limit_of_the_module_is_as_it_was(tmp_path):
    before = csv.field_size_limit()
    long = "x" * 1_000_000
    assert read(written(tmp_path, "in.csv", f"text,n\n{long},1\n".encode()))[0] == [long]
    assert csv.field_size_limit() == before
    with open_records(tmp_path / "in.csv") as source:
        next(source.blocks)
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1: no header"),
        (b"a,b\n1,2\n", "line 1: no column 'text'; the columns are 'a', 'b': name one with --text"),
        (b"text,text\n1,2\n", "line 1: 2 columns are named 'text'"),
        (b"text,b\nx,1\n\ny,2\n", "line 3: 0 fields where the header has 2"),
        (b'text,b\n"two\nlines",1\nx,1,2\n', "line 4: 3 fields where the header has 2"),
        (b'text,b\nx,1\n"open,2\nand on\n', r"line 3: not valid CSV \(.*\) in the record that beg"),
        (b'text,b\nx,1\n"a" b,2\n', "line 3: not valid CSV"),
    ],
)
def test_a_bad_csv(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"in\.csv, {message}"):
        read(written(tmp_path, "in.csv", content))


def test_a_missing_id_column_of_a_csv(tmp_path):
    with pytest.raises(InputError, match=r"no column 'id'; the columns are 'text': .*--id-column"):
        read(written(tmp_path, "in.csv", b"text\nx\n"), id_column="id")


# .parquet -----------------------------------------------------------------------------------------


def parquet(path: Path, **columns) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    writer.write_table(pyarrow.table(columns), path, row_group_size=1500)
    return path


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
@pytest.mark.parametrize("id_kind", ["int64", "uint8", "string"])
def test_parquet(tmp_path, kind, id_kind):
    pyarrow = pytest.importorskip("pyarrow")
    texts = [f"text {number % 37}" for number in range(4000)]
    ids = [number % 200 for number in range(4000)]
    ids = list(map(str, ids)) if id_kind == "string" else ids
    column = pyarrow.array(texts)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    path = parquet(tmp_path / "in.parquet", n=ids, body=column, k=pyarrow.array(ids).cast(id_kind))
    assert read(path, text_column="body", id_column="k") == (texts, ids, 4000, 4000)


def test_a_row_group_of_any_size_is_streamed(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    writer = pytest.importorskip("pyarrow.parquet")
    texts = [f"{row} {'x' * 400}" for row in range(50_000)]
    path = tmp_path / "in.parquet"
    writer.write_table(pyarrow.table({"text": texts}), path, compression="none")
    assert writer.ParquetFile(path).num_row_groups == 1
    assert path.stat().st_size > 20_000_000
    before = most = pyarrow.total_allocated_bytes()
    with open_records(path) as source:
        for _ in source.blocks:
            most = max(most, pyarrow.total_allocated_bytes())
    assert most - before < 8_000_000


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"] * 1700 + [None, "b"]}, r"row 1700 \(counting from 0\): 'text' is null"),
        ({"text": [1, 2]}, "column 'text' holds int64; texts must be strings"),
        ({"body": ["a"]}, "no column 'text'; the columns are 'body': name one with --text-column"),
        ({"text": ["a"], "id": [1.5]}, "column 'id' holds double; ids must be strings or integers"),
        ({"text": ["a", "b"], "id": [1, None]}, r"row 1 \(counting from 0\): 'id' is null"),
        ({"text": ["a"]}, "no column 'id'"),
    ],
)
def test_a_bad_parquet(tmp_path, columns, message):
    path = parquet(tmp_path / "in.parquet", **columns)
    with pytest.raises(InputError, match=rf"in\.parquet(:|,) {message}"):
        read(path, id_column="id" if "id" in columns or "id" in message else None)


def test_a_parquet_that_is_none(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match="not a parquet file"):
        read(written(tmp_path, "in.parquet", b"text,id\n"))


def test_without_pyarrow_both_ways_say_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = written(tmp_path, "in.parquet", b"")
    with pytest.raises(
        ImportError, match=r"reading \.parquet .* pip install 'fastdistil\[parquet\]"
    ):
        read(path)
    with pytest.raises(
        ImportError, match=r"writing \.parquet .* pip install 'fastdistil\[parquet\]"
    ):
        check_files(written(tmp_path, "in.txt", b""), tmp_path / "out.parquet")


# Which format, and whether it can be -------------------------------------------------------------


def test_formats_by_name():
    assert format_of_input("a/B.JSONL") == "jsonl"
    assert format_of_input("-") == "txt"
    assert format_of_input("-", "csv") == "csv"
    assert format_of_input("data.txt.bak", "txt") == "txt"
    assert format_of_output("x.SafeTensors") == "safetensors"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data.xml",), r"cannot tell the format of 'data.xml'.*\.txt, \.jsonl, \.csv, \.parquet"),
        (("data",), "--input-format"),
        (("data", "xml"), "input_format is 'xml'; it can be txt"),
        (("-", "parquet"), "standard input cannot be parquet"),
        (("data.txt", None, "body"), r"a \.txt input has no columns"),
        (("-", None, None, "id"), r"a \.txt input has no columns"),
    ],
)
def test_requests_that_make_no_sense(arguments, message):
    with pytest.raises(UsageError, match=message):
        format_of_input(*arguments)


def test_files_that_cannot_be(tmp_path):
    source = written(tmp_path, "in.jsonl", b"")
    with pytest.raises(UsageError, match=r"'out.pt'.*\.npy, \.parquet, \.jsonl, \.safetensors"):
        check_files(source, "out.pt")
    with pytest.raises(UsageError, match="same file"):
        check_files(source, tmp_path / "." / "in.jsonl")
    with pytest.raises(FileNotFoundError, match=r"no such folder.*nowhere"):
        check_files(source, tmp_path / "nowhere" / "out.npy")
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        check_files(tmp_path / "absent.txt", tmp_path / "out.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_files(source, tmp_path / "folder.npy")


# Writing ------------------------------------------------------------------------------------------


def vectors_and_ids(rows: int, dim: int = 5):
    vectors = np.random.default_rng(rows).standard_normal((rows, dim)).astype(np.float32)
    if rows:
        vectors[0] = [0.0, -0.0, 1e-45, np.finfo(np.float32).max, 1 / 3]
    return vectors, [f"row {row} \u20ac" if row % 3 else f'q"{row}' for row in range(rows)]


def file_of(output_format: str, vectors, ids, cuts=(), **options) -> bytes:
    """What `write_vectors` writes, in blocks that end at `cuts`."""
    ends = [*cuts, len(vectors)]
    blocks = [(vectors[a:b], ids[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]
    stream = io.BytesIO()
    write_vectors(output_format, stream, *vectors.shape, blocks, **options)
    return stream.getvalue()


@pytest.mark.parametrize("rows", [0, 1, 100])
def test_npy_is_what_numpy_writes(rows):
    vectors, ids = vectors_and_ids(rows)
    expected = io.BytesIO()
    np.save(expected, vectors)
    assert file_of("npy", vectors, ids, cuts=(rows // 2,)) == expected.getvalue()


@pytest.mark.parametrize("rows", [0, 1, 100])
def test_safetensors(rows):
    vectors, ids = vectors_and_ids(rows)
    content = file_of("safetensors", vectors, ids, cuts=(rows // 3,))
    read_back = safetensors.numpy.load(content)
    assert list(read_back) == ["vectors"]
    assert read_back["vectors"].dtype == np.float32
    assert read_back["vectors"].tobytes() == vectors.tobytes()
    assert content == file_of("safetensors", vectors, ids)


@pytest.mark.parametrize("rows", [0, 1, 100])
def test_jsonl_holds_the_very_numbers(rows):
    vectors, ids = vectors_and_ids(rows)
    content = file_of("jsonl", vectors, ids, cuts=(rows // 3,))
    records = [json.loads(line) for line in content.splitlines()]
    assert [record["id"] for record in records] == ids
    read_back = np.array([record["vector"] for record in records], np.float32).reshape(rows, 5)
    assert np.array_equal(read_back, vectors)
    assert content == file_of("jsonl", vectors, ids)


@pytest.mark.parametrize("rows", [0, 1, 100])
@pytest.mark.parametrize("text_ids", [True, False])
def test_parquet_out(rows, text_ids):
    pyarrow = pytest.importorskip("pyarrow")
    reader = pytest.importorskip("pyarrow.parquet")
    vectors, ids = vectors_and_ids(rows)
    ids = ids if text_ids else list(range(-1, rows - 1))
    content = file_of("parquet", vectors, ids, cuts=(rows // 3,), text_ids=text_ids)
    table = reader.read_table(io.BytesIO(content))
    assert table.schema.field("vector").type == pyarrow.list_(pyarrow.float32(), 5)
    assert table.schema.field("id").type == (pyarrow.string() if text_ids else pyarrow.int64())
    assert table["id"].to_pylist() == ids
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    assert flat.tobytes() == vectors.tobytes()


def test_parquet_ids_of_mixed_kinds_are_strings():
    reader = pytest.importorskip("pyarrow.parquet")
    content = file_of("parquet", np.zeros((3, 2), np.float32), [1, "a", "\ud800"], text_ids=True)
    table = reader.read_table(io.BytesIO(content))
    assert table["id"].to_pylist() == ["1", "a", "\ufffd"]
