"""The CUDA C++ kernels against the definitions that the Triton kernels have, in float64.

On a GPU where the extension was built for one; on the CPU where its kernels are emulated, which
`make pytest` does. Triton's interpreter has no part in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("triton", reason="the definitions are in the Triton kernels' files")

import fastdistil.pooling
from fastdistil import cuda_kernels, cuda_launch
from fastdistil.backends import cpu
from fastdistil.cuda_kernels import (
    attention_launch,
    bias_gelu,
    bias_gelu_launch,
    embed_layernorm,
    embed_layernorm_launch,
    layernorm,
    layernorm_launch,
    pack,
    pack_launch,
    pool,
    pool_launch,
    varlen_attention,
)
from fastdistil.kernels import attention, embedding, gelu, packing, pooling
from fastdistil.kernels import layernorm as triton_layernorm
from fastdistil.kernels.settings import load_settings

EPS = 1e-12
META = torch.device("meta")
HALVES = [torch.bfloat16, torch.float16]
FORMS = ["no table", "row 0", "segments"]


@pytest.fixture
def device() -> torch.device:
    """Where this build's kernels run; skips where there are none."""
    missing = cuda_kernels.available()
    if missing is not None:
        pytest.skip(missing)
    return torch.device("cpu" if cuda_kernels.emulated() else "cuda")


