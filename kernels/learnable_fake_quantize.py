"""``aten::_fake_quantize_learnable_*``: fake-quants whose scale and zero point are trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, float32, format_shape, int32
from refquant.kernels import rounding
from refquant.kernels.fake_quantize_per_channel import (
    F32,
    check_channels,
    fake_quantize_per_channel,
    fake_quantize_per_channel_compiled,
)
from refquant.kernels.fake_quantize_per_tensor import (
    Array,
    Pair,
    check_float,
    check_range,
    fake_quantize_per_tensor,
    fake_quantize_per_tensor_compiled,
)

PER_TENSOR = "_fake_quantize_learnable_per_tensor_affine"
PER_CHANNEL = "_fake_quantize_learnable_per_channel_affine"


def per_tensor(
    x: Array,
    scale: Array,
    zero_point: Array,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> Array:
    """Fake-quantize with trained qparams, one pair for the whole tensor.

    The zero point, a float, is rounded to even and limited to the range; the rest is
    ``aten::fake_quantize_per_tensor_affine``. The backward pass rounds the zero point differently.

    Parameters
    ----------
    x : float32, float64, float16 or bfloat16, any shape
        Real values.
    scale, zero_point : tensors of rank 1
        Their first elements count, as float32.
    quant_min, quant_max : int
        Range of the quantized values.
    grad_factor : float
        Used by the backward pass only.

    Returns
    -------
    dtype, shape and, where dense, strides of ``x``
        Values on the quantized grid.

    Raises
    ------
    VerifyError
        If the zero point is NaN or the range is empty.

    Examples
    --------
    >>> x, scale, zero_point = np.float32([0.3, -9.0]), np.float32([0.5]), np.float32([1.4])
    >>> per_tensor(x, scale, zero_point, 0, 7)
    array([ 0.5, -0.5], dtype=float32)
    """
    return _per_tensor(fake_quantize_per_tensor, x, scale, zero_point, quant_min, quant_max)


def per_tensor_compiled(
    x: Array,
    scale: Array,
    zero_point: Array,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> Array:
    """Compute :func:`per_tensor`, compiled."""
    function = fake_quantize_per_tensor_compiled
    return _per_tensor(function, x, scale, zero_point, quant_min, quant_max)


def _per_tensor(
    function: Callable[..., Pair],
    x: Array,
    scale: Array,
    zero_point: Array,
    quant_min: int,
    quant_max: int,
) -> Array:
    check_range(PER_TENSOR, quant_min, quant_max)
    rounded = np.rint(np.float32(zero_point[0]))
    z = limited(PER_TENSOR, rounded, quant_min, quant_max)
    return function(x, np.float32(scale[0]), int(z), quant_min, quant_max)[0]


def limited(op: str, zero_point: Array | np.float32, quant_min: int, quant_max: int) -> Array:
    """Limit float32 zero points to the range, which NaN is not in."""
    if np.isnan(zero_point).any():
        raise VerifyError(f"{op}: zero_point must not be NaN")
    return np.clip(zero_point, np.float32(quant_min), np.float32(quant_max))


def per_channel(
    x: Array,
    scale: F32,
    zero_point: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> Array:
    """Fake-quantize with trained qparams, one pair for each channel.

    Zero points are rounded to even and limited to the range; the rest is
    ``aten::fake_quantize_per_channel_affine`` with integer zero points.

    Parameters
    ----------
    x : float32, float64, float16 or bfloat16, any shape
        Real values.
    scale : float32, shape (C,)
        Real size of one step.
    zero_point : float32 or int32, shape (C,)
        The quantized value that stands for 0.0, before rounding.
    axis : int, >= 0
        The channel axis.
    quant_min, quant_max : int
        Range of the quantized values.
    grad_factor : float
        Used by the backward pass only.

    Returns
    -------
    dtype, shape and, where dense, strides of ``x``
        Values on the quantized grid.

    Raises
    ------
    VerifyError
        If a zero point is NaN or the range is empty.

    Examples
    --------
    >>> x, scale = np.float32([0.3, 9.0]), np.float32([0.5, 0.25])
    >>> per_channel(x, scale, np.float32([1.4, 0.5]), 0, 0, 7)
    array([0.5 , 1.75], dtype=float32)
    """
    return _per_channel(
        fake_quantize_per_channel, x, scale, zero_point, axis, quant_min, quant_max
    )


def per_channel_compiled(
    x: Array,
    scale: F32,
    zero_point: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> Array:
    """Compute :func:`per_channel`, compiled."""
    function = fake_quantize_per_channel_compiled
    return _per_channel(function, x, scale, zero_point, axis, quant_min, quant_max)


def _per_channel(
    function: Callable[..., Pair],
    x: Array,
    scale: F32,
    zero_point: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
) -> Array:
    check_range(PER_CHANNEL, quant_min, quant_max)
    rounded = np.rint(zero_point.astype(np.float32))
    z = rounding.to_int64(limited(PER_CHANNEL, rounded, quant_min, quant_max))
    return function(x, scale, z.astype(np.int32), axis, quant_min, quant_max)[0]


# ---- types


def check_vectors(op: str, scale: TensorType, zero_point: TensorType) -> None:
    """Check that scale and zero point are vectors with a first element."""
    for operand, given in (("scale", scale), ("zero_point", zero_point)):
        if given.rank != 1 or given.shape[0] == 0:
            got = format_shape(given.shape)
            raise VerifyError(f"{op}: {operand} must have rank 1 and an element, got {got}")


def _infer_per_tensor(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> TensorType:
    check_float(PER_TENSOR, x)
    check_range(PER_TENSOR, quant_min, quant_max)
    check_vectors(PER_TENSOR, scale, zero_point)
    return x


def _infer_per_channel(
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> TensorType:
    check_float(PER_CHANNEL, x)
    check_range(PER_CHANNEL, quant_min, quant_max)
    check_channels(PER_CHANNEL, x, scale, zero_point, axis)
    if scale.dtype != float32:
        raise VerifyError(f"{PER_CHANNEL}: scale must be float32, got {scale.dtype}")
    if zero_point.dtype not in (float32, int32):
        raise VerifyError(
            f"{PER_CHANNEL}: zero_point must be float32 or int32, got {zero_point.dtype}"
        )
    return x


_X = np.array([0.25, 0.75, -9.0], np.float32)
_HALF = np.array([0.5], np.float32)
_RANGE = {"quant_min": 0, "quant_max": 7}

OPS = (
    Op(
        name=f"aten::{PER_TENSOR}",
        reference=per_tensor,
        infer=_infer_per_tensor,
        kernels=dict.fromkeys(TORCH_ENGINES, per_tensor_compiled),
        source=("pytorch/aten/src/ATen/native/quantized/FakeQuantPerTensorAffine.cpp",),
        cases=(
            Case("tie", (_X, _HALF, _HALF * 5), _RANGE, [0.0, 1.0, -1.0], "2.5 rounds to 2"),
            Case("outside", (_X, _HALF, _HALF * 30), _RANGE, [0, 0, -3.5], "15 becomes 7"),
        ),
    ),
    Op(
        name=f"aten::{PER_CHANNEL}",
        reference=per_channel,
        infer=_infer_per_channel,
        kernels=dict.fromkeys(TORCH_ENGINES, per_channel_compiled),
        source=("pytorch/aten/src/ATen/native/quantized/FakeQuantPerChannelAffine.cpp",),
        cases=(
            Case(
                "tie",
                (_X, _HALF.repeat(3), _HALF.repeat(3) * 5),
                _RANGE | {"axis": 0},
                [0.0, 1.0, -1.0],
                "2.5 rounds to 2",
            ),
        ),
    ),
)
