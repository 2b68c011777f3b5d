"""Averages of quantized values over windows: exact sums, rounded in one of three places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.kernels import rounding
from refquant.kernels.jit import jit
from refquant.kernels.rounding_jit import (
    AFTER,
    BEFORE,
    FUSED,
    narrow_after,
    narrow_before,
    narrow_fused,
    quantize,
)
from refquant.kernels.row_blocks import sums
from refquant.kernels.windows import Windows, as_volume, from_volume, in_torch_memory

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

ROUND = {
    AFTER: rounding.round_after,
    BEFORE: rounding.round_before,
    FUSED: rounding.round_fused,
}


class Rule(NamedTuple):
    """How the sum of a window becomes an average.

    Parameters
    ----------
    body_channels : int
        The first so many channels use ``body``, the others ``tail``.
    body, tail : int
        AFTER, BEFORE or FUSED: where the zero point is added.
    raw : bool
        Sum the integers themselves; otherwise their distances from the zero point.
    """

    body_channels: int
    body: int
    tail: int
    raw: bool = False


def divisors(windows: Sequence[Windows], *, count_padding: bool) -> Array:
    """Return the number of elements of each window, one array dimension per spatial one."""
    sizes = [w.count if count_padding else w.end - w.start for w in windows]
    product: Array = reduce(np.multiply.outer, sizes)
    return product


def reciprocals(divisor: Array) -> F32:
    """Return what sums are multiplied with: quotients of float64, rounded."""
    with np.errstate(divide="ignore"):
        return (1.0 / divisor.astype(np.float64)).astype(np.float32)


def reciprocals_in_turn(windows: Sequence[Windows]) -> F32:
    """Return 1 divided by the lengths of each window one after the other, each time rounded.

    Examples
    --------
    >>> w = Windows(np.array([0]), np.array([7]), np.array([7]))
    >>> reciprocals_in_turn([w, w]) == reciprocals(np.array([[49]]))
    array([[False]])
    """
    first, *others = (w.end - w.start for w in windows)
    factor = reciprocals(first)
    for lengths in others:
        factor = np.divide.outer(factor, lengths.astype(np.float32))
    return factor


def window_sums(x: Array, windows: Sequence[Windows]) -> Array:
    """Sum integers over windows of the last dimensions, exactly, by differences of running sums.

    Examples
    --------
    >>> w = Windows(np.array([0, 1]), np.array([2, 3]), np.array([2, 2]))
    >>> window_sums(np.array([1, 2, 5]), [w])
    array([3, 7])
    """
    sums = x.astype(np.int64)
    for axis, window in enumerate(windows, x.ndim - len(windows)):
        pad = [(0, 0)] * x.ndim
        pad[axis] = (1, 0)
        running = np.pad(np.cumsum(sums, axis), pad)
        sums = np.take(running, window.end, axis) - np.take(running, window.start, axis)
    return sums


def average(x: QTensor, windows: Sequence[Windows], factor: F32, rule: Rule) -> Array:
    """Average over windows of the last dimensions, in plain NumPy."""
    q, zero_point = x.int_repr, int(x.zero_point)
    sums = window_sums(q if rule.raw else q.astype(np.int64) - zero_point, windows)
    added = 0 if rule.raw else zero_point
    real = sums.astype(np.int32).astype(np.float32)
    body = ROUND[rule.body](real, factor, added, x.dtype)
    tail = ROUND[rule.tail](real, factor, added, x.dtype)
    channel_axis = q.ndim - len(windows) - 1
    in_body = np.arange(q.shape[channel_axis]) < rule.body_channels
    averages = np.where(in_body.reshape(-1, *(1,) * len(windows)), body, tail)
    return in_torch_memory(averages, q, len(windows))


@jit
def _fill_wide(
    x: Any,
    start: Any,
    end: Any,
    lengths: Any,
    factor: Any,
    minus: int,
    plus: int,
    low: int,
    high: int,
    channels: int,
    body_channels: int,
    body: int,
    tail: int,
    y: Any,
) -> None:
    """Average values of any type."""
    inner = x.shape[4]
    row = np.empty(x.shape[3] * inner, np.int64)
    totals = np.empty(inner, np.int64)
    for n in range(y.shape[0]):
        for od in range(lengths[0]):
            for oh in range(lengths[1]):
                row[:] = 0
                for d in range(start[0, od], end[0, od]):
                    for h in range(start[1, oh], end[1, oh]):
                        line = x[n, d, h].reshape(row.size)
                        for i in range(row.size):
                            row[i] += np.int64(line[i])
                lines = (end[0, od] - start[0, od]) * (end[1, oh] - start[1, oh])
                for ow in range(lengths[2]):
                    m = factor[od, oh, ow]
                    first, last = start[2, ow], end[2, ow]
                    zeros = lines * (last - first) * minus
                    totals[:] = -zeros
                    for w in range(first, last):
                        pixel = row[w * inner : (w + 1) * inner]
                        for c in range(inner):
                            totals[c] += pixel[c]
                    for c in range(inner):
                        channel = c if inner > 1 else n % channels
                        rule = body if channel < body_channels else tail
                        real = np.float32(np.int32(totals[c]))
                        y[n, od, oh, ow, c] = quantize(real, m, plus, low, high, rule)


@jit
def _round(
    total: Any, zeros: int, m: np.float32, zero_point: int, low: int, high: int, rule: int, y: Any
) -> None:
    """Average 8-bit values with one factor, by loops that vectorise."""
    least, most, z = np.float32(low), np.float32(high), np.float32(zero_point)
    minus = np.int32(zeros)
    if rule == 0:  # AFTER
        least, most = np.float32(low - zero_point), np.float32(high - zero_point)
        for c in range(y.size):
            real = np.float32(np.int32(total[c] - minus))
            y[c] = narrow_after(real, m, zero_point, least, most)
    elif rule == 1:  # BEFORE
        for c in range(y.size):
            y[c] = narrow_before(np.float32(np.int32(total[c] - minus)), m, z, least, most)
    else:
        for c in range(y.size):
            y[c] = narrow_fused(np.float32(np.int32(total[c] - minus)), m, z, least, most)


@jit
def _fill_pixels(
    x: Any,
    lengths: Any,
    start: Any,
    end: Any,
    shape: Any,
    factor: Any,
    minus: int,
    plus: int,
    low: int,
    high: int,
    inner: int,
    body_channels: int,
    body: int,
    tail: int,
    y: Any,
) -> None:
    """Average over pixels of ``inner`` bytes; ``x`` is flat, of ``lengths`` and ``inner``."""
    width = lengths[3] * inner
    plane = lengths[2] * width
    totals = np.empty(inner * shape[2], np.int32)
    place = 0
    for n in range(lengths[0]):
        for od in range(shape[0]):
            d, planes = start[0, od], end[0, od] - start[0, od]
            for oh in range(shape[1]):
                h, rows = start[1, oh], end[1, oh] - start[1, oh]
                ow = 0
                while ow < shape[2]:
                    w, pixels, m = start[2, ow], end[2, ow] - start[2, ow], factor[od, oh, ow]
                    step, run = np.int64(0), 1  # windows of one size and distance
                    while ow + run < shape[2]:
                        last = ow + run
                        distance = start[2, last] - start[2, last - 1]
                        same = run == 1 or distance == step
                        if not (
                            same
                            and end[2, last] - start[2, last] == pixels
                            and factor[od, oh, last] == m
                        ):
                            break
                        step = distance
                        run += 1
                    sums(
                        x, (n * lengths[1] + d) * plane + h * width + w * inner,
                        run, step * inner, planes, plane, rows, width, pixels, inner,
                        inner, totals, 0,
                    )  # fmt: skip
                    zeros = planes * rows * pixels * minus
                    if body_channels == inner or body_channels == 0:
                        rule = body if body_channels else tail
                        total, into = totals[: run * inner], y[place : place + run * inner]
                        _round(total, zeros, m, plus, low, high, rule, into)
                    else:
                        for i in range(run):
                            total = totals[i * inner : (i + 1) * inner]
                            into = y[place + i * inner : place + (i + 1) * inner]
                            b = body_channels
                            _round(total[:b], zeros, m, plus, low, high, body, into[:b])
                            _round(total[b:], zeros, m, plus, low, high, tail, into[b:])
                    place += run * inner
                    ow += run


@jit
def _fill_rows(
    x: Any,
    lengths: Any,
    start: Any,
    end: Any,
    shape: Any,
    factor: Any,
    minus: int,
    plus: int,
    low: int,
    high: int,
    y: Any,
) -> None:
    """Average over depth and height, which are rows of bytes, then along the rows; all BEFORE."""
    width = lengths[3]
    plane = lengths[2] * width
    line = np.empty(width, np.int32)
    least, most, z = np.float32(low), np.float32(high), np.float32(plus)
    for n in range(lengths[0]):
        for od in range(shape[0]):
            d, planes = start[0, od], end[0, od] - start[0, od]
            for oh in range(shape[1]):
                h, rows = start[1, oh], end[1, oh] - start[1, oh]
                sums(
                    x, (n * lengths[1] + d) * plane + h * width, 1, 0,
                    planes, plane, rows, width, 1, 0, width, line, 0,
                )  # fmt: skip
                place = ((n * shape[0] + od) * shape[1] + oh) * shape[2]
                for ow in range(shape[2]):
                    first, last = start[2, ow], end[2, ow]
                    total = np.int32(-planes * rows * (last - first) * minus)
                    for w in range(first, last):
                        total = np.int32(total + line[w])
                    real = np.float32(total)
                    y[place + ow] = narrow_before(real, factor[od, oh, ow], z, least, most)


class Nest(NamedTuple):
    """The windows of a volume as the compiled loops take them."""

    start: Array
    end: Array
    shape: Array
    factor: F32
    finite: bool
    lengths: tuple[int, ...]


def nest(windows: Sequence[Windows], factor: F32) -> Nest:
    """Lay windows out; their factors are broadcast."""
    padded = [Windows(*np.array([[0], [1], [1]]))] * (3 - len(windows)) + list(windows)
    shape = [len(w.start) for w in padded]
    bounds = np.zeros((2, 3, max(shape, default=0)), np.int64)
    for i, window in enumerate(padded):
        bounds[0, i, : shape[i]] = window.start
        bounds[1, i, : shape[i]] = window.end
    lengths = tuple(shape[3 - len(windows) :])
    factors = np.ascontiguousarray(np.broadcast_to(factor, lengths)).reshape(shape)
    finite = bool(np.isfinite(factors).all())
    return Nest(bounds[0], bounds[1], np.array(shape, np.int64), factors, finite, lengths)


def average_compiled(x: QTensor, windows: Nest, rule: Rule) -> Array:
    """Average over windows of the last dimensions, in one compiled pass."""
    q, zero_point = x.int_repr, int(x.zero_point)
    rank = len(windows.lengths)
    volume = as_volume(q, rank)
    outer, inner = volume.shape[0], volume.shape[4]
    y = np.empty(outer * prod(windows.lengths) * inner, q.dtype)
    zero = 0 if rule.raw else zero_point
    limits = (zero, zero, *x.dtype.limits)
    places = (windows.start, windows.end, windows.shape, windows.factor)
    if q.itemsize > 1 or not windows.finite:
        channels = q.shape[q.ndim - rank - 1]
        filled = y.reshape(outer, *windows.shape, inner)
        _fill_wide(volume, *places, *limits, channels, *rule[:3], filled)
        return from_volume(y, windows.lengths, q, rank)
    flat, size = volume.reshape(-1), np.array(volume.shape)
    if inner == 1 and not rule.body_channels:
        _fill_rows(flat, size, *places, *limits, y)
    else:
        _fill_pixels(flat, size, *places, *limits, inner, *rule[:3], y)
    return from_volume(y, windows.lengths, q, rank)
