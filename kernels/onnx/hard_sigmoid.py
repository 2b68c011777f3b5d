"""``onnx::HardSigmoid`` and ``onnx::HardSwish``: a ramp from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import EVERY_ENGINE, Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.jit import jit
from refquant.kernels.layout import flat
from refquant.kernels.onnx.operator import operator


def hard_sigmoid(X: Array, *, alpha: float, beta: float) -> Array:  # noqa: N803
    """Return ``max(0, min(1, alpha * x + beta))``; product and sum are rounded one by one.

    torch's ``aten::hardsigmoid`` is ``clamp(x + 3, 0, 6) / 6``, which rounds otherwise.

    Parameters
    ----------
    X : float tensor
    alpha, beta : float
        Rounded to the type of ``X``.

    Returns
    -------
    float tensor like ``X``

    Raises
    ------
    VerifyError
        If ``X`` is not a float tensor.

    Examples
    --------
    >>> hard_sigmoid(np.float32([-9, 1, 9]), alpha=0.25, beta=0.5)
    array([0.  , 0.75, 1.  ], dtype=float32)
    """
    slope, offset, zero, one = (np.array(n).astype(X.dtype) for n in (alpha, beta, 0, 1))
    return np.asarray(np.maximum(np.minimum(X * slope + offset, one), zero))


@jit
def _fill(x: Any, slope: np.float32, offset: np.float32, y: Any) -> None:
    one, zero = np.float32(1), np.float32(0)
    for i in range(x.size):
        value = np.float32(np.float32(x[i] * slope) + offset)
        value = one if value > one else value  # comparisons leave NaN as it is
        y[i] = zero if value < zero else value


@jit
def _fill_swish(x: Any, slope: np.float32, offset: np.float32, y: Any) -> None:
    one, zero = np.float32(1), np.float32(0)
    for i in range(x.size):
        value = np.float32(np.float32(x[i] * slope) + offset)
        value = one if value > one else value
        y[i] = x[i] * (zero if value < zero else value)


def kernel_hard_sigmoid(X: Array, *, alpha: float, beta: float) -> Array:  # noqa: N803
    """Compute :func:`hard_sigmoid` in one pass."""
    if X.dtype != np.float32:
        return hard_sigmoid(X, alpha=alpha, beta=beta)
    return _compiled(_fill, X, alpha, beta)


def kernel_hard_swish(X: Array) -> Array:  # noqa: N803
    """Compute :func:`hard_swish` in one pass."""
    return hard_swish(X) if X.dtype != np.float32 else _compiled(_fill_swish, X, 1 / 6, 0.5)


def _compiled(fill: Callable[..., None], x: Array, alpha: float, beta: float) -> Array:
    """Fill a result that lies in memory as the operand does."""
    elements, into, y = flat(x, np.float32)
    with np.errstate(all="ignore"):  # of the loops as plain Python
        fill(elements, np.float32(alpha), np.float32(beta), into)
    return y


def infer_hard_sigmoid(x: TensorType, *, alpha: float, beta: float) -> TensorType:
    """Check the type."""
    return infer_hard_swish(x)


def hard_swish(X: Array) -> Array:  # noqa: N803
    """Return ``x * HardSigmoid(x)`` with a slope of 1/6 and an offset of 0.5.

    torch's ``aten::hardswish`` is ``x * clamp(x + 3, 0, 6) / 6``, which rounds otherwise.

    Parameters
    ----------
    X : float tensor

    Returns
    -------
    float tensor like ``X``

    Raises
    ------
    VerifyError
        If ``X`` is not a float tensor.

    Examples
    --------
    >>> hard_swish(np.float32([-4, 0, 4]))
    array([-0.,  0.,  4.], dtype=float32)
    """
    with np.errstate(invalid="ignore"):  # minus infinity times 0
        return np.asarray(X * hard_sigmoid(X, alpha=1 / 6, beta=0.5))


def infer_hard_swish(x: TensorType) -> TensorType:
    """Check the type."""
    if not x.dtype.is_floating_point:
        raise VerifyError(f"expected floats, got {x}")
    return x


_X = np.array([-2, 0, 2], np.float32)
_AWKWARD = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0], np.float32)
_HALF = {"alpha": 0.25, "beta": 0.5}

OPS = (
    replace(
        operator(
            "HardSigmoid",
            hard_sigmoid,
            infer_hard_sigmoid,
            Case("ramp", (_X,), {"alpha": 0.25, "beta": 0.25}, [0, 0.25, 0.75], "limited below"),
            Case("awkward", (_AWKWARD,), _HALF, [np.nan, 1, 0, 0.5, 0.5], "NaN stays"),
        ),
        kernels=dict.fromkeys(EVERY_ENGINE, kernel_hard_sigmoid),
    ),
    replace(
        operator(
            "HardSwish",
            hard_swish,
            infer_hard_swish,
            Case("ends", (_X * 2,), {}, [0, 0, 4], "0 below -3, the identity above 3"),
            Case("awkward", (_AWKWARD,), {}, [np.nan, np.inf, np.nan, 0, 0], "-inf times 0"),
        ),
        kernels=dict.fromkeys(EVERY_ENGINE, kernel_hard_swish),
    ),
)
