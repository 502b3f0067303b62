"""Inference engines with packages of their own: ONNX Runtime's CUDA provider, and TensorRT.

Each is a callable with a transformers model's signature. Both take the model as ONNX and compute in
fp16; operands and results stay on the device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

_NAMES = ("input_ids", "attention_mask")
_OUTPUT = "last_hidden_state"
# What TensorRT plans for: least, usual and most sequences and tokens in each.
_PROFILE = ((1, 8), (128, 128), (1024, 512))


def missing_onnxruntime() -> str | None:
    """Why ONNX Runtime cannot be timed here, or None."""
    if not _installed("onnxruntime") or not _installed("onnx"):
        return "not installed"
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return "not installed (the onnxruntime here has no CUDA provider)"
    return None


def missing_tensorrt() -> str | None:
    """Why TensorRT cannot be timed here, or None."""
    return None if _installed("tensorrt") and _installed("onnx") else "not installed"


class OnnxRuntime:
    """The graph after ONNX Runtime's own transformer optimizer, weights and arithmetic in fp16."""

    def __init__(self, model: Any, device: torch.device):
        import onnxruntime as ort
        from onnxruntime.transformers import optimizer

        self._device = device
        with tempfile.TemporaryDirectory() as folder, _quiet():
            plain, fused = Path(folder) / "plain.onnx", Path(folder) / "fused.onnx"
            export(model, plain)
            better = optimizer.optimize_model(
                str(plain),
                model_type="bert",
                num_heads=model.config.n_heads,
                hidden_size=model.config.dim,
                use_gpu=True,
            )
            better.convert_float_to_float16()
            better.save_model_to_file(str(fused))
            self._session = ort.InferenceSession(str(fused), providers=["CUDAExecutionProvider"])

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None) -> SimpleNamespace:
        """Padded in, padded out."""
        binding = self._session.io_binding()
        feeds = _feeds(input_ids, attention_mask)
        for name, tensor in feeds.items():
            shape = tuple(tensor.shape)
            binding.bind_input(name, "cuda", 0, "int64", shape, tensor.data_ptr())
        binding.bind_output(_OUTPUT, "cuda", 0)
        # It computes on a stream of its own.
        torch.cuda.current_stream().synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        output = binding.get_outputs()[0]
        return SimpleNamespace(last_hidden_state=from_dlpack(output._ortvalue.to_dlpack()))


class TensorRT:
    """An engine that TensorRT built from the ONNX graph, for shapes up to 1024 x 512."""

    def __init__(self, model: Any, device: torch.device):
        trt = importlib.import_module("tensorrt")

        logger = trt.Logger(trt.Logger.ERROR)
        builder = trt.Builder(logger)
        network = builder.create_network()
        parser = trt.OnnxParser(network, logger)
        with tempfile.TemporaryDirectory() as folder, _quiet():
            file = Path(folder) / "model.onnx"
            # Later versions take the types from the graph; earlier ones are told by a flag.
            export(model.half(), file)
            if not parser.parse(file.read_bytes()):
                raise RuntimeError(f"TensorRT does not read the graph: {parser.get_error(0)}")
        settings = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        for name in _NAMES:
            profile.set_shape(name, *_PROFILE)
        settings.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, settings)
        self._engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        self._context = self._engine.create_execution_context()
        self._width = model.config.dim
        self._device = device

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None) -> SimpleNamespace:
        """Padded in, padded out."""
        out = torch.empty(*input_ids.shape, self._width, dtype=torch.half, device=self._device)
        feeds = _feeds(input_ids, attention_mask)
        for name, tensor in feeds.items():
            self._context.set_input_shape(name, tuple(tensor.shape))
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.set_tensor_address(_OUTPUT, out.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError("TensorRT did not run")
        return SimpleNamespace(last_hidden_state=out)


def export(model: Any, file: Path) -> None:
    """Write a transformers model as ONNX, with batch and length left open.

    Eager attention through the tracing exporter is the form that the engines' optimizers know.
    """
    model.set_attn_implementation("eager")
    device = next(model.parameters()).device
    input_ids = torch.arange(100, 148, device=device).view(2, 24)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 10:] = 0
    axes = {name: {0: "batch", 1: "length"} for name in (*_NAMES, _OUTPUT)}
    torch.onnx.export(
        _LastHiddenState(model),
        (input_ids, attention_mask),
        str(file),
        input_names=list(_NAMES),
        output_names=[_OUTPUT],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )


class _LastHiddenState(nn.Module):
    """Tensors in, one tensor out: what the exporter can name."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return outputs.last_hidden_state


def _feeds(input_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Tensor]:
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    return dict(zip(_NAMES, (input_ids, attention_mask), strict=True))


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters talk at length about what is theirs to worry about."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
