"""Bias and activation against their definitions in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastdistil.kernels.gelu import (
    ACTIVATIONS,
    bias_gelu,
    bias_gelu_launch,
    bias_gelu_reference,
)
from fastdistil.kernels.launch import submit
from fastdistil.kernels.settings import load_settings, settings_for

SHAPES = [(1, 32), (17, 312), (333, 768), (5, 3072)]


def numbers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    """Normal, three wide: both tails of GELU and what is between. The same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator)).to(device, dtype)


def assert_as_good_as(got: Tensor, theirs: Tensor, want: Tensor) -> None:
    """At most twice the error that PyTorch makes in this dtype, beside a rounding unit."""
    assert got.dtype == theirs.dtype
    allowed = 2 * (theirs.double() - want).abs().max() + torch.finfo(got.dtype).eps
    # Written so that NaN fails.
    assert bool((got.double() - want).abs().max() <= allowed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_definition(
    shape: tuple[int, int], approximate: str, dtype: torch.dtype, device: torch.device
) -> None:
    x = numbers(shape, dtype, device, seed=0)
    bias = numbers(shape[1:], dtype, device, seed=1)
    want = bias_gelu_reference(x.double(), bias.double(), approximate)
    theirs = F.gelu(x + bias, approximate=approximate)
    assert_as_good_as(bias_gelu(x, bias, approximate), theirs, want)
    assert_as_good_as(bias_gelu_reference(x, bias, approximate), theirs, want)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_every_activation(activation: str, dtype: torch.dtype, device: torch.device) -> None:
    x, bias = numbers((9, 80), dtype, device, seed=2), numbers((80,), dtype, device, seed=3)
    out = torch.full_like(x, float("nan"))
    submit(bias_gelu_launch(x, bias, activation, out, settings_for(device)), device)
    define = ACTIVATIONS[activation]
    assert_as_good_as(out, define(x + bias), define(x.double() + bias.double()))


def test_exact_gelu_is_more_exact_than_pytorch(device: torch.device) -> None:
    x = torch.linspace(-14, 14, 1 << 17, device=device).view(-1, 1024)
    nothing = torch.zeros(1024, device=device)
    got, theirs, want = bias_gelu(x, nothing).double(), F.gelu(x).double(), F.gelu(x.double())
    assert (got - want).abs().max() <= (theirs - want).abs().max()
    # 1 + erf(x / sqrt(2)) has few digits left here.
    tail = (x < -2) & (x > -5.5)
    relative = ((got - want) / want)[tail].abs().max()
    assert relative <= ((theirs - want) / want)[tail].abs().max()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_large_magnitudes(approximate: str, dtype: torch.dtype, device: torch.device) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([largest, 1e4, 100, 13, 0, -13, -100, -1e4, -largest], device=device)
    x = x.to(dtype).expand(3, 9).contiguous()
    got = bias_gelu(x, torch.zeros(9, dtype=dtype, device=device), approximate)
    assert torch.equal(got, x.clamp(min=0))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_nan_stays_nan_and_stays_at_home(approximate: str, device: torch.device) -> None:
    x, bias = numbers((3, 40), torch.float32, device, 4), numbers((40,), torch.float32, device, 5)
    clean = bias_gelu(x, bias, approximate)
    x[1] = float("nan")
    got = bias_gelu(x, bias, approximate)
    assert got[1].isnan().all()
    assert torch.equal(got[::2], clean[::2])
    x[1] = float("inf")
    assert torch.equal(bias_gelu(x, bias, approximate)[1], x[1])


def test_out(dtype: torch.dtype, device: torch.device) -> None:
    x, bias = numbers((17, 312), dtype, device, 6), numbers((312,), dtype, device, 7)
    want = bias_gelu(x, bias)
    out = torch.full_like(x, float("nan"))
    assert bias_gelu(x, bias, out=out) is out
    assert torch.equal(out, want)
    # In place.
    assert torch.equal(bias_gelu(x, bias, out=x), want)


def test_rows_do_not_depend_on_the_batch(dtype: torch.dtype, device: torch.device) -> None:
    x, bias = numbers((333, 312), dtype, device, 8), numbers((312,), dtype, device, 9)
    batch = bias_gelu(x, bias)
    for row in (0, 100, 332):
        assert torch.equal(bias_gelu(x[row : row + 1], bias)[0], batch[row])


def test_no_rows(dtype: torch.dtype, device: torch.device) -> None:
    x, bias = numbers((0, 32), dtype, device, 0), numbers((32,), dtype, device, 0)
    assert bias_gelu(x, bias).shape == (0, 32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_opcheck(dtype: torch.dtype, device: torch.device) -> None:
    x, bias = numbers((5, 48), dtype, device, 10), numbers((48,), dtype, device, 11)
    torch.library.opcheck(torch.ops.fastdistil.bias_gelu.default, (x, bias, "none"))
    out = torch.empty_like(x)
    torch.library.opcheck(torch.ops.fastdistil.bias_gelu_out.default, (x, bias, "tanh", out))


def test_compile_traces_it_whole(device: torch.device) -> None:
    x, bias = numbers((5, 48), torch.float32, device, 12), numbers((48,), torch.float32, device, 13)

    def program(x: Tensor, bias: Tensor) -> Tensor:
        return bias_gelu(bias_gelu(x, bias), bias, "tanh", out=torch.empty_like(x)) + 1

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, bias), program(x, bias))


def test_bad_input(device: torch.device) -> None:
    x, bias = torch.zeros(4, 32, device=device), torch.zeros(32, device=device)
    with pytest.raises(ValueError, match="approximate: got 'erf'; allowed: none, tanh"):
        bias_gelu(x, bias, "erf")
    with pytest.raises(TypeError, match="x: got float64"):
        bias_gelu(x.double(), bias.double())
    with pytest.raises(TypeError, match="bias: got float16"):
        bias_gelu(x, bias.half())
    with pytest.raises(ValueError, match=r"bias: got shape \[31\]"):
        bias_gelu(x, bias[:31])
    with pytest.raises(ValueError, match="x: not contiguous"):
        bias_gelu(torch.zeros(32, 4, device=device).t(), bias)
    with pytest.raises(ValueError, match=r"out: got shape \[5, 32\]"):
        bias_gelu(x, bias, out=torch.zeros(5, 32, device=device))
    with pytest.raises(ValueError, match="activation: got 'swish'; allowed: none, gelu"):
        bias_gelu_launch(x, bias, "swish", x, settings_for(device))
    with pytest.raises(ValueError, match="bias: on meta"):
        bias_gelu_launch(x, bias.to("meta"), "gelu", x, settings_for(device))


def test_launch_is_built_without_a_device() -> None:
    x = torch.empty(4096, 3072, dtype=torch.bfloat16, device="meta")
    bias = torch.empty(3072, dtype=torch.bfloat16, device="meta")
    launch = bias_gelu_launch(x, bias, "gelu", x, load_settings("sm_90"))
    rows = load_settings("sm_90").rows("bias_gelu", torch.bfloat16).rows
    assert launch.grid == (-(-4096 // rows), 3)
    assert launch.moved == 2 * (2 * 4096 * 3072 + 3072)
    assert launch.flops == 6 * 4096 * 3072
    assert not launch.tensor_cores
