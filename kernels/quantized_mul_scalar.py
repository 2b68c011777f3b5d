"""``quantized::mul_scalar`` and ``mul_scalar_relu``: a quantized tensor times a constant."""

from __future__ import annotations

import numpy as np

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import DType, QParams, TensorType, qint8, quint8
from refquant.kernels import checks
from refquant.kernels.layout import flat


def scaled(scale: float, zero_point: int, b: float, dtype: DType) -> tuple[float, int]:
    """Return scale and zero point of a tensor times ``b``.

    Examples
    --------
    >>> scaled(0.5, 10, -3.0, quint8)
    (1.5, 245)
    """
    low, high = dtype.limits
    if b > 0:
        return b * scale, zero_point
    if b == 0:
        return 1.0, 0
    return abs(b) * scale, high - (zero_point - low)


def reference(qa: QTensor, b: float) -> QTensor:
    r"""Multiply a quantized tensor by a constant; mostly the scale changes.

    * :math:`b > 0`: the integers are copied, the scale becomes :math:`s b` (float64);
    * :math:`b < 0`: the integers are mirrored in the range, :math:`q' = q_{max} + q_{min} - q`,
      and so is the zero point; the scale becomes :math:`s |b|`;
    * :math:`b = 0`: all integers 0, scale 1, zero point 0.

    Parameters
    ----------
    qa : QTensor, quint8, qint8 or qint32
        Quantized per tensor.
    b : float
        The constant.

    Returns
    -------
    QTensor
        Shape and memory format of ``qa``.

    Raises
    ------
    VerifyError
        If ``qa`` is not quantized per tensor.

    Examples
    --------
    >>> q = reference(QTensor(np.uint8([0, 20]), 0.5, 10), -3.0)
    >>> q.int_repr, q.scale, q.zero_point
    (array([255, 235], dtype=uint8), 1.5, 245)
    """
    return _multiply(qa, b, relu=False)


def reference_relu(qa: QTensor, b: float) -> QTensor:
    """Multiply a quantized tensor by a constant and clamp the product at 0.

    Integers below the new zero point become the new zero point; everything else is as in
    ``quantized::mul_scalar``.

    Examples
    --------
    >>> reference_relu(QTensor(np.uint8([0, 20]), 0.5, 10), -3.0).int_repr
    array([255, 245], dtype=uint8)
    """
    return _multiply(qa, b, relu=True)


def _multiply(qa: QTensor, b: float, *, relu: bool) -> QTensor:
    scale, zero_point = scaled(float(qa.scale), int(qa.zero_point), b, qa.dtype)
    q, into, out = flat(qa.int_repr, qa.int_repr.dtype)
    if b > 0:
        into[:] = q
    elif b == 0:
        into[:] = 0
    else:
        np.invert(q, out=into)  # q_max + q_min - q in every dtype
    if relu:
        np.maximum(into, zero_point, out=into)
    return QTensor(out, scale, zero_point, None, qa.dtype)


def infer(qa: TensorType, b: float) -> TensorType:
    """Check the operand; scale and zero point follow from the constant."""
    checks.per_tensor("quantized::mul_scalar", qa)
    if qa.qparams is None:
        return qa
    scale, zero_point = qa.per_tensor()
    return TensorType(qa.dtype, qa.shape, QParams(*scaled(scale, zero_point, float(b), qa.dtype)))


_X = QTensor(np.array([0, 7, 128, 255], np.uint8), 0.5, 7, None, quint8)
_SOURCE = ("pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qmul.cpp::_mul_scalar_out",)

OPS = (
    Op(
        name="quantized::mul_scalar",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=_SOURCE,
        cases=(
            Case("positive", (_X,), {"b": 3.0}, [0, 7, 128, 255], "only the scale changes"),
            Case("negative", (_X,), {"b": -3.0}, [255, 248, 127, 0], "mirrored"),
            Case("zero", (_X,), {"b": 0.0}, [0, 0, 0, 0], "scale 1, zero point 0"),
            Case(
                "qint8",
                (QTensor(np.array([-128, 0, 127], np.int8), 1.0, -1, None, qint8),),
                {"b": -1.0},
                [127, -1, -128],
                "mirrored in -128..127, so 0 becomes -1",
            ),
        ),
    ),
    Op(
        name="quantized::mul_scalar_relu",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference_relu),
        source=_SOURCE,
        cases=(
            Case("positive", (_X,), {"b": 3.0}, [7, 7, 128, 255], "clamped at the zero point"),
            Case("negative", (_X,), {"b": -3.0}, [255, 248, 248, 248], "clamped after mirroring"),
        ),
    ),
)
