"""``quantized_decomposed::*``: quantization on plain integer tensors, as exported graphs do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import ALL_ENGINES, Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.types import DType, TensorType, float32, float64, int8, int64, uint8
from refquant.kernels.layout import elementwise

_SOURCE = "pytorch/torch/ao/quantization/fx/_decomposed.py"


def quantize_per_tensor(
    x: Array, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: DType
) -> Array:
    r"""Quantize to plain integers, one scale for the whole tensor.

    .. math:: q = \mathrm{clamp}(\mathrm{rint}(x \cdot r) + z, q_{min}, q_{max}),
        \quad r = \mathrm{float32}(1 / s)

    The reciprocal is taken in float64 and then rounded, unlike ``aten::quantize_per_tensor``;
    the zero point is added after rounding.

    Parameters
    ----------
    x : float32 tensor
        Real values.
    scale : float
        Real size of one step.
    zero_point : int
        The quantized value that stands for 0.0.
    quant_min, quant_max : int
        Range of the result.
    dtype : DType
        A plain integer type.

    Returns
    -------
    Integer tensor of the shape of ``x``

    Raises
    ------
    VerifyError
        If types or the range do not fit.

    Examples
    --------
    >>> quantize_per_tensor(np.float32([0.5, 1.5]), 1.0, 1, 0, 255, uint8)
    array([1, 3], dtype=uint8)
    """
    return _quantize(x, np.float32(1.0 / scale), zero_point, quant_min, quant_max, dtype)


def _quantize(
    x: Array, inverse: Any, zero_point: Any, quant_min: int, quant_max: int, dtype: DType
) -> Array:
    with np.errstate(invalid="ignore", over="ignore"):
        q = np.clip(np.rint(x * inverse) + zero_point, quant_min, quant_max)
        return elementwise(np.asarray(q).astype(dtype.storage), x)


def quantize_per_tensor_tensor(
    x: Array, scale: Array, zero_point: Array, quant_min: int, quant_max: int, dtype: DType
) -> Array:
    """Quantize as the plain overload, with scale and zero point in tensors of one element.

    Examples
    --------
    >>> s, z = np.array([0.5]), np.array([1])
    >>> quantize_per_tensor_tensor(np.float32([1.0]), s, z, 0, 255, uint8)
    array([3], dtype=uint8)
    """
    return quantize_per_tensor(
        x, float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]), quant_min, quant_max, dtype
    )


def dequantize_per_tensor(
    x: Array, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: DType
) -> Array:
    """Return ``(x - zero_point) * scale`` in float32, each operation rounded.

    Parameters
    ----------
    x : integer tensor of ``dtype``
        Quantized values.
    scale, zero_point, quant_min, quant_max : numbers
        As given to quantize; the range changes nothing.
    dtype : DType
        Type of ``x``.

    Returns
    -------
    float32 tensor of the shape of ``x``

    Raises
    ------
    VerifyError
        If types do not fit.

    Examples
    --------
    >>> dequantize_per_tensor(np.uint8([3]), 0.5, 1, 0, 255, uint8)
    array([1.], dtype=float32)
    """
    return elementwise((x.astype(np.float32) - np.float32(zero_point)) * np.float32(scale), x)


def dequantize_per_tensor_tensor(
    x: Array, scale: Array, zero_point: Array, quant_min: int, quant_max: int, dtype: DType
) -> Array:
    """Dequantize as the plain overload, with scale and zero point in tensors of one element.

    Examples
    --------
    >>> s, z = np.array([0.5]), np.array([1])
    >>> dequantize_per_tensor_tensor(np.uint8([3]), s, z, 0, 255, uint8)
    array([1.], dtype=float32)
    """
    return dequantize_per_tensor(
        x, float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]), quant_min, quant_max, dtype
    )


def _along(values: Array, axis: int, rank: int) -> Array:
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def quantize_per_channel(
    x: Array,
    scales: Array,
    zero_points: Array | None,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: DType,
) -> Array:
    """Quantize to plain integers, one scale for each entry of ``axis``.

    ``clamp(rint(x * (1 / scale)) + zero_point)`` in the type of the scales: in float64
    throughout if they are float64.

    Parameters
    ----------
    x : float32 tensor
        Real values.
    scales : float tensor (channels,)
        Real size of one step.
    zero_points : integer tensor (channels,) or None
        None means 0.
    axis : int
        Channel axis.
    quant_min, quant_max : int
        Range of the result.
    dtype : DType
        A plain integer type.

    Returns
    -------
    Integer tensor of the shape of ``x``

    Raises
    ------
    VerifyError
        If types, the range or the number of scales do not fit.

    Examples
    --------
    >>> x, s, z = np.float32([[1], [1]]), np.float32([1, 0.5]), np.array([0, 1])
    >>> quantize_per_channel(x, s, z, 0, -128, 127, int8).ravel()
    array([1, 3], dtype=int8)
    """
    inverse = _along(scales.dtype.type(1) / scales, axis, x.ndim)
    offsets = 0 if zero_points is None else _along(zero_points, axis, x.ndim)
    return _quantize(x, inverse, offsets, quant_min, quant_max, dtype)


def dequantize_per_channel(
    x: Array,
    scales: Array,
    zero_points: Array | None,
    axis: int,
    quant_min: int,
    quant_max: int,
    dtype: DType,
) -> Array:
    """Return ``(x - zero_point) * scale`` with one scale for each entry of ``axis``.

    Computed in the type of the scales and rounded to float32 at the end.

    Parameters
    ----------
    x : integer tensor of ``dtype``
        Quantized values.
    scales, zero_points, axis, quant_min, quant_max
        As given to quantize; the range changes nothing.
    dtype : DType
        Type of ``x``.

    Returns
    -------
    float32 tensor of the shape of ``x``

    Raises
    ------
    VerifyError
        If types or the number of scales do not fit.

    Examples
    --------
    >>> x, s, z = np.int8([[1], [3]]), np.float32([1, 0.5]), np.array([0, 1])
    >>> dequantize_per_channel(x, s, z, 0, -128, 127, int8).ravel()
    array([1., 1.], dtype=float32)
    """
    offsets = 0 if zero_points is None else _along(zero_points, axis, x.ndim)
    difference = (x.astype(np.int64) - offsets).astype(scales.dtype)
    return (difference * _along(scales, axis, x.ndim)).astype(np.float32)


def choose_qparams(
    x: Array, quant_min: int, quant_max: int, eps: float, dtype: DType
) -> tuple[Array, Array]:
    """Choose scale and zero point from the smallest and largest element (affine).

    All arithmetic in float32, as torch's ``determine_qparams``: the range is widened to hold 0,
    ``scale = max((hi - lo) / (quant_max - quant_min), eps)``,
    ``zero_point = clamp(quant_min - rint(lo / scale))``.

    Parameters
    ----------
    x : float32 tensor, not empty
        Real values.
    quant_min, quant_max : int
        Range of the quantized values.
    eps : float
        Smallest scale.
    dtype : DType
        The quantized type.

    Returns
    -------
    scale (float64, one element), zero_point (int64, one element)

    Raises
    ------
    VerifyError
        If the range is empty.

    Examples
    --------
    >>> choose_qparams(np.float32([0, 255]), 0, 255, 1e-7, uint8)
    (array([1.]), array([0]))
    """
    low, high = _range_with_zero(x)
    scale = np.maximum((high - low) / np.float32(quant_max - quant_min), np.float32(eps))
    zero_point = np.clip(quant_min - int(np.rint(low / scale)), quant_min, quant_max)
    return np.array([scale], np.float64), np.array([zero_point], np.int64)


def choose_qparams_symmetric(
    x: Array, quant_min: int, quant_max: int, eps: float, dtype: DType
) -> tuple[Array, Array]:
    """Choose a symmetric scale; the zero point is 0, or 128 for uint8.

    ``scale = max(max(-lo, hi) / ((quant_max - quant_min) / 2), eps)`` in float32.

    Parameters
    ----------
    x : float32 tensor, not empty
        Real values.
    quant_min, quant_max : int
        Range of the quantized values.
    eps : float
        Smallest scale.
    dtype : DType
        The quantized type.

    Returns
    -------
    scale (float64, one element), zero_point (int64, one element)

    Raises
    ------
    VerifyError
        If the range is empty.

    Examples
    --------
    >>> choose_qparams_symmetric(np.float32([-127.5, 3]), -128, 127, 1e-7, int8)
    (array([1.]), array([0]))
    """
    low, high = _range_with_zero(x)
    half = np.float32((quant_max - quant_min) / 2)
    scale = np.maximum(np.maximum(-low, high) / half, np.float32(eps))
    return np.array([scale], np.float64), np.array([128 if dtype == uint8 else 0], np.int64)


def _range_with_zero(x: Array) -> tuple[np.float32, np.float32]:
    zero = np.float32(0)
    return np.minimum(x.min(), zero), np.maximum(x.max(), zero)


def convert_element_type(x: Array, dtype: DType) -> Array:
    """Convert the elements to another plain type.

    Examples
    --------
    >>> convert_element_type(np.float32([1.5]), float64)
    array([1.5])
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return x.astype(dtype.storage)


