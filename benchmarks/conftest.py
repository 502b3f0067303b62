"""What pytest-benchmark lacks: contenders that take turns in one test, and the machine's record.

A suite's test has its contenders take turns itself (`fastdistil.bench.race`, `timing.alternate`)
and hands the rows to `record`: each becomes a benchmark of pytest-benchmark's, in its tables and in
its JSON, which `fastdistil.bench.results` reads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from fastdistil.bench import results
from fastdistil.bench.environment import environment
from fastdistil.bench.peers import peer_names
from fastdistil.bench.results import Row

LEFT_OUT: pytest.StashKey[list[str]] = pytest.StashKey()

Record = Callable[[Iterable[Row]], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastdistil")
    group.addoption("--quick", action="store_true", help="few sentences, few turns")
    group.addoption(
        "--peers", type=peer_names, metavar="NAME,NAME", help="which engines beside fastdistil"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = []


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """Ours in place of pytest-benchmark's."""
    return environment()


def pytest_benchmark_update_json(
    config: pytest.Config, benchmarks: object, output_json: dict[str, Any]
) -> None:
    """The suite, whether it was a quick run, and whoever was left out."""
    suite = Path(config.args[0].partition("::")[0]).name
    left_out: list[str] = config.stash[LEFT_OUT]
    once = dict.fromkeys(left_out)
    output_json |= results.header(suite, once, quick=config.getoption("quick"))


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    """Whether this is a look that is not for publishing."""
    return bool(pytestconfig.getoption("quick"))


@pytest.fixture(scope="session")
def chosen_peers(pytestconfig: pytest.Config) -> list[str] | None:
    """What --peers named; None where it was not given."""
    found: list[str] | None = pytestconfig.getoption("peers")
    return found


@pytest.fixture(scope="session")
def left_out(pytestconfig: pytest.Config) -> list[str]:
    """Takes a line for each contender that is not timed, with the reason."""
    return pytestconfig.stash[LEFT_OUT]


@pytest.fixture
def record(benchmark: Any) -> Record:
    """Takes the rows of contenders that took turns in this test."""

    def add(rows: Iterable[Row]) -> None:
        benchmark._mode = "turns"  # it has been used, whatever becomes of the rows
        for row in rows:
            one = copy.copy(benchmark)
            one.group, one.name, one.extra_info = row.group, row.name, dict(row.info)
            one.fullname = f"{benchmark.fullname}[{row.name}]"
            one.param = one.params = None
            stats = one._make_stats(iterations=1)
            for turn in row.seconds:
                stats.update(turn)

    return add
