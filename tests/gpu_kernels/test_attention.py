"""Attention within packed sequences against its definition in float64, tile by tile."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdistil.kernels.attention import (
    attention_launch,
    varlen_attention,
    varlen_attention_reference,
)
from fastdistil.kernels.launch import Launch, interpreted, submit
from fastdistil.kernels.settings import Settings, load_settings, settings_for

# Heads, head_dim, lengths. 5 heads fill neither two nor four to a tile; the longest of the lengths
# decides between tiles of several heads, one block of keys, and a loop over blocks.
BATCHES = [
    (5, 64, [0, 1, 15, 16]),
    (3, 32, [17, 0, 32, 1, 7]),
    (2, 64, [64, 33, 1, 17]),
    (12, 32, [1]),
    (1, 64, [17]),
    (2, 64, [128, 65, 0, 16, 129]),
    (1, 32, [511, 15]),
    (2, 128, [15, 0, 12]),
    (1, 128, [130, 31]),
    (3, 64, [333]),
]

# block_q, slot, key_block, the longest sequence it may meet, warps. Tiles as wide as the keys,
# narrower and wider; several heads; the loop.
TILES = {
    "one block": (64, 64, 64, 64, 4),
    "narrow": (16, 16, 64, 16, 1),
    "narrow, loop": (32, 32, 64, 150, 4),
    "wide": (128, 128, 64, 150, 8),
    "keys wider than queries": (64, 64, 128, 128, 4),
    "short keys": (64, 64, 32, 150, 4),
    "two heads": (64, 32, 64, 32, 4),
    "four heads": (64, 16, 64, 16, 4),
    "eight heads": (128, 16, 128, 16, 8),
}


class Batch:
    """Random operands of one call, the same on every device."""

    def __init__(
        self,
        lengths: list[int],
        heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        seed: int = 0,
    ):
        generator = torch.Generator().manual_seed(seed)
        qkv = torch.randn(sum(lengths), 3, heads, head_dim, generator=generator)
        self.qkv = qkv.to(device, dtype)
        ends = torch.tensor([0, *lengths]).cumsum(0)
        self.cu_seqlens = ends.to(device, torch.int32)
        self.lengths, self.max_seqlen = lengths, max(lengths, default=0)

    def launch(self, settings: Settings | None = None, **options: Any) -> tuple[Launch, Tensor]:
        """The launch, and its result, which is full of NaN as yet."""
        tokens, _, heads, head_dim = self.qkv.shape
        out = self.qkv.new_full((tokens, heads * head_dim), float("nan"))
        max_seqlen = options.pop("max_seqlen", self.max_seqlen)
        settings = settings or settings_for(self.qkv.device)
        return attention_launch(
            self.qkv, self.cu_seqlens, max_seqlen, out, settings, **options
        ), out

    def run(self, settings: Settings | None = None, **options: Any) -> Tensor:
        launch, out = self.launch(settings, **options)
        submit(launch, out.device)
        return out

    def check(self, out: Tensor, scale: float | None = None) -> None:
        """As near to the truth as PyTorch gets in the same precision, within a factor of two."""
        expected = varlen_attention_reference(self.qkv.double(), self.cu_seqlens, scale)
        if not expected.numel():
            return
        # Theirs may hit the truth by chance: a rounding unit of the largest result is left to ours.
        unit = torch.finfo(out.dtype).eps * expected.abs().max().item()
        allowed = 2 * _error(self.by_pytorch(scale), expected) + unit
        if out.is_cuda and out.dtype == torch.float32:
            # Tensor cores cut sums off where others round: once for every 8 numbers of a head.
            allowed *= self.qkv.shape[3] // 8
        assert _error(out, expected) <= allowed

    def by_pytorch(self, scale: float | None) -> Tensor:
        """PyTorch's own attention, one sequence after the other."""
        contexts = [self.qkv.new_empty(0, self.qkv.shape[2] * self.qkv.shape[3])]
        for sequence in self.qkv.split(self.lengths):
            if len(sequence):
                q, k, v = sequence.permute(1, 2, 0, 3)[:, None]
                context = F.scaled_dot_product_attention(q, k, v, scale=scale)
                contexts.append(context[0].transpose(0, 1).flatten(1))
        return torch.cat(contexts)


def _error(got: Tensor, expected: Tensor) -> float:
    """The largest; infinite where something is NaN."""
    error = (got.double() - expected).abs().max().item()
    return math.inf if math.isnan(error) else error


