"""``quantized::add_scalar`` and ``add_scalar_relu``: a constant is added to a quantized tensor."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import DType, TensorType, qint8, qint32, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_suggested, flat
from refquant.kernels.lookup import look_up
from refquant.kernels.pointwise import limit
from refquant.kernels.rounding_jit import quantize_after


class Shift(NamedTuple):
    """What adding a constant does: steps to add and the quantization parameters of the sum."""

    steps: int
    scale: float
    zero_point: int
    requantize: bool


def shift(scale: float, zero_point: int, b: float, dtype: DType) -> Shift:
    """Return how adding ``b`` moves the zero point, and the scale if it would leave the range.

    Examples
    --------
    >>> shift(0.5, 10, 2.0, quint8)
    Shift(steps=4, scale=0.5, zero_point=6, requantize=False)
    """
    low, high = dtype.limits
    steps = int(np.rint(b / scale))
    moved = zero_point - steps
    if moved < low:
        return Shift(steps, (high - moved) / (high - low) * scale, low, True)
    if moved > high:
        return Shift(steps, (moved - low) / (high - low) * scale, high, True)
    return Shift(steps, scale, moved, False)


def reference(qa: QTensor, b: float) -> QTensor:
    r"""Add a constant to a quantized tensor; the quantization parameters change with it.

    The constant is rounded to :math:`c = \mathrm{rint}(b / s)` steps (float64). If
    :math:`z - c` is a legal zero point, the integers are copied and the zero point becomes
    :math:`z - c`. Otherwise the zero point sticks at the end of the range, the scale grows so
    that the range still covers all values, and the integers are requantized:

    .. math:: q' = \mathrm{clamp}(\mathrm{rint}((q - z + c) \cdot m) + z'), \quad
              m = s \cdot (1 / s')

    with float32 roundings; :math:`s'` itself is float64.

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
    >>> q = reference(QTensor(np.uint8([10, 20]), 0.5, 10), 2.0)
    >>> q.int_repr, q.zero_point
    (array([10, 20], dtype=uint8), 6)
    """
    return _add(qa, b, relu=False)


def reference_relu(qa: QTensor, b: float) -> QTensor:
    """Add a constant to a quantized tensor and clamp the sum at 0.

    Integers below the new zero point become the new zero point; everything else is as in
    ``quantized::add_scalar``.

    Examples
    --------
    >>> q = reference_relu(QTensor(np.uint8([3, 20]), 0.5, 10), 2.0)
    >>> q.int_repr, q.zero_point
    (array([ 6, 20], dtype=uint8), 6)
    """
    return _add(qa, b, relu=True)


def _add(qa: QTensor, b: float, *, relu: bool) -> QTensor:
    to = shift(float(qa.scale), int(qa.zero_point), b, qa.dtype)
    if to.requantize:
        difference = (qa.int_repr.astype(np.int64) - qa.zero_point + to.steps).astype(np.int32)
        if relu:
            difference = np.maximum(difference, 0)
        m = np.float32(qa.scale) * rounding.reciprocal(to.scale)
        rounded = np.rint(difference.astype(np.float32) * m).astype(np.float64)
        q = rounding.saturate(rounded + to.zero_point, qa.dtype)
    else:
        q = np.maximum(qa.int_repr, to.zero_point) if relu else qa.int_repr
    out = empty_suggested(qa.int_repr, qa.int_repr.dtype)
    out[...] = q
    return QTensor(out, to.scale, to.zero_point, None, qa.dtype)


def infer(qa: TensorType, b: float) -> TensorType:
    """Check the operand; scale and zero point follow from the constant."""
    checks.per_tensor("quantized::add_scalar", qa)
    if qa.qparams is None:
        return qa
    scale, zero_point = qa.per_tensor()
    to = shift(scale, zero_point, b, qa.dtype)
    qparams = checks.output_qparams("quantized::add_scalar", qa.dtype, to.scale, to.zero_point)
    return TensorType(qa.dtype, qa.shape, qparams)


@jit
def _requantize(
    q: Any, offset: int, least: int, m: np.float32, zero_point: int, low: int, high: int, out: Any
) -> None:
    for i in range(q.size):
        value: Any = max(np.int64(q[i]) + offset, least)
        out[i] = quantize_after(np.float32(np.int32(value)), m, zero_point, low, high)


def _requantize_by(
    q: Array, scale: float, zero_point: int, to: Shift, dtype: DType, relu: bool, into: Array
) -> None:
    m = np.float32(scale) * rounding.reciprocal(to.scale)
    offset, least = to.steps - zero_point, 0 if relu else -(2**31)
    _requantize(q, offset, least, m, to.zero_point, *dtype.limits, into)


@lru_cache(maxsize=1024)
def _table(scale: float, zero_point: int, to: Shift, dtype: DType, relu: bool) -> Array:
    every = np.arange(256, dtype=np.uint8).view(dtype.storage)
    table = np.empty_like(every)
    _requantize_by(every, scale, zero_point, to, dtype, relu, table)
    return table


def kernel(qa: QTensor, b: float) -> QTensor:
    """Compute :func:`reference` in one compiled pass."""
    return _run(qa, b, relu=False)


def kernel_relu(qa: QTensor, b: float) -> QTensor:
    """Compute :func:`reference_relu` in one compiled pass."""
    return _run(qa, b, relu=True)


def _run(qa: QTensor, b: float, *, relu: bool) -> QTensor:
    scale, zero_point, dtype = float(qa.scale), int(qa.zero_point), qa.dtype
    to = shift(scale, zero_point, b, dtype)
    q, into, out = flat(qa.int_repr, qa.int_repr.dtype)
    if not to.requantize:
        low, high = dtype.limits
        limit(q, to.zero_point if relu else low, high, into)
    elif dtype == qint32:
        _requantize_by(q, scale, zero_point, to, dtype, relu, into)
    else:
        look_up(q, _table(scale, zero_point, to, dtype, relu), into)
    return QTensor(out, to.scale, to.zero_point, None, dtype)


_X = QTensor(np.array([0, 1, 128, 255], np.uint8), 1.0, 1, None, quint8)
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/BinaryOps.cpp::_add_scalar_out",
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::qadd_scalar_kernel",
)

OPS = (
    Op(
        name="quantized::add_scalar",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case("in_range", (_X,), {"b": -2.0}, [0, 1, 128, 255], "only the zero point moves"),
            Case(
                "below", (_X,), {"b": 256.0}, [128, 128, 192, 255], "z - c = -255: scale doubles"
            ),
            Case("above", (_X,), {"b": -509.0}, [0, 1, 64, 127], "z - c = 510: scale doubles"),
            Case("tie", (_X,), {"b": 0.5}, [0, 1, 128, 255], "half a step rounds to no step"),
            Case(
                "qint8",
                (QTensor(np.array([-128, 127], np.int8), 1.0, -128, None, qint8),),
                {"b": 255.0},
                [0, 127],
                "the range of qint8: z - c = -383",
            ),
        ),
    ),
    Op(
        name="quantized::add_scalar_relu",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_relu),
        source=_SOURCE,
        cases=(
            Case(
                "in_range", (_X,), {"b": -2.0}, [3, 3, 128, 255], "clamped at the new zero point"
            ),
            Case("negative", (_X,), {"b": -100.0}, [101, 101, 128, 255], "negative sums become 0"),
        ),
    ),
)
