"""``quantized::conv1d``, ``conv2d``, ``conv3d`` and their ``_relu``: uint8 maps, int8 weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.prepared import Operand
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Isa, Target
from refquant.ir.types import QParams, Size, TensorType, format_shape, qint8, quint8
from refquant.kernels import checks, layer, requantize
from refquant.kernels.accumulate import (
    BLOCK,
    Sums,
    blocks,
    dot,
    dot_saturating,
    weight_zero_points,
    windows,
)
from refquant.kernels.convolve import convolve
from refquant.kernels.engines import (
    check_symmetric,
    combines_scales,
    is_left_to_reference,
    is_small_group,
    is_unseen,
    loses_zero_point,
    resolve,
)
from refquant.kernels.layer import Layer
from refquant.kernels.layout import empty_channels_last
from refquant.kernels.packing import Layout, PackedWeight
from refquant.kernels.quantized_linear import check_weight
from refquant.kernels.requantize import Rounding, Stage
from refquant.kernels.walk import Window

F32 = npt.NDArray[np.float32]
Ints = tuple[int, ...]


def out_size(size: Any, kernel: int, stride: int, padding: int, dilation: int) -> Any:
    """Return the length of the output; ``size`` may be symbolic where the arithmetic is exact.

    Examples
    --------
    >>> out_size(224, kernel=7, stride=2, padding=3, dilation=1)
    112
    """
    return (size + (2 * padding - dilation * (kernel - 1) - 1 + stride)) // stride


class Geometry(NamedTuple):
    """Attributes of a convolution, one entry per spatial axis."""

    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int

    def out(self, sizes: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the size of the output map."""
        attributes = zip(sizes, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return tuple(out_size(*axis) for axis in attributes)

    def window(self, sizes: Ints) -> Window:
        """Return how outputs look at inputs of a map of ``sizes``."""
        kernel, stride, padding, dilation, _ = self
        return Window(kernel, stride, dilation, padding, (1,) * len(kernel), self.out(sizes))

    def saturates(self, inputs: int, outputs: int) -> bool:
        """Whether fbgemm takes its depthwise kernel, which adds products in pairs of 16 bits."""
        kernel = self.kernel
        return (
            len(kernel) > 1
            and self.groups == inputs
            and outputs in (inputs, 2 * inputs)
            and inputs % 8 == 0
            and set(kernel) <= {3, 5, 7}
            and kernel[-1] == kernel[-2]
            and all(p == (k - 1) // 2 for p, k in zip(self.padding, kernel, strict=True))
            and set(self.dilation) == {1}
            and set(self.stride) <= {1, 2}
        )


def reference(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    r"""Convolve (cross-correlate), add the bias and requantise.

    .. math:: acc_o = \sum_{c, k} (x_{c, o \cdot stride + k \cdot dilation - padding} - z_x)
              (w_{o, c, k} - z_w)

    is an exact int32 sum in which positions outside the map are real 0; it is rounded as in
    ``quantized::linear``: per tensor weight ``v = fma(bias, 1 / a, float(acc))``, per channel
    ``v = float(acc) + bias / a``, then ``rint(v * (a / scale)) + zero_point`` clamped to
    [0, 255], with relu to [zero_point, 255].

    **Depthwise exception.** fbgemm's depthwise kernel sums *pairs* of neighbouring taps (in
    reading order, a last odd tap alone) of the raw bytes and saturates each pair to int16 before
    anything else, on every machine:

    .. math:: acc = \sum_i \mathrm{sat}_{16}(x_{2i} w_{2i} + x_{2i+1} w_{2i+1})
              - z_x \sum w - z_w \sum x + z_x z_w K

    It is taken for 2 or 3 spatial axes when groups = input channels, output channels = groups or
    2 groups, groups % 8 = 0, kernel sizes in {3, 5, 7} with the last two equal, padding
    (k - 1) / 2, dilation 1 and strides 1 or 2. No pair saturates while all inputs are <= 127.
    qnnpack has no such exception; it rounds as its ``quantized::linear``, but multiplies in
    float64 in three dimensions when the kernel is 3x3x3 and each group has one input and one
    output channel.

    **onednn** rounds as its ``quantized::linear``, with the weight's scales as they are, not
    inverted twice. Dilated depthwise convolutions in three dimensions run on a kernel that
    multiplies the two scales first: ``float(acc) * (s_x' * s_w) + bias``.

    **x86** is onednn for up to 100 groups and weight zero points 0, otherwise fbgemm; without
    VNNI it is always fbgemm.

    **Without VNNI** (``target.isa`` avx512 or avx2; not qnnpack) every layer saturates in pairs.
    fbgemm's are neighbours in reading order of the taps, in each tap the inputs of the group, and
    an odd number of inputs makes pairs across taps; padding multiplies as :math:`z_x`. oneDNN's
    are inputs of one tap, an odd one alone, and padding is left out. Two of its kernels differ:
    GEMM (depthwise in 3-D under avx512) pairs taps and leaves out padding; the reference (avx2:
    groups whose channels are no multiples of four, depthwise in 3-D) is exact and divides by
    ``s'``. The others under avx2 multiply the two scales first.

    Parameters
    ----------
    x : quint8 (N, C, ...)
        Quantized per tensor, one to three spatial axes.
    weight : qint8 (OC, C / groups, ...)
        Quantized per tensor, or per channel along axis 0; zero points may differ from 0 (under
        onednn they must be 0).
    bias : float32 (OC,) or None
        Added before rounding.
    stride, padding, dilation : tuple of int
        One entry per spatial axis; padding is added on both sides.
    groups : int
        Channels are split into groups that do not see each other.
    scale, zero_point : float, int
        Quantization parameters of the result.

    Returns
    -------
    QTensor, quint8 (N, OC, ...), channels-last memory whatever the input's
        Where ``|v * a / scale|`` reaches 2**31 the conversion to int32 overflows and gives the
        lower bound.

    Raises
    ------
    VerifyError
        If shapes, dtypes or attributes do not fit.
    UnsupportedError
        Where torch's result is not defined: for fbgemm's depthwise kernel
        in 3-D if the output's depth or height is below the padding, because it writes past its
        memory there; under onednn if along the last axis every output lies in the padding, which
        gives wrong results or ends the process, and if a group has one input and several output
        channels, where some shapes give wrong sums; for some depthwise layers with kernels of
        height (and depth) 1 (``engines.loses_zero_point``); and for small groups that make maps
        of width 1 with kernels of width 1, where oneDNN's choice of a kernel is not known.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[3, 5, 0]]]), 0.5, 1)
    >>> w = QTensor(np.int8([[[1, 2]]]), 0.5, 0, None, qint8)
    >>> reference(x, w, None, (1,), (1,), (1,), 1, 0.25, 10).int_repr
    array([[[14, 20, 12,  9]]], dtype=uint8)
    """
    geometry = Geometry(weight.shape[2:], stride, padding, dilation, groups)
    return _exact(x, weight, bias, geometry, Rounding(scale, zero_point, 0), target)


def reference_relu(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Do :func:`reference` clamped to [zero_point, 255]: negative results become real 0."""
    geometry = Geometry(weight.shape[2:], stride, padding, dilation, groups)
    return _exact(x, weight, bias, geometry, Rounding(scale, zero_point, zero_point), target)


def _exact(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    geometry: Geometry,
    rounding: Rounding,
    target: Target,
) -> QTensor:
    stage, way = plan("conv", x, weight, geometry, target)
    channels = weight.shape[0]
    constants = stage.constants(float(x.scale), weight.scale, rounding.scale, bias, channels)
    y = empty_channels_last((x.shape[0], channels, *geometry.out(x.shape[2:])), np.uint8)
    for image, part, total in sums(x, weight, geometry, way):
        rows = np.moveaxis(y[image], 0, -1).reshape(-1, channels)
        rows[part] = stage.finish(total, constants, rounding)
    return QTensor(y, rounding.scale, rounding.zero_point)


def sums(
    x: QTensor, weight: QTensor, geometry: Geometry, way: Sums
) -> Iterator[tuple[int, slice, npt.NDArray[np.int32]]]:
    """Yield an image, some of its output pixels and their sums (pixels, channels)."""
    channels, out = weight.shape[0], geometry.out(x.shape[2:])
    size = BLOCK // max(x.shape[1] * int(np.prod(geometry.kernel)), channels)
    for image in range(x.shape[0]):
        for part in blocks(int(np.prod(out)), size):
            yield image, part, pixel_sums(x, weight, geometry, way, image, part)


def pixel_sums(
    x: QTensor, weight: QTensor, geometry: Geometry, way: Sums, image: int, part: slice
) -> npt.NDArray[np.int32]:
    """Return the sums (pixels, channels) of some output pixels of an image."""
    kernel, stride, padding, dilation, groups = geometry
    inputs, channels, zero = x.shape[1], weight.shape[0], int(x.zero_point)
    factor = weight.int_repr.reshape(groups, channels // groups, inputs // groups, -1)
    weight_zero = weight_zero_points(weight, channels)
    walk = (geometry.out(x.shape[2:]), kernel, stride, padding, dilation)
    seen = windows(x.int_repr[image], part, *walk, zero)
    split = seen.reshape(len(seen), groups, inputs // groups, -1)
    if way is Sums.EXACT:
        flat = factor.reshape(groups, channels // groups, -1)
        return dot(split.reshape(*split.shape[:2], -1), zero, flat, weight_zero)
    in_taps, inside = way is Sums.PAIRED_IN_TAPS, None
    if way.leaves_out_padding:
        ones = np.ones((inputs // groups, *x.shape[2:]), np.uint8)
        inside = in_pairs(windows(ones, part, *walk, 0), in_taps) > 0
    pairs = in_pairs(split, in_taps), in_pairs(factor, in_taps)
    return dot_saturating(pairs[0], zero, pairs[1], weight_zero, inside)


def in_pairs(x: npt.NDArray[Any], in_taps: bool) -> npt.NDArray[Any]:
    """Order (..., inputs, taps) as multiplied: tap by tap, its inputs side by side.

    Pairs ``in_taps`` do not reach from one tap into the next: an odd input stands beside 0.

    Examples
    --------
    >>> x = np.array([[1, 2], [3, 4], [5, 6]])
    >>> in_pairs(x, False), in_pairs(x, True)
    (array([1, 3, 5, 2, 4, 6]), array([1, 3, 5, 0, 2, 4, 6, 0]))
    """
    taps = x.swapaxes(-1, -2)
    if in_taps and taps.shape[-1] % 2:
        taps = np.concatenate((taps, np.zeros_like(taps[..., :1])), -1)
    return taps.reshape(*taps.shape[:-2], -1)


def plan(
    op: str, x: QTensor, weight: QTensor, geometry: Geometry, target: Target
) -> tuple[Stage, Sums]:
    """Return the output stage, and how products are added."""
    target = resolve(target, weight, geometry.groups, transposed=False)
    planner = requantize.stage_for(op, PLANS, target)
    return planner(op, x, weight, geometry, target)


def _plan_fbgemm(
    op: str, x: QTensor, weight: QTensor, geometry: Geometry, target: Target
) -> tuple[Stage, Sums]:
    shape = x.shape
    depthwise = geometry.saturates(shape[1], weight.shape[0])
    out = geometry.out(shape[2:])
    below = any(n < p for n, p in zip(out[:2], geometry.padding[:2], strict=True))
    if len(out) == 3 and depthwise and below:
        raise UnsupportedError(
            f"{op}: torch's depthwise kernel corrupts memory where the output's depth or height "
            f"is below the padding, got {format_shape(out)} with padding={geometry.padding}"
        )
    paired = depthwise or requantize.saturates(target)
    return requantize.FLOAT_BIAS, Sums.PAIRED if paired else Sums.EXACT


def _plan_qnnpack(
    _op: str, x: QTensor, weight: QTensor, geometry: Geometry, _target: Target
) -> tuple[Stage, Sums]:
    depthwise = geometry.groups == x.shape[1] == weight.shape[0]
    if depthwise and geometry.kernel == (3, 3, 3):
        return requantize.INTEGER_BIAS_WIDE, Sums.EXACT
    return requantize.INTEGER_BIAS, Sums.EXACT


def _plan_onednn(
    op: str, x: QTensor, weight: QTensor, geometry: Geometry, target: Target
) -> tuple[Stage, Sums]:
    shape = x.shape
    kernel, stride, padding, dilation, groups = geometry
    check_symmetric(op, weight)
    each = shape[1] // groups, weight.shape[0] // groups
    if groups > 1 and each[0] == 1 < each[1]:
        raise UnsupportedError(
            f"{op}: oneDNN's depth multiplier is wrong for some shapes, got groups={groups} with "
            f"{weight.shape[0]} output channels; use as many as groups, or engine fbgemm"
        )
    axes = (shape[2:], geometry.out(shape[2:]), kernel, stride, padding, dilation)
    size, out, *last = (values[-1] for values in axes)
    if is_unseen(size, out, *last):
        raise UnsupportedError(
            f"{op}: oneDNN computes wrongly, or ends the process, where no output sees an input "
            f"along the last axis, got {size} inputs with padding={padding} and stride={stride}"
        )
    if each != (1, 1) and is_small_group(shape[1], kernel, padding, out, groups):
        raise UnsupportedError(
            f"{op}: which of its kernels oneDNN takes is not known for results of width 1 with "
            f"groups={groups}, {shape[1]} inputs and kernel {kernel}; use engine fbgemm"
        )
    vnni = not requantize.saturates(target)
    if vnni and x.zero_point != 0 and loses_zero_point(kernel, padding, groups, each):
        raise UnsupportedError(
            f"{op}: oneDNN leaves out the input's zero point in some rows of depthwise layers "
            f"with kernel {kernel} and padding={padding}, got zero point {x.zero_point}; use "
            "engine fbgemm, or pad before"
        )
    return ONEDNN_KERNELS.get(target.isa, _usual_kernels)(kernel, dilation, groups, each)


def _usual_kernels(kernel: Ints, dilation: Ints, groups: int, each: Ints) -> tuple[Stage, Sums]:
    if combines_scales(kernel, dilation, groups, each):
        return requantize.CONVOLUTION_COMBINED, Sums.EXACT
    return requantize.CONVOLUTION_SCALED, Sums.EXACT


def _avx512_kernels(kernel: Ints, _dilation: Ints, groups: int, each: Ints) -> tuple[Stage, Sums]:
    """Return what oneDNN does with AVX512 alone: GEMM for depthwise layers in 3-D."""
    if groups > 1 and each == (1, 1) and len(kernel) == 3:
        return requantize.CONVOLUTION_COMBINED, Sums.PAIRED_INSIDE
    return requantize.CONVOLUTION_SCALED, Sums.PAIRED_IN_TAPS


def _avx2_kernels(kernel: Ints, _dilation: Ints, groups: int, each: Ints) -> tuple[Stage, Sums]:
    if is_left_to_reference(kernel, groups, each):
        return requantize.CONVOLUTION_DIVIDED, Sums.EXACT
    return requantize.CONVOLUTION_COMBINED, Sums.PAIRED_IN_TAPS


# How oneDNN rounds and adds on machines without VNNI.
ONEDNN_KERNELS = {Isa.AVX512: _avx512_kernels, Isa.AVX2: _avx2_kernels}


# How each engine rounds, by shape; x86 is one of the others.
PLANS = {
    Engine.FBGEMM: _plan_fbgemm,
    Engine.QNNPACK: _plan_qnnpack,
    Engine.ONEDNN: _plan_onednn,
}


def check_axes(op: str, rank: int, least: dict[str, tuple[Ints, int]]) -> None:
    """Check that each attribute has one whole number per spatial axis, not below its least."""
    for name, (values, smallest) in least.items():
        fits = isinstance(values, tuple) and len(values) == rank
        if not fits or any(not isinstance(v, int) or v < smallest for v in values):
            raise VerifyError(f"{op}: {name} must be {rank} integers >= {smallest}, got {values}")


def check_map(op: str, x: TensorType, rank: int) -> None:
    """Check that the input is a quint8 map with ``rank`` spatial axes."""
    checks.per_tensor(op, x, (quint8,))
    if x.rank != rank + 2:
        raise VerifyError(f"{op}: input must have rank {rank + 2}, got {format_shape(x.shape)}")


def check_out(op: str, out: tuple[Size, ...]) -> None:
    """Check that the output map is not empty."""
    if any(isinstance(size, int) and size < 1 for size in out):
        raise VerifyError(f"{op}: output size must be >= 1, got {format_shape(out)}")


def infer(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    *,
    rank: int,
) -> TensorType:
    """Check operands and attributes; only the batch may be symbolic where sizes change."""
    op = f"conv{rank}d"
    check_map(op, x, rank)
    check_weight(op, weight, rank + 2)
    check_axes(
        op, rank, {"stride": (stride, 1), "padding": (padding, 0), "dilation": (dilation, 1)}
    )
    sizes = [size for size in weight.shape if isinstance(size, int)]
    channels, inputs, *kernel = sizes
    if groups < 1 or channels % groups:
        raise VerifyError(f"{op}: groups must divide {channels} output channels, got {groups}")
    if x.shape[1] != groups * inputs:
        raise VerifyError(
            f"{op}: weight {format_shape(weight.shape)} with groups={groups} needs "
            f"{groups * inputs} input channels, got {x.shape[1]}"
        )
    checks.vector(op, bias, channels, "bias")
    geometry = Geometry(tuple(kernel), stride, padding, dilation, groups)
    out = geometry.out(x.shape[2:])
    check_out(op, out)
    qparams = checks.output_qparams(op, quint8, scale, zero_point)
    return TensorType(quint8, (x.shape[0], channels, *out), qparams)


def pack(weight: QTensor, *, dilation: Ints, groups: int, **_attributes: Any) -> PackedWeight:
    """Arrange the weight for :func:`kernel`."""
    channels, inputs, *taps = weight.shape
    layout = Layout.of(inputs, channels // groups, tuple(taps), dilation, groups, False)
    return PackedWeight.of(weight, layout)


def kernel(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` with the compiled tile."""
    geometry = Geometry(weight.shape[2:], stride, padding, dilation, groups)
    return _tiled(x, weight, bias, geometry, Rounding(scale, zero_point, 0), target)


def kernel_relu(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference_relu` with the compiled tile."""
    geometry = Geometry(weight.shape[2:], stride, padding, dilation, groups)
    return _tiled(x, weight, bias, geometry, Rounding(scale, zero_point, zero_point), target)


def _tiled(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    geometry: Geometry,
    rounding: Rounding,
    target: Target,
) -> QTensor:
    def make(weight: PackedWeight) -> Layer | None:
        packed = pack(weight, dilation=geometry.dilation, groups=geometry.groups)
        return _layer(x, packed, bias, geometry, rounding, target)

    run = layer.ready(x, weight, bias, (geometry, rounding, target), make)
    if run is not None:
        return run(x)
    stage, way = plan("conv", x, weight, geometry, target)
    packed = pack(weight, dilation=geometry.dilation, groups=geometry.groups)
    y = convolve(x, packed, bias, geometry.window(x.shape[2:]), rounding, stage, way)
    return QTensor(y, rounding.scale, rounding.zero_point)


def prepare(
    operands: tuple[Operand, ...],
    attributes: Mapping[str, Any],
    result: TensorType,
    target: Target,
    *,
    relu: bool,
) -> Layer | None:
    """Bind the layer; None where its sums saturate in another way than the tiles'."""
    x, weight, bias = operands
    if not isinstance(x, TensorType) or not isinstance(weight, PackedWeight):
        return None
    axes = (attributes[name] for name in ("stride", "padding", "dilation", "groups"))
    geometry = Geometry(weight.shape[2:], *axes)
    scale, zero_point = result.per_tensor()
    rounding = Rounding(scale, zero_point, zero_point if relu else 0)
    return _layer(layer.stand_in(x), weight, bias, geometry, rounding, target)


def _layer(
    x: QTensor,
    weight: PackedWeight,
    bias: Operand,
    geometry: Geometry,
    rounding: Rounding,
    target: Target,
) -> Layer | None:
    stage, way = plan("conv", x, weight, geometry, target)
    window = geometry.window(x.shape[2:])
    qparams = QParams(rounding.scale, rounding.zero_point)
    result = TensorType(quint8, (x.shape[0], weight.shape[0], *window.out), qparams)
    return layer.prepare(x.type, weight, bias, window, stage, way, rounding, result, target)


def _attributes(rank: int, **changed: Any) -> dict[str, Any]:
    ones = (1,) * rank
    plain = {"stride": ones, "padding": (0,) * rank, "dilation": ones, "groups": 1}
    return {**plain, "scale": 0.25, "zero_point": 10, **changed}


def _cases(rank: int, relu: bool) -> tuple[Case, ...]:
    ones = (1,) * rank
    end = (1, 1, *ones[1:], -1)
    line = QTensor(np.array([3, 5, 0], np.uint8).reshape(end), 0.5, 1)
    pair = QTensor(np.array([1, 2], np.int8).reshape(end), 0.5, 0, None, qint8)
    padding = {"padding": (*(0,) * (rank - 1), 1)}
    padded = np.reshape([14, 20, 12, 10 if relu else 9], end)
    cases = [
        Case("padding", (line, pair, None), _attributes(rank, **padding), padded, "pad is real 0")
    ]
    if relu:
        return tuple(cases)
    bias = np.array([0.125], np.float32)
    tied = np.reshape([20, 12], end)
    cases.append(Case("ties", (line, pair, bias), _attributes(rank), tied, "10.5 and 2.5 to even"))
    shape = (1, 8, *(3,) * rank)
    bright = QTensor(np.full(shape, 255, np.uint8), 1.0, 0)
    strong = QTensor(np.full((8, 1, *shape[2:]), 127, np.int8), 1.0, 0, None, qint8)
    unpadded = _attributes(rank, groups=8, scale=3.0**rank * 255 * 127 / 200, zero_point=0)
    exact = np.full((1, 8, *ones), 200)
    why = "without padding depthwise sums are exact"
    fbgemm = (Engine.FBGEMM,)
    cases.append(Case("depthwise", (bright, strong, None), unpadded, exact, why, fbgemm))
    if rank > 1:
        one = QTensor(np.full((1, 8, *ones), 255, np.uint8), 1.0, 255)
        attributes = _attributes(rank, padding=ones, groups=8, scale=2000.0, zero_point=255)
        lost = 3**rank // 2 * (2 * 255 * 127 - 32767)
        saturated = np.full((1, 8, *ones), 255 - round(lost / 2000))
        why = "every input is real 0, yet each pair of taps saturates"
        cases.append(Case("saturating", (one, strong, None), attributes, saturated, why, fbgemm))
    return tuple(cases)


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qconv.cpp::PackedConvWeight::apply_impl",
    "pytorch/FBGEMM/src/FbgemmConv.cc::fbgemmConv",
    "pytorch/FBGEMM/src/GenerateI8Depthwise.cc::GenI8Depthwise",
)

_STATIC = tuple(
    Op(
        name=f"quantized::conv{rank}d{suffix}",
        reference=formula,
        infer=partial(infer, rank=rank),
        kernels=dict.fromkeys(TORCH_ENGINES, fast),
        pack=pack,
        prepare=partial(prepare, relu=bool(suffix)),
        source=_SOURCE,
        cases=_cases(rank, relu=bool(suffix)),
    )
    for rank in (1, 2, 3)
    for suffix, formula, fast in (("", reference, kernel), ("_relu", reference_relu, kernel_relu))
)

# torch's older names for two of them.
_OLD = {f"quantized::conv2d{suffix}": f"_quantized::conv2d{suffix}" for suffix in ("", "_relu")}
OPS = (*_STATIC, *(replace(op, name=_OLD[op.name]) for op in _STATIC if op.name in _OLD))
