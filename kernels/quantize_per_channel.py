"""``aten::quantize_per_channel``: float32 to integers, one scale for each channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES
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
from refquant.kernels.layout import channel_nest, empty_aligned, empty_suggested, suggested
from refquant.kernels.rounding import saturate_int32, saturate_int64
from refquant.kernels.rounding_jit import low_bits_before, narrow_before, wide_before

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Loops = tuple[Callable[..., None], Callable[..., None]]


def _parameters(scales: npt.ArrayLike, zero_points: npt.ArrayLike) -> tuple[Array, Array]:
    """Store parameters as torch does: float64 and int64, or float32 with float zero points."""
    zero_points = np.asarray(zero_points)
    if zero_points.dtype.kind == "f":
        return np.asarray(scales, np.float32), zero_points.astype(np.float32)
    return np.asarray(scales, np.float64), zero_points.astype(np.int64)


def _empty_result(x: F32, dtype: DType, zero_points: Array) -> Array:
    if zero_points.dtype.kind == "f":
        return empty_aligned(x.shape, dtype.storage)
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
    No scale is refused; see ``aten::quantize_per_tensor``.

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
    out = _empty_result(x, dtype, zero_point)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        s = scale.reshape(per_channel).astype(np.float32)
        if zero_point.dtype.kind == "f":
            s = np.where(s == 0, np.float32(1), s)
            out[...] = saturate_int64(np.rint(x * (np.float32(1) / s) + z), dtype, bits=32)
        else:
            out[...] = saturate_int32(np.rint(x * (np.float32(1) / s) + z), dtype)
    return QTensor(out, scale, zero_point, axis, dtype)


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
    if not 0 <= axis < x.rank:
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
    qparams = QParams(tuple(scale.tolist()), tuple(zero_point.tolist()), axis)
    return TensorType(dtype, x.shape, qparams)


@jit
def _fill_narrow(
    x: Any, inverse: F32, zero_point: F32, low: np.float32, high: np.float32, q: Any
) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            r, z = inverse[c], zero_point[c]
            for j in range(x.shape[2]):
                q[i, c, j] = narrow_before(x[i, c, j], r, z, low, high)


@jit
def _fill_narrow_columns(
    x: Any, inverse: F32, zero_point: F32, low: np.float32, high: np.float32, q: Any
) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            q[i, c] = narrow_before(x[i, c], inverse[c], zero_point[c], low, high)


@jit
def _fill_wide(x: Any, inverse: F32, zero_point: F32, low: int, high: int, q: Any) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            r, z = inverse[c], zero_point[c]
            for j in range(x.shape[2]):
                q[i, c, j] = wide_before(x[i, c, j], r, z)


@jit
def _fill_wide_columns(x: Any, inverse: F32, zero_point: F32, low: int, high: int, q: Any) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            q[i, c] = wide_before(x[i, c], inverse[c], zero_point[c])


@jit
def _fill_wrapping(x: Any, inverse: F32, zero_point: F32, low: int, high: int, q: Any) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            r, z = inverse[c], zero_point[c]
            for j in range(x.shape[2]):
                q[i, c, j] = low_bits_before(x[i, c, j], r, z, low, high)


@jit
def _fill_wrapping_columns(
    x: Any, inverse: F32, zero_point: F32, low: int, high: int, q: Any
) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            q[i, c] = low_bits_before(x[i, c], inverse[c], zero_point[c], low, high)


# Loops over rows, and over columns where the rows of a channel are short.
_NARROW: Loops = (_fill_narrow, _fill_narrow_columns)
_WIDE: Loops = (_fill_wide, _fill_wide_columns)
_WRAPPING: Loops = (_fill_wrapping, _fill_wrapping_columns)


def kernel(
    x: F32, scales: npt.ArrayLike, zero_points: npt.ArrayLike, axis: int, dtype: DType
) -> QTensor:
    """Compute :func:`reference` in one compiled pass over the memory."""
    scale, zero_point = _parameters(scales, zero_points)
    with_floats = zero_point.dtype.kind == "f"
    out = _empty_result(x, dtype, zero_point)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale.astype(np.float32)
    limits: tuple[Any, Any] = dtype.limits
    loops = _WIDE if dtype == qint32 else _NARROW
    if with_floats:
        inverse, loops = np.where(scale == 0, np.float32(1), inverse), _WRAPPING
    elif dtype != qint32:
        limits = np.float32(limits[0]), np.float32(limits[1])
    if x.size:
        dense = np.ascontiguousarray(x) if with_floats else suggested(x)
        nest = channel_nest(dense, axis)
        parameters = (nest.spread(values) for values in (inverse, zero_point.astype(np.float32)))
        loops[nest.columns](nest.view(dense), *parameters, *limits, nest.view(out))
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
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
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
