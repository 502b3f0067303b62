"""bf16 as it is on hardware, in Triton's interpreter.

The interpreter (3.6.0 to 3.9.0) keeps bf16 as uint16 and computes with those bits: a product of
bf16 tiles is silently garbage, and float32 is cut off where hardware rounds to nearest even.
`repair_bf16` teaches it; call it once, before a kernel runs, with TRITON_INTERPRET=1 set before
triton was first imported. `tests/gpu_kernels/test_interpreter.py` is the canary that it works.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter


def repair_bf16() -> None:
    """Make dot, arithmetic and casts of bf16 right in this process; a second call does nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "fastdistil_bf16", False):
        return
    builder.create_dot = _repaired_dot(builder.create_dot)
    builder.cast_impl = _repaired_cast(builder.cast_impl)
    builder.binary_op = _repaired_binary(builder.binary_op)
    builder.unary_op = _repaired_unary(builder.unary_op)
    # A constant; 3.6.0 has none of that type.
    builder.get_bf16 = lambda _, value: _rounded(np.array([value], np.float32))
    builder.fastdistil_bf16 = True


def _is_bf16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def _widened(handle: Any) -> Any:
    """The same numbers in float32; handles of other types as they are."""
    if not _is_bf16(handle):
        return handle
    bits = handle.data.astype(np.uint32) << 16
    return interpreter.TensorHandle(bits.view(np.float32), tl.float32)


def _rounded(values: NDArray[Any]) -> Any:
    """float32 to bf16, to nearest even; NaN stays NaN."""
    exact = np.ascontiguousarray(values, dtype=np.float32)
    bits = exact.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return interpreter.TensorHandle(
        np.where(np.isnan(exact), np.uint16(0x7FC0), rounded), tl.bfloat16
    )


def _repaired_dot(theirs: Any) -> Any:
    def create_dot(self: Any, a: Any, b: Any, accumulator: Any, *rest: Any) -> Any:
        return theirs(self, _widened(a), _widened(b), accumulator, *rest)

    return create_dot


def _repaired_cast(theirs: Any) -> Any:
    def cast_impl(self: Any, source: Any, wanted: Any) -> Any:
        target = wanted.scalar
        if target == tl.bfloat16:
            return source if _is_bf16(source) else _rounded(source.data.astype(np.float32))
        wide = _widened(source)
        return wide if _is_bf16(source) and target == tl.float32 else theirs(self, wide, wanted)

    return cast_impl


def _repaired_binary(theirs: Any) -> Any:
    def binary_op(self: Any, left: Any, right: Any, operation: Any) -> Any:
        if not (_is_bf16(left) and _is_bf16(right)):
            return theirs(self, left, right, operation)
        result = operation(_widened(left).data, _widened(right).data)
        if result.dtype == np.bool_:
            return interpreter.TensorHandle(result, tl.int1)
        return _rounded(result)

    return binary_op


def _repaired_unary(theirs: Any) -> Any:
    def unary_op(self: Any, operand: Any, operation: Any) -> Any:
        if not _is_bf16(operand):
            return theirs(self, operand, operation)
        return _rounded(operation(_widened(operand).data))

    return unary_op


@contextmanager
def sequential_dots() -> Iterator[None]:
    """Within this, products are summed one by one along K: in one order whatever the tile.

    So hardware does it as well, in steps of an instruction's depth. The interpreter leaves products
    to numpy, whose order depends on the tile's shape. Slow.
    """
    builder = interpreter.InterpreterBuilder
    theirs = builder.create_dot
    builder.create_dot = _sequential_dot
    try:
        yield
    finally:
        builder.create_dot = theirs


def _sequential_dot(self: Any, a: Any, b: Any, accumulator: Any, *_: Any) -> Any:
    left, right = (_widened(operand).data.astype(np.float32) for operand in (a, b))
    total = accumulator.data.astype(np.float32)
    for k in range(left.shape[-1]):
        total = total + left[..., :, k, None] * right[..., k, None, :]
    return interpreter.TensorHandle(total, accumulator.dtype.scalar)
