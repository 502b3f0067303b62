"""The whole packed forward on the kernels, against the definition and against itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import randomize, tiny_config
from torch import Tensor

from fastdistil.backends import reference
from fastdistil.backends.cuda import CudaProgram
from fastdistil.config import EncoderConfig
from fastdistil.kernels.settings import load_settings, target_of
from fastdistil.model import DistilBertModel
from fastdistil.packing import PackedBatch, pack_ids
from fastdistil.pooling import pool

# Two heads of 32; sizes that are no powers of two.
SIZES: dict[str, Any] = {"hidden_size": 96, "num_heads": 3, "intermediate_size": 112}
LENGTHS = [5, 0, 1, 17, 40, 16, 0, 33]
PRECISIONS = ("fp32", "bf16", "fp16")
# Error allowed, of a token's cosine and of the largest value: the promises of the README.
LEAST_COSINE = {"bf16": 0.9998, "fp16": 0.9998}
FP32_ERROR = 2e-5


def tiny(kind: str = "bert", **changes: Any) -> EncoderConfig:
    return tiny_config(kind, **(SIZES | changes))


def model_of(
    config: EncoderConfig, device: torch.device, precision: str = "bf16", **options: Any
) -> DistilBertModel:
    """Seeded weights that make a difference, in float32."""
    model = DistilBertModel(config, precision=precision, backend="cuda", **options)
    randomize(model)
    return model.eval().requires_grad_(False).to(device)


def batch_of(
    config: EncoderConfig, lengths: Sequence[int], device: torch.device, segments: bool = False
) -> PackedBatch:
    generator = np.random.default_rng(len(lengths))
    ids = [generator.integers(1, config.vocab_size, length) for length in lengths]
    rows = [generator.integers(0, 2, length) for length in lengths] if segments else None
    return pack_ids(ids, rows).to(device)


def exact(model: DistilBertModel, batch: PackedBatch) -> Tensor:
    """The definition, in float64."""
    weights = {name: tensor.double().cpu() for name, tensor in model.state_dict().items()}
    return reference.forward(model.config, weights, batch.to("cpu"))


def assert_within_budget(got: Tensor, want: Tensor, precision: str) -> None:
    got = got.double().cpu()
    assert got.isfinite().all()
    if precision == "fp32":
        assert (got - want).abs().max() <= FP32_ERROR * want.abs().max()
    else:
        cosine = torch.nn.functional.cosine_similarity(got, want, dim=1)
        assert cosine.min() >= LEAST_COSINE[precision]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("segments", [False, True])
def test_equals_the_definition(device: torch.device, precision: str, segments: bool) -> None:
    model = model_of(tiny(), device, precision)
    batch = batch_of(model.config, LENGTHS, device, segments)
    got = model.forward_packed(batch)
    assert got.dtype == torch.float32
    assert_within_budget(got, exact(model, batch), precision)


@pytest.mark.parametrize("activation", ["gelu_tanh", "relu", "silu"])
def test_other_activations(device: torch.device, activation: str) -> None:
    model = model_of(tiny("distilbert", activation=activation), device, "fp32")
    batch = batch_of(model.config, LENGTHS, device)
    assert_within_budget(model.forward_packed(batch), exact(model, batch), "fp32")


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_pools(device: torch.device, pooling: str, normalize: bool) -> None:
    model = model_of(tiny("distilbert"), device, "fp32")
    batch = batch_of(model.config, LENGTHS, device)
    got = model.encode_packed(batch, pooling, normalize)
    want = pool(exact(model, batch), batch.cu_seqlens.cpu(), pooling, normalize)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double().cpu(), want.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("ordered_sums")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_rows_are_those_of_a_whole_forward(device: torch.device, precision: str) -> None:
    """To the bit: the rows go through the same kernels in other places."""
    model = model_of(tiny(), device, precision)
    batch = batch_of(model.config, LENGTHS, device, segments=precision == "bf16")
    whole = model.forward_packed(batch)
    first = batch.cu_seqlens[:-1][batch.cu_seqlens.diff() > 0].to(torch.int64)
    some = torch.arange(0, batch.num_tokens, 3)
    assert torch.equal(model.forward_rows(batch, first), whole[first])
    assert torch.equal(model.forward_rows(batch, some), whole[some.to(device)])
    assert model.forward_rows(batch, some[:0]).shape == (0, model.config.hidden_size)
    with pytest.raises(ValueError, match="rows: got"):
        model.forward_rows(batch, some + batch.num_tokens)


def test_the_model_without_layers(device: torch.device) -> None:
    model = model_of(tiny(num_layers=0), device, "fp32")
    batch = batch_of(model.config, LENGTHS, device)
    assert_within_budget(model.forward_packed(batch), exact(model, batch), "fp32")


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_no_tokens(device: torch.device, lengths: list[int]) -> None:
    model = model_of(tiny(), device)
    batch = batch_of(model.config, lengths, device)
    assert model.forward_packed(batch).shape == (0, model.config.hidden_size)
    vectors = model.encode_packed(batch)
    assert vectors.shape == (len(lengths), model.config.hidden_size)
    assert not vectors.any()


@pytest.mark.usefixtures("ordered_sums")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bits_do_not_depend_on_the_batch(device: torch.device, precision: str) -> None:
    model = model_of(tiny(num_layers=1), device, precision)
    batch = batch_of(model.config, LENGTHS, device)
    together = model.forward_packed(batch)
    for start, stop in zip(
        batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True
    ):
        if start < stop:
            alone = pack_ids([batch.input_ids[start:stop].cpu()]).to(device)
            assert torch.equal(model.forward_packed(alone), together[start:stop])


@pytest.mark.usefixtures("ordered_sums")
def test_more_sequences_than_tokens(device: torch.device) -> None:
    model = model_of(tiny(num_layers=1), device)
    batch = batch_of(model.config, [0] * 40 + [5] + [0] * 30 + [3], device)
    few = pack_ids([batch.input_ids[:5].cpu(), batch.input_ids[5:].cpu()]).to(device)
    assert torch.equal(model.forward_packed(batch), model.forward_packed(few))


@pytest.mark.usefixtures("ordered_sums")
def test_large_batches_go_in_turns(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(num_layers=1)
    batch = batch_of(config, LENGTHS, device)
    whole = model_of(config, device)
    want, vectors = whole.forward_packed(batch), whole.encode_packed(batch)
    in_turns = model_of(config, device)
    program = in_turns.program()
    assert isinstance(program, CudaProgram)
    monkeypatch.setattr(program, "_tokens", 32)
    assert torch.equal(in_turns.forward_packed(batch), want)
    rows = torch.arange(1, batch.num_tokens, 7)
    assert torch.equal(in_turns.forward_rows(batch, rows), want[rows.to(device)])
    assert torch.equal(in_turns.encode_packed(batch), vectors)


@pytest.mark.usefixtures("ordered_sums")
def test_a_sequence_longer_than_the_buffers(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(num_layers=1)
    batch = batch_of(config, [3, 40, 5], device)
    want = model_of(config, device).forward_packed(batch)
    model = model_of(config, device)
    program = model.program()
    assert isinstance(program, CudaProgram)
    monkeypatch.setattr(program, "_tokens", 16)
    monkeypatch.setattr(program._buffers, "tokens", 16)
    assert torch.equal(model.forward_packed(batch), want)


def test_weights_are_folded_again_when_they_change(device: torch.device) -> None:
    model = model_of(tiny(), device, "fp32")
    batch = batch_of(model.config, LENGTHS, device)
    model.forward_packed(batch)
    with torch.no_grad():
        model.transformer.layer[0].attention.q_lin.weight.mul_(1.5)
    assert_within_budget(model.forward_packed(batch), exact(model, batch), "fp32")


def test_bad_ids_are_refused_before_anything_runs(device: torch.device) -> None:
    model = model_of(tiny(), device)
    batch = pack_ids([[1, 2, 3], [4, model.config.vocab_size]]).to(device)
    with pytest.raises(ValueError, match="input_ids"):
        model.forward_packed(batch)
    with pytest.raises(ValueError, match="input_ids"):
        model.encode_packed(batch)


def test_threads_take_turns(device: torch.device) -> None:
    model = model_of(tiny(num_layers=1), device)
    batches = [batch_of(model.config, LENGTHS[: 3 + i], device) for i in range(3)]
    wanted = [model.forward_packed(batch) for batch in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(2 if device.type == "cpu" else 50):
            if not torch.equal(model.forward_packed(batches[index]), wanted[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_warmup_prepares_and_refuses_nonsense(device: torch.device) -> None:
    model = model_of(tiny(), device)
    model.warmup(tokens=40, max_seqlen=20)
    with pytest.raises(ValueError, match="from 1 up"):
        model.warmup(tokens=[16, 0])


def test_explains_itself(device: torch.device) -> None:
    found = model_of(tiny(), device).explain()
    assert found["backend"] == "cuda"
    assert found["instruction_set"].startswith("Triton, sm_")
    assert "launches" in found["reason"] or "graphs" in found["reason"]


def test_not_deterministic_is_right_as_well(device: torch.device) -> None:
    model = model_of(tiny(), device, "fp32", deterministic=False)
    batch = batch_of(model.config, LENGTHS, device)
    assert_within_budget(model.forward_packed(batch), exact(model, batch), "fp32")


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_products_by_cublas(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, activation: str
) -> None:
    from fastdistil.kernels.settings import LinearSetting, Settings

    monkeypatch.setattr(Settings, "linear", lambda *_, **__: LinearSetting(variant="cublas"))
    model = model_of(tiny(activation=activation), device, "bf16", deterministic=False)
    batch = batch_of(model.config, LENGTHS, device)
    assert_within_budget(model.forward_packed(batch), exact(model, batch), "bf16")


class Stream:
    """Notes which streams it waited for."""

    def __init__(self) -> None:
        self.waited: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)


class Memory:
    """Notes which streams keep it."""

    def __init__(self) -> None:
        self.kept_for: list[Stream] = []

    def record_stream(self, stream: Stream) -> None:
        self.kept_for.append(stream)


def test_another_stream_waits_and_keeps_the_memory(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one too: for whoever prepares the weights. Not one that is being captured."""
    program = model_of(tiny(), device).program()
    assert isinstance(program, CudaProgram)
    maker, user, memory = Stream(), Stream(), Memory()
    monkeypatch.setattr(program, "_stream", maker)
    monkeypatch.setattr(program, "_memory", [memory])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _device: user)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    program._take_over()
    assert (user.waited, memory.kept_for) == ([], [])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for _ in range(2):
        program._take_over()
        assert (user.waited, memory.kept_for) == ([maker], [user])


