"""``onednn::qconv_pointwise``: pt2e's int8 convolution with what follows it, of oneDNN."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import DType, TensorType, float32, format_shape, qint8, uint8
from refquant.kernels import post_ops, quantized_conv, requantize
from refquant.kernels.accumulate import Sums
from refquant.kernels.convolve import convolution_sums, convolve
from refquant.kernels.layout import empty_channels_last
from refquant.kernels.onednn_functions import Args
from refquant.kernels.packing import Layout, PackedArray, packed_of
from refquant.kernels.qlinear_pointwise import check_numbers, numbers_of
from refquant.kernels.quantized_conv import Geometry

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
Ints = tuple[int, ...]
Compute = Callable[..., Array]
_OP = "qconv_pointwise"
# Which functions torch accepts, by the number of spatial axes.
FUNCTIONS = {
    1: ("none", "relu"),
    2: ("none", "relu", "hardtanh", "hardswish", "swish"),
    3: ("none",),
}


def reference_binary(
    qx: Array,
    qw: Array,
    w_scale: F32,
    w_zero_point: Array,
    qaccum: Array,
    bias: Array | None,
    x_scale: float,
    x_zero_point: int,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType | None,
    accum_scale: float,
    accum_zero_point: int,
    binary_attr: str,
    alpha: float | None,
    unary_attr: str | None,
    unary_scalars: Args,
    unary_algorithm: str | None,
    target: Target = Target(),
    compute: Compute | None = None,
) -> Array:
    r"""Do :func:`reference` with another tensor added before the function.

    ``(qaccum - accum_zero_point) * accum_scale`` is added with one rounding. torch writes the
    result into the memory of ``qaccum``, which here is left as it is.

    Parameters
    ----------
    qaccum : uint8, int8, float32 or bfloat16, shape of the result
        Its dtype is that of the result, whatever ``output_dtype`` says. torch demands
        channels-last memory of it.
    accum_scale, accum_zero_point : float, int
        1 and 0 for a float result.
    binary_attr : {"sum"}
        torch accepts no other.
    alpha : float or None
        Not read.
    unary_attr : {"none", "relu"} or None
        None is ``"none"``.

    Examples
    --------
    >>> one, zero = np.float32([0.5]), np.int32([0])
    >>> x, w, a = np.uint8([[[[3, 5]]]]), np.int8([[[[2]]]]), np.uint8([[[[7, 8]]]])
    >>> plain = ((1, 1), (0, 0), (1, 1), 1)
    >>> added = (0.25, 8, "sum", None, None, (), None)
    >>> reference_binary(x, w, one, zero, a, None, 0.5, 1, *plain, 0.25, 10, None, *added)
    array([[[[13, 18]]]], dtype=uint8)
    """
    geometry = Geometry(qw.shape[2:], stride, padding, dilation, groups)
    x = QTensor(qx, 1.0, x_zero_point)
    stage = _stage(
        *(x, qw, w_scale, bias, x_scale, geometry, output_scale, output_zero_point),
        *(_plain(qaccum), unary_attr, unary_scalars, target),
    )
    added = post_ops.other_of(qaccum, binary_attr, accum_scale, accum_zero_point)
    return (compute or _exact)(qx, qw, x_zero_point, geometry, stage, added)


def reference(
    qx: Array,
    qw: Array,
    w_scale: F32,
    w_zero_point: Array,
    bias: Array | None,
    x_scale: float,
    x_zero_point: int,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType | None,
    attr: str,
    scalars: Args,
    algorithm: str | None,
    target: Target = Target(),
    compute: Compute | None = None,
) -> Array:
    r"""Convolve uint8 maps with an int8 weight, apply a function and round.

    The real value is ``float(sum) * x_scale * w_scale + bias``, rounded to float32 at each step,
    and what is done with it stands at ``onednn::qlinear_pointwise``. Dilated depthwise
    convolutions in three dimensions multiply the two scales first.

    Parameters
    ----------
    qx : uint8 (N, C, ...)
        Maps with one to three spatial axes, whatever the name of the operator says.
    qw : int8 (OC, C / groups, ...)
        Weight, as it was before ``onednn::qconv_prepack``.
    w_scale : float32 (1,) or (OC,)
        Scales of the weight.
    w_zero_point : integers
        Not read: oneDNN takes zero points of weights to be 0.
    bias : float (OC,) or None
        Rounded to float32.
    x_scale, x_zero_point : float, int
        Quantization parameters of the maps.
    stride, padding, dilation, groups
        As for ``quantized::conv2d``.
    output_scale, output_zero_point : float, int
        Quantization parameters of an 8-bit result; the zero point may lie outside its range. For
        a float result they are 1 and 0.
    output_dtype : DType or None
        uint8, int8, float32 or bfloat16; None is uint8.
    attr, scalars : str, tuple of float
        Function and its numbers: ``"none"``; for one and two spatial axes ``"relu"``; for two
        ``"hardtanh"``, ``"hardswish"`` and ``"swish"``.
    algorithm : str or None
        Not read.

    Returns
    -------
    Array (N, OC, ...), channels-last memory

    Raises
    ------
    VerifyError
        If dtypes, shapes or attributes do not fit.
    UnsupportedError
        Where ``quantized::conv2d`` is refused under onednn, for float8 maps, and for scales or a
        bias with strides, which torch ignores.

    Notes
    -----
    The engine has no say.

    Examples
    --------
    >>> x, w = np.uint8([[[3, 5, 0]]]), np.int8([[[1, 2]]])
    >>> s, z = np.float32([0.5]), np.int32([0])
    >>> plain = ((1,), (1,), (1,), 1)
    >>> reference(x, w, s, z, None, 0.5, 1, *plain, 0.25, 10, None, "relu", (), None)
    array([[[14, 20, 12, 10]]], dtype=uint8)
    """
    geometry = Geometry(qw.shape[2:], stride, padding, dilation, groups)
    x = QTensor(qx, 1.0, x_zero_point)
    stage = _stage(
        *(x, qw, w_scale, bias, x_scale, geometry, output_scale, output_zero_point),
        *(output_dtype or uint8, attr, scalars, target),
    )
    return (compute or _exact)(qx, qw, x_zero_point, geometry, stage, None)


def reference_tensor(
    qx: Array,
    x_scale: Array,
    x_zero_point: Array,
    qw: Array,
    w_scale: F32,
    w_zero_point: Array,
    bias: Array | None,
    target: Target = Target(),
    **attributes: Any,
) -> Array:
    """Do :func:`reference` with the input's scale and zero point as tensors of one element."""
    operands = (qx, qw, w_scale, w_zero_point, bias)
    return reference(*operands, *numbers_of(x_scale, x_zero_point), **attributes, target=target)


