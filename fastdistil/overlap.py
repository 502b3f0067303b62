"""Work on the next items while the caller is busy with the present one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def overlapped(
    work: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Generator[Result, None, None]:
    """`map(work, items)`, in order, with one thread that works up to `ahead` items in advance.

    `items` is drawn from in the calling thread, so it may be anything the caller may iterate over.
    An exception from `work` is raised here in its turn. Closing the generator, or an exception from
    anywhere, waits for the items already handed over: they are worked on, not dropped.

    Args:
        work: called in the one worker thread, never twice at once.
        items: may be endless.
        ahead: results that may wait; bounds the memory.
    """
    source = iter(items)
    with ThreadPoolExecutor(1, thread_name_prefix="fastdistil") as pool:
        waiting: deque[Future[Result]] = deque()
        waiting.extend(pool.submit(work, item) for item in islice(source, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in islice(source, 1))
            yield result
