"""Elementary float32 functions with the last bits of the libraries that torch calls, in NumPy.

ATen's vector bodies call **SLEEF** (error bound 1.0 ulp, with FMA); its scalar tails call the C
library, here **glibc** 2.36. Both are reproduced for all inputs; they must not be mixed. Every
operation below rounds to float32, except ``fma`` (one rounding for two operations) and where
float64 is written. The compiled twins are in ``elementary_jit.py``.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.rounding import fma

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Pair = tuple[F32, F32]

_f = np.float32
_QUIET: dict[str, Any] = dict.fromkeys(("over", "under", "invalid", "divide"), "ignore")

# ---------------------------------------------------------------------------------- SLEEF

_R_LN2 = _f(1.442695040888963407359924681001892137426645954152985934135449406931)
_LN2_UPPER = _f(0.693145751953125)
_LN2_LOWER = _f(1.428606765330187045e-06)
_EXP = (
    *(_f(0.000198527617612853646278381), _f(0.00139304355252534151077271)),
    *(_f(0.00833336077630519866943359), _f(0.0416664853692054748535156)),
    *(_f(0.166666671633720397949219), _f(0.5)),
)
_EXPK2 = (
    *(_f(0.1980960224e-3), _f(0.1394256484e-2), _f(0.8333456703e-2), _f(0.4166637361e-1)),
    *(_f(0.166666659414234244790680580464), _f(0.5)),
)


def _scale_by_power(x: F32, q: npt.NDArray[np.int32]) -> F32:
    """Return ``x * 2**q`` in two steps, as SLEEF's ``ldexp2`` does."""
    half = q >> 1
    return x * _power_of_two(half) * _power_of_two(q - half)


def _power_of_two(q: npt.NDArray[np.int32]) -> F32:
    return ((q + np.int32(127)) << np.int32(23)).astype(np.int32).view(np.float32)


def _quotient(d: F32) -> tuple[F32, npt.NDArray[np.int32]]:
    """Return ``rint(d / ln 2)``; out of range inputs are dealt with by the callers."""
    rounded = np.clip(np.nan_to_num(np.rint(d * _R_LN2)), _f(-300), _f(300))
    return rounded, rounded.astype(np.int32)


def _horner(x: F32, coefficients: tuple[np.float32, ...]) -> F32:
    """Evaluate a polynomial with one fma per coefficient, the highest degree first."""
    value: F32 = np.full(np.shape(x), coefficients[0])
    for coefficient in coefficients[1:]:
        value = fma(value, x, coefficient)
    return value


def exp_sleef(d: F32) -> F32:
    """Return ``Sleef_expf_u10``.

    Examples
    --------
    >>> exp_sleef(np.float32([0, 1, 200, -200]))
    array([1.       , 2.7182817,       inf, 0.       ], dtype=float32)
    """
    d = np.asarray(d, np.float32)
    with np.errstate(**_QUIET):
        rounded, q = _quotient(d)
        s = fma(rounded, -_LN2_LOWER, fma(rounded, -_LN2_UPPER, d))
        u = _f(1) + fma(s * s, _horner(s, _EXP), s)
        u = _scale_by_power(u, q)
        u = np.where(d < _f(-104), _f(0), u)
        u = np.where(d > _f(100), _f(np.inf), u)
        return np.where(np.isnan(d), d, u)


# A double-float is the unevaluated sum of a pair (high, low).


def _two_sum(x: F32, y: F32 | np.float32) -> Pair:
    s = x + y
    v = s - x
    return s, (x - (s - v)) + (y - v)


def _add(x: Pair, y: F32 | np.float32) -> Pair:
    s, t = _two_sum(x[0], y)
    return s, t + x[1]


def _add_pairs(x: Pair, y: Pair) -> Pair:
    s, t = _two_sum(x[0], y[0])
    return s, t + (x[1] + y[1])


def _add_larger(x: Pair, y: Pair) -> Pair:
    """Add where ``x`` is known to be the larger: the short two-sum."""
    s = x[0] + y[0]
    return s, (((x[0] - s) + y[0]) + x[1]) + y[1]


def _multiply(x: Pair, y: F32) -> Pair:
    s = x[0] * y
    return s, fma(x[1], y, fma(x[0], y, -s))


