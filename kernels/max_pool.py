"""``aten::max_pool1d``, ``max_pool2d`` and ``max_pool3d``: the largest value of each window."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, format_shape, quint8
from refquant.kernels import checks
from refquant.kernels.jit import jit
from refquant.kernels.layout import empty_aligned, empty_suggested
from refquant.kernels.row_blocks import largest
from refquant.kernels.windows import (
    IntOrInts,
    as_image,
    as_volume,
    from_volume,
    hashable,
    in_torch_memory,
    output_length,
    per_dimension,
    spatial,
)

Array = npt.NDArray[Any]
# Engines whose kernel looks at the nearest pixel for each place outside.
CLAMPING = (Engine.QNNPACK,)
Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def _max_pool(
    x: QTensor | Array,
    rank: int,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dilation: IntOrInts,
    ceil_mode: bool,
    target: Target,
) -> QTensor | Array:
    geometry = _geometry(rank, kernel_size, stride, padding, dilation)
    if isinstance(x, QTensor):
        pool = _max_clamped if _is_clamped(x, geometry, ceil_mode, target) else _max_quantized
        return _on_image(x, geometry, ceil_mode, pool)
    largest = _windows_max(x, -np.inf, geometry, ceil_mode)
    out = empty_suggested(x, x.dtype, largest.shape)
    out[...] = largest
    return out


def _on_image(
    x: QTensor,
    geometry: Geometry,
    ceil_mode: bool,
    pool: Callable[[QTensor, Geometry, bool], Array],
) -> QTensor:
    """Pool a quantized tensor; a signal is pooled as an image of height 1."""
    if len(geometry[0]) > 1:
        return x.with_int_repr(pool(x, geometry, ceil_mode))
    kernel, stride, padding, dilation = geometry
    flat: Geometry = ((1, *kernel), (1, *stride), (0, *padding), (1, *dilation))
    image = x.with_int_repr(as_image(x.int_repr))
    return x.with_int_repr(pool(image, flat, ceil_mode)[..., 0, :])


def _is_clamped(x: QTensor, geometry: Geometry, ceil_mode: bool, target: Target) -> bool:
    """Whether qnnpack's kernel runs, and padding shows pixels that are not in the window."""
    runs = target.engine in CLAMPING and x.dtype == quint8 and not ceil_mode
    return runs and len(geometry[0]) < 3 and max(geometry[2]) > 0 and max(geometry[3]) > 1


def _max_clamped(x: QTensor, geometry: Geometry, ceil_mode: bool) -> Array:
    """Take the nearest pixel for each place outside, also one that the window leaves out."""
    largest = _windows_max(x.int_repr, None, geometry, ceil_mode)
    return in_torch_memory(largest, x.int_repr, len(geometry[0]))


def _max_quantized(x: QTensor, geometry: Geometry, ceil_mode: bool) -> Array:
    largest = _windows_max(x.int_repr, x.dtype.limits[0], geometry, ceil_mode)
    return in_torch_memory(largest, x.int_repr, len(geometry[0]))


def _geometry(
    rank: int,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dilation: IntOrInts,
) -> Geometry:
    parts = (kernel_size, stride, padding, dilation)
    return _per_dimension(rank, *map(hashable, parts))


@lru_cache(maxsize=1024)
def _per_dimension(
    rank: int,
    kernel_size: IntOrInts,
    stride: IntOrInts | None,
    padding: IntOrInts,
    dilation: IntOrInts,
) -> Geometry:
    kernel = per_dimension(kernel_size, rank, ())
    return (
        kernel,
        per_dimension(stride, rank, kernel),
        per_dimension(padding, rank, (0,) * rank),
        per_dimension(dilation, rank, (1,) * rank),
    )


def _lengths(x: Array, geometry: Geometry, ceil_mode: bool) -> tuple[int, ...]:
    rank = len(geometry[0])
    per_dim = zip(x.shape[x.ndim - rank :], *geometry, strict=True)
    return tuple(int(output_length(*sizes, ceil_mode)) for sizes in per_dim)  # type: ignore[arg-type]


def _windows_max(x: Array, lowest: float | None, geometry: Geometry, ceil_mode: bool) -> Array:
    """Maximum over shifted, strided views of the padded input, one view per window position.

    Padding is ``lowest``, or the nearest element.
    """
    kernel, stride, _, dilation = geometry
    lengths = _lengths(x, geometry, ceil_mode)
    lead = x.ndim - len(kernel)
    pads = [(0, 0)] * lead
    for n, out, k, s, p, d in zip(x.shape[lead:], lengths, *geometry, strict=True):
        pads.append((p, max((out - 1) * s + d * (k - 1) + 1 - n - p, 0)))
    if lowest is None:
        padded, lowest = np.pad(x, pads, "edge"), 0
    else:
        padded = np.pad(x, pads, constant_values=lowest)
    result = np.full(x.shape[:lead] + lengths, lowest, x.dtype)
    for position in product(*map(range, kernel)):
        view = tuple(
            slice(i * d, i * d + (out - 1) * s + 1, s)
            for i, d, s, out in zip(position, dilation, stride, lengths, strict=True)
        )
        where: tuple[Any, ...] = (..., *view)
        np.maximum(result, padded[where], out=result)
    return result


