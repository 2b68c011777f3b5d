"""``memory::write``: what an operator leaves in the tensor that it is told to write to."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import TensorType
from refquant.kernels.layout import empty_strided_like
from refquant.kernels.movement import example, move, movement


def reference(self: Tensor, out: Tensor, keep_qparams: bool = False) -> Tensor:
    """Return a result in the memory of another tensor: its elements, the other's strides.

    This is the second half of ``op(..., out=out)`` and of ``op_(x)``; the first computes the
    result. Most operators of torch set the quantization parameters of ``out``. Some leave them
    as they were and write integers of other parameters, which then mean other numbers.

    Parameters
    ----------
    self : any tensor
        The result.
    out : tensor of the same dtype and shape
        What it is written to; its elements do not matter.
    keep_qparams : bool
        Whether the quantization parameters are those of ``out``.

    Returns
    -------
    Tensor with the strides of ``out``

    Raises
    ------
    VerifyError
        If dtype or shape differ.

    Examples
    --------
    >>> reference(np.zeros((2, 3)), np.zeros((3, 2)).T).strides
    (8, 16)
    """
    place = out.int_repr if isinstance(out, QTensor) else out

    def put(array: Array) -> Array:
        made = empty_strided_like(place)
        made[...] = array
        return made

    made: Tensor = move(self, put)
    if keep_qparams and isinstance(out, QTensor) and isinstance(made, QTensor):
        return out.with_int_repr(made.int_repr)
    return made


def infer(self: TensorType, out: TensorType, keep_qparams: bool = False) -> TensorType:
    """Check that the memory fits."""
    if (self.dtype, self.shape) != (out.dtype, out.shape):
        raise VerifyError(f"out must have dtype and shape of the result, {self}, got {out}")
    return out if keep_qparams else self


_X = example(2, 3)
_Q = QTensor(np.array([1, 2], np.uint8), 0.5, 0)

OPS = (
    movement(
        "memory::write",
        reference,
        infer,
        Case("columns", (_X, np.zeros((3, 2), np.float32).T), {}, _X, "other strides"),
        Case(
            "reinterpreted",
            (_Q, QTensor(np.array([0, 0], np.uint8), 2.0, 1)),
            {"keep_qparams": True},
            [1, 2],
            "integers stay, what they stand for changes",
        ),
        source="pytorch/aten/src/ATen/native/Resize.cpp",
    ),
)
