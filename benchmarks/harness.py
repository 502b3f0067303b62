"""What every benchmark shares: fair turns, medians, ratios, the machine's record, tables.

Engines are compared inside one run and take turns (A B C A B C ...), so that a noisy neighbour, a
clock that throttles or a cache that warms up meets all of them alike. Figures are medians of the
turns; the fastest turn is kept beside it in the results.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.corpora import ROOT

RESULTS = Path(__file__).resolve().parent / "results"
# Where `--json` without a file writes: the machine's name is known once it has been measured.
_ON_THIS_DEVICE = Path("benchmarks/results/<device>")

# An engine's worker threads keep spinning for a moment after it returns, which would be charged to
# the next one on a machine with few cores. 50 ms is longer than any of their spin loops.
SETTLE_SECONDS = 0.05

# The instruction sets that decide which kernels an engine may choose.
_FLAGS = (
    "avx2",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "openvino",
    "onnxruntime",
)


# Names for the best of them, best first.
_ISA_OF_FLAG = {
    "amx": "amx_bf16",
    "avx512-bf16": "avx512_bf16",
    "avx512": "avx512f",
    "avx2": "avx2",
}


@dataclass(frozen=True)
class Timing:
    """The timed turns of one engine, in seconds, in the order they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)


def alternate(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Run every contender `rounds` times, taking turns in the given order.

    Before that each runs once untimed, unless `warm_up` is false because each already has.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    for run in contenders.values() if warm_up else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            time.sleep(SETTLE_SECONDS)
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return {name: Timing(tuple(turns)) for name, turns in seconds.items()}


def fastest(contenders: Mapping[str, Callable[[], object]], rounds: int = 2) -> str:
    """The name with the shortest turn. All must have run before: there is no warm-up."""
    if len(contenders) == 1:
        return next(iter(contenders))
    timings = alternate(contenders, rounds, warm_up=False)
    return min(timings, key=lambda name: timings[name].best)


def ratio(ours: Timing, theirs: Timing) -> float:
    """How many times faster `ours` is, by medians: above 1 is faster."""
    return theirs.median / ours.median


def timings(workload: Mapping[str, Any]) -> dict[str, Timing]:
    """By engine, from a workload in the results."""
    return {engine["name"]: Timing(tuple(engine["seconds"])) for engine in workload["engines"]}


def say(line: str) -> None:
    """Tell whoever waits what is going on."""
    print(f"[{time.strftime('%H:%M:%S')}] {line}", file=sys.stderr, flush=True)


def environment() -> dict[str, Any]:
    """The machine, the software and the commit that a measurement belongs to."""
    import torch

    import fastdistil

    model, flags = cpu()
    return {
        "device": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "fastdistil": fastdistil.__version__,
        "packages": {name: v for name in _PACKAGES if (v := _version(name)) is not None},
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def cpu() -> tuple[str, frozenset[str]]:
    """Model name and feature flags, as Linux reports them for the first core."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), frozenset()
    fields = dict(re.findall(r"^([^\t:]+)\t*: (.*)$", text.split("\n\n")[0], re.MULTILINE))
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name") or platform.machine(), frozenset(flags.split())


def device_folder(record: Mapping[str, Any]) -> str:
    """A folder name for the machine of an `environment` record: ``amd-epyc-2-cores-avx512``."""
    name = re.sub(r"\((r|tm)\)|@.*|\bcpu\b|\bprocessor\b", " ", str(record["device"]).lower())
    slug = re.sub(r"[^a-z0-9]+", "-", name).strip("-") or "cpu"
    flags = record["flags"]
    # Two machines may report the same vague model name and differ in what decides the speed.
    isa = next((i for i, flag in _ISA_OF_FLAG.items() if flag in flags), "portable")
    return f"{slug}-{record['cores']}-cores-{isa}"


def describe(record: Mapping[str, Any]) -> str:
    """One line for people about an `environment` record."""
    versions = ", ".join(f"{name} {v}" for name, v in record["packages"].items())
    return (
        f"{record['device']}, {record['cores']} cores, {record['threads']} threads "
        f"({' '.join(record['flags'])}); fastdistil {record['fastdistil']} at {record['commit']}, "
        f"{versions}; {record['date']}"
    )


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write JSON aside, then rename: an interrupted run leaves the last results as they were."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m <module>`, with the module's docstring as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_quick_option(parser: argparse.ArgumentParser) -> None:
    """`--quick`, for a look that is not for publishing."""
    parser.add_argument("--quick", action="store_true", help="few sentences, few turns")


def known_names(text: str, known: Iterable[str]) -> list[str]:
    """An option's ``NAME,NAME`` as a list, each once; argparse's error if one is unknown."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = sorted(set(names) - set(known))
    if not names:
        raise argparse.ArgumentTypeError(f"got nothing; known: {', '.join(known)}")
    if unknown:
        raise argparse.ArgumentTypeError(
            f"unknown: {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return names


def add_json_option(parser: argparse.ArgumentParser, name: str) -> None:
    """`--json [FILE]`; without a FILE the results are called `name`, in the machine's folder."""
    default = _ON_THIS_DEVICE / name
    parser.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=default,
        metavar="FILE",
        help=f"write the results (default: {default})",
    )


def save(file: Path | None, results: Mapping[str, Any]) -> None:
    """Write results where `--json` said, if it was given, and say where that is."""
    if file is None:
        return
    if file.parent == _ON_THIS_DEVICE:
        file = RESULTS / device_folder(results["environment"]) / file.name
    write_results(file, results)
    print(f"\nwritten to {file}")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is also aligned for people: columns of figures right, others left."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
    figures = [all(_is_figure(row[i]) for row in rows) for i in range(len(header))]
    widths = [max(3, *(len(line[i]) for line in [header, *rows])) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        columns = zip(cells, widths, figures, strict=True)
        return "| " + " | ".join(c.rjust(w) if f else c.ljust(w) for c, w, f in columns) + " |"

    ends = ("-:" if figure else "--" for figure in figures)
    rules = ("-" * width + end for width, end in zip(widths, ends, strict=True))
    rule = "|" + "|".join(rules) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])


def _is_figure(cell: str) -> bool:
    return cell.lstrip("+-")[:1].isdigit() or cell == "-"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str:
    """Short commit of the checkout, with ``+`` when tracked files differ from it."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "no commit"
    return described.stdout.strip()
