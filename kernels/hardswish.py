"""``quantized::hardswish`` and ``aten::hardswish``: x times a ramp from 0 to 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import QParams, TensorType, quint8
from refquant.kernels import checks
from refquant.kernels.activations import (
    Formula,
    apply,
    apply_compiled,
    filling,
    infer_quantized,
    suggested_output,
)
from refquant.kernels.jit import jit
from refquant.kernels.tensor_iterator import empty_sorted

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def hardswish(x: F32) -> F32:
    """Return ``(x * clamp(x + 3, 0, 6)) / 6``, three roundings."""
    three, six = np.float32(3), np.float32(6)
    with np.errstate(invalid="ignore"):
        return np.asarray(x * np.minimum(np.maximum(x + three, np.float32(0)), six) / six)


_ALL_TAIL = frozenset({(Engine.QNNPACK, quint8)})
FORMULA = Formula(hardswish, hardswish, hardswish, all_tail=_ALL_TAIL)


def reference(
    input: QTensor, output_scale: float, output_zero_point: int, target: Target = Target()
) -> QTensor:
    r"""Return hardswish of a quantized tensor.

    .. math:: y = x \cdot \min(\max(x + 3, 0), 6) / 6

    Each step is rounded to float32 (minus infinity gives NaN). Values are dequantized and
    quantized as in ``quantized::add``, with its vector body and scalar tail; qnnpack uses the
    rule of the tail for every quint8 element.

    Parameters
    ----------
    input : QTensor, quint8, qint8 or qint32
        Quantized per tensor.
    output_scale : float, > 0
        Scale of the result.
    output_zero_point : int
        Zero point of the result.

    Returns
    -------
    QTensor
        Shape and memory format of the input.

    Raises
    ------
    VerifyError
        If the input is not quantized per tensor or an output parameter is out of range.

    Examples
    --------
    >>> reference(QTensor(np.uint8([1, 5, 9]), 1.0, 5), 0.5, 0).int_repr
    array([0, 0, 8], dtype=uint8)
    """
    qparams = QParams(float(output_scale), int(output_zero_point))
    return apply(input, suggested_output(input), qparams, FORMULA, target)


def reference_float(self: F32) -> F32:
    """Return hardswish of a float32 array; see ``quantized::hardswish`` for the formula.

    Examples
    --------
    >>> reference_float(np.float32([-4, 1, 5]))
    array([-0.       ,  0.6666667,  5.       ], dtype=float32)
    """
    out = empty_sorted(self.shape, [self], np.float32)
    out[...] = hardswish(self)
    return out


def infer(input: TensorType, output_scale: float, output_zero_point: int) -> TensorType:
    """Check the operand and the output parameters."""
    return infer_quantized("quantized::hardswish", input, output_scale, output_zero_point)


def infer_float(self: TensorType) -> TensorType:
    """Check that the operand is float32."""
    checks.is_float32("aten::hardswish", self)
    return self


@jit
def _fill(x: F32, y: F32) -> None:
    for i in range(x.size):
        ramp = min(max(np.float32(x[i] + np.float32(3)), np.float32(0)), np.float32(6))
        y[i] = np.float32(np.float32(x[i] * ramp) / np.float32(6))


COMPILED = Formula.everywhere(filling(_fill), all_tail=_ALL_TAIL)


def kernel(
    input: QTensor, output_scale: float, output_zero_point: int, target: Target = Target()
) -> QTensor:
    """Compute :func:`reference` by tables."""
    qparams = QParams(float(output_scale), int(output_zero_point))
    return apply_compiled(input, None, qparams, COMPILED, target)


OPS = (
    Op(
        name="quantized::hardswish",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::qhardswish_kernel",
        ),
        cases=(
            Case(
                "quint8",
                (QTensor(np.array([0, 2, 5, 8, 255], np.uint8), 1.0, 5, None, quint8),),
                {"output_scale": 0.5, "output_zero_point": 3},
                [3, 3, 3, 9, 255],
                "0 at -3 and below, x at 3 and above, saturation",
            ),
        ),
    ),
    Op(
        name="aten::hardswish",
        reference=reference_float,
        infer=infer_float,
        kernels=dict.fromkeys(TORCH_ENGINES, reference_float),
        source=("pytorch/pytorch/aten/src/ATen/native/cpu/Activation.cpp::hardswish_kernel",),
        cases=(
            Case(
                "float",
                (np.array([-4, 0, 1.5, 4], np.float32),),
                {},
                [0, 0, 1.125, 4],
                "exact values",
            ),
        ),
    ),
)
