"""CUDA graphs of a program's forwards: captured when first needed, replayed from then on.

A forward is some forty kernels, each a few microseconds; launched one by one they wait for the
host. A graph holds the launches of one list of steps and starts with one call. All graphs of a
program run over the same buffers, so a graph costs its nodes and nothing else.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch

from .cuda_plan import Step

# Torch allows one capture at a time in a process, whichever device it is on.
_one_at_a_time = threading.Lock()

# A graph of a six-layer model has some forty nodes. The least recently used go first.
MOST_GRAPHS = 256


class GraphCache:
    """Graphs by key, on one device. Used by one thread at a time: the program holds a lock.

    Attributes:
        failure: why graphs are not used (any more), for people; None while they are.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._graphs: OrderedDict[Hashable, torch.cuda.CUDAGraph] = OrderedDict()
        self._stream: torch.cuda.Stream | None = None
        self.failure: str | None = None

    def __len__(self) -> int:
        return len(self._graphs)

    def run(self, key: Hashable, steps: Sequence[Step]) -> None:
        """Queue the steps on the current stream: as a graph, captured now if there is none yet."""
        # Whoever is capturing a graph of their own gets the launches for it.
        capturing = torch.cuda.is_current_stream_capturing()
        graph = None if capturing else self._graphs.get(key)
        if graph is not None:
            self._graphs.move_to_end(key)
            graph.replay()
            return
        # The plain launches give this call its result. They also compile and load the kernels,
        # which a capture must not.
        for step in steps:
            step.run()
        if self.failure is None and not capturing:
            self._capture(key, steps)

    def _capture(self, key: Hashable, steps: Sequence[Step]) -> None:
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        # Not torch.cuda.graph(): it waits for the whole device and empties the allocator's cache.
        # Other threads may go on using the device meanwhile: "thread_local".
        graph = torch.cuda.CUDAGraph()
        pool = torch.cuda.graph_pool_handle()
        # Outside of inference mode: torch's own bookkeeping of captures is not for one mode only.
        with _one_at_a_time, torch.cuda.stream(self._stream), torch.inference_mode(False):
            try:
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    for step in steps:
                        step.run()
                finally:
                    graph.capture_end()
            except RuntimeError as error:
                self.failure = f"capture failed: {' '.join(str(error).split())[:200]}"
                self._graphs.clear()
                _end_allocations(self._device, pool)
                return
        self._graphs[key] = graph
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)


def _end_allocations(device: torch.device, pool: tuple[int, int]) -> None:
    """Tell torch's allocator that a capture is over.

    Where ending it fails, torch (2.11) leaves the allocator believing that it goes on; then it
    would keep for ever what it should free when a stream is done with it.
    """
    with contextlib.suppress(RuntimeError, AttributeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
