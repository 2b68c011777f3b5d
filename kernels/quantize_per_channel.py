"""``aten::quantize_per_channel``: float32 to integers, one scale for each channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.types import (
    DType,
    QParams,
    TensorType,
    float32,
    format_shape,
    qint8,
    qint32,
    quint4x2,
    quint8,
)
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_suggested, memory_permutation, suggested

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def _parameters(scales: npt.ArrayLike, zero_points: npt.ArrayLike) -> tuple[Array, Array]:
    """Store parameters as torch does: float64 and int64, or float32 with float zero points."""
    zero_points = np.asarray(zero_points)
    if zero_points.dtype.kind == "f":
        return np.asarray(scales, np.float32), zero_points.astype(np.float32)
    return np.asarray(scales, np.float64), zero_points.astype(np.int64)


def _empty_result(x: F32, dtype: DType, zero_points: Array) -> Array:
    if zero_points.dtype.kind == "f":
        return np.empty(x.shape, dtype.storage)
    return empty_suggested(x, dtype.storage)


def reference(
    x: F32, scales: npt.ArrayLike, zero_points: npt.ArrayLike, axis: int, dtype: DType
) -> QTensor:
    r"""Quantize ``x``, with a scale and a zero point for each index of ``axis``.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(x \cdot (1/s_c) + z_c))

    Reciprocal, product and sum are rounded to float32 each, unlike ``quantize_per_tensor``,
    which adds with one rounding. Ties go to even after the zero point is added.

    Float zero points (the embedding formats) are kept as float32. Then a scale of 0 counts as
    1, and values whose rounded quotient does not fit into 32 bits wrap before they are clamped.

    Parameters
    ----------
    x : float32, any shape
        Real values.
    scales : float array, shape (C,)
        Real size of one step, per channel.
    zero_points : integer or float array, shape (C,)
        The quantized value that stands for 0.0, per channel.
    axis : int
        The channel axis.
    dtype : DType
        quint8, qint8 or qint32; with float zero points quint8, qint8 or quint4x2.

    Returns
    -------
    QTensor
        Shape of ``x``; memory format of ``x``, but C order with float zero points. Infinities
        saturate and NaN gives 0 (the smallest value for qint32); with float zero points all
        three give what 0 clamps to.

    Raises
    ------
    VerifyError
        If ``x`` is not float32, the number of parameters is not the length of ``axis``, a zero
        point is out of range or the dtype is not accepted.

    Examples
    --------
    >>> reference(np.float32([[0.5], [0.5]]), [1.0, 0.25], [1, 0], 0, quint8).int_repr
    array([[2],
           [2]], dtype=uint8)
    """
    scale, zero_point = _parameters(scales, zero_points)
    per_channel = [1] * x.ndim
    per_channel[axis] = -1
    z = zero_point.reshape(per_channel).astype(np.float32)
    s = scale.reshape(per_channel).astype(np.float32)
    out = _empty_result(x, dtype, zero_point)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if zero_point.dtype.kind == "f":
            s = np.where(s == 0, np.float32(1), s)
            out[...] = _wrap(np.rint(x * (np.float32(1) / s) + z), dtype)
        else:
            out[...] = _saturate(np.rint(x * (np.float32(1) / s) + z), dtype)
    return QTensor(out, scale, zero_point, axis % x.ndim, dtype)


def _saturate(rounded: F32, dtype: DType) -> Array:
    nan = -(2**31) if dtype == qint32 else 0
    wide = np.where(np.isnan(rounded), nan, rounded.astype(np.float64))
    return np.clip(wide, *dtype.limits).astype(dtype.storage)


def _wrap(rounded: F32, dtype: DType) -> Array:
    fits = np.abs(rounded) < 2.0**63
    low_bits = np.where(fits, rounded, 0).astype(np.int64).astype(np.int32)
    return np.clip(low_bits, *dtype.limits).astype(dtype.storage)


def infer(
    x: TensorType,
    scales: TensorType | npt.ArrayLike,
    zero_points: TensorType | npt.ArrayLike,
    axis: int,
    dtype: DType,
) -> TensorType:
    """Check lengths, ranges and dtype.

    Parameters given as values become part of the type; parameters that are computed at run time
    (given as types) leave it open.
    """
    op = "quantize_per_channel"
    if x.dtype != float32:
        raise VerifyError(f"{op}: expected float32, got {x.dtype}")
    if not -x.rank <= axis < x.rank:
        raise VerifyError(f"{op}: axis {axis} is outside {format_shape(x.shape)}")
    channels = x.shape[axis]
    for what, given in (("scales", scales), ("zero_points", zero_points)):
        shape = given.shape if isinstance(given, TensorType) else np.shape(given)
        if shape != (channels,):
            raise VerifyError(f"{op}: {what} must be [{channels}], got {format_shape(shape)}")
    if isinstance(zero_points, TensorType):
        is_float = zero_points.dtype.is_floating_point
    else:
        is_float = np.asarray(zero_points).dtype.kind == "f"
    accepted = (quint8, qint8, quint4x2) if is_float else (quint8, qint8, qint32)
    if dtype not in accepted:
        names = ", ".join(map(str, accepted))
        raise VerifyError(f"{op}: dtype must be one of {names}, got {dtype}")
    if isinstance(scales, TensorType) or isinstance(zero_points, TensorType):
        return TensorType(dtype, x.shape)
    scale, zero_point = _parameters(scales, zero_points)
    low, high = dtype.limits
    if (
        not is_float
        and zero_point.size
        and not low <= zero_point.min() <= zero_point.max() <= high
    ):
        raise VerifyError(f"{op}: zero points must be in [{low}, {high}], got {zero_point}")
    qparams = QParams(tuple(scale.tolist()), tuple(zero_point.tolist()), axis % x.rank)
    return TensorType(dtype, x.shape, qparams)


@jit
def _fill_saturating(
    x: Any, inverse: F32, zero_point: F32, low: int, high: int, nan: int, q: Any
) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            for j in range(x.shape[2]):
                value = np.rint(np.float32(np.float32(x[i, c, j] * inverse[c]) + zero_point[c]))
                if value != value:
                    q[i, c, j] = nan
                elif value <= np.float32(low):
                    q[i, c, j] = low
                elif value >= np.float32(high):
                    q[i, c, j] = high
                else:
                    q[i, c, j] = np.int64(value)


@jit
def _fill_wrapping(x: Any, inverse: F32, zero_point: F32, low: int, high: int, q: Any) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            for j in range(x.shape[2]):
                value = np.rint(np.float32(np.float32(x[i, c, j] * inverse[c]) + zero_point[c]))
                bits = np.int64(0)
                if abs(value) < np.float32(2.0**63):
                    bits = np.int64(np.int32(np.int64(value)))
                q[i, c, j] = min(max(bits, low), high)


def kernel(
    x: F32, scales: npt.ArrayLike, zero_points: npt.ArrayLike, axis: int, dtype: DType
) -> QTensor:
    """Compute :func:`reference` in one compiled pass over the memory."""
    scale, zero_point = _parameters(scales, zero_points)
    with_floats = zero_point.dtype.kind == "f"
    out = _empty_result(x, dtype, zero_point)
    axis %= x.ndim
    with np.errstate(divide="ignore"):
        inverse = np.float32(1) / scale.astype(np.float32)
    dense = np.ascontiguousarray(x) if with_floats else suggested(x)
    order = memory_permutation(dense)
    position = order.index(axis)
    lengths = [x.shape[d] for d in order]
    view = (int(np.prod(lengths[:position])), lengths[position], -1)
    if x.size:
        values = dense.transpose(order).reshape(view)
        q = out.transpose(order).reshape(view)
        z, limits = zero_point.astype(np.float32), dtype.limits
        if with_floats:
            inverse = np.where(scale == 0, np.float32(1), inverse)
            _fill_wrapping(values, inverse, z, *limits, q)
        else:
            _fill_saturating(values, inverse, z, *limits, -(2**31) if dtype == qint32 else 0, q)
    return QTensor(out, scale, zero_point, axis, dtype)


def _case(
    name: str, x: Any, scales: Any, zero_points: Any, dtype: DType, expected: Any, why: str
) -> Case:
    attributes = {
        "scales": np.asarray(scales),
        "zero_points": np.asarray(zero_points),
        "axis": 0,
        "dtype": dtype,
    }
    return Case(name, (np.asarray(x, np.float32),), attributes, expected, why)


OPS = (
    Op(
        name="aten::quantize_per_channel",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ALL_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/AffineQuantizer.cpp"
            "::quantize_tensor_per_channel_affine",
        ),
        cases=(
            _case(
                *("ties", [[0.5, 1.5], [0.5, 1.5]], [1.0, 1.0], [0, 1], qint8),
                *([[0, 2], [2, 2]], "even after the zero point is added"),
            ),
            _case(
                *("specials", [[np.inf, -np.inf, np.nan, 3e9]], [1.0], [3], quint8),
                *([[255, 0, 0, 255]], "NaN gives 0"),
            ),
            _case(
                *("qint32", [[np.nan, 0.5]], [1.0], [1], qint32),
                *([[-(2**31), 2]], "NaN gives the smallest value"),
            ),
            _case(
                *("float_zero_points", [[0.5, 3e9, np.inf]], [0.0], [0.25], quint4x2),
                *([[1, 0, 0]], "scale 0 counts as 1; 3e9 wraps to a negative number"),
            ),
            _case("empty", np.zeros((2, 0)), [1.0, 1.0], [0, 1], qint8, np.zeros((2, 0)), "none"),
        ),
    ),
)
