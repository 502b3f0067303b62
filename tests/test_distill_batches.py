"""What is trained on, and when: texts read and split, masked, and put into steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import write_tiny_checkpoint

from fastdistil.distill.batches import StepPlan, batches_in_order, make_batch
from fastdistil.distill.corpus import (
    MOST_HELD_OUT,
    Corpus,
    Texts,
    read_texts,
    split_held_out,
    tokenised,
)
from fastdistil.distill.masking import Masking
from fastdistil.text_io import InputError
from fastdistil.tokenization import TextTokenizer

RULE = Masking(103, (0, 100, 101, 102, 103), 30522, 0.15, 7)


def a_corpus(texts: int = 50, seed: int = 0, vocabulary: int = 900) -> Corpus:
    draws = np.random.default_rng(seed)
    lengths = draws.integers(1, 30, texts)
    ids = draws.integers(200, vocabulary, lengths.sum()).astype(np.int32)
    return Corpus(ids, np.cumsum(lengths) - lengths, lengths, draws.integers(0, 2, texts), 0)


# --- texts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "columns"),
    [
        ("a.txt", "one\n\ntwo\n", ("", None)),
        (
            "a.jsonl",
            '{"text": "one", "y": 3}\n{"text": "", "y": 1}\n{"text": "two", "y": 2}\n',
            "y",
        ),
        ("a.csv", "body,y\none,3\n,1\ntwo,2\n", ("body", "y")),
    ],
)
def test_reads_files(tmp_path: Path, name: str, content: str, columns: Any) -> None:
    (tmp_path / name).write_text(content)
    text, label = (None, "y") if columns == "y" else columns
    found = read_texts(tmp_path / name, None, "texts", None, text or None, label)
    assert found.texts == ["one", "", "two"]
    labels = None if found.labels is None else [int(label) for label in found.labels]
    assert labels == (None if name.endswith("txt") else [3, 1, 2])


def test_refuses_texts_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(InputError, match=r"empty\.txt: no texts"):
        read_texts(tmp_path / "empty.txt", None, "texts")
    with pytest.raises(ValueError, match="texts: no texts"):
        read_texts([], None, "texts")
    with pytest.raises(TypeError, match=r"texts\[1\] is int; a string is wanted"):
        read_texts(["a", 2], None, "texts")
    with pytest.raises(ValueError, match="labels: 1 labels for 2 texts"):
        read_texts(["a", "b"], [1], "texts")
    with pytest.raises(ValueError, match="label_column"):
        read_texts(tmp_path / "empty.txt", [1], "texts")


def test_texts_that_come_twice_are_on_one_side() -> None:
    texts = [f"text {number % 300}" for number in range(900)]
    learned, held = split_held_out(Texts(texts, list(range(900)), "texts"), 0.1)
    assert held is not None
    assert not {*learned.texts} & {*held.texts}
    assert len(learned.texts) + len(held.texts) == 900
    assert 90 <= len(held.texts) <= 92
    assert held.labels is not None
    assert all(texts[int(row)] == text for row, text in zip(held.labels, held.texts, strict=True))


def test_the_split_depends_on_the_text_alone() -> None:
    texts = [f"text {number}" for number in range(500)]
    forwards = split_held_out(Texts(texts, None, "texts"), 0.2)[1]
    backwards = split_held_out(Texts(texts[::-1], None, "texts"), 0.2)[1]
    assert forwards is not None
    assert backwards is not None
    assert sorted(forwards.texts) == sorted(backwards.texts)


def test_held_out_texts_are_few() -> None:
    texts = Texts([str(number) for number in range(3 * MOST_HELD_OUT)], None, "texts")
    held = split_held_out(texts, 0.9)[1]
    assert held is not None
    assert len(held.texts) == MOST_HELD_OUT
    assert split_held_out(texts, 0.0) == (texts, None)
    with pytest.raises(ValueError, match="1 different text"):
        split_held_out(Texts(["a", "a"], None, "some.txt"), 0.5)


def test_tokenises_what_has_tokens(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path)
    tokenizer = TextTokenizer.from_folder(tmp_path, 40)
    assert tokenizer is not None
    texts = ["ab c", "", "x" * 99, " \t "]
    corpus = tokenised(Texts(texts, None, "texts"), tokenizer, np.array([4, 5, 6, 7]))
    alone = [tokenizer([texts[row]]).ids.tolist() for row in (0, 2)]  # blanks teach nothing
    assert [corpus.ids_of(np.array([row])).tolist() for row in range(2)] == alone
    assert corpus.ids_of(np.array([1, 0])).tolist() == alone[1] + alone[0]
    assert corpus.truncated == 1
    assert corpus.labels is not None
    assert corpus.labels.tolist() == [4, 6]
    with pytest.raises(InputError, match="texts: no texts, only blanks"):
        tokenised(Texts(["", " "], None, "texts"), tokenizer, None)


# --- masking --------------------------------------------------------------------------------------


def test_masks_as_bert_does() -> None:
    corpus = a_corpus(20000, vocabulary=20000)
    ids, lengths = corpus.ids, corpus.lengths
    masked, rows = RULE(ids, lengths.tolist(), range(len(lengths)), 0)
    assert rows.size / ids.size == pytest.approx(0.15, abs=0.003)
    fates = masked[rows]
    assert (fates == 103).mean() == pytest.approx(0.8, abs=0.006)
    assert (fates == ids[rows]).mean() == pytest.approx(0.1, abs=0.005)
    others = fates[(fates != 103) & (fates != ids[rows])]
    assert others.size / rows.size == pytest.approx(0.1, abs=0.005)
    assert others.min() < 300
    assert others.max() > 30000
    untouched = np.delete(np.arange(ids.size), rows)
    assert (masked[untouched] == ids[untouched]).all()


def test_never_masks_special_tokens() -> None:
    ids = np.array([101, 100, 7, 0, 103, 102], np.int32)
    all_of_them = Masking(103, RULE.special_ids, 30522, 1.0, 0)
    for text in range(50):
        _, rows = all_of_them(ids, [6], [text], 0)
        assert rows.tolist() == [2]


def test_a_text_is_masked_alike_in_every_batch() -> None:
    corpus = a_corpus()
    everything = make_batch(corpus, np.arange(50), RULE, 3)
    ends = np.cumsum(corpus.lengths)
    for texts in ([4], [9, 4, 30], list(range(49, -1, -1))):
        batch = make_batch(corpus, np.array(texts), RULE, 3)
        want = [
            everything.packed.input_ids[ends[text] - corpus.lengths[text] : ends[text]]
            for text in texts
        ]
        assert torch.equal(batch.packed.input_ids, torch.cat(want))
    another = make_batch(corpus, np.arange(50), RULE, 4)
    assert not torch.equal(another.packed.input_ids, everything.packed.input_ids)
    seeded = Masking(103, RULE.special_ids, 30522, 0.15, 8)
    third = make_batch(corpus, np.arange(50), seeded, 3)
    assert not torch.equal(third.packed.input_ids, everything.packed.input_ids)


def test_targets_are_what_was_there() -> None:
    corpus = a_corpus()
    texts = np.array([3, 1, 2])
    batch = make_batch(corpus, texts, RULE, 0)
    assert batch.rows is not None
    assert batch.targets is not None
    ids = torch.from_numpy(corpus.ids_of(texts))
    assert torch.equal(batch.targets, ids[batch.rows].long())
    plain = make_batch(corpus, texts, None, 0)
    assert torch.equal(plain.packed.input_ids, ids)
    assert plain.rows is None
    assert plain.labels is not None
    assert corpus.labels is not None
    assert plain.labels.tolist() == corpus.labels[texts].tolist()


# --- steps ----------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=80),
    batch_tokens=st.integers(1, 200),
    accumulation=st.integers(1, 4),
    epochs=st.integers(1, 3),
    max_steps=st.one_of(st.none(), st.integers(1, 30)),
)
def test_every_text_once_an_epoch(
    lengths: list[int], batch_tokens: int, accumulation: int, epochs: int, max_steps: int | None
) -> None:
    counts = np.array(lengths)
    plan = StepPlan(counts, batch_tokens, accumulation, epochs, max_steps, 5)
    steps = list(plan.after(0))
    assert [step.number for step in steps] == list(range(1, plan.total + 1))
    assert max_steps is None or plan.total <= max_steps
    for step in steps:
        assert 1 <= len(step.pieces) <= accumulation
        for piece in step.pieces:
            assert len(piece) == 1 or counts[piece].sum() <= batch_tokens
            assert (np.diff(counts[piece]) >= 0).all()  # equal lengths are neighbours
    assert plan.epochs == steps[-1].epoch + 1
    for epoch in range(epochs):
        seen = [text for step in steps if step.epoch == epoch for p in step.pieces for text in p]
        assert len(seen) == len({*seen})
        if max_steps is None:
            assert len(seen) == len(lengths)
    # A run that goes on does what it would have done.
    for done in (1, plan.total // 2, plan.total):
        rest = list(plan.after(done))
        assert [step.number for step in rest] == [step.number for step in steps[done:]]
        for one, other in zip(rest, steps[done:], strict=True):
            assert one.epoch == other.epoch
            assert all(map(np.array_equal, one.pieces, other.pieces))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    lengths = a_corpus(400).lengths

    def first(seed: int, epoch: int) -> list[int]:
        plan = StepPlan(lengths, 64, 1, 2, None, seed)
        return next(step for step in plan.after(0) if step.epoch == epoch).pieces[0].tolist()

    assert first(0, 0) == first(0, 0)
    assert first(0, 0) != first(0, 1)
    assert first(0, 0) != first(1, 0)


def test_an_evaluation_sees_everything_once() -> None:
    corpus = a_corpus()
    found = list(batches_in_order(corpus, 100, None, 0))
    assert sorted(np.concatenate([batch.texts for batch in found]).tolist()) == list(range(50))
    assert all(batch.packed.num_tokens <= 100 for batch in found)
