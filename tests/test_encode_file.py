"""Files of texts to files of vectors: every format, in order, whatever interrupts it."""

from __future__ import annotations

import csv
import errno
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from tiny_checkpoint import write_tiny_checkpoint

from fastdistil import Encoder, shard_plan, shards, text_io
from fastdistil.run_folder import ResumeError
from fastdistil.text_io import InputError, UsageError

ROOT = Path(__file__).resolve().parents[1]
# Subprocesses that only have a tiny model to run need one thread, and find the package in the
# checkout.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
TEXTS = ["first", "", "two words", 'ünï, "quoted"', "a " * 60, "last"] * 9
IDS = [f"row {row}" for row in range(len(TEXTS))]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def enc(model) -> Encoder:
    return Encoder(model)


@pytest.fixture(scope="module")
def expected(enc) -> np.ndarray:
    return enc.encode(TEXTS)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(shard_plan, "SHARD_ROWS", 8)


def write_input(folder: Path, kind: str, texts=TEXTS, ids=IDS) -> Path:
    path = folder / f"in.{kind}"
    rows = list(zip(ids, texts, strict=True))
    if kind == "txt":
        path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    elif kind == "jsonl":
        lines = [json.dumps({"id": key, "text": text}) + "\n" for key, text in rows]
        path.write_text("".join(lines), encoding="utf-8")
    elif kind == "csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([("id", "text"), *rows])
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"id": ids, "text": texts}), path)
    return path


def read_output(path: Path) -> tuple[np.ndarray, list | None]:
    """Vectors and ids, by other people's readers."""
    if path.suffix == ".jsonl":
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        vectors = np.array([record["vector"] for record in records], np.float32)
        return vectors, [record["id"] for record in records]
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(path)
        return np.array(table["vector"].to_pylist(), np.float32), table["id"].to_pylist()
    ids_path = path.with_suffix(".ids.jsonl")
    ids = None
    if ids_path.exists():
        ids = [json.loads(line) for line in ids_path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False), ids
    return safetensors.numpy.load_file(path)["vectors"], ids


def partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


def shard_files(output: Path) -> list[str]:
    return sorted(path.name for path in partial(output).glob("shard-*"))


# Every format in and out --------------------------------------------------------------------------


@pytest.mark.parametrize("kind_in", ["txt", "jsonl", "csv", "parquet"])
@pytest.mark.parametrize("kind_out", ["npy", "parquet", "jsonl", "safetensors"])
def test_each_format(enc, expected, tmp_path, small_shards, kind_in, kind_out):
    source, output = write_input(tmp_path, kind_in), tmp_path / f"out.{kind_out}"
    column = None if kind_in == "txt" else "id"
    summary = enc.encode_file(source, output, id_column=column)
    vectors, ids = read_output(output)
    assert np.array_equal(vectors, expected)
    if column is not None:
        assert ids == IDS
    else:
        assert ids == (list(range(len(TEXTS))) if kind_out in ("jsonl", "parquet") else None)
    beside = column is not None and kind_out in ("npy", "safetensors")
    assert summary.ids_output == (tmp_path / "out.ids.jsonl" if beside else None)
    assert (summary.output, summary.rows, summary.dim) == (output, len(TEXTS), 48)
    assert (summary.truncated, summary.replaced, summary.resumed) == (9, 0, 0)
    assert summary.tokens == sum(len(rows) for rows in enc.encode(TEXTS, pooling="none"))
    assert not partial(output).exists()


@pytest.mark.parametrize("kind_out", ["npy", "parquet", "jsonl", "safetensors"])
def test_an_empty_input_gives_no_rows(enc, tmp_path, kind_out):
    output = tmp_path / f"out.{kind_out}"
    assert enc.encode_file(write_input(tmp_path, "txt", [], []), output).rows == 0
    vectors, _ = read_output(output)
    assert len(vectors) == 0
    if kind_out in ("npy", "safetensors"):
        assert vectors.shape == (0, 48)


def test_ids_of_jsonl_keep_their_type(enc, tmp_path, small_shards):
    texts = ["x"] * 20
    source = write_input(tmp_path, "jsonl", texts, list(range(20)))
    enc.encode_file(source, tmp_path / "out.parquet", id_column="id")
    assert read_output(tmp_path / "out.parquet")[1] == list(range(20))
    mixed = [*range(18), "x", 2**70]
    source = write_input(tmp_path, "jsonl", texts, mixed)
    enc.encode_file(source, tmp_path / "out.parquet", id_column="id")
    assert read_output(tmp_path / "out.parquet")[1] == list(map(str, mixed))
    enc.encode_file(source, tmp_path / "out.jsonl", id_column="id")
    assert read_output(tmp_path / "out.jsonl")[1] == mixed


