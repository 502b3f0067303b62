"""CUDA graphs of a program's forwards: captured when first needed, replayed from then on.

A forward is some forty kernels, each a few microseconds; launched one by one they wait for the
host. A graph holds the launches of one list of steps and starts with one call. All graphs of a
program run over the same buffers, so a graph costs its nodes and nothing else.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch

from .cuda_plan import Step

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
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    for step in steps:
                        step.run()
                finally:
                    graph.capture_end()
        except RuntimeError as error:
            self.failure = f"capture failed: {' '.join(str(error).split())[:200]}"
            self._graphs.clear()
            return
        self._graphs[key] = graph
        if len(self._graphs) > MOST_GRAPHS:
            self._graphs.popitem(last=False)
