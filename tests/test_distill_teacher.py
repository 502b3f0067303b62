"""The teacher's outputs: the engine's, and the same from the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from task_checkpoints import write_task_checkpoint

from fastdistil.bench.sample import sentences
from fastdistil.checkpoint import load_checkpoint
from fastdistil.distill import teacher_cache
from fastdistil.distill.batches import make_batch
from fastdistil.distill.corpus import Corpus, Texts, tokenised
from fastdistil.distill.masking import Masking
from fastdistil.distill.teacher import Teacher
from fastdistil.distill.teacher_cache import TeacherCache
from fastdistil.run_folder import ResumeError
from fastdistil.tokenization import TextTokenizer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "_SHARD_TOKENS", 200)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_task_checkpoint(tmp_path / "teacher", "Bert", "Model")


@pytest.fixture
def corpus(folder: Path) -> Corpus:
    tokenizer = TextTokenizer.from_folder(folder, 64)
    assert tokenizer is not None
    return tokenised(Texts(sentences()[:60], None, "texts"), tokenizer, None)


def a_teacher(folder: Path, precision: str = "auto") -> Teacher:
    return Teacher(load_checkpoint(folder), CPU, precision)


def some_texts(seed: int) -> Any:
    return np.random.default_rng(seed).permutation(60)[:9]


def masking_of(corpus: Corpus) -> Masking:
    return Masking(4, (0, 1, 2, 3, 4), int(corpus.ids.max()) + 1, 0.3, 0)


@pytest.fixture(params=["texts as they are", "masked"])
def masking(request: pytest.FixtureRequest, corpus: Corpus) -> Masking | None:
    return masking_of(corpus) if request.param == "masked" else None


def test_the_disk_gives_the_bits_of_the_teacher(
    tmp_path: Path, folder: Path, corpus: Corpus, masking: Masking | None
) -> None:
    """In other batches than they were made in: a text's states do not depend on its batch."""
    teacher = a_teacher(folder)
    if teacher.engine()["backend"] == "reference":
        pytest.skip("plain PyTorch rounds by the size of the batch; runs where the extension is")
    maskings = 1 if masking is None else 3
    with TeacherCache(teacher, tmp_path / "cache", corpus, masking, maskings, False) as cache:
        assert cache.computed == maskings * corpus.lengths.sum()
        for number in range(maskings):
            batch = make_batch(corpus, some_texts(number), masking, number)
            got, want = cache.hidden(batch), a_teacher(folder).hidden(batch)
            assert got.dtype == want.dtype == torch.float16
            assert torch.equal(got, want)


def test_a_second_run_computes_nothing(tmp_path: Path, folder: Path, corpus: Corpus) -> None:
    with TeacherCache(a_teacher(folder), tmp_path / "cache", corpus, None, 1, False) as first:
        assert first.computed == corpus.lengths.sum()
    with TeacherCache(a_teacher(folder), tmp_path / "cache", corpus, None, 1, False) as second:
        assert second.computed == 0


def test_time_is_counted_once(
    tmp_path: Path, folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filling is the teacher's time, or the files'. The clock goes on by one at every look."""
    looks = iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: float(next(looks)))
    teacher = a_teacher(folder)
    with TeacherCache(teacher, tmp_path / "cache", corpus, None, 1, False) as cache:
        cache.hidden(make_batch(corpus, some_texts(0), None, 0))
        assert teacher.seconds > 0
        assert cache.seconds > 0
        assert teacher.seconds + cache.seconds < next(looks)


def test_what_is_damaged_is_computed_again(tmp_path: Path, folder: Path, corpus: Corpus) -> None:
    teacher = a_teacher(folder)
    batch = make_batch(corpus, some_texts(0), None, 0)
    with TeacherCache(teacher, tmp_path / "cache", corpus, None, 1, False) as cache:
        want = cache.hidden(batch)
    shards = sorted((tmp_path / "cache").glob("shard-*"))
    assert len(shards) > 3
    flipped = bytearray(shards[0].read_bytes())
    flipped[-7] ^= 1
    shards[0].write_bytes(flipped)
    shards[1].write_bytes(shards[1].read_bytes()[:-50])
    shards[2].unlink()
    with TeacherCache(teacher, tmp_path / "cache", corpus, None, 1, False) as cache:
        assert 0 < cache.computed <= 3 * 200
        assert torch.equal(cache.hidden(batch), want)


def test_more_texts_keep_what_is_there(tmp_path: Path, folder: Path, corpus: Corpus) -> None:
    few = 40
    head = Corpus(corpus.ids, corpus.starts[:few], corpus.lengths[:few], None, 0)
    with TeacherCache(a_teacher(folder), tmp_path / "cache", head, None, 1, False) as cache:
        assert cache.computed == head.lengths.sum()
    with TeacherCache(a_teacher(folder), tmp_path / "cache", corpus, None, 1, False) as cache:
        assert cache.computed < corpus.lengths.sum() - head.lengths.sum() + 200


def test_an_interrupted_run_goes_on(
    tmp_path: Path, folder: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, calls = Teacher.hidden, []

    def fails_later(self: Teacher, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return hidden(self, batch)

    monkeypatch.setattr(Teacher, "hidden", fails_later)
    with (
        pytest.raises(KeyboardInterrupt),
        TeacherCache(a_teacher(folder), tmp_path / "cache", corpus, None, 1, False),
    ):
        pass
    monkeypatch.setattr(Teacher, "hidden", hidden)
    with TeacherCache(a_teacher(folder), tmp_path / "cache", corpus, None, 1, False) as cache:
        done = sum(batch.packed.num_tokens for batch in calls[:2])
        assert cache.computed == corpus.lengths.sum() - done


def test_another_teachers_outputs_are_refused(tmp_path: Path, folder: Path, corpus: Corpus) -> None:
    with TeacherCache(a_teacher(folder), tmp_path / "cache", corpus, None, 1, False):
        pass
    other = write_task_checkpoint(tmp_path / "other", "Bert", "Model", seed=1)
    with (
        pytest.raises(ResumeError, match=r"a teacher's outputs.*teacher: .*name another folder"),
        TeacherCache(a_teacher(other), tmp_path / "cache", corpus, None, 1, False),
    ):
        pass


def test_states_that_float16_does_not_reach_are_an_error(folder: Path, corpus: Corpus) -> None:
    checkpoint = load_checkpoint(folder)
    checkpoint.state_dict["transformer.layer.1.output_layer_norm.bias"][0] = 1e5
    with pytest.raises(ValueError, match=r"^teacher: its hidden states .* beyond float16"):
        Teacher(checkpoint, CPU, "fp32").hidden(make_batch(corpus, np.arange(2), None, 0))
