"""``quantized::mul`` and ``quantized::mul_relu``: the product of two quantized tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.types import TensorType, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_suggested, memory_order
from refquant.kernels.pointwise import same_memory
from refquant.kernels.rounding_jit import quantize_after
from refquant.kernels.tensor_iterator import from_loop_order, loops, to_loop_order

Array = npt.NDArray[Any]


def multiplier(scale_a: float, scale_b: float, scale: float) -> np.float32:
    """Return ``(scale_a * scale_b) * (1 / scale)``, each step rounded to float32."""
    return np.float32(np.float32(scale_a) * np.float32(scale_b)) * rounding.reciprocal(scale)


def reference(qa: QTensor, qb: QTensor, scale: float, zero_point: int) -> QTensor:
    r"""Multiply two quantized tensors.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}((q_a - z_a)(q_b - z_b) \cdot m) + z), \quad
              m = (s_a s_b) \cdot (1 / s)

    The product of the integers is exact (it wraps at int32 for qint32) and becomes float32
    with one rounding; the three steps of *m* are rounded to float32 each. Ties go to even
    before the zero point is added.

    Parameters
    ----------
    qa, qb : QTensor, quint8, qint8 or qint32
        Quantized per tensor, of one dtype; shapes broadcast.
    scale : float, > 0
        Scale of the product.
    zero_point : int
        Zero point of the product.

    Returns
    -------
    QTensor
        In the memory format of ``qa``.

    Raises
    ------
    VerifyError
        If dtypes differ or are not accepted, shapes do not broadcast, ``scale`` is not positive
        or ``zero_point`` is out of range.

    Examples
    --------
    >>> a = QTensor(np.uint8([8, 7]), 1.0, 7)
    >>> b = QTensor(np.uint8([3, 3]), 1.0, 0)
    >>> reference(a, b, 2.0, 7).int_repr
    array([9, 7], dtype=uint8)
    """
    return _multiply(qa, qb, scale, zero_point, relu=False)


def reference_relu(qa: QTensor, qb: QTensor, scale: float, zero_point: int) -> QTensor:
    r"""Multiply two quantized tensors and clamp the product at 0.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(\max((q_a - z_a)(q_b - z_b), 0) \cdot m) + z)

    Everything else is as in ``quantized::mul``.

    Examples
    --------
    >>> a = QTensor(np.uint8([6, 8]), 1.0, 7)
    >>> b = QTensor(np.uint8([3, 3]), 1.0, 0)
    >>> reference_relu(a, b, 2.0, 7).int_repr
    array([7, 9], dtype=uint8)
    """
    return _multiply(qa, qb, scale, zero_point, relu=True)


def _multiply(qa: QTensor, qb: QTensor, scale: float, zero_point: int, *, relu: bool) -> QTensor:
    a = qa.int_repr.astype(np.int64) - qa.zero_point
    b = qb.int_repr.astype(np.int64) - qb.zero_point
    product = (a * b).astype(np.int32)
    if relu:
        product = np.maximum(product, 0)
    m = multiplier(float(qa.scale), float(qb.scale), scale)
    rounded = np.rint(product.astype(np.float32) * m).astype(np.float64)
    out = empty_suggested(qa.int_repr, qa.int_repr.dtype, product.shape)
    out[...] = rounding.saturate(rounded + zero_point, qa.dtype)
    return QTensor(out, scale, zero_point, None, qa.dtype)


def infer(qa: TensorType, qb: TensorType, scale: float, zero_point: int) -> TensorType:
    """Check dtypes, shapes and output parameters; the result has the broadcast shape."""
    checks.per_tensor("quantized::mul", qa)
    checks.per_tensor("quantized::mul", qb)
    if qa.dtype != qb.dtype:
        raise VerifyError(f"quantized::mul: dtypes differ: {qa.dtype} and {qb.dtype}")
    shape = checks.broadcast("quantized::mul", qa.shape, qb.shape)
    qparams = checks.output_qparams("quantized::mul", qa.dtype, scale, zero_point)
    return TensorType(qa.dtype, shape, qparams)


@jit
def _fill(
    a: Any,
    za: int,
    b: Any,
    zb: int,
    m: np.float32,
    zero_point: int,
    low: int,
    high: int,
    relu: bool,
    out: Any,
) -> None:
    for i in range(out.size):
        product = np.int32((np.int64(a[i]) - za) * (np.int64(b[i]) - zb))
        if relu and product < 0:
            product = np.int32(0)
        out[i] = quantize_after(np.float32(product), m, zero_point, low, high)


def kernel(qa: QTensor, qb: QTensor, scale: float, zero_point: int) -> QTensor:
    """Compute :func:`reference` in one compiled pass."""
    return _run(qa, qb, scale, zero_point, relu=False)


def kernel_relu(qa: QTensor, qb: QTensor, scale: float, zero_point: int) -> QTensor:
    """Compute :func:`reference_relu` in one compiled pass."""
    return _run(qa, qb, scale, zero_point, relu=True)


def _run(qa: QTensor, qb: QTensor, scale: float, zero_point: int, *, relu: bool) -> QTensor:
    a, b = qa.int_repr, qb.int_repr
    out = empty_suggested(a, a.dtype, np.broadcast_shapes(a.shape, b.shape))
    m = multiplier(float(qa.scale), float(qb.scale), scale)
    za, zb = int(qa.zero_point), int(qb.zero_point)
    constants = (m, zero_point, *qa.dtype.limits, relu)
    if same_memory(out, a, b):
        _fill(memory_order(a), za, memory_order(b), zb, *constants, memory_order(out))
    else:
        x, y = np.broadcast_to(a, out.shape), np.broadcast_to(b, out.shape)
        nest = loops([out, x, y])
        x, y = to_loop_order(x, nest), to_loop_order(y, nest)
        flat = np.empty(out.size, out.dtype)
        _fill(x, za, y, zb, *constants, flat)
        out[...] = from_loop_order(flat, nest, out.shape)
    return QTensor(out, scale, zero_point, None, qa.dtype)


def _u8(*values: int, zero_point: int = 0) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 1.0, zero_point, None, quint8)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::qmul_kernel",
)

OPS = (
    Op(
        name="quantized::mul",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ALL_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case(
                "ties",
                (_u8(1, 3, 4), _u8(1, 1, 2)),
                {"scale": 2.0, "zero_point": 7},
                [7, 9, 11],
                "rint before the zero point is added: 0.5 goes to 0 and 1.5 to 2",
            ),
            Case(
                "saturate",
                (_u8(0, 255, zero_point=100), _u8(1, 2)),
                {"scale": 1.0, "zero_point": 7},
                [0, 255],
                "both ends",
            ),
            Case("empty", (_u8(), _u8()), {"scale": 1.0, "zero_point": 7}, [], "no elements"),
        ),
    ),
    Op(
        name="quantized::mul_relu",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(ALL_ENGINES, kernel_relu),
        source=_SOURCE,
        cases=(
            Case(
                "negative",
                (_u8(0, 102, zero_point=100), _u8(1, 3)),
                {"scale": 1.0, "zero_point": 7},
                [7, 13],
                "a negative product becomes the zero point",
            ),
        ),
    ),
)
