"""The softmax of quint8 that qnnpack has: a table of integers, summed and divided."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import quint8
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_suggested

Array = npt.NDArray[Any]
ENGINES = (Engine.QNNPACK,)
SCALE, ZERO_POINT = 1 / 256, 0
_LARGEST, _LARGEST_SUM = 2.0**23 - 1, 2.0**32 - 1


def applies(x: QTensor, scale: float, zero_point: int, target: Target) -> bool:
    """Whether the engine has a kernel of its own for this dtype and this output."""
    wanted = x.dtype == quint8 and (scale, zero_point) == (SCALE, ZERO_POINT)
    return wanted and target.engine in ENGINES and x.int_repr.ndim > 0


def table(scale: float, channels: int) -> npt.NDArray[np.int64]:
    """Return :math:`e^{(i - 255) s}` for each difference to the largest code, as integers.

    They are as large as they can be without a sum beyond 32 bits, and below 2 ** 23.

    Examples
    --------
    >>> table(1.0, 2)[252:].tolist()
    [417644, 1135275, 3085996, 8388607]
    """
    factor = min(_LARGEST_SUM / channels, _LARGEST)
    exponents = (np.arange(256) - 255) * np.float64(np.float32(scale))
    return np.rint(factor * np.exp(exponents)).astype(np.int64)


def reference(x: QTensor, dim: int) -> QTensor:
    """Return the softmax: ``(256 t + S / 2) / S`` in integers, with *S* the sum of *t*.

    Raises
    ------
    UnsupportedError
        If ``dim`` is innermost in memory but the rest is in an order of its own: torch writes the
        rows to other places than it read them from.

    Examples
    --------
    >>> reference(QTensor(np.uint8([[5, 5], [9, 1]]), 1.0, 5), 1).int_repr
    array([[128, 128],
           [255,   0]], dtype=uint8)
    """
    codes = np.swapaxes(x.int_repr, dim, -1)
    if not codes.size:
        return _with(x, np.empty(x.shape, np.uint8))
    shifted = 255 - codes.max(-1, keepdims=True).astype(np.int64) + codes
    t = table(float(x.scale), codes.shape[-1])[shifted]
    total = t.sum(-1, keepdims=True)
    return _placed(x, dim, np.minimum((256 * t + total // 2) // total, 255))


@jit
def _rows(x: Array, t: Array, y: Array) -> None:
    for i in range(x.shape[0]):
        largest = x[i].max()
        total = 0
        for code in x[i]:
            total += t[255 - largest + code]
        for j in range(x.shape[1]):
            y[i, j] = min((256 * t[255 - largest + x[i, j]] + total // 2) // total, 255)


def kernel(x: QTensor, dim: int) -> QTensor:
    """Compute :func:`reference` row by row."""
    codes = np.ascontiguousarray(np.swapaxes(x.int_repr, dim, -1))
    if not codes.size:
        return reference(x, dim)
    y = np.empty_like(codes)
    channels = codes.shape[-1]
    t = table(float(x.scale), channels)
    _rows(codes.reshape(-1, channels), t, y.reshape(-1, channels))
    return _placed(x, dim, y)


def _placed(x: QTensor, dim: int, swapped: Array) -> QTensor:
    """Lay a result whose last dimension is ``dim`` out as torch does."""
    q = x.int_repr
    if q.shape[dim] == 1 or q.strides[dim] != q.itemsize:
        y = np.ascontiguousarray(swapped, np.uint8)
        return _with(x, np.swapaxes(y, dim, -1))
    y = empty_suggested(q, np.uint8)
    if any(n > 1 and a != b for n, a, b in zip(q.shape, q.strides, y.strides, strict=True)):
        raise UnsupportedError(
            "softmax: torch's qnnpack scrambles a tensor whose dimension of softmax is innermost "
            f"in memory, strides {q.strides} of {q.shape}; make it contiguous"
        )
    y[...] = np.swapaxes(swapped, dim, -1)
    return _with(x, y)


def _with(x: QTensor, y: Array) -> QTensor:
    return QTensor(y, SCALE, ZERO_POINT, None, x.dtype)
