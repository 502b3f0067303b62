"""When an accelerated encoder runs its own forward instead, and that it says why."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_fp32_budget, padded_batch, random_hf_model, tiny_config
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import fastdistil
from fastdistil.hf_forward import no_gain

transformers = pytest.importorskip("transformers")
VERSION_4 = transformers.__version__.startswith("4.")
only_4 = pytest.mark.skipif(not VERSION_4, reason="only transformers 4 has this; 5 runs the others")
only_5 = pytest.mark.skipif(VERSION_4, reason="only transformers 5 has this; 4 runs the others")

IDS, MASK = padded_batch([6, 3, 5])
OUTPUT = "transformers.modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions"

both_kinds = pytest.mark.parametrize("kind", ["distilbert", "bert"])


def pair(kind: str, **sizes: Any) -> tuple[Any, Any]:
    """An accelerated model and the same model as it was."""
    model = random_hf_model(kind, **sizes)
    return fastdistil.accelerate(copy.deepcopy(model), precision="fp32"), model


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if hasattr(value, "values") else value
    return [tensor for part in values if part is not None for tensor in tensors_in(part)]


def assert_runs_itself(model: Any, original: Any, why: str, *args: Any, **kwargs: Any) -> Any:
    """The same call on both gives the very same tensors, and explain() has the reason."""
    before = fastdistil.explain(model)
    want, got = original(*args, **kwargs), model(*args, **kwargs)
    assert type(got) is type(want)
    assert [t.shape for t in tensors_in(got)] == [t.shape for t in tensors_in(want)]
    assert all(map(torch.equal, tensors_in(got), tensors_in(want)))
    after = fastdistil.explain(model)
    assert why in str(after.last_fallback)
    assert (after.fast_calls, after.fallback_calls) == (
        before.fast_calls,
        before.fallback_calls + 1,
    )
    return got


def assert_fast(model: Any, **kwargs: Any) -> Any:
    before = fastdistil.explain(model).fast_calls
    output = model(IDS, attention_mask=MASK, **kwargs)
    assert fastdistil.explain(model).fast_calls == before + 1
    return output


# What is asked for


@both_kinds
@torch.inference_mode()
def test_hidden_states_and_attentions(kind: str) -> None:
    config = transformers.AutoConfig.for_model(**tiny_config(kind).to_hf())
    original = transformers.AutoModel.from_config(config, attn_implementation="eager").eval()
    model = fastdistil.accelerate(copy.deepcopy(original))
    asked = {"attention_mask": MASK, "output_hidden_states": True}
    got = assert_runs_itself(model, original, "output_hidden_states was requested", IDS, **asked)
    assert len(got.hidden_states) == 3
    asked = {"attention_mask": MASK, "output_attentions": True}
    got = assert_runs_itself(model, original, "output_attentions was requested", IDS, **asked)
    assert len(got.attentions) == 2
    assert_fast(
        model, output_attentions=False
    )  # and transformers' recorders, left on, do not count


@both_kinds
@torch.inference_mode()
def test_hidden_states_by_configuration(kind: str) -> None:
    model, original = pair(kind)
    model.config.output_hidden_states = original.config.output_hidden_states = True
    got = assert_runs_itself(model, original, "output_hidden_states was requested", IDS)
    assert len(got.hidden_states) == 3
    assert_fast(model, output_hidden_states=False)


@torch.inference_mode()
def test_hidden_states_through_a_head() -> None:
    original = random_hf_model("distilbert", "DistilBertForSequenceClassification")
    model = fastdistil.accelerate(copy.deepcopy(original))
    got = assert_runs_itself(
        model, original, "output_hidden_states", IDS, MASK, output_hidden_states=True
    )
    assert len(got.hidden_states) == 3


@both_kinds
@torch.inference_mode()
def test_embeddings_instead_of_ids(kind: str) -> None:
    model, original = pair(kind)
    embeddings = torch.randn(3, 6, 48)
    call = {"inputs_embeds": embeddings, "attention_mask": MASK}
    assert_runs_itself(model, original, "inputs_embeds was given", **call)


@only_4
@torch.inference_mode()
def test_the_hint_about_a_missing_mask_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    hints = []
    kind = transformers.DistilBertModel
    name = "warn_if_padding_and_no_attention_mask"
    monkeypatch.setattr(kind, name, lambda self, ids, mask: hints.append(mask))
    model = fastdistil.accelerate(random_hf_model("distilbert"))
    model(IDS)
    assert_fast(model)
    assert hints == [None]


@only_4
@both_kinds
@torch.inference_mode()
def test_head_masks(kind: str) -> None:
    model, original = pair(kind)
    heads = torch.tensor([[1.0, 0, 1], [0, 1, 1]])
    assert_runs_itself(model, original, "head_mask was given", IDS, MASK, head_mask=heads)


@torch.inference_mode()
def test_caches_and_cross_attention_arguments() -> None:
    model, original = pair("bert")
    states = torch.randn(3, 4, 48)
    for name, value in {"use_cache": True, "encoder_hidden_states": states}.items():
        assert_runs_itself(model, original, f"{name} was given", IDS, MASK, **{name: value})
    assert_fast(model, use_cache=False, encoder_hidden_states=None)


@only_5
@both_kinds
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32], ids=str)
@torch.inference_mode()
def test_four_dimensional_masks(kind: str, dtype: torch.dtype) -> None:
    model, original = pair(kind)
    causal = torch.ones(3, 1, 6, 6).tril().bool()
    mask = causal if dtype is torch.bool else torch.where(causal, 0.0, -1e9)
    why = "attention_mask is not a [batch, length] tensor"
    assert_runs_itself(model, original, why, IDS, attention_mask=mask)


@only_4
@torch.inference_mode()
def test_three_dimensional_masks() -> None:
    model, original = pair("bert")
    mask = torch.ones(3, 6, 6).tril()
    why = "attention_mask is not a [batch, length] tensor"
    assert_runs_itself(model, original, why, IDS, attention_mask=mask)


@both_kinds
@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (MASK * torch.tensor([[1], [0], [1]]), "a row of attention_mask is all zeros"),
        (MASK * 2, "values other than 0 and 1"),
        (MASK * 0.5, "values other than 0 and 1"),
    ],
    ids=["row of zeros", "twos", "halves"],
)
@torch.inference_mode()
def test_masks_that_mean_more_than_padding(kind: str, mask: Tensor, why: str) -> None:
    model, original = pair(kind)
    assert_runs_itself(model, original, why, IDS, attention_mask=mask)


@only_5
@torch.inference_mode()
def test_causal_attention_asked_of_an_encoder() -> None:
    model, original = pair("bert")
    assert_runs_itself(model, original, "is_causal was given", IDS, is_causal=True)
    model.config.is_causal = original.config.is_causal = True
    assert_runs_itself(model, original, "causal attention", IDS)


@torch.inference_mode()
def test_a_configuration_turned_decoder() -> None:
    model, original = pair("bert")
    model.config.is_decoder = original.config.is_decoder = True
    assert_runs_itself(model, original, "causal attention", IDS, use_cache=False)


@only_5
@torch.inference_mode()
def test_an_attention_implementation_of_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    def uniform(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Any:
        return v.mean(2, keepdim=True).expand_as(v).transpose(1, 2).contiguous(), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "uniform", uniform)
    model, original = pair("distilbert")
    for each in (model, original):
        each.config._attn_implementation = "uniform"
    assert_runs_itself(model, original, "'uniform' may compute something else", IDS)


@only_5
@torch.inference_mode()
def test_arguments_that_only_pass_through() -> None:
    model = fastdistil.accelerate(random_hf_model("distilbert"))
    assert_fast(model, num_items_in_batch=torch.tensor(3))
    assert_fast(model, token_type_ids=torch.zeros_like(IDS))


@torch.inference_mode()
def test_a_pooler_of_the_user_s_may_read_everything() -> None:
    class MeanOfAllStates(nn.Module):
        def forward(self, states: Tensor) -> Tensor:
            return states.mean(1)

    model, original = pair("bert")
    model.pooler, original.pooler = MeanOfAllStates(), MeanOfAllStates()
    assert_runs_itself(model, original, "reads all positions", IDS, MASK)
    whole = model(IDS, torch.ones_like(IDS))
    assert_fp32_budget(whole.pooler_output, original(IDS).pooler_output)
    assert fastdistil.explain(model).fast_calls == 1


@torch.inference_mode()
def test_defaults_of_torch_do_not_matter() -> None:
    model = fastdistil.accelerate(random_hf_model("distilbert"))
    want = assert_fast(model).last_hidden_state
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            got = assert_fast(model).last_hidden_state
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("engine", "asked", "device", "keeps"),
    [
        ("reference", "auto", "cuda", True),
        ("reference", "reference", "cuda", False),
        ("reference", "auto", "cpu", False),
        ("cpu", "auto", "cpu", False),
    ],
)
def test_no_engine_is_better_than_one_that_gains_nothing(
    engine: str, asked: str, device: str, keeps: bool
) -> None:
    assert bool(no_gain(engine, asked, torch.device(device))) == keeps


# Training and gradients


@both_kinds
def test_training_mode(kind: str) -> None:
    model, original = pair(kind)
    model.train(), original.train()
    outputs = []
    for each in (model, original):
        torch.manual_seed(0)  # the same dropout
        each(IDS, MASK).last_hidden_state.sum().backward()
        outputs.append([parameter.grad for parameter in each.parameters()])
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(*outputs, strict=True))
    assert fastdistil.explain(model).last_fallback == "the encoder is in training mode"
    with torch.inference_mode():
        assert_fast(model.eval())


@both_kinds
def test_gradients_in_eval_mode_are_kept_and_warned_about_once(kind: str) -> None:
    model, original = pair(kind)
    with pytest.warns(UserWarning, match=r"torch\.inference_mode\(\)") as caught:
        loss = model(IDS, MASK).last_hidden_state.square().mean()
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_runs_itself(model, original, "the weights require them", IDS, MASK)
    loss.backward()
    original(IDS, MASK).last_hidden_state.square().mean().backward()
    theirs = dict(original.named_parameters())
    assert all(
        parameter.grad is theirs[name].grad is None
        or torch.equal(parameter.grad, theirs[name].grad)
        for name, parameter in model.named_parameters()
    )


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode, nn.Module.requires_grad_])
def test_no_warning_where_no_gradient_is_wanted(quiet: Any) -> None:
    model = fastdistil.accelerate(random_hf_model("distilbert"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if quiet is nn.Module.requires_grad_:
            assert not assert_fast(model.requires_grad_(False)).last_hidden_state.requires_grad
        else:
            with quiet():
                assert_fast(model)


def test_a_head_trains_on_a_frozen_accelerated_encoder() -> None:
    original = random_hf_model("bert", "BertForSequenceClassification")
    original.bert.requires_grad_(False)
    original.bert.pooler.requires_grad_(True)
    model = fastdistil.accelerate(copy.deepcopy(original), precision="fp32")
    for each in (model, original):
        each(IDS, MASK, labels=torch.tensor([0, 1, 0])).loss.backward()
    assert fastdistil.explain(model).fast_calls == 1
    for head in ("classifier.weight", "bert.pooler.dense.weight"):
        got, want = (each.get_parameter(head).grad for each in (model, original))
        assert_fp32_budget(got, want)


def test_gradient_checkpointing() -> None:
    model = fastdistil.accelerate(random_hf_model("distilbert"))
    model.gradient_checkpointing_enable()
    model.train()(IDS, MASK).last_hidden_state.sum().backward()
    assert model.transformer.layer[0].ffn.lin1.weight.grad is not None
    with torch.inference_mode():
        assert_fast(model.eval())


@both_kinds
@torch.inference_mode()
def test_dropout_switched_on_inside(kind: str) -> None:
    model = fastdistil.accelerate(random_hf_model(kind))
    model.embeddings.dropout.train()
    first, second = (model(IDS, MASK).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)
    assert fastdistil.explain(model).last_fallback == "embeddings.dropout is in training mode"
    assert_fast(model.eval())


@torch.inference_mode()
def test_autocast() -> None:
    model, original = pair("bert")
    with torch.autocast("cpu", torch.bfloat16):
        assert_runs_itself(model, original, "autocast is active", IDS, MASK)
    assert_fast(model)


# Hooks and changed modules


@both_kinds
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@torch.inference_mode()
def test_hooks_inside(kind: str, register: str) -> None:
    model, original = pair(kind)
    layers = "transformer.layer.1" if kind == "distilbert" else "encoder.layer.1"
    seen: list[nn.Module] = []
    hook = getattr(model.get_submodule(layers), register)(lambda block, *_: seen.append(block))
    why = f"a forward hook is registered on {layers}"
    assert_runs_itself(model, original, why, IDS, MASK)
    assert seen == [model.get_submodule(layers)]
    hook.remove()
    assert_fast(model)


@torch.inference_mode()
def test_hooks_on_the_encoder_itself_see_the_fast_forward() -> None:
    model = fastdistil.accelerate(random_hf_model("bert", "BertForMaskedLM"))
    calls = []
    model.bert.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append("attention_mask" in kwargs), with_kwargs=True
    )
    model.bert.register_forward_hook(lambda module, args, output: calls.append(type(output)))
    assert_fast(model)
    assert [str(call) for call in calls] == ["True", f"<class '{OUTPUT}'>"]


@torch.inference_mode()
def test_hooks_on_all_modules() -> None:
    model, original = pair("distilbert")
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        assert_runs_itself(model, original, "hooks are registered on all modules", IDS, MASK)
    finally:
        hook.remove()
    assert nn.LayerNorm in seen
    assert_fast(model)


class Adapted(nn.Module):
    """A linear layer with a low-rank addition, as adapters inject them."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base
        self.down, self.up = torch.ones(2, 48), torch.ones(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def _adapt(model: Any) -> None:
    attention = model.transformer.layer[1].attention
    attention.q_lin = Adapted(attention.q_lin)


def _parametrize(model: Any) -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    layer = model.transformer.layer[0].ffn.lin1
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())


