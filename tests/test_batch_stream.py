"""Batches through lanes: every result once and in order, whatever runs out or goes wrong."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_checkpoint import write_tiny_checkpoint
from torch import Tensor

from fastdistil import Encoder, batch_stream, encoder
from fastdistil.batch_stream import (
    IN_FLIGHT,
    Lane,
    TokenLimit,
    budget_from_memory,
    cut,
    free_memory,
    in_order,
    joined,
)
from fastdistil.packing import PackedBatch
from fastdistil.tokenization import TokenizedTexts

CPU = torch.device("cpu")


def batch_of(*lengths: int, first_id: int = 0) -> TokenizedTexts:
    ids = np.arange(first_id, first_id + sum(lengths), dtype=np.int32)
    return TokenizedTexts(ids, np.array(lengths, np.int64))


def batches_of(number: int, lengths: tuple[int, ...] = (3, 0, 2)) -> Iterator[TokenizedTexts]:
    for first in islice(count(step=sum(lengths)), number):
        yield batch_of(*lengths, first_id=first)


def rows(batch: TokenizedTexts) -> Tensor:
    """A stand-in for a model: for each text the sum of its ids and its length."""
    texts = np.split(batch.ids, np.cumsum(batch.lengths)[:-1])
    return torch.tensor([[float(text.sum()), len(text)] for text in texts])


def no_memory() -> torch.cuda.OutOfMemoryError:
    return torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def lane_of(
    work: Callable[[TokenizedTexts], Tensor] = rows,
    depth: int = 1,
    limit: TokenLimit | None = None,
) -> Lane:
    lane = Lane(CPU, work, TokenLimit() if limit is None else limit)
    lane.depth = depth
    return lane


def assert_right(results: list[tuple[TokenizedTexts, Any]], number: int) -> None:
    """The results of `batches_of(number)`."""
    assert len(results) == number
    for (batch, vectors), wanted in zip(results, batches_of(number), strict=True):
        assert np.array_equal(batch.ids, wanted.ids)
        assert vectors.dtype == np.float32
        assert np.array_equal(vectors, rows(wanted).numpy())


# Cutting ------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), max_size=9), st.integers(1, 40))
def test_parts_make_the_whole(lengths: list[int], most: int) -> None:
    whole = batch_of(*lengths)
    parts = cut(whole, most)
    for part in parts:
        assert len(part.ids) == part.lengths.sum()
        assert len(part.ids) <= most or len(part.lengths) == 1
    if not parts:
        assert not lengths
        return
    again = joined(parts)
    assert np.array_equal(again.ids, whole.ids)
    assert np.array_equal(again.lengths, whole.lengths)


@pytest.mark.parametrize(
    ("free", "per_token", "tokens"),
    [
        (0, 6000, 4096),
        (1 << 30, 6000, (1 << 29) // 18000),
        (80 << 30, 6000, 65536),
    ],
)
def test_budget_from_memory(free: int, per_token: int, tokens: int) -> None:
    assert budget_from_memory(free, per_token) == tokens


# One lane -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, IN_FLIGHT])
@pytest.mark.parametrize("number", [0, 1, 2, 7])
def test_results_in_order(depth: int, number: int) -> None:
    assert_right(list(in_order([lane_of(depth=depth)], batches_of(number))), number)


@pytest.mark.parametrize("depth", [1, IN_FLIGHT])
def test_so_many_are_in_flight_and_no_more(depth: int) -> None:
    begun: list[int] = []

    def work(batch: TokenizedTexts) -> Tensor:
        begun.append(len(begun))
        return rows(batch)

    for done, _ in enumerate(in_order([lane_of(work, depth)], batches_of(9))):
        assert len(begun) == min(done + depth, 9)


# Memory that runs out -----------------------------------------------------------------------------


class SmallMemory:
    """A device with room for so many tokens in flight, and a model on it."""

    def __init__(self, capacity: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.capacity = capacity
        self.held = 0
        self.refusals = 0
        self.sizes: list[int] = []
        memory = self

        class Arriving(batch_stream._Arriving):
            """In flight, a batch keeps its memory."""

            def wait(self) -> Any:
                memory.held -= int(self._numbers[:, 1].sum())
                return super().wait()

        monkeypatch.setattr(batch_stream, "_Arriving", Arriving)

    def work(self, batch: TokenizedTexts) -> Tensor:
        if self.held + len(batch.ids) > self.capacity:
            self.refusals += 1
            raise no_memory()
        self.held += len(batch.ids)
        self.sizes.append(len(batch.ids))
        return rows(batch)


@pytest.mark.parametrize("depth", [1, 2, IN_FLIGHT])
@pytest.mark.parametrize("capacity", [5, 8, 17, 40, 1000])
@pytest.mark.parametrize("lengths", [(1,) * 16, (5, 1, 0, 4, 5, 1), (0, 0, 5)])
def test_nothing_is_lost_or_repeated_where_memory_runs_out(
    capacity: int, depth: int, lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SmallMemory(capacity, monkeypatch)
    results = list(in_order([lane_of(memory.work, depth)], batches_of(9, lengths)))
    assert len(results) == 9
    for (_, vectors), wanted in zip(results, batches_of(9, lengths), strict=True):
        assert np.array_equal(vectors, rows(wanted).numpy())
    assert memory.held == 0
    assert sum(memory.sizes) == 9 * sum(lengths)


def test_later_batches_are_made_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, limit = SmallMemory(30, monkeypatch), TokenLimit()
    stream = batch_stream.batches_of(iter([batch_of(*[2] * 100), batch_of(*[2] * 100)]), 64, limit)
    results = list(in_order([lane_of(memory.work, limit=limit)], stream))
    assert limit.tokens == 16
    assert memory.sizes == [16] * 25
    assert memory.refusals == 3, "once for 64 tokens and once for each half"
    assert sum(len(vectors) for _, vectors in results) == 200


def test_a_text_that_does_not_fit_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, limit = SmallMemory(8, monkeypatch), TokenLimit()
    stream = in_order(
        [lane_of(memory.work, limit=limit)], iter([batch_of(2, 3), batch_of(4, 9, 1)])
    )
    next(stream)
    with pytest.raises(torch.cuda.OutOfMemoryError) as raised:
        next(stream)
    message = str(raised.value)
    assert message.startswith("cpu has no memory left for a text of 9 tokens, all by itself: free")
    assert "max_length" in message
    assert "Tried to allocate 2.00 GiB" in message
    assert raised.value.__context__ is None


def test_texts_without_tokens_for_which_there_is_no_memory_end_too() -> None:
    def work(_: TokenizedTexts) -> Tensor:
        raise no_memory()

    with pytest.raises(torch.cuda.OutOfMemoryError, match="no memory left"):
        list(in_order([lane_of(work)], iter([batch_of(0, 0, 0)])))


def test_what_failed_is_gone_before_the_next_attempt() -> None:
    """Its tensors are on the frames that the exception came through."""
    held: list[weakref.ref[Tensor]] = []

    def work(batch: TokenizedTexts) -> Tensor:
        assert all(tensor() is None for tensor in held)
        activations = torch.empty(len(batch.ids))
        held.append(weakref.ref(activations))
        if len(batch.ids) > 4:
            raise no_memory()
        return rows(batch)

    assert_right(list(in_order([lane_of(work)], batches_of(3))), 3)
    assert len(held) > 3


def test_other_errors_pass() -> None:
    def work(_: TokenizedTexts) -> Tensor:
        raise ValueError("input_ids: no")

    with pytest.raises(ValueError, match="input_ids: no"):
        next(in_order([lane_of(work)], batches_of(3)))


# Several lanes ------------------------------------------------------------------------------------


def several(
    *works: Callable[[TokenizedTexts], Tensor], depth: int = 1, limit: TokenLimit | None = None
) -> list[Lane]:
    return [lane_of(work, depth, limit) for work in works]


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.usefixtures("no_threads_left")
@pytest.mark.parametrize("depth", [1, IN_FLIGHT])
@pytest.mark.parametrize("number", [0, 1, 2, 50])
def test_several_lanes_keep_the_order(depth: int, number: int) -> None:
    lanes = several(rows, rows, rows, depth=depth)
    assert_right(list(in_order(lanes, batches_of(number))), number)


@pytest.mark.usefixtures("no_threads_left")
def test_a_lane_that_is_slow_is_given_less() -> None:
    """The first batch is done only when the other lane has done all that may wait behind it."""
    others_done = threading.Semaphore(0)

    def slow(batch: TokenizedTexts) -> Tensor:
        for _ in range(3):
            assert others_done.acquire(timeout=30)
        return rows(batch)

    slow_lane_is_busy = threading.Event()

    def first_is_slow(batch: TokenizedTexts) -> Tensor:
        if batch.ids[0] == 0:
            slow_lane_is_busy.set()
            return slow(batch)
        assert slow_lane_is_busy.wait(30)
        others_done.release()
        return rows(batch)

    lanes = several(first_is_slow, first_is_slow)
    assert_right(list(in_order(lanes, batches_of(4))), 4)


@pytest.mark.usefixtures("no_threads_left")
def test_batches_are_drawn_in_the_callers_thread_and_a_few_ahead() -> None:
    drawn: list[threading.Thread] = []

    def stream() -> Iterator[TokenizedTexts]:
        for batch in batches_of(10**9):
            drawn.append(threading.current_thread())
            yield batch

    results = in_order(several(rows, rows, depth=2), stream())
    for done, _ in enumerate(islice(results, 40), start=1):
        assert len(drawn) <= done + 2 * (2 + 1)
    results.close()
    assert set(drawn) == {threading.current_thread()}


@pytest.mark.usefixtures("no_threads_left")
@pytest.mark.parametrize("depth", [1, IN_FLIGHT])
def test_an_error_comes_in_its_turn_and_stops_all(depth: int) -> None:
    begun: list[int] = []

    def work(batch: TokenizedTexts) -> Tensor:
        begun.append(int(batch.ids[0]) // 5)
        if batch.ids[0] == 5 * 6:
            raise RuntimeError("a lane broke")
        return rows(batch)

    results = in_order(several(work, work, depth=depth), batches_of(10**9))
    assert_right(list(islice(results, 6)), 6)
    with pytest.raises(RuntimeError, match="a lane broke"):
        next(results)
    assert max(begun) <= 6 + 2 * (depth + 1)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.usefixtures("no_threads_left")
def test_an_error_in_the_stream_of_batches_stops_all() -> None:
    def stream() -> Iterator[TokenizedTexts]:
        yield from batches_of(9)
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        list(in_order(several(rows, rows), stream()))


@pytest.mark.usefixtures("no_threads_left")
@pytest.mark.parametrize("taken", [0, 1, 5])
def test_closing_stops_all(taken: int) -> None:
    results = in_order(several(rows, rows, depth=2), batches_of(10**9))
    assert_right(list(islice(results, taken)), taken)
    results.close()


@pytest.mark.usefixtures("no_threads_left")
def test_memory_may_run_out_on_any_lane() -> None:
    def work(batch: TokenizedTexts) -> Tensor:
        if len(batch.ids) > 4:
            raise no_memory()
        return rows(batch)

    limit = TokenLimit()
    assert_right(list(in_order(several(work, work, limit=limit), batches_of(30))), 30)
    assert limit.tokens == 2


# The encoder on top -------------------------------------------------------------------------------

TEXTS = [" ".join("abcdefgh"[: 1 + row % 8]) for row in range(300)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(folder: Path) -> Encoder:
    return Encoder(folder)


def assert_same_vectors(alone: Encoder, got: Any, wanted: Any) -> None:
    """To the bit where an engine runs."""
    if alone.batch_invariant:
        assert np.array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.usefixtures("no_threads_left")
def test_an_encoder_on_several_devices(folder: Path, alone: Encoder, tmp_path: Path) -> None:
    both = Encoder(folder, device=["cpu", torch.device("cpu")])
    wanted = alone.encode(TEXTS)
    for batch_tokens in (7, 100, None):
        got = both.encode(TEXTS, batch_tokens=batch_tokens)
        assert_same_vectors(alone, got, wanted)
    tokens = both.encode(TEXTS[:20], pooling="none", batch_tokens=9)
    assert_same_vectors(
        alone, np.concatenate(tokens), np.concatenate(alone.encode(TEXTS[:20], pooling="none"))
    )
    ids = [alone.require_tokenizer()([text]).ids for text in TEXTS]
    assert_same_vectors(alone, both.encode_ids(ids, batch_tokens=30), wanted)
    assert_same_vectors(alone, both.encode("a b"), alone.encode("a b"))
    assert both.encode([]).shape == (0, 48)
    source = tmp_path / "in.txt"
    source.write_text("\n".join(TEXTS) + "\n")
    both.encode_file(source, tmp_path / "out.npy", batch_tokens=50)
    assert_same_vectors(alone, np.load(tmp_path / "out.npy"), wanted)


def test_both_copies_work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Encoder(folder, device=["cpu", "cpu"])
    first, second = both._models()
    assert both.model is first
    assert first.device == second.device
    met = threading.Barrier(2, timeout=30)
    for model in (first, second):

        def together(*arguments: Any, run: Any = model.encode_packed) -> Tensor:
            met.wait()
            return run(*arguments)

        monkeypatch.setattr(model, "encode_packed", together)
    assert len(both.encode(["a b c d"] * 4, batch_tokens=6)) == 4


@pytest.mark.parametrize("devices", [None, ["cpu", "cpu"]])
@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_an_encoder_whose_memory_runs_out(
    folder: Path,
    alone: Encoder,
    devices: list[str] | None,
    pooling: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enc = Encoder(folder, device=devices)
    sizes: list[int] = []

    def with_little_memory(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def small(batch: PackedBatch, *options: Any) -> Tensor:
            sizes.append(batch.num_tokens)
            if batch.num_tokens > 70:
                raise no_memory()
            return run(batch, *options)

        return small

    for model in enc._models():
        for name in ("encode_packed", "forward_packed"):
            monkeypatch.setattr(model, name, with_little_memory(getattr(model, name)))
    wanted = alone.encode(TEXTS, pooling=pooling)
    for _ in range(2):
        got = enc.encode(TEXTS, pooling=pooling)
        assert len(got) == len(TEXTS)
        assert_same_vectors(alone, np.concatenate(got), np.concatenate(wanted))
    enough = len(sizes)
    enc.encode(TEXTS, pooling=pooling)
    assert max(sizes[enough:]) <= 70, "an encoder that has learnt it still tries more"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ([], "device is an empty list; give at least one device"),
        (["cpu", "meta"], r"device lists different kinds: cpu \(cpu\), meta \(meta\)"),
    ],
)
def test_devices_that_cannot_share_the_work(folder: Path, device: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoder(folder, device=device)


def test_the_default_size_of_batches(
    folder: Path, alone: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = encoder.DEFAULT_BATCH_TOKENS
    assert alone.options(None, None, None).batch_tokens == default
    assert alone.options(None, None, 5).batch_tokens == 5
    on_gpu = Encoder(folder, backend="reference")
    monkeypatch.setattr(type(on_gpu.model), "device", torch.device("cuda:0"))
    assert on_gpu.options(None, None, None).batch_tokens == default, "the same in every run"
    monkeypatch.setattr(Encoder, "batch_invariant", True)
    monkeypatch.setattr(encoder, "free_memory", lambda _: 10**7)
    fresh = Encoder(folder)
    assert fresh.options(None, None, None).batch_tokens == budget_from_memory(10**7, 8 + 8 * 48)


def test_what_torch_holds_unused_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 9999))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 200)
    assert free_memory(torch.device("cuda")) == 1300


def test_warmup_reaches_every_copy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Encoder(folder, device=["cpu", "cpu"], max_length=9)
    both.warmup()  # nothing to do on a CPU
    asked: list[tuple[Any, ...]] = []
    for number, model in enumerate(both._models()):
        monkeypatch.setattr(model, "warmup", lambda *sizes, n=number: asked.append((n, *sizes)))
    both.warmup()
    both.warmup([64, 128], 5)
    assert asked == [(0, None, 9), (1, None, 9), (0, [64, 128], 5), (1, [64, 128], 5)]


def test_options_of_the_engine_reach_the_model(folder: Path) -> None:
    enc = Encoder(folder, deterministic=False, cuda_graphs=False)
    options = enc.model._cache.options
    assert not options.deterministic
    assert not options.cuda_graphs
