"""The functions of ``elementary.py`` for one element, compiled."""

from __future__ import annotations

import math
from typing import Any

import numba as nb
import numpy as np
from numba.extending import intrinsic

from refquant.kernels import elementary
from refquant.kernels.jit import fma, jit

_ONE = np.float32(1)
_TWO = np.float32(2)
_HALF = np.float32(0.5)
_ZERO = np.float32(0)
_INFINITY = np.float32(np.inf)
_R_LN2 = np.float32(1.442695040888963)


@intrinsic  # type: ignore[misc,untyped-decorator,unused-ignore]
def _llvm_fma_64(_typing: Any, _a: Any, _b: Any, _c: Any) -> Any:
    f64 = nb.types.float64

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return f64(f64, f64, f64), codegen


if nb.config.DISABLE_JIT:  # intrinsics exist only in compiled code

    def fma_64(a: float, b: float, c: float) -> Any:
        """Return ``a * b + c`` with one rounding."""
        return elementary.fma_64(a, b, c)[()]

    def _wrapping_sum(a: np.uint64, b: np.uint64) -> Any:
        return np.uint64((int(a) + int(b)) & (2**64 - 1))

else:

    @jit
    def fma_64(a: float, b: float, c: float) -> Any:
        """Return ``a * b + c`` with one rounding."""
        return _llvm_fma_64(a, b, c)

    @jit
    def _wrapping_sum(a: np.uint64, b: np.uint64) -> Any:
        return a + b


# ---------------------------------------------------------------------------------- SLEEF


@jit
def _pattern(x: np.float32) -> Any:
    return np.float32(x).view(np.int32)


@jit
def _value(pattern: Any) -> Any:
    return np.int32(pattern).view(np.float32)


@jit
def _ldexp2(x: np.float32, q: Any) -> Any:
    half = q >> 1
    first = np.float32(x * _value((half + 127) << 23))
    return np.float32(first * _value((q - half + 127) << 23))


@jit
def exp_sleef(d: np.float32) -> Any:
    """Return ``Sleef_expf_u10``."""
    if d != d:
        return d
    if d < np.float32(-104):
        return _ZERO
    if d > np.float32(100):
        return _INFINITY
    r = np.rint(np.float32(d * _R_LN2))
    s = fma(r, np.float32(-0.693145751953125), d)
    s = fma(r, np.float32(-1.428606765330187045e-06), s)
    u = np.float32(0.000198527617612853646278381)
    u = fma(u, s, np.float32(0.00139304355252534151077271))
    u = fma(u, s, np.float32(0.00833336077630519866943359))
    u = fma(u, s, np.float32(0.0416664853692054748535156))
    u = fma(u, s, np.float32(0.166666671633720397949219))
    u = fma(u, s, _HALF)
    u = np.float32(_ONE + fma(np.float32(s * s), u, s))
    return _ldexp2(u, np.int64(r))


@jit
def _add(x0: np.float32, x1: np.float32, y: np.float32) -> Any:
    s = np.float32(x0 + y)
    v = np.float32(s - x0)
    t = np.float32(np.float32(x0 - np.float32(s - v)) + np.float32(y - v))
    return s, np.float32(t + x1)


@jit
def _add_pairs(x0: np.float32, x1: np.float32, y0: np.float32, y1: np.float32) -> Any:
    s = np.float32(x0 + y0)
    v = np.float32(s - x0)
    t = np.float32(np.float32(x0 - np.float32(s - v)) + np.float32(y0 - v))
    return s, np.float32(t + np.float32(x1 + y1))


@jit
def _add_larger(x0: np.float32, x1: np.float32, y0: np.float32, y1: np.float32) -> Any:
    s = np.float32(x0 + y0)
    return s, np.float32(np.float32(np.float32(np.float32(x0 - s) + y0) + x1) + y1)


@jit
def _multiply(x0: np.float32, x1: np.float32, y0: np.float32, y1: np.float32) -> Any:
    s = np.float32(x0 * y0)
    return s, fma(x0, y1, fma(x1, y0, fma(x0, y0, np.float32(-s))))


@jit
def expk2(d: np.float32) -> Any:
    """Return ``exp(d)`` of a moderate number as an unevaluated sum (high, low)."""
    r = np.rint(np.float32(d * _R_LN2))
    s0, s1 = _add(d, _ZERO, np.float32(r * np.float32(-0.693145751953125)))
    s0, s1 = _add(s0, s1, np.float32(r * np.float32(-1.428606765330187045e-06)))
    u = np.float32(0.1980960224e-3)
    u = fma(u, s0, np.float32(0.1394256484e-2))
    u = fma(u, s0, np.float32(0.8333456703e-2))
    u = fma(u, s0, np.float32(0.4166637361e-1))
    product = np.float32(s0 * u)
    t0, t1 = product, fma(s1, u, fma(s0, u, np.float32(-product)))
    t0, t1 = _add(t0, t1, np.float32(0.166666659414234244790680580464))
    t0, t1 = _multiply(s0, s1, t0, t1)
    t0, t1 = _add(t0, t1, _HALF)
    square = np.float32(s0 * s0)
    low = fma(np.float32(s0 + s0), s1, fma(s0, s0, np.float32(-square)))
    a0, a1 = _multiply(square, low, t0, t1)
    t0, t1 = _add_pairs(s0, s1, a0, a1)
    high = np.float32(_ONE + t0)
    low = np.float32(np.float32(np.float32(_ONE - high) + t0) + t1)
    q = np.int64(r)
    return _ldexp2(high, q), _ldexp2(low, q)