def _multiply_pairs(x: Pair, y: Pair) -> Pair:
    s = x[0] * y[0]
    return s, fma(x[0], y[1], fma(x[1], y[0], fma(x[0], y[0], -s)))


def _square(x: Pair) -> Pair:
    s = x[0] * x[0]
    return s, fma(x[0] + x[0], x[1], fma(x[0], x[0], -s))


def _reciprocal(d: Pair) -> Pair:
    s = _f(1) / d[0]
    return s, s * fma(-d[1], s, fma(-d[0], s, _f(1)))


def _divide(n: Pair, d: Pair) -> Pair:
    t = _f(1) / d[0]
    s = n[0] * t
    u = fma(t, n[0], -s)
    v = fma(-d[1], t, fma(-d[0], t, _f(1)))
    return s, fma(s, v, fma(n[1], t, u))


def _expk2(d: F32) -> Pair:
    """Return ``exp(d)`` as a double-float."""
    rounded, q = _quotient(d)
    s = _add((d, np.zeros_like(d)), rounded * -_LN2_UPPER)
    s = _add(s, rounded * -_LN2_LOWER)
    t = _add(_multiply(s, _horner(s[0], _EXPK2[:4])), _EXPK2[4])
    t = _add(_multiply_pairs(s, t), _EXPK2[5])
    t = _add_pairs(s, _multiply_pairs(_square(s), t))
    one = np.ones_like(d)
    high = one + t[0]
    low = ((one - high) + t[0]) + t[1]
    vanishes = d < _f(-104)
    return (
        np.where(vanishes, _f(0), _scale_by_power(high, q)),
        np.where(vanishes, _f(0), _scale_by_power(low, q)),
    )


def expm1_sleef(a: F32) -> F32:
    """Return ``Sleef_expm1f_u10``.

    Examples
    --------
    >>> expm1_sleef(np.float32([0, 1, -20]))
    array([ 0.       ,  1.7182819, -1.       ], dtype=float32)
    """
    a = np.asarray(a, np.float32)
    with np.errstate(**_QUIET):
        high, low = _add(_expk2(a), np.full_like(a, -1))
        x = high + low
        x = np.where(a > _f(88.72283172607421875), _f(np.inf), x)
        x = np.where(a < _f(-16.635532333438687426013570), _f(-1), x)
        return np.where(np.isnan(a) | (a == 0), a, x)


def tanh_sleef(x: F32) -> F32:
    """Return ``Sleef_tanhf_u10``, with the short sums of the build that torch ships.

    Examples
    --------
    >>> tanh_sleef(np.float32([0.5, -9]))
    array([ 0.46211717, -1.        ], dtype=float32)
    """
    x = np.asarray(x, np.float32)
    with np.errstate(**_QUIET):
        d = _expk2(np.abs(x))
        e = _reciprocal(d)
        r = sum(_divide(_add_larger(d, (-e[0], -e[1])), _add_larger(d, e)))
        r = np.where((np.abs(x) > _f(8.664339742)) | np.isnan(r), _f(1), r)
        return np.where(np.isnan(x), x, np.copysign(r, x)).astype(np.float32)


_ERF = (
    *(_f(1.061405429), _f(-1.453152027), _f(1.421413741)),
    *(_f(-0.284496736), _f(0.254829592)),
)


def erf_aten(x: F32) -> F32:
    """Return ``Vectorized<float>::erf`` of ATen: Abramowitz and Stegun 7.1.26.

    Examples
    --------
    >>> erf_aten(np.float32([0.5, -3]))
    array([ 0.5205001, -0.9999779], dtype=float32)
    """
    x = np.asarray(x, np.float32)
    with np.errstate(**_QUIET):
        t = _f(1) / fma(_f(0.3275911), np.abs(x), _f(1))
        e = exp_sleef(-(x * x))
        y = fma(-e * t, _horner(t, _ERF), _f(1))
        return np.where(np.signbit(x), -y, y)


# ---------------------------------------------------------------------------------- glibc


def _two_sum_64(x: F64, y: F64) -> tuple[F64, F64]:
    s = x + y
    v = s - x
    return s, (x - (s - v)) + (y - v)