# ---- types


def _check_range(op: str, quant_min: int, quant_max: int, dtype: DType) -> None:
    if dtype.storage.kind not in "iu" or dtype.is_quantized:
        raise VerifyError(f"{op}: expected a plain integer dtype, got {dtype}")
    limits = np.iinfo(dtype.storage)
    if not limits.min <= quant_min <= quant_max <= limits.max:
        raise VerifyError(f"{op}: range [{quant_min}, {quant_max}] does not fit {dtype}")


def _check_channels(op: str, x: TensorType, scales: TensorType, axis: int) -> None:
    if not -x.rank <= axis < x.rank or scales.shape != (x.shape[axis],):
        raise VerifyError(f"{op}: scales {scales} do not fit axis {axis} of {x}")


def _quantizer(op: str, x: TensorType, quant_min: int, quant_max: int, dtype: DType) -> TensorType:
    if x.dtype != float32:
        raise VerifyError(f"{op}: expected float32, got {x.dtype}")
    _check_range(op, quant_min, quant_max, dtype)
    return TensorType(dtype, x.shape)


def _dequantizer(
    op: str, x: TensorType, quant_min: int, quant_max: int, dtype: DType
) -> TensorType:
    if x.dtype != dtype:
        raise VerifyError(f"{op}: expected {dtype}, got {x.dtype}")
    _check_range(op, quant_min, quant_max, dtype)
    return TensorType(float32, x.shape)


