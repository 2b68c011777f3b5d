"""Compiled loops of ``group_norm.py``: the statistics of the groups, then every element."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import fma, jit
from refquant.kernels.norms import (
    are_moderate,
    moments_one,
    multiply_add_one,
    quantize_one,
    sum_and_squares,
)
from refquant.kernels.rounding_jit import narrow_after, narrow_before

F32 = npt.NDArray[np.float32]


@jit
def statistics(
    x: Any,
    groups: int,
    scale: np.float32,
    zero_point: int,
    eps: float,
    fused: bool,
    mean: F32,
    r: F32,
) -> None:
    """Fill mean and reciprocal deviation of (N, pixels, C) or, if x is (N, C, pixels), alike."""
    for n in range(x.shape[0]):
        for g in range(groups):
            size = x.shape[2] * x.shape[3]
            total, squares = sum_and_squares(x[n, g].reshape(size))
            count = x.shape[2] * x.shape[3]
            mean[n, g], r[n, g] = moments_one(
                np.float32(total), np.float32(squares), count, scale, zero_point, eps, fused
            )


@jit
def statistics_in_float(
    x: Any,
    groups: int,
    share: int,
    scale: np.float32,
    zero_point: int,
    eps: float,
    fused: bool,
    mean: F32,
    r: F32,
) -> None:
    """Fill the same of channels-last (N, pixels, C), summed in float32 by threads' shares."""
    images, pixels, channels = x.shape
    threads = (images * pixels + share - 1) // share
    for n in range(images):
        sums = np.zeros((threads, 2, channels), np.float32)
        for p in range(pixels):
            t = (n * pixels + p) // share
            row, total_row, square_row = x[n, p], sums[t, 0], sums[t, 1]
            for c in range(channels):
                q = np.float32(row[c])
                total_row[c] += q
                square_row[c] += np.float32(q * q)
        per_group = channels // groups
        for g in range(groups):
            total = np.float32(0)
            squares = np.float32(0)
            for t in range(threads):
                for c in range(g * per_group, (g + 1) * per_group):
                    total += sums[t, 0, c]
                    squares += sums[t, 1, c]
            mean[n, g], r[n, g] = moments_one(
                total, squares, per_group * pixels, scale, zero_point, eps, fused
            )


@jit
def statistics_of_pixels(
    x: Any,
    groups: int,
    scale: np.float32,
    zero_point: int,
    eps: float,
    fused: bool,
    mean: F32,
    r: F32,
) -> None:
    """Fill the same of channels-last (N, pixels, C) of few pixels, summed as integers."""
    images, pixels, channels = x.shape
    per_group = channels // groups
    sums = np.empty((2, channels), np.int32)
    for n in range(images):
        sums[:] = 0
        for p in range(pixels):
            row, totals, squares = x[n, p], sums[0], sums[1]
            for c in range(channels):
                q = np.int32(row[c])
                totals[c] += q
                squares[c] += np.int32(q * q)
        for g in range(groups):
            total, square = np.int64(0), np.int64(0)
            for c in range(g * per_group, (g + 1) * per_group):
                total += np.int64(sums[0, c])
                square += np.int64(sums[1, c])
            mean[n, g], r[n, g] = moments_one(
                np.float32(total),
                np.float32(square),
                per_group * pixels,
                scale,
                zero_point,
                eps,
                fused,
            )


@jit
def fill(
    x: Any,
    zero_point: int,
    mean: F32,
    r: F32,
    weight: F32,
    bias: F32,
    fused: bool,
    inverse: np.float32,
    to: int,
    low: int,
    high: int,
    rule: int,
    y: Any,
) -> None:
    """Normalise (N, C, pixels)."""
    per_group = x.shape[1] // mean.shape[1]
    zero = np.float32(zero_point)
    least, most = np.float32(low - to), np.float32(high - to)
    moderate: Any = fused and rule == 0 and are_moderate(bias) and 1e-15 < inverse < 1e15
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            row, into = x[n, c], y[n, c]
            middle, shift = mean[n, c // per_group], bias[c]
            gain = np.float32(r[n, c // per_group] * weight[c])
            if moderate and abs(gain) < 1e15:
                for p in range(into.size):
                    distance = np.float32(np.float32(np.float32(row[p]) - zero) - middle)
                    real = fma(distance, gain, shift)
                    into[p] = narrow_after(real, inverse, to, least, most)
                continue
            for p in range(into.size):
                distance = np.float32(np.float32(np.int64(row[p]) - zero_point) - middle)
                real = multiply_add_one(distance, gain, shift, fused)
                into[p] = quantize_one(real, True, inverse, to, low, high, rule)


@jit
def fill_pixels(
    x: Any,
    zero_point: int,
    mean: F32,
    r: F32,
    weight: F32,
    bias: F32,
    counted: int,
    fused: bool,
    inverse: np.float32,
    to: int,
    low: int,
    high: int,
    rule: int,
    y: Any,
) -> None:
    """Normalise channels-last (N, pixels, C), the mean in the summand."""
    channels = x.shape[2]
    per_group = channels // mean.shape[1]
    body = counted // 32 * 32
    zero, z = np.float32(zero_point), np.float32(to)
    least, most = np.float32(low - to), np.float32(high - to)
    bottom, top = np.float32(low), np.float32(high)
    gain, shift = np.empty(channels, np.float32), np.empty(channels, np.float32)
    in_body = np.empty(channels, np.bool_)
    for n in range(x.shape[0]):
        for c in range(channels):
            g = c // per_group
            gain[c] = np.float32(r[n, g] * weight[c])
            shift[c] = multiply_add_one(np.float32(-gain[c]), mean[n, g], bias[c], fused)
            in_body[c] = c % counted < body
        moderate: Any = fused and rule == 0 and are_moderate(gain) and are_moderate(shift)
        moderate = moderate and 1e-15 < inverse < 1e15
        for p in range(x.shape[1]):
            row, into = x[n, p], y[n, p]
            if not moderate:
                for c in range(channels):
                    distance = np.float32(np.int64(row[c]) - zero_point)
                    real = multiply_add_one(distance, gain[c], shift[c], fused)
                    into[c] = quantize_one(real, in_body[c], inverse, to, low, high, rule)
            elif body == counted:
                for c in range(channels):
                    real = fma(np.float32(np.float32(row[c]) - zero), gain[c], shift[c])
                    into[c] = narrow_after(real, inverse, to, least, most)
            else:
                for c in range(channels):
                    real = fma(np.float32(np.float32(row[c]) - zero), gain[c], shift[c])
                    after = narrow_after(real, inverse, to, least, most)
                    before = narrow_before(real, inverse, z, bottom, top)
                    into[c] = after if in_body[c] else before