@jit
def expm1_sleef(a: np.float32) -> Any:
    """Return ``Sleef_expm1f_u10``."""
    if a != a or a == 0:
        return a
    if a > np.float32(88.72283172607421875):
        return _INFINITY
    if a < np.float32(-16.635532333438687426013570):
        return np.float32(-1)
    high, low = expk2(a)
    high, low = _add(high, low, np.float32(-1))
    return np.float32(high + low)


@jit
def tanh_sleef(x: np.float32) -> Any:
    """Return ``Sleef_tanhf_u10``."""
    if x != x:
        return x
    size = abs(x)
    result = _ONE
    if size <= np.float32(8.664339742):
        d0, d1 = expk2(size)
        e0 = np.float32(_ONE / d0)
        e1 = np.float32(e0 * fma(np.float32(-d1), e0, fma(np.float32(-d0), e0, _ONE)))
        n0, n1 = _add_larger(d0, d1, np.float32(-e0), np.float32(-e1))
        m0, m1 = _add_larger(d0, d1, e0, e1)
        t = np.float32(_ONE / m0)
        s = np.float32(n0 * t)
        u = fma(t, n0, np.float32(-s))
        v = fma(np.float32(-m1), t, fma(np.float32(-m0), t, _ONE))
        result = np.float32(s + fma(s, v, fma(n1, t, u)))
    return np.float32(-result) if _pattern(x) < 0 else result


@jit
def erf_aten(x: np.float32) -> Any:
    """Return ``Vectorized<float>::erf`` of ATen."""
    t = np.float32(_ONE / fma(np.float32(0.3275911), abs(x), _ONE))
    r = fma(np.float32(1.061405429), t, np.float32(-1.453152027))
    r = fma(r, t, np.float32(1.421413741))
    r = fma(r, t, np.float32(-0.284496736))
    r = fma(r, t, np.float32(0.254829592))
    e = exp_sleef(np.float32(-np.float32(x * x)))
    y = fma(np.float32(np.float32(-e) * t), r, _ONE)
    return np.float32(-y) if _pattern(x) < 0 else y


# ---------------------------------------------------------------------------------- glibc

_TABLE = elementary.EXP_TABLE
_INVERSE_LN2_64 = elementary.EXP_INVERSE_LN2
_SHIFT = elementary.EXP_SHIFT
_C0, _C1, _C2 = elementary.EXP_POLYNOMIAL
_OVERFLOW, _UNDERFLOW = elementary.EXP_OVERFLOW, elementary.EXP_UNDERFLOW


@jit
def exp_glibc(x: np.float32) -> Any:
    """Return glibc's ``expf``."""
    if x != x:
        return x
    if x > _OVERFLOW:
        return _INFINITY
    if x < _UNDERFLOW:
        return _ZERO
    wide = np.float64(x)
    shifted = fma_64(_INVERSE_LN2_64, wide, _SHIFT)
    k = np.float64(shifted).view(np.uint64)
    r = fma_64(_INVERSE_LN2_64, wide, -(shifted - _SHIFT))
    scale = _wrapping_sum(_TABLE[k & np.uint64(31)], k << np.uint64(47))
    y = fma_64(fma_64(_C0, r, _C1), r * r, fma_64(_C2, r, 1.0))
    return np.float32(y * np.uint64(scale).view(np.float64))


_LN2_HIGH, _LN2_LOW = elementary.LN2_HIGH, elementary.LN2_LOW
_INVERSE_LN2 = elementary.INVERSE_LN2
_EXPM1_OVERFLOW = elementary.EXPM1_OVERFLOW
_Q5, _Q4, _Q3, _Q2, _Q1 = elementary.EXPM1


@jit
def _raised(y: np.float32, k: Any) -> Any:
    return _value(np.int64(_pattern(y)) + (k << 23))


