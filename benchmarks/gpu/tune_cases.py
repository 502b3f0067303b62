"""What is tuned: an operation at a size, its operands, its launches, and which bits count as right.

A spec is a few numbers, so that other processes can build the same launch to compile it; on the
"meta" device its operands have no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.gpu import candidates
from benchmarks.gpu.tables import changed
from fastdistil.backends.cuda_plan import CublasLinear
from fastdistil.kernels.settings import (
    AttentionSetting,
    LinearSetting,
    RowSetting,
    Settings,
)

Setting: TypeAlias = LinearSetting | AttentionSetting | RowSetting
Operands = dict[str, Tensor]
Runs = Callable[[], None]

DTYPES = {"half": torch.bfloat16, "fp32": torch.float32}
_EPS = 1e-12
_VOCABULARY = 30522
_POSITIONS = 512


@dataclass(frozen=True)
class LinearSpec:
    """act(x W^T + b) for x [tokens, in_features]; `most` rows is where the bits are taken from."""

    kind: str
    tokens: int
    out_features: int
    in_features: int
    activation: str | None
    most: int

    @property
    def name(self) -> str:
        """Its key among the results."""
        shape = f"{self.out_features}x{self.in_features}"
        return f"linear {self.kind} {shape} at {self.tokens}"

    def incumbent(self, settings: Settings) -> LinearSetting:
        """What holds now."""
        return self._rule(settings, self.tokens)

    def candidates(self, settings: Settings, processors: int) -> list[Setting]:
        """What to try."""
        present = self.incumbent(settings)
        target = settings.target
        return [*candidates.linear(target, self.kind, self.tokens, processors, present)]

    def operands(self, device: torch.device, seed: int) -> Operands:
        """Random x [most or tokens, K], weight, bias; out. Seed 0 is the set that bits are from."""
        make = _Random(device, DTYPES[self.kind], seed)
        # Generated whole, so that the first rows are the same at every number of tokens.
        x = make(self.most if seed == 0 else self.tokens, self.in_features)
        return {
            "x": x,
            "weight": make(self.out_features, self.in_features) / math.sqrt(self.in_features),
            "bias": make(self.out_features),
            "out": torch.empty(len(x), self.out_features, dtype=x.dtype, device=device),
        }

    def launches(self, operands: Operands, setting: Setting, settings: Settings) -> list[Any]:
        """What one call launches."""
        assert isinstance(setting, LinearSetting)
        x, out = operands["x"][: self.tokens], operands["out"][: self.tokens]
        return self._launches(x, out, operands, setting, settings)

    def group(self, operands: Operands, setting: Setting, expected: Tensor) -> str | None:
        """ "invariant" where its bits are the layer's, "any" where it is as good, else None."""
        assert isinstance(setting, LinearSetting)
        out = operands["out"][: self.tokens]
        if setting.variant != "cublas" and torch.equal(_bits(out), _bits(expected)):
            return "invariant"
        return "any" if _close(out, expected) else None

    def reference(self, setting: Setting, settings: Settings) -> LinearSetting:
        """The rule whose bits are the layer's: the one for the largest batches."""
        return self._rule(settings, 1 << 30)

    def expected(self, operands: Operands, reference: Setting, settings: Settings) -> Tensor:
        """What the reference gives these rows among `most` rows."""
        assert isinstance(reference, LinearSetting)
        x, out = operands["x"], operands["out"]
        for launch in self._launches(x, out, operands, reference, settings):
            launch.run()
        return out[: self.tokens].clone()

    def compile_key(self, setting: Setting) -> tuple[object, ...]:
        """Settings and specs with one key share their machine code."""
        assert isinstance(setting, LinearSetting)
        # The number of programs is looked up at run time; that there is one is not.
        programs = None if setting.programs is None else 0
        code = replace(setting, programs=programs)
        return replace(self, tokens=0), code

    def moved(self) -> int:
        """Bytes of one set of operands, as far as a call touches them."""
        numbers = self.tokens * (self.in_features + self.out_features)
        numbers += self.out_features * self.in_features
        return numbers * DTYPES[self.kind].itemsize

    def _rule(self, settings: Settings, tokens: int) -> LinearSetting:
        return settings.linear(DTYPES[self.kind], tokens, self.out_features, self.in_features)

    def _launches(
        self, x: Tensor, out: Tensor, operands: Operands, setting: LinearSetting, settings: Settings
    ) -> list[Any]:
        from fastdistil.kernels.gelu import bias_gelu_launch
        from fastdistil.kernels.linear import linear_launch

        weight, bias = operands["weight"], operands["bias"]
        if setting.variant != "cublas":
            return [linear_launch(x, weight, bias, self.activation, None, out, settings, setting)]
        if self.activation is None:
            return [CublasLinear(x, weight, bias, out)]
        return [
            CublasLinear(x, weight, None, out),
            bias_gelu_launch(out, bias, self.activation, out, settings),
        ]


