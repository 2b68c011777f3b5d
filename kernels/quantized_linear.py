"""``quantized::linear`` and ``linear_relu``: uint8 rows times an int8 weight, to uint8."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import TensorType, format_shape, qint8, quint8
from refquant.kernels import checks, requantize
from refquant.kernels.accumulate import BLOCK, blocks, dot, weight_zero_points
from refquant.kernels.convolve import matrix_product
from refquant.kernels.packing import Layout, PackedWeight

F32 = npt.NDArray[np.float32]


def reference(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    r"""Multiply by the transposed weight, add the bias and requantise.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(v \cdot (s_x s_w / s)) + z, low, 255)

    where :math:`v` is the exact integer sum
    :math:`\sum_k (x_k - z_x)(w_k - z_w)`, converted to float32, plus the bias in units of
    :math:`a = s_x s_w`:

    * per tensor weight: ``v = fma(bias, 1 / a, float(sum))``, one rounding;
    * per channel weight: ``v = float(sum) + bias / a``, two roundings.

    ``a``, ``1 / a`` (divided in float64, then rounded), ``a / s`` and the product with ``v`` are
    each rounded to float32; ties go to even *before* the zero point is added. The bias stays
    float32, it is never turned into integers. ``low`` is 0, with relu the zero point.

    **qnnpack**: ``v = float(sum + b)`` with the int32 bias ``b = rint(bias * (1 / a))``, which
    saturates (``a`` here multiplied in float64, then rounded), and ``a * (1 / s)`` instead of
    the quotient.

    Parameters
    ----------
    x : quint8 (..., K), rank >= 2
        Quantized per tensor.
    weight : qint8 (N, K)
        Quantized per tensor, or per channel along axis 0; zero points may differ from 0.
    bias : float32 (N,) or None
        Added before rounding.
    scale, zero_point : float, int
        Quantization parameters of the result.

    Returns
    -------
    QTensor, quint8 (..., N), contiguous
        Where ``|v * a / s|`` reaches 2**31 the conversion to int32 overflows and gives ``low``.

    Raises
    ------
    VerifyError
        If shapes, dtypes or quantization parameters do not fit.
    UnsupportedError
        If ``target.isa`` is not avx512_vnni under fbgemm or x86: other machines saturate sums
        to 16 bits.

    Notes
    -----
    Engines fbgemm and x86 are the same. torch's qnnpack keeps the multiplier of its first call
    while the input scale stays the same, even if the output scale changes; here every call is
    a first one.

    Examples
    --------
    >>> x = QTensor(np.uint8([[3, 5]]), 0.5, 1)
    >>> w = QTensor(np.int8([[1, 2], [-3, 4]]), 0.5, 0, None, qint8)
    >>> reference(x, w, np.float32([0.125, 0.25]), 1.0, 10).int_repr
    array([[13, 13]], dtype=uint8)
    """
    return _exact(x, weight, bias, scale, zero_point, 0, target)


def reference_relu(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Do :func:`reference` with ``low = zero_point``: negative results become real 0."""
    return _exact(x, weight, bias, scale, zero_point, zero_point, target)


