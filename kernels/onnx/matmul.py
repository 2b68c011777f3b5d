"""``onnx::MatMul``: matrix products of integers, which torch's linear algebra has not."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.checks import broadcast
from refquant.kernels.onnx.operator import operator
from refquant.kernels.products import check_equal, check_rank, joined


def reference(A: Array, B: Array) -> Array:  # noqa: N803
    """Return the matrix product of integers; sums wrap.

    Parameters
    ----------
    A : int32, int64, uint32 or uint64 tensor (..., M, K)
    B : tensor of the same type (..., K, N)

    Returns
    -------
    tensor (..., M, N) of the type

    Raises
    ------
    VerifyError
        If types or lengths do not fit.

    Examples
    --------
    >>> reference(np.int32([[1, 2]]), np.int32([[3], [4]]))
    array([[11]], dtype=int32)
    """
    return np.asarray(np.matmul(A, B))


def infer(a: TensorType, b: TensorType) -> TensorType:
    """Check the types and the inner length; the outer ones broadcast."""
    if a.dtype != b.dtype or a.dtype.storage.kind not in "iu":
        raise VerifyError(f"MatMul: expected integers of one type, got {a} and {b}")
    check_rank("MatMul", a, 1)
    check_rank("MatMul", b, 1)
    inner = b.shape[-2] if b.rank > 1 else b.shape[0]
    check_equal("MatMul", "inner length", inner, a.shape[-1])
    outer = broadcast("MatMul", a.shape[:-2], b.shape[:-2])
    columns = b.shape[-1:] if b.rank > 1 else ()
    return TensorType(a.dtype, joined(outer, a.shape[-2:-1], columns))


OPS = (
    operator(
        "MatMul",
        reference,
        infer,
        Case(
            "wraps",
            (np.array([[2**30]], np.int32), np.array([[4]], np.int32)),
            {},
            [[0]],
            "sums wrap",
        ),
    ),
)
