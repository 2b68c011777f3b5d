"""The roundings of ``rounding.py`` for one element, compiled."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refquant.kernels.jit import fma, jit

_CEILING = np.float32(2147483520.0)

# Names of the three rules, for :func:`quantize`.
AFTER, BEFORE, FUSED = 0, 1, 2


@jit
def clamp(value: Any, low: int, high: int) -> Any:
    """Return ``value`` limited to ``[low, high]``."""
    return min(max(value, low), high)


@jit
def to_int(x: np.float32, low: int, high: int) -> Any:
    """Round half to even and saturate; NaN and +inf give ``high``."""
    if x < np.float32(2147483648.0):
        if x < np.float32(low):
            return low
        return clamp(np.int64(np.rint(x)), low, high)
    return high


@jit
def quantize_after(
    x: np.float32, inverse: np.float32, zero_point: int, low: int, high: int
) -> Any:
    """Round ``x * inverse``, then add the zero point."""
    scaled = np.float32(x * inverse)
    if not scaled < _CEILING:
        scaled = _CEILING
    if scaled < np.float32(-2147483648.0):
        return low
    return clamp(np.int64(np.rint(scaled)) + zero_point, low, high)


@jit
def quantize_before(
    x: np.float32, inverse: np.float32, zero_point: int, low: int, high: int
) -> Any:
    """Add the zero point in float32, then round."""
    return to_int(np.float32(np.float32(x * inverse) + np.float32(zero_point)), low, high)


@jit
def quantize_fused(
    x: np.float32, inverse: np.float32, zero_point: int, low: int, high: int
) -> Any:
    """Multiply and add the zero point with one rounding, then round."""
    return to_int(fma(x, inverse, np.float32(zero_point)), low, high)


@jit
def dequantize_plain(q: int, scale: np.float32, zero_point: int) -> np.float32:
    """Return ``scale * (q - zero_point)``."""
    return np.float32(np.float32(np.int32(np.int64(q) - zero_point)) * scale)


@jit
def dequantize_fused(q: int, scale: np.float32, offset: np.float32) -> np.float32:
    """Return ``fma(scale, q, offset)`` where ``offset`` is ``-scale * zero_point``."""
    return fma(scale, np.float32(q), offset)


@jit
def quantize(
    x: np.float32, inverse: np.float32, zero_point: int, low: int, high: int, rule: int
) -> Any:
    """Quantize by ``rule``: AFTER, BEFORE or FUSED."""
    if rule == 0:
        return quantize_after(x, inverse, zero_point, low, high)
    if rule == 1:
        return quantize_before(x, inverse, zero_point, low, high)
    return quantize_fused(x, inverse, zero_point, low, high)


@jit
def dequantize(
    q: int, scale: np.float32, offset: np.float32, zero_point: int, fused: bool
) -> np.float32:
    """Dequantize fused (with ``offset`` = ``-scale * zero_point``) or plain."""
    if fused:
        return dequantize_fused(q, scale, offset)
    return dequantize_plain(q, scale, zero_point)


@jit
def narrow_after(
    x: np.float32, inverse: np.float32, zero_point: int, low: np.float32, high: np.float32
) -> Any:
    """Quantize to 8 bits as :func:`quantize_after`, without branches, so that loops vectorise.

    For numbers that are not NaN; ``low`` and ``high`` are the limits minus the zero point.
    """
    whole = np.rint(np.float32(x * inverse))
    limited = np.int32(min(max(whole, low), high))
    return np.int32(limited + np.int32(zero_point))  # not int64, which is half as many lanes


@jit
def narrow_fused(
    x: np.float32, inverse: np.float32, zero_point: np.float32, low: np.float32, high: np.float32
) -> Any:
    """Quantize to 8 bits as :func:`quantize_fused`, without branches; ``low`` to ``high``."""
    real = fma(x, inverse, zero_point)
    real = real if real < high else high  # NaN goes to the top
    real = real if real > low else low
    return np.int32(np.rint(real))


@jit
def narrow_before(
    x: np.float32, inverse: np.float32, zero_point: np.float32, low: np.float32, high: np.float32
) -> Any:
    """Quantize to 8 bits without branches, the zero point added before; NaN gives 0."""
    real = np.rint(np.float32(np.float32(x * inverse) + zero_point))
    limited = real if real < high else high
    limited = limited if limited > low else low
    return np.int32(limited if real == real else np.float32(0))


@jit
def wide_before(x: np.float32, inverse: np.float32, zero_point: np.float32) -> Any:
    """Quantize to 32 bits without branches, the zero point added before; NaN to the bottom."""
    real = np.rint(np.float32(np.float32(x * inverse) + zero_point))
    above = real >= np.float32(2147483648.0)
    limited = real if real > np.float32(-2147483648.0) else np.float32(-2147483648.0)
    whole = np.int32(np.float32(0) if above else limited)
    return np.int32(2147483647) if above else whole


@jit
def low_bits_before(
    x: np.float32, inverse: np.float32, zero_point: np.float32, low: int, high: int
) -> Any:
    """Quantize without branches: clamp the low 32 bits of an int64; what is none counts as 0."""
    real = np.rint(np.float32(np.float32(x * inverse) + zero_point))
    fits = np.abs(real) < np.float32(9223372036854775808.0)
    whole = np.int32(np.int64(real if fits else np.float32(0)))
    return min(max(whole, np.int32(low)), np.int32(high))


@jit
def nibble_after(x: np.float32, inverse: np.float32, zero_point: np.float32) -> Any:
    """Quantize to 4 bits without branches, the zero point added after; no int64 counts as 0."""
    real = np.rint(np.rint(np.float32(x * inverse)) + zero_point)
    fits = np.abs(real) < np.float32(9223372036854775808.0)
    limited = real if fits else np.float32(0)
    limited = limited if limited < np.float32(15) else np.float32(15)
    return np.int32(limited if limited > np.float32(0) else np.float32(0))


@jit
def half(x: np.float32) -> np.float32:
    """Return a float32 number rounded to float16, half to even."""
    size = abs(x)
    if not size < np.float32(65520):
        return np.float32(x * np.float32(np.inf))  # NaN stays NaN
    if size < np.float32(2.0**-14):  # a float16 of fixed point: so are float32 from 0.5 to 1
        fixed = np.float32(np.float32(size + np.float32(0.5)) - np.float32(0.5))
        return np.float32(math.copysign(fixed, x))
    bits = np.int64(np.float32(x).view(np.uint32))
    bits = bits + 0xFFF + (bits >> 13 & 1)
    return np.uint32(bits & 0xFFFFE000).view(np.float32)
