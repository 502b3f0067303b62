"""DistilBERT-base forwards: fastdistil beside the engines people use, in one run, taking turns.

    python -m benchmarks.forward                     # about ten minutes on two cores
    python -m benchmarks.forward --quick             # about two
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
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import goals, ours, workloads
from benchmarks.accuracy import least_cosine
from benchmarks.corpora import ROOT
from benchmarks.harness import (
    RESULTS,
    Timing,
    alternate,
    describe,
    device_folder,
    environment,
    fastest,
    markdown_table,
    write_results,
)
from benchmarks.peers import PEERS, Engine, Floats, Variant
from benchmarks.workloads import Workload

# The least cosine of any real token with eager fp32: far looser than what the engines keep, far
# tighter than what any mistake (mask, positions, a forgotten bias) leaves.
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.999, "int8": 0.98}

MIXED, SORTED, ROWS, ONE = "mixed", "mixed, sorted", "16 x 128", "1 x 16"
OUR_PRECISIONS = ("bf16", "fp32")
README = ROOT / "README.md"


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
    peers = options.peers
    if peers is None:
        peers = [name for name in PEERS if name != "compile-bf16" or not options.quick]
    try:
        results = measure(peers, quick=options.quick)
    except LookupError as missing:
        sys.exit(f"forward: {missing}")
    print(report(results))
    if options.json is not None:
        file = options.json
        if file == _DEFAULT_FILE:
            file = RESULTS / device_folder(results["environment"]) / "forward.json"
        write_results(file, results)
        print(f"\nwritten to {file}")
    return 1 if results["refused"] else 0


def measure(peers: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Run everything; what comes back is what `report` prints and `--json` writes."""
    model = workloads.random_distilbert()
    sentences, rounds = (64, 3) if quick else (256, 5)
    mixed = workloads.mixed_sentences(sentences)
    rows = workloads.full_rows(16, 128)
    one = workloads.one_sentence(16, repeats=10 if quick else 20)
    results: dict[str, Any] = {
        "environment": environment(),
        "quick": quick,
        "workloads": [],
        "refused": [],
        "missing": [],
    }
    engines = list(_peers(model, peers, results["missing"]))
    packed = [ours.packed(model, precision) for precision in OUR_PRECISIONS]
    drop_in = [ours.drop_in(model, precision) for precision in OUR_PRECISIONS]
    for workload, contenders, turns in (
        (mixed, [*packed, *engines], rounds),
        (rows, [*drop_in, *engines], rounds),
        (one, [*drop_in, *engines], 2 * rounds + 1),
    ):
        expected = _expected(model, workload)
        chosen = list(_choose(contenders, workload, expected, results["refused"], quick=quick))
        results["workloads"].append(_race(workload, chosen, turns))
        if workload is mixed:
            by_length = _race(mixed.sorted_by_length(), chosen, rounds, warm_up=True)
            results["workloads"].append(by_length)
    return results


def report(results: dict[str, Any]) -> str:
    """Everything that was measured, in Markdown."""
    parts = [figures(results), _padding(results)]
    parts += [markdown_table(goals.HEADER, goals.rows(results))]
    parts += [_settings(results), describe(results["environment"])]
    if results["quick"]:
        parts.append("A quick run: few sentences, few turns. Not for publishing.")
    parts += [f"not timed: {line}" for line in (*results["refused"], *results["missing"])]
    return "\n\n".join(parts)


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


def _peers(model: Any, names: Sequence[str], missing: list[str]) -> Iterator[Engine]:
    for name in names:
        _say(f"preparing {name}")
        try:
            yield PEERS[name](model)
        except ImportError as error:
            missing.append(f'{name}: {error}; `python -m pip install -e ".[bench]"` brings it')


def _expected(model: Any, workload: Workload) -> Floats:
    """The fp32 answer of the original model: [T, D]."""
    from benchmarks.peers import eager

    variant = eager(model, "fp32").variants[0]
    return variant.tokens(workload, variant.run(workload))


