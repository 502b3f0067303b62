"""OpenVINO, converted from the PyTorch model; int8 is NNCF's, its own quantiser."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..engines import Engine, Floats, Variant, tokens_of_batches
from ..workloads import Workload
from .common import LastHiddenState, cache_folder, example, feeds, fingerprint, make_once, quiet

_PRECISION_HINTS = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8": {},  # of what is not quantised; OpenVINO knows what the CPU is good at
}


def openvino(model: Any, precision: str) -> Engine:
    """OpenVINO from the PyTorch model, dynamic shapes, as many threads as torch has.

    Its performance hints are its own advice: LATENCY runs one request on all cores, THROUGHPUT
    as many requests at once as it finds best, which asks for the asynchronous interface.
    """
    import openvino as ov

    core = ov.Core()
    if precision == "int8":
        source = core.read_model(_quantised(model))
        how = "NNCF quantize, model_type TRANSFORMER, calibrated on sample sentences; "
    else:
        source, how = _converted(model), ""
    variants = []
    for hint in ("LATENCY", "THROUGHPUT"):
        settings = {
            "PERFORMANCE_HINT": hint,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            **_PRECISION_HINTS[precision],
        }
        network = core.compile_model(source, "CPU", settings)
        run = _openvino_one_by_one(network) if hint == "LATENCY" else _openvino_queue(network)
        variants.append(Variant(f"{how}hint {hint}", run, tokens_of_batches))
    return Engine(f"OpenVINO {precision}", precision, tuple(variants))


def _converted(model: Any) -> Any:
    """The OpenVINO model of a transformers model, traced from PyTorch."""
    import openvino as ov

    with quiet():
        return ov.convert_model(LastHiddenState(model), example_input=example())


def _quantised(model: Any) -> Path:
    """The model with weights and activations in int8, made once and kept."""
    import nncf
    import openvino as ov

    def write(folder: Path) -> None:
        quantised = nncf.quantize(
            _converted(model),
            nncf.Dataset(_calibration(model.config), feeds),
            model_type=nncf.ModelType.TRANSFORMER,
        )
        ov.save_model(quantised, folder / "model.xml", compress_to_fp16=False)

    versions = "-".join(package + version(package) for package in ("openvino", "nncf"))
    folder = cache_folder() / "openvino" / f"{fingerprint(model)}-{versions}"
    make_once(folder, write)
    return folder / "model.xml"


def _calibration(config: Any) -> list[Any]:
    """Sentences one by one, as NNCF wants them, brought into the model's vocabulary."""
    from ..sample import token_ids

    size, longest = config.vocab_size, config.max_position_embeddings
    sequences = (tuple(index % size for index in ids[:longest]) for ids in token_ids())
    return Workload("calibration", tuple(sequences), batch=1).batches


def _openvino_one_by_one(network: Any) -> Callable[[Workload], list[Floats]]:
    request = network.create_infer_request()

    def run(workload: Workload) -> list[Floats]:
        # Copied, because the next call of the same request writes into the same memory.
        return [request.infer(feeds(batch))[0].copy() for batch in workload.batches]

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
            queue.start_async(feeds(batch), index)
        queue.wait_all()
        return [outputs[index] for index in range(len(workload.batches))]

    return run
