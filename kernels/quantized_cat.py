"""``quantized::cat`` and ``quantized::cat_relu``: join quantized tensors along a dimension."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import DType, Shape, TensorType, format_shape, qint8, qint32, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import (
    empty_aligned,
    empty_channels_last,
    is_channels_last,
    is_contiguous_channels_last,
)
from refquant.kernels.lookup import look_up_rows
from refquant.kernels.pointwise import body_rule, dequantize_body, quantize_body
from refquant.kernels.rounding_jit import (
    BEFORE,
    FUSED,
    dequantize,
    quantize,
)

Array = npt.NDArray[Any]
VECTOR_WIDTH = 8


def _is_nhwc(tensors: tuple[QTensor, ...], dim: int) -> bool:
    """Whether torch takes its channels-last kernel (a negative ``dim`` does not)."""
    return dim == 1 and all(
        x.int_repr.ndim == 4 and is_contiguous_channels_last(x.int_repr) for x in tensors
    )


def _empty_result(tensors: tuple[QTensor, ...], dim: int) -> Array:
    """Allocate the result: channels-last if all inputs are."""
    arrays = [x.int_repr for x in tensors]
    shape = list(arrays[0].shape)
    shape[dim] = sum(x.shape[dim] for x in arrays)
    if _is_nhwc(tensors, dim) or all(map(is_channels_last, arrays)):
        return empty_channels_last(tuple(shape), arrays[0].dtype)
    return np.empty(shape, arrays[0].dtype)


def reference(
    *tensors: QTensor,
    dim: int,
    scale: float | None = None,
    zero_point: int | None = None,
    target: Target = Target(),
) -> QTensor:
    r"""Join quantized tensors along a dimension, each requantized to the result's parameters.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(\mathrm{fma}(x, 1/s, z))), \quad
              x = (q_i - z_i) s_i

    qint32 rounds the product and the sum separately. Along ``dim=1`` of tensors with dense
    channels-last memory torch has another kernel, whose roundings differ:

    * an input that already has the result's parameters is copied;
    * the first ``C // 8 * 8`` channels of each input are dequantized with
      :math:`\mathrm{fma}(s_i, q_i, -s_i z_i)`, and the zero point is added after rounding;
    * the other channels are dequantized with :math:`(q_i - z_i) s_i`, and the zero point is
      added (in float32) before rounding.

    Parameters
    ----------
    *tensors : QTensor, quint8, qint8 or qint32
        Quantized per tensor, of one dtype; shapes agree except in ``dim``.
    dim : int
        Dimension to join along; ``-3`` is not ``1``: it never takes the channels-last kernel.
    scale : float, optional
        Scale of the result; that of the first tensor if None.
    zero_point : int, optional
        Zero point of the result; that of the first tensor if None.

    Returns
    -------
    QTensor
        Channels-last if all tensors are.

    Raises
    ------
    VerifyError
        If dtypes differ, shapes do not fit, or a parameter is out of range.

    Examples
    --------
    >>> a, b = QTensor(np.uint8([3]), 0.5, 0), QTensor(np.uint8([3]), 1.0, 0)
    >>> reference(a, b, dim=0, scale=1.0, zero_point=1).int_repr
    array([2, 4], dtype=uint8)
    """
    return _cat(tensors, dim, scale, zero_point, target, relu=False)


def reference_relu(
    *tensors: QTensor,
    dim: int,
    scale: float | None = None,
    zero_point: int | None = None,
    target: Target = Target(),
) -> QTensor:
    """Join quantized tensors along a dimension and clamp at 0.

    No integer of the result is below its zero point; everything else is as in
    ``quantized::cat``.

    Examples
    --------
    >>> a = QTensor(np.uint8([3, 9]), 0.5, 7)
    >>> reference_relu(a, dim=0, scale=0.5, zero_point=1).int_repr
    array([1, 3], dtype=uint8)
    """
    return _cat(tensors, dim, scale, zero_point, target, relu=True)


def _cat(
    tensors: tuple[QTensor, ...],
    dim: int,
    scale: float | None,
    zero_point: int | None,
    target: Target,
    *,
    relu: bool,
) -> QTensor:
    dtype = tensors[0].dtype
    s = float(tensors[0].scale if scale is None else scale)
    z = int(tensors[0].zero_point if zero_point is None else zero_point)
    convert = _requantize_nhwc if _is_nhwc(tensors, dim) else _requantize
    out = _empty_result(tensors, dim)
    out[...] = np.concatenate([convert(x, s, z, target) for x in tensors], dim)
    if relu:
        np.maximum(out, z, out=out)
    return QTensor(out, s, z, None, dtype)


def _requantize(x: QTensor, scale: float, zero_point: int, _target: Target) -> Array:
    real = rounding.dequantize_plain(x.int_repr, float(x.scale), int(x.zero_point))
    return rounding.quantize_whole(real, scale, zero_point, x.dtype)


def _requantize_nhwc(x: QTensor, scale: float, zero_point: int, target: Target) -> Array:
    q, s, z = x.int_repr, float(x.scale), int(x.zero_point)
    if (s, z) == (scale, zero_point):
        return q
    body = quantize_body(dequantize_body(q, s, z, target), scale, zero_point, x.dtype, target)
    tail = rounding.quantize_before(rounding.dequantize_plain(q, s, z), scale, zero_point, x.dtype)
    channels = q.shape[1]
    in_body = np.arange(channels) < channels // VECTOR_WIDTH * VECTOR_WIDTH
    return np.where(in_body.reshape(1, -1, 1, 1), body, tail)


def infer(
    *tensors: TensorType, dim: int, scale: float | None = None, zero_point: int | None = None
) -> TensorType:
    """Check dtypes, shapes and output parameters; lengths add up along ``dim``."""
    if not tensors:
        raise VerifyError("quantized::cat: at least one tensor is needed")
    first = tensors[0]
    axis = checks.dimension("quantized::cat", dim, first.rank)
    length = first.shape[axis] if first.shape else 0
    if not first.shape:
        raise VerifyError("quantized::cat: tensors of rank 0 cannot be joined")
    for i, x in enumerate(tensors):
        checks.per_tensor("quantized::cat", x)
        if x.dtype != first.dtype:
            raise VerifyError(f"quantized::cat: dtypes differ: {first.dtype} and {x.dtype}")
        if _without(x.shape, axis) != _without(first.shape, axis) or x.rank != first.rank:
            shapes = f"{format_shape(first.shape)} and {format_shape(x.shape)}"
            raise VerifyError(f"quantized::cat: shapes {shapes} differ outside dim {dim}")
        if i:
            length = length + x.shape[axis]
    own_scale, own_zero_point = first.per_tensor()
    qparams = checks.output_qparams(
        "quantized::cat",
        first.dtype,
        own_scale if scale is None else scale,
        own_zero_point if zero_point is None else zero_point,
    )
    return TensorType(
        first.dtype, (*first.shape[:axis], length, *first.shape[axis + 1 :]), qparams
    )


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


@jit
def _fill(
    x: Any,
    scale: np.float32,
    zero_point: int,
    inverse: np.float32,
    to: int,
    floor: int,
    high: int,
    fused: bool,
    rule: int,
    begin: int,
    end: int,
    out: Any,
    column: int,
) -> None:
    offset = np.float32(-scale * np.float32(zero_point))
    for i in range(x.shape[0]):
        for j in range(begin, end):
            real = dequantize(x[i, j], scale, offset, zero_point, fused)
            out[i, column + j] = quantize(real, inverse, to, floor, high, rule)


@jit
def _copy(x: Any, floor: int, out: Any, column: int) -> None:
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, column + j] = max(np.int64(x[i, j]), floor)


def kernel(
    *tensors: QTensor,
    dim: int,
    scale: float | None = None,
    zero_point: int | None = None,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference`: each input in one compiled pass into its place."""
    return _run(tensors, dim, scale, zero_point, target, relu=False)


