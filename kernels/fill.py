"""``aten::fill`` and ``masked_fill`` with a tensor of one number."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import TensorType
from refquant.kernels import checks, quantize_per_tensor
from refquant.kernels.dequantize import reference as dequantize
from refquant.kernels.layout import empty_strided_like
from refquant.kernels.masked import infer_masked_fill, masked_fill
from refquant.kernels.movement import example, move, movement
from refquant.kernels.promotion import Number


def fill(self: Tensor, value: Number) -> Any:
    """Return a tensor of one number with the type and the strides of another.

    Parameters
    ----------
    self : any tensor
        A quantized one gets the number quantized as by ``aten::quantize_per_tensor``.
    value : number
        Rounded to float32 before it is quantized.

    Returns
    -------
    Tensor

    Raises
    ------
    VerifyError
        If the tensor is quantized, but not per tensor.

    Examples
    --------
    >>> fill(QTensor(np.uint8([1, 2]), 0.5, 7), 0.75).int_repr
    array([8, 8], dtype=uint8)
    """
    number: Any = value
    if isinstance(self, QTensor):
        # As many as there are: a vector body rounds otherwise than a scalar tail.
        place = self.int_repr
        real = np.full(place.shape, value, np.float32)
        made = quantize_per_tensor.reference(
            real, float(self.scale), int(self.zero_point), self.dtype
        )
        number = made.int_repr

    def put(array: Array) -> Array:
        filled = empty_strided_like(array)
        filled[...] = number
        return filled

    return move(self, put)


def infer_fill(self: TensorType, value: Number) -> TensorType:
    """Check the tensor; its type stays."""
    if self.dtype.is_quantized:
        checks.per_tensor("fill", self)
    return self


def _number(value: Tensor) -> Number:
    real = dequantize(value) if isinstance(value, QTensor) else value
    number: Number = np.asarray(real).reshape(-1)[0].item()
    return number


def fill_tensor(self: Tensor, value: Tensor) -> Any:
    """Do ``aten::fill.Scalar`` with the one element of a tensor.

    Examples
    --------
    >>> fill_tensor(np.zeros(2), np.array(3))
    array([3., 3.])
    """
    return fill(self, _number(value))


def masked_fill_tensor(self: Tensor, mask: Array, value: Tensor) -> Any:
    """Do ``aten::masked_fill.Scalar`` with the one element of a tensor.

    Examples
    --------
    >>> masked_fill_tensor(np.zeros(2), np.array([True, False]), np.array(3))
    array([3., 0.])
    """
    return masked_fill(self, mask, _number(value))


def _single(op: str, value: TensorType) -> None:
    if value.shape != ():
        raise VerifyError(f"{op}: value must have no dimensions, got {value}")


def infer_fill_tensor(self: TensorType, value: TensorType) -> TensorType:
    """Check that there is one number."""
    _single("fill", value)
    return infer_fill(self, 0)


def infer_masked_fill_tensor(self: TensorType, mask: TensorType, value: TensorType) -> TensorType:
    """Check the mask, and that there is one number."""
    _single("masked_fill", value)
    return infer_masked_fill(self, mask, 0)


_X = example(3)
_Q = QTensor(np.array([1, 2, 3], np.uint8), 0.5, 7)
_HALF = np.asarray(0.75, np.float32)
_SOURCE = "pytorch/aten/src/ATen/native/Fill.cpp"

OPS = (
    movement(
        "aten::fill.Scalar",
        fill,
        infer_fill,
        Case("quantized", (_Q,), {"value": 0.75}, [8, 8, 8], "8.5 is a tie"),
        Case("float", (_X,), {"value": 2}, [2, 2, 2], "the type of the tensor"),
        source=_SOURCE,
    ),
    movement(
        "aten::fill.Tensor",
        fill_tensor,
        infer_fill_tensor,
        Case("quantized", (_Q, _HALF), {}, [8, 8, 8], "as with a number"),
        source=_SOURCE,
    ),
    movement(
        "aten::masked_fill.Tensor",
        masked_fill_tensor,
        infer_masked_fill_tensor,
        Case("quantized", (_Q, _X > 1, _HALF), {}, [1, 2, 8], "8.5 is a tie"),
        source="pytorch/aten/src/ATen/native/TensorAdvancedIndexing.cpp",
    ),
)
