"""Whole checkpoints with task heads, as transformers writes them: seeded weights, a trained
tokenizer."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from helpers import randomize
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece

from fastdistil.bench.sample import sentences

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Accents, emoji, CJK, right to left, hardly anything.
TEXTS = [
    "A quiet, lovely film.",
    "Naïve café owners in Zürich adore crème brûlée!",
    "We 😀 emoji 🎉🎉 and 👩‍👩‍👧 families.",
    "东京是日本的首都。 我喜欢猫",
    "שלום עולם, this mixes עברית and English.",
    "مرحبا بالعالم",
    "I didn't know U.S.-based firms paid $3.50 (2,000) e.g. unbelievable_words "
    "supercalifragilistic",
    "Interest rates rose again, the bank of England said on Tuesday.",
    "x",
]
LONG = " ".join(
    f"Paragraph {number}: the river ran past Berlin and Anna Schmidt sold {number} boats to John."
    for number in range(30)
)


@cache
def trained_tokenizer(vocabulary: int = 900, lowercase: bool = True) -> Tokenizer:
    """BERT's WordPiece over pieces of the project's sentences and the texts above."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    # No emoji, so that there is something unknown.
    known = [text for text in TEXTS if "😀" not in text]
    pieces = _frequent_pieces([*sentences(), *known, LONG], normalizer, vocabulary - len(SPECIAL))
    numbers = {piece: number for number, piece in enumerate([*SPECIAL, *pieces])}
    tokenizer = Tokenizer(WordPiece(numbers, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def _frequent_pieces(
    texts: list[str], normalizer: normalizers.Normalizer, number: int
) -> list[str]:
    """All characters, and of longer pieces of words those that save most tokens.

    tokenizers' own trainer breaks ties in the order of a hash table: another vocabulary every time.
    """
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    words = Counter(
        word for text in texts for word, _ in split(str(normalizer.normalize_str(text)))
    )
    characters: set[str] = set()
    saved: Counter[str] = Counter()
    for word, times in words.items():
        for begin in range(len(word)):
            mark = "##" if begin else ""
            characters.add(mark + word[begin])
            for end in range(begin + 2, min(len(word), begin + 12) + 1):
                saved[mark + word[begin:end]] += times * (end - begin - 1)
    longer = sorted(saved, key=lambda piece: (-saved[piece], piece))
    return [*sorted(characters), *longer][:number]


def write_task_checkpoint(
    folder: Path,
    family: str,
    head: str,
    *,
    positions: int = 64,
    seed: int = 0,
    lowercase: bool = True,
    more_tokens: int = 0,
    **config: Any,
) -> Path:
    """A DistilBERT or BERT checkpoint with a head, and its tokenizer; returns the folder.

    Args:
        family: "DistilBert" or "Bert".
        head: "ForTokenClassification", "ForMaskedLM"..., or "Model".
        more_tokens: rows of the word embeddings that the tokenizer does not know.
        config: more for the config: id2label, problem_type...
    """
    transformers = pytest.importorskip("transformers")
    tokenizer = trained_tokenizer(lowercase=lowercase)
    fast = getattr(transformers, f"{family}TokenizerFast")(
        tokenizer_object=tokenizer, do_lower_case=lowercase, model_max_length=positions
    )
    sizes = (
        {"dim": 48, "n_layers": 2, "n_heads": 3, "hidden_dim": 80}
        if family == "DistilBert"
        else {
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 80,
        }
    )
    hf_config = getattr(transformers, f"{family}Config")(
        vocab_size=len(fast) + more_tokens, max_position_embeddings=positions, **sizes, **config
    )
    model = getattr(transformers, f"{family}{head}")(hf_config).eval()
    randomize(model, seed)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
