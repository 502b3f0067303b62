"""What compute-sanitizer watches: a few launches of every kernel, and a forward without graphs.

python -m benchmarks.gpu.sanitized          # bare; `make gpu-test` runs it under the tools

Small, with sizes that no tile divides, so that every mask has something to mask.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.gpu.contenders import TINY
from benchmarks.gpu.tune_cases import ROW_OPERATIONS, AttentionSpec, LinearSpec, RowsSpec, Spec
from benchmarks.workloads import random_distilbert

_LENGTHS = (1, 0, 33, 17)


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
        _forward(device)
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


def _forward(device: torch.device) -> None:
    """Both ways in: packed, and padded with a mask; and pooled vectors out."""
    import fastdistil
    from fastdistil.packing import pack_ids

    hf_model = random_distilbert(**TINY)
    config = fastdistil.EncoderConfig.from_hf(hf_model.config)
    model = fastdistil.DistilBertModel(
        config, device=device, precision="bf16", backend="cuda", cuda_graphs=False
    )
    model.load_state_dict(hf_model.state_dict())
    model.eval().requires_grad_(False)
    batch = pack_ids([list(range(5, 5 + length)) for length in _LENGTHS]).to(device)
    model.forward_packed(batch)
    model.encode_packed(batch, normalize=True)
    ids = torch.arange(5, 45, device=device).view(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    model(ids, attention_mask=mask)


if __name__ == "__main__":
    sys.exit(main())
