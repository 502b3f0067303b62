"""A Hugging Face checkpoint, local or from the hub, as a config and canonically named tensors.

The canonical names are DistilBERT's own, without a prefix. BERT's, and the `gamma`/`beta` that old
checkpoints call a LayerNorm's weight and bias, are translated here, in both directions.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from .config import EncoderConfig, read_hf_config

_ROOT = "embeddings.word_embeddings.weight"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_HUB_FILES = ["*.json", "vocab.txt", "tokenizer.model", "*/config.json"]
_SAFETENSORS_FILES = ["model.safetensors", "model-*.safetensors"]
_PICKLE_FILES = ["pytorch_model.bin", "pytorch_model-*.bin"]

# Part of the encoder's module tree in transformers, but not weights of the encoder.
_IGNORED = re.compile(r"(embeddings\.(position_ids|token_type_ids)|pooler\..*)$")
_ENCODER_PARTS = ("embeddings.", "transformer.", "encoder.")

_BERT_TO_CANONICAL = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
_CANONICAL_TO_BERT = {ours: theirs for theirs, ours in _BERT_TO_CANONICAL.items()}
_BERT_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$")
_CANONICAL_LAYER = re.compile(r"transformer\.layer\.(\d+)\.(.+)\.(weight|bias)$")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What `load_checkpoint` read.

    Attributes:
        config: the encoder's sizes.
        state_dict: canonical names to CPU tensors, each of the shape the config asks for.
        folder: where the files are.
        hf_config: the whole parsed config.json.
        head: what else is in the file, under the file's own names, the encoder's prefix cut off: a
            task's head ("classifier.weight"), and the pooler.
    """

    config: EncoderConfig
    state_dict: dict[str, Tensor]
    folder: Path
    hf_config: dict[str, Any]
    head: dict[str, Tensor] = field(default_factory=dict)


def load_checkpoint(path_or_id: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Read a checkpoint folder, or fetch one from the Hugging Face hub.

    safetensors files are preferred, sharded or not; pickle files are read with weights_only.

    Args:
        path_or_id: a local folder, or a hub id such as "distilbert/distilbert-base-uncased".
        revision: a branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: no such folder or model, or files missing from it.
        ValueError: an unsupported model, or tensors that are damaged, missing or of another shape
            than the config says; the message names the file and the tensor.
    """
    folder = resolve_folder(path_or_id, revision)
    hf_config = read_hf_config(folder)
    config = EncoderConfig.from_hf(hf_config, str(folder / "config.json"))
    source, tensors = _read_weights(folder)
    try:
        state_dict = canonical_state_dict(tensors, config)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return Checkpoint(config, state_dict, folder, hf_config, head_tensors(tensors))


def resolve_folder(path_or_id: str | Path, revision: str | None = None) -> Path:
    """The local folder of a checkpoint; downloads it from the hub where it is no folder.

    Raises:
        FileNotFoundError: neither a folder nor a model that can be fetched.
    """
    folder = Path(path_or_id).expanduser()
    if folder.is_dir() and str(path_or_id):
        return folder
    if folder.is_file():
        raise FileNotFoundError(f"{path_or_id}: a file; the checkpoint's folder is wanted")
    if not HUB_ID.fullmatch(str(path_or_id)):
        raise FileNotFoundError(f"{path_or_id}: no such folder")
    from huggingface_hub import snapshot_download

    def fetch(files: list[str]) -> Path:
        return Path(
            snapshot_download(
                str(path_or_id), revision=revision, allow_patterns=[*_HUB_FILES, *files]
            )
        )

    try:
        found = fetch(_SAFETENSORS_FILES)
        if not any(found.glob("*.safetensors")):
            found = fetch(_PICKLE_FILES)
    except Exception as error:  # the hub's client raises its own, requests' and httpx's errors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{path_or_id}: neither a local folder nor a model that could be fetched from the "
            f"Hugging Face hub ({reason})"
        ) from error
    return found


def parameter_shapes(config: EncoderConfig) -> dict[str, tuple[int, ...]]:
    """Every canonical name of an encoder, in order, and its shape."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        _ROOT: (config.vocab_size, width),
        "embeddings.position_embeddings.weight": (config.max_positions, width),
    }
    if config.num_segments:
        shapes["embeddings.token_type_embeddings.weight"] = (config.num_segments, width)
    matrices = dict.fromkeys((f"attention.{n}_lin" for n in ("q", "k", "v", "out")), (width, width))

    def add(name: str, shape: tuple[int, ...]) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = shape[:1]

    add("embeddings.LayerNorm", (width,))
    for index in range(config.num_layers):
        layer = f"transformer.layer.{index}."
        for name, shape in matrices.items():
            add(layer + name, shape)
        add(f"{layer}sa_layer_norm", (width,))
        add(f"{layer}ffn.lin1", (inner, width))
        add(f"{layer}ffn.lin2", (width, inner))
        add(f"{layer}output_layer_norm", (width,))
    return shapes


