"""``quantized::conv_transpose1d``, ``conv_transpose2d``, ``conv_transpose3d``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Isa, Target
from refquant.ir.types import TensorType, format_shape, qint8, quint8
from refquant.kernels import checks, requantize
from refquant.kernels.accumulate import BLOCK, Sums, blocks, dot_saturating
from refquant.kernels.convolve import convolve
from refquant.kernels.engines import (
    check_symmetric,
    divides,
    is_left_to_product,
    leaves_gaps,
    outgrows_memory,
    resolve,
)
from refquant.kernels.layout import empty_channels_last
from refquant.kernels.packing import Layout, PackedWeight
from refquant.kernels.quantized_conv import check_axes, check_map, check_out, in_pairs
from refquant.kernels.quantized_linear import check_weight
from refquant.kernels.requantize import Rounding, Stage
from refquant.kernels.walk import Window

F32 = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Ints = tuple[int, ...]


class Geometry(NamedTuple):
    """Attributes of a transposed convolution, one entry per spatial axis."""

    kernel: Ints
    stride: Ints
    padding: Ints
    output_padding: Ints
    dilation: Ints

    def out(self, sizes: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the size of the output map."""
        return tuple(
            (n + -1) * s + (d * (k - 1) + 1 + extra - 2 * p)
            for n, k, s, p, extra, d in zip(sizes, *self, strict=True)
        )

    def window(self, sizes: Ints) -> Window:
        """Return how outputs look at the spread input, through the flipped kernel."""
        kernel, stride, padding, _, dilation = self
        axes = zip(kernel, padding, dilation, strict=True)
        lead = tuple(d * (k - 1) - p for k, p, d in axes)
        return Window(kernel, (1,) * len(kernel), dilation, lead, stride, self.out(sizes))


