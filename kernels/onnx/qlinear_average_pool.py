"""``com.microsoft::QLinearAveragePool``: means of windows, through float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType
from refquant.kernels.jit import jit
from refquant.kernels.onnx import qlinear_global_average_pool as whole
from refquant.kernels.onnx.conv_geometry import Geometry, geometry
from refquant.kernels.onnx.literals import u8
from refquant.kernels.onnx.operands import Engines, limits_of, scale_of, single
from refquant.kernels.onnx.qlinear_add import saturated, to_byte
from refquant.kernels.onnx.qlinear_table import check_parameters

Array = npt.NDArray[Any]
Ints = tuple[int, ...]
_OP = "com.microsoft::QLinearAveragePool"


def reference(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: Ints = (),
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    r"""Average windows of a map.

    .. math:: y = \mathrm{sat}(\mathrm{rint}((\sum s_x f32(x - z_x)) / n / s_y + z_y))

    Everything is float32: the dequantized values are added one after the other, row by row, and
    each step is rounded; ties are met after the zero point was added. :math:`n` is the size of
    the window, without ``count_include_pad`` of its part inside the map.

    A window that covers the whole map, which is not padded, is averaged as by
    ``com.microsoft::QLinearGlobalAveragePool``. Engines onnx and ort are the same: the operator is
    onnxruntime's own.

    Parameters
    ----------
    x : uint8 or int8 (N, C, ...)
        Or (N, ..., C) with ``channels_last``; one to three spatial axes.
    x_scale, y_scale : float32, one element
        Of input and result.
    x_zero_point, y_zero_point : like ``x``, one element, or None
        None means 0.
    auto_pad, kernel_shape, pads, strides
        As for ``onnx::ConvInteger``.
    ceil_mode : int
        Whether the last window may hang over the end.
    channels_last : int
        Where the channels are.
    count_include_pad : int
        Whether padding counts.

    Returns
    -------
    Array like ``x``

    Raises
    ------
    VerifyError
        If types, shapes or attributes do not fit.

    Examples
    --------
    >>> one, x = np.float32(1), np.uint8([[[1, 2, 5]]])
    >>> reference(x, one, None, one, None, kernel_shape=(2,))
    array([[[2, 4]]], dtype=uint8)
    """
    maps = np.moveaxis(x, -1, 1) if channels_last else x
    how = geometry(_OP, maps.shape[2:], kernel_shape, auto_pad, None, pads, strides, ceil_mode)
    if _is_whole(maps, how):
        parameters = x_scale, x_zero_point, y_scale, y_zero_point, channels_last
        return whole.reference(x, *parameters)
    real = scale_of(x_scale) * (maps.astype(np.int32) - single(x_zero_point)).astype(np.float32)
    y = _quantized(_means(real, how, bool(count_include_pad)), y_scale, y_zero_point, x.dtype)
    return np.moveaxis(y, 1, -1) if channels_last else y


def _is_whole(maps: Array, how: Geometry) -> bool:
    return how.kernel == maps.shape[2:] and not any((*how.before, *how.after))


def _spans(size: int, kernel: int, stride: int, before: int, out: int) -> tuple[Array, Array]:
    """Return where the windows along an axis begin and end inside the map."""
    start = np.arange(out) * stride - before
    return np.maximum(start, 0), np.minimum(start + kernel, size)


def _means(real: Array, how: Geometry, padding_counts: bool) -> Array:
    axes = zip(real.shape[2:], how.kernel, how.stride, how.before, how.out, strict=True)
    spans = [_spans(*axis) for axis in axes]
    total = np.zeros((*real.shape[:2], *how.out), np.float32)
    count = np.ones((), np.int64)
    for start, end in spans:
        count = np.multiply.outer(count, end - start)
    for tap in np.ndindex(*how.kernel):
        # Taps are counted from the part inside the map, so that none is missed or moved.
        at = [start + t for (start, _), t in zip(spans, tap, strict=True)]
        inside = [a < end for a, (_, end) in zip(at, spans, strict=True)]
        index = np.ix_(*(np.minimum(a, n - 1) for a, n in zip(at, real.shape[2:], strict=True)))
        taken = real[(slice(None), slice(None), *index)]
        seen = np.ones((), bool)
        for part in inside:
            seen = np.logical_and.outer(seen, part)
        total = np.where(seen, total + taken, total)
    divisor = np.float32(np.prod(how.kernel)) if padding_counts else count.astype(np.float32)
    with np.errstate(all="ignore"):
        return np.asarray(total / divisor, np.float32)


def _quantized(mean: Array, y_scale: Array, zero: Array | None, dtype: np.dtype[Any]) -> Array:
    with np.errstate(all="ignore"):
        steps = np.asarray(mean / scale_of(y_scale) + np.float32(single(zero)), np.float32)
    return saturated(steps, dtype)


@jit
def _fill(
    x: Any, x_scale: np.float32, x_zero: int, kernel: Any, stride: Any, before: Any, counts: bool,
    scale: np.float32, zero: np.float32, low: int, high: int, y: Any,
) -> None:  # fmt: skip
    least, most = np.float32(low), np.float32(high)
    width, columns, step = x.shape[2], y.shape[2], stride[1]
    total = np.empty(columns, np.float32)
    x_low = np.int32(x_zero)
    for image in range(x.shape[0]):
        for i in range(y.shape[1]):
            top = i * stride[0] - before[0]
            bottom = min(top + kernel[0], x.shape[1])
            top = max(top, 0)
            total[:] = 0
            for h in range(top, bottom):
                for n in range(kernel[1]):
                    left = n - before[1]
                    first = max(0, -(left // step))
                    end = min(columns, (width - 1 - left) // step + 1)
                    for j in range(first, end):
                        value = np.int32(x[image, h, j * step + left])
                        steps = np.float32(value - x_low)
                        total[j] = np.float32(total[j] + np.float32(steps * x_scale))
            for j in range(columns):
                left = j * step - before[1]
                inside = min(left + kernel[1], width) - max(left, 0)
                rows = kernel[0] if counts else bottom - top
                count = np.float32(rows * (kernel[1] if counts else inside))
                mean = np.float32(np.float32(total[j] / count) / scale)
                y[image, i, j] = to_byte(np.float32(mean + zero), least, most)


def kernel(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: Ints = (),
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> Array:
    """Compute :func:`reference`; of images with compiled loops."""
    maps = np.moveaxis(x, -1, 1) if channels_last else x
    how = geometry(_OP, maps.shape[2:], kernel_shape, auto_pad, None, pads, strides, ceil_mode)
    parameters = x_scale, x_zero_point, y_scale, y_zero_point
    if _is_whole(maps, how):
        return whole.kernel(x, *parameters, channels_last)
    if maps.ndim != 4:
        how_many = auto_pad, ceil_mode, channels_last, count_include_pad
        return reference(x, *parameters, *how_many, kernel_shape, pads, strides)
    low, high = limits_of(x.dtype)
    images = np.ascontiguousarray(maps).reshape(-1, *maps.shape[2:])
    y = np.empty((len(images), *how.out), x.dtype)
    arguments: tuple[Any, ...] = (
        *(scale_of(x_scale), single(x_zero_point)),
        *(how.kernel, how.stride, how.before, bool(count_include_pad)),
        *(scale_of(y_scale), np.float32(single(y_zero_point)), low, high),
    )
    _fill(*(images, *arguments, y))
    y = y.reshape(*maps.shape[:2], *how.out)
    return np.moveaxis(y, 1, -1) if channels_last else y


def infer(
    x: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType | None,
    y_scale: TensorType,
    y_zero_point: TensorType | None = None,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    channels_last: int = 0,
    count_include_pad: int = 0,
    kernel_shape: Ints = (),
    pads: Ints | None = None,
    strides: Ints | None = None,
) -> TensorType:
    """Check types, shapes and attributes."""
    check_parameters(_OP, x, x_scale, x_zero_point, y_scale, y_zero_point)
    if not 3 <= x.rank <= 5:
        raise VerifyError(f"{_OP}: x must have one to three spatial axes, got {x}")
    spatial = x.shape[1:-1] if channels_last else x.shape[2:]
    how = geometry(_OP, spatial, tuple(kernel_shape), auto_pad, None, pads, strides, ceil_mode)
    last = (x.shape[0], *how.out, x.shape[-1])
    return TensorType(x.dtype, last if channels_last else (*x.shape[:2], *how.out))


_F = np.float32
_X = u8([[[[1, 2, 3], [3, 5, 9]]]])
_ONE = (_F(1), np.uint8(1), _F(1), np.uint8(3))

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        source=(
            "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/quantization/"
            "qlinear_pool.cc::QLinearAveragePool",
        ),
        cases=(
            Case("plain", (_X, *_ONE), {"kernel_shape": (2, 2)}, [[[[5, 7]]]], "1.75 + 3"),
            Case(
                "ties",
                (_X, *_ONE),
                {"kernel_shape": (1, 2)},
                [[[[4, 4], [6, 9]]]],
                "3.5 and 4.5 to 4",
            ),
            Case("whole", (_X, *_ONE), {"kernel_shape": (2, 3)}, [[[[6]]]], "17 / 6 to 3, plus 3"),
            Case(
                "padded",
                (_X, *_ONE),
                {"kernel_shape": (2, 2), "pads": (1, 1, 0, 0)},
                [[[[3, 4, 4], [4, 5, 7]]]],
                "only what lies inside counts",
            ),
            Case(
                "counted",
                (_X, *_ONE),
                {"kernel_shape": (2, 2), "pads": (1, 1, 0, 0), "count_include_pad": 1},
                [[[[3, 3, 4], [4, 5, 7]]]],
                "padding counts as 0",
            ),
            Case(
                "last",
                (_X.transpose(0, 2, 3, 1), *_ONE),
                {"kernel_shape": (2, 2), "channels_last": 1},
                [[[[5], [7]]]],
                "channels last",
            ),
            Case(
                "signal",
                (_X[:, 0], *_ONE),
                {"kernel_shape": (2,), "strides": (2,), "ceil_mode": 1},
                [[[4, 5], [6, 11]]],
                "the last window hangs over",
            ),
        ),
    ),
)
