"""The output stages of ``requantize.py`` that the tile does not do, compiled: sums to 8 bits.

Sums are (rows, channels) in C order; ``y`` has as many bytes. A result that is signed is passed
as its bytes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.elementary_jit import tanh_glibc
from refquant.kernels.jit import fma, jit
from refquant.kernels.rounding_jit import narrow_before

Array = npt.NDArray[Any]


@jit
def real_of(
    total: np.int32, multiplier: np.float32, factor: np.float32, addend: np.float32
) -> np.float32:
    """Return the real value of a sum, rounded at each step."""
    scaled = np.float32(np.float32(np.float32(total) * multiplier) * factor)
    return np.float32(scaled + addend)


@jit
def clamped(
    steps: np.float32, zero_point: np.float32, low: np.float32, high: np.float32
) -> np.uint8:
    """Add the zero point, clamp, then round; a negative result wraps to its byte."""
    shifted = np.float32(steps + zero_point)
    limited = shifted if shifted < high else high
    limited = limited if limited > low else low
    return np.uint8(np.int32(np.rint(limited)) & 255)


@jit
def requantize_divided(
    total: Array,
    integer: Array,
    addend: Array,
    factor: Array,
    multiplier: Array,
    output: np.float32,
    zero_point: int,
    low: int,
    high: int,
    y: Array,
) -> None:
    """Divide real values by ``output``; ``integer`` is not read."""
    zero, bottom, top = np.float32(zero_point), np.float32(low), np.float32(high)
    for row in range(total.shape[0]):
        for c in range(total.shape[1]):
            real = real_of(total[row, c], multiplier[c], factor[c], addend[c])
            y[row, c] = clamped(np.float32(real / output), zero, bottom, top)


@jit
def requantize_wide(
    total: Array,
    integer: Array,
    addend: Array,
    factor: Array,
    multiplier: Array,
    output: np.float32,
    zero_point: int,
    low: int,
    high: int,
    y: Array,
) -> None:
    """Multiply ``sum + integer`` by the multiplier in float64; no other constant is read."""
    for row in range(total.shape[0]):
        for c in range(total.shape[1]):
            wrapped = np.int32(total[row, c] + integer[c])
            scaled = np.float64(wrapped) * np.float64(multiplier[c])
            whole = np.rint(scaled) if abs(scaled) < 2147483648.0 else -2147483648.0
            y[row, c] = np.uint8(min(max(whole + zero_point, low), high))


@jit
def quantize_before(x: Array, inverse: np.float32, zero_point: np.float32, y: Array) -> None:
    """Quantize finite numbers to uint8, the zero point added before the rounding."""
    low, high = np.float32(0), np.float32(255)
    for i in range(x.size):
        y[i] = np.uint8(narrow_before(x[i], inverse, zero_point, low, high))


@jit
def _rounded(
    real: np.float32, output: np.float32, divides: bool, limits: tuple[Any, Any, Any]
) -> np.uint8:
    steps = np.float32(real / output) if divides else np.float32(real * output)
    return clamped(steps, limits[0], limits[1], limits[2])


@jit
def requantize_leaky_relu(
    total: Array,
    addend: Array,
    factor: Array,
    multiplier: Array,
    output: np.float32,
    divides: bool,
    slope: np.float32,
    limits: tuple[Any, Any, Any],
    y: Array,
) -> None:
    """Multiply negative real values by ``slope``; ``limits``: zero point, low, high as floats."""
    for row in range(total.shape[0]):
        for c in range(total.shape[1]):
            real = real_of(total[row, c], multiplier[c], factor[c], addend[c])
            real = real if real > np.float32(0) else np.float32(real * slope)
            y[row, c] = _rounded(real, output, divides, limits)


@jit
def requantize_tanh(
    total: Array,
    addend: Array,
    factor: Array,
    multiplier: Array,
    output: np.float32,
    divides: bool,
    slope: np.float32,
    limits: tuple[Any, Any, Any],
    y: Array,
) -> None:
    """Take the tanh of real values, the C library's where ``divides``; ``slope`` is not read."""
    for row in range(total.shape[0]):
        for c in range(total.shape[1]):
            real = real_of(total[row, c], multiplier[c], factor[c], addend[c])
            bent = tanh_glibc(real) if divides else np.float32(math.tanh(np.float64(real)))
            y[row, c] = _rounded(bent, output, divides, limits)


@jit
def requantize_added(
    total: Array,
    other: Array,
    addend: Array,
    factor: Array,
    multiplier: Array,
    output: np.float32,
    divides: bool,
    other_zero: np.float32,
    other_scale: np.float32,
    limits: tuple[Any, Any, Any],
    y: Array,
) -> None:
    """Add quantized values to the real ones, then requantise.

    Product and sum have one rounding, but two in the kernel that divides by ``output``.
    """
    for row in range(total.shape[0]):
        for c in range(total.shape[1]):
            real = real_of(total[row, c], multiplier[c], factor[c], addend[c])
            shifted = np.float32(np.float32(other[row, c]) - other_zero)
            if divides:
                added = np.float32(np.float32(shifted * other_scale) + real)
            else:
                added = fma(shifted, other_scale, real)
            y[row, c] = _rounded(added, output, divides, limits)