def numbers(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Tensor:
    """Seeded, the same on every device; on "meta", shapes without numbers."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def ends(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def elsewhere(tensor: Tensor) -> Tensor:
    """The same numbers, contiguous, at an address that only this dtype divides."""
    moved = torch.cat([tensor.flatten()[:1], tensor.flatten()])[1:].view(tensor.shape)
    assert moved.data_ptr() % 16
    return moved


def assert_as_good_as(got: Tensor, theirs: Tensor, want: Tensor) -> None:
    """At most twice the error that PyTorch makes in this dtype, beside a rounding unit."""
    assert got.dtype == theirs.dtype
    assert got.shape == want.shape
    floor = torch.finfo(got.dtype).eps * want.abs().max()
    allowed = 2 * (theirs.double() - want).abs().max() + floor
    # Written so that NaN fails.
    assert bool((got.double() - want).abs().max() <= allowed)


def assert_same(got: Any, want: Any) -> None:
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


# --- layernorm ------------------------------------------------------------------------------------


def rows(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, residual."""
    x, residual = (numbers((tokens, width), dtype, device, seed) for seed in (0, 1))
    weight, bias = (numbers((width,), dtype, device, seed) for seed in (2, 3))
    return x, weight, bias, residual


@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
@pytest.mark.parametrize("shape", [(1, 768), (9, 312), (3, 32), (2, 1), (5, 311), (1, 8192)])
def test_layernorm(
    shape: tuple[int, int], with_residual: bool, dtype: torch.dtype, device: torch.device
) -> None:
    x, weight, bias, residual = rows(*shape, dtype, device)
    summed, exact = x, x.double()
    if with_residual:
        summed, exact = x + residual, x.double() + residual.double()
    theirs = F.layer_norm(summed, weight.shape, weight, bias, EPS)
    want = triton_layernorm.layernorm_reference(exact, weight.double(), bias.double(), EPS)
    got = layernorm(x, weight, bias, EPS, residual if with_residual else None)
    assert_as_good_as(got, theirs, want)


@pytest.mark.parametrize("place", ["apart", "x", "residual"])
def test_layernorm_out(place: str, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, residual = rows(7, 312, dtype, device)
    want = layernorm(x, weight, bias, EPS, residual)
    out = {"apart": torch.full_like(x, math.nan), "x": x, "residual": residual}[place]
    assert layernorm(x, weight, bias, EPS, residual, out) is out
    assert torch.equal(out, want)


def test_layernorm_bits_do_not_depend_on_the_address(
    dtype: torch.dtype, device: torch.device
) -> None:
    x, weight, bias, residual = rows(5, 384, dtype, device)
    want = layernorm(x, weight, bias, EPS, residual)
    assert torch.equal(layernorm(elsewhere(x), weight, bias, EPS, residual), want)
    assert torch.equal(layernorm(x[3:4], weight, bias, EPS, residual[3:4]), want[3:4])


# --- embed_layernorm ------------------------------------------------------------------------------


def embedded(
    tokens: int, width: int, dtype: torch.dtype, device: torch.device, form: str = FORMS[2]
) -> dict[str, Any]:
    """The arguments of `embed_layernorm` but errors, by name and in order."""

    def ids(below: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(below, (tokens,), generator=generator, dtype=torch.int32).to(device)

    return {
        "input_ids": ids(50, 0),
        "positions": ids(20, 1),
        "segment_ids": ids(2, 2) if form == "segments" else None,
        "word": numbers((50, width), dtype, device, 3),
        "position": numbers((20, width), dtype, device, 4),
        "segment": None if form == "no table" else numbers((2, width), dtype, device, 5),
        "weight": numbers((width,), dtype, device, 6),
        "bias": numbers((width,), dtype, device, 7),
        "eps": EPS,
    }


def no_errors(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int32, device=device)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(1, 768), (9, 312), (3, 33), (2, 1032)], ids=str)
def test_embed_layernorm(
    shape: tuple[int, int], form: str, dtype: torch.dtype, device: torch.device
) -> None:
    o = embedded(*shape, dtype, device, form)
    floats = ("word", "position", "segment", "weight", "bias")
    wide = {name: o[name] if o[name] is None else o[name].double() for name in floats}
    want = embedding.embed_layernorm_reference(**(o | wide))
    theirs = o["word"][o["input_ids"].long()] + o["position"][o["positions"].long()]
    if form != "no table":
        given = torch.zeros_like(o["input_ids"]) if o["segment_ids"] is None else o["segment_ids"]
        theirs = theirs + o["segment"][given.long()]
    theirs = F.layer_norm(theirs, o["weight"].shape, o["weight"], o["bias"], EPS)
    errors = no_errors(device)
    assert_as_good_as(embed_layernorm(**o, errors=errors), theirs, want)
    assert errors.item() == 0


@pytest.mark.parametrize(
    ("name", "bit", "allowed"),
    [("input_ids", 1, 49), ("positions", 2, 19), ("segment_ids", 4, 1)],
)
@pytest.mark.parametrize("wrong", [-1, 1000, -(2**31), 2**31 - 1])
def test_ids_outside_their_tables(
    name: str, bit: int, allowed: int, wrong: int, device: torch.device
) -> None:
    o = embedded(9, 48, torch.float32, device)
    o[name][4] = min(max(wrong, 0), allowed)
    nearest = embed_layernorm(**o)
    o[name][4] = wrong
    errors = no_errors(device)
    assert torch.equal(embed_layernorm(**o, errors=errors), nearest)
    assert errors.item() == bit
    with pytest.raises(ValueError, match=f"{name}: some are outside the table; 0 to {allowed}"):
        embed_layernorm(**o)


# --- bias_gelu ------------------------------------------------------------------------------------


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(1, 32), (9, 312), (3, 3072), (5, 77)], ids=str)
def test_bias_gelu(
    shape: tuple[int, int], approximate: str, dtype: torch.dtype, device: torch.device
) -> None:
    x, bias = 3 * numbers(shape, dtype, device), numbers(shape[1:], dtype, device, 1)
    want = gelu.bias_gelu_reference(x.double(), bias.double(), approximate)
    theirs = F.gelu(x + bias, approximate=approximate)
    assert_as_good_as(bias_gelu(x, bias, approximate), theirs, want)
    out = torch.full_like(x, math.nan)
    assert bias_gelu(x, bias, approximate, out) is out
    assert_as_good_as(out, theirs, want)
    assert torch.equal(bias_gelu(x, bias, approximate, x), out)