def _exact(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    low: int,
    target: Target,
) -> QTensor:
    rule = requantize.rule_for("linear", requantize.LINEAR, target)
    channels, depth = weight.shape
    constants = rule(float(x.scale), weight.scale, scale, bias, channels)
    factor, zero = weight.int_repr[None], weight_zero_points(weight, channels)
    rows = x.int_repr.reshape(-1, 1, depth)
    q = np.empty((rows.shape[0], channels), np.uint8)
    for part in blocks(rows.shape[0], BLOCK // max(depth, channels, 1)):
        total = dot(rows[part], int(x.zero_point), factor, zero)
        q[part] = requantize.apply(total, constants, zero_point, low)
    return QTensor(q.reshape(*x.shape[:-1], channels), scale, zero_point)


def check_weight(op: str, weight: TensorType, rank: int) -> None:
    """Check a constant weight: qint8, per tensor or per channel along axis 0."""
    if weight.dtype != qint8:
        raise VerifyError(f"{op}: weight must be qint8, got {weight.dtype}")
    if weight.qparams is None or weight.qparams.axis not in (None, 0):
        raise VerifyError(
            f"{op}: weight must be quantized per tensor or along axis 0, got {weight}"
        )
    if weight.rank != rank:
        raise VerifyError(f"{op}: weight must have rank {rank}, got {format_shape(weight.shape)}")


def check_operands(
    op: str, x: TensorType, weight: TensorType, bias: TensorType | None
) -> TensorType:
    """Check the shapes of a linear; return ``x`` with the shape of the result."""
    check_weight(op, weight, 2)
    if x.rank < 2:
        raise VerifyError(f"{op}: input must have rank >= 2, got {format_shape(x.shape)}")
    channels, depth = weight.shape
    if x.shape[-1] != depth:
        raise VerifyError(
            f"{op}: input {format_shape(x.shape)} does not end in the {depth} columns of weight"
        )
    checks.vector(op, bias, channels, "bias")
    return TensorType(x.dtype, (*x.shape[:-1], channels))


def infer(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    scale: float,
    zero_point: int,
) -> TensorType:
    """Check operands and attributes; the last size becomes that of the weight."""
    checks.per_tensor("linear", x, (quint8,))
    result = check_operands("linear", x, weight, bias)
    qparams = checks.output_qparams("linear", quint8, scale, zero_point)
    return TensorType(quint8, result.shape, qparams)


def pack(weight: QTensor, **_attributes: Any) -> PackedWeight:
    """Arrange the weight for :func:`kernel`."""
    return PackedWeight.of(weight, Layout())


def kernel(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` with the compiled tile."""
    return _tiled(x, weight, bias, scale, zero_point, 0, target)


def kernel_relu(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference_relu` with the compiled tile."""
    return _tiled(x, weight, bias, scale, zero_point, zero_point, target)


def _tiled(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    low: int,
    target: Target,
) -> QTensor:
    rule = requantize.rule_for("linear", requantize.LINEAR, target)
    packed = pack(weight)
    channels, depth = weight.shape
    rows = np.ascontiguousarray(x.int_repr).reshape(-1, depth)
    y = np.empty((*x.shape[:-1], channels), np.uint8)
    limits = (low - zero_point, 255 - zero_point, zero_point)
    matrix_product(rows, packed, packed.lanes(rule, x, scale, bias), limits, y)
    return QTensor(y, scale, zero_point)


def _case(
    name: str, x: Any, weight: QTensor, bias: Any, expected: Any, why: str, zero_point: int = 10
) -> Case:
    rows = QTensor(np.asarray(x, np.uint8), 0.5, 1)
    addend = None if bias is None else np.asarray(bias, np.float32)
    attributes = {"scale": 1.0, "zero_point": zero_point}
    return Case(name, (rows, weight, addend), attributes, expected, why)


_ROWS = np.array([[1, 2], [-3, 4]], np.int8)
_PER_TENSOR = QTensor(_ROWS, 0.5, 0, None, qint8)
_PER_CHANNEL = QTensor(_ROWS, np.array([0.5, 0.25]), np.array([0, 0]), 0, qint8)
_SHIFTED = QTensor(np.array([[1, 2], [-3, -128]], np.int8), 0.5, -128, None, qint8)
_HUGE = QTensor(np.full((1, 64), 127, np.int8), 1e5, 0, None, qint8)

_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qlinear.cpp::PackedLinearWeight::apply",
    "pytorch/FBGEMM/src/QuantUtilsAvx512.cc::requantizeOutputProcessingAvx512",
)

OPS = (
    Op(
        name="quantized::linear",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(requantize.LINEAR, kernel),
        pack=pack,
        source=_SOURCE,
        cases=(
            _case("ties", [[3, 3]], _PER_TENSOR, [0, 0], [[12, 10]], "1.5 and 0.5 go to even"),
            _case("odd", [[3, 3]], _PER_TENSOR, None, [[13, 11]], "1.5 rounds before + 11", 11),
            _case("channels", [[3, 5]], _PER_CHANNEL, [0.5, 1], [[13, 12]], "a scale per row"),
            _case("shifted", [[3, 0]], _SHIFTED, None, [[42, 72]], "weight zero point -128"),
            _case("overflow", [[255] * 64], _HUGE, None, [[0]], "beyond 2**31 is the bottom"),
            _case("no_rows", np.zeros((0, 2)), _PER_TENSOR, None, np.zeros((0, 2)), "empty"),
        ),
    ),
    Op(
        name="quantized::linear_relu",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(requantize.LINEAR, kernel_relu),
        pack=pack,
        source=_SOURCE,
        cases=(
            _case("negative", [[3, 0]], _PER_TENSOR, None, [[10, 10]], "0 is the zero point"),
            _case("overflow", [[255] * 64], _HUGE, None, [[10]], "beyond 2**31 is the bottom"),
        ),
    ),
)
