"""One thread, several, more than there are cores; and company: how the CPU engine shares them.

    python -m benchmarks.threads                     # some minutes on two cores
    python -m benchmarks.threads --quick
    python -m benchmarks.threads --precisions bf16,int8
    python -m benchmarks.threads --json              # also writes results/<device>/threads.json

The engine by itself, on batches that are packed beforehand (`benchmarks/models` has the module
around it), and four questions, each answered by turns inside one run:

- What does a forward gain from a thread on every core, and lose to four on every core? (Nobody gets
  more than one on every core, whatever is asked for: fastdistil.backends.threads. This is the
  engine without that limit, as where a container does not say how little it has.)
- What do four callers at once lose, each in a thread of its own and with all cores for its forward?
- What does it lose while somebody else computes: another program, which needs one core; torch in
  another Python thread, with a thread of its own on every core; torch just before, in the same
  thread? Beside it, what eager PyTorch loses. Cores that are shared out equally among all threads
  that want one give the "equal share"; an engine whose threads wait for each other loses more.
- What does the process use while nothing runs?
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import workloads
from benchmarks.cpu_engine import CpuEngine, prepare, run_command
from fastdistil.backends.threads import usable_cpus
from fastdistil.bench import ours, timing
from fastdistil.bench.engines import Engine
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.peers.pytorch import eager
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import say
from fastdistil.bench.workloads import Workload
from fastdistil.packing import pack_ids

# One forward of a turn is no measurement of what takes a millisecond.
TURN_SECONDS = 0.25
# What a neighbour needs until it is at work, and torch's threads until they sleep again.
COMPANY_SECONDS = 0.3
IDLE_SECONDS = 2.0
CALLERS = 4


@dataclass(frozen=True)
class Company:
    """Somebody who computes at the same time.

    Attributes:
        name: for people.
        present: a context in which it computes.
        equal_share: of the number of cores, how many times as long a forward takes if all threads
            that want a core share them equally.
        before: called before every forward, outside the clock.
    """

    name: str
    present: Callable[[], contextlib.AbstractContextManager[object]]
    equal_share: Callable[[int], float]
    before: Callable[[], object] | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command("threads", __doc__, measure, report, arguments)


def measure(precisions: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes."""
    model = workloads.random_distilbert()
    missing: list[str] = []
    found = ours.precisions(model, missing, precisions)
    if not found:
        raise LookupError("; ".join(missing))
    engines = [prepare(model, precision) for precision in found]
    cores = usable_cpus()
    rounds = 2 if quick else 9
    scaling = [
        scale(engines, workload, (1, cores, 4 * cores), rounds)
        for workload in scaling_workloads(quick=quick)
    ]
    peer = eager(model, "fp32")
    callers, company = [], []
    for workload in (workloads.full_rows(16, 128), workloads.one_sentence(16)):
        callers.append(call_at_once(engines, workload, rounds))
        runs = {engine.name: bind(engine, workload) for engine in engines}
        runs[peer.name] = bind_peer(peer, workload)
        company.append(in_company(runs, workload, cores, rounds))
    return {
        "environment": environment(),
        "quick": quick,
        "cores": cores,
        "scaling": scaling,
        "callers": callers,
        "company": company,
        "idle_cpu_seconds": idle_cpu_seconds(bind(engines[0], workloads.one_sentence(16))),
        "idle_engine": engines[0].name,
        "idle_seconds": IDLE_SECONDS,
        "missing": missing,
    }


def scaling_workloads(*, quick: bool) -> list[Workload]:
    """From more sentences than threads know what to do with, to one that is soon over."""
    return [
        workloads.mixed_sentences(32 if quick else 256),
        workloads.full_rows(16, 128),
        workloads.full_rows(1, 512),
        workloads.full_rows(1, 128),
        workloads.one_sentence(16),
    ]


