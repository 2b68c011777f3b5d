"""``quantized_decomposed::dequantize_per_tensor``: one scale for the whole tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import DType, TensorType, float16, float32, uint8
from refquant.kernels import eager
from refquant.kernels.decomposed import (
    check_input,
    check_one_element,
    check_plain,
    check_target,
    decomposed_op,
    item,
)
from refquant.kernels.layout import elementwise
from refquant.kernels.promotion import Number


def dequantize_per_tensor(
    x: Array,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    out_dtype: DType | None = None,
) -> Array:
    """Return ``(x - zero_point) * scale``, each operation rounded to ``out_dtype``.

    Parameters
    ----------
    x : tensor of ``dtype``
        Quantized values, converted to ``out_dtype`` first.
    scale : float
        Real size of one step.
    zero_point : int
        The quantized value that stands for 0.0.
    quant_min, quant_max : int
        As given to quantize; the range changes nothing and is not checked.
    dtype : DType
        Type of ``x``: one that quantize accepts.
    out_dtype : DType, optional
        float32 (default), float64, float16 or bfloat16; with an integer type other than uint16
        the difference wraps and the result is float32.

    Returns
    -------
    Tensor of ``out_dtype``, shape and strides of ``x``

    Raises
    ------
    VerifyError
        If types do not fit.

    Examples
    --------
    >>> dequantize_per_tensor(np.uint8([3]), 0.5, 1, 0, 255, uint8)
    array([1.], dtype=float32)
    """
    return _dequantize(x, scale, zero_point, out_dtype)


def _dequantize(x: Array, scale: Number, zero_point: Number, out_dtype: DType | None) -> Array:
    values = eager.convert(x, out_dtype or float32)
    return elementwise(eager.mul(eager.sub(values, zero_point), scale), x)


def dequantize_per_tensor_tensor(
    x: Array,
    scale: Array,
    zero_point: Array,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    out_dtype: DType | None = None,
) -> Array:
    """Dequantize as the plain overload, with scale and zero point in tensors of one element.

    Raises
    ------
    VerifyError
        As the plain overload, or if a tensor has not one element.

    Examples
    --------
    >>> s, z = np.array([0.5]), np.array([1])
    >>> dequantize_per_tensor_tensor(np.uint8([3]), s, z, 0, 255, uint8)
    array([1.], dtype=float32)
    """
    return _dequantize(x, item(scale), item(zero_point), out_dtype)


def dequantize_per_tensor_tensor2(
    x: Array,
    scale: Array,
    zero_point: Array,
    quant_min: Array,
    quant_max: Array,
    dtype: DType,
    out_dtype: DType | None = None,
) -> Array:
    """Dequantize as the plain overload, with the range in tensors of one element too.

    Raises
    ------
    VerifyError
        As the plain overload, or if a tensor has not one element.

    Examples
    --------
    >>> s, z, end = np.array([0.5]), np.array([1]), np.array([0])
    >>> dequantize_per_tensor_tensor2(np.uint8([3]), s, z, end, end + 255, uint8)
    array([1.], dtype=float32)
    """
    return _dequantize(x, item(scale), item(zero_point), out_dtype)


# ---- types


def _kind(x: TensorType) -> Any:
    """Return a number of the kind that a tensor's element has in Python."""
    return x.dtype.storage.type(1).item()


def _infer_dequantize(
    x: TensorType,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    out_dtype: DType | None = None,
) -> TensorType:
    op = "dequantize_per_tensor"
    check_target(op, dtype)
    check_input(op, x, (dtype,))
    out_dtype = out_dtype or float32
    check_plain(op, out_dtype)
    difference = eager.difference_dtype(op, TensorType(out_dtype, x.shape), zero_point)
    return TensorType(eager.arithmetic_dtype(op, TensorType(difference, x.shape), scale), x.shape)


def _infer_dequantize_tensor(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    out_dtype: DType | None = None,
) -> TensorType:
    check_one_element("dequantize_per_tensor", scale=scale, zero_point=zero_point)
    qparams = _kind(scale), _kind(zero_point)
    return _infer_dequantize(x, *qparams, quant_min, quant_max, dtype, out_dtype)


def _infer_dequantize_tensor2(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    quant_min: TensorType,
    quant_max: TensorType,
    dtype: DType,
    out_dtype: DType | None = None,
) -> TensorType:
    op = "dequantize_per_tensor"
    check_one_element(
        op, scale=scale, zero_point=zero_point, quant_min=quant_min, quant_max=quant_max
    )
    return _infer_dequantize(x, _kind(scale), _kind(zero_point), 0, 0, dtype, out_dtype)


_Q = np.array([[1, 255, 0]], np.uint8)
_U8 = {"quant_min": 0, "quant_max": 255, "dtype": uint8}
_ONE = {"scale": 1.0, "zero_point": 1} | _U8
_S, _Z = np.array([1.0]), np.array([1])

OPS = (
    decomposed_op(
        "dequantize_per_tensor",
        dequantize_per_tensor,
        _infer_dequantize,
        Case("ends", (_Q,), _ONE, [[0, 254, -1]], "below the zero point"),
        Case(
            "half",
            (_Q,),
            _ONE | {"scale": 0.1, "out_dtype": float16},
            np.array([[0, 25.4, -0.1]], np.float16),
            "the scale is float32",
        ),
    ),
    decomposed_op(
        "dequantize_per_tensor.tensor",
        dequantize_per_tensor_tensor,
        _infer_dequantize_tensor,
        Case("ends", (_Q, _S, _Z), _U8, [[0, 254, -1]], "qparams computed at run time"),
    ),
    decomposed_op(
        "dequantize_per_tensor.tensor2",
        dequantize_per_tensor_tensor2,
        _infer_dequantize_tensor2,
        Case("ends", (_Q, _S, _Z, _Z, _Z), {"dtype": uint8}, [[0, 254, -1]], "range unused"),
    ),
)