Check = Callable[[str, TensorType, int, int, DType], TensorType]


def _infer_per_tensor(op: str, check: Check) -> Callable[..., TensorType]:
    def infer(
        x: TensorType, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: DType
    ) -> TensorType:
        return check(op, x, quant_min, quant_max, dtype)

    return infer


def _infer_tensor(op: str, check: Check) -> Callable[..., TensorType]:
    def infer(
        x: TensorType,
        scale: TensorType,
        zero_point: TensorType,
        quant_min: int,
        quant_max: int,
        dtype: DType,
    ) -> TensorType:
        return check(op, x, quant_min, quant_max, dtype)

    return infer


def _infer_per_channel(op: str, check: Check) -> Callable[..., TensorType]:
    def infer(
        x: TensorType,
        scales: TensorType,
        zero_points: TensorType | None,
        axis: int,
        quant_min: int,
        quant_max: int,
        dtype: DType,
    ) -> TensorType:
        _check_channels(op, x, scales, axis)
        return check(op, x, quant_min, quant_max, dtype)

    return infer


def _infer_choose(
    x: TensorType, quant_min: int, quant_max: int, eps: float, dtype: DType
) -> tuple[TensorType, TensorType]:
    if x.dtype != float32 or 0 in x.shape:
        raise VerifyError(f"choose_qparams: expected a float32 tensor with elements, got {x}")
    if quant_min >= quant_max:
        raise VerifyError(f"choose_qparams: range [{quant_min}, {quant_max}] is empty")
    return TensorType(float64, (1,)), TensorType(int64, (1,))


