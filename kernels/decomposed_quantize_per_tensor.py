"""``quantized_decomposed::quantize_per_tensor``: one scale for the whole tensor."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import DType, TensorType, float8_e4m3fn, uint8
from refquant.kernels import eager
from refquant.kernels.decomposed import (
    FLOATS,
    check_input,
    check_one_element,
    check_range,
    decomposed_op,
    item,
)
from refquant.kernels.layout import elementwise
from refquant.kernels.promotion import Number


def quantize_per_tensor(
    x: Array, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: DType
) -> Array:
    r"""Quantize to plain integers, one scale for the whole tensor.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(x \cdot r) + z, q_{min}, q_{max}),
        \quad r = \mathrm{float32}(1 / s)

    The reciprocal is taken in float64 and then rounded, unlike ``aten::quantize_per_tensor``;
    the zero point is added after rounding to whole numbers, in float32. Ties go to even.

    Parameters
    ----------
    x : float32, float16 or bfloat16 tensor
        Real values; computed in float32.
    scale : float
        Real size of one step, not 0.
    zero_point : int
        The quantized value that stands for 0.0.
    quant_min, quant_max : int
        Range of the result, not empty and within ``dtype``; it need not hold the zero point.
    dtype : DType
        uint8, int8, uint16, int16, int32, float8_e5m2 or float8_e4m3fn.

    Returns
    -------
    Tensor of ``dtype``, shape and strides of ``x``
        NaN gives 0 (int32: the smallest value; float8: NaN). The upper end of int32 is 2**31 in
        float32, so what is clamped there gives the smallest value too.

    Raises
    ------
    VerifyError
        If types or the range do not fit, or the scale is 0.

    Examples
    --------
    >>> quantize_per_tensor(np.float32([0.5, 1.5]), 1.0, 1, 0, 255, uint8)
    array([1, 3], dtype=uint8)
    """
    return _quantize(x, scale, zero_point, quant_min, quant_max, dtype)


def _quantize(
    x: Array, scale: Number, zero_point: Number, low: Number, high: Number, dtype: DType
) -> Array:
    rounded = eager.rint(eager.mul(x.astype(np.float32), 1.0 / scale))
    limited = eager.clamp(eager.add(rounded, zero_point), low, high)
    return elementwise(eager.convert(limited, dtype), x)


def quantize_per_tensor_tensor(
    x: Array, scale: Array, zero_point: Array, quant_min: int, quant_max: int, dtype: DType
) -> Array:
    """Quantize as the plain overload, with scale and zero point in tensors of one element.

    They may be of any type; a zero point with a fraction is added as it is.

    Raises
    ------
    VerifyError
        As the plain overload, or if a tensor has not one element.

    Examples
    --------
    >>> s, z = np.array([0.5]), np.array([1])
    >>> quantize_per_tensor_tensor(np.float32([1.0]), s, z, 0, 255, uint8)
    array([3], dtype=uint8)
    """
    return quantize_per_tensor_tensor2(
        x, scale, zero_point, np.asarray(quant_min), np.asarray(quant_max), dtype
    )


def quantize_per_tensor_tensor2(
    x: Array, scale: Array, zero_point: Array, quant_min: Array, quant_max: Array, dtype: DType
) -> Array:
    """Quantize as the plain overload, with the range in tensors of one element too.

    Raises
    ------
    VerifyError
        As the plain overload, but the range and the scale are checked when it runs.

    Examples
    --------
    >>> s, z, ends = np.array([0.5]), np.array([1]), (np.array([0]), np.array([2]))
    >>> quantize_per_tensor_tensor2(np.float32([1.0]), s, z, *ends, uint8)
    array([2], dtype=uint8)
    """
    s, z, low, high = (item(v) for v in (scale, zero_point, quant_min, quant_max))
    _check_scale(s)
    check_range("quantize_per_tensor", low, high, dtype)
    return _quantize(x, s, z, low, high, dtype)


# ---- types


def _check_scale(scale: Number) -> None:
    if scale == 0:
        raise VerifyError(f"quantize_per_tensor: the reciprocal of scale {scale} does not exist")


def _infer_quantize(
    x: TensorType, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: DType
) -> TensorType:
    op = "quantize_per_tensor"
    check_input(op, x, FLOATS)
    check_range(op, quant_min, quant_max, dtype)
    _check_scale(scale)
    return TensorType(dtype, x.shape)


def _infer_quantize_tensor(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    quant_min: int,
    quant_max: int,
    dtype: DType,
) -> TensorType:
    check_one_element("quantize_per_tensor", scale=scale, zero_point=zero_point)
    return _infer_quantize(x, 1.0, 0, quant_min, quant_max, dtype)


def _infer_quantize_tensor2(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    quant_min: TensorType,
    quant_max: TensorType,
    dtype: DType,
) -> TensorType:
    op = "quantize_per_tensor"
    check_one_element(
        op, scale=scale, zero_point=zero_point, quant_min=quant_min, quant_max=quant_max
    )
    return _infer_quantize(x, 1.0, 0, 0, 0, dtype)


_X = np.array([[0.5, 1.5, -0.5]], np.float32)
_SPECIAL = np.array([np.nan, np.inf, -np.inf], np.float32)
_U8 = {"quant_min": 0, "quant_max": 255, "dtype": uint8}
_F8 = {"quant_min": -448, "quant_max": 448, "dtype": float8_e4m3fn}
_ONE = {"scale": 1.0, "zero_point": 1} | _U8
_S, _Z = np.array([1.0]), np.array([1])
_LOW, _HIGH = np.array([0]), np.array([2])

OPS = (
    decomposed_op(
        "quantize_per_tensor",
        quantize_per_tensor,
        _infer_quantize,
        Case("ties", (_X,), _ONE, [[1, 3, 1]], "even before the zero point is added"),
        Case("specials", (_SPECIAL,), _ONE, [0, 255, 0], "NaN gives 0"),
        Case("float8", (_X * 19,), _ONE | _F8, [[11, 28, -9]], "29 rounds to 28"),
    ),
    decomposed_op(
        "quantize_per_tensor.tensor",
        quantize_per_tensor_tensor,
        _infer_quantize_tensor,
        Case("ties", (_X, _S, _Z), _U8, [[1, 3, 1]], "qparams computed at run time"),
        Case("fraction", (_X, _S, _Z + 0.75), _U8, [[1, 3, 1]], "added, then truncated"),
    ),
    decomposed_op(
        "quantize_per_tensor.tensor2",
        quantize_per_tensor_tensor2,
        _infer_quantize_tensor2,
        Case(
            "ties", (_X, _S, _Z, _LOW, _HIGH), {"dtype": uint8}, [[1, 2, 1]], "range at run time"
        ),
    ),
)
