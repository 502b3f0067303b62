from __future__ import annotations

import pytest
import torch

from fastdistil.packing import pack_ids
from fastdistil.pooling import POOLINGS, pool

LENGTHS = [3, 0, 1, 37, 0]


def packed(lengths: list[int], width: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(sum(lengths), width, generator=generator)
    return hidden, pack_ids([[1] * length for length in lengths]).cu_seqlens


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(
    ("pooling", "define"),
    [
        ("mean", lambda part: part.mean(0)),
        ("cls", lambda part: part[0]),
        ("max", lambda part: part.max(0).values),
    ],
)
def test_each_pooling_is_what_its_name_says(pooling: str, define: object, normalize: bool) -> None:
    hidden, cu_seqlens = packed(LENGTHS)
    got = pool(hidden, cu_seqlens, pooling, normalize)
    assert got.dtype == torch.float32
    assert got.shape == (len(LENGTHS), 48)
    for vector, part in zip(got, hidden.double().split(LENGTHS), strict=True):
        if not len(part):
            assert torch.equal(vector, torch.zeros(48))
            continue
        want = define(part)  # type: ignore[operator]
        want = want / want.norm() if normalize else want
        torch.testing.assert_close(vector.double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_is_bitwise_the_same_in_any_batch(pooling: str) -> None:
    hidden, cu_seqlens = packed(LENGTHS)
    together = pool(hidden, cu_seqlens, pooling, normalize=True)
    for row, part in enumerate(hidden.split(LENGTHS)):
        alone = pool(part.clone(), torch.tensor([0, len(part)]), pooling, normalize=True)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_low_precision_is_added_up_in_float32(pooling: str) -> None:
    hidden, cu_seqlens = packed([1000])
    narrow = hidden.bfloat16()
    got = pool(narrow, cu_seqlens, pooling)
    assert torch.equal(got, pool(narrow.float(), cu_seqlens, pooling))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_float64_stays(pooling: str) -> None:
    hidden, cu_seqlens = packed([7, 0, 3])
    got = pool(hidden.double(), cu_seqlens, pooling)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got.float(), pool(hidden, cu_seqlens, pooling))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_sequences(pooling: str) -> None:
    assert pool(torch.zeros(0, 48), torch.tensor([0]), pooling, normalize=True).shape == (0, 48)


def test_gradients_are_shared_among_the_tokens() -> None:
    hidden, cu_seqlens = packed([4])
    hidden.requires_grad_()
    pool(hidden, cu_seqlens, "mean").sum().backward()
    torch.testing.assert_close(hidden.grad, torch.full((4, 48), 0.25))


def test_unknown_pooling() -> None:
    with pytest.raises(ValueError, match="pooling: got 'sum'; allowed: mean, cls, max"):
        pool(torch.zeros(1, 2), torch.tensor([0, 1]), "sum")