def fma_64(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> F64:
    """Return float64 ``a * b + c`` with a single rounding (no overflow, no underflow).

    The exact product is a sum of two float64 (Dekker); three terms are then added with rounding
    to odd before the last step (Boldo and Melquiond).

    Examples
    --------
    >>> float(fma_64(0.1, 10.0, -1.0))
    5.551115123125783e-17
    """
    a, b, c = (np.asarray(v, np.float64) for v in (a, b, c))
    product = a * b
    splitter = float(2**27 + 1)
    a_high = a * splitter - (a * splitter - a)
    b_high = b * splitter - (b * splitter - b)
    a_low, b_low = a - a_high, b - b_high
    error = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    high, low = _two_sum_64(c, error)
    total, rest = _two_sum_64(product, high)
    odd, lost = _two_sum_64(rest, low)
    bits = np.asarray(odd).view(np.int64)
    step = np.where((lost > 0) == (odd > 0), 1, -1)
    bits = np.where((lost != 0) & (bits & 1 == 0), bits + step, bits)
    return total + bits.view(np.float64)


def _exp_table() -> npt.NDArray[np.uint64]:
    """Return the bits of ``2**(i / 32)``, minus what ``i`` adds to the exponent field."""
    with localcontext() as context:
        context.prec = 60
        powers = [float(Decimal(2) ** (Decimal(i) / 32)) for i in range(32)]
    return np.array(powers).view(np.uint64) - (np.arange(32, dtype=np.uint64) << np.uint64(47))


EXP_TABLE = _exp_table()
EXP_INVERSE_LN2 = float.fromhex("0x1.71547652b82fep+0") * 32
EXP_SHIFT = float.fromhex("0x1.8p52")
EXP_POLYNOMIAL = (
    float.fromhex("0x1.c6af84b912394p-5") / 32**3,
    float.fromhex("0x1.ebfce50fac4f3p-3") / 32**2,
    float.fromhex("0x1.62e42ff0c52d6p-1") / 32,
)
EXP_OVERFLOW = _f(float.fromhex("0x1.62e42ep6"))
EXP_UNDERFLOW = _f(float.fromhex("-0x1.9fe368p6"))


def exp_glibc(x: F32) -> F32:
    """Return glibc's ``expf``: a table of 32 powers and a cubic, in float64 with fma.

    Examples
    --------
    >>> exp_glibc(np.float32([0, 1, 200, -200]))
    array([1.       , 2.7182817,       inf, 0.       ], dtype=float32)
    """
    x = np.asarray(x, np.float32)
    with np.errstate(**_QUIET):
        wide = np.where(np.isfinite(x), np.clip(x, _f(-150), _f(150)), 0).astype(np.float64)
        shifted = fma_64(EXP_INVERSE_LN2, wide, EXP_SHIFT)
        k = np.asarray(shifted).view(np.uint64)
        r = fma_64(EXP_INVERSE_LN2, wide, -(shifted - EXP_SHIFT))
        scale = EXP_TABLE[k & np.uint64(31)] + (k << np.uint64(47))
        y = fma_64(EXP_POLYNOMIAL[2], r, 1.0)
        y = fma_64(fma_64(EXP_POLYNOMIAL[0], r, EXP_POLYNOMIAL[1]), r * r, y)
        result = (y * scale.view(np.float64)).astype(np.float32)
        result = np.where(x > EXP_OVERFLOW, _f(np.inf), result)
        result = np.where(x < EXP_UNDERFLOW, _f(0), result)
        return np.where(np.isnan(x), x, result)


def bits(pattern: int) -> np.float32:
    """Return the float32 with a bit pattern."""
    return np.uint32(pattern).view(np.float32)


LN2_HIGH, LN2_LOW = bits(0x3F317180), bits(0x3717F7D1)
INVERSE_LN2 = bits(0x3FB8AA3B)
EXPM1_OVERFLOW = bits(0x42B17180)
EXPM1 = tuple(map(bits, (0xB457EDBB, 0x36867E54, 0xB8A670CD, 0x3AD00D01, 0xBD088889)))


def expm1_glibc(x: F32) -> F32:
    """Return glibc's ``expm1f`` (fdlibm's, without fma).

    Examples
    --------
    >>> expm1_glibc(np.float32([0, 1, -20]))
    array([ 0.       ,  1.7182817, -1.       ], dtype=float32)
    """
    x = np.asarray(x, np.float32)
    with np.errstate(**_QUIET):
        pattern = x.view(np.int32)
        size = pattern & np.int32(0x7FFFFFFF)
        k = np.clip(np.nan_to_num(INVERSE_LN2 * x + np.copysign(_f(0.5), x)), -200, 200)
        k = np.where(size < 0x3F851592, np.copysign(_f(1), x), k).astype(np.int32)
        k = np.where(size > 0x3EB17218, k, 0)
        t = k.astype(np.float32)
        high, low = x - t * LN2_HIGH, t * LN2_LOW
        reduced = np.where(k == 0, x, high - low)
        c = np.where(k == 0, _f(0), (high - reduced) - low)
        result = _expm1_reduced(reduced, c, k)
        result = np.where(size < 0x33000000, x, result)
        result = np.where((size >= 0x4195B844) & (pattern < 0), _f(-1), result)
        result = np.where((size >= 0x42B17218) & (x > EXPM1_OVERFLOW), _f(np.inf), result)
        return np.where(np.isnan(x), x, result)


def _expm1_reduced(x: F32, c: F32, k: npt.NDArray[np.int32]) -> F32:
    """Return ``expm1(x + c) * 2**k`` with |x| <= ln 2 / 2, as fdlibm's last part does."""
    half = _f(0.5) * x
    square = x * half
    r: Any = EXPM1[0]
    for coefficient in EXPM1[1:]:
        r = coefficient + square * r
    r = _f(1) + square * r
    t = _f(3) - r * half
    e = square * ((r - t) / (_f(6) - x * t))
    at_zero = x - (x * e - square)
    e = (x * (e - c) - c) - square
    down = _f(0.5) * (x - e) - _f(0.5)
    up = np.where(x < _f(-0.25), _f(-2) * (e - (x + _f(0.5))), _f(1) + _f(2) * (x - e))
    far = _raise(_f(1) - (e - x), k) - _f(1)
    small = np.clip(k, 1, 22)
    near = _raise(bits_of(0x3F800000 - (0x1000000 >> small)) - (e - x), k)
    large = _raise((x - (e + bits_of((0x7F - k) << 23))) + _f(1), k)
    result = np.where(k < 23, near, large)
    result = np.where((k <= -2) | (k > 56), far, result)
    result = np.where(k == 1, up, result)
    result = np.where(k == -1, down, result)
    return np.where(k == 0, at_zero, result)


def bits_of(patterns: npt.NDArray[Any]) -> F32:
    """Return the float32 values with bit patterns."""
    return np.asarray(patterns, np.int32).view(np.float32)


def _raise(y: npt.NDArray[Any], k: npt.NDArray[np.int32]) -> F32:
    """Add ``k`` to the exponent."""
    return bits_of(np.asarray(y, np.float32).view(np.int32) + (k << 23))


def tanh_glibc(x: F32) -> F32:
    """Return glibc's ``tanhf`` (fdlibm's, without fma).

    Examples
    --------
    >>> tanh_glibc(np.float32([0.5, -30]))
    array([ 0.46211717, -1.        ], dtype=float32)
    """
    x = np.asarray(x, np.float32)
    with np.errstate(**_QUIET):
        size = np.abs(x)
        t = expm1_glibc(np.where(size >= 1, _f(2) * size, _f(-2) * size))
        z = np.where(size >= 1, _f(1) - _f(2) / (t + _f(2)), -t / (t + _f(2)))
        z = np.where(size < bits(0x41B00000), z, _f(1))
        result = np.copysign(z, x)
        tiny = size < bits(0x24000000)
        return np.where(np.isnan(x), x, np.where(tiny, x * (_f(1) + x), result))


def _constants(*values: float) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, values))