def _infer_convert(x: TensorType, dtype: DType) -> TensorType:
    if x.dtype.is_quantized or dtype.is_quantized:
        raise VerifyError(f"convert_element_type: expected plain types, got {x.dtype} to {dtype}")
    return TensorType(dtype, x.shape)


def _op(name: str, reference: Callable[..., Any], infer: Callable[..., Any], *cases: Case) -> Op:
    return Op(
        name=f"quantized_decomposed::{name}",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ALL_ENGINES, reference),
        source=(_SOURCE,),
        cases=cases,
    )


_X = np.array([[0.5, 1.5, -0.5]], np.float32)
_Q = np.array([[1, 255, 0]], np.uint8)
_U8 = {"quant_min": 0, "quant_max": 255, "dtype": uint8}
_I8 = {"quant_min": -128, "quant_max": 127, "dtype": int8}
_ONE = {"scale": 1.0, "zero_point": 1} | _U8
_S, _Z = np.array([1.0]), np.array([1])
_SCALES, _ZEROS = np.array([1, 1, 0.5], np.float32), np.array([0, 1, 0])

OPS = (
    _op(
        "quantize_per_tensor",
        quantize_per_tensor,
        _infer_per_tensor("quantize_per_tensor", _quantizer),
        Case("ties", (_X,), _ONE, [[1, 3, 1]], "even before the zero point is added"),
    ),
    _op(
        "quantize_per_tensor.tensor",
        quantize_per_tensor_tensor,
        _infer_tensor("quantize_per_tensor", _quantizer),
        Case("ties", (_X, _S, _Z), _U8, [[1, 3, 1]], "qparams computed at run time"),
    ),
    _op(
        "dequantize_per_tensor",
        dequantize_per_tensor,
        _infer_per_tensor("dequantize_per_tensor", _dequantizer),
        Case("ends", (_Q,), _ONE, [[0, 254, -1]], "below the zero point"),
    ),
    _op(
        "dequantize_per_tensor.tensor",
        dequantize_per_tensor_tensor,
        _infer_tensor("dequantize_per_tensor", _dequantizer),
        Case("ends", (_Q, _S, _Z), _U8, [[0, 254, -1]], "qparams computed at run time"),
    ),
    _op(
        "quantize_per_channel",
        quantize_per_channel,
        _infer_per_channel("quantize_per_channel", _quantizer),
        Case("columns", (_X, _SCALES, _ZEROS), {"axis": 1} | _I8, [[0, 3, -1]], "ties to even"),
        Case("symmetric", (_X, _SCALES, None), {"axis": 1} | _I8, [[0, 2, -1]], "zero points 0"),
    ),
    _op(
        "dequantize_per_channel",
        dequantize_per_channel,
        _infer_per_channel("dequantize_per_channel", _dequantizer),
        Case("columns", (_Q, _SCALES, _ZEROS), {"axis": 1} | _U8, [[1, 254, 0]], "each its own"),
    ),
    _op(
        "choose_qparams.tensor",
        choose_qparams,
        _infer_choose,
        Case("zero", (_X * 0,), _U8 | {"eps": 0.5}, ([0.5], [0]), "eps is the smallest scale"),
    ),
    _op(
        "choose_qparams_symmetric.tensor",
        choose_qparams_symmetric,
        _infer_choose,
        Case("zero", (_X * 0,), _I8 | {"eps": 0.5}, ([0.5], [0]), "eps is the smallest scale"),
    ),
    _op(
        "convert_element_type.no_fuse",
        convert_element_type,
        _infer_convert,
        Case("wider", (_X,), {"dtype": float64}, [[0.5, 1.5, -0.5]], "exact"),
    ),
)
