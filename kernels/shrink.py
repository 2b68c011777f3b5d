"""``aten::hardshrink`` and ``aten::softshrink``: values near zero become zero."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType
from refquant.kernels import checks
from refquant.kernels.layout import elementwise

F32 = npt.NDArray[np.float32]


def hard(self: F32, lambd: float = 0.5) -> F32:
    """Return *x*, or 0 where ``-lambd <= x <= lambd``; NaN stays.

    Parameters
    ----------
    self : float32, any shape
        Values.
    lambd : float
        The bound, rounded to float32.

    Returns
    -------
    float32 array, shape of the input

    Raises
    ------
    VerifyError
        If the value is not float32.

    Examples
    --------
    >>> hard(np.float32([-1, 0.5, 0.75]))
    array([-1.  ,  0.  ,  0.75], dtype=float32)
    """
    bound = np.float32(lambd)
    near = (self >= -bound) & (self <= bound)
    return elementwise(np.where(near, np.float32(0), self), self)


def soft(self: F32, lambd: float = 0.5) -> F32:
    """Return *x* moved towards 0 by ``lambd``, or 0 where it is nearer; NaN stays.

    Parameters
    ----------
    self : float32, any shape
        Values.
    lambd : float, >= 0
        How far, rounded to float32.

    Returns
    -------
    float32 array, shape of the input

    Raises
    ------
    VerifyError
        If the value is not float32 or ``lambd`` is negative.

    Examples
    --------
    >>> soft(np.float32([-1, 0.5, 0.75]))
    array([-0.5 ,  0.  ,  0.25], dtype=float32)
    """
    bound = np.float32(lambd)
    moved = np.where(self > bound, self - bound, np.where(self < -bound, self + bound, self * 0))
    return elementwise(moved.astype(np.float32), self)


def infer_hard(self: TensorType, lambd: float = 0.5) -> TensorType:
    """Check that the operand is float32."""
    checks.is_float32("aten::hardshrink", self)
    return self


def infer_soft(self: TensorType, lambd: float = 0.5) -> TensorType:
    """Check the operand and the bound."""
    checks.is_float32("aten::softshrink", self)
    if not lambd >= 0:
        raise VerifyError(f"softshrink: lambd must be >= 0, got {lambd}")
    return self


_X: Any = np.array([-1, 0.5, 0.75, np.nan], np.float32)
_SOURCE = ("pytorch/pytorch/aten/src/ATen/native/cpu/Activation.cpp",)

OPS = (
    Op(
        name="aten::hardshrink",
        reference=hard,
        infer=infer_hard,
        kernels=dict.fromkeys(TORCH_ENGINES, hard),
        source=_SOURCE,
        cases=(Case("values", (_X,), {}, [-1, 0, 0.75, np.nan], "the bound itself is zero"),),
    ),
    Op(
        name="aten::softshrink",
        reference=soft,
        infer=infer_soft,
        kernels=dict.fromkeys(TORCH_ENGINES, soft),
        source=_SOURCE,
        cases=(Case("values", (_X,), {}, [-0.5, 0, 0.25, np.nan], "moved towards zero"),),
    ),
)
