"""Gathers and LayerNorm in one pass, against their definition in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdistil.kernels.embedding import (
    embed_layernorm,
    embed_layernorm_launch,
    embed_layernorm_reference,
)
from fastdistil.kernels.launch import submit
from fastdistil.kernels.settings import load_settings, settings_for

EPS = 1e-12
WORDS, PLACES, SEGMENTS = 50, 20, 2
FORMS = ["words and positions", "row 0 of the segments", "segments"]
TABLES = ("word", "position", "segment", "weight", "bias")


def numbers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Seeded, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def ids(tokens: int, below: int, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(below, (tokens,), generator=generator, dtype=torch.int32).to(device)


def operands(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device, form: str = FORMS[2]
) -> dict[str, Any]:
    """The arguments of `embed_layernorm` but errors, by name and in order."""
    segmented = form != FORMS[0]
    return {
        "input_ids": ids(tokens, WORDS, device, 0),
        "positions": ids(tokens, PLACES, device, 1),
        "segment_ids": ids(tokens, SEGMENTS, device, 2) if form == FORMS[2] else None,
        "word": numbers((WORDS, width), dtype, device, 3),
        "position": numbers((PLACES, width), dtype, device, 4),
        "segment": numbers((SEGMENTS, width), dtype, device, 5) if segmented else None,
        "weight": numbers((width,), dtype, device, 6),
        "bias": numbers((width,), dtype, device, 7),
        "eps": EPS,
    }


def exact(o: dict[str, Any]) -> Tensor:
    tables = {name: o[name] if o[name] is None else o[name].double() for name in TABLES}
    return embed_layernorm_reference(**(o | tables))


def theirs(o: dict[str, Any]) -> Tensor:
    """PyTorch's own, in the tables' dtype."""
    total = F.embedding(o["input_ids"], o["word"])
    if o["segment"] is not None:
        given = o["segment_ids"]
        rows = torch.zeros_like(o["input_ids"]) if given is None else given
        total = total + F.embedding(rows, o["segment"])
    total = total + F.embedding(o["positions"], o["position"])
    return F.layer_norm(total, o["weight"].shape, o["weight"], o["bias"], EPS)


def assert_as_good_as(got: Tensor, theirs: Tensor, want: Tensor) -> None:
    """At most twice the error that PyTorch makes in this dtype, beside a rounding unit."""
    assert got.dtype == theirs.dtype
    floor = torch.finfo(got.dtype).eps * want.abs().max()
    allowed = 2 * (theirs.double() - want).abs().max() + floor
    # Written so that NaN fails.
    assert bool((got.double() - want).abs().max() <= allowed)


def no_errors(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 768), (17, 312), (333, 384), (5, 1024), (3, 32)], ids=str)
def test_definition(
    shape: tuple[int, int], form: str, dtype: torch.dtype, device: torch.device
) -> None:
    o = operands(*shape, dtype, device, form)
    want, other = exact(o), theirs(o)
    assert_as_good_as(embed_layernorm(**o), other, want)
    assert_as_good_as(embed_layernorm_reference(**o), other, want)


def test_large_magnitudes(dtype: torch.dtype, device: torch.device) -> None:
    o = operands(9, 768, dtype, device)
    o["word"] = o["word"] * 1e3 + 1e3
    assert_as_good_as(embed_layernorm(**o), theirs(o), exact(o))


def test_every_element_is_written(dtype: torch.dtype, device: torch.device) -> None:
    o = operands(17, 312, dtype, device)
    want = embed_layernorm(**o)
    out, errors = torch.full_like(want, float("nan")), no_errors(device)
    launch = embed_layernorm_launch(**o, out=out, errors=errors, settings=settings_for(device))
    submit(launch, device)
    assert torch.equal(out, want)
    assert errors.item() == 0


def test_rows_do_not_depend_on_the_batch(dtype: torch.dtype, device: torch.device) -> None:
    o = operands(333, 312, dtype, device)
    batch = embed_layernorm(**o)
    for rows in (slice(0, 1), slice(1, 2), slice(332, 333), slice(17, 60)):
        own = {name: o[name][rows] for name in ("input_ids", "positions", "segment_ids")}
        assert torch.equal(embed_layernorm(**(o | own)), batch[rows])


def test_a_bad_row_of_a_table_stays_at_home(dtype: torch.dtype, device: torch.device) -> None:
    o = operands(17, 96, dtype, device)
    clean = embed_layernorm(**o)
    bad = int(o["input_ids"][3])
    o["word"][bad] = float("nan")
    got, hit = embed_layernorm(**o), o["input_ids"] == bad
    assert got[hit].isnan().all()
    assert torch.equal(got[~hit], clean[~hit])


@pytest.mark.parametrize("wrong", [-1, "size", 2**31 - 1, -(2**31)])
@pytest.mark.parametrize(
    ("name", "table", "bit"),
    [("input_ids", "word", 1), ("positions", "position", 2), ("segment_ids", "segment", 4)],
)
def test_ids_outside_their_table(
    wrong: Any, name: str, table: str, bit: int, device: torch.device
) -> None:
    """Noted, read as the nearest row, and no other token's business."""
    o = operands(17, 96, torch.float32, device)
    clean = embed_layernorm(**o)
    rows = len(o[table])
    o[name][5] = rows if wrong == "size" else wrong
    with pytest.raises(ValueError, match=rf"{name}: .*0 to {rows - 1} "):
        embed_layernorm(**o)
    errors = no_errors(device)
    got = embed_layernorm(**o, errors=errors)
    assert errors.item() == bit
    o[name][5] = o[name][5].clamp(0, rows - 1)
    assert torch.equal(got, embed_layernorm(**o))
    others = torch.arange(17, device=device) != 5
    assert torch.equal(got[others], clean[others])


