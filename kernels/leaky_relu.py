"""``aten::leaky_relu`` and ``quantized::leaky_relu``: a smaller slope below 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
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
from refquant.kernels.layout import empty_strided_like

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def _formula(negative_slope: float, made_dense: bool = True) -> Formula:
    slope = np.float32(negative_slope)

    def leaky_relu(x: F32) -> F32:
        return np.where(x > 0, x, x * slope)

    return Formula.everywhere(leaky_relu, made_dense=made_dense)


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


def reference_out(
    self: QTensor, out: QTensor, negative_slope: float = 0.01, target: Target = Target()
) -> QTensor:
    """Return leaky relu in the memory of ``out``, which gives scale and zero point.

    As ``aten::leaky_relu``, but a loop that is not contiguous in ``self`` and ``out`` is all
    tail. In place, ``out`` is ``self``.

    Parameters
    ----------
    self : QTensor, quint8, qint8 or qint32
        Quantized per tensor.
    out : QTensor
        Only its parameters and its strides matter.
    negative_slope : float
        Slope below 0.

    Returns
    -------
    QTensor

    Raises
    ------
    VerifyError
        If dtypes or shapes differ.

    Examples
    --------
    >>> x = QTensor(np.uint8([0, 9]), 1.0, 5)
    >>> reference_out(x, QTensor(np.uint8([0, 0]), 0.5, 100), 0.5).int_repr
    array([ 95, 108], dtype=uint8)
    """
    return apply(
        self,
        empty_strided_like(out.int_repr),
        out.qparams,
        _formula(negative_slope, False),
        target,
    )


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


def infer_out(self: TensorType, out: TensorType, negative_slope: float = 0.01) -> TensorType:
    """Check both tensors."""
    op = "aten::leaky_relu.out"
    checks.per_tensor(op, self)
    checks.per_tensor(op, out)
    if (self.dtype, self.shape) != (out.dtype, out.shape):
        raise VerifyError(f"{op}: out must have dtype and shape of {self}, got {out}")
    return out


@jit
def _fill(x: F32, slope: np.float32, y: F32) -> None:
    for i in range(x.size):
        y[i] = x[i] if x[i] > 0 else np.float32(x[i] * slope)


def _compiled(negative_slope: float, made_dense: bool = True) -> Formula:
    function = filling(_fill, np.float32(negative_slope))
    return Formula.everywhere(function, made_dense=made_dense)


def kernel(
    self: QTensor | Array, negative_slope: float = 0.01, target: Target = Target()
) -> QTensor | Array:
    """Compute :func:`reference` by tables."""
    if not isinstance(self, QTensor):
        return reference(self, negative_slope, target)
    formula = _compiled(negative_slope)
    return apply_compiled(self, None, self.qparams, formula, target)


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
    return apply_compiled(qx, None, qparams, _compiled(negative_slope), target)


def kernel_out(
    self: QTensor, out: QTensor, negative_slope: float = 0.01, target: Target = Target()
) -> QTensor:
    """Compute :func:`reference_out` by tables."""
    formula = _compiled(negative_slope, made_dense=False)
    return apply_compiled(self, empty_strided_like(out.int_repr), out.qparams, formula, target)


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
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
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
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_quantized),
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
    Op(
        name="aten::leaky_relu.out",
        reference=reference_out,
        infer=infer_out,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_out),
        source=_SOURCE,
        cases=(
            Case(
                "given",
                (_X, QTensor(np.zeros(3, np.uint8), 0.5, 100, None, quint8)),
                {"negative_slope": 0.5},
                [95, 99, 108],
                "parameters of the result's memory",
            ),
        ),
    ),
)
