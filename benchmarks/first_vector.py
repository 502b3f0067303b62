"""One engine's way to its first vector, in a process that does nothing else.

    python -m benchmarks.first_vector "fastdistil bf16" FOLDER     # one line of JSON

`benchmarks.load` starts it. Nothing is imported here before the clock runs, and everything before
the checkpoint is touched. transformers gives states of tokens where fastdistil gives a vector.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EAGER = "eager PyTorch fp32"
SENTENCE = "A stitch in time saves nine."

# What a loaded engine is asked: for a vector; for the bytes of its weights.
Loaded = tuple[Callable[[], object], Callable[[], int]]


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Seconds and bytes.

    Args:
        name: EAGER, or "fastdistil" and a precision.
        folder: a checkpoint with its tokenizer.
    """
    start = time.perf_counter()
    load = _eager() if name == EAGER else _fastdistil(name.rpartition(" ")[2])
    imported = time.perf_counter()
    encode, weight_bytes = load(folder)
    loaded = time.perf_counter()
    encode()
    end = time.perf_counter()
    return {
        "import_seconds": imported - start,
        "load_seconds": loaded - imported,
        "first_seconds": end - loaded,
        "weight_bytes": weight_bytes(),
        "process_bytes": process_bytes("VmRSS"),
        "peak_process_bytes": process_bytes("VmHWM"),
    }


def process_bytes(what: str) -> int:
    """A line of Linux's account of this process. (getrusage would count the parent's peak in.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (kilobytes,) = re.findall(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    return 1024 * int(kilobytes)


def _fastdistil(precision: str) -> Callable[[Path], Loaded]:
    from fastdistil import Encoder

    def load(folder: Path) -> Loaded:
        encoder = Encoder(folder, "cpu", precision)
        encoder.model.program()  # packed now, not when the first sentence comes
        return lambda: encoder.encode([SENTENCE]), lambda: encoder.model.resident_bytes() or 0

    return load


def _eager() -> Callable[[Path], Loaded]:
    import torch
    from transformers import AutoModel, AutoTokenizer, BertTokenizer, DistilBertModel

    # transformers imports what stands behind a name when somebody asks for it, as is done here.
    del BertTokenizer, DistilBertModel

    def load(folder: Path) -> Loaded:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder).eval()

        def encode() -> object:
            with torch.inference_mode():
                return model(**tokenizer([SENTENCE], return_tensors="pt")).last_hidden_state

        return encode, lambda: sum(parameter.nbytes for parameter in model.parameters())

    return load


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