def kernel_relu(
    *tensors: QTensor,
    dim: int,
    scale: float | None = None,
    zero_point: int | None = None,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference_relu`: each input in one compiled pass into its place."""
    return _run(tensors, dim, scale, zero_point, target, relu=True)


class _Layout(NamedTuple):
    """How inputs of some shapes and strides lie in the result.

    Parameters
    ----------
    nhwc : bool
        Whether torch takes its channels-last kernel.
    last : bool
        Whether the result has its channels last in memory.
    rows : int
        How many rows of the result's memory hold a row of each input.
    widths : tuple of int
        Elements that each input has in a row.
    direct : tuple of bool
        Which inputs lie in memory like the result.
    shape, strides : tuple of int
        Of the result.
    """

    nhwc: bool
    last: bool
    rows: int
    widths: tuple[int, ...]
    direct: tuple[bool, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@lru_cache(maxsize=1024)
def _layout(
    formats: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], dtype: DType, dim: int
) -> _Layout:
    arrays = [
        np.lib.stride_tricks.as_strided(np.empty(1, dtype.storage), *part) for part in formats
    ]
    tensors = tuple(QTensor(array, 1.0, 0, None, dtype) for array in arrays)
    nhwc = _is_nhwc(tensors, dim)
    out = _empty_result(tensors, dim)
    last = nhwc or not out.flags.c_contiguous  # of one channel it is both
    axis = dim % out.ndim
    place = (out.ndim - 1 if axis == 1 else axis - (axis > 1)) if last else axis
    memory = np.moveaxis(out, 1, -1) if last else out
    rows = prod(memory.shape[:place])
    widths = tuple(x.size // rows if rows else 0 for x in arrays)
    direct = tuple(
        (np.moveaxis(x, 1, -1) if last else x).flags.c_contiguous and x.size > 0 for x in arrays
    )
    return _Layout(nhwc, last, rows, widths, direct, out.shape, out.strides)


def _in_memory_order(x: Array, last: bool) -> Array:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1) if last else x).reshape(-1)


class _Parameters(NamedTuple):
    """What turns the integers of an input into those of the result."""

    scale: float
    zero_point: int
    to_scale: float
    to_zero_point: int
    dtype: DType
    relu: bool

    def fill(self, x: Array, out: Array, column: int, how: tuple[bool, int] | None) -> None:
        """Requantize rows by a rule, or copy them."""
        low, high = self.dtype.limits
        floor = self.to_zero_point if self.relu else low
        if how is None:
            _copy(x, floor, out, column)
            return
        inverse = rounding.reciprocal(self.to_scale)
        common = (np.float32(self.scale), self.zero_point, inverse, self.to_zero_point)
        _fill(x, *common, floor, high, *how, 0, x.shape[1], out, column)


@lru_cache(maxsize=1024)
def _table(parameters: _Parameters, how: tuple[bool, int] | None) -> Array:
    """Requantize each of the 256 integers."""
    every = np.arange(256, dtype=np.uint8).view(parameters.dtype.storage)
    table = np.empty((1, 256), every.dtype)
    parameters.fill(every[None], table, 0, how)
    entries: Array = table[0]
    return entries


def _run(
    tensors: tuple[QTensor, ...],
    dim: int,
    scale: float | None,
    zero_point: int | None,
    target: Target,
    *,
    relu: bool,
) -> QTensor:
    dtype = tensors[0].dtype
    s = float(tensors[0].scale if scale is None else scale)
    z = int(tensors[0].zero_point if zero_point is None else zero_point)
    formats = tuple((x.int_repr.shape, x.int_repr.strides) for x in tensors)
    layout = _layout(formats, dtype, dim)
    pitch = sum(layout.widths)
    into = empty_aligned((layout.rows * pitch,), dtype.storage)
    out = np.ndarray(layout.shape, dtype.storage, into, 0, layout.strides)
    column = 0
    for x, width, direct in zip(tensors, layout.widths, layout.direct, strict=True):
        if not width:
            continue
        flat = x.int_repr.ravel("K") if direct else _in_memory_order(x.int_repr, layout.last)
        parameters = _Parameters(float(x.scale), int(x.zero_point), s, z, dtype, relu)
        body = width // VECTOR_WIDTH * VECTOR_WIDTH if layout.nhwc else 0
        body_is: tuple[bool, int] | None = None
        rest: tuple[bool, int] | None = None
        if not layout.nhwc or parameters[:2] != (s, z):
            body_is = (target.fused_multiply_add, body_rule(dtype, target))
            rest = (False, BEFORE if layout.nhwc or dtype == qint32 else FUSED)
        for begin, end, how in ((0, body, body_is), (body, width, rest)):
            if begin == end:
                continue
            if dtype == qint32:
                part = flat.reshape(layout.rows, width)[:, begin:end]
                parameters.fill(part, into.reshape(layout.rows, pitch), column + begin, how)
            else:
                look_up_rows(
                    *(flat, begin, width, _table(parameters, how), layout.rows, end - begin),
                    *(into, column + begin, pitch),
                )
        column += width
    return QTensor.unchecked(out, s, z, dtype)


def _u8(*values: int, scale: float = 1.0, zero_point: int = 0) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), scale, zero_point, None, quint8)


def _pixel(channels: int, value: int) -> QTensor:
    return QTensor(np.full((1, channels, 1, 1), value, np.uint8), 1.0, 0, None, quint8)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/TensorShape.cpp::quantized_cat_impl",
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::qcat_nhwc_kernel",
)

OPS = (
    Op(
        name="quantized::cat",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case(
                "ties",
                (_u8(1, 3), _u8(5)),
                {"dim": 0, "scale": 2.0, "zero_point": 7},
                [8, 8, 10],
                "the zero point is added before rounding: 7.5 and 8.5 go to 8",
            ),
            Case(
                "nhwc_ties",
                (_pixel(9, 1), _pixel(1, 3)),
                {"dim": 1, "scale": 2.0, "zero_point": 7},
                np.reshape([7] * 8 + [8, 8], (1, 10, 1, 1)),
                "an (N, C, 1, 1) tensor counts as channels-last; 8 channels are a vector",
            ),
            Case(
                "inherit",
                (_u8(1, 255, scale=0.5, zero_point=3), _u8(3)),
                {"dim": 0, "scale": None, "zero_point": None},
                [1, 255, 9],
                "parameters of the first tensor",
            ),
            Case(
                "qint8",
                (QTensor(np.array([-128, 127], np.int8), 2.0, 0, None, qint8),),
                {"dim": -1, "scale": 1.0, "zero_point": 0},
                [-128, 127],
                "saturation at both ends",
            ),
            Case(
                "empty",
                (_u8(), _u8(3)),
                {"dim": 0, "scale": 1.0, "zero_point": 0},
                [3],
                "an input without elements",
            ),
        ),
    ),
    Op(
        name="quantized::cat_relu",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_relu),
        source=_SOURCE,
        cases=(
            Case(
                "negative",
                (_u8(1, 9, zero_point=3), _u8(3)),
                {"dim": 0, "scale": 2.0, "zero_point": 7},
                [7, 10, 8],
                "no result is below the zero point",
            ),
        ),
    ),
)
