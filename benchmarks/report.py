"""From the benchmarks' results to docs/benchmarks.md with its figures, and to README's table.

    python -m benchmarks.report                          # every machine in benchmarks/results
    python -m benchmarks.report --results FOLDER --out FOLDER
    python -m benchmarks.report --price-per-hour 0.35    # what tokens cost at that price
    python -m benchmarks.report --readme benchmarks/results/<device>/models.json

The same files give the same bytes; a test holds README and docs against the files that they name.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import (
    classification,
    heads,
    instruction_sets,
    load,
    probe,
    scale_out,
    summaries,
    threads,
)
from benchmarks.command import RESULTS, command_parser
from benchmarks.corpora import ROOT
from benchmarks.distillation import report as distillation
from benchmarks.sections import (
    Block,
    Picture,
    encode,
    folded,
    kernels,
    models,
    paper,
    parts,
    scaling,
)
from fastdistil.bench import results, summary
from fastdistil.bench.environment import describe
from fastdistil.bench.results import Results

DOCS = ROOT / "docs"
README = ROOT / "README.md"

# What `python -m benchmarks` writes: file, heading, what makes its section.
SUITES: dict[str, tuple[str, Callable[[Results], Sequence[Block]]]] = {
    "models": ("DistilBERT-base beside the engines people use", models.blocks),
    "kernels": ("Operations", kernels.blocks),
    "encode": ("From text to vectors", encode.blocks),
    "paper": ("DistilBERT against BERT", paper.blocks),
    "scaling": ("Scaling", scaling.blocks),
}
# What commands of their own write, and their own tables of it.
COMMANDS: dict[str, tuple[str, Callable[[dict[str, Any]], Sequence[Block]]]] = {
    "parts": ("Where the time of a forward goes", parts.blocks),
    "instruction_sets": ("Instruction sets", lambda told: [_tables(instruction_sets.report(told))]),
    "threads": ("Threads, callers, company", lambda told: [_tables(threads.report(told))]),
    "load": ("From a checkpoint to the first vector", lambda told: [_tables(load.report(told))]),
    "probe": ("A task in each precision", lambda told: [_tables(probe.report(told))]),
    "heads": (
        "Heads, and the last layer, where they are read",
        lambda told: [_tables(heads.report(told))],
    ),
    "classification": ("From text to labels", lambda told: [_tables(classification.report(told))]),
    "summaries": ("Extractive summaries", lambda told: [_tables(summaries.report(told))]),
    "distillation": ("Distillation", lambda told: [_tables(distillation.report(told))]),
    "scale_out": (
        "Two actors of Ray Data, one process",
        lambda told: [_tables(scale_out.report(told))],
    ),
}

_PREFACE = """\
Written by `python -m benchmarks.report`. Contenders take turns in one run; figures are medians of
the turns, ± half the range of their middle half. Only real tokens count. Everybody's answers were
checked on the same inputs first. Padded batches are made before the clock starts, fastdistil's
packing is inside its time. In figures a thin line reaches from the quickest turn to the slowest.
How each engine is set up, and what was learnt: [performance.md](performance.md). What became slower
between two runs: `python -m benchmarks.compare A.json B.json`.
"""
_README_NOTE = (
    "Last hidden states of DistilBERT-base (seeded random weights, real sentences). "
    f"{summary.METHOD} `python -m benchmarks --suites models` measures it."
)


@dataclass(frozen=True)
class Section:
    """What one file of results says."""

    title: str
    file: Path
    command: str
    environment: Mapping[str, Any]
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """The document, and its pictures by their paths beside it."""

    text: str
    pictures: Mapping[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    folders = options.results or sorted(path for path in RESULTS.iterdir() if path.is_dir())
    try:
        written = page(folders, options.price_per_hour, options.out)
        for name, content in {"benchmarks.md": written.text, **written.pictures}.items():
            file = options.out / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
        if options.readme is not None:
            text = README.read_text(encoding="utf-8")
            README.write_text(with_figures(text, options.readme), encoding="utf-8")
    except (OSError, ValueError) as problem:
        sys.exit(f"report: {problem}")
    except ImportError as missing:
        sys.exit(f'report: {missing}; `python -m pip install -e ".[bench]"` brings it')
    print(f"written to {options.out / 'benchmarks.md'}")
    return 0


def page(
    folders: Sequence[Path], price_per_hour: float = models.PRICE_PER_HOUR, out: Path = DOCS
) -> Page:
    """What the results in these folders say; the machine with most of them, and newest, first.

    Raises:
        ValueError: a file is not what the benchmarks write, or there is none.
    """
    found = {folder: list(sections(folder, price_per_hour)) for folder in sorted(folders)}
    devices = [folder for folder in found if found[folder] or _gpu(folder).is_file()]
    if not devices:
        raise ValueError(f"no results in {', '.join(map(str, folders))}")
    devices.sort(key=lambda folder: _completeness(found[folder]), reverse=True)
    text = ["# Benchmarks", _PREFACE.strip()]
    pictures: dict[str, str] = {}
    for folder in devices:
        text.append(f"## {folder.name}")
        if _gpu(folder).is_file():
            text.append(f"On its GPU: {_link(_gpu(folder), out)}.")
        for section in found[folder]:
            text += [f"### {section.title}", _origin(section, out)]
            for block in section.blocks:
                if isinstance(block, Picture):
                    name = f"figures/{folder.name}-{block.name}.svg"
                    pictures[name] = block.svg
                    block = f"![{block.title}]({name})"
                text.append(block)
    return Page("\n\n".join(text) + "\n", pictures)


def sections(folder: Path, price_per_hour: float) -> Iterator[Section]:
    """Of each file of results in a machine's folder."""
    for name, (title, blocks) in SUITES.items():
        file = folder / f"{name}.json"
        if file.is_file():
            measured = results.read(file)
            if name == "models":
                blocks = functools.partial(models.blocks, price_per_hour=price_per_hour)
            with _named(file):
                made = [*blocks(measured), *_remarks(measured)]
            command = f"python -m benchmarks --suites {name}"
            yield Section(title, file, command, measured.environment, made)
    for name, (title, tables) in COMMANDS.items():
        file = folder / f"{name}.json"
        if file.is_file():
            with _named(file):
                told = json.loads(file.read_text(encoding="utf-8"))
                command = f"python -m benchmarks.{name} --json"
                section = Section(title, file, command, told["environment"], tables(told))
            yield section


