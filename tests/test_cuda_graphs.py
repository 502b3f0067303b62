"""When graphs are captured, replayed, dropped and given up; against a stand-in for CUDA's graphs.

What a GPU makes of them is tested on one: tests/gpu_kernels/test_engine.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastdistil.backends import cuda_graphs
from fastdistil.backends.cuda_graphs import GraphCache


class Gpu:
    """What was run, and what a capture records instead."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.recording: list[str] | None = None
        self.theirs = False
        self.broken: str | None = None
        self.ended: list[tuple[int, str]] = []

    def launch(self, name: str) -> None:
        if self.recording is not None:
            if self.broken == name:
                raise RuntimeError(f"{name} cannot be captured:\n no")
            self.recording.append(name)
        else:
            self.ran.append(name)


class Step:
    def __init__(self, gpu: Gpu, name: str) -> None:
        self._gpu, self.name = gpu, name
        self.flops = self.moved = 0

    def run(self) -> None:
        self._gpu.launch(self.name)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    found = Gpu()

    class Graph:
        def capture_begin(self, pool: str, capture_error_mode: str) -> None:
            # Other threads may go on using the device while this one captures, but not capture.
            assert capture_error_mode == "thread_local"
            assert cuda_graphs._one_at_a_time.locked()
            assert pool == "pool"
            self._nodes: list[str] = []
            found.recording = self._nodes

        def capture_end(self) -> None:
            found.recording = None

        def replay(self) -> None:
            found.ran += [f"replayed {node}" for node in self._nodes]

    @contextlib.contextmanager
    def stream(_stream: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(
        torch._C, "_cuda_endAllocateToPool", lambda *ended: found.ended.append(ended)
    )
    monkeypatch.setattr(torch.cuda, "Stream", lambda _device: object())
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: found.theirs)
    return found


def steps(gpu: Gpu, *names: str) -> list[Step]:
    return [Step(gpu, name) for name in names]


def test_the_first_call_launches_and_the_next_ones_replay(gpu: Gpu) -> None:
    cache = GraphCache(torch.device("cuda"))
    cache.run("small", steps(gpu, "a", "b"))
    assert gpu.ran == ["a", "b"]
    cache.run("small", steps(gpu, "never looked at"))
    cache.run("large", steps(gpu, "c"))
    assert gpu.ran == ["a", "b", "replayed a", "replayed b", "c"]
    assert len(cache) == 2
    assert cache.failure is None


def test_the_least_recently_used_goes_first(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", 2)
    cache = GraphCache(torch.device("cuda"))
    for key in ("a", "b", "a", "c", "a", "b"):
        cache.run(key, steps(gpu, key))
    assert gpu.ran == ["a", "b", "replayed a", "c", "replayed a", "b"]
    assert len(cache) == 2


def test_a_capture_that_fails_is_the_last_one(gpu: Gpu) -> None:
    cache = GraphCache(torch.device("cuda", 0))
    cache.run("good", steps(gpu, "a"))
    assert not gpu.ended
    gpu.broken = "b"
    cache.run("bad", steps(gpu, "a", "b"))
    assert cache.failure == "capture failed: b cannot be captured: no"
    assert len(cache) == 0
    assert gpu.ended == [(0, "pool")]
    assert not cuda_graphs._one_at_a_time.locked()
    gpu.broken = None
    for key in ("good", "bad"):
        cache.run(key, steps(gpu, key))
        cache.run(key, steps(gpu, key))
    assert gpu.ran == ["a", "a", "b", "good", "good", "bad", "bad"]


def test_whoever_captures_a_graph_of_their_own_gets_the_launches(gpu: Gpu) -> None:
    cache = GraphCache(torch.device("cuda"))
    gpu.theirs = True
    cache.run("new", steps(gpu, "a"))
    assert len(cache) == 0
    gpu.theirs = False
    cache.run("new", steps(gpu, "a"))
    gpu.theirs = True
    cache.run("new", steps(gpu, "a"))
    assert gpu.ran == ["a", "a", "a"]
    gpu.theirs = False
    cache.run("new", steps(gpu, "a"))
    assert gpu.ran[-1] == "replayed a"
