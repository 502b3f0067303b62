"""Text from a masked language model: what is kept, what is written, and what decides it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from task_checkpoints import write_task_checkpoint

import fastdistil
from fastdistil.tasks.text_generation import _drawn, _mask_again


@pytest.fixture(scope="module", params=["DistilBert", "Bert"])
def generate(request, tmp_path_factory):
    folder = write_task_checkpoint(
        tmp_path_factory.mktemp("model"), request.param, "ForMaskedLM", positions=48
    )
    return fastdistil.pipeline("text-generation", folder, precision="fp32")


def test_a_prompt_is_continued_by_so_many_tokens(generate):
    [one] = generate("The  Weather", length=6)
    text = one["generated_text"]
    assert text.startswith("The  Weather ")
    written = generate("The  Weather", length=6, return_full_text=False)[0]["generated_text"]
    assert text == f"The  Weather {written}"
    assert generate("The  Weather", max_new_tokens=6) == [one]
    assert generate("The  Weather", length=0) == [{"generated_text": "The  Weather"}]


def test_a_template_keeps_its_own_text(generate):
    [one] = generate("I   saw [MASK] in ZÜRICH, (twice) [MASK]!")
    text = one["generated_text"]
    assert text.startswith("I   saw")
    assert " in ZÜRICH, (twice)" in text
    assert text.endswith("!")
    assert "[MASK]" not in text


def test_the_seed_decides_and_nothing_else_in_the_call(generate):
    prompts = ["The river", "A quiet [MASK]", "", "She said"]
    together = generate(prompts, length=5, num_return_sequences=2, seed=3, temperature=1.5)
    assert [len(each) for each in together] == [2, 2, 2, 2]
    assert together == generate(prompts, length=5, num_return_sequences=2, seed=3, temperature=1.5)
    for prompt, texts in zip(prompts, together, strict=True):
        alone = generate(prompt, length=5, num_return_sequences=2, seed=3, temperature=1.5)
        assert alone == texts
    assert together != generate(prompts, length=5, num_return_sequences=2, seed=4, temperature=1.5)
    assert together[0][0] != together[0][1]


def test_a_short_template_in_long_company(generate):
    """It is written in as many passes as alone."""
    template = "a [MASK] b [MASK] c [MASK]."
    for seed in range(5):
        alone = generate(template, seed=seed)
        assert generate([template, "hello"], seed=seed)[0] == alone


def test_words_of_the_template_stay_whole(generate):
    """Whatever top_k: candidates that go on with a word of the template are passed over."""
    for template in ("The river [MASK] on", "boat [MASK]", "Title:\n\n[MASK] end"):
        for seed in range(20):
            [one] = generate(template, top_k=1, seed=seed, temperature=2.0)
            assert one["generated_text"].startswith(template.partition("[MASK]")[0].rstrip(" "))
            word = template.split()[0]
            assert one["generated_text"].split()[0].rstrip(".,;:!?)'") == word.rstrip(":")


def test_a_model_that_knows_more_tokens_than_the_tokenizer(tmp_path):
    folder = write_task_checkpoint(tmp_path, "DistilBert", "ForMaskedLM", more_tokens=60)
    generate = fastdistil.pipeline("text-generation", folder, precision="fp32")
    assert generate("The river", length=3, top_k=2000, temperature=30.0)


def test_temperature_zero_takes_the_likeliest(generate):
    texts = generate("The river ran", length=4, temperature=0, num_return_sequences=3)
    assert texts[0] == texts[1] == texts[2]
    assert texts == generate(
        "The river ran", length=4, temperature=0, num_return_sequences=3, seed=9
    )


@pytest.mark.parametrize("method", ["mask-predict", "gibbs"])
@pytest.mark.parametrize("passes", [1, 3])
def test_the_model_runs_a_fixed_number_of_times(generate, method, passes, monkeypatch):
    reads = []

    def counted(batch, rows, really=generate.model.encoder.forward_rows):
        reads.append(len(rows))
        return really(batch, rows)

    monkeypatch.setattr(generate.model.encoder, "forward_rows", counted)
    generate(["The river", "The boat"], length=6, passes=passes, method=method)
    if method == "mask-predict":  # all, then two thirds, then one third are masks
        assert reads == [12, 8, 4][:passes]
    else:
        assert reads == [12, 4, 4][:passes]


def test_one_pass_at_temperature_zero_is_the_masked_model_s_own_answer(generate, tmp_path):
    """The oracle is fill-mask, which transformers' own pipeline is the oracle of."""
    fill = fastdistil.pipeline("fill-mask", generate.model.folder, precision="fp32")
    text = "The river ran past [MASK] and sold boats."
    words = [one["token_str"] for one in fill(text, top_k=50)]
    suits = [word for word in words if not word.startswith("##") and not word.startswith("[")]
    [one] = generate(text, passes=1, temperature=0)
    before = fill.tokenizer.decode(fill.tokenizer.plain(["past"])[0].ids)
    first = next(word for word in suits if word != before)
    close = first in ".,;:!?)]}%" or first.startswith("'")
    gap = "" if close else " "
    assert one["generated_text"] == f"The river ran past{gap}{first} and sold boats."


def test_special_tokens_are_never_written(generate):
    texts = generate([""] * 40, length=20, temperature=50.0, top_k=900)
    for [one] in texts:
        assert not {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} & set(
            one["generated_text"].split()
        )


def test_masks_to_come_are_the_least_sure():
    class Draft:
        places = np.arange(10)
        confidence = -np.arange(10.0)
        masked = np.zeros(10, bool)

    _mask_again(Draft, "mask-predict", 3, 10)
    assert np.flatnonzero(Draft.masked).tolist() == [7, 8, 9]


def test_draws_follow_the_probabilities():
    """Gumbel-max draws from softmax(scores / temperature): frequencies beside probabilities."""
    random = np.random.default_rng(0)
    scores = np.log([0.5, 0.3, 0.2])
    for temperature in (1.0, 0.5, 2.0):
        wanted = torch.softmax(torch.tensor(scores / temperature), 0).numpy()
        counts = np.bincount(
            [_drawn(scores, temperature, random) for _ in range(4000)], minlength=3
        )
        # Five standard deviations of a frequency of 4000 draws.
        assert np.abs(counts / 4000 - wanted).max() < 5 * 0.5 / 4000**0.5


def test_what_makes_no_sense_is_named(generate, tmp_path):
    for options, named in [
        ({"length": -1}, "length is -1"),
        ({"passes": 0}, "passes is 0"),
        ({"method": "beam"}, "method is 'beam'"),
        ({"temperature": -1.0}, r"temperature is -1\.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"num_return_sequences": 0}, "num_return_sequences is 0"),
        ({"length": 3, "max_new_tokens": 4}, "length and max_new_tokens"),
        ({"length": 60}, "more than the 48 this model takes"),
    ]:
        with pytest.raises(ValueError, match=named):
            generate("The river", **options)
    folder = write_task_checkpoint(tmp_path, "DistilBert", "ForSequenceClassification")
    with pytest.raises(ValueError, match="lacks a masked language model head"):
        fastdistil.pipeline("text-generation", folder)