def reference_1d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    target: Target = Target(),
) -> QTensor | Array:
    """Return the largest value of each window along the last dimension.

    See ``aten::max_pool2d``.

    Examples
    --------
    >>> reference_1d(np.float32([[1, 3, 2, 5]]), 2)
    array([[3., 5.]], dtype=float32)
    """
    return _max_pool(self, 1, kernel_size, stride, padding, dilation, ceil_mode, target)


def reference_2d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    target: Target = Target(),
) -> QTensor | Array:
    r"""Return the largest value of each window.

    .. math:: y_o = \max_{0 \le k < K} x_{o \cdot stride - padding + k \cdot dilation}

    Quantized values are compared as integers and keep their parameters, so nothing is rounded.
    Padding never wins. In float tensors a NaN wins.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        ([N,] C, H, W).
    kernel_size : int or sequence of int
        Height and width of a window.
    stride : int or sequence of int, optional
        Distance of windows; the kernel size if None or empty.
    padding : int or sequence of int
        At most half a window on each side.
    dilation : int or sequence of int
        Distance of the elements of a window.
    ceil_mode : bool
        Whether a last window may hang over the end; it never starts beyond the input.

    Returns
    -------
    QTensor or float32 array
        ([N,] C, H', W'), in the memory format of the input. A defect of torch is reproduced: from
        a quantized 1 x 1 map in NCHW memory, a larger result (by padding) comes out scrambled,
        its values in NHWC order.

    Under qnnpack quint8 windows with dilation see, for each place in the padding, the nearest
    pixel, even one that lies between the elements of the window (``ceil_mode`` false).

    Raises
    ------
    VerifyError
        If the rank is wrong, the padding is more than half a window, or no window fits.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[[1, 2], [3, 4]]]]), 0.5, 7)
    >>> reference_2d(x, 2).int_repr
    array([[[[4]]]], dtype=uint8)
    """
    return _max_pool(self, 2, kernel_size, stride, padding, dilation, ceil_mode, target)


def reference_3d(
    self: QTensor | Array,
    kernel_size: IntOrInts,
    stride: IntOrInts | None = None,
    padding: IntOrInts = 0,
    dilation: IntOrInts = 1,
    ceil_mode: bool = False,
    target: Target = Target(),
) -> QTensor | Array:
    """Return the largest value of each window over depth, height and width.

    See ``aten::max_pool2d``. A quantized value needs its batch dimension.

    Examples
    --------
    >>> reference_3d(np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2), 2)
    array([[[[7.]]]], dtype=float32)
    """
    return _max_pool(self, 3, kernel_size, stride, padding, dilation, ceil_mode, target)


def _infer(rank: int) -> Callable[..., TensorType]:
    op = f"max_pool{rank}d"

    def infer(
        self: TensorType,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: IntOrInts = 0,
        dilation: IntOrInts = 1,
        ceil_mode: bool = False,
    ) -> TensorType:
        """Check rank, window and padding; every spatial length becomes a number of windows."""
        quantized = checks.float_or_per_tensor(op, self)
        leading, lengths = spatial(op, self, rank)
        if quantized and rank == 3 and self.rank != 5:
            raise VerifyError(f"{op}: a quantized value needs rank 5, got {self}")
        geometry = _geometry(rank, kernel_size, stride, padding, dilation)
        checks.window(op, geometry, rank)
        out = tuple(
            output_length(*sizes, ceil_mode) for sizes in zip(lengths, *geometry, strict=True)
        )
        if any(isinstance(n, int) and n < 1 for n in out):
            raise VerifyError(f"{op}: no window fits: {format_shape(lengths)} gives {out}")
        return self.with_shape(leading + out)

    return infer


