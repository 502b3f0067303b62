"""Kills encode_file at every file operation it makes, one run each, and runs it again each time.

Run as a script, `python killed_runs.py MODEL IN OUT`, by test_encode_file: it forks, which a
process with other tests' threads in it should not. Prints in how many places a run was killed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from fastdistil import Encoder, encode_file, shard_plan

_FILE_OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}


def kill_at(operation: int, folder: str) -> None:
    """Makes this process die, without clean-up, before its n-th operation on a file in `folder`."""
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in _FILE_OPERATIONS and str(arguments[0]).startswith(folder):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def forked(encoder: Encoder, source: str, output: Path, operation: int | None = None) -> int:
    """The exit status of a run in a process of its own."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        if operation is not None:
            kill_at(operation, str(output.parent))
        encode_file.encode_file(encoder, source, output, id_column="id")
        status = 0
    finally:
        os._exit(status)


def main(model: str, source: str, output: Path) -> None:
    torch.set_num_threads(1)
    shard_plan.SHARD_ROWS = 8
    encoder = Encoder(model)
    assert forked(encoder, source, output) == 0
    files = [output, output.with_suffix(".ids.jsonl")]
    clean = [path.read_bytes() for path in files]
    partial = output.with_name(output.name + ".partial")
    for operation in range(1, 1000):
        for path in files:
            path.unlink(missing_ok=True)
        status = forked(encoder, source, output, operation)
        if status == 0:
            assert operation > 30, f"only {operation} operations in a whole run"
            print(operation - 1)
            return
        assert os.WTERMSIG(status) == signal.SIGKILL, f"operation {operation}: status {status}"
        assert forked(encoder, source, output) == 0, f"no way on after operation {operation}"
        for path, content in zip(files, clean, strict=True):
            assert path.read_bytes() == content, f"{path.name} after operation {operation}"
        assert not partial.exists(), f"left-overs after operation {operation}"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).resolve())
