"""``com.microsoft::QLinearSoftmax``: exponentials by a table, their sum and a quotient."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType
from refquant.kernels.jit import jit
from refquant.kernels.onnx import operands
from refquant.kernels.onnx.literals import i8, u8
from refquant.kernels.onnx.operands import Engines, limits_of, scale_of, single
from refquant.kernels.onnx.qlinear_table import check_parameters

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_OP = "com.microsoft::QLinearSoftmax"
_F = np.float32
# Room that is left below the largest float32, as a power of e.
_ROOM = 5
_TABLE = 255


def exponentials(x_scale: Array, length: int) -> F32:
    """Return ``exp((i - 255) * scale)`` for each difference to the largest value, scaled up.

    The common factor makes the sum of ``length`` of them as large as float32 allows.

    Examples
    --------
    >>> t = exponentials(np.float32(1), 10)
    >>> float(t[254] / t[255])
    0.3678794503211975
    """
    scale = float(scale_of(x_scale))
    logarithm = _F(math.log(float(np.finfo(_F).max / _F(length))))
    shift = max(0.0, float(logarithm) - _ROOM) / scale
    entries = [_exp((i - _TABLE + shift) * scale) for i in range(_TABLE + 1)]
    with np.errstate(over="ignore"):
        return np.array(entries).astype(np.float32)


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


def _rows(x: Array, axis: int, opset: int) -> Array:
    """Return what is normalised as rows; before opset 13 the axes from ``axis`` on are one."""
    axis %= x.ndim
    if opset < 13:
        return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    return np.swapaxes(x, axis, -1)


def reference(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array,
    opset: int,
    axis: int | None = None,
) -> Array:
    r"""Normalise exponentials along an axis.

    .. math:: y = \mathrm{saturate}(\mathrm{rint}(e_i \lfloor 1 / s_y \rfloor / \sum_j e_j) + z_y)

    with :math:`e_i = t[255 - (max - x_i)]` from the table of :func:`exponentials`, whose entries
    are computed in float64 and rounded to float32. The sum is that of float32, element after
    element; product, quotient and the inverse of the scale, **rounded down to a whole number**,
    are float32, too. The zero point of ``x`` does not matter.

    A product that overflows, as with a tiny ``y_scale``, counts as 0 in uint8 and in int8 as the
    smallest int32, to which the zero point is added before it wraps. Engines onnx and ort are
    the same: the operator is onnxruntime's own.

    Parameters
    ----------
    x : uint8 or int8, any shape
        Quantized values.
    x_scale, y_scale : float32, one element
        Of input and result.
    x_zero_point, y_zero_point : like ``x``, one element, or None
        None means 0.
    opset : int
        Below 13 all axes from ``axis`` on are normalised together.
    axis : int or None
        None means 1 below opset 13, otherwise the last.

    Returns
    -------
    Array like ``x``

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> reference(np.uint8([[1, 1, 9]]), np.float32(1), None, np.float32(1 / 256), np.uint8(0), 13)
    array([[  0,   0, 255]], dtype=uint8)
    """
    along = _axis(axis, opset)
    rows = _rows(x, along, opset).astype(np.int32)
    if not rows.size:
        return x.copy()
    entries = exponentials(x_scale, rows.shape[-1])
    e = entries[rows - rows.max(-1, keepdims=True) + _TABLE]
    with np.errstate(all="ignore"):
        total = np.cumsum(e, -1, dtype=np.float32)[..., -1:]
        steps = np.rint(e * np.floor(_F(1) / scale_of(y_scale)) / total)
    lost = _F(0) if x.dtype == np.uint8 else _F(-(2.0**31))
    whole = np.where(np.isfinite(steps), steps, lost).astype(np.int64)
    moved = (whole + single(y_zero_point)).astype(np.int32)
    y = np.clip(moved, *limits_of(x.dtype)).astype(x.dtype)
    return y.reshape(x.shape) if opset < 13 else np.swapaxes(y, along % x.ndim, -1)


def _axis(axis: int | None, opset: int) -> int:
    if axis is not None:
        return axis
    return 1 if opset < 13 else -1


@jit
def _fill(
    rows: Any,
    base: int,
    entries: Any,
    factor: np.float32,
    zero: int,
    lost: int,
    low: int,
    high: int,
    y: Any,
) -> None:
    for r in range(rows.shape[0]):
        top = 0
        for i in range(rows.shape[1]):
            top = max(top, int(rows[r, i]) - base)
        total = np.float32(0)
        for i in range(rows.shape[1]):
            total = np.float32(total + entries[255 - top + np.int64(rows[r, i]) - base])
        for i in range(rows.shape[1]):
            e = entries[255 - top + np.int64(rows[r, i]) - base]
            steps = np.rint(np.float32(np.float32(e * factor) / total))
            whole = np.int64(steps) if abs(steps) < np.float32(2147483648.0) else lost
            y[r, i] = min(max(np.int32(whole + zero), low), high)


def kernel(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array,
    opset: int,
    axis: int | None = None,
) -> Array:
    """Compute :func:`reference` row by row."""
    along = _axis(axis, opset)
    rows = np.ascontiguousarray(_rows(x, along, opset))
    if not rows.size:
        return x.copy()
    flat = rows.reshape(-1, rows.shape[-1])
    entries = exponentials(x_scale, rows.shape[-1])
    y = np.empty(flat.shape, x.dtype)
    low, high = limits_of(x.dtype)
    factor = np.floor(_F(1) / scale_of(y_scale))
    lost = 0 if x.dtype == np.uint8 else -(2**31)
    with np.errstate(over="ignore"):  # of the loops as plain Python
        _fill(flat, low, entries, factor, single(y_zero_point), lost, low, high, y)
    return y.reshape(x.shape) if opset < 13 else np.swapaxes(y.reshape(rows.shape), along, -1)


def infer(
    x: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType | None,
    y_scale: TensorType,
    y_zero_point: TensorType,
    opset: int,
    axis: int | None = None,
) -> TensorType:
    """Check types and the axis; the shape stays."""
    check_parameters(_OP, x, x_scale, x_zero_point, y_scale, y_zero_point)
    operands.axis_of(_OP, _axis(axis, opset), x.shape)
    return x


_X = (u8([[[1, 1], [3, 3]]]), _F(1), None)
_Y = (_F(1 / 256), np.uint8(0))

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        source=(
            "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/quantization/"
            "qlinear_softmax.cc::QLinearSoftmax",
        ),
        cases=(
            Case("last", (*_X, *_Y), {"opset": 13}, [[[128, 128], [128, 128]]], "pairs"),
            Case(
                "other",
                (*_X, *_Y),
                {"opset": 13, "axis": 1},
                [[[31, 31], [225, 225]]],
                "along the second axis",
            ),
            Case("together", (*_X, *_Y), {"opset": 12}, [[[15, 15], [113, 113]]], "four at once"),
            Case(
                "whole factor",
                (*_X, _F(1 / 99.9), np.uint8(7)),
                {"opset": 13},
                [[[57, 57], [57, 57]]],
                "99 times a half is 49.5, to 50",
            ),
            Case(
                "signed",
                (i8([[-128, 127]]), _F(1), None, _F(1 / 256), np.int8(-128)),
                {"opset": 13},
                [[-128, 127]],
                "saturates",
            ),
            Case(
                "lost",
                (u8([[7]]), _F(1), None, _F(1e-5), np.uint8(9)),
                {"opset": 13},
                [[9]],
                "the product overflows",
            ),
        ),
    ),
)
