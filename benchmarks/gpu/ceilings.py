"""What this GPU can do at most: the rates that everything else is a fraction of.

On random data, never on zeros: those run faster on real hardware.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton

from benchmarks.gpu.session import Job, Session
from benchmarks.gpu.timing import Call

_ROUNDS = 11
# (out_features, in_features) of DistilBERT-base: Q, K and V; output; feed-forward, both ways.
SHAPES = ((2304, 768), (768, 768), (3072, 768), (768, 3072))
TOKENS = 16384
# Arithmetic: operands' dtype and what PyTorch calls the float32 precision.
PRECISIONS = {
    "bf16": (torch.bfloat16, "highest"),
    "fp16": (torch.float16, "highest"),
    "tf32": (torch.float32, "high"),
    "fp32": (torch.float32, "highest"),
}
PRODUCT, COPY, LAUNCH = "bf16 product 8192^3", "device copy", "empty kernel"
_COPIED_BYTES = 4 * 2**30
_SETS = 3
_NODES = 200


@triton.jit
def empty_kernel(x_ptr):  # type: ignore[no-untyped-def] # Triton looks annotations up
    """Nothing: what is left is the launch."""


def run(session: Session) -> bool:
    """The stage; False where something failed."""
    store = session.store()
    session.work(store, jobs(session))
    return session.finish(store)


def jobs(session: Session) -> Iterator[Job]:
    """The two that others are compared with first."""
    size = 64 if session.dry else 8192
    tokens = 16 if session.dry else TOKENS
    yield Job(PRODUCT, lambda: _product(session, size, size, size, "bf16"))
    yield Job(COPY, lambda: _copy(session))
    yield Job(LAUNCH, lambda: _launches(session))
    for precision in PRECISIONS:
        for shape in SHAPES:
            name = f"{precision} {tokens} x {shape[1]} by {shape[0]} x {shape[1]}"
            yield Job(name, functools.partial(_product, session, tokens, *shape, precision))


def _product(
    session: Session, tokens: int, out_features: int, in_features: int, precision: str
) -> dict[str, Any]:
    """x W^T + b through PyTorch, which is cuBLAS."""
    dtype, mode = PRECISIONS[precision]
    device = session.device
    generator = torch.Generator(device).manual_seed(0)

    def make(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, device=device, generator=generator)

    calls: list[Call] = []
    for _ in range(_SETS):
        bias, x = make(out_features), make(tokens, in_features)
        weight = make(out_features, in_features) / math.sqrt(in_features)
        out = x.new_empty(tokens, out_features)
        calls.append(functools.partial(torch.addmm, bias, x, weight.t(), out=out))
    with _precision(mode):
        seconds = _race(session, calls)
    flops = 2 * tokens * out_features * in_features
    return {"seconds": seconds, "tflops": flops / seconds / 1e12}


def _copy(session: Session) -> dict[str, Any]:
    """A device-to-device copy, bytes read and bytes written both counted."""
    count = 2**16 if session.dry else _COPIED_BYTES // 4
    source = torch.randn(count, device=session.device)
    target = torch.empty_like(source)
    seconds = _race(session, [lambda: target.copy_(source)])
    moved = 2 * source.numel() * source.element_size()
    return {"seconds": seconds, "tbytes_per_second": moved / seconds / 1e12}


def _launches(session: Session) -> dict[str, Any]:
    """The floors under small batches: a kernel's launch, a node in a graph, a graph's replay."""
    x = torch.zeros(1, device=session.device)

    def launch() -> None:
        empty_kernel[(1,)](x)

    timer = session.timer
    plain, node = timer.plain([launch]), timer.graphed([launch] * _NODES)
    timings = timer.race({"launch": plain, "graph_node": node}, _ROUNDS)
    wall: dict[str, Callable[[], object]] = {"launch_wall": launch, "graph_wall": node.run}
    walls = timer.wall(wall, 10 * _ROUNDS)
    found = {f"{name}_seconds": timing.median for name, timing in (timings | walls).items()}
    return {**found, "nodes": node.calls}


def _race(session: Session, calls: list[Call]) -> float:
    turn = session.timer.graphed(calls)
    return session.timer.race({"it": turn}, _ROUNDS)["it"].median


@contextlib.contextmanager
def _precision(mode: str) -> Iterator[None]:
    """How PyTorch multiplies float32: "highest" is IEEE, "high" tf32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(mode)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