ERF_ONE = _f(8.4506291151e-01)
ERF_SLOPE = _f(1.2837916613e-01)
# Numerator and denominator for each range of the argument, the constant term last.
ERF_SMALL = (
    _constants(
        *(-2.37630166566501626084e-05, -5.77027029648944159157e-03),
        *(-2.84817495755985104766e-02, -3.25042107247001499370e-01),
        1.28379167095512558561e-01,
    ),
    _constants(
        *(-3.96022827877536812320e-06, 1.32494738004321644526e-04),
        *(5.08130628187576562776e-03, 6.50222499887672944485e-02),
        *(3.97917223959155352819e-01, 1),
    ),
)
ERF_MIDDLE = (
    _constants(
        *(-2.16637559486879084300e-03, 3.54783043256182359371e-02),
        *(-1.10894694282396677476e-01, 3.18346619901161753674e-01),
        *(-3.72207876035701323847e-01, 4.14856118683748331666e-01),
        -2.36211856075265944077e-03,
    ),
    _constants(
        *(1.19844998467991074170e-02, 1.36370839120290507362e-02),
        *(1.26171219808761642112e-01, 7.18286544141962662868e-02),
        *(5.40397917702171048937e-01, 1.06420880400844228286e-01, 1),
    ),
)
ERF_LARGE = (
    _constants(
        *(-9.81432934416914548592e00, -8.12874355063065934246e01),
        *(-1.84605092906711035994e02, -1.62396669462573470355e02),
        *(-6.23753324503260060396e01, -1.05586262253232909814e01),
        *(-6.93858572707181764372e-01, -9.86494403484714822705e-03),
    ),
    _constants(
        *(-6.04244152148580987438e-02, 6.57024977031928170135e00),
        *(1.08635005541779435134e02, 4.29008140027567833386e02),
        *(6.45387271733267880336e02, 4.34565877475229228821e02),
        *(1.37657754143519042600e02, 1.96512716674392571292e01, 1),
    ),
)
ERF_HUGE = (
    _constants(
        *(-4.83519191608651397019e02, -1.02509513161107724954e03),
        *(-6.37566443368389627722e02, -1.60636384855821916062e02),
        *(-1.77579549177547519889e01, -7.99283237680523006574e-01),
        -9.86494292470009928597e-03,
    ),
    _constants(
        *(-2.24409524465858183362e01, 4.74528541206955367215e02),
        *(2.55305040643316442583e03, 3.19985821950859553908e03),
        *(1.53672958608443695994e03, 3.25792512996573918826e02),
        *(3.03380607434824582924e01, 1),
    ),
)


