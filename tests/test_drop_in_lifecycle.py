"""An accelerated model over its life: weights change, it is copied, stored, and restored."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_fp32_budget, padded_batch, random_hf_model, randomize
from torch import Tensor, nn

import fastdistil
from fastdistil.config import EncoderConfig
from fastdistil.drop_in import Explanation

transformers = pytest.importorskip("transformers")

IDS, MASK = padded_batch([6, 3, 5])
HEADS = ["DistilBertForSequenceClassification", "BertForMaskedLM"]


def accelerated(class_name: str) -> Any:
    kind = "bert" if class_name.startswith("Bert") else "distilbert"
    return fastdistil.accelerate(random_hf_model(kind, class_name), precision="fp32")


@torch.inference_mode()
def answer(model: Any) -> Tensor:
    return model(IDS, attention_mask=MASK)[0]


def answer_of_the_original(model: Any) -> Tensor:
    return answer(fastdistil.restore(copy.deepcopy(model)))


def assert_fast_and_right(model: Any) -> Tensor:
    before = fastdistil.explain(model).fast_calls
    got, want = answer(model), answer_of_the_original(model)
    assert got.dtype == want.dtype
    if got.dtype == torch.float32:
        real = MASK.bool() if got.shape[:2] == MASK.shape else ...
        assert_fp32_budget(got[real], want[real])
    assert fastdistil.explain(model).fast_calls == before + 1
    return got


# Weights that change after the call


def _encoder(model: Any) -> Any:
    return model.base_model


def _load(model: Any) -> None:
    other = copy.deepcopy(model)
    randomize(other, seed=1)
    model.load_state_dict(other.state_dict())


def _load_and_assign(model: Any) -> None:
    other = copy.deepcopy(model)
    randomize(other, seed=1)
    model.load_state_dict(other.state_dict(), assign=True)


def _train_a_step(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model.train()(IDS, attention_mask=MASK)[0].square().mean().backward()
    optimizer.step()
    model.eval()


def _round_to_half(model: Any) -> None:
    model.half().float()  # likely at the same addresses, with the same versions


def _new_parameter(model: Any) -> None:
    layer = _encoder(model).get_submodule("embeddings.LayerNorm")
    layer.weight = nn.Parameter(layer.weight.detach() * 2)


def _new_module(model: Any) -> None:
    _encoder(model).embeddings.LayerNorm = nn.LayerNorm(48, eps=1e-12)


def _assign_data(model: Any) -> None:
    _encoder(model).embeddings.word_embeddings.weight.data = torch.randn(99, 48)


def _write_in_place(model: Any) -> None:
    with torch.no_grad():
        _encoder(model).embeddings.word_embeddings.weight.mul_(1.5)


def _write_through_data(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.1)


def _tie(model: Any) -> None:
    embeddings = _encoder(model).embeddings
    embeddings.position_embeddings.weight = nn.Parameter(
        embeddings.word_embeddings.weight.detach()[:40].clone()
    )


def _resize_tokens(model: Any) -> None:
    model.resize_token_embeddings(107)
    with torch.no_grad():
        _encoder(model).embeddings.word_embeddings.weight.add_(0.1)


def _in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        model.load_state_dict({k: v * 1.2 for k, v in model.state_dict().items()}, assign=True)


CHANGES = [
    _load,
    _load_and_assign,
    _train_a_step,
    _round_to_half,
    _new_parameter,
    _new_module,
    _assign_data,
    _write_in_place,
    _write_through_data,
    _tie,
    _resize_tokens,
    _in_inference_mode,
]


@pytest.mark.parametrize("class_name", HEADS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_changed_weights_are_noticed(class_name: str, change: Callable[[Any], None]) -> None:
    model = accelerated(class_name)
    before = assert_fast_and_right(model)
    change(model)
    after = assert_fast_and_right(model)
    assert before.shape != after.shape or not torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_change_of_dtype_is_noticed(dtype: torch.dtype) -> None:
    model = accelerated("DistilBertForSequenceClassification")
    before = assert_fast_and_right(model)
    assert assert_fast_and_right(model.to(dtype)).dtype == dtype
    torch.testing.assert_close(assert_fast_and_right(model.float()), before, rtol=0.1, atol=0.1)


@torch.inference_mode()
def test_more_words_are_noticed() -> None:
    model = random_hf_model("distilbert")
    fastdistil.accelerate(model, precision="fp32")
    assert_fast_and_right(model)
    model.resize_token_embeddings(107)
    new_words = torch.arange(99, 107).unsqueeze(0)
    want = fastdistil.restore(copy.deepcopy(model))(new_words).last_hidden_state
    assert_fp32_budget(model(new_words).last_hidden_state, want)
    model.resize_token_embeddings(100)
    with pytest.raises(ValueError, match=r"input_ids.*: 100 at token 1"):
        model(new_words)
    assert fastdistil.explain(model).fast_calls == 2


@torch.inference_mode()
def test_more_positions_are_noticed() -> None:
    model = random_hf_model("distilbert")
    fastdistil.accelerate(model, precision="fp32")
    longer, ones = padded_batch([41])
    with pytest.raises(RuntimeError):
        model(longer, ones)
    model.resize_position_embeddings(60)
    model.embeddings.position_ids = torch.arange(60).unsqueeze(0)  # transformers forgets to
    want = copy.deepcopy(model)
    got = model(longer, ones).last_hidden_state
    assert_fp32_budget(got, fastdistil.restore(want)(longer, ones).last_hidden_state)
    assert fastdistil.explain(model).fast_calls == 1


def test_a_few_elements_written_through_data_count_from_the_next_accelerate() -> None:
    model = accelerated("BertForMaskedLM")
    assert_fast_and_right(model)
    _encoder(model).encoder.layer[0].output.dense.weight.data[0] += 1.0
    fastdistil.accelerate(model, precision="fp32")
    assert_fast_and_right(model)


# Copies


@pytest.mark.parametrize("class_name", HEADS)
def test_deep_copies_are_accelerated_and_independent(class_name: str) -> None:
    model = accelerated(class_name)
    before = assert_fast_and_right(model)
    twin = copy.deepcopy(model)
    assert fastdistil.explain(twin).fast_calls == 0
    _write_in_place(twin)
    assert not torch.equal(assert_fast_and_right(twin), before)
    assert torch.equal(answer(model), before)
    fastdistil.restore(twin)
    assert fastdistil.explain(model).fast_calls == 2


def _pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def _save(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, _pickle, _save])
@pytest.mark.parametrize("class_name", HEADS)
def test_copies_give_the_same_answers(class_name: str, copied: Callable[[Any], Any]) -> None:
    model = accelerated(class_name)
    before = answer(model)
    twin = copied(model)
    assert torch.equal(answer(twin), before)
    explanation = fastdistil.explain(twin)
    assert (explanation.precision, explanation.fast_calls) == ("fp32", 1)
    assert _encoder(twin).forward.encoder is _encoder(twin)


def test_the_forward_itself_can_be_pickled() -> None:
    model = accelerated("BertForMaskedLM")
    forward = pickle.loads(pickle.dumps(model.bert.forward))
    with torch.inference_mode():
        states = forward(IDS, attention_mask=MASK).last_hidden_state
        want = model.bert(IDS, attention_mask=MASK).last_hidden_state
    assert torch.equal(states, want)
    assert forward.encoder.forward is forward


@pytest.mark.parametrize("copied", [copy.deepcopy, _pickle])
def test_copies_keep_the_options(copied: Callable[[Any], Any]) -> None:
    model = random_hf_model("distilbert")
    options = {"precision": "fp32", "deterministic": False, "cuda_graphs": False}
    forward = copied(fastdistil.accelerate(model, **options)).forward
    assert {name: getattr(forward, name) for name in options} == options
    engine = forward._read().cache
    assert not engine.options.deterministic
    assert not engine.options.cuda_graphs


@pytest.mark.parametrize("class_name", HEADS)
def test_save_pretrained_and_state_dict(class_name: str, tmp_path: Path) -> None:
    model = accelerated(class_name)
    plain = random_hf_model("bert" if class_name.startswith("Bert") else "distilbert", class_name)
    assert list(model.state_dict()) == list(plain.state_dict())
    model.save_pretrained(tmp_path / "fast")
    plain.save_pretrained(tmp_path / "plain")
    files = sorted(path.name for path in (tmp_path / "plain").iterdir())
    assert sorted(path.name for path in (tmp_path / "fast").iterdir()) == files
    for name in files:
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    loaded = getattr(transformers, class_name).from_pretrained(tmp_path / "fast")
    assert torch.equal(answer(loaded.eval()), answer(plain))


def test_an_accelerated_model_can_be_forgotten() -> None:
    model = accelerated("BertForMaskedLM")
    answer(model)
    gone = weakref.ref(model.bert)
    del model
    gc.collect()
    assert gone() is None


# restore()


def traces(model: nn.Module) -> dict[str, Any]:
    """Every attribute of every module, tensors and nested modules by identity, hooks by content."""
    return {
        f"{name}|{key}": dict(value) if isinstance(value, dict) else value
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
    }


def assert_untouched(model: Any, before: dict[str, Any], config: dict[str, Any]) -> None:
    after = traces(model)
    assert list(after) == list(before)
    for key, value in before.items():
        same = after[key] is value or (isinstance(value, dict) and _same_items(after[key], value))
        assert same or after[key] == value, key
    assert model.config.to_dict() == config
    for module in model.modules():
        assert "forward" not in module.__dict__
        assert module.forward.__func__ is type(module).forward


def _same_items(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return list(one) == list(other) and all(one[key] is other[key] for key in one)


@pytest.mark.parametrize("class_name", HEADS)
def test_restore_leaves_no_trace(class_name: str) -> None:
    model = random_hf_model("bert" if class_name.startswith("Bert") else "distilbert", class_name)
    want, before, config = answer(model), traces(model), model.config.to_dict()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = {kind: dict(vars(kind)) for kind in map(type, model.modules())}
    for _ in range(2):
        fastdistil.accelerate(model, precision="fp32")
        answer(model)
        answer(model)
    assert fastdistil.restore(model) is model
    assert_untouched(model, before, config)
    assert torch.equal(answer(model), want)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(dict(vars(kind)) == attributes for kind, attributes in classes.items())


def test_restore_of_a_copy_and_of_what_is_not_accelerated() -> None:
    model = random_hf_model("distilbert")
    before, config = traces(model), model.config.to_dict()
    fastdistil.restore(model)
    assert_untouched(model, before, config)
    twin = copy.deepcopy(fastdistil.accelerate(model))
    fastdistil.restore(twin)
    assert twin.__dict__.keys() == twin.__dict__.keys() - {"forward"}
    assert "forward" in model.__dict__


def test_restore_puts_the_same_configuration_objects_back_under_shared_use() -> None:
    first = random_hf_model("distilbert")
    second = transformers.DistilBertModel(first.config).eval()
    fastdistil.accelerate(first)
    answer(first)
    answer(second)
    assert first.config is second.config
    assert "forward" not in second.__dict__
    with pytest.raises(ValueError, match="not accelerated"):
        fastdistil.explain(second)


def test_explain_takes_fastdistils_own_models() -> None:
    config = EncoderConfig(vocab_size=99, hidden_size=32, num_heads=2, intermediate_size=64)
    model = fastdistil.DistilBertModel(config, precision="fp32").eval().requires_grad_(False)
    explanation = fastdistil.explain(model)
    assert isinstance(explanation, Explanation)
    assert explanation.precision == "fp32"
    assert explanation.backend in ("cpu", "reference")
    assert "calls" not in str(explanation)
    assert str(explanation).startswith(f"DistilBertModel: {explanation.backend}, fp32, ")
