"""``com.microsoft::QLinearGlobalAveragePool``: the mean of each channel."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType
from refquant.kernels.jit import jit
from refquant.kernels.layout import is_contiguous_channels_last
from refquant.kernels.onnx import rescale
from refquant.kernels.onnx.literals import i8, u8
from refquant.kernels.onnx.operands import Engines, limits_of, scale_of, single
from refquant.kernels.onnx.qlinear_table import check_parameters

Array = npt.NDArray[Any]
_OP = "com.microsoft::QLinearGlobalAveragePool"


def reference(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None,
    channels_last: int = 0,
) -> Array:
    r"""Average each channel over its map.

    .. math:: y = \mathrm{clamp}(f32(\sum x - n z_x) \cdot m), \quad m = s_x / (s_y \cdot f32(n))

    with the exact sum of :math:`n` integers, each float step rounded to float32; it is limited,
    rounded half to even and moved as in ``onnx::QLinearMatMul`` under engine ort. Engines onnx
    and ort are the same: the operator is onnxruntime's own.

    Parameters
    ----------
    x : uint8 or int8 (N, C, ...)
        Or (N, ..., C) with ``channels_last``.
    x_scale, y_scale : float32, one element
        Of input and result.
    x_zero_point, y_zero_point : like ``x``, one element, or None
        None means 0.
    channels_last : int
        Where the channels are.

    Returns
    -------
    Array like ``x``, the spatial axes of length 1

    Raises
    ------
    VerifyError
        If types or shapes do not fit.
    UnsupportedError
        If the map has 2**24 elements or more, or ``m`` is not in [2**-32, 256), as in
        onnxruntime.

    Examples
    --------
    >>> one = np.float32(1)
    >>> reference(np.uint8([[[1, 2], [3, 5]]]), one, None, one, np.uint8(0))
    array([[[2],
            [4]]], dtype=uint8)
    """
    axes = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
    total = x.sum(axes, dtype=np.int64, keepdims=True)
    count = prod(x.shape[axis] for axis in axes)
    total = total - single(x_zero_point) * count
    m = multiplier(x_scale, y_scale, count)
    return rescale.clamped(total.astype(np.int32), m, single(y_zero_point), x.dtype)


def multiplier(x_scale: Array, y_scale: Array, count: int) -> np.float32:
    """Return the factor of the sum, checked."""
    with np.errstate(all="ignore"):
        m = np.float32(scale_of(x_scale) / np.float32(scale_of(y_scale) * np.float32(count)))
    if count >= 2**24 or not 2.0**-32 <= m < 256:
        raise UnsupportedError(
            f"{_OP}: onnxruntime takes fewer than 2**24 elements and a factor in [2**-32, 256), "
            f"got {count} and {m}"
        )
    return m


@jit
def _fill_rows(x: Any, bias: int, m: np.float32, zero: int, low: int, high: int, y: Any) -> None:
    least, most = np.float32(low - zero), np.float32(high - zero)
    for row in range(x.shape[0]):
        total = np.int32(0)
        for i in range(x.shape[1]):
            total += np.int32(x[row, i])
        v = np.float32(np.float32(np.int32(total + bias)) * m)
        v = v if v > least else least
        v = v if v < most else most
        y[row] = np.int32(np.rint(v)) + np.int32(zero)


@jit
def _fill_columns(
    x: Any, bias: int, m: np.float32, zero: int, low: int, high: int, y: Any
) -> None:
    least, most = np.float32(low - zero), np.float32(high - zero)
    totals = np.empty(x.shape[2], np.int32)
    for image in range(x.shape[0]):
        totals[:] = bias
        for i in range(x.shape[1]):
            for c in range(x.shape[2]):
                totals[c] += np.int32(x[image, i, c])
        for c in range(x.shape[2]):
            v = np.float32(np.float32(totals[c]) * m)
            v = v if v > least else least
            v = v if v < most else most
            y[image, c] = np.int32(np.rint(v)) + np.int32(zero)


def kernel(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None,
    channels_last: int = 0,
) -> Array:
    """Compute :func:`reference` in one compiled pass in the order of memory."""
    spatial = x.shape[1:-1] if channels_last else x.shape[2:]
    count = prod(spatial)
    zero = single(y_zero_point)
    numbers = (
        *(-single(x_zero_point) * count, multiplier(x_scale, y_scale, count)),
        *(zero, *limits_of(x.dtype)),
    )
    ones = (1,) * len(spatial)
    if channels_last or is_contiguous_channels_last(x):
        rows = np.ascontiguousarray(x if channels_last else np.moveaxis(x, 1, -1))
        maps = rows.reshape(x.shape[0], count, rows.shape[-1])
        y = np.empty((x.shape[0], maps.shape[2]), x.dtype)
        _fill_columns(maps, *numbers, y)
        return y.reshape((x.shape[0], *ones, -1) if channels_last else (*y.shape, *ones))
    y = np.empty(x.shape[0] * x.shape[1], x.dtype)
    _fill_rows(np.ascontiguousarray(x).reshape(-1, count), *numbers, y)
    return y.reshape(*x.shape[:2], *ones)


def infer(
    x: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType | None,
    y_scale: TensorType,
    y_zero_point: TensorType | None,
    channels_last: int = 0,
) -> TensorType:
    """Check types and rank."""
    check_parameters(_OP, x, x_scale, x_zero_point, y_scale, y_zero_point)
    if x.rank < 3:
        raise VerifyError(f"{_OP}: x must have rank >= 3, got {x}")
    ones = (1,) * (x.rank - 2)
    last = (x.shape[0], *ones, x.shape[-1])
    return TensorType(x.dtype, last if channels_last else (*x.shape[:2], *ones))


_F = np.float32
_X = u8([[[[1, 2], [3, 5]], [[9, 9], [9, 255]]]])

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        source=(
            "microsoft/onnxruntime/onnxruntime/core/mlas/lib/qlgavgpool.cpp"
            "::MlasQLinearGlobalAveragePoolNchw",
        ),
        cases=(
            Case(
                "plain",
                (_X, _F(1), np.uint8(1), _F(1), np.uint8(3)),
                {},
                [[[[5]], [[73]]]],
                "7 / 4 to 2, 278 / 4 to 70, plus 3",
            ),
            Case(
                "last",
                (_X, _F(1), None, _F(1), None),
                {"channels_last": 1},
                [[[[6, 68]]]],
                "5.5 to 6, 67.75 to 68",
            ),
            Case(
                "signed",
                (i8([[[-128, -127]]]), _F(1), None, _F(1), None),
                {},
                [[[-128]]],
                "-127.5 goes to -128",
            ),
        ),
    ),
)
