"""``com.microsoft::QLinearConcat`` and ``QLinearWhere``: values brought to common parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.types import Dim, TensorType, bool_, format_shape
from refquant.kernels import checks
from refquant.kernels.layout import is_channels_last
from refquant.kernels.onnx import operands
from refquant.kernels.onnx.literals import u8
from refquant.kernels.onnx.operands import Engines, scale_of, single
from refquant.kernels.onnx.qlinear_table import check_parameters, looked_up, table

Array = npt.NDArray[Any]
Look = Callable[[Array, Array], Array]
_CONCAT = "com.microsoft::QLinearConcat"
_WHERE = "com.microsoft::QLinearWhere"


def _one_by_one(x: Array, entries: Array) -> Array:
    return np.asarray(entries[np.ascontiguousarray(x).view(np.uint8)])


def _brought(
    look: Look, x: Array, x_scale: Array, x_zero: Array, y_scale: Array, y_zero: Array
) -> Array:
    """Return values with the parameters of the result; with the same ones they stay."""
    if scale_of(x_scale) == scale_of(y_scale) and single(x_zero) == single(y_zero):
        return x
    return look(x, table(lambda v: v, x_scale, x_zero, y_scale, y_zero, x.dtype))


def reference_concat(y_scale: Array, y_zero_point: Array, *inputs: Array, axis: int) -> Array:
    """Join quantized tensors along an axis.

    Each one is dequantized, ``s_x * f32(x - z_x)``, and quantized again, as by
    ``onnx::QuantizeLinear``, unless scale and zero point are those of the result: then the
    integers are copied. Engines onnx and ort are the same: the operator is onnxruntime's own.

    Parameters
    ----------
    y_scale, y_zero_point : one element
        Of the result.
    *inputs : arrays
        Values, scale and zero point of each tensor, one after the other; uint8 or int8.
    axis : int
        The axis along which they are joined.

    Returns
    -------
    Array like the inputs

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> one, two, zero = np.float32(1), np.float32(2), np.uint8(0)
    >>> x = np.uint8([3, 5])
    >>> reference_concat(two, zero, x, two, zero, x, one, zero, axis=0)
    array([3, 5, 2, 2], dtype=uint8)
    """
    return _joined(_one_by_one, y_scale, y_zero_point, inputs, axis)


def kernel_concat(y_scale: Array, y_zero_point: Array, *inputs: Array, axis: int) -> Array:
    """Compute :func:`reference_concat` with vectors of lookups."""
    return _joined(looked_up, y_scale, y_zero_point, inputs, axis)


def _joined(
    look: Look, y_scale: Array, y_zero: Array, inputs: tuple[Array, ...], axis: int
) -> Array:
    triples = zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True)
    parts = [_brought(look, x, s, z, y_scale, y_zero) for x, s, z in triples]
    if not all(map(is_channels_last, parts)):
        return np.concatenate(parts, axis)
    # Channels lie side by side in memory, and so do the result's.
    last = {0: 0, 1: parts[0].ndim - 1}
    axis %= parts[0].ndim
    joined = np.concatenate([np.moveaxis(x, 1, -1) for x in parts], last.get(axis, axis - 1))
    return np.moveaxis(joined, -1, 1)


def infer_concat(
    y_scale: TensorType, y_zero_point: TensorType, *inputs: TensorType, axis: int
) -> TensorType:
    """Check each triple; lengths along the axis add up."""
    if not inputs or len(inputs) % 3:
        raise VerifyError(
            f"{_CONCAT}: inputs come as values, scale and zero point, got {len(inputs)} operands"
        )
    first = inputs[0]
    along = operands.axis_of(_CONCAT, axis, first.shape)
    total: Any = 0
    for i in range(0, len(inputs), 3):
        x, scale, zero = inputs[i : i + 3]
        check_parameters(_CONCAT, x, scale, zero, y_scale, y_zero_point)
        same = x.rank == first.rank and all(
            a == b for d, (a, b) in enumerate(zip(x.shape, first.shape, strict=True)) if d != along
        )
        if not same:
            shapes = f"{format_shape(first.shape)} and {format_shape(x.shape)}"
            raise VerifyError(f"{_CONCAT}: {shapes} differ in more than axis {along}")
        length = x.shape[along]
        total = length if isinstance(length, Dim) and total == 0 else total + length
    return TensorType(first.dtype, (*first.shape[:along], total, *first.shape[along + 1 :]))


def reference_where(
    condition: Array,
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    y: Array,
    y_scale: Array,
    y_zero_point: Array,
    z_scale: Array,
    z_zero_point: Array,
) -> Array:
    """Take elements of one quantized tensor or of the other.

    Both are brought to the parameters of the result as by ``com.microsoft::QLinearConcat``.
    Engines onnx and ort are the same: the operator is onnxruntime's own.

    Parameters
    ----------
    condition : bool, any shape
        Where true, the element is that of ``x``; shapes broadcast.
    x, y : uint8 or int8
        Quantized values.
    x_scale, x_zero_point, y_scale, y_zero_point, z_scale, z_zero_point : one element
        Of the operands and of the result.

    Returns
    -------
    Array like ``x``, the broadcast shape

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> one, two, zero, x = np.float32(1), np.float32(2), np.uint8(0), np.uint8([4, 6])
    >>> reference_where(np.array([True, False]), x, one, zero, x, two, zero, two, zero)
    array([2, 6], dtype=uint8)
    """
    z = z_scale, z_zero_point
    first = _brought(_one_by_one, x, x_scale, x_zero_point, *z)
    return np.where(condition, first, _brought(_one_by_one, y, y_scale, y_zero_point, *z))


def kernel_where(
    condition: Array,
    x: Array,
    x_scale: Array,
    x_zero_point: Array,
    y: Array,
    y_scale: Array,
    y_zero_point: Array,
    z_scale: Array,
    z_zero_point: Array,
) -> Array:
    """Compute :func:`reference_where` with vectors of lookups."""
    z = z_scale, z_zero_point
    first = _brought(looked_up, x, x_scale, x_zero_point, *z)
    return np.where(condition, first, _brought(looked_up, y, y_scale, y_zero_point, *z))


def infer_where(
    condition: TensorType,
    x: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType,
    y: TensorType,
    y_scale: TensorType,
    y_zero_point: TensorType,
    z_scale: TensorType,
    z_zero_point: TensorType,
) -> TensorType:
    """Check types; the shapes broadcast."""
    operands.dtype_in(_WHERE, condition, (bool_,), "condition")
    operands.same_dtype(_WHERE, y, x, "y")
    check_parameters(_WHERE, x, x_scale, x_zero_point, z_scale, z_zero_point)
    check_parameters(_WHERE, y, y_scale, y_zero_point, z_scale, z_zero_point)
    return TensorType(x.dtype, checks.broadcast(_WHERE, condition.shape, x.shape, y.shape))


_F = np.float32
_X, _Y = u8([[3, 5]]), u8([[255, 0]])
_ONE, _TWO = (_F(1), np.uint8(0)), (_F(2), np.uint8(1))
_FOLDER = "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/quantization"

OPS = (
    Op(
        name=_CONCAT,
        reference=reference_concat,
        infer=infer_concat,
        kernels=dict.fromkeys(Engines, kernel_concat),
        source=(f"{_FOLDER}/qlinear_concat.cc::QLinearConcat",),
        cases=(
            Case(
                "ties",
                (*_TWO, _X, *_ONE, _Y, *_TWO),
                {"axis": 0},
                [[3, 3], [255, 0]],
                "1.5 and 2.5 go to 2, one more; the others are copied",
            ),
            Case(
                "saturates",
                (*_ONE, _X, *_ONE, _Y, *_TWO),
                {"axis": 1},
                [[3, 5, 255, 0]],
                "both ends",
            ),
        ),
    ),
    Op(
        name=_WHERE,
        reference=reference_where,
        infer=infer_where,
        kernels=dict.fromkeys(Engines, kernel_where),
        source=(f"{_FOLDER}/qlinear_where.cc::QLinearWhere",),
        cases=(
            Case(
                "both",
                (np.array([[True, False]]), _X, *_ONE, _Y, *_ONE, *_TWO),
                {},
                [[3, 1]],
                "1.5 to 2, one more; 0 is the zero point",
            ),
            Case(
                "spread",
                (np.array([[True], [False]]), _X, *_ONE, _Y, *_TWO, *_TWO),
                {},
                [[3, 3], [255, 0]],
                "shapes broadcast",
            ),
        ),
    ),
)
