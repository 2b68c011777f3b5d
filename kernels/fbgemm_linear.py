"""``aten::fbgemm_linear_int8_weight_fp32_activation``: fbgemm's product, under every engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Engine, Target
from refquant.ir.types import TensorType, qint8
from refquant.kernels import quantized_linear_dynamic as dynamic
from refquant.kernels import rounding
from refquant.kernels.choose_qparams import choose_qparams_fbgemm
from refquant.kernels.min_max import min_max

F32 = npt.NDArray[np.float32]


def quantize_weight(weight: F32) -> QTensor:
    """Return a weight as ``torch.fbgemm_linear_quantize_weight`` quantizes it.

    To qint8 with the scale and zero point of ``choose_qparams_fbgemm``, and with one rounding of
    product and sum.

    Examples
    --------
    >>> quantize_weight(np.float32([[-1.0, 0.0, 1.55]])).int_repr
    array([[-128,  -28,  127]], dtype=int8)
    """
    low, high = min_max(weight)
    scale, zero_point = choose_qparams_fbgemm(low, high, *qint8.limits)
    q = rounding.quantize_fused(weight, scale, zero_point, qint8)
    return QTensor(q, scale, zero_point, None, qint8)


def reference(x: F32, weight: QTensor, bias: F32 | None, target: Target = Target()) -> F32:
    """Do ``quantized::linear_dynamic`` of fbgemm, with all 8 bits, whatever the engine is.

    The product behind ``torch.ops.quantized.make_quantized_cell_params``.

    Parameters
    ----------
    x : float32 array [..., in]
        Activations, quantized to quint8 by their own range.
    weight : QTensor [out, in]
        qint8, per tensor.
    bias : float32 array [out] or None
        Added in float32.

    Returns
    -------
    float32 array [..., out]

    Raises
    ------
    VerifyError
        If shapes or dtypes do not fit.
    UnsupportedError
        As ``quantized::linear_dynamic`` under fbgemm.

    Examples
    --------
    >>> w = QTensor(np.int8([[1, 2], [-3, 4]]), 0.5, 0, None, qint8)
    >>> reference(np.float32([[0.0, 255.0]]), w, np.float32([1, 2]))
    array([[256., 512.]], dtype=float32)
    """
    return dynamic.reference(x, weight, bias, False, replace(target, engine=Engine.FBGEMM))


def kernel(x: F32, weight: QTensor, bias: F32 | None, target: Target = Target()) -> F32:
    """Compute :func:`reference` with the compiled tile."""
    made: Any = dynamic.kernel(x, weight, bias, False, replace(target, engine=Engine.FBGEMM))
    result: F32 = made
    return result


def infer(x: TensorType, weight: TensorType, bias: TensorType | None) -> TensorType:
    """Check the operands; the last size becomes that of the weight."""
    return dynamic.infer(x, weight, bias, False)


_WEIGHT = QTensor(np.array([[1, 2], [-3, 4]], np.int8), 0.5, 0, None, qint8)

OPS = (
    Op(
        name="aten::fbgemm_linear_int8_weight_fp32_activation",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/QuantizedLinear.cpp"
            "::fbgemm_linear_int8_weight_fp32_activation",
        ),
        cases=(
            Case(
                "exact",
                (np.array([[0, 255]], np.float32), _WEIGHT, np.array([1, 2], np.float32)),
                {},
                [[256, 512]],
                "scale 1: nothing is rounded",
            ),
        ),
    ),
)
