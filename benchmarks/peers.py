"""The engines people use today, each set up as its own documentation advises.

An engine here is a name, a precision and one or more `Variant`s: settings between which its
documentation leaves the choice to measurement (attention implementation, latency or throughput
mode, fused graph or not). The benchmark tries all of them on the workload at hand and times the
fastest. Every variant is checked against eager fp32 before it is timed.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.corpora import CACHE
from benchmarks.harness import cpu, known_names
from benchmarks.workloads import SEED, Padded, Workload

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Variant:
    """One way to run an engine.

    Attributes:
        configuration: for people, what was set.
        run: a workload, once: its last hidden states or its vectors. This is what is timed.
        rows: the result of `run` as fp32 [rows, D], to be checked; not timed. A row for each real
            token of the workload, in order, or for each sequence where `run` pools.
    """

    configuration: str
    run: Callable[[Workload], Any]
    rows: Callable[[Workload, Any], Floats]


@dataclass(frozen=True)
class Engine:
    """A named engine at one precision, with the variants to choose from."""

    name: str
    precision: str
    variants: tuple[Variant, ...]


def eager(model: Any, precision: str) -> Engine:
    """transformers as it comes: what a user has today."""
    name = f"eager PyTorch {precision}"
    return _transformers(name, precision, model, lambda twin: twin, torch.nn.Linear)


def onednn(model: Any) -> Engine:
    """transformers with oneDNN's linear layers in place of MKL's, by `torch.utils.mkldnn`.

    Raises:
        ImportError: this torch was built without oneDNN.
    """
    from torch.utils.mkldnn import MkldnnLinear

    if not torch.backends.mkldnn.is_available():
        raise ImportError("this torch was built without oneDNN")

    def changed(twin: Any) -> Any:
        for module in list(twin.modules()):
            for name, child in module.named_children():
                if type(child) is torch.nn.Linear:
                    setattr(module, name, MkldnnLinear(child, torch.float32))
        return twin

    return _transformers("PyTorch oneDNN fp32", "fp32", model, changed, MkldnnLinear)


def quantized(model: Any, library: str) -> Engine:
    """PyTorch's dynamic quantisation of all linear layers, by one of its two libraries for x86.

    Raises:
        ImportError: this torch was built without that library, or no longer quantises.
    """
    try:
        from torch.ao.nn.quantized.dynamic import Linear
        from torch.ao.quantization import quantize_dynamic
    except ImportError as error:
        raise ImportError(f"this torch no longer quantises ({error})") from None
    supported = torch.backends.quantized.supported_engines
    if library not in supported:
        raise ImportError(f"this torch quantises with {', '.join(supported)}")

    def changed(twin: Any) -> Any:
        with _quiet():
            return quantize_dynamic(twin, {torch.nn.Linear}, dtype=torch.qint8)

    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = library
    try:
        name = f"PyTorch {_LIBRARIES[library]} int8"
        return _transformers(name, "int8", model, changed, Linear)
    finally:
        torch.backends.quantized.engine = before


def _transformers(
    name: str, precision: str, model: Any, change: Callable[[Any], Any], linear: type
) -> Engine:
    """The model itself, once changed. Both attention implementations are tried.

    Args:
        linear: what all of its linear layers are then.

    Raises:
        RuntimeError: they are not.
    """
    variants = []
    for attention in ("sdpa", "eager"):
        twin = change(_copy(model, attention, _DTYPES[precision]))
        layers = sum(type(module) is linear for module in twin.modules())
        if layers != 6 * model.config.n_layers:
            raise RuntimeError(f"{layers} linear layers are a {linear.__name__}, not all")
        variants.append(torch_variant(twin, f"transformers, {attention} attention"))
    return Engine(name, precision, tuple(variants))


def compiled(model: Any, precision: str) -> Engine:
    """torch.compile with frozen weights (packed into oneDNN's layout), for batches of any shape."""
    twin = _copy(model, "sdpa", _DTYPES[precision])
    forward = torch.compile(twin, dynamic=True, options={"freezing": True})
    configuration = "frozen weights, dynamic shapes"
    return Engine(f"torch.compile {precision}", precision, (torch_variant(forward, configuration),))


def openvino(model: Any, precision: str) -> Engine:
    """OpenVINO from the PyTorch model, dynamic shapes, all threads.

    Its performance hints are its own advice: LATENCY runs one request on all cores, THROUGHPUT
    as many requests at once as it finds best, which asks for the asynchronous interface.
    """
    import openvino as ov

    converted = _converted(model)
    core = ov.Core()
    variants = []
    for hint in ("LATENCY", "THROUGHPUT"):
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        }
        network = core.compile_model(converted, "CPU", settings)
        run = _openvino_one_by_one(network) if hint == "LATENCY" else _openvino_queue(network)
        variants.append(Variant(f"hint {hint}", run, tokens_of_batches))
    return Engine(f"OpenVINO {precision}", precision, tuple(variants))


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


# What `--peers` accepts, in the order of the tables.
PEERS: dict[str, Callable[[Any], Engine]] = {
    "eager-fp32": lambda model: eager(model, "fp32"),
    "eager-bf16": lambda model: eager(model, "bf16"),
    "onednn-fp32": onednn,
    "onednn-int8": lambda model: quantized(model, "onednn"),
    "fbgemm-int8": lambda model: quantized(model, "fbgemm"),
    "compile-bf16": lambda model: compiled(model, "bf16"),
    "openvino-fp32": lambda model: openvino(model, "fp32"),
    "openvino-bf16": lambda model: openvino(model, "bf16"),
    "onnxruntime-fp32": lambda model: onnxruntime(model, "fp32"),
    "onnxruntime-int8": lambda model: onnxruntime(model, "int8"),
}


