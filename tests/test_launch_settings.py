"""Launch settings: the shipped files, the rules for reading them, and what a broken one gets."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdistil.kernels.settings import (
    TARGETS,
    TUNING,
    LinearSetting,
    Settings,
    load_settings,
    target_of,
)

HALF, FP32 = torch.bfloat16, torch.float32


@pytest.fixture(autouse=True)
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTDISTIL_TUNING", raising=False)


def table_of(target: str) -> dict[str, Any]:
    return json.loads((TUNING / f"{target}.json").read_text())


@pytest.mark.parametrize("target", TARGETS)
def test_shipped_settings_cover_every_size(target: str) -> None:
    settings = load_settings(target)
    for dtype in (torch.bfloat16, torch.float16, FP32):
        for tokens in (1, 16, 64, 65, 512, 4096, 8192, 1 << 20):
            for deterministic in (True, False):
                assert settings.linear(dtype, tokens, 768, 3072, deterministic).num_warps > 0
        for head_dim in (32, 64, 128):
            for length in (1, 16, 17, 64, 128, 512, 4096):
                assert settings.attention(dtype, head_dim, length).key_block > 0


@pytest.mark.parametrize("target", TARGETS)
def test_shipped_linear_rules_keep_batch_invariance(target: str) -> None:
    """cuBLAS chooses a kernel by the number of rows: never where bits must not depend on it."""
    settings = load_settings(target)
    for tokens in (1, 16, 64, 512, 4096, 16384):
        for shape in ((2304, 768), (768, 768), (3072, 768), (768, 3072), (384, 384)):
            assert settings.linear(HALF, tokens, *shape).variant != "cublas"


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_80"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((11, 0), "sm_100"),
        ((12, 0), "sm_89"),
    ],
)
def test_every_gpu_finds_settings(capability: tuple[int, int], target: str) -> None:
    assert target_of(capability) == target


def test_a_gpu_that_is_too_old() -> None:
    with pytest.raises(ValueError, match=r"compute capability 7\.5; the kernels need 8\.0"):
        target_of((7, 5))


def test_the_first_rule_that_holds_is_taken() -> None:
    table = table_of("sm_90")
    rules = [{"max_tokens": 32, "block_n": 8}, {"max_tokens": None, "block_n": 256}]
    table["linear"]["half"]["768x3072"] = rules
    table["fastest"] = {"half": {"*": [{"max_tokens": 64, "variant": "cublas"}]}}
    settings = Settings("sm_90", table, "here")
    assert settings.linear(HALF, 32, 768, 3072) == LinearSetting(block_n=8)
    assert settings.linear(HALF, 33, 768, 3072) == LinearSetting(block_n=256)
    assert settings.linear(HALF, 32, 768, 768).block_n not in (8, 256)
    assert settings.linear(HALF, 64, 768, 3072, deterministic=False).variant == "cublas"
    assert settings.linear(HALF, 65, 768, 3072, deterministic=False).block_n == 256


@pytest.mark.parametrize(
    ("target", "value", "message"),
    [
        ("sm_90", True, None),
        ("sm_100", False, None),
        ("sm_89", False, None),
        ("sm_89", True, "dependent_launch: sm_89 has none"),
        ("sm_90", 1, "dependent_launch: got 1; true or false is allowed"),
    ],
)
def test_dependent_launches_are_for_gpus_that_have_them(
    target: str, value: object, message: str | None
) -> None:
    table = table_of(target) | {"dependent_launch": value}
    if message is None:
        assert Settings(target, table, "here").dependent_launch is value
        return
    with pytest.raises(ValueError, match=message):
        Settings(target, table, "here")


def test_the_interpreter_launches_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    settings = Settings("sm_90", table_of("sm_90") | {"dependent_launch": True}, "here")
    assert (settings.dependent_launch, settings.waits) == (False, False)


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_wait_where_they_can_be_launched_early(target: str) -> None:
    assert load_settings(target).waits == (target in ("sm_90", "sm_100"))


def test_the_environment_names_a_file_or_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = table_of("sm_90") | {"measured_on": "somewhere"}
    (tmp_path / "sm_90.json").write_text(json.dumps(table))
    for named in (tmp_path, tmp_path / "sm_90.json"):
        monkeypatch.setenv("FASTDISTIL_TUNING", str(named))
        assert load_settings("sm_90").measured_on == "somewhere"
    monkeypatch.setenv("FASTDISTIL_TUNING", str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match=r"FASTDISTIL_TUNING: .*nothing is not there"):
        load_settings("sm_90")


def test_a_changed_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    file = tmp_path / "sm_80.json"
    monkeypatch.setenv("FASTDISTIL_TUNING", str(file))
    for number, name in enumerate(("first", "second")):
        file.write_text(json.dumps(table_of("sm_80") | {"measured_on": name}))
        os.utime(file, ns=(number, number))
        assert load_settings("sm_80").measured_on == name


def test_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sm_80.json").write_text("{")
    monkeypatch.setenv("FASTDISTIL_TUNING", str(tmp_path))
    with pytest.raises(ValueError, match=r"launch settings in .*sm_80\.json: no JSON"):
        load_settings("sm_80")


def _without(table: dict[str, Any], *path: str) -> None:
    for key in path[:-1]:
        table = table[key]
    del table[path[-1]]


@pytest.mark.parametrize(
    "path",
    [
        ("chunk_tokens",),
        ("attention",),
        ("attention", "half", "64"),
        ("attention", "half", "64", "key_block"),
        ("linear",),
        ("linear", "fp32"),
        ("rows", "pool"),
        ("rows", "layernorm", "fp32"),
    ],
)
def test_a_file_with_something_missing(path: tuple[str, ...]) -> None:
    table = copy.deepcopy(table_of("sm_90"))
    _without(table, *path)
    with pytest.raises(ValueError, match="launch settings in here: "):
        Settings("sm_90", table, "here")


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"max_tokens": None, "blok_m": 64}, "LinearSetting has no blok_m"),
        ({"block_m": 64}, "max_tokens"),
    ],
)
def test_a_rule_with_something_wrong(rule: dict[str, Any], message: str) -> None:
    table = table_of("sm_90")
    table["linear"]["half"]["*"] = [rule]
    with pytest.raises(ValueError, match=message):
        Settings("sm_90", table, "here")


@pytest.mark.parametrize(
    "rule",
    [
        {"max_seqlen": None, "block_q": 64, "slot": 16},  # sequences longer than their slot
        {"max_seqlen": 16, "block_q": 64, "slot": 24},  # slots that do not fill the tile
        {"max_seqlen": 16, "block_q": 128, "slot": 16},  # more keys than a key block
    ],
)
def test_slots_that_no_sequence_fits(rule: dict[str, Any]) -> None:
    table = table_of("sm_90")
    table["attention"]["half"]["64"] = {"key_block": 64, "rules": [rule]}
    with pytest.raises(ValueError, match="slot"):
        Settings("sm_90", table, "here")


def test_unknown_sizes_and_targets() -> None:
    with pytest.raises(ValueError, match="head_dim: got 48; allowed: 32, 64, 128"):
        load_settings("sm_90").attention(HALF, 48, 16)
    with pytest.raises(ValueError, match="target: got 'sm_75'; allowed: sm_80"):
        load_settings("sm_75")
