"""``aten::sigmoid`` and ``quantized::sigmoid``: the logistic function."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import ONNX_ENGINES, TORCH_ENGINES, Engine, Target
from refquant.ir.types import QParams, TensorType, qint8, qint32, quint8
from refquant.kernels import checks, elementary, elementary_jit
from refquant.kernels.activations import (
    Formula,
    apply,
    apply_compiled,
    apply_float,
    apply_float_compiled,
    filling,
    infer_quantized,
    suggested_output,
)
from refquant.kernels.jit import jit
from refquant.kernels.layout import elementwise
from refquant.kernels.onnx import mlas_functions

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_TABLE = frozenset({(Engine.QNNPACK, quint8)})

OUTPUT = {
    quint8: QParams(2.0**-8, 0),
    qint8: QParams(2.0**-8, -128),
    qint32: QParams(2.0**-32, 0),
}


def with_sleef(x: F32) -> F32:
    """Return ``1 / (1 + exp(-x))`` with SLEEF's exp, in float32."""
    return np.float32(1) / (np.float32(1) + elementary.exp_sleef(-x))


def with_glibc(x: F32) -> F32:
    """Return ``1 / (1 + exp(-x))`` with glibc's exp, in float32."""
    return np.float32(1) / (np.float32(1) + elementary.exp_glibc(-x))


def with_glibc_64(x: F32) -> F32:
    """Return ``1 / (1 + exp(-x))`` with glibc's float32 exp; sum and quotient in float64."""
    return (1.0 / (1.0 + elementary.exp_glibc(-x).astype(np.float64))).astype(np.float32)


QUANTIZED = Formula(with_sleef, with_glibc_64, with_glibc, fused_input=False)
FLOAT = Formula(with_sleef, with_glibc, with_glibc)
QNNPACK = Formula.everywhere(with_glibc, fused_input=False, all_tail=_TABLE)


def _of(formula: Formula, table: Formula, x: QTensor, qparams: QParams, target: Target) -> Formula:
    """Return the formula of an engine: qnnpack has a table for quint8, in one scale."""
    if (target.engine, x.dtype) not in _TABLE:
        return formula
    if qparams != OUTPUT[quint8]:
        raise UnsupportedError(
            f"quantized::sigmoid: qnnpack accepts {OUTPUT[quint8]} as output of quint8, got "
            f"{qparams}"
        )
    return table


def reference(self: QTensor | Array, target: Target = Target()) -> QTensor | Array:
    r"""Return the logistic function.

    .. math:: y = 1 / (1 + e^{-x})

    Quantized values become the real :math:`x = (q - z) s` in the vector body and in the scalar
    tail; they are quantized as in ``quantized::add``, to parameters that the dtype fixes: quint8
    :math:`(2^{-8}, 0)`, qint8 :math:`(2^{-8}, -128)`, qint32 :math:`(2^{-32}, 0)`. The body
    computes in float32 with SLEEF's exp; the tail takes glibc's ``expf`` and adds and divides in
    float64.

    qnnpack has a table for quint8, made with ``expf`` in float32.

    float32: SLEEF in the vector body, ``expf`` in the scalar tail (the last ``n % 32`` elements of
    a contiguous run; AVX2: 16), all in float32. Without vector instructions ``expf`` everywhere.
    Engine ort: onnxruntime's quotient of polynomials, see ``mlas_functions.py``.

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
    >>> reference(QTensor(np.uint8([0, 5, 255]), 1.0, 5)).int_repr
    array([  2, 128, 255], dtype=uint8)
    """
    if isinstance(self, QTensor):
        qparams = OUTPUT[self.dtype]
        formula = _of(QUANTIZED, QNNPACK, self, qparams, target)
        return apply(self, suggested_output(self), qparams, formula, target)
    if target.engine is Engine.ORT:
        return elementwise(mlas_functions.logistic(self), self)
    return apply_float(self, FLOAT, target)


def reference_quantized(
    qx: QTensor, output_scale: float, output_zero_point: int, target: Target = Target()
) -> QTensor:
    """Return the logistic function, quantized to given parameters; see ``aten::sigmoid``.

    Examples
    --------
    >>> reference_quantized(QTensor(np.uint8([0, 5, 255]), 1.0, 5), 0.01, 1).int_repr
    array([  2,  51, 101], dtype=uint8)
    """
    qparams = QParams(float(output_scale), int(output_zero_point))
    formula = _of(QUANTIZED, QNNPACK, qx, qparams, target)
    return apply(qx, suggested_output(qx), qparams, formula, target)