@pytest.mark.parametrize("activation", sorted(gelu.ACTIVATIONS))
def test_every_activation(activation: str, dtype: torch.dtype, device: torch.device) -> None:
    x, bias = 3 * numbers((5, 80), dtype, device), numbers((80,), dtype, device, 1)
    define, out = gelu.ACTIVATIONS[activation], torch.full_like(x, math.nan)
    bias_gelu_launch(x, bias, activation, out).run()
    assert_as_good_as(out, define(x + bias), define(x.double() + bias.double()))


# --- pool -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True], ids=["as it is", "normalized"])
@pytest.mark.parametrize("way", pooling.POOLINGS)
@pytest.mark.parametrize("width", [1, 312, 768, 1030])
def test_pool(
    width: int, way: str, normalize: bool, dtype: torch.dtype, device: torch.device
) -> None:
    lengths = [16, 0, 1, 17, 33, 0]
    cu_seqlens = ends(lengths, device)
    hidden = numbers((sum(lengths), width), dtype, device)
    want = pooling.pool_reference(hidden.double(), cu_seqlens, way, normalize)
    theirs = fastdistil.pooling.pool(hidden.float(), cu_seqlens, way, normalize)
    got = pool(hidden, cu_seqlens, way, normalize)
    assert_as_good_as(got, theirs, want)
    out = torch.full_like(got, math.nan)
    assert pool(elsewhere(hidden), cu_seqlens, way, normalize, out) is out
    assert torch.equal(out, got)
    assert pool(hidden, ends([], device), way, normalize).shape == (0, width)


# --- pack -----------------------------------------------------------------------------------------


def mask_of(shape: tuple[int, int], device: torch.device, form: str = "holes") -> Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    likely = {"holes": 0.5, "all": 1.0, "nothing": 0.0}[form]
    return (torch.rand(shape, generator=generator) < likely).to(device)


@pytest.mark.parametrize("form", ["holes", "all", "nothing"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 16), (17, 33), (2, 1300), (0, 5), (4, 0)], ids=str)
def test_pack(shape: tuple[int, int], form: str, device: torch.device) -> None:
    mask = mask_of(shape, device, form)
    total = int(mask.sum())
    for places in (None, total, total // 2):
        assert_same(pack(mask, places), packing.pack_reference(mask, places))


@pytest.mark.parametrize("kind", packing.MASKS, ids=str)
def test_masks_of_any_kind(kind: torch.dtype, device: torch.device) -> None:
    mask = mask_of((5, 40), device)
    assert_same(pack(mask.to(kind)), packing.pack_reference(mask))
    if kind.is_floating_point:
        odd = torch.where(mask, math.nan, -0.0).to(kind)
        assert_same(pack(odd), packing.pack_reference(mask))
    elif kind.is_signed and kind != torch.bool:
        least = torch.where(mask, torch.iinfo(kind).min, 0).to(kind)  # only the sign bit
        assert_same(pack(least), packing.pack_reference(mask))


def test_masks_may_lie_anyhow(device: torch.device) -> None:
    mask = mask_of((40, 12), device)
    for view in (mask.t(), mask[::2], mask[:, 3:9], mask[:1].expand(4, 12), mask[:, ::5]):
        assert_same(pack(view), packing.pack_reference(view.clone()))


# --- varlen_attention -----------------------------------------------------------------------------

BATCHES = [
    (5, 64, [0, 1, 15, 16]),
    (3, 32, [17, 0, 32, 1, 7]),
    (2, 64, [64, 33, 1, 17]),
    (2, 128, [15, 0, 12]),
    (2, 64, [128, 65, 0]),
    (1, 32, [97]),
]


def theirs_attention(qkv: Tensor, lengths: list[int]) -> Tensor:
    """PyTorch's own, one sequence after the other."""
    contexts = []
    for sequence in qkv.split(lengths):
        q, k, v = sequence.permute(1, 2, 0, 3)[:, None]
        contexts.append(F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1).flatten(1))
    return torch.cat(contexts)