def test_options_reach_the_model(enc, tmp_path):
    source, output = write_input(tmp_path, "txt"), tmp_path / "out.npy"
    enc.encode_file(source, output, pooling="cls", normalize=True, batch_tokens=50)
    wanted = enc.encode(TEXTS, pooling="cls", normalize=True)
    assert np.array_equal(np.load(output), wanted)


def test_lone_surrogates_are_counted(enc, tmp_path):
    source = write_input(tmp_path, "jsonl", ["\ud800", "fine", "a\udfff"], [1, 2, 3])
    assert enc.encode_file(source, tmp_path / "out.npy").replaced == 2


def test_shards_end_early_for_long_texts(enc, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_plan, "SHARD_CHARACTERS", 100)
    texts = ["x" * 60, "y" * 60, "z" * 300, "", "w"] * 3
    source, output = write_input(tmp_path, "txt", texts, texts), tmp_path / "out.npy"
    sizes = []
    write = shards.ShardStore.write

    def counted(store, index, digest, vectors, shard):
        sizes.append(len(vectors))
        write(store, index, digest, vectors, shard)

    monkeypatch.setattr(shards.ShardStore, "write", counted)
    enc.encode_file(source, output)
    assert sizes == [2, 1, 4, 1, 4, 1, 2]
    assert np.array_equal(np.load(output), enc.encode(texts))


def test_an_existing_output_is_replaced_and_a_link_followed(enc, tmp_path):
    source = write_input(tmp_path, "txt")
    (tmp_path / "elsewhere").mkdir()
    real = tmp_path / "elsewhere" / "real.npy"
    real.write_bytes(b"old")
    (tmp_path / "out.npy").symlink_to(real)
    enc.encode_file(source, tmp_path / "out.npy")
    assert (tmp_path / "out.npy").is_symlink()
    assert np.load(real).shape == (len(TEXTS), 48)


def test_pooling_none_is_not_for_files(enc, tmp_path):
    with pytest.raises(UsageError, match="pooling 'none' gives many vectors per row"):
        enc.encode_file(write_input(tmp_path, "txt"), tmp_path / "out.npy", pooling="none")


# Interrupted and continued ------------------------------------------------------------------------


class Interrupt(Exception):
    pass


def interrupt_after(monkeypatch, shards_written: int) -> None:
    """Makes a run stop when it is about to write one shard more."""
    left = [shards_written]
    write = shards.ShardStore.write

    def counted(*arguments):
        if left[0] == 0:
            raise Interrupt
        left[0] -= 1
        write(*arguments)

    monkeypatch.setattr(shards.ShardStore, "write", counted)


@pytest.fixture
def interrupted(enc, tmp_path, small_shards, monkeypatch):
    """An input and an output of which three shards of eight rows are done."""
    source, output = write_input(tmp_path, "jsonl"), tmp_path / "out.npy"
    with monkeypatch.context() as context:
        interrupt_after(context, 3)
        with pytest.raises(Interrupt):
            enc.encode_file(source, output, id_column="id")
    assert len(shard_files(output)) == 3
    assert not output.exists()
    return source, output


def test_an_interrupted_run_continues(enc, expected, interrupted):
    source, output = interrupted
    summary = enc.encode_file(source, output, id_column="id")
    assert (summary.rows, summary.resumed, summary.truncated) == (len(TEXTS), 24, 9)
    vectors, ids = read_output(output)
    assert np.array_equal(vectors, expected)
    assert ids == IDS
    assert not partial(output).exists()


def test_done_shards_are_not_encoded_again(enc, interrupted, monkeypatch):
    source, output = interrupted
    encoded = []
    run = enc.encode_chunks

    def counted(*arguments):
        for vectors, tokens in run(*arguments):
            encoded.append(len(vectors))
            yield vectors, tokens

    monkeypatch.setattr(enc, "encode_chunks", counted)
    enc.encode_file(source, output, id_column="id")
    assert sum(encoded) == len(TEXTS) - 24


def test_restart_begins_again(enc, expected, interrupted):
    source, output = interrupted
    assert enc.encode_file(source, output, resume=False).resumed == 0
    assert np.array_equal(np.load(output), expected)


