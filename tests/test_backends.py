"""Which engine runs, and what is said about it."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import tiny_config

from fastdistil import backends
from fastdistil.backends import cpu, select
from fastdistil.backends.cpu import CpuBackend
from fastdistil.backends.reference import ReferenceBackend

CPU = torch.device("cpu")


@pytest.fixture
def no_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "extension_error", lambda: "the C++ extension is missing (reasons)")


@pytest.fixture
def extension() -> None:
    if cpu.extension_error() is not None:
        pytest.skip(f"{cpu.extension_error()}; `make test` builds it")


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_the_extension_is_first_choice_on_a_cpu(precision: str) -> None:
    chosen = select(tiny_config(), CPU, precision)
    assert isinstance(chosen.backend, CpuBackend)
    wanted = chosen.backend.auto_precision(tiny_config(), CPU) if precision == "auto" else precision
    assert chosen.precision == wanted
    assert chosen.reason == chosen.backend.describe(tiny_config(), CPU, wanted)


@pytest.mark.usefixtures("no_extension")
def test_without_the_extension_plain_pytorch_runs_and_the_reason_is_kept() -> None:
    chosen = select(tiny_config(), CPU)
    assert isinstance(chosen.backend, ReferenceBackend)
    assert chosen.precision == "fp32"
    assert chosen.reason == (
        "the cpu backend cannot run this: the C++ extension is missing (reasons); "
        "so plain PyTorch in fp32 on cpu"
    )


@pytest.mark.usefixtures("no_extension")
def test_a_backend_that_was_asked_for_is_never_replaced() -> None:
    message = (
        "precision 'auto' with backend 'cpu' on cpu is not available: the cpu backend cannot run "
        "this: the C++ extension is missing (reasons)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        select(tiny_config(), CPU, backend="cpu")


def test_the_reference_can_be_asked_for() -> None:
    chosen = select(tiny_config(), CPU, "bf16", "reference")
    assert isinstance(chosen.backend, ReferenceBackend)
    assert (chosen.precision, chosen.reason) == ("bf16", "plain PyTorch in bf16 on cpu")


@pytest.mark.parametrize("precision", ["fp8"])
@pytest.mark.parametrize("backend", backends.BACKENDS)
def test_precisions_that_come_later(precision: str, backend: str) -> None:
    message = (
        f"precision: '{precision}' is not available yet; available: auto, fp32, bf16, fp16, int8"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        select(tiny_config(), CPU, precision, backend)


def test_fp16_on_a_cpu() -> None:
    message = "precision 'fp16' with backend 'auto' on cpu is not available: .*fp32 and bf16 are"
    with pytest.raises(ValueError, match=message):
        select(tiny_config(), CPU, "fp16")


@pytest.mark.parametrize(
    ("precision", "backend", "message"),
    [
        ("fp64", "auto", "precision: got 'fp64'; allowed: auto, fp32, bf16, fp16, int8, fp8"),
        ("auto", "tpu", "backend: got 'tpu'; available: auto, cuda, cpu, reference"),
        ("auto", "gpu", "backend: got 'gpu'; available: auto, cuda, cpu, reference"),
    ],
)
def test_unknown_names(precision: str, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        select(tiny_config(), CPU, precision, backend)


def test_tensors_without_data() -> None:
    message = "on meta is not available: .*tensors on the meta device hold no data"
    with pytest.raises(ValueError, match=message):
        select(tiny_config(), torch.device("meta"))


def test_the_cpu_backend_runs_on_a_cpu_only() -> None:
    with pytest.raises(ValueError, match=r"the cpu backend cannot run this: .*\bmeta"):
        select(tiny_config(), torch.device("meta"), backend="cpu")


def test_a_model_without_layers_is_not_for_the_cpu_backend() -> None:
    chosen = select(tiny_config(num_layers=0), CPU)
    assert isinstance(chosen.backend, ReferenceBackend)
    assert chosen.reason.startswith("the cpu backend cannot run this: ")
