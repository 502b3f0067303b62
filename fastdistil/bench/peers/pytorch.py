"""PyTorch's own ways: eager transformers, oneDNN's layers, dynamic quantisation, torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..engines import Engine, torch_variant
from .common import copy_of, quiet

# As torch.backends.quantized.engine has them, and as they call themselves.
_LIBRARIES = {"onednn": "oneDNN", "fbgemm": "FBGEMM"}
# Of the model that a precision starts from: quantising is done by the engine.
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.float32}

# torch.compile's modes as far as they matter on a CPU; what was tried is not printed.
_MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "max-autotune": {
        "max_autotune": True,
        "max_autotune_report_choices_stats": False,
        "autotune_num_choices_displayed": 0,
    },
}


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
        with quiet():
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
        twin = change(copy_of(model, attention, _DTYPES[precision]))
        layers = sum(type(module) is linear for module in twin.modules())
        if layers != sum(type(module) is torch.nn.Linear for module in model.modules()):
            raise RuntimeError(f"{layers} linear layers are a {linear.__name__}, not all")
        variants.append(torch_variant(twin, f"transformers, {attention} attention"))
    return Engine(name, precision, tuple(variants))


def compiled(model: Any, precision: str, mode: str) -> Engine:
    """torch.compile with frozen weights (packed into oneDNN's layout), for batches of any shape.

    Args:
        mode: "default" or "max-autotune".
    """
    twin = copy_of(model, "sdpa", _DTYPES[precision])
    forward = torch.compile(twin, dynamic=True, options=_MODES[mode])

    # Not among the options: those are not set yet when the graph is traced, which then takes the
    # weights for inputs, and nothing is frozen. It costs a call 20 microseconds here.
    @torch._inductor.config.patch(freezing=True)
    def frozen(**batch: torch.Tensor) -> Any:
        return forward(**batch)

    variant = torch_variant(frozen, f"mode {mode}, frozen weights, dynamic shapes")
    name = "torch.compile" if mode == "default" else f"torch.compile {mode}"
    return Engine(f"{name} {precision}", precision, (variant,))
