"""The folder of a long run, whatever is kept in it, and the shards of a kept store.

That runs which are killed, interrupted or out of disk continue is tested where the runs are: see
test_encode_file and test_distill_state.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path

import numpy as np
import pytest

from fastdistil.run_folder import (
    ResumeError,
    RunFolder,
    atomic_file,
    full_disk_explained,
    partial_folder,
)
from fastdistil.shards import Shard, ShardStore

SETTINGS = {"model": "abc", "layers": [0, 2]}
KEPT = {"noun": "a teacher's outputs", "cure": "name another folder", "place": "folder"}


class Training(RunFolder):
    names = ("state.safetensors", "log.csv", "result")
    achieved = ("state.safetensors",)


def test_the_partial_folder_lies_beside_the_output():
    assert partial_folder(Path("some/model")) == Path("some/model.partial")
    assert partial_folder(Path("out.npy")) == Path("out.npy.partial")


def test_what_was_achieved_is_kept_and_continued(tmp_path):
    folder = tmp_path / "run"
    with Training(folder) as run:
        run.begin(SETTINGS, resume=True)
        (folder / "state.safetensors").write_bytes(b"state")
    with Training(folder) as run:
        run.begin(SETTINGS, resume=True)
        assert (folder / "state.safetensors").read_bytes() == b"state"
    assert json.loads((folder / "manifest.json").read_text()) == {"layout": 1, **SETTINGS}


def test_nothing_achieved_leaves_nothing_behind(tmp_path):
    with Training(tmp_path / "run") as run:
        run.begin(SETTINGS, resume=True)
        (run.folder / "log.csv").write_text("step,loss\n")
    assert not list(tmp_path.iterdir())


def test_a_restart_throws_all_of_it_away(tmp_path):
    folder = tmp_path / "run"
    with Training(folder) as run:
        run.begin(SETTINGS, resume=True)
        (folder / "result").mkdir()
        for name in ("state.safetensors", "result/model.safetensors", "half.tmp"):
            (folder / name).write_bytes(b"old")
    with Training(folder) as run:
        run.begin({"model": "other"}, resume=False)
        assert [path.name for path in folder.iterdir()] == ["manifest.json"]


def test_removal_leaves_what_is_not_ours_and_does_not_follow_links(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("precious")
    with Training(tmp_path / "run") as run:
        run.begin(SETTINGS, resume=True)
        (run.folder / "mine.txt").write_text("mine")
        (run.folder / "mine.tmp").mkdir()
        (run.folder / "result").symlink_to(precious)
        run.remove()
    assert {path.name for path in run.folder.iterdir()} == {"mine.txt", "mine.tmp"}
    assert (precious / "file").read_text() == "precious"


def test_the_manifest_goes_last(tmp_path, monkeypatch):
    gone = []
    unlink = Path.unlink
    with Training(tmp_path / "run") as run:
        run.begin(SETTINGS, resume=True)
        for name in ("state.safetensors", "log.csv", "z.tmp"):
            (run.folder / name).touch()
        monkeypatch.setattr(Path, "unlink", lambda path: gone.append(path.name) or unlink(path))
        run.remove()
    assert set(gone) == {"state.safetensors", "log.csv", "z.tmp", "manifest.json"}
    assert gone[-1] == "manifest.json"


@pytest.mark.parametrize(
    ("words", "other_settings", "foreign"),
    [
        (
            {},
            "holds an unfinished run with other settings (model: 'abc' there, 'x' now): use those "
            "to continue it, or --restart (resume=False) to throw it away",
            "exists and is not an unfinished run (it holds 'thesis.txt'): move it away or choose "
            "another output name",
        ),
        (
            KEPT,
            "holds a teacher's outputs with other settings (model: 'abc' there, 'x' now): name "
            "another folder",
            "exists and is not a teacher's outputs (it holds 'thesis.txt'): move it away or choose "
            "another folder",
        ),
    ],
)
def test_the_words_fit_what_the_folder_is_for(tmp_path, words, other_settings, foreign):
    folder, theirs = tmp_path / "run", tmp_path / "theirs"
    with Training(folder, **words) as run:
        run.begin(SETTINGS, resume=True)
        (folder / "state.safetensors").touch()
    with Training(folder, **words) as run, pytest.raises(ResumeError) as error:
        run.begin(SETTINGS | {"model": "x"}, resume=True)
    assert str(error.value) == f"{folder} {other_settings}"
    theirs.mkdir()
    (theirs / "thesis.txt").touch()
    with Training(theirs, **words) as run, pytest.raises(ResumeError) as error:
        run.begin(SETTINGS, resume=False)
    assert str(error.value) == f"{theirs} {foreign}"
    assert (theirs / "thesis.txt").exists()


def test_another_layout_is_another_run(tmp_path):
    class Newer(Training):
        layout = 2

    with Training(tmp_path / "run") as run:
        run.begin(SETTINGS, resume=True)
        (run.folder / "state.safetensors").touch()
    with Newer(tmp_path / "run") as run, pytest.raises(ResumeError, match="layout: 1 there, 2 now"):
        run.begin(SETTINGS, resume=True)


def test_a_second_run_is_kept_out_while_the_first_lasts(tmp_path):
    with (
        Training(tmp_path / "run"),
        pytest.raises(ResumeError, match="another run is writing to"),
        Training(tmp_path / "run"),
    ):
        pass
    with Training(tmp_path / "run"):
        pass


def test_a_file_which_is_not_finished_never_appears(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted():
        yield b"new"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), atomic_file(path) as stream:
        stream.writelines(interrupted())
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_says_where_the_work_is():
    with (
        pytest.raises(OSError, match=r"what is done so far is kept in some.folder: make") as error,
        full_disk_explained(Path("some.folder")),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="denied"), full_disk_explained(Path("some.folder")):
        raise OSError(errno.EACCES, "denied")


# Shards -------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    with ShardStore(tmp_path / "kept", **KEPT) as store:
        store.begin(SETTINGS, resume=True)
        yield store


def numbers(dtype: str, rows: int = 100, dim: int = 7) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, dim)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_rows_of_a_shard(store, dtype):
    data = numbers(dtype)
    store.write(3, "digest", data, Shard(100, 5, 0, 0))
    assert store.find(3, "digest") == Shard(100, 5, 0, 0)
    for start, stop in ((0, 1), (17, 60), (99, 100), (0, 100)):
        rows = store.rows(3, start, stop)
        assert rows.dtype == data.dtype
        assert np.array_equal(rows, data[start:stop])
    assert np.array_equal(store.read(3), data)
    assert store.check(3)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (5, 5), (7, 3), (90, 101)])
def test_rows_that_are_not_there(store, start, stop):
    store.write(0, "digest", numbers("float16"), Shard(100, 0, 0, 0))
    with pytest.raises(ValueError, match=rf"rows {start} to {stop} of shard 0, which has 100"):
        store.rows(0, start, stop)


def test_arrays_in_any_order_of_memory(store):
    data = numbers("float32")
    for index, view in enumerate((data.T, data[:, ::2], np.asfortranarray(data), data[:0])):
        store.write(index, "digest", view, Shard(len(view), 0, 0, 0))
        assert np.array_equal(store.read(index), view)
        assert store.check(index)


def test_every_damaged_bit_of_the_data_is_noticed(store):
    data = numbers("float16", rows=4, dim=3)
    store.write(0, "digest", data, Shard(4, 0, 0, 0))
    path = store.folder / "shard-00000000.safetensors"
    whole = path.read_bytes()
    for at in range(len(whole) - data.nbytes, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        assert not store.check(0)
    path.write_bytes(whole)
    assert store.check(0)
    path.write_bytes(whole[:-1])
    assert not store.check(0)
    assert not store.check(1), "no such shard"
