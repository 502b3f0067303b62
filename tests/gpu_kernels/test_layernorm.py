"""LayerNorm of a sum against its definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdistil.kernels.launch import submit
from fastdistil.kernels.layernorm import layernorm, layernorm_launch, layernorm_reference
from fastdistil.kernels.settings import load_settings, settings_for

EPS = 1e-12
SHAPES = [
    (1, 768),
    (17, 312),
    (333, 768),
    (17, 384),
    (5, 1024),
    (3, 32),
    (2, 1),
    (2, 8192),
    (4, 311),
]


def numbers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Seeded, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(device, dtype)


def operands(tokens: int, width: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """x, weight, bias, residual."""
    shapes = ((tokens, width), (width,), (width,), (tokens, width))
    return [numbers(shape, dtype, device, seed) for seed, shape in enumerate(shapes)]


def theirs(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """PyTorch's own, in the operands' dtype."""
    summed = x if residual is None else x + residual
    return F.layer_norm(summed, weight.shape, weight, bias, EPS)


def exact(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    wide = None if residual is None else residual.double()
    return layernorm_reference(x.double(), weight.double(), bias.double(), EPS, wide)


def assert_as_good_as(got: Tensor, theirs: Tensor, want: Tensor) -> None:
    """At most twice the error that PyTorch makes in this dtype, beside a rounding unit."""
    assert got.dtype == theirs.dtype
    floor = torch.finfo(got.dtype).eps * want.abs().max()
    allowed = 2 * (theirs.double() - want).abs().max() + floor
    # Written so that NaN fails.
    assert bool((got.double() - want).abs().max() <= allowed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("with_residual", [False, True], ids=["alone", "residual"])
def test_definition(
    shape: tuple[int, int], with_residual: bool, dtype: torch.dtype, device: torch.device
) -> None:
    x, weight, bias, residual = operands(*shape, dtype, device)
    added = residual if with_residual else None
    want, other = exact(x, weight, bias, added), theirs(x, weight, bias, added)
    assert_as_good_as(layernorm(x, weight, bias, EPS, added), other, want)
    assert_as_good_as(layernorm_reference(x, weight, bias, EPS, added), other, want)


@pytest.mark.parametrize("case", ["large", "tiny", "far from zero", "one dominates"])
def test_adversarial_values(case: str, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, residual = operands(9, 768, dtype, device)
    if case == "large":
        x, residual = x * 1e3, residual * 1e3
    elif case == "tiny":
        x, residual = x * 1e-3, residual * 1e-3
    elif case == "far from zero":  # E[x^2] - E[x]^2 would cancel here
        x, residual = x + 1000, residual + 1000
    else:
        x[:, 5] = 3e4
    want, other = exact(x, weight, bias, residual), theirs(x, weight, bias, residual)
    assert_as_good_as(layernorm(x, weight, bias, EPS, residual), other, want)


def test_equal_numbers_give_the_bias(dtype: torch.dtype, device: torch.device) -> None:
    _, weight, bias, _ = operands(1, 512, dtype, device)
    x = torch.full((3, 512), 2.5, dtype=dtype, device=device)
    assert torch.equal(layernorm(x, weight, bias, EPS), bias.expand(3, 512))


def test_every_element_is_written(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, residual = operands(17, 312, dtype, device)
    want = layernorm(x, weight, bias, EPS, residual)
    out = torch.full_like(x, float("nan"))
    assert layernorm(x, weight, bias, EPS, residual, out) is out
    assert torch.equal(out, want)


@pytest.mark.parametrize("place", ["x", "residual"])
def test_in_place(place: str, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, residual = operands(17, 768, dtype, device)
    want = layernorm(x, weight, bias, EPS, residual)
    out = x if place == "x" else residual
    assert torch.equal(layernorm(x, weight, bias, EPS, residual, out), want)
    assert torch.equal(out, want)


# 300 bf16 numbers are 600 bytes: a row in the middle is less aligned than the first one.
@pytest.mark.parametrize("width", [300, 312, 768])
def test_rows_do_not_depend_on_the_batch(
    width: int, dtype: torch.dtype, device: torch.device
) -> None:
    x, weight, bias, residual = operands(333, width, dtype, device)
    batch = layernorm(x, weight, bias, EPS, residual)
    for row in (0, 1, 100, 332):
        one = slice(row, row + 1)
        assert torch.equal(layernorm(x[one], weight, bias, EPS, residual[one]), batch[one])
    some = slice(17, 60)
    assert torch.equal(layernorm(x[some], weight, bias, EPS, residual[some]), batch[some])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_stays_at_home(bad: float, dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, residual = operands(9, 768, dtype, device)
    clean = layernorm(x, weight, bias, EPS, residual)
    x[4, 700] = bad
    got = layernorm(x, weight, bias, EPS, residual)
    assert got[4].isnan().all()
    others = torch.arange(9, device=device) != 4
    assert torch.equal(got[others], clean[others])


def test_no_rows(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, residual = operands(0, 768, dtype, device)
    assert layernorm(x, weight, bias, EPS, residual).shape == (0, 768)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_opcheck(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias, residual = operands(5, 48, dtype, device)
    ops, out = torch.ops.fastdistil, torch.empty_like(x)
    torch.library.opcheck(ops.layernorm.default, (x, weight, bias, EPS, None))
    torch.library.opcheck(ops.layernorm.default, (x, weight, bias, EPS, residual))
    torch.library.opcheck(ops.layernorm_out.default, (x, weight, bias, EPS, residual, out))


def test_compile_traces_it_whole(device: torch.device) -> None:
    x, weight, bias, residual = operands(5, 48, torch.float32, device)

    def program(x: Tensor, residual: Tensor) -> Tensor:
        once = layernorm(x, weight, bias, EPS, residual)
        return layernorm(once, weight, bias, EPS, out=torch.empty_like(x)) + 1

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, residual), program(x, residual))


def test_bad_input(device: torch.device) -> None:
    x, weight, bias, residual = operands(4, 32, torch.float32, device)
    with pytest.raises(TypeError, match="x: got float64"):
        layernorm(x.double(), weight.double(), bias.double(), EPS)
    with pytest.raises(TypeError, match="weight: got float16"):
        layernorm(x, weight.half(), bias, EPS)
    with pytest.raises(TypeError, match="residual: got float16"):
        layernorm(x, weight, bias, EPS, residual.half())
    with pytest.raises(ValueError, match=r"x: got shape \[32\]"):
        layernorm(x[0], weight, bias, EPS)
    with pytest.raises(ValueError, match=r"bias: got shape \[31\]"):
        layernorm(x, weight, bias[:31], EPS)
    with pytest.raises(ValueError, match=r"residual: got shape \[3, 32\]"):
        layernorm(x, weight, bias, EPS, residual[:3])
    with pytest.raises(ValueError, match="x: not contiguous"):
        layernorm(torch.zeros(32, 4, device=device).t(), weight, bias, EPS)
    with pytest.raises(ValueError, match=r"out: got shape \[5, 32\]"):
        layernorm(x, weight, bias, EPS, out=torch.zeros(5, 32, device=device))
    with pytest.raises(ValueError, match="8192"):
        layernorm(*operands(1, 8193, torch.float32, device)[:3], EPS)
    with pytest.raises(ValueError, match="weight: on meta"):
        layernorm_launch(x, weight.to("meta"), bias, EPS, None, x, settings_for(device))


def test_launch_is_built_without_a_device() -> None:
    x = torch.empty(4096, 768, dtype=torch.bfloat16, device="meta")
    weight = torch.empty(768, dtype=torch.bfloat16, device="meta")
    settings = load_settings("sm_90")
    launch = layernorm_launch(x, weight, weight, EPS, x, x, settings)
    rows = settings.rows("layernorm", torch.bfloat16).rows
    assert launch.grid == (-(-4096 // rows),)
    assert launch.moved == 2 * (3 * 4096 * 768 + 2 * 768)
    assert launch.flops == 8 * 4096 * 768
    assert not launch.tensor_cores


def test_a_poisoned_launch(dtype: torch.dtype, device: torch.device) -> None:
    """As the engine has it: out is the residual, and rows past the tokens hold anything."""
    x, weight, bias, residual = operands(33, 384, dtype, device)
    want = layernorm(x[:20], weight, bias, EPS, residual[:20])
    x[20:], residual[20:] = float("nan"), float("inf")
    launch = layernorm_launch(x, weight, bias, EPS, residual, residual, settings_for(device))
    submit(launch, device)
    assert torch.equal(residual[:20], want)
