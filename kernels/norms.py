"""What the quantized norms share: moments from integer sums, and the last two roundings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.target import Isa, Target
from refquant.ir.types import DType, qint32
from refquant.kernels import rounding
from refquant.kernels.jit import fma, jit
from refquant.kernels.pointwise import quantize_body
from refquant.kernels.rounding_jit import quantize

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Squares = Callable[[Array, Target], F32]

# These loops are compiled for AVX2 also where AVX512 is present.
VECTOR_WIDTH = 32
LANES = 8


def multiply_add(a: F32, b: F32, c: F32, target: Target) -> F32:
    """Return ``a * b + c``, contracted where torch's build contracts."""
    return rounding.fma(a, b, c) if target.fused_multiply_add else a * b + c


def moments(
    total: Array,
    squares: Array,
    count: int,
    scale: float,
    zero_point: int,
    eps: float,
    target: Target,
) -> tuple[F32, F32]:
    """Return mean and scaled reciprocal deviation of groups, from sums of q and of q squared.

    The mean is in quantized steps, as a distance from the zero point; the deviation is such that
    ``(q - zero_point - mean) * result`` is normalised. ``eps`` is added, and the root and the
    quotient are taken, in float64.
    """
    n, s = np.float32(count), np.float32(scale)
    raw_mean = total.astype(np.float32) / n
    mean = raw_mean - np.float32(zero_point)
    variance = multiply_add(-raw_mean, raw_mean, squares.astype(np.float32) / n, target)
    variance = np.maximum(variance, np.float32(0))
    real = (variance * s * s).astype(np.float64)
    return mean, (np.float64(s) / np.sqrt(real + eps)).astype(np.float32)


def quantize_split(
    x: F32, in_body: Array, scale: float, zero_point: int, dtype: DType, target: Target
) -> Array:
    """Quantize with the rule of the body where ``in_body``, otherwise with that of the tail."""
    body = quantize_body(x, scale, zero_point, dtype, target)
    tail = rounding.quantize_before(x, scale, zero_point, dtype)
    return np.where(in_body, body, tail)


def _lanes(target: Target) -> int:
    return 0 if target.isa is Isa.DEFAULT else LANES


def sums(q: Array, dtype: DType, target: Target, squares: Squares) -> tuple[Array, Array]:
    """Sum integers and their squares over the last dimension; squares of qint32 in float32."""
    if dtype == qint32:
        return q.sum(axis=-1), squares(q, target)
    return q.sum(axis=-1), (q * q).sum(axis=-1)


def float_squares(q: Array, target: Target) -> F32:
    """Sum squares over the last dimension in float32, in eight columns first.

    Examples
    --------
    >>> float_squares(np.array([[4096, 1, 0, 0, 0, 0, 0, 0, 1]]), Target())
    array([1.6777216e+07], dtype=float32)
    """
    x = q.astype(np.float32)
    lanes = _lanes(target)
    body = q.shape[-1] // LANES * lanes
    columns = np.zeros((*q.shape[:-1], lanes), np.float32)
    for begin in range(0, body, LANES):
        part = x[..., begin : begin + LANES]
        columns = multiply_add(part, part, columns, target)
    total = np.zeros(q.shape[:-1], np.float32)
    for lane in range(lanes):
        total = total + columns[..., lane]
    for i in range(body, q.shape[-1]):
        total = multiply_add(x[..., i], x[..., i], total, target)
    return total


@jit
def multiply_add_one(a: np.float32, b: np.float32, c: np.float32, fused: bool) -> Any:
    """Return ``a * b + c`` of one element."""
    if fused:
        return fma(a, b, c)
    return np.float32(np.float32(a * b) + c)


@jit
def _fill_squares(rows: Array, lanes: int, fused: bool, out: F32) -> None:
    columns = np.empty(LANES, np.float32)
    for r in range(rows.shape[0]):
        columns[:] = 0
        body = rows.shape[1] // LANES * lanes
        for i in range(body):
            x = np.float32(rows[r, i])
            columns[i % LANES] = multiply_add_one(x, x, columns[i % LANES], fused)
        total = np.float32(0)
        for lane in range(lanes):
            total = np.float32(total + columns[lane])
        for i in range(body, rows.shape[1]):
            x = np.float32(rows[r, i])
            total = multiply_add_one(x, x, total, fused)
        out[r] = total


def float_squares_compiled(q: Array, target: Target) -> F32:
    """Compute :func:`float_squares`, compiled."""
    out = np.empty(q.shape[:-1], np.float32)
    rows = np.ascontiguousarray(q).reshape(-1, q.shape[-1])
    _fill_squares(rows, _lanes(target), target.fused_multiply_add, out.reshape(-1))
    return out


@jit
def moments_one(
    total: np.float32,
    squares: np.float32,
    count: int,
    scale: np.float32,
    zero_point: int,
    eps: float,
    fused: bool,
) -> Any:
    """Return :func:`moments` of one group."""
    n = np.float32(count)
    raw_mean = np.float32(total / n)
    mean = np.float32(raw_mean - np.float32(zero_point))
    square = np.float32(squares / n)
    variance = multiply_add_one(np.float32(-raw_mean), raw_mean, square, fused)
    variance = max(variance, np.float32(0))
    real = np.float64(np.float32(np.float32(variance * scale) * scale))
    return mean, np.float32(np.float64(scale) / np.sqrt(real + eps))


@jit
def quantize_one(
    x: np.float32,
    is_body: bool,
    inverse: np.float32,
    zero_point: int,
    low: int,
    high: int,
    body_rule: int,
) -> Any:
    """Quantize one element with the rule of the body or with that of the tail (BEFORE)."""
    return quantize(x, inverse, zero_point, low, high, body_rule if is_body else 1)


@jit
def sum_and_squares(q: Any) -> Any:
    """Return the exact sums of a row of bytes and of their squares, by a loop that vectorises."""
    total, squares = np.int64(0), np.int64(0)
    for begin in range(0, q.size, 1 << 14):  # as much as int32 holds
        part = q[begin : begin + (1 << 14)]
        a, b = np.int32(0), np.int32(0)
        for i in range(part.size):
            value = np.int32(part[i])
            a = np.int32(a + value)
            b = np.int32(b + np.int32(value * value))
        total += np.int64(a)
        squares += np.int64(b)
    return total, squares


@jit
def are_moderate(x: F32) -> bool:
    """Whether products with 8-bit distances and scales stay finite."""
    moderate = True
    for i in range(x.size):
        moderate = moderate and abs(x[i]) < 1e15
    return moderate
