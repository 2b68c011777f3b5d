"""``aten::tanh``: the hyperbolic tangent."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import ONNX_ENGINES, TORCH_ENGINES, Engine, Target
from refquant.ir.types import QParams, TensorType, qint8, qint32, quint8
from refquant.kernels import checks, elementary, elementary_jit, tanh_float
from refquant.kernels.activations import (
    Formula,
    apply,
    apply_compiled,
    filling,
    suggested_output,
)
from refquant.kernels.jit import jit
from refquant.kernels.layout import elementwise
from refquant.kernels.onnx import mlas_functions

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

OUTPUT = {
    quint8: QParams(2.0**-7, 128),
    qint8: QParams(2.0**-7, 0),
    qint32: QParams(2.0**-31, 0),
}
_ALL_TAIL = frozenset({(Engine.QNNPACK, quint8)})
FORMULA = Formula(
    elementary.tanh_sleef, elementary.tanh_glibc, elementary.tanh_glibc, all_tail=_ALL_TAIL
)


def reference(self: QTensor | Array, target: Target = Target()) -> QTensor | Array:
    """Return the hyperbolic tangent.

    Quantized values are dequantized and quantized as in ``quantized::add``, to parameters that
    the dtype fixes: quint8 (2**-7, 128), qint8 (2**-7, 0), qint32 (2**-31, 0). The vector body
    calls SLEEF, the scalar tail glibc's ``tanhf`` (so does the body without vector
    instructions); qnnpack uses the rule of the tail for every quint8 element.

    float32: MKL's, which differs from the correctly rounded tangent by 1 unit in the last place
    at 82,383 positive arguments, about one element in a thousand of typical data; they are in a
    table. Engine ort: onnxruntime's quotient of polynomials, see ``mlas_functions.py``.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        Values.

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
    >>> reference(QTensor(np.uint8([0, 5, 6]), 0.5, 5)).int_repr
    array([  2, 128, 187], dtype=uint8)
    """
    if isinstance(self, QTensor):
        return apply(self, suggested_output(self), OUTPUT[self.dtype], FORMULA, target)
    ort = target.engine is Engine.ORT
    return elementwise((mlas_functions.tanh if ort else tanh_float.reference)(self), self)


def infer(self: TensorType) -> TensorType:
    """Check the operand; the dtype fixes the output parameters."""
    if checks.float_or_per_tensor("tanh", self):
        return TensorType(self.dtype, self.shape, OUTPUT[self.dtype])
    return self


@jit
def _sleef(x: F32, y: F32) -> None:
    for i in range(x.size):
        y[i] = elementary_jit.tanh_sleef(x[i])


@jit
def _glibc(x: F32, y: F32) -> None:
    for i in range(x.size):
        y[i] = elementary_jit.tanh_glibc(x[i])


COMPILED = Formula(filling(_sleef), filling(_glibc), filling(_glibc), all_tail=_ALL_TAIL)


def kernel(self: QTensor | Array, target: Target = Target()) -> QTensor | Array:
    """Compute :func:`reference` by tables."""
    if not isinstance(self, QTensor):
        ort = target.engine is Engine.ORT
        return elementwise((mlas_functions.fast_tanh if ort else tanh_float.kernel)(self), self)
    return apply_compiled(self, None, OUTPUT[self.dtype], COMPILED, target)


OPS = (
    Op(
        name="aten::tanh",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys((*TORCH_ENGINES, *ONNX_ENGINES), kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::qtanh_kernel",
        ),
        cases=(
            Case(
                "quint8",
                (QTensor(np.array([0, 5, 10], np.uint8), 1.0, 5, None, quint8),),
                {},
                [0, 128, 255],
                "256 saturates",
            ),
            Case(
                "qint8",
                (QTensor(np.array([-128, 0, 127], np.int8), 1.0, 0, None, qint8),),
                {},
                [-128, 0, 127],
                "the zero point is 0",
            ),
            Case(
                "float",
                (np.array([0, 20, -20, np.nan], np.float32),),
                {},
                [0, 1, -1, np.nan],
                "both ends and NaN",
            ),
        ),
    ),
)
