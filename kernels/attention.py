"""Attention within each sequence of a packed batch, in one launch and without padding.

    qkv [T, 3, H, Dh], cu_seqlens [B + 1] -> out [T, H * Dh]

    for each sequence b and head h, with the rows cu_seqlens[b] <= t < cu_seqlens[b + 1]:
        out[t, h] = sum_s softmax_s(scale q[t, h] . k[s, h]) v[s, h]

A piece of work is (sequence, heads, block of queries): a tile of BLOCK_Q rows. Its program walks
over the keys in blocks of KEYS and keeps m, the largest score so far, l, the sum of
p = exp2(score - m), and acc, the sum of p v, all in float32; where m grows, l and acc shrink by
exp2(m_old - m_new). The last block of keys, the only one that may be partly empty, comes first:
the loop over the others then needs no mask, a sequence of one block needs no loop, and no row is
ever without a key.

Sentences are short. Where all are, a tile has room for several heads of one sequence, each in SLOT
rows: row r is token r % SLOT of head r // SLOT. The same goes for its keys, so one product gives
the scores of all pairs and those across heads are masked away. Heads share a tile, sequences never
do: what a neighbour holds, NaN included, cannot reach a sequence.

A grid has at most so many programs, each taking every so-manieth piece. So it is the same for any
number of sequences, which the kernel may read from the device: a CUDA graph replays for all.

Bits: those of a sequence depend on its own length alone, although the longest of the batch decides
which tile is taken. Sums over keys are products with the tensor cores: that of p v, and that of p
with a column of ones, which gives l from the very same rounded p. They add from the first key of a
block to its last, 32 bytes of p at a time, and the zeros of masked keys change nothing
wherever they stand. Rescaling happens between blocks of `key_block` keys, one setting for all.

Source: Dao, FlashAttention-2 (arXiv 2307.08691), algorithm 1, with Triton's tutorial 06 for its
form; Milakov and Gimelshein (arXiv 1805.02867) for the running maximum and sum.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import DTYPES, check_attention, check_tensor, score_scale
from .launch import Launch, check_runs, submit, wait_for_the_launch_before
from .settings import AttentionSetting, Settings, settings_for

# The narrowest product that tensor cores take: l comes 16 times over.
_ONES = tl.constexpr(16)

# Numbers of a float32 head that are multiplied at once. Their tf32 parts take three registers for
# one; all of a head's queries, kept for all keys, would take more registers than there are.
_FP32_PART = 32


@triton.jit
def load_heads(
    row_ptr,  # [tokens, 3, H, HEAD_DIM], at Q, K or V and at the tile's first token and head
    tokens,  # how many there are from that token on
    heads,  # likewise
    ROWS: tl.constexpr,
    SLOT: tl.constexpr,
    COLUMNS: tl.constexpr,  # HEAD_DIM or a part of it
    HEAD_DIM: tl.constexpr,
    STRIDE: tl.constexpr,  # 3 * H * HEAD_DIM
    MASKED: tl.constexpr,
):
    """A tile [ROWS, COLUMNS]: SLOT tokens of the first head, SLOT of the second and so on."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    offsets = (rows % SLOT) * STRIDE + (rows // SLOT) * HEAD_DIM
    pointers = row_ptr + offsets[:, None] + columns[None, :]
    if not MASKED:
        return tl.load(pointers)
    inside = rows % SLOT < tokens
    if SLOT < ROWS:
        inside = inside & (rows // SLOT < heads)
    return tl.load(pointers, mask=inside[:, None], other=0.0)


@triton.jit
def store_heads(
    row_ptr,  # [tokens, WIDTH], at the tile's first token and head
    y,  # [rows, HEAD_DIM]
    tokens,
    heads,
    SLOT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A tile back to where its tokens and heads belong."""
    rows = tl.arange(0, y.shape[0])
    columns = tl.arange(0, y.shape[1])
    offsets = (rows % SLOT) * WIDTH + (rows // SLOT) * y.shape[1]
    inside = (rows % SLOT < tokens) & (rows // SLOT < heads)
    y = y.to(row_ptr.dtype.element_ty)
    tl.store(row_ptr + offsets[:, None] + columns[None, :], y, mask=inside[:, None])


@triton.jit
def score(
    q,  # [BLOCK_Q, HEAD_DIM], or None: then it is fetched, in parts, at every call
    q_ptr,
    k_ptr,
    queries,
    keys,
    heads,
    head_dim,  # HEAD_DIM, for the loop: a bound known in advance gets it unrolled as a whole
    BLOCK_Q: tl.constexpr,
    SLOT: tl.constexpr,
    KEYS: tl.constexpr,
    KEY_SLOT: tl.constexpr,
    PART: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    STRIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Products of all queries with all keys of two tiles, [BLOCK_Q, KEYS] in float32."""
    if q is not None:
        k = load_heads(k_ptr, keys, heads, KEYS, KEY_SLOT, HEAD_DIM, HEAD_DIM, STRIDE, MASKED)
        return tl.dot(q, k.T, input_precision=PRECISION)
    scores = tl.zeros((BLOCK_Q, KEYS), dtype=tl.float32)
    for at in tl.range(0, head_dim, PART):
        part = load_heads(q_ptr + at, queries, heads, BLOCK_Q, SLOT, PART, HEAD_DIM, STRIDE, True)
        k = load_heads(k_ptr + at, keys, heads, KEYS, KEY_SLOT, PART, HEAD_DIM, STRIDE, MASKED)
        scores = tl.dot(part, k.T, scores, input_precision=PRECISION)
    return scores


@triton.jit
def hide(scores, tokens, SLOT: tl.constexpr):
    """The scores of keys that exist and belong to the query's head; -inf in place of others."""
    rows = tl.arange(0, scores.shape[0])
    keys = tl.arange(0, scores.shape[1])
    counts = (keys % SLOT < tokens)[None, :]
    if scores.shape[1] > SLOT:
        counts = counts & (rows[:, None] // SLOT == keys[None, :] // SLOT)
    return tl.where(counts, scores, float("-inf"))


@triton.jit
def weigh(scores, top, scale, v):
    """p = exp2(scale scores - top), as v's type."""
    # Spelled out, as the compiler may fuse the two or not, tile by tile: other bits.
    return tl.exp2(tl.fma(scores, scale, -top[:, None])).to(v.dtype)


@triton.jit(do_not_specialize=["sequences", "query_blocks", "scale", "head_dim"])
def varlen_attention_kernel(
    qkv_ptr,  # [T, 3, HEADS, HEAD_DIM]
    cu_seqlens_ptr,  # int32 [sequences + 1]
    num_sequences_ptr,  # int32 [1], how many of them count, or None for all
    out_ptr,  # [T, HEADS * HEAD_DIM]
    sequences,
    query_blocks,  # of the longest sequence
    scale,  # of the scores, times log2(e)
    head_dim,  # HEAD_DIM
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    SLOT: tl.constexpr,  # rows of a head; BLOCK_Q if the tile has one head
    KEYS: tl.constexpr,
    KEY_SLOT: tl.constexpr,  # likewise among the keys
    PART: tl.constexpr,  # numbers of a head that are multiplied at once; HEAD_DIM: all
    SINGLE: tl.constexpr,  # whether KEYS are enough for the longest sequence
    PRECISION: tl.constexpr,
    WAITS: tl.constexpr,
):
    wait_for_the_launch_before(WAITS)
    SHARED: tl.constexpr = BLOCK_Q // SLOT  # heads that share a tile
    WIDTH: tl.constexpr = HEADS * HEAD_DIM
    STRIDE: tl.constexpr = 3 * WIDTH
    if num_sequences_ptr is not None:
        sequences = tl.minimum(sequences, tl.load(num_sequences_ptr))
    pieces = sequences * tl.cdiv(HEADS, SHARED) * query_blocks
    ones = tl.full((KEYS, _ONES), 1.0, dtype=qkv_ptr.dtype.element_ty)
    for piece in tl.range(tl.program_id(0), pieces, tl.num_programs(0)):
        # Blocks of queries that read the same keys and values run side by side.
        first_query = piece % query_blocks * BLOCK_Q
        head = piece // query_blocks % tl.cdiv(HEADS, SHARED) * SHARED
        sequence = piece // query_blocks // tl.cdiv(HEADS, SHARED)
        start = tl.load(cu_seqlens_ptr + sequence)
        length = tl.load(cu_seqlens_ptr + sequence + 1) - start
        if first_query < length:
            first_row = qkv_ptr + start.to(tl.int64) * STRIDE + head * HEAD_DIM
            q_ptr = first_row + first_query.to(tl.int64) * STRIDE
            queries, heads = length - first_query, HEADS - head
            if PART == HEAD_DIM:
                q = load_heads(
                    q_ptr, queries, heads, BLOCK_Q, SLOT, HEAD_DIM, HEAD_DIM, STRIDE, True
                )
            else:
                q = None
            last = (length - 1) // KEYS * KEYS
            keys = length - last
            k_ptr = first_row + last.to(tl.int64) * STRIDE + WIDTH
            v = load_heads(
                k_ptr + WIDTH, keys, heads, KEYS, KEY_SLOT, HEAD_DIM, HEAD_DIM, STRIDE, True
            )
            # fmt: off
            scores = score(
                q, q_ptr, k_ptr, queries, keys, heads, head_dim,
                BLOCK_Q, SLOT, KEYS, KEY_SLOT, PART, HEAD_DIM, STRIDE, PRECISION, True,
            )
            # fmt: on
            scores = hide(scores, keys, KEY_SLOT)
            top = tl.max(scores, 1) * scale
            p = weigh(scores, top, scale, v)
            # acc before l: on Ampere the compiler lays out all products after the last of them,
            # which is as tall as it can be, so that no p has to move between warps.
            acc = tl.dot(p, v, input_precision=PRECISION)
            total = tl.dot(p, ones, input_precision=PRECISION)
            if not SINGLE:
                k_ptr = first_row + WIDTH
                for _ in tl.range(0, last, KEYS):
                    # fmt: off
                    scores = score(
                        q, q_ptr, k_ptr, queries, KEYS, heads, head_dim,
                        BLOCK_Q, SLOT, KEYS, KEY_SLOT, PART, HEAD_DIM, STRIDE, PRECISION, False,
                    )
                    # fmt: on
                    v = load_heads(
                        k_ptr + WIDTH, KEYS, 1, KEYS, KEY_SLOT, HEAD_DIM, HEAD_DIM, STRIDE, False
                    )
                    higher = tl.maximum(top, tl.max(scores, 1) * scale)
                    shrink = tl.exp2(top - higher)[:, None]
                    p = weigh(scores, higher, scale, v)
                    acc = tl.dot(p, v, acc * shrink, input_precision=PRECISION)
                    total = tl.dot(p, ones, total * shrink, input_precision=PRECISION)
                    top = higher
                    k_ptr += KEYS * STRIDE
            # All columns of l are equal: the largest is any of them.
            y = acc * (1.0 / tl.max(total, 1))[:, None]
            row = (start + first_query).to(tl.int64)
            y_ptr = out_ptr + row * WIDTH + head * HEAD_DIM
            store_heads(y_ptr, y, queries, heads, SLOT, WIDTH)


def attention_launch(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    out: Tensor,
    settings: Settings,
    scale: float | None = None,
    scale_folded: bool = False,
    num_sequences: Tensor | None = None,
) -> Launch:
    """The launch that writes the attention of each sequence over itself.

    Args:
        qkv: [T, 3, H, Dh]: queries, keys and values; bf16, fp16 or fp32, contiguous. Dh is one of
            those that `settings` knows.
        cu_seqlens: int32 [B + 1], where each sequence begins and, last, where the last one ends:
            rising from 0, to T at most. Empty sequences may be among them.
        max_seqlen: no sequence is longer; the results of longer ones are wrong.
        out: [T, H * Dh], in qkv's dtype; no part of qkv. Rows past the end of the last sequence
            stay as they are.
        settings: for the GPU that it will run on.
        scale: of the scores, above zero; None for 1 / sqrt(Dh).
        scale_folded: the queries carry scale * log2(e) already. Leaves no place for `scale`.
        num_sequences: int32 [1]: how many of the B sequences count, read when the kernel runs.
            None for all.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices or gaps that do not fit; a head_dim without settings; a scale
            that is no positive number, or one beside `scale_folded`.
    """
    cost = check_attention(qkv, cu_seqlens, max_seqlen, out, num_sequences)
    check_runs("qkv", qkv)
    tokens, _, heads, head_dim = qkv.shape
    sequences = cu_seqlens.numel() - 1
    setting = settings.attention(qkv.dtype, head_dim, max_seqlen)
    keys, key_slot = _key_tile(setting, max_seqlen)
    query_blocks = triton.cdiv(max_seqlen, setting.block_q)
    head_groups = triton.cdiv(heads, setting.block_q // setting.slot)
    pieces = sequences * head_groups * query_blocks if tokens else 0
    return Launch(
        name="varlen_attention",
        kernel=varlen_attention_kernel,
        grid=(_programs(pieces, setting.programs, query_blocks),),
        arguments={
            "qkv_ptr": qkv,
            "cu_seqlens_ptr": cu_seqlens,
            "num_sequences_ptr": num_sequences,
            "out_ptr": out,
            "sequences": sequences,
            "query_blocks": query_blocks,
            "scale": score_scale(head_dim, scale, scale_folded),
            "head_dim": head_dim,
        },
        constants={
            "HEADS": heads,
            "HEAD_DIM": head_dim,
            "BLOCK_Q": setting.block_q,
            "SLOT": setting.slot,
            "KEYS": keys,
            "KEY_SLOT": key_slot,
            "PART": min(head_dim, _FP32_PART) if qkv.dtype == torch.float32 else head_dim,
            "SINGLE": max_seqlen <= key_slot,
            "PRECISION": setting.precision if qkv.dtype == torch.float32 else "ieee",
            "WAITS": settings.waits,
        },
        num_warps=setting.num_warps,
        num_stages=setting.num_stages,
        flops=cost.flops,
        moved=cost.moved,
        tensor_cores=qkv.dtype != torch.float32 or setting.precision == "tf32x3",
        dependent=settings.dependent_launch,
    )


def _key_tile(setting: AttentionSetting, max_seqlen: int) -> tuple[int, int]:
    """Keys of a step, and how many of them belong to one head.

    Tiles of several heads hold the same tokens on both sides. Else no more keys are taken than the
    longest sequence may have, which leaves the sums as they are; see the top of this file.
    """
    if setting.slot < setting.block_q:
        return setting.block_q, setting.slot
    keys = setting.key_block
    if max_seqlen <= setting.block_q:
        keys = min(keys, setting.block_q)
    return keys, keys


def _programs(pieces: int, most: int, query_blocks: int) -> int:
    """How many programs share the work.

    Most sequences are shorter than the longest and leave their later blocks of queries empty. A
    number that shares no factor with `query_blocks` makes each program pass through all blocks.
    """
    if pieces <= most:
        return pieces
    return next(count for count in range(most, 0, -1) if math.gcd(count, query_blocks) == 1)


def varlen_attention(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    out: Tensor | None = None,
    scale: float | None = None,
    scale_folded: bool = False,
) -> Tensor:
    """softmax(scale Q K^T) V within each sequence.

    Args:
        qkv: [T, 3, H, Dh], bf16, fp16 or fp32, contiguous; Dh is 32, 64 or 128.
        cu_seqlens: int32 [B + 1], where each sequence begins and where the last one ends (T).
        max_seqlen: no sequence is longer.
        out: where the result goes, [T, H * Dh]. None allocates.
        scale: of the scores, above zero; None for 1 / sqrt(Dh).
        scale_folded: the queries carry scale * log2(e) already.

    Returns:
        [T, H * Dh], in qkv's dtype.

    Raises:
        TypeError, ValueError: as `attention_launch`.
    """
    if out is None:
        return _varlen_attention(qkv, cu_seqlens, max_seqlen, scale, scale_folded)
    _varlen_attention_out(qkv, cu_seqlens, max_seqlen, scale, scale_folded, out)
    return out


@torch.library.custom_op("fastdistil::varlen_attention", mutates_args=())
def _varlen_attention(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float | None, scale_folded: bool
) -> Tensor:
    out = _empty_result(qkv)
    _run(qkv, cu_seqlens, max_seqlen, scale, scale_folded, out)
    return out


@_varlen_attention.register_fake
def _(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, scale: float | None, scale_folded: bool
) -> Tensor:
    return _empty_result(qkv)


@torch.library.custom_op("fastdistil::varlen_attention_out", mutates_args=("out",))
def _varlen_attention_out(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
    scale_folded: bool,
    out: Tensor,
) -> None:
    _run(qkv, cu_seqlens, max_seqlen, scale, scale_folded, out)


@_varlen_attention_out.register_fake
def _(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
    scale_folded: bool,
    out: Tensor,
) -> None:
    return None


def _empty_result(qkv: Tensor) -> Tensor:
    check_tensor("qkv", qkv, (None, 3, None, None), DTYPES)
    return qkv.new_empty(qkv.shape[0], qkv.shape[2] * qkv.shape[3])


def _run(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    scale: float | None,
    scale_folded: bool,
    out: Tensor,
) -> None:
    settings = settings_for(qkv.device)
    launch = attention_launch(qkv, cu_seqlens, max_seqlen, out, settings, scale, scale_folded)
    submit(launch, qkv.device)


def varlen_attention_reference(
    qkv: Tensor, cu_seqlens: Tensor, scale: float | None = None, scale_folded: bool = False
) -> Tensor:
    """The definition: sequence by sequence, in float32 or in float64 where qkv is; rounded once."""
    if scale_folded:
        scale = math.log(2.0)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    out = qkv.new_zeros(qkv.shape[0], qkv.shape[2] * qkv.shape[3])
    bounds = cu_seqlens.tolist()
    for start, end in pairwise(bounds):
        # [tokens, 3, H, Dh] to three times [H, tokens, Dh]
        q, k, v = qkv[start:end].to(wide).permute(1, 2, 0, 3)
        scores = q @ k.transpose(1, 2) * (qkv.shape[3] ** -0.5 if scale is None else scale)
        context = torch.softmax(scores, dim=-1) @ v
        out[start:end] = context.transpose(0, 1).flatten(1).to(qkv.dtype)
    return out