def bits(x: Tensor) -> Tensor:
    """To compare without NaN being unequal to itself, or 0 equal to -0."""
    return x.contiguous().view(torch.uint8)


def with_tile(
    name: str, batch: Batch, programs: int = 4096, key_block: int | None = None
) -> Settings:
    """The device's settings, but for one rule that holds for all lengths it is fit for."""
    block_q, slot, keys, limit, warps = TILES[name]
    settings = settings_for(batch.qkv.device)
    rule = {"max_seqlen": limit, "block_q": block_q, "slot": slot, "programs": programs}
    rule |= {"num_warps": warps, "num_stages": 2}
    entry = {"key_block": key_block or keys, "rules": [rule]}
    dims = {"64": entry, str(batch.qkv.shape[3]): entry}
    table = {**settings.table, "attention": {"half": dims, "fp32": dims}}
    return Settings(settings.target, table, f"the tile {name!r}")


@pytest.fixture
def half(device: torch.device) -> Batch:
    """Two sequences in fp16, for what does not hang on the numbers."""
    return Batch([5, 3], 2, 32, torch.float16, device)


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "head_dim", "lengths"), BATCHES)
def test_matches_definition(
    heads: int, head_dim: int, lengths: list[int], dtype: torch.dtype, device: torch.device
) -> None:
    batch = Batch(lengths, heads, head_dim, dtype, device)
    batch.check(batch.run())


@pytest.mark.parametrize("name", TILES)
def test_every_tile(name: str, dtype: torch.dtype, device: torch.device) -> None:
    limit = TILES[name][3]
    batch = Batch([limit, 1, limit - 3, 0, min(limit, 17)], 5, 32, dtype, device)
    batch.check(batch.run(with_tile(name, batch)))


def test_scores_of_great_magnitude(dtype: torch.dtype, device: torch.device) -> None:
    batch = Batch([100, 16], 2, 64, dtype, device)
    batch.qkv[:, :2] *= 24
    batch.check(batch.run())


def test_equal_scores_give_the_mean(dtype: torch.dtype, device: torch.device) -> None:
    batch = Batch([100, 16, 1], 2, 64, dtype, device)
    batch.qkv[:, 0] = 0
    mean = batch.qkv[:100, 2].double().mean(0).flatten()
    reference = varlen_attention_reference(batch.qkv.double(), batch.cu_seqlens)
    torch.testing.assert_close(reference[:100], mean.expand(100, -1))
    batch.check(batch.run())


@pytest.mark.parametrize("winner", [0, 63, 64, 99])
def test_one_key_takes_it_all(winner: int, dtype: torch.dtype, device: torch.device) -> None:
    """The winner is in the first, a middle or the last block, whose sums then shrink to nothing."""
    batch = Batch([100], 2, 64, dtype, device)
    batch.qkv[:, 0] = 4
    batch.qkv[winner, 1] = 4
    out = batch.run()
    batch.check(out)
    if dtype != torch.float32:  # whose parts in tf32 are 22 bits of 24
        assert torch.equal(out, batch.qkv[winner, 2].flatten().expand(100, -1))


@pytest.mark.parametrize("length", [9, 100])
def test_scale(length: int, dtype: torch.dtype, device: torch.device) -> None:
    batch = Batch([length, 4], 2, 32, dtype, device)
    batch.check(batch.run(scale=0.3), scale=0.3)


@pytest.mark.parametrize("length", [9, 100])
def test_scale_in_the_queries(length: int, dtype: torch.dtype, device: torch.device) -> None:
    """exp2(s) = exp(s ln 2): folded scores are ordinary ones with that scale."""
    batch = Batch([length, 4], 2, 32, dtype, device)
    batch.qkv[:, 0] *= 0.25
    batch.check(batch.run(scale_folded=True), scale=math.log(2))
    folded = varlen_attention_reference(batch.qkv, batch.cu_seqlens, scale_folded=True)
    plain = varlen_attention_reference(batch.qkv, batch.cu_seqlens, scale=math.log(2))
    assert torch.equal(folded, plain)


