"""Pooling over packed sequences against its definition in float64."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch
from torch import Tensor

import fastdistil.pooling
from fastdistil.kernels.launch import submit
from fastdistil.kernels.pooling import POOLINGS, pool, pool_launch, pool_reference
from fastdistil.kernels.settings import load_settings, settings_for

LENGTHS = [16, 0, 1, 15, 17, 128, 0]
WAYS = [(way, normalize) for way in POOLINGS for normalize in (False, True)]


def ends(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def states(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Seeded, the same on every device."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(tokens, width, generator=generator).to(device, dtype)


def batch(lengths: list[int], width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """hidden, cu_seqlens."""
    return [states(sum(lengths), width, dtype, device), ends(lengths, device)]


def theirs(hidden: Tensor, cu_seqlens: Tensor, pooling: str, normalize: bool) -> Tensor:
    """PyTorch's own, in float32."""
    return fastdistil.pooling.pool(hidden.float(), cu_seqlens, pooling, normalize)


def assert_as_good_as(got: Tensor, theirs: Tensor, want: Tensor) -> None:
    """At most twice the error that PyTorch makes in this dtype, beside a rounding unit."""
    assert got.dtype == theirs.dtype == torch.float32
    floor = torch.finfo(got.dtype).eps * want.abs().max()
    allowed = 2 * (theirs.double() - want).abs().max() + floor
    # Written so that NaN fails.
    assert bool((got.double() - want).abs().max() <= allowed)


@pytest.mark.parametrize(("way", "normalize"), WAYS)
@pytest.mark.parametrize("width", [312, 768])
def test_definition(
    way: str, normalize: bool, width: int, dtype: torch.dtype, device: torch.device
) -> None:
    o = batch(LENGTHS, width, dtype, device)
    got, want = pool(*o, way, normalize), pool_reference(o[0].double(), o[1], way, normalize)
    assert_as_good_as(got, theirs(*o, way, normalize), want)
    assert_as_good_as(pool_reference(*o, way, normalize), theirs(*o, way, normalize), want)
    if not normalize and way != "mean":  # nothing to round
        assert torch.equal(got.double(), want)


@pytest.mark.parametrize("width", [1, 32, 384, 1024])
@pytest.mark.parametrize("way", POOLINGS)
def test_other_widths(way: str, width: int, device: torch.device) -> None:
    o = batch([3, 511], width, torch.float32, device)
    want = pool_reference(o[0].double(), o[1], way, True)
    assert_as_good_as(pool(*o, way, True), theirs(*o, way, True), want)


@pytest.mark.parametrize("way", POOLINGS)
def test_bits_do_not_depend_on_the_address(way: str, device: torch.device) -> None:
    hidden, cu_seqlens = batch([9, 2], 300, torch.bfloat16, device)
    elsewhere = torch.cat([hidden[:1], hidden])[1:]
    assert elsewhere.data_ptr() % 16
    want = pool(hidden, cu_seqlens, way, True)
    assert torch.equal(pool(elsewhere, cu_seqlens, way, True), want)


@pytest.mark.parametrize(("way", "normalize"), WAYS)
def test_no_tokens_give_zeros(way: str, normalize: bool, device: torch.device) -> None:
    hidden, cu_seqlens = batch([0, 4, 0], 96, torch.float32, device)
    out = torch.full((3, 96), float("nan"), device=device)
    assert pool(hidden, cu_seqlens, way, normalize, out) is out
    assert not out[::2].any()
    assert torch.equal(out, pool(hidden, cu_seqlens, way, normalize))
    assert not pool(hidden[:0], ends([0, 0], device), way, normalize).any()
    assert pool(hidden[:0], ends([], device), way, normalize).shape == (0, 96)


@pytest.mark.parametrize("way", POOLINGS)
def test_all_negative(way: str, device: torch.device) -> None:
    """Nothing, not even what is not there, is larger than what is."""
    hidden, cu_seqlens = batch([5, 17], 40, torch.float32, device)
    hidden = -hidden.abs() - 1
    want = pool_reference(hidden.double(), cu_seqlens, way)
    assert_as_good_as(pool(hidden, cu_seqlens, way), theirs(hidden, cu_seqlens, way, False), want)


@pytest.mark.parametrize(("way", "normalize"), WAYS)
def test_a_null_vector_is_not_scaled(way: str, normalize: bool, device: torch.device) -> None:
    hidden = torch.zeros(5, 40, device=device)
    assert not pool(hidden, ends([2, 3], device), way, normalize).any()


def test_large_magnitudes(dtype: torch.dtype, device: torch.device) -> None:
    hidden, cu_seqlens = batch([5, 128], 96, dtype, device)
    hidden = hidden * 1e4
    want = pool_reference(hidden.double(), cu_seqlens, "mean", True)
    got = pool(hidden, cu_seqlens, "mean", True)
    assert_as_good_as(got, theirs(hidden, cu_seqlens, "mean", True), want)


