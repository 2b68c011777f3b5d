"""Exact sums of convolutions of bytes, less their zero points, and what their checks share."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.qtensor import QTensor
from refquant.ir.types import Dim, TensorType, format_shape
from refquant.kernels.accumulate import BLOCK, blocks, dot, windows
from refquant.kernels.convolve import convolution_sums
from refquant.kernels.onnx.conv_geometry import Geometry, geometry
from refquant.kernels.onnx.kept import packed, unsigned
from refquant.kernels.onnx.operands import BYTES, dtype_in, one_element, one_or_each, same_dtype
from refquant.kernels.packing import Layout, PackedWeight

Array = npt.NDArray[Any]
Int32 = npt.NDArray[np.int32]


def sums(x: Array, x_zero: int, w: Array, w_zero: Array, how: Geometry, group: int) -> Int32:
    """Return (N, OC, ...) sums of differences; they wrap to int32."""
    w = np.asarray(w)
    outputs, inputs = w.shape[0], x.shape[1] // group
    zero = np.broadcast_to(np.asarray(w_zero).astype(np.int64).reshape(-1), (outputs,))
    factor = w.reshape(group, outputs // group, -1)
    total = np.empty((x.shape[0], prod(how.out), outputs), np.int32)
    walk = (how.out, how.kernel, how.stride, how.before, how.dilation)
    size = BLOCK // max(x.shape[1] * prod(how.kernel), outputs, 1)
    for image in range(x.shape[0]):
        for part in blocks(prod(how.out), size):
            seen = windows(x[image], part, *walk, x_zero)
            split = seen.reshape(len(seen), group, inputs * prod(how.kernel))
            total[image, part] = dot(split, x_zero, factor, zero)
    return np.moveaxis(total, 2, 1).reshape(x.shape[0], outputs, *how.out)


def packed_weight(
    w: Array, w_zero: Array, w_scale: Any, inputs: int, how: Geometry, group: int
) -> PackedWeight:
    """Return a weight in the layout of the tiles."""
    layout = Layout.of(
        inputs // group, w.shape[0] // group, how.kernel, how.dilation, group, False
    )
    return packed(w, w_zero, w_scale, layout, matrix=False)


def fast_sums(x: Array, x_zero: int, w: Array, w_zero: Array, how: Geometry, group: int) -> Int32:
    """Compute :func:`sums` with the compiled tile; the memory is channels-last."""
    shape = (x.shape[0], w.shape[0], *how.out)
    if prod(shape) == 0 or w.size == 0:
        return np.zeros(shape, np.int32)
    weight = packed_weight(w, w_zero, 1.0, x.shape[1], how, group)
    values, zero = unsigned(x, x_zero)
    return convolution_sums(QTensor(values, 1.0, zero), weight, how.window)


def check(
    op: str,
    x: TensorType,
    x_zero_point: TensorType | None,
    w: TensorType,
    w_zero_point: TensorType | None,
    group: int,
    kernel_shape: tuple[int, ...] | None,
    **attributes: Any,
) -> TensorType:
    """Check types and shapes; return ``x`` with the shape of the result."""
    dtype_in(op, x, BYTES, "x")
    dtype_in(op, w, BYTES, "w")
    same_dtype(op, x_zero_point, x, "x_zero_point")
    same_dtype(op, w_zero_point, w, "w_zero_point")
    one_element(op, x_zero_point, "x_zero_point")
    if x.rank < 3 or w.rank != x.rank:
        raise VerifyError(f"{op}: x and w need one rank of 3 or more, got {x} and {w}")
    outputs, inputs, *kernel = w.sizes
    channels = x.shape[1]
    if isinstance(channels, Dim) or group < 1 or channels != inputs * group or outputs % group:
        raise VerifyError(
            f"{op}: w {format_shape(w.shape)} with group {group} does not fit the channels of "
            f"x {format_shape(x.shape)}"
        )
    if kernel_shape and tuple(kernel_shape) != tuple(kernel):
        raise VerifyError(f"{op}: kernel_shape {tuple(kernel_shape)} is not that of w {kernel}")
    one_or_each(op, w_zero_point, outputs, "w_zero_point")
    how = geometry(op, x.shape[2:], tuple(kernel), **attributes)
    return TensorType(x.dtype, (x.shape[0], outputs, *how.out))
