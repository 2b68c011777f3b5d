"""Float32 matrix products in the order of onnxruntime's MLAS on AVX512.

Each element is a chain of fused multiply-adds along K, cut into pieces. The first piece is
``sum * alpha``, or ``fma(sum, alpha, start)`` where there is something to start from; each further
one is added as ``fma(sum, alpha, so far)``. Rows and columns do not matter. What matters is how
long a piece is:

* 256 for a weight that is a constant, which onnxruntime packs;
* else 128, doubled while the columns are few: :func:`piece_of`.

A product of a single row or column with a matrix that is not a constant has another order, which
is not known here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import fma, jit
from refquant.kernels.rounding import fma as fma_of_arrays

F32 = npt.NDArray[np.float32]
PACKED_PIECE = 256


def piece_of(columns: int, depth: int) -> int:
    """Return the length of a piece where the second matrix is not a constant.

    Examples
    --------
    >>> piece_of(300, 2000), piece_of(48, 300), piece_of(5, 300), piece_of(300, 20)
    (128, 256, 1024, 32)
    """
    wide, long = 128, 128
    if columns >= depth:
        while long // 2 >= max(depth, 1):
            wide, long = wide * 2, long // 2
    else:
        while wide > 16 and wide // 2 >= columns:
            wide, long = wide // 2, long * 2
    return long


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
def _fill(a: Any, b: Any, piece: int, starts: bool, alpha: np.float32, y: Any) -> None:
    depth, columns = b.shape
    total = np.empty(columns, np.float32)
    for i in range(a.shape[0]):
        for first in range(0, max(depth, 1), piece):
            total[:] = 0
            for k in range(first, min(first + piece, depth)):
                x = a[i, k]
                for j in range(columns):
                    total[j] = fma(x, b[k, j], total[j])
            if first == 0 and not starts:
                for j in range(columns):
                    y[i, j] = np.float32(total[j] * alpha)
            else:
                for j in range(columns):
                    y[i, j] = fma(total[j], alpha, y[i, j])


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