@pytest.mark.parametrize("dtype", HALVES, ids=["bf16", "fp16"])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_attention(
    batch: tuple[int, int, list[int]], dtype: torch.dtype, device: torch.device
) -> None:
    heads, head_dim, lengths = batch
    qkv = numbers((sum(lengths), 3, heads, head_dim), dtype, device)
    cu_seqlens = ends(lengths, device)
    want = attention.varlen_attention_reference(qkv.double(), cu_seqlens)
    got = varlen_attention(qkv, cu_seqlens, max(lengths))
    assert_as_good_as(got, theirs_attention(qkv, lengths), want)
    # A longer bound, other addresses: the same bits.
    out = elsewhere(torch.full_like(got, math.nan))
    assert varlen_attention(elsewhere(qkv), cu_seqlens, 128, out) is out
    assert torch.equal(out, got)


def test_attention_scales(device: torch.device) -> None:
    qkv, cu_seqlens = numbers((20, 3, 2, 32), torch.float16, device), ends([20], device)
    want = attention.varlen_attention_reference(qkv.double(), cu_seqlens, scale=0.7)
    got = varlen_attention(qkv, cu_seqlens, 20, scale=0.7)
    assert (got.double() - want).abs().max() < 2e-3
    want = attention.varlen_attention_reference(qkv.double(), cu_seqlens, scale_folded=True)
    got = varlen_attention(qkv, cu_seqlens, 20, scale_folded=True)
    assert (got.double() - want).abs().max() < 2e-3


def test_attention_leaves_rows_of_no_sequence_alone(device: torch.device) -> None:
    qkv = numbers((20, 3, 2, 32), torch.bfloat16, device)
    out = torch.full((20, 64), 7.0, dtype=torch.bfloat16, device=device)
    varlen_attention(qkv, ends([3, 9], device), 9, out)
    assert (out[12:] == 7).all()
    assert (out[:12] != 7).any()


# --- what they share ------------------------------------------------------------------------------


Change = Callable[[Tensor], Any]


def changed(operands: dict[str, Any], changes: dict[str, Change]) -> dict[str, Any]:
    return operands | {name: change(operands[name]) for name, change in changes.items()}


def layernorm_with(**changes: Change) -> Callable[[torch.device], object]:
    """A launch with other operands, each made from a right one."""

    def call(device: torch.device) -> object:
        x, weight, bias, residual = rows(4, 32, torch.float32, device)
        o = {"x": x, "weight": weight, "bias": bias, "residual": residual, "out": x.clone()}
        return layernorm_launch(**changed(o, changes), eps=EPS)

    return call


def embed_with(**changes: Change) -> Callable[[torch.device], object]:
    return lambda device: embed_layernorm(**changed(embedded(4, 32, torch.half, device), changes))


def attention_with(
    max_seqlen: int = 4, dtype: torch.dtype = torch.half, head_dim: int = 32, **options: Any
) -> Callable[[torch.device], object]:
    def call(device: torch.device) -> object:
        qkv = numbers((4, 3, 2, head_dim), dtype, device)
        return varlen_attention(qkv, ends([4], device), max_seqlen, **options)

    return call


def pool_of(way: str, kind: torch.dtype = torch.int32) -> Callable[[torch.device], object]:
    return lambda device: pool(torch.zeros(4, 32, device=device), ends([4], device).to(kind), way)


def pack_of(mask: Tensor, total: int | None = None) -> Callable[[torch.device], object]:
    return lambda device: pack(mask.to(device), total)


def gelu_of(*arguments: Any) -> Callable[[torch.device], object]:
    return lambda device: bias_gelu(
        *(torch.zeros(s, device=device) for s in ((4, 32), 32)), *arguments
    )


