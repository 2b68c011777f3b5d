"""``onnx::HardSigmoid`` and ``onnx::HardSwish``: a ramp from 0 to 1."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
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
    return np.asarray(X * hard_sigmoid(X, alpha=1 / 6, beta=0.5))


def infer_hard_swish(x: TensorType) -> TensorType:
    """Check the type."""
    if not x.dtype.is_floating_point:
        raise VerifyError(f"expected floats, got {x}")
    return x


_X = np.array([-2, 0, 2], np.float32)

OPS = (
    operator(
        "HardSigmoid",
        hard_sigmoid,
        infer_hard_sigmoid,
        Case("ramp", (_X,), {"alpha": 0.25, "beta": 0.25}, [0, 0.25, 0.75], "limited below"),
    ),
    operator(
        "HardSwish",
        hard_swish,
        infer_hard_swish,
        Case("ends", (_X * 2,), {}, [0, 0, 4], "0 below -3, the identity above 3"),
    ),
)
