"""Who turns text into vectors, each as its documentation says, all of them all-MiniLM-L6-v2.

`worker` runs one of them in a process of its own. Nothing of an engine is imported before it is
loaded, so the table can be read without any of them.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

# Tokens of a text at most, [CLS] and [SEP] included: the model's own setting.
MAX_LENGTH = 256

Backend = Literal["torch", "onnx", "openvino"]


class Loaded(NamedTuple):
    """An engine that is ready.

    Attributes:
        encode: from a file of texts, one a line, to their vectors: float32 [N, D], or the name of
            an .npy file with them.
        configuration: for people, what runs and how it is set.
    """

    encode: Callable[[Path], Any]
    configuration: str


@dataclass(frozen=True)
class TextEngine:
    """An engine as it can be loaded.

    Attributes:
        precision: "fp32", "bf16" or "int8".
        load: from a model's folder.
        export: what of `exports` is that folder; None for the checkpoint itself. Whoever needs an
            export runs on the packages of requirements-optimum.txt.
    """

    precision: str
    load: Callable[[Path], Loaded]
    export: str | None = None


def _encoder(precision: str, folder: Path) -> Loaded:
    import fastdistil

    # Not "auto": plain PyTorch would stand in for kernels that are not there.
    encoder = fastdistil.Encoder(folder, precision=precision, backend="cpu")
    facts = encoder.model.explain()
    return Loaded(
        lambda file: encoder.encode(read_lines(file)),
        f"Encoder.encode; {facts['backend']} backend, {facts['instruction_set']}",
    )


def _command(precision: str, folder: Path) -> Loaded:
    def encode(file: Path) -> Path:
        vectors = file.with_suffix(f".{precision}.npy")
        command = [sys.executable, "-m", "fastdistil", "encode", str(file), "-o", str(vectors)]
        command += ["--model", str(folder), "--precision", precision, "--backend", "cpu", "--quiet"]
        subprocess.run(command, stdout=sys.stderr, check=True)
        return vectors

    return Loaded(encode, "the whole command, its start included")


def _sentence_transformer(
    backend: Backend, settings: dict[str, Any], note: str, folder: Path
) -> Loaded:
    import sentence_transformers
    import transformers

    model = sentence_transformers.SentenceTransformer(
        str(folder), device="cpu", backend=backend, model_kwargs=dict(settings)
    )
    versions = f"{sentence_transformers.__version__} on transformers {transformers.__version__}"
    return Loaded(
        lambda file: model.encode(read_lines(file)),
        f'sentence-transformers {versions}, backend="{backend}", {note}; batches of 32 by length',
    )


def _fastembed(note: str, folder: Path) -> Loaded:
    import fastembed
    import numpy as np
    from fastembed.common.model_description import ModelSource, PoolingType

    fastembed.TextEmbedding.add_custom_model(
        model=folder.name,
        pooling=PoolingType.MEAN,
        normalization=True,
        sources=ModelSource(url="none"),  # it wants one named, and asks the folder
        dim=384,
    )
    model = fastembed.TextEmbedding(folder.name, specific_model_path=str(folder))
    return Loaded(
        lambda file: np.stack(list(model.embed(read_lines(file)))),
        f"fastembed {fastembed.__version__} with a custom model, {note}; batches of 256",
    )


@functools.lru_cache(maxsize=1)
def read_lines(file: Path) -> list[str]:
    """The texts of a file; read once and not at every turn."""
    return file.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def _transformer(
    precision: str, backend: Backend, settings: dict[str, Any], note: str, export: str | None = None
) -> TextEngine:
    load = partial(_sentence_transformer, backend, settings, note)
    return TextEngine(precision, load, export)


_ONNX = {"provider": "CPUExecutionProvider"}
_FP32, _BF16 = ({"ov_config": {"INFERENCE_PRECISION_HINT": hint}} for hint in ("f32", "bf16"))
_DYNAMIC = "int8 by export_dynamic_quantized_onnx_model"

OURS = {
    f"fastdistil {precision}": TextEngine(precision, partial(_encoder, precision))
    for precision in ("int8", "bf16", "fp32")
}
OTHERS = {
    "SentenceTransformer torch fp32": _transformer(
        "fp32", "torch", {"dtype": "float32"}, "float32"
    ),
    "SentenceTransformer torch bf16": _transformer(
        "bf16", "torch", {"dtype": "bfloat16"}, "bfloat16"
    ),
    "SentenceTransformer onnx fp32": _transformer("fp32", "onnx", _ONNX, "as exported", "onnx"),
    "SentenceTransformer onnx O3": _transformer("fp32", "onnx", _ONNX, "O3", "onnx-O3"),
    "SentenceTransformer onnx int8": _transformer("int8", "onnx", _ONNX, _DYNAMIC, "onnx-int8"),
    "SentenceTransformer openvino fp32": _transformer("fp32", "openvino", _FP32, "f32", "openvino"),
    "SentenceTransformer openvino bf16": _transformer(
        "bf16", "openvino", _BF16, "bf16", "openvino"
    ),
    # With its default, bf16 for what is not int8, the cosine of some sentences is 0.68.
    "SentenceTransformer openvino int8": _transformer(
        "int8", "openvino", _FP32, "statically quantised by NNCF, f32 beside", "openvino-int8"
    ),
    "fastembed fp32": TextEngine("fp32", partial(_fastembed, "as exported"), "onnx"),
    "fastembed int8": TextEngine("int8", partial(_fastembed, _DYNAMIC), "onnx-int8"),
}
# The command takes a whole file; its time is that of a process.
COMMANDS = {
    f"fastdistil encode {precision}": TextEngine(precision, partial(_command, precision))
    for precision in ("int8", "bf16")
}
ENGINES = OURS | OTHERS | COMMANDS
