"""Compiled loops of ``softmax.py``: along rows or columns, of float32 or, by tables, of bytes."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.types import DType
from refquant.kernels import elementary_jit, rounding
from refquant.kernels.jit import jit
from refquant.kernels.rounding_jit import narrow_fused

F32 = npt.NDArray[np.float32]


@jit
def _total_of_lanes(sums: F32, plain: bool, length: int) -> Any:
    lanes = sums.size
    total = sums[0]
    if plain or length < lanes:
        for lane in range(1, min(lanes, length)):
            total += sums[lane]
        return total
    half = lanes // 2
    while half >= 1:
        for lane in range(half):
            sums[lane] += sums[lane + half]
        half //= 2
    return sums[0]


@jit
def float_rows(x: F32, lanes: int, plain: bool, y: F32) -> None:
    """Fill ``y`` with the softmax of each row; ``plain`` takes glibc's ``expf``."""
    length = x.shape[1]
    sums = np.empty(lanes, np.float32)
    for i in range(x.shape[0]):
        largest = x[i].max()
        for j in range(length):
            shifted = np.float32(x[i, j] - largest)
            if plain:
                y[i, j] = elementary_jit.exp_glibc(shifted)
            else:
                y[i, j] = elementary_jit.exp_sleef(shifted)
        sums[:] = np.float32(0)
        for j in range(length):
            sums[j % lanes] += y[i, j]
        total = _total_of_lanes(sums, plain, length)
        factor = np.float32(np.float32(1) / total)
        for j in range(length):
            y[i, j] = np.float32(y[i, j] * factor)


@jit
def float_columns(x: F32, in_vectors: Any, y: F32) -> None:
    """Fill ``y`` with the softmax along the middle dimension; SLEEF's exp where ``in_vectors``."""
    for n in range(x.shape[0]):
        for c in range(x.shape[2]):
            largest = x[n, :, c].max()
            total = np.float32(0)
            for k in range(x.shape[1]):
                shifted = np.float32(x[n, k, c] - largest)
                if in_vectors[n, c]:
                    y[n, k, c] = elementary_jit.exp_sleef(shifted)
                else:
                    y[n, k, c] = elementary_jit.exp_glibc(shifted)
                total += y[n, k, c]
            for k in range(x.shape[1]):
                y[n, k, c] = np.float32(y[n, k, c] / total)


class Exponentials(NamedTuple):
    """``exp`` of the distance of each 8-bit value from each largest one, where ever needed.

    Parameters
    ----------
    real : float32, 256
        What the values stand for, by their bytes.
    sleef, glibc : float32, 256 x 256
        By the largest value and the value.
    known : bool, 2 x 256
        Which rows of the two tables are filled.
    """

    real: F32
    sleef: F32
    glibc: F32
    known: npt.NDArray[np.bool_]


@lru_cache(maxsize=16)
def exponentials(scale: float, zero_point: int, dtype: DType) -> Exponentials:
    """Return the tables of a dtype and its parameters; the loops fill rows as they meet them."""
    every = np.arange(256, dtype=np.uint8).view(dtype.storage)
    real = rounding.dequantize_plain(every, scale, zero_point)
    sleef, glibc = np.empty((2, 256, 256), np.float32)
    return Exponentials(real, sleef, glibc, np.zeros((2, 256), np.bool_))


@jit
def _know(top: int, plain: bool, real: F32, sleef: F32, glibc: F32, known: Any) -> None:
    """Fill the row of a largest value."""
    kind = 1 if plain else 0
    if known[kind, top]:
        return
    for i in range(256):
        shifted = np.float32(real[i] - real[top])
        if shifted > 0:  # larger than the largest
            continue
        if plain:
            glibc[top, i] = elementary_jit.exp_glibc(shifted)
        else:
            sleef[top, i] = elementary_jit.exp_sleef(shifted)
    known[kind, top] = True


@jit
def byte_rows(
    q: Any,
    flip: int,
    real: F32,
    sleef: F32,
    glibc: F32,
    known: Any,
    lanes: int,
    plain: bool,
    inverse: np.float32,
    zero_point: np.float32,
    low: np.float32,
    high: np.float32,
    y: Any,
) -> None:
    """Compute :func:`float_rows` of bytes, which with ``flip`` added to them sort as numbers."""
    length = q.shape[1]
    sums = np.empty(lanes, np.float32)
    e = np.empty(length, np.float32)
    for i in range(q.shape[0]):
        row, into = q[i], y[i]
        best = np.uint8(0)
        for j in range(length):
            value = np.uint8(row[j] ^ np.uint8(flip))
            best = value if value > best else best
        top = int(best) ^ flip
        _know(top, plain, real, sleef, glibc, known)
        table = glibc[top] if plain else sleef[top]
        for j in range(length):
            e[j] = table[row[j]]
        sums[:] = np.float32(0)
        whole = length // lanes * lanes
        for first in range(0, whole, lanes):
            part = e[first : first + lanes]
            for lane in range(lanes):
                sums[lane] += part[lane]
        for j in range(whole, length):
            sums[j - whole] += e[j]
        total = _total_of_lanes(sums, plain, length)
        factor = np.float32(np.float32(1) / total)
        for j in range(length):
            into[j] = narrow_fused(np.float32(e[j] * factor), inverse, zero_point, low, high)


@jit
def byte_columns(
    q: Any,
    flip: int,
    real: F32,
    sleef: F32,
    glibc: F32,
    known: Any,
    in_vectors: Any,
    inverse: np.float32,
    zero_point: np.float32,
    low: np.float32,
    high: np.float32,
    y: Any,
) -> None:
    """Compute :func:`float_columns` of bytes."""
    depth, inner = q.shape[1], q.shape[2]
    best = np.empty(inner, np.uint8)
    total = np.empty(inner, np.float32)
    e = np.empty((depth, inner), np.float32)
    for n in range(q.shape[0]):
        best[:] = 0
        for k in range(depth):
            row = q[n, k]
            for c in range(inner):
                value = np.uint8(row[c] ^ np.uint8(flip))
                best[c] = value if value > best[c] else best[c]
        for c in range(inner):
            best[c] = np.uint8(best[c] ^ np.uint8(flip))
            _know(best[c], not in_vectors[n, c], real, sleef, glibc, known)
        total[:] = np.float32(0)
        for k in range(depth):
            row, values = q[n, k], e[k]
            for c in range(inner):
                if in_vectors[n, c]:
                    values[c] = sleef[best[c], row[c]]
                else:
                    values[c] = glibc[best[c], row[c]]
            for c in range(inner):
                total[c] += values[c]
        for k in range(depth):
            values, into = e[k], y[n, k]
            for c in range(inner):
                share = np.float32(values[c] / total[c])
                into[c] = narrow_fused(share, inverse, zero_point, low, high)
