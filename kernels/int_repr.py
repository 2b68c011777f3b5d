"""``aten::int_repr``: the integers of a quantized tensor."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor
from refquant.ir.types import TensorType, int8, int32, qint8, qint32, quint8, uint8
from refquant.kernels.layout import empty_suggested
from refquant.kernels.movement import movement

_PLAIN = {quint8: uint8, qint8: int8, qint32: int32}


def reference(self: QTensor) -> Array:
    """Return the integers as a plain tensor.

    Parameters
    ----------
    self : QTensor, quint8, qint8 or qint32
        Quantized per tensor or per channel.

    Returns
    -------
    uint8, int8 or int32, in the memory format of the input

    Raises
    ------
    VerifyError
        If the tensor is of another type.

    Examples
    --------
    >>> reference(QTensor(np.uint8([7, 9]), 0.5, 7))
    array([7, 9], dtype=uint8)
    """
    made = empty_suggested(self.int_repr, self.int_repr.dtype)
    made[...] = self.int_repr
    return made


def infer(self: TensorType) -> TensorType:
    """Return the type of the integers."""
    if self.dtype not in _PLAIN:
        accepted = ", ".join(map(str, _PLAIN))
        raise VerifyError(f"int_repr: dtype must be one of {accepted}, got {self.dtype}")
    return TensorType(_PLAIN[self.dtype], self.shape)


OPS = (
    movement(
        "aten::int_repr",
        reference,
        infer,
        Case(
            "negative",
            (QTensor(np.array([-3, 5], np.int8), 0.5, 1, None, qint8),),
            {},
            [-3, 5],
            "the zero point stays in",
        ),
        source="pytorch/aten/src/ATen/native/quantized/cpu/IntReprQuant.cpp",
    ),
)
