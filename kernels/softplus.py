"""``aten::softplus``, ``log_sigmoid`` and ``mish``: smooth functions built on log(1 + exp(x)).

Each is computed in float64 and rounded once. torch chains float32 library functions there, whose
last bits may differ: compare with a tolerance of 1e-6 relative to the largest value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType
from refquant.kernels import checks
from refquant.kernels.layout import c_order, elementwise

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


def _rounded(self: F32, function: Callable[[F64], Any]) -> F32:
    with np.errstate(over="ignore", invalid="ignore"):
        return elementwise(function(self.astype(np.float64)).astype(np.float32), self)


def softplus(self: F32, beta: float = 1.0, threshold: float = 20.0) -> F32:
    r"""Return a smooth relu.

    .. math:: y = \log(1 + e^{\beta x}) / \beta

    Parameters
    ----------
    self : float32, any shape
        Values.
    beta : float
        Sharpness of the bend.
    threshold : float
        Above ``beta * x > threshold`` the result is *x*.

    Returns
    -------
    float32 array, shape of the input; 1e-6 relative

    Raises
    ------
    VerifyError
        If the value is not float32.

    Examples
    --------
    >>> softplus(np.float32([0, 30]))
    array([ 0.6931472, 30.       ], dtype=float32)
    """

    def bend(x: F64) -> F64:
        z = x * beta
        return np.where(z > threshold, x, np.log1p(np.exp(z)) / beta)

    return _rounded(self, bend)


def log_sigmoid(self: F32) -> F32:
    r"""Return the logarithm of the logistic function.

    .. math:: y = \min(x, 0) - \log(1 + e^{-|x|})

    Parameters
    ----------
    self : float32, any shape
        Values.

    Returns
    -------
    float32 array, shape of the input; 1e-6 relative

    Raises
    ------
    VerifyError
        If the value is not float32.

    Examples
    --------
    >>> log_sigmoid(np.float32([0]))
    array([-0.6931472], dtype=float32)
    """
    return c_order(_rounded(self, lambda x: np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))))


def mish(self: F32) -> F32:
    r"""Return *x* times the hyperbolic tangent of its softplus.

    .. math:: y = x \tanh(\log(1 + e^x))

    Parameters
    ----------
    self : float32, any shape
        Values.

    Returns
    -------
    float32 array, shape of the input; 1e-6 relative

    Raises
    ------
    VerifyError
        If the value is not float32.

    Examples
    --------
    >>> mish(np.float32([0, 1]))
    array([0.       , 0.8650984], dtype=float32)
    """
    return _rounded(self, lambda x: x * np.tanh(np.logaddexp(0, x)))


def infer_softplus(self: TensorType, beta: float = 1.0, threshold: float = 20.0) -> TensorType:
    """Check that the operand is float32."""
    checks.is_float32("aten::softplus", self)
    return self


def _infer(op: str) -> Callable[[TensorType], TensorType]:
    def infer(self: TensorType) -> TensorType:
        """Check that the operand is float32."""
        checks.is_float32(op, self)
        return self

    return infer


def _op(name: str, reference: Callable[..., Any], infer: Callable[..., Any], case: Case) -> Op:
    return Op(
        name=name,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=("pytorch/pytorch/aten/src/ATen/native/cpu/Activation.cpp",),
        cases=(case,),
    )


_HALF = np.float32(0.6931471805599453)
_X: Any = np.array([0, 100, np.nan], np.float32)

OPS = (
    _op(
        "aten::softplus",
        softplus,
        infer_softplus,
        Case("ends", (_X,), {}, np.array([_HALF, 100, np.nan], np.float32), "log 2; x itself"),
    ),
    _op(
        "aten::log_sigmoid",
        log_sigmoid,
        _infer("aten::log_sigmoid"),
        Case("ends", (-_X,), {}, np.array([-_HALF, -100, np.nan], np.float32), "-log 2; x itself"),
    ),
    _op(
        "aten::mish",
        mish,
        _infer("aten::mish"),
        Case("ends", (_X,), {}, np.array([0, 100, np.nan], np.float32), "no overflow"),
    ),
)
