"""Where the time of a forward goes on the CPU, and how far each part is from what the cores can do.

    python -m benchmarks.parts                       # about a minute on two cores
    python -m benchmarks.parts --quick
    python -m benchmarks.parts --precisions bf16,int8
    python -m benchmarks.parts --json                # also writes results/<device>/parts.json

DistilBERT-base on real sentences in the given order, 16 sequences of 128 tokens, and one sentence
of 16. Each thread has a stop-watch in the engine; waiting for the others at the end of a part is
charged to that part. Rates are of one thread. The peak is measured here too: all threads at once do
nothing but the kernels' own multiply-add, on random numbers in registers; attention is held against
the peak of what it runs in. One short sentence needs every weight once and little else, so the
bytes of weights a second stand beside what the memory gives.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import workloads
from benchmarks.cpu_engine import CpuEngine, flops, prepare, run_command, seconds_at_peak
from fastdistil import EncoderConfig
from fastdistil.backends.threads import num_threads
from fastdistil.bench import ours, timing
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import say
from fastdistil.bench.workloads import Workload
from fastdistil.packing import PackedBatch, pack_ids

HEADER = ("part", "share of time", "GFLOP/s a thread", "of the peak")
NAMES = {
    "embed": "embeddings",
    "qkv": "Q, K, V",
    "attention": "attention",
    "attention_out": "attention output",
    "ffn_in": "feed-forward in, activation",
    "ffn_out": "feed-forward out",
    "layer_norm": "LayerNorm",
    "quantise": "quantising",
    "pool": "pooling",
}
ONE = "1 x 16"

# More than any cache holds: servers have some of hundreds of megabytes.
READ_BYTES = 1 << 30


@dataclass(frozen=True)
class Turn:
    """A forward by the clock on the wall, and one by the stop-watches. All in seconds.

    Attributes:
        seconds: of a forward as it always runs.
        clocked: of one with stop-watches.
        parts: of that one, summed over the threads.
    """

    seconds: float
    clocked: float
    parts: Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command("parts", __doc__, measure, report, arguments)


def measure(precisions: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes."""
    model = workloads.random_distilbert()
    config = EncoderConfig.from_hf(model.config)
    missing: list[str] = []
    engines = [
        prepare(model, precision) for precision in ours.precisions(model, missing, precisions)
    ]
    say("peaks")
    peaks = [engine.peaks(quick=quick) for engine in engines]
    forwards = []
    for workload, repeats in (
        (workloads.mixed_sentences(32 if quick else 256), 1),
        (workloads.full_rows(16, 128), 1 if quick else 4),
        (workloads.one_sentence(16), 5 if quick else 50),
    ):
        say(workload.name)
        flop = flops(config, workload)
        turns = take_turns(engines, workload, repeats, rounds=1 if quick else 5)
        for engine, peak, taken in zip(engines, peaks, turns, strict=True):
            forwards.append(_record(engine, workload, flop, peak, taken))
    return {
        "environment": environment(),
        "quick": quick,
        "threads": num_threads(),
        "read_bytes_per_second": read_bandwidth(READ_BYTES),
        "forwards": forwards,
        "missing": missing,
    }


def take_turns(
    engines: Sequence[CpuEngine], workload: Workload, repeats: int, rounds: int
) -> list[list[Turn]]:
    """`rounds` turns of each engine, of so many passes, after one turn that does not count."""
    batch = pack_ids(workload.sequences)
    turns: list[list[Turn]] = [[] for _ in engines]
    for turn in range(rounds + 1):
        for engine, taken in zip(engines, turns, strict=True):
            time.sleep(timing.SETTLE_SECONDS)
            timed = _turn(engine, batch, repeats)
            if turn > 0:
                taken.append(timed)
    return turns


def _turn(engine: CpuEngine, batch: PackedBatch, repeats: int) -> Turn:
    engine.run(batch)  # what a pause costs is not charged to the turn
    start = time.perf_counter()
    for _ in range(repeats):
        engine.run(batch)
    between = time.perf_counter()
    clocked = [engine.run(batch, parts=True) for _ in range(repeats)]
    end = time.perf_counter()
    parts = {part: sum(each[part] for each in clocked) / repeats for part in clocked[0]}
    return Turn((between - start) / repeats, (end - between) / repeats, parts)


