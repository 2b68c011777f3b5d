"""The smallest and the largest element of a tensor or of each channel (``torch.aminmax``)."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import jit
from refquant.kernels.layout import memory_order

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def min_max(x: Array) -> tuple[np.float32, np.float32]:
    """Return the smallest and the largest element in float32; NaN if there is one.

    Which zero is returned where both signs occur depends on the order in torch and is left open
    here; no scale or zero point depends on it.

    Parameters
    ----------
    x : array with at least one element
        What is observed; other types are converted to float32 as torch's observers do.

    Returns
    -------
    minimum, maximum : float32

    Examples
    --------
    >>> min_max(np.array([3, -1, 2]))
    (np.float32(-1.0), np.float32(3.0))
    """
    x = _float32(x)
    return np.min(x), np.max(x)


def min_max_per_channel(x: Array, axis: int) -> tuple[F32, F32]:
    """Return the smallest and the largest element of each index of ``axis``.

    Examples
    --------
    >>> min_max_per_channel(np.array([[3, -1], [2, 5]]), 0)
    (array([-1.,  2.], dtype=float32), array([3., 5.], dtype=float32))
    """
    rows = np.moveaxis(_float32(x), axis, 0).reshape(x.shape[axis], -1)
    return rows.min(axis=1), rows.max(axis=1)


def _float32(x: Array) -> F32:
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


# A float32 is compared by its bits: among numbers of one sign they order as integers do, the
# negative ones backwards. Four integer extremes therefore hold the range, and the NaNs, whose
# bits lie beyond those of infinity. Integer extremes are what vectorises.
_INFINITY = 0x7F800000
_MINUS_INFINITY = 0xFF800000
_NAN = np.uint32(0x7FC00000)
_SMIN, _SMAX = np.int32(-(2**31)), np.int32(2**31 - 1)
_UMAX = np.uint32(2**32 - 1)


@jit
def _low(smin: np.int32, smax: np.int32, umin: np.uint32, umax: np.uint32) -> Any:
    """Return the bits of the minimum."""
    if umax > _MINUS_INFINITY or smax > _INFINITY:
        return _NAN
    return umax if umax > _SMAX else np.uint32(smin)


@jit
def _high(smin: np.int32, smax: np.int32, umin: np.uint32, umax: np.uint32) -> Any:
    """Return the bits of the maximum."""
    if umax > _MINUS_INFINITY or smax > _INFINITY:
        return _NAN
    return np.uint32(smax) if smax >= 0 else umin


@jit
def _range(signed: Any, unsigned: Any) -> Any:
    """Return the bits of minimum and maximum."""
    smin, smax, umin, umax = _SMAX, _SMIN, _UMAX, np.uint32(0)
    for i in range(signed.size):
        smin = min(smin, signed[i])
        smax = max(smax, signed[i])
        umin = min(umin, unsigned[i])
        umax = max(umax, unsigned[i])
    return _low(smin, smax, umin, umax), _high(smin, smax, umin, umax)


@jit
def _range_per_channel(signed: Any, unsigned: Any, low: Any, high: Any) -> None:
    """Fill the bits of each channel's range from (channels, outer, inner)."""
    for c in range(signed.shape[0]):
        smin, smax, umin, umax = _SMAX, _SMIN, _UMAX, np.uint32(0)
        for o in range(signed.shape[1]):
            for i in range(signed.shape[2]):
                smin = min(smin, signed[c, o, i])
                smax = max(smax, signed[c, o, i])
                umin = min(umin, unsigned[c, o, i])
                umax = max(umax, unsigned[c, o, i])
        low[c] = _low(smin, smax, umin, umax)
        high[c] = _high(smin, smax, umin, umax)


@jit
def _range_per_column(signed: Any, unsigned: Any, low: Any, high: Any) -> None:
    """Fill the bits of each column's range from (rows, columns)."""
    columns = signed.shape[1]
    smin, smax = np.full(columns, _SMAX), np.full(columns, _SMIN)
    umin, umax = np.full(columns, _UMAX), np.zeros(columns, np.uint32)
    for i in range(signed.shape[0]):
        for c in range(columns):
            smin[c] = min(smin[c], signed[i, c])
            smax[c] = max(smax[c], signed[i, c])
            umin[c] = min(umin[c], unsigned[i, c])
            umax[c] = max(umax[c], unsigned[i, c])
    for c in range(columns):
        low[c] = _low(smin[c], smax[c], umin[c], umax[c])
        high[c] = _high(smin[c], smax[c], umin[c], umax[c])


def min_max_compiled(x: Array) -> tuple[np.float32, np.float32]:
    """Compute :func:`min_max` in one pass over the memory, in integer arithmetic."""
    values = memory_order(_float32(x))
    bits = np.array(_range(values.view(np.int32), values.view(np.uint32)), np.uint32)
    low, high = bits.view(np.float32)
    return low, high


def min_max_per_channel_compiled(x: Array, axis: int) -> tuple[F32, F32]:
    """Compute :func:`min_max_per_channel` in one pass over the memory."""
    axis %= x.ndim
    channels = x.shape[axis]
    values = np.ascontiguousarray(_float32(x)).reshape(prod(x.shape[:axis]), channels, -1)
    low, high = np.empty((2, channels), np.uint32)
    if values.shape[2] == 1:
        rows = values.reshape(-1, channels)
        _range_per_column(rows.view(np.int32), rows.view(np.uint32), low, high)
    else:
        by_channel = values.transpose(1, 0, 2)
        _range_per_channel(by_channel.view(np.int32), by_channel.view(np.uint32), low, high)
    return low.view(np.float32), high.view(np.float32)
