"""``aten::linear``: float matrix product with a transposed weight, plus bias."""

from __future__ import annotations

import numpy as np

from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType
from refquant.kernels.onnx import mlas_gemm, mlas_products
from refquant.kernels.products import (
    check_equal,
    check_float,
    check_rank,
    is_onnxruntimes,
    joined,
    product,
)


def reference(
    x: Array, weight: Array, bias: Array | None = None, target: Target = Target()
) -> Array:
    """Return ``x @ weight.T + bias``.

    The order of summation is not torch's; see ``products.py`` for the bound. For engine ort it is
    onnxruntime's with a constant weight.

    Parameters
    ----------
    x : float tensor (..., K)
        Rows.
    weight : float tensor (N, K)
        One row per output.
    bias : float tensor (N,) or None
        Added last.

    Returns
    -------
    float tensor (..., N)

    Raises
    ------
    VerifyError
        If types or lengths do not fit.

    Examples
    --------
    >>> reference(np.float32([[1, 2]]), np.float32([[3, 4], [5, 6]]), np.float32([0, 1]))
    array([[11., 18.]], dtype=float32)
    """
    if is_onnxruntimes(x, target):
        return mlas_products.linear(x, weight, bias)
    result = x @ weight.T
    return np.asarray(result if bias is None else result + bias)


def kernel_ort(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Compute :func:`reference` in onnxruntime's order."""
    if x.dtype != np.float32:
        return reference(x, weight, bias)
    return mlas_products.linear(x, weight, bias, mlas_gemm.gemm)


def infer(x: TensorType, weight: TensorType, bias: TensorType | None = None) -> TensorType:
    """Check the lengths; the last one becomes the number of outputs."""
    check_float("linear", x, weight, bias)
    check_rank("linear", x, 1)
    check_equal("linear", "number of input features", x.shape[-1], weight.shape[-1])
    if bias is not None:
        check_equal("linear", "length of bias", bias.shape[0], weight.shape[0])
    return TensorType(x.dtype, joined(x.shape[:-1], weight.shape[:-1]))


_W = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
_X = np.array([[[1, -1]]], np.float32)

OPS = (
    product(
        "aten::linear",
        reference,
        infer,
        Case("bias", (_X, _W, np.ones(3, np.float32)), {}, [[[0, 0, 0]]], "leading dims stay"),
        Case("none", (_X[:, :0], _W, None), {}, np.zeros((1, 0, 3)), "no rows"),
        source="Linear",
        kernels={Engine.ORT: kernel_ort},
    ),
)
