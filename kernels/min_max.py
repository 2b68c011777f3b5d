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
# bits lie beyond those of infinity.
_INFINITY = np.uint32(0x7F800000)
_MINUS_INFINITY = np.uint32(0xFF800000)


@jit
def _extremes(signed: Any, unsigned: Any, found: Any) -> None:
    smin, smax = np.int32(found[0]), np.int32(found[1])
    umin, umax = np.uint32(found[2]), np.uint32(found[3])
    for i in range(signed.size):
        smin = min(smin, signed[i])
        smax = max(smax, signed[i])
        umin = min(umin, unsigned[i])
        umax = max(umax, unsigned[i])
    found[0], found[1], found[2], found[3] = smin, smax, umin, umax


@jit
def _extremes_per_column(
    signed: Any, unsigned: Any, smin: Any, smax: Any, umin: Any, umax: Any
) -> None:
    for i in range(signed.shape[0]):
        for c in range(signed.shape[1]):
            smin[c] = min(smin[c], signed[i, c])
            smax[c] = max(smax[c], signed[i, c])
            umin[c] = min(umin[c], unsigned[i, c])
            umax[c] = max(umax[c], unsigned[i, c])


@jit
def _extremes_per_channel(signed: Any, unsigned: Any, found: Any) -> None:
    for i in range(signed.shape[0]):
        for c in range(signed.shape[1]):
            _extremes(signed[i, c], unsigned[i, c], found[c])


def _floats(smin: Any, smax: Any, umin: Any, umax: Any) -> tuple[F32, F32]:
    """Return minimum and maximum from the extremes of the bits."""
    signed = np.stack([np.asarray(smin), np.asarray(smax)]).astype(np.int32).view(np.uint32)
    low = np.where(umax >> 31 == 1, umax, signed[0]).astype(np.uint32).view(np.float32)
    high = np.where(signed[1] >> 31 == 0, signed[1], umin).astype(np.uint32).view(np.float32)
    nan = (umax > _MINUS_INFINITY) | ((signed[1] >> 31 == 0) & (signed[1] > _INFINITY))
    return np.where(nan, np.float32(np.nan), low), np.where(nan, np.float32(np.nan), high)


def _start(*shape: int) -> npt.NDArray[np.int64]:
    found = np.empty((*shape, 4), np.int64)
    found[...] = 2**31 - 1, -(2**31), 2**32 - 1, 0
    return found


def min_max_compiled(x: Array) -> tuple[np.float32, np.float32]:
    """Compute :func:`min_max` in one pass over the memory, in integer arithmetic."""
    values = memory_order(_float32(x))
    found = _start()
    _extremes(values.view(np.int32), values.view(np.uint32), found)
    low, high = _floats(*found)
    return np.float32(low), np.float32(high)


def min_max_per_channel_compiled(x: Array, axis: int) -> tuple[F32, F32]:
    """Compute :func:`min_max_per_channel` in one pass over the memory."""
    axis %= x.ndim
    channels = x.shape[axis]
    values = np.ascontiguousarray(_float32(x)).reshape(prod(x.shape[:axis]), channels, -1)
    per_channel = _start(channels)
    if values.shape[2] == 1:
        rows = values.reshape(-1, channels)
        columns = [
            np.ascontiguousarray(column, kind)
            for column, kind in zip(per_channel.T, "iiII", strict=True)
        ]
        _extremes_per_column(rows.view(np.int32), rows.view(np.uint32), *columns)
        return _floats(*columns)
    _extremes_per_channel(values.view(np.int32), values.view(np.uint32), per_channel)
    return _floats(*per_channel.T)
