"""The same API on the kernels: models of Hugging Face, and texts to vectors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import padded_batch, random_hf_model

import fastdistil
from fastdistil.config import EncoderConfig
from fastdistil.model import DistilBertModel

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_heads": 2,
    "intermediate_size": 96,
    "num_layers": 1,
}


@pytest.mark.parametrize("side", ["right", "left", "holes"])
@pytest.mark.parametrize("kind", ["distilbert", "bert"])
def test_accelerate(device: torch.device, kind: str, side: str) -> None:
    own = random_hf_model(kind, **SIZES).to(device)
    model = fastdistil.accelerate(copy.deepcopy(own), precision="fp32", backend="cuda")
    ids, mask = (tensor.to(device) for tensor in padded_batch([5, 1, 20, 17], side=side))
    with torch.inference_mode():
        want = own(ids, attention_mask=mask).last_hidden_state
        got = model(ids, attention_mask=mask).last_hidden_state
    keep = mask.bool()
    if side != "right" and kind == "bert":  # its pooler reads the first position
        keep = torch.ones_like(keep)
    assert (got[keep] - want[keep]).abs().max() <= 2e-5 * want[keep].abs().max()
    explanation = fastdistil.explain(model)
    answered = (explanation.fast_calls, explanation.fallback_calls)
    assert answered == ((0, 1) if side != "right" and kind == "bert" else (1, 0))
    assert explanation.backend == "cuda"
    assert fastdistil.restore(model) is model
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_models_stay_in_their_type(device: torch.device, dtype: torch.dtype) -> None:
    model = random_hf_model("distilbert", **SIZES).to(device, dtype)
    fastdistil.accelerate(model, backend="cuda")
    ids, mask = (tensor.to(device) for tensor in padded_batch([5, 9]))
    with torch.inference_mode():
        assert model(ids, attention_mask=mask).last_hidden_state.dtype == dtype
    wanted = {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    assert fastdistil.explain(model).precision == wanted


def test_warmup(device: torch.device) -> None:
    model = fastdistil.accelerate(random_hf_model("distilbert", **SIZES).to(device), backend="cuda")
    assert fastdistil.warmup(model, tokens=[16, 40], max_seqlen=20) is model
    assert fastdistil.explain(model).fast_calls == 0


def test_texts_to_vectors(device: torch.device, minilm_folder: Path, tmp_path: Path) -> None:
    """With the real tokenizer and a small model, and in several batches."""
    config = EncoderConfig(
        "bert", num_segments=2, hidden_size=64, num_heads=2, intermediate_size=96, num_layers=1
    )
    torch.manual_seed(0)
    DistilBertModel(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (tmp_path / name).write_bytes((minilm_folder / name).read_bytes())
    texts = ["A cat sleeps on the mat.", "", "Rates rose.", "one " * 40]
    options = {"device": str(device), "precision": "fp32"}
    encoder = fastdistil.Encoder(tmp_path, backend="cuda", **options)
    want = fastdistil.Encoder(tmp_path, backend="reference", **options).encode(texts)
    got = encoder.encode(texts, batch_tokens=20)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
