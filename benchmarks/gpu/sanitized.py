"""What compute-sanitizer watches: a few launches of every kernel, and forwards without graphs.

python -m benchmarks.gpu.sanitized          # bare; `make gpu-test` runs it under the tools

Small, with sizes that no tile divides, so that every mask has something to mask.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from benchmarks.gpu import device as devices
from benchmarks.gpu import latency, tables
from benchmarks.gpu.contenders import TINY, TINY_LATENCY
from benchmarks.gpu.tune_cases import ROW_OPERATIONS, AttentionSpec, LinearSpec, RowsSpec, Spec
from benchmarks.workloads import random_distilbert
from fastdistil import cuda_kernels
from fastdistil.backends import cuda_latency
from fastdistil.cuda_launch import CudaLaunch

_LENGTHS = (1, 0, 33, 17)
_EPS = 1e-12


def main() -> int:
    """0; the tools report what they find themselves."""
    from fastdistil.kernels.launch import interpreted

    if interpreted():
        from benchmarks.gpu.interpreter import repair_bf16

        repair_bf16()
    device = torch.device("cpu" if interpreted() else "cuda")
    with torch.inference_mode():
        for spec in _specs():
            _launch(spec, device)
        if missing := cuda_kernels.available():
            print(f"without the kernels in CUDA C++: {missing}")
        else:
            for launch in _cuda_launches(device):
                launch.run()
        _forward(device)
        _low_latency(device)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 0


def _specs() -> list[Spec]:
    found: list[Spec] = []
    for kind in ("half", "fp32"):
        found += [LinearSpec(kind, 37, 200, 104, activation, 37) for activation in (None, "gelu")]
        found += [AttentionSpec(kind, 64, length, 60, num_heads=3) for length in (11, 70)]
        found += [RowsSpec(operation, kind, 33, 96) for operation in ROW_OPERATIONS]
    return found


def _launch(spec: Spec, device: torch.device) -> None:
    from fastdistil.kernels.settings import settings_for

    settings = settings_for(device)
    operands = spec.operands(device, seed=0)
    for launch in spec.launches(operands, spec.incumbent(settings), settings):
        launch.run()


def _cuda_launches(device: torch.device) -> Iterator[CudaLaunch]:
    """Every kernel in CUDA C++: rows of a warp and of a block, with vectors and without."""
    for kind in ("half", "fp32"):
        for width in (96, 101, 1040):
            yield from _cuda_rows(kind, width, device)
    for head_dim, length in ((64, 11), (32, 70), (128, 128)):
        o = AttentionSpec("half", head_dim, length, 60, num_heads=3).operands(device, seed=0)
        yield cuda_kernels.attention_launch(o["qkv"], o["cu_seqlens"], length, o["out"])
    for dtype in (torch.bool, torch.int64, torch.float16):
        mask = torch.ones(5, 37, device=device).tril(17).to(dtype)
        yield cuda_kernels.pack_launch(
            mask,
            torch.empty(len(mask) + 1, dtype=torch.int32, device=device),
            torch.empty(mask.numel(), dtype=torch.int32, device=device),
            torch.empty(mask.numel(), dtype=torch.int64, device=device),
        )


def _cuda_rows(kind: str, width: int, device: torch.device) -> Iterator[CudaLaunch]:
    o = RowsSpec("layernorm", kind, 33, width).operands(device, seed=0)
    x, weight, bias, out = o["x"], o["weight"], o["bias"], o["out"]
    yield cuda_kernels.layernorm_launch(x, weight, bias, _EPS, o["residual"], out)
    yield cuda_kernels.bias_gelu_launch(x, bias, "gelu", out)
    o = RowsSpec("embed_layernorm", kind, 33, width).operands(device, seed=0)
    ids, tables = (o["ids"], o["positions"], None), (o["words"], o["places"], None)
    yield cuda_kernels.embed_layernorm_launch(*ids, *tables, weight, bias, _EPS, out, o["errors"])
    o = RowsSpec("pool", kind, 33, width).operands(device, seed=0)
    for pooling in ("mean", "cls", "max"):
        yield cuda_kernels.pool_launch(o["x"], o["cu_seqlens"], pooling, True, o["out"])


def _forward(device: torch.device) -> None:
    """Both ways in: packed, and padded with a mask; and pooled vectors out."""
    model = _model(TINY, device, precision="bf16")
    batch = _batch(device)
    model.forward_packed(batch)
    model.encode_packed(batch, normalize=True)
    ids = torch.arange(5, 45, device=device).view(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    model(ids, attention_mask=mask)


def _low_latency(device: torch.device) -> None:
    """The whole forward in one launch, and as a chain; states and vectors out, twice each.

    Two forwards take the two sets of states that the kernel keeps.
    """
    for precision in ("bf16", "int8"):
        for entries in (latency.ONE_LAUNCH, latency.CHAIN):
            with tables.settings_with(devices.target(device), entries):
                model = _model(TINY_LATENCY, device, precision=precision, deterministic=False)
                program = model.program()
            why = cuda_latency.refusal(model.config, device, precision)
            if why is not None:
                print(f"without the low-latency kernel: {why}")
                return
            for _ in range(2):
                model.forward_packed(_batch(device))
                model.encode_packed(_batch(device), normalize=True)
            print(program.note)


def _model(sizes: Mapping[str, int], device: torch.device, **options: Any) -> Any:
    import fastdistil

    hf_model = random_distilbert(**sizes)
    config = fastdistil.EncoderConfig.from_hf(hf_model.config)
    model = fastdistil.DistilBertModel(
        config, device=device, backend="cuda", cuda_graphs=False, **options
    )
    model.load_state_dict(hf_model.state_dict())
    return model.eval().requires_grad_(False)


def _batch(device: torch.device) -> Any:
    from fastdistil.packing import pack_ids

    return pack_ids([list(range(5, 5 + length)) for length in _LENGTHS]).to(device)


if __name__ == "__main__":
    sys.exit(main())
