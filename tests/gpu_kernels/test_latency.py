"""Few tokens in one launch: the low-latency kernel behind the engine.

The kernel itself is tested in csrc/tests/cuda against double precision. Here: that its weights are
packed as it reads them, when it runs and when not, and what is said about it. On a GPU with the
kernels that nvcc made; on a CPU with the emulated ones, in Triton's interpreter.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randomize, tiny_config
from tokenizers import Tokenizer
from torch import Tensor

from fastdistil import cuda_launch
from fastdistil.backends import cuda_latency, reference
from fastdistil.backends.cuda import CudaProgram
from fastdistil.backends.cuda_latency import LatencyEncoder, cost_of, refusal, step_costs
from fastdistil.backends.cuda_weights import int8_rows
from fastdistil.config import EncoderConfig
from fastdistil.info import few_tokens
from fastdistil.kernels.launch import interpreted
from fastdistil.model import DistilBertModel
from fastdistil.packing import PackedBatch, pack_ids
from fastdistil.pooling import pool

_MISSING = cuda_launch.available()
if _MISSING is None and cuda_launch.emulated() != interpreted():
    _MISSING = (
        "this build's CUDA kernels are for the GPU, and Triton's are interpreted, or vice versa"
    )
pytestmark = pytest.mark.skipif(_MISSING is not None, reason=_MISSING or "")

SIZES: dict[str, Any] = {"hidden_size": 128, "num_heads": 2, "intermediate_size": 512}
LENGTHS = [5, 0, 17, 1]
# The promises of the README: a token's cosine.
LEAST_COSINE = {"bf16": 0.9998, "fp16": 0.9998, "int8": 0.995}


def model_of(
    device: torch.device, precision: str = "bf16", kind: str = "bert", **options: Any
) -> DistilBertModel:
    config = tiny_config(kind, **SIZES)
    options = {"deterministic": False} | options
    model = DistilBertModel(config, precision=precision, backend="cuda", **options)
    randomize(model)
    return model.eval().requires_grad_(False).to(device)


def batch_of(model: DistilBertModel, lengths: Sequence[int], segments: bool = False) -> PackedBatch:
    generator = np.random.default_rng(len(lengths))
    ids = [generator.integers(1, model.config.vocab_size, length) for length in lengths]
    rows = [generator.integers(0, 2, length) for length in lengths] if segments else None
    return pack_ids(ids, rows).to(model.device)


def exact(model: DistilBertModel, batch: PackedBatch) -> Tensor:
    weights = {name: tensor.double().cpu() for name, tensor in model.state_dict().items()}
    return reference.forward(model.config, weights, batch.to("cpu"))


def program_of(model: DistilBertModel) -> CudaProgram:
    program = model.program()
    assert isinstance(program, CudaProgram)
    return program


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bool]]:
    """first_step, last_step and cooperative of every launch of the kernel."""
    seen: list[tuple[int, int, bool]] = []
    launch = LatencyEncoder.launch

    def spy(self: LatencyEncoder, tensors: Any, cooperative: bool, **call: Any) -> None:
        launch(self, tensors, cooperative=cooperative, **call)
        seen.append((call["first_step"], call["last_step"], cooperative))

    monkeypatch.setattr(LatencyEncoder, "launch", spy)
    return seen


@pytest.mark.parametrize("precision", list(LEAST_COSINE))
@pytest.mark.parametrize("segments", [False, True])
def test_equals_the_definition(
    device: torch.device, precision: str, segments: bool, launches: list[Any]
) -> None:
    model = model_of(device, precision)
    batch = batch_of(model, LENGTHS, segments)
    got = model.forward_packed(batch).double().cpu()
    assert got.isfinite().all()
    cosine = torch.nn.functional.cosine_similarity(got, exact(model, batch), dim=1)
    assert cosine.min() >= LEAST_COSINE[precision]
    assert len(launches) == 1
    assert launches[0][2]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_pools_in_the_same_launch(
    device: torch.device, pooling: str, normalize: bool, launches: list[Any]
) -> None:
    model = model_of(device, kind="distilbert")
    batch = batch_of(model, LENGTHS)
    vectors = model.encode_packed(batch, pooling, normalize)
    assert len(launches) == 1
    hidden = model.forward_packed(batch)
    want = pool(hidden.float(), batch.cu_seqlens, pooling, normalize)
    torch.testing.assert_close(vectors, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu_tanh", "relu", "silu"])
def test_other_activations(device: torch.device, activation: str) -> None:
    config = tiny_config("distilbert", **SIZES, activation=activation, num_layers=1)
    model = DistilBertModel(config, precision="fp16", backend="cuda", deterministic=False)
    randomize(model)
    model.eval().requires_grad_(False).to(device)
    batch = batch_of(model, [9])
    got = model.forward_packed(batch).double().cpu()
    cosine = torch.nn.functional.cosine_similarity(got, exact(model, batch), dim=1)
    assert cosine.min() >= LEAST_COSINE["fp16"]


def test_a_sentence_has_its_own_bits(device: torch.device) -> None:
    model = model_of(device)
    batch = batch_of(model, LENGTHS)
    together = model.forward_packed(batch)
    bounds = batch.cu_seqlens.tolist()
    for start, stop in itertools.pairwise(bounds):
        if start < stop:
            alone = pack_ids([batch.input_ids[start:stop].cpu()]).to(device)
            assert torch.equal(model.forward_packed(alone), together[start:stop])


def test_only_where_bits_may_differ(device: torch.device, launches: list[Any]) -> None:
    model = model_of(device, deterministic=True)
    model.forward_packed(batch_of(model, [5]))
    assert not launches
    assert "deterministic=True" in program_of(model).note


def test_only_up_to_the_measured_size(
    device: torch.device, launches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(device)
    model.forward_packed(batch_of(model, [5]))
    program = program_of(model)
    monkeypatch.setattr(program._settings, "latency_tokens", 20)
    model.forward_packed(batch_of(model, [20]))
    assert len(launches) == 2
    larger = batch_of(model, [20, 1])
    got = model.forward_packed(larger).double().cpu()
    assert len(launches) == 2
    cosine = torch.nn.functional.cosine_similarity(got, exact(model, larger), dim=1)
    assert cosine.min() >= LEAST_COSINE["bf16"]
    assert "up to 20 tokens by the low-latency kernel, bf16 weights, in one launch" in program.note


def test_a_refused_launch_becomes_a_chain(
    device: torch.device, launches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(device)
    batch = batch_of(model, LENGTHS)
    want = model.forward_packed(batch)
    vectors = model.encode_packed(batch)
    launch = LatencyEncoder.launch

    def refuse(self: LatencyEncoder, tensors: Any, cooperative: bool, **call: Any) -> None:
        if cooperative:
            raise RuntimeError("low-latency encoder: too many blocks in cooperative launch")
        launch(self, tensors, cooperative=cooperative, **call)

    monkeypatch.setattr(LatencyEncoder, "launch", refuse)
    launches.clear()
    assert torch.equal(model.forward_packed(batch), want)
    steps = 5 * model.config.num_layers
    assert [first for first, _, _ in launches] == list(range(steps + 1))
    assert launches[-1][1] == steps + 2
    torch.testing.assert_close(model.encode_packed(batch), vectors, rtol=1e-5, atol=1e-5)
    assert "in a chain of launches (low-latency encoder: too many blocks" in program_of(model).note


def test_the_settings_may_ask_for_the_chain(
    device: torch.device, launches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(device)
    batch = batch_of(model, LENGTHS)
    want = model.forward_packed(batch)
    launches.clear()
    monkeypatch.setattr(program_of(model)._settings, "latency_chain", True)
    assert torch.equal(model.forward_packed(batch), want)
    assert not any(cooperative for _, _, cooperative in launches)
    assert "measured to be faster" in program_of(model).note


def test_wrong_ids_are_refused_before_anything_runs(
    device: torch.device, launches: list[Any]
) -> None:
    model = model_of(device)
    wrong = pack_ids([[1, model.config.vocab_size]]).to(device)
    with pytest.raises(ValueError, match="input_ids"):
        model.forward_packed(wrong)
    long = pack_ids([[1] * (model.config.max_positions + 1)]).to(device)
    with pytest.raises(ValueError, match="position"):
        model.encode_packed(long)
    assert not launches


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_no_tokens(device: torch.device, lengths: list[int], launches: list[Any]) -> None:
    model = model_of(device)
    batch = batch_of(model, lengths)
    assert model.forward_packed(batch).shape == (0, model.config.hidden_size)
    assert not model.encode_packed(batch).any()
    assert not launches


def test_models_without_a_kernel_say_so(device: torch.device) -> None:
    config = tiny_config("distilbert", hidden_size=96, num_heads=3, intermediate_size=112)
    assert "128, 384, 768, 1024, not 96" in (refusal(config, device, "bf16") or "")
    assert cuda_latency.HIDDEN_SIZES == (128, 384, 768, 1024)
    base = EncoderConfig()
    assert refusal(base, device, "bf16") is None
    assert "bf16, fp16, int8, not fp32" in (refusal(base, device, "fp32") or "")


def test_too_few_multiprocessors_are_refused(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_latency, "_blocks", lambda device: 14)
    assert refusal(EncoderConfig(), device, "bf16") == (
        "it needs 16 multiprocessors; this device has 14"
    )


def test_info_says_whether_it_is_there(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert few_tokens(device) == "few tokens in one launch with deterministic=False"
    monkeypatch.setattr(cuda_latency, "_blocks", lambda device: 2)
    assert few_tokens(device).endswith("needs 16 multiprocessors; this device has 2")


def test_int8_rows() -> None:
    matrix = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    matrix[3] = 0
    matrix[4] *= 1e-42
    numbers, steps = int8_rows(matrix)
    assert numbers.dtype == torch.int8
    assert (numbers.abs().amax(1)[[0, 1, 2, 5, 6]] == 127).all()
    assert not numbers[[3, 4]].any()
    again = numbers.float() * steps[:, None]
    assert ((again - matrix).abs() <= steps[:, None] / 2 * 1.0001)[[0, 1, 2, 3, 5, 6]].all()
    same, same_steps = int8_rows(again)
    assert torch.equal(same, numbers)
    usable = [0, 1, 2, 5, 6]
    torch.testing.assert_close(same_steps[usable], steps[usable])


def test_many_tokens_in_int8_have_the_same_weights(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(device, "int8")
    batch = batch_of(model, LENGTHS)
    few = model.forward_packed(batch)
    monkeypatch.setattr(program_of(model)._settings, "latency_tokens", 0)
    many = model.forward_packed(batch)
    cosine = torch.nn.functional.cosine_similarity(few.double(), many.double(), dim=1)
    assert cosine.min() >= 0.9997


def test_costs() -> None:
    config = EncoderConfig()
    steps = step_costs(config, [16], "bf16")
    assert len(steps) == 5 * config.num_layers + 1
    whole = cost_of(config, [16], "bf16")
    # 42.5 M weights: 85 MB in bf16, and little else.
    assert 85e6 < whole.moved < 85e6 * 1.01
    assert cost_of(config, [16], "int8").moved < whole.moved * 0.51
    assert whole.flops == pytest.approx(16 * (84.9e6 + 18.4e3 * 16), rel=0.01)


def test_real_weights_keep_the_promises(device: torch.device, minilm_folder: Path) -> None:
    texts = ["The cat sat on the mat.", "Encoders have no cache.", "ok"]
    tokenizer = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    for precision, least in LEAST_COSINE.items():
        model = DistilBertModel.from_pretrained(
            minilm_folder, device=device, precision=precision, backend="cuda", deterministic=False
        )
        batch = pack_ids(ids).to(device)
        got = model.forward_packed(batch).double().cpu()
        cosine = torch.nn.functional.cosine_similarity(got, exact(model, batch), dim=1)
        assert cosine.min() >= least, precision
