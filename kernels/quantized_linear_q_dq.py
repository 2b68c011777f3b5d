"""``quantized::linear_with_input_q_dq_qweight_dq_output_fp32`` and its relu form."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, qint8, quint8
from refquant.kernels import checks, quantize_per_tensor, requantize
from refquant.kernels.accumulate import Sums
from refquant.kernels.multiply import linear_sums, matrix_product
from refquant.kernels.packing import Layout, PackedWeight
from refquant.kernels.quantized_linear import check_operands, sums, sums_of

F32 = npt.NDArray[np.float32]
ENGINES = {engine: requantize.LINEAR_DYNAMIC[engine] for engine in (Engine.FBGEMM, Engine.X86)}
_OP = "linear_with_input_q_dq_qweight_dq_output_fp32"


def reference(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    X_scale: float,  # noqa: N803  torch's names
    X_zero_point: int,  # noqa: N803
    target: Target = Target(),
) -> F32:
    r"""Quantize the input with given parameters, multiply integers, return float32.

    .. math:: y = \mathrm{fma}(\mathrm{float}(acc), s_x s_w, bias)

    ``x`` becomes quint8 as by ``aten::quantize_per_tensor``; the rest is
    ``quantized::linear_dynamic``.

    Parameters
    ----------
    x : float32 (..., K), rank >= 2
        Real values.
    weight : qint8 (N, K)
        Quantized per tensor, or per channel along axis 0; zero points may differ from 0.
    bias : float32 (N,) or None
        Added to the result.
    X_scale, X_zero_point : float, int
        Quantization parameters of the input, quint8.

    Returns
    -------
    float32 (..., N), contiguous

    Raises
    ------
    VerifyError
        If shapes, dtypes or quantization parameters do not fit.
    UnsupportedError
        If the engine is neither fbgemm nor x86.

    Notes
    -----
    Engines fbgemm and x86 are the same; torch has it under no other.

    Examples
    --------
    >>> w = QTensor(np.int8([[1, 2], [-3, 4]]), 0.5, 0, None, qint8)
    >>> reference(np.float32([[0.4, 7.0]]), w, np.float32([1, 2]), 0.5, 10)
    array([[ 8.25, 15.25]], dtype=float32)
    """
    form = requantize.stage_for(_OP, ENGINES, target)
    channels = weight.shape[0]
    constants = form.constants(X_scale, weight.scale, 1.0, bias, channels)
    q = QTensor(form.quantize(x, X_scale, X_zero_point), X_scale, X_zero_point)
    y = np.empty((*x.shape[:-1], channels), np.float32)
    results = y.reshape(-1, channels)
    for part, total in sums(q, weight, target):
        results[part] = form.finish(total, constants)
    return y


def reference_relu(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    X_scale: float,  # noqa: N803
    X_zero_point: int,  # noqa: N803
    target: Target = Target(),
) -> F32:
    """Do :func:`reference`, then replace negative results by 0."""
    return np.maximum(reference(x, weight, bias, X_scale, X_zero_point, target), np.float32(0))


def infer(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    X_scale: float,  # noqa: N803
    X_zero_point: int,  # noqa: N803
) -> TensorType:
    """Check operands and attributes; the last size becomes that of the weight."""
    checks.is_float32(_OP, x)
    checks.output_qparams(_OP, quint8, X_scale, X_zero_point)
    return check_operands(_OP, x, weight, bias)


def pack(weight: QTensor, **_attributes: Any) -> PackedWeight:
    """Arrange the weight for :func:`kernel`."""
    return PackedWeight.of(weight, Layout())


def kernel(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    X_scale: float,  # noqa: N803
    X_zero_point: int,  # noqa: N803
    target: Target = Target(),
) -> F32:
    """Compute :func:`reference` with the compiled tile."""
    form = requantize.stage_for(_OP, ENGINES, target)
    packed = pack(weight)
    y = np.empty((*x.shape[:-1], weight.shape[0]), np.float32)
    q = quantize_per_tensor.kernel(np.ascontiguousarray(x), X_scale, X_zero_point, quint8)
    if sums_of(q, target) is not Sums.EXACT:
        constants = form.constants(X_scale, weight.scale, 1.0, bias, weight.shape[0])
        y[...] = form.finish(linear_sums(q, packed, sums_of(q, target)), constants)
        return y
    lanes = packed.lanes(form.constants, q, 1.0, bias)
    rows = q.int_repr.reshape(-1, x.shape[-1])
    matrix_product(rows, packed, lanes, "real", requantize.UNREAD, y)
    return y


def kernel_relu(
    x: F32,
    weight: QTensor,
    bias: F32 | None,
    X_scale: float,  # noqa: N803
    X_zero_point: int,  # noqa: N803
    target: Target = Target(),
) -> F32:
    """Compute :func:`reference_relu` with the compiled tile."""
    y = kernel(x, weight, bias, X_scale, X_zero_point, target)
    return np.maximum(y, np.float32(0), out=y)


_X = np.array([[0.4, 7.0], [-9, 0.25]], np.float32)
_WEIGHT = QTensor(np.array([[1, 2], [-3, 4]], np.int8), 0.5, 0, None, qint8)
_BIAS = np.array([1, 2], np.float32)
_QPARAMS = {"X_scale": 0.5, "X_zero_point": 10}
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qlinear.cpp"
    "::PackedLinearWeight::apply_with_input_q_dq_qweight_dq_output_fp32",
)

OPS = (
    Op(
        name=f"quantized::{_OP}",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(ENGINES, kernel),
        pack=pack,
        source=_SOURCE,
        cases=(
            Case(
                "clamped",
                (_X, _WEIGHT, _BIAS),
                _QPARAMS,
                [[8.25, 15.25], [-1.5, 9.5]],
                "-9 is clamped to -5, 0.25 is a tie",
            ),
        ),
    ),
    Op(
        name="quantized::linear_with_input_q_dq_qweight_dq_relu_output_fp32",
        reference=reference_relu,
        infer=infer,
        kernels=dict.fromkeys(ENGINES, kernel_relu),
        pack=pack,
        source=_SOURCE,
        cases=(
            Case(
                "negative",
                (_X, _WEIGHT, _BIAS),
                _QPARAMS,
                [[8.25, 15.25], [0, 9.5]],
                "becomes 0",
            ),
        ),
    ),
)