@jit
def _fill_bytes(
    x: Any,
    lengths: Any,
    first: Any,
    count: Any,
    steps: Any,
    shape: Any,
    window: int,
    stride: int,
    inner: int,
    y: Any,
) -> None:
    """Take the maximum over pixels of ``inner`` bytes, which lie together in memory.

    ``x`` is flat and has ``lengths`` (outer, depth, height, width); a window begins at ``first``
    and has ``count`` elements inside the input, ``steps`` apart.
    """
    width = lengths[3] * inner
    plane = lengths[2] * width
    place = 0
    for n in range(lengths[0]):
        for od in range(shape[0]):
            for oh in range(shape[1]):
                top = (n * lengths[1] + first[0, od]) * plane + first[1, oh] * width
                ow = 0
                while ow < shape[2]:
                    run = 1  # windows inside the input are one call
                    while ow + run < shape[2] and count[2, ow + run] == count[2, ow] == window:
                        run += 1
                    largest(
                        x, top + first[2, ow] * inner, run, stride * inner,
                        count[0, od], steps[0] * plane, count[1, oh], steps[1] * width,
                        count[2, ow], steps[2] * inner, inner, y, place,
                    )  # fmt: skip
                    place += run * inner
                    ow += run


@jit
def _fill_rows(
    x: Any,
    lengths: Any,
    first: Any,
    count: Any,
    steps: Any,
    shape: Any,
    padding: int,
    window: int,
    stride: int,
    lowest: int,
    y: Any,
) -> None:
    """Take the maximum over depth and height, then along the rows; both are loops of bytes."""
    width = lengths[3]
    plane = lengths[2] * width
    reach = (shape[2] - 1) * stride + (window - 1) * steps[2] + 1
    line = np.full(max(reach, padding + width), x.dtype.type(lowest), x.dtype)
    for n in range(lengths[0]):
        for od in range(shape[0]):
            for oh in range(shape[1]):
                largest(
                    x, (n * lengths[1] + first[0, od]) * plane + first[1, oh] * width, 1, 0,
                    count[0, od], steps[0] * plane, count[1, oh], steps[1] * width,
                    1, 0, width, line, padding,
                )  # fmt: skip
                place = ((n * shape[0] + od) * shape[1] + oh) * shape[2]
                _row(line, window, steps[2], stride, y[place : place + shape[2]])


@jit
def _row(line: Any, window: int, step: int, stride: int, y: Any) -> None:
    """Set ``y[o]`` to the largest ``line[o * stride + k * step]``."""
    if stride == 1:
        y[:] = line[: y.size]
        for k in range(1, window):
            part = line[k * step : k * step + y.size]
            for o in range(y.size):
                y[o] = part[o] if part[o] > y[o] else y[o]
    elif stride == 2:  # a constant, so that the loop vectorises
        for o in range(y.size):
            y[o] = line[2 * o]
        for k in range(1, window):
            part = line[k * step :]
            for o in range(y.size):
                y[o] = part[2 * o] if part[2 * o] > y[o] else y[o]
    else:
        for o in range(y.size):
            best = line[o * stride]
            for k in range(1, window):
                value = line[o * stride + k * step]
                best = value if value > best else best
            y[o] = best


@jit
def _fill_wide(
    x: Any, lengths: Any, first: Any, count: Any, steps: Any, shape: Any, inner: int, y: Any
) -> None:
    """Compute :func:`_fill_bytes` for 32-bit values."""
    width = lengths[3] * inner
    plane = lengths[2] * width
    place = 0
    for n in range(lengths[0]):
        for od in range(shape[0]):
            for oh in range(shape[1]):
                for ow in range(shape[2]):
                    into = y[place : place + inner]
                    for kd in range(count[0, od]):
                        for kh in range(count[1, oh]):
                            d, h = first[0, od] + kd * steps[0], first[1, oh] + kh * steps[1]
                            for kw in range(count[2, ow]):
                                w = first[2, ow] + kw * steps[2]
                                start = (n * lengths[1] + d) * plane + h * width + w * inner
                                pixel = x[start : start + inner]
                                for c in range(inner):
                                    into[c] = pixel[c] if pixel[c] > into[c] else into[c]
                    place += inner


class _Windows(NamedTuple):
    """Where the windows of a volume begin, how many elements they have inside, and how many."""

    first: Array
    inside: Array
    steps: Array
    shape: Array


