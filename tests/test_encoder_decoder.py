"""EncoderDecoderModel under accelerate(): generate() writes the tokens it wrote before.

A written token is the largest of the decoder's logits, or drawn from them, so equal tokens are a
property of margins: the engine's last bits differ from PyTorch's, and two logits that are equal to
the sixth digit could change places. That this is not what holds these tests up is measured in
`test_the_tokens_stand_on_margins`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_fp32_budget, padded_batch, randomize, tiny_config
from torch import Tensor

import fastdistil

transformers = pytest.importorskip("transformers")

ENCODERS = ["distilbert", "bert"]
LENGTHS = [9, 1, 14, 5]
START, END, PAD = 1, 2, 0
GREEDY: dict[str, Any] = {}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "beams": {"num_beams": 4},
    "sampling": {"do_sample": True, "top_k": 0, "temperature": 1.3},
    "sampled beams": {"do_sample": True, "num_beams": 3},
    "three beams of four": {"num_beams": 4, "num_return_sequences": 3},
    "three samples": {"do_sample": True, "num_return_sequences": 3},
    "no cache": {"use_cache": False},
    "penalties": {"num_beams": 2, "repetition_penalty": 1.2, "length_penalty": 0.5},
}


def translator(encoder: str, decoder: str = "bert", seed: int = 0) -> Any:
    """A tiny EncoderDecoderModel with seeded weights that spread.

    Args:
        encoder: "distilbert" or "bert".
        decoder: "bert"; "wider bert", which needs a projection between the two; or "gpt2".
    """
    reading = transformers.AutoConfig.for_model(**tiny_config(encoder).to_hf())
    if decoder == "gpt2":
        writing = transformers.GPT2Config(
            vocab_size=99,
            n_positions=40,
            n_embd=48,
            n_layer=2,
            n_head=3,
            bos_token_id=START,
            eos_token_id=END,
        )
    else:
        sizes = {"hidden_size": 72, "num_heads": 4} if decoder == "wider bert" else {}
        writing = transformers.AutoConfig.for_model(**tiny_config("bert", **sizes).to_hf())
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(reading, writing)
    model = transformers.EncoderDecoderModel(config).eval()
    randomize(model, seed)
    return model


def generate(model: Any, ids: Tensor, mask: Tensor, **how: Any) -> Any:
    """generate() without any token twice.

    Random models would repeat the same one for ever. Like this the order of many logits counts.
    """
    torch.manual_seed(0)
    return model.generate(
        inputs=ids,
        attention_mask=mask,
        max_new_tokens=12,
        no_repeat_ngram_size=1,
        decoder_start_token_id=START,
        bos_token_id=START,
        eos_token_id=END,
        pad_token_id=PAD,
        **how,
    )


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS.keys())
@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_same_tokens(encoder: str, how: dict[str, Any]) -> None:
    model = translator(encoder)
    ids, mask = padded_batch(LENGTHS)
    want = generate(model, ids, mask, **how)
    assert fastdistil.accelerate(model, precision="fp32") is model
    got = generate(model, ids, mask, **how)
    assert len(want) == len(LENGTHS) * how.get("num_return_sequences", 1)
    assert want.unique().numel() > 12
    assert len(want.unique(dim=0)) > 1  # the texts matter
    assert torch.equal(got, want)
    explanation = fastdistil.explain(model)
    assert (explanation.fast_calls, explanation.fallback_calls) == (1, 0)


@pytest.mark.parametrize("decoder", ["wider bert", "gpt2"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_decoder(encoder: str, decoder: str) -> None:
    model = translator(encoder, decoder)
    assert hasattr(model, "enc_to_dec_proj") == (decoder == "wider bert")
    ids, mask = padded_batch(LENGTHS)
    wants = [generate(model, ids, mask, **how) for how in (GREEDY, WAYS["beams"])]
    fastdistil.accelerate(model, precision="fp32")
    for how, want in zip((GREEDY, WAYS["beams"]), wants, strict=True):
        assert torch.equal(generate(model, ids, mask, **how), want)
    assert fastdistil.explain(model).fast_calls == 2


@pytest.mark.parametrize("encoder", ENCODERS)
def test_each_text_alone_and_without_a_mask(encoder: str) -> None:
    model = fastdistil.accelerate(translator(encoder), precision="fp32")
    plain = fastdistil.restore(copy.deepcopy(model))
    ids, _ = padded_batch(LENGTHS)
    for row, length in zip(ids, LENGTHS, strict=True):
        one = row[None, :length]
        assert torch.equal(generate(model, one, None), generate(plain, one, None))
    assert fastdistil.explain(model).fast_calls == len(LENGTHS)


@pytest.mark.parametrize("decoder", ["bert", "wider bert"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_logits_and_states_keep_the_budget(encoder: str, decoder: str) -> None:
    model = translator(encoder, decoder)
    ids, mask = padded_batch(LENGTHS)
    written, _ = padded_batch([7] * len(LENGTHS), seed=1)
    call = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": written}
    with torch.inference_mode():
        want = model(**call)
        got = fastdistil.accelerate(model, precision="fp32")(**call)
    assert got.keys() == want.keys()
    assert_fp32_budget(got.logits, want.logits)
    real = mask == 1
    assert_fp32_budget(got.encoder_last_hidden_state[real], want.encoder_last_hidden_state[real])
    assert fastdistil.explain(model).fast_calls == 1


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_tokens_stand_on_margins(encoder: str) -> None:
    model = translator(encoder)
    ids, mask = padded_batch(LENGTHS)
    details = {"output_scores": True, "return_dict_in_generate": True}
    want = generate(model, ids, mask, **details)
    got = generate(fastdistil.accelerate(model, precision="fp32"), ids, mask, **details)
    scores = torch.stack(want.scores)  # the logits; -inf where no_repeat_ngram_size forbids
    best, second = scores.topk(2, dim=-1).values.unbind(-1)
    open_to_choice = scores.isfinite()
    error = (torch.stack(got.scores) - scores)[open_to_choice].abs().max()
    assert 0 < 20 * error < (best - second).min()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_restored_it_is_bitwise_what_it_was(encoder: str) -> None:
    model = translator(encoder)
    ids, mask = padded_batch(LENGTHS)
    details = {"output_scores": True, "return_dict_in_generate": True}
    before = generate(model, ids, mask, **details)
    attributes = set(model.encoder.__dict__)
    generate(fastdistil.accelerate(model, precision="bf16"), ids, mask)
    assert fastdistil.restore(model) is model
    assert set(model.encoder.__dict__) == attributes
    after = generate(model, ids, mask, **details)
    assert torch.equal(torch.stack(after.scores), torch.stack(before.scores))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_only_the_encoder_is_touched_and_what_cannot_run_there_runs_as_it_did(encoder: str) -> None:
    model = translator(encoder)
    ids, mask = padded_batch(LENGTHS)
    call = {"output_hidden_states": True, "return_dict_in_generate": True}
    want = generate(model, ids, mask, **call)
    fastdistil.accelerate(model, precision="fp32")
    touched = [name for name, module in model.named_modules() if "forward" in module.__dict__]
    assert touched == ["encoder"]
    got = generate(model, ids, mask, **call)
    assert torch.equal(got.sequences, want.sequences)
    for actual, expected in zip(got.encoder_hidden_states, want.encoder_hidden_states, strict=True):
        assert torch.equal(actual, expected)
    explanation = fastdistil.explain(model)
    assert (explanation.fast_calls, explanation.fallback_calls) == (0, 1)
    assert explanation.last_fallback == "output_hidden_states was requested"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_on_and_generating_again(encoder: str) -> None:
    plain = translator(encoder)
    model = fastdistil.accelerate(copy.deepcopy(plain), precision="fp32")
    ids, mask = padded_batch(LENGTHS)
    first = generate(model, ids, mask)
    for each in (plain, model):
        each.train()
        torch.manual_seed(0)  # the same dropout
        optimizer = torch.optim.SGD(each.parameters(), lr=0.5)
        output = each(input_ids=ids, attention_mask=mask, decoder_input_ids=ids)
        output.logits.sin().mean().backward()
        optimizer.step()
        each.eval()
    got, want = generate(model, ids, mask), generate(plain, ids, mask)
    assert torch.equal(got, want)
    assert not torch.equal(got, first)
    assert fastdistil.explain(model).last_fallback == "the encoder is in training mode"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_saved_accelerated_and_loaded_plain(encoder: str, tmp_path: Path) -> None:
    model = fastdistil.accelerate(translator(encoder), precision="fp32")
    ids, mask = padded_batch(LENGTHS)
    written = generate(model, ids, mask)
    model.save_pretrained(tmp_path)
    loaded = transformers.EncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert "forward" not in loaded.encoder.__dict__
    assert torch.equal(generate(loaded, ids, mask), written)
