"""Every suite, each in a process of its own, into the machine's folder; then the report.

    python -m benchmarks                      # all of it: under half an hour on two cores
    python -m benchmarks --suites models,encode
    python -m benchmarks --quick              # a look, not for publishing
    python -m benchmarks --out FOLDER

Results go to benchmarks/results/<device>/<suite>.json, which `python -m benchmarks.report` turns
into docs/benchmarks.md. Exit status: 0; 1 where a suite failed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import RESULTS, add_quick_option, command_parser
from benchmarks.corpora import ROOT
from benchmarks.gpu.device import slug
from fastdistil.bench.environment import device_folder, environment
from fastdistil.bench.peers import known_names
from fastdistil.bench.timing import say

SUITES = ("models", "kernels", "encode", "paper", "scaling")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_parser("benchmarks", __doc__)
    add_quick_option(parser)
    parser.add_argument(
        "--suites",
        type=lambda text: known_names(text, SUITES),
        default=list(SUITES),
        metavar="NAME,NAME",
        help=f"which: {', '.join(SUITES)} (default: all)",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go")
    options = parser.parse_args(arguments)
    failed = []
    for suite in options.suites:
        folder = options.out or RESULTS / _device(suite)
        if not _run(suite, folder, quick=options.quick):
            failed.append(suite)
    say(f"failed: {', '.join(failed)}" if failed else "all done")
    return 1 if failed else 0


def _device(suite: str) -> str:
    """The folder of whatever a suite runs on: operations alone do on a GPU where there is one."""
    import torch

    if suite == "kernels" and torch.cuda.is_available():
        return slug(torch.cuda.get_device_name())
    return device_folder(environment())


def _run(suite: str, folder: Path, *, quick: bool) -> bool:
    """One suite; whether it passed. Where it did not, the results from before are kept."""
    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{suite}.part"
    command = [sys.executable, "-m", "pytest", f"benchmarks/{suite}", "-o", "addopts=", "-q", "-s"]
    command += ["--benchmark-only", "--benchmark-json", str(part.resolve())]
    command += ["--quick"] if quick else []
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status == 0 and part.is_file():
        part.replace(folder / f"{suite}.json")
    say(f"{suite}: {time.monotonic() - start:.0f} s, into {folder}")
    part.unlink(missing_ok=True)
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