def canonical_state_dict(
    hf_state_dict: Mapping[str, Tensor], config: EncoderConfig
) -> dict[str, Tensor]:
    """Translate a Hugging Face state dict and check every tensor against the config.

    Accepts DistilBERT's and BERT's names, under any prefix ("distilbert.", "bert."...), of the
    bare encoder or of one with a task head. Heads, the pooler and index buffers are left out.

    Raises:
        ValueError: tensors missing, unknown or of a wrong shape; the message names them.
    """
    shapes = parameter_shapes(config)
    found = translate_keys(hf_state_dict)
    missing = [name for name in shapes if name not in found]
    if missing:
        raise ValueError(f"missing {_some(missing)}")
    unknown = [name for name in found if name not in shapes]
    if unknown:
        raise ValueError(f"the config has no place for {_some(unknown)}")
    for name, shape in shapes.items():
        tensor = found[name]
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, but the config asks for {list(shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(
                f"{name} holds {tensor.dtype}; a floating dtype is allowed "
                "(quantised checkpoints are not supported)"
            )
    return {name: found[name] for name in shapes}


def translate_keys(hf_state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under canonical names; heads, pooler and index buffers left out.

    Names that belong to the encoder but mean nothing to it are kept as they are, for the caller
    to complain about.

    Raises:
        ValueError: two encoders, or two spellings of one tensor.
    """
    prefix = _encoder_prefix(hf_state_dict)
    found: dict[str, Tensor] = {}
    for key, tensor in hf_state_dict.items():
        inner = key[len(prefix) :]
        if not key.startswith(prefix) or _IGNORED.match(inner):
            continue
        if not inner.startswith(_ENCODER_PARTS):
            continue  # a head beside the encoder
        name = _canonical_name(inner)
        if name in found:
            raise ValueError(f"{name} is there twice, under different spellings")
        found[name] = tensor
    return found


def head_tensors(hf_state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors beside the encoder: a task's head, and the pooler.

    Names are the state dict's own, without the encoder's prefix, with "weight" and "bias" where a
    LayerNorm has `gamma` and `beta`.
    """
    prefix = _encoder_prefix(hf_state_dict)
    inner = {key.removeprefix(prefix): tensor for key, tensor in hf_state_dict.items()}
    return {
        _canonical_name(key): tensor
        for key, tensor in inner.items()
        if not key.startswith(_ENCODER_PARTS)
    }


def add_to_digest(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Have a hash (hashlib's) depend on named tensors: on their names, order and bytes."""
    for name, tensor in tensors.items():
        digest.update(name.encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)


def hf_state_dict(canonical: Mapping[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Canonical names back to those of the config's own model class, without a prefix."""
    if config.model_type == "distilbert":
        return dict(canonical)
    return {_bert_name(name): tensor for name, tensor in canonical.items()}


def _canonical_name(name: str) -> str:
    name = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
    match = _BERT_LAYER.match(name)
    if match is None or match[2] not in _BERT_TO_CANONICAL:
        return name
    return f"transformer.layer.{match[1]}.{_BERT_TO_CANONICAL[match[2]]}.{match[3]}"


def _bert_name(name: str) -> str:
    match = _CANONICAL_LAYER.match(name)
    if match is None:
        return name
    return f"encoder.layer.{match[1]}.{_CANONICAL_TO_BERT[match[2]]}.{match[3]}"


def _encoder_prefix(state_dict: Mapping[str, Tensor]) -> str:
    prefixes = [key[: -len(_ROOT)] for key in state_dict if key.endswith(_ROOT)]
    prefixes = [prefix for prefix in prefixes if prefix == "" or prefix.endswith(".")]
    if len(prefixes) > 1:
        raise ValueError(
            f"several encoders, under the prefixes {', '.join(map(repr, prefixes))}; one is wanted"
        )
    return prefixes[0] if prefixes else ""


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """All tensors, and the file (or the index of the files) they are from."""
    for name, read in (
        ("model.safetensors", _read_safetensors),
        ("pytorch_model.bin", _read_pickle),
    ):
        file, index = folder / name, folder / f"{name}.index.json"
        if file.is_file():
            return file, read(file)
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            for shard in _shards(index):
                tensors.update(read(shard))
            return index, tensors
    raise FileNotFoundError(
        f"{folder}: no weights; model.safetensors or pytorch_model.bin, whole or sharded with an "
        "index, is wanted"
    )


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{index}: not an index of weight files") from None
    for name in names:
        # Only files beside the index: it is data from elsewhere and may name any path.
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index}: {name!r} is not the name of a file in the same folder")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index.parent / name}: missing, but {index.name} names it")
    return [index.parent / name for name in names]


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: damaged or cut short ({error})") from None


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's own text recommends weights_only=False here, which runs what the file says.
        raise ValueError(
            f"{file}: refused, because it holds more than tensors and reading it could run code; "
            "ask its author for safetensors"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: damaged or cut short ({reason})") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ValueError(f"{file}: a dict of tensors was wanted, got {type(tensors).__name__}")
    return tensors
