"""The workloads of `benchmarks.forward` under pytest-benchmark, one engine at a time.

    python -m pytest benchmarks -o addopts= --benchmark-only -k "fastdistil or openvino"

For profiling and for comparing two commits (--benchmark-autosave, --benchmark-compare). Engines
do not take turns here: ratios between them are for `python -m benchmarks.forward`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from benchmarks import ours, workloads
from benchmarks.peers import PEERS, Engine
from benchmarks.workloads import Workload

WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mixed": lambda: workloads.mixed_sentences(256),
    "16x128": lambda: workloads.full_rows(16, 128),
    "1x16": lambda: workloads.one_sentence(16, repeats=1),
}
ENGINES: dict[str, Callable[[Any], Engine]] = {
    **{
        f"fastdistil{form}-{precision}": partial(make, precision=precision)
        for form, make in (("", ours.packed), ("-pooled", ours.pooled), ("-drop-in", ours.drop_in))
        for precision in ours.PRECISIONS
    },
    **PEERS,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return workloads.random_distilbert()


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, model: Any) -> Engine:
    try:
        return ENGINES[request.param](model)
    except ImportError as error:
        pytest.skip(f'{error}; runs where `python -m pip install -e ".[bench]"` was done')
    except ValueError as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_forward(benchmark: Any, engine: Engine, workload: str) -> None:
    work = WORKLOADS[workload]()
    variant = engine.variants[0]
    benchmark.group = workload
    benchmark.extra_info.update(tokens=work.tokens, configuration=variant.configuration)
    benchmark.pedantic(variant.run, args=(work,), rounds=5, warmup_rounds=1)
