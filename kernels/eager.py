"""Arithmetic on plain tensors of any dtypes as torch's eager mode does it, one op at a time.

The ``quantized_decomposed`` ops are Python programs of such ops in torch. Operands are arrays or
Python numbers; types are promoted as in torch. float16 and bfloat16 are computed in float32 and
rounded after every op. A second factor or divisor of a single element is then not rounded before.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.qtensor import Array, type_of
from refquant.ir.types import (
    DType,
    TensorType,
    bfloat16,
    bool_,
    float8_e4m3fn,
    float8_e5m2,
    float16,
    float32,
    int64,
    uint8,
    uint16,
)
from refquant.kernels.promotion import Number, result_dtype
from refquant.kernels.rounding import to_int64

Operand = Array | Number
HALF = (float16, bfloat16)
FLOAT8 = (float8_e5m2, float8_e4m3fn)


def arithmetic_dtype(op: str, *operands: TensorType | Number) -> DType:
    """Return the dtype in which torch adds, subtracts or multiplies, and of the result.

    Raises
    ------
    VerifyError
        For float8, and for bool and uint16 where there is no float; torch computes a few of
        these products.

    Examples
    --------
    >>> arithmetic_dtype("mul", TensorType(float16, (2,)), TensorType(bfloat16, (2,)))
    refquant.float32
    """
    given = [x.dtype for x in operands if isinstance(x, TensorType)]
    if not any(d in FLOAT8 for d in given):
        dtype = result_dtype(op, *operands)
        if dtype.is_floating_point or not (dtype == bool_ or uint16 in given):
            return dtype
    names = " and ".join(map(str, given))
    raise VerifyError(f"{op}: arithmetic on {names} is not supported")


def quotient_dtype(dtype: DType) -> DType:
    """Return the dtype of a true quotient: integers become float32.

    Examples
    --------
    >>> quotient_dtype(uint16), quotient_dtype(float16)
    (refquant.float32, refquant.float16)
    """
    return dtype if dtype.is_floating_point else float32


def add(a: Operand, b: Operand) -> Array:
    """Return ``a + b``.

    Examples
    --------
    >>> add(np.float16([256]), 0.1)
    array([256.], dtype=float16)
    """
    return _binary(np.add, a, b)


def difference_dtype(op: str, *operands: TensorType | Number) -> DType:
    """Return :func:`arithmetic_dtype` of a difference, in which no operand may be bool."""
    if any(isinstance(x, bool) or getattr(x, "dtype", None) == bool_ for x in operands):
        raise VerifyError(f"{op}: torch does not subtract bool")
    return arithmetic_dtype(op, *operands)


def sub(a: Operand, b: Operand) -> Array:
    """Return ``a - b``; integers wrap.

    Examples
    --------
    >>> sub(np.int8([-128]), np.int8([1]))
    array([127], dtype=int8)
    """
    return _binary(np.subtract, a, b)


def mul(a: Operand, b: Operand) -> Array:
    """Return ``a * b``.

    Examples
    --------
    >>> mul(np.int8([3]), np.float32([0.5]))
    array([1.5], dtype=float32)
    """
    return _binary(np.multiply, a, b)


def div(a: Operand, b: Operand) -> Array:
    """Return the true quotient.

    Examples
    --------
    >>> div(np.int8([3]), 2)
    array([1.5], dtype=float32)
    """
    return _binary(np.divide, a, b)


def reciprocal(x: Array) -> Array:
    """Return ``1 / x``; torch computes ``1.0 / x`` like this.

    Examples
    --------
    >>> reciprocal(np.array([4, 0]))
    array([0.25,  inf], dtype=float32)
    """
    dtype = quotient_dtype(type_of(x).dtype)
    with np.errstate(divide="ignore"):
        return convert(np.asarray(1 / _wide(x, dtype)), dtype)


def rint(x: Array) -> Array:
    """Round to whole numbers, ties to even."""
    wide = x.astype(_computing(type_of(x).dtype), copy=False)
    return np.asarray(np.rint(wide)).astype(x.dtype, copy=False)


def clamp(x: Array, low: Number, high: Number) -> Array:
    """Limit a float tensor; NaN stays, and ``high`` wins where the range is empty.

    Raises
    ------
    VerifyError
        If a limit overflows the type.

    Examples
    --------
    >>> clamp(np.float32([-1, np.nan, 300]), 0, 255)
    array([  0.,  nan, 255.], dtype=float32)
    """
    limits = [_number(value, x.dtype) for value in (low, high)]
    for value, limit in zip((low, high), limits, strict=True):
        if np.isinf(limit.astype(np.float32)) and np.isfinite(value):
            raise VerifyError(f"clamp: {value} overflows {type_of(x).dtype}")
    return np.asarray(np.minimum(np.maximum(x, limits[0]), limits[1]))


def convert(x: Array, dtype: DType) -> Array:
    """Convert as C on x86 does.

    Floats are truncated to int32 (for int64 and uint8: to int64), or to the smallest one where
    they do not fit; narrower types keep the low bits. Floats narrower than float32 are rounded
    from float32; float8_e4m3fn, which has no infinity, saturates.

    Examples
    --------
    >>> convert(np.float32([-1.5, 300, np.nan]), uint16)
    array([65535,   300,     0], dtype=uint16)
    """
    source = type_of(x).dtype
    with np.errstate(over="ignore", invalid="ignore"):
        if source.is_floating_point and dtype.storage.kind in "iu":
            whole = to_int64(x if x.dtype == np.float64 else x.astype(np.float32))
            if dtype not in (int64, uint8):
                whole = np.where(whole == whole.astype(np.int32), whole, -(2**31))
            return whole.astype(dtype.storage)
        if dtype in HALF + FLOAT8 and source != dtype:
            x = x.astype(np.float32)
            x = np.clip(x, -448, 448) if dtype == float8_e4m3fn else x
        return x.astype(dtype.storage)


def _computing(dtype: DType) -> np.dtype[Any]:
    return float32.storage if dtype in HALF else dtype.storage


def _number(value: Operand, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(dtype)


def _wide(x: Operand, dtype: DType) -> Array:
    """Return an operand, rounded to ``dtype``, in the type in which that is computed."""
    return convert(np.asarray(x), dtype).astype(_computing(dtype), copy=False)


def _binary(formula: Any, a: Operand, b: Operand) -> Array:
    types = [type_of(x) if isinstance(x, np.ndarray) else x for x in (a, b)]
    op = str(formula.__name__)
    dtype = arithmetic_dtype(op, *types)
    dtype = quotient_dtype(dtype) if formula is np.divide else dtype
    kept = formula in (np.multiply, np.divide) and np.size(b) == 1
    with np.errstate(all="ignore"):
        second = _number(b, _computing(dtype)) if kept else _wide(b, dtype)
        return convert(np.asarray(formula(_wide(a, dtype), second)), dtype)
