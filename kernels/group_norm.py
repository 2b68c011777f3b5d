"""``group_norm`` and ``instance_norm``, quantized and float: normalised per group of channels."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import TensorType, qint32, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.batch_norm import reference_float as batch_norm
from refquant.kernels.jit import fma, jit
from refquant.kernels.layout import empty_suggested, flat, is_contiguous_channels_last
from refquant.kernels.norms import (
    VECTOR_WIDTH,
    Squares,
    are_moderate,
    float_squares,
    float_squares_compiled,
    moments,
    moments_one,
    multiply_add,
    multiply_add_one,
    quantize_one,
    quantize_split,
    sum_and_squares,
    sums,
)
from refquant.kernels.pointwise import body_rule
from refquant.kernels.rounding_jit import narrow_after, narrow_before

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


def reference_float(
    input: F32,
    weight: F32 | None = None,
    bias: F32 | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> F32:
    r"""Normalise a float32 array over groups of channels and all pixels.

    .. math:: y = (x - \mu) / \sqrt{\sigma^2 + \epsilon} \cdot weight_c + bias_c

    Computed in float64 and rounded once. torch works in float32 and sums in the order of its
    vector registers (channels-last the squares, too, whose mean then loses digits): compare with
    an absolute tolerance of ``5e-5 * max(1, |y|)`` times the largest weight, as long as the mean
    is not large against the deviation.

    Examples
    --------
    >>> reference_float(np.float32([[[1, 3], [5, 7]]]), num_groups=2, eps=0.0)
    array([[[-1.,  1.],
            [-1.,  1.]]], dtype=float32)
    """
    n, channels = input.shape[:2]
    x = input.reshape(n, num_groups, -1).astype(np.float64)
    centred = x - x.mean(axis=2, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=2, keepdims=True) + eps)
    y = y.reshape(input.shape)
    per_channel = (channels, *(1,) * (input.ndim - 2))
    y = y if weight is None else y * weight.reshape(per_channel)
    y = y if bias is None else y + bias.reshape(per_channel)
    out = empty_suggested(input, np.float32)
    out[...] = y
    return out


def reference_instance_float(
    input: F32,
    weight: F32 | None,
    bias: F32 | None,
    running_mean: F32 | None,
    running_var: F32 | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
    target: Target = Target(),
) -> F32:
    """Normalise each channel of a float32 array over its pixels, or by running statistics.

    ``aten::group_norm`` with one channel in a group (tolerance ``2e-6``); ``aten::batch_norm``,
    exactly, with ``use_input_stats=False``. C-contiguous.

    Examples
    --------
    >>> x = np.float32([[[1, 3], [5, 7]]])
    >>> reference_instance_float(x, None, None, None, None, True, 0.1, 0.0, False)
    array([[[-1.,  1.],
            [-1.,  1.]]], dtype=float32)
    """
    if use_input_stats:
        y = reference_float(input, weight, bias, num_groups=input.shape[1], eps=eps)
        return np.ascontiguousarray(y)
    assert running_mean is not None
    assert running_var is not None
    y = batch_norm(
        np.ascontiguousarray(input),
        weight,
        bias,
        running_mean,
        running_var,
        False,
        momentum,
        eps,
        cudnn_enabled,
        target,
    )
    return np.ascontiguousarray(y)


def _check(
    op: str,
    input: TensorType,
    num_groups: int | None,
    weight: TensorType | None,
    bias: TensorType | None,
    least_rank: int,
) -> None:
    if input.rank < least_rank:
        raise VerifyError(f"{op}: expected rank {least_rank} or more, got {input}")
    channels = input.shape[1]
    if not isinstance(channels, int):
        raise VerifyError(f"{op}: the number of channels of {input} is symbolic")
    if num_groups is not None and (num_groups < 1 or channels % num_groups):
        raise VerifyError(f"{op}: num_groups {num_groups} does not divide {channels} channels")
    checks.vector(op, weight, channels, "weight")
    checks.vector(op, bias, channels, "bias")


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
    _check(op, input, num_groups, weight, bias, 3)
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
    _check(op, input, None, weight, bias, 3)
    qparams = checks.output_qparams(op, input.dtype, output_scale, output_zero_point)
    return TensorType(input.dtype, input.shape, qparams)


def infer_float(
    input: TensorType,
    weight: TensorType | None = None,
    bias: TensorType | None = None,
    *,
    num_groups: int,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> TensorType:
    """Check dtypes, shapes and groups."""
    checks.is_float32("aten::group_norm", input)
    _check("aten::group_norm", input, num_groups, weight, bias, 2)
    return input


def infer_instance_float(
    input: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    running_mean: TensorType | None,
    running_var: TensorType | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> TensorType:
    """Check dtypes and shapes; running statistics must be there if they are used."""
    op = "aten::instance_norm"
    checks.is_float32(op, input)
    _check(op, input, None, weight, bias, 2)
    for name, x in (("running_mean", running_mean), ("running_var", running_var)):
        if x is not None and use_input_stats:
            raise UnsupportedError(f"{op}: updating {name} (training) is not supported")
        if x is None and not use_input_stats:
            raise VerifyError(f"{op}: {name} is needed without use_input_stats")
        checks.vector(op, x, input.shape[1], name)
    return input


@jit
def _statistics(
    x: Any,
    groups: int,
    scale: np.float32,
    zero_point: int,
    eps: float,
    fused: bool,
    mean: F32,
    r: F32,
) -> None:
    """Fill mean and reciprocal deviation of (N, pixels, C) or, if x is (N, C, pixels), alike."""
    for n in range(x.shape[0]):
        for g in range(groups):
            size = x.shape[2] * x.shape[3]
            total, squares = sum_and_squares(x[n, g].reshape(size))
            count = x.shape[2] * x.shape[3]
            mean[n, g], r[n, g] = moments_one(
                np.float32(total), np.float32(squares), count, scale, zero_point, eps, fused
            )


@jit
def _statistics_in_float(
    x: Any,
    groups: int,
    share: int,
    scale: np.float32,
    zero_point: int,
    eps: float,
    fused: bool,
    mean: F32,
    r: F32,
) -> None:
    """Fill the same of channels-last (N, pixels, C), summed in float32 by threads' shares."""
    images, pixels, channels = x.shape
    threads = (images * pixels + share - 1) // share
    for n in range(images):
        sums = np.zeros((threads, 2, channels), np.float32)
        for p in range(pixels):
            t = (n * pixels + p) // share
            row, total_row, square_row = x[n, p], sums[t, 0], sums[t, 1]
            for c in range(channels):
                q = np.float32(row[c])
                total_row[c] += q
                square_row[c] += np.float32(q * q)
        per_group = channels // groups
        for g in range(groups):
            total = np.float32(0)
            squares = np.float32(0)
            for t in range(threads):
                for c in range(g * per_group, (g + 1) * per_group):
                    total += sums[t, 0, c]
                    squares += sums[t, 1, c]
            mean[n, g], r[n, g] = moments_one(
                total, squares, per_group * pixels, scale, zero_point, eps, fused
            )


