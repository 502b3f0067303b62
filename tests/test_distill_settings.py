"""What a distillation can be asked for, and how mistakes are told."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastdistil import distill as package
from fastdistil.backends import PRECISIONS
from fastdistil.distill.settings import TEACHER_PRECISIONS, WEIGHTS, Settings

ROOT = Path(__file__).resolve().parents[1]


def test_defaults_are_allowed_and_say_half_the_layers_of_the_teachers_objective():
    settings = Settings()
    assert (settings.layers, settings.objective, settings.soft_weight) == (None, None, None)
    assert settings == Settings(**settings.to_json())


def test_values_are_kept_as_pythons_own():
    settings = Settings(
        layers=[np.int64(0), 2], epochs=np.int32(2), learning_rate=np.float32(0.5), temperature=3
    )
    kept = (settings.layers, settings.epochs, settings.learning_rate, settings.temperature)
    assert kept == ((0, 2), 2, 0.5, 3.0)
    assert [type(value) for value in kept] == [tuple, int, float, float]
    assert hash(settings) == hash(dataclasses.replace(settings))


def test_a_manifest_gives_the_settings_back():
    settings = Settings(objective="mlm", layers=(4, 0, 2), maskings=3, hidden_weight=0.5)
    written = json.dumps(settings.to_json(), allow_nan=False)
    assert Settings(**json.loads(written)) == settings
    assert json.loads(written)["layers"] == [4, 0, 2]


@pytest.mark.parametrize("layers", [1, 12, (0,), [5, 1, 3]])
def test_layers_that_are_allowed(layers):
    kept = Settings(layers=layers).layers
    assert kept == (tuple(layers) if isinstance(layers, list) else layers)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("objective", "squad"),
        ("layers", 0),
        ("layers", []),
        ("layers", [0, 2, 2]),
        ("layers", [0, -1]),
        ("epochs", 0),
        ("max_steps", 0),
        ("batch_tokens", -5),
        ("accumulation", 0),
        ("learning_rate", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("weight_decay", -1e-9),
        ("max_gradient_norm", 0.0),
        ("max_gradient_norm", float("inf")),
        ("temperature", 0.0),
        ("soft_weight", -1),
        ("pooled_weight", float("nan")),
        ("pooled_loss", "l1"),
        ("mask_probability", 0),
        ("mask_probability", 1),
        ("maskings", 0),
        ("soft_targets", "none"),
        ("held_out", 1),
        ("max_length", 0),
        ("evaluate_every", 0),
        ("checkpoint_every", 0),
        ("precision", "int8"),
        ("teacher_precision", "fp4"),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_values_out_of_range(field, value):
    with pytest.raises(ValueError, match=rf"^{field}(\[1\])? is ") as caught:
        Settings(**{field: value})
    assert any(word in str(caught.value) for word in ("allowed", "can be", "needed"))


_WORDS = {"objective", "pooled_loss", "soft_targets", "precision", "teacher_precision"}
_SHARES = {"warmup", "mask_probability", "held_out"}
_NUMBERS = {"learning_rate", "weight_decay", "max_gradient_norm", "temperature", *WEIGHTS}


@pytest.mark.parametrize("field", sorted(Settings.__dataclass_fields__))
@pytest.mark.parametrize("value", [True, "7", {}, 1.5, b"mlm"])
def test_values_of_the_wrong_kind(field, value):
    right_kind = (
        (value is True and field == "train_embeddings")
        or (value == 1.5 and field in _NUMBERS | _SHARES)
        or (value == "7" and field in _WORDS)
    )
    if right_kind and field not in _WORDS | _SHARES:
        assert getattr(Settings(**{field: value}), field) is value
    else:
        with pytest.raises(ValueError if right_kind else TypeError, match=f"^{field} is "):
            Settings(**{field: value})


@pytest.mark.parametrize("field", ["epochs", "seed", "learning_rate", "train_embeddings"])
def test_none_is_no_value_where_there_is_a_default(field):
    with pytest.raises(TypeError, match=f"^{field} is None, a NoneType"):
        Settings(**{field: None})


def test_nothing_to_learn():
    weights = dict.fromkeys(("soft_weight", "hard_weight", "hidden_weight"), 0)
    assert Settings(**weights).soft_weight == 0.0
    with pytest.raises(ValueError, match="nothing to learn"):
        Settings(**weights, pooled_weight=0)


def test_precisions_of_a_teacher_are_those_of_the_backends():
    assert TEACHER_PRECISIONS == PRECISIONS


def test_public_names():
    assert package.Settings is Settings
    assert set(package.__all__) <= set(dir(package))
    assert all(callable(getattr(package, name)) for name in package.__all__)
    with pytest.raises(AttributeError, match="'distil'"):
        _ = package.distil


def test_settings_need_no_torch():
    code = (
        "import sys, fastdistil.distill; fastdistil.distill.Settings(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
