"""``aten::leaky_relu`` and ``quantized::leaky_relu``: a smaller slope below 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import QParams, TensorType, quint8
from refquant.kernels import checks
from refquant.kernels.activations import (
    Formula,
    apply,
    apply_compiled,
    apply_float,
    filling,
    infer_quantized,
    suggested_output,
)
from refquant.kernels.jit import jit

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def _formula(negative_slope: float) -> Formula:
    slope = np.float32(negative_slope)

    def leaky_relu(x: F32) -> F32:
        return np.where(x > 0, x, x * slope)

    return Formula.everywhere(leaky_relu, made_dense=True)


def reference(
    self: QTensor | Array, negative_slope: float = 0.01, target: Target = Target()
) -> QTensor | Array:
    r"""Return *x* above 0 and *x* times a slope below.

    The product is rounded to float32. Quantized values are dequantized and quantized as in
    ``quantized::add`` and keep their parameters; a view with gaps is made dense first.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        Values.
    negative_slope : float
        Slope below 0.

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
    >>> reference(QTensor(np.uint8([0, 9]), 1.0, 5), 0.5).int_repr
    array([2, 9], dtype=uint8)
    """
    if isinstance(self, QTensor):
        formula = _formula(negative_slope)
        return apply(self, suggested_output(self), self.qparams, formula, target)
    return apply_float(self, _formula(negative_slope), target)


def reference_quantized(
    qx: QTensor,
    negative_slope: float,
    inplace: bool,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Return leaky relu, quantized to given parameters; see ``aten::leaky_relu``.

    ``inplace`` has no effect, as in torch.

    Examples
    --------
    >>> reference_quantized(QTensor(np.uint8([0, 9]), 1.0, 5), 0.5, False, 0.5, 100).int_repr
    array([ 95, 108], dtype=uint8)
    """
    qparams = QParams(float(output_scale), int(output_zero_point))
    return apply(qx, suggested_output(qx), qparams, _formula(negative_slope), target)


def infer(self: TensorType, negative_slope: float = 0.01) -> TensorType:
    """Return the type of the operand."""
    checks.float_or_per_tensor("leaky_relu", self)
    return self


def infer_with_output(
    qx: TensorType,
    negative_slope: float,
    inplace: bool,
    output_scale: float,
    output_zero_point: int,
) -> TensorType:
    """Check the operand and the output parameters."""
    return infer_quantized("quantized::leaky_relu", qx, output_scale, output_zero_point)


@jit
def _fill(x: F32, slope: np.float32, y: F32) -> None:
    for i in range(x.size):
        y[i] = x[i] if x[i] > 0 else np.float32(x[i] * slope)


def _compiled(negative_slope: float) -> Formula:
    return Formula.everywhere(filling(_fill, np.float32(negative_slope)), made_dense=True)


def kernel(
    self: QTensor | Array, negative_slope: float = 0.01, target: Target = Target()
) -> QTensor | Array:
    """Compute :func:`reference` by tables."""
    if not isinstance(self, QTensor):
        return reference(self, negative_slope, target)
    formula = _compiled(negative_slope)
    return apply_compiled(self, suggested_output(self), self.qparams, formula, target)


def kernel_quantized(
    qx: QTensor,
    negative_slope: float,
    inplace: bool,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference_quantized` by tables."""
    qparams = QParams(float(output_scale), int(output_zero_point))
    return apply_compiled(qx, suggested_output(qx), qparams, _compiled(negative_slope), target)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::leaky_qrelu_out_kernel",
)
_X = QTensor(np.array([0, 4, 9], np.uint8), 1.0, 5, None, quint8)

OPS = (
    Op(
        name="aten::leaky_relu",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ALL_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case("ties", (_X,), {"negative_slope": 0.5}, [2, 4, 9], "2.5 and 4.5 go to even"),
            Case(
                "float",
                (np.array([-2, 2, np.nan], np.float32),),
                {"negative_slope": 0.5},
                [-1, 2, np.nan],
                "NaN stays",
            ),
        ),
    ),
    Op(
        name="quantized::leaky_relu",
        reference=reference_quantized,
        infer=infer_with_output,
        kernels=dict.fromkeys(ALL_ENGINES, kernel_quantized),
        source=_SOURCE,
        cases=(
            Case(
                "given",
                (_X,),
                {
                    **{"negative_slope": 0.5, "inplace": False},
                    **{"output_scale": 0.5, "output_zero_point": 100},
                },
                [95, 99, 108],
                "parameters as asked for",
            ),
        ),
    ),
)
