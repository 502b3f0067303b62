"""Every instruction set that this machine has, by force: fastdistil beside peers held to the same.

    python -m benchmarks.instruction_sets            # some minutes for each on two cores
    python -m benchmarks.instruction_sets --quick
    python -m benchmarks.instruction_sets --isas avx512,avx2
    python -m benchmarks.instruction_sets --json     # also into results/<device>/

What older and smaller machines get, as far as this one can tell: the kernels are theirs, its clock
and its caches are not. Each instruction set has a process of its own, in which FASTDISTIL_CPU_ISA
and the peers' own settings (benchmarks/peer_limits.py) hold for everybody, and all engines take
turns on real sentences, as they come and sorted by length. A precision is compared with peers of
that precision. A peer that cannot be held is marked, and compared all the same. The peak is what
the instruction set's own multiply-add does on all cores and nothing else: a peer that is faster
than that is not held to it, whatever it says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import cpu_engine, peer_limits, workloads
from benchmarks.command import add_json_option, add_quick_option, command_parser, save
from benchmarks.corpora import ROOT
from fastdistil import EncoderConfig
from fastdistil.backends.cpu import INSTRUCTION_SETS, extension_error, instruction_sets
from fastdistil.bench import ours
from fastdistil.bench.environment import describe, environment
from fastdistil.bench.peers import PEERS, peer_names
from fastdistil.bench.race import choose, original, prepare, race
from fastdistil.bench.results import Row, write_json
from fastdistil.bench.tables import markdown_table
from fastdistil.bench.timing import Timing, ratio, say
from fastdistil.bench.workloads import Workload

HEADER = (
    "instruction set",
    "precision",
    "sentences",
    "fastdistil (tok/s)",
    "of the peak",
    "best peer",
    "its tok/s",
    "ratio",
    "verdict",
)
# Closer than this is a draw.
LEVEL = 0.03

# torch.compile is only measured where it is asked for: compiling takes longer than the rest.
DEFAULT_PEERS = tuple(name for name in PEERS if not name.startswith("compile"))


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        if options.child is not None:
            measured = measure_one(options.child, options.peers, quick=options.quick)
            write_json(options.json, measured)
            return 0
        check_kernels()
        results = measure(options.isas or available(), options.peers, quick=options.quick)
    except LookupError as missing:
        sys.exit(f"instruction_sets: {missing}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"instruction_sets: the measuring process ended with {failure.returncode}")
    print(report(results))
    save(options.json, results)
    return 1 if any(measured["refused"] for measured in results["sets"]) else 0


def check_kernels() -> None:
    """LookupError unless there are kernels, and all that this machine has."""
    problem = extension_error()
    if problem is not None:
        raise LookupError(problem)
    if instruction_sets()["cap"] is not None:
        raise LookupError("FASTDISTIL_CPU_ISA is set; this command sets it by itself")


def available() -> list[str]:
    """Instruction sets with kernels for this machine, fastest first."""
    return list(dict.fromkeys(entry["isa"] for entry in instruction_sets()["kernels"]))


def measure(isas: Sequence[str], peers: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes.

    Args:
        isas: of `available`.
        peers: names in PEERS.
        quick: few sentences, few turns.
    """
    best = available()[0]
    sets = []
    for isa in isas:
        # The best this machine has needs no limits: nobody can use more.
        limited = isa != best
        say(f"{isa}: peers {'held to it' if limited else 'as they are'}")
        said = peer_limits.ask(isa) if limited else {}
        measured = _in_a_process(isa, peers, limited, quick)
        sets.append({**measured, "said": said, "not_limited": {}})
        for peer in _peer_names(measured) if limited else ():
            reason = peer_limits.not_limited(peer, isa, said)
            if reason is not None:
                sets[-1]["not_limited"][peer] = reason
    return {"environment": environment(), "quick": quick, "sets": sets}


