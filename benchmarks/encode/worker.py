"""One engine in a process of its own, so that its memory and its start are nobody else's.

    python -m benchmarks.encode.worker ENGINE FOLDER

For each line of JSON on standard input, {"texts": a file with a text a line, "vectors": an .npy
file to write, or null}, it encodes the file and then writes a line of JSON: {"configuration": ...,
"peak_process_bytes": ...}. What it has read of a file it keeps for the next time.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
from pathlib import Path
from typing import Any

from benchmarks.encode.engines import ENGINES
from benchmarks.first_vector import process_bytes


def main(name: str, folder: Path) -> None:
    replies = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # engines talk
        engine = ENGINES[name].load(folder)
        for line in sys.stdin:
            request = json.loads(line)
            vectors = engine.encode(Path(request["texts"]))
            if request["vectors"] is not None:
                _save(vectors, Path(request["vectors"]))
            reply = {"configuration": engine.configuration, "peak_process_bytes": _peak()}
            print(json.dumps(reply), file=replies, flush=True)


def _save(vectors: Any, file: Path) -> None:
    if isinstance(vectors, Path):
        vectors.replace(file)
    else:
        import numpy as np

        np.save(file, vectors)


def _peak() -> int:
    """Of this process, or of the largest that it has started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(process_bytes("VmHWM"), 1024 * children)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