# --- a sequence's bits are its own ----------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[3, 16, 0, 1, 9], [20, 31, 2], [50, 64], [17, 130, 0, 65]])
@pytest.mark.parametrize("programs", [4096, 3])
def test_alone_or_in_a_batch(
    lengths: list[int], programs: int, dtype: torch.dtype, device: torch.device
) -> None:
    batch = Batch(lengths, 5, 32, dtype, device)
    name = {16: "four heads", 31: "two heads", 64: "one block"}.get(max(lengths), "wide")
    together = batch.run(with_tile(name, batch, programs)).split(lengths)
    for index, sequence in enumerate(batch.qkv.split(lengths)):
        alone = Batch([lengths[index]], 5, 32, dtype, device)
        alone.qkv = sequence.contiguous()
        out = alone.run(with_tile(name, batch), max_seqlen=batch.max_seqlen)
        assert torch.equal(bits(out), bits(together[index]))


@pytest.mark.usefixtures("ordered_sums")
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("length", [1, 16, 17, 50, 100])
def test_whatever_the_longest_of_the_batch(
    length: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    """The longest decides which tile is taken, and no tile changes a bit."""
    batch = Batch([length], 2 if interpreted() else 5, head_dim, dtype, device)
    alone = batch.run()
    for longest in (16, 32, 64, 128, 512):
        if longest < length:
            continue
        out = batch.run(max_seqlen=longest)
        assert torch.equal(bits(out), bits(alone)), longest


@pytest.mark.parametrize("lengths", [[5, 16, 7], [20, 31, 9], [40, 64, 3], [70, 130, 90]])
def test_neighbours_full_of_nan(
    lengths: list[int], dtype: torch.dtype, device: torch.device
) -> None:
    clean = Batch(lengths, 5, 32, dtype, device)
    start, end = lengths[0], lengths[0] + lengths[1]
    dirty = Batch(lengths, 5, 32, dtype, device)
    dirty.qkv[:start] = float("nan")
    dirty.qkv[end:] = float("inf")
    assert torch.equal(bits(dirty.run()[start:end]), bits(clean.run()[start:end]))


def test_own_nan_is_not_hidden(dtype: torch.dtype, device: torch.device) -> None:
    batch = Batch([70, 4], 2, 32, dtype, device)
    batch.qkv[3, 0, 1] = float("nan")  # a query of the second head
    out = batch.run()
    wrong = out.isnan().view(74, 2, 32)
    assert wrong[3, 1].all()
    assert wrong.sum() == 32


# --- how many there are ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("programs", [4096, 2])
def test_count_on_the_device(count: int, programs: int, device: torch.device) -> None:
    """Only so many sequences are looked at; the rows of the others stay as they are."""
    lengths = [70, 5, 64, 9]
    batch = Batch(lengths, 2, 32, torch.float16, device)
    number = torch.tensor([count], dtype=torch.int32, device=device)
    out = batch.run(with_tile("wide", batch, programs), num_sequences=number)
    rows = sum(lengths[:count])
    assert torch.equal(out[:rows], batch.run(with_tile("wide", batch))[:rows])
    assert out[rows:].isnan().all()


def test_count_beyond_the_sequences(device: torch.device, half: Batch) -> None:
    number = torch.tensor([1000], dtype=torch.int32, device=device)
    assert torch.equal(half.run(num_sequences=number), half.run())


def test_rows_past_the_last_sequence_stay(device: torch.device, half: Batch) -> None:
    longer = Batch([5, 3, 4], 2, 32, torch.float16, device)
    longer.qkv[:8], longer.cu_seqlens = half.qkv, half.cu_seqlens
    longer.qkv[8:] = float("nan")
    out = longer.run()
    assert torch.equal(out[:8], half.run())
    assert out[8:].isnan().all()


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_to_do(lengths: list[int], device: torch.device) -> None:
    batch = Batch(lengths, 2, 64, torch.float16, device)
    launch, _ = batch.launch(max_seqlen=8)
    assert launch.grid == (0,)
    assert varlen_attention(batch.qkv, batch.cu_seqlens, 0).shape == (0, 128)


# --- the operation --------------------------------------------------------------------------------


def test_operation(dtype: torch.dtype, device: torch.device) -> None:
    batch = Batch([5, 0, 20], 3, 64, dtype, device)
    out = torch.full_like(batch.run(), float("nan"))
    result = varlen_attention(batch.qkv, batch.cu_seqlens, batch.max_seqlen)
    assert varlen_attention(batch.qkv, batch.cu_seqlens, batch.max_seqlen, out=out) is out
    assert torch.equal(result, out)
    assert torch.equal(result, batch.run())


def test_opcheck(half: Batch) -> None:
    operands = (half.qkv, half.cu_seqlens, half.max_seqlen, None, False)
    torch.library.opcheck(torch.ops.fastdistil.varlen_attention, operands)
    out = torch.empty_like(half.run())
    torch.library.opcheck(torch.ops.fastdistil.varlen_attention_out, (*operands, out))


def test_traces(half: Batch) -> None:
    def twice(qkv: Tensor, cu_seqlens: Tensor, out: Tensor) -> Tensor:
        varlen_attention(qkv, cu_seqlens, 5, out=out)
        return out + varlen_attention(qkv, cu_seqlens, 5, scale=0.5)

    out = torch.empty_like(half.run())
    expected = half.run() + half.run(scale=0.5)
    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(half.qkv, half.cu_seqlens, out), expected)


