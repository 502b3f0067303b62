"""What sentence-transformers' files say about turning a checkpoint's hidden states into one vector.

modules.json lists a pipeline: a Transformer, a Pooling, perhaps a Normalize, perhaps more. This
reads the part that fastdistil computes, and names the part it does not, so that nobody gets vectors
that only look right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POOLINGS = ("mean", "cls", "max", "none")

# Older Pooling/config.json has one boolean per mode; newer has "pooling_mode".
_MODE_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# sentence-transformers has had a settings file per model type; the first that exists is read.
_TRANSFORMER_FILES = ("sentence_bert_config.json", "sentence_distilbert_config.json")


@dataclass(frozen=True)
class SentenceSettings:
    """How a folder's vectors are meant to be made."""

    transformer: str = ""
    """Path of the encoder's own files inside the folder ("0_Transformer" in old ones)."""
    pooling: str = "mean"
    normalize: bool = False
    unsupported: str | None = None
    """What the folder asks for beyond that, as a clause for people; None where there is nothing."""


def read_sentence_settings(folder: Path) -> SentenceSettings:
    """The settings of a local checkpoint folder; the defaults where it has no modules.json.

    Raises:
        ValueError: a file that is not the JSON it should be.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return SentenceSettings()
    modules = _read_any_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ValueError(f"{path} must hold a JSON list of modules")
    transformer, pooling, normalize = "", "mean", False
    unsupported: list[str] = []
    for module in modules:
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        place = str(module.get("path", ""))
        if kind == "Transformer":
            transformer = place
        elif kind == "Pooling":
            pooling, reason = _pooling(folder / place)
            unsupported += [reason] if reason else []
        elif kind == "Normalize":
            normalize = True
        else:
            unsupported.append(f"a {kind} module, which is not supported")
    prompt = read_json(folder / "config_sentence_transformers.json").get("default_prompt_name")
    if prompt is not None:
        unsupported.append(f"the prompt {prompt!r} in front of every text, which is not supported")
    return SentenceSettings(
        transformer, pooling, normalize, " and ".join(unsupported) if unsupported else None
    )


def _pooling(folder: Path) -> tuple[str, str | None]:
    """The pooling that a Pooling module's config asks for, and what of it is not supported."""
    config = read_json(folder / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for flag, mode in _MODE_FLAGS.items() if config.get(flag)] or ["mean"]
    if isinstance(modes, str):
        modes = [modes]
    if len(modes) > 1:
        return "mean", f"poolings joined together ({' + '.join(modes)}), which is not supported"
    if modes[0] not in POOLINGS:
        return "mean", f"{modes[0]!r} pooling, which is not supported"
    return modes[0], None


def transformer_settings(folder: Path) -> dict[str, Any]:
    """sentence-transformers' settings of the Transformer module: max_seq_length, do_lower_case."""
    for name in _TRANSFORMER_FILES:
        if (folder / name).is_file():
            return read_json(folder / name)
    return {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} where there is no file.

    Raises:
        ValueError: the file holds something else.
    """
    if not path.is_file():
        return {}
    value = _read_any_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object; it holds a {type(value).__name__}")
    return value


def _read_any_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
