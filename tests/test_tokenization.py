"""Token ids are those of the checkpoint's own tokenizer in transformers, cut where that cuts."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import VOCABULARY, letter_tokenizer

from fastdistil.tokenization import (
    TextTokenizer,
    TokenizedTexts,
    max_length_of,
    replace_lone_surrogates,
)

ODD_TEXTS = [
    "",
    " ",
    "Ünïcödé ÀÉÎ ß İstanbul ΑΣ",
    "漢字かな交じり文 and 한국어",
    "tabs\tand\nnew lines\r\n and nul\x00 and \u200b zero width",
    "[CLS] [MASK] inside [SEP]",
    "x" * 300,
    "a.b,c;d!e?f-g_h'i\"j(k)",
    "emoji 😀 👩‍👩‍👧",
    "e\u0301 combining",
]


def rows_of(tokenised: TokenizedTexts) -> list[list[int]]:
    assert tokenised.ids.dtype == np.int32
    assert tokenised.lengths.sum() == len(tokenised.ids)
    ends = np.cumsum(tokenised.lengths)[:-1]
    return [part.tolist() for part in np.split(tokenised.ids, ends)] if len(ends) + 1 else []


def loaded(folder: Path, **options) -> TextTokenizer:
    tokenizer = TextTokenizer.from_folder(folder, 512, **options)
    assert tokenizer is not None
    return tokenizer


def test_same_ids_as_transformers(minilm_folder, real_sentences):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(minilm_folder)
    texts = [*real_sentences[:1000], *ODD_TEXTS, " ".join(real_sentences[:100])]
    ours = loaded(minilm_folder)(texts)
    assert rows_of(ours) == theirs(texts, truncation=True, max_length=256)["input_ids"]
    assert ours.truncated == sum(len(ids) > 256 for ids in theirs(texts)["input_ids"])


@pytest.mark.parametrize("lowercase", [True, False])
def test_vocab_txt_alone_gives_the_same_ids_as_transformers(
    minilm_folder, real_sentences, tmp_path, lowercase
):
    transformers = pytest.importorskip("transformers")
    shutil.copy(minilm_folder / "vocab.txt", tmp_path)
    settings = {"do_lower_case": lowercase, "tokenizer_class": "BertTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    texts = [*real_sentences[:500], *ODD_TEXTS]
    expected = theirs(texts, truncation=True, max_length=64)["input_ids"]
    assert rows_of(loaded(tmp_path, max_length=64)(texts)) == expected


def test_vocab_txt_with_other_special_tokens(tmp_path):
    tokens = ["<unk>", "<s>", "</s>", "<pad>", "<mask>", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    names = {"unk": "<unk>", "cls": "<s>", "sep": {"content": "</s>"}, "pad": "<pad>"}
    settings = {f"{role}_token": token for role, token in names.items()}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"vocab\.txt has no \[MASK\]"):
        loaded(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"mask_token": "<mask>"}))
    assert rows_of(loaded(tmp_path)(["a ?<mask>"])) == [[1, 5, 0, 4, 2]]


def test_padding_and_truncation_of_the_file_are_replaced(tmp_path):
    tokenizer = letter_tokenizer()
    tokenizer.enable_padding(length=30)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert loaded(tmp_path)(["abcdef", "a"]).lengths.tolist() == [8, 3]


def test_a_folder_without_a_tokenizer(tmp_path):
    assert TextTokenizer.from_folder(tmp_path, 512) is None


def test_a_tokenizer_file_that_is_none(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        loaded(tmp_path)


def test_no_texts():
    empty = TextTokenizer(letter_tokenizer(), 8)([])
    assert (len(empty.ids), len(empty.lengths), empty.truncated) == (0, 0, 0)


# Where texts are cut ------------------------------------------------------------------------------


def test_truncated_texts_are_counted():
    tokenizer = TextTokenizer(letter_tokenizer(), 6)
    tokenised = tokenizer(["a b c", "a b c d", "a b c d e", "a b c d e f g h i j", ""])
    assert tokenised.lengths.tolist() == [5, 6, 6, 6, 2]
    assert tokenised.truncated == 2


def test_truncation_on_the_left(tmp_path):
    letter_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"truncation_side": "left"}')
    text = "a " * 1000 + "x y z"
    want = [2, *(VOCABULARY.index(letter) for letter in "xyz"), 3]
    assert rows_of(loaded(tmp_path, max_length=5)([text])) == [want]


def test_long_texts_are_cut_as_if_all_of_them_had_been_tokenised():
    """The shortcut over the head of a long text must never show."""
    whole = letter_tokenizer()
    whole.enable_truncation(12)
    ours = TextTokenizer(letter_tokenizer(), 12)
    seeded = random.Random(0)
    texts = []
    for _ in range(300):
        pieces = seeded.choices(
            [
                "a",
                "bc",
                "def",
                " ",
                "  ",
                "\n",
                " " * 150,
                "x" * 120,
                "é",
                "\u0301",
                "漢",
                "[SEP]",
                ".",
            ],
            k=seeded.randint(1, 200),
        )
        texts.append("".join(pieces))
    texts += [" " * 5000 + "late words", "x" * 5000 + " end", "a" * 300 + " " + "b " * 300]
    got = ours(texts)
    expected = [whole.encode(text) for text in texts]
    assert rows_of(got) == [encoding.ids for encoding in expected]
    assert got.truncated == sum(bool(encoding.overflowing) for encoding in expected)
    assert sum(len(text) > 240 for text in texts) > 100, "no text is long enough for the shortcut"


def test_a_megabyte_is_a_text_like_any_other():
    text = "word " * 250_000
    tokenised = TextTokenizer(letter_tokenizer(), 512)([text, "a", text[:-1], "x" * 1_000_000])
    assert tokenised.lengths.tolist() == [512, 3, 512, 3]
    assert tokenised.truncated == 2


def test_max_length_of(tmp_path):
    assert max_length_of(tmp_path, 512) == 512
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert max_length_of(tmp_path, 512) == 512
    config.write_text('{"model_max_length": 384}')
    assert max_length_of(tmp_path, 512) == 384
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 128}')
    assert max_length_of(tmp_path, 512) == 128
    assert max_length_of(tmp_path, 100) == 100
    assert max_length_of(tmp_path, 512, 300) == 300


@pytest.mark.parametrize("asked", [0, -1, 513, 2.5])
def test_a_max_length_the_model_has_not(tmp_path, asked):
    with pytest.raises(ValueError, match=f"max_length is {asked}; .* from 1 to 512 tokens"):
        max_length_of(tmp_path, 512, asked)


def test_a_max_length_without_room_for_a_text():
    with pytest.raises(ValueError, match="adds 2 tokens to every text: it must be at least 3"):
        TextTokenizer(letter_tokenizer(), 2)


def test_settings_that_are_not_json(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not valid JSON"):
        max_length_of(tmp_path, 512)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object; it holds a list"):
        max_length_of(tmp_path, 512)


# Text that is not quite text ---------------------------------------------------------------------


def test_sentence_transformers_lower_casing(tmp_path):
    from tokenizers import normalizers

    cased = letter_tokenizer()
    cased.normalizer = normalizers.BertNormalizer(lowercase=False)
    cased.save(str(tmp_path / "tokenizer.json"))
    assert rows_of(loaded(tmp_path)(["A"])) == [[2, 1, 3]]
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert rows_of(loaded(tmp_path)(["A"])) == rows_of(loaded(tmp_path)(["a"]))


def test_lone_surrogates_and_nuls():
    tokenizer = TextTokenizer(letter_tokenizer(), 40)
    bad = ["a\ud800b", "plain", "\udc00", "nul\x00nul", "x " * 800 + "\ud800"]
    tokenised = tokenizer(bad)
    assert rows_of(tokenised) == rows_of(
        tokenizer(["a\ufffdb", "plain", "\ufffd", "nul\x00nul", "x " * 800])
    )
    # The last one's is behind the limit: nobody reads it.
    assert tokenised.replaced == 2


def test_replacing_lone_surrogates():
    texts = ["fine é 😀", "\ud83d\ude00", "\ude00\ud83d", "a\ud800", ""]
    fixed, changed = replace_lone_surrogates(texts)
    assert fixed == ["fine é 😀", "😀", "\ufffd\ufffd", "a\ufffd", ""]
    assert changed == 3


def test_the_fingerprint_is_of_what_decides_the_ids():
    one = TextTokenizer(letter_tokenizer(), 8).fingerprint()
    assert one == TextTokenizer(letter_tokenizer(), 8).fingerprint()
    assert one != TextTokenizer(letter_tokenizer(), 9).fingerprint()
