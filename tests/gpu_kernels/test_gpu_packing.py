"""Packing on the device against its definitions, number by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdistil.kernels.launch import submit
from fastdistil.kernels.measure import measure, measure_launches, measure_reference
from fastdistil.kernels.packing import (
    count_launch,
    pack,
    pack_launch,
    pack_reference,
    unpack,
    unpack_launch,
    unpack_reference,
)
from fastdistil.kernels.settings import load_settings, settings_for

# The last is wider than one block of columns.
SHAPES = [(1, 1), (3, 16), (17, 33), (5, 512), (2, 2500)]
MASKS = [torch.bool, torch.int64, torch.uint8, torch.float32, torch.bfloat16]
FORMS = ["right", "left", "holes", "all", "nothing", "empty rows"]


def random_ids(shape: tuple[int, int], device: torch.device, low: int = 0) -> Tensor:
    """Seeded, the same on every device."""
    generator = torch.Generator().manual_seed(shape[0] * shape[1])
    return torch.randint(low, 1000, shape, generator=generator).to(device)


def mask_of(form: str, shape: tuple[int, int], device: torch.device) -> Tensor:
    rows, width = shape
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    columns = torch.arange(width).expand(shape)
    keep = {
        "right": columns < lengths,
        "left": columns >= width - lengths,
        "holes": torch.rand(shape, generator=generator) < 0.5,
        "all": columns >= 0,
        "nothing": columns < 0,
        "empty rows": (columns < lengths) & (torch.arange(rows) % 2 == 1)[:, None],
    }
    return keep[form].to(device)


def assert_same(got: Any, want: Any) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


# ---- pack


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_pack(form: str, shape: tuple[int, int], device: torch.device) -> None:
    mask = mask_of(form, shape, device)
    total = int(mask.sum())
    assert_same(pack(mask), pack_reference(mask))
    positions, indices, cu_seqlens = pack(mask, total)
    assert_same((positions, indices, cu_seqlens), pack_reference(mask, total))
    # In plain words.
    assert indices.tolist() == mask.flatten().nonzero().flatten().tolist()
    assert positions.tolist() == mask.nonzero()[:, 1].tolist()
    assert cu_seqlens.diff().tolist() == mask.sum(dim=1).tolist()


@pytest.mark.parametrize("dtype", MASKS, ids=str)
def test_pack_takes_masks_of_any_kind(dtype: torch.dtype, device: torch.device) -> None:
    mask = mask_of("holes", (5, 40), device)
    assert_same(pack(mask.to(dtype)), pack_reference(mask))
    if dtype != torch.bool and dtype.is_signed:
        assert_same(pack(mask.to(dtype) * -3), pack_reference(mask))
    if dtype.is_floating_point:
        odd = torch.where(mask, float("nan"), -0.0).to(dtype)
        assert_same(pack(odd), pack_reference(mask))


@pytest.mark.parametrize("total", [0, 1, 7])
def test_pack_leaves_out_what_does_not_fit(total: int, device: torch.device) -> None:
    mask = mask_of("all", (3, 5), device)
    assert_same(pack(mask, total), pack_reference(mask, total))


def test_pack_with_room_to_spare(device: torch.device) -> None:
    mask = mask_of("holes", (5, 9), device)
    assert_same(pack(mask, 44), pack_reference(mask, 44))


def test_pack_writes_every_number(device: torch.device) -> None:
    mask, settings = mask_of("holes", (5, 40), device), settings_for(device)
    counts = torch.full((6,), -7, dtype=torch.int32, device=device)
    submit(count_launch(mask, counts, settings), device)
    assert counts.tolist() == [0, *mask.sum(dim=1).tolist()]
    positions = torch.full((200,), -7, dtype=torch.int32, device=device)
    indices = torch.full((200,), -7, dtype=torch.int64, device=device)
    cu_seqlens = counts.cumsum(0, dtype=torch.int32)
    submit(pack_launch(mask, cu_seqlens, positions, indices, settings), device)
    assert_same((positions, indices, cu_seqlens), pack_reference(mask))


def test_masks_may_lie_anyhow(device: torch.device) -> None:
    mask = mask_of("holes", (40, 12), device)
    ids = random_ids((40, 12), device)
    for view in (mask.t(), mask[::2], mask[:, 3:9], mask[:1].expand(4, 12), mask[:, ::5]):
        assert_same(pack(view), pack_reference(view.clone()))
    assert_same([measure(ids.t(), mask.t())], [measure_reference(ids.t(), mask.t())])


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0)], ids=str)
def test_no_cells(shape: tuple[int, int], device: torch.device) -> None:
    mask = torch.ones(shape, dtype=torch.bool, device=device)
    positions, indices, cu_seqlens = pack(mask)
    assert (len(positions), len(indices)) == (0, 0)
    assert cu_seqlens.tolist() == [0] * (shape[0] + 1)
    ids = torch.ones(shape, dtype=torch.int64, device=device)
    assert_same([measure(ids, mask, None, ids)], [measure_reference(ids, mask, None, ids)])


# ---- measure


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("form", [*FORMS, None])
@pytest.mark.parametrize("beside", ["nothing", "segments", "both", "one row of each"])
def test_measure(
    beside: str, form: str | None, shape: tuple[int, int], device: torch.device
) -> None:
    ids = random_ids(shape, device, low=-5)
    mask = None if form is None else mask_of(form, shape, device)
    rows = (1, shape[1]) if beside == "one row of each" else shape
    places = random_ids(rows, device, low=3) if beside in ("both", "one row of each") else None
    segments = random_ids(rows, device) % 3 if beside != "nothing" else None
    arguments = (ids, mask, places, segments)
    assert_same([measure(*arguments)], [measure_reference(*arguments)])


def test_measure_in_plain_words(device: torch.device) -> None:
    ids = torch.tensor([[7, 900, 3], [5, 8, -6]], device=device)
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]], device=device)
    segments = torch.tensor([[4, 9, 4], [2, 4, 9]], device=device)
    facts = measure(ids, mask, None, segments)
    #                 lengths  binary first  ids  columns  segments
    assert facts.tolist() == [2, 2, 1, 1, 3, 8, 0, 2, 2, 4]


@pytest.mark.parametrize("dtype", MASKS[1:], ids=str)
def test_measure_tells_masks_apart(dtype: torch.dtype, device: torch.device) -> None:
    ids = random_ids((3, 20), device)
    mask = mask_of("all", (3, 20), device).to(dtype)
    assert measure(ids, mask)[3:5].tolist() == [1, 1]
    mask[1, 7] = 2
    assert measure(ids, mask)[3:5].tolist() == [0, 1]
    mask[2, 0] = 0
    assert measure(ids, mask)[3:5].tolist() == [0, 0]
    mask[1, 7] = 1
    assert measure(ids, mask)[3:5].tolist() == [1, 0]
    if dtype.is_floating_point:
        mask[1, 7] = float("nan")
        assert measure(ids, mask)[3:5].tolist() == [0, 0]
        assert measure(ids, mask)[1] == 20


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_measure_takes_ids_of_any_kind(dtype: torch.dtype, device: torch.device) -> None:
    info = torch.iinfo(dtype)
    ids = torch.tensor([[1, info.max, info.min]], device=device, dtype=dtype)
    assert measure(ids)[3:5].tolist() == [info.min, info.max]


def test_measure_keeps_64_bits(device: torch.device) -> None:
    info = torch.iinfo(torch.int64)
    ids = torch.tensor([[2**40, info.max, 0], [-(2**33), info.min, 1]], device=device)
    mask = torch.tensor([[1, 0, 1], [1, 0, 1]], device=device)
    assert measure(ids, mask)[4:6].tolist() == [-(2**33), 2**40]
    assert measure(ids)[4:6].tolist() == [info.min, info.max]


def test_measure_writes_every_number(device: torch.device) -> None:
    ids, mask = random_ids((9, 33), device), mask_of("right", (9, 33), device)
    facts = torch.full((17,), -7, dtype=torch.int64, device=device)
    partial = torch.full((8, 9), -7, dtype=torch.int64, device=device)
    for launch in measure_launches(ids, mask, None, ids, facts, partial, settings_for(device)):
        submit(launch, device)
    assert torch.equal(facts, measure_reference(ids, mask, None, ids))


# ---- unpack


@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (7, 33)], ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [1, 312, 768])
def test_unpack(
    form: str, shape: tuple[int, int], width: int, dtype: torch.dtype, device: torch.device
) -> None:
    mask = mask_of(form, shape, device)
    _, indices, _ = pack(mask, int(mask.sum()))
    hidden = torch.arange(1, len(indices) * width + 1, device=device).to(dtype)
    hidden = hidden.view(len(indices), width)
    out = torch.full((*shape, width), float("nan"), dtype=dtype, device=device)
    submit(unpack_launch(hidden, indices, out, settings_for(device)), device)
    want = unpack_reference(hidden, indices, *shape)
    assert torch.equal(out, want)
    assert torch.equal(unpack(hidden, indices, *shape), want)
    assert torch.equal(out[mask], hidden)


def test_unpack_hands_on_what_is_there(device: torch.device) -> None:
    hidden = torch.tensor([[float("nan")], [float("inf")], [3.0]], device=device)
    got = unpack(hidden, torch.tensor([1, 2, 4], device=device), 2, 3)
    assert got.flatten().nan_to_num(nan=-1).tolist() == [0, -1, torch.finfo().max, 0, 3, 0]


def test_unpack_cannot_write_outside(device: torch.device) -> None:
    hidden = torch.ones(3, 40, device=device)
    got = unpack(hidden, torch.tensor([-(2**40), 2, 2**40], device=device), 1, 4)
    assert got[0, :, 0].tolist() == [0, 0, 1, 0]


def test_unpack_of_no_cells(device: torch.device) -> None:
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    assert unpack(torch.zeros(0, 8, device=device), nothing, 0, 4).shape == (0, 4, 8)
    assert unpack(torch.zeros(0, 8, device=device), nothing, 2, 0).shape == (2, 0, 8)


# ---- all of them


def test_opcheck(device: torch.device) -> None:
    ids, mask = random_ids((3, 9), device), mask_of("holes", (3, 9), device)
    ops = torch.ops.fastdistil
    for total in (None, 5):
        torch.library.opcheck(ops.pack.default, (mask, total))
    torch.library.opcheck(ops.measure.default, (ids, None, None, None))
    torch.library.opcheck(ops.measure.default, (ids, mask, ids, ids[:1]))
    indices = pack(mask, int(mask.sum()))[1]
    hidden = torch.ones(len(indices), 8, device=device)
    torch.library.opcheck(ops.unpack.default, (hidden, indices, 3, 9))


def test_compile_traces_it_whole(device: torch.device) -> None:
    ids, mask = random_ids((3, 9), device), mask_of("holes", (3, 9), device)

    def program(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        _, indices, _ = pack(mask, 10)
        hidden = ids.flatten()[indices].float().unsqueeze(1).repeat(1, 4)
        return unpack(hidden, indices, 3, 9), measure(ids, mask)

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    assert_same(compiled(ids, mask), program(ids, mask))


def test_bad_input(device: torch.device) -> None:
    ids, mask = random_ids((3, 9), device), mask_of("holes", (3, 9), device)
    with pytest.raises(ValueError, match=r"mask: got shape \[27\]"):
        pack(mask.flatten())
    with pytest.raises(TypeError, match=r"mask: got torch\.complex64"):
        pack(mask.to(torch.complex64))
    with pytest.raises(ValueError, match="total: got 28 tokens; 0 to 27 is allowed"):
        pack(mask, 28)
    with pytest.raises(ValueError, match="total: got -1 tokens"):
        pack(mask, -1)
    with pytest.raises(TypeError, match=r"input_ids: got torch\.float32"):
        measure(ids.float())
    with pytest.raises(ValueError, match=r"mask: got shape \[3, 8\]; \[3, 9\] is allowed"):
        measure(ids, mask[:, :8])
    with pytest.raises(ValueError, match=r"position_ids: got shape \[2, 9\]"):
        measure(ids, mask, ids[:2])
    with pytest.raises(TypeError, match=r"segment_ids: got torch\.float32"):
        measure(ids, mask, None, ids.float())
    hidden, indices = torch.ones(4, 8, device=device), torch.arange(4, device=device)
    with pytest.raises(TypeError, match="indices: got int32"):
        unpack(hidden, indices.int(), 3, 9)
    with pytest.raises(ValueError, match=r"indices: got shape \[3\]"):
        unpack(hidden, indices[:3], 3, 9)
    counts = torch.zeros(10, dtype=torch.int32, device=device)
    with pytest.raises(ValueError, match=r"mask: its rows are not contiguous"):
        count_launch(mask.t(), counts, settings_for(device))


def test_launches_are_built_without_a_device() -> None:
    settings = load_settings("sm_90")
    mask = torch.empty(64, 128, dtype=torch.int64, device="meta")
    counts = torch.empty(65, dtype=torch.int32, device="meta")
    count = count_launch(mask, counts, settings)
    assert (count.grid, count.moved) == ((64,), 8 * 64 * 128 + 4 * 65)
    hidden = torch.empty(1000, 768, dtype=torch.bfloat16, device="meta")
    indices = torch.empty(1000, dtype=torch.int64, device="meta")
    out = torch.empty(64, 128, 768, dtype=torch.bfloat16, device="meta")
    launch = unpack_launch(hidden, indices, out, settings)
    assert launch.grid == (64 * 128 // settings.rows("pack", torch.bfloat16).rows,)
    assert launch.moved == 2 * 768 * (1000 + 64 * 128) + 8 * 1000
