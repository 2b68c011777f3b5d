"""``onnx::IsNaN`` and ``onnx::IsInf``: what kind of float an element is."""

from __future__ import annotations

import numpy as np

from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType, bool_
from refquant.kernels.onnx.operator import floating, operator


def is_nan(x: Array) -> Array:
    """Return whether each element is NaN.

    Parameters
    ----------
    x : float tensor
        Any shape.

    Returns
    -------
    bool tensor

    Raises
    ------
    VerifyError
        If the elements are no floats.

    Examples
    --------
    >>> is_nan(np.float32([np.nan, np.inf]))
    array([ True, False])
    """
    return np.asarray(np.isnan(x))


def infer_nan(x: TensorType) -> TensorType:
    """Check that the elements are floats."""
    floating("IsNaN", x)
    return TensorType(bool_, x.shape)


def is_inf(x: Array, detect_negative: bool = True, detect_positive: bool = True) -> Array:
    """Return whether each element is infinite, in one of the directions asked for.

    Parameters
    ----------
    x : float tensor
        Any shape.
    detect_negative, detect_positive : bool
        Whether the infinity of that sign counts.

    Returns
    -------
    bool tensor

    Raises
    ------
    VerifyError
        If the elements are no floats.

    Examples
    --------
    >>> is_inf(np.float32([-np.inf, np.inf]), detect_negative=False)
    array([False,  True])
    """
    counts = np.where(np.signbit(x), detect_negative, detect_positive)
    return np.asarray(np.isinf(x) & counts)


def infer_inf(
    x: TensorType, detect_negative: bool = True, detect_positive: bool = True
) -> TensorType:
    """Check that the elements are floats."""
    floating("IsInf", x)
    return TensorType(bool_, x.shape)


_X = np.array([-np.inf, np.inf, np.nan, 0], np.float32)

OPS = (
    operator(
        "IsNaN",
        is_nan,
        infer_nan,
        Case("values", (_X,), {}, [False, False, True, False], "infinity is a number"),
    ),
    operator(
        "IsInf",
        is_inf,
        infer_inf,
        Case("both", (_X,), {}, [True, True, False, False], "either sign"),
        Case("negative", (_X,), {"detect_positive": False}, [True, False, False, False], "one"),
        Case(
            *("neither", (_X,), {"detect_positive": False, "detect_negative": False}),
            *([False] * 4, "nothing is asked for"),
        ),
    ),
)
