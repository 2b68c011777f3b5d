"""``com.microsoft::QGemm``: two quantized matrices, maybe transposed, and an int32 addend."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType, float32, format_shape, int32
from refquant.kernels import checks
from refquant.kernels.onnx import integer_product as product
from refquant.kernels.onnx import operands, rescale
from refquant.kernels.onnx.kept import KeptArray, form, pack, unsigned
from refquant.kernels.onnx.literals import f32, i8, i32, u8
from refquant.kernels.onnx.operands import BYTES, Engines, dtype_in, limits_of, scale_of, single
from refquant.kernels.onnx.qlinear_matmul import bound

Array = npt.NDArray[Any]
_OP = "com.microsoft::QGemm"


def reference(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    c: Array | None = None,
    y_scale: Array | None = None,
    y_zero_point: Array | None = None,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Array:
    r"""Multiply matrices, add whole numbers and requantise, or return real values.

    .. math:: acc = \sum_k (a_{mk} - z_a)(b_{kn} - z_b) + c, \quad m = \alpha s_a s_b

    in int32, which wraps; :math:`\alpha s_a` first, and each step rounded to float32. Without
    ``y_scale`` the result is ``float(acc) * m``. With it ``m`` is divided by it and the result
    is that of ``onnx::QLinearMatMul`` under engine ort. ``alpha`` does not multiply ``c``.

    Engines onnx and ort are the same: the operator is onnxruntime's own.

    Parameters
    ----------
    a : uint8 or int8 (M, K)
        The first matrix; (K, M) with ``transA``.
    a_scale, a_zero_point : one element
        Of the first matrix.
    b : uint8 or int8 (K, N)
        The second one; (N, K) with ``transB``.
    b_scale, b_zero_point : one element or (N,)
        Of the second matrix or of each column.
    c : int32 that broadcasts to (M, N), or None
        Added to the sums.
    y_scale, y_zero_point : one element, or both None
        Of the result, whose type is that of ``a``.
    alpha : float
        Factor of the sums.
    transA, transB : int
        Whether a matrix is transposed.

    Returns
    -------
    uint8, int8 or float32 array (M, N)

    Raises
    ------
    VerifyError
        If types or shapes do not fit.
    UnsupportedError
        If there is nothing to sum: onnxruntime's result is then not defined.

    Examples
    --------
    >>> one, a, b = np.float32(1), np.uint8([[3, 5]]), np.int8([[1], [2]])
    >>> reference(a, one, np.uint8(1), b, one, np.int8(0), alpha=0.5)
    array([[5.]], dtype=float32)
    """
    left, right = (a.T if transA else a), (b.T if transB else b)
    _check_depth(left)
    zeros = product.row_zero(a_zero_point, left), product.column_zero(b_zero_point)
    total = product.sums(left, zeros[0], right, zeros[1])
    return _finished(total, c, _unit(a_scale, b_scale, alpha), y_scale, y_zero_point)


def _check_depth(a: Array) -> None:
    if a.shape[1] == 0:
        raise UnsupportedError(f"{_OP}: a {format_shape(a.shape)} has nothing to sum")


def _unit(a_scale: Array, b_scale: Array, alpha: float) -> Array:
    scale = np.asarray(b_scale, np.float32)
    one = np.float32(alpha) * scale_of(a_scale)
    return np.asarray(one * (scale.reshape(()) if scale.size == 1 else scale), np.float32)


def _finished(
    total: Array, c: Array | None, unit: Array, y_scale: Array | None, zero: Array | None
) -> Array:
    if c is not None:
        total = total + c
    if y_scale is None or zero is None:
        return np.asarray(total.astype(np.float32) * unit)
    with np.errstate(all="ignore"):
        m = np.asarray(unit / scale_of(y_scale), np.float32)
    return rescale.clamped(total, m, single(zero), np.asarray(zero).dtype)


def kernel(
    a: Array,
    a_scale: Array,
    a_zero_point: Array,
    b: Array,
    b_scale: Array,
    b_zero_point: Array,
    c: Array | None = None,
    y_scale: Array | None = None,
    y_zero_point: Array | None = None,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Array:
    """Compute :func:`reference` with the compiled tile."""
    left = np.ascontiguousarray(a.T) if transA else a
    right = form(b, "transposed", lambda: _transposed(b)) if transB else b
    _check_depth(left)
    fits = c is None or (c.ndim < 2 and c.size in (1, right.shape[1]))
    if y_scale is not None and y_zero_point is not None and fits:
        bias = None if c is None else np.array(np.broadcast_to(c, right.shape[1:]))
        first = np.asarray(np.float32(alpha) * scale_of(a_scale))
        numbers = (first, a_zero_point, b_scale, b_zero_point, y_scale, y_zero_point)
        run = bound(left, right, bias, *numbers)
        if run is not None:
            dtype = np.asarray(y_zero_point).dtype
            return rescale.as_result(run(unsigned(left, 0)[0]), dtype)
    rows, columns = product.row_zero(a_zero_point, left), product.column_zero(b_zero_point)
    unit = _unit(a_scale, b_scale, alpha)
    total = product.fast_sums(left, rows, right, columns)
    if y_scale is None or y_zero_point is None:
        return _finished(total, c, unit, None, None)
    if c is not None:
        total = total + c
    m = np.asarray(unit / scale_of(y_scale), np.float32)
    dtype = np.asarray(y_zero_point).dtype
    y = np.empty(total.shape, dtype)
    each = np.array(np.broadcast_to(m, total.shape[1:]))
    rescale.fill_clamped(total, each, single(y_zero_point), *limits_of(dtype), y)
    return y


def _transposed(b: Array) -> Array:
    turned = np.ascontiguousarray(np.asarray(b).T)
    return KeptArray.of(turned) if isinstance(b, KeptArray) else turned


def infer(
    a: TensorType,
    a_scale: TensorType,
    a_zero_point: TensorType,
    b: TensorType,
    b_scale: TensorType,
    b_zero_point: TensorType,
    c: TensorType | None = None,
    y_scale: TensorType | None = None,
    y_zero_point: TensorType | None = None,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> TensorType:
    """Check types and shapes."""
    operands.quantized(_OP, a, a_scale, a_zero_point, "a")
    dtype_in(_OP, b, BYTES, "b")
    dtype_in(_OP, b_scale, (float32,), "b_scale")
    operands.same_dtype(_OP, b_zero_point, b, "b_zero_point")
    if a.rank != 2 or b.rank != 2:
        raise VerifyError(f"{_OP}: a and b must have rank 2, got {a} and {b}")
    left = a.shape[::-1] if transA else a.shape
    right = b.shape[::-1] if transB else b.shape
    shape = product.product_shape(_OP, left, right)
    operands.one_or_each(_OP, b_scale, shape[1], "b_scale")
    operands.one_or_each(_OP, b_zero_point, shape[1], "b_zero_point")
    if c is not None:
        dtype_in(_OP, c, (int32,), "c")
        if checks.broadcast(_OP, shape, c.shape) != shape:
            raise VerifyError(f"{_OP}: c must broadcast to {format_shape(shape)}, got {c}")
    if (y_scale is None) != (y_zero_point is None):
        raise VerifyError(f"{_OP}: y_scale and y_zero_point come together or not at all")
    if y_scale is None or y_zero_point is None:
        return TensorType(float32, shape)
    operands.scale(_OP, y_scale, "y_scale")
    operands.one_element(_OP, y_zero_point, "y_zero_point")
    operands.same_dtype(_OP, y_zero_point, a, "y_zero_point")
    return TensorType(a.dtype, shape)


_F = np.float32
_A, _B = u8([[3, 5], [1, 2]]), i8([[1, 2], [-3, 4]])
_QA, _QB = (_A, _F(1), np.uint8(1)), (_B, _F(0.5), np.int8(0))
_Y = (_F(1), np.uint8(20))

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        pack=pack,
        weight=3,
        source=(
            "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/quantization/quant_gemm.cc::QGemm",
        ),
        cases=(
            Case("real", (*_QA, *_QB), {}, [[-5, 10], [-1.5, 2]], "float32 without y_scale"),
            Case("steps", (*_QA, *_QB, None, *_Y), {}, [[15, 30], [18, 22]], "-1.5 to -2"),
            Case(
                "addend",
                (*_QA, *_QB, i32([1, 2]), *_Y),
                {},
                [[16, 31], [19, 23]],
                "of each column; -4.5 to -4",
            ),
            Case(
                "whole addend",
                (*_QA, *_QB, i32([[2], [4]]), *_Y),
                {},
                [[16, 31], [20, 24]],
                "of each row",
            ),
            Case(
                "turned",
                (*_QA, *_QB, None, *_Y),
                {"transA": 1, "transB": 1, "alpha": 2.0},
                [[22, 14], [26, 12]],
                "both matrices transposed",
            ),
            Case(
                "columns",
                (*_QA, _B, f32([1, 2]), i8([0, 1]), None, *_Y),
                {},
                [[10, 48], [17, 26]],
                "a scale and a zero point of each",
            ),
            Case(
                "large",
                (_A, _F(1e9), np.uint8(1), _B, _F(1e9), np.int8(0), None, *_Y),
                {},
                [[0, 255], [0, 255]],
                "beyond int32 saturates",
            ),
        ),
    ),
)
