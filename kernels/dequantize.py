"""``aten::dequantize``: integers back to float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, float32, qint8, qint32, quint4x2, quint8
from refquant.kernels import rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import channel_nest, empty_suggested, flat, suggested
from refquant.kernels.rounding_jit import dequantize_plain

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Loops = tuple[Callable[..., None], Callable[..., None]]


def reference(x: QTensor | Array) -> F32:
    r"""Return the real numbers that quantized values stand for.

    * per tensor: :math:`(q - z) \cdot s`, an exact difference (it wraps at int32), converted to
      float32, times the scale rounded to float32;
    * per channel, integer zero points: the difference of the float32 values, times the float64
      scale, rounded to float32 once at the end;
    * per channel, float zero points: difference and product are float32, rounded each.

    A float tensor becomes float32; that is how FX graphs use it on values that may already be
    float.

    Parameters
    ----------
    x : QTensor of any dtype, per tensor or per channel; or float array
        Values to dequantize.

    Returns
    -------
    float32 array
        Shape and memory format of ``x``.

    Examples
    --------
    >>> reference(QTensor(np.uint8([7, 8]), 0.1, 7))
    array([0. , 0.1], dtype=float32)
    """
    if not isinstance(x, QTensor):
        return x.astype(np.float32, copy=False)
    out = empty_suggested(x.int_repr, np.float32)
    if x.axis is None:
        out[...] = rounding.dequantize_plain(x.int_repr, float(x.scale), int(x.zero_point))
        return out
    per_channel = [1] * x.int_repr.ndim
    per_channel[x.axis] = -1
    zero_point = np.reshape(x.zero_point, per_channel)
    with np.errstate(invalid="ignore"):
        difference = x.int_repr.astype(np.float32) - zero_point.astype(np.float32)
    scale = np.float32 if zero_point.dtype.kind == "f" else np.float64
    with np.errstate(over="ignore", invalid="ignore"):
        out[...] = difference * np.reshape(x.scale, per_channel).astype(scale)
    return out


def infer(x: TensorType) -> TensorType:
    """Return float32 of the same shape."""
    return TensorType(float32, x.shape)


@jit
def _per_tensor(q: Any, scale: float, zero_point: int, out: F32) -> None:
    s = np.float32(scale)
    for i in range(q.size):
        out[i] = dequantize_plain(q[i], s, zero_point)


@jit
def _float_rows(q: Any, scale: Any, zero_point: F32, out: F32) -> None:
    for i in range(q.shape[0]):
        for c in range(q.shape[1]):
            for j in range(q.shape[2]):
                difference = np.float32(np.float32(q[i, c, j]) - zero_point[c])
                out[i, c, j] = np.float32(difference * scale[c])


@jit
def _float_columns(q: Any, scale: Any, zero_point: F32, out: F32) -> None:
    for i in range(q.shape[0]):
        for c in range(q.shape[1]):
            difference = np.float32(np.float32(q[i, c]) - zero_point[c])
            out[i, c] = np.float32(difference * scale[c])


@jit
def _integer_rows(q: Any, scale: Any, zero_point: Any, out: F32) -> None:
    for i in range(q.shape[0]):
        for c in range(q.shape[1]):
            for j in range(q.shape[2]):
                difference = np.int32(np.int32(q[i, c, j]) - zero_point[c])
                out[i, c, j] = np.float32(np.float64(difference) * scale[c])


@jit
def _integer_columns(q: Any, scale: Any, zero_point: Any, out: F32) -> None:
    for i in range(q.shape[0]):
        for c in range(q.shape[1]):
            difference = np.int32(np.int32(q[i, c]) - zero_point[c])
            out[i, c] = np.float32(np.float64(difference) * scale[c])


# Loops over rows, and over columns where the rows of a channel are short.
_FLOAT: Loops = (_float_rows, _float_columns)
_INTEGER: Loops = (_integer_rows, _integer_columns)


def kernel(x: QTensor | Array) -> F32:
    """Compute :func:`reference` in one compiled pass over the memory."""
    if not isinstance(x, QTensor):
        return reference(x)
    if x.axis is None:
        values, into, out = flat(x.int_repr, np.float32)
        _per_tensor(values, float(x.scale), int(x.zero_point), into)
        return out
    q = suggested(x.int_repr)
    out = empty_suggested(q, np.float32)
    if q.size:
        nest = channel_nest(q, x.axis)
        loops, *parameters = _per_channel(x)
        loops[nest.columns](nest.view(q), *map(nest.spread, parameters), nest.view(out))
    return out


def _per_channel(x: QTensor) -> tuple[Loops, Array, Array]:
    """Return loops, scales and zero points.

    With integer zero points the product is float64. For scales that are float32 numbers it is
    exact, so that its rounding to float32 is the float32 product. A difference of 8-bit
    integers is exact in int32 as in float32.
    """
    scales, zero_points = np.asarray(x.scale), np.asarray(x.zero_point)
    with np.errstate(over="ignore"):
        narrow = scales.astype(np.float32)
    if zero_points.dtype.kind == "f" or np.array_equal(narrow, scales):
        return _FLOAT, narrow, zero_points.astype(np.float32)
    if x.int_repr.itemsize == 1:
        return _INTEGER, scales, zero_points.astype(np.int32)
    return _FLOAT, scales, zero_points.astype(np.float32)


OPS = (
    Op(
        name="aten::dequantize",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/AffineQuantizer.cpp"
            "::dequantize_tensor_per_tensor_affine",
        ),
        cases=(
            Case(
                "quint8",
                (QTensor(np.array([0, 7, 255], np.uint8), 0.1, 7, None, quint8),),
                {},
                np.array([-0.7, 0, 24.800001], np.float32),
                "difference first, then one product",
            ),
            Case(
                "qint32_wraps",
                (QTensor(np.array([-(2**31), 2**31 - 1], np.int32), 1.0, 1, None, qint32),),
                {},
                np.array([2.0**31, 2.0**31], np.float32),
                "the difference wraps at int32; 2**31 - 2 rounds to 2**31",
            ),
            Case(
                "per_channel",
                (
                    QTensor(
                        np.array([[3], [3]], np.int8),
                        np.array([0.1, 0.2]),
                        np.array([0, 1]),
                        0,
                        qint8,
                    ),
                ),
                {},
                np.array([[3 * 0.1], [2 * 0.2]], np.float32),
                "the product of float32 and the float64 scale is rounded once",
            ),
            Case(
                "float_zero_point",
                (
                    QTensor(
                        np.array([[3, 15]], np.uint8),
                        np.array([0.5], np.float32),
                        np.array([1.5], np.float32),
                        0,
                        quint4x2,
                    ),
                ),
                {},
                np.array([[0.75, 6.75]], np.float32),
                "4 bits with float zero points, the embedding format",
            ),
            Case(
                "float", (np.array([1.5], np.float32),), {}, [1.5], "a float tensor passes through"
            ),
        ),
    ),
)