def test_errors_add_up_and_stay(device: torch.device) -> None:
    o = operands(17, 96, torch.float32, device)
    errors = no_errors(device)
    good = {name: o[name].clone() for name in ("input_ids", "positions")}
    o["input_ids"][2], o["positions"][16] = WORDS, PLACES
    embed_layernorm(**o, errors=errors)
    assert errors.item() == 1 | 2
    embed_layernorm(**(o | good), errors=errors)
    assert errors.item() == 1 | 2


def test_no_tokens(dtype: torch.dtype, device: torch.device) -> None:
    assert embed_layernorm(**operands(0, 96, dtype, device)).shape == (0, 96)


@pytest.mark.parametrize("form", FORMS)
def test_opcheck(form: str, device: torch.device) -> None:
    o = operands(5, 48, torch.float32, device, form)
    arguments = (*o.values(), no_errors(device))
    torch.library.opcheck(torch.ops.fastdistil.embed_layernorm.default, arguments)


def test_compile_traces_it_whole(device: torch.device) -> None:
    o = operands(5, 48, torch.float32, device)

    def program(input_ids: Tensor, errors: Tensor) -> Tensor:
        return embed_layernorm(**(o | {"input_ids": input_ids}), errors=errors) + 1

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    errors, wrong = no_errors(device), o["input_ids"] + WORDS
    assert torch.equal(compiled(o["input_ids"], errors), program(o["input_ids"], errors))
    assert errors.item() == 0
    compiled(wrong, errors)
    assert errors.item() == 1


def test_bad_input(device: torch.device) -> None:
    o = operands(4, 32, torch.float32, device)

    def refused(kind: type[Exception], message: str, **changes: Any) -> None:
        with pytest.raises(kind, match=message):
            embed_layernorm(**(o | changes))

    refused(TypeError, "input_ids: got int64", input_ids=o["input_ids"].long())
    refused(TypeError, "word: got float64", word=o["word"].double())
    refused(TypeError, "position: got float16", position=o["position"].half())
    refused(ValueError, r"positions: got shape \[3\]", positions=o["positions"][:3])
    refused(ValueError, r"segment: got shape \[2, 31\]", segment=o["segment"][:, :31])
    refused(ValueError, r"weight: got shape \[31\]", weight=o["weight"][:31])
    refused(ValueError, "segment_ids: ", segment=None)
    refused(ValueError, "word: ", word=o["word"][:0])


def test_launch_is_built_without_a_device() -> None:
    meta = torch.device("meta")
    o = operands(0, 768, torch.bfloat16, meta)
    counts = torch.empty(4096, dtype=torch.int32, device=meta)
    o |= {"input_ids": counts, "positions": counts, "segment_ids": None}
    out = torch.empty(4096, 768, dtype=torch.bfloat16, device=meta)
    settings = load_settings("sm_90")
    launch = embed_layernorm_launch(**o, out=out, errors=counts[:1], settings=settings)
    rows = settings.rows("embed_layernorm", torch.bfloat16).rows
    assert launch.grid == (-(-4096 // rows),)
    assert launch.flops == 9 * 4096 * 768
    assert launch.moved >= 2 * 4096 * 768
    assert not launch.tensor_cores