def empty(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def planned(lengths: int, max_seqlen: int, **options: Any) -> Launch:
    """A launch for an H100 over 4096 tokens in so many sequences of 12 heads of 64."""
    return attention_launch(
        empty(4096, 3, 12, 64),
        empty(lengths + 1, dtype=torch.int32),
        max_seqlen,
        empty(4096, 768),
        load_settings("sm_90"),
        **options,
    )


def test_launch_is_planned_without_a_device() -> None:
    launch = planned(32, 128)
    assert launch.flops == 4 * 4096 * 128 * 768
    assert launch.moved == 2 * 4096 * 4 * 768 + 4 * 33
    assert launch.tensor_cores
    assert planned(32, 128, num_sequences=empty(1, dtype=torch.int32)).grid == launch.grid


def test_programs_pass_through_all_blocks_of_queries() -> None:
    """Else those that meet first blocks only would do the work of all in a batch of short ones."""
    rule = load_settings("sm_90").attention(torch.float16, 64, 512)
    blocks = -(-512 // rule.block_q)
    assert planned(8, 512).grid == (8 * 12 * blocks,)
    (programs,) = planned(4096, 512).grid
    assert rule.programs - blocks < programs <= rule.programs
    assert math.gcd(programs, blocks) == 1


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": empty(8, 2, 2, 32)}, ValueError, r"qkv: got shape \[8, 2, 2, 32\]"),
        ({"qkv": empty(8, 192)}, ValueError, "qkv: got shape"),
        ({"qkv": empty(8, 3, 2, 32, dtype=torch.float64)}, TypeError, "qkv: got float64"),
        ({"qkv": empty(8, 3, 4, 32)[:, :, ::2]}, ValueError, "qkv: not contiguous"),
        ({"qkv": empty(8, 3, 2, 48), "out": empty(8, 96)}, ValueError, "head_dim: got 48"),
        ({"cu_seqlens": empty(3, dtype=torch.int64)}, TypeError, "cu_seqlens: got int64"),
        ({"cu_seqlens": empty(0, dtype=torch.int32)}, ValueError, r"cu_seqlens: got shape \[0\]"),
        ({"cu_seqlens": empty(1, 3, dtype=torch.int32)}, ValueError, "cu_seqlens: got shape"),
        ({"max_seqlen": -1}, ValueError, "max_seqlen: got -1"),
        ({"out": empty(8, 65)}, ValueError, "out: got shape"),
        ({"out": empty(8, 64, dtype=torch.bfloat16)}, TypeError, "out: got bfloat16"),
        ({"num_sequences": empty(2, dtype=torch.int32)}, ValueError, "num_sequences: got shape"),
        ({"num_sequences": torch.ones(1, dtype=torch.int32)}, ValueError, "num_sequences: on cpu"),
        ({"scale": 0.0}, ValueError, "scale: got 0.0"),
        ({"scale": math.inf}, ValueError, "scale: got inf"),
        ({"scale": math.nan}, ValueError, "scale: got nan"),
        ({"scale": 0.5, "scale_folded": True}, ValueError, "scale: got 0.5 beside scale_folded"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    good = {
        "qkv": empty(8, 3, 2, 32),
        "cu_seqlens": empty(3, dtype=torch.int32),
        "max_seqlen": 5,
        "out": empty(8, 64),
        "settings": load_settings("sm_90"),
    }
    with pytest.raises(error, match=message):
        attention_launch(**{**good, **change})


def test_operation_refuses_bad_input(half: Batch) -> None:
    with pytest.raises(ValueError, match="qkv: got shape"):
        varlen_attention(half.qkv[0], half.cu_seqlens, 5)
    with pytest.raises(TypeError, match="cu_seqlens: got int64"):
        varlen_attention(half.qkv, half.cu_seqlens.long(), 5)
