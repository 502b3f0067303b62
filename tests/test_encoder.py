"""Texts to vectors: the right ones, in order, the same in any company."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_config
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import write_modules, write_tiny_checkpoint

import fastdistil
from fastdistil import Encoder, batch_stream, progress
from fastdistil.backends import select
from fastdistil.batch_stream import TokenLimit
from fastdistil.overlap import overlapped
from fastdistil.packing import pack_flat, pack_ids
from fastdistil.pooling import pool
from fastdistil.tokenization import TokenizedTexts

WORDS = ["a", "bc", "def", "x1", "hello", "?", "  ", "émile"]


def some_texts(number: int, seed: int = 0) -> list[str]:
    seeded = random.Random(seed)
    return [" ".join(seeded.choices(WORDS, k=seeded.randint(0, 9))) for _ in range(number)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny_encoder(tiny) -> Encoder:
    return Encoder(tiny)


@pytest.fixture(scope="module")
def minilm(minilm_folder) -> Encoder:
    return Encoder(minilm_folder)


@pytest.fixture(scope="module")
def sentence_transformer(minilm_folder):
    library = pytest.importorskip("sentence_transformers")
    return library.SentenceTransformer(str(minilm_folder), device="cpu")


# The right vectors --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(sentence_transformer, real_sentences):
    """sentence-transformers' own vectors of some sentences, short, long and odd."""
    texts = [*real_sentences[:60], "", "ÀÉ 漢字 nul\x00", " ".join(real_sentences[:40])]
    return texts, sentence_transformer.encode(texts, show_progress_bar=False)


def test_fp32_equals_sentence_transformers(minilm_folder, theirs):
    texts, expected = theirs
    ours = Encoder(minilm_folder, precision="fp32").encode(texts)
    assert ours.dtype == np.float32
    assert np.abs(ours - expected).max() <= 1e-5


def test_bf16_points_the_same_way_as_sentence_transformers(minilm_folder, theirs):
    texts, expected = theirs
    config = fastdistil.EncoderConfig.from_folder(minilm_folder)
    if select(config, torch.device("cpu"), "bf16").backend.name == "reference":
        pytest.skip("no bf16 kernels for this CPU; runs where there are (AVX-512 BF16, AMX)")
    ours = Encoder(minilm_folder, precision="bf16").encode(texts)
    cosines = (ours * expected).sum(axis=1) / np.linalg.norm(ours, axis=1)
    assert cosines.min() >= 0.9999