@jit
def _statistics_of_pixels(
    x: Any,
    groups: int,
    scale: np.float32,
    zero_point: int,
    eps: float,
    fused: bool,
    mean: F32,
    r: F32,
) -> None:
    """Fill the same of channels-last (N, pixels, C) of few pixels, summed as integers."""
    images, pixels, channels = x.shape
    per_group = channels // groups
    sums = np.empty((2, channels), np.int32)
    for n in range(images):
        sums[:] = 0
        for p in range(pixels):
            row, totals, squares = x[n, p], sums[0], sums[1]
            for c in range(channels):
                q = np.int32(row[c])
                totals[c] += q
                squares[c] += np.int32(q * q)
        for g in range(groups):
            total, square = np.int64(0), np.int64(0)
            for c in range(g * per_group, (g + 1) * per_group):
                total += np.int64(sums[0, c])
                square += np.int64(sums[1, c])
            mean[n, g], r[n, g] = moments_one(
                np.float32(total),
                np.float32(square),
                per_group * pixels,
                scale,
                zero_point,
                eps,
                fused,
            )


@jit
def _fill(
    x: Any,
    zero_point: int,
    mean: F32,
    r: F32,
    weight: F32,
    bias: F32,
    fused: bool,
    inverse: np.float32,
    to: int,
    low: int,
    high: int,
    rule: int,
    y: Any,
) -> None:
    """Normalise (N, C, pixels)."""
    per_group = x.shape[1] // mean.shape[1]
    zero = np.float32(zero_point)
    least, most = np.float32(low - to), np.float32(high - to)
    moderate: Any = fused and rule == 0 and are_moderate(bias) and 1e-15 < inverse < 1e15
    for n in range(x.shape[0]):
        for c in range(x.shape[1]):
            row, into = x[n, c], y[n, c]
            middle, shift = mean[n, c // per_group], bias[c]
            gain = np.float32(r[n, c // per_group] * weight[c])
            if moderate and abs(gain) < 1e15:
                for p in range(into.size):
                    distance = np.float32(np.float32(np.float32(row[p]) - zero) - middle)
                    real = fma(distance, gain, shift)
                    into[p] = narrow_after(real, inverse, to, least, most)
                continue
            for p in range(into.size):
                distance = np.float32(np.float32(np.int64(row[p]) - zero_point) - middle)
                real = multiply_add_one(distance, gain, shift, fused)
                into[p] = quantize_one(real, True, inverse, to, low, high, rule)


@jit
def _fill_pixels(
    x: Any,
    zero_point: int,
    mean: F32,
    r: F32,
    weight: F32,
    bias: F32,
    counted: int,
    fused: bool,
    inverse: np.float32,
    to: int,
    low: int,
    high: int,
    rule: int,
    y: Any,
) -> None:
    """Normalise channels-last (N, pixels, C), the mean in the summand."""
    channels = x.shape[2]
    per_group = channels // mean.shape[1]
    body = counted // 32 * 32
    zero, z = np.float32(zero_point), np.float32(to)
    least, most = np.float32(low - to), np.float32(high - to)
    bottom, top = np.float32(low), np.float32(high)
    gain, shift = np.empty(channels, np.float32), np.empty(channels, np.float32)
    in_body = np.empty(channels, np.bool_)
    for n in range(x.shape[0]):
        for c in range(channels):
            g = c // per_group
            gain[c] = np.float32(r[n, g] * weight[c])
            shift[c] = multiply_add_one(np.float32(-gain[c]), mean[n, g], bias[c], fused)
            in_body[c] = c % counted < body
        moderate: Any = fused and rule == 0 and are_moderate(gain) and are_moderate(shift)
        moderate = moderate and 1e-15 < inverse < 1e15
        for p in range(x.shape[1]):
            row, into = x[n, p], y[n, p]
            if not moderate:
                for c in range(channels):
                    distance = np.float32(np.int64(row[c]) - zero_point)
                    real = multiply_add_one(distance, gain[c], shift[c], fused)
                    into[c] = quantize_one(real, in_body[c], inverse, to, low, high, rule)
            elif body == counted:
                for c in range(channels):
                    real = fma(np.float32(np.float32(row[c]) - zero), gain[c], shift[c])
                    into[c] = narrow_after(real, inverse, to, least, most)
            else:
                for c in range(channels):
                    real = fma(np.float32(np.float32(row[c]) - zero), gain[c], shift[c])
                    after = narrow_after(real, inverse, to, least, most)
                    before = narrow_before(real, inverse, z, bottom, top)
                    into[c] = after if in_body[c] else before


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
            _statistics_in_float(rows, num_groups, -(-n * pixels // target.threads), *moments)
        else:
            _statistics_of_pixels(rows, num_groups, *moments)
        counted = channels if many else channels // num_groups
        _fill_pixels(*(rows, *affine, counted, *rounded, y.reshape(rows.shape)))
    else:
        grouped = (n, num_groups, channels // num_groups, pixels)
        _statistics(values.reshape(grouped), num_groups, *moments)
        images = values.reshape(n, channels, pixels)
        _fill(*(images, *affine, *rounded, y.reshape(images.shape)))
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
_SOURCE_FLOAT = (
    "pytorch/pytorch/aten/src/ATen/native/cpu/group_norm_kernel.cpp::GroupNormKernelImpl",
)

OPS = (
    Op(
        name="quantized::group_norm",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ALL_ENGINES, kernel),
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
        kernels=dict.fromkeys(ALL_ENGINES, kernel_instance),
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
    Op(
        name="aten::group_norm",
        reference=reference_float,
        infer=infer_float,
        kernels=dict.fromkeys(ALL_ENGINES, reference_float),
        source=_SOURCE_FLOAT,
        cases=(
            Case(
                "exact",
                (np.array([[[1, 3], [5, 7]]], np.float32),),
                {"num_groups": 2, "eps": 0.0},
                [[[-1, 1], [-1, 1]]],
                "variance 1",
            ),
        ),
    ),
    Op(
        name="aten::instance_norm",
        reference=reference_instance_float,
        infer=infer_instance_float,
        kernels=dict.fromkeys(ALL_ENGINES, reference_instance_float),
        source=("pytorch/pytorch/aten/src/ATen/native/Normalization.cpp::instance_norm",),
        cases=(
            Case(
                "exact",
                (np.array([[[1, 3], [5, 7]]], np.float32), None, None, None, None),
                {
                    **{"use_input_stats": True, "momentum": 0.1},
                    **{"eps": 0.0, "cudnn_enabled": False},
                },
                [[[-1, 1], [-1, 1]]],
                "variance 1",
            ),
        ),
    ),
)