@dataclass(frozen=True)
class AttentionSpec:
    """Attention over `tokens` tokens in sequences of half of `length` to `length`."""

    kind: str
    head_dim: int
    length: int
    tokens: int
    num_heads: int = 12

    @property
    def name(self) -> str:
        """Its key among the results."""
        return f"attention {self.kind} {self.head_dim} at {self.length}"

    def incumbent(self, settings: Settings) -> AttentionSetting:
        """What holds now."""
        return settings.attention(DTYPES[self.kind], self.head_dim, self.length)

    def candidates(self, settings: Settings, processors: int) -> list[Setting]:
        """What to try."""
        present, target = self.incumbent(settings), settings.target
        return [
            *candidates.attention(
                target, self.kind, self.head_dim, self.length, processors, present
            )
        ]

    def operands(self, device: torch.device, seed: int) -> Operands:
        """Random qkv, sequences of random lengths; out."""
        make = _Random(device, DTYPES[self.kind], seed)
        lengths = _lengths(self.tokens, self.length)
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        tokens = sum(lengths)
        out = torch.empty(
            tokens, self.num_heads * self.head_dim, dtype=DTYPES[self.kind], device=device
        )
        return {
            "qkv": make(tokens, 3, self.num_heads, self.head_dim),
            "cu_seqlens": ends.to(device),
            "count": torch.tensor([len(lengths)], dtype=torch.int32).to(device),
            "out": out,
        }

    def launches(self, operands: Operands, setting: Setting, settings: Settings) -> list[Any]:
        """What one call launches."""
        from fastdistil.kernels.attention import attention_launch

        assert isinstance(setting, AttentionSetting)
        return [
            attention_launch(
                operands["qkv"],
                operands["cu_seqlens"],
                self.length,
                operands["out"],
                _with_attention(settings, self, setting),
                scale_folded=True,
                num_sequences=operands["count"],
            )
        ]

    def group(self, operands: Operands, setting: Setting, expected: Tensor) -> str | None:
        """The key block, where the bits are those of that key block."""
        assert isinstance(setting, AttentionSetting)
        same = torch.equal(_bits(operands["out"]), _bits(expected))
        return str(setting.key_block) if same else None

    def reference(self, setting: Setting, settings: Settings) -> AttentionSetting:
        """The rule whose bits are those of a key block: one head a tile."""
        assert isinstance(setting, AttentionSetting)
        return AttentionSetting(setting.key_block, precision=setting.precision)

    def expected(self, operands: Operands, reference: Setting, settings: Settings) -> Tensor:
        """What the reference gives."""
        for launch in self.launches(operands, reference, settings):
            launch.run()
        return operands["out"].clone()

    def compile_key(self, setting: Setting) -> tuple[object, ...]:
        """Settings and specs with one key share their machine code."""
        assert isinstance(setting, AttentionSetting)
        return replace(self, tokens=0), replace(setting, programs=0)

    def moved(self) -> int:
        """Bytes of one set of operands."""
        return 4 * self.tokens * self.num_heads * self.head_dim * DTYPES[self.kind].itemsize


@dataclass(frozen=True)
class RowsSpec:
    """An operation that goes by rows, over `tokens` rows of `width`."""

    operation: str
    kind: str
    tokens: int
    width: int

    @property
    def name(self) -> str:
        """Its key among the results."""
        return f"{self.operation} {self.kind} at {self.tokens}"

    def incumbent(self, settings: Settings) -> RowSetting:
        """What holds now."""
        return settings.rows(self.operation, DTYPES[self.kind])

    def candidates(self, settings: Settings, processors: int) -> list[Setting]:
        """What to try."""
        return [*candidates.rows(self.incumbent(settings))]

    def operands(self, device: torch.device, seed: int) -> Operands:
        """Whatever one of the operations needs."""
        dtype = DTYPES[self.kind]
        make = _Random(device, dtype, seed)
        ends = torch.arange(0, self.tokens + 1, min(32, self.tokens), dtype=torch.int32)
        results = torch.float32 if self.operation == "pool" else dtype
        rows = len(ends) - 1 if self.operation == "pool" else self.tokens
        found = {
            "weight": make(self.width),
            "bias": make(self.width),
            "out": torch.empty(rows, self.width, dtype=results, device=device),
        }
        if self.operation == "embed_layernorm":
            return found | {
                "ids": make.integers(self.tokens, _VOCABULARY),
                "positions": make.integers(self.tokens, _POSITIONS),
                "words": make(_VOCABULARY, self.width),
                "places": make(_POSITIONS, self.width),
                "errors": torch.zeros(1, dtype=torch.int32, device=device),
            }
        return found | {
            "x": make(self.tokens, self.width),
            "residual": make(self.tokens, self.width),
            "cu_seqlens": ends.to(device),
        }

    def launches(self, operands: Operands, setting: Setting, settings: Settings) -> list[Any]:
        """What one call launches."""
        assert isinstance(setting, RowSetting)
        table = changed(settings.table, "rows", self.operation, self.kind, value=asdict(setting))
        chosen = Settings(settings.target, table, settings.source)
        return [_ROW_LAUNCHES[self.operation](operands, chosen)]

    def group(self, operands: Operands, setting: Setting, expected: Tensor) -> str | None:
        """ "close": one setting serves all sizes, so its own roundings are as good as any."""
        return "close" if _close(operands["out"], expected) else None

    def reference(self, setting: Setting, settings: Settings) -> RowSetting:
        """What holds now."""
        return self.incumbent(settings)

    def expected(self, operands: Operands, reference: Setting, settings: Settings) -> Tensor:
        """What the reference gives."""
        for launch in self.launches(operands, reference, settings):
            launch.run()
        return operands["out"].clone()

    def compile_key(self, setting: Setting) -> tuple[object, ...]:
        """Settings and specs with one key share their machine code."""
        return replace(self, tokens=0), setting

    def moved(self) -> int:
        """Bytes of one set of operands, about."""
        return 3 * self.tokens * self.width * DTYPES[self.kind].itemsize