def reference_binary_tensor(
    qx: Array,
    x_scale: Array,
    x_zero_point: Array,
    qw: Array,
    w_scale: F32,
    w_zero_point: Array,
    qaccum: Array,
    bias: Array | None,
    target: Target = Target(),
    **attributes: Any,
) -> Array:
    """Do :func:`reference_binary` with the input's scale and zero point as tensors."""
    operands = (qx, qw, w_scale, w_zero_point, qaccum, bias)
    return reference_binary(
        *operands, *numbers_of(x_scale, x_zero_point), **attributes, target=target
    )


def _plain(qaccum: Array) -> DType:
    return next(
        dtype for dtype in (*post_ops.LIMITS, *post_ops.FLOATS) if dtype.storage == qaccum.dtype
    )


def _weight(qw: Array) -> QTensor:
    return QTensor(qw, 1.0, 0, None, qint8)


def _stage(
    x: QTensor,
    qw: Array,
    w_scale: F32,
    bias: Array | None,
    x_scale: float,
    geometry: Geometry,
    output_scale: float,
    output_zero_point: int,
    dtype: DType,
    unary: str | None,
    args: Args,
    target: Target,
) -> post_ops.Stage:
    post_ops.check_machine(_OP, target)
    post_ops.check_contiguous(_OP, w_scale=w_scale, bias=bias)
    planned, _ = quantized_conv.plan(_OP, x, _weight(qw), geometry, Target(Engine.ONEDNN))
    return post_ops.stage(
        *(x_scale, w_scale, bias, qw.shape[0], output_scale, output_zero_point, dtype),
        *(unary or "none", args),
        combines=planned is requantize.CONVOLUTION_COMBINED,
    )