def scale(
    engines: Sequence[CpuEngine], workload: Workload, counts: Sequence[int], rounds: int
) -> dict[str, Any]:
    """Seconds of a forward, by engine and number of threads."""
    say(f"{workload.name}: {', '.join(map(str, counts))} threads")
    runs = {
        (engine.name, threads): bind(engine, workload, threads)
        for engine in engines
        for threads in dict.fromkeys(counts)
    }
    seconds = take_turns(runs, rounds)
    return {
        "workload": workload.name,
        "engines": [
            {
                "name": engine.name,
                "seconds": {str(threads): seconds[engine.name, threads] for threads in counts},
            }
            for engine in engines
        ],
    }


def call_at_once(engines: Sequence[CpuEngine], workload: Workload, rounds: int) -> dict[str, Any]:
    """Seconds for each forward, by engine and number of callers."""
    say(f"{workload.name}: {CALLERS} callers")
    seconds: dict[str, dict[str, list[float]]] = {
        engine.name: {"1": [], str(CALLERS): []} for engine in engines
    }
    for engine in engines:
        run = bind(engine, workload)
        repeats = timing.repeats(run, TURN_SECONDS)
        for _ in range(rounds):
            for callers, turns in seconds[engine.name].items():
                time.sleep(timing.SETTLE_SECONDS)
                turns.append(seconds_with_callers(run, int(callers), repeats))
    return {
        "workload": workload.name,
        "engines": [{"name": name, "seconds": turns} for name, turns in seconds.items()],
    }


def seconds_with_callers(run: Callable[[], object], callers: int, repeats: int) -> float:
    """Of each forward, when so many threads call `repeats` forwards each."""
    starts: list[float] = []
    ready = threading.Barrier(callers, action=lambda: starts.append(time.perf_counter()))

    def call() -> None:
        ready.wait()
        for _ in range(repeats):
            run()

    with ThreadPoolExecutor(callers) as pool:
        for done in [pool.submit(call) for _ in range(callers)]:
            done.result()
    return (time.perf_counter() - starts[0]) / (callers * repeats)


def in_company(
    runs: Mapping[str, Callable[[], object]], workload: Workload, cores: int, rounds: int
) -> dict[str, Any]:
    """Seconds of a forward, by engine, alone and in every company."""
    companies = (ALONE, *COMPANIES)
    repeats = {name: timing.repeats(run, TURN_SECONDS) for name, run in runs.items()}
    seconds: dict[str, dict[str, list[float]]] = {
        name: {company.name: [] for company in companies} for name in runs
    }
    say(f"{workload.name}: in company")
    for _ in range(rounds):
        for company in companies:
            with company.present():
                time.sleep(COMPANY_SECONDS)
                for name, run in runs.items():
                    taken = turn(run, repeats[name], company.before)
                    seconds[name][company.name].append(taken)
    return {
        "workload": workload.name,
        "equal_share": {company.name: company.equal_share(cores) for company in COMPANIES},
        "engines": [{"name": name, "seconds": turns} for name, turns in seconds.items()],
    }


