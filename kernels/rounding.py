"""The roundings that torch's int8 kernels are made of, in plain NumPy.

Every function takes float32 and integer arrays and rounds where its formula says, nowhere else.
``rint`` is round half to even. The compiled twins are in ``rounding_jit.py``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.types import DType, qint32

F32 = npt.NDArray[np.float32]
Integers = npt.NDArray[Any]

# The largest float32 below 2**31: torch clamps here before it converts to int32.
INT32_CEILING = np.float32(2147483520.0)


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> F32:
    """Return float32 ``a * b + c`` with a single rounding.

    The float64 product of two float32 is exact; the sum is rounded to odd, so that the final
    rounding to float32 sees on which side of a tie the exact value lies.

    Examples
    --------
    >>> float(fma(np.float32(0.1), np.float32(10), np.float32(-1)))
    1.4901161193847656e-08
    """
    result: F32 = _in_blocks(_fma_of_block, np.float32, a, b, c)
    return result


def _fma_of_block(a: Any, b: Any, c: Any) -> Any:
    return _round_to_odd(a * b, c)


def fma64(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return float64 ``a * b + c`` with a single rounding.

    The product is split into two float64 numbers without an error; of the three numbers to add,
    the two small ones are rounded to odd. Where a piece overflows, two roundings are made, and a
    denormal product has lost its error.

    Examples
    --------
    >>> fma64(0.1, 10.0, -1.0)
    array(5.55111512e-17)
    """
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    with np.errstate(invalid="ignore", over="ignore"):
        product = a * b
        (a_high, a_low), (b_high, b_low) = _halves(a), _halves(b)
        error = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
        small, small_error = _two_sum(c, error)
        large, large_error = _two_sum(product, small)
        exact: npt.NDArray[np.float64] = large + _round_to_odd(small_error, large_error)
        return np.asarray(np.where(np.isfinite(exact), exact, product + c))


