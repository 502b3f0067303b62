"""Launch settings: which tile sizes, warps and stages a kernel runs with on which GPU.

Settings are data, one file per GPU generation in `tuning/`. Nothing is tuned in a user's program: a
GPU that nobody measured takes the defaults of the nearest generation. ``FASTDISTIL_TUNING`` names a
file to use instead, or a folder of such files.

What is in a file::

    {"measured_on": "NVIDIA H100 80GB HBM3" or null,
     "chunk_tokens": 8192,
     "dependent_launch": false,
     "latency_tokens": 128,
     "latency_chain": false,
     "linear":    {"half": {"*": [rule, ...], "768x3072": [rule, ...]}, "fp32": {...}},
     "fastest":   the same, for callers who do without batch invariance; may be left out,
     "attention": {"half": {"64": {"key_block": 64, "rules": [rule, ...]}, ...}, "fp32": {...}},
     "rows":      {"layernorm": {"half": {"rows": 1, "num_warps": 4}, "fp32": {...}}, ...}}

`chunk_tokens` is how many tokens go through the encoder together at most; larger batches go in
several turns. `dependent_launch` (from sm_90 on; may be left out) has kernels start before those in
front of them have ended; see `launch.py`. `latency_tokens` is up to how many tokens the low-latency
kernel of csrc/cuda is faster, which nothing in this folder knows of, and `latency_chain` has that
launched step by step (both may be left out). "half" is bf16 and fp16. The key of a linear layer is
"out_features x in_features" without spaces, "*" is any. The first rule whose limit (`max_tokens`,
`max_seqlen`; null: none) is not exceeded holds.

Batch invariance. The bits of a row must not depend on how many rows there are. Products are summed
along K in one fixed order whatever the tile, so the rules of one layer may differ in tile sizes as
long as they lead to one family of tensor-core instructions; `make gpu-tune` takes none whose bits
differ. All attention rules of a head size share one `key_block`. Rules of "rows" know no sizes.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .launch import interpreted

TUNING = Path(__file__).resolve().parent / "tuning"
TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")
# Where nobody has measured: beyond this a forward multiplies more than it waits for weights.
_LATENCY_TOKENS = 128
# Those that know dependent launches.
_DEPENDENT_TARGETS = ("sm_90", "sm_100")
# The operations that go by rows: their settings do not depend on sizes.
ROW_OPERATIONS = ("layernorm", "embed_layernorm", "bias_gelu", "pool", "pack")


@dataclass(frozen=True)
class LinearSetting:
    """How a linear layer runs.

    Attributes:
        variant: "pointer", "descriptor" (tensor memory access, from sm_90 on) or "cublas".
        block_m, block_n, block_k: the tile of the result and the step along K.
        group_m: tiles along M that run together, so that weights are found in the L2 cache.
        programs: None for one program per tile; else that many programs share the tiles.
        num_warps, num_stages: Triton's.
        precision: how float32 operands are multiplied: "tf32x3" (three passes) or "ieee".
    """

    variant: str = "pointer"
    block_m: int = 64
    block_n: int = 64
    block_k: int = 64
    group_m: int = 8
    programs: int | None = None
    num_warps: int = 4
    num_stages: int = 3
    precision: str = "tf32x3"


@dataclass(frozen=True)
class AttentionSetting:
    """How attention runs.

    Attributes:
        key_block: keys that are looked at together. One for all lengths, as it orders the sums.
        block_q: query rows of a program.
        slot: rows of the tile that belong to one head. Equal to `block_q` for one head a program;
            a fraction of it where a program takes block_q / slot heads of one short sequence.
        programs: most programs launched; each takes several pieces of work where there are more.
        num_warps, num_stages: Triton's.
        precision: as for LinearSetting.
    """

    key_block: int = 64
    block_q: int = 64
    slot: int = 64
    programs: int = 4096
    num_warps: int = 4
    num_stages: int = 2
    precision: str = "tf32x3"


@dataclass(frozen=True)
class RowSetting:
    """How an operation that goes by rows runs: rows to a program, and warps."""

    rows: int = 1
    num_warps: int = 4


class Settings:
    """The contents of one file, checked.

    Args:
        target: "sm_90" and the like.
        table: the parsed file.
        source: its name, for messages.

    Raises:
        ValueError: something missing, unknown or of the wrong type, named.
    """

    def __init__(self, target: str, table: Mapping[str, Any], source: str):
        self.target = target
        self.table = table
        self.source = source
        content = json.dumps(table, sort_keys=True).encode()
        # Eight digits tell one file from another; the bits of results may depend on it.
        self.fingerprint = hashlib.sha256(content).hexdigest()[:8]
        self.measured_on: str | None = table.get("measured_on")
        try:
            self.chunk_tokens = int(table["chunk_tokens"])
            # The interpreter launches one by one, whatever the table says.
            self.dependent_launch = _dependent_launch(target, table) and self.waits
            self.latency_tokens = int(table.get("latency_tokens", _LATENCY_TOKENS))
            self.latency_chain = bool(table.get("latency_chain", False))
            self._linear = {
                name: _linear_rules(table.get(name, {})) for name in ("linear", "fastest")
            }
            self._attention = _attention_rules(table["attention"])
            self._rows = {
                (operation, kind): _make(RowSetting, table["rows"][operation][kind])
                for operation in ROW_OPERATIONS
                for kind in ("half", "fp32")
            }
            for kind in ("half", "fp32"):
                self._linear["linear"][kind, "*"], self._attention[kind, 64]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"launch settings in {source}: {error!r}") from error

    @property
    def waits(self) -> bool:
        """Whether kernels can be launched as dependents, and so must wait for what is before."""
        return self.target in _DEPENDENT_TARGETS and not interpreted()

    def __repr__(self) -> str:
        return f"<launch settings for {self.target} from {self.source}>"

    def linear(
        self,
        dtype: torch.dtype,
        tokens: int,
        out_features: int,
        in_features: int,
        deterministic: bool = True,
    ) -> LinearSetting:
        """For x [tokens, in_features] times a weight [out_features, in_features]."""
        kind = _kind(dtype)
        sections = ("linear",) if deterministic else ("fastest", "linear")
        for section in sections:
            table = self._linear[section]
            for key in (f"{out_features}x{in_features}", "*"):
                for limit, setting in table.get((kind, key), ()):
                    if limit is None or tokens <= limit:
                        return setting
        raise ValueError(
            f"launch settings in {self.source}: no rule for a linear layer of {tokens} tokens"
        )

    def attention(self, dtype: torch.dtype, head_dim: int, max_seqlen: int) -> AttentionSetting:
        """For sequences of at most `max_seqlen` tokens."""
        rules = self._attention.get((_kind(dtype), head_dim))
        if rules is None:
            known = sorted({dim for kind, dim in self._attention if kind == _kind(dtype)})
            raise ValueError(f"head_dim: got {head_dim}; allowed: {', '.join(map(str, known))}")
        for limit, setting in rules:
            if limit is None or max_seqlen <= limit:
                return setting
        raise ValueError(
            f"launch settings in {self.source}: no rule for attention over {max_seqlen} tokens"
        )

    def rows(self, operation: str, dtype: torch.dtype) -> RowSetting:
        """For one of ROW_OPERATIONS."""
        return self._rows[operation, _kind(dtype)]

    def all_linear(self) -> list[tuple[str, str, int | None, LinearSetting]]:
        """Every distinct Triton rule: kind, shape key, largest token count, setting."""
        return [
            (kind, key, limit, setting)
            for section in ("linear", "fastest")
            for (kind, key), rules in self._linear[section].items()
            for limit, setting in rules
            if setting.variant != "cublas"
        ]

    def all_attention(self) -> list[tuple[str, int, int | None, AttentionSetting]]:
        """Every rule: kind, head_dim, longest sequence, setting."""
        return [
            (kind, head_dim, limit, setting)
            for (kind, head_dim), rules in self._attention.items()
            for limit, setting in rules
        ]


def settings_for(device: torch.device) -> Settings:
    """The settings of a device; of an H100 where the kernels are only interpreted."""
    if device.type != "cuda":
        return load_settings("sm_90")
    return load_settings(target_of(torch.cuda.get_device_capability(device)))


def target_of(capability: tuple[int, int]) -> str:
    """The generation whose settings a GPU takes: its own, or the nearest that fits its memory.

    Raises:
        ValueError: a GPU older than compute capability 8.0.
    """
    major, minor = capability
    if major < 8:
        raise ValueError(
            f"this GPU has compute capability {major}.{minor}; the kernels need 8.0 or newer"
        )
    own = f"sm_{major}{minor}"
    if own in TARGETS:
        return own
    # Between the generations: 8.7 has the shared memory of 8.0; 12.x that of 8.9, and its
    # instructions; 10.x and 11.x those of 10.0.
    if major == 8:
        return "sm_80" if minor == 7 else "sm_89"
    if major == 9:
        return "sm_90"
    return "sm_100" if major < 12 else "sm_89"


def load_settings(target: str) -> Settings:
    """The settings for one of TARGETS, honouring FASTDISTIL_TUNING.

    Raises:
        ValueError: an unknown target, or a file with something wrong in it, which is named.
        FileNotFoundError: FASTDISTIL_TUNING names nothing that is there.
    """
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}; allowed: {', '.join(TARGETS)}")
    # Every call of an operation comes by here, so the file system is asked as little as can be.
    path = os.environ.get("FASTDISTIL_TUNING") or os.path.join(TUNING, f"{target}.json")
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            path = os.path.join(path, f"{target}.json")
            found = os.stat(path)
    except OSError as error:
        raise FileNotFoundError(f"FASTDISTIL_TUNING: {path} is not there") from error
    return _read(target, path, found.st_mtime_ns)


@cache
def _read(target: str, path: str, _changed: int) -> Settings:
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"launch settings in {path}: no JSON ({error})") from error
    return Settings(target, table, path)


def _kind(dtype: torch.dtype) -> str:
    return "fp32" if dtype == torch.float32 else "half"


def _dependent_launch(target: str, table: Mapping[str, Any]) -> bool:
    wanted = table.get("dependent_launch", False)
    if not isinstance(wanted, bool):
        raise TypeError(f"dependent_launch: got {wanted!r}; true or false is allowed")
    if wanted and target not in _DEPENDENT_TARGETS:
        raise TypeError(f"dependent_launch: {target} has none; false is allowed")
    return wanted


def _linear_rules(
    section: Mapping[str, Any],
) -> dict[tuple[str, str], list[tuple[int | None, LinearSetting]]]:
    return {
        (kind, key): [_rule(LinearSetting, rule, "max_tokens") for rule in rules]
        for kind, shapes in section.items()
        for key, rules in shapes.items()
    }


def _attention_rules(
    section: Mapping[str, Any],
) -> dict[tuple[str, int], list[tuple[int | None, AttentionSetting]]]:
    found = {}
    for kind, dims in section.items():
        for head_dim, entry in dims.items():
            rules = [
                _rule(AttentionSetting, {**rule, "key_block": entry["key_block"]}, "max_seqlen")
                for rule in entry["rules"]
            ]
            for limit, setting in rules:
                _check_slots(limit, setting)
            found[kind, int(head_dim)] = rules
    return found


def _check_slots(limit: int | None, setting: AttentionSetting) -> None:
    """Several heads to a tile: each must lie in its slot whole, and the tile in one key block."""
    if setting.slot == setting.block_q:
        return
    fits = limit is not None and limit <= setting.slot
    if not fits or setting.block_q % setting.slot or setting.block_q > setting.key_block:
        raise TypeError(f"slot {setting.slot} of block_q {setting.block_q} up to {limit} tokens")


def _rule(kind: Any, rule: Mapping[str, Any], limit: str) -> tuple[int | None, Any]:
    values = dict(rule)
    return values.pop(limit), _make(kind, values)


def _make(kind: Any, values: Mapping[str, Any]) -> Any:
    unknown = values.keys() - {field.name for field in fields(kind)}
    if unknown:
        raise TypeError(f"{kind.__name__} has no {', '.join(sorted(unknown))}")
    return kind(**values)
