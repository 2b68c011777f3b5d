"""``onnx::OneHot``: a vector with one entry that differs for each number."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import Dim, TensorType
from refquant.kernels.checks import dimension
from refquant.kernels.onnx.operator import operator, plain


def reference(indices: Array, values: Array, depth: int, axis: int = -1) -> Array:
    """Return ``values[1]`` where the position along a new dimension is the index, else ``[0]``.

    Indices are cut to whole numbers; one outside ``[-depth, depth - 1]`` has no position.

    Parameters
    ----------
    indices : tensor of numbers
        Any shape; negative counts from the end.
    values : tensor (2,)
        What stands elsewhere, and what stands at the position.
    depth : int
        Length of the new dimension.
    axis : int
        Where it stands; negative counts from the end.

    Returns
    -------
    Tensor of the type of ``values`` and one more dimension

    Raises
    ------
    VerifyError
        If there is no such dimension, or not two values.

    Examples
    --------
    >>> reference(np.array([1, -1, 5]), np.array([0, 7]), 3)
    array([[0, 7, 0],
           [0, 0, 7],
           [0, 0, 0]])
    """
    whole = np.expand_dims(indices.astype(np.int64), axis)
    shape = [1] * whole.ndim
    shape[axis] = depth
    places = np.arange(depth).reshape(shape)
    is_place = (whole == places) | (whole + depth == places)
    return np.asarray(np.where(is_place, values[1], values[0]), values.dtype)


def infer(indices: TensorType, values: TensorType, depth: int, axis: int = -1) -> TensorType:
    """Insert the new dimension."""
    plain("OneHot", indices, values)
    at = dimension("OneHot", axis, indices.rank + 1)
    if values.shape != (2,):
        raise VerifyError(f"OneHot: expected two values, got {values}")
    if not isinstance(depth, Dim) and depth < 0:
        raise VerifyError(f"OneHot: depth must not be negative, got {depth}")
    return TensorType(values.dtype, (*indices.shape[:at], depth, *indices.shape[at:]))


_VALUES = np.array([0, 7], np.float32)

OPS = (
    operator(
        "OneHot",
        reference,
        infer,
        Case(
            "last", (np.array([1.9, -2]), _VALUES), {"depth": 2}, [[0, 7], [7, 0]], "cut, counted"
        ),
        Case("first", (np.array([2, 0]), _VALUES), {"depth": 2, "axis": 0}, [[0, 7], [0, 0]], "2"),
    ),
)
