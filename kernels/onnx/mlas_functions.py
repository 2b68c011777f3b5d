"""onnxruntime's logistic function and hyperbolic tangent of float32: quotients of polynomials.

Every step of the polynomials, which are in ``x * x``, is a fused multiply-add. The bits are the
same in the body and at the ends of vectors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import fma, jit
from refquant.kernels.onnx.literals import f32
from refquant.kernels.rounding import fma as fma_of_arrays

F32 = npt.NDArray[np.float32]
_F = np.float32

# Numerators and denominators, highest power first.
_LOGISTIC_ODD = f32([4.37031012579801e-11, 1.15627324459942e-07, 6.08574864600143e-05,
                     8.51377133304701e-03, 2.48287947061529e-01])  # fmt: skip
_LOGISTIC_EVEN = f32([6.10247389755681e-13, 5.76102136993427e-09, 6.29106785017040e-06,
                      1.70198817374094e-03, 1.16817656904453e-01,
                      9.93151921023180e-01])  # fmt: skip
_TANH_ODD = f32([-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11,
                 5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04,
                 4.89352455891786e-03])  # fmt: skip
_TANH_EVEN = f32([1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03,
                  4.89352518554385e-03])  # fmt: skip
_END_OF_LOGISTIC, _END_OF_TANH = _F(18), _F(9)


def _quotient(x: F32, odd: F32, even: F32) -> F32:
    square = x * x
    parts = []
    for first, *others in (odd, even):
        value: Any = np.full_like(x, first)
        for coefficient in others:
            value = fma_of_arrays(value, square, coefficient)
        parts.append(value)
    return np.asarray(parts[0] * x / parts[1], np.float32)


def logistic(x: F32) -> F32:
    """Return onnxruntime's 1 / (1 + exp(-x)).

    ``x`` is limited to [-18, 18] and the result to [0, 1].

    Examples
    --------
    >>> logistic(np.float32([0, -50]))
    array([0.5, 0. ], dtype=float32)
    """
    x = np.clip(x, -_END_OF_LOGISTIC, _END_OF_LOGISTIC)
    y = _quotient(x, _LOGISTIC_ODD, _LOGISTIC_EVEN) + _F(0.5)
    return np.asarray(np.clip(y, _F(0), _F(1)), np.float32)


def tanh(x: F32) -> F32:
    """Return onnxruntime's hyperbolic tangent.

    ``x`` is limited to [-9, 9].

    Examples
    --------
    >>> tanh(np.float32([0, -50]))
    array([ 0., -1.], dtype=float32)
    """
    return _quotient(np.clip(x, -_END_OF_TANH, _END_OF_TANH), _TANH_ODD, _TANH_EVEN)


# ---- compiled, of one value


@jit
def _limited(x: np.float32, end: np.float32) -> Any:
    # NaN passes.
    x = -end if x < -end else x
    return end if x > end else x


@jit
def logistic_of(x: np.float32) -> Any:
    """Return :func:`logistic` of a value."""
    x = _limited(x, _END_OF_LOGISTIC)
    square = np.float32(x * x)
    p, q = _LOGISTIC_ODD[0], _LOGISTIC_EVEN[0]
    for i in range(1, 5):
        p = fma(p, square, _LOGISTIC_ODD[i])
    for i in range(1, 6):
        q = fma(q, square, _LOGISTIC_EVEN[i])
    y = np.float32(np.float32(np.float32(p * x) / q) + np.float32(0.5))
    y = np.float32(0) if y < np.float32(0) else y
    return np.float32(1) if y > np.float32(1) else y


@jit
def tanh_of(x: np.float32) -> Any:
    """Return :func:`tanh` of a value."""
    x = _limited(x, _END_OF_TANH)
    square = np.float32(x * x)
    p, q = _TANH_ODD[0], _TANH_EVEN[0]
    for i in range(1, 7):
        p = fma(p, square, _TANH_ODD[i])
    for i in range(1, 4):
        q = fma(q, square, _TANH_EVEN[i])
    return np.float32(np.float32(p * x) / q)


@jit
def _fill_logistic(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = logistic_of(x[i])


@jit
def _fill_tanh(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = tanh_of(x[i])


def fast_logistic(x: F32) -> F32:
    """Compute :func:`logistic` in a compiled loop."""
    y = np.empty(x.shape, np.float32)
    _fill_logistic(np.ascontiguousarray(x).reshape(-1), y.reshape(-1))
    return y


def fast_tanh(x: F32) -> F32:
    """Compute :func:`tanh` in a compiled loop."""
    y = np.empty(x.shape, np.float32)
    _fill_tanh(np.ascontiguousarray(x).reshape(-1), y.reshape(-1))
    return y
