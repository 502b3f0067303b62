"""Embeddings in one pass: y = LayerNorm(words[id] + segments[segment] + positions[position]).

    input_ids [T], positions [T], segment_ids [T] or none,
    words [V, D], position table [P, D], segment table [S, D] or none -> y [T, D]

Three gathers, their sum in float32, and the LayerNorm of the sum while it is in registers
(Devlin et al., arXiv:1810.04805, section 3; DistilBERT has no segments). Rows are held as in
`layernorm.py`.

An id outside its table is read as the nearest row there is, never past the table's end, and noted:
the kernel sets a bit in `errors`, which somebody has to look at.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .checks import check_embed_layernorm, check_errors
from .launch import Launch, check_runs, submit, wait_for_the_launch_before
from .layernorm import (
    layernorm_reference,
    load_row_parts,
    normalize_row_parts,
    row_parts,
    store_row_parts,
    warps_for,
)
from .settings import Settings, settings_for


@triton.jit
def look_up(ids_ptr, tokens, exist, size, errors_ptr, BIT: tl.constexpr):
    """Row numbers of a table of `size` rows, whatever the ids say; BIT is set if one was wrong."""
    ids = tl.load(ids_ptr + tokens, mask=exist, other=0)
    wrong = (ids < 0) | (ids >= size)
    if tl.max(wrong.to(tl.int32), 0) > 0:
        tl.atomic_or(errors_ptr, BIT)
    return tl.minimum(tl.maximum(ids, 0), size - 1)


@triton.jit(
    do_not_specialize=["tokens", "word_rows", "position_rows", "segment_rows", "eps"],
    do_not_specialize_on_alignment=["input_ids_ptr", "positions_ptr", "segment_ids_ptr"],
)
def embed_layernorm_kernel(
    input_ids_ptr,  # int32 [tokens]
    positions_ptr,  # int32 [tokens]
    segment_ids_ptr,  # int32 [tokens], or None for row 0
    word_ptr,  # [word_rows, WIDTH]
    position_ptr,  # [position_rows, WIDTH]
    segment_ptr,  # [segment_rows, WIDTH] or None
    weight_ptr,  # [WIDTH]
    bias_ptr,  # [WIDTH]
    out_ptr,  # [tokens, WIDTH]
    errors_ptr,  # int32 [1]
    tokens,
    word_rows,
    position_rows,
    segment_rows,
    eps,
    WIDTH: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    ROWS: tl.constexpr,
    WAITS: tl.constexpr,
):
    wait_for_the_launch_before(WAITS)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exist = rows < tokens
    words = look_up(input_ids_ptr, rows, exist, word_rows, errors_ptr, 1)
    places = look_up(positions_ptr, rows, exist, position_rows, errors_ptr, 2)
    first, rest = load_row_parts(word_ptr, words, exist, WIDTH, FIRST, REST)
    # In the order of the definition: word, segment, position.
    if segment_ptr is not None:
        segments = tl.zeros((ROWS,), dtype=tl.int32)
        if segment_ids_ptr is not None:
            segments = look_up(segment_ids_ptr, rows, exist, segment_rows, errors_ptr, 4)
        more, others = load_row_parts(segment_ptr, segments, exist, WIDTH, FIRST, REST)
        first += more
        rest += others
    more, others = load_row_parts(position_ptr, places, exist, WIDTH, FIRST, REST)
    first += more
    rest += others
    first, rest = normalize_row_parts(first, rest, weight_ptr, bias_ptr, eps, WIDTH, FIRST, REST)
    store_row_parts(out_ptr, rows, exist, first, rest, WIDTH, FIRST, REST)


def embed_layernorm_launch(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out: Tensor,
    errors: Tensor,
    settings: Settings,
) -> Launch:
    """The launch that writes the embeddings.

    Args:
        input_ids, positions, segment_ids: int32 [T]; segment_ids may be None, for row 0.
        word: [V, D]; position: [P, D]; segment: [S, D], or None for no segment embeddings; bf16,
            fp16 or fp32, all of one dtype; D at most 8192.
        weight, bias: [D], in that dtype.
        eps: added to the variance.
        out: [T, D], in that dtype.
        errors: int32 [1]: bits WORD, POSITION and SEGMENT are set where an id is outside its table.
        settings: for the GPU that it will run on.

    Raises:
        TypeError: a dtype the kernel does not read, or dtypes that differ.
        ValueError: shapes, devices or gaps that do not fit; an empty table; segment ids without a
            segment table.
    """
    ids = (input_ids, positions, segment_ids)
    cost = check_embed_layernorm(*ids, word, position, segment, weight, bias, out, errors)
    check_runs("word", word)
    tokens, width = out.shape
    setting = settings.rows("embed_layernorm", word.dtype)
    return Launch(
        name="embed_layernorm",
        kernel=embed_layernorm_kernel,
        grid=(triton.cdiv(tokens, setting.rows),),
        arguments={
            "input_ids_ptr": input_ids,
            "positions_ptr": positions,
            "segment_ids_ptr": segment_ids,
            "word_ptr": word,
            "position_ptr": position,
            "segment_ptr": segment,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "out_ptr": out,
            "errors_ptr": errors,
            "tokens": tokens,
            "word_rows": word.shape[0],
            "position_rows": position.shape[0],
            "segment_rows": 0 if segment is None else segment.shape[0],
            "eps": eps,
        },
        constants={**row_parts(width), "ROWS": setting.rows, "WAITS": settings.waits},
        num_warps=warps_for(setting, width),
        num_stages=1,
        flops=cost.flops,
        moved=cost.moved,
        dependent=settings.dependent_launch,
    )


def embed_layernorm(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    errors: Tensor | None = None,
) -> Tensor:
    """LayerNorm of the sum of the embeddings.

    Args:
        input_ids, positions, segment_ids: int32 [T]; segment_ids may be None, for row 0.
        word: [V, D]; position: [P, D]; segment: [S, D], or None for no segment embeddings.
        weight, bias: [D], in the tables' dtype.
        eps: added to the variance.
        errors: int32 [1], where bits are set for ids outside their tables (WORD, POSITION,
            SEGMENT); the caller looks at it when it likes. None: this call looks, which waits for
            the GPU.

    Returns:
        [T, D], in the tables' dtype.

    Raises:
        TypeError, ValueError: as `embed_layernorm_launch`; without `errors`, also a ValueError for
            an id outside its table.
    """
    operands = (input_ids, positions, segment_ids, word, position, segment, weight, bias, eps)
    if errors is not None:
        return _embed_layernorm(*operands, errors)
    errors = torch.zeros(1, dtype=torch.int32, device=word.device)
    out = _embed_layernorm(*operands, errors)
    check_errors(errors, word, position, segment)
    return out


@torch.library.custom_op("fastdistil::embed_layernorm", mutates_args=("errors",))
def _embed_layernorm(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    errors: Tensor,
) -> Tensor:
    out = word.new_empty(input_ids.shape[0], word.shape[1])
    launch = embed_layernorm_launch(
        input_ids,
        positions,
        segment_ids,
        word,
        position,
        segment,
        weight,
        bias,
        eps,
        out,
        errors,
        settings_for(word.device),
    )
    submit(launch, word.device)
    return out


@_embed_layernorm.register_fake
def _(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    errors: Tensor,
) -> Tensor:
    return word.new_empty(input_ids.shape[0], word.shape[1])


def embed_layernorm_reference(
    input_ids: Tensor,
    positions: Tensor,
    segment_ids: Tensor | None,
    word: Tensor,
    position: Tensor,
    segment: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """The definition: in float32, or in float64 where the tables are, and rounded once."""
    wide = torch.promote_types(word.dtype, torch.float32)
    total = word[input_ids.long()].to(wide)
    if segment is not None:
        ids = torch.zeros_like(input_ids) if segment_ids is None else segment_ids
        total = total + segment[ids.long()].to(wide)
    total = total + position[positions.long()].to(wide)
    return layernorm_reference(total, weight, bias, eps).to(word.dtype)
