"""Pooling windows: where they start and end, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.types import Dim, Shape, Size, TensorType, format_shape
from refquant.kernels.layout import is_channels_last, is_contiguous_channels_last

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]
IntOrInts = int | Sequence[int]
# Kernel size, stride, padding and dilation of each dimension.
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


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
    count: Ints  # type: ignore[assignment]


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


def hashable(value: IntOrInts | None) -> IntOrInts | None:
    """Return a list as a tuple, for caches keyed by attributes."""
    return tuple(value) if isinstance(value, list) else value


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


def adaptive_rounded(length: int, windows: int) -> Windows:
    """Return :func:`adaptive` with torch's float32 quotients for quantized tensors.

    They are exact up to products of 2**24; beyond, a window may begin or end elsewhere.

    Examples
    --------
    >>> adaptive(30_001, 19_747).start[2024], adaptive_rounded(30_001, 19_747).start[2024]
    (np.int64(3074), np.int64(3075))
    """
    i = np.arange(windows, dtype=np.int64)
    count = np.float32(max(windows, 1))
    start = np.floor((i * length).astype(np.float32) / count).astype(np.int64)
    end = np.ceil(((i + 1) * length).astype(np.float32) / count).astype(np.int64)
    return Windows(start, end, end - start)


def spatial(op: str, x: TensorType, rank: int) -> tuple[Shape, Shape]:
    """Split a shape into leading and spatial dimensions; one batch dimension may be missing."""
    if x.rank not in (rank + 1, rank + 2):
        raise VerifyError(
            f"{op}: expected rank {rank + 1} or {rank + 2}, got {format_shape(x.shape)}"
        )
    return x.shape[:-rank], x.shape[-rank:]


def as_image(x: Array) -> Array:
    """View ([N,] C, L) as ([N,] C, 1, L) with the strides of torch's ``unsqueeze``.

    torch pools signals as images, so a permuted (N, L, C) signal counts as channels-last.

    Examples
    --------
    >>> is_channels_last(as_image(np.zeros((2, 4, 3)).transpose(0, 2, 1)))
    True
    """
    *lead, length = x.shape
    *strides, step = x.strides
    shape, steps = (*lead, 1, length), (*strides, length * step, step)
    return np.lib.stride_tricks.as_strided(x, shape, steps)


def is_pooled_channels_last(x: Array, rank: int) -> bool:
    """Whether torch takes its channels-last loop: a batch whose memory is dense NHWC.

    That includes (N, C, 1, 1), which is dense in both orders.
    """
    return x.ndim == rank + 2 and is_contiguous_channels_last(x)


def in_torch_memory(y: Array, x: Array, rank: int) -> Array:
    """Lay a quantized result out as torch does, including a defect of torch.

    torch allocates the result in the memory format *suggested* by the input but fills it in the
    order of the loop it takes. For an (N, C, 1, 1) input these differ: the values of an NHWC
    result stand in an NCHW tensor, so a result of more than one pixel is scrambled.

    Examples
    --------
    >>> y = np.arange(4).reshape(1, 2, 1, 2)
    >>> in_torch_memory(y, np.zeros((1, 2, 1, 1)), 2)
    array([[[[0, 2]],
    <BLANKLINE>
            [[1, 3]]]])
    """
    filled = np.moveaxis(y, 1, -1) if is_pooled_channels_last(x, rank) else y
    return _read(np.ascontiguousarray(filled), y.shape, x, rank)


def _read(filled: Array, shape: tuple[int, ...], x: Array, rank: int) -> Array:
    if x.ndim == rank + 2 and is_channels_last(x):
        n, c, *spatial_shape = shape
        return np.moveaxis(filled.reshape(-1).reshape(n, *spatial_shape, c), -1, 1)
    return filled.reshape(-1).reshape(shape)


def as_volume(x: Array, rank: int) -> Array:
    """View an array of any spatial rank as C-contiguous (outer, D, H, W, inner).

    ``inner`` is C where torch takes its channels-last loop, and 1 otherwise, when ``outer`` is
    N * C.

    Examples
    --------
    >>> as_volume(np.zeros((2, 3, 4, 5)), 2).shape
    (6, 1, 4, 5, 1)
    >>> as_volume(np.zeros((2, 3, 1, 1)), 2).shape
    (2, 1, 1, 1, 3)
    """
    last, shape = _volume(x.shape, x.strides, x.itemsize, rank)
    memory = x.ravel("K") if last else np.ascontiguousarray(x)
    return memory.reshape(shape)


def from_volume(y: Array, lengths: tuple[int, ...], x: Array, rank: int) -> Array:
    """Read the filled volume as torch does; see :func:`in_torch_memory`."""
    shape, strides = _strides(x.shape, x.strides, x.itemsize, rank, lengths)
    return np.ndarray(shape, y.dtype, y, 0, strides)


@lru_cache(maxsize=4096)
def _volume(
    shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, rank: int
) -> tuple[bool, tuple[int, ...]]:
    """Whether memory is read as channels-last, and the shape of the volume."""
    spatial_shape = (1,) * (3 - rank) + shape[len(shape) - rank :]
    if is_pooled_channels_last(_any(shape, strides, itemsize), rank):
        return True, (shape[0], *spatial_shape, shape[1])
    return False, (prod(shape[: len(shape) - rank]), *spatial_shape, 1)


@lru_cache(maxsize=4096)
def _strides(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    itemsize: int,
    rank: int,
    lengths: tuple[int, ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return shape and strides, in bytes, of the result."""
    whole = shape[: len(shape) - rank] + lengths
    filled = np.empty(prod(whole), f"V{itemsize}")
    return whole, _read(filled, whole, _any(shape, strides, itemsize), rank).strides


def _any(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> Array:
    """Return an array to ask for its memory format."""
    return np.lib.stride_tricks.as_strided(np.empty(1, f"V{itemsize}"), shape, strides)
