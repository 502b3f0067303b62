"""The engines people use today, each set up as its own documentation advises.

An engine is a name, a precision and one or more `Variant`s: settings between which its
documentation leaves the choice to measurement (attention implementation, latency or throughput
mode, fused graph or not). A race tries all of them on the workload at hand and times the fastest.
Every variant is checked against eager fp32 before it is timed.

Nothing is imported from an engine's package before it is prepared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import Any

from ..engines import Engine
from . import ctranslate2, onnxruntime, openvino, pytorch

# What `--peers` accepts, in the order of the tables: from a transformers model to an engine.
PEERS: dict[str, Callable[[Any], Engine]] = {
    "eager-fp32": lambda model: pytorch.eager(model, "fp32"),
    "eager-bf16": lambda model: pytorch.eager(model, "bf16"),
    "onednn-fp32": pytorch.onednn,
    "onednn-int8": lambda model: pytorch.quantized(model, "onednn"),
    "fbgemm-int8": lambda model: pytorch.quantized(model, "fbgemm"),
    "compile-bf16": lambda model: pytorch.compiled(model, "bf16", "default"),
    "compile-max-autotune-bf16": lambda model: pytorch.compiled(model, "bf16", "max-autotune"),
    "openvino-fp32": lambda model: openvino.openvino(model, "fp32"),
    "openvino-bf16": lambda model: openvino.openvino(model, "bf16"),
    "openvino-int8": lambda model: openvino.openvino(model, "int8"),
    "onnxruntime-fp32": lambda model: onnxruntime.onnxruntime(model, "fp32"),
    "onnxruntime-int8": lambda model: onnxruntime.onnxruntime(model, "int8"),
    "ctranslate2-fp32": lambda model: ctranslate2.ctranslate2(model, "fp32"),
    "ctranslate2-int8": lambda model: ctranslate2.ctranslate2(model, "int8"),
}


def peer_names(text: str) -> list[str]:
    """What stands behind `--peers`."""
    return known_names(text, PEERS)


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