def test_not_normalised_and_other_poolings(minilm_folder, real_sentences):
    enc = Encoder(minilm_folder, precision="fp32", normalize=False)
    texts = real_sentences[:12]
    tokens = enc.encode(texts, pooling="none")
    for pooling, reduce in (
        ("mean", lambda rows: rows.mean(axis=0)),
        ("max", lambda rows: rows.max(axis=0)),
        ("cls", lambda rows: rows[0]),
    ):
        expected = np.stack([reduce(rows) for rows in tokens])
        np.testing.assert_allclose(enc.encode(texts, pooling=pooling), expected, atol=1e-5)
    lengths = np.linalg.norm(enc.encode(texts, normalize=True), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_every_tokens_vector_is_the_models_own(tiny_encoder):
    texts = some_texts(9)
    ids = [tiny_encoder.tokenizer([text]).ids for text in texts]
    vectors = tiny_encoder.encode(texts, pooling="none")
    assert [len(rows) for rows in vectors] == [len(row) for row in ids]
    for row, rows in zip(ids, vectors, strict=True):
        expected = tiny_encoder.model(torch.from_numpy(row)[None].long()).last_hidden_state[0]
        np.testing.assert_allclose(rows, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_the_first_vector_waits_for_nothing_of_torchs_compiler(tmp_path):
    folder = write_tiny_checkpoint(tmp_path, sinusoidal_positions=True)
    code = "import sys; from fastdistil import Encoder\n"
    code += "Encoder(sys.argv[1], device='cpu').encode(['ab'])\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    # A second, most of it sympy: drawing random numbers on the meta device asks for it.
    assert not {"torch._dynamo", "sympy"} & set(done.stdout.split())


def test_encode_ids_is_encode_without_the_tokenizer(tiny_encoder):
    texts = some_texts(200)
    ids = [tiny_encoder.tokenizer([text]).ids for text in texts]
    expected = tiny_encoder.encode(texts)
    assert np.array_equal(tiny_encoder.encode_ids([row.tolist() for row in ids]), expected)
    assert np.array_equal(tiny_encoder.encode_ids(ids), expected)
    assert np.array_equal(tiny_encoder.encode_ids(map(torch.from_numpy, ids)), expected)


def test_an_empty_sequence_of_ids_gives_zeros(tiny_encoder):
    vectors = tiny_encoder.encode_ids([[2, 3], [], [2, 9, 3]])
    assert vectors.shape == (3, 48)
    assert not vectors[1].any()
    assert vectors[[0, 2]].any(axis=1).all()
    assert tiny_encoder.encode_ids([]).shape == (0, 48)


# The same in any company --------------------------------------------------------------------------


def test_a_vector_does_not_depend_on_its_batch_order_or_thread(minilm, real_sentences):
    if minilm.model.explain()["backend"] == "reference":
        pytest.skip("plain PyTorch rounds by batch; runs where the C++ extension is built")
    texts = real_sentences[:70]
    expected = minilm.encode(texts)
    assert np.array_equal(np.stack([minilm.encode(text) for text in texts[:16]]), expected[:16])
    shuffled = np.random.default_rng(0).permutation(len(texts))
    for batch_tokens in (64, 700, None):
        vectors = minilm.encode([texts[i] for i in shuffled], batch_tokens=batch_tokens)
        assert np.array_equal(vectors, expected[shuffled])
    with ThreadPoolExecutor(8) as threads:
        for vectors in threads.map(minilm.encode, [texts[:20]] * 8):
            assert np.array_equal(vectors, expected[:20])


def test_lists_generators_and_arrays_are_the_same(tiny_encoder):
    texts = some_texts(1500)
    expected = tiny_encoder.encode(texts)
    assert expected.shape == (1500, 48)
    assert np.array_equal(tiny_encoder.encode(text for text in texts), expected)
    assert np.array_equal(tiny_encoder.encode(tuple(texts)), expected)
    assert np.array_equal(tiny_encoder.encode(np.array(texts)), expected)
    assert np.array_equal(tiny_encoder.encode(texts[:5]), expected[:5])
    assert np.array_equal(tiny_encoder.encode(texts[7]), expected[7])


def test_a_generator_is_drawn_from_in_the_callers_thread(tiny_encoder):
    seen = set()

    def texts():
        for text in some_texts(1200):
            seen.add(threading.current_thread())
            yield text

    tiny_encoder.encode(texts())
    assert seen == {threading.current_thread()}


@given(st.lists(st.lists(st.integers(0, 12), max_size=30), max_size=5), st.integers(1, 40))
def test_batches_hold_every_text_once_in_order_and_within_the_budget(chunks, batch_tokens):
    numbers = count()
    stream, everything = [], []
    for lengths in chunks:
        ids = list(islice(numbers, sum(lengths)))
        everything += lengths
        stream.append(TokenizedTexts(np.array(ids, np.int32), np.array(lengths, np.int64)))
    batches = list(batch_stream.batches_of(iter(stream), batch_tokens, TokenLimit()))
    assert [n for batch in batches for n in batch.lengths.tolist()] == everything
    assert [i for batch in batches for i in batch.ids.tolist()] == list(range(sum(everything)))
    for batch in batches:
        assert len(batch.ids) == batch.lengths.sum()
        assert len(batch.ids) <= batch_tokens or len(batch.lengths) == 1
    for batch, following in pairwise(batches):
        tokens = len(batch.ids) + following.lengths[0]
        assert tokens > batch_tokens, "a batch that had room for one more"


def test_a_batch_from_a_stream_is_the_one_packing_makes(tiny_encoder):
    rows = [[2, 5, 3], [], [2, 3], [2, 7, 8, 9, 3]]
    ids = np.array([i for row in rows for i in row], np.int32)
    ours = pack_flat(ids, np.array([3, 0, 2, 5]))
    expected = pack_ids(rows)
    for name in ("input_ids", "positions", "cu_seqlens"):
        assert torch.equal(getattr(ours, name), getattr(expected, name))
    assert ours.max_seqlen == expected.max_seqlen == 5
    assert ours.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 4]
    assert ours.cu_seqlens.tolist() == [0, 3, 3, 5, 10]
    vectors = pool(tiny_encoder.model.forward_packed(ours), ours.cu_seqlens, "mean")
    np.testing.assert_allclose(tiny_encoder.encode_ids(rows), vectors.numpy(), atol=1e-5)


# Odd and bad input --------------------------------------------------------------------------------


def test_nothing_to_encode(tiny_encoder):
    for nothing in ([], (), iter([]), np.array([], str)):
        vectors = tiny_encoder.encode(nothing)
        assert vectors.shape == (0, 48)
        assert vectors.dtype == np.float32
    assert tiny_encoder.encode([], pooling="none") == []


def test_any_string_is_a_text(tiny_encoder):
    odd = ["", "\x00", "a\x00b", "\ud800", "a\udfffb", "\u2028", "x" * 300_000, "a " * 600_000]
    vectors = tiny_encoder.encode(odd * 10)
    assert vectors.shape == (80, 48)
    assert np.isfinite(vectors).all()
    assert np.array_equal(vectors[:8], vectors[-8:])
    assert np.array_equal(vectors[3], tiny_encoder.encode("\ufffd"))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", 5], r"texts\[1\] is int; a string is wanted"),
        (["a"] * 700 + [None], r"texts\[700\] is NoneType"),
        ((text for text in ["a"] * 700 + [b"bytes"]), r"texts\[700\] is bytes"),
        ([("a", "pair")], r"texts\[0\] is tuple"),
        ([["a"]], r"texts\[0\] is list"),
        (b"bytes", r"texts\[0\] is int"),
        (None, "texts is NoneType; a list or another iterable is wanted"),
    ],
)
def test_what_is_not_text(tiny_encoder, texts, message):
    with pytest.raises(TypeError, match=message):
        tiny_encoder.encode(texts)


