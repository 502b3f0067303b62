"""What a GPU has to prove, in one command and within nine minutes. No downloads, nothing installed.

    python -m benchmarks.gpu all          # what `make gpu` runs: every stage, then the report
    python -m benchmarks.gpu check        # `make gpu-test`: the tests, compute-sanitizer
    python -m benchmarks.gpu ceilings     # what the GPU can do at most
    python -m benchmarks.gpu tune         # `make gpu-tune`: launch settings, into kernels/tuning
    python -m benchmarks.gpu bench        # `make gpu-bench`: beside every peer
    python -m benchmarks.gpu profile      # `make gpu-profile`: where the time goes
    python -m benchmarks.gpu report       # gpu.md once more, from what the stages wrote
    python -m benchmarks.gpu all --dry    # every stage, tiny, in Triton's interpreter; no GPU

Each stage is a process of its own, so that none can take another along. Results go item by item to
benchmarks/results/<device>/gpu-<stage>.json: a stage that ran out of time goes on there when it is
run again. Exit status: 0, also where time ran out; 1 where a check failed or a stage broke.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

# Seconds; what a stage does not need goes to the next ones.
BUDGETS = {"check": 145.0, "ceilings": 15.0, "tune": 145.0, "bench": 160.0, "profile": 35.0}
REPORT, ALL = "report", "all"
# Work that was begun in time may end later by so much, before the stage is stopped.
GRACE = 40.0
# A dry run is about the code, however busy the machine is.
_DRY_PATIENCE = 5.0
# Of a budget given for all, nothing below this makes a stage worth starting.
_LEAST = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stage, or all of them."""
    options = _parser().parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
    if options.stage == ALL:
        return _all(options)
    elsewhere = options.stage == REPORT and options.out is not None
    if not options.dry and not elsewhere and not _has_gpu():
        print("gpu: no CUDA device here; --dry walks through without one", file=sys.stderr)
        return 2
    return _stage(options)


def _stage(options: argparse.Namespace) -> int:
    from benchmarks.gpu.report import write_report
    from benchmarks.gpu.session import Session

    if options.stage == REPORT and options.out is not None:
        print(write_report(options.out))
        return 0
    if options.dry:
        from benchmarks.gpu.interpreter import repair_bf16

        repair_bf16()
    folder = options.out
    if folder is None and options.dry:
        folder = Path(tempfile.mkdtemp(prefix="fastdistil-gpu-"))
    session = Session(options.stage, options.dry, options.again, folder, _budget(options))
    passed = True
    if options.stage != REPORT:
        module = importlib.import_module(f"benchmarks.gpu.{options.stage}")
        passed = module.run(session)
    session.say(f"written to {write_report(session.folder).parent}")
    return 0 if passed else 1


def _all(options: argparse.Namespace) -> int:
    """Every stage, whatever becomes of those before it."""
    folder = options.out
    if folder is None and options.dry:
        folder = Path(tempfile.mkdtemp(prefix="fastdistil-gpu-"))
    total = _budget(options)
    deadline = time.monotonic() + total
    share = total / sum(BUDGETS.values())
    broken = []
    stages = list(BUDGETS)
    for index, stage in enumerate(stages):
        later = share * sum(BUDGETS[name] for name in stages[index + 1 :])
        seconds = max(deadline - later - time.monotonic(), _LEAST)
        status = _child(stage, options, folder, seconds)
        if status != 0:
            broken.append(stage)
        if status == 2:
            return status
    verdict = f"failed: {', '.join(broken)}" if broken else "nothing failed"
    print(f"gpu: {verdict}; what there was no time for is at the end of gpu.md")
    return 1 if broken else 0


def _child(stage: str, options: argparse.Namespace, folder: Path | None, seconds: float) -> int:
    """Run one stage in a process of its own; its exit status."""
    command = [sys.executable, "-m", "benchmarks.gpu", stage, "--budget", f"{seconds:.1f}"]
    command += ["--out", str(folder)] if folder is not None else []
    command += [name for name in ("--dry", "--again") if getattr(options, name[2:])]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait(seconds + GRACE)
    except subprocess.TimeoutExpired:
        print(f"gpu: {stage} was stopped {GRACE:.0f} s after its time", file=sys.stderr)
        return 1
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _budget(options: argparse.Namespace) -> float:
    """Seconds for a stage or for all of them."""
    usual = BUDGETS.get(options.stage, sum(BUDGETS.values()))
    return float(options.budget or (usual * _DRY_PATIENCE if options.dry else usual))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=[*BUDGETS, REPORT, ALL])
    parser.add_argument(
        "--budget", type=float, metavar="SECONDS", help="begin nothing after so long"
    )
    parser.add_argument("--dry", action="store_true", help="tiny, interpreted, on the CPU")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where results go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
