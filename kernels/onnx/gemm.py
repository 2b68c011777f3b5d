"""``onnx::Gemm``: a product of two computed matrices, scaled, plus another one."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import EVERY_ENGINE, Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType
from refquant.kernels.checks import broadcast
from refquant.kernels.onnx import mlas_gemm, mlas_products
from refquant.kernels.products import check_equal, is_onnxruntimes


def reference(
    A: Array,  # noqa: N803
    B: Array,  # noqa: N803
    C: Array | None = None,  # noqa: N803
    *,
    alpha: float,
    beta: float,
    transA: int,  # noqa: N803
    transB: int,  # noqa: N803
    target: Target = Target(),
) -> Array:
    """Return ``alpha * A @ B + beta * C``; integers wrap.

    For engine ort float32 products are added up in onnxruntime's order, to ``C`` first where
    ``alpha`` and ``beta`` are 1.

    Parameters
    ----------
    A, B : float or integer tensors (M, K), (K, N)
        Transposed before if ``transA``, ``transB``.
    C : tensor of the same type, optional
        Broadcasts to (M, N).
    alpha, beta : float

    Returns
    -------
    tensor (M, N) of the type of ``A``

    Raises
    ------
    VerifyError
        If types or lengths do not fit.

    Examples
    --------
    >>> plain = dict(alpha=1.0, beta=1.0, transA=0, transB=1)
    >>> reference(np.float32([[1, 2]]), np.float32([[3, 4]]), np.float32([0.5]), **plain)
    array([[11.5]], dtype=float32)
    """
    return _gemm(A, B, C, (alpha, beta), (transA, transB), mlas_gemm.reference, target)


def kernel_ort(
    A: Array,  # noqa: N803
    B: Array,  # noqa: N803
    C: Array | None = None,  # noqa: N803
    *,
    alpha: float,
    beta: float,
    transA: int,  # noqa: N803
    transB: int,  # noqa: N803
) -> Array:
    """Compute :func:`reference` for engine ort in compiled loops."""
    compiled = mlas_gemm.gemm
    return _gemm(A, B, C, (alpha, beta), (transA, transB), compiled, Target(Engine.ORT))


def _gemm(
    a: Array,
    b: Array,
    c: Array | None,
    factors: tuple[float, float],
    transposed: tuple[int, int],
    multiply: mlas_products.Multiply,
    target: Target,
) -> Array:
    a, b = (x.T if turned else x for x, turned in zip((a, b), transposed, strict=True))
    alpha, beta = (np.array(factor).astype(a.dtype) for factor in factors)
    added = None if c is None or beta == 0 else c
    if is_onnxruntimes(a, target) and alpha == 1 and beta in (0, 1):
        start = None if added is None else np.broadcast_to(added, (len(a), b.shape[1]))
        if len(a) == 1 and transposed[1]:  # a row times rows: eight sums side by side
            first = None if start is None else start[0]
            return mlas_gemm.dot_products(a[0], b.T, first)[None]
        return mlas_products.product(a, b, start, multiply)
    y = np.matmul(a, b)
    y = y if alpha == 1 else y * alpha
    if added is not None:
        y = y + (added if beta == 1 else beta * added)
    return np.asarray(y).astype(a.dtype, copy=False)


def infer(
    a: TensorType,
    b: TensorType,
    c: TensorType | None = None,
    *,
    alpha: float,
    beta: float,
    transA: int,  # noqa: N803
    transB: int,  # noqa: N803
) -> TensorType:
    """Check types, ranks and lengths."""
    if a.rank != 2 or b.rank != 2 or a.dtype != b.dtype:
        raise VerifyError(f"Gemm: expected two matrices of one type, got {a} and {b}")
    rows, inner = reversed(a.shape) if transA else a.shape
    depth, columns = reversed(b.shape) if transB else b.shape
    check_equal("Gemm", "inner length", depth, inner)
    shape = (rows, columns)
    if c is not None and (c.dtype != a.dtype or broadcast("Gemm", shape, c.shape) != shape):
        raise VerifyError(f"Gemm: C {c} does not broadcast to {rows} x {columns}")
    return TensorType(a.dtype, shape)


_A = np.array([[1, 2], [3, 4]], np.float32)

OPS = (
    Op(
        name="onnx::Gemm",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(EVERY_ENGINE, reference) | {Engine.ORT: kernel_ort},
        source=(
            "onnx/docs/Operators.md::Gemm",
            "onnxruntime/core/providers/cpu/math/gemm.cc::Gemm<float>::ComputeGemm",
        ),
        cases=(
            Case(
                "scaled",
                (_A, _A, np.array([1, 0], np.float32)),
                {"alpha": 2.0, "beta": 0.5, "transA": 1, "transB": 0},
                [[20.5, 28], [28.5, 40]],
                "the row is added to each row",
            ),
            Case(
                "plain",
                (_A, _A, None),
                {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1},
                [[5, 11], [11, 25]],
                "without C",
            ),
        ),
    ),
)
