"""Prepared once, and again after every change of the weights, however it was made."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from helpers import tiny_config
from torch import Tensor, nn

from fastdistil import program_cache
from fastdistil.backends import Program
from fastdistil.backends.cpu import CpuBackend, extension_error
from fastdistil.backends.reference import ReferenceBackend
from fastdistil.model import DistilBertModel
from fastdistil.packing import pack_ids
from fastdistil.program_cache import ParameterWalk, ProgramCache

Q0 = "transformer.layer.0.attention.q_lin.weight"


def model_and_cache() -> tuple[DistilBertModel, ProgramCache]:
    torch.manual_seed(0)
    return DistilBertModel(tiny_config()).eval(), ProgramCache(tiny_config(), backend="reference")


def named(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def test_the_same_weights_are_prepared_once() -> None:
    model, cache = model_and_cache()
    assert cache.program is None
    assert cache.selection is None
    first = cache.get(named(model))
    assert cache.get(named(model)) is first
    assert cache.program is first
    assert cache.selection is not None
    assert cache.selection.reason == "plain PyTorch in fp32 on cpu"


def optimizer_step(model: DistilBertModel) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.tensor([[5, 6]])).last_hidden_state.sum().backward()
    optimizer.step()


def load_other_weights(model: DistilBertModel) -> None:
    model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})


def assign_other_weights(model: DistilBertModel) -> None:
    model.load_state_dict({n: t + 1 for n, t in model.state_dict().items()}, assign=True)


def one_element(model: DistilBertModel) -> None:
    with torch.no_grad():
        model.embeddings.word_embeddings.weight[3, 4] = 7


def replace_a_parameter(model: DistilBertModel) -> None:
    linear = model.get_submodule("transformer.layer.0.attention.q_lin")
    linear.weight = nn.Parameter(linear.weight.detach() * 2)


def replace_a_module(model: DistilBertModel) -> None:
    model.transformer.layer[1] = copy.deepcopy(model.transformer.layer[0])


def tie(model: DistilBertModel) -> None:
    first = model.get_submodule("transformer.layer.0.ffn.lin1")
    model.get_submodule("transformer.layer.1.ffn.lin1").weight = first.weight


def reassign_data(model: DistilBertModel) -> None:
    weight = model.get_parameter(Q0)
    weight.data = weight.data * 2


def shrink_data_in_place(model: DistilBertModel) -> None:
    weight = model.embeddings.position_embeddings.weight
    weight.data = weight.data[:30]


def moving_average_through_data(model: DistilBertModel) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.99).add_(0.01)


CHANGES = [
    optimizer_step,
    load_other_weights,
    assign_other_weights,
    one_element,
    replace_a_parameter,
    replace_a_module,
    tie,
    reassign_data,
    shrink_data_in_place,
    moving_average_through_data,
    nn.Module.half,
    nn.Module.bfloat16,
    nn.Module.double,
    nn.Module.share_memory,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_changed_weights_are_prepared_again(change: Callable[[DistilBertModel], Any]) -> None:
    model, cache = model_and_cache()
    before = cache.get(named(model))
    change(model)
    after = cache.get(named(model))
    assert after is not before
    assert cache.get(named(model)) is after


@pytest.mark.parametrize("queues", [(), ("cpu",)])
def test_weights_are_looked_at_behind_a_queued_forward(
    queues: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_cache, "_QUEUES", queues)
    model, cache = model_and_cache()
    batch = pack_ids([[5, 6, 7]])
    ran: list[Program] = []

    def run(program: Program) -> Tensor:
        ran.append(program)
        return program.run(batch)

    first = cache.compute(named(model), run)
    assert torch.equal(cache.compute(named(model), run), first)
    assert len(set(ran)) == 1
    load_other_weights(model)
    changed = cache.compute(named(model), run)
    assert not torch.equal(changed, first)
    assert ran[-1] is cache.program
    # Queued with the old weights first, where that is thrown away; not otherwise.
    assert len(ran) == 3 + len(queues)
    fresh = ProgramCache(tiny_config(), backend="reference")
    assert torch.equal(fresh.get(named(model)).run(batch), changed)


def test_watching_leaves_no_mark_on_the_weights() -> None:
    model, cache = model_and_cache()
    cache.get(named(model))
    assert all(p.untyped_storage().resizable() for p in model.parameters())


def test_an_address_that_comes_back_is_not_taken_for_the_old_tensor() -> None:
    """Allocators hand freed memory out again, at the same address and with version 0."""
    model, cache = model_and_cache()
    table = model.embeddings.word_embeddings.weight
    for _ in range(20):
        program = cache.get(named(model))
        for _ in range(2):
            table.data = torch.full_like(table, 7.0)  # the same numbers, too
        assert cache.get(named(model)) is not program


def test_inference_tensors_have_no_version_but_can_be_watched() -> None:
    with torch.inference_mode():
        model, cache = model_and_cache()
    first = cache.get(named(model))
    assert cache.get(named(model)) is first
    with torch.inference_mode():
        assert cache.get(named(model)) is first
        for parameter in model.parameters():
            parameter.add_(1)
    assert cache.get(named(model)) is not first


def test_a_program_made_in_inference_mode_runs_outside() -> None:
    model, _ = model_and_cache()
    ids = torch.tensor([[5, 6]])
    with torch.inference_mode():
        inside = model(ids).last_hidden_state
    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, inside)


class SlowBackend(ReferenceBackend):
    """Counts, and takes its time, so that threads meet."""

    def __init__(self) -> None:
        self.prepared = 0

    def prepare(self, *arguments: Any) -> Any:
        self.prepared += 1
        time.sleep(0.05)
        return super().prepare(*arguments)


def test_threads_prepare_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = SlowBackend()
    monkeypatch.setattr("fastdistil.backends._REFERENCE", backend)
    model, cache = model_and_cache()
    programs, together = [], threading.Barrier(8)

    def work() -> None:
        together.wait()
        programs.append(cache.get(named(model)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert backend.prepared == 1
    assert len(programs) == 8
    assert len(set(map(id, programs))) == 1


def test_a_change_while_preparing_is_found_at_the_next_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, cache = model_and_cache()

    class Interrupted(ReferenceBackend):
        def prepare(self, *arguments: Any) -> Any:
            program = super().prepare(*arguments)
            one_element(model)
            return program

    monkeypatch.setattr("fastdistil.backends._REFERENCE", Interrupted())
    stale = cache.get(named(model))
    monkeypatch.undo()
    assert cache.get(named(model)) is not stale


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))]
)
def test_copies_are_empty_and_work(copied: Callable[[ProgramCache], ProgramCache]) -> None:
    model, _ = model_and_cache()
    cache = ProgramCache(tiny_config(), "bf16", "reference")
    first = cache.get(named(model))
    other = copied(cache)
    assert other.program is None
    assert other.get(named(model)) is not first
    assert (other.config, other.precision, other.backend) == (tiny_config(), "bf16", "reference")
    assert cache.get(named(model)) is first


def test_weights_in_two_places() -> None:
    model, cache = model_and_cache()
    tensors: Mapping[str, Tensor] = named(model) | {Q0: model.get_parameter(Q0).to("meta")}
    with pytest.raises(ValueError, match=f"weights: {Q0} is on meta, others are on cpu"):
        cache.get(tensors)


@pytest.mark.parametrize(
    ("precision", "backend", "message"),
    [("fp64", "auto", "precision: got 'fp64'"), ("auto", "gpu", "backend: got 'gpu'")],
)
def test_unknown_names_are_refused_at_once(precision: str, backend: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgramCache(tiny_config(), precision, backend)


# ---- the quick walk


def test_the_walk_finds_what_named_parameters_finds() -> None:
    model, _ = model_and_cache()
    walk = ParameterWalk()
    for change in (lambda model: None, replace_a_parameter, replace_a_module, reassign_data):
        change(model)
        found = walk.parameters(model)
        assert list(found) == list(named(model))
        assert all(found[name] is parameter for name, parameter in named(model).items())


def test_the_walk_gives_tied_parameters_under_both_names() -> None:
    model, _ = model_and_cache()
    tie(model)
    found = ParameterWalk().parameters(model)
    names = [f"transformer.layer.{index}.ffn.lin1.weight" for index in (0, 1)]
    assert found[names[0]] is found[names[1]]


def test_a_copied_model_walks_its_own_parameters() -> None:
    model, _ = model_and_cache()
    model(torch.tensor([[5]]))
    other = copy.deepcopy(model)
    for name, parameter in other._walk.parameters(other).items():
        assert parameter is other.get_parameter(name)


needs_cpu_engine = pytest.mark.skipif(
    extension_error() is not None, reason=f"{extension_error()}; `make test` builds it"
)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The precisions for which the CPU backend has packed weights, in order."""
    calls: list[str] = []
    prepare = CpuBackend.prepare

    def counted(self: CpuBackend, config: Any, weights: Any, *args: Any) -> Any:
        calls.append(args[1])
        return prepare(self, config, weights, *args)

    monkeypatch.setattr(CpuBackend, "prepare", counted)
    return calls


