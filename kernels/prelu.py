"""``quantized::prelu`` and ``aten::prelu``: a slope below 0 for each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, format_shape, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_suggested
from refquant.kernels.quantized_mul import multiplier
from refquant.kernels.rounding_jit import quantize_after
from refquant.kernels.tensor_iterator import empty_sorted

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def _along_channels(weight: Array, rank: int) -> Array:
    """Shape one slope, or one per channel, to broadcast along dimension 1."""
    if weight.size == 1:
        return weight.reshape(())
    return weight.reshape(-1, *(1,) * (rank - 2))


def _one(weight: QTensor) -> int:
    """Return 1.0, quantized like the slopes, as a distance from their zero point."""
    z = int(weight.zero_point)
    one = rounding.quantize_before(np.ones((), np.float32), float(weight.scale), z, weight.dtype)
    return int(one) - z


def reference(
    qx: QTensor, weight: QTensor, output_scale: float, output_zero_point: int
) -> QTensor:
    r"""Return *x* above 0 and *x* times its channel's slope below, quantized.

    All in integers, with :math:`x = q - z`, the slope :math:`w` as a distance from its zero
    point, and :math:`w_1` the distance that stands for 1.0, which is *rounded and clamped* like
    any other value (so slopes whose range ends below 1 scale the positive half, too):

    .. math::
        y = \max(x, 0) \, w_1 + \min(x, 0) \, w, \quad
        q = \mathrm{clamp}(\mathrm{rint}(y \cdot m) + z_o), \quad
        m = (s_x s_w) \cdot (1 / s_o)

    with the roundings of ``quantized::mul`` (as long as :math:`|y m| < 2^{31}`).

    Parameters
    ----------
    qx : QTensor, quint8, qint8 or qint32
        Quantized per tensor; channels are dimension 1.
    weight : QTensor of the same dtype, 1 or C elements
        Slopes.
    output_scale : float, > 0
        Scale of the result.
    output_zero_point : int
        Zero point of the result.

    Returns
    -------
    QTensor
        Shape and memory format of ``qx``.

    Raises
    ------
    VerifyError
        If dtypes differ, the number of slopes does not fit, or an output parameter is out of
        range.

    Examples
    --------
    >>> x = QTensor(np.uint8([[1, 9]]), 1.0, 5)
    >>> w = QTensor(np.uint8([2]), 0.25, 0)
    >>> reference(x, w, 0.5, 100).int_repr
    array([[ 96, 108]], dtype=uint8)
    """
    x = qx.int_repr.astype(np.int64) - qx.zero_point
    slopes = weight.int_repr.astype(np.int64) - weight.zero_point
    slope = _along_channels(slopes, x.ndim)
    y = np.maximum(x, 0) * _one(weight) + np.minimum(x, 0) * slope
    m = multiplier(float(qx.scale), float(weight.scale), output_scale)
    out = empty_suggested(qx.int_repr, qx.int_repr.dtype)
    real = y.astype(np.int32).astype(np.float32)
    out[...] = rounding.round_after(real, m, output_zero_point, qx.dtype)
    return QTensor(out, output_scale, output_zero_point, None, qx.dtype)


def reference_float(self: F32, weight: F32) -> F32:
    """Return *x* above 0 and *x* times its channel's slope below, in float32.

    Examples
    --------
    >>> reference_float(np.float32([[-2, 2]]), np.float32([0.5, 3]))
    array([[-1.,  2.]], dtype=float32)
    """
    out = empty_sorted(self.shape, [self], np.float32)
    out[...] = np.where(self > 0, self, self * _along_channels(weight, self.ndim))
    return out


def infer(
    qx: TensorType, weight: TensorType, output_scale: float, output_zero_point: int
) -> TensorType:
    """Check dtypes, the number of slopes and the output parameters."""
    op = "quantized::prelu"
    checks.per_tensor(op, qx)
    checks.per_tensor(op, weight)
    if qx.dtype != weight.dtype:
        raise VerifyError(f"{op}: dtypes differ: {qx.dtype} and {weight.dtype}")
    _check_slopes(op, qx, weight)
    qparams = checks.output_qparams(op, qx.dtype, output_scale, output_zero_point)
    return TensorType(qx.dtype, qx.shape, qparams)


def infer_float(self: TensorType, weight: TensorType) -> TensorType:
    """Check dtypes and the number of slopes."""
    checks.is_float32("aten::prelu", self)
    checks.is_float32("aten::prelu", weight, "weight")
    _check_slopes("aten::prelu", self, weight)
    return self


def _check_slopes(op: str, x: TensorType, weight: TensorType) -> None:
    channels = x.shape[1] if x.rank > 1 else 1
    if weight.shape not in ((), (1,), (channels,)):
        raise VerifyError(
            f"{op}: weight must be [1] or [{channels}], got {format_shape(weight.shape)}"
        )


@jit
def _fill(
    x: Any,
    zero_point: int,
    slope: Any,
    one: int,
    m: np.float32,
    to: int,
    low: int,
    high: int,
    y: Any,
) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            below = slope[c % slope.size]
            for j in range(x.shape[2]):
                distance = np.int64(x[i, c, j]) - zero_point
                product = distance * (one if distance > 0 else below)
                y[i, c, j] = quantize_after(np.float32(np.int32(product)), m, to, low, high)


def kernel(qx: QTensor, weight: QTensor, output_scale: float, output_zero_point: int) -> QTensor:
    """Compute :func:`reference` in one compiled pass."""
    x = qx.int_repr
    shape = (1, 1, x.size) if x.ndim < 2 else (x.shape[0], x.shape[1], -1)
    y = np.empty(x.shape, x.dtype)
    slope = weight.int_repr.astype(np.int64).reshape(-1) - weight.zero_point
    m = multiplier(float(qx.scale), float(weight.scale), output_scale)
    constants = (slope, _one(weight), m, output_zero_point, *qx.dtype.limits)
    if x.size:
        contiguous = np.ascontiguousarray(x).reshape(shape)
        _fill(contiguous, int(qx.zero_point), *constants, y.reshape(contiguous.shape))
    out = empty_suggested(x, x.dtype)
    out[...] = y
    return QTensor(out, output_scale, output_zero_point, None, qx.dtype)


_X = QTensor(np.array([[1, 9], [1, 9]], np.uint8), 1.0, 5, None, quint8)

OPS = (
    Op(
        name="quantized::prelu",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::qprelu_out_kernel",
        ),
        cases=(
            Case(
                "per_channel",
                (_X, QTensor(np.array([4, 8], np.uint8), 0.25, 4, None, quint8)),
                {"output_scale": 1.0, "output_zero_point": 7},
                [[7, 11], [7, 11]],
                "slopes 0 (channel 0) and 1 (channel 1)",
            ),
            Case(
                "one_is_clamped",
                (_X, QTensor(np.array([255], np.uint8), 2.0**-10, 0, None, quint8)),
                {"output_scale": 1.0, "output_zero_point": 7},
                [[6, 8], [6, 8]],
                "255 / 1024 stands for 1.0, so 4 becomes 0.996",
            ),
        ),
    ),
    Op(
        name="aten::prelu",
        reference=reference_float,
        infer=infer_float,
        kernels=dict.fromkeys(TORCH_ENGINES, reference_float),
        source=("pytorch/pytorch/aten/src/ATen/native/cpu/Activation.cpp::prelu_kernel",),
        cases=(
            Case(
                "per_channel",
                (np.array([[-2, 2], [2, -2]], np.float32), np.array([0.5, 3], np.float32)),
                {},
                [[-1, 2], [2, -6]],
                "a slope per column",
            ),
        ),
    ),
)
