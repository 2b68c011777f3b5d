"""Float32 matrix products in the order of onnxruntime's MLAS on AVX512.

Each element is a chain of fused multiply-adds along K, cut into pieces. The first piece is
``sum * alpha``, or ``fma(sum, alpha, start)`` where there is something to start from; each further
one is added as ``fma(sum, alpha, so far)``. Rows and columns do not matter. What matters is how
long a piece is:

* 256 for a weight that is a constant, which onnxruntime packs;
* else 128, doubled while the columns are few: :func:`piece_of`.

A single row or column with a matrix that is not a constant has kernels of its own, which do not
fuse: :func:`row_product` adds four products to each other and then to the result, and
:func:`dot_products` adds along K in eight lanes and then adds the lanes. A row with a packed
4-bit weight has sixteen lanes that do fuse: :func:`lane_products`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import fma, jit
from refquant.kernels.rounding import fma as fma_of_arrays

F32 = npt.NDArray[np.float32]
PACKED_PIECE = 256


def parts_of(columns: int, depth: int) -> tuple[int, int]:
    """Return how many columns are multiplied at a time, and how long a piece is.

    The second matrix is not a constant. For a product the columns do not matter; a convolution
    takes each part of them as a product of its own.

    Examples
    --------
    >>> parts_of(300, 2000), parts_of(48, 300), parts_of(5, 300), parts_of(300, 20)
    ((128, 128), (64, 256), (16, 1024), (512, 32))
    """
    wide, long = 128, 128
    if columns >= depth:
        while long // 2 >= max(depth, 1):
            wide, long = wide * 2, long // 2
    else:
        while wide > 16 and wide // 2 >= columns:
            wide, long = wide // 2, long * 2
    return wide, long


def piece_of(columns: int, depth: int) -> int:
    """Return the length of a piece where the second matrix is not a constant."""
    return parts_of(columns, depth)[1]


def reference(
    a: F32, b: F32, piece: int = PACKED_PIECE, start: F32 | None = None, alpha: float = 1.0
) -> F32:
    """Return the product of (M, K) and (K, N), in plain NumPy.

    Examples
    --------
    >>> a, b = np.float32([[2.0**24, 1, 1]]), np.float32([[1], [1], [1]])
    >>> reference(a, b, 1).item(), reference(a[:, ::-1], b, 2).item()
    (16777216.0, 16777218.0)
    """
    depth = a.shape[1]
    y: Any = start
    for first in range(0, max(depth, 1), piece):
        total: Any = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for k in range(first, min(first + piece, depth)):
            total = fma_of_arrays(a[:, k, None], b[k], total)
        y = total * np.float32(alpha) if y is None else fma_of_arrays(total, np.float32(alpha), y)
    return np.asarray(y, np.float32)


@jit
def _add_products(a: Any, b: Any, i: int, k: int, end: int, total: Any) -> None:
    """Add the products of up to four rows from ``i`` on, four steps along K at a time."""
    rows, columns = min(4, a.shape[0] - i), b.shape[1]
    while end - k >= 4:
        if rows == 4:
            for j in range(columns):
                b0, b1, b2, b3 = b[k, j], b[k + 1, j], b[k + 2, j], b[k + 3, j]
                for r in range(4):
                    t = fma(a[i + r, k], b0, total[r, j])
                    t = fma(a[i + r, k + 1], b1, t)
                    t = fma(a[i + r, k + 2], b2, t)
                    total[r, j] = fma(a[i + r, k + 3], b3, t)
        else:
            for r in range(rows):
                x0, x1, x2, x3 = a[i + r, k], a[i + r, k + 1], a[i + r, k + 2], a[i + r, k + 3]
                for j in range(columns):
                    t = fma(x0, b[k, j], total[r, j])
                    t = fma(x1, b[k + 1, j], t)
                    t = fma(x2, b[k + 2, j], t)
                    total[r, j] = fma(x3, b[k + 3, j], t)
        k += 4
    while k < end:
        for r in range(rows):
            x = a[i + r, k]
            for j in range(columns):
                total[r, j] = fma(x, b[k, j], total[r, j])
        k += 1


@jit
def _fill(a: Any, b: Any, piece: int, starts: bool, alpha: np.float32, y: Any) -> None:
    depth, columns = b.shape
    total = np.empty((4, columns), np.float32)
    for i in range(0, a.shape[0], 4):
        for first in range(0, max(depth, 1), piece):
            total[:] = 0
            _add_products(a, b, i, first, min(first + piece, depth), total)
            for r in range(min(4, a.shape[0] - i)):
                if first == 0 and not starts:
                    for j in range(columns):
                        y[i + r, j] = np.float32(total[r, j] * alpha)
                else:
                    for j in range(columns):
                        y[i + r, j] = fma(total[r, j], alpha, y[i + r, j])


def gemm(
    a: F32, b: F32, piece: int = PACKED_PIECE, start: F32 | None = None, alpha: float = 1.0
) -> F32:
    """Compute :func:`reference` in compiled loops."""
    shape = (a.shape[0], b.shape[1])
    y = np.zeros(shape, np.float32)
    if start is not None:
        y[...] = start
    rows, columns = np.ascontiguousarray(a), np.ascontiguousarray(b)
    _fill(rows, columns, piece, start is not None, np.float32(alpha), y)
    return y


def row_product(a: F32, b: F32, start: F32 | None = None) -> F32:
    """Return the product of one row (K,) with (K, N), four products at a time.

    Examples
    --------
    >>> row_product(np.float32([1, 2, 3, 4, 5]), np.ones((5, 1), np.float32))
    array([15.], dtype=float32)
    """
    y: Any = np.zeros(b.shape[1], np.float32) if start is None else np.asarray(start, np.float32)
    depth, k = a.size, 0
    for step in (4, 2, 1):
        while depth - k >= step:
            total: Any = a[k] * b[k]
            for i in range(k + 1, k + step):
                total = total + a[i] * b[i]
            y = total + y
            k += step
    return np.asarray(y, np.float32)


def dot_products(a: F32, rows: F32, start: F32 | None = None) -> F32:
    """Return the dot products of (K,) with the rows of (N, K).

    The lanes are added in an order that depends on how many rows are left: four, two or one.

    Examples
    --------
    >>> dot_products(np.float32([1, 2, 3]), np.ones((2, 3), np.float32))
    array([6., 6.], dtype=float32)
    """
    count, depth = rows.shape
    filled = -(-depth // 8) * 8
    x, m = np.zeros(filled, np.float32), np.zeros((count, filled), np.float32)
    x[:depth], m[:, :depth] = a, rows
    lanes: Any = np.zeros((count, 8), np.float32)
    for k in range(0, filled, 8):
        lanes = lanes + x[k : k + 8] * m[:, k : k + 8]
    y = np.empty(count, np.float32)
    fours, rest = count // 4 * 4, count // 2 * 2
    for part, add in (
        (slice(0, fours), _one_by_one),
        (slice(fours, rest), _crossed),
        (slice(rest, count), _neighbours),
    ):
        y[part] = add(lanes[part])
    return y + (np.float32(0) if start is None else start)


def _one_by_one(lanes: F32) -> F32:
    low, high = (((h[:, 0] + h[:, 1]) + h[:, 2]) + h[:, 3] for h in (lanes[:, :4], lanes[:, 4:]))
    return np.asarray(low + high)


def _crossed(lanes: F32) -> F32:
    pairs = lanes[:, [0, 1, 4, 5]] + lanes[:, [2, 3, 6, 7]]
    return np.asarray((pairs[:, 0] + pairs[:, 2]) + (pairs[:, 1] + pairs[:, 3]))


def _neighbours(lanes: F32) -> F32:
    pairs = lanes[:, 0::2] + lanes[:, 1::2]
    return np.asarray((pairs[:, 0] + pairs[:, 1]) + (pairs[:, 2] + pairs[:, 3]))


LANES = 16


def lane_products(a: F32, rows: F32) -> F32:
    """Return the dot products of (K,) with the rows of (N, K), as of a packed 4-bit weight.

    Rows in whole fours add their lanes otherwise than those that are left.

    Examples
    --------
    >>> lane_products(np.float32([1, 2, 3]), np.ones((5, 3), np.float32))
    array([6., 6., 6., 6., 6.], dtype=float32)
    """
    depth = rows.shape[1]
    filled = -(-depth // LANES) * LANES
    x, m = np.zeros(filled, np.float32), np.zeros((len(rows), filled), np.float32)
    x[:depth], m[:, :depth] = a, rows
    lanes: Any = np.zeros((len(rows), LANES), np.float32)
    for k in range(0, filled, LANES):
        lanes = fma_of_arrays(x[k : k + LANES], m[:, k : k + LANES], lanes)
    fours = len(rows) // 4 * 4
    group = [lanes[:fours, 4 * i : 4 * i + 4] for i in range(4)]
    total = [((g[:, 0] + g[:, 1]) + g[:, 2]) + g[:, 3] for g in group]
    left = lanes[fours:]
    for half in (8, 4, 2, 1):
        left = left[:, :half] + left[:, half:]
    return np.concatenate(((total[0] + total[2]) + (total[1] + total[3]), left[:, 0]))


@jit
def _fill_lanes(a: Any, rows: Any, y: Any) -> None:
    lanes = np.empty(16, np.float32)
    fours = rows.shape[0] // 4 * 4
    for n in range(rows.shape[0]):
        lanes[:] = 0
        for k in range(0, rows.shape[1], 16):
            for i in range(min(16, rows.shape[1] - k)):
                lanes[i] = fma(a[k + i], rows[n, k + i], lanes[i])
        if n < fours:
            for i in range(0, 16, 4):
                lanes[i] = np.float32(
                    np.float32(np.float32(lanes[i] + lanes[i + 1]) + lanes[i + 2]) + lanes[i + 3]
                )
            even, odd = np.float32(lanes[0] + lanes[8]), np.float32(lanes[4] + lanes[12])
            y[n] = np.float32(even + odd)
        else:
            half = 8
            while half:
                for i in range(half):
                    lanes[i] = np.float32(lanes[i] + lanes[i + half])
                half //= 2
            y[n] = lanes[0]


def fast_lane_products(a: F32, rows: F32) -> F32:
    """Compute :func:`lane_products` in compiled loops."""
    y = np.empty(len(rows), np.float32)
    _fill_lanes(np.ascontiguousarray(a), np.ascontiguousarray(rows), y)
    return y