def with_figures(readme: str, file: Path) -> str:
    """README's text with the section between its two markers made from a file of `models`."""
    before, begin, rest = readme.partition("<!-- speed: ")
    note, end_of_note, rest = rest.partition("-->\n")
    _, end, after = rest.partition("<!-- /speed -->")
    if not end:
        raise ValueError("no <!-- speed: ... --> and <!-- /speed --> in the text")
    measured = results.read(file)
    name = file.resolve().relative_to(ROOT).as_posix()
    said = (
        f"{_README_NOTE} The table is made from [{name}]({name}); "
        "[docs/benchmarks.md](docs/benchmarks.md) has more sizes, other machines and all settings."
    )
    section = (
        f"{models.figures(measured)}\n\n{_wrapped(said)}\n\n> {describe(measured.environment)}\n"
    )
    return before + begin + note + end_of_note + section + end + after


@contextlib.contextmanager
def _named(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as problem:
        raise ValueError(f"{file}: not what its benchmark writes ({problem!r})") from problem


def _remarks(measured: Results) -> Iterator[str]:
    """Settings, who was left out, and whether it was in a hurry."""
    if all("least_cosine" in row.info for row in measured.rows):
        lines = "\n".join(f"- {line}" for line in summary.settings(measured))
        yield folded("Settings, the fastest of those tried", lines)
    if measured.left_out:
        yield "\n".join(f"- {line}" for line in summary.told_left_out(measured.left_out))
    if measured.quick:
        yield summary.QUICK


def _origin(section: Section, out: Path) -> str:
    """Which file, which command, which machine."""
    return (
        f"`{section.command}` measures it; this is {_link(section.file, out)}:\n\n"
        f"> {describe(section.environment)}"
    )


def _link(file: Path, out: Path) -> str:
    path = Path(os.path.relpath(file.resolve(), out.resolve())).as_posix()
    return f"[{file.name}]({path})"


def _gpu(folder: Path) -> Path:
    return folder / "gpu.md"


def _completeness(found: Sequence[Section]) -> tuple[int, str]:
    return len(found), max((section.environment["date"] for section in found), default="")


def _tables(report: str) -> str:
    return folded("Tables", report)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def _parser() -> Any:
    parser = command_parser("benchmarks.report", __doc__)
    parser.add_argument(
        "--results", type=Path, nargs="+", metavar="FOLDER", help="of which machines (default: all)"
    )
    parser.add_argument(
        "--out", type=Path, default=DOCS, metavar="FOLDER", help="where it goes (default: docs)"
    )
    parser.add_argument(
        "--price-per-hour",
        type=float,
        default=models.PRICE_PER_HOUR,
        metavar="P",
        help="of a machine, for what tokens cost (default: %(default)s, an example)",
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also README's table, from it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
