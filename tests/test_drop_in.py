"""accelerate() on every DistilBERT and BERT class: the same answers under the same contract."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    assert_cosine,
    assert_fp32_budget,
    hf_model,
    padded_batch,
    random_hf_model,
    randomize,
    tiny_config,
)
from torch import Tensor, nn

import fastdistil
from fastdistil.backends.cpu import extension_error
from fastdistil.checkpoint import canonical_state_dict
from fastdistil.hf_layout import read_layout

transformers = pytest.importorskip("transformers")
VERSION_4 = transformers.__version__.startswith("4.")
ASKED_FOR = os.environ.get("FASTDISTIL_TEST_TRANSFORMERS")

CLASSES = [
    "DistilBertModel",
    "DistilBertForMaskedLM",
    "DistilBertForSequenceClassification",
    "DistilBertForTokenClassification",
    "DistilBertForQuestionAnswering",
    "DistilBertForMultipleChoice",
    "BertModel",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "BertForTokenClassification",
    "BertForQuestionAnswering",
    "BertForMultipleChoice",
    "BertForNextSentencePrediction",
    "BertForPreTraining",
]
LENGTHS = [9, 4, 1, 7]


def family(class_name: str) -> str:
    return "distilbert" if class_name.startswith("Distil") else "bert"


def encoder_of(model: nn.Module) -> Any:
    names = ("DistilBertModel", "BertModel")
    return next(m for m in model.modules() if type(m).__name__ in names)


def batch_for(class_name: str, lengths: list[int], side: str = "right") -> dict[str, Tensor]:
    """What a tokenizer and a collator hand to a model of that class, labels included."""
    ids, mask = padded_batch(lengths, side=side)
    batch = {"input_ids": ids, "attention_mask": mask}
    if family(class_name) == "bert":
        batch["token_type_ids"] = (torch.arange(ids.shape[1]) > 2).long().expand_as(ids)
    per_text, per_token = torch.arange(len(lengths)) % 2, torch.where(mask == 1, ids, -100)
    if class_name.endswith("MultipleChoice"):
        batch = {name: tensor.unflatten(0, (-1, 2)) for name, tensor in batch.items()}
        batch["labels"] = per_text[: len(lengths) // 2]
    elif class_name.endswith(("SequenceClassification", "NextSentencePrediction")):
        batch["labels"] = per_text
    elif class_name.endswith("MaskedLM"):
        batch["labels"] = per_token
    elif class_name.endswith("TokenClassification"):
        batch["labels"] = torch.where(mask == 1, ids % 2, -100)
    elif class_name.endswith("QuestionAnswering"):
        batch |= {"start_positions": per_text, "end_positions": per_text + 1}
    elif class_name.endswith("PreTraining"):
        batch |= {"labels": per_token, "next_sentence_label": per_text}
    return batch


def assert_same(got: Any, want: Any, mask: Tensor) -> None:
    """The same kind of output with the same values, at real positions where there are positions."""
    assert type(got) is type(want)
    assert list(got.keys()) == list(want.keys())
    for name, expected in want.items():
        actual = got[name]
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        per_token = expected.shape[:2] == mask.shape
        real = mask.bool() if per_token else ...
        assert_fp32_budget(actual[real], expected[real])


@pytest.mark.skipif(ASKED_FOR is None, reason="`make pytest-transformers4` asks for a version")
def test_this_is_the_transformers_version_asked_for() -> None:
    assert transformers.__version__.split(".")[0] == ASKED_FOR


@pytest.mark.parametrize("class_name", CLASSES)
def test_same_outputs_and_loss(class_name: str) -> None:
    model = random_hf_model(family(class_name), class_name)
    batch = batch_for(class_name, [6, 6, 6, 6])
    with torch.inference_mode():
        want = model(**batch)
        assert fastdistil.accelerate(model, precision="fp32") is model
        got = model(**batch)
    assert "loss" in want or "Model" in class_name
    assert_same(got, want, batch["attention_mask"])
    assert fastdistil.explain(model).fast_calls == 1


@pytest.mark.parametrize("class_name", CLASSES)
def test_same_outputs_and_loss_with_padding(class_name: str) -> None:
    model = random_hf_model(family(class_name), class_name)
    batch = batch_for(class_name, LENGTHS)
    with torch.inference_mode():
        want = model(**batch)
        fastdistil.accelerate(model, precision="fp32")
        got = model(**batch)
    assert_same(got, want, batch["attention_mask"])
    explanation = fastdistil.explain(model)
    if class_name.endswith("QuestionAnswering"):  # its loss and its argmax look at the pads
        assert "reads all positions" in explanation.last_fallback
    else:
        assert explanation.fast_calls == 1


@pytest.mark.parametrize("class_name", CLASSES)
def test_left_padding_is_fast_only_where_nobody_reads_the_first_column(class_name: str) -> None:
    model = random_hf_model(family(class_name), class_name)
    batch = batch_for(class_name, LENGTHS, side="left")
    with torch.inference_mode():
        want = model(**batch)
        fastdistil.accelerate(model, precision="fp32")
        got = model(**batch)
    assert_same(got, want, batch["attention_mask"])
    reads_real_tokens_only = {
        "DistilBertModel",
        "DistilBertForMaskedLM",
        "DistilBertForTokenClassification",
        "BertForMaskedLM",
        "BertForTokenClassification",
    }
    assert fastdistil.explain(model).fast_calls == int(class_name in reads_real_tokens_only)


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.bool, torch.float32, torch.bfloat16], ids=str
)
def test_mask_kinds(kind: str, side: str, dtype: torch.dtype) -> None:
    model = without_pooler(kind)
    ids, mask = padded_batch(LENGTHS, side=side)
    with torch.inference_mode():
        want = model(input_ids=ids, attention_mask=mask.to(dtype)).last_hidden_state
        fastdistil.accelerate(model, precision="fp32")
        got = model(input_ids=ids, attention_mask=mask.to(dtype)).last_hidden_state
    assert_fp32_budget(got[mask == 1], want[mask == 1])
    assert (got[mask == 0] == 0).all()
    assert fastdistil.explain(model).fast_calls == 1


def without_pooler(kind: str) -> Any:
    if kind == "distilbert":
        return random_hf_model(kind)
    config = transformers.AutoConfig.for_model(**tiny_config(kind).to_hf())
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    randomize(model)
    return model


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
@pytest.mark.parametrize("mask", [None, "all ones"])
def test_no_padding(kind: str, mask: str | None) -> None:
    model = random_hf_model(kind)
    ids, ones = padded_batch([7, 7])
    arguments = {"input_ids": ids, "attention_mask": None if mask is None else ones}
    with torch.inference_mode():
        want = model(**arguments)
        got = fastdistil.accelerate(model, precision="fp32")(**arguments)
    assert_same(got, want, ones)
    assert fastdistil.explain(model).fast_calls == 1


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
@pytest.mark.parametrize("rows", [1, 3])
def test_position_ids(kind: str, rows: int) -> None:
    if VERSION_4 and kind == "distilbert":
        pytest.skip("transformers 4 has no position_ids in DistilBERT; with transformers 5 it runs")
    model = random_hf_model(kind)
    ids, mask = padded_batch([6, 3, 5])
    positions = torch.randint(0, 40, (rows, 6), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        plain = model(ids, attention_mask=mask)
        want = model(ids, attention_mask=mask, position_ids=positions)
        fastdistil.accelerate(model, precision="fp32")
        got = model(ids, attention_mask=mask, position_ids=positions)
    assert_same(got, want, mask)
    assert not torch.allclose(want.last_hidden_state, plain.last_hidden_state)
    assert fastdistil.explain(model).fast_calls == 1


def test_segments_of_one_row_and_by_default() -> None:
    model = random_hf_model("bert")
    ids, mask = padded_batch([6, 3])
    segments = torch.tensor([[0, 0, 1, 1, 1, 1]])
    with torch.inference_mode():
        wants = [model(ids, mask, s) for s in (None, segments, segments.expand(2, 6))]
        fastdistil.accelerate(model, precision="fp32")
        gots = [model(ids, mask, s) for s in (None, segments, segments.expand(2, 6))]
    for got, want in zip(gots, wants, strict=True):
        assert_same(got, want, mask)
    assert fastdistil.explain(model).fast_calls == 3


@pytest.mark.parametrize("class_name", ["DistilBertModel", "BertModel", "DistilBertForMaskedLM"])
@pytest.mark.parametrize("by", ["argument", "config"])
def test_tuples(class_name: str, by: str) -> None:
    model = random_hf_model(family(class_name), class_name)
    ids, mask = padded_batch([6, 3])
    arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
    if by == "argument":
        arguments["return_dict"] = False
    else:
        model.config.return_dict = False
    with torch.inference_mode():
        want = model(**arguments)
        got = fastdistil.accelerate(model, precision="fp32")(**arguments)
    assert type(want) is tuple
    assert type(got) is tuple
    assert len(got) == len(want)
    for actual, expected in zip(got, want, strict=True):
        real = mask.bool() if expected.shape[:2] == mask.shape else ...
        assert_fp32_budget(actual[real], expected[real])


def test_tuple_of_a_bert_without_pooler() -> None:
    model = without_pooler("bert")
    ids, mask = padded_batch([6, 3])
    with torch.inference_mode():
        want = model(ids, mask, return_dict=False)
        got = fastdistil.accelerate(model, precision="fp32")(ids, mask, return_dict=False)
    assert [type(value) for value in got] == [type(value) for value in want]


@pytest.mark.parametrize("class_name", CLASSES)
def test_signature_class_and_documentation_stay(class_name: str) -> None:
    model = random_hf_model(family(class_name), class_name)
    encoder = encoder_of(model)
    kind, signature = type(encoder), inspect.signature(encoder.forward)
    fastdistil.accelerate(model)
    assert encoder_of(model) is encoder
    assert type(encoder) is kind
    assert inspect.signature(encoder.forward) == signature
    assert encoder.forward.__doc__ == kind.forward.__doc__
    assert encoder.forward.__name__ == "forward"


def test_positional_arguments() -> None:
    model = random_hf_model("bert")
    ids, mask = padded_batch([6, 3])
    segments, positions = torch.ones_like(ids), torch.arange(6).flip(0).unsqueeze(0)
    with torch.inference_mode():
        want = model(ids, mask, segments, positions)
        got = fastdistil.accelerate(model, precision="fp32")(ids, mask, segments, positions)
    assert_same(got, want, mask)
    assert fastdistil.explain(model).fast_calls == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_outputs_have_the_model_s_dtype(dtype: torch.dtype) -> None:
    model = random_hf_model("bert").to(dtype)
    ids, mask = padded_batch(LENGTHS)
    with torch.inference_mode():
        exact = copy.deepcopy(model).float()(ids, mask).last_hidden_state
        want = model(ids, mask)
        got = fastdistil.accelerate(model, precision="fp32")(ids, mask)
    assert got.last_hidden_state.dtype == want.last_hidden_state.dtype == dtype
    assert got.pooler_output.dtype == want.pooler_output.dtype == dtype
    error = (got.last_hidden_state.float() - exact)[mask == 1].abs().max()
    own_error = (want.last_hidden_state.float() - exact)[mask == 1].abs().max()
    assert error <= own_error
    assert fastdistil.explain(model).fast_calls == 1


def test_bf16_precision_keeps_float32_outputs() -> None:
    model = random_hf_model("distilbert", hidden_size=96, num_layers=3)
    ids, mask = padded_batch(LENGTHS)
    with torch.inference_mode():
        want = model(ids, mask).last_hidden_state
        got = fastdistil.accelerate(model, precision="bf16")(ids, mask).last_hidden_state
    assert fastdistil.explain(model).precision == "bf16"
    assert got.dtype == torch.float32
    assert_cosine(got[mask == 1], want[mask == 1], 0.9998)


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu"]
)
def test_activations(kind: str, activation: str) -> None:
    key = "activation" if kind == "distilbert" else "hidden_act"
    config = transformers.AutoConfig.for_model(**(tiny_config(kind).to_hf() | {key: activation}))
    model = transformers.AutoModel.from_config(config).eval()
    randomize(model)
    ids, mask = padded_batch(LENGTHS)
    with torch.inference_mode():
        want = model(ids, attention_mask=mask)
        got = fastdistil.accelerate(model, precision="fp32")(ids, attention_mask=mask)
    assert_same(got, want, mask)
    assert fastdistil.explain(model).fast_calls == 1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_attention_implementations(kind: str, attention: str) -> None:
    config = transformers.AutoConfig.for_model(**tiny_config(kind).to_hf())
    model = transformers.AutoModel.from_config(config, attn_implementation=attention).eval()
    randomize(model)
    ids, mask = padded_batch(LENGTHS)
    with torch.inference_mode():
        want = model(ids, attention_mask=mask)
        got = fastdistil.accelerate(model, precision="fp32")(ids, attention_mask=mask)
    assert_same(got, want, mask)


def test_layers_that_share_their_weights() -> None:
    model = random_hf_model("distilbert", num_layers=3)
    model.transformer.layer[2] = model.transformer.layer[0]
    model.transformer.layer[1].attention.k_lin.weight = model.transformer.layer[
        1
    ].attention.q_lin.weight
    ids, mask = padded_batch(LENGTHS)
    with torch.inference_mode():
        want = model(ids, attention_mask=mask)
        got = fastdistil.accelerate(model, precision="fp32")(ids, attention_mask=mask)
    assert_same(got, want, mask)
    assert fastdistil.explain(model).fast_calls == 1


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_the_live_modules_read_like_their_checkpoint(kind: str) -> None:
    config = tiny_config(kind)
    model = hf_model(config)
    layout = read_layout(model)
    expected = canonical_state_dict(model.state_dict(), config)
    assert layout.config == config
    assert layout.tensors().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in layout.tensors().items())


@pytest.mark.parametrize(
    ("labels", "num_labels", "inferred"),
    [
        (torch.tensor([0.5, 1.5]), 1, "regression"),
        (torch.tensor([0, 1]), 3, "single_label_classification"),
        (torch.tensor([[1.0, 0, 1], [0, 1, 0]]), 3, "multi_label_classification"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_problem_type_is_inferred(labels: Tensor, num_labels: int, inferred: str) -> None:
    values = tiny_config("distilbert").to_hf() | {"num_labels": num_labels}
    model = transformers.DistilBertForSequenceClassification(
        transformers.AutoConfig.for_model(**values)
    ).eval()
    randomize(model)
    ids, mask = padded_batch([6, 3])
    with torch.inference_mode():
        want = copy.deepcopy(model)(ids, mask, labels=labels)
        assert model.config.problem_type is None
        got = fastdistil.accelerate(model, precision="fp32")(ids, mask, labels=labels)
    assert model.config.problem_type == inferred
    assert_same(got, want, mask)


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_no_text_changes_another_s_states(kind: str) -> None:
    if extension_error() is not None:
        pytest.skip("plain PyTorch does not promise it; runs where the C++ extension is built")
    model = fastdistil.accelerate(random_hf_model(kind), backend="cpu")
    ids, mask = padded_batch(LENGTHS)
    with torch.inference_mode():
        together = model(ids, attention_mask=mask).last_hidden_state
        for row, length in enumerate(LENGTHS):
            alone = model(ids[row : row + 1, :length]).last_hidden_state
            assert torch.equal(together[row, :length], alone[0])
    assert fastdistil.explain(model).fast_calls == 1 + len(LENGTHS)


class Wrapped(nn.Module):
    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.inner = nn.ModuleDict({"encoder": encoder})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.inner["encoder"](ids, attention_mask=mask).last_hidden_state


class ColBERT(Wrapped):
    """Reads what stands at masked positions, as its namesake does."""


@pytest.mark.parametrize(
    ("around", "side", "fast"),
    [(Wrapped, "right", 1), (Wrapped, "left", 0), (ColBERT, "right", 0)],
)
def test_models_around_models(around: type[Wrapped], side: str, fast: int) -> None:
    model = around(random_hf_model("distilbert"))
    ids, mask = padded_batch(LENGTHS, side=side)
    with torch.inference_mode():
        want = model(ids, mask)
        got = fastdistil.accelerate(model, precision="fp32")(ids, mask)
    assert_fp32_budget(got[mask == 1], want[mask == 1])
    assert fastdistil.explain(model).fast_calls == fast
    assert torch.equal(got, want) == (not fast)


def test_an_encoder_in_two_places_serves_the_more_demanding_one() -> None:
    tagger = random_hf_model("distilbert", "DistilBertForTokenClassification")
    reader = random_hf_model("distilbert", "DistilBertForQuestionAnswering")
    reader.distilbert = tagger.distilbert
    both = fastdistil.accelerate(nn.ModuleList([tagger, reader]))
    with torch.inference_mode():
        both[0](*padded_batch(LENGTHS))
    assert "reads all positions" in fastdistil.explain(both).last_fallback


# What cannot be accelerated


def test_a_model_without_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear, which has no such encoder.*DistilBertModel and"):
        fastdistil.accelerate(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model: got builtins.str; a torch.nn.Module is allowed"):
        fastdistil.accelerate("distilbert-base-uncased")


def test_a_decoder_is_refused_and_one_beside_an_encoder_left_alone() -> None:
    config = transformers.AutoConfig.for_model(**tiny_config("bert").to_hf(), is_decoder=True)
    with pytest.raises(ValueError, match=r"only decoders \(bert \(BertModel\)\)"):
        fastdistil.accelerate(transformers.BertLMHeadModel(config))
    both = nn.ModuleList([random_hf_model("bert"), transformers.BertModel(config)])
    fastdistil.accelerate(both)
    assert "forward" in both[0].__dict__
    assert "forward" not in both[1].__dict__


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_an_unknown_activation_is_refused_by_name(kind: str) -> None:
    key = "activation" if kind == "distilbert" else "hidden_act"
    config = transformers.AutoConfig.for_model(**(tiny_config(kind).to_hf() | {key: "quick_gelu"}))
    model = transformers.AutoModel.from_config(config)
    before = dict(model.__dict__)
    with pytest.raises(ValueError, match=r"BertModel is not supported: activation QuickGELU"):
        fastdistil.accelerate(model)
    assert model.__dict__ == before


def _no_bias(model: Any) -> None:
    model.transformer.layer[1].ffn.lin1 = nn.Linear(48, 80, bias=False)


def _narrower_layer(model: Any) -> None:
    model.transformer.layer[1].ffn.lin1 = nn.Linear(48, 64)
    model.transformer.layer[1].ffn.lin2 = nn.Linear(64, 48)


def _renormalised_rows(model: Any) -> None:
    model.embeddings.word_embeddings.max_norm = 1.0


def _another_epsilon(model: Any) -> None:
    model.transformer.layer[0].sa_layer_norm.eps = 1e-5


def _no_layers(model: Any) -> None:
    model.transformer.layer = nn.ModuleList()


def _spread_over_devices(model: Any) -> None:
    model.transformer.layer[1].to("meta")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_no_bias, r"layer\.1\.ffn\.lin1 holds \['weight'\], not \['weight', 'bias'\]"),
        (_narrower_layer, r"layer\.1\.ffn\.lin1\.weight is \[64, 48\], not \[80, 48\]"),
        (_renormalised_rows, r"word_embeddings renormalises its rows"),
        (_another_epsilon, r"its layers differ in LayerNorm epsilon: 1e-05, 1e-12"),
        (_no_layers, r"it has no layers"),
        (_spread_over_devices, r"its weights are on several devices: cpu, meta"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_what_is_not_supported_is_named(change: Callable[[Any], None], match: str) -> None:
    model = random_hf_model("distilbert")
    change(model)
    with pytest.raises(ValueError, match=f"model: DistilBertModel is not supported: .*{match}"):
        fastdistil.accelerate(model)


def test_patched_classes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_hf_model("bert")
    block = type(model.encoder.layer[0])
    monkeypatch.setattr(block, "forward", lambda self, states, *_, **__: states)
    with pytest.raises(ValueError, match="the forward of BertLayer was replaced by test_drop_in"):
        fastdistil.accelerate(model)


def test_nothing_is_changed_when_one_of_two_encoders_is_refused() -> None:
    both = nn.ModuleList([random_hf_model("bert"), random_hf_model("distilbert")])
    both[1].transformer.layer[0].ffn.lin1 = nn.Identity()
    with pytest.raises(ValueError, match=r"1 \(DistilBertModel\) is not supported: .*Identity"):
        fastdistil.accelerate(both)
    assert "forward" not in both[0].__dict__


def test_an_overridden_or_replaced_forward_is_refused() -> None:
    class Scaled(transformers.DistilBertModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    model = random_hf_model("distilbert")
    with pytest.raises(ValueError, match="Scaled overrides the forward of DistilBertModel"):
        fastdistil.accelerate(Scaled(model.config))
    model.forward = lambda *args, **kwargs: None
    with pytest.raises(ValueError, match="forward of DistilBertModel was already replaced"):
        fastdistil.accelerate(model)


def test_float64_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights are torch.float64; supported: .*float32"):
        fastdistil.accelerate(random_hf_model("distilbert").double())


@pytest.mark.parametrize("options", [{"precision": "fp8"}, {"precision": "fp23"}, {"backend": "x"}])
def test_wrong_options_change_nothing(options: dict[str, str]) -> None:
    model = random_hf_model("distilbert")
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        fastdistil.accelerate(model, **options)
    assert "forward" not in model.__dict__


@pytest.mark.skipif(not VERSION_4, reason="only transformers 4 has relative positions in BERT")
def test_relative_positions_are_refused() -> None:
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=48, num_attention_heads=3, num_hidden_layers=1
    )
    config.position_embedding_type = "relative_key"
    with pytest.raises(ValueError, match="position_embedding_type 'relative_key'"):
        fastdistil.accelerate(transformers.BertModel(config))


# explain()


def test_explain_tells_what_runs() -> None:
    model = random_hf_model("distilbert", "DistilBertForMaskedLM")
    with pytest.raises(ValueError, match="is not accelerated"):
        fastdistil.explain(model)
    fastdistil.accelerate(model, precision="fp32", backend="reference")
    ids, mask = padded_batch([6, 3])
    with torch.inference_mode():
        model(ids, mask)
        model(ids, mask, output_attentions=True)
    explanation = fastdistil.explain(model)
    assert explanation.encoder == "distilbert (DistilBertModel)"
    assert (explanation.backend, explanation.precision) == ("reference", "fp32")
    assert explanation.reason
    assert explanation.instruction_set
    assert (explanation.fast_calls, explanation.fallback_calls) == (1, 1)
    tensors = model.distilbert.state_dict().values()
    assert explanation.resident_bytes == sum(tensor.nbytes for tensor in tensors)
    assert str(explanation).splitlines() == [
        f"distilbert (DistilBertModel): reference, fp32, {explanation.instruction_set}",
        f"  why: {explanation.reason}",
        "  memory: 0.2 MB of weights",
        "  calls: 1 fast, 1 by the model's own forward",
        "  last own forward: output_attentions was requested",
    ]


def test_several_encoders_are_explained_each() -> None:
    both = nn.ModuleDict({"q": random_hf_model("bert"), "d": random_hf_model("distilbert")})
    explanations = fastdistil.explain(fastdistil.accelerate(both))
    assert [e.encoder for e in explanations] == ["q (BertModel)", "d (DistilBertModel)"]
    assert str(explanations) == "\n".join(map(str, explanations))


def test_calling_accelerate_again_changes_the_options() -> None:
    model = random_hf_model("distilbert", "DistilBertForQuestionAnswering")
    fastdistil.accelerate(model, precision="fp32", backend="reference")
    assert fastdistil.explain(model).backend == "reference"
    fastdistil.accelerate(model, precision="bf16", backend="reference")
    assert fastdistil.explain(model).precision == "bf16"
    fastdistil.accelerate(model.distilbert, precision="fp32")  # still inside the same head
    ids, mask = padded_batch([6, 3])
    with torch.inference_mode():
        model(ids, mask)
    assert "reads all positions" in fastdistil.explain(model).last_fallback
