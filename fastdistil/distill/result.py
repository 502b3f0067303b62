"""The finished student's folder: a checkpoint that everything loads which loads a DistilBERT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ..run_folder import atomic_file
from ..sentence_settings import SentenceSettings, read_json
from ..tokenization import token_text
from .student import ClassificationHead, MaskedLMHead, Student

_ARCHITECTURES = {
    MaskedLMHead: "DistilBertForMaskedLM",
    ClassificationHead: "DistilBertForSequenceClassification",
    type(None): "DistilBertModel",
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Of the teacher's config.json, what a student of the same task keeps.
_KEPT = ("id2label", "label2id", "problem_type")
_ROLES = ("unk", "sep", "pad", "cls", "mask")


def write_checkpoint(
    folder: Path, student: Student, teacher: Path, config: Mapping[str, Any]
) -> None:
    """config.json, model.safetensors and the tokenizer's files.

    Args:
        folder: made; what is in it is replaced.
        teacher: the folder whose tokenizer is carried along.
        config: the teacher's config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = student.encoder.config.to_hf()
    values["architectures"] = [_ARCHITECTURES[type(student.head)]]
    values["dtype"] = "float32"
    if isinstance(student.head, ClassificationHead):
        values |= {name: config[name] for name in _KEPT if config.get(name) is not None}
    if isinstance(student.head, MaskedLMHead):
        values["tie_word_embeddings"] = not student.head.untied
    write_json(folder / "config.json", values)
    tensors = {name: t.detach().cpu().contiguous() for name, t in student.tensors().items()}
    with atomic_file(folder / "model.safetensors") as stream:
        stream.write(save(tensors, metadata={"format": "pt"}))
    _carry_tokenizer(teacher, folder)


def write_sentence_settings(folder: Path, teacher: Path, settings: SentenceSettings) -> None:
    """What makes vectors of hidden states, for sentence-transformers and `fastdistil.Encoder`.

    Args:
        teacher: the folder of its transformer, which may say how long a text may be.
        settings: how the teacher pools, which the student was trained to do, too.
    """
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules += [("Normalize", "2_Normalize")] * settings.normalize
    listed = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)
    width = read_json(folder / "config.json")["dim"]
    flags = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    pooling: dict[str, Any] = {"word_embedding_dimension": width}
    for mode, flag in flags.items():
        pooling[f"pooling_mode_{flag}"] = mode == settings.pooling
    (folder / "1_Pooling").mkdir(exist_ok=True)
    write_json(folder / "1_Pooling" / "config.json", pooling)
    if (teacher / "sentence_bert_config.json").is_file():
        shutil.copyfile(teacher / "sentence_bert_config.json", folder / "sentence_bert_config.json")


def write_json(file: Path, values: Any) -> None:
    """A JSON file for people, too."""
    with atomic_file(file) as stream:
        stream.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _carry_tokenizer(teacher: Path, folder: Path) -> None:
    """The teacher's tokenizer under DistilBERT's name: the same ids, no segment ids.

    A BERT's says that models want segment ids (token_type_ids), which DistilBERT does not take.
    """
    for name in _TOKENIZER_FILES:
        if (teacher / name).is_file():
            shutil.copyfile(teacher / name, folder / name)
    settings = read_json(teacher / _TOKENIZER_CONFIG)
    settings.pop("name_or_path", None)
    settings["tokenizer_class"] = "DistilBertTokenizer"
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    special = read_json(teacher / "special_tokens_map.json")
    for role in _ROLES:
        token = settings.get(f"{role}_token", special.get(f"{role}_token"))
        if token is not None:
            settings[f"{role}_token"] = token_text(token)
    write_json(folder / _TOKENIZER_CONFIG, settings)
