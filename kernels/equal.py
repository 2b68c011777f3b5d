"""``aten::equal``: whether two tensors are the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.types import TensorType, bool_
from refquant.kernels.movement import example, movement


def reference(self: Tensor, other: Tensor) -> Any:
    """Return whether shapes and all elements are equal; NaN is unequal to itself.

    Quantized tensors are equal if their integers, dtypes and quantization parameters are.

    Parameters
    ----------
    self, other : two tensors, quantized or not
        Of one dtype unless quantized.

    Returns
    -------
    bool array without dimensions

    Raises
    ------
    VerifyError
        If dtypes differ, or only one is quantized.

    Examples
    --------
    >>> x = QTensor(np.uint8([1]), 0.5, 0)
    >>> bool(reference(x, x)), bool(reference(x, QTensor(np.uint8([1]), 0.25, 0)))
    (True, False)
    """
    same = type_of(self) == type_of(other)
    if isinstance(self, QTensor) and isinstance(other, QTensor):
        return np.asarray(same and np.array_equal(self.int_repr, other.int_repr))
    return np.asarray(same and np.array_equal(np.asarray(self), np.asarray(other)))


def infer(self: TensorType, other: TensorType) -> TensorType:
    """Check the dtypes."""
    if self.dtype.is_quantized != other.dtype.is_quantized:
        raise VerifyError(f"equal: both must be quantized or neither, got {self} and {other}")
    if not self.dtype.is_quantized and self.dtype != other.dtype:
        raise VerifyError(f"equal: dtypes differ: {self.dtype} and {other.dtype}")
    return TensorType(bool_, ())


_X = example(2)
_NAN = np.array([np.nan], np.float32)

OPS = (
    movement(
        "aten::equal",
        reference,
        infer,
        Case("same", (_X, _X.copy()), {}, True, "all elements"),
        Case("shapes", (_X, example(1, 2)), {}, False, "nothing is broadcast"),
        Case("nan", (_NAN, _NAN), {}, False, "NaN is unequal to itself"),
        source="pytorch/aten/src/ATen/native/quantized/TensorCompare.cpp::equal_quantized_cpu",
    ),
)
