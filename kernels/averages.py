"""Averages of quantized values over windows: exact sums, rounded in one of three places."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.kernels import rounding
from refquant.kernels.jit import jit
from refquant.kernels.rounding_jit import AFTER, BEFORE, FUSED, quantize
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
def _fill(
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


def average_compiled(x: QTensor, windows: Sequence[Windows], factor: F32, rule: Rule) -> Array:
    """Average over windows of the last dimensions, in one compiled pass."""
    q, zero_point = x.int_repr, int(x.zero_point)
    rank = len(windows)
    padded = [Windows(*np.array([[0], [1], [1]]))] * (3 - rank) + list(windows)
    lengths = [len(w.start) for w in padded]
    bounds = np.zeros((2, 3, max(lengths, default=0)), np.int64)
    for i, window in enumerate(padded):
        bounds[0, i, : lengths[i]] = window.start
        bounds[1, i, : lengths[i]] = window.end
    volume = as_volume(q, rank)
    y = np.empty((volume.shape[0], *lengths, volume.shape[4]), q.dtype)
    minus, plus = (0, 0) if rule.raw else (zero_point, zero_point)
    channels = q.shape[q.ndim - rank - 1]
    factor = np.ascontiguousarray(np.broadcast_to(factor, lengths[3 - rank :])).reshape(lengths)
    _fill(
        *(volume, bounds[0], bounds[1], np.asarray(lengths), factor, minus, plus),
        *(*x.dtype.limits, channels, *rule[:3], y),
    )
    return from_volume(y, tuple(lengths[3 - rank :]), q, rank)
