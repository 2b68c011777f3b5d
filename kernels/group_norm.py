"""``quantized::group_norm`` and ``instance_norm``: normalised per group of channels."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType, qint32, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.group_norm_loops import (
    fill,
    fill_pixels,
    statistics,
    statistics_in_float,
    statistics_of_pixels,
)
from refquant.kernels.layout import empty_suggested, flat, is_contiguous_channels_last
from refquant.kernels.norms import (
    VECTOR_WIDTH,
    Squares,
    float_squares,
    float_squares_compiled,
    moments,
    multiply_add,
    quantize_split,
    sums,
)
from refquant.kernels.pointwise import body_rule

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

# From this many pixels on, torch sums channels-last channels in float32.
MANY_PIXELS = 512


def _is_nhwc(x: Array) -> bool:
    """Whether torch takes its channels-last loop: also for dense maps of one pixel."""
    return x.ndim == 4 and is_contiguous_channels_last(x)


def _check_written(x: Array, num_groups: int) -> None:
    """Refuse what torch leaves unwritten: channels-last it counts images up to a group's size."""
    size = x.shape[1] // num_groups * int(np.prod(x.shape[2:]))
    few = np.prod(x.shape[2:]) < MANY_PIXELS
    if _is_nhwc(x) and few and len(x) > size:
        raise UnsupportedError(
            f"group_norm: torch returns uninitialised memory for all channels-last images after "
            f"the first {size}, as many as a group has elements; got {len(x)} images"
        )