def test_an_input_that_was_only_touched_or_mended_further_on_keeps_the_work(enc, interrupted):
    source, output = interrupted
    texts = [*TEXTS[:30], "mended", *TEXTS[31:], "added"]
    os.utime(write_input(source.parent, "jsonl", texts, [*IDS, "new"]), (0, 0))
    assert enc.encode_file(source, output, id_column="id").resumed == 24
    assert np.array_equal(np.load(output), enc.encode(texts))


def test_an_input_that_changed_is_encoded_again_where_it_did(enc, interrupted):
    source, output = interrupted
    texts = [*TEXTS[:9], "other", *TEXTS[10:40]]
    write_input(source.parent, "jsonl", texts, IDS[:40])
    assert enc.encode_file(source, output).resumed == 16
    assert np.array_equal(np.load(output), enc.encode(texts))


def test_a_damaged_shard_is_made_again(enc, expected, interrupted):
    source, output = interrupted
    for name, content in (("shard-00000000", b""), ("shard-00000001", b"\x08" + bytes(100))):
        (partial(output) / f"{name}.safetensors").write_bytes(content)
    assert enc.encode_file(source, output).resumed == 8
    assert np.array_equal(np.load(output), expected)


def test_other_settings_are_refused_with_both_ways_out(enc, model, interrupted):
    source, output = interrupted
    before = shard_files(output)
    with pytest.raises(ResumeError, match=r"\(pooling: 'mean' there, 'cls' now\).*--restart"):
        enc.encode_file(source, output, pooling="cls")
    with pytest.raises(ResumeError, match=r"max_length: 40 there, 9 now"):
        Encoder(model, max_length=9).encode_file(source, output)
    with pytest.raises(ResumeError, match="'reference' now"):
        Encoder(model, backend="reference").encode_file(source, output)
    assert shard_files(output) == before


def test_another_model_is_refused(interrupted, tmp_path):
    source, output = interrupted
    other = Encoder(write_tiny_checkpoint(tmp_path / "other", num_layers=1))
    with pytest.raises(ResumeError, match=r"model: '[0-9a-f]+' there, '[0-9a-f]+' now"):
        other.encode_file(source, output)


def test_a_folder_that_is_not_ours_is_left_alone(enc, tmp_path):
    output = tmp_path / "out.npy"
    partial(output).mkdir()
    mine = partial(output) / "shard-mine.safetensors"
    mine.write_bytes(b"precious")
    for resume in (True, False):
        with pytest.raises(ResumeError, match=r"is not an unfinished run \(it holds 'shard-mine"):
            enc.encode_file(write_input(tmp_path, "txt"), output, resume=resume)
    assert [path.name for path in partial(output).iterdir()] == [mine.name]


def test_two_runs_at_once_are_refused(enc, tmp_path):
    with (
        shards.ShardStore(partial(tmp_path / "out.npy")),
        pytest.raises(ResumeError, match="another run is writing to"),
    ):
        enc.encode_file(write_input(tmp_path, "txt"), tmp_path / "out.npy")
    assert enc.encode_file(write_input(tmp_path, "txt"), tmp_path / "out.npy").rows == len(TEXTS)


def test_a_bad_line_keeps_what_was_done_before_it(
    enc, expected, tmp_path, small_shards, monkeypatch
):
    monkeypatch.setattr(text_io, "_BLOCK_BYTES", 100)
    source, output = write_input(tmp_path, "jsonl"), tmp_path / "out.npy"
    lines = source.read_text().splitlines(keepends=True)
    source.write_text("".join([*lines[:30], "not json\n", *lines[30:]]))
    with pytest.raises(InputError, match="line 31: not valid JSON"):
        enc.encode_file(source, output)
    assert len(shard_files(output)) == 3
    source.write_text("".join(lines))
    assert enc.encode_file(source, output).resumed == 24
    assert np.array_equal(np.load(output), expected)


def test_an_error_at_the_first_line_leaves_nothing_behind(enc, tmp_path):
    source, output = write_input(tmp_path, "jsonl"), tmp_path / "out.npy"
    with pytest.raises(InputError, match="no key 'body'"):
        enc.encode_file(source, output, text_column="body")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("kind_out", ["npy", "parquet", "jsonl"])
