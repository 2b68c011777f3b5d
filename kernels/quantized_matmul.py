"""``quantized::matmul``: the product of two quantized tensors, through float32."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, qint8, quint8
from refquant.kernels import checks, dequantize, float_product, matmul, quantize_per_tensor
from refquant.kernels.float_product import SMALL, block_length

F32 = npt.NDArray[np.float32]
Multiply = Callable[[F32, F32, int], F32]


def reference(qa: QTensor, qb: QTensor, scale: float, zero_point: int) -> QTensor:
    r"""Multiply two tensors as real numbers, and quantize the product.

    .. math:: q = Q\Big(\sum_k D(a_k) D(b_k)\Big), \quad D(q) = (q - z) \cdot s

    Both operands are dequantized, multiplied as by ``torch.matmul`` in float32, and quantized as
    by ``aten::quantize_per_tensor``: multiplied by the inverse scale, with the zero point added
    in the same rounding. Products with a power of two as both scales are exact as long as sums
    stay below 2**24 steps.

    The float sum is added up as in ``float_product.py``: as torch does on AMD processors with
    AVX512 on one thread, except for one column of a single matrix. In that case, and on other
    processors or more threads, a result may lie one step beside torch's where the sum lies
    within its rounding error of a tie.

    Parameters
    ----------
    qa, qb : QTensor, both quint8 or both qint8
        Quantized per tensor; shapes as for ``torch.matmul``, leading dimensions broadcast.
    scale : float, > 0
        Scale of the product.
    zero_point : int
        Zero point of the product.

    Returns
    -------
    QTensor of the dtype of the operands, contiguous

    Raises
    ------
    VerifyError
        If dtypes or lengths do not fit, or the output parameters are out of range.

    Notes
    -----
    Every engine gives the same.

    Examples
    --------
    >>> a, b = QTensor(np.uint8([[1, 2]]), 0.5, 0), QTensor(np.uint8([[3], [5]]), 1.0, 1)
    >>> reference(a, b, 1.0, 7).int_repr
    array([[12]], dtype=uint8)
    """
    a, b = dequantize.reference(qa), dequantize.reference(qb)
    total = _matmul(a, b, float_product.product)
    return quantize_per_tensor.reference(total, scale, zero_point, qa.dtype)


def _matmul(a: F32, b: F32, multiply: Multiply) -> F32:
    """Return the product of any shapes as matrices, one or a batch, as torch does."""
    left, right = a.reshape(1, -1) if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b
    outer = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    if right.ndim == 2 and (left.ndim == 2 or _folds(left)):
        y = multiply(_one(left), right[None], 0)
    else:
        y = multiply(_batch(left, outer), _batch(right, outer), SMALL)
    shape = (*outer, *a.shape[-2:-1], *(b.shape[-1:] if b.ndim > 1 else ()))
    return y.reshape(shape)


def _one(x: F32) -> F32:
    return np.ascontiguousarray(x).reshape(1, prod(x.shape[:-1]), x.shape[-1])


def _batch(x: F32, outer: tuple[int, ...]) -> F32:
    matrices = np.broadcast_to(x, (*outer, *x.shape[-2:]))
    return np.ascontiguousarray(matrices).reshape(prod(outer), *x.shape[-2:])


def _folds(a: F32) -> bool:
    """Whether the leading dimensions are one in memory, so that torch sees one matrix."""
    pairs = zip(a.strides[:-2], a.strides[1:-1], a.shape[1:-1], strict=True)
    return a.size == 0 or all(outer == inner * length for outer, inner, length in pairs)


def infer(qa: TensorType, qb: TensorType, scale: float, zero_point: int) -> TensorType:
    """Check dtypes, lengths and output parameters."""
    op = "quantized::matmul"
    for operand in (qa, qb):
        checks.per_tensor(op, operand, (quint8, qint8))
    if qa.dtype != qb.dtype:
        raise VerifyError(f"{op}: dtypes differ: {qa.dtype} and {qb.dtype}")
    real = matmul.infer_matmul(dequantize.infer(qa), dequantize.infer(qb))
    return TensorType(qa.dtype, real.shape, checks.output_qparams(op, qa.dtype, scale, zero_point))


def _compiled(a: F32, b: F32, small: int) -> F32:
    y = np.empty((*a.shape[:2], b.shape[2]), np.float32)
    depth = block_length(a.shape[2])
    float_product.multiply(np.ascontiguousarray(a), np.ascontiguousarray(b), small, depth, y)
    return y


def kernel(qa: QTensor, qb: QTensor, scale: float, zero_point: int) -> QTensor:
    """Compute :func:`reference` with a compiled product."""
    total = _matmul(dequantize.kernel(qa), dequantize.kernel(qb), _compiled)
    return quantize_per_tensor.kernel(total, scale, zero_point, qa.dtype)


def _u8(values: npt.ArrayLike, scale: float, zero_point: int) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), scale, zero_point, None, quint8)


_A, _B = _u8([[1, 2], [3, 0]], 0.5, 1), _u8([[3, 9], [5, 0]], 0.25, 1)
_PRODUCT = {"scale": 0.25, "zero_point": 7}

OPS = (
    Op(
        name="quantized::matmul",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=("pytorch/aten/src/ATen/native/quantized/cpu/qmatmul.cpp::qmatmul",),
        cases=(
            Case("ties", (_A, _B), _PRODUCT, [[9, 6], [7, 16]], "6.5 goes to 6, 15.5 to 16"),
            Case(
                "batch",
                (_u8([[[1, 2]], [[3, 0]]], 0.5, 1), _B),
                _PRODUCT,
                [[[9, 6]], [[7, 16]]],
                "leading dims stay",
            ),
            Case("vector", (_A, _u8([3, 5], 0.25, 1)), _PRODUCT, [9, 7], "the vector's dim goes"),
            Case("none", (_u8(np.zeros((0, 2)), 1.0, 0), _B), _PRODUCT, np.zeros((0, 2)), "empty"),
        ),
    ),
)
