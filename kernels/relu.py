"""``aten::relu``: negative values become 0."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType, qint8, quint8
from refquant.kernels import checks
from refquant.kernels.layout import empty_suggested, flat
from refquant.kernels.pointwise import limit
from refquant.kernels.tensor_iterator import empty_sorted

Array = npt.NDArray[Any]


def reference(self: QTensor | Array) -> QTensor | Array:
    r"""Return the larger of each value and 0.

    Quantized: :math:`\max(q, z)` on the integers, nothing is rounded. In float32 a NaN stays.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        Values.

    Returns
    -------
    QTensor or float32 array
        With the parameters of the input.

    Raises
    ------
    VerifyError
        If the value is quantized per channel, or neither quantized nor float32.

    Examples
    --------
    >>> reference(QTensor(np.uint8([3, 9]), 0.5, 7)).int_repr
    array([7, 9], dtype=uint8)
    """
    if isinstance(self, QTensor):
        out = empty_suggested(self.int_repr, self.int_repr.dtype)
        np.maximum(self.int_repr, self.int_repr.dtype.type(self.zero_point), out=out)
        return self.with_int_repr(out)
    return np.maximum(self, np.float32(0), out=empty_sorted(self.shape, [self], np.float32))


def infer(self: TensorType) -> TensorType:
    """Return the type of the operand."""
    checks.float_or_per_tensor("relu", self)
    return self


def kernel(self: QTensor | Array) -> QTensor | Array:
    """Compute :func:`reference` in one compiled pass over the memory."""
    if not isinstance(self, QTensor):
        return reference(self)
    q, into, out = flat(self.int_repr, self.int_repr.dtype)
    limit(q, int(self.zero_point), self.dtype.limits[1], into)
    return self.with_int_repr(out)


def limits(self: TensorType, _target: Target) -> tuple[int, int] | None:
    """Return the range of a quantized result."""
    if self.qparams is None:
        return None
    return self.per_tensor()[1], self.dtype.limits[1]


OPS = (
    Op(
        name="aten::relu",
        reference=reference,
        infer=infer,
        limits=limits,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qrelu.cpp::relu_quantized_cpu",
        ),
        cases=(
            Case(
                "quint8",
                (QTensor(np.array([0, 7, 255], np.uint8), 0.5, 7, None, quint8),),
                {},
                [7, 7, 255],
                "the zero point stands for 0",
            ),
            Case(
                "qint8",
                (QTensor(np.array([-128, 127], np.int8), 0.5, -128, None, qint8),),
                {},
                [-128, 127],
                "nothing is negative",
            ),
            Case(
                "float",
                (np.array([-1, np.nan, np.inf], np.float32),),
                {},
                [0, np.nan, np.inf],
                "NaN stays",
            ),
        ),
    ),
)