def _halves(x: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """Split the significand into two numbers of at most 26 bits."""
    scaled = x * (2.0**27 + 1)
    high = scaled - (scaled - x)
    return high, x - high


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Return the rounded sum and its error."""
    total = a + b
    back = total - a
    return total, (a - (total - back)) + (b - back)


def _round_to_odd(a: Any, b: Any) -> Any:
    """Return ``a + b``, an inexact sum rounded to the neighbour whose last bit is one."""
    total, error = _two_sum(a, b)
    bits = np.asarray(total).view(np.int64)
    away = np.where((error > 0) == (total > 0), 1, -1)
    inexact_even = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
    return np.where(inexact_even, bits + away, bits).view(np.float64)


def to_int64(x: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Convert as C on x86 does: NaN and what does not fit give the smallest int64.

    Examples
    --------
    >>> to_int64(np.float32([1.5, np.nan, np.inf])).tolist()
    [1, -9223372036854775808, -9223372036854775808]
    """
    return np.where(np.abs(x) < 2.0**63, x, -(2.0**63)).astype(np.int64)


def _in_blocks(function: Any, result: npt.DTypeLike, *operands: npt.ArrayLike) -> Any:
    """Apply an elementwise float64 function a block at a time, so that memory stays flat."""
    blocks: Any = np.nditer(  # type: ignore[call-overload]
        [*operands, None],
        ["external_loop", "buffered", "zerosize_ok"],
        [["readonly"]] * len(operands) + [["writeonly", "allocate"]],
        [np.float64] * len(operands) + [result],
        casting="unsafe",
        buffersize=1 << 14,
    )
    with blocks, np.errstate(invalid="ignore", over="ignore"):
        for *inputs, output in blocks:
            output[...] = function(*inputs)
        return blocks.operands[-1]


def reciprocal(scale: float) -> np.float32:
    """Return ``1 / scale``, both rounded to float32."""
    if 1e-38 < scale < 1e38:
        return _reciprocal(scale)
    with np.errstate(divide="ignore", over="ignore"):
        return np.float32(1) / np.float32(scale)


@lru_cache(maxsize=4096)  # as long to compute as a small tensor's loop; 0 and -0 stay outside
def _reciprocal(scale: float) -> np.float32:
    return np.float32(1) / np.float32(scale)


def half(x: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Round to float16; what is out of range becomes infinite."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


def half_saturated(x: npt.NDArray[Any]) -> F32:
    """Round to float16 as fbgemm packs a weight, and return float32.

    What is out of range becomes 65504 or -65504, and so does NaN.

    Examples
    --------
    >>> half_saturated(np.float32([1e6, np.nan, 2049])).tolist()
    [65504.0, -65504.0, 2048.0]
    """
    limit = np.float32(np.finfo(np.float16).max)
    full = x.astype(np.float32)
    clamped = np.where(full < limit, np.where(full > -limit, full, -limit), limit)
    return np.where(np.isnan(full), -limit, clamped).astype(np.float16).astype(np.float32)


def saturate(rounded: npt.NDArray[Any], dtype: DType) -> Integers:
    """Clamp whole numbers to the range of ``dtype`` and store them."""
    low, high = dtype.limits
    result: Integers = _in_blocks(lambda x: np.clip(x, low, high), dtype.storage, rounded)
    return result


def round_after(x: F32, m: F32 | np.float32, zero_point: int, dtype: DType) -> Integers:
    """Round ``x * m``, then add the zero point."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = np.minimum(x * m, INT32_CEILING)
    return saturate(np.rint(scaled).astype(np.float64) + zero_point, dtype)


def round_before(x: F32, m: F32 | np.float32, zero_point: int, dtype: DType) -> Integers:
    """Add the zero point to ``x * m`` in float32, then round."""
    with np.errstate(over="ignore", invalid="ignore"):
        real = x * m + np.float32(zero_point)
    return saturate(np.rint(real), dtype)


def round_fused(x: F32, m: F32 | np.float32, zero_point: int, dtype: DType) -> Integers:
    """Multiply and add the zero point with one rounding, then round."""
    real = fma(x, m, np.float32(zero_point))
    # The vector minimum returns its second operand for NaN, so NaN goes to the top.
    real = np.where(real < INT32_CEILING, real, INT32_CEILING)
    return saturate(np.rint(real), dtype)


def saturate_int32(rounded: F32, dtype: DType) -> Integers:
    """Clamp whole numbers to ``dtype``; NaN gives the low bits of the smallest int32.

    Examples
    --------
    >>> from refquant.ir.types import qint32
    >>> saturate_int32(np.float32([np.nan, np.inf]), qint32).tolist()
    [-2147483648, 2147483647]
    """
    nan = -(2**31) if dtype.storage.itemsize == 4 else 0
    wide = np.where(np.isnan(rounded), nan, rounded.astype(np.float64))
    return np.asarray(np.clip(wide, *dtype.limits)).astype(dtype.storage)


def saturate_int64(rounded: F32, dtype: DType, bits: int = 64) -> Integers:
    """Clamp the low ``bits`` of whole numbers as int64; NaN and what does not fit count as 0.

    Examples
    --------
    >>> from refquant.ir.types import quint4x2
    >>> saturate_int64(np.float32([3e9, np.inf]), quint4x2).tolist()
    [15, 0]
    """
    fits = np.abs(rounded) < 2.0**63
    whole = np.where(fits, rounded, 0).astype(np.int64).astype(f"i{bits // 8}")
    return np.asarray(np.clip(whole, *dtype.limits)).astype(dtype.storage)


def quantize_after(x: F32, scale: float, zero_point: int, dtype: DType) -> Integers:
    """Round ``x / scale``, then add the zero point (ATen's vector body, every requantiser)."""
    return round_after(x, reciprocal(scale), zero_point, dtype)


def quantize_before(x: F32, scale: float, zero_point: int, dtype: DType) -> Integers:
    """Add the zero point in float32, then round (ATen's scalar tail)."""
    return round_before(x, reciprocal(scale), zero_point, dtype)


def quantize_fused(x: F32, scale: float, zero_point: int, dtype: DType) -> Integers:
    """Multiply and add the zero point with one rounding, then round (fbgemm's quantizer)."""
    return round_fused(x, reciprocal(scale), zero_point, dtype)


def quantize_whole(x: F32, scale: float, zero_point: int, dtype: DType) -> Integers:
    """Quantize a float32 tensor that an op made: qint32 rounds product and sum separately."""
    quantize = quantize_before if dtype == qint32 else quantize_fused
    return quantize(x, scale, zero_point, dtype)


def dequantize_plain(q: Integers, scale: float, zero_point: int) -> F32:
    """Return ``scale * (q - zero_point)``: an exact difference, one float32 product."""
    difference = (q.astype(np.int64) - zero_point).astype(np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        return difference.astype(np.float32) * np.float32(scale)


def dequantize_fused(q: Integers, scale: float, zero_point: int) -> F32:
    """Return ``fma(scale, q, -scale * zero_point)`` (ATen's vector body)."""
    s = np.float32(scale)
    return fma(s, q.astype(np.float32), -s * np.float32(zero_point))


def is_ordinary(*scales: float | np.float32) -> bool:
    """Whether products of 8-bit integers and these scales neither overflow nor give NaN."""
    return bool(min(scales) > 1e-18 and max(scales) < 1e18)
