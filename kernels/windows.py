"""Pooling windows: where they start and end, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.types import Dim, Shape, Size, TensorType, format_shape
from refquant.kernels.layout import channels_last, is_channels_last

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
IntOrInts = int | Sequence[int]


class Windows(NamedTuple):
    """The windows along one dimension.

    Parameters
    ----------
    start, end : int64 array, one entry per window
        The part of each window that lies inside the input.
    count : int64 array
        Length of each window with its padding.
    """

    start: Ints
    end: Ints
    count: Ints


def per_dimension(value: IntOrInts | None, rank: int, default: Sequence[int]) -> tuple[int, ...]:
    """Return one entry per spatial dimension; None and an empty list mean the default.

    Examples
    --------
    >>> per_dimension(3, 2, (1, 1)), per_dimension([], 2, (1, 1))
    ((3, 3), (1, 1))
    """
    if value is None or (not isinstance(value, int) and len(value) == 0):
        return tuple(default)
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * rank if len(value) == 1 else tuple(value)


def output_length(
    length: Size, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> Size:
    """Return how many windows fit.

    With ``ceil_mode`` the last window may hang over the end, but it starts inside the input or
    its left padding.

    Examples
    --------
    >>> output_length(5, 2, 2, 0, 1, False), output_length(5, 2, 2, 0, 1, True)
    (2, 3)
    """
    span = dilation * (kernel - 1) + 1
    if isinstance(length, Dim):
        if span == stride == 1 and padding == 0:
            return length
        raise VerifyError(f"a window cannot slide along the symbolic length {length}")
    slack = length + 2 * padding - span + (stride - 1 if ceil_mode else 0)
    windows = slack // stride + 1
    if ceil_mode and (windows - 1) * stride >= length + padding:
        windows -= 1
    return windows


def sliding(length: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> Windows:
    """Return the windows of an average pool along one dimension.

    Examples
    --------
    >>> sliding(5, 3, 2, 1, True).count
    array([3, 3, 3])
    """
    n = output_length(length, kernel, stride, padding, 1, ceil_mode)
    assert isinstance(n, int)
    start = np.arange(n, dtype=np.int64) * stride - padding
    end = np.minimum(start + kernel, length + padding)
    inside = np.maximum(start, 0)
    return Windows(inside, np.maximum(np.minimum(end, length), inside), end - start)


def adaptive(length: int, windows: int) -> Windows:
    """Return windows that cover the input evenly; neighbours may overlap.

    Examples
    --------
    >>> adaptive(5, 3)
    Windows(start=array([0, 1, 3]), end=array([2, 4, 5]), count=array([2, 3, 2]))
    """
    i = np.arange(windows, dtype=np.int64)
    start, end = i * length // max(windows, 1), -(-(i + 1) * length // max(windows, 1))
    return Windows(start, end, end - start)


def spatial(op: str, x: TensorType, rank: int) -> tuple[Shape, Shape]:
    """Split a shape into leading and spatial dimensions; one batch dimension may be missing."""
    if x.rank not in (rank + 1, rank + 2):
        raise VerifyError(
            f"{op}: expected rank {rank + 1} or {rank + 2}, got {format_shape(x.shape)}"
        )
    return x.shape[:-rank], x.shape[-rank:]


def as_volume(x: Array, rank: int) -> Array:
    """View an array of any spatial rank as C-contiguous (outer, D, H, W, inner).

    ``inner`` is C where the memory is channels-last, and 1 otherwise, when ``outer`` is N * C.

    Examples
    --------
    >>> as_volume(np.zeros((2, 3, 4, 5)), 2).shape
    (6, 1, 4, 5, 1)
    >>> as_volume(channels_last(np.zeros((2, 3, 4, 5))), 2).shape
    (2, 1, 4, 5, 3)
    """
    spatial_shape = (1,) * (3 - rank) + x.shape[x.ndim - rank :]
    if is_channels_last(x) and x.ndim == rank + 2:
        rows = np.moveaxis(channels_last(x), 1, -1)
        return rows.reshape(x.shape[0], *spatial_shape, x.shape[1])
    leading = int(np.prod(x.shape[: x.ndim - rank]))
    return np.ascontiguousarray(x).reshape(leading, *spatial_shape, 1)


def from_volume(y: Array, shape: tuple[int, ...], like: Array, rank: int) -> Array:
    """Undo :func:`as_volume` for a result of the given shape, without a copy."""
    if is_channels_last(like) and like.ndim == rank + 2:
        n, c, *spatial_shape = shape
        return np.moveaxis(y.reshape(n, *spatial_shape, c), -1, 1)
    return y.reshape(shape)