def _exact(
    qx: Array,
    qw: Array,
    x_zero_point: int,
    geometry: Geometry,
    stage: post_ops.Stage,
    added: post_ops.Other | None,
) -> Array:
    channels = qw.shape[0]
    shape = (qx.shape[0], channels, *geometry.out(qx.shape[2:]))
    y = empty_channels_last(shape, stage.dtype.storage)
    x = QTensor(qx, 1.0, x_zero_point)
    for image, part, total in quantized_conv.sums(x, _weight(qw), geometry, Sums.EXACT):
        some = None
        if added is not None:
            pixels = added.shifted[image].reshape(channels, -1).T[part]
            some = added._replace(shifted=pixels)
        rows = np.moveaxis(y[image], 0, -1).reshape(-1, channels)
        rows[part] = post_ops.finish(total, stage, some)
    return y


def _infer(
    qx: TensorType,
    qw: TensorType,
    w_scale: TensorType,
    bias: TensorType | None,
    x_zero_point: int,
    geometry: tuple[Ints, Ints, Ints, int],
    binary: str,
    unary: str | None,
    scalars: Args,
) -> tuple[Any, ...]:
    """Check all but the result; return its shape."""
    stride, padding, dilation, groups = geometry
    post_ops.check_input(_OP, qx, x_zero_point, (uint8,))
    rank = qx.rank - 2
    if rank not in FUNCTIONS:
        raise VerifyError(f"{_OP}: input must have rank 3 to 5, got {format_shape(qx.shape)}")
    if qw.rank != qx.rank:
        raise VerifyError(f"{_OP}: weight must have rank {qx.rank}, got {format_shape(qw.shape)}")
    post_ops.check_weight(_OP, qw, w_scale, bias)
    axes = {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}
    quantized_conv.check_axes(_OP, rank, axes)
    channels, inputs, *kernel = (size for size in qw.shape if isinstance(size, int))
    if groups < 1 or channels % groups:
        raise VerifyError(f"{_OP}: groups must divide {channels} output channels, got {groups}")
    if qx.shape[1] != groups * inputs:
        raise VerifyError(
            f"{_OP}: weight {format_shape(qw.shape)} with groups={groups} needs "
            f"{groups * inputs} input channels, got {qx.shape[1]}"
        )
    post_ops.check_functions(_OP, binary, unary or "none", scalars, FUNCTIONS[rank])
    out = Geometry(tuple(kernel), stride, padding, dilation, groups).out(qx.shape[2:])
    quantized_conv.check_out(_OP, out)
    return (qx.shape[0], channels, *out)


def infer(
    qx: TensorType,
    qw: TensorType,
    w_scale: TensorType,
    w_zero_point: TensorType,
    bias: TensorType | None,
    x_scale: float,
    x_zero_point: int,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType | None,
    attr: str,
    scalars: Args,
    algorithm: str | None,
) -> TensorType:
    """Check operands and attributes; only the batch may be symbolic where sizes change."""
    geometry = (stride, padding, dilation, groups)
    shape = _infer(qx, qw, w_scale, bias, x_zero_point, geometry, "none", attr, scalars)
    numbers = (output_scale, output_zero_point)
    dtype = post_ops.result_dtype(_OP, output_dtype, uint8, *numbers, post_ops.CONVOLUTION)
    return TensorType(dtype, shape)


