"""``aten::threshold``: values up to a threshold are replaced."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType, quint8
from refquant.kernels import checks
from refquant.kernels.activations import (
    Formula,
    apply,
    apply_compiled,
    apply_float,
    filling,
    suggested_output,
)
from refquant.kernels.jit import jit

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def _formula(threshold: float, value: float) -> Formula:
    bound, replacement = np.float32(threshold), np.float32(value)

    def replace(x: F32) -> F32:
        return np.where(x <= bound, replacement, x)

    return Formula.everywhere(replace)


def reference(
    self: QTensor | Array, threshold: float, value: float, target: Target = Target()
) -> QTensor | Array:
    """Return *x* above the threshold and ``value`` elsewhere.

    Threshold and value are rounded to float32. Quantized values are dequantized and quantized
    as in ``quantized::add`` and keep their parameters. A float NaN stays.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        Values.
    threshold : float
        The largest value that is replaced.
    value : float
        What replaces it.

    Returns
    -------
    QTensor or float32 array
        Shape and memory format of the input.

    Raises
    ------
    VerifyError
        If the value is neither quantized per tensor nor float32.

    Examples
    --------
    >>> reference(QTensor(np.uint8([0, 7, 9]), 1.0, 5), 2.0, -1.0).int_repr
    array([4, 4, 9], dtype=uint8)
    """
    if isinstance(self, QTensor):
        formula = _formula(threshold, value)
        return apply(self, suggested_output(self), self.qparams, formula, target)
    return apply_float(self, _formula(threshold, value), target)


def infer(self: TensorType, threshold: float, value: float) -> TensorType:
    """Return the type of the operand."""
    checks.float_or_per_tensor("threshold", self)
    return self


@jit
def _fill(x: F32, threshold: np.float32, value: np.float32, y: F32) -> None:
    for i in range(x.size):
        y[i] = x[i] if x[i] > threshold else value


def kernel(
    self: QTensor | Array, threshold: float, value: float, target: Target = Target()
) -> QTensor | Array:
    """Compute :func:`reference` by tables."""
    if not isinstance(self, QTensor):
        return reference(self, threshold, value, target)
    formula = Formula.everywhere(filling(_fill, np.float32(threshold), np.float32(value)))
    return apply_compiled(self, None, self.qparams, formula, target)


OPS = (
    Op(
        name="aten::threshold",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::qthreshold_kernel",
        ),
        cases=(
            Case(
                "edge",
                (QTensor(np.array([0, 7, 8], np.uint8), 1.0, 5, None, quint8),),
                {"threshold": 2.0, "value": -0.5},
                [4, 4, 8],
                "2 itself is replaced; 4.5 is a tie",
            ),
            Case(
                "float",
                (np.array([1, 2, 3, np.nan], np.float32),),
                {"threshold": 2.0, "value": 9.0},
                [9, 9, 3, np.nan],
                "NaN stays",
            ),
        ),
    ),
)
