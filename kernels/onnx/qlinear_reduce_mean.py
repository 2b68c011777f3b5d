"""``com.microsoft::QLinearReduceMean``: means over axes, dequantized and quantized again."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.types import Size, TensorType
from refquant.kernels.jit import jit
from refquant.kernels.onnx import operands
from refquant.kernels.onnx.literals import i8, u8
from refquant.kernels.onnx.operands import Engines, axis_of, scale_of, single
from refquant.kernels.onnx.quantize_linear import kernel as quantize
from refquant.kernels.onnx.quantize_linear import reference as quantize_slowly

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Ints = tuple[int, ...]
_OP = "com.microsoft::QLinearReduceMean"


def reference(
    data: Array,
    data_scale: Array,
    data_zero_point: Array | None,
    reduced_scale: Array,
    reduced_zero_point: Array | None = None,
    axes: Ints = (),
    keepdims: int = 1,
) -> Array:
    r"""Average over axes.

    .. math:: y = \mathrm{saturate}(\mathrm{rint}((\sum s_x f32(x - z_x)) / n / s_y) + z_y)

    The schema has it so: dequantize, take the mean in float32, quantize. It leaves the order of
    the sum open; here values are added one by one in the order in which they lie, each step
    rounded to float32. onnxruntime has the schema and no CPU kernel, so there is no oracle: the
    result is what this text says, for engines onnx and ort alike.

    Parameters
    ----------
    data : uint8 or int8, any shape
        Quantized values.
    data_scale, reduced_scale : float32, one element
        Of input and result.
    data_zero_point, reduced_zero_point : like ``data``, one element, or None
        None means 0.
    axes : tuple of int
        What is averaged over; none of them means all.
    keepdims : int
        Whether such an axis stays, with length 1.

    Returns
    -------
    Array like ``data``

    Raises
    ------
    VerifyError
        If types or axes do not fit.

    Examples
    --------
    >>> one = np.float32(1)
    >>> reference(np.uint8([[1, 2], [3, 9]]), one, None, one, None, axes=(1,), keepdims=0)
    array([2, 6], dtype=uint8)
    """
    rows, shape = _rows(data, axes, keepdims)
    real = (rows.astype(np.int32) - single(data_zero_point)).astype(np.float32)
    with np.errstate(all="ignore"):
        steps = np.add.accumulate(real * scale_of(data_scale), axis=1, dtype=np.float32)
        mean = np.asarray(steps[:, -1] / np.float32(rows.shape[1]), np.float32)
    return quantize_slowly(mean, *_parameters(data, reduced_scale, reduced_zero_point)).reshape(
        shape
    )


def _rows(data: Array, axes: Ints, keepdims: int) -> tuple[Array, Ints]:
    """Return what is averaged as rows, and the shape of the result."""
    over = {axis % data.ndim for axis in axes} or set(range(data.ndim))
    kept = [axis for axis in range(data.ndim) if axis not in over]
    shape = [
        1 if axis in over else n
        for axis, n in enumerate(data.shape)
        if keepdims or axis not in over
    ]
    turned = data.transpose(*kept, *sorted(over))
    return turned.reshape(prod(data.shape[axis] for axis in kept), -1), tuple(shape)


def _parameters(data: Array, scale: Array, zero_point: Array | None) -> tuple[Array, Array]:
    zero = np.zeros((), data.dtype) if zero_point is None else np.asarray(zero_point)
    return np.asarray(scale_of(scale)), zero.reshape(())


@jit
def _fill(rows: Any, scale: np.float32, zero: int, y: Any) -> None:
    for i in range(rows.shape[0]):
        total = np.float32(0)
        for j in range(rows.shape[1]):
            total = np.float32(total + np.float32(np.float32(rows[i, j] - zero) * scale))
        y[i] = np.float32(total / np.float32(rows.shape[1]))


def kernel(
    data: Array,
    data_scale: Array,
    data_zero_point: Array | None,
    reduced_scale: Array,
    reduced_zero_point: Array | None = None,
    axes: Ints = (),
    keepdims: int = 1,
) -> Array:
    """Compute :func:`reference` in a compiled loop."""
    rows, shape = _rows(data, axes, keepdims)
    mean = np.empty(len(rows), np.float32)
    _fill(np.ascontiguousarray(rows), scale_of(data_scale), single(data_zero_point), mean)
    return quantize(mean, *_parameters(data, reduced_scale, reduced_zero_point)).reshape(shape)


def infer(
    data: TensorType,
    data_scale: TensorType,
    data_zero_point: TensorType | None,
    reduced_scale: TensorType,
    reduced_zero_point: TensorType | None = None,
    axes: Ints = (),
    keepdims: int = 1,
) -> TensorType:
    """Check types and axes."""
    operands.quantized(_OP, data, data_scale, data_zero_point, "data")
    operands.quantized(_OP, data, reduced_scale, reduced_zero_point, "reduced")
    over = [axis_of(_OP, axis, data.shape) for axis in axes] or list(range(data.rank))
    if not data.rank or len(set(over)) < len(over):
        raise VerifyError(f"{_OP}: axes {axes} do not fit rank {data.rank}: each of them once")
    if any(data.shape[axis] == 0 for axis in over):
        raise VerifyError(f"{_OP}: no values to average over in {data}")
    shape: list[Size] = [
        1 if axis in over else n
        for axis, n in enumerate(data.shape)
        if keepdims or axis not in over
    ]
    return data.with_shape(tuple(shape))


_ONE = np.float32(1)

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        source=(
            "microsoft/onnxruntime/onnxruntime/core/graph/contrib_ops/quantization_defs.cc"
            "::QLinearReduceMean",
        ),
        cases=(
            Case(
                "rows",
                (u8([[1, 2], [3, 4]]), _ONE, np.uint8(1), _ONE, np.uint8(3)),
                {"axes": (1,), "keepdims": 0},
                [3, 5],
                "0.5 and 2.5 are ties, rounded before the zero point is added",
            ),
            Case(
                "all",
                (i8([[-128, 127]]), _ONE, None, np.float32(0.001)),
                {},
                [[-128]],
                "saturated; no axes are all axes",
            ),
        ),
    ),
)