def test_all_weights_and_buffers_are_kept(device: torch.device) -> None:
    model = model_of(tiny(), device)
    program = model.program()
    assert isinstance(program, CudaProgram)
    # Q, K and V are one weight and one bias here; buffers are ten, and there is the count.
    joined = 4 * model.config.num_layers
    assert len(program._memory) == len(model.state_dict()) - joined + 10 + 1


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; `make gpu-test`")


@needs_gpu
@pytest.mark.gpu
def test_graphs_give_the_bits_of_plain_launches(device: torch.device) -> None:
    config = tiny()
    graphs, plain = (model_of(config, device, cuda_graphs=on) for on in (True, False))
    for lengths in ([7], LENGTHS, [40] * 9, [1] * 70):
        batch = batch_of(config, lengths, device)
        want = plain.forward_packed(batch)
        for _ in range(3):  # the first captures, the others replay
            assert torch.equal(graphs.forward_packed(batch), want)
    assert graphs.explain()["reason"].endswith("; CUDA graphs")
    assert plain.explain()["reason"].endswith("; plain launches (cuda_graphs=False)")


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [True, False])
def test_kernels_that_start_early_give_the_same_bits(
    device: torch.device, graphs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that did not wait for the one before would read what is not there yet."""
    target = target_of(torch.cuda.get_device_capability(device))
    settings = load_settings(target)
    if not settings.waits:
        pytest.skip("this GPU has no dependent launches; Hopper and later have")
    config = tiny(num_layers=6)
    batches = [batch_of(config, lengths, device) for lengths in ([7], LENGTHS, [40] * 40, [1] * 70)]
    models = {}
    for early in (False, True):
        path = tmp_path / f"{early}.json"
        path.write_text(json.dumps({**settings.table, "dependent_launch": early}))
        monkeypatch.setenv("FASTDISTIL_TUNING", str(path))
        models[early] = model_of(config, device, cuda_graphs=graphs)
        models[early].forward_packed(batches[0])  # reads the settings
    steps = models[True].program().launches(16, 16)  # type: ignore[union-attr]
    assert all(step.dependent for step in steps)
    wanted = [models[False].forward_packed(batch) for batch in batches]
    for _ in range(50):  # one batch right behind the other
        found = [models[True].forward_packed(batch) for batch in batches]
        assert all(map(torch.equal, found, wanted))


@needs_gpu
@pytest.mark.gpu
def test_the_first_forward_may_come_on_another_stream(device: torch.device) -> None:
    batch = batch_of(tiny(), LENGTHS, device)
    want = model_of(tiny(), device).forward_packed(batch)
    for _ in range(5):
        model = model_of(tiny(), device)
        model.program()
        with torch.cuda.stream(torch.cuda.Stream()):
            found = model.forward_packed(batch)
        torch.cuda.synchronize()
        assert torch.equal(found, want)


@needs_gpu
@pytest.mark.gpu
def test_a_forward_in_somebody_elses_graph(device: torch.device) -> None:
    model = model_of(tiny(), device)
    batch = batch_of(model.config, LENGTHS, device)
    want = model.forward_packed(batch).clone()  # ours is captured now
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = model.forward_packed(batch)
    found.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(found, want)
    assert torch.equal(model.forward_packed(batch), want)
    assert model.explain()["reason"].endswith("; CUDA graphs")


@needs_gpu
@pytest.mark.gpu
def test_programs_capture_in_several_threads(device: torch.device) -> None:
    batches = [batch_of(tiny(), LENGTHS[: 2 + i], device) for i in range(6)]
    wanted = [model_of(tiny(), device).forward_packed(batch) for batch in batches]
    torch.cuda.synchronize()
    models = [model_of(tiny(), device) for _ in range(4)]
    wrong: list[int] = []

    def work(model: DistilBertModel) -> None:
        for index, batch in enumerate(batches):
            for _ in range(3):
                if not torch.equal(model.forward_packed(batch), wanted[index]):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(model.explain()["reason"].endswith("; CUDA graphs") for model in models)


@needs_gpu
@pytest.mark.gpu
def test_streams_take_turns(device: torch.device) -> None:
    model = model_of(tiny(), device)
    batches = [batch_of(model.config, LENGTHS[: 2 + i], device) for i in range(6)]
    wanted = [model.forward_packed(batch) for batch in batches]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in batches]
    for _ in range(20):
        found = []
        for stream, batch in zip(streams, batches, strict=True):
            with torch.cuda.stream(stream):
                found.append(model.forward_packed(batch))
        torch.cuda.synchronize()
        assert all(map(torch.equal, found, wanted))


@needs_gpu
@pytest.mark.gpu
def test_nothing_waits_where_lengths_are_known(device: torch.device) -> None:
    model = model_of(tiny(), device)
    batch = batch_of(model.config, LENGTHS, device)
    model.encode_packed(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model.forward_packed(batch)
        model.encode_packed(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.gpu
def test_a_failed_capture_falls_back(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tiny(), device)
    batch = batch_of(model.config, LENGTHS, device)
    want = model_of(tiny(), device, cuda_graphs=False).forward_packed(batch)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("no capture today")

    monkeypatch.setattr(torch.cuda.CUDAGraph, "capture_begin", refuse)
    assert torch.equal(model.forward_packed(batch), want)
    assert torch.equal(model.forward_packed(batch), want)
    assert "no capture today" in model.explain()["reason"]
