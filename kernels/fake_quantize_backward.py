"""The gradients of both fake-quants: the incoming gradient where the mask is true."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import type_of
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, bool_, format_shape
from refquant.kernels.fake_quantize_per_tensor import Array, Mask, check_float
from refquant.kernels.jit import jit
from refquant.kernels.layout import memory_order
from refquant.kernels.pointwise import fill, same_memory
from refquant.kernels.tensor_iterator import empty_sorted


def reference(grad: Array, mask: Mask) -> Array:
    """Return ``grad * mask``, the straight-through estimator.

    A product, not a selection: out of range a negative gradient gives -0.0, and an infinite one
    or NaN gives NaN.

    Parameters
    ----------
    grad : float32, float64, float16 or bfloat16, any shape
        Gradient of the loss by the result.
    mask : bool, shape of ``grad``
        The second result of a ``cachemask`` op.

    Returns
    -------
    dtype and shape of ``grad``
        Gradient of the loss by the input.

    Raises
    ------
    VerifyError
        If shapes differ (torch compares their sizes, then broadcasts) or ``mask`` is not bool.

    Examples
    --------
    >>> reference(np.float32([-2, 3]), np.array([False, True]))
    array([-0.,  3.], dtype=float32)
    """
    infer(type_of(grad), type_of(mask))
    out = empty_sorted(grad.shape, [grad, mask], grad.dtype)
    with np.errstate(invalid="ignore"):
        fill(out, lambda grad, mask: grad * mask.astype(grad.dtype), grad, mask)
    return out


def infer(grad: TensorType, mask: TensorType) -> TensorType:
    """Check dtypes and shapes; the result has the type of ``grad``."""
    op = "fake_quantize_cachemask_backward"
    check_float(op, grad)
    if mask.dtype != bool_:
        raise VerifyError(f"{op}: mask must be bool, got {mask.dtype}")
    if mask.shape != grad.shape:
        shapes = f"{format_shape(mask.shape)} and {format_shape(grad.shape)}"
        raise VerifyError(f"{op}: mask and grad must have one shape, got {shapes}")
    return grad


@jit
def _fill(grad: npt.NDArray[np.float32], mask: Any, out: Any) -> None:
    for i in range(grad.size):
        out[i] = grad[i] * np.float32(mask[i])


def kernel(grad: Array, mask: Mask) -> Array:
    """Compute :func:`reference` in one compiled pass where both lie alike in memory."""
    infer(type_of(grad), type_of(mask))
    out = empty_sorted(grad.shape, [grad, mask], grad.dtype)
    if grad.dtype != np.float32 or not same_memory(out, grad, mask):
        return reference(grad, mask)
    with np.errstate(invalid="ignore"):
        _fill(memory_order(grad), memory_order(mask), memory_order(out))
    return out


_CASE = Case(
    "outside",
    (np.array([-2.0, 3.0, np.inf, np.nan], np.float32), np.array([False, True, False, True])),
    {},
    [-0.0, 3.0, np.nan, np.nan],
    "a product with 0, not a selection",
)

OPS = tuple(
    Op(
        name=f"aten::fake_quantize_per_{what}_affine_cachemask_backward",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(f"pytorch/aten/src/ATen/native/quantized/FakeQuantPer{what.title()}Affine.cpp",),
        cases=(_CASE,),
    )
    for what in ("tensor", "channel")
)