def peer_names(text: str) -> list[str]:
    """What stands behind `--peers`."""
    return known_names(text, PEERS)


# As torch.backends.quantized.engine has them, and as they call themselves.
_LIBRARIES = {"onednn": "oneDNN", "fbgemm": "FBGEMM"}
# Of the model that a precision starts from: quantising is done by the engine.
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}


def _copy(model: Any, attention: str, dtype: torch.dtype) -> Any:
    """An independent copy of a transformers model with another attention and dtype."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation(attention)
    return twin.to(dtype)


def torch_variant(model: Any, configuration: str) -> Variant:
    @torch.inference_mode()
    def run(workload: Workload) -> list[torch.Tensor]:
        return [
            model(
                input_ids=torch.from_numpy(batch.input_ids),
                attention_mask=torch.from_numpy(batch.attention_mask),
            ).last_hidden_state
            for batch in workload.batches
        ]

    def rows(workload: Workload, outputs: Sequence[torch.Tensor]) -> Floats:
        return tokens_of_batches(workload, [output.float().numpy() for output in outputs])

    return Variant(configuration, run, rows)


def tokens_of_batches(workload: Workload, outputs: Sequence[Floats]) -> Floats:
    """[B, S, D] per batch to [T, D], pads dropped."""
    pairs = zip(workload.batches, outputs, strict=True)
    return np.concatenate([output[batch.attention_mask > 0] for batch, output in pairs])


def _converted(model: Any) -> Any:
    """The OpenVINO model of a transformers model, traced from PyTorch."""
    import openvino as ov

    with _quiet():
        return ov.convert_model(_LastHiddenState(model), example_input=_example())


def _openvino_one_by_one(network: Any) -> Callable[[Workload], list[Floats]]:
    request = network.create_infer_request()

    def run(workload: Workload) -> list[Floats]:
        # Copied, because the next call of the same request writes into the same memory.
        return [request.infer(_feeds(batch))[0].copy() for batch in workload.batches]

    return run


def _openvino_queue(network: Any) -> Callable[[Workload], list[Floats]]:
    import openvino as ov

    queue = ov.AsyncInferQueue(network)  # as many requests as OpenVINO itself finds best
    outputs: dict[int, Floats] = {}

    def done(request: Any, index: int) -> None:
        outputs[index] = request.get_output_tensor(0).data.copy()

    queue.set_callback(done)

    def run(workload: Workload) -> list[Floats]:
        outputs.clear()
        for index, batch in enumerate(workload.batches):
            queue.start_async(_feeds(batch), index)
        queue.wait_all()
        return [outputs[index] for index in range(len(workload.batches))]

    return run


def _onnx_session(file: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _onnx_run(session: Any) -> Callable[[Workload], list[Floats]]:
    def run(workload: Workload) -> list[Floats]:
        return [session.run(None, _feeds(batch))[0] for batch in workload.batches]

    return run


def _onnx_file(model: Any, fused: bool, precision: str) -> Path:
    """The model as ONNX, made once and kept: exporting and quantising take longer than timing."""
    config = model.config
    sizes = f"{config.n_layers}x{config.dim}x{config.hidden_dim}x{config.n_heads}"
    versions = f"torch{torch.__version__}-onnxruntime{_onnxruntime_version()}".replace("+", "-")
    folder = CACHE / "onnx" / f"distilbert-{sizes}-seed{SEED}-{versions}"
    plain = folder / "plain.onnx"
    _make(plain, lambda part: _export(model, part))
    source = plain
    if fused:
        source = folder / "fused.onnx"
        _make(source, lambda part: _fuse(plain, part, config))
    if precision == "fp32":
        return source
    quantised = folder / f"{source.stem}-int8{'-reduced' if _reduce_range() else ''}.onnx"
    _make(quantised, lambda part: _quantise(source, part))
    return quantised


def _make(file: Path, write: Callable[[Path], None]) -> None:
    if file.is_file():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(f".{os.getpid()}.part")
    with _quiet():
        write(part)
    part.replace(file)


def _export(model: Any, file: Path) -> None:
    # Eager attention through the tracing exporter gives the graph that ONNX Runtime's transformer
    # optimizer knows; from sdpa, or from the newer exporter, it fuses no attention.
    batch_and_length = {0: "batch", 1: "length"}
    names = ("input_ids", "attention_mask", "last_hidden_state")
    torch.onnx.export(
        _LastHiddenState(_copy(model, "eager", torch.float32)),
        _example(),
        str(file),
        input_names=names[:2],
        output_names=names[2:],
        dynamic_axes=dict.fromkeys(names, batch_and_length),
        opset_version=17,
        dynamo=False,
    )


def _fuse(source: Path, file: Path, config: Any) -> None:
    from onnxruntime.transformers import optimizer

    model = optimizer.optimize_model(
        str(source), model_type="bert", num_heads=config.n_heads, hidden_size=config.dim
    )
    fused = model.get_fused_operator_statistics()["Attention"]
    if fused != config.n_layers:
        raise RuntimeError(f"the transformer optimizer fused {fused} of {config.n_layers} layers")
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


def _onnxruntime_version() -> str:
    import onnxruntime as ort

    return str(ort.__version__)


def _feeds(batch: Padded) -> dict[str, Any]:
    return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}


def _example() -> Any:
    """Inputs to trace with: two rows, one of them padded."""
    input_ids = torch.arange(1000, 1048).view(2, 24)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 10:] = 0
    return input_ids, attention_mask


class _LastHiddenState(torch.nn.Module):
    """A model whose forward is tensors in, one tensor out: what exporters can name."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return outputs.last_hidden_state


@contextlib.contextmanager
def _quiet() -> Any:
    """Exporters talk at length about what is theirs to worry about."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