def cpu_model(precision: str = "fp32") -> DistilBertModel:
    torch.manual_seed(3)
    model = DistilBertModel(tiny_config(), precision=precision, backend="cpu")
    return model.eval().requires_grad_(False)


IDS = torch.tensor([[5, 6, 7]])


@needs_cpu_engine
def test_equal_weights_are_packed_once(packed: list[str]) -> None:
    model, same = cpu_model(), cpu_model()
    want = model(IDS).last_hidden_state
    twins = [same, copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    assert all(torch.equal(twin(IDS).last_hidden_state, want) for twin in twins)
    assert packed == ["fp32"]
    other = cpu_model()
    other.transformer.layer[0].ffn.lin1.weight[2, 3] += 1
    assert not torch.equal(other(IDS).last_hidden_state, want)
    assert packed == ["fp32", "fp32"]


@needs_cpu_engine
@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", Q0])
def test_what_is_shared_does_not_tie(packed: list[str], name: str) -> None:
    """A change of one model, in place, is seen by that model and by no other."""
    model = cpu_model()
    before = model(IDS).last_hidden_state
    twin = copy.deepcopy(model)
    assert torch.equal(twin(IDS).last_hidden_state, before)
    model.get_parameter(name).mul_(2)
    assert torch.equal(twin(IDS).last_hidden_state, before)
    after = model(IDS).last_hidden_state
    assert not torch.equal(after, before)
    assert torch.equal(twin(IDS).last_hidden_state, before)
    assert torch.equal(copy.deepcopy(model)(IDS).last_hidden_state, after)
    assert packed == ["fp32", "fp32"]


@needs_cpu_engine
def test_weights_changed_behind_the_counters_are_not_shared(packed: list[str]) -> None:
    """`.data` moves no version; a program packed before is stale for whoever copies now."""
    model = cpu_model()
    before = model(IDS).last_hidden_state
    model.get_parameter(Q0).data.mul_(2)
    assert not torch.equal(copy.deepcopy(model)(IDS).last_hidden_state, before)
    assert packed == ["fp32", "fp32"]


@needs_cpu_engine
def test_nothing_shared_outlives_its_users(packed: list[str]) -> None:
    model = cpu_model()
    model(IDS)
    alive = weakref.ref(model.program())
    twin = copy.deepcopy(model)
    twin(IDS)
    assert len(packed) == 1
    del model
    gc.collect()
    assert alive() is None
    assert twin(IDS).last_hidden_state.isfinite().all()
    del twin
    gc.collect()
    assert not any(map(len, program_cache._SHARED.values()))
