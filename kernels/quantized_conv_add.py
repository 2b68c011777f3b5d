"""``quantized::conv2d_add`` and ``conv2d_add_relu``: a convolution that adds to a tensor."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, format_shape, qint8, quint8
from refquant.kernels import checks, quantized_conv, requantize, requantize_jit
from refquant.kernels.convolve import convolution_sums
from refquant.kernels.layout import empty_channels_last
from refquant.kernels.quantized_conv import Geometry
from refquant.kernels.requantize import Rounding
from refquant.kernels.rounding import fma

F32 = npt.NDArray[np.float32]
Ints = tuple[int, ...]
Compute = Callable[..., QTensor]


def reference(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    accumulator: QTensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    target: Target = Target(Engine.ONEDNN),
    compute: Compute | None = None,
) -> QTensor:
    r"""Convolve, add the bias and another tensor, and round once.

    .. math:: v = \mathrm{fma}(a - z_a, s_a', conv)

    where :math:`conv` is the real value before the rounding in oneDNN's ``quantized::conv2d``
    and :math:`a` the other tensor; :math:`s_a'` is ``1 / f32(1 / f32(s_a))``. Then ``v`` is
    requantised as there: ``rint(clamp(v * (1 / s') + z, low, 255))`` with ``low`` 0, with relu
    the zero point. oneDNN's reference kernel, which is left with some shapes where there is no
    VNNI, divides by ``s'`` and rounds product and sum of ``v`` one by one.

    Parameters
    ----------
    x, weight, bias, stride, padding, dilation, groups, scale, zero_point
        As for ``quantized::conv2d``; weight zero points are 0.
    accumulator : quint8, shape of the result
        torch's second argument, ``qaccum``; quantized per tensor, with its own scale. torch
        writes the result into its memory; here it is left as it is.

    Returns
    -------
    QTensor, quint8 (N, OC, H, W), channels-last memory

    Raises
    ------
    VerifyError
        If shapes, dtypes or attributes do not fit.
    UnsupportedError
        Where ``quantized::conv2d`` is refused under onednn.

    Notes
    -----
    torch has it under engine onednn only.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[[3, 5]]]]), 0.5, 1)
    >>> w = QTensor(np.int8([[[[2]]]]), 0.5, 0, None, qint8)
    >>> a = QTensor(np.uint8([[[[7, 8]]]]), 0.25, 8)
    >>> plain = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    >>> reference(x, w, None, a, **plain, scale=0.25, zero_point=10).int_repr
    array([[[[13, 18]]]], dtype=uint8)
    """
    geometry = Geometry(weight.shape[2:], stride, padding, dilation, groups)
    rounding = Rounding(scale, zero_point)
    return (compute or _exact)(x, weight, bias, accumulator, geometry, rounding, target)


def reference_relu(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    accumulator: QTensor,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    scale: float,
    zero_point: int,
    target: Target = Target(Engine.ONEDNN),
    compute: Compute | None = None,
) -> QTensor:
    """Do :func:`reference` clamped to [zero_point, 255]: negative results become real 0."""
    geometry = Geometry(weight.shape[2:], stride, padding, dilation, groups)
    rounding = Rounding(scale, zero_point, zero_point)
    return (compute or _exact)(x, weight, bias, accumulator, geometry, rounding, target)


def _inverted(accumulator: QTensor) -> np.float32:
    return np.float32(requantize.twice_inverted(np.array([accumulator.scale]))[0])


def _exact(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    accumulator: QTensor,
    geometry: Geometry,
    rounding: Rounding,
    target: Target,
) -> QTensor:
    stage, way = quantized_conv.plan("conv2d_add", x, weight, geometry, target)
    channels = weight.shape[0]
    constants = stage.constants(float(x.scale), weight.scale, rounding.scale, bias, channels)
    y = empty_channels_last((x.shape[0], channels, *geometry.out(x.shape[2:])), np.uint8)
    is_reference = requantize.divides(stage)
    step = np.divide if is_reference else np.multiply
    for image, part, total in quantized_conv.sums(x, weight, geometry, way):
        pixels = accumulator.int_repr[image].reshape(channels, -1).T[part]
        shifted = pixels.astype(np.float32) - np.float32(accumulator.zero_point)
        with np.errstate(over="ignore", invalid="ignore"):
            real = requantize.real_values(total, constants)
            if is_reference:
                real = shifted * _inverted(accumulator) + real
            else:
                real = fma(shifted, _inverted(accumulator), real)
            steps = step(real, constants.output)
        rows = np.moveaxis(y[image], 0, -1).reshape(-1, channels)
        rows[part] = requantize.round_clamped(steps, rounding)
    return QTensor(y, rounding.scale, rounding.zero_point)


def infer(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    accumulator: TensorType,
    **attributes: Any,
) -> TensorType:
    """Check operands and attributes; the other tensor has the shape of the result."""
    result = quantized_conv.infer(x, weight, bias, **attributes, rank=2)
    checks.per_tensor("conv2d_add accumulator", accumulator, (quint8,))
    if accumulator.shape != result.shape:
        raise VerifyError(
            f"conv2d_add: accumulator must have the shape of the result, "
            f"{format_shape(result.shape)}, got {format_shape(accumulator.shape)}"
        )
    return result


def _tiled(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    accumulator: QTensor,
    geometry: Geometry,
    rounding: Rounding,
    target: Target,
) -> QTensor:
    """Compute :func:`_exact` from the sums of the compiled tile."""
    stage, way = quantized_conv.plan("conv2d_add", x, weight, geometry, target)
    packed = quantized_conv.pack(weight, dilation=geometry.dilation, groups=geometry.groups)
    total = convolution_sums(x, packed, geometry.window(x.shape[2:]), way)
    total = np.moveaxis(total, 1, -1)
    channels = total.shape[-1]
    constants = stage.constants(float(x.scale), weight.scale, rounding.scale, bias, channels)
    other = np.ascontiguousarray(np.moveaxis(accumulator.int_repr, 1, -1))
    y = np.empty(total.shape, np.uint8)
    _, zero_point, low, high = rounding
    requantize_jit.requantize_added(
        total.reshape(-1, channels),
        other.reshape(-1, channels),
        constants.addend,
        constants.factor,
        constants.multiplier,
        constants.output,
        requantize.divides(stage),
        np.float32(accumulator.zero_point),
        _inverted(accumulator),
        (np.float32(zero_point), np.float32(low), np.float32(high)),
        y.reshape(-1, channels),
    )
    return QTensor(np.moveaxis(y, -1, 1), rounding.scale, zero_point)


_X = QTensor(np.array([[[[3, 5]]]], np.uint8), 0.5, 1)
_WEIGHT = QTensor(np.array([[[[2]]]], np.int8), 0.5, 0, None, qint8)
_OTHER = QTensor(np.array([[[[7, 0]]]], np.uint8), 0.625, 8)
_PLAIN = {
    **{"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1},
    **{"scale": 0.25, "zero_point": 10},
}
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qconv.cpp"
    "::PackedConvWeightsOnednn::apply_impl",
)

OPS = (
    Op(
        name="quantized::conv2d_add",
        reference=reference,
        infer=infer,
        kernels={Engine.ONEDNN: partial(reference, compute=_tiled)},
        pack=quantized_conv.pack,
        source=_SOURCE,
        cases=(
            Case(
                "tie",
                (_X, _WEIGHT, None, _OTHER),
                _PLAIN,
                [[[[12, 0]]]],
                "1 - 0.625 is 1.5 steps: 11.5 goes to 12; 2 - 5 is clamped",
            ),
        ),
    ),
    Op(
        name="quantized::conv2d_add_relu",
        reference=reference_relu,
        infer=infer,
        kernels={Engine.ONEDNN: partial(reference_relu, compute=_tiled)},
        pack=quantized_conv.pack,
        source=_SOURCE,
        cases=(
            Case(
                "negative",
                (_X, _WEIGHT, None, _OTHER),
                _PLAIN,
                [[[[12, 10]]]],
                "2 - 5 is negative",
            ),
        ),
    ),
)
