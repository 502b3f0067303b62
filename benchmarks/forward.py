"""DistilBERT-base forwards: fastdistil beside the engines people use, in one run, taking turns.

    python -m benchmarks.forward                     # about eight minutes on two cores
    python -m benchmarks.forward --quick             # about two
    python -m benchmarks.forward --grid              # more sizes of batches, and of one sentence
    python -m benchmarks.forward --peers openvino-bf16,onnxruntime-int8
    python -m benchmarks.forward --json              # also writes results/<device>/forward.json
    python -m benchmarks.forward --show FILE         # prints the tables of such a file again
    python -m benchmarks.forward --show FILE --readme   # and puts the first one into README.md

Workloads: real sentences in the order they come, the same sorted by length (what a careful user of
a padding engine does), 16 sequences of 128 tokens, one sentence of 16. Peers get batches of 32,
padded; their batches are made before the clock starts, fastdistil's packing is inside the timing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import goals, ours, workloads
from benchmarks.corpora import ROOT
from benchmarks.harness import (
    add_json_option,
    add_quick_option,
    command_parser,
    describe,
    environment,
    markdown_table,
    ratio,
    save,
    timings,
)
from benchmarks.peers import PEERS, Engine, Floats, peer_names
from benchmarks.race import Contender, choose, original, prepare, race, tokens_per_second
from benchmarks.workloads import Workload

MIXED, SORTED, ROWS, ONE = "mixed", "mixed, sorted", "16 x 128", "1 x 16"
README = ROOT / "README.md"

# It compiles for longer than everything else takes.
SLOW = "compile-bf16"

# What `--grid` measures with the drop-in: (sequences, tokens of each).
GRID = (
    (1, 16),
    (1, 64),
    (1, 128),
    (1, 256),
    (1, 512),
    (4, 128),
    (16, 128),
    (64, 128),
    (16, 64),
    (16, 256),
)
# A turn of the grid runs so many tokens or one batch, whichever is more.
GRID_TURN_TOKENS = 320

# Whom each precision has to be ahead of in the grid: peers with no larger an error than its own.
OPPONENTS = {"int8": ("int8", "bf16", "fp32"), "bf16": ("bf16", "fp32")}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.readme and options.show is None:
        parser.error("--readme goes with --show FILE")
    if options.show is not None:
        results = json.loads(options.show.read_text(encoding="utf-8"))
        print(report(results))
        if options.readme:
            text = README.read_text(encoding="utf-8")
            README.write_text(with_figures(text, results, options.show), encoding="utf-8")
        return 0
    everybody, quick_ones = list(PEERS), [name for name in PEERS if name != SLOW]
    peers = in_grid = options.peers
    if options.peers is None:
        peers, in_grid = quick_ones if options.quick else everybody, quick_ones
    try:
        results = measure(peers, in_grid if options.grid else None, quick=options.quick)
    except LookupError as missing:
        sys.exit(f"forward: {missing}")
    print(report(results))
    save(options.json, results)
    return 1 if results["refused"] else 0


def measure(
    peers: Sequence[str], in_grid: Sequence[str] | None = None, *, quick: bool
) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes.

    Args:
        peers: names in PEERS.
        in_grid: those of them that the grid measures too; None for no grid.
        quick: few sentences, few turns.
    """
    run = _Run(peers, quick)
    run.standard()
    run.pooled()
    if in_grid is not None:
        run.grid(in_grid)
    return run.results