Spec: TypeAlias = LinearSpec | AttentionSpec | RowsSpec


def _layernorm(operands: Operands, settings: Settings) -> Any:
    from fastdistil.kernels.layernorm import layernorm_launch

    o = operands
    return layernorm_launch(o["x"], o["weight"], o["bias"], _EPS, o["residual"], o["out"], settings)


def _embed_layernorm(operands: Operands, settings: Settings) -> Any:
    from fastdistil.kernels.embedding import embed_layernorm_launch

    o = operands
    tables = (o["words"], o["places"], None, o["weight"], o["bias"], _EPS)
    ids = (o["ids"], o["positions"], None)
    return embed_layernorm_launch(*ids, *tables, o["out"], o["errors"], settings)


def _bias_gelu(operands: Operands, settings: Settings) -> Any:
    from fastdistil.kernels.gelu import bias_gelu_launch

    return bias_gelu_launch(operands["x"], operands["bias"], "gelu", operands["out"], settings)


def _pool(operands: Operands, settings: Settings) -> Any:
    from fastdistil.kernels.pooling import pool_launch

    o = operands
    return pool_launch(o["x"], o["cu_seqlens"], "mean", True, o["out"], settings)


_ROW_LAUNCHES: Mapping[str, Callable[[Operands, Settings], Any]] = {
    "layernorm": _layernorm,
    "embed_layernorm": _embed_layernorm,
    "bias_gelu": _bias_gelu,
    "pool": _pool,
}
ROW_OPERATIONS = tuple(_ROW_LAUNCHES)


class _Random:
    """Seeded numbers on a device; on "meta", shapes without numbers."""

    def __init__(self, device: torch.device, dtype: torch.dtype, seed: int):
        self._device, self._dtype = device, dtype
        self._generator = None
        if device.type != "meta":
            self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, dtype=self._dtype, device=self._device, generator=self._generator)

    def integers(self, count: int, below: int) -> Tensor:
        """int32 [count] from 0 to below - 1."""
        return torch.randint(
            below, (count,), dtype=torch.int32, device=self._device, generator=self._generator
        )


def _lengths(tokens: int, longest: int) -> list[int]:
    """About `tokens` in all, from half of `longest` upwards, the longest among them; seeded."""
    generator = torch.Generator().manual_seed(longest)
    lengths = [longest]
    while sum(lengths) < tokens:
        more = torch.randint(longest // 2 + 1, longest + 1, (), generator=generator)
        lengths.append(int(more))
    return lengths


def _with_attention(settings: Settings, spec: AttentionSpec, setting: AttentionSetting) -> Settings:
    """The same settings with one rule for all lengths of a head size."""
    rule = asdict(setting)
    key_block = rule.pop("key_block")
    shared = setting.slot < setting.block_q
    entry = {
        "key_block": key_block,
        "rules": [{"max_seqlen": spec.length if shared else None, **rule}],
    }
    table = changed(settings.table, "attention", spec.kind, str(spec.head_dim), value=entry)
    return Settings(settings.target, table, settings.source)


def _close(out: Tensor, expected: Tensor) -> bool:
    """Whether they differ by no more than another order of the sums may make them; NaN does."""
    allowed = 2.0**-7 if out.dtype == torch.bfloat16 else 2.0**-16
    largest = expected.float().abs().max()
    return bool((out.float() - expected.float()).abs().max() <= allowed * largest)


def _bits(tensor: Tensor) -> Tensor:
    """The same memory as integers: NaN equals itself there, and -0 is not 0."""
    return tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()])