def reference(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    r"""Add each input times the kernel into the output, add the bias and requantise.

    .. math:: acc_{i \cdot stride + k \cdot dilation - padding} \mathrel{+}=
              (x_i - z_x)(w_k - z_w)

    is an exact int32 sum; it is rounded as in ``quantized::linear`` with a weight quantized per
    tensor: ``v = fma(bias, 1 / a, float(acc))`` where ``a`` is the product of the scales of input
    and weight, then ``rint(v * (a / scale)) + zero_point`` clamped to [0, 255]; under qnnpack
    (one and two dimensions) as its ``quantized::linear``.

    **onednn** rounds as its ``quantized::conv2d``, but divides by the output's scale instead of
    multiplying with its reciprocal where only its reference kernel takes the shape: mostly
    three-dimensional depthwise convolutions, strides together with dilation along one axis,
    paddings as long as the dilated kernel (``engines.divides`` has the whole rule).

    **x86** is onednn for up to 100 groups, weight zero points 0 and no output padding, otherwise
    fbgemm; without VNNI it is always fbgemm.

    **Without VNNI** products saturate in pairs as in ``quantized::conv2d``: fbgemm's in reading
    order of the kernel, where taps without input multiply as :math:`z_x`; oneDNN's within a tap.
    Under avx2 oneDNN's vector kernel multiplies the two scales first; what it refuses
    (``engines.is_left_to_product``) is divided by ``s'``.

    Parameters
    ----------
    x : quint8 (N, C, ...)
        Quantized per tensor, one to three spatial axes.
    weight : qint8 (C, OC / groups, ...)
        Quantized per tensor, under qnnpack also per channel along axis 1; zero points may differ
        from 0 (under onednn they must be 0).
    bias : float32 (OC,) or None
        Added before rounding.
    stride, padding, output_padding, dilation : tuple of int
        One entry per spatial axis; ``padding`` is cut off on both sides of the output,
        ``output_padding`` is added at its end.
    groups : int
        Channels are split into groups that do not see each other.
    scale, zero_point : float, int
        Quantization parameters of the result.

    Returns
    -------
    QTensor, quint8 (N, OC, ...), channels-last memory whatever the input's
        Outputs that no input reaches hold the bias.

    Raises
    ------
    VerifyError
        If shapes, dtypes or attributes do not fit.
    UnsupportedError
        If the engine does not take the
        weight's quantization or the output padding. Also where torch's result is not defined:
        under fbgemm with a 2-d kernel of height 2 and width 1 to 6, stride 1 or 2, no padding or
        dilation, one group and channels divisible by 8, where torch 2.13.0 takes a path that
        computes the first image only, misplaces its rows where the stride is 2, and cannot
        unpack the weight; under onednn with other numbers of inputs and outputs in a group, where
        it gets the weight in the wrong order, and, unless the input's zero point is 0, if two
        neighbouring rows or planes of the result see no input; under qnnpack in three dimensions.
        Under onednn without VNNI, if its GEMM kernel may lack memory
        (``engines.outgrows_memory``).

    Examples
    --------
    >>> x = QTensor(np.uint8([[[3, 5]]]), 0.5, 1)
    >>> w = QTensor(np.int8([[[1, 2]]]), 0.5, 0, None, qint8)
    >>> reference(x, w, None, (2,), (0,), (1,), (1,), 1, 0.25, 10).int_repr
    array([[[12, 14, 14, 18, 10]]], dtype=uint8)
    """
    geometry = Geometry(weight.shape[2:], stride, padding, output_padding, dilation)
    stage, way = plan("conv_transpose", x, weight, geometry, groups, target)
    out = geometry.out(x.shape[2:])
    images, inputs = x.shape[0], x.shape[1] // groups
    each = weight.shape[1]
    constants = stage.constants(float(x.scale), weight.scale, scale, bias, groups * each)
    rounding = Rounding(scale, zero_point)
    shift = np.broadcast_to(np.asarray(weight.zero_point), (each,))
    y = empty_channels_last((images, groups * each, *out), np.uint8)
    for image in range(images):
        for group in range(groups):
            feed = slice(group * inputs, (group + 1) * inputs)
            rows = np.moveaxis(x.int_repr[image, feed], 0, -1)
            for part in blocks(each, BLOCK // max(int(np.prod(out)), inputs)):
                factor = np.moveaxis(weight.int_repr[feed, part], 1, -1)
                if way is Sums.EXACT:
                    exact = np.moveaxis(factor.astype(np.float64) - shift[part], -1, 1)
                    total = _scatter(rows, int(x.zero_point), exact, geometry, out)
                else:
                    zeros = int(x.zero_point), shift[part]
                    total = _gather_pairs(rows, zeros, factor, geometry, out, way)
                live = slice(group * each + part.start, group * each + part.stop)
                q = stage.finish(total, constants.of(live), rounding)
                y[image, live] = np.moveaxis(q, -1, 0)
    return QTensor(y, scale, zero_point)


def _scatter(
    rows: Array, zero_point: int, weight: Array, geometry: Geometry, out: Ints
) -> npt.NDArray[np.int32]:
    """Return the sums (*out, channels) of one image (..., inputs) and one group."""
    kernel, stride, padding, _, dilation = geometry
    *sizes, inputs = rows.shape
    full = [o + 2 * p for o, p in zip(out, padding, strict=True)]
    total = np.zeros((*full, weight.shape[1]), np.int32)
    for part in blocks(sizes[0], BLOCK // (inputs * int(np.prod(sizes[1:])))):
        centered = rows[part].astype(np.float64) - zero_point
        span = (part, *(slice(0, n) for n in sizes[1:]))
        for tap in np.ndindex(*kernel):
            product = centered @ weight[(..., *tap)]
            reached = tuple(
                slice(i.start * s + k * d, (i.stop - 1) * s + k * d + 1, s)
                for i, k, s, d in zip(span, tap, stride, dilation, strict=True)
            )
            total[reached] += product.astype(np.int64).astype(np.int32)
    return total[tuple(slice(p, p + o) for p, o in zip(padding, out, strict=True))]


def _gather_pairs(
    rows: Array,
    zero_points: tuple[int, Array],
    weight: Array,
    geometry: Geometry,
    out: Ints,
    way: Sums,
) -> npt.NDArray[np.int32]:
    """Return saturating sums (*out, channels) of one image (..., inputs) and one group.

    Each output pixel sees, at every tap of the kernel in reading order, the input that this tap
    moves to it, or padding.
    """
    kernel, stride, padding, _, dilation = geometry
    position = np.unravel_index(np.arange(int(np.prod(out))), out)
    seen = np.empty((position[0].size, rows.shape[-1], int(np.prod(kernel))), np.uint8)
    inside = np.empty(seen.shape, bool)
    for number, tap in enumerate(np.ndindex(*kernel)):
        axes = zip(position, tap, padding, dilation, strict=True)
        distance = [o + p - k * d for o, k, p, d in axes]
        index = [at // s for at, s in zip(distance, stride, strict=True)]
        limits = zip(distance, index, stride, rows.shape, strict=False)
        hit = np.all([(at % s == 0) & (i >= 0) & (i < n) for at, i, s, n in limits], axis=0)
        near = tuple(np.clip(i, 0, n - 1) for i, n in zip(index, rows.shape, strict=False))
        seen[..., number] = np.where(hit[:, np.newaxis], rows[near], zero_points[0])
        inside[..., number] = hit[:, np.newaxis]
    factor = weight.reshape(rows.shape[-1], -1, weight.shape[-1]).transpose(2, 0, 1)
    in_taps = way is Sums.PAIRED_IN_TAPS
    feed, some = (in_pairs(part, in_taps)[:, np.newaxis] for part in (seen, inside))
    matrix = in_pairs(factor, in_taps)[np.newaxis]
    left_out = some[:, 0] if way.leaves_out_padding else None
    total = dot_saturating(feed, zero_points[0], matrix, zero_points[1], left_out)
    return total.reshape(*out, -1)


def plan(
    op: str, x: QTensor, weight: QTensor, geometry: Geometry, groups: int, target: Target
) -> tuple[Stage, Sums]:
    """Return the output stage, and how products are added.

    Refuse what the engine does not take or computes wrongly.
    """
    extra = geometry.output_padding
    target = resolve(target, weight, groups, transposed=True, output_padding=extra)
    planner = requantize.stage_for(op, PLANS, target)
    return planner(op, x, weight, geometry, groups, target)


def _check_per_tensor(op: str, engine: Engine, weight: QTensor) -> None:
    if weight.axis is not None:
        raise UnsupportedError(
            f"{op}: engine {engine} needs a weight quantized per tensor, got per channel"
        )


def _plan_fbgemm(
    op: str, _x: QTensor, weight: QTensor, geometry: Geometry, groups: int, target: Target
) -> tuple[Stage, Sums]:
    _check_per_tensor(op, Engine.FBGEMM, weight)
    inputs, outputs = weight.shape[:2]
    if groups == 1 and _is_undefined(geometry, inputs, outputs):
        raise UnsupportedError(
            f"{op}: torch 2.13's fbgemm computes kernel {geometry.kernel} with {inputs} to "
            f"{outputs} channels wrongly and cannot unpack its weight; its results are not defined"
        )
    return requantize.FLOAT_BIAS, Sums.PAIRED if requantize.saturates(target) else Sums.EXACT


def _plan_qnnpack(
    op: str, _x: QTensor, weight: QTensor, geometry: Geometry, groups: int, _target: Target
) -> tuple[Stage, Sums]:
    if len(geometry.kernel) == 3:
        raise UnsupportedError(
            f"{op}: under qnnpack torch's three-dimensional form reads memory that it did not "
            "write; use engine fbgemm"
        )
    if weight.axis is not None and groups > 1:
        raise UnsupportedError(
            f"{op}: with groups={groups} qnnpack reads past the scales of a weight quantized per "
            "channel; use one per tensor"
        )
    return requantize.INTEGER_BIAS, Sums.EXACT


def _plan_onednn(
    op: str, x: QTensor, weight: QTensor, geometry: Geometry, groups: int, target: Target
) -> tuple[Stage, Sums]:
    check_symmetric(op, weight)
    _check_per_tensor(op, Engine.ONEDNN, weight)
    kernel, stride, padding, extra, dilation = geometry
    if any(extra):
        raise UnsupportedError(f"{op}: engine onednn needs output_padding 0, got {extra}")
    each = weight.shape[0] // groups, weight.shape[1]
    if each[0] != each[1]:
        raise UnsupportedError(
            f"{op}: torch hands oneDNN a weight in the wrong order unless a group has as many "
            f"outputs as inputs, got {each[0]} to {each[1]}; use engine fbgemm"
        )
    out = geometry.out(x.shape[2:])
    saturates = requantize.saturates(target)
    way = Sums.PAIRED_IN_TAPS if saturates else Sums.EXACT
    refused = is_left_to_product if target.isa is Isa.AVX2 else divides
    if refused(kernel, stride, padding, dilation, out, groups, each):
        memory = (x.shape[2:], out, kernel, x.shape[0], x.shape[1], each[0], target.threads)
        if saturates and each[0] > 1 and outgrows_memory(*memory):
            raise UnsupportedError(
                f"{op}: whether oneDNN's GEMM kernel, which saturates, has memory enough for maps "
                f"{format_shape(x.shape)} under kernel {kernel} is not known; use engine fbgemm"
            )
        return requantize.CONVOLUTION_DIVIDED, way
    if x.zero_point != 0 and leaves_gaps(kernel, stride, dilation):
        raise UnsupportedError(
            f"{op}: oneDNN reads memory that it did not write where two rows or planes see no "
            f"input, got stride={stride} for kernel {kernel} with dilation={dilation} and input "
            f"zero point {x.zero_point}"
        )
    if target.isa is Isa.AVX2:
        return requantize.CONVOLUTION_COMBINED, way
    return requantize.CONVOLUTION_SCALED, way


# How each engine rounds, by shape; x86 is one of the others.
PLANS = {
    Engine.FBGEMM: _plan_fbgemm,
    Engine.QNNPACK: _plan_qnnpack,
    Engine.ONEDNN: _plan_onednn,
}


def infer(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    *,
    rank: int,
) -> TensorType:
    """Check operands and attributes; only the batch may be symbolic."""
    op = f"conv_transpose{rank}d"
    check_map(op, x, rank)
    check_weight(op, weight, rank + 2, axis=1)
    least = {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}
    check_axes(op, rank, {**least, "output_padding": (output_padding, 0)})
    inputs, each, *kernel = (size for size in weight.shape if isinstance(size, int))
    if groups < 1 or inputs % groups:
        raise VerifyError(f"{op}: groups must divide {inputs} input channels, got {groups}")
    if x.shape[1] != inputs:
        raise VerifyError(
            f"{op}: weight {format_shape(weight.shape)} needs {inputs} input channels, "
            f"got {x.shape[1]}"
        )
    checks.vector(op, bias, groups * each, "bias")
    geometry = Geometry(tuple(kernel), stride, padding, output_padding, dilation)
    out = geometry.out(x.shape[2:])
    check_out(op, out)
    qparams = checks.output_qparams(op, quint8, scale, zero_point)
    return TensorType(quint8, (x.shape[0], groups * each, *out), qparams)


def _is_undefined(geometry: Geometry, inputs: int, outputs: int) -> bool:
    """Whether fbgemm takes its direct convolution, which torch does not call as it must be."""
    kernel, stride, padding, _, dilation = geometry
    return (
        len(kernel) == 2
        and kernel[0] == 2
        and kernel[1] <= 6
        and set(stride) <= {1, 2}
        and not any(padding)
        and set(dilation) == {1}
        and inputs % 8 == outputs % 8 == 0
    )


def pack(weight: QTensor, *, dilation: Ints, groups: int, **_attributes: Any) -> PackedWeight:
    """Arrange the weight for :func:`kernel`."""
    inputs, each, *taps = weight.shape
    layout = Layout.of(inputs // groups, each, tuple(taps), dilation, groups, True)
    return PackedWeight.of(weight, layout)


def kernel(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` as a convolution of the spread input with the flipped kernel."""
    geometry = Geometry(weight.shape[2:], stride, padding, output_padding, dilation)
    stage, way = plan("conv_transpose", x, weight, geometry, groups, target)
    packed = pack(weight, dilation=dilation, groups=groups)
    window = geometry.window(x.shape[2:])
    y = convolve(x, packed, bias, window, Rounding(scale, zero_point), stage, way)
    return QTensor(y, scale, zero_point)


def engines(rank: int) -> tuple[Engine, ...]:
    """Return the engines whose result is defined."""
    return tuple(e for e in TORCH_ENGINES if rank < 3 or e is not Engine.QNNPACK)


def _cases(rank: int) -> tuple[Case, ...]:
    ones, zeros = (1,) * rank, (0,) * rank
    end = (1, 1, *ones[1:], -1)
    line = QTensor(np.array([3, 5], np.uint8).reshape(end), 0.5, 1)
    pair = QTensor(np.array([1, 2], np.int8).reshape(end), 0.5, 0, None, qint8)
    plain = {"stride": ones, "padding": zeros, "output_padding": zeros, "dilation": ones}
    apart = {
        **plain,
        "stride": (*ones[1:], 2),
        "output_padding": (*zeros[1:], 1),
    }
    rest = {"groups": 1, "scale": 0.25, "zero_point": 10}
    bias = np.array([0.125], np.float32)
    overlapped = np.reshape([12, 18, 18], end)
    spread = np.reshape([12, 14, 14, 18, 10], end)
    cut = {**plain, "padding": (*zeros[1:], 1)}
    why = "the end sees no input"
    defined = engines(rank)
    padded = tuple(e for e in defined if e is not Engine.ONEDNN)
    return (
        Case(
            "ties", (line, pair, bias), {**plain, **rest}, overlapped, "2.5, 8.5 to even", defined
        ),
        Case("stride", (line, pair, None), {**apart, **rest}, spread, why, padded),
        Case(
            "padding", (line, pair, None), {**cut, **rest}, np.reshape([18], end), "cuts", defined
        ),
    )


_STATIC = tuple(
    Op(
        name=f"quantized::conv_transpose{rank}d",
        reference=reference,
        infer=partial(infer, rank=rank),
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        pack=pack,
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qconv.cpp"
            "::PackedConvWeight::apply_impl",
            "pytorch/FBGEMM/src/FbgemmConv.cc::fbgemmConv",
        ),
        cases=_cases(rank),
    )
    for rank in (1, 2, 3)
)

# torch's older names for two of them.
OPS = (
    *_STATIC,
    *(replace(op, name=f"_{op.name}") for op in _STATIC[:2]),
)
