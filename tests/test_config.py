from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_config

from fastdistil.config import EncoderConfig

MINIMAL: dict[str, dict[str, Any]] = {
    "distilbert": {"model_type": "distilbert"},
    "bert": {"model_type": "bert"},
}


@pytest.mark.parametrize(
    ("kind", "class_name"), [("distilbert", "DistilBertConfig"), ("bert", "BertConfig")]
)
def test_defaults_are_those_of_transformers(kind: str, class_name: str) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, class_name)()
    assert EncoderConfig.from_hf(MINIMAL[kind]) == EncoderConfig.from_hf(theirs)


@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_round_trip_through_a_transformers_config(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = tiny_config(kind, activation="gelu_tanh", pad_token_id=None)
    if kind == "bert":
        config = dataclasses.replace(config, layer_norm_eps=1e-5, num_segments=3)
    else:
        config = dataclasses.replace(config, sinusoidal_positions=True)
    theirs = transformers.AutoConfig.for_model(**config.to_hf())
    assert EncoderConfig.from_hf(theirs) == config
    assert EncoderConfig.from_hf(config.to_hf()) == config


def test_reads_a_real_checkpoint(minilm_folder: Path) -> None:
    config = EncoderConfig.from_folder(minilm_folder)
    assert (config.model_type, config.hidden_size, config.num_layers) == ("bert", 384, 6)
    assert (config.num_heads, config.head_dim, config.intermediate_size) == (12, 32, 1536)
    assert (config.vocab_size, config.max_positions, config.num_segments) == (30522, 512, 2)


def test_distilbert_takes_the_common_names_too() -> None:
    values = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = EncoderConfig.from_hf({"model_type": "distilbert", **values})
    assert (config.hidden_size, config.num_layers, config.num_heads) == (64, 3, 2)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("gelu", "gelu"),
        ("gelu_python", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_fast", "gelu_tanh"),
        ("gelu_accurate", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("gelu_python_tanh", "gelu_tanh"),
        ("relu", "relu"),
        ("silu", "silu"),
        ("swish", "silu"),
    ],
)
def test_activation_names(theirs: str, ours: str) -> None:
    assert EncoderConfig.from_hf({"model_type": "bert", "hidden_act": theirs}).activation == ours
    assert (
        EncoderConfig.from_hf({"model_type": "distilbert", "activation": theirs}).activation == ours
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, r"model_type None is not supported; supported: distilbert, bert"),
        ({"model_type": "roberta"}, r"model_type 'roberta' is not supported"),
        (
            {"model_type": "bert", "hidden_act": "quick_gelu"},
            r"activation 'quick_gelu' is not supported; supported: gelu, .*gelu_new.*relu, silu",
        ),
        ({"model_type": "bert", "hidden_act": None}, r"activation None is not supported"),
        (
            {"model_type": "bert", "position_embedding_type": "relative_key"},
            r"position_embedding_type 'relative_key' is not supported; supported: 'absolute'",
        ),
        ({"model_type": "bert", "is_decoder": True}, r"is_decoder=True is not supported"),
        (
            {"model_type": "bert", "add_cross_attention": True},
            r"add_cross_attention=True is not supported",
        ),
        (
            {"model_type": "distilbert", "pruned_heads": {"1": [0]}},
            r"pruned_heads=\{'1': \[0\]\} is not supported",
        ),
        (
            {"model_type": "bert", "hidden_size": 100},
            r"hidden_size 100 does not divide into 12 attention heads",
        ),
        ({"model_type": "bert", "vocab_size": 0}, r"vocab_size is 0; a whole number from 1"),
        ({"model_type": "bert", "vocab_size": "30522"}, r"vocab_size is '30522'; a whole number"),
        ({"model_type": "bert", "num_hidden_layers": -1}, r"num_layers is -1; .* from 0"),
        ({"model_type": "bert", "type_vocab_size": 0}, r"num_segments is 0; .* from 1"),
        ({"model_type": "bert", "layer_norm_eps": 0.0}, r"layer_norm_eps is 0.0; between 0 and 1"),
        ({"model_type": "bert", "layer_norm_eps": "1e-12"}, r"layer_norm_eps is '1e-12'"),
        ({"model_type": "bert", "pad_token_id": 30522}, r"pad_token_id is 30522; .* 30521"),
        ({"model_type": "bert", "num_attention_heads": True}, r"num_heads is True; a whole number"),
    ],
)
def test_what_is_refused_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        EncoderConfig.from_hf(values, "somewhere/config.json")
    assert str(raised.value).startswith("somewhere/config.json: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_segments": 2}, "DistilBERT has no segment embeddings"),
        ({"layer_norm_eps": 1e-5}, "DistilBERT fixes it at 1e-12"),
        ({"activation": "gelu_new"}, "activation 'gelu_new' is not supported"),
        ({"model_type": "bert", "num_segments": 2, "sinusoidal_positions": True}, "DistilBERT's"),
    ],
)
def test_what_the_family_cannot_express_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig(**changes)


def test_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json, so this is no Hugging Face"):
        EncoderConfig.from_folder(tmp_path)


@pytest.mark.parametrize("content", [b'{"model_type": "be', b"\xff\xfe", b""])
def test_config_that_is_not_json(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        EncoderConfig.from_folder(tmp_path)


def test_config_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"config\.json: a JSON object was wanted, got list"):
        EncoderConfig.from_folder(tmp_path)


def test_configs_are_values() -> None:
    assert hash(tiny_config()) == hash(tiny_config())
    assert tiny_config() != tiny_config(num_layers=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny_config().num_layers = 3  # type: ignore[misc]
