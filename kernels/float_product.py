"""The order in which a float32 matrix product is added up, where it is known.

torch's wheel multiplies with MKL 2024.2, whose order depends on the shape and on the processor.
What is here was found on AMD processors with AVX512, for one thread; several divide the rows:

* with at least 4 rows and 12 columns, one chain of fused products and sums from
  0 for every block of 192 products, the sums of the blocks added; up to 384 products are divided
  into two blocks of equal length (and a last product by itself where their number is odd);
* otherwise products and sums are rounded each, from the left. But the elements of a row before
  the first one at a multiple of 16 bytes, where at least four follow, take the last four of every
  eight products as a sum of their own;
* each matrix of a batch of small ones (rows x columns x products < 400) by ATen itself: products
  and sums rounded each, from the left.

One column of a single matrix is not covered: MKL's order depends on addresses there. Elsewhere
than on such processors the sums differ by the usual rounding error, at most ``k * 2**-24`` times
the sum of the absolute products for ``k`` products.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels import rounding
from refquant.kernels.jit import fma, jit

F32 = npt.NDArray[np.float32]
SMALL = 400  # what ATen multiplies itself, in a batch


def block_length(depth: int) -> int:
    """Return how many products a chain has at most.

    Examples
    --------
    >>> [block_length(depth) for depth in (100, 192, 193, 383, 384, 1000)]
    [100, 192, 96, 191, 192, 192]
    """
    if depth <= 192:
        return max(depth, 1)
    return min(depth // 2, 192)


def product(a: F32, b: F32, small: int = 0) -> F32:
    """Return the products of two batches of matrices.

    Parameters
    ----------
    a : float32 (B, M, K)
        Left operands.
    b : float32 (B, K, N)
        Right operands.
    small : int
        ``SMALL`` where torch sees a batch, 0 where it sees one matrix.

    Returns
    -------
    float32 (B, M, N)
    """
    batch, rows, depth = a.shape
    columns = b.shape[2]
    with np.errstate(over="ignore", invalid="ignore"):
        if rows * columns * depth < small:
            return _plain(a, b)
        if rows >= 4 and columns >= 12:
            return _chains(a, b)
        start = np.arange(batch * rows).reshape(batch, rows, 1) * columns
        before = -start % 4
        aside = (np.arange(columns) < before) & (columns >= before + 4)
        return np.where(aside, _by_eight(a, b), _plain(a, b))


def _plain(a: F32, b: F32) -> F32:
    y = np.zeros((*a.shape[:2], b.shape[2]), np.float32)
    for k in range(a.shape[2]):
        y += a[:, :, k, None] * b[:, None, k]
    return y


def _by_eight(a: F32, b: F32) -> F32:
    y = np.zeros((*a.shape[:2], b.shape[2]), np.float32)
    whole = a.shape[2] // 8 * 8
    for start in range(0, whole, 8):
        for k in range(start, start + 4):
            y += a[:, :, k, None] * b[:, None, k]
        y += _plain(a[:, :, start + 4 : start + 8], b[:, start + 4 : start + 8])
    for k in range(whole, a.shape[2]):
        y += a[:, :, k, None] * b[:, None, k]
    return y


def _chains(a: F32, b: F32) -> F32:
    y = np.zeros((*a.shape[:2], b.shape[2]), np.float32)
    length = block_length(a.shape[2])
    for start in range(0, a.shape[2], length):
        part = np.zeros_like(y)
        for k in range(start, min(start + length, a.shape[2])):
            part = rounding.fma(a[:, :, k, None], b[:, None, k], part)
        y += part
    return y


@jit
def accumulate(row: F32, factor: F32, start: int, end: int, first: int, total: F32) -> None:
    """Add to ``total`` the products ``start`` to ``end`` of columns from ``first`` on, fused."""
    k = start
    while k + 4 <= end:
        a, b, c, d = row[k], row[k + 1], row[k + 2], row[k + 3]
        for n in range(total.size):
            one = fma(a, factor[k, first + n], total[n])
            two = fma(b, factor[k + 1, first + n], one)
            total[n] = fma(d, factor[k + 3, first + n], fma(c, factor[k + 2, first + n], two))
        k += 4
    while k < end:
        for n in range(total.size):
            total[n] = fma(row[k], factor[k, first + n], total[n])
        k += 1


@jit
def _from_the_left(row: F32, factor: F32, total: F32) -> None:
    total[:] = np.float32(0)
    for k in range(row.size):
        for n in range(total.size):
            total[n] = np.float32(total[n] + np.float32(row[k] * factor[k, n]))


@jit
def _one_aside(row: F32, factor: F32, n: int) -> np.float32:
    total, part = np.float32(0), np.float32(0)
    for k in range(row.size):
        term = np.float32(row[k] * factor[k, n])
        if k % 8 < 4 or k >= row.size // 8 * 8:
            total = np.float32(total + term)
        else:
            part = term if k % 8 == 4 else np.float32(part + term)
            if k % 8 == 7:
                total = np.float32(total + part)
    return total


@jit
def multiply(a: Any, b: Any, small: int, length: int, y: Any) -> None:
    """Compute :func:`product` into ``y``; ``length`` is that of a chain."""
    batch, rows, depth = a.shape
    columns = b.shape[2]
    itself = rows * columns * depth < small
    part = np.empty(columns, np.float32)
    for i in range(batch):
        for m in range(rows):
            total = y[i, m]
            if rows >= 4 and columns >= 12 and not itself:
                total[:] = np.float32(0)
                for start in range(0, depth, length):
                    part[:] = np.float32(0)
                    accumulate(a[i, m], b[i], start, min(start + length, depth), 0, part)
                    for n in range(columns):
                        total[n] = np.float32(total[n] + part[n])
                continue
            _from_the_left(a[i, m], b[i], total)
            before = -(i * rows + m) * columns % 4
            if columns >= before + 4 and not itself:
                for n in range(before):
                    total[n] = _one_aside(a[i, m], b[i], n)
