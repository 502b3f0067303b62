"""ONNX Runtime, from an export of the PyTorch model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..engines import Engine, Floats, Variant, tokens_of_batches
from ..environment import cpu
from ..workloads import Workload
from .common import (
    LastHiddenState,
    cache_folder,
    copy_of,
    example,
    feeds,
    fingerprint,
    make_once,
)


def onnxruntime(model: Any, precision: str) -> Engine:
    """ONNX Runtime, with and without its transformer optimizer; int8 is dynamic, per channel."""
    variants = []
    for fused in (True, False):
        session = _onnx_session(_onnx_file(model, fused, precision))
        configuration = "transformer optimizer" if fused else "plain graph"
        if precision == "int8":
            configuration += ", quantize_dynamic per channel"
            configuration += ", reduced range" if _reduce_range() else ""
        variants.append(Variant(configuration, _onnx_run(session), tokens_of_batches))
    return Engine(f"ONNX Runtime {precision}", precision, tuple(variants))


def _onnx_session(file: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _onnx_run(session: Any) -> Callable[[Workload], list[Floats]]:
    def run(workload: Workload) -> list[Floats]:
        return [session.run(None, feeds(batch))[0] for batch in workload.batches]

    return run


def _onnx_file(model: Any, fused: bool, precision: str) -> Path:
    """The model as ONNX, made once and kept: exporting and quantising take longer than timing."""
    folder = cache_folder() / "onnx" / f"{fingerprint(model)}-{_versions()}"
    plain = folder / "plain.onnx"
    make_once(plain, lambda part: _export(model, part))
    source = plain
    if fused:
        source = folder / "fused.onnx"
        make_once(source, lambda part: _fuse(plain, part, model.config))
    if precision == "fp32":
        return source
    quantised = folder / f"{source.stem}-int8{'-reduced' if _reduce_range() else ''}.onnx"
    make_once(quantised, lambda part: _quantise(source, part))
    return quantised


def _export(model: Any, file: Path) -> None:
    # Eager attention through the tracing exporter gives the graph that ONNX Runtime's transformer
    # optimizer knows; from sdpa, or from the newer exporter, it fuses no attention.
    batch_and_length = {0: "batch", 1: "length"}
    names = ("input_ids", "attention_mask", "last_hidden_state")
    torch.onnx.export(
        LastHiddenState(copy_of(model, "eager", torch.float32)),
        example(),
        str(file),
        input_names=names[:2],
        output_names=names[2:],
        dynamic_axes=dict.fromkeys(names, batch_and_length),
        opset_version=17,
        dynamo=False,
    )


def _fuse(source: Path, file: Path, config: Any) -> None:
    from onnxruntime.transformers import optimizer

    heads, layers = config.num_attention_heads, config.num_hidden_layers
    model = optimizer.optimize_model(
        str(source), model_type="bert", num_heads=heads, hidden_size=config.hidden_size
    )
    fused = model.get_fused_operator_statistics()["Attention"]
    if fused != layers:
        raise RuntimeError(f"the transformer optimizer fused {fused} of {layers} layers")
    model.save_model_to_file(str(file))


def _quantise(source: Path, file: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(source),
        str(file),
        per_channel=True,
        reduce_range=_reduce_range(),
        weight_type=QuantType.QInt8,
        # Shape inference stops at the fused operators; everything behind them is fp32.
        extra_options={"MatMulConstBOnly": True, "DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _reduce_range() -> bool:
    """ONNX Runtime advises 7-bit weights on x86 without VNNI, whose int8 sums saturate."""
    _, flags = cpu()
    return "avx2" in flags and not flags & {"avx512_vnni", "avx_vnni"}


def _versions() -> str:
    import onnxruntime as ort

    return f"torch{torch.__version__}-onnxruntime{ort.__version__}".replace("+", "-")