def _prune(model: Any) -> None:
    torch.manual_seed(0)
    prune.random_unstructured(model.transformer.layer[0].ffn.lin2, "weight", 0.3)


def _norm(model: Any) -> None:
    layer = model.transformer.layer[0].attention.v_lin
    nn.utils.weight_norm(layer)
    layer.weight_g.data *= 2


def _patch(model: Any) -> None:
    block = model.transformer.layer[1]
    block.forward = lambda x, *args, **kwargs: (x,) if VERSION_4 else x


def _cast(model: Any) -> None:
    model.embeddings.double()
    model.transformer.double()
    model.embeddings.position_embeddings.float()


def _double(model: Any) -> None:
    model.double()


def _rename_activation(model: Any) -> None:
    model.transformer.layer[0].ffn.activation = nn.Tanh()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_adapt, "transformer.layer.1.attention.q_lin is a test_drop_in_own_forward.Adapted"),
        (_parametrize, "transformer.layer.0.ffn.lin1 is a torch.nn.utils.parametrize.Parametrized"),
        (_prune, "transformer.layer.0.ffn.lin2.weight is computed, not stored"),
        (_norm, "transformer.layer.0.attention.v_lin.weight is computed, not stored"),
        (_patch, "the forward of transformer.layer.1 was replaced"),
        (_cast, "its weights have several dtypes: torch.float32, torch.float64"),
        (_double, "its weights are torch.float64"),
        (_rename_activation, "activation Tanh"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@torch.no_grad()
def test_modules_changed_after_the_call(change: Callable[[Any], None], why: str) -> None:
    model, original = pair("distilbert")
    assert_fast(model)
    change(model), change(original)
    assert_runs_itself(model, original, why, IDS, MASK)
    assert why in str(fastdistil.explain(model)) or change is _patch


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@torch.inference_mode()
def test_dynamically_quantized_layers() -> None:
    original = torch.ao.quantization.quantize_dynamic(random_hf_model("distilbert"), {nn.Linear})
    with pytest.raises(ValueError, match=r"q_lin is a torch\.ao\.nn\.quantized\.dynamic"):
        fastdistil.accelerate(original)
    model = fastdistil.accelerate(random_hf_model("distilbert"))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    why = "torch.ao.nn.quantized.dynamic.modules.linear.Linear"
    assert_runs_itself(quantized, original, why, IDS, MASK)
    assert_fast(model)


@only_4
@torch.inference_mode()
def test_pruned_heads() -> None:
    model, original = pair("distilbert")
    model.prune_heads({0: [1]}), original.prune_heads({0: [1]})
    assert_runs_itself(model, original, "number of heads", IDS, MASK)


@torch.inference_mode()
def test_weights_swapped_for_one_call() -> None:
    model, original = pair("distilbert")
    weights = {name: tensor * 1.5 for name, tensor in model.named_parameters()}
    call = (weights, (IDS, MASK))
    got = torch.func.functional_call(model, *call).last_hidden_state
    want = torch.func.functional_call(original, *call).last_hidden_state
    assert torch.equal(got, want)
    assert "not a plain nn.Parameter" in str(fastdistil.explain(model).last_fallback)
    assert_fast(model)


@only_5  # transformers 4 itself fails there
@torch.inference_mode()
def test_weights_without_values() -> None:
    model = fastdistil.accelerate(random_hf_model("distilbert"))
    assert model.to("meta")(IDS.to("meta")).last_hidden_state.is_meta
    assert "meta" in str(fastdistil.explain(model).last_fallback)
    assert fastdistil.explain(model).backend == "own forward"
    with pytest.raises(ValueError, match="meta device"):
        fastdistil.accelerate(model)


# Compilers and other onlookers


@pytest.mark.parametrize("class_name", ["DistilBertForSequenceClassification", "BertModel"])
@torch.inference_mode()
def test_torch_compile(class_name: str) -> None:
    kind = "bert" if class_name.startswith("Bert") else "distilbert"
    original = random_hf_model(kind, class_name)
    model = fastdistil.accelerate(copy.deepcopy(original))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    want = original(IDS, MASK)[0]
    for _ in range(2):
        torch.testing.assert_close(compiled(IDS, MASK)[0], want)
    assert "compiled, exported or traced" in fastdistil.explain(model).last_fallback


@torch.inference_mode()
def test_torch_export() -> None:
    model, original = pair("distilbert")
    program = torch.export.export(model, (IDS, MASK))
    got, want = program.module()(IDS, MASK), original(IDS, MASK)
    torch.testing.assert_close(got.last_hidden_state, want.last_hidden_state)
    assert "compiled, exported or traced" in fastdistil.explain(model).last_fallback


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_torch_jit_trace() -> None:
    model, original = pair("distilbert")
    traced = torch.jit.trace(model, (IDS, MASK), strict=False)
    got, want = traced(IDS, MASK), original(IDS, MASK)
    torch.testing.assert_close(got["last_hidden_state"], want.last_hidden_state)
    assert "compiled, exported or traced" in fastdistil.explain(model).last_fallback


@torch.no_grad()
def test_dispatch_modes_see_the_operations() -> None:
    model, original = pair("distilbert")
    counts = []
    for each in (model, original):
        with FlopCounterMode(display=False) as counter:
            each(IDS, MASK)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
    assert "a dispatch mode" in str(fastdistil.explain(model).last_fallback)


@only_5  # transformers 4 itself fails there
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@torch.no_grad()
def test_function_transformations() -> None:
    model, original = pair("distilbert")
    model.requires_grad_(False)
    ids = IDS.unsqueeze(1)

    def over_rows(each: Any) -> Tensor:
        return torch.func.vmap(lambda row: each(row).last_hidden_state)(ids)

    assert torch.equal(over_rows(model), over_rows(original))
    assert "a torch.func transformation" in str(fastdistil.explain(model).last_fallback)


# Wrong input


@both_kinds
@pytest.mark.parametrize(
    "arguments",
    [
        {"input_ids": torch.ones(1, 41, dtype=torch.long)},
        {"input_ids": torch.ones(0, 4, dtype=torch.long)},
        {"input_ids": torch.ones(2, 0, dtype=torch.long)},
        {"input_ids": IDS.float()},
        {"input_ids": IDS.tolist()},
        {"input_ids": IDS[0]},
        {"input_ids": IDS, "attention_mask": MASK[:, :4]},
        {"input_ids": IDS.to("meta"), "attention_mask": MASK},
        {"input_ids": IDS, "attention_mask": MASK.to("meta")},
        {"input_ids": IDS, "inputs_embeds": torch.ones(3, 6, 48)},
        {},
    ],
    ids=[
        *("too long", "no rows", "no columns", "floats", "a list", "1-D"),
        *("short mask", "device", "device of the mask", "both", "nothing"),
    ],
)
@torch.inference_mode()
def test_wrong_input_fails_as_it_always_did(kind: str, arguments: dict[str, Any]) -> None:
    model, original = pair(kind)
    assert outcome(model, arguments) == outcome(original, arguments)
    assert fastdistil.explain(model).fast_calls == 0


@pytest.mark.parametrize("name", ["token_type_ids", "position_ids"])
@pytest.mark.parametrize("ids", [IDS[:, :4] % 2, IDS[:2] % 2, IDS[0] % 2, IDS.float()])
@torch.inference_mode()
def test_wrong_ids_beside_the_tokens_fail_as_they_always_did(name: str, ids: Tensor) -> None:
    model, original = pair("bert")
    arguments = {"input_ids": IDS, name: ids}
    assert outcome(model, arguments) == outcome(original, arguments)
    assert fastdistil.explain(model).fast_calls == 0


def outcome(model: Any, arguments: dict[str, Any]) -> tuple[type, str]:
    try:
        output = model(**arguments)
    except Exception as error:
        return type(error), str(error)
    return type(output), str(output.last_hidden_state.shape)  # memory nobody wrote has any value


@both_kinds
@torch.inference_mode()
def test_unknown_arguments_fail_as_they_always_did(kind: str) -> None:
    model, original = pair(kind)
    for call in (lambda m: m(IDS, input_ids=IDS), lambda m: m(*[None] * 20)):
        with pytest.raises(TypeError) as theirs:
            call(original)
        with pytest.raises(TypeError) as ours:
            call(model)
        assert str(ours.value) == str(theirs.value)


@only_4
@torch.inference_mode()
def test_version_4_has_no_segments_in_distilbert() -> None:
    model = fastdistil.accelerate(random_hf_model("distilbert"))
    with pytest.raises(TypeError, match="token_type_ids"):
        model(IDS, token_type_ids=IDS)


@pytest.mark.parametrize("bad", [99, -1, 2**40])
@torch.inference_mode()
def test_ids_outside_the_vocabulary_never_reach_a_kernel(bad: int) -> None:
    model, original = pair("distilbert")
    ids = IDS.clone()
    ids[1, 1] = bad
    with pytest.raises(IndexError):
        original(ids, MASK)
    with pytest.raises(ValueError, match=f"input_ids.*: {bad}"):
        model(ids, MASK)


@torch.inference_mode()
def test_segments_and_positions_outside_their_tables() -> None:
    model = fastdistil.accelerate(random_hf_model("bert"))
    with pytest.raises(ValueError, match=r"segment_ids.*: 2 at token 0 of sequence 0"):
        model(IDS, MASK, token_type_ids=torch.full_like(IDS, 2))
    with pytest.raises(ValueError, match=r"positions.*: 40 at token 0 of sequence 0"):
        model(IDS, MASK, position_ids=torch.full_like(IDS, 40))


# Threads


@torch.inference_mode()
def test_eight_threads_at_once() -> None:
    original = random_hf_model("distilbert", "DistilBertForTokenClassification")
    batches = [padded_batch([6, 3, 5], seed=seed) for seed in range(8)]
    model = fastdistil.accelerate(copy.deepcopy(original), precision="fp32")
    wants = [original(*batch).logits for batch in batches]
    gots: dict[int, list[Tensor]] = {}

    @torch.inference_mode()
    def work(index: int) -> None:
        gots[index] = [model(*batches[index]).logits for _ in range(20)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, (want, (_, mask)) in enumerate(zip(wants, batches, strict=True)):
        assert all(torch.equal(got, gots[index][0]) for got in gots[index])
        assert_fp32_budget(gots[index][0][mask == 1], want[mask == 1])
    assert fastdistil.explain(model).fast_calls == 160
