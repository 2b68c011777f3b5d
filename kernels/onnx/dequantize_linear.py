"""``onnx::DequantizeLinear``: quantized integers or small floats to real values."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refquant.ir import types
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import Engine, Target
from refquant.ir.types import DType, TensorType, dtype_of
from refquant.kernels.jit import jit
from refquant.kernels.layout import flat
from refquant.kernels.onnx import granularity
from refquant.kernels.onnx.literals import f32, i8, i32, u8
from refquant.kernels.onnx.operands import ONNX, dtype_in, same_dtype, single
from refquant.kernels.onnx.quantize_linear import FLOAT8, INTEGERS, RESULTS, SMALL_FLOATS

Array = npt.NDArray[Any]

REAL = (types.float32, types.float16, types.bfloat16)
_OP = "onnx::DequantizeLinear"


def reference(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: DType | None = None,
    target: Target = ONNX,
) -> Array:
    r"""Subtract the zero point and multiply by the scale.

    .. math:: y = f32(x - z) \cdot s

    The difference is exact (an int32 ``x`` is rounded to float32), the product is rounded to
    float32 and, for a result of another type, once more. Float8 and float4 have no zero point.
    Engines onnx and ort are the same.

    Parameters
    ----------
    x : integer of 2, 4, 8, 16 or 32 bits, or float of 4, 6 or 8 bits
        Quantized values.
    x_scale : float32, float16, bfloat16 or float8_e8m0
        A scalar, one for each index of ``axis``, or one for each block.
    x_zero_point : like ``x``, shape of ``x_scale``, or None
        None means 0.
    axis : int
        Axis that scales belong to.
    block_size : int
        Neighbours along ``axis`` that share a scale; 0 where there are no blocks.
    output_dtype : DType or None
        Type of the result; None for that of the scale.

    Returns
    -------
    Array of the shape of ``x``

    Raises
    ------
    VerifyError
        If types or shapes do not fit.
    UnsupportedError
        Under ort, for types that onnxruntime has no kernel for.

    Examples
    --------
    >>> reference(np.uint8([5, 9]), np.float32(0.5), np.uint8(7))
    array([-1.,  1.], dtype=float32)
    """
    dtype = output_dtype.storage if output_dtype is not None else x_scale.dtype
    if target.engine is Engine.ORT:
        _check_ort(x, x_scale, output_dtype)
    scale = granularity.spread(x_scale, x.shape, axis, block_size).astype(np.float32)
    difference: Array = x.astype(np.float32)
    if x_zero_point is not None and x.dtype not in _WITHOUT_ZERO_POINT:
        zero = granularity.spread(np.asarray(x_zero_point), x.shape, axis, block_size)
        wide = x.astype(np.float64) - zero.astype(np.float64)
        difference = wide.astype(np.float32)
    with np.errstate(all="ignore"):
        return np.asarray((difference * scale).astype(dtype))


_WITHOUT_ZERO_POINT = {d.storage for d in (*FLOAT8, types.float4_e2m1fn)}


def _check_ort(x: Array, scale: Array, output_dtype: DType | None) -> None:
    found = dtype_of(np.asarray(scale))
    kinds = (found, output_dtype or found)
    if dtype_of(x) in SMALL_FLOATS or not set(kinds) <= {types.float32, types.float16}:
        raise UnsupportedError(
            f"{_OP}: onnxruntime takes integers and float8 with a scale and a result of float32 "
            f"or float16, got {dtype_of(x)} with {kinds[0]} to {kinds[1]}"
        )


def infer(
    x: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: DType | None = None,
) -> TensorType:
    """Check the types and the shapes of scale and zero point; the shape stays."""
    dtype_in(_OP, x, (*RESULTS, types.int32), "x")
    dtype_in(_OP, x_scale, (*REAL, types.float8_e8m0fnu), "x_scale")
    same_dtype(_OP, x_zero_point, x, "x_zero_point")
    granularity.check(_OP, x, x_scale, x_zero_point, axis, block_size)
    dtype = output_dtype or x_scale.dtype
    if dtype not in REAL:
        raise VerifyError(f"{_OP}: the result must be one of {REAL}, got {dtype}")
    return TensorType(dtype, x.shape)


@jit
def _fill(x: Any, s: np.float32, zero: int, y: Any) -> None:
    z = np.int32(zero)
    for i in range(x.size):
        y[i] = np.float32(np.int32(x[i]) - z) * s


def kernel(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None = None,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: DType | None = None,
    target: Target = ONNX,
) -> Array:
    """Compute :func:`reference`; from 8 and 16 bits with one scale in one compiled pass."""
    one = np.asarray(x_scale).size == 1 and np.ndim(x_scale) < 2
    plain = x_scale.dtype == np.float32 and output_dtype in (None, types.float32)
    if not (one and plain and dtype_of(x) in INTEGERS[:4]):
        return reference(x, x_scale, x_zero_point, axis, block_size, output_dtype, target)
    values, into, y = flat(x, np.float32)
    _fill(values, np.float32(np.asarray(x_scale).reshape(())), single(x_zero_point), into)
    return y


_F = np.float32
_SMALL = np.array([6, -0.5], ml_dtypes.float4_e2m1fn)


def _case(
    name: str,
    x: Any,
    scale: Any,
    zero: Any,
    expected: Any,
    why: str,
    *engines: Engine,
    **more: Any,
) -> Case:
    return Case(name, (np.asarray(x), np.asarray(scale), zero), more, expected, why, engines)


OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels={Engine.ONNX: kernel, Engine.ORT: kernel},
        source=(
            "onnx/onnx/onnx/reference/ops/op_dequantize_linear.py::_CommonDequantizeLinear",
            "microsoft/onnxruntime/onnxruntime/core/providers/cpu/quantization/"
            "quantize_linear.cc::DequantizeLinear",
        ),
        cases=(
            _case("plain", u8([5, 9]), _F(0.5), np.uint8(7), [-1, 1], "less zero point"),
            _case("ends", i8([-128]), _F(1), np.int8(127), [-255], "no overflow"),
            _case("int32", i32([2**24 + 1]), _F(1), None, [2**24], "rounded to float32"),
            _case("axis", i8([[2, 2]]), f32([1, 0.5]), i8([0, 1]), [[2, 0.5]], "columns"),
            _case(
                "blocks",
                i8([[2, 2, 2]]),
                f32([[1, 0.5]]),
                None,
                [[2, 2, 1]],
                "two share a scale, one is left",
                block_size=2,
            ),
            _case(
                "half", np.array([2049], np.uint16), np.float16(1), None, [2048], "rounded twice"
            ),
            _case("float4", _SMALL, _F(0.5), None, [3, -0.25], "no integers", Engine.ONNX),
            _case("empty", np.zeros(0, np.uint8), _F(1), None, np.zeros(0), "no elements"),
        ),
    ),
)