@jit
def expm1_glibc(x: np.float32) -> Any:
    """Return glibc's ``expm1f``."""
    if x != x:
        return x
    negative = _pattern(x) < 0
    size = np.int64(_pattern(x)) & 0x7FFFFFFF
    if size >= 0x4195B844:
        if negative:
            return np.float32(-1)
        if size >= 0x42B17218 and x > _EXPM1_OVERFLOW:
            return _INFINITY
    if size < 0x33000000:
        return x
    k = np.int64(0)
    c = _ZERO
    if size > 0x3EB17218:
        if size < 0x3F851592:
            k = np.int64(-1 if negative else 1)
        else:
            half = np.float32(-0.5) if negative else _HALF
            k = np.int64(np.float32(np.float32(_INVERSE_LN2 * x) + half))
        t = np.float32(k)
        high = np.float32(x - np.float32(t * _LN2_HIGH))
        low = np.float32(t * _LN2_LOW)
        x = np.float32(high - low)
        c = np.float32(np.float32(high - x) - low)
    half = np.float32(_HALF * x)
    square = np.float32(x * half)
    r = np.float32(_Q4 + np.float32(square * _Q5))
    r = np.float32(_Q3 + np.float32(square * r))
    r = np.float32(_Q2 + np.float32(square * r))
    r = np.float32(_Q1 + np.float32(square * r))
    r = np.float32(_ONE + np.float32(square * r))
    t = np.float32(np.float32(3) - np.float32(r * half))
    quotient = np.float32(np.float32(r - t) / np.float32(np.float32(6) - np.float32(x * t)))
    e = np.float32(square * quotient)
    if k == 0:
        return np.float32(x - np.float32(np.float32(x * e) - square))
    e = np.float32(np.float32(x * np.float32(e - c)) - c)
    e = np.float32(e - square)
    if k == -1:
        return np.float32(np.float32(_HALF * np.float32(x - e)) - _HALF)
    if k == 1:
        if x < np.float32(-0.25):
            return np.float32(np.float32(-2) * np.float32(e - np.float32(x + _HALF)))
        return np.float32(_ONE + np.float32(_TWO * np.float32(x - e)))
    if k <= -2 or k > 56:
        return np.float32(_raised(np.float32(_ONE - np.float32(e - x)), k) - _ONE)
    if k < 23:
        start = _value(0x3F800000 - (0x1000000 >> k))
        return _raised(np.float32(start - np.float32(e - x)), k)
    tail = np.float32(x - np.float32(e + _value((0x7F - k) << 23)))
    return _raised(np.float32(tail + _ONE), k)


@jit
def tanh_glibc(x: np.float32) -> Any:
    """Return glibc's ``tanhf``."""
    if x != x:
        return x
    size = np.int64(_pattern(x)) & 0x7FFFFFFF
    if size < 0x24000000:
        return np.float32(x * np.float32(_ONE + x))
    z = _ONE
    if size < 0x41B00000:
        if size >= 0x3F800000:
            t = expm1_glibc(np.float32(_TWO * abs(x)))
            z = np.float32(_ONE - np.float32(_TWO / np.float32(t + _TWO)))
        else:
            t = expm1_glibc(np.float32(np.float32(-2) * abs(x)))
            z = np.float32(np.float32(-t) / np.float32(t + _TWO))
    return np.float32(-z) if _pattern(x) < 0 else z


_ERF_ONE, _ERF_SLOPE = elementary.ERF_ONE, elementary.ERF_SLOPE
_ERF_SMALL, _ERF_MIDDLE = (
    tuple(np.array(part) for part in pair)
    for pair in (elementary.ERF_SMALL, elementary.ERF_MIDDLE)
)
_ERF_LARGE, _ERF_HUGE = (
    tuple(np.array(part) for part in pair) for pair in (elementary.ERF_LARGE, elementary.ERF_HUGE)
)


@jit
def _polynomial(coefficients: Any, x: np.float32) -> Any:
    value = coefficients[0]
    for i in range(1, coefficients.size):
        value = np.float32(coefficients[i] + np.float32(x * value))
    return value


@jit
def _rational(polynomials: Any, x: np.float32) -> Any:
    return np.float32(_polynomial(polynomials[0], x) / _polynomial(polynomials[1], x))


@jit
def erf_glibc(x: np.float32) -> Any:
    """Return glibc's ``erff``."""
    if x != x:
        return x
    size = abs(x)
    pattern = np.int64(_pattern(size))
    if pattern < 0x04000000:
        sixteen = np.float32(16)
        slope = np.float32(np.float32(sixteen * _ERF_SLOPE) * x)
        return np.float32(np.float32(0.0625) * np.float32(np.float32(sixteen * x) + slope))
    if pattern < 0x31800000:
        return np.float32(x + np.float32(_ERF_SLOPE * x))
    if pattern < 0x3F580000:
        return np.float32(x + np.float32(x * _rational(_ERF_SMALL, np.float32(x * x))))
    if pattern < 0x3FA00000:
        result = np.float32(_ERF_ONE + _rational(_ERF_MIDDLE, np.float32(size - _ONE)))
    elif pattern >= 0x40C00000:
        result = _ONE
    else:
        s = np.float32(_ONE / np.float32(size * size))
        ratio = _rational(_ERF_LARGE, s) if pattern < 0x4036DB6E else _rational(_ERF_HUGE, s)
        head = _value(pattern & -4096)
        square = np.float32(np.float32(-head) * head)
        factor = exp_glibc(np.float32(square - np.float32(0.5625)))
        product = np.float32(np.float32(head - size) * np.float32(head + size))
        r = np.float32(factor * exp_glibc(np.float32(product + ratio)))
        result = np.float32(_ONE - np.float32(r / size))
    return np.float32(-result) if _pattern(x) < 0 else result


@jit
def erf_float64(x: float) -> Any:
    """Return the C library's ``erf`` of float64."""
    return math.erf(x)


@jit
def tanh_float64(x: float) -> Any:
    """Return the C library's ``tanh`` of float64."""
    return math.tanh(x)
