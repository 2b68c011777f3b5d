"""``aten::mean``: the average over some or all dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import Dim, TensorType, qint32, quint8
from refquant.kernels import checks, qnnpack_average, rounding
from refquant.kernels.averages import Nest, nest
from refquant.kernels.float_sum import LANES, Block, block, block_compiled, sum_dims
from refquant.kernels.jit import jit
from refquant.kernels.layout import channels_last, is_channels_last, is_dense
from refquant.kernels.pointwise import GRAIN
from refquant.kernels.rounding_jit import narrow_fused, to_int
from refquant.kernels.row_sums import sum_bytes
from refquant.kernels.windows import Windows

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def _dims(rank: int, dim: int | Sequence[int] | None) -> tuple[int, ...]:
    """Return the reduced dimensions, sorted; None and an empty list mean all."""
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return tuple(range(rank))
    return tuple(sorted(d % max(rank, 1) for d in ([dim] if isinstance(dim, int) else dim)))


def _is_innermost(x: Array, dims: tuple[int, ...]) -> bool:
    """Whether the integer kernel applies: the last dimensions of a C-contiguous array."""
    return dims == tuple(range(x.ndim - len(dims), x.ndim)) and bool(x.flags.c_contiguous)


def _is_of_pixels(x: QTensor, dim: int | Sequence[int] | None, target: Target) -> bool:
    """Whether qnnpack has a kernel for it: the dimensions must be written as 2, 3."""
    if not qnnpack_average.applies(x, target):
        return False
    return x.int_repr.ndim == 4 and not isinstance(dim, int) and list(dim or ()) == [2, 3]


def _of_pixels(x: QTensor, keepdim: bool) -> QTensor:
    """Average images with qnnpack's factor."""
    whole = [Windows(np.array([0]), np.array([n]), np.array([n])) for n in x.shape[2:]]
    q = qnnpack_average.average(x, whole, x.shape[2] * x.shape[3])
    return x.with_int_repr(_shaped(q, (2, 3), keepdim))


@lru_cache(maxsize=1024)
def _whole(lengths: tuple[int, ...]) -> Nest:
    windows = [Windows(np.array([0]), np.array([n]), np.array([n])) for n in lengths]
    return nest(windows, np.ones((1, 1), np.float32))


def mean_float(x: F32, dims: tuple[int, ...], target: Target, inner: Block = block) -> F32:
    """Return torch's float mean: its sum, divided by the number of elements; keeps dimensions."""
    count = int(np.prod([x.shape[d] for d in dims], dtype=np.int64))
    with np.errstate(invalid="ignore", divide="ignore"):
        return sum_dims(x, dims, target, inner) / np.float32(count)


