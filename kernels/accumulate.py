"""Exact integer dot products in plain NumPy, in blocks small enough to keep memory flat."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor

Array = npt.NDArray[Any]
Int32 = npt.NDArray[np.int32]


class Sums(Enum):
    """How products are added.

    Machines without VNNI multiply bytes in pairs whose sum saturates to int16. Pairs are
    neighbours along K: the taps of the kernel in reading order, in each tap the group's inputs.
    """

    EXACT = "in int32"
    PAIRED = "pairs along K, padding included"
    PAIRED_INSIDE = "pairs along K, padding left out"
    PAIRED_IN_TAPS = "pairs of inputs of one tap, padding left out"

    @property
    def leaves_out_padding(self) -> bool:
        """Whether padding neither saturates nor counts; else it multiplies as the zero point."""
        return self in (Sums.PAIRED_INSIDE, Sums.PAIRED_IN_TAPS)


# Elements of one temporary: a float64 block takes 128 KB.
BLOCK = 1 << 14


def blocks(length: int, size: int) -> Iterator[slice]:
    """Yield slices of ``size`` (at least 1) that cover ``length``."""
    size = max(size, 1)
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def weight_zero_points(weight: QTensor, channels: int) -> npt.NDArray[np.int64]:
    """Return the zero point of each output channel."""
    return np.broadcast_to(np.asarray(weight.zero_point, np.int64), (channels,))


def dot(x: Array, zero_point: int, weight: Array, weight_zero_point: Array) -> Int32:
    r"""Return :math:`\sum_k (x_k - z_x)(w_k - z_w)` per pixel and output channel.

    Each term is below 2**17 and float64 holds whole numbers to 2**53, so the float64 product is
    exact; the sum wraps to int32 as the machine's accumulator does.

    Parameters
    ----------
    x : uint8 (pixels, groups, K)
        Input of each output pixel, padding included as ``zero_point``.
    zero_point : int
        Zero point of ``x``.
    weight : int8 (groups, channels, K)
        Raw weight.
    weight_zero_point : int (groups * channels,)
        Zero point of each channel's weight.

    Returns
    -------
    int32 (pixels, groups * channels)

    Examples
    --------
    >>> w = np.int8([[[5, 7], [1, -3]]])
    >>> dot(np.uint8([[[1, 2]]]), 1, w, np.int64([0, 1]))
    array([[ 7, -4]], dtype=int32)
    """
    pixels, groups, depth = x.shape
    channels = weight.shape[1]
    shift = weight_zero_point.reshape(groups, channels, 1)
    centered = x.transpose(1, 0, 2).astype(np.float64)
    centered -= zero_point
    total = np.empty((pixels, groups, channels), np.int32)
    for g in blocks(groups, BLOCK // max(channels * depth, 1)):
        for c in blocks(channels, BLOCK // max(depth, 1)):
            factor = weight[g, c].astype(np.float64)
            factor -= shift[g, c]
            exact = np.matmul(centered[g], factor.transpose(0, 2, 1)).astype(np.int64)
            total[:, g, c] = exact.astype(np.int32).transpose(1, 0, 2)
    return total.reshape(pixels, groups * channels)


def dot_saturating(
    x: Array,
    zero_point: int,
    weight: Array,
    weight_zero_point: Array,
    seen: npt.NDArray[np.bool_] | None = None,
) -> Int32:
    r"""Return the dot products as 8-bit multiply-add instructions without VNNI give them.

    Raw bytes are multiplied in pairs along K, each pair's sum saturates to int16, and the zero
    points are taken out afterwards, exactly:

    .. math:: \sum_i \mathrm{sat}_{16}(x_{2i} w_{2i} + x_{2i+1} w_{2i+1})
              - z_x \sum_k w_k - z_w \sum_k x_k + z_x z_w K

    Parameters
    ----------
    x : uint8 (pixels, groups, K)
        Input of each output pixel, padding included as ``zero_point``.
    zero_point : int
        Zero point of ``x``.
    weight : int8 (groups, channels, K)
        Raw weight.
    weight_zero_point : int (groups * channels,)
        Zero point of each channel's weight.
    seen : bool (pixels, K), optional
        What lies inside the map. The rest is left out: it neither saturates nor counts.

    Returns
    -------
    int32 (pixels, groups * channels)

    Examples
    --------
    >>> w = np.int8([[[127, 2]]])
    >>> dot_saturating(np.uint8([[[255, 191]], [[255, 192]]]), 0, w, np.int64([0]))
    array([[32767],
           [32767]], dtype=int32)
    """
    pixels, groups, depth = x.shape
    channels = weight.shape[1]
    raw = x if seen is None else x * seen[:, np.newaxis]
    total = np.empty((pixels, groups, channels), np.int32)
    shift = weight_zero_point.reshape(groups, channels).astype(np.int64)
    for part in blocks(pixels, BLOCK // max(groups * channels * depth, 1)):
        for c in blocks(channels, BLOCK // max(groups * depth, 1)):
            product = raw[part, :, np.newaxis].astype(np.int32) * weight[:, c].astype(np.int32)
            if depth % 2:
                product = np.concatenate((product, np.zeros_like(product[..., :1])), -1)
            pairs = product[..., 0::2] + product[..., 1::2]
            some: npt.NDArray[np.int64] = np.clip(pairs, -(2**15), 2**15 - 1).sum(-1)
            if seen is None:
                some -= zero_point * weight[:, c].sum(-1, dtype=np.int64)
            else:
                inside = seen[part].astype(np.int64)
                some -= zero_point * np.einsum("pk,gck->pgc", inside, weight[:, c])
            some -= shift[:, c] * raw[part].sum(-1, dtype=np.int64)[..., np.newaxis]
            some += zero_point * shift[:, c] * depth
            total[part, :, c] = some.astype(np.int32)
    return total.reshape(pixels, groups * channels)


def windows(
    x: Array,
    pixels: slice,
    out: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    fill: int,
) -> Array:
    """Return what a convolution multiplies for some output pixels of one image.

    Parameters
    ----------
    x : uint8 (channels, ...)
        One image.
    pixels : slice
        Output pixels, counted row by row.
    out : tuple of int
        Size of the output map.
    kernel, stride, padding, dilation : tuple of int
        One entry per spatial axis.
    fill : int
        Value outside the image.

    Returns
    -------
    uint8 (pixels, channels, taps)
        Taps row by row.
    """
    image = np.moveaxis(x, 0, -1)
    at = np.unravel_index(np.arange(pixels.start, pixels.stop), out)
    taken = np.empty((pixels.stop - pixels.start, x.shape[0], int(np.prod(kernel))), x.dtype)
    for tap, position in enumerate(np.ndindex(*kernel)):
        axes = zip(at, position, stride, padding, dilation, strict=True)
        index = [a * s - p + k * d for a, k, s, p, d in axes]
        sizes = image.shape[:-1]
        inside = np.logical_and.reduce(
            [(i >= 0) & (i < n) for i, n in zip(index, sizes, strict=True)]
        )
        nearest = tuple(np.clip(i, 0, n - 1) for i, n in zip(index, sizes, strict=True))
        taken[:, :, tap] = np.where(inside[:, None], image[nearest], np.asarray(fill, x.dtype))
    return taken