def infer_binary(
    qx: TensorType,
    qw: TensorType,
    w_scale: TensorType,
    w_zero_point: TensorType,
    qaccum: TensorType,
    bias: TensorType | None,
    x_scale: float,
    x_zero_point: int,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType | None,
    accum_scale: float,
    accum_zero_point: int,
    binary_attr: str,
    alpha: float | None,
    unary_attr: str | None,
    unary_scalars: Args,
    unary_algorithm: str | None,
) -> TensorType:
    """Check operands and attributes; the result has the dtype of the tensor that is added."""
    if binary_attr != "sum" or qx.rank != 4:
        raise VerifyError(
            f"{_OP}: torch adds by 'sum' and to images only, got {binary_attr!r} with input "
            f"{format_shape(qx.shape)}"
        )
    geometry = (stride, padding, dilation, groups)
    shape = _infer(
        *(qx, qw, w_scale, bias, x_zero_point, geometry, "sum", unary_attr, unary_scalars)
    )
    numbers = (output_scale, output_zero_point)
    dtype = post_ops.result_dtype(_OP, qaccum.dtype, uint8, *numbers, post_ops.CONVOLUTION)
    if output_dtype in post_ops.FLOATS and dtype not in post_ops.FLOATS:
        raise VerifyError(f"{_OP}: output_dtype {output_dtype} does not fit qaccum {dtype}")
    post_ops.check_other(_OP, qaccum, "sum", shape, dtype, accum_scale, accum_zero_point)
    return TensorType(dtype, shape)


def infer_tensor(
    qx: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType,
    qw: TensorType,
    w_scale: TensorType,
    w_zero_point: TensorType,
    bias: TensorType | None,
    **attributes: Any,
) -> TensorType:
    """Check operands and attributes; the zero point is known when the graph runs."""
    check_numbers(x_scale, x_zero_point)
    return infer(qx, qw, w_scale, w_zero_point, bias, 1.0, 0, **attributes)


def infer_binary_tensor(
    qx: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType,
    qw: TensorType,
    w_scale: TensorType,
    w_zero_point: TensorType,
    qaccum: TensorType,
    bias: TensorType | None,
    **attributes: Any,
) -> TensorType:
    """Check operands and attributes; the zero point is known when the graph runs."""
    check_numbers(x_scale, x_zero_point)
    return infer_binary(qx, qw, w_scale, w_zero_point, qaccum, bias, 1.0, 0, **attributes)


def _layout(qw: Array, dilation: Ints, groups: int) -> Layout:
    channels, inputs, *taps = qw.shape
    return Layout.of(inputs, channels // groups, tuple(taps), dilation, groups, False)


def pack(qw: Array, *, dilation: Ints, groups: int, **_attributes: Any) -> PackedArray:
    """Arrange the weight for the compiled tile."""
    return PackedArray.of(qw, _layout(qw, dilation, groups))


def _tiled(
    qx: Array,
    qw: Array,
    x_zero_point: int,
    geometry: Geometry,
    stage: post_ops.Stage,
    added: post_ops.Other | None,
) -> Array:
    """Compute :func:`_exact` from the sums of the compiled tile."""
    packed = packed_of(qw, _layout(qw, geometry.dilation, geometry.groups))
    x = QTensor(qx, 1.0, x_zero_point)
    window = geometry.window(qx.shape[2:])
    fast = post_ops.in_registers(stage, added)
    if fast is not None:
        return convolve(x, packed, None, window, fast[1], fast[0])
    total = convolution_sums(x, packed, window)
    if added is not None:
        added = added._replace(shifted=np.moveaxis(added.shifted, 1, -1))
    return np.moveaxis(post_ops.run(np.moveaxis(total, 1, -1), stage, added), -1, 1)


_PARAMETERS = (
    *(np.array([[[[1, 2]]]], np.int8), np.array([0.5], np.float32), np.array([0], np.int32)),
)
_X = np.array([[[[3, 5, 0]]]], np.uint8)
_TENSORS = (np.array([0.5], np.float32), np.array([1], np.int64))
_INPUT = {"x_scale": 0.5, "x_zero_point": 1}
_PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
_STEPS = {"output_scale": 0.5, "output_zero_point": 10, "output_dtype": None}
_REAL = {"output_scale": 1.0, "output_zero_point": 0, "output_dtype": float32}
_NOTHING = {"attr": "none", "scalars": (), "algorithm": None}
_ACCUM = np.array([[[[7, 0]]]], np.uint8)
_SUM = {
    **{"accum_scale": 0.25, "accum_zero_point": 8, "binary_attr": "sum", "alpha": None},
    **{"unary_attr": "relu", "unary_scalars": (), "unary_algorithm": None},
}
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qconv.cpp::_quantized_convolution_onednn",
)