@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        ([2, 5, 3], TypeError, r"sequences\[0\] is int; .*a list of one such list"),
        ([[2, 3], "text"], TypeError, r"sequences\[1\] is str"),
        ([[2, 3], [2.5]], TypeError, "sequence 1"),
        ([[2, 3], [[2, 3]]], (TypeError, ValueError), "sequence 1"),
        (None, TypeError, "sequences is NoneType"),
        ([[2, 3], [2, 99]], ValueError, "99 at token 1 of sequence 1.*0 to 98"),
        ([[2, 3], [-1]], ValueError, "-1 at token 0 of sequence 1"),
        ([[2, 3]] * 900 + [[2] * 41], ValueError, "sequence 900 .*longer than .*position table"),
    ],
)
def test_what_is_not_token_ids(tiny_encoder, sequences, error, message):
    with pytest.raises(error, match=message):
        tiny_encoder.encode_ids(sequences)


def test_options_that_make_no_sense(tiny, tiny_encoder):
    with pytest.raises(ValueError, match="pooling is 'sum'; it can be mean, cls, max, none"):
        tiny_encoder.encode(["a"], pooling="sum")
    with pytest.raises(ValueError, match="batch_tokens is 0; it must be at least 1"):
        tiny_encoder.encode(["a"], batch_tokens=0)
    with pytest.raises(ValueError, match="normalize is for one vector per text"):
        tiny_encoder.encode(["a"], pooling="none", normalize=True)
    with pytest.raises(ValueError, match="pooling is 'sum'"):
        Encoder(tiny, pooling="sum")
    with pytest.raises(ValueError, match="max_length is 41; this model takes from 1 to 40 tokens"):
        Encoder(tiny, max_length=41)
    with pytest.raises(FileNotFoundError):
        Encoder(tiny / "absent")


def test_texts_are_cut_at_max_length(tiny):
    long = "a b c d e f g h"
    assert len(Encoder(tiny, max_length=5).encode(long, pooling="none")) == 5
    short = Encoder(tiny, max_length=5)
    assert np.array_equal(short.encode(long), short.encode("a b c"))


