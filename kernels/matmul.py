"""``aten::matmul``, ``aten::bmm`` and ``aten::einsum``: float products of two tensors."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.target import Engine, Target
from refquant.ir.types import Size, TensorType, bool_
from refquant.kernels.checks import broadcast
from refquant.kernels.movement import example
from refquant.kernels.onnx import mlas_gemm, mlas_products
from refquant.kernels.products import (
    check_equal,
    check_float,
    check_rank,
    is_onnxruntimes,
    joined,
    product,
)


def matmul(self: Array, other: Array, target: Target = Target()) -> Array:
    """Return the matrix product; leading dimensions broadcast.

    The order of summation is not torch's; see ``products.py`` for the bound. For engine ort it is
    onnxruntime's of two computed operands.

    Parameters
    ----------
    self : float tensor (..., M, K) or (K,)
        Left operand.
    other : float tensor (..., K, N) or (K,)
        Right operand.

    Returns
    -------
    float tensor (..., M, N)

    Raises
    ------
    VerifyError
        If types or lengths do not fit.

    Examples
    --------
    >>> matmul(np.float32([[1, 2]]), np.float32([[3], [4]]))
    array([[11.]], dtype=float32)
    """
    if is_onnxruntimes(self, target):
        return mlas_products.matmul(self, other)
    return np.asarray(np.matmul(self, other)).astype(self.dtype, copy=False)


def matmul_ort(self: Array, other: Array) -> Array:
    """Compute :func:`matmul` in onnxruntime's order."""
    if self.dtype != np.float32:
        return matmul(self, other)
    return mlas_products.matmul(self, other, mlas_gemm.gemm)


def infer_matmul(self: TensorType, other: TensorType) -> TensorType:
    """Check the inner length and broadcast the outer ones."""
    check_float("matmul", self, other)
    check_rank("matmul", self, 1)
    check_rank("matmul", other, 1)
    inner = other.shape[-2] if other.rank > 1 else other.shape[0]
    check_equal("matmul", "inner length", inner, self.shape[-1])
    rows = self.shape[-2:-1]
    columns = other.shape[-1:] if other.rank > 1 else ()
    outer = broadcast("matmul", self.shape[:-2], other.shape[:-2])
    return TensorType(self.dtype, joined(outer, rows, columns))


def infer_bmm(self: TensorType, mat2: TensorType) -> TensorType:
    """Check that both are batches of matrices."""
    if self.rank != 3 or mat2.rank != 3:
        raise VerifyError(f"bmm: expected two tensors of rank 3, got {self} and {mat2}")
    check_equal("bmm", "batch", mat2.shape[0], self.shape[0])
    return infer_matmul(self, mat2)


def einsum(*tensors: Array, equation: str) -> Array:
    """Return the sum of products that ``equation`` describes, as ``torch.einsum``.

    The order of summation is not torch's; see ``products.py`` for the bound.

    Parameters
    ----------
    *tensors : float or integer tensors of one type
        One for each term of the equation; integers wrap around.
    equation : str
        Such as ``"bij,bjk->bik"``.

    Returns
    -------
    Tensor of that type

    Raises
    ------
    VerifyError
        If a letter stands for two lengths.

    Examples
    --------
    >>> einsum(np.float32([1, 2]), np.float32([3, 4]), equation="i,j->ij")
    array([[3., 4.],
           [6., 8.]], dtype=float32)
    """
    return np.asarray(np.einsum(equation, *tensors, optimize=True))


def infer_einsum(*tensors: TensorType, equation: str) -> TensorType:
    """Find the length of every letter."""
    for x in tensors:
        if x.dtype.is_quantized or x.dtype == bool_ or x.dtype != tensors[0].dtype:
            raise VerifyError(f"einsum: expected numbers of one type, got {x}")
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "." in equation or len(terms) != len(tensors):
        raise VerifyError(f"einsum: {equation!r} does not fit {len(tensors)} tensors")
    lengths: dict[str, Size] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        check_equal("einsum", f"rank of {term!r}", tensor.rank, len(term))
        for letter, length in zip(term, tensor.shape, strict=True):
            known = lengths.setdefault(letter, length)
            if known == 1:
                lengths[letter] = length
            elif length != 1:
                check_equal("einsum", f"length of {letter!r}", length, known)
    if not arrow:
        letters = left.replace(",", "")
        right = "".join(sorted(letter for letter in lengths if letters.count(letter) == 1))
    return TensorType(tensors[0].dtype, tuple(lengths[letter] for letter in right))


_A = example(2, 3)
_V = np.array([1, 0, -1], np.float32)

OPS = (
    product(
        "aten::matmul",
        matmul,
        infer_matmul,
        Case("vector", (_A, _V), {}, [-2, -2], "the vector's dimension disappears"),
        Case("batch", (_A[None], _A.T), {}, [[[5, 14], [14, 50]]], "leading dims broadcast"),
        kernels={Engine.ORT: matmul_ort},
    ),
    product(
        "aten::bmm",
        matmul,
        infer_bmm,
        Case("batch", (_A[None], _A.T[None]), {}, [[[5, 14], [14, 50]]], "matrix by matrix"),
        kernels={Engine.ORT: matmul_ort},
    ),
    product(
        "aten::einsum",
        einsum,
        infer_einsum,
        Case("sum", (_A, _V), {"equation": "ij,j->i"}, [-2, -2], "repeated letters are summed"),
        Case("implicit", (_A, _A), {"equation": "ij,kj"}, [[5, 14], [14, 50]], "without arrow"),
    ),
)
