"""A whole checkpoint folder, tokenizer included, that loads and runs in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

from helpers import randomize, tiny_config
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from fastdistil.model import DistilBertModel

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY = [*SPECIAL, *ascii_lowercase, *(f"##{c}" for c in ascii_lowercase + digits), *digits]


def write_tiny_checkpoint(folder: Path, *, tokenizer: bool = True, **sizes: Any) -> Path:
    """Seeded random weights and a tokenizer with a token per letter; returns the folder.

    Args:
        sizes: changes to `helpers.tiny_config`.
    """
    model = DistilBertModel(tiny_config(**sizes)).eval()
    randomize(model)
    model.save_pretrained(folder)
    if tokenizer:
        letter_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def letter_tokenizer() -> Tokenizer:
    """BERT's own chain over a vocabulary of letters and digits."""
    vocabulary = {token: index for index, token in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def write_modules(folder: Path, *modules: tuple[str, str, dict[str, Any]]) -> None:
    """sentence-transformers' modules.json: (type, path, config) each."""
    listed = [{"idx": i, "path": path, "type": kind} for i, (kind, path, _) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    for _, path, config in modules:
        if config:
            (folder / path).mkdir(exist_ok=True)
            (folder / path / "config.json").write_text(json.dumps(config))
