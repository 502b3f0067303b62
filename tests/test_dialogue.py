"""fastdistil.tasks.dialogue: the best reply of many, and the index of replies."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import write_tiny_checkpoint

from fastdistil import Encoder
from fastdistil.tasks import dialogue, reply_index
from fastdistil.tasks.dialogue import DialoguePipeline
from fastdistil.tasks.reply_index import ReplyIndex

REPLIES = ["yes sir", "no", "who is it", "see you at 9", "", "it is cold today", "no"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder(write_tiny_checkpoint(tmp_path_factory.mktemp("other"), num_layers=1))


def overlap_ranker(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Letters in common: nothing that cosines of random weights would give."""
    return [
        {"label": "fits", "score": len(set(pair["text"]) & set(pair["text_pair"]))}
        for pair in pairs
    ]


# --- the index ------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [1, 3, 50])
def test_search_is_exact(tiny: Encoder, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ReplyIndex(tiny, [f"{n} {chr(97 + n % 26)}" for n in range(40)])
    queries = tiny.encode([f"what is {n}" for n in range(11)], normalize=True)
    cosines = queries.astype(np.float64) @ index.vectors.T.astype(np.float64)
    want = np.argsort(-cosines, axis=1, kind="stable")[:, :top_k]
    for block in (1000, 7, 1):
        monkeypatch.setattr(reply_index, "_REPLIES_AT_A_TIME", block)
        monkeypatch.setattr(reply_index, "_QUERIES_AT_A_TIME", 1 + block // 2)
        scores, indices = index.search(queries, top_k)
        assert indices.shape == scores.shape == (11, min(top_k, 40))
        found = np.take_along_axis(cosines, indices, 1)
        np.testing.assert_allclose(scores, found, atol=1e-6)
        np.testing.assert_allclose(found, np.take_along_axis(cosines, want, 1), atol=1e-6)
        assert all(len(set(row)) == len(row) for row in indices.tolist())


def test_search_takes_little_memory(tiny: Encoder) -> None:
    """All scores at once would take 400 MB."""
    index = ReplyIndex(tiny)
    vectors = np.random.default_rng(0).standard_normal((100_000, tiny.dim)).astype(np.float32)
    index._rows, index.replies = vectors, [""] * len(vectors)
    tracemalloc.start()
    index.search(vectors[:1000], 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 150e6


def test_adding(tiny: Encoder) -> None:
    whole = ReplyIndex(tiny, REPLIES)
    grown = ReplyIndex(tiny)
    for reply in REPLIES:
        grown.add([reply])
    grown.add(iter(()))
    assert grown.replies == whole.replies == REPLIES
    assert len(grown) == len(REPLIES)
    assert grown.vectors.tobytes() == whole.vectors.tobytes()
    np.testing.assert_allclose(np.linalg.norm(whole.vectors, axis=1), 1, atol=1e-5)
    with pytest.raises(TypeError, match=r"replies\[1\] is int"):
        grown.add(["fine", 2])  # type: ignore[list-item]
    assert len(grown) == len(REPLIES)


ODD = ["", "two\nlines\r\n", "\u2028", "\ud800", "NUL \0", "😀 é 字", '"quoted" \\']


def test_saving(tiny: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "index"
    index = ReplyIndex(tiny, [*REPLIES, *ODD])
    index.save(folder)
    found = ReplyIndex.load(folder, Encoder(tiny.folder))
    assert found.replies == [*REPLIES, *ODD]
    assert found.vectors.tobytes() == index.vectors.tobytes()
    found.add(["more"])
    found.save(folder)
    assert len(ReplyIndex.load(folder, tiny)) == len(index) + 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "replies.jsonl",
        "vectors.safetensors",
    ]
    ReplyIndex(tiny).save(folder)
    assert len(ReplyIndex.load(folder, tiny)) == 0


def test_an_index_that_cannot_be(tiny: Encoder, other: Encoder, tmp_path: Path) -> None:
    index = ReplyIndex(tiny, REPLIES)
    index.save(tmp_path)
    with pytest.raises(ValueError, match="made by another model"):
        ReplyIndex.load(tmp_path, other)
    with pytest.raises(ValueError, match="made by another model"):
        ReplyIndex.load(tmp_path, Encoder(tiny.folder, pooling="cls"))
    with pytest.raises(FileNotFoundError, match="no reply index"):
        ReplyIndex.load(tmp_path / "nowhere", tiny)

    # A save that was killed between the two files.
    ReplyIndex(tiny, list(reversed(REPLIES))).save(tmp_path / "later")
    vectors = tmp_path / "vectors.safetensors"
    (tmp_path / "replies.jsonl").write_bytes((tmp_path / "later" / "replies.jsonl").read_bytes())
    with pytest.raises(ValueError, match=r"replies.jsonl is not the one"):
        ReplyIndex.load(tmp_path, tiny)

    vectors.write_bytes(vectors.read_bytes()[:-5])
    with pytest.raises(ValueError, match="cannot be read"):
        ReplyIndex.load(tmp_path, tiny)
    from safetensors.numpy import save_file

    save_file({"vectors": index.vectors.copy()}, vectors)
    with pytest.raises(ValueError, match="not the vectors of a reply index"):
        ReplyIndex.load(tmp_path, tiny)


def test_vectors_of_the_wrong_shape(tiny: Encoder, tmp_path: Path) -> None:
    index = ReplyIndex(tiny, REPLIES)
    index._rows = np.ascontiguousarray(index.vectors[:, :7])
    index.save(tmp_path)
    with pytest.raises(ValueError, match=r"\[7, 7\]; float32 \[7, 48\] is wanted"):
        ReplyIndex.load(tmp_path, tiny)


# --- the pipeline ---------------------------------------------------------------------------------


def test_structures(tiny: Encoder) -> None:
    talk = DialoguePipeline(tiny, REPLIES)
    assert talk.task == "dialogue"
    (one,) = talk("who are you")
    assert set(one) == {"reply", "score", "index"}
    assert one["reply"] == REPLIES[one["index"]]
    # One conversation: a string, or its utterances.
    assert talk(["who are you"]) == talk(("who are you",)) == [one]
    assert talk(["who", "are you"]) == [one]
    # Several: lists of utterances; a list of results each.
    several = talk([["who are you"], ["who", "are you"]])
    stream = talk(each for each in ["who are you", ["who", "are you"]])
    assert isinstance(stream, Iterator)
    for (each,) in [*several, *stream]:
        # A product of matrices rounds otherwise than one of a matrix and a vector.
        assert each == {**one, "score": pytest.approx(one["score"], abs=1e-6)}
    assert list(talk(iter([]))) == []


def test_top_k(tiny: Encoder) -> None:
    talk = DialoguePipeline(tiny, REPLIES, top_k=3)
    found = talk("who are you", top_k=100)
    assert sorted(each["index"] for each in found) == list(range(len(REPLIES)))
    scores = [each["score"] for each in found]
    assert scores == sorted(scores, reverse=True)
    assert talk("who are you") == found[:3]
    no = [each["index"] for each in found if each["reply"] == "no"]
    assert no == sorted(no)


def test_candidates_of_a_call(tiny: Encoder, tmp_path: Path) -> None:
    index = ReplyIndex(tiny, REPLIES)
    want = DialoguePipeline(tiny, REPLIES)("hello", top_k=3)
    talk = DialoguePipeline(tiny)
    assert talk("hello", candidates=REPLIES, top_k=3) == want
    assert talk("hello", candidates=index, top_k=3) == want
    assert talk("hello", candidates=iter(REPLIES), top_k=3) == want
    index.save(tmp_path)
    assert talk("hello", candidates=tmp_path, top_k=3) == want
    assert DialoguePipeline(Encoder(tiny.folder), index)("hello", top_k=3) == want
    only = DialoguePipeline(tiny, REPLIES)("hello", candidates=["bye"])
    assert [each["reply"] for each in only] == ["bye"]


def test_candidates_are_encoded_once(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[list[str]] = []
    encode = Encoder.encode

    def counting(self: Encoder, texts: list[str], **options: Any) -> Any:
        encoded.append(list(texts))
        return encode(self, texts, **options)

    monkeypatch.setattr(Encoder, "encode", counting)
    talk = DialoguePipeline(tiny, REPLIES)
    talk("hello")
    talk([["one"], ["two"]])
    assert encoded == [REPLIES, ["hello"], ["one", "two"]]


def test_company_changes_nothing(tiny: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    conversations = [[f"turn {n}", "and then"] for n in range(20)]
    talk = DialoguePipeline(tiny, REPLIES)
    together = talk(conversations)
    monkeypatch.setattr(dialogue, "_CONVERSATIONS_AT_A_TIME", 3)
    for got, each in zip(list(talk(iter(conversations))), conversations, strict=True):
        (alone,) = talk(each)
        assert got[0]["index"] == alone["index"]
        assert got[0]["score"] == pytest.approx(alone["score"], abs=1e-6)
    assert [one["index"] for (one,) in together] == [talk(c)[0]["index"] for c in conversations]


def test_ranker(tiny: Encoder) -> None:
    asked: list[dict[str, str]] = []

    def ranker(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
        asked.extend(pairs)
        return overlap_ranker(pairs)

    talk = DialoguePipeline(tiny, REPLIES, ranker, rerank=4)
    near = DialoguePipeline(tiny, REPLIES)("is it cold", top_k=4)
    found = talk(["is it", "cold"], top_k=2)
    assert asked == [{"text": "is it cold", "text_pair": each["reply"]} for each in near]
    # Python's sort is stable: of equal scores the nearer comes first.
    want = sorted(near, key=lambda each: -overlap_ranker([_pair(each)])[0]["score"])[:2]
    assert [each["index"] for each in found] == [each["index"] for each in want]
    assert [each["score"] for each in found] == [
        overlap_ranker([_pair(each)])[0]["score"] for each in want
    ]
    (best,) = talk("is it cold today", rerank=100)
    assert best["reply"] == "it is cold today"
    assert len(talk("is it cold", top_k=6, rerank=1)) == 6
    several = talk([["is it cold today"], ["see you"]], rerank=100)
    assert [each[0]["reply"] for each in several] == ["it is cold today", "see you at 9"]


def _pair(reply: dict[str, Any]) -> dict[str, str]:
    return {"text": "is it cold", "text_pair": reply["reply"]}


def test_rankers_that_do_not_do_as_they_should(tiny: Encoder) -> None:
    short = DialoguePipeline(tiny, REPLIES, lambda pairs: overlap_ranker(pairs)[1:])
    with pytest.raises(ValueError, match="ranker gave 6 results for 7 pairs"):
        short("hello")
    nested = DialoguePipeline(tiny, REPLIES, lambda pairs: [[p] for p in overlap_ranker(pairs)])
    with pytest.raises(TypeError, match=r"for pair 0; \{\"label\""):
        nested("hello")
    with pytest.raises(TypeError, match="ranker is str"):
        DialoguePipeline(tiny, REPLIES, "model")  # type: ignore[arg-type]


# --- long conversations ---------------------------------------------------------------------------


def test_the_newest_words_stay(tiny: Encoder) -> None:
    """40 positions, 38 of them for letters: the tiny tokenizer has a token for each."""
    talk = DialoguePipeline(tiny, REPLIES)
    newest = "abcdefghi " * 3 + "klmnopqrstu"  # 38 letters
    assert talk(["what was said before", newest]) == talk(newest)
    assert talk(["x", newest]) == talk(newest)
    assert talk(newest) != talk(newest[1:])
    # Words are not cut: of "bcdefghi" nothing is left when there is no room for the "a".
    assert talk(newest + "v") == talk(newest[10:] + "v")
    # Unless there is only one.
    assert talk("z" * 50 + "a" * 38) == talk("a" * 38)


def test_the_ranker_sees_half_as_much(tiny: Encoder) -> None:
    seen: list[str] = []

    def ranker(pairs: list[dict[str, str]]) -> list[dict[str, Any]]:
        seen.extend(pair["text"] for pair in pairs)
        return overlap_ranker(pairs)

    DialoguePipeline(tiny, ["one"], ranker)(["first of all", "abcdefghi " * 5])
    assert [text.split() for text in seen] == [["abcdefghi"] * 2]  # 18 of 19 tokens


LONG = st.lists(st.sampled_from(["a", "bcd", "  ", "\n", "é", "字", "!", "\ud800", "x" * 45]))


@given(LONG)
def test_newest_text_is_the_end_of_the_text(tiny: Encoder, pieces: list[str]) -> None:
    text = " ".join(pieces)
    (kept,) = DialoguePipeline(tiny, ["one"])._newest([text])
    assert text.replace("\ud800", "\ufffd").endswith(kept)
    assert tiny.require_tokenizer()([kept]).truncated == 0
    whole = tiny.require_tokenizer()([text])
    if not whole.truncated:
        assert kept == text.replace("\ud800", "\ufffd")


def test_a_megabyte(tiny: Encoder) -> None:
    talk = DialoguePipeline(tiny, REPLIES)
    assert talk("word " * 200_000 + "who is it") == talk("word " * 20 + "who is it")
    assert talk(["some turn"] * 10_000 + ["who is it"] * 10) == talk(["who is it"] * 10)


# --- bad input ------------------------------------------------------------------------------------


def test_bad_input(tiny: Encoder, other: Encoder) -> None:
    talk = DialoguePipeline(tiny, REPLIES)
    for context, error, message in [
        (3, TypeError, "context is int"),
        ({"text": "x"}, TypeError, "context is dict"),
        (b"x", TypeError, "context is bytes"),
        ([], ValueError, "context is empty"),
        ([[]], ValueError, r"context\[0\] is empty"),
        (["a", 3], TypeError, r"context\[1\] is int"),
        (["a", ["b"]], TypeError, r"context\[0\] is a string among lists"),
        ([["a"], "b"], TypeError, r"context\[1\] is a string among lists"),
        ([["a"], ["b", None]], TypeError, r"context\[1\]\[1\] is NoneType"),
        ([["a"], None], TypeError, r"context\[1\] is NoneType"),
    ]:
        with pytest.raises(error, match=message):
            talk(context)
    with pytest.raises(TypeError, match=r"context\[1\] is int"):
        list(talk(iter(["a", 2])))
    for options, error, message in [
        ({"top_k": 0}, ValueError, "top_k is 0"),
        ({"top_k": 1.5}, TypeError, "top_k is 1.5"),
        ({"rerank": -1}, ValueError, "rerank is -1"),
    ]:
        with pytest.raises(error, match=message):
            talk("hello", **options)
        with pytest.raises(error, match=message):
            DialoguePipeline(tiny, REPLIES, **options)
    with pytest.raises(TypeError, match="temperature is not an option"):
        DialoguePipeline(tiny, REPLIES, temperature=1)
    with pytest.raises(ValueError, match="candidates: there are none"):
        DialoguePipeline(tiny)("hello")
    with pytest.raises(ValueError, match="candidates: there are none"):
        talk("hello", candidates=[])
    with pytest.raises(TypeError, match="candidates is str"):
        talk("hello", candidates="yes")
    with pytest.raises(TypeError, match=r"candidates\[1\] is int"):
        DialoguePipeline(tiny, ["yes", 1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="candidates is an index of"):
        DialoguePipeline(tiny, ReplyIndex(other, REPLIES))


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    encoder = Encoder(write_tiny_checkpoint(tmp_path, tokenizer=False))
    with pytest.raises(ValueError, match="no tokenizer"):
        DialoguePipeline(encoder, REPLIES)


def test_an_encoder_without_pooling_is_pooled(tiny: Encoder) -> None:
    unpooled = Encoder(tiny.folder, pooling="none")
    index = ReplyIndex(unpooled, REPLIES)
    assert DialoguePipeline(unpooled, index)("hello") == DialoguePipeline(tiny, index)("hello")


# --- what real vectors make of real talk ----------------------------------------------------------

HELPDESK = [
    "You can reset your password on the login page: choose 'forgot password'.",
    "Our shops are open from nine to six, on Sundays from noon.",
    "Your parcel is on its way; it takes two to three working days.",
    "I am sorry to hear that. We will refund the full price to your card.",
    "Yes, we do ship to Canada and to Mexico.",
    "The battery lasts for about ten hours of video.",
]


def test_the_reply_that_fits(minilm_folder: Path, tmp_path: Path) -> None:
    encoder = Encoder(minilm_folder)
    ReplyIndex(encoder, HELPDESK).save(tmp_path)
    talk = DialoguePipeline(encoder, tmp_path)
    for want, question in enumerate(
        [
            "I forgot my password and can't log in.",
            "When do you open on Sunday?",
            "Where is my order? I've been waiting for the package.",
            "It arrived broken and I want my money back.",
            "Do you deliver outside the US?",
            "How long can I watch films before I need to charge it?",
        ]
    ):
        assert talk(question)[0]["index"] == want
    # What was said before tells what "it" is.
    assert talk(["I ordered a lamp last week.", "When will it arrive?"])[0]["index"] == 2
    assert talk(["I want to buy the tablet.", "How long does it run?"])[0]["index"] == 5
    lines = (tmp_path / "replies.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == HELPDESK
