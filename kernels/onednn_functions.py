"""The functions of oneDNN's post ops, in float32: its compiled kernels' and its reference's.

Products of unsigned bytes run on kernels that oneDNN generates, with an exponential of its own:
``2**n`` times a polynomial of degree 5 (exact for all float32 numbers here). Its tanh and its two
GELUs take piecewise polynomials from tables that are not reproduced; here they are correctly
rounded, and an 8-bit result next to a tie may be one step away. Products of signed bytes run on
its reference, which calls the C library.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from refquant.kernels import elementary, elementary_jit
from refquant.kernels.jit import fma as fma_jit
from refquant.kernels.jit import jit
from refquant.kernels.rounding import fma

F32 = npt.NDArray[np.float32]
Args = tuple[float | None, ...]

# Numbers that each function takes; torch names swish what is usually called SiLU.
COUNTS = {
    **{"none": 0, "relu": 0, "hardtanh": 2, "hardswish": 0, "leaky_relu": 1},
    **{"swish": 0, "tanh": 0, "gelu": 0},
}
INEXACT = ("tanh", "gelu", "gelu_tanh")  # of bytes without sign

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)
_SIXTH = np.float32(1 / 6)
_LOWEST = np.uint32(0xC2AEAC50).view(np.float32)  # the logarithm of the smallest normal number
_LOG2_E, _LN_2 = np.float32(1 / math.log(2)), np.float32(math.log(2))
_C1, _C2, _C3, _C4, _C5 = (
    np.uint32(bits).view(np.float32)
    for bits in (0x3F7FFFFB, 0x3EFFFEE3, 0x3E2AAD40, 0x3D2B9D0D, 0x3C07CFCE)
)
_SQRT_HALF, _SQRT_2_PI = np.float32(math.sqrt(0.5)), np.float32(math.sqrt(2 / math.pi))
_CUBIC = np.float32(0.044715)


def floats(args: Args) -> tuple[np.float32, np.float32]:
    """Return two numbers; missing ones are 0."""
    first, second = (*(np.float32(0 if a is None else a) for a in args), _ZERO, _ZERO)[:2]
    return first, second


def name_of(unary: str, algorithm: str) -> str:
    """Return the name of a function here: GELU has two."""
    return "gelu_tanh" if unary == "gelu" and algorithm == "tanh" else unary


# ---- NumPy


def hardswish(real: F32, _args: Args) -> F32:
    """Return ``v * clamp(v * (1/6) + 0.5, 0, 1)``."""
    return np.asarray(real * np.clip(real * _SIXTH + _HALF, _ZERO, _ONE))


def exp_of_negative(x: F32) -> F32:
    """Return oneDNN's exponential of numbers that are not above 0.

    Examples
    --------
    >>> exp_of_negative(np.float32([0, -1, -90]))
    array([1.        , 0.36787948, 0.        ], dtype=float32)
    """
    limited = np.maximum(x, _LOWEST)
    n = np.floor(limited * _LOG2_E + _HALF)
    rest = fma(-n, _LN_2, limited)
    power = ((n.astype(np.int32) + 126) << 23).view(np.float32)
    series = _C5
    for coefficient in (_C4, _C3, _C2, _C1, _ONE):
        series = fma(series, rest, coefficient)  # type: ignore[assignment]
    scaled = series * np.where(x < _LOWEST, _ZERO, power) * np.float32(2)
    return np.asarray(scaled, np.float32)


def swish(real: F32, _args: Args) -> F32:
    """Return ``v / (1 + exp(-v))`` from ``exp(-|v|)``."""
    small = exp_of_negative(-np.abs(real))
    small = small / (small + _ONE)
    return np.asarray(real * np.where(np.signbit(real), small, _ONE - small))


def swish_glibc(real: F32, _args: Args) -> F32:
    """Return ``v * (1 / (1 + expf(-v)))``."""
    with np.errstate(over="ignore"):
        return np.asarray(real * (_ONE / (_ONE + elementary.exp_glibc(-real))))


def gelu_glibc(real: F32, _args: Args) -> F32:
    """Return ``0.5 * v * (1 + erff(v * sqrt(0.5)))``."""
    return np.asarray(_HALF * real * (_ONE + elementary.erf_glibc(real * _SQRT_HALF)))


def gelu_tanh_glibc(real: F32, _args: Args) -> F32:
    """Return ``0.5 * v * (1 + tanhf(...))``, the last product in float64."""
    inner = _SQRT_2_PI * real * (_ONE + _CUBIC * real * real)
    wide = 1.0 + elementary.tanh_glibc(inner).astype(np.float64)
    return np.asarray(0.5 * real.astype(np.float64) * wide, np.float32)


def gelu(real: F32, _args: Args) -> F32:
    """Return the GELU, rounded once."""
    flat = (0.5 * v * (1 + math.erf(v * math.sqrt(0.5))) for v in real.ravel().tolist())
    return np.fromiter(flat, np.float64, real.size).astype(np.float32).reshape(real.shape)


def gelu_tanh(real: F32, _args: Args) -> F32:
    """Return the GELU's approximation by tanh, rounded once."""
    x = real.astype(np.float64)
    wide = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return np.asarray(wide, np.float32)


