"""``com.microsoft::QLinearSigmoid`` and ``QLinearLeakyRelu``, by a table of 256 bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType
from refquant.kernels.layout import flat
from refquant.kernels.lookup import look_up
from refquant.kernels.onnx import operands
from refquant.kernels.onnx.literals import i8, u8
from refquant.kernels.onnx.mlas_functions import logistic
from refquant.kernels.onnx.operands import Engines, scale_of, single
from refquant.kernels.onnx.quantize_linear import reference as quantize

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_F = np.float32


def table(
    function: Callable[[F32], F32],
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None,
    dtype: np.dtype[Any],
) -> Array:
    """Return the result for each byte: dequantized, the function, quantized.

    Examples
    --------
    >>> one, entries = np.float32(1), np.dtype(np.uint8)
    >>> table(np.abs, one, np.uint8(3), one, None, entries)[:5]
    array([3, 2, 1, 0, 1], dtype=uint8)
    """
    q = np.arange(256, dtype=np.uint8).view(dtype)
    steps = (q.astype(np.int32) - single(x_zero_point)).astype(np.float32)
    with np.errstate(all="ignore"):
        real = function(scale_of(x_scale) * steps)
    zero = np.zeros((), dtype) if y_zero_point is None else np.asarray(y_zero_point)
    return quantize(real, np.asarray(scale_of(y_scale)), zero.reshape(()))


def looked_up(x: Array, entries: Array) -> Array:
    """Return the entry of each byte."""
    values, into, y = flat(x, x.dtype)
    look_up(values, entries, into)
    return y


def reference_sigmoid(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
) -> Array:
    """Dequantize, take the logistic function and quantize.

    Each of the 256 values is taken once: ``s_x * f32(x - z_x)`` goes through onnxruntime's
    :func:`logistic`, the result is divided by ``y_scale``, limited and rounded half to even as by
    ``onnx::QuantizeLinear``. Engines onnx and ort are the same: the operator is onnxruntime's
    own.

    Parameters
    ----------
    x : uint8 or int8, any shape
        Quantized values.
    x_scale, y_scale : float32, one element
        Of input and result.
    x_zero_point, y_zero_point : like ``x``, one element, or None
        None means 0.

    Returns
    -------
    Array like ``x``

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> reference_sigmoid(np.uint8([3, 9]), np.float32(1), np.uint8(3), np.float32(0.01))
    array([ 50, 100], dtype=uint8)
    """
    entries = table(logistic, x_scale, x_zero_point, y_scale, y_zero_point, x.dtype)
    return entries[x.view(np.uint8)]


def kernel_sigmoid(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
) -> Array:
    """Compute :func:`reference_sigmoid` with vectors of lookups."""
    entries = table(logistic, x_scale, x_zero_point, y_scale, y_zero_point, x.dtype)
    return looked_up(x, entries)


def _leaky(alpha: float) -> Callable[[F32], F32]:
    return lambda v: np.asarray(np.where(v >= 0, v, _F(alpha) * v), np.float32)


def reference_leaky_relu(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    alpha: float = 0.01,
) -> Array:
    """Dequantize, multiply negative values by ``alpha`` and quantize.

    As ``com.microsoft::QLinearSigmoid`` with another function; the product is rounded to float32.

    Parameters
    ----------
    x, x_scale, x_zero_point, y_scale, y_zero_point
        As for ``com.microsoft::QLinearSigmoid``.
    alpha : float
        Slope below 0.

    Returns
    -------
    Array like ``x``

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> one = np.float32(1)
    >>> reference_leaky_relu(np.uint8([3, 9]), one, np.uint8(5), one, np.uint8(7), alpha=0.5)
    array([ 6, 11], dtype=uint8)
    """
    entries = table(_leaky(alpha), x_scale, x_zero_point, y_scale, y_zero_point, x.dtype)
    return entries[x.view(np.uint8)]


def kernel_leaky_relu(
    x: Array,
    x_scale: Array,
    x_zero_point: Array | None,
    y_scale: Array,
    y_zero_point: Array | None = None,
    alpha: float = 0.01,
) -> Array:
    """Compute :func:`reference_leaky_relu` with vectors of lookups."""
    entries = table(_leaky(alpha), x_scale, x_zero_point, y_scale, y_zero_point, x.dtype)
    return looked_up(x, entries)


def check_parameters(
    op: str,
    x: TensorType,
    x_scale: TensorType,
    x_zero_point: TensorType | None,
    y_scale: TensorType,
    y_zero_point: TensorType | None,
) -> None:
    """Check a quantized operand and the parameters of a result of the same type."""
    operands.quantized(op, x, x_scale, x_zero_point, "x")
    operands.scale(op, y_scale, "y_scale")
    operands.one_element(op, y_zero_point, "y_zero_point")
    operands.same_dtype(op, y_zero_point, x, "y_zero_point")


def _infer(op: str) -> Callable[..., TensorType]:
    def infer(
        x: TensorType,
        x_scale: TensorType,
        x_zero_point: TensorType | None,
        y_scale: TensorType,
        y_zero_point: TensorType | None = None,
        alpha: float = 0.01,
    ) -> TensorType:
        check_parameters(op, x, x_scale, x_zero_point, y_scale, y_zero_point)
        return x

    return infer


_FOLDER = "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/quantization"
_X = (u8([0, 5, 255]), _F(0.5), np.uint8(5))
_S = (i8([-128, 0, 127]), _F(0.1), None)

OPS = (
    Op(
        name="com.microsoft::QLinearSigmoid",
        reference=reference_sigmoid,
        infer=_infer("com.microsoft::QLinearSigmoid"),
        kernels=dict.fromkeys(Engines, kernel_sigmoid),
        source=(
            f"{_FOLDER}/qlinear_activations.cc::QLinearSigmoid",
            "microsoft/onnxruntime/onnxruntime/core/mlas/lib/logistic.cpp::MlasComputeLogistic",
        ),
        cases=(
            Case("plain", (*_X, _F(1 / 256), np.uint8(0)), {}, [19, 128, 255], "256 / 2 is 128"),
            Case("signed", (*_S, _F(1 / 256), np.int8(-128)), {}, [-128, 0, 127], "0 to 1"),
            Case("no zero point", (*_S, _F(1 / 64), None), {}, [0, 32, 64], "None is 0"),
        ),
    ),
    Op(
        name="com.microsoft::QLinearLeakyRelu",
        reference=reference_leaky_relu,
        infer=_infer("com.microsoft::QLinearLeakyRelu"),
        kernels=dict.fromkeys(Engines, kernel_leaky_relu),
        source=(f"{_FOLDER}/qlinear_activations.cc::QLinearLeakyRelu",),
        cases=(
            Case("plain", (*_X, _F(1), np.uint8(9)), {"alpha": 0.5}, [8, 9, 134], "-1.25 to -1"),
            Case("ties", (*_X, _F(0.5), np.uint8(9)), {"alpha": 0.5}, [7, 9, 255], "-2.5 to -2"),
            Case("signed", (*_S, _F(0.1), None), {"alpha": 0.25}, [-32, 0, 127], "None is 0"),
        ),
    ),
)
