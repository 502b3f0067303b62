"""The model card: what the hub reads of it, and what a person does."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from fastdistil.cli import _parser
from fastdistil.distill.card import Facts, hub_id, model_card, shown_name
from fastdistil.distill.settings import Settings, Summary

METRICS = {
    "embedding": ["loss", "hidden", "pooled", "pooled_cosine", "token_cosine"],
    "mlm": ["loss", "soft", "hard", "hidden", "accuracy", "agreement"],
    "classification": ["loss", "soft", "hidden", "agreement"],
}
WEIGHTS = {
    "embedding": {"hidden": 1.0, "pooled": 0.25},
    "mlm": {"soft": 5.0, "hard": 2.0, "hidden": 1.0},
    "classification": {"soft": 1.0, "hidden": 1.0},
}
TEACHER = "sentence-transformers/all-MiniLM-L6-v2"


def facts(objective: str = "embedding", name: str = "small", **changes) -> Facts:
    names = METRICS[objective]
    summary = Summary(
        output=Path("folder") / name,
        objective=objective,
        steps=2000,
        epochs=3.0,
        tokens=4_100_000,
        seconds=190.2,
        resumed_step=0,
        teacher_seconds=12.0,
        training_texts=20_000,
        eval_texts=1000,
        parameters=17_400_000,
        teacher_parameters=22_600_000,
        before={metric: 0.125 + place for place, metric in enumerate(names)},
        after={metric: 0.5 + place for place, metric in enumerate(names)},
    )
    told = {
        "teacher": TEACHER,
        "settings": Settings(objective=objective, seed=7),
        "summary": summary,
        "layers": (1, 3, 5),
        "teacher_layers": 6,
        "weights": WEIGHTS[objective],
    }
    return Facts(**(told | changes))


@pytest.mark.parametrize(
    ("objective", "library", "tag"),
    [
        ("embedding", "sentence-transformers", "sentence-similarity"),
        ("mlm", "transformers", "fill-mask"),
        ("classification", "transformers", "text-classification"),
    ],
)
def test_what_the_hub_reads(objective, library, tag):
    data = ModelCard(model_card(facts(objective))).data
    assert (data.library_name, data.pipeline_tag, data.base_model) == (library, tag, TEACHER)
    assert set(data.tags) >= {"distilbert", "distillation", "fastdistil"}


def test_a_local_teacher_is_told_by_its_name_alone(tmp_path):
    folder = tmp_path / "secret" / "my-bert"
    folder.mkdir(parents=True)
    card = model_card(facts(teacher=str(folder)))
    assert "secret" not in card
    assert "distilled from `my-bert`" in card
    assert ModelCard(card).data.base_model is None


@pytest.mark.parametrize("given", ["a/b", "bert-base-uncased", "a-1/B_2.c"])
def test_hub_ids(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id(given) == shown_name(given) == given
    Path(given).mkdir(parents=True)
    assert hub_id(given) is None
    assert shown_name(given) == given.rpartition("/")[2]


@pytest.mark.parametrize("given", ["./a", "/a/b", "a/b/c", "../b", "a b", "~/b", "b/"])
def test_no_hub_ids(given):
    assert hub_id(given) is None


@pytest.mark.parametrize("objective", METRICS)
def test_what_was_done_and_measured(objective):
    card = model_card(facts(objective))
    for part in (
        "3 layers and 17.4 million parameters",
        "6 layers and 22.6 million: the student is 77% of that",
        "its layers 1, 3, 5 (of 0 to 5)",
        "20,000 texts in 3 epochs: 4,100,000 tokens in 2,000 steps of up to 2,048 tokens; 3 min 10",
        "learning rate 0.0005",
        "Dropout: none. Seed: 7.",
        "On 1,000 texts that were held out of the training, chosen by a digest",
    ):
        assert part in card, part
    for place, name in enumerate(METRICS[objective]):
        assert f"| `{name}` | {0.125 + place:.4f} | {0.5 + place:.4f} |" in card
    terms = re.findall(r"^  - (\S+) x `(\w+)`: .+", card, re.MULTILINE)
    assert {name: float(weight) for weight, name in terms} == WEIGHTS[objective]
    assert ("Temperature of the soft targets: 2." in card) == ("soft" in WEIGHTS[objective])
    assert ("Masked: 0.15 of the tokens" in card) == (objective == "mlm")
    assert "\n\n\n" not in card


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"segments_folded": True}, "for segment 0 is added to every position embedding"),
        ({"pooler_dropped": True}, "has no pooler"),
        ({"layers": (5,)}, "its layer 5 (of 0 to 5)"),
        ({"layer_norm_eps": 1e-5}, "adds 1e-12 to the variance, where the teacher's adds 1e-05"),
        ({"settings": Settings(train_embeddings=False)}, "embeddings were not trained"),
        ({"settings": Settings(pooled_loss="mse")}, "squared distance of the pooled vectors"),
        ({"eval_given": True}, "On 1,000 texts that were given for it"),
        ({"image": "losses.png"}, "](losses.png)"),
        ({"normalize": True}, "mean pooling, scaled to length 1"),
        ({"student": "me/own", "student_layers": 2, "layers": ()}, "those of `me/own`"),
    ],
)
def test_what_is_only_told_where_it_is_so(change, told):
    assert told in model_card(facts(**change))
    assert told not in model_card(facts())


def test_a_student_of_its_own_has_layers_of_its_own():
    card = model_card(facts(student="me/own", student_layers=1, layers=(), segments_folded=True))
    assert "A DistilBERT of 1 layer and" in card
    assert "segment" not in card


def test_nothing_measured():
    one = facts()
    card = model_card(replace(one, summary=replace(one.summary, before={}, after={})))
    assert "Nothing: no texts were held out." in card
    assert "|---|" not in card


@pytest.mark.parametrize("objective", METRICS)
@pytest.mark.parametrize("name", ["small", 'it\'s "mine" now'])
def test_examples_can_be_run(objective, name):
    """As far as that goes without the model: they are Python, and commands that there are."""
    import shlex

    card = model_card(facts(objective, name, mask_token="<mask>"))
    python = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(python) == 2
    for code in python:
        names = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert name in names
    (command,) = re.findall(r"```bash\n(.*?)```", card, re.DOTALL)
    program, *arguments = shlex.split(command)
    assert program == "fastdistil"
    assert _parser().parse_args(arguments).model == name
    assert ("<mask>" in command) == (objective == "mlm")
