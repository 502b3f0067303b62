"""A stream of batches through one device or several; results in the order of the batches.

    batches --+--> lane: copy in, forward, copy out, up to three batches at once --+--> vectors
              +--> lane: another device, fed by a thread of its own ---------------+

A lane queues a batch's work on its GPU and goes on to the next batch; the vectors come back on a
second stream while the GPU computes. So tokenising, copies and kernels run side by side, and the
GPU always has the next batch before it. On a CPU a lane simply computes.

A batch that does not fit in a GPU's memory is computed in pieces, and later ones are made smaller.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .packing import plan_batches
from .tokenization import TokenizedTexts

# One batch is computed, one waits behind it, and one is on its way back to the host.
IN_FLIGHT = 3

# Smaller batches leave a large GPU waiting for the host; larger ones gain nothing, and the first
# results come later.
_FEWEST_TOKENS = 4096
_MOST_TOKENS = 65536

Vectors = NDArray[np.float32]
# What a device makes of a batch: float32, a row per text, or per token, or per token that is read;
# queued, maybe not done yet.
Work = Callable[[TokenizedTexts], Tensor]
Job = tuple[TokenizedTexts, "Future[Vectors]"]


class TokenLimit:
    """The most tokens that a batch may have, as far as is known: lowered where memory ran out."""

    def __init__(self) -> None:
        self.tokens = 2**31 - 1

    def lower(self, tokens: int) -> None:
        """Hold batches to so many tokens from now on."""
        # Two threads at once may lose one of two values; memory then runs out once more.
        self.tokens = max(min(self.tokens, tokens), 1)


def budget_from_memory(free_bytes: int, bytes_per_token: int) -> int:
    """Tokens in a batch for a GPU with so much free memory.

    Args:
        free_bytes: what is free; the batches in flight may take half of it.
        bytes_per_token: what one token of one batch takes.

    Returns:
        from 4096 to 65536.
    """
    tokens = free_bytes // 2 // (IN_FLIGHT * bytes_per_token)
    return min(max(tokens, _FEWEST_TOKENS), _MOST_TOKENS)


def free_memory(device: torch.device) -> int:
    """Bytes that a GPU can still give: its own, and those that torch holds and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(free) + int(unused)


def cut(batch: TokenizedTexts, most: int) -> deque[TokenizedTexts]:
    """Consecutive parts of a batch, of at most so many tokens or one text."""
    if len(batch.ids) <= most:
        return deque([batch] if len(batch.lengths) else [])
    ends = np.cumsum(batch.lengths)

    def part(texts: NDArray[np.int64]) -> TokenizedTexts:
        tokens = slice(ends[texts[0]] - batch.lengths[texts[0]], ends[texts[-1]])
        return TokenizedTexts(
            batch.ids[tokens],
            batch.lengths[texts],
            segments=None if batch.segments is None else batch.segments[tokens],
            reads=None if batch.reads is None else batch.reads[tokens],
        )

    return deque(map(part, plan_batches(batch.lengths, most)))


def joined(parts: Collection[TokenizedTexts]) -> TokenizedTexts:
    """Texts in one, in order; one part or more."""
    if len(parts) == 1:
        return next(iter(parts))
    return TokenizedTexts(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.lengths for part in parts]),
        sum(part.truncated for part in parts),
        sum(part.replaced for part in parts),
        segments=_joined([(part.segments, len(part.ids)) for part in parts], np.int32(0)),
        reads=_joined([(part.reads, len(part.ids)) for part in parts], np.True_),
    )


def _joined(parts: list[tuple[NDArray[Any] | None, int]], default: Any) -> NDArray[Any] | None:
    """What parts of so many tokens have, or the default where others have something."""
    if all(array is None for array, _ in parts):
        return None
    return np.concatenate(
        [np.full(size, default) if array is None else array for array, size in parts]
    )


def batches_of(
    chunks: Iterable[TokenizedTexts], batch_tokens: int, limit: TokenLimit
) -> Iterator[TokenizedTexts]:
    """Consecutive texts, as many as fit in `batch_tokens` and the limit of now, at least one.

    What is left of a chunk goes with the next one, so only the last batch is short.
    """
    rest: list[TokenizedTexts] = []  # one at most
    for chunk in chunks:
        tokens = min(batch_tokens, limit.tokens)
        ready = cut(joined([*rest, chunk]), tokens)
        while len(ready) > 1:
            yield ready.popleft()
            if limit.tokens < tokens:  # memory ran out meanwhile
                tokens = limit.tokens
                ready = cut(joined(ready), tokens)
        rest = list(ready)
    for last in rest:
        yield from cut(last, min(batch_tokens, limit.tokens))


def in_order(
    lanes: Sequence[Lane], batches: Iterable[TokenizedTexts]
) -> Generator[tuple[TokenizedTexts, Vectors], None, None]:
    """Each batch and what a lane made of it, in the order of the batches.

    `batches` is drawn from in the calling thread, a few ahead of what is yielded. An exception from
    a lane is raised in its turn. After that, and after closing the generator, no lane begins
    another batch and no thread is left.

    Args:
        lanes: one for each device, made for this call.
        batches: may be endless.
    """
    return _through_one(lanes[0], batches) if len(lanes) == 1 else _through_all(lanes, batches)


