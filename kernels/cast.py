"""``aten::to``: another element type."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import DType, TensorType, float16, int32
from refquant.kernels.layout import elementwise

_X = np.array([1.5, -2.7, 65536.0], np.float32)


def reference(x: Array, dtype: DType) -> Array:
    """Convert the elements: floats round half to even, to integers they are truncated.

    Parameters
    ----------
    x : tensor that is not quantized
        Any shape.
    dtype : DType
        A type that is not quantized.

    Returns
    -------
    Tensor of ``dtype``; ``x`` itself where nothing changes.

    Raises
    ------
    VerifyError
        If either type is quantized.

    Examples
    --------
    >>> reference(np.float32([1.5, -2.7]), int32)
    array([ 1, -2], dtype=int32)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return x if x.dtype == dtype.storage else elementwise(x.astype(dtype.storage), x)


def infer(x: TensorType, dtype: DType) -> TensorType:
    """Check that nothing is quantized."""
    if x.dtype.is_quantized or dtype.is_quantized:
        raise VerifyError(f"to: quantized tensors cannot be cast, got {x.dtype} to {dtype}")
    return TensorType(dtype, x.shape)


OPS = (
    Op(
        name="aten::to",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, reference),
        source=("pytorch/aten/src/ATen/native/TensorConversions.cpp",),
        cases=(
            Case("truncate", (_X,), {"dtype": int32}, [1, -2, 65536], "towards zero"),
            Case("overflow", (_X,), {"dtype": float16}, [1.5, np.float16(-2.7), np.inf], "to inf"),
        ),
    ),
)
