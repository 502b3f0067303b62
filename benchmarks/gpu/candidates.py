"""The launch settings that tuning tries: few enough to compile them all within minutes.

What cannot fit is left out here; what does not compile or win is found out by trying.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fastdistil.kernels.settings import AttentionSetting, LinearSetting, RowSetting

# Bytes of shared memory that a block can have (CUDA programming guide, less the system's 1 KB).
_SHARED = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448}
# Generations with tensor memory access.
_DESCRIPTORS = ("sm_90", "sm_100")
_MOST_REGISTERS = 255

# (block_m, block_n, block_k, num_warps, num_stages)
Tile = tuple[int, int, int, int, int]

_LARGE: tuple[Tile, ...] = (
    (128, 128, 64, 8, 3),
    (128, 128, 64, 8, 4),
    (128, 128, 64, 4, 3),
    (128, 256, 64, 8, 3),
    (256, 128, 64, 8, 3),
    (64, 256, 64, 8, 3),
    (128, 128, 128, 8, 2),
    (128, 64, 64, 4, 4),
    (64, 128, 64, 4, 4),
    (128, 128, 32, 8, 5),
)
_MEDIUM: tuple[Tile, ...] = (
    (128, 128, 64, 8, 3),
    (128, 64, 64, 8, 4),
    (128, 64, 64, 4, 4),
    (64, 128, 64, 4, 4),
    (64, 64, 64, 4, 4),
    (64, 64, 64, 4, 6),
    (64, 64, 128, 4, 3),
    (64, 32, 64, 4, 6),
    (64, 32, 128, 4, 4),
)
_SMALL: tuple[Tile, ...] = (
    (64, 64, 64, 4, 5),
    (64, 64, 128, 4, 4),
    (64, 32, 64, 4, 6),
    (64, 32, 128, 4, 4),
    (64, 16, 64, 4, 6),
    (64, 16, 128, 4, 4),
    (64, 16, 256, 4, 3),
    (32, 32, 128, 4, 4),
    (16, 64, 64, 4, 6),
    (16, 64, 128, 4, 4),
    (16, 32, 128, 4, 5),
    (16, 32, 256, 4, 3),
    (16, 16, 256, 2, 4),
)
_FP32_LARGE: tuple[Tile, ...] = (
    (64, 64, 32, 4, 3),
    (64, 64, 32, 4, 4),
    (128, 64, 32, 4, 3),
    (128, 64, 32, 8, 3),
    (64, 128, 32, 8, 3),
    (128, 128, 32, 8, 3),
)
_FP32_SMALL: tuple[Tile, ...] = (
    (64, 64, 32, 4, 4),
    (64, 32, 32, 4, 4),
    (64, 16, 32, 4, 5),
    (32, 32, 32, 4, 4),
    (16, 32, 32, 4, 5),
)

# (block_q, num_warps, num_stages)
_QUERY_TILES = ((64, 4, 1), (64, 4, 2), (64, 4, 3), (128, 8, 2), (128, 8, 1), (128, 4, 2))
# (rows, num_warps)
_ROWS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (2, 4), (2, 8), (4, 4), (4, 8), (8, 8))


def linear(
    target: str, kind: str, tokens: int, processors: int, incumbent: LinearSetting
) -> list[LinearSetting]:
    """Settings to try for a linear layer, cuBLAS last.

    Args:
        target: the GPU generation.
        kind: "half" or "fp32".
        tokens: rows of the input.
        processors: multiprocessors of the GPU: what runs persistently takes a multiple of them.
        incumbent: what holds now; its float32 precision is kept.
    """
    variants = ("descriptor", "pointer") if target in _DESCRIPTORS else ("pointer",)
    found = [
        replace(setting, precision=incumbent.precision)
        for tile in _tiles(kind, tokens)
        for variant in variants
        for setting in _placements(tile, variant, tokens, processors)
        if _fits(target, kind, tile)
    ]
    return [s for s in dict.fromkeys([*found, LinearSetting("cublas")]) if s != incumbent]


def attention(
    target: str, kind: str, head_dim: int, length: int, processors: int, incumbent: AttentionSetting
) -> list[AttentionSetting]:
    """Settings to try for sequences of up to `length` tokens: with the present key block first."""
    key_blocks = dict.fromkeys([incumbent.key_block, *((64, 128) if kind == "half" else (32, 64))])
    found = [
        AttentionSetting(key_block, *tile, precision=incumbent.precision)
        for key_block in key_blocks
        for tile in _query_tiles(length, key_block, head_dim, processors)
        if kind == "half" or tile[0] * head_dim <= 64 * 64
    ]
    return [setting for setting in dict.fromkeys(found) if setting != incumbent]


def rows(incumbent: RowSetting) -> list[RowSetting]:
    """Settings to try for an operation that goes by rows."""
    return [s for s in (RowSetting(*pair) for pair in _ROWS) if s != incumbent]


def _tiles(kind: str, tokens: int) -> tuple[Tile, ...]:
    if kind == "fp32":
        return _FP32_LARGE if tokens >= 1024 else _FP32_SMALL
    if tokens >= 4096:
        return _LARGE
    return _MEDIUM if tokens >= 256 else _SMALL


def _placements(tile: Tile, variant: str, tokens: int, processors: int) -> Iterator[LinearSetting]:
    """One program a tile; and for many tiles, persistent programs and other orders."""
    m, n, k, warps, stages = tile
    setting = LinearSetting(variant, m, n, k, group_m=8, num_warps=warps, num_stages=stages)
    yield setting
    if tokens < 1024 or m * n < 128 * 64:
        return
    yield replace(setting, programs=processors)
    if m * n <= 128 * 128:
        yield replace(setting, programs=2 * processors)
    if variant == "descriptor" and m * n >= 128 * 128:
        yield replace(setting, group_m=16)
        yield replace(setting, group_m=4, programs=processors)


def _fits(target: str, kind: str, tile: Tile) -> bool:
    """Operands within shared memory, accumulators in registers, rows enough for the instruction.

    From Hopper on the tensor cores' own instruction takes 64 rows; narrower tiles would run on an
    older generation's, whose bits may differ.
    """
    m, n, k, warps, stages = tile
    if m < 64 and target in _DESCRIPTORS:
        return False
    bytes_each = 4 if kind == "fp32" else 2
    shared = stages * (m + n) * k * bytes_each
    return shared <= _SHARED[target] and m * n // (32 * warps) <= _MOST_REGISTERS


def _query_tiles(
    length: int, key_block: int, head_dim: int, processors: int
) -> Iterator[tuple[int, int, int, int, int]]:
    """(block_q, slot, programs, num_warps, num_stages)."""
    for block_q, warps, stages in _QUERY_TILES:
        if length <= 64 and stages > 2:
            continue
        for slot in _slots(block_q, length, key_block):
            for waves in (8, 16, 32):
                yield block_q, slot, waves * processors, warps, stages


def _slots(block_q: int, length: int, key_block: int) -> Iterator[int]:
    """One head a tile; or, where a sequence is short, several."""
    if block_q <= max(64, length):
        yield block_q
    slot = max(length, 16)
    if slot < block_q <= key_block:
        yield slot