BAD = [
    (layernorm_with(x=Tensor.double), TypeError, "x: got float64; allowed: bfloat16, float16, fl"),
    (layernorm_with(weight=Tensor.half), TypeError, "weight: got float16; allowed: float32"),
    (layernorm_with(bias=lambda t: t[1:]), ValueError, r"bias: got shape \[31\]; \[32\] is"),
    (layernorm_with(residual=lambda t: t[1:]), ValueError, r"residual: got shape \[3, 32\]"),
    (layernorm_with(out=lambda t: t.expand(9, 4, 32)[0].t()), ValueError, "out: got shape"),
    (layernorm_with(x=lambda t: t.repeat(1, 2)[:, ::2]), ValueError, "x: not contiguous; call"),
    (layernorm_with(bias=lambda t: t.to("meta")), ValueError, "bias: on meta, but x is on"),
    (layernorm_with(x=lambda t: t.repeat(1, 257)), ValueError, "x: got rows of 8224 numbers"),
    (embed_with(input_ids=Tensor.long), TypeError, "input_ids: got int64; allowed: int32"),
    (embed_with(segment=lambda _: None), ValueError, "segment_ids: given without a segment table"),
    (embed_with(word=lambda t: t[:0]), ValueError, "word: got no rows; at least one is needed"),
    (embed_with(positions=lambda t: t[1:]), ValueError, r"positions: got shape \[3\]"),
    (gelu_of("erf"), ValueError, "approximate: got 'erf'; allowed: none, tanh"),
    (pool_of("sum"), ValueError, "pooling: got 'sum'; allowed: mean, cls, max"),
    (pool_of("mean", torch.int64), TypeError, "cu_seqlens: got int64; allowed: int32"),
    (pack_of(torch.ones(3, 4), 13), ValueError, "total: got 13 tokens; 0 to 12 is allowed"),
    (pack_of(torch.ones(3)), ValueError, r"mask: got shape \[3\]; \[B, S\] is allowed"),
    (pack_of(torch.ones(3, 4, dtype=torch.complex64)), TypeError, "mask: got torch.complex64"),
    (attention_with(129), ValueError, "max_seqlen: got 129; 0 to 128 is allowed here"),
    (attention_with(-1), ValueError, "max_seqlen: got -1; 0 or more is allowed"),
    (
        attention_with(dtype=torch.float32),
        TypeError,
        "qkv: got float32; allowed: bfloat16, float16",
    ),
    (attention_with(head_dim=48), ValueError, "qkv: got a head_dim of 48; allowed: 32, 64, 128"),
    (attention_with(scale=-1.0), ValueError, "scale: got -1.0; a positive number"),
    (attention_with(scale=1.0, scale_folded=True), ValueError, "scale: got 1.0 beside"),
]


@pytest.mark.parametrize(("call", "error", "match"), BAD, ids=[match for _, _, match in BAD])
def test_bad_input(
    call: Callable[[torch.device], object],
    error: type[Exception],
    match: str,
    device: torch.device,
) -> None:
    with pytest.raises(error, match=match):
        call(device)


def operations(device: torch.device) -> dict[str, tuple[Any, ...]]:
    """Arguments of each operation, by its name among torch.ops.fastdistil."""
    x, weight, bias, residual = rows(5, 48, torch.bfloat16, device)
    cu_seqlens = ends([2, 0, 3], device)
    qkv = numbers((5, 3, 2, 32), torch.bfloat16, device)
    vectors = torch.empty(3, 48, device=device)
    return {
        "cuda_layernorm": (x, weight, bias, EPS, residual),
        "cuda_layernorm_out": (x, weight, bias, EPS, None, torch.empty_like(x)),
        "cuda_embed_layernorm": (
            *embedded(5, 48, torch.float32, device).values(),
            no_errors(device),
        ),
        "cuda_bias_gelu": (x, bias, "none"),
        "cuda_bias_gelu_out": (x, bias, "tanh", torch.empty_like(x)),
        "cuda_pool": (x, cu_seqlens, "mean", True),
        "cuda_pool_out": (x, cu_seqlens, "max", False, vectors),
        "cuda_pack": (mask_of((5, 9), device), None),
        "cuda_varlen_attention": (qkv, cu_seqlens, 3, None, False),
        "cuda_varlen_attention_out": (
            qkv,
            cu_seqlens,
            3,
            None,
            True,
            torch.empty_like(qkv[:, 0]).flatten(1),
        ),
    }


