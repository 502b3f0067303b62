"""The finished student's folder: a checkpoint that everything loads which loads a DistilBERT."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save

from ..run_folder import atomic_file
from ..sentence_settings import SentenceSettings, read_json, transformer_settings
from ..tasks.labels import Labels
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
# What says where a tokenizer once lay, or names code.
_NOT_CARRIED = ("name_or_path", "tokenizer_file", "special_tokens_map_file", "auto_map")
_ANY_TOKENIZER = "PreTrainedTokenizerFast"
_ROLES = ("unk", "sep", "pad", "cls", "mask")


def write_checkpoint(
    folder: Path, student: Student, teacher: Path, labels: Labels | None = None
) -> None:
    """config.json, model.safetensors and the tokenizer's files.

    Args:
        folder: made; what is in it is replaced.
        teacher: the folder whose tokenizer is carried along.
        labels: the names of a classifier's outputs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = student.encoder.config.to_hf()
    values["architectures"] = [_ARCHITECTURES[type(student.head)]]
    values["dtype"] = "float32"
    if labels is not None:
        values["id2label"] = {str(number): name for number, name in enumerate(labels.names)}
        values["label2id"] = {name: number for number, name in enumerate(labels.names)}
        values["problem_type"] = labels.problem_type
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
    if limits := transformer_settings(teacher):
        write_json(folder / "sentence_bert_config.json", limits)


def copy_file(source: Path, target: Path) -> None:
    """A copy that is on the disk."""
    with open(source, "rb") as opened, atomic_file(target) as stream:
        shutil.copyfileobj(opened, stream)


def write_json(file: Path, values: Any) -> None:
    """A JSON file for people, too."""
    with atomic_file(file) as stream:
        stream.write((json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode())


def _carry_tokenizer(teacher: Path, folder: Path) -> None:
    """The teacher's tokenizer, BERT's under DistilBERT's name: the same ids, no segment ids.

    A BERT's says that models want segment ids (token_type_ids), which DistilBERT does not take.
    Another class's stays what it is: transformers takes from the class how words are split.
    """
    for name in _TOKENIZER_FILES:
        if (teacher / name).is_file():
            copy_file(teacher / name, folder / name)
    settings = read_json(teacher / _TOKENIZER_CONFIG)
    for name in _NOT_CARRIED:
        settings.pop(name, None)
    named = str(settings.get("tokenizer_class", "BertTokenizer")).removesuffix("Fast")
    if named in ("BertTokenizer", "DistilBertTokenizer"):
        kind = read_json(folder / "tokenizer.json").get("model", {}).get("type", "WordPiece")
        is_bert = kind == "WordPiece"
        settings["tokenizer_class"] = "DistilBertTokenizer" if is_bert else _ANY_TOKENIZER
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    special = read_json(teacher / "special_tokens_map.json")
    for role in _ROLES:
        token = settings.get(f"{role}_token", special.get(f"{role}_token"))
        if token is not None:
            settings[f"{role}_token"] = token_text(token)
    write_json(folder / _TOKENIZER_CONFIG, settings)