def reference(
    self: QTensor | Array,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    target: Target = Target(),
) -> QTensor | Array:
    r"""Return the average over dimensions.

    float32: torch's sum, whose cascaded order of additions is reproduced and which depends on
    the strides and (from 32,768 elements) on the number of threads, divided by the count *n*.

    Quantized, over the last dimensions of a C-contiguous tensor: the sum is an exact integer,

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(\sum (q_i - z) / n + z))

    where quotient and sum are rounded to float32 and ties go to even. Over other dimensions or
    on a channels-last tensor the values are dequantized, averaged as float32, and quantized as
    ``aten::quantize_per_tensor`` does. Under qnnpack quint8 images (rank 4, ``dim`` written as
    2, 3) are averaged as by ``aten::avg_pool2d``.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        Values.
    dim : int or sequence of int, optional
        Dimensions to average over; all if None or empty.
    keepdim : bool
        Whether averaged dimensions stay, with length 1.

    Returns
    -------
    QTensor or float32 array
        C-contiguous, with the parameters of the input. NaN where *n* is 0.

    Raises
    ------
    VerifyError
        If a dimension is outside the tensor or given twice.

    Examples
    --------
    >>> reference(QTensor(np.uint8([[1, 2], [3, 4]]), 0.5, 0), [1]).int_repr
    array([2, 4], dtype=uint8)
    """
    if isinstance(self, QTensor) and _is_of_pixels(self, dim, target):
        return _of_pixels(self, keepdim)
    x = self.int_repr if isinstance(self, QTensor) else self
    dims = _dims(x.ndim, dim)
    if not isinstance(self, QTensor):
        return _shaped(mean_float(self, dims, target), dims, keepdim)
    if _is_innermost(x, dims):
        z = int(self.zero_point)
        count = int(np.prod([x.shape[d] for d in dims], dtype=np.int64))
        total = (x.astype(np.int64) - z).sum(axis=dims, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            average = total.astype(np.float32) / np.float32(count)
        q = rounding.round_before(average, np.float32(1), z, self.dtype)
    else:
        q = _through_float(self, dims, target)
    return self.with_int_repr(_shaped(q, dims, keepdim))


def _through_float(
    x: QTensor, dims: tuple[int, ...], target: Target, inner: Block = block
) -> Array:
    scale, zero_point = float(x.scale), int(x.zero_point)
    real = rounding.dequantize_plain(_dense(x.int_repr), scale, zero_point)
    mean = mean_float(real, dims, target, inner)
    return rounding.quantize_whole(mean, scale, zero_point, x.dtype)


def _dense(x: Array) -> Array:
    return channels_last(x) if is_channels_last(x) else np.ascontiguousarray(x)


def _shaped(y: Array, dims: tuple[int, ...], keepdim: bool) -> Array:
    kept = y if keepdim else y.squeeze(dims)
    return np.ascontiguousarray(kept).reshape(kept.shape)


def infer(
    self: TensorType, dim: int | Sequence[int] | None = None, keepdim: bool = False
) -> TensorType:
    """Check the dimensions; they vanish or become 1."""
    checks.float_or_per_tensor("mean", self)
    given = [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
    dims = [checks.dimension("mean", d, self.rank) for d in given]
    if len(set(dims)) != len(dims):
        raise VerifyError(f"mean: a dimension is given twice in {given}")
    reduced = dims or range(self.rank)
    if any(isinstance(self.shape[d], Dim) for d in reduced):
        raise VerifyError(f"mean: cannot average over a symbolic length of {self}")
    if keepdim:
        shape = tuple(1 if d in reduced else n for d, n in enumerate(self.shape))
    else:
        shape = tuple(n for d, n in enumerate(self.shape) if d not in reduced)
    return self.with_shape(shape)


@jit
def _fill(x: Any, zero_point: int, low: int, high: int, y: Any) -> None:
    count = np.float32(x.shape[1])
    for i in range(x.shape[0]):
        row = x[i]
        total = np.int64(0)
        for begin in range(0, row.size, 1 << 16):  # what int32 holds of bytes
            part = row[begin : begin + (1 << 16)]
            total += _sum_of_part(part)
        total -= x.shape[1] * zero_point
        average = np.float32(np.float32(total) / count)
        y[i] = to_int(np.float32(average + np.float32(zero_point)), low, high)


@jit
def _sum_of_part(q: Any) -> Any:
    if q.itemsize == 1:
        total = np.int32(0)
        for i in range(q.size):
            total = np.int32(total + np.int32(q[i]))
        return np.int64(total)
    wide = np.int64(0)
    for i in range(q.size):
        wide += np.int64(q[i])
    return wide


@jit
def _fill_pixels(
    x: Any, scale: float, zero_point: int, inverse: float, low: int, high: int, y: Any
) -> None:
    """Average the rows of each image through float32."""
    m, z = np.float32(inverse), np.float32(zero_point)
    least, most, count = np.float32(low), np.float32(high), np.float32(x.shape[1])
    total = np.empty(x.shape[2], np.float32)
    for n in range(x.shape[0]):
        sum_bytes(x[n], scale, zero_point, total)
        for c in range(total.size):
            y[n, c] = narrow_fused(np.float32(total[c] / count), m, z, least, most)


def _average_pixels(x: QTensor) -> Array:
    n, c, h, w = x.shape
    pixels = x.int_repr.transpose(0, 2, 3, 1).reshape(n, h * w, c)
    y = np.empty((n, c), x.int_repr.dtype)
    scale, zero_point = float(x.scale), int(x.zero_point)
    inverse = float(rounding.reciprocal(scale))
    _fill_pixels(pixels, scale, zero_point, inverse, *x.dtype.limits, y)
    return y


def _is_of_channels_last(x: QTensor, dims: tuple[int, ...], target: Target) -> bool:
    """Whether images of 8-bit pixels are averaged, each by one call of torch's inner loop."""
    q = x.int_repr
    if dims != (2, 3) or q.ndim != 4 or x.dtype == qint32 or q.shape[1] < LANES:
        return False
    alone = target.threads == 1 or q.size < GRAIN
    many = q.shape[2] * q.shape[3] > 1
    return alone and many and is_channels_last(q) and is_dense(q)


def kernel(
    self: QTensor | Array,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,
    target: Target = Target(),
) -> QTensor | Array:
    """Compute :func:`reference` with compiled sums."""
    x = self.int_repr if isinstance(self, QTensor) else self
    dims = _dims(x.ndim, dim)
    if not isinstance(self, QTensor):
        return _shaped(mean_float(self, dims, target, block_compiled), dims, keepdim)
    if x.size == 0:
        return reference(self, dim, keepdim, target)
    if _is_of_pixels(self, dim, target):
        count = x.shape[2] * x.shape[3]
        pixels = qnnpack_average.average_compiled(self, _whole(x.shape[2:]), count)
        return self.with_int_repr(_shaped(pixels, (2, 3), keepdim))
    if not _is_innermost(x, dims):
        if _is_of_channels_last(self, dims, target):
            y = _average_pixels(self)
            return self.with_int_repr(y[:, :, None, None] if keepdim else y)
        q = _through_float(self, dims, target, block_compiled)
        return self.with_int_repr(_shaped(q, dims, keepdim))
    kept = x.shape[: x.ndim - len(dims)]
    y = np.empty(kept + (1,) * len(dims), x.dtype)
    rows = x.reshape(prod(kept), -1)
    _fill(rows, int(self.zero_point), *self.dtype.limits, y.reshape(-1))
    return self.with_int_repr(y if keepdim else y.reshape(kept))


def _u8(values: Any) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 0.5, 7, None, quint8)


OPS = (
    Op(
        name="aten::mean",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/ReduceOps.cpp"
            "::mean_out_quantized_cpu",
            "pytorch/pytorch/aten/src/ATen/native/cpu/SumKernel.cpp::cascade_sum",
        ),
        cases=(
            Case(
                *("ties", (_u8([[1, 2], [2, 3]]),)),
                {"dim": [1]},
                *([2, 2], "even after the zero point is added: 1.5 and 2.5 go to 2"),
            ),
            Case(
                *("outer", (_u8([[1, 2], [2, 3]]),)),
                {"dim": [0], "keepdim": True},
                *([[2, 2]], "through float32: -5.5 and -4.5 steps"),
            ),
            Case(
                "all",
                (np.array([[1, 2], [3, 6]], np.float32),),
                {},
                np.float32(3),
                "no dim: all of them",
            ),
            Case(
                *("float", (np.full((1, 100), 0.1, np.float32),)),
                {"dim": [1]},
                np.array([0.09999999403953552], np.float32),
                "eight lanes in four columns, not one running sum",
            ),
        ),
    ),
)