class _Run:
    """One run of the command: the engines it has prepared, the results so far."""

    def __init__(self, peers: Sequence[str], quick: bool) -> None:
        self.quick = quick
        self.refused: list[str] = []
        self.missing: list[str] = []
        self.results: dict[str, Any] = {
            "environment": environment(),
            "quick": quick,
            "workloads": [],
            "refused": self.refused,
            "missing": self.missing,
        }
        self.model = workloads.random_distilbert()
        self.mixed = workloads.mixed_sentences(64 if quick else 256)
        self.precisions = ours.precisions(self.model, self.missing)
        self.drop_in = [ours.drop_in(self.model, precision) for precision in self.precisions]
        self.peers = prepare(self.model, peers, self.missing, self.refused)

    def standard(self) -> None:
        """The four workloads of README."""
        rounds = 3 if self.quick else 5
        done = self.results["workloads"]
        packed = [ours.packed(self.model, precision) for precision in self.precisions]
        chosen = self.choose([*packed, *self.peers.values()], self.mixed)
        done.append(race(self.mixed, chosen, rounds))
        done.append(race(self.mixed.sorted_by_length(), chosen, rounds, warm_up=True))
        rows = workloads.full_rows(16, 128)
        one = workloads.one_sentence(16, repeats=10 if self.quick else 20)
        for workload, turns in ((rows, rounds), (one, 2 * rounds + 1)):
            chosen = self.choose([*self.drop_in, *self.peers.values()], workload)
            done.append(race(workload, chosen, turns))

    def pooled(self) -> None:
        """The mixed sentences once more as `Encoder.encode_ids` runs them, to pooled vectors."""
        engines = [ours.pooled(self.model, precision) for precision in self.precisions]
        expected = ours.means(self.mixed, original(self.model, self.mixed))
        chosen = self.choose(engines, self.mixed, expected)
        self.results["pooled"] = race(self.mixed, chosen, 3 if self.quick else 5)

    def grid(self, names: Sequence[str]) -> None:
        """Those sizes that the standard workloads do not have, by the drop-in and these peers."""
        peers = [self.peers[name] for name in names if name in self.peers]
        done = {workload["name"] for workload in self.results["workloads"]}
        self.results["grid"] = []
        for rows, length in GRID:
            if grid_name(rows, length) in done:
                continue
            repeats = max(1, GRID_TURN_TOKENS // (rows * length))
            workload = workloads.full_rows(rows, length, repeats)
            chosen = self.choose([*self.drop_in, *peers], workload)
            rounds = 2 if self.quick else 3
            turns = 2 * rounds + 1 if rows == 1 else rounds
            self.results["grid"].append(race(workload, chosen, turns))

    def choose(
        self, engines: Sequence[Engine], workload: Workload, expected: Floats | None = None
    ) -> list[Contender]:
        """`race.choose`; what is expected is the model's last hidden states unless given."""
        if expected is None:
            expected = original(self.model, workload)
        return list(choose(engines, workload, expected, self.refused, quick=self.quick))


def grid_name(rows: int, length: int) -> str:
    """A workload's name in the results."""
    return f"{rows} x {length}"


def report(results: dict[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    parts = [figures(results), _padding(results), _pooled(results)]
    if "grid" in results:
        parts += [grid_figures(results), leads(results)]
    parts += [markdown_table(goals.HEADER, goals.rows(results))]
    parts += [_settings(results), describe(results["environment"])]
    if results["quick"]:
        parts.append("A quick run: few sentences, few turns. Not for publishing.")
    parts += [f"not timed: {line}" for line in (*results["refused"], *results["missing"])]
    return "\n\n".join(part for part in parts if part)


def figures(results: dict[str, Any]) -> str:
    """The table of README: an engine a row, a workload a column."""
    by_name = {workload["name"]: workload for workload in results["workloads"]}
    size = f"{by_name[MIXED]['sequences']} real sentences"
    header = (
        "DistilBERT-base",
        f"{size}, given order (tok/s)",
        "sorted by length (tok/s)",
        "16 x 128 (tok/s)",
        "1 x 16 (ms)",
    )
    names = dict.fromkeys(e["name"] for w in results["workloads"] for e in w["engines"])
    rows = [
        (
            name,
            *(_throughput(by_name[workload], name) for workload in (MIXED, SORTED, ROWS)),
            _milliseconds(by_name[ONE], name),
        )
        for name in names
    ]
    return markdown_table(header, rows)


def with_figures(readme: str, results: dict[str, Any], file: Path) -> str:
    """README's text with the section between its two markers made from these results."""
    before, begin, rest = readme.partition("<!-- forward: ")
    note, end_of_note, rest = rest.partition("-->\n")
    _, end, after = rest.partition("<!-- /forward -->")
    if not end:
        raise ValueError("no <!-- forward: ... --> and <!-- /forward --> in the text")
    name = file.resolve().relative_to(ROOT).as_posix()
    section = (
        f"{figures(results)}\n\n"
        "Last hidden states of DistilBERT-base (seeded random weights, real sentences); only real\n"
        "tokens count. Every engine is set up as its documentation advises, they take turns in\n"
        "one run, and figures are medians. Batches of 32 for the engines that pad.\n"
        "`python -m benchmarks.forward --json` measures it,\n"
        f"`python -m benchmarks.forward --show {name}` prints this run again with all settings:\n\n"
        f"> {describe(results['environment'])}\n"
    )
    return before + begin + note + end_of_note + section + end + after


def grid_figures(results: dict[str, Any]) -> str:
    """The table of the grid: an engine a row, a size a column."""
    by_name = {w["name"]: w for w in (*results["workloads"], *results["grid"])}
    columns = [by_name[grid_name(rows, length)] for rows, length in GRID]
    units = ["ms" if rows == 1 else "tok/s" for rows, _ in GRID]
    header = [f"{w['name']} ({unit})" for w, unit in zip(columns, units, strict=True)]
    names = dict.fromkeys(e["name"] for w in columns for e in w["engines"])
    lines = [
        (
            name,
            *(
                _milliseconds(workload, name) if unit == "ms" else _throughput(workload, name)
                for workload, unit in zip(columns, units, strict=True)
            ),
        )
        for name in names
    ]
    return markdown_table(("drop-in, batches as they are", *header), lines)


def leads(results: dict[str, Any]) -> str:
    """How far fastdistil is ahead on each workload, and of whom."""
    header = ("workload", "int8 / the best peer", "bf16 / the best bf16 or fp32 peer")
    rows = [
        (workload["name"], *(_lead(workload, *pair) for pair in OPPONENTS.items()))
        for workload in (*results["workloads"], *results["grid"])
    ]
    return markdown_table(header, rows)


def _lead(workload: Mapping[str, Any], precision: str, opponents: Sequence[str]) -> str:
    turns = timings(workload)
    ours_name = f"fastdistil {precision}"
    peers = [
        engine["name"]
        for engine in workload["engines"]
        if not engine["name"].startswith("fastdistil") and engine["precision"] in opponents
    ]
    if ours_name not in turns or not peers:
        return "-"
    best = min(peers, key=lambda name: turns[name].median)
    return f"{ratio(turns[ours_name], turns[best]):.2f}x ({best})"


def _throughput(workload: dict[str, Any], name: str) -> str:
    timing = timings(workload).get(name)
    return "-" if timing is None else f"{tokens_per_second(workload, timing.median):,.0f}"


def _milliseconds(workload: dict[str, Any], name: str) -> str:
    timing = timings(workload).get(name)
    return "-" if timing is None else f"{1000 * timing.median / workload['repeats']:.2f}"


def _padding(results: dict[str, Any]) -> str:
    shares = (
        f"{1 - workload['tokens'] / workload['padded_tokens']:.0%} ({workload['name']})"
        for workload in results["workloads"]
    )
    return f"Padding in the batches of {workloads.PEER_BATCH}: {', '.join(shares)}."


def _pooled(results: dict[str, Any]) -> str:
    """fastdistil's figures from token ids to one vector a sentence, where there are any."""
    workload = results.get("pooled")
    if workload is None or not workload["engines"]:
        return ""
    rates = (f"{e['name']} {_throughput(workload, e['name'])} tok/s" for e in workload["engines"])
    return f"`Encoder.encode_ids`, given order, to mean-pooled vectors: {', '.join(rates)}."


def _settings(results: dict[str, Any]) -> str:
    """What was chosen for each engine, workload by workload."""
    chosen: dict[str, dict[str, list[str]]] = {}
    for workload in (*results["workloads"], *results.get("grid", ())):
        for engine in workload["engines"]:
            settings = chosen.setdefault(engine["name"], {})
            settings.setdefault(engine["configuration"], []).append(workload["name"])
    lines = []
    for name, settings in chosen.items():
        uses = (
            what if len(settings) == 1 else f"{what} ({'; '.join(where)})"
            for what, where in settings.items()
        )
        lines.append(f"- {name}: {' / '.join(uses)}")
    return "\n".join(["Settings, the fastest of those tried:", *lines])


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("benchmarks.forward", __doc__)
    add_quick_option(parser)
    parser.add_argument(
        "--grid",
        action="store_true",
        help="measure the drop-in on more sizes too (compile-bf16 only if --peers names it)",
    )
    parser.add_argument(
        "--peers",
        type=peer_names,
        metavar="NAME,NAME",
        help=f"which engines beside fastdistil: {', '.join(PEERS)} (default: all, but compile-bf16 "
        "only without --quick: compiling takes longer than the rest)",
    )
    add_json_option(parser, "forward.json")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of FILE again")
    parser.add_argument(
        "--readme", action="store_true", help="with --show: put the table into README.md"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