def _quotient_of(polynomials: tuple[tuple[np.float32, ...], ...], x: F32) -> F32:
    """Evaluate a rational function, every product and sum rounded."""
    parts = []
    for coefficients in polynomials:
        value: F32 = np.full(np.shape(x), coefficients[0])
        for coefficient in coefficients[1:]:
            value = coefficient + x * value
        parts.append(value)
    return parts[0] / parts[1]


def erf_glibc(x: F32) -> F32:
    """Return glibc's ``erff`` (fdlibm's, without fma).

    Examples
    --------
    >>> erf_glibc(np.float32([0.5, -3]))
    array([ 0.5204999, -0.9999779], dtype=float32)
    """
    x = np.asarray(x, np.float32)
    with np.errstate(**_QUIET):
        size = np.abs(x)
        pattern = size.view(np.int32)
        tiny = np.where(
            pattern < 0x04000000,
            _f(0.0625) * (_f(16) * x + _f(16) * ERF_SLOPE * x),
            x + ERF_SLOPE * x,
        )
        small = x + x * _quotient_of(ERF_SMALL, x * x)
        middle = ERF_ONE + _quotient_of(ERF_MIDDLE, size - _f(1))
        s = np.reciprocal(size * size)
        ratio = np.where(
            pattern < 0x4036DB6E, _quotient_of(ERF_LARGE, s), _quotient_of(ERF_HUGE, s)
        )
        head = bits_of(pattern & np.int32(-4096))
        factor = exp_glibc(-head * head - _f(0.5625))
        r = factor * exp_glibc((head - size) * (head + size) + ratio)
        large = np.where(pattern >= 0x40C00000, _f(1), _f(1) - r / size)
        signed = np.copysign(np.where(pattern < 0x3FA00000, middle, large), x)
        result = np.where(pattern < 0x31800000, tiny, small)
        result = np.where(pattern < 0x3F580000, result, signed)
        return np.where(np.isnan(x), x, result)


def erf_float64(x: F64) -> F64:
    """Return the C library's ``erf`` of float64."""
    return np.vectorize(math.erf, otypes=[np.float64])(x) if np.size(x) else np.asarray(x)


def tanh_float64(x: F64) -> F64:
    """Return the C library's ``tanh`` of float64."""
    return np.vectorize(math.tanh, otypes=[np.float64])(x) if np.size(x) else np.asarray(x)
