"""What the commands `python -m benchmarks.<name>` share: options, and where results go."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastdistil.bench.environment import device_folder
from fastdistil.bench.results import write_json

RESULTS = Path(__file__).resolve().parent / "results"
# Where `--json` without a file writes: the machine's name is known once it has been measured.
_ON_THIS_DEVICE = Path("benchmarks/results/<device>")


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
    write_json(file, results)
    print(f"\nwritten to {file}")
