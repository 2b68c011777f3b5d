"""Exact sums of products of matrices of bytes, less their zero points."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.types import Shape, TensorType, format_shape
from refquant.kernels import checks
from refquant.kernels.multiply import matrix_product
from refquant.kernels.onnx.kept import KeptArray, packed, unsigned
from refquant.kernels.packing import Lanes, Layout, PackedWeight
from refquant.kernels.requantize import UNREAD

Array = npt.NDArray[Any]
Int32 = npt.NDArray[np.int32]
# Products of two differences of bytes, of which float32 holds so many exactly.
CHUNK = 2**24 // 255**2


def row_zero(zero_point: Array | None, matrix: Array) -> Array:
    """Return the zero points of rows, one for all or one for each; ``matrix`` is the operand."""
    if zero_point is None:
        return np.zeros((), np.int32)
    zero = np.asarray(zero_point).astype(np.int32)
    if zero.size == 1:
        return zero.reshape(())
    return zero[:, None] if zero.ndim == 1 and matrix.ndim > 1 else zero


def column_zero(zero_point: Array | None) -> Array:
    """Return the zero points of columns, one for all or one for each."""
    if zero_point is None:
        return np.zeros((), np.int32)
    zero = np.asarray(zero_point).astype(np.int32)
    return zero.reshape(()) if zero.size == 1 else zero


def sums(a: Array, a_zero: Array, b: Array, b_zero: Array) -> Int32:
    """Return the product of differences, which float64 holds exactly; it wraps to int32.

    Examples
    --------
    >>> sums(np.uint8([[1, 2]]), np.int32(1), np.int8([[3], [4]]), np.int32(0))
    array([[4]], dtype=int32)
    """
    left = a.astype(np.float64) - a_zero
    right = np.asarray(b).astype(np.float64) - b_zero
    return np.asarray(np.matmul(left, right)).astype(np.int64).astype(np.int32)


def is_tiled(a: Array, a_zero: Array, b: Array) -> bool:
    """Whether the second matrix is a constant that the tiles can have packed."""
    constant = isinstance(b, KeptArray) and b.ndim == 2 and b.size > 0
    return constant and a.size > 0 and a_zero.ndim == 0


def packed_matrix(b: Array, b_zero: Array, b_scale: Any = 1.0) -> PackedWeight:
    """Return the constant matrix in the layout of the tiles."""
    return packed(b, b_zero, b_scale, Layout(), matrix=True)


def rows_of(a: Array, a_zero: Array) -> tuple[Array, int]:
    """Return the first operand as rows of uint8, and their zero point."""
    return unsigned(np.ascontiguousarray(a).reshape(-1, a.shape[-1]), int(a_zero))


def tiled(rows: Array, weight: PackedWeight, lanes: Lanes, form: str, dtype: Any) -> Array:
    """Multiply rows by a packed matrix; ``form`` says what is stored."""
    y = np.empty((len(rows), weight.sums.size), dtype)
    whole = UNREAD
    matrix_product(rows, weight, lanes, form, whole, y)
    return y


def fast_sums(a: Array, a_zero: Array, b: Array, b_zero: Array) -> Int32:
    """Compute :func:`sums` with the compiled tile or in float32, which is exact in pieces."""
    if is_tiled(a, a_zero, b):
        weight = packed_matrix(b, b_zero)
        rows, zero = rows_of(a, a_zero)
        lanes = weight.lanes_of_zero_point(zero)
        return tiled(rows, weight, lanes, "sum", np.int32).reshape(*a.shape[:-1], -1)
    left = a.astype(np.float32) - a_zero.astype(np.float32)
    right = np.asarray(b).astype(np.float32) - b_zero.astype(np.float32)
    depth = left.shape[-1]
    if depth <= CHUNK:
        return np.asarray(np.matmul(left, right)).astype(np.int32)
    total: Any = np.int64(0)
    for k in range(0, depth, CHUNK):
        piece = right[k : k + CHUNK] if right.ndim == 1 else right[..., k : k + CHUNK, :]
        total = total + np.matmul(left[..., k : k + CHUNK], piece).astype(np.int64)
    return np.asarray(total).astype(np.int32)


# ---- checks


def product_shape(op: str, a: Shape, b: Shape) -> Shape:
    """Return the shape of ``matmul``, whose matrices broadcast."""
    if not a or not b:
        raise VerifyError(f"{op}: operands must have rank >= 1, got {len(a)} and {len(b)}")
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if left[-1] != right[-2]:
        raise VerifyError(
            f"{op}: {format_shape(a)} and {format_shape(b)} differ in the length of the sum"
        )
    batch = checks.broadcast(op, left[:-2], right[:-2])
    rows = () if len(a) == 1 else (left[-2],)
    columns = () if len(b) == 1 else (right[-1],)
    return (*batch, *rows, *columns)


def check_row_parameter(op: str, x: TensorType | None, a: Shape, operand: str) -> None:
    """Check a parameter of the first operand: one for all rows, or one for each."""
    if x is None or x.shape in ((), (1,)):
        return
    each = (*a[:-1], 1)
    if x.shape not in (each, a[-2:-1] if len(a) == 2 else each):
        raise VerifyError(
            f"{op}: {operand} must hold one element or be {format_shape(each)}, one for each "
            f"row, got {format_shape(x.shape)}"
        )


def check_column_parameter(op: str, x: TensorType | None, b: Shape, operand: str) -> None:
    """Check a parameter of the second operand: one for all columns, or one for each."""
    if x is None or x.shape in ((), (1,)):
        return
    each = (*b[:-2], 1, b[-1])
    if x.shape not in (each, b[-1:]):
        raise VerifyError(
            f"{op}: {operand} must hold one element or be {format_shape(each)}, one for each "
            f"column, got {format_shape(x.shape)}"
        )
