"""The checkpoint as ONNX and OpenVINO files, made by sentence-transformers' own exporters.

    python -m benchmarks.encode.exports NAME CHECKPOINT     # prints the folder

Runs on the packages of requirements-optimum.txt. A folder is made once and kept in .cache/; it is
a checkpoint for sentence-transformers, and for fastembed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.corpora import CACHE, real_sentences
from benchmarks.encode.engines import MAX_LENGTH, Backend
from fastdistil.bench.environment import cpu

_MAKERS = (
    "sentence-transformers",
    "transformers",
    "optimum-onnx",
    "optimum-intel",
    "nncf",
    "onnxruntime",
    "openvino",
)
# What sentence-transformers calibrates with comes from a hub; so many of our own stand in.
_CALIBRATION_SENTENCES = 300


def exported(name: str, checkpoint: Path) -> Path:
    """The folder of one of EXPORTS."""
    versions = [f"{maker} {importlib.metadata.version(maker)}" for maker in _MAKERS]
    made_by = hashlib.sha256(repr([*versions, _instruction_set()]).encode()).hexdigest()[:16]
    folder = CACHE / "encode" / made_by / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Made aside and renamed: an interrupted run leaves no half of a model behind.
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            part = Path(aside) / name
            EXPORTS[name](checkpoint, part)
            part.rename(folder)
    return folder


def _loaded(backend: Backend, folder: Path, **model_kwargs: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    if backend == "onnx":
        model_kwargs["provider"] = "CPUExecutionProvider"
    return SentenceTransformer(
        str(folder), device="cpu", backend=backend, model_kwargs=model_kwargs
    )


def _converted(backend: Backend, checkpoint: Path, folder: Path) -> None:
    _loaded(backend, checkpoint, export=True).save_pretrained(str(folder))
    # Of several lengths fastembed cuts at the least, and the tokenizer's file has another one.
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    settings.write_text(json.dumps(content | {"max_length": MAX_LENGTH}), encoding="utf-8")


def _changed_onnx(change: Callable[[Any, str], None], checkpoint: Path, folder: Path) -> None:
    plain = exported("onnx", checkpoint)
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("*.onnx"))
    change(_loaded("onnx", plain), str(folder))
    (made,) = (folder / "onnx").glob("*.onnx")
    made.rename(made.with_name("model.onnx"))


def _optimise(model: Any, folder: str) -> None:
    from sentence_transformers import export_optimized_onnx_model

    export_optimized_onnx_model(model, "O3", folder)


def _quantise_dynamically(model: Any, folder: str) -> None:
    from sentence_transformers import export_dynamic_quantized_onnx_model

    export_dynamic_quantized_onnx_model(model, _instruction_set(), folder)


def _quantise_statically(checkpoint: Path, folder: Path) -> None:
    """What `export_static_quantized_openvino_model` does, on sentences that are here."""
    import nncf
    from optimum.intel import OVConfig, OVQuantizationConfig, OVQuantizer

    plain = exported("openvino", checkpoint)
    model = _loaded("openvino", plain)
    texts = real_sentences()[-_CALIBRATION_SENTENCES:]  # none of those that are timed
    samples = [dict(model.tokenizer([text], return_tensors="np")) for text in texts]
    shutil.copytree(plain, folder, ignore=shutil.ignore_patterns("openvino_model.*"))
    OVQuantizer.from_pretrained(model.transformers_model).quantize(
        nncf.Dataset(samples),
        save_directory=str(folder),
        ov_config=OVConfig(quantization_config=OVQuantizationConfig(num_samples=len(samples))),
    )


def _instruction_set() -> str:
    """This CPU, as sentence-transformers names settings for ONNX Runtime's quantiser."""
    if platform.machine() in ("aarch64", "arm64"):
        return "arm64"
    _, flags = cpu()
    return "avx512_vnni" if "avx512_vnni" in flags else "avx512" if "avx512f" in flags else "avx2"


EXPORTS: dict[str, Callable[[Path, Path], None]] = {
    "onnx": partial(_converted, "onnx"),
    "onnx-O3": partial(_changed_onnx, _optimise),
    "onnx-int8": partial(_changed_onnx, _quantise_dynamically),
    "openvino": partial(_converted, "openvino"),
    "openvino-int8": _quantise_statically,
}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):  # exporters talk
        made = exported(sys.argv[1], Path(sys.argv[2]))
    print(made)
