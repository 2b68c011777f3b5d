"""``com.microsoft::MatMulIntegerToFloat`` and ``DynamicQuantizeMatMul``: integers to float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, float32
from refquant.kernels.onnx import integer_product as product
from refquant.kernels.onnx import operands
from refquant.kernels.onnx.dynamic_product import DynamicWeight
from refquant.kernels.onnx.dynamic_quantize_linear import kernel as quantize
from refquant.kernels.onnx.dynamic_quantize_linear import reference as quantize_slowly
from refquant.kernels.onnx.kept import KeptArray, pack
from refquant.kernels.onnx.literals import f32, i8, u8
from refquant.kernels.onnx.operands import BYTES, Engines, dtype_in, one_element, same_dtype
from refquant.kernels.requantize import dequantize_constants

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
_INTEGER = "com.microsoft::MatMulIntegerToFloat"
_DYNAMIC = "com.microsoft::DynamicQuantizeMatMul"
_ORT = Target(Engine.ORT)


def reference(
    a: Array,
    b: Array,
    a_scale: Array,
    b_scale: Array,
    a_zero_point: Array | None = None,
    b_zero_point: Array | None = None,
    bias: F32 | None = None,
) -> F32:
    r"""Multiply matrices of integers and scale the sums.

    .. math:: y = f32(f32(acc) \cdot (s_a s_b)) + bias,
              \quad acc = \sum_k (a - z_a)(b - z_b)

    The sum is exact in int32; its conversion, the product of the scales, the product with it and
    the sum with the bias are each rounded to float32. Engines onnx and ort are the same: the
    operator is onnxruntime's own.

    Parameters
    ----------
    a : uint8 or int8 (..., M, K)
        The first matrix.
    b : uint8 or int8 (..., K, N)
        The second one.
    a_scale : float32, one element
        Of the first.
    b_scale : float32, one element or (N,)
        Of the second or of each of its columns.
    a_zero_point, b_zero_point : like ``a`` and ``b``, shapes of the scales, or None
        None means 0.
    bias : float32 (N,) or None
        Added to each row.

    Returns
    -------
    float32 array (..., M, N)

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> half = np.float32(0.5)
    >>> reference(np.uint8([[3, 5]]), np.int8([[1], [2]]), half, half, np.uint8(1))
    array([[2.5]], dtype=float32)
    """
    return _scaled(product.sums, a, b, a_scale, b_scale, a_zero_point, b_zero_point, bias)


def _scaled(
    sums: Callable[..., Array],
    a: Array,
    b: Array,
    a_scale: Array,
    b_scale: Array,
    a_zero_point: Array | None,
    b_zero_point: Array | None,
    bias: F32 | None,
) -> F32:
    zeros = product.row_zero(a_zero_point, a), product.column_zero(b_zero_point)
    total = sums(a, zeros[0], b, zeros[1]).astype(np.float32)
    y: F32 = total * _unit(a_scale, b_scale)
    return y if bias is None else y + bias


def _unit(a_scale: Array, b_scale: Array) -> F32:
    scale = np.asarray(b_scale, np.float32)
    one = np.asarray(a_scale, np.float32).reshape(())
    return np.asarray(one * (scale.reshape(()) if scale.size == 1 else scale), np.float32)


def kernel(
    a: Array,
    b: Array,
    a_scale: Array,
    b_scale: Array,
    a_zero_point: Array | None = None,
    b_zero_point: Array | None = None,
    bias: F32 | None = None,
) -> F32:
    """Compute :func:`reference` with the compiled tile."""
    rows, columns = product.row_zero(a_zero_point, a), product.column_zero(b_zero_point)
    if not product.is_tiled(a, rows, b):
        zeros = a_zero_point, b_zero_point
        return _scaled(product.fast_sums, a, b, a_scale, b_scale, *zeros, bias)
    weight = product.packed_matrix(b, columns, b_scale)
    x, zero = product.rows_of(a, rows)
    scale = float(np.asarray(a_scale).reshape(()))
    lanes = weight.lanes_of_any_input(dequantize_constants, scale, zero, None)
    y = product.tiled(x, weight, lanes, "real", np.float32)
    if bias is not None:
        y += bias  # after the product was rounded
    return y.reshape(*a.shape[:-1], b.shape[1])


def reference_dynamic(
    a: F32,
    b: Array,
    b_scale: Array,
    b_zero_point: Array | None = None,
    bias: F32 | None = None,
) -> F32:
    """Quantize the first matrix by its own range, multiply and scale the sums.

    ``a`` becomes uint8 as by ``onnx::DynamicQuantizeLinear`` under engine ort, then it goes on
    as in ``com.microsoft::MatMulIntegerToFloat``. Engines onnx and ort are the same.

    Parameters
    ----------
    a : float32 (..., M, K)
        The first matrix.
    b, b_scale, b_zero_point, bias
        As for ``com.microsoft::MatMulIntegerToFloat``.

    Returns
    -------
    float32 array (..., M, N)

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> reference_dynamic(np.float32([[51, 255]]), np.int8([[1], [2]]), np.float32(0.5))
    array([[280.5]], dtype=float32)
    """
    q, scale, zero = quantize_slowly(a, _ORT)
    return reference(q, b, scale, b_scale, zero, b_zero_point, bias)


def kernel_dynamic(
    a: F32,
    b: Array,
    b_scale: Array,
    b_zero_point: Array | None = None,
    bias: F32 | None = None,
) -> F32:
    """Compute :func:`reference_dynamic` with the compiled tile."""
    if isinstance(b, KeptArray) and b.ndim == 2 and b.size and a.size:
        weight = DynamicWeight.of(b, b_scale, product.column_zero(b_zero_point))
        start = None
        if bias is not None:
            start = np.ascontiguousarray(np.broadcast_to(bias, (1, b.shape[1])))
        y = weight.product(a.reshape(-1, a.shape[-1]), start)
        return y.reshape(*a.shape[:-1], b.shape[1])
    q, scale, zero = quantize(a, _ORT)
    return kernel(q, b, scale, b_scale, zero, b_zero_point, bias)


def infer(
    a: TensorType,
    b: TensorType,
    a_scale: TensorType,
    b_scale: TensorType,
    a_zero_point: TensorType | None = None,
    b_zero_point: TensorType | None = None,
    bias: TensorType | None = None,
) -> TensorType:
    """Check types and shapes."""
    operands.quantized(_INTEGER, a, a_scale, a_zero_point, "a")
    return _check(_INTEGER, a, b, b_scale, b_zero_point, bias)


def infer_dynamic(
    a: TensorType,
    b: TensorType,
    b_scale: TensorType,
    b_zero_point: TensorType | None = None,
    bias: TensorType | None = None,
) -> TensorType:
    """Check types and shapes."""
    dtype_in(_DYNAMIC, a, (float32,), "a")
    return _check(_DYNAMIC, a, b, b_scale, b_zero_point, bias)


def _check(
    op: str,
    a: TensorType,
    b: TensorType,
    b_scale: TensorType,
    b_zero_point: TensorType | None,
    bias: TensorType | None,
) -> TensorType:
    dtype_in(op, b, BYTES, "b")
    dtype_in(op, b_scale, (float32,), "b_scale")
    same_dtype(op, b_zero_point, b, "b_zero_point")
    product.check_column_parameter(op, b_scale, b.shape, "b_scale")
    product.check_column_parameter(op, b_zero_point, b.shape, "b_zero_point")
    shape = product.product_shape(op, a.shape, b.shape)
    if bias is not None:
        dtype_in(op, bias, (float32,), "bias")
        if bias.shape != shape[-1:]:
            one_element(op, bias, "bias")
    return TensorType(float32, shape)


_F = np.float32
_A, _B = u8([[3, 5]]), i8([[1, 2], [-3, 4]])
_FOLDER = "microsoft/onnxruntime/onnxruntime/contrib_ops/cpu/quantization"

OPS = (
    Op(
        name=_INTEGER,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        pack=pack,
        source=(f"{_FOLDER}/dynamic_quantize_matmul.cc::MatMulIntegerToFloat",),
        cases=(
            Case("plain", (_A, _B, _F(0.5), _F(0.5)), {}, [[-3, 6.5]], "no zero points"),
            Case(
                "columns",
                (_A, _B, _F(0.5), f32([0.5, 1]), np.uint8(1), i8([0, 2]), f32([1, 2])),
                {},
                [[-1.5, 6]],
                "a scale and a zero point of each, and a bias",
            ),
            Case(
                "rounded twice",
                (u8([[3]]), i8([[1]]), _F(0.1), _F(1), None, None, f32([-0.3])),
                {},
                [[_F(3) * _F(0.1) - _F(0.3)]],
                "not fused",
            ),
        ),
    ),
    Op(
        name=_DYNAMIC,
        reference=reference_dynamic,
        infer=infer_dynamic,
        kernels=dict.fromkeys(Engines, kernel_dynamic),
        pack=pack,
        source=(f"{_FOLDER}/dynamic_quantize_matmul.cc::DynamicQuantizeMatMul",),
        cases=(
            Case("plain", (f32([[51, 255]]), _B, _F(0.5)), {}, [[-357, 561]], "scale 1"),
            Case(
                "shifted",
                (f32([[-55, 200]]), _B, f32([0.5, 1]), i8([1, 1]), f32([1, 2])),
                {},
                [[-399, 547]],
                "zero points of both, and a bias",
            ),
        ),
    ),
)
