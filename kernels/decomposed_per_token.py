"""``quantized_decomposed``: a scale and a zero point for each token, a row of the last axis."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import (
    DType,
    TensorType,
    bfloat16,
    bool_,
    element_count,
    float16,
    float32,
    float64,
    int8,
    int64,
    uint8,
    uint16,
)
from refquant.kernels import eager
from refquant.kernels.decomposed import (
    check_count,
    check_operand,
    check_plain,
    check_range,
    check_shape,
    decomposed_op,
    dequantized,
    dequantized_type,
    quantized,
    quantized_type,
)
from refquant.kernels.layout import elementwise


def choose_qparams_per_token(x: Array, dtype: DType) -> tuple[Array, Array]:
    """Choose a symmetric scale for each token: ``max(max(abs(x)), 1e-5) / 127``.

    Parameters
    ----------
    x : tensor of any type but bool, uint16 and float8, (..., n)
        Real values; float16 is widened to float32 after the maximum, bfloat16 stays.
    dtype : DType
        int8.

    Returns
    -------
    scales : tensor (..., 1)
        float32, or float64 or bfloat16 as ``x``. NaN in a token gives NaN.
    zero_points : tensor of the same type and shape
        Zeros.

    Raises
    ------
    VerifyError
        If ``dtype`` is not int8, or a token is empty.

    Examples
    --------
    >>> choose_qparams_per_token(np.float32([[1, -254]]), int8)
    (array([[2.]], dtype=float32), array([[0.]], dtype=float32))
    """
    largest = np.abs(_rows(x)).max(axis=-1, keepdims=True)
    kept = largest.dtype in (float64.storage, bfloat16.storage)
    largest = largest if kept else largest.astype(np.float32)
    scales = eager.div(np.maximum(largest, largest.dtype.type(1e-5)), 127)
    scales = _per_token(scales, x)
    return scales, np.zeros_like(scales)


def choose_qparams_per_token_asymmetric(x: Array, dtype: DType) -> tuple[Array, Array]:
    r"""Choose a scale and a zero point for each token, of the range -128 to 127.

    .. math:: s = \max((hi - lo) / 255, 2^{-23}), \quad
        z = \mathrm{rint}(\mathrm{clamp}(-128 - lo / s)) \text{ or }
        \mathrm{rint}(\mathrm{clamp}(127 - hi / s))

    where the range is widened to hold 0. The first form is taken where
    ``(-128 + lo / s) + (127 + hi / s)`` is positive. Every operation is rounded to the type of
    ``x``.

    Parameters
    ----------
    x : tensor of any type but bool and float8, (..., n)
        Real values; integers count as float32 after their range is taken.
    dtype : DType
        Not used, as in torch.

    Returns
    -------
    scales : float64 (..., 1)
    zero_points : int64 (..., 1)
        NaN gives the smallest int64.

    Raises
    ------
    VerifyError
        If a token is empty.

    Examples
    --------
    >>> choose_qparams_per_token_asymmetric(np.float32([[0, 255]]), int8)
    (array([[1.]]), array([[-128]]))
    """
    zero = x.dtype.type(0)
    low = np.minimum(_rows(x).min(axis=-1, keepdims=True), zero)
    high = np.maximum(_rows(x).max(axis=-1, keepdims=True), zero)
    scale = eager.div(eager.sub(high, low), 255.0)
    scale = np.maximum(scale, scale.dtype.type(2.0**-23))
    below, above = eager.div(low, scale), eager.div(high, scale)
    errors = eager.add(eager.add(below, -128), eager.add(above, 127))
    with np.errstate(invalid="ignore"):
        positive = errors > 0
    zero_point = np.where(positive, eager.sub(-128, below), eager.sub(127, above))
    whole = eager.rint(eager.clamp(zero_point, -128, 127))
    return _per_token(scale.astype(np.float64), x), _per_token(eager.convert(whole, int64), x)


def _rows(x: Array) -> Array:
    """Return tokens; a tensor of rank 0 is a token of one element."""
    return x if x.ndim else x.reshape(1)


def _per_token(values: Array, x: Array) -> Array:
    """Return one value for each token in C order, of rank 0 if ``x`` is."""
    return np.ascontiguousarray(values).reshape((*x.shape[:-1], 1) if x.ndim else ())


def quantize_per_token(
    x: Array, scales: Array, zero_points: Array, quant_min: int, quant_max: int, dtype: DType
) -> Array:
    """Quantize with a scale and a zero point for each token.

    ``clamp(rint(x * (1 / scale) + zero_point))``, every operation rounded to the promoted type:
    the zero point is added *before* rounding, unlike the per-tensor and per-channel ops. Ties go
    to even.

    Parameters
    ----------
    x : tensor (..., n)
        Real values of any type but float8; float16 with float16 scales stays float16.
    scales, zero_points : tensors
        One entry for each token, of a shape that broadcasts to that of ``x``.
    quant_min, quant_max : int
        Range of the result, not empty and within ``dtype``.
    dtype : DType
        uint8, int8, uint16, int16, int32, float8_e5m2 or float8_e4m3fn.

    Returns
    -------
    Tensor of ``dtype``, shape and strides of ``x``
        NaN gives 0 (int32: the smallest value; float8: NaN).

    Raises
    ------
    VerifyError
        If types, the range or the number of scales do not fit.

    Examples
    --------
    >>> x, s, z = np.float32([[0.5], [0.5]]), np.float32([[1], [0.5]]), np.array([[0], [1]])
    >>> quantize_per_token(x, s, z, -128, 127, int8).ravel()
    array([0, 2], dtype=int8)
    """
    q = quantized(x, scales, zero_points, quant_min, quant_max, dtype)
    return elementwise(q, x, scales)


def dequantize_per_token(
    x: Array,
    scales: Array,
    zero_points: Array,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    output_dtype: DType,
) -> Array:
    """Return ``(x - zero_point) * scale`` with a scale and a zero point for each token.

    Parameters
    ----------
    x : integer or float tensor (..., n)
        Quantized values.
    scales, zero_points : tensors
        Of a shape that broadcasts to that of ``x``. Differences and products have promoted
        types; integers wrap.
    quant_min, quant_max, dtype
        As given to quantize; they change nothing and are not checked.
    output_dtype : DType
        To which the product is converted.

    Returns
    -------
    Tensor of ``output_dtype``, shape and strides of ``x``

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> x, s, z = np.int8([[1], [2]]), np.float32([[1], [0.5]]), np.array([[0], [1]])
    >>> dequantize_per_token(x, s, z, -128, 127, int8, float32).ravel()
    array([1. , 0.5], dtype=float32)
    """
    real = dequantized(x, scales, zero_points)
    return elementwise(eager.convert(real, output_dtype), x, zero_points)


# ---- types


def _infer_choose(x: TensorType, dtype: DType) -> tuple[TensorType, TensorType]:
    op = "choose_qparams_per_token"
    if dtype != int8:
        raise VerifyError(f"{op}: dtype must be int8, got {dtype}")
    if x.dtype == uint16:
        raise VerifyError(f"{op}: torch has no absolute value of uint16")
    kind = x.dtype if x.dtype in (float64, bfloat16) else float32
    one = TensorType(kind, _check_tokens(op, x).shape)
    return one, one


def _infer_choose_asymmetric(x: TensorType, dtype: DType) -> tuple[TensorType, TensorType]:
    one = _check_tokens("choose_qparams_per_token_asymmetric", x)
    return TensorType(float64, one.shape), TensorType(int64, one.shape)


def _check_tokens(op: str, x: TensorType) -> TensorType:
    """Check that there is a range to take; return the type of one entry for each token."""
    if x.dtype.is_quantized or x.dtype == bool_ or x.dtype in eager.FLOAT8:
        raise VerifyError(f"{op}: expected a tensor of numbers, got {x.dtype}")
    if x.shape[-1:] == (0,):
        raise VerifyError(f"{op}: expected tokens with elements, got {x}")
    return TensorType(x.dtype, (*x.shape[:-1], 1) if x.rank else ())


def _infer_quantize(
    x: TensorType,
    scales: TensorType,
    zero_points: TensorType,
    quant_min: int,
    quant_max: int,
    dtype: DType,
) -> TensorType:
    op = "quantize_per_token"
    check_range(op, quant_min, quant_max, dtype)
    _check_parameters(op, x, scales, zero_points)
    tokens = element_count(x.shape[:-1])
    check_count(op, tokens, "token", scales=scales, zero_points=zero_points)
    return quantized_type(op, x, scales, zero_points, dtype)


def _check_parameters(op: str, x: TensorType, scales: TensorType, zero_points: TensorType) -> None:
    check_plain(op, x.dtype)
    check_operand(op, scales, "scales")
    check_operand(op, zero_points, "zero_points")
    check_shape(op, x.shape, scales, zero_points)


def _infer_dequantize(
    x: TensorType,
    scales: TensorType,
    zero_points: TensorType,
    quant_min: int,
    quant_max: int,
    dtype: DType,
    output_dtype: DType,
) -> TensorType:
    op = "dequantize_per_token"
    check_plain(op, output_dtype)
    _check_parameters(op, x, scales, zero_points)
    return dequantized_type(op, x, scales, zero_points, output_dtype)


_X = np.array([[0.5, -1.5], [2.5, 0.75]], np.float32)
_Q = np.array([[1, 255], [0, 7]], np.uint8)
_SCALES, _ZEROS = np.array([[1], [0.5]], np.float32), np.array([[1], [0]])
_RANGE = {"quant_min": -128, "quant_max": 127, "dtype": int8}

OPS = (
    decomposed_op(
        "choose_qparams_per_token",
        choose_qparams_per_token,
        _infer_choose,
        Case(
            "tiny",
            (np.array([[0, 0], [1, -254]], np.float32),),
            {"dtype": int8},
            (np.array([[1e-5 / 127], [2]], np.float32), [[0], [0]]),
            "the largest value counts as at least 1e-5",
        ),
    ),
    *(
        decomposed_op(
            name,
            choose_qparams_per_token_asymmetric,
            _infer_choose_asymmetric,
            Case(
                "zero",
                (np.array([[2, 255], [-255, -3], [0, 0]], np.float32),),
                {"dtype": int8},
                ([[1], [1], [2.0**-23]], [[-128], [127], [127]]),
                "the range is widened to hold 0",
            ),
        )
        for name in (
            "choose_qparams_per_token_asymmetric",
            "_choose_qparams_per_token_asymmetric_impl",
        )
    ),
    decomposed_op(
        "quantize_per_token",
        quantize_per_token,
        _infer_quantize,
        Case("ties", (_X, _SCALES, _ZEROS), _RANGE, [[2, 0], [5, 2]], "even after the addition"),
    ),
    decomposed_op(
        "dequantize_per_token",
        dequantize_per_token,
        _infer_dequantize,
        Case(
            "half",
            (_Q, _SCALES, _ZEROS),
            _RANGE | {"dtype": uint8, "output_dtype": float16},
            [[0, 254], [0, 3.5]],
            "rounded to float16 at the end",
        ),
    ),
)
