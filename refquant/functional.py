"""Quantize, dequantize and fake-quantize arrays, under the names these functions have in torch.

Typed doors to the most used ops; ``refquant.ops`` has every op. Each op's file in
``refquant.kernels`` documents its arithmetic.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import DType
from refquant.kernels.choose_qparams import choose_qparams
from refquant.kernels.dequantize import kernel as dequantize_kernel
from refquant.kernels.min_max import min_max_compiled
from refquant.ops import aten

F32 = npt.NDArray[np.float32]

__all__ = [
    "_choose_qparams_per_tensor",
    "dequantize",
    "fake_quantize_per_channel_affine",
    "fake_quantize_per_tensor_affine",
    "quantize_per_channel",
    "quantize_per_tensor",
    "quantize_per_tensor_dynamic",
]


def quantize_per_tensor(input: F32, scale: float, zero_point: int, dtype: DType) -> QTensor:
    """Quantize with one scale; see ``refquant.kernels.quantize_per_tensor``.

    Parameters
    ----------
    input : float32 array
        Real values.
    scale : float, > 0
        Real size of one step.
    zero_point : int
        The quantized value that stands for 0.0.
    dtype : DType
        quint8, qint8, qint32 or quint4x2.

    Raises
    ------
    VerifyError
        If a dtype or a parameter is not accepted.

    Examples
    --------
    >>> from refquant.ir.types import quint8
    >>> quantize_per_tensor(np.float32([0.5, 1.5]), 1.0, 7, quint8).int_repr
    array([8, 8], dtype=uint8)
    """
    result: QTensor = aten.quantize_per_tensor(input, scale, zero_point, dtype)
    return result


def quantize_per_channel(
    input: F32, scales: npt.ArrayLike, zero_points: npt.ArrayLike, axis: int, dtype: DType
) -> QTensor:
    """Quantize with a scale for each channel; see ``refquant.kernels.quantize_per_channel``.

    Parameters
    ----------
    input : float32 array
        Real values.
    scales, zero_points : arrays, (channels,)
        Float zero points select the embedding formats.
    axis : int
        The channel axis.
    dtype : DType
        quint8, qint8 or qint32; with float zero points quint8, qint8 or quint4x2.

    Raises
    ------
    VerifyError
        If a dtype or a parameter is not accepted.

    Examples
    --------
    >>> from refquant.ir.types import qint8
    >>> quantize_per_channel(np.float32([[0.5], [0.5]]), [1.0, 0.25], [1, 0], 0, qint8).int_repr
    array([[2],
           [2]], dtype=int8)
    """
    result: QTensor = aten.quantize_per_channel(
        input, np.asarray(scales), np.asarray(zero_points), axis, dtype
    )
    return result


def quantize_per_tensor_dynamic(input: F32, dtype: DType, reduce_range: bool) -> QTensor:
    """Quantize with the scale and zero point that cover the data's own range.

    Parameters
    ----------
    input : float32 array, not empty, finite
        Real values.
    dtype : DType
        quint8 or qint8.
    reduce_range : bool
        Choose them for one bit less.

    Raises
    ------
    VerifyError
        If the data has no finite range or the dtype is not accepted.

    Examples
    --------
    >>> from refquant.ir.types import quint8
    >>> quantize_per_tensor_dynamic(np.float32([-1.0, 0.0, 4.0]), quint8, False).int_repr
    array([  0,  51, 255], dtype=uint8)
    """
    result: QTensor = aten.quantize_per_tensor_dynamic(input, dtype, reduce_range)
    return result


def dequantize(tensor: QTensor) -> F32:
    """Return the real values; see ``refquant.kernels.dequantize``.

    Examples
    --------
    >>> dequantize(QTensor(np.uint8([9]), 0.5, 7))
    array([1.], dtype=float32)
    """
    return dequantize_kernel(tensor)


def fake_quantize_per_tensor_affine(
    input: npt.NDArray[np.floating],
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
) -> npt.NDArray[np.floating]:
    """Quantize and dequantize with one scale, staying in floating point.

    Parameters
    ----------
    input : float array
        Real values; the result has this dtype.
    scale, zero_point : numbers
        As for :func:`quantize_per_tensor`.
    quant_min, quant_max : int
        Range of the quantized values.

    Raises
    ------
    VerifyError
        If a dtype or a parameter is not accepted.

    Examples
    --------
    >>> fake_quantize_per_tensor_affine(np.float32([0.3, 9.0]), 0.5, 1, 0, 7)
    array([0.5, 3. ], dtype=float32)
    """
    result: npt.NDArray[np.floating] = aten.fake_quantize_per_tensor_affine(
        input, scale, zero_point, quant_min, quant_max
    )
    return result


def fake_quantize_per_channel_affine(
    input: npt.NDArray[np.floating],
    scale: F32,
    zero_point: npt.NDArray[np.int32] | F32,
    axis: int,
    quant_min: int,
    quant_max: int,
    target: Target = Target(),
) -> npt.NDArray[np.floating]:
    """Quantize and dequantize with a scale for each channel, staying in floating point.

    Parameters
    ----------
    input : float array
        Real values; the result has this dtype.
    scale : float32, (channels,)
        Real size of one step.
    zero_point : int32 or float32, (channels,)
        The quantized value that stands for 0.0.
    axis : int
        The channel axis.
    quant_min, quant_max : int
        Range of the quantized values.
    target : Target
        With float zero points the bits depend on the instruction set.

    Raises
    ------
    VerifyError
        If a dtype or a parameter is not accepted.

    Examples
    --------
    >>> s, z = np.float32([0.5]), np.int32([1])
    >>> fake_quantize_per_channel_affine(np.float32([[0.3, 9.0]]), s, z, 0, 0, 7)
    array([[0.5, 3. ]], dtype=float32)
    """
    result: npt.NDArray[np.floating] = aten.fake_quantize_per_channel_affine(
        input, scale, zero_point, axis, quant_min, quant_max, target=target
    )
    return result


def _choose_qparams_per_tensor(input: F32, reduce_range: bool = False) -> tuple[float, int]:
    """Return the scale and zero point that quint8 dynamic quantization uses.

    Parameters
    ----------
    input : float32 array, not empty, finite
        Real values.
    reduce_range : bool
        Choose them for one bit less.

    Examples
    --------
    >>> _choose_qparams_per_tensor(np.float32([-7.5, 2.0]))
    (0.03725490196078431, 201)
    """
    low, high = min_max_compiled(input)
    return choose_qparams(float(low), float(high), 0, 255, reduce_range)
