"""``onnx::QuantizeLinear``: real values to integers, or to floats of a few bits."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refquant.ir import types
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import Engine, Target
from refquant.ir.types import DType, TensorType, dtype_of, uint8
from refquant.kernels.jit import jit
from refquant.kernels.layout import flat
from refquant.kernels.onnx import granularity
from refquant.kernels.onnx.literals import f16, f32, u8
from refquant.kernels.onnx.operands import ONNX, dtype_in, limits_of, same_dtype, single

Array = npt.NDArray[Any]

REAL = (types.float32, types.float16, types.bfloat16, types.int32)
SCALES = (*REAL, types.float8_e8m0fnu)
INTEGERS = (
    *(types.uint8, types.int8, types.uint16, types.int16),
    *(types.uint4, types.int4, types.uint2, types.int2),
)
FLOAT8 = (
    *(types.float8_e4m3fn, types.float8_e4m3fnuz),
    *(types.float8_e5m2, types.float8_e5m2fnuz),
)
SMALL_FLOATS = (types.float4_e2m1fn, types.float6_e2m3fn, types.float6_e3m2fn)
RESULTS = (*INTEGERS, *FLOAT8, *SMALL_FLOATS)
_OP = "onnx::QuantizeLinear"


def reference(
    x: Array,
    y_scale: Array,
    y_zero_point: Array | None = None,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: DType | None = None,
    precision: DType | None = None,
    target: Target = ONNX,
) -> Array:
    r"""Divide by the scale, round half to even, add the zero point and saturate.

    .. math:: y = \mathrm{saturate}(\mathrm{rint}(x / s) + z)

    It is a true division, in the precision of ``precision`` or else of ``y_scale``; where that
    is an integer or a power of two (int32, float8_e8m0), in float32, for an int32 ``x`` in
    float64. Ties are met before the zero point is added. NaN gives the lowest integer; infinities
    saturate.

    Float results take the zero point's place in the formula, too, but those of 8 bits have none
    (it names the type only) and are rounded once, half to even. With ``saturate`` what is too
    large becomes the largest finite number, without it infinity, or NaN where there is none.
    Types of 4 and 6 bits always saturate.

    **ort** divides float16 in float32 whatever ``precision`` says. Quotients that int32 does
    not hold, and NaN, are saturated by its vector loops. Its scalar loops turn them into the
    smallest int32 *first*, add the zero point, which wraps, and saturate that. Scalar loops are
    taken for float16, for 2-bit integers, for blocks along an axis that is not the innermost, and
    for the odd ends of runs of 4-bit integers. Without ``saturate``, from 480 to below 496
    float8_e4m3fn gives 448, and what rounds to 2**16 from below gives NaN in float8_e5m2.

    Parameters
    ----------
    x : float32, float16, bfloat16 or int32, any shape
        Real values; under ort float32 or float16.
    y_scale : float32, float16, bfloat16, int32 or float8_e8m0
        A scalar, one for each index of ``axis``, or one for each block.
    y_zero_point : like the result, shape of ``y_scale``, or None
        None means 0.
    axis : int
        Axis that scales belong to.
    saturate : int
        See above.
    block_size : int
        Neighbours along ``axis`` that share a scale; 0 where there are no blocks.
    output_dtype, precision : DType or None
        Type of the result where there is no zero point (uint8 if None), and of the division.

    Returns
    -------
    Array of the shape of ``x``
        uint8, int8, uint16, int16, a 4-bit or 2-bit integer, or a float of 8, 6 or 4 bits.

    Raises
    ------
    VerifyError
        If types or shapes do not fit.
    UnsupportedError
        Under ort, for types that onnxruntime has no kernel for.

    Examples
    --------
    >>> reference(np.float32([0.5, 1.5, 300.0]), np.float32(1), np.uint8(7))
    array([  7,   9, 255], dtype=uint8)
    """
    dtype = _result(y_zero_point, output_dtype)
    if target.engine is Engine.ORT:
        _check_ort(x, y_scale, dtype)
        quotient = _quotient(x, granularity.spread(y_scale, x.shape, axis, block_size), None)
    else:
        scale = granularity.spread(y_scale, x.shape, axis, block_size)
        quotient = _quotient(x, scale, _precision(x, y_scale, precision))
    zero = np.zeros((), dtype.storage) if y_zero_point is None else np.asarray(y_zero_point)
    zero = granularity.spread(zero, x.shape, axis, block_size)
    if dtype in INTEGERS:
        wraps: Any = False
        if target.engine is Engine.ORT:
            wraps = _scalar_loops(x, y_scale, dtype, axis, block_size)
        return _integers(quotient, zero, dtype, wraps)
    if dtype in SMALL_FLOATS:
        return np.asarray((quotient + zero.astype(quotient.dtype)).astype(dtype.storage))
    narrow = _saturated if saturate else _NOT_SATURATED[target.engine]
    return narrow(quotient, dtype.storage)


def _result(zero_point: Array | None, output_dtype: DType | None) -> DType:
    if zero_point is not None:
        return dtype_of(np.asarray(zero_point))
    return output_dtype or uint8


def _precision(x: Array, scale: Array, precision: DType | None) -> np.dtype[Any]:
    if precision is not None:
        return precision.storage
    if scale.dtype in (types.int32.storage, types.float8_e8m0fnu.storage):
        whole = x.dtype == np.int32
        return np.dtype(np.float64 if whole else np.float32)
    return scale.dtype


def _quotient(x: Array, scale: Array, precision: np.dtype[Any] | None) -> Array:
    kind = np.dtype(np.float32) if precision is None else precision
    with np.errstate(all="ignore"):
        return np.asarray(x.astype(kind) / scale.astype(kind))


def _integers(quotient: Array, zero: Array, dtype: DType, wraps: Any) -> Array:
    low, high = limits_of(dtype.storage)
    z = zero.astype(np.int64)
    with np.errstate(all="ignore"):
        whole = np.rint(quotient.astype(np.float64))
        inside = np.clip(np.where(np.isnan(whole), -np.inf, whole), low - z, high - z)
        y = inside.astype(np.int64) + z
        if np.any(wraps):
            fits = np.abs(whole) < 2.0**31
            first = np.where(fits, whole, -(2.0**31)).astype(np.int64) + z
            y = np.where(wraps, np.clip(first.astype(np.int32), low, high), y)
    return np.asarray(y.astype(np.int32).astype(dtype.storage))


def _scalar_loops(x: Array, scale: Array, dtype: DType, axis: int, block_size: int) -> Any:
    """Return which elements onnxruntime converts one by one."""
    two_bits = dtype in (types.int2, types.uint2)
    length = granularity.run_length(x.shape, scale, axis, block_size)
    blocks_of_rows = block_size and scale.ndim > 1 and np.prod(x.shape[axis % x.ndim + 1 :]) > 1
    if x.dtype == np.float16 or two_bits or blocks_of_rows:
        return True
    if dtype not in (types.int4, types.uint4) or not x.size:
        return False
    row = x.shape[axis] if block_size and scale.ndim > 1 else length
    place = np.arange(x.size).reshape(x.shape)
    within = place % row
    first, last = within % length == 0, (within % length == length - 1) | (within == row - 1)
    return (first & (place % 2 == 1)) | (last & (place % 2 == 0))


def _saturated(quotient: Array, storage: np.dtype[Any]) -> Array:
    finfo: Any = ml_dtypes.finfo
    largest = float(finfo(storage).max)
    return np.asarray(np.clip(quotient, -largest, largest).astype(storage))


def _unlimited(quotient: Array, storage: np.dtype[Any]) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(quotient.astype(storage))


def _unlimited_with_gaps(quotient: Array, storage: np.dtype[Any]) -> Array:
    """Return what onnxruntime makes of numbers that are too large."""
    y = _unlimited(quotient, storage)
    size = np.abs(quotient)
    if storage == types.float8_e4m3fn.storage:
        gap = (size >= 480) & (size < 496)
        return np.where(gap, np.copysign(np.float32(448), quotient).astype(storage), y)
    if storage == types.float8_e5m2.storage:
        return np.where((size >= 61440) & (size < 65536), storage.type(np.nan), y)
    return y


_NOT_SATURATED = {Engine.ONNX: _unlimited, Engine.ORT: _unlimited_with_gaps}


def _check_ort(x: Array, scale: Array, dtype: DType) -> None:
    kinds = (types.float32, types.float16)
    got = dtype_of(x), dtype_of(np.asarray(scale))
    if got[0] != got[1] or got[0] not in kinds or dtype in SMALL_FLOATS:
        raise UnsupportedError(
            f"{_OP}: onnxruntime divides float32 or float16 by the same type, to integers or "
            f"float8, got {got[0]} by {got[1]} to {dtype}"
        )


def infer(
    x: TensorType,
    y_scale: TensorType,
    y_zero_point: TensorType | None = None,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: DType | None = None,
    precision: DType | None = None,
) -> TensorType:
    """Check the types and the shapes of scale and zero point; the shape stays."""
    dtype_in(_OP, x, REAL, "x")
    dtype_in(_OP, y_scale, SCALES, "y_scale")
    dtype = output_dtype or uint8
    if y_zero_point is not None:
        dtype_in(_OP, y_zero_point, RESULTS, "y_zero_point")
        dtype = y_zero_point.dtype
        if output_dtype is not None:
            same_dtype(_OP, y_zero_point, TensorType(output_dtype, ()), "y_zero_point")
    if dtype not in RESULTS:
        raise VerifyError(f"{_OP}: output_dtype must be an integer or a small float, got {dtype}")
    if precision not in (None, *REAL[:3]):
        raise VerifyError(f"{_OP}: precision must be a float type, got {precision}")
    granularity.check(_OP, x, y_scale, y_zero_point, axis, block_size)
    return TensorType(dtype, x.shape)


@jit
def fill(x: Any, s: np.float32, zero: int, low: int, high: int, q: Any) -> None:
    """Quantize to integers of a range by one scale."""
    least, most = np.float32(low - zero), np.float32(high - zero)
    for i in range(x.size):
        v = np.float32(x[i]) / s
        v = v if v > least else least  # NaN, too
        v = v if v < most else most
        q[i] = np.int32(np.rint(v)) + np.int32(zero)


def kernel(
    x: Array,
    y_scale: Array,
    y_zero_point: Array | None = None,
    axis: int = 1,
    saturate: int = 1,
    block_size: int = 0,
    output_dtype: DType | None = None,
    precision: DType | None = None,
    target: Target = ONNX,
) -> Array:
    """Compute :func:`reference`; from float32 with one scale in one compiled pass."""
    dtype = _result(y_zero_point, output_dtype)
    one = np.asarray(y_scale).size == 1 and np.ndim(y_scale) < 2
    plain = x.dtype == y_scale.dtype == np.float32 and precision in (None, types.float32)
    if not (one and plain and dtype in INTEGERS[:4]):
        attributes = (axis, saturate, block_size, output_dtype, precision, target)
        return reference(x, y_scale, y_zero_point, *attributes)
    values, into, y = flat(x, dtype.storage)
    scale = np.float32(np.asarray(y_scale).reshape(()))
    fill(values, scale, single(y_zero_point), *limits_of(dtype.storage), into)
    return y


_F = np.float32
_TIES = np.array([0.5, 1.5, -0.5, 2.5], _F)


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
            "onnx/onnx/onnx/reference/ops/op_quantize_linear.py::_CommonQuantizeLinear",
            "microsoft/onnxruntime/onnxruntime/core/mlas/lib/quantize.cpp::MlasQuantizeLinear",
        ),
        cases=(
            _case("ties", _TIES, _F(1), np.uint8(7), [7, 9, 7, 9], "even, then the zero point"),
            _case("division", f32([4.5]), _F(0.6), np.uint8(0), [7], "times 1 / 0.6 would be 8"),
            _case(
                "ends", f32([9e9, -9e9, np.inf]), _F(1), np.int8(-5), [127, -128, 127], "limits"
            ),
            _case("nan", f32([np.nan]), _F(1), np.int8(-5), [-128], "NaN is the lowest"),
            _case("no zero point", _TIES, _F(1), None, [0, 2, 0, 2], "uint8 and 0"),
            _case(
                "axis", f32([[1, 1], [2, 2]]), f32([1, 0.5]), None, [[1, 2], [2, 4]], "per column"
            ),
            _case(
                "blocks",
                f32([[1, 1, 1]]),
                f32([[1, 0.5]]),
                u8([[0, 1]]),
                [[1, 1, 3]],
                "two share a scale, one is left",
                block_size=2,
            ),
            _case("int4", _TIES, _F(0.25), np.array(1, ml_dtypes.int4), [3, 7, -1, 7], "4 bits"),
            _case(
                "half",
                f16([0.01465]),
                np.float16(0.0977),
                None,
                [0],
                "either division",
            ),
            _case(
                "wrapped",
                f16([np.inf]),
                np.float16(1),
                np.int8(5),
                [-128],
                "scalar loop",
                Engine.ORT,
            ),
            _case(
                "float8",
                f32([500, 0.3]),
                _F(1),
                np.array(0, ml_dtypes.float8_e4m3fn),
                [448, 0.3125],
                "saturates",
            ),
            _case(
                "float8 open",
                f32([7e4, 2]),
                _F(1),
                np.array(0, ml_dtypes.float8_e5m2),
                [np.inf, 2],
                "not saturated",
                saturate=0,
            ),
            _case(
                "float8 gap",
                f32([-485]),
                _F(1),
                np.array(0, ml_dtypes.float8_e4m3fn),
                [-448],
                "NaN anywhere else",
                Engine.ORT,
                saturate=0,
            ),
            _case(
                "float4",
                f32([9, 0.75]),
                _F(1),
                np.array(0, ml_dtypes.float4_e2m1fn),
                [6, 1],
                "ties to even, saturates",
                Engine.ONNX,
            ),
            _case("empty", np.zeros((0, 3), _F), _F(1), None, np.zeros((0, 3)), "no elements"),
        ),
    ),
)