def test_a_folder_without_a_tokenizer_takes_ids(tmp_path):
    enc = Encoder(write_tiny_checkpoint(tmp_path, tokenizer=False))
    assert enc.tokenizer is None
    assert enc.encode_ids([[2, 9, 3]]).shape == (1, 48)
    with pytest.raises(ValueError, match=r"has no tokenizer\.json or vocab\.txt.*encode_ids"):
        enc.encode(["a"])


# What sentence-transformers' files say -----------------------------------------------------------

TRANSFORMER = ("sentence_transformers.models.Transformer", "", {})
NORMALIZE = ("sentence_transformers.models.Normalize", "2_Normalize", {})


def pooling_module(**config):
    return ("sentence_transformers.models.Pooling", "1_Pooling", config)


def test_defaults_without_such_files(tiny_encoder):
    assert (tiny_encoder.pooling, tiny_encoder.normalize) == ("mean", False)


@pytest.mark.parametrize(
    ("modules", "pooling", "normalize"),
    [
        ([pooling_module(pooling_mode_cls_token=True)], "cls", False),
        ([pooling_module(pooling_mode_max_tokens=True), NORMALIZE], "max", True),
        ([pooling_module(pooling_mode="cls"), NORMALIZE], "cls", True),
        ([pooling_module(pooling_mode=["mean"])], "mean", False),
    ],
)
def test_pooling_and_normalisation_of_the_folder(tmp_path, modules, pooling, normalize):
    write_tiny_checkpoint(tmp_path)
    write_modules(tmp_path, TRANSFORMER, *modules)
    enc = Encoder(tmp_path)
    assert (enc.pooling, enc.normalize) == (pooling, normalize)
    plain = enc.encode(["hello a", "x"], pooling=pooling, normalize=False)
    if normalize:
        plain /= np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(enc.encode(["hello a", "x"]), plain, atol=1e-6)
    other = Encoder(tmp_path, pooling="max", normalize=not normalize)
    assert (other.pooling, other.normalize) == ("max", not normalize)


DENSE = ("sentence_transformers.models.Dense", "2_Dense", {"in_features": 48})


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([pooling_module(pooling_mode_weightedmean_tokens=True)], "'weightedmean' pooling, which"),
        ([pooling_module(pooling_mode="lasttoken")], "'lasttoken' pooling, which is not supported"),
        (
            [pooling_module(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True)],
            r"poolings joined together \(cls \+ mean\)",
        ),
        ([pooling_module(pooling_mode="mean"), DENSE], "a Dense module, which is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(tmp_path, modules, message):
    write_tiny_checkpoint(tmp_path)
    write_modules(tmp_path, TRANSFORMER, *modules)
    with pytest.raises(ValueError, match=rf"asks for {message}.*Give pooling="):
        Encoder(tmp_path)
    assert Encoder(tmp_path, pooling="mean").encode("a").shape == (48,)


def test_a_prompt_in_front_of_every_text_is_refused_by_name(tmp_path):
    write_tiny_checkpoint(tmp_path)
    write_modules(tmp_path, TRANSFORMER, pooling_module(pooling_mode="mean"))
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": None}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert Encoder(tmp_path).pooling == "mean"
    settings["default_prompt_name"] = "query"
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="asks for the prompt 'query' in front of every text"):
        Encoder(tmp_path)


