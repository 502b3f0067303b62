"""Peers held to an instruction set: what is set for each, and what then really happened.

Libraries read their limits when they are loaded, so a limit is the environment of a process of its
own. What a library then says itself is read from another such process, in which it multiplies:

    python -m benchmarks.peer_limits torch|openvino    # what is asked there; no use by itself
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping

from benchmarks.corpora import ROOT

# An instruction set as FASTDISTIL_CPU_ISA names it; every library has names of its own.
# ONEDNN_MAX_CPU_ISA holds oneDNN, in torch and in OpenVINO; OpenVINO wants the same for its own
# kernels, else it asks oneDNN for what that may not do.
LIMITS: dict[str, dict[str, str]] = {
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",
        "OV_CPU_MAX_ISA": "AVX512_CORE_BF16",
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI",
        "OV_CPU_MAX_ISA": "AVX2_VNNI",
    },
    "portable": {
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OV_CPU_MAX_ISA": "SSE42",
    },
}

# What a library may not speak of once it is limited.
_BEYOND = {
    "avx512": r"amx",
    "avx2": r"amx|avx-?512",
    "portable": r"amx|avx|vector extensions",
}

# What decides how fast a peer is. (Attention's own products, a few hundredths of the work, are
# MKL's in all of torch. ONNX Runtime's kernels and FBGEMM's choose by cpuid and nothing else.)
_USED_BY = {
    "eager PyTorch fp32": ("torch", "MKL"),
    "eager PyTorch bf16": ("torch", "oneDNN of torch"),
    "torch.compile bf16": ("torch", "oneDNN of torch"),
    "torch.compile max-autotune bf16": ("torch", "oneDNN of torch"),
    "PyTorch oneDNN fp32": ("torch", "oneDNN of torch"),
    "PyTorch oneDNN int8": ("torch", "oneDNN of torch"),
    "OpenVINO fp32": ("oneDNN of OpenVINO", "OpenVINO fp32"),
    "OpenVINO bf16": ("oneDNN of OpenVINO", "OpenVINO bf16"),
    "OpenVINO int8": ("oneDNN of OpenVINO",),
}

# Library by library, what it said of itself; "" where it said nothing.
Said = Mapping[str, str]


def environment(isa: str, *, limited: bool) -> dict[str, str]:
    """Of a process in which fastdistil, and peers too if `limited`, use that instruction set."""
    limits = LIMITS[isa] if limited else {}
    return {**os.environ, **limits, "FASTDISTIL_CPU_ISA": isa}


def ask(isa: str) -> Said:
    """What the libraries say in processes with these limits."""
    said: dict[str, str] = {}
    for library in ("torch", "openvino"):
        said.update(understood(library, output_of(library, isa)))
    return said


def output_of(library: str, isa: str) -> str:
    """What is printed where that library multiplies within the limits."""
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.peer_limits", library],
        cwd=ROOT,
        env={**environment(isa, limited=True), "ONEDNN_VERBOSE": "1", "MKL_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=False,  # a library that is not there, or cannot work so, says nothing
    )
    return answer.stdout


def understood(library: str, output: str) -> Said:
    """The lines of such a process that tell what it multiplied with."""

    def found(pattern: str) -> str:
        match = re.search(pattern, output, re.MULTILINE)
        return match.group(1).strip() if match else ""

    one_dnn = found(r"^onednn_verbose,.*,cpu,isa:(.*)$")
    if library == "torch":
        return {
            "torch": found(r"^capability (.*)$"),
            "MKL": found(r"^MKL_VERBOSE oneMKL .* architecture (.*?),"),
            "oneDNN of torch": one_dnn,
        }
    return {
        "oneDNN of OpenVINO": one_dnn,
        "OpenVINO fp32": found(r"^fp32 (.*)$"),
        "OpenVINO bf16": found(r"^bf16 (.*)$"),
    }


def not_limited(peer: str, isa: str, said: Said) -> str | None:
    """Why a peer of that name may use more than the instruction set; None if it may not."""
    if peer.startswith(("ONNX Runtime", "PyTorch FBGEMM")):
        return "it has no such setting"
    if peer.startswith("CTranslate2"):
        return "it does not say what it uses"
    for library in _USED_BY[peer]:
        reason = _unlimited(said.get(library, ""), isa)
        if reason is not None:
            return f"{library} {reason}"
    return None


def _unlimited(words: str, isa: str) -> str | None:
    """Why a library that says so may use more than the instruction set."""
    if not words:
        return "does not say what it uses"
    if re.search(_BEYOND[isa], words, re.IGNORECASE):
        return f"uses {words}"
    if "mlas" in words:
        return f"multiplies with {words}, which has no such setting"
    if words == "Intel(R) Architecture processors":
        return "chooses by itself on CPUs that are not Intel's"
    return None


def _answer_torch() -> None:
    """Multiply through MKL (fp32) and oneDNN (a convolution: it does those in every precision)."""
    import torch

    with torch.inference_mode():
        torch.nn.Linear(64, 64)(torch.randn(64, 64))
        torch.nn.Conv2d(8, 8, 3)(torch.randn(8, 8, 8, 8))
    print("\ncapability", torch.backends.cpu.get_cpu_capability(), flush=True)


def _answer_openvino() -> None:
    """Run a layer like the model's, and a convolution, which oneDNN does in every precision."""
    import openvino as ov
    import torch

    layers = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.Linear(6, 64))
    example = torch.randn(8, 8, 8, 8)
    network = ov.convert_model(layers.requires_grad_(False), example_input=example)
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16")):
        settings = {"INFERENCE_PRECISION_HINT": hint, "PERF_COUNT": True}
        request = ov.Core().compile_model(network, "CPU", settings).create_infer_request()
        request.infer([example.numpy()])
        kernels = {i.exec_type for i in request.profiling_info if i.node_type == "FullyConnected"}
        print(f"\n{precision}", *sorted(kernels), flush=True)


if __name__ == "__main__":
    {"torch": _answer_torch, "openvino": _answer_openvino}[sys.argv[1]]()
