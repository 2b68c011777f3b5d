"""``onnx::MatMulInteger``: the int32 product of two matrices of bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.types import TensorType, int32
from refquant.kernels.onnx import integer_product as product
from refquant.kernels.onnx.kept import pack
from refquant.kernels.onnx.literals import i8, u8
from refquant.kernels.onnx.operands import BYTES, Engines, dtype_in, same_dtype

Array = npt.NDArray[Any]
_OP = "onnx::MatMulInteger"


def reference(
    a: Array,
    b: Array,
    a_zero_point: Array | None = None,
    b_zero_point: Array | None = None,
) -> Array:
    r"""Multiply matrices of integers less their zero points.

    .. math:: y = \sum_k (a_{mk} - z_{a,m})(b_{kn} - z_{b,n})

    exact in int32, which wraps. Engines onnx and ort are the same.

    Parameters
    ----------
    a : uint8 or int8 (..., M, K)
        The first matrix; leading axes broadcast as in ``numpy.matmul``, vectors too.
    b : uint8 or int8 (..., K, N)
        The second one, of either type.
    a_zero_point : like ``a``: one element, (M,) or (..., M, 1), or None
        Of the whole or of each row; None means 0. onnxruntime takes one element.
    b_zero_point : like ``b``: one element, (N,) or (..., 1, N), or None
        Of the whole or of each column.

    Returns
    -------
    int32 array (..., M, N)

    Raises
    ------
    VerifyError
        If types or shapes do not fit.

    Examples
    --------
    >>> reference(np.uint8([[11, 7, 3]]), np.uint8([[1], [4], [7]]), np.uint8(12))
    array([[-84]], dtype=int32)
    """
    zeros = product.row_zero(a_zero_point, a), product.column_zero(b_zero_point)
    return product.sums(a, zeros[0], b, zeros[1])


def kernel(
    a: Array,
    b: Array,
    a_zero_point: Array | None = None,
    b_zero_point: Array | None = None,
) -> Array:
    """Compute :func:`reference` with the compiled tile."""
    zeros = product.row_zero(a_zero_point, a), product.column_zero(b_zero_point)
    return product.fast_sums(a, zeros[0], b, zeros[1])


def infer(
    a: TensorType,
    b: TensorType,
    a_zero_point: TensorType | None = None,
    b_zero_point: TensorType | None = None,
) -> TensorType:
    """Check types and shapes."""
    for operand, x, zero in (("a", a, a_zero_point), ("b", b, b_zero_point)):
        dtype_in(_OP, x, BYTES, operand)
        same_dtype(_OP, zero, x, f"{operand}_zero_point")
    shape = product.product_shape(_OP, a.shape, b.shape)
    product.check_row_parameter(_OP, a_zero_point, a.shape, "a_zero_point")
    product.check_column_parameter(_OP, b_zero_point, b.shape, "b_zero_point")
    return TensorType(int32, shape)


_A = u8([[11, 7, 3], [10, 6, 2]])
_B = i8([[1, 4], [2, -5], [3, 6]])

OPS = (
    Op(
        name=_OP,
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(Engines, kernel),
        pack=pack,
        source=(
            "onnx/onnx/onnx/reference/ops/op_matmul_integer.py::MatMulInteger",
            "microsoft/onnxruntime/onnxruntime/core/providers/cpu/quantization/"
            "matmul_integer.cc::MatMulInteger",
        ),
        cases=(
            Case("plain", (_A, _B), {}, [[34, 27], [28, 22]], "no zero points"),
            Case(
                "zero points",
                (_A, _B, np.uint8(12), i8([1, 4])),
                {},
                [[-23, 27], [-26, 34]],
                "one of each column",
            ),
            Case(
                "rows",
                (_A, _B, u8([11, 10])),
                {},
                [[-32, -28], [-32, -28]],
                "one of each row",
            ),
            Case(
                "wraps",
                (u8([255] * 33026), u8([255] * 33026)),
                {},
                -2147451646,
                "beyond int32",
            ),
            Case(
                "empty",
                (np.zeros((2, 0), np.uint8), np.zeros((0, 1), np.int8)),
                {},
                [[0], [0]],
                "nothing to add",
            ),
        ),
    ),
)