def measure_one(isa: str, peers: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """One instruction set, in a process whose environment holds everybody to it."""
    model = workloads.random_distilbert()
    sentences, rounds = (32, 2) if quick else (128, 5)
    mixed = workloads.mixed_sentences(sentences)
    results: dict[str, Any] = {"isa": isa, "workloads": [], "refused": [], "missing": []}
    own = [e["precision"] for e in instruction_sets()["kernels"] if e["isa"] == isa]
    precisions = [precision for precision in ours.PRECISIONS if precision in own]
    # Before there are peers, whose threads may not sleep yet.
    results["seconds_at_peak"] = {
        name: seconds_at_peak(model, name, mixed, quick=quick) for name in precisions
    }
    names = [name for name in peers if name.rpartition("-")[2] in precisions]
    engines = prepare(model, names, results["missing"], results["refused"])
    packed = [ours.packed(model, precision) for precision in precisions]
    contenders = [*packed, *engines.values()]
    expected = original(model, mixed)
    chosen = list(choose(contenders, mixed, expected, results["refused"], quick=quick))
    by_length = mixed.sorted_by_length()
    results["workloads"].append(_workload(race(mixed, chosen, rounds, quick=quick)))
    results["workloads"].append(
        _workload(race(by_length, chosen, rounds, quick=quick, warm_up=True))
    )
    return results


def _workload(rows: Sequence[Row]) -> dict[str, Any]:
    """What JSON knows of a workload's rows."""
    first = rows[0]
    engines = [{**row.info, "name": row.name, "seconds": row.timing.seconds} for row in rows]
    return {"name": first.group, "tokens": first.info["tokens"], "engines": engines}


def _timings(workload: Mapping[str, Any]) -> dict[str, Timing]:
    return {engine["name"]: Timing(tuple(engine["seconds"])) for engine in workload["engines"]}


def _rate(workload: Mapping[str, Any], timing: Timing) -> str:
    """Real tokens a second."""
    return f"{workload['tokens'] / timing.median:,.0f}"


def seconds_at_peak(model: Any, precision: str, workload: Workload, *, quick: bool) -> float:
    """The least that the workload takes with that precision's kernels of this process."""
    flop = cpu_engine.flops(EncoderConfig.from_hf(model.config), workload)
    peaks = cpu_engine.prepare(model, precision).peaks(quick=quick)
    return cpu_engine.seconds_at_peak(flop, peaks)


def report(results: Mapping[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    rows = [row for measured in results["sets"] for row in _rows(measured)]
    parts = [markdown_table(HEADER, rows)]
    for measured in results["sets"]:
        reasons = [f"{peer}: {why}" for peer, why in measured["not_limited"].items()]
        if reasons:
            parts.append("\n- ".join([f"Not limited to {measured['isa']}:", *reasons]))
    for measured in results["sets"]:
        said = [f"{library}: {words}" for library, words in measured["said"].items()]
        if said:
            parts.append("\n- ".join([f"Held to {measured['isa']}, they say they use:", *said]))
    parts.append(describe(results["environment"]))
    if results["quick"]:
        parts.append("A quick run: few sentences, few turns. Not for publishing.")
    for measured in results["sets"]:
        lines = (*measured["refused"], *measured["missing"])
        parts += [f"{measured['isa']}: not timed: {line}" for line in lines]
    return "\n\n".join(parts)


def _rows(measured: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """By precision and order: beside the best peer, and if that is not held, the best that is."""
    first, *_ = measured["workloads"]
    own = [e["precision"] for e in first["engines"] if e["name"].startswith("fastdistil")]
    for precision in own:
        for workload, order in zip(measured["workloads"], ("given order", "sorted"), strict=True):
            turns = _timings(workload)
            name = f"fastdistil {precision}"
            least = measured["seconds_at_peak"][precision]
            rate = _rate(workload, turns[name])
            share = f"{least / turns[name].median:.0%}"
            begin = (measured["isa"], precision, order, rate, share)
            peers = [
                engine["name"]
                for engine in workload["engines"]
                if engine["precision"] == precision and engine["name"] != name
            ]
            if not peers:
                yield (*begin, "-", "-", "-", "nobody to compare with")
            beyond = [peer for peer in peers if turns[peer].median < least]
            for peer in _best(peers, turns, {*measured["not_limited"], *beyond}):
                times = ratio(turns[name], turns[peer])
                remark = " (not limited)" if peer in measured["not_limited"] else ""
                remark = " (beyond the peak)" if peer in beyond else remark
                yield (
                    *begin,
                    peer + remark,
                    _rate(workload, turns[peer]),
                    f"{times:.2f}x",
                    verdict(times),
                )


def _peer_names(measured: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys(e["name"] for w in measured["workloads"] for e in w["engines"])
    return [name for name in names if not name.startswith("fastdistil")]


def _best(peers: Sequence[str], turns: Mapping[str, Any], not_limited: Container[str]) -> list[str]:
    """The fastest of the peers, and the fastest of the limited ones if that is another."""

    def fastest(names: Sequence[str]) -> list[str]:
        return sorted(names, key=lambda name: turns[name].median)[:1]

    limited = [peer for peer in peers if peer not in not_limited]
    return list(dict.fromkeys([*fastest(peers), *fastest(limited)]))


def verdict(times: float) -> str:
    """In a word: fastdistil is so many times as fast."""
    if times >= 1 + LEVEL:
        return "ahead"
    return "level" if times > 1 / (1 + LEVEL) else "behind"


def _in_a_process(isa: str, peers: Sequence[str], limited: bool, quick: bool) -> dict[str, Any]:
    """`measure_one` where the environment holds the libraries, which read it once."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results.json"
        command = [sys.executable, "-m", "benchmarks.instruction_sets", "--child", isa]
        command += ["--peers", ",".join(peers), "--json", str(file)]
        environment = peer_limits.environment(isa, limited=limited)
        subprocess.run(
            [*command, *(["--quick"] if quick else [])], cwd=ROOT, env=environment, check=True
        )
        measured: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return measured


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("benchmarks.instruction_sets", __doc__)
    add_quick_option(parser)
    parser.add_argument(
        "--isas",
        type=_isas,
        metavar="NAME,NAME",
        help=f"which: {', '.join(INSTRUCTION_SETS)} (default: all that this machine has)",
    )
    parser.add_argument(
        "--peers",
        type=peer_names,
        metavar="NAME,NAME",
        default=list(DEFAULT_PEERS),
        help=f"which engines beside fastdistil: {', '.join(PEERS)} (default: all that do not "
        "compile first)",
    )
    parser.add_argument("--child", choices=INSTRUCTION_SETS, help=argparse.SUPPRESS)
    add_json_option(parser, "instruction_sets.json")
    return parser


def _isas(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    missing = [name for name in names if name not in available()]
    if missing or not names:
        raise argparse.ArgumentTypeError(
            f"not on this machine: {', '.join(missing)}; it has {', '.join(available())}"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
