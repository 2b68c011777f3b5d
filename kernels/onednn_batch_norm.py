"""``onednn::qbatch_norm2d``: pt2e's batch norm of plain uint8 images."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import DType, TensorType, float32, format_shape, uint8
from refquant.kernels import checks
from refquant.kernels.batch_norm import coefficients
from refquant.kernels.jit import fma, jit
from refquant.kernels.layout import empty_channels_last
from refquant.kernels.onednn_arithmetic import check_result
from refquant.kernels.post_ops import check_contiguous
from refquant.kernels.rounding import fma as fused

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_OP = "qbatch_norm2d"
_INT32 = 2.0**31


def reference(
    qx: Array,
    weight: F32,
    bias: F32,
    mean: F32,
    var: F32,
    qx_scale: float,
    qx_zero_point: int,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType,
    target: Target = Target(),
) -> Array:
    r"""Normalise each channel by given statistics.

    .. math:: v = \mathrm{fma}(x - z, \alpha, \beta), \qquad q = \mathrm{rint}(v) + z_o

    with :math:`\alpha` and :math:`\beta` of ``quantized::batch_norm2d``; without vector
    instructions the product is rounded before the sum. A uint8 result is clamped to [0, 255], a
    float result is ``v``, rounded to its dtype.

    Parameters
    ----------
    qx : uint8 (N, C, H, W)
        Images.
    weight, bias, mean, var : float32 (C,)
        Factor, summand and statistics of each channel.
    qx_scale, qx_zero_point : float, int
        Quantization parameters of the images.
    eps : float
        Added to the variance, in float32.
    output_scale, output_zero_point : float, int
        Those of the result; 1 and 0 for a float result.
    output_dtype : DType
        uint8, float32, bfloat16 or float16.

    Returns
    -------
    Array (N, C, H, W), channels-last memory

    Raises
    ------
    VerifyError
        If shapes, dtypes or scales do not fit.
    UnsupportedError
        For vectors with strides, which torch ignores.

    Examples
    --------
    >>> x, one, zero = np.uint8([[[[3, 5]]]]), np.float32([1]), np.float32([0])
    >>> reference(x, one, one, zero, one, 0.5, 1, 0.0, 1.0, 10, uint8)
    array([[[[12, 13]]]], dtype=uint8)
    """
    check_contiguous(_OP, weight=weight, bias=bias, mean=mean, var=var)
    alpha, beta = (
        part.reshape(-1, 1, 1)
        for part in coefficients(weight, bias, mean, var, eps, qx_scale, output_scale)
    )
    distance = qx.astype(np.float32) - np.float32(qx_zero_point)
    real = fused(distance, alpha, beta) if target.fused_multiply_add else distance * alpha + beta
    out = empty_channels_last(qx.shape, output_dtype.storage)
    if output_dtype == uint8:
        whole = np.rint(real).astype(np.float64)
        whole = np.where(np.abs(whole) < _INT32, whole, -_INT32)
        out[...] = np.clip(whole + output_zero_point, 0, 255)
    else:
        out[...] = real.astype(output_dtype.storage)
    return out


def infer(
    qx: TensorType,
    weight: TensorType,
    bias: TensorType,
    mean: TensorType,
    var: TensorType,
    qx_scale: float,
    qx_zero_point: int,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType,
) -> TensorType:
    """Check operands and attributes."""
    if qx.dtype != uint8 or qx.rank != 4:
        raise VerifyError(f"{_OP}: input must be uint8 of rank 4, got {qx}")
    if not isinstance(qx.shape[1], int):
        raise VerifyError(f"{_OP}: channels must be known, got {format_shape(qx.shape)}")
    for name, operand in (("weight", weight), ("bias", bias), ("mean", mean), ("var", var)):
        checks.vector(_OP, operand, qx.shape[1], name)
    check_result(_OP, output_dtype, output_scale, output_zero_point)
    return TensorType(output_dtype, qx.shape)


@jit
def _normalise(x: Array, zero: int, alpha: Array, beta: Array, is_fused: bool, y: Array) -> None:
    for i in range(x.shape[0]):
        for c in range(x.shape[1]):
            distance = np.float32(np.int64(x[i, c]) - zero)
            if is_fused:
                y[i, c] = fma(distance, alpha[c], beta[c])
            else:
                y[i, c] = np.float32(np.float32(distance * alpha[c]) + beta[c])


@jit
def _store(real: Array, zero: int, y: Array) -> None:
    for i in range(real.size):
        whole = np.rint(np.float64(real[i]))
        whole = whole if abs(whole) < 2147483648.0 else -2147483648.0
        y[i] = np.uint8(min(max(whole + zero, 0.0), 255.0))


def kernel(
    qx: Array,
    weight: F32,
    bias: F32,
    mean: F32,
    var: F32,
    qx_scale: float,
    qx_zero_point: int,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    output_dtype: DType,
    target: Target = Target(),
) -> Array:
    """Compute :func:`reference` in compiled loops."""
    check_contiguous(_OP, weight=weight, bias=bias, mean=mean, var=var)
    alpha, beta = coefficients(weight, bias, mean, var, eps, qx_scale, output_scale)
    rows = np.moveaxis(qx, 1, -1)
    flat = np.array(rows, order="C").reshape(-1, qx.shape[1])
    real = np.empty(flat.shape, np.float32)
    _normalise(flat, qx_zero_point, alpha, beta, target.fused_multiply_add, real)
    y = real
    if output_dtype == uint8:
        y = np.empty(flat.shape, np.uint8)
        _store(real.reshape(-1), output_zero_point, y.reshape(-1))
    elif output_dtype != float32:
        y = real.astype(output_dtype.storage)
    return np.moveaxis(y.reshape(rows.shape), -1, 1)


_ONE, _ZERO = np.array([1], np.float32), np.array([0], np.float32)
_X = np.array([[[[3, 5, 2]]]], np.uint8)
_PLAIN = {"qx_scale": 0.5, "qx_zero_point": 1, "eps": 0.0}
_STEPS = {"output_scale": 1.0, "output_zero_point": 11, "output_dtype": uint8}
_REAL = {"output_scale": 1.0, "output_zero_point": 0, "output_dtype": float32}

OPS = (
    Op(
        name="onednn::qbatch_norm2d",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/Normalization.cpp"
            "::int8_batch_norm2d_cpu_impl",
        ),
        cases=(
            Case(
                "ties",
                (_X, _ONE, _ONE, _ZERO, _ONE),
                {**_PLAIN, **_STEPS},
                [[[[13, 14, 13]]]],
                "1.5 to 2, then plus 11",
            ),
            Case(
                "float",
                (_X, _ONE, _ONE, _ZERO, _ONE),
                {**_PLAIN, **_REAL},
                [[[[2, 3, 1.5]]]],
                "not rounded",
            ),
        ),
    ),
)
