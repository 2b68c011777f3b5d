"""``aten::sort``: the elements of a dimension in order, and where they were."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import TensorType, bool_, int64
from refquant.kernels import checks
from refquant.kernels.layout import empty_suggested
from refquant.kernels.movement import example, movement


def reference(
    self: Tensor, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """Sort along one dimension; NaN counts as the largest.

    Quantized values are sorted by their integers. Equal elements stay in order; without
    ``stable`` torch does not promise which of them comes first, and only the values are torch's.

    Parameters
    ----------
    self : float or integer tensor, or QTensor quantized per tensor
        Any shape.
    stable : bool or None
        Whether torch keeps equal elements in order.
    dim : int
        The dimension; negative counts from the end.
    descending : bool
        Whether the largest comes first.

    Returns
    -------
    values, int64 indices
        In the memory format of the input.

    Raises
    ------
    VerifyError
        If there is no such dimension, or the tensor is quantized per channel.

    Examples
    --------
    >>> values, indices = reference(QTensor(np.uint8([3, 9, 3]), 0.5, 0), True, descending=True)
    >>> values.int_repr, indices
    (array([9, 3, 3], dtype=uint8), array([1, 0, 2]))
    """
    x = self.int_repr if isinstance(self, QTensor) else self
    order = _order(x, dim % max(x.ndim, 1), descending) if x.ndim else np.zeros((), np.int64)
    values, indices = empty_suggested(x, x.dtype), empty_suggested(x, np.int64)
    values[...] = np.take_along_axis(x, order, dim) if x.ndim else x
    indices[...] = order
    return (self.with_int_repr(values) if isinstance(self, QTensor) else values), indices


def _order(x: Array, dim: int, descending: bool) -> Array:
    if not descending:
        return np.argsort(x, axis=dim, kind="stable")
    # From the end the largest come first, and of equal ones the last.
    found = np.argsort(np.flip(x, dim), axis=dim, kind="stable")
    return np.flip(x.shape[dim] - 1 - found, dim)


def infer(
    self: TensorType, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[TensorType, TensorType]:
    """Check the dimension; indices have the shape of the values."""
    if self.dtype.is_quantized:
        checks.per_tensor("sort", self)
    if self.dtype == bool_:
        raise VerifyError("sort: bool tensors have no order")
    checks.dimension("sort", dim, self.rank)
    return self, TensorType(int64, self.shape)


_X = np.array([[1, np.nan, 0], [2, 1, 2]], np.float32)

OPS = (
    movement(
        "aten::sort.stable",
        reference,
        infer,
        Case(
            "NaN",
            (_X,),
            {"stable": True},
            ([[0, 1, np.nan], [1, 2, 2]], [[2, 0, 1], [1, 0, 2]]),
            "is the largest",
        ),
        Case(
            "descending",
            (_X,),
            {"stable": True, "descending": True},
            ([[np.nan, 1, 0], [2, 2, 1]], [[1, 0, 2], [0, 2, 1]]),
            "equal ones stay in order",
        ),
        Case(
            "columns",
            (example(2, 1),),
            {"dim": 0, "descending": True},
            ([[1], [0]], [[1], [0]]),
            "any dimension",
        ),
        source="pytorch/aten/src/ATen/native/Sorting.cpp",
    ),
)