def _float_sums(q: Array, groups: int, threads: int) -> tuple[F32, F32]:
    """Sum q and its square: per channel over a thread's pixels, then over threads and channels."""
    n, channels, pixels = q.shape
    values = np.moveaxis(q, 1, 2).reshape(n * pixels, channels).astype(np.float32)
    share = -(-len(values) // threads)
    sums = np.zeros((2, n, groups), np.float32)
    parts: list[list[list[F32]]] = [[[] for _ in range(n)] for _ in range(2)]
    for begin in range(0, len(values), share):
        end = min(begin + share, len(values))
        for image in range(n):
            rows = values[max(begin, image * pixels) : min(end, (image + 1) * pixels)]
            for kind, terms in enumerate((rows, rows * rows)):
                total = np.zeros(channels, np.float32)
                if len(rows):
                    total = np.add.accumulate(terms, axis=0, dtype=np.float32)[-1]
                parts[kind][image].append(total.reshape(groups, -1))
    for kind in range(2):
        for image in range(n):
            in_order = np.concatenate(parts[kind][image], axis=1)
            sums[kind, image] = np.add.accumulate(in_order, axis=1, dtype=np.float32)[:, -1]
    return sums[0], sums[1]


def reference(
    input: QTensor,
    weight: F32 | None,
    bias: F32 | None,
    num_groups: int,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    r"""Normalise a quantized tensor over groups of channels and all pixels.

    Mean *m* (as a distance from the zero point) and *r* come from exact integer sums as in
    ``quantized::layer_norm``; :math:`g = r \cdot weight_c`. In C order

    .. math:: y = \mathrm{fma}((q - z) - m, g, bias_c)

    and every element is quantized with the rule of the vector body; see ``quantized::add``. For
    channels-last images (and images of one pixel)

    .. math:: y = \mathrm{fma}(q - z, g, \mathrm{fma}(-g, m, bias_c))

    and of the channels of each group only the first multiple of 32 has the rule of the body, the
    others that of the scalar tail. Channels-last images of 512 pixels and more are summed in
    float32, pixel after pixel per channel, then channel after channel (each thread has its share
    of the pixels), and the multiple of 32 counts over all channels. Without vector instructions
    products and sums are rounded separately.

    Parameters
    ----------
    input : QTensor, quint8, qint8 or qint32
        (N, C, ...) of rank 3 or more, quantized per tensor; squares of qint32 are added in
        float32, in eight columns first (channels-last the channels of each pixel).
    weight, bias : float32, shape (C,), or None
        Scale and shift; 1 and 0 if None.
    num_groups : int
        Number of groups; it divides C.
    eps : float
        Added to the variance.
    output_scale : float, > 0
        Scale of the result.
    output_zero_point : int
        Zero point of the result.

    Returns
    -------
    QTensor
        Channels-last for a channels-last image, otherwise C-contiguous.

    Raises
    ------
    VerifyError
        If shapes do not fit or an output parameter is out of range.
    UnsupportedError
        For more channels-last images (of less than 512 pixels) than a group has elements: torch
        leaves the others uninitialised.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[1, 3], [5, 7]]]), 0.5, 0)
    >>> reference(x, None, None, 2, 1e-5, 0.5, 10).int_repr
    array([[[ 8, 12],
            [ 8, 12]]], dtype=uint8)
    """
    parameters = (num_groups, eps, output_scale, output_zero_point, target)
    return _normalise(input, weight, bias, *parameters, float_squares)


def _normalise(
    input: QTensor,
    weight: F32 | None,
    bias: F32 | None,
    num_groups: int,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target,
    squares: Squares,
) -> QTensor:
    _check_written(input.int_repr, num_groups)
    n, channels = input.shape[:2]
    scale, zero_point = float(input.scale), int(input.zero_point)
    q = np.ascontiguousarray(input.int_repr).reshape(n, channels, -1).astype(np.int64)
    nhwc, many = _is_nhwc(input.int_repr), q.shape[2] >= MANY_PIXELS
    per_group = channels // num_groups
    if nhwc and many:
        summed: tuple[Array, Array] = _float_sums(q, num_groups, target.threads)
    elif nhwc:
        pixels = np.moveaxis(q.reshape(n, num_groups, per_group, -1), 2, 3)
        total, each = sums(pixels, input.dtype, target, squares)
        summed = total.sum(axis=-1), np.add.accumulate(each, axis=-1)[..., -1]
    else:
        summed = sums(q.reshape(n, num_groups, -1), input.dtype, target, squares)
    mean, r = moments(*summed, per_group * q.shape[2], scale, zero_point, eps, target)
    mean, r = (np.repeat(part, per_group, axis=1) for part in (mean, r))
    gain = r if weight is None else r * weight
    shift = np.zeros(channels, np.float32) if bias is None else bias
    distance = (q - zero_point).astype(np.float32)
    if nhwc:
        shift = multiply_add(-gain, mean, shift, target)
        y = multiply_add(distance, gain[..., np.newaxis], shift[..., np.newaxis], target)
        counted = channels if many else per_group
        in_body = np.arange(channels) % counted < counted // VECTOR_WIDTH * VECTOR_WIDTH
    else:
        centred = distance - mean[..., np.newaxis]
        y = multiply_add(centred, gain[..., np.newaxis], shift[:, np.newaxis], target)
        in_body = np.ones(channels, np.bool_)
    out = _empty_result(input)
    quantized = quantize_split(
        y, in_body[:, np.newaxis], output_scale, output_zero_point, input.dtype, target
    )
    out[...] = quantized.reshape(input.shape)
    return QTensor(out, output_scale, output_zero_point, None, input.dtype)


def _empty_result(x: QTensor) -> Array:
    if x.int_repr.ndim == 4:
        return empty_suggested(x.int_repr, x.int_repr.dtype)
    return np.empty(x.shape, x.int_repr.dtype)


def reference_instance(
    input: QTensor,
    weight: F32 | None,
    bias: F32 | None,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Normalise each channel of a quantized tensor over its pixels.

    ``quantized::group_norm`` with one channel in a group.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[1, 3], [5, 7]]]), 0.5, 0)
    >>> reference_instance(x, None, None, 1e-5, 0.5, 10).int_repr
    array([[[ 8, 12],
            [ 8, 12]]], dtype=uint8)
    """
    return reference(
        input, weight, bias, input.shape[1], eps, output_scale, output_zero_point, target
    )


def infer(
    input: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    num_groups: int,
    eps: float,
    output_scale: float,
    output_zero_point: int,
) -> TensorType:
    """Check shapes, groups and output parameters."""
    op = "quantized::group_norm"
    checks.per_tensor(op, input)
    checks.groups(op, input, num_groups, weight, bias, 3)
    qparams = checks.output_qparams(op, input.dtype, output_scale, output_zero_point)
    return TensorType(input.dtype, input.shape, qparams)


def infer_instance(
    input: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    eps: float,
    output_scale: float,
    output_zero_point: int,
) -> TensorType:
    """Check shapes and output parameters."""
    op = "quantized::instance_norm"
    checks.per_tensor(op, input)
    checks.groups(op, input, None, weight, bias, 3)
    qparams = checks.output_qparams(op, input.dtype, output_scale, output_zero_point)
    return TensorType(input.dtype, input.shape, qparams)


def kernel(
    input: QTensor,
    weight: F32 | None,
    bias: F32 | None,
    num_groups: int,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` in two compiled passes."""
    if input.dtype == qint32:
        parameters = (num_groups, eps, output_scale, output_zero_point, target)
        return _normalise(input, weight, bias, *parameters, float_squares_compiled)
    x = input.int_repr
    _check_written(x, num_groups)
    n, channels = x.shape[:2]
    pixels = prod(x.shape[2:])
    many = pixels >= MANY_PIXELS
    scale, zero_point = np.float32(input.scale), int(input.zero_point)
    mean, r = np.empty((2, n, num_groups), np.float32)
    fused = target.fused_multiply_add
    moments = (scale, zero_point, float(eps), fused, mean, r)
    gain = np.ones(channels, np.float32) if weight is None else np.ascontiguousarray(weight)
    shift = np.zeros(channels, np.float32) if bias is None else np.ascontiguousarray(bias)
    affine = (zero_point, mean, r, gain, shift)
    rounded = (
        *(fused, rounding.reciprocal(output_scale), output_zero_point),
        *(*input.dtype.limits, body_rule(input.dtype, target)),
    )
    if x.ndim == 4:
        values, y, out = flat(x, x.dtype)
    else:
        out = np.empty(x.shape, x.dtype)
        values, y = np.ascontiguousarray(x), out
    if _is_nhwc(x):
        rows = values.reshape(n, pixels, channels)
        if many:
            statistics_in_float(rows, num_groups, -(-n * pixels // target.threads), *moments)
        else:
            statistics_of_pixels(rows, num_groups, *moments)
        counted = channels if many else channels // num_groups
        fill_pixels(*(rows, *affine, counted, *rounded, y.reshape(rows.shape)))
    else:
        grouped = (n, num_groups, channels // num_groups, pixels)
        statistics(values.reshape(grouped), num_groups, *moments)
        images = values.reshape(n, channels, pixels)
        fill(*(images, *affine, *rounded, y.reshape(images.shape)))
    return QTensor.unchecked(out, output_scale, output_zero_point, input.dtype)


def kernel_instance(
    input: QTensor,
    weight: F32 | None,
    bias: F32 | None,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference_instance` in two compiled passes."""
    return kernel(
        input, weight, bias, input.shape[1], eps, output_scale, output_zero_point, target
    )


_X = QTensor(np.array([[[1, 3], [5, 9]]], np.uint8), 0.5, 5, None, quint8)
_OUTPUT = {"eps": 1e-5, "output_scale": 0.5, "output_zero_point": 10}
_AFFINE = (np.array([2, 3], np.float32), np.array([1, 0], np.float32))
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::quantized_normalize_kernel",
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::quantized_groupnorm_nhwc_kernel",
)

OPS = (
    Op(
        name="quantized::group_norm",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=_SOURCE,
        cases=(
            Case(
                "one_group",
                (_X, None, None),
                {"num_groups": 1, **_OUTPUT},
                [[[8, 9], [10, 13]]],
                "mean 4.5, deviation 2.96",
            ),
            Case(
                "affine",
                (_X, *_AFFINE),
                {"num_groups": 2, **_OUTPUT},
                [[[8, 16], [4, 16]]],
                "weight and bias per channel",
            ),
        ),
    ),
    Op(
        name="quantized::instance_norm",
        reference=reference_instance,
        infer=infer_instance,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_instance),
        source=_SOURCE,
        cases=(
            Case(
                "plain",
                (_X, None, None),
                _OUTPUT,
                [[[8, 12], [8, 12]]],
                "-1 and 1 in each channel",
            ),
        ),
    ),
)