@pytest.mark.parametrize(("way", "normalize"), WAYS)
def test_sequences_do_not_depend_on_the_batch(
    way: str, normalize: bool, dtype: torch.dtype, device: torch.device
) -> None:
    hidden, cu_seqlens = batch(LENGTHS, 312, dtype, device)
    together = pool(hidden, cu_seqlens, way, normalize)
    bounds = cu_seqlens.tolist()
    for number, (start, end) in enumerate(pairwise(bounds)):
        alone = pool(hidden[start:end], ends([end - start], device), way, normalize)
        assert torch.equal(alone[0], together[number])


@pytest.mark.parametrize(("way", "normalize"), WAYS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_sequence_stays_at_home(
    bad: float, way: str, normalize: bool, device: torch.device
) -> None:
    hidden, cu_seqlens = batch([16, 17, 15], 96, torch.float32, device)
    clean = pool(hidden, cu_seqlens, way, normalize)
    hidden[16, 3] = bad  # the first token of the second sequence
    got = pool(hidden, cu_seqlens, way, normalize)
    assert torch.equal(got[::2], clean[::2])
    # And there it is what PyTorch has, NaN included: a vector of unknown length is unknown.
    want = theirs(hidden, cu_seqlens, way, normalize)
    assert torch.equal(got.isnan(), want.isnan())


def test_rows_past_the_last_sequence_are_not_read(device: torch.device) -> None:
    """As the engine has it: a bucket is larger than the batch."""
    hidden, cu_seqlens = batch([5, 12], 96, torch.float32, device)
    bucket = torch.full((32, 96), float("nan"), device=device)
    bucket[:17] = hidden
    for way in POOLINGS:
        assert torch.equal(pool(bucket, cu_seqlens, way), pool(hidden, cu_seqlens, way))


@pytest.mark.parametrize("way", POOLINGS)
def test_opcheck(way: str, device: torch.device) -> None:
    hidden, cu_seqlens = batch([5, 0, 3], 48, torch.float32, device)
    torch.library.opcheck(torch.ops.fastdistil.pool.default, (hidden, cu_seqlens, way, True))
    out = torch.empty(3, 48, device=device)
    torch.library.opcheck(
        torch.ops.fastdistil.pool_out.default, (hidden, cu_seqlens, way, False, out)
    )


def test_compile_traces_it_whole(device: torch.device) -> None:
    hidden, cu_seqlens = batch([5, 0, 3], 48, torch.float32, device)

    def program(hidden: Tensor) -> Tensor:
        mean = pool(hidden, cu_seqlens, "mean", True)
        return mean + pool(hidden, cu_seqlens, "max", out=torch.empty_like(mean))

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(hidden), program(hidden))


def test_bad_input(device: torch.device) -> None:
    hidden, cu_seqlens = batch([5, 3], 48, torch.float32, device)
    with pytest.raises(ValueError, match="pooling: got 'sum'; allowed: mean, cls, max"):
        pool(hidden, cu_seqlens, "sum")
    with pytest.raises(TypeError, match="hidden: got float64"):
        pool(hidden.double(), cu_seqlens, "mean")
    with pytest.raises(TypeError, match="cu_seqlens: got int64"):
        pool(hidden, cu_seqlens.long(), "mean")
    with pytest.raises(ValueError, match=r"hidden: got shape \[48\]"):
        pool_launch(hidden[0], cu_seqlens, "mean", False, hidden[:2], settings_for(device))
    with pytest.raises(ValueError, match=r"cu_seqlens: got shape \[0\]"):
        pool_launch(hidden, cu_seqlens[:0], "mean", False, hidden[:0], settings_for(device))
    with pytest.raises(TypeError, match="out: got float16"):
        pool(hidden, cu_seqlens, "mean", out=hidden[:2].half())
    with pytest.raises(ValueError, match=r"out: got shape \[1, 48\]"):
        pool(hidden, cu_seqlens, "mean", out=hidden[:1].clone())


def test_launch_is_built_without_a_device(device: torch.device) -> None:
    hidden = torch.empty(4096, 768, dtype=torch.bfloat16, device="meta")
    cu_seqlens = torch.empty(65, dtype=torch.int32, device="meta")
    out = torch.empty(64, 768, device="meta")
    launch = pool_launch(hidden, cu_seqlens, "mean", True, out, load_settings("sm_90"))
    assert launch.grid == (64,)
    assert launch.moved == 2 * 4096 * 768 + 4 * 65 + 4 * 64 * 768
    assert launch.flops > 0
    small = batch([2, 2], 48, torch.float32, device)
    poisoned = torch.full((2, 48), float("nan"), device=device)
    submit(pool_launch(*small, "cls", False, poisoned, settings_for(device)), device)
    assert torch.equal(poisoned, small[0][::2])
