"""``quantized_decomposed::fake_quant_per_channel``, and its gradient."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType, float32, int32
from refquant.kernels import eager
from refquant.kernels.decomposed import check_input, check_operand, decomposed_op
from refquant.kernels.decomposed_per_channel import along, check_channels
from refquant.kernels.layout import elementwise


def fake_quant_per_channel(
    x: Array, scales: Array, zero_points: Array, axis: int, quant_min: int, quant_max: int
) -> Array:
    r"""Quantize and dequantize in float32, one scale for each entry of ``axis``.

    .. math:: r = \mathrm{rint}(x \cdot (1 / s)) + z, \quad
        y = (\mathrm{clamp}(r, q_{min}, q_{max}) - z) \cdot s

    Every operation is rounded to float32; ties go to even before the zero point is added. Unlike
    ``aten::fake_quantize_per_channel_affine``, infinities saturate at their own end and NaN
    stays.

    Parameters
    ----------
    x : float32 tensor
        Real values.
    scales : tensor (channels,) or (1,)
        Real size of one step, converted to float32.
    zero_points : tensor (channels,) or (1,)
        Converted to int32: fractions are cut off.
    axis : int, >= 0
        Channel axis.
    quant_min, quant_max : int
        Range of the quantized values, not empty.

    Returns
    -------
    float32 tensor, shape and strides of ``x``

    Raises
    ------
    VerifyError
        If types, the axis, the range or the number of scales do not fit.

    Examples
    --------
    >>> x, s, z = np.float32([[0.3, 9.0], [0.3, 9.0]]), np.float32([0.5, 1]), np.array([0, 1])
    >>> fake_quant_per_channel(x, s, z, 0, 0, 7)
    array([[0.5, 3.5],
           [0. , 6. ]], dtype=float32)
    """
    s, z, real = _positions(x, scales, zero_points, axis)
    limited = eager.clamp(real, quant_min, quant_max)
    return elementwise(eager.mul(eager.sub(limited, z), s), x, s)


def fake_quant_per_channel_backward(
    grad: Array,
    x: Array,
    scales: Array,
    zero_points: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
) -> Array:
    """Return the gradient with respect to ``x``: ``grad`` times whether ``r`` is in range.

    Scales and zero points have no gradient. NaN in ``x`` is out of range.

    Parameters
    ----------
    grad : float32 tensor, shape of ``x``
        Gradient of the result.
    x, scales, zero_points, axis, quant_min, quant_max
        As given to :func:`fake_quant_per_channel`.

    Returns
    -------
    float32 tensor, shape of ``x``
        Masked elements are zeros with the sign of ``grad``; NaN and infinities of ``grad`` there
        give NaN.

    Examples
    --------
    >>> x, s, z = np.float32([[0.3, 9.0]]), np.float32([0.5]), np.array([0])
    >>> fake_quant_per_channel_backward(np.float32([[2, 2]]), x, s, z, 0, 0, 7)
    array([[2., 0.]], dtype=float32)
    """
    _, _, real = _positions(x, scales, zero_points, axis)
    mask = (real >= np.float32(quant_min)) & (real <= np.float32(quant_max))
    return elementwise(eager.mul(grad, mask), grad, x)


def _positions(
    x: Array, scales: Array, zero_points: Array, axis: int
) -> tuple[Array, Array, Array]:
    """Return scales and zero points along the axis, and where ``x`` falls on the grid."""
    s = along(eager.convert(scales, float32), axis, x.ndim)
    z = along(eager.convert(zero_points, int32), axis, x.ndim)
    rounded = eager.rint(eager.mul(x, eager.reciprocal(s)))
    return s, z, eager.add(rounded, z)


def _infer(
    x: TensorType,
    scales: TensorType,
    zero_points: TensorType,
    axis: int,
    quant_min: int,
    quant_max: int,
) -> TensorType:
    op = "fake_quant_per_channel"
    check_input(op, x, (float32,))
    check_operand(op, zero_points, "zero_points")
    if axis < 0:
        raise VerifyError(f"{op}: axis must be >= 0, got {axis}")
    if quant_min > quant_max:
        raise VerifyError(f"{op}: range [{quant_min}, {quant_max}] is empty")
    check_channels(op, x, axis, scales, zero_points)
    return x


_X = np.array([[0.25, 0.75, np.inf, np.nan], [1.5, 2.5, -9, -np.inf]], np.float32)
_RANGE = {"axis": 0, "quant_min": 0, "quant_max": 7}

OPS = (
    decomposed_op(
        "fake_quant_per_channel",
        fake_quant_per_channel,
        _infer,
        Case(
            "ties",
            (_X, np.array([0.5, 1], np.float32), np.array([1, 1])),
            _RANGE,
            [[0, 1, 3, np.nan], [2, 2, -1, -1]],
            "even before the zero point is added; NaN stays",
        ),
    ),
)
