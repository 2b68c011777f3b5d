"""``quantized_decomposed``: quantize and dequantize with a scale for each index of an axis."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import (
    DType,
    TensorType,
    element_count,
    float16,
    float32,
    format_shape,
    int8,
    uint8,
)
from refquant.kernels import eager
from refquant.kernels.decomposed import (
    FLOATS,
    check_input,
    check_operand,
    check_plain,
    check_range,
    decomposed_op,
    dequantized,
    dequantized_type,
    quantized_type,
)
from refquant.kernels.layout import elementwise


def quantize_per_channel(
    x: Array,
    scales: Array,
    zero_points: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: DType,
) -> Array:
    """Quantize to plain integers, one scale for each entry of ``axis``.

    ``clamp(rint(x * (1 / scale)) + zero_point)`` in the promoted types of torch: in float64
    throughout if the scales are float64. Ties go to even before the zero point is added.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor
        Real values, converted to float32 first.
    scales : tensor (channels,) or (1,)
        Real size of one step, of any type but float8. The reciprocals are rounded to this type
        (of integers: to float32).
    zero_points : tensor (channels,) or (1,)
        Integers, or floats, which may have a fraction.
    axis : int
        Channel axis.
    quant_min, quant_max : int
        Range of the result, not empty and within ``dtype``.
    dtype : DType
        uint8, int8, uint16, int16, int32, float8_e5m2 or float8_e4m3fn.

    Returns
    -------
    Tensor of ``dtype``, shape and strides of ``x``
        NaN gives 0 (int32: the smallest value; float8: NaN).

    Raises
    ------
    VerifyError
        If types, the range or the number of scales do not fit.

    Examples
    --------
    >>> x, s, z = np.float32([[1], [1]]), np.float32([1, 0.5]), np.array([0, 1])
    >>> quantize_per_channel(x, s, z, 0, -128, 127, int8).ravel()
    array([1, 3], dtype=int8)
    """
    scales, zero_points = along(scales, axis, x.ndim), along(zero_points, axis, x.ndim)
    rounded = eager.rint(eager.mul(x.astype(np.float32), eager.reciprocal(scales)))
    limited = eager.clamp(eager.add(rounded, zero_points), quant_min, quant_max)
    return _placed(eager.convert(limited, dtype), x, scales, axis)


def dequantize_per_channel(
    x: Array,
    scales: Array,
    zero_points: Array | None,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    out_dtype: DType | None = None,
) -> Array:
    """Return ``(x - zero_point) * scale`` with one scale for each entry of ``axis``.

    The difference has the type to which those of ``x`` and of the zero points promote; integers
    wrap in it. The product is computed in the type of the scales (float64 if they are float64)
    and converted to ``out_dtype`` at the end.

    Parameters
    ----------
    x : integer tensor of ``dtype``
        Quantized values.
    scales : tensor (channels,) or (1,)
        Real size of one step.
    zero_points : tensor (channels,) or (1,), or None
        None means no difference.
    axis : int
        Channel axis.
    quant_min, quant_max : int
        As given to quantize; they must fit ``dtype`` but change nothing.
    dtype : DType
        Type of ``x``: uint8, int8, uint16, int16 or int32.
    out_dtype : DType, optional
        A type that is not quantized, by default float32.

    Returns
    -------
    Tensor of ``out_dtype``, shape and strides of ``x``

    Raises
    ------
    VerifyError
        If types, the range or the number of scales do not fit.

    Examples
    --------
    >>> x, s, z = np.int8([[1], [3]]), np.float32([1, 0.5]), np.array([0, 1])
    >>> dequantize_per_channel(x, s, z, 0, -128, 127, int8).ravel()
    array([1., 1.], dtype=float32)
    """
    scales = along(scales, axis, x.ndim)
    zero_points = None if zero_points is None else along(zero_points, axis, x.ndim)
    real = eager.convert(dequantized(x, scales, zero_points), out_dtype or float32)
    return _placed(real, x, scales if zero_points is None else zero_points, axis)


def along(values: Array, axis: int, rank: int) -> Array:
    """Return values placed along one of ``rank`` axes."""
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _placed(result: Array, x: Array, parameters: Array, axis: int) -> Array:
    """Return the result with torch's strides: it computes with ``axis`` swapped to the front."""
    swapped = (array.swapaxes(axis, 0) for array in (result, x, parameters))
    return elementwise(*swapped).swapaxes(axis, 0)


# ---- types


def check_channels(
    op: str, x: TensorType, axis: int, scales: TensorType, zero_points: TensorType | None
) -> None:
    """Check that there is one scale and one zero point for each index, or one for all."""
    if not -x.rank <= axis < x.rank:
        raise VerifyError(f"{op}: axis {axis} is outside {format_shape(x.shape)}")
    check_operand(op, scales, "scales")
    if zero_points is not None:
        check_operand(op, zero_points, "zero_points")
    counts = {element_count(p.shape) for p in (scales, zero_points) if p is not None}
    if len(counts) > 1 or not counts <= {1, x.shape[axis]} or scales.shape[:1] != (*counts,):
        raise VerifyError(f"{op}: scales {scales} do not fit axis {axis} of {x}")


def _infer_quantize(
    x: TensorType,
    scales: TensorType,
    zero_points: TensorType,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: DType,
) -> TensorType:
    op = "quantize_per_channel"
    check_input(op, x, FLOATS)
    check_operand(op, zero_points, "zero_points")
    check_channels(op, x, axis, scales, zero_points)
    check_range(op, quant_min, quant_max, dtype)
    return quantized_type(op, TensorType(float32, x.shape), scales, zero_points, dtype)


def _infer_dequantize(
    x: TensorType,
    scales: TensorType,
    zero_points: TensorType | None,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    out_dtype: DType | None = None,
) -> TensorType:
    op = "dequantize_per_channel"
    check_input(op, x, (dtype,))
    check_channels(op, x, axis, scales, zero_points)
    check_range(op, quant_min, quant_max, dtype)
    check_plain(op, out_dtype or float32)
    return dequantized_type(op, x, scales, zero_points, out_dtype or float32)


_X = np.array([[0.5, 1.5, -0.5]], np.float32)
_Q = np.array([[1, 255, 0]], np.uint8)
_U8 = {"axis": 1, "quant_min": 0, "quant_max": 255, "dtype": uint8}
_I8 = {"axis": 1, "quant_min": -128, "quant_max": 127, "dtype": int8}
_SCALES, _ZEROS = np.array([1, 1, 0.5], np.float32), np.array([0, 1, 0])

OPS = (
    decomposed_op(
        "quantize_per_channel",
        quantize_per_channel,
        _infer_quantize,
        Case("columns", (_X, _SCALES, _ZEROS), _I8, [[0, 3, -1]], "ties to even"),
        Case("one", (_X, _SCALES[:1], _ZEROS[:1]), _I8, [[0, 2, 0]], "one scale for all"),
    ),
    decomposed_op(
        "dequantize_per_channel",
        dequantize_per_channel,
        _infer_dequantize,
        Case("columns", (_Q, _SCALES, _ZEROS), _U8, [[1, 254, 0]], "each its own"),
        Case("symmetric", (_Q, _SCALES, None), _U8, [[1, 255, 0]], "no zero points"),
        Case(
            "wraps",
            (_Q, _SCALES, _ZEROS.astype(np.uint8)),
            _U8 | {"out_dtype": float16},
            [[1, 254, 0]],
            "the difference of uint8 is uint8",
        ),
    ),
)
