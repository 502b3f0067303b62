"""EncoderConfig: the few numbers that define a DistilBERT or BERT encoder.

Read from a Hugging Face ``config.json`` (or the config object of a loaded model) and written back.
Whatever changes the arithmetic in a way no backend implements is refused here, by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL_TYPES = ("distilbert", "bert")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")

# DistilBERT's own code fixes it; its config.json has no such key.
DISTILBERT_LAYER_NORM_EPS = 1e-12

# Hugging Face's names for the four functions. The tanh forms differ in spelling, not in value.
_HF_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_ACTIVATION_TO_HF = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "silu": "silu",
}

# Field -> (key in the family's config.json, the family's default). DistilBERT's loader also takes
# the common names (its attribute_map), so they are read as second choice.
_HF_KEYS: dict[str, dict[str, tuple[tuple[str, ...], Any]]] = {
    "distilbert": {
        "vocab_size": (("vocab_size",), 30522),
        "hidden_size": (("dim", "hidden_size"), 768),
        "num_layers": (("n_layers", "num_hidden_layers"), 6),
        "num_heads": (("n_heads", "num_attention_heads"), 12),
        "intermediate_size": (("hidden_dim",), 3072),
        "max_positions": (("max_position_embeddings",), 512),
        "activation": (("activation",), "gelu"),
        "pad_token_id": (("pad_token_id",), 0),
        "sinusoidal_positions": (("sinusoidal_pos_embds",), False),
    },
    "bert": {
        "vocab_size": (("vocab_size",), 30522),
        "hidden_size": (("hidden_size",), 768),
        "num_layers": (("num_hidden_layers",), 12),
        "num_heads": (("num_attention_heads",), 12),
        "intermediate_size": (("intermediate_size",), 3072),
        "max_positions": (("max_position_embeddings",), 512),
        "num_segments": (("type_vocab_size",), 2),
        "activation": (("hidden_act",), "gelu"),
        "layer_norm_eps": (("layer_norm_eps",), 1e-12),
        "pad_token_id": (("pad_token_id",), 0),
    },
}
_ARCHITECTURES = {"distilbert": "DistilBertModel", "bert": "BertModel"}


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and choices of one encoder. Immutable and hashable; checked when made.

    Attributes:
        model_type: "distilbert" or "bert": whose key names a checkpoint is written with.
        vocab_size: rows of the word-embedding table.
        hidden_size: width D of every hidden state.
        num_layers: transformer blocks; 0 is legal (embeddings only).
        num_heads: attention heads; they divide `hidden_size` evenly.
        intermediate_size: width of the feed-forward's inner layer.
        max_positions: rows of the position table; the longest sequence.
        num_segments: rows of the segment (token-type) table; 0 where there is none (DistilBERT).
        activation: "gelu" (exact, erf), "gelu_tanh", "relu" or "silu".
        layer_norm_eps: added to the variance in every LayerNorm.
        pad_token_id: the word-embedding row that training leaves alone, or None.
        sinusoidal_positions: how a new position table is initialised; a checkpoint carries its own.

    Raises:
        ValueError: a value no encoder can have; the message names the field.
    """

    model_type: str = "distilbert"
    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 6
    num_heads: int = 12
    intermediate_size: int = 3072
    max_positions: int = 512
    num_segments: int = 0
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    sinusoidal_positions: bool = False

    def __post_init__(self) -> None:
        _one_of("model_type", self.model_type, MODEL_TYPES)
        _one_of("activation", self.activation, ACTIVATIONS)
        for name in ("vocab_size", "hidden_size", "num_heads", "intermediate_size"):
            _whole("config", name, getattr(self, name), 1)
        _whole("config", "max_positions", self.max_positions, 1)
        _whole("config", "num_layers", self.num_layers, 0)
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"config: hidden_size {self.hidden_size} does not divide into "
                f"{self.num_heads} attention heads of equal size"
            )
        eps, pad = self.layer_norm_eps, self.pad_token_id
        if not isinstance(eps, float) or not 0 < eps < 1:
            raise ValueError(f"config: layer_norm_eps is {eps!r}; between 0 and 1 is allowed")
        if pad is not None and pad not in range(self.vocab_size):
            raise ValueError(
                f"config: pad_token_id is {pad!r}; None or 0 to {self.vocab_size - 1} is allowed"
            )
        self._check_family()

    def _check_family(self) -> None:
        """What Hugging Face's DistilBERT cannot say must not be asked of it, nor BERT's of BERT."""
        if self.model_type == "bert":
            _whole("config", "num_segments", self.num_segments, 1)
            if self.sinusoidal_positions:
                raise ValueError("config: sinusoidal_positions is DistilBERT's, not BERT's")
            return
        if self.num_segments != 0:
            raise ValueError(
                f"config: num_segments is {self.num_segments}, but DistilBERT has no segment "
                "embeddings; 0 is allowed"
            )
        if self.layer_norm_eps != DISTILBERT_LAYER_NORM_EPS:
            raise ValueError(
                f"config: layer_norm_eps is {self.layer_norm_eps!r}, but DistilBERT fixes it at "
                f"{DISTILBERT_LAYER_NORM_EPS!r}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @classmethod
    def from_hf(cls, config: Any, source: str = "config") -> EncoderConfig:
        """From a parsed ``config.json`` or a transformers config object.

        Args:
            config: a mapping, or an object with `to_dict()`.
            source: what to call it in error messages, for example the file's path.

        Raises:
            ValueError: an architecture, activation or option that is not supported.
        """
        values = config if isinstance(config, Mapping) else config.to_dict()
        model_type = values.get("model_type")
        if model_type not in MODEL_TYPES:
            raise ValueError(
                f"{source}: model_type {model_type!r} is not supported; "
                f"supported: {', '.join(MODEL_TYPES)}"
            )
        _refuse_unsupported_options(values, source)
        fields = {
            name: next((values[key] for key in keys if key in values), default)
            for name, (keys, default) in _HF_KEYS[model_type].items()
        }
        fields["activation"] = _canonical_activation(fields["activation"], source)
        try:
            return cls(model_type=model_type, **fields)
        except ValueError as error:
            raise ValueError(str(error).replace("config", source, 1)) from None

    @classmethod
    def from_folder(cls, folder: str | Path) -> EncoderConfig:
        """From ``config.json`` in `folder`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not JSON, or not a supported encoder.
        """
        return cls.from_hf(read_hf_config(folder), str(Path(folder) / "config.json"))

    def to_hf(self) -> dict[str, Any]:
        """The ``config.json`` that transformers' AutoModel reads as this encoder."""
        values: dict[str, Any] = {
            "architectures": [_ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
        }
        for name, (keys, _) in _HF_KEYS[self.model_type].items():
            values[keys[0]] = getattr(self, name)
        for key in ("activation", "hidden_act"):
            if key in values:
                values[key] = _ACTIVATION_TO_HF[self.activation]
        return values


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """The parsed ``config.json`` of a checkpoint folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object in UTF-8.
    """
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder}: no config.json, so this is no Hugging Face checkpoint")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError are both one
        raise ValueError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: a JSON object was wanted, got {type(values).__name__}")
    return values


def _refuse_unsupported_options(values: Mapping[str, Any], source: str) -> None:
    positions = values.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise ValueError(
            f"{source}: position_embedding_type {positions!r} is not supported; "
            "supported: 'absolute'"
        )
    for option, meaning in (
        ("is_decoder", "a decoder's causal attention"),
        ("add_cross_attention", "cross-attention"),
        ("pruned_heads", "a model with heads pruned away"),
    ):
        if values.get(option):
            raise ValueError(
                f"{source}: {option}={values[option]!r} is not supported ({meaning}); "
                "supported: a plain encoder"
            )


def _canonical_activation(name: Any, source: str) -> str:
    if name not in _HF_ACTIVATIONS:
        raise ValueError(
            f"{source}: activation {name!r} is not supported; "
            f"supported: {', '.join(_HF_ACTIVATIONS)}"
        )
    return _HF_ACTIVATIONS[name]


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(
            f"config: {name} {value!r} is not supported; supported: {', '.join(allowed)}"
        )


def _whole(source: str, name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{source}: {name} is {value!r}; a whole number from {least} is allowed")
