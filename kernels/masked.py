"""``aten::where``, ``masked_fill``, ``tril`` and ``triu``: elements replaced by a mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import TensorType, bool_
from refquant.kernels.checks import broadcast
from refquant.kernels.layout import elementwise
from refquant.kernels.movement import example, move, moved, movement
from refquant.kernels.promotion import Number, result_dtype
from refquant.kernels.rounding import quantize_before

_SOURCE = "pytorch/aten/src/ATen/native/TensorCompare.cpp"


def where(condition: Array, self: Array, other: Array) -> Array:
    """Return ``self`` where the condition holds, else ``other``.

    Parameters
    ----------
    condition : bool tensor
        Broadcasts with the others.
    self, other : tensors that are not quantized
        Types are promoted as in torch.

    Returns
    -------
    Tensor of the promoted type

    Raises
    ------
    VerifyError
        If the condition is not bool, or the shapes do not broadcast.

    Examples
    --------
    >>> where(np.array([True, False]), np.array([1, 2]), np.array([9]))
    array([1, 9])
    """
    return elementwise(np.where(condition, self, other), condition, self, other)


def infer_where(condition: TensorType, self: TensorType, other: TensorType) -> TensorType:
    """Broadcast the three shapes."""
    if condition.dtype != bool_:
        raise VerifyError(f"where: expected a bool condition, got {condition.dtype}")
    shape = broadcast("where", condition.shape, self.shape, other.shape)
    return TensorType(result_dtype("where", self, other), shape)


def masked_fill(self: Tensor, mask: Array, value: Number) -> Any:
    """Return the tensor with a number where the mask holds.

    Parameters
    ----------
    self : any tensor
        Quantization parameters are kept.
    mask : bool tensor
        Broadcasts to the tensor.
    value : number
        A quantized tensor gets its quantized value (zero point added in float32 before rounding
        half to even).

    Returns
    -------
    A contiguous copy.

    Raises
    ------
    VerifyError
        If the mask is not bool or does not broadcast.

    Examples
    --------
    >>> masked_fill(np.float32([1, 2]), np.array([True, False]), -1)
    array([-1.,  2.], dtype=float32)
    """
    fill: Any = value
    if isinstance(self, QTensor):
        real = np.array([value], np.float32)
        fill = quantize_before(real, float(self.scale), int(self.zero_point), self.dtype)[0]

    def replace(array: Array) -> Array:
        return np.ascontiguousarray(np.where(mask, np.asarray(fill, array.dtype), array))

    return move(self, replace)


def infer_masked_fill(self: TensorType, mask: TensorType, value: Number) -> TensorType:
    """Check the mask."""
    if mask.dtype != bool_:
        raise VerifyError(f"masked_fill: expected a bool mask, got {mask.dtype}")
    return moved(self, broadcast("masked_fill", self.shape, mask.shape), "masked_fill")


def tril(self: Array, diagonal: int = 0) -> Array:
    """Return the lower triangle of the last two dimensions, zeros elsewhere.

    Examples
    --------
    >>> tril(np.ones((2, 2)))
    array([[1., 0.],
           [1., 1.]])
    """
    return np.tril(self, diagonal)


def triu(self: Array, diagonal: int = 0) -> Array:
    """Return the upper triangle of the last two dimensions, zeros elsewhere.

    Examples
    --------
    >>> triu(np.ones((2, 2)), 1)
    array([[0., 1.],
           [0., 0.]])
    """
    return np.triu(self, diagonal)


def infer_triangle(self: TensorType, diagonal: int = 0) -> TensorType:
    """Check that there are two dimensions."""
    if self.rank < 2 or self.dtype.is_quantized:
        raise VerifyError(f"tril/triu: expected a plain tensor of rank >= 2, got {self}")
    return self


_X = example(2, 2)

OPS = (
    movement(
        "aten::where",
        where,
        infer_where,
        Case(
            "broadcast",
            (_X > 1, _X, np.array([7.0], np.float32)),
            {},
            [[7, 7], [2, 3]],
            "one number",
        ),
        source=_SOURCE,
    ),
    movement(
        "aten::masked_fill.Scalar",
        masked_fill,
        infer_masked_fill,
        Case("infinite", (_X, _X > 2), {"value": -np.inf}, [[0, 1], [2, -np.inf]], "attention"),
        source=_SOURCE,
    ),
    movement(
        "aten::tril",
        tril,
        infer_triangle,
        Case("below", (_X,), {"diagonal": -1}, [[0, 0], [2, 0]], "without the diagonal"),
        source="pytorch/aten/src/ATen/native/TriangularOps.cpp",
    ),
    movement(
        "aten::triu",
        triu,
        infer_triangle,
        Case("main", (_X,), {}, [[0, 1], [0, 3]], "with the diagonal"),
        source="pytorch/aten/src/ATen/native/TriangularOps.cpp",
    ),
)
