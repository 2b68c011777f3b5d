"""``aten::new_full``: a tensor of one number, in a shape that may depend on the batch."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import DType, Shape, TensorType
from refquant.kernels.movement import example, movement
from refquant.kernels.promotion import Number


def reference(
    self: Array, size: tuple[int, ...], fill_value: Number, dtype: DType | None = None
) -> Array:
    """Return a new tensor filled with a number.

    Parameters
    ----------
    self : tensor that is not quantized
        Gives the type only.
    size : tuple of int
        The shape.
    fill_value : number
        What it is filled with.
    dtype : DType, optional
        Another type.

    Returns
    -------
    Contiguous tensor

    Raises
    ------
    VerifyError
        If a type is quantized.

    Examples
    --------
    >>> reference(np.float32([1]), (2,), 3)
    array([3., 3.], dtype=float32)
    """
    return np.full(size, fill_value, self.dtype if dtype is None else dtype.storage)


def infer(
    self: TensorType, size: Shape, fill_value: Number, dtype: DType | None = None
) -> TensorType:
    """Check the types."""
    kind = self.dtype if dtype is None else dtype
    if kind.is_quantized:
        raise VerifyError(f"new_full: expected a type that is not quantized, got {kind}")
    return TensorType(kind, size)


OPS = (
    movement(
        "aten::new_full",
        reference,
        infer,
        Case("values", (example(1),), {"size": (1, 2), "fill_value": 0.5}, [[0.5, 0.5]], "filled"),
        source="pytorch/aten/src/ATen/native/TensorFactories.cpp",
    ),
)