def read_bandwidth(size: int) -> float:
    """Bytes a second that all threads together read from memory: the best of ten sums.

    A sum over what a cache holds runs several times as fast, so it is the memory that is measured.
    """
    numbers = torch.ones(size // 4)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - start)
    return size / best


def _record(
    engine: CpuEngine,
    workload: Workload,
    flop: Mapping[str, float],
    peak: Mapping[str, float],
    turns: Sequence[Turn],
) -> dict[str, Any]:
    """A forward in the results. Its parts are those of one turn, the median: so they add up."""
    middle = sorted(turns, key=lambda turn: turn.clocked)[len(turns) // 2]
    return {
        "workload": workload.name,
        "precision": engine.precision,
        "kernels": engine.description,
        "sequences": len(workload.sequences),
        "tokens": workload.tokens,
        "seconds": [turn.seconds for turn in turns],
        "clocked_seconds": middle.clocked,
        "parts": dict(middle.parts),
        "flop": dict(flop),
        "peak": dict(peak),
        "weight_bytes": engine.program._encoder.packed_bytes,
    }


def report(results: Mapping[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    threads = results["threads"]
    parts = []
    for forward in results["forwards"]:
        parts.append(_headline(forward))
        parts.append(markdown_table(HEADER, list(rows(forward, threads))))
        if forward["workload"] == ONE:
            parts.append(_reading(forward, results["read_bytes_per_second"]))
    parts.append(f"{threads} threads. {describe(results['environment'])}")
    if results["quick"]:
        parts.append("A quick run: few turns, short peaks. Not for publishing.")
    parts += [f"not measured: {line}" for line in results["missing"]]
    return "\n\n".join(parts)


def rows(forward: Mapping[str, Any], threads: int) -> Iterator[tuple[str, str, str, str]]:
    """The table of one forward in the results: its parts, what is in none of them, the whole."""
    everything = forward["clocked_seconds"] * threads
    flop, peak = forward["flop"], forward["peak"]
    for part, seconds in forward["parts"].items():
        if seconds == 0:
            continue
        share = f"{seconds / everything:.1%}"
        if part not in flop:
            yield NAMES[part], share, "-", "-"
            continue
        highest = peak["attention" if part == "attention" else "products"] / threads
        rate = flop[part] / seconds
        yield NAMES[part], share, f"{rate / 1e9:,.0f}", f"{rate / highest:.0%}"
    idle = max(0.0, 1 - sum(forward["parts"].values()) / everything)
    yield "idle: no work left, starting", f"{idle:.1%}", "-", "-"
    whole = statistics.median(forward["seconds"]) * threads
    rate = sum(flop.values()) / whole
    ideal = seconds_at_peak(flop, peak) * threads
    yield "the whole, no stop-watches", "100%", f"{rate / 1e9:,.0f}", f"{ideal / whole:.0%}"


def _headline(forward: Mapping[str, Any]) -> str:
    seconds = statistics.median(forward["seconds"])
    return (
        f"**{forward['workload']}, {forward['precision']}**: {1000 * seconds:,.2f} ms, "
        f"{forward['tokens'] / seconds:,.0f} tok/s; peak "
        f"{forward['peak']['products'] / 1e9:,.0f} GFLOP/s, "
        f"{forward['peak']['attention'] / 1e9:,.0f} for attention ({forward['kernels']})"
    )


def _reading(forward: Mapping[str, Any], bandwidth: float) -> str:
    size = forward["weight_bytes"]
    rate = size / statistics.median(forward["seconds"])
    return (
        f"{size / 1e6:,.0f} MB of weights, {rate / 1e9:,.1f} GB/s: {rate / bandwidth:.0%} of the "
        f"{bandwidth / 1e9:,.1f} GB/s that a sum over memory reads; what stays in a cache from one "
        "forward to the next need not come from there"
    )


if __name__ == "__main__":
    sys.exit(main())
