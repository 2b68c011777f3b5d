"""``_quantized::wrapped_quantized_linear`` and its prepacked form: linears of float tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import DType, TensorType, float32, format_shape, qint8, quint8
from refquant.kernels import (
    checks,
    dequantize,
    quantize_per_tensor,
    quantized_linear,
    requantize,
)

F32 = npt.NDArray[np.float32]
_OP = "wrapped_quantized_linear"


def reference(
    x: F32,
    x_scale: F32,
    x_zero_point: npt.NDArray[np.int32],
    weight: F32,
    weight_scale: F32,
    weight_zero_point: npt.NDArray[np.int32],
    bias: F32,
    output_scale: F32,
    output_zero_point: npt.NDArray[np.int32],
    out_channel: int,
    target: Target = Target(),
) -> F32:
    """Quantize input and weight, do ``quantized::linear``, dequantize.

    ``x`` becomes quint8 and ``weight`` qint8 as by ``aten::quantize_per_tensor``; the product is
    that of the engine, its result has the scale and zero point given for the output.

    Parameters
    ----------
    x : float32 (..., K), rank >= 2
        Real values.
    weight : float32 (N, K)
        Quantized per tensor, anew in each call.
    bias : float32 (N,)
        Added before rounding.
    x_scale, weight_scale, output_scale : float32, one element
        Scales.
    x_zero_point, weight_zero_point, output_zero_point : integers, one element
        Zero points.
    out_channel : int
        N; not read.

    Returns
    -------
    float32 (..., N), contiguous

    Raises
    ------
    VerifyError
        If shapes or dtypes do not fit.
    UnsupportedError
        Where ``quantized::linear`` is refused.

    Examples
    --------
    >>> one, zero = np.float32(0.5), np.int32(0)
    >>> x, w, b = np.float32([[1, 3]]), np.float32([[2, -1]]), np.float32([0.25])
    >>> reference(x, one, zero, w, one, zero, b, one, np.int32(10), 1)
    array([[-1.]], dtype=float32)
    """
    q = _quantized(quantize_per_tensor.reference, x, x_scale, x_zero_point, quint8)
    factor = _quantized(
        quantize_per_tensor.reference, weight, weight_scale, weight_zero_point, qint8
    )
    scale, zero_point = _numbers(output_scale, output_zero_point)
    return dequantize.reference(
        quantized_linear.reference(q, factor, bias, scale, zero_point, target)
    )


def _numbers(scale: Any, zero_point: Any) -> tuple[float, int]:
    return float(np.ravel(scale)[0]), int(np.ravel(zero_point)[0])


def _quantized(
    formula: Callable[..., QTensor], x: F32, scale: Any, zero_point: Any, dtype: DType
) -> QTensor:
    return formula(np.ascontiguousarray(x), *_numbers(scale, zero_point), dtype)


def infer(
    x: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType,
    weight: TensorType,
    weight_scale: TensorType,
    weight_zero_point: TensorType,
    bias: TensorType,
    output_scale: TensorType,
    output_zero_point: TensorType,
    out_channel: int,
) -> TensorType:
    """Check dtypes and shapes; the last size becomes that of the weight."""
    for tensor in (x, weight, bias):
        checks.is_float32(_OP, tensor)
    if x.rank < 2 or weight.rank != 2:
        raise VerifyError(
            f"{_OP}: expected an input of rank >= 2 and a weight of rank 2, got "
            f"{format_shape(x.shape)} and {format_shape(weight.shape)}"
        )
    channels, depth = weight.shape
    if x.shape[-1] != depth:
        raise VerifyError(
            f"{_OP}: input {format_shape(x.shape)} does not end in the {depth} columns of weight"
        )
    checks.vector(_OP, bias, channels, "bias")
    return TensorType(float32, (*x.shape[:-1], channels))


def kernel(
    x: F32,
    x_scale: F32,
    x_zero_point: npt.NDArray[np.int32],
    weight: F32,
    weight_scale: F32,
    weight_zero_point: npt.NDArray[np.int32],
    bias: F32,
    output_scale: F32,
    output_zero_point: npt.NDArray[np.int32],
    out_channel: int,
    target: Target = Target(),
) -> F32:
    """Compute :func:`reference` with the compiled steps."""
    q = _quantized(quantize_per_tensor.kernel, x, x_scale, x_zero_point, quint8)
    factor = _quantized(quantize_per_tensor.kernel, weight, weight_scale, weight_zero_point, qint8)
    scale, zero_point = _numbers(output_scale, output_zero_point)
    return dequantize.kernel(quantized_linear.kernel(q, factor, bias, scale, zero_point, target))


_SCALE, _ZERO = np.float32(0.5), np.int32(0)

_WRAPPED = (
    Op(
        name=f"_quantized::{_OP}",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(requantize.LINEAR, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qlinear.cpp"
            "::wrapped_quantized_linear",
        ),
        cases=(
            Case(
                "tie",
                (
                    np.array([[1, 3]], np.float32),
                    *(np.array([_SCALE]), np.array([_ZERO])),
                    np.array([[2, -1]], np.float32),
                    *(np.array([_SCALE]), np.array([_ZERO])),
                    np.array([0.25], np.float32),
                    *(np.array([_SCALE]), np.array([10], np.int32)),
                ),
                {"out_channel": 1},
                [[-1]],
                "-0.75 is 1.5 steps below 0",
            ),
        ),
    ),
)

# The other form takes the weight packed before; the arithmetic is one.
OPS = (*_WRAPPED, replace(_WRAPPED[0], name="_quantized::_wrapped_quantized_linear_prepacked"))