@pytest.mark.parametrize("name", sorted(operations(META)))
def test_opcheck(name: str, device: torch.device) -> None:
    operation = getattr(torch.ops.fastdistil, name).default
    torch.library.opcheck(operation, operations(device)[name])


def test_compile_traces_it_whole(device: torch.device) -> None:
    x, weight, bias, residual = rows(6, 64, torch.bfloat16, device)
    cu_seqlens = ends([2, 4], device)

    def program(x: Tensor) -> Tensor:
        y = bias_gelu(x, bias, out=torch.empty_like(x))
        y = layernorm(y, weight, bias, EPS, residual)
        y = varlen_attention(torch.stack([y, y, y], 1).view(6, 3, 2, 32), cu_seqlens, 4)
        return pool(y, cu_seqlens, "mean") + 1

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), program(x))


def test_launches_are_what_tritons_are() -> None:
    """Name and cost, built without a device."""
    settings = load_settings("sm_90")
    x, weight, bias, residual = rows(64, 768, torch.bfloat16, META)
    o = embedded(64, 768, torch.bfloat16, META)
    wanted = {"out": torch.empty_like(x), "errors": no_errors(META)}
    cu_seqlens, vectors = ends([30, 34], META), torch.empty(2, 768, device=META)
    mask, qkv = mask_of((8, 8), META), numbers((64, 3, 12, 64), torch.bfloat16, META)
    places = [torch.empty(60, dtype=kind, device=META) for kind in (torch.int32, torch.int64)]
    row_ends = torch.empty(9, dtype=torch.int32, device=META)
    pairs = [
        (layernorm_launch, triton_layernorm.layernorm_launch, (x, weight, bias, EPS, residual, x)),
        (embed_layernorm_launch, embedding.embed_layernorm_launch, (*o.values(), *wanted.values())),
        (bias_gelu_launch, gelu.bias_gelu_launch, (x, bias, "silu", x)),
        (pool_launch, pooling.pool_launch, (x, cu_seqlens, "cls", True, vectors)),
        (pack_launch, packing.pack_launch, (mask, row_ends, *places)),
        (attention_launch, attention.attention_launch, (qkv, cu_seqlens, 34, x)),
    ]
    for ours, theirs, arguments in pairs:
        got, want = ours(*arguments), theirs(*arguments, settings)
        assert (got.name, got.flops, got.moved) == (want.name, want.flops, want.moved)
        assert got.moved > 0


# --- where there are none -------------------------------------------------------------------------


def test_a_launch_on_meta_does_not_run(device: torch.device) -> None:
    x, weight, bias, _ = rows(4, 32, torch.float32, META)
    launch = layernorm_launch(x, weight, bias, EPS, None, x)
    with pytest.raises(ValueError, match="x: on meta; a launch runs on tensors that hold numbers"):
        launch.run()


def test_tensors_elsewhere_are_refused(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_launch, "emulated", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    x, weight, bias, _ = rows(4, 32, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match="x: on cpu; the CUDA C\\+\\+ kernels run on CUDA devices"):
        layernorm(x, weight, bias, EPS)


@pytest.mark.parametrize(
    ("extension", "reason"),
    [
        (None, "the C\\+\\+ extension fastdistil._C is missing"),
        (SimpleNamespace(), "fastdistil._C was built without CUDA C\\+\\+ kernels"),
        (SimpleNamespace(cuda=SimpleNamespace(emulated=False)), "PyTorch finds no CUDA device"),
    ],
    ids=["no extension", "no kernels", "no GPU"],
)
def test_why_there_are_none(extension: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_C", extension)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    x, weight, bias, _ = rows(4, 32, torch.float32, torch.device("cpu"))
    with pytest.raises(RuntimeError, match=reason) as found:
        layernorm(x, weight, bias, EPS)
    assert str(cuda_kernels.available()) in str(found.value)