def infer(self: TensorType) -> TensorType:
    """Check the operand; the dtype fixes the output parameters."""
    if checks.float_or_per_tensor("sigmoid", self):
        return TensorType(self.dtype, self.shape, OUTPUT[self.dtype])
    return self


def infer_with_output(qx: TensorType, output_scale: float, output_zero_point: int) -> TensorType:
    """Check the operand and the output parameters."""
    return infer_quantized("quantized::sigmoid", qx, output_scale, output_zero_point)


@jit
def _sleef(x: F32, y: F32) -> None:
    for i in range(x.size):
        e = elementary_jit.exp_sleef(np.float32(-x[i]))
        y[i] = np.float32(np.float32(1) / np.float32(np.float32(1) + e))


@jit
def _glibc(x: F32, y: F32) -> None:
    for i in range(x.size):
        e = elementary_jit.exp_glibc(np.float32(-x[i]))
        y[i] = np.float32(np.float32(1) / np.float32(np.float32(1) + e))


@jit
def _glibc_64(x: F32, y: F32) -> None:
    for i in range(x.size):
        e = np.float64(elementary_jit.exp_glibc(np.float32(-x[i])))
        y[i] = np.float32(1.0 / (1.0 + e))


COMPILED = Formula(filling(_sleef), filling(_glibc_64), filling(_glibc), fused_input=False)
_COMPILED_FLOAT = Formula(filling(_sleef), filling(_glibc), filling(_glibc))
_COMPILED_TABLE = Formula.everywhere(filling(_glibc), fused_input=False, all_tail=_TABLE)


def kernel(self: QTensor | Array, target: Target = Target()) -> QTensor | Array:
    """Compute :func:`reference` by tables, of float32 in compiled loops."""
    if not isinstance(self, QTensor):
        if target.engine is Engine.ORT:
            return elementwise(mlas_functions.fast_logistic(self), self)
        return apply_float_compiled(self, _COMPILED_FLOAT, target)
    qparams = OUTPUT[self.dtype]
    formula = _of(COMPILED, _COMPILED_TABLE, self, qparams, target)
    return apply_compiled(self, None, qparams, formula, target)


def kernel_quantized(
    qx: QTensor, output_scale: float, output_zero_point: int, target: Target = Target()
) -> QTensor:
    """Compute :func:`reference_quantized` by tables."""
    qparams = QParams(float(output_scale), int(output_zero_point))
    formula = _of(COMPILED, _COMPILED_TABLE, qx, qparams, target)
    return apply_compiled(qx, None, qparams, formula, target)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::qsigmoid_kernel",
    "pytorch/pytorch/aten/src/ATen/native/cpu/UnaryOpsKernel.cpp::sigmoid_kernel",
)
_X = QTensor(np.array([0, 5, 10, 255], np.uint8), 1.0, 5, None, quint8)

OPS = (
    Op(
        name="aten::sigmoid",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys((*TORCH_ENGINES, *ONNX_ENGINES), kernel),
        source=_SOURCE,
        cases=(
            Case("quint8", (_X,), {}, [2, 128, 254, 255], "256 saturates"),
            Case(
                "qint8",
                (QTensor(np.array([-128, 0, 127], np.int8), 1.0, 0, None, qint8),),
                {},
                [-128, 0, 127],
                "the zero point is -128",
            ),
            Case(
                "float",
                (np.array([0, 200, -200, np.nan], np.float32),),
                {},
                [0.5, 1, 0, np.nan],
                "both ends and NaN",
            ),
        ),
    ),
    Op(
        name="quantized::sigmoid",
        reference=reference_quantized,
        infer=infer_with_output,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_quantized),
        source=_SOURCE,
        cases=(
            Case(
                "given",
                (_X,),
                {"output_scale": 0.01, "output_zero_point": 1},
                [2, 51, 100, 101],
                "parameters as asked for",
                (Engine.FBGEMM, Engine.ONEDNN, Engine.X86),
            ),
            Case(
                "usual",
                (_X,),
                {"output_scale": 2.0**-8, "output_zero_point": 0},
                [2, 128, 254, 255],
                "the parameters that aten::sigmoid gives: all that qnnpack has for quint8",
            ),
        ),
    ),
)
