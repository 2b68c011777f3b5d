"""``aten::std`` of a quantized tensor: the standard deviation, quantized like the input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import Shape, TensorType
from refquant.kernels import checks, quantize_per_tensor, rounding
from refquant.kernels.norms import Squares, float_squares, float_squares_compiled, sums

F32 = npt.NDArray[np.float32]
Ints = tuple[int, ...]


def reference(
    self: QTensor,
    dim: Ints | None = None,
    correction: int = 1,
    keepdim: bool = False,
    target: Target = Target(),
) -> QTensor:
    r"""Return the standard deviation over dimensions, with the parameters of the input.

    Over the last dimensions of a contiguous tensor, with :math:`n` values, sums :math:`S` and
    :math:`S_2` of the integers and of their squares, and :math:`d = \max(n - correction, 0)`,

    .. math:: q = Q\Big(s \sqrt{\max(S_2 / d - 2 \tfrac{S}{n} \tfrac{S}{d}
        + (\tfrac{S}{n})^2 \tfrac{n}{d}, 0)}\Big)

    in float64 (:math:`S_2` of qint32 in float32, in eight columns first), then rounded to float32
    and quantized with the zero point added before rounding.
    Otherwise, and for a single value with a correction, the input is dequantized, its deviation
    is computed in float64 and rounded to float32, and quantized as by
    ``aten::quantize_per_tensor``. torch uses Welford's recurrence in float64 there, whose last
    bit rarely reaches float32.

    Parameters
    ----------
    self : QTensor, quint8, qint8 or qint32, quantized per tensor
        Values.
    dim : tuple of int or None
        None and an empty tuple mean all.
    correction : int
        Subtracted from the number of values in the divisor.
    keepdim : bool
        Whether the dimensions stay with length 1.

    Returns
    -------
    QTensor

    Raises
    ------
    VerifyError
        If the input is not quantized per tensor, or there is no such dimension, or no value.

    Notes
    -----
    Every engine gives the same.

    Examples
    --------
    >>> reference(QTensor(np.uint8([[1, 3], [0, 8]]), 0.5, 2), (1,), correction=0).int_repr
    array([3, 6], dtype=uint8)
    """
    return _deviation(self, dim, correction, keepdim, target, float_squares)


def kernel(
    self: QTensor,
    dim: Ints | None = None,
    correction: int = 1,
    keepdim: bool = False,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` with float sums compiled."""
    return _deviation(self, dim, correction, keepdim, target, float_squares_compiled)


def _deviation(
    x: QTensor,
    dim: Ints | None,
    correction: int,
    keepdim: bool,
    target: Target,
    squares: Squares,
) -> QTensor:
    q, scale, zero_point = x.int_repr, float(x.scale), int(x.zero_point)
    axes = _axes(q.ndim, dim)
    n = int(np.prod([q.shape[axis] for axis in axes]))
    last = axes == tuple(range(q.ndim - len(axes), q.ndim))
    contiguous = q.flags.c_contiguous
    with np.errstate(all="ignore"):
        if last and contiguous and not (n == 1 and correction):
            real = _of_integers(x, axes, correction, target, squares)
            made = rounding.quantize_before(real, scale, zero_point, x.dtype)
        else:
            values = rounding.dequantize_plain(q, scale, zero_point).astype(np.float64)
            distance = values - values.mean(axis=axes, keepdims=True)
            total = (distance * distance).sum(axis=axes, keepdims=True)
            real = np.sqrt(total / max(n - correction, 0)).astype(np.float32)
            made = quantize_per_tensor.reference(real, scale, zero_point, x.dtype).int_repr
    shape = [length for axis, length in enumerate(made.shape) if keepdim or axis not in axes]
    return x.with_int_repr(made.reshape(shape))


def _of_integers(
    x: QTensor, axes: Ints, correction: int, target: Target, float_sums: Squares
) -> F32:
    rows = x.int_repr.reshape(*x.shape[: axes[0]], -1).astype(np.int64)
    n = float(rows.shape[-1])
    total, squares = (part.astype(np.float64) for part in sums(rows, x.dtype, target, float_sums))
    divisor = np.float64(max(n - correction, 0.0))
    mean, unbiased = total / n, total / divisor
    variance = squares / divisor - 2 * mean * unbiased + mean * mean * n / divisor
    real = (np.sqrt(np.maximum(variance, 0)) * float(x.scale)).astype(np.float32)
    return np.asarray(real).reshape(*x.shape[: axes[0]], *(1,) * len(axes))


def _axes(rank: int, dim: Ints | None) -> Ints:
    return tuple(sorted(checks.dimension("std", d, rank) for d in (dim or range(rank))))


def infer(
    self: TensorType, dim: Ints | None = None, correction: int = 1, keepdim: bool = False
) -> TensorType:
    """Check the operand, and drop the lengths."""
    checks.per_tensor("std", self)
    axes = _axes(self.rank, dim)
    if any(self.shape[axis] == 0 for axis in axes):
        raise VerifyError(f"std: dim {dim} of {self} is empty")
    shape: Shape = tuple(
        1 if axis in axes else length
        for axis, length in enumerate(self.shape)
        if keepdim or axis not in axes
    )
    return self.with_shape(shape)


_X = QTensor(np.array([[1, 3], [0, 8]], np.uint8), 0.5, 2)

OPS = (
    Op(
        name="aten::std",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/aten/src/ATen/native/quantized/cpu/ReduceOps.cpp::std_out_quantized_cpu",
            "pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::std_inner_dim_kernel",
        ),
        cases=(
            Case("rows", (_X,), {"dim": (1,), "correction": 0}, [3, 6], "1 and 4 steps"),
            Case("all", (_X,), {"correction": 0}, 5, "sqrt(9.5) is 3.08 steps"),
            Case(
                "columns",
                (_X,),
                {"dim": (0,), "correction": 0, "keepdim": True},
                [[2, 4]],
                "half a step and 2.5 steps: ties to even",
            ),
        ),
    ),
)