def take_turns(runs: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of a forward, a number for each turn."""
    repeats = {name: timing.repeats(run, TURN_SECONDS) for name, run in runs.items()}
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(turn(run, repeats[name]))
    return seconds


def turn(
    run: Callable[[], object], repeats: int, before: Callable[[], object] | None = None
) -> float:
    """Mean seconds of so many forwards, one after the other."""
    time.sleep(timing.SETTLE_SECONDS)
    spent = 0.0
    for _ in range(repeats):
        if before is not None:
            before()
        start = time.perf_counter()
        run()
        spent += time.perf_counter() - start
    return spent / repeats


def bind(engine: CpuEngine, workload: Workload, threads: int | None = None) -> Callable[[], object]:
    """A forward of all sequences at once."""
    batch = pack_ids(workload.sequences)
    return lambda: engine.run(batch, threads=threads)


def bind_peer(peer: Engine, workload: Workload) -> Callable[[], object]:
    """The same by another engine, in padded batches."""
    return lambda: peer.variants[0].run(workload)


@contextlib.contextmanager
def busy_program() -> Iterator[None]:
    """Another program that wants one core all the time."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as program:
        try:
            yield
        finally:
            program.kill()


@contextlib.contextmanager
def busy_torch() -> Iterator[None]:
    """Another Python thread in which torch multiplies matrices, on all cores, all the time."""
    over = threading.Event()

    def multiply() -> None:
        while not over.is_set():
            _multiply()

    thread = threading.Thread(target=multiply)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _multiply() -> Any:
    # Some milliseconds, nearly all of them outside the interpreter.
    matrix = torch.ones(512, 512)
    return matrix @ matrix


ALONE = Company("alone", contextlib.nullcontext, lambda cores: 1.0)
COMPANIES = (
    Company("another program", busy_program, lambda cores: (cores + 1) / cores),
    Company("torch in another thread", busy_torch, lambda cores: 2.0),
    Company("torch just before", contextlib.nullcontext, lambda cores: 1.0, _multiply),
)


def idle_cpu_seconds(run: Callable[[], object]) -> float:
    """CPU time that the process uses in IDLE_SECONDS, after a forward."""
    say("idle")
    run()
    time.sleep(COMPANY_SECONDS)
    start = time.process_time()
    time.sleep(IDLE_SECONDS)
    return time.process_time() - start


def report(results: Mapping[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    cores = results["cores"]
    one, all_cores, many = (f"{n} thread{'s' * (n > 1)} (ms)" for n in (1, cores, 4 * cores))
    callers = (
        "workload",
        "engine",
        "one caller (ms a forward)",
        f"{CALLERS} callers at once (ms a forward)",
        "more time",
    )
    header = ("workload", "engine", one, all_cores, "times as fast", many, "more time")
    company = ("workload", "engine", "alone (ms)", *(f"{c.name} (ms)" for c in COMPANIES))
    idle = 1000 * results["idle_cpu_seconds"]
    parts = [
        markdown_table(header, list(scaling_rows(results))),
        markdown_table(callers, list(caller_rows(results))),
        markdown_table(company, list(company_rows(results))),
        f"In the {results['idle_seconds']:g} s after a forward ({results['idle_engine']}), while "
        f"nothing runs: {idle:.1f} ms of CPU time.",
        f"{cores} cores. {describe(results['environment'])}",
    ]
    if results["quick"]:
        parts.append("A quick run: few turns. Not for publishing.")
    parts += [f"not measured: {line}" for line in results["missing"]]
    return "\n\n".join(parts)


def scaling_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """By workload and engine: one thread, one a core, four a core."""
    cores = results["cores"]
    for measured in results["scaling"]:
        for engine in measured["engines"]:
            one, full, many = (
                statistics.median(engine["seconds"][str(n)]) for n in (1, cores, 4 * cores)
            )
            yield (
                measured["workload"],
                engine["name"],
                f"{1000 * one:,.2f}",
                f"{1000 * full:,.2f}",
                f"{one / full:.2f}x",
                f"{1000 * many:,.2f}",
                f"{many / full - 1:+.0%}",
            )


def caller_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """By workload and engine: what a forward takes of the time of one caller, and of several."""
    for measured in results["callers"]:
        for engine in measured["engines"]:
            one, many = (statistics.median(turns) for turns in engine["seconds"].values())
            times = (f"{1000 * one:,.2f}", f"{1000 * many:,.2f}", f"{many / one - 1:+.0%}")
            yield (measured["workload"], engine["name"], *times)


def company_rows(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """By workload and engine: alone, then in company and how many times as long that takes."""
    for measured in results["company"]:
        for engine in measured["engines"]:
            medians = {name: statistics.median(s) for name, s in engine["seconds"].items()}
            alone = medians.pop(ALONE.name)
            cells = (f"{1000 * s:,.2f} ({s / alone:.2f}x)" for s in medians.values())
            yield (measured["workload"], engine["name"], f"{1000 * alone:,.2f}", *cells)
        shares = (f"{share:.2f}x" for share in measured["equal_share"].values())
        yield (measured["workload"], "an equal share", "-", *shares)


if __name__ == "__main__":
    sys.exit(main())
