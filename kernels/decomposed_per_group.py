"""``quantized_decomposed``: a scale for each group of a row, as for 4-bit weights."""

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
    int32,
)
from refquant.kernels import eager
from refquant.kernels.decomposed import (
    check_count,
    check_operand,
    check_plain,
    decomposed_op,
    dequantized,
    dequantized_type,
    quantized,
    quantized_type,
)
from refquant.kernels.layout import elementwise


def quantize_per_channel_group(
    x: Array,
    scales: Array,
    zero_points: Array,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    group_size: int,
) -> Array:
    """Quantize a matrix with a scale for each run of ``group_size`` elements of a row.

    ``clamp(rint(x * (1 / scale) + zero_point))``, every operation rounded to the promoted type;
    the zero point is added before rounding. Ties go to even.

    Parameters
    ----------
    x : tensor (rows, columns)
        Real values of any type but float8, without NaN.
    scales, zero_points : tensors
        One entry for each group in row-major order, or one for all.
    quant_min, quant_max : int
        Range of the result, not empty; it may be that of a narrower type, such as -8 to 7, and
        is not compared with ``dtype``.
    dtype : DType
        Any type that is not quantized.
    group_size : int, > 1
        Divides the number of columns. Where it exceeds that and ``scales`` has one column, the
        group is the row.

    Returns
    -------
    Tensor of ``dtype`` and the shape of ``x``

    Raises
    ------
    VerifyError
        If types or lengths do not fit, or ``x`` holds NaN.

    Examples
    --------
    >>> x, s, z = np.float32([[1, 1, 1, 1]]), np.float32([[1, 0.5]]), np.array([[0, 1]])
    >>> quantize_per_channel_group(x, s, z, -8, 7, int8, 2)
    array([[1, 1, 3, 3]], dtype=int8)
    """
    if np.isnan(x).any():
        raise VerifyError("quantize_per_channel_group: x must not hold NaN")
    rows, scales = _groups(x, scales, group_size), scales.reshape(-1, 1)
    zero_points = zero_points.reshape(-1, 1)
    q = quantized(rows, scales, zero_points, quant_min, quant_max, dtype)
    return elementwise(q, rows, scales).reshape(x.shape)


def dequantize_per_channel_group(
    x: Array,
    scales: Array,
    zero_points: Array | None,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    group_size: int,
    output_dtype: DType,
) -> Array:
    """Return ``(x - zero_point) * scale`` with a scale for each run of ``group_size`` elements.

    Parameters
    ----------
    x : integer or float tensor (rows, columns)
        Quantized values.
    scales, zero_points : tensors
        One entry for each group in row-major order, or one for all; no zero points mean 0.
        Differences and products have promoted types; integers wrap.
    quant_min, quant_max, dtype
        As given to quantize; they change nothing and are not checked.
    group_size : int, > 1
        As for quantize.
    output_dtype : DType
        To which the product is converted.

    Returns
    -------
    Tensor of ``output_dtype`` and the shape of ``x``

    Raises
    ------
    VerifyError
        If types or lengths do not fit.

    Examples
    --------
    >>> x, s = np.int8([[1, 1, 3, 3]]), np.float32([[1, 0.5]])
    >>> dequantize_per_channel_group(x, s, None, -8, 7, int8, 2, float32)
    array([[1. , 1. , 1.5, 1.5]], dtype=float32)
    """
    rows, scales = _groups(x, scales, group_size), scales.reshape(-1, 1)
    zero = np.zeros((), np.int32) if zero_points is None else zero_points.reshape(-1, 1)
    real = eager.convert(dequantized(rows, scales, zero), output_dtype)
    return elementwise(real, rows, zero if zero.ndim else scales).reshape(x.shape)


def _groups(x: Array, scales: Array, group_size: int) -> Array:
    """Return the groups as rows."""
    single = group_size > x.shape[-1] and scales.shape[-1] == 1
    return x.reshape(-1, x.shape[-1] if single else group_size)


# ---- types


def _infer_quantize(
    x: TensorType,
    scales: TensorType,
    zero_points: TensorType,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    group_size: int,
) -> TensorType:
    op = "quantize_per_channel_group"
    check_operand(op, zero_points, "zero_points")
    if quant_min > quant_max:
        raise VerifyError(f"{op}: range [{quant_min}, {quant_max}] is empty")
    _check_groups(op, x, scales, zero_points, dtype, group_size)
    return quantized_type(op, x, scales, zero_points, dtype)


def _infer_dequantize(
    x: TensorType,
    scales: TensorType,
    zero_points: TensorType | None,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    group_size: int,
    output_dtype: DType,
) -> TensorType:
    op = "dequantize_per_channel_group"
    _check_groups(op, x, scales, zero_points, output_dtype, group_size)
    zero = TensorType(int32, ()) if zero_points is None else zero_points
    return dequantized_type(op, x, scales, zero, output_dtype)


def _check_groups(
    op: str,
    x: TensorType,
    scales: TensorType,
    zero_points: TensorType | None,
    dtype: DType,
    group_size: int,
) -> None:
    check_plain(op, x.dtype)
    check_plain(op, dtype)
    check_operand(op, scales, "scales")
    if x.rank != 2:
        raise VerifyError(f"{op}: expected a matrix, got {format_shape(x.shape)}")
    if group_size <= 1:
        raise VerifyError(f"{op}: group_size must be > 1, got {group_size}")
    columns = x.shape[1]
    if not isinstance(columns, int):
        raise VerifyError(f"{op}: the number of columns must be known, got {columns}")
    size = columns if group_size > columns and scales.shape[-1:] == (1,) else group_size
    if not columns or columns % size:
        raise VerifyError(f"{op}: group_size must divide {columns} columns, got {group_size}")
    groups = x.shape[0] * (columns // size)
    given = {"scales": scales} | ({} if zero_points is None else {"zero_points": zero_points})
    several = {name: p for name, p in given.items() if element_count(p.shape) != 1}
    check_count(op, groups, "group", **several)


_X = np.array([[0.5, 1.5, -1, 3]], np.float32)
_Q = np.array([[1, 7, -8, 0]], np.int8)
_SCALES, _ZEROS = np.array([[1, 0.5]], np.float32), np.array([[1, 0]])
_RANGE = {"quant_min": -8, "quant_max": 7, "dtype": int8, "group_size": 2}

OPS = (
    decomposed_op(
        "quantize_per_channel_group",
        quantize_per_channel_group,
        _infer_quantize,
        Case("ties", (_X, _SCALES, _ZEROS), _RANGE, [[2, 2, -2, 6]], "even after the addition"),
        Case(
            "row",
            (_X, _SCALES[:, :1], _ZEROS[:, :1]),
            _RANGE | {"group_size": 128},
            [[2, 2, 0, 4]],
            "a group that exceeds the row, and one scale",
        ),
    ),
    decomposed_op(
        "dequantize_per_channel_group",
        dequantize_per_channel_group,
        _infer_dequantize,
        Case(
            "groups",
            (_Q, _SCALES, _ZEROS),
            _RANGE | {"output_dtype": float32},
            [[0, 6, -4, 0]],
            "each its own",
        ),
        Case(
            "symmetric",
            (_Q, _SCALES, None),
            _RANGE | {"output_dtype": float16},
            [[1, 7, -4, 0]],
            "no zero points",
        ),
    ),
)
