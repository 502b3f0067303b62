"""The tests, on the GPU: every kernel, the engine, and compute-sanitizer over a short run.

Test files run side by side, each in a process of its own: most of their time goes into compiling
kernels, and a fault on the device must not take the others along.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.corpora import ROOT
from benchmarks.gpu.session import TUNING, OutOfTimeError, Session, reason_of

_KERNEL_TESTS = ROOT / "tests" / "gpu_kernels"
# A few quick ones, for a dry run.
_DRY_TESTS = (str(_KERNEL_TESTS / "test_gelu.py"), "-k", "test_out or test_bad_input")
_MARK = "mark.gpu"

_TOOLS = ("memcheck", "racecheck", "synccheck")
_SANITIZER = "compute-sanitizer"
_SANITIZER_FOLDER = Path("/usr/local/cuda/bin")
_SANITIZER_ERROR = 86

# pytest's exit statuses: all passed; no test was selected.
_PASSED, _NOTHING = 0, 5
# Processes at once: each keeps a core busy with compiling, and the GPU with its tests.
_MOST_PROCESSES = 10
# After an interrupt pytest writes its report and leaves.
_SECONDS_TO_LEAVE = 10.0

_NEWLINE = "\n"

Check = Callable[[], dict[str, Any]]


def run(session: Session) -> bool:
    """The stage; False where a test failed or a sanitizer found something."""
    store = session.store(*_test_files(), *TUNING.glob("*.json"))
    done = {name for name, record in store.items.items() if record["passed"]}
    checks = {name: check for name, check in _checks(session) if name not in done}
    workers = max(1, min(len(checks), _MOST_PROCESSES, (os.cpu_count() or 1) - 1))
    with ThreadPoolExecutor(workers) as pool:
        pending = {name: pool.submit(check) for name, check in checks.items()}
        for name, future in pending.items():
            try:
                record = future.result()
            except OutOfTimeError:
                store.leave_out(name)
            except Exception as error:
                store.fail(name, reason_of(error))
            else:
                store.put(name, record)
                session.say(f"{name}: {record['summary']}")
                for failure in record["failures"]:
                    session.say(f"  {failure}")
    store.save()
    passed = all(record["passed"] for record in store.items.values())
    return session.finish(store) and passed


def _checks(session: Session) -> Iterator[tuple[str, Check]]:
    """Longest first."""
    for tool in _TOOLS:
        yield f"compute-sanitizer {tool}", functools.partial(_sanitize, session, tool)
    if session.dry:
        yield "test_gelu.py", functools.partial(_pytest, session, _DRY_TESTS)
        return
    for path in sorted(_KERNEL_TESTS.glob("test_*.py")):
        yield path.name, functools.partial(_pytest, session, [str(path)])
    for path in sorted(_KERNEL_TESTS.parent.glob("test_*.py")):
        if _MARK in path.read_text(encoding="utf-8"):
            yield path.name, functools.partial(_pytest, session, [str(path), "-m", "gpu"])


def _test_files() -> list[Path]:
    return [*_KERNEL_TESTS.glob("*.py"), *_KERNEL_TESTS.parent.glob("*.py")]


def _pytest(session: Session, arguments: Sequence[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
        command += [*arguments, f"--junitxml={report}"]
        status, output, interrupted = _run(command, session.left())
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {status} and no report: {output[-300:]}")
        record = read_junit(report)
    if interrupted and not record["failures"]:
        raise OutOfTimeError
    record["passed"] = status in (_PASSED, _NOTHING)
    return record


def read_junit(report: Path) -> dict[str, Any]:
    """Counts, the failures with their first lines, and the slowest tests, of pytest's report."""
    suites = list(ET.parse(report).getroot().iter("testsuite"))
    count = {
        kind: sum(int(suite.get(kind, "0")) for suite in suites)
        for kind in ("tests", "failures", "errors", "skipped")
    }
    cases = [case for suite in suites for case in suite.iter("testcase")]
    failures = [
        f"{case.get('name')}: {(problem.get('message') or '').strip().partition(_NEWLINE)[0]}"
        for case in cases
        for kind in ("failure", "error")
        for problem in case.iter(kind)
    ]
    slowest = sorted(cases, key=lambda case: -float(case.get("time", "0")))[:3]
    passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
    summary = f"{passed} passed, {count['failures'] + count['errors']} failed"
    summary += f", {count['skipped']} skipped" if count["skipped"] else ""
    return {
        "summary": summary,
        "counts": {**count, "passed": passed},
        "failures": failures,
        "slowest": {str(case.get("name")): float(case.get("time", "0")) for case in slowest},
    }


def _sanitize(session: Session, tool: str) -> dict[str, Any]:
    """A few launches and a forward under compute-sanitizer; bare where there is no such tool."""
    program = [sys.executable, "-m", "benchmarks.gpu.sanitized"]
    sanitizer = shutil.which(_SANITIZER) or shutil.which(_SANITIZER, path=_SANITIZER_FOLDER)
    if sanitizer is None and not session.dry:
        return {"summary": "not installed", "passed": True, "failures": []}
    command = program
    if sanitizer is not None and not session.dry:
        options = ["--tool", tool, "--error-exitcode", str(_SANITIZER_ERROR)]
        # What PyTorch asks the driver in order to find out is no error.
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        command = [sanitizer, *options, *program]
    # A pooling allocator would hide a read past the end of a tensor.
    variables = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    status, output, interrupted = _run(command, session.left(), **variables)
    if interrupted:
        raise OutOfTimeError
    lines = [line for line in output.splitlines() if "SUMMARY" in line]
    summary = lines[-1].strip("= ") if lines else f"exit status {status}"
    failures = [] if status == 0 else [line for line in output.splitlines() if line.strip()][-12:]
    return {"summary": summary, "passed": status == 0, "failures": failures}


def _run(command: Sequence[str], seconds: float, **variables: str) -> tuple[int, str, bool]:
    """Exit status, all output, and whether the time was up: then it is interrupted, then killed.

    Raises:
        OutOfTimeError: there is no time to begin with, or it had to be killed.
    """
    if seconds <= 0:
        raise OutOfTimeError
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        interrupted = False
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            interrupted = True
            _interrupt(process)
        output.seek(0)
        return process.returncode, output.read(), interrupted


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGINT)
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    try:
        process.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise OutOfTimeError from None
