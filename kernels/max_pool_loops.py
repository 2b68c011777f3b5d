"""Compiled loops of ``max_pool.py``: the largest integer of each window of a volume."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_aligned
from refquant.kernels.row_blocks import largest
from refquant.kernels.windows import Geometry, as_volume, from_volume, output_length

Array = npt.NDArray[Any]


@jit
def _fill_bytes(
    x: Any,
    lengths: Any,
    first: Any,
    count: Any,
    steps: Any,
    shape: Any,
    window: int,
    stride: int,
    inner: int,
    y: Any,
) -> None:
    """Take the maximum over pixels of ``inner`` bytes, which lie together in memory.

    ``x`` is flat and has ``lengths`` (outer, depth, height, width); a window begins at ``first``
    and has ``count`` elements inside the input, ``steps`` apart.
    """
    width = lengths[3] * inner
    plane = lengths[2] * width
    place = 0
    for n in range(lengths[0]):
        for od in range(shape[0]):
            for oh in range(shape[1]):
                top = (n * lengths[1] + first[0, od]) * plane + first[1, oh] * width
                ow = 0
                while ow < shape[2]:
                    run = 1  # windows inside the input are one call
                    while ow + run < shape[2] and count[2, ow + run] == count[2, ow] == window:
                        run += 1
                    largest(
                        x, top + first[2, ow] * inner, run, stride * inner,
                        count[0, od], steps[0] * plane, count[1, oh], steps[1] * width,
                        count[2, ow], steps[2] * inner, inner, y, place,
                    )  # fmt: skip
                    place += run * inner
                    ow += run


@jit
def _fill_rows(
    x: Any,
    lengths: Any,
    first: Any,
    count: Any,
    steps: Any,
    shape: Any,
    padding: int,
    window: int,
    stride: int,
    lowest: int,
    y: Any,
) -> None:
    """Take the maximum over depth and height, then along the rows; both are loops of bytes."""
    width = lengths[3]
    plane = lengths[2] * width
    reach = (shape[2] - 1) * stride + (window - 1) * steps[2] + 1
    line = np.full(max(reach, padding + width), x.dtype.type(lowest), x.dtype)
    for n in range(lengths[0]):
        for od in range(shape[0]):
            for oh in range(shape[1]):
                largest(
                    x, (n * lengths[1] + first[0, od]) * plane + first[1, oh] * width, 1, 0,
                    count[0, od], steps[0] * plane, count[1, oh], steps[1] * width,
                    1, 0, width, line, padding,
                )  # fmt: skip
                place = ((n * shape[0] + od) * shape[1] + oh) * shape[2]
                _row(line, window, steps[2], stride, y[place : place + shape[2]])


@jit
def _row(line: Any, window: int, step: int, stride: int, y: Any) -> None:
    """Set ``y[o]`` to the largest ``line[o * stride + k * step]``."""
    if stride == 1:
        y[:] = line[: y.size]
        for k in range(1, window):
            part = line[k * step : k * step + y.size]
            for o in range(y.size):
                y[o] = part[o] if part[o] > y[o] else y[o]
    elif stride == 2:  # a constant, so that the loop vectorises
        for o in range(y.size):
            y[o] = line[2 * o]
        for k in range(1, window):
            part = line[k * step :]
            for o in range(y.size):
                y[o] = part[2 * o] if part[2 * o] > y[o] else y[o]
    else:
        for o in range(y.size):
            best = line[o * stride]
            for k in range(1, window):
                value = line[o * stride + k * step]
                best = value if value > best else best
            y[o] = best


@jit
def _fill_wide(
    x: Any, lengths: Any, first: Any, count: Any, steps: Any, shape: Any, inner: int, y: Any
) -> None:
    """Compute :func:`_fill_bytes` for 32-bit values."""
    width = lengths[3] * inner
    plane = lengths[2] * width
    place = 0
    for n in range(lengths[0]):
        for od in range(shape[0]):
            for oh in range(shape[1]):
                for ow in range(shape[2]):
                    into = y[place : place + inner]
                    for kd in range(count[0, od]):
                        for kh in range(count[1, oh]):
                            d, h = first[0, od] + kd * steps[0], first[1, oh] + kh * steps[1]
                            for kw in range(count[2, ow]):
                                w = first[2, ow] + kw * steps[2]
                                start = (n * lengths[1] + d) * plane + h * width + w * inner
                                pixel = x[start : start + inner]
                                for c in range(inner):
                                    into[c] = pixel[c] if pixel[c] > into[c] else into[c]
                    place += inner


class _Windows(NamedTuple):
    """Where the windows of a volume begin, how many elements they have inside, and how many."""

    first: Array
    inside: Array
    steps: Array
    shape: Array


@lru_cache(maxsize=1024)
def _windows(
    volume: tuple[int, ...], geometry: Geometry, ceil_mode: bool
) -> tuple[Array, _Windows, tuple[int, ...]]:
    """Return the lengths of a volume, its windows, and how many of them along each dimension."""
    rank = len(geometry[0])
    padded = [
        (*(fill,) * (3 - len(part)), *part)
        for part, fill in zip(geometry, (1, 1, 0, 1), strict=True)
    ]
    per_dim = list(zip(volume[1:4], *padded, strict=True))
    shape = [int(output_length(*sizes, ceil_mode)) for sizes in per_dim]  # type: ignore[call-arg,arg-type]
    first, inside = np.zeros((2, 3, max(1, *shape)), np.int64)
    for i, (length, kernel, stride, padding, dilation) in enumerate(per_dim):
        begin = np.arange(shape[i]) * stride - padding
        skipped = np.maximum(0, -(begin // dilation))
        end = np.minimum(kernel, -((begin - length) // dilation))
        inside[i, : shape[i]] = np.maximum(0, end - skipped)
        first[i, : shape[i]] = np.where(end > skipped, begin + skipped * dilation, 0)
    windows = _Windows(first, inside, np.array(padded[3], np.int64), np.array(shape, np.int64))
    return np.array(volume[:4], np.int64), windows, tuple(shape[3 - rank :])


def max_compiled(x: QTensor, geometry: Geometry, ceil_mode: bool) -> Array:
    """Return the largest value of each window, in the memory format of the input."""
    rank, q = len(geometry[0]), x.int_repr
    volume = as_volume(q, rank)
    lengths, windows, spatial_shape = _windows(volume.shape, geometry, ceil_mode)
    outer, *_, inner = volume.shape
    size = outer * prod(spatial_shape) * inner
    flat, lowest = volume.reshape(-1), x.dtype.limits[0]
    window, stride, padding, _ = (part[-1] for part in geometry)
    if not size:
        y = np.empty(0, q.dtype)
    elif q.itemsize > 1:
        y = np.full(size, lowest, q.dtype)
        _fill_wide(flat, lengths, *windows, inner, y)
    elif inner == 1:
        y = np.empty(size, q.dtype)
        _fill_rows(flat, lengths, *windows, padding, window, stride, lowest, y)
    else:
        y = empty_aligned((size,), q.dtype)
        _fill_bytes(flat, lengths, *windows, window, stride, inner, y)
    return from_volume(y, spatial_shape, q, rank)