@lru_cache(maxsize=1024)
def _windows(
    volume: tuple[int, ...], geometry: Geometry, ceil_mode: bool
) -> tuple[Array, _Windows, tuple[int, ...]]:
    """Return the lengths of a volume, its windows, and how many of them along each dimension."""
    rank = len(geometry[0])
    padded = [
        (*(fill,) * (3 - len(part)), *part)
        for part, fill in zip(geometry, (1, 1, 0, 1), strict=True)
    ]
    per_dim = list(zip(volume[1:4], *padded, strict=True))
    shape = [int(output_length(*sizes, ceil_mode)) for sizes in per_dim]  # type: ignore[call-arg,arg-type]
    first, inside = np.zeros((2, 3, max(1, *shape)), np.int64)
    for i, (length, kernel, stride, padding, dilation) in enumerate(per_dim):
        begin = np.arange(shape[i]) * stride - padding
        skipped = np.maximum(0, -(begin // dilation))
        end = np.minimum(kernel, -((begin - length) // dilation))
        inside[i, : shape[i]] = np.maximum(0, end - skipped)
        first[i, : shape[i]] = np.where(end > skipped, begin + skipped * dilation, 0)
    windows = _Windows(first, inside, np.array(padded[3], np.int64), np.array(shape, np.int64))
    return np.array(volume[:4], np.int64), windows, tuple(shape[3 - rank :])


def _max_compiled(x: QTensor, geometry: Geometry, ceil_mode: bool) -> Array:
    rank, q = len(geometry[0]), x.int_repr
    volume = as_volume(q, rank)
    lengths, windows, spatial_shape = _windows(volume.shape, geometry, ceil_mode)
    outer, *_, inner = volume.shape
    size = outer * prod(spatial_shape) * inner
    flat, lowest = volume.reshape(-1), x.dtype.limits[0]
    window, stride, padding, _ = (part[-1] for part in geometry)
    if not size:
        y = np.empty(0, q.dtype)
    elif q.itemsize > 1:
        y = np.full(size, lowest, q.dtype)
        _fill_wide(flat, lengths, *windows, inner, y)
    elif inner == 1:
        y = np.empty(size, q.dtype)
        _fill_rows(flat, lengths, *windows, padding, window, stride, lowest, y)
    else:
        y = empty_aligned((size,), q.dtype)
        _fill_bytes(flat, lengths, *windows, window, stride, inner, y)
    return from_volume(y, spatial_shape, q, rank)


def _kernel(rank: int) -> Callable[..., QTensor | Array]:
    def kernel(
        self: QTensor | Array,
        kernel_size: IntOrInts,
        stride: IntOrInts | None = None,
        padding: IntOrInts = 0,
        dilation: IntOrInts = 1,
        ceil_mode: bool = False,
        target: Target = Target(),
    ) -> QTensor | Array:
        """Compute the reference with one compiled loop over all windows."""
        geometry = _geometry(rank, kernel_size, stride, padding, dilation)
        if not isinstance(self, QTensor) or _is_clamped(self, geometry, ceil_mode, target):
            return _max_pool(self, rank, *geometry, ceil_mode, target)
        return _on_image(self, geometry, ceil_mode, _max_compiled)

    return kernel


def _u8(values: Any) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 0.5, 7, None, quint8)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/Pooling.cpp::q_maxpool_2d",
    "pytorch/pytorch/aten/src/ATen/native/cpu/MaxPoolKernel.cpp::cpu_max_pool",
)
_NAN = np.array([[1, np.nan, 2, 3]], np.float32)


def _op(rank: int, reference: Callable[..., Any], cases: tuple[Case, ...]) -> Op:
    return Op(
        name=f"aten::max_pool{rank}d",
        reference=reference,
        infer=_infer(rank),
        kernels=dict.fromkeys(ALL_ENGINES, _kernel(rank)),
        keeps_channels_last=rank == 2,
        source=_SOURCE,
        cases=cases,
    )


OPS = (
    _op(
        1,
        reference_1d,
        (
            Case(
                "ceil_mode",
                (_u8([[1, 3, 2, 5, 4]]),),
                {"kernel_size": [2], "ceil_mode": True},
                [[3, 5, 4]],
                "the last window hangs over the end",
            ),
            Case("nan", (_NAN,), {"kernel_size": [2]}, [[np.nan, 3]], "a NaN wins"),
        ),
    ),
    _op(
        2,
        reference_2d,
        (
            Case(
                "padding",
                (_u8([[[[0, 0], [0, 1]]]]),),
                {"kernel_size": [2, 2], "stride": [2, 2], "padding": [1, 1]},
                [[[[0, 0], [0, 1]]]],
                "padding is not the zero point 7: it never wins",
            ),
            Case(
                "dilation",
                (_u8([[[[9, 1, 2, 3], [1, 1, 1, 1], [4, 1, 5, 1]]]]),),
                {"kernel_size": [2, 2], "stride": [1, 1], "dilation": [2, 2]},
                [[[[9, 3]]]],
                "elements of a window are two apart",
            ),
        ),
    ),
    _op(
        3,
        reference_3d,
        (
            Case(
                "all",
                (_u8(np.arange(8).reshape(1, 1, 2, 2, 2)),),
                {"kernel_size": [2, 2, 2]},
                [[[[[7]]]]],
                "one window",
            ),
        ),
    ),
)