Function = Callable[[F32, Args], F32]
_SHARED: dict[str, Function] = {
    "none": lambda real, _args: real,
    "relu": lambda real, _args: np.maximum(real, _ZERO),
    "hardtanh": lambda real, args: np.clip(real, *floats(args)),
    "hardswish": hardswish,
    "leaky_relu": lambda real, args: np.where(real > 0, real, real * floats(args)[0]),
}
GENERATED: dict[str, Function] = {
    **_SHARED,
    "swish": swish,
    "tanh": lambda real, _args: np.tanh(real.astype(np.float64)).astype(np.float32),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
}
REFERENCE: dict[str, Function] = {
    **_SHARED,
    "swish": swish_glibc,
    "tanh": lambda real, _args: elementary.tanh_glibc(real),
    "gelu": gelu_glibc,
    "gelu_tanh": gelu_tanh_glibc,
}


# ---- compiled

CODES = {name: code for code, name in enumerate(GENERATED)}
CALLS_LIBRARY = len(CODES)  # added to the code of a function of oneDNN's reference


@jit
def _swish(real: np.float32) -> np.float32:
    x = np.float32(-abs(real))
    small = _ZERO
    if x >= _LOWEST:
        n = np.float32(np.floor(np.float32(np.float32(x * _LOG2_E) + _HALF)))
        rest = fma_jit(np.float32(-n), _LN_2, x)
        series = fma_jit(_C5, rest, _C4)
        series = fma_jit(series, rest, _C3)
        series = fma_jit(series, rest, _C2)
        series = fma_jit(series, rest, _C1)
        series = fma_jit(series, rest, _ONE)
        power = np.float32(math.ldexp(1.0, int(n) - 1)) if n > -126 else _ZERO
        small = np.float32(np.float32(series * power) * np.float32(2))
    small = np.float32(small / np.float32(small + _ONE))
    return np.float32(real * (np.float32(_ONE - small) if real > 0 else small))


@jit
def _of_library(real: np.float32, code: int) -> np.float32:
    if code == 5:
        power = elementary_jit.exp_glibc(np.float32(-real))
        return np.float32(real * np.float32(_ONE / np.float32(_ONE + power)))
    if code == 6:
        return np.float32(elementary_jit.tanh_glibc(real))
    if code == 7:
        erf = elementary_jit.erf_glibc(np.float32(real * _SQRT_HALF))
        return np.float32(np.float32(_HALF * real) * np.float32(_ONE + erf))
    cubic = np.float32(np.float32(np.float32(_CUBIC * real) * real) + _ONE)
    inner = np.float32(np.float32(_SQRT_2_PI * real) * cubic)
    wide = np.float64(0.5) * np.float64(real)
    return np.float32(wide * (1.0 + np.float64(elementary_jit.tanh_glibc(inner))))


@jit
def _rounded_once(real: np.float32, code: int) -> np.float32:
    x = np.float64(real)
    if code == 6:
        return np.float32(math.tanh(x))
    if code == 7:
        return np.float32(0.5 * x * (1 + math.erf(x * math.sqrt(0.5))))
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    return np.float32(0.5 * x * (1 + math.tanh(inner)))


@jit
def bent(real: np.float32, code: int, low: np.float32, high: np.float32) -> np.float32:
    """Apply the function of a code."""
    if code == 0:
        return real
    if code >= CALLS_LIBRARY + 5:
        return _of_library(real, code - CALLS_LIBRARY)
    kind = code % CALLS_LIBRARY
    if kind == 0:
        return real
    if kind == 1:
        return real if real > _ZERO else _ZERO
    if kind == 2:
        limited = real if real < high else high
        return limited if limited > low else low
    if kind == 3:
        slope = np.float32(np.float32(real * _SIXTH) + _HALF)
        slope = slope if slope < _ONE else _ONE
        return np.float32(real * (slope if slope > _ZERO else _ZERO))
    if kind == 4:
        return real if real > _ZERO else np.float32(real * low)
    if kind == 5:
        return _swish(real)
    return _rounded_once(real, kind)