def test_the_old_layout_with_the_encoder_in_a_folder_of_its_own(tmp_path, tiny_encoder):
    write_tiny_checkpoint(tmp_path / "0_Transformer")
    (tmp_path / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    transformer = ("sentence_transformers.models.Transformer", "0_Transformer", {})
    write_modules(tmp_path, transformer, pooling_module(pooling_mode_mean_tokens=True))
    enc = Encoder(tmp_path)
    assert enc.tokenizer.max_length == 9
    assert np.array_equal(enc.encode("hello"), tiny_encoder.encode("hello"))


def test_modules_that_are_not_a_list(tmp_path):
    write_tiny_checkpoint(tmp_path)
    (tmp_path / "modules.json").write_text("{}")
    with pytest.raises(ValueError, match=r"modules\.json must hold a JSON list of modules"):
        Encoder(tmp_path)


def test_the_fingerprint_is_of_the_weights_and_the_tokenizer(tiny, tiny_encoder):
    assert tiny_encoder.fingerprint() == Encoder(tiny).fingerprint()
    assert tiny_encoder.fingerprint() != Encoder(tiny, max_length=9).fingerprint()
    changed = Encoder(tiny)
    with torch.no_grad():
        changed.model.transformer.layer[1].ffn.lin2.bias[3] += 1
    assert tiny_encoder.fingerprint() != changed.fingerprint()
    assert tiny_config() == changed.model.config


# The thread that runs ahead -----------------------------------------------------------------------


def test_overlapped_keeps_order_and_bounds_what_waits():
    drawn = []

    def items():
        for number in range(50):
            drawn.append(number)
            yield number

    seen = []
    for result in overlapped(lambda number: -number, items(), 3):
        seen.append(-result)
        assert len(drawn) <= len(seen) + 3
    assert seen == list(range(50))


def test_overlapped_does_overlap():
    """The worker is at the second item while the caller holds the first."""
    second_begun = threading.Event()

    def work(number):
        if number == 1:
            second_begun.set()
        return number

    results = overlapped(work, range(3), 2)
    assert next(results) == 0
    assert second_begun.wait(10)
    results.close()


def test_overlapped_raises_in_its_turn_and_leaves_no_thread():
    before = threading.active_count()

    def work(number):
        if number == 3:
            raise KeyError(number)
        return number

    results = overlapped(work, count(), 2)
    assert list(islice(results, 3)) == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)
    closed_early = overlapped(work, range(3), 2)
    next(closed_early)
    closed_early.close()
    assert threading.active_count() == before


def test_an_error_in_a_generator_of_texts_comes_through(tiny_encoder):
    def texts():
        yield from some_texts(2000)
        raise OSError("the source is gone")

    before = threading.active_count()
    with pytest.raises(OSError, match="the source is gone"):
        tiny_encoder.encode(texts())
    assert threading.active_count() == before


# Progress -----------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal():
    stream = Terminal()
    with progress.Progress(True, 100, stream=stream) as shown:
        shown.update(50, 1000)
        time.sleep(0.25)
        shown.update(50, 1000)
    last = stream.getvalue().split("\r")[-1]
    assert "100%|" in last
    assert "100 rows" in last
    assert "sentences/s" in last
    assert "tokens/s" in last
    assert "left" in stream.getvalue()


def test_lines_elsewhere(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()
    with progress.Progress(True, 1000, "some work", stream) as shown:
        shown.skip(40, 400)
        shown.update(1000, 30_000, 500)
    first, second = stream.getvalue().splitlines()
    assert first == "some work: 40 rows"
    assert second.startswith("some work: 1,040 rows, 50%, ")
    assert second.endswith(" left")
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_notes_and_lines_of_their_own(stream, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress.Progress(True, 10, stream=stream) as shown:
        shown.update(5, 100, note="loss 0.25")
        shown.say("step 5, held-out texts: loss 0.3")
    assert "left, loss 0.25" in stream.getvalue()
    assert "step 5, held-out texts: loss 0.3\n" in stream.getvalue()
    quiet = io.StringIO()
    progress.Progress(False, 10, stream=quiet).say("nobody asked")
    assert not quiet.getvalue()


def test_a_total_that_is_not_known(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    stream = io.StringIO()
    with progress.Progress(True, None, stream=stream) as shown:
        shown.update(10, 100, 4096)
    assert "left" not in stream.getvalue()
    assert "%" not in stream.getvalue()


def test_silence_by_default_and_progress_when_asked(tiny_encoder, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    tiny_encoder.encode(some_texts(100))
    assert capsys.readouterr() == ("", "")
    tiny_encoder.encode(some_texts(100), show_progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "100 rows, 100%, " in err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (125, "2 min 5 s"), (3 * 3600 + 12 * 60 + 5, "3 h 12 min")],
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text