class Lane:
    """The way of batches through one device: results come out in the order they were put in.

    Args:
        device: where `work` computes.
        work: called in the thread that calls `put`, in inference mode.
        limit: lowered when the device's memory runs out.
    """

    def __init__(self, device: torch.device, work: Work, limit: TokenLimit) -> None:
        self._device = device
        self._work = work
        self._limit = limit
        self._is_gpu = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if self._is_gpu else None
        self._flying: deque[_Arriving | Vectors] = deque()
        self.depth = IN_FLIGHT if self._is_gpu else 1
        """Batches that should be in flight."""

    def put(self, batch: TokenizedTexts) -> None:
        """Begin with a batch.

        Raises:
            torch.cuda.OutOfMemoryError: one sequence of it alone is too much for the device.
        """
        begun = self._begun(batch)
        if isinstance(begun, str):
            # What those in flight hold is free once they have landed.
            self._flying = deque(map(_landed, self._flying))
            self._flying.append(self._in_pieces(batch))
        else:
            self._flying.append(begun)

    def take(self) -> Vectors:
        """The result of the batch that was put in first, waited for. It is the caller's own."""
        return _landed(self._flying.popleft())

    def _begun(self, batch: TokenizedTexts) -> _Arriving | str:
        """A batch in flight; or how memory ran out, said only when the exception is gone, and with
        it the tensors of all that it came through."""
        guard: AbstractContextManager[Any] = nullcontext()
        if self._is_gpu:
            guard = torch.cuda.device(self._device)
        try:
            with guard, torch.inference_mode():
                return _Arriving(self._work(batch), self._copies)
        except torch.cuda.OutOfMemoryError as error:
            return str(error)

    def _in_pieces(self, batch: TokenizedTexts) -> Vectors:
        """The result of a batch that did not fit, from pieces that do, one at a time."""
        if self._is_gpu:
            torch.cuda.empty_cache()
        half = len(batch.ids) // 2
        pieces = cut(batch, max(half, 1))
        if len(pieces) > 1:
            self._limit.lower(half)
        parts = []
        for piece in pieces:
            begun = self._begun(piece)
            if isinstance(begun, str) and len(pieces) == 1:  # a second time, and alone
                raise torch.cuda.OutOfMemoryError(
                    f"{self._device} has no memory left for a text of {len(batch.ids)} tokens, all "
                    "by itself: free some, or give a smaller max_length or a narrower precision "
                    f"({begun})"
                )
            parts.append(self._in_pieces(piece) if isinstance(begun, str) else begun.wait())
        return np.concatenate(parts)


class _Arriving:
    """float32 numbers on their way to the host."""

    def __init__(self, numbers: Tensor, stream: torch.cuda.Stream | None) -> None:
        self._numbers = numbers
        self._there: torch.cuda.Event | None = None
        if stream is None:
            return
        # Dropped before the copy is done, either end is safe: the device's memory is kept for the
        # stream by record_stream, and torch's allocator of pinned memory waits for copies out of it
        # and into it before it gives it away again.
        self._numbers = torch.empty(
            numbers.shape, dtype=numbers.dtype, device="cpu", pin_memory=True
        )
        stream.wait_stream(torch.cuda.current_stream(numbers.device))
        with torch.cuda.stream(stream):
            self._numbers.copy_(numbers, non_blocking=True)
        numbers.record_stream(stream)
        self._there = stream.record_event()

    def wait(self) -> Vectors:
        if self._there is None:
            return self._numbers.cpu().numpy()
        self._there.synchronize()
        return self._numbers.numpy().copy()  # pinned memory is scarce: it goes back at once


def _landed(result: _Arriving | Vectors) -> Vectors:
    return result.wait() if isinstance(result, _Arriving) else result


def _through_one(
    lane: Lane, batches: Iterable[TokenizedTexts]
) -> Generator[tuple[TokenizedTexts, Vectors], None, None]:
    flying: deque[TokenizedTexts] = deque()
    for batch in batches:
        lane.put(batch)
        flying.append(batch)
        if len(flying) == lane.depth:
            yield flying.popleft(), lane.take()
    while flying:
        yield flying.popleft(), lane.take()


def _through_all(
    lanes: Sequence[Lane], batches: Iterable[TokenizedTexts]
) -> Generator[tuple[TokenizedTexts, Vectors], None, None]:
    jobs: queue.Queue[Job] = queue.Queue()
    stopped = threading.Event()
    waiting: deque[Job] = deque()
    threads: list[threading.Thread] = []
    # Enough that no lane runs dry while the caller waits for another's result.
    most = sum(lane.depth + 1 for lane in lanes)
    try:
        for batch in batches:
            if len(threads) < len(lanes):  # a few texts need no more threads than batches
                lane = lanes[len(threads)]
                threads.append(
                    threading.Thread(target=_serve, args=(lane, jobs, stopped), daemon=True)
                )
                threads[-1].start()
            waiting.append((batch, Future()))
            jobs.put(waiting[-1])
            if len(waiting) == most:
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        stopped.set()
        for _ in threads:
            jobs.put(_WAKE_UP)
        for thread in threads:
            thread.join()


_WAKE_UP: Job = (TokenizedTexts(np.empty(0, np.int32), np.empty(0, np.int64)), Future())


def _serve(lane: Lane, jobs: queue.Queue[Job], stopped: threading.Event) -> None:
    """A lane's thread: begins with jobs while there are any, and finishes the oldest otherwise."""
    flying: deque[Future[Vectors]] = deque()
    while True:
        has_room = len(flying) < lane.depth
        job = _next_job(jobs, wait=not flying) if has_room else None
        if stopped.is_set():
            return
        future = flying.popleft() if job is None else job[1]
        try:
            if job is None:
                future.set_result(lane.take())
            else:
                lane.put(job[0])
                flying.append(future)
        except BaseException as error:
            future.set_exception(error)


def _next_job(jobs: queue.Queue[Job], wait: bool) -> Job | None:
    try:
        return jobs.get(block=wait)
    except queue.Empty:
        return None
