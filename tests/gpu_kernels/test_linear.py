"""The linear layer against its definition in float64, with every way of cutting it into tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastdistil.kernels.gelu import ACTIVATIONS
from fastdistil.kernels.launch import interpreted, submit
from fastdistil.kernels.linear import linear, linear_launch, linear_reference
from fastdistil.kernels.settings import LinearSetting, load_settings, settings_for

# Tokens, in_features, out_features. No tile divides 17, 333 or 312; 100 half-precision numbers are
# no multiple of 16 bytes, so there is no descriptor of such rows.
SIZES = [(1, 32, 96), (17, 312, 1248), (333, 128, 100), (65, 100, 312), (40, 768, 384)]

SMALL = LinearSetting("pointer", 64, 64, 64, group_m=2)
SETTINGS = {
    "pointer": SMALL,
    "persistent": replace(SMALL, programs=3),
    "split": replace(SMALL, block_n=256, group_m=3),
    "split persistent": replace(SMALL, block_n=256, programs=2),
    "short of rows": replace(SMALL, block_m=16, block_n=32, block_k=32),
}
SETTINGS |= {
    f"descriptor {name}": replace(setting, variant="descriptor")
    for name, setting in SETTINGS.items()
}


class Layer:
    """Operands of one call, the same on every device."""

    def __init__(
        self, sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device, seed: int = 0
    ):
        tokens, depth, width = sizes
        generator = torch.Generator().manual_seed(seed)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        self.x = numbers(tokens, depth)
        self.weight = (numbers(width, depth) * depth**-0.5).contiguous()
        self.bias, self.residual = numbers(width), numbers(tokens, width)

    def run(
        self,
        setting: LinearSetting | None,
        activation: str | None = "gelu",
        bias: bool = True,
        residual: bool = True,
    ) -> Tensor:
        """By one launch, into memory full of NaN."""
        device = self.x.device
        out = torch.full_like(self.residual, float("nan"))
        launch = linear_launch(
            self.x,
            self.weight,
            self.bias if bias else None,
            activation,
            self.residual if residual else None,
            out,
            settings_for(device),
            setting,
        )
        submit(launch, device)
        return out

    def check(
        self, got: Tensor, activation: str | None = "gelu", bias: bool = True, residual: bool = True
    ) -> None:
        """At most twice the error that PyTorch makes in this dtype, beside a rounding unit."""
        given = (self.x, self.weight, self.bias, self.residual)

        def define(x: Tensor, weight: Tensor, b: Tensor, r: Tensor) -> Tensor:
            y = ACTIVATIONS[activation or "none"](
                torch.nn.functional.linear(x, weight, b if bias else None)
            )
            return y + r if residual else y

        want, theirs = define(*(t.double() for t in given)), define(*given)
        assert got.dtype == theirs.dtype
        unit = torch.finfo(got.dtype).eps * want.abs().max()
        if got.is_cuda and got.dtype == torch.float32:
            # Tensor cores cut sums off where others round: once for every 8 elements along K.
            unit = unit * (self.x.shape[1] // 8)
        # Written so that NaN fails.
        allowed = 2 * (theirs.double() - want).abs().max() + unit
        assert bool((got.double() - want).abs().max() <= allowed)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_definition(sizes: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    layer = Layer(sizes, dtype, device)
    layer.check(linear(layer.x, layer.weight, layer.bias, "gelu", layer.residual))
    layer.check(linear_reference(layer.x, layer.weight, layer.bias, "gelu", layer.residual))


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("sizes", SIZES[1:4], ids=str)
def test_every_way_of_cutting(sizes: tuple[int, int, int], name: str, device: torch.device) -> None:
    layer = Layer(sizes, torch.float16, device)
    layer.check(layer.run(SETTINGS[name]))


@pytest.mark.parametrize("variant", ["pointer", "descriptor"])
def test_every_dtype_of_both_kernels(
    variant: str, dtype: torch.dtype, device: torch.device
) -> None:
    layer = Layer((70, 96, 144), dtype, device)
    layer.check(layer.run(replace(SMALL, variant=variant, block_k=32)))


@pytest.mark.parametrize("variant", ["pointer", "descriptor"])
@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_every_epilogue(activation: str | None, variant: str, device: torch.device) -> None:
    layer = Layer((19, 64, 80), torch.float32, device)
    setting = replace(SMALL, variant=variant, block_k=32)
    for bias in (False, True):
        for residual in (False, True):
            got = layer.run(setting, activation, bias, residual)
            layer.check(got, activation, bias, residual)


@pytest.mark.parametrize("precision", ["tf32x3", "ieee"])
def test_float32_is_no_single_tf32_product(precision: str, device: torch.device) -> None:
    layer = Layer((64, 768, 64), torch.float32, device)
    setting = replace(SMALL, block_n=32, block_k=32, precision=precision)
    got = layer.run(setting, None, bias=False, residual=False)
    want = layer.x.double() @ layer.weight.double().T
    # A tf32 operand is rounded to 11 bits: 2^-12 of it, where float32 has 2^-24.
    scale = layer.x.double().abs() @ layer.weight.double().abs().T
    assert bool(((got - want).abs() <= scale * 2**-18).all())


@pytest.mark.parametrize("name", SETTINGS)
def test_rows_do_not_depend_on_the_batch(name: str, device: torch.device) -> None:
    layer = Layer((150, 312, 128), torch.bfloat16, device)
    batch = layer.run(SETTINGS[name])
    for rows in (slice(0, 1), slice(63, 66), slice(149, 150)):
        alone = Layer((150, 312, 128), torch.bfloat16, device)
        alone.x, alone.residual = alone.x[rows], alone.residual[rows]
        assert torch.equal(alone.run(SETTINGS[name]), batch[rows])


@pytest.mark.skipif(interpreted(), reason="the interpreter multiplies with NumPy, tile by tile")
def test_rows_do_not_depend_on_the_rule(dtype: torch.dtype, device: torch.device) -> None:
    """The shipped settings of this GPU, for one token and for many, give the same bits."""
    layer = Layer((8200, 768, 2304), dtype, device)
    alone = linear(layer.x[:1], layer.weight, layer.bias, "gelu")
    for count in (3, 65, 129, 257, 513, 1025, 1537, 4097, 8200):
        batch = linear(layer.x[:count], layer.weight, layer.bias, "gelu")
        assert torch.equal(batch[:1], alone)


@pytest.mark.parametrize("name", ["pointer", "descriptor pointer", "descriptor split"])
def test_nan_stays_in_its_row(name: str, device: torch.device) -> None:
    layer = Layer((70, 104, 72), torch.float16, device)
    clean = layer.run(SETTINGS[name])
    layer.x[5], layer.x[69] = float("nan"), float("inf")
    got = layer.run(SETTINGS[name])
    assert got[5].isnan().all()
    others = [row for row in range(70) if row not in (5, 69)]
    assert torch.equal(got[others], clean[others])


def test_large_magnitudes(device: torch.device) -> None:
    """Sums beyond float16 that the residual brings back, and rows of nothing but the largest."""
    x = torch.full((3, 64), 60000.0, device=device, dtype=torch.float16)
    weight = torch.full((32, 64), 2**-5, device=device, dtype=torch.float16)
    residual = torch.full((3, 32), -60000.0, device=device, dtype=torch.float16)
    got = linear(x, weight, None, "gelu", residual)
    assert torch.equal(got, torch.full_like(got, 60000.0))


def test_out(dtype: torch.dtype, device: torch.device) -> None:
    layer = Layer((17, 96, 64), dtype, device)
    want = linear(layer.x, layer.weight, layer.bias, None, layer.residual)
    out = torch.full_like(want, float("nan"))
    assert linear(layer.x, layer.weight, layer.bias, None, layer.residual, out) is out
    assert torch.equal(out, want)
    # In place of the residual.
    linear(layer.x, layer.weight, layer.bias, None, layer.residual, layer.residual)
    assert torch.equal(layer.residual, want)


@pytest.mark.parametrize("variant", ["pointer", "descriptor"])
def test_no_rows(variant: str, dtype: torch.dtype, device: torch.device) -> None:
    layer = Layer((0, 32, 64), dtype, device)
    assert layer.run(replace(SMALL, variant=variant)).shape == (0, 64)
    assert linear(layer.x, layer.weight, layer.bias).shape == (0, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_opcheck(dtype: torch.dtype, device: torch.device) -> None:
    layer = Layer((5, 48, 32), dtype, device)
    given = (layer.x, layer.weight, layer.bias, "gelu", layer.residual)
    torch.library.opcheck(torch.ops.fastdistil.linear.default, given)
    torch.library.opcheck(
        torch.ops.fastdistil.linear.default, (layer.x, layer.weight, None, None, None)
    )
    out = torch.empty_like(layer.residual)
    torch.library.opcheck(torch.ops.fastdistil.linear_out.default, (*given, out))


def test_compile_traces_it_whole(device: torch.device) -> None:
    layer = Layer((5, 48, 48), torch.float32, device)

    def program(x: Tensor) -> Tensor:
        inner = linear(x, layer.weight, layer.bias, "gelu")
        return linear(inner, layer.weight, None, residual=x, out=torch.empty_like(x)) * 2

    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(layer.x), program(layer.x))


def test_cublas_where_the_settings_say_so(
    dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(device)
    rule = LinearSetting("cublas")
    monkeypatch.setattr(settings, "linear", lambda *sizes: rule)
    layer = Layer((17, 96, 64), dtype, device)
    out = torch.full_like(layer.residual, float("nan"))
    linear(layer.x, layer.weight, layer.bias, "gelu", layer.residual, out)
    layer.check(out)
    with pytest.raises(ValueError, match="setting: got variant 'cublas'"):
        layer.run(None)


def test_bad_input(device: torch.device) -> None:
    x, weight = torch.zeros(4, 32, device=device), torch.zeros(64, 32, device=device)
    bias = torch.zeros(64, device=device)
    with pytest.raises(TypeError, match="x: got float64"):
        linear(x.double(), weight, bias)
    with pytest.raises(TypeError, match="weight: got float16; allowed: float32"):
        linear(x, weight.half(), bias)
    with pytest.raises(ValueError, match=r"weight: got shape \[64, 31\]; \[any, 32\]"):
        linear(x, weight[:, :31], bias)
    with pytest.raises(ValueError, match="weight: not contiguous"):
        linear(x, torch.zeros(32, 64, device=device).t(), bias)
    with pytest.raises(ValueError, match=r"bias: got shape \[63\]"):
        linear(x, weight, bias[:63])
    with pytest.raises(ValueError, match=r"residual: got shape \[3, 64\]"):
        linear(x, weight, bias, None, torch.zeros(3, 64, device=device))
    with pytest.raises(ValueError, match=r"out: got shape \[4, 32\]"):
        linear(x, weight, bias, out=x.clone())
    with pytest.raises(ValueError, match="activation: got 'swish'; allowed: none, gelu"):
        linear(x, weight, bias, "swish")
    with pytest.raises(ValueError, match="at least one column is needed"):
        linear(x[:, :0].contiguous(), weight[:, :0].contiguous(), bias)


@pytest.mark.parametrize("variant", ["pointer", "descriptor"])
def test_launch_is_built_without_a_device(variant: str) -> None:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    setting = LinearSetting(variant, 128, 128, 64, num_warps=8)
    operands = (empty(1000, 768), empty(3072, 768), empty(3072))
    settings = load_settings("sm_90")
    launch = linear_launch(*operands, "gelu", None, empty(1000, 3072), settings, setting)
    assert launch.kernel.__name__ == f"linear_{variant}_kernel"
    assert launch.grid == (8 * 24,)
    assert launch.flops == 2 * 1000 * 768 * 3072
    assert launch.moved == 2 * (1000 * 768 + 3072 * 768 + 3072 + 1000 * 3072)
    assert launch.tensor_cores
    shared = replace(setting, programs=132)
    launch = linear_launch(*operands, "gelu", None, empty(1000, 3072), settings, shared)
    assert launch.grid == (132,)
