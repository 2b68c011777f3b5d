"""``onnx::Det``: determinants of square matrices."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.onnx.operator import floating, operator


def reference(x: Array) -> Array:
    """Return the determinant of each matrix.

    By elimination in float64, rounded once; the standard says nothing of the order: compare
    with a tolerance of 1e-6 relative to the product of the lengths of the rows.

    Parameters
    ----------
    x : float tensor (..., n, n)
        Matrices.

    Returns
    -------
    Tensor (...)

    Raises
    ------
    VerifyError
        If the matrices are not square.

    Examples
    --------
    >>> float(reference(np.float32([[2, 1], [1, 3]])))
    5.0
    """
    with np.errstate(all="ignore"):
        return np.asarray(np.linalg.det(x.astype(np.float64))).astype(x.dtype)


def infer(x: TensorType) -> TensorType:
    """Drop the last two lengths."""
    floating("Det", x)
    if x.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise VerifyError(f"Det: expected square matrices, got {x}")
    return TensorType(x.dtype, x.shape[:-2])


OPS = (
    operator(
        "Det",
        reference,
        infer,
        Case("swapped", (np.array([[[0, 2], [4, 0]]], np.float32),), {}, [-8], "the sign"),
        Case("none", (np.zeros((0, 0), np.float32),), {}, 1, "of nothing it is 1"),
    ),
)