def _without(rank: int) -> Case:
    """Return the case of ``rank`` spatial axes."""
    shape = (1, 1, *(1,) * (rank - 1), -1)
    x, (w, *rest) = _X.reshape(shape), _PARAMETERS
    ones = (1,) * rank
    plain = {"stride": ones, "padding": (0,) * rank, "dilation": ones, "groups": 1}
    return Case(
        "ties",
        (x, w.reshape(shape), *rest, None),
        {**_INPUT, **plain, **_STEPS, **_NOTHING},
        np.reshape([15, 11], shape),
        "2.5 and 0.5 units are 5 and 1 steps",
    )


_HALVES = Case(
    "halves",
    (_X, *_PARAMETERS, None),
    {**_INPUT, **_PLAIN, **_STEPS, **_NOTHING, "output_scale": 1.0},
    [[[[12, 10]]]],
    "2.5 + 10 and 0.5 + 10 to even",
)
_FLOAT = Case(
    "float",
    (_X, *_PARAMETERS, np.array([-0.75], np.float32)),
    {**_INPUT, **_PLAIN, **_REAL, **_NOTHING, "attr": "relu"},
    [[[[1.75, 0]]]],
    "-0.25 becomes 0",
)

OPS = (
    *(
        Op(
            name=f"onednn::{name}",
            reference=reference,
            infer=infer,
            kernels=dict.fromkeys(TORCH_ENGINES, partial(reference, compute=_tiled)),
            pack=pack,
            source=_SOURCE,
            cases=cases,
        )
        for name, cases in (
            ("qconv_pointwise", (_HALVES, _FLOAT)),
            ("qconv1d_pointwise", (_without(1),)),
            ("qconv2d_pointwise", (_without(2), _HALVES)),
            ("qconv3d_pointwise", (_without(3),)),
        )
    ),
    *(
        Op(
            name=f"onednn::{name}.tensor",
            reference=reference_tensor,
            infer=infer_tensor,
            kernels=dict.fromkeys(TORCH_ENGINES, partial(reference_tensor, compute=_tiled)),
            source=_SOURCE,
            cases=(
                Case(
                    "ties",
                    (_X, *_TENSORS, *_PARAMETERS, None),
                    {**_PLAIN, **_STEPS, **_NOTHING},
                    [[[[15, 11]]]],
                    "scale and zero point of one element",
                ),
            ),
        )
        for name in ("qconv_pointwise", "qconv2d_pointwise")
    ),
    Op(
        name="onednn::qconv2d_pointwise.binary",
        reference=reference_binary,
        infer=infer_binary,
        kernels=dict.fromkeys(TORCH_ENGINES, partial(reference_binary, compute=_tiled)),
        pack=pack,
        source=_SOURCE,
        cases=(
            Case(
                "sum",
                (_X, *_PARAMETERS, _ACCUM, None),
                {**_INPUT, **_PLAIN, **_STEPS, **_SUM},
                [[[[14, 10]]]],
                "4.5 steps plus 10 to even; 0.5 - 2 becomes 0",
            ),
        ),
    ),
    Op(
        name="onednn::qconv2d_pointwise.binary_tensor",
        reference=reference_binary_tensor,
        infer=infer_binary_tensor,
        kernels=dict.fromkeys(TORCH_ENGINES, partial(reference_binary_tensor, compute=_tiled)),
        source=_SOURCE,
        cases=(
            Case(
                "sum",
                (_X, *_TENSORS, *_PARAMETERS, _ACCUM, None),
                {**_PLAIN, **_STEPS, **_SUM},
                [[[[14, 10]]]],
                "4.5 steps plus 10 to even; 0.5 - 2 becomes 0",
            ),
        ),
    ),
)