@pytest.mark.parametrize("full_after", [1, 3, 8])
def test_a_full_disk(enc, expected, tmp_path, small_shards, monkeypatch, kind_out, full_after):
    """The n-th flush fails as it does on a full disk: shards are 2 to 8, the output is the 9th."""
    source, output = write_input(tmp_path, "txt"), tmp_path / f"out.{kind_out}"
    flushed = []

    def fsync(handle, really=os.fsync):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            flushed.append(handle)
            if len(flushed) > full_after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        really(handle)

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", fsync)
        message = r"no space left on the disk; .* kept in .*out\..*\.partial: make room and run"
        with pytest.raises(OSError, match=message):
            enc.encode_file(source, output)
    assert not output.exists()
    assert len(shard_files(output)) == min(full_after - 1, 7)
    assert not list(tmp_path.rglob("*.tmp"))
    assert enc.encode_file(source, output).resumed == min((full_after - 1) * 8, len(TEXTS))
    assert np.array_equal(read_output(output)[0], expected)


# Killed -------------------------------------------------------------------------------------------


def test_killed_at_every_file_operation(model, tmp_path):
    """SIGKILL before each open, rename and removal of a run, assembly and clean-up included."""
    source = write_input(tmp_path, "jsonl")
    (tmp_path / "run").mkdir()
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "tests" / "killed_runs.py",
            model,
            source,
            tmp_path / "run" / "o.npy",
        ],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


COMMAND_WITH_SMALL_SHARDS = """
import os, sys, time
from fastdistil import shard_plan, shards
from fastdistil.cli import main

def write(self, index, *rest, really=shards.ShardStore.write):
    if index >= int(os.environ.get("HOLD_AT_SHARD", "1000000")):
        time.sleep(3600)
    really(self, index, *rest)

shards.ShardStore.write = write
shard_plan.SHARD_ROWS = 100
sys.exit(main())
"""


def test_killed_at_random_moments(enc, model, tmp_path):
    """The command line, killed again and again, writes in the end what one clean run does."""
    seeded = random.Random(0)
    texts = [f"row {row} " + "abc " * seeded.randint(0, 9) for row in range(20_000)]
    source, output = write_input(tmp_path, "txt", texts, texts), tmp_path / "out.npy"
    command = [sys.executable, "-c", COMMAND_WITH_SMALL_SHARDS, "encode", source, "-o", output]
    command += ["--model", model, "--quiet", "--batch-tokens", "256", "--threads", "1"]
    count = 0
    for _ in range(3):
        # However fast the machine, the run is not over when the kill comes: of its 200 shards it
        # writes no more than 60 at a time, then it waits.
        process = subprocess.Popen(command, env=ENVIRONMENT | {"HOLD_AT_SHARD": str(count + 60)})
        while process.poll() is None and len(shard_files(output)) <= count:
            time.sleep(0.005)
        time.sleep(seeded.random() * 0.1)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        before, count = count, len(shard_files(output))
        assert count > before
    assert subprocess.run(command, env=ENVIRONMENT, check=False).returncode == 0
    clean = tmp_path / "clean.npy"
    enc.encode_file(source, clean)
    assert output.read_bytes() == clean.read_bytes()


def test_interrupted_from_the_keyboard(model, tmp_path):
    """Ctrl-C: 130, one line that says what to do, and the same command goes on."""
    texts = [f"row {row}" for row in range(200_000)]
    source, output = write_input(tmp_path, "txt", texts, texts), tmp_path / "out.npy"
    command = [sys.executable, "-c", COMMAND_WITH_SMALL_SHARDS, "encode", source, "-o", output]
    command += ["--model", model, "--quiet"]
    # A child inherits an ignored signal, and a suite started in the background ignores this one.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while process.poll() is None and not shard_files(output):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "fastdistil: interrupted; run the same command again to continue\n"
    assert shard_files(output)
    assert not list(partial(output).glob("output*"))


# Memory -------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from fastdistil import Encoder
encoder = Encoder(sys.argv[1])
for name in sys.argv[2:]:
    encoder.encode_file(name, name + ".npy")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_memory_does_not_grow_with_the_file(tmp_path):
    """50,000 rows have 51 MB of vectors and 6 of text; the peak stays where 10,000 put it."""
    model = write_tiny_checkpoint(
        tmp_path / "model", hidden_size=256, num_heads=8, num_layers=1, max_positions=4
    )
    for name, rows in (("small.txt", 10_000), ("large.txt", 50_000)):
        (tmp_path / name).write_text("".join(f"{row} {'word ' * 20}\n" for row in range(rows)))
    names = [tmp_path / "small.txt", tmp_path / "large.txt"]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, model, *names],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=True,
    )
    small, large = map(int, done.stdout.split())
    assert large - small < 25, f"peak resident memory went from {small} MB to {large} MB"