def _choose(
    engines: Sequence[Engine],
    workload: Workload,
    expected: Floats,
    refused: list[str],
    *,
    quick: bool,
) -> Iterator[tuple[Engine, Variant, float]]:
    """Each engine's fastest variant for this workload, once all of its variants proved right."""
    for engine in engines:
        cosines = {}
        for variant in engine.variants:
            got = variant.tokens(workload, variant.run(workload))
            cosines[variant.configuration] = least_cosine(got.astype(float), expected.astype(float))
        worst = min(cosines.values())
        if not worst >= LEAST_COSINE[engine.precision]:
            refused.append(f"{engine.name}, {workload.name}: wrong answers (cosine {worst:.4f})")
            _say(refused[-1])
            continue
        few = workload.head(2 * workloads.PEER_BATCH)
        by_name = {variant.configuration: variant for variant in engine.variants}
        turns = {name: _bind(variant, few) for name, variant in by_name.items()}
        best = by_name[fastest(turns, rounds=1 if quick else 2)]
        cosine = cosines[best.configuration]
        _say(f"{workload.name}: {engine.name}: {best.configuration} (cosine {cosine:.5f})")
        yield engine, best, cosine


def _race(
    workload: Workload,
    chosen: Sequence[tuple[Engine, Variant, float]],
    rounds: int,
    *,
    warm_up: bool = False,
) -> dict[str, Any]:
    _say(f"{workload.name}: {rounds} turns each")
    turns = {engine.name: _bind(variant, workload) for engine, variant, _ in chosen}
    timings = alternate(turns, rounds, warm_up=warm_up)
    return {
        "name": workload.name,
        "sequences": len(workload.sequences),
        "tokens": workload.tokens,
        "padded_tokens": sum(batch.input_ids.size for batch in workload.batches),
        "repeats": workload.repeats,
        "engines": [
            {
                "name": engine.name,
                "precision": engine.precision,
                "configuration": variant.configuration,
                "least_cosine": cosine,
                "seconds": timings[engine.name].seconds,
            }
            for engine, variant, cosine in chosen
        ],
    }


def _bind(variant: Variant, workload: Workload) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(workload.repeats):
            variant.run(workload)

    return turn


def _timing(workload: dict[str, Any], name: str) -> Timing | None:
    return next(
        (Timing(tuple(e["seconds"])) for e in workload["engines"] if e["name"] == name), None
    )


def _throughput(workload: dict[str, Any], name: str) -> str:
    timing = _timing(workload, name)
    if timing is None:
        return "-"
    return f"{workload['tokens'] * workload['repeats'] / timing.median:,.0f}"


def _milliseconds(workload: dict[str, Any], name: str) -> str:
    timing = _timing(workload, name)
    return "-" if timing is None else f"{1000 * timing.median / workload['repeats']:.2f}"


def _padding(results: dict[str, Any]) -> str:
    shares = (
        f"{1 - workload['tokens'] / workload['padded_tokens']:.0%} ({workload['name']})"
        for workload in results["workloads"]
    )
    return f"Padding in the batches of {workloads.PEER_BATCH}: {', '.join(shares)}."


def _settings(results: dict[str, Any]) -> str:
    """What was chosen for each engine, workload by workload."""
    chosen: dict[str, dict[str, list[str]]] = {}
    for workload in results["workloads"]:
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


def _say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


_DEFAULT_FILE = Path("benchmarks/results/<device>/forward.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forward",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="few sentences, few turns")
    parser.add_argument(
        "--peers",
        type=_peer_names,
        metavar="NAME,NAME",
        help=f"which engines beside fastdistil: {', '.join(PEERS)} (default: all, but compile-bf16 "
        "only without --quick: compiling takes longer than the rest)",
    )
    parser.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=_DEFAULT_FILE,
        metavar="FILE",
        help=f"write the results (default: {_DEFAULT_FILE})",
    )
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the tables of FILE again")
    parser.add_argument(
        "--readme", action="store_true", help="with --show: put the table into README.md"
    )
    return parser


def _peer_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(unknown)}; known: {', '.join(PEERS)}"
        )
    return names


if __name__ == "__main__":
    sys.exit(main())
