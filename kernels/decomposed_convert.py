"""``quantized_decomposed::convert_element_type.no_fuse``: another element type."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import DType, TensorType, float64, uint8
from refquant.kernels import eager
from refquant.kernels.decomposed import decomposed_op
from refquant.kernels.layout import elementwise


def convert_element_type(x: Array, dtype: DType) -> Array:
    """Convert the elements to another plain type.

    Parameters
    ----------
    x : tensor that is not quantized
        Any shape.
    dtype : DType
        A type that is not quantized.

    Returns
    -------
    Tensor of ``dtype``, shape and strides of ``x``
        Floats are truncated to int32 (for int64 and uint8: to int64), or to the smallest one
        where they do not fit; narrower types keep the low bits. float8_e4m3fn saturates.

    Raises
    ------
    VerifyError
        If either type is quantized.

    Examples
    --------
    >>> convert_element_type(np.float32([1.5]), float64)
    array([1.5])
    """
    return elementwise(eager.convert(x, dtype), x)


def _infer(x: TensorType, dtype: DType) -> TensorType:
    if x.dtype.is_quantized or dtype.is_quantized:
        raise VerifyError(f"convert_element_type: expected plain types, got {x.dtype} to {dtype}")
    return TensorType(dtype, x.shape)


_X = np.array([[0.5, 1.5, -0.5]], np.float32)

OPS = (
    decomposed_op(
        "convert_element_type.no_fuse",
        convert_element_type,
        _infer,
        Case("wider", (_X,), {"dtype": float64}, [[0.5, 1.5, -0.5]], "exact"),
        Case("wraps", (_X * 600,), {"dtype": uint8}, [[44, 132, 212]], "300, 900 and -300"),
    ),
)
