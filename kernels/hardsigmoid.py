"""``aten::hardsigmoid``: a ramp from 0 to 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import QParams, TensorType, qint8, qint32, quint8
from refquant.kernels import checks
from refquant.kernels.activations import Formula, apply, apply_compiled, filling, suggested_output
from refquant.kernels.jit import jit
from refquant.kernels.tensor_iterator import empty_sorted

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

OUTPUT = {
    quint8: QParams(2.0**-8, 0),
    qint8: QParams(2.0**-8, -128),
    qint32: QParams(2.0**-32, 0),
}


def hardsigmoid(x: F32) -> F32:
    """Return ``clamp(x + 3, 0, 6) / 6``, two roundings."""
    three, six = np.float32(3), np.float32(6)
    return np.asarray(np.minimum(np.maximum(x + three, np.float32(0)), six) / six)


_ALL_TAIL = frozenset({(Engine.QNNPACK, quint8)})
FORMULA = Formula(hardsigmoid, hardsigmoid, hardsigmoid, all_tail=_ALL_TAIL)


def reference(self: QTensor | Array, target: Target = Target()) -> QTensor | Array:
    r"""Return hardsigmoid.

    .. math:: y = \min(\max(x + 3, 0), 6) / 6

    Each step is rounded to float32. Quantized values are dequantized and quantized as in
    ``quantized::add``, with its vector body and scalar tail, to parameters that the dtype
    fixes: quint8 :math:`(2^{-8}, 0)`, qint8 :math:`(2^{-8}, -128)`, qint32 :math:`(2^{-32}, 0)`.
    qnnpack uses the rule of the tail for every quint8 element.

    Parameters
    ----------
    self : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        Values.

    Returns
    -------
    QTensor or float32 array
        Shape and memory format of the input.

    Raises
    ------
    VerifyError
        If the value is neither quantized per tensor nor float32.

    Examples
    --------
    >>> reference(QTensor(np.uint8([1, 5, 6]), 1.0, 5)).int_repr
    array([  0, 128, 171], dtype=uint8)
    """
    if isinstance(self, QTensor):
        return apply(self, suggested_output(self), OUTPUT[self.dtype], FORMULA, target)
    out = empty_sorted(self.shape, [self], np.float32)
    out[...] = hardsigmoid(self)
    return out


def infer(self: TensorType) -> TensorType:
    """Check the operand; the dtype fixes the output parameters."""
    if checks.float_or_per_tensor("hardsigmoid", self):
        return TensorType(self.dtype, self.shape, OUTPUT[self.dtype])
    return self


@jit
def _fill(x: F32, y: F32) -> None:
    for i in range(x.size):
        ramp = min(max(np.float32(x[i] + np.float32(3)), np.float32(0)), np.float32(6))
        y[i] = np.float32(ramp / np.float32(6))


COMPILED = Formula.everywhere(filling(_fill), all_tail=_ALL_TAIL)


def kernel(self: QTensor | Array, target: Target = Target()) -> QTensor | Array:
    """Compute :func:`reference` by tables."""
    if not isinstance(self, QTensor):
        return reference(self)
    return apply_compiled(self, None, OUTPUT[self.dtype], COMPILED, target)


OPS = (
    Op(
        name="aten::hardsigmoid",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::qhardsigmoid_kernel",
            "pytorch/pytorch/aten/src/ATen/native/cpu/Activation.cpp::hardsigmoid_kernel",
        ),
        cases=(
            Case(
                "quint8",
                (QTensor(np.array([0, 5, 8], np.uint8), 1.0, 5, None, quint8),),
                {},
                [0, 128, 255],
                "256 saturates",
            ),
            Case(
                "qint8",
                (QTensor(np.array([-3, 0, 3], np.int8), 1.0, 0, None, qint8),),
                {},
                [-128, 0, 127],
                "the zero point is -128",
            ),
            Case(
                "float",
                (np.array([-4, 0, 1.5, 4], np.float32),),
                {},
                [0, 0.5, 0.75, 1],
                "exact values",
            ),
        ),
    ),
)
