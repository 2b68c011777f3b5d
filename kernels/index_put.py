"""``aten::index_put``: elements chosen by number or by a mask, replaced."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import TensorType, bool_, float32
from refquant.kernels import checks, rounding
from refquant.kernels.movement import example, move, movement


def reference(
    self: Tensor, values: Array, *indices: Array | None, accumulate: bool = False
) -> Any:
    """Return the tensor with other values where the indices point.

    A quantized tensor gets the quantized values,
    ``clamp(rint(x * 1/s + z))`` with product and sum rounded to float32, ties to even. Where an
    element is chosen twice, the last value stays.

    Parameters
    ----------
    self : any tensor
        Quantization parameters are kept.
    values : tensor of the type of ``self``, or float32 for a quantized one
        Broadcasts to the chosen elements.
    *indices : integer or bool tensors, or None
        One for each leading dimension; a mask counts for as many as it has. None takes the whole
        dimension.
    accumulate : bool
        Must be False.

    Returns
    -------
    A contiguous copy.

    Raises
    ------
    VerifyError
        If types do not fit, or an index is out of range.

    Examples
    --------
    >>> x = QTensor(np.uint8([7, 7, 7]), 0.5, 7)
    >>> reference(x, np.float32([0.25, 0.75]), np.array([2, 0])).int_repr
    array([8, 7, 8], dtype=uint8)
    """
    new = values
    if isinstance(self, QTensor):
        new = rounding.quantize_before(values, float(self.scale), int(self.zero_point), self.dtype)
    where = tuple(slice(None) if index is None else index for index in indices)

    def replace(array: Array) -> Array:
        made = np.array(array, order="C")
        try:
            made[where] = new
        except (IndexError, ValueError) as error:
            raise VerifyError(f"index_put: {error}") from None
        return made

    return move(self, replace)


def infer(
    self: TensorType,
    values: TensorType,
    *indices: TensorType | None,
    accumulate: bool = False,
) -> TensorType:
    """Check types; the result has the type of the tensor."""
    if self.dtype.is_quantized:
        checks.per_tensor("index_put", self)
    expected = float32 if self.dtype.is_quantized else self.dtype
    if values.dtype != expected:
        raise VerifyError(f"index_put: values must be {expected}, got {values.dtype}")
    if accumulate:
        raise VerifyError("index_put: accumulate must be False, got True")
    ranks = [1 if index is None or index.dtype != bool_ else index.rank for index in indices]
    if not indices or sum(ranks) > self.rank:
        raise VerifyError(f"index_put: {len(indices)} indices for {self}")
    for index in indices:
        if index is not None and (index.dtype.is_floating_point or index.dtype.is_quantized):
            raise VerifyError(f"index_put: expected an integer index, got {index.dtype}")
    return self


_X = QTensor(np.array([[7, 8], [9, 10]], np.uint8), 0.5, 7)

OPS = (
    movement(
        "aten::index_put",
        reference,
        infer,
        Case(
            *("rows", (_X, np.array([0.25, 0.75], np.float32), np.array([1])), {}),
            *([[7, 8], [8, 8]], "7.5 and 8.5 go to 8"),
        ),
        Case(
            *("mask", (_X, np.array(1e9, np.float32), _X.int_repr > 8), {}),
            *([[7, 8], [255, 255]], "saturates"),
        ),
        Case(
            *("column", (example(2, 2), np.zeros(1, np.float32), None, np.array([-1])), {}),
            *([[0, 0], [2, 0]], "None takes all rows"),
        ),
        source="pytorch/aten/src/ATen/native/TensorAdvancedIndexing.cpp",
    ),
)
