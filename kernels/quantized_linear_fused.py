"""``quantized::linear_leaky_relu`` and ``linear_tanh``: activations before rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import TensorType, qint8, quint8
from refquant.kernels import quantized_linear, requantize, requantize_jit
from refquant.kernels.elementary import tanh_glibc
from refquant.kernels.multiply import linear_sums
from refquant.kernels.requantize import Rounding

F32 = npt.NDArray[np.float32]


def reference(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    negative_slope: float,
    target: Target = Target(Engine.ONEDNN),
) -> QTensor:
    r"""Multiply, add the bias, multiply what is negative by a slope, round once.

    The real value :math:`v` before the rounding is that of oneDNN's ``quantized::linear``; where
    it is not positive it becomes ``v * negative_slope``, a float32 product with the rounded
    slope. Then

    .. math:: q = \mathrm{rint}(\mathrm{clamp}(v \cdot (1 / s') + z, low, high))

    as there (qint8: the quotient by :math:`s'`).

    Parameters
    ----------
    x : quint8 or qint8 (..., K), rank >= 2
        Quantized per tensor.
    weight : qint8 (N, K)
        Quantized per tensor, or per channel along axis 0; zero points 0.
    bias : float32 (N,) or None
        Added before the activation.
    scale, zero_point : float, int
        Quantization parameters of the result.
    negative_slope : float
        Any number; 0 is relu.

    Returns
    -------
    QTensor, dtype of ``x``, (..., N), contiguous

    Raises
    ------
    VerifyError
        If shapes, dtypes or quantization parameters do not fit.
    UnsupportedError
        If a weight zero point is not 0.

    Notes
    -----
    torch has it under engine onednn only.

    Examples
    --------
    >>> x = QTensor(np.uint8([[3, 1]]), 0.5, 1)
    >>> w = QTensor(np.int8([[4, 0], [-4, 0]]), 0.5, 0, None, qint8)
    >>> reference(x, w, None, 0.25, 10, 0.25).int_repr
    array([[18,  8]], dtype=uint8)
    """
    slope = np.float32(negative_slope)

    def bent(real: F32) -> F32:
        return np.where(real > 0, real, real * slope)

    return _exact("linear_leaky_relu", x, weight, bias, scale, zero_point, target, bent)


def reference_tanh(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(Engine.ONEDNN),
) -> QTensor:
    """Do :func:`reference` with tanh instead of the slope.

    For qint8 it is the C library's ``tanhf``. For quint8 (under avx2 for both) oneDNN's own is a
    polynomial whose last bits are not reproduced; it is computed in float64 and rounded to
    float32, and where a value lies within a few units in the last place of a rounding tie, the
    result can be one step off.
    """
    return _exact("linear_tanh", x, weight, bias, scale, zero_point, target, TANH[x.dtype])


def _tanh(real: F32) -> F32:
    return np.tanh(real.astype(np.float64)).astype(np.float32)


TANH = {quint8: _tanh, qint8: tanh_glibc}


def _exact(
    op: str,
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target,
    bent: Callable[[F32], F32],
) -> QTensor:
    stage = quantized_linear.stage(op, x, weight, target)
    channels = weight.shape[0]
    constants = stage.constants(float(x.scale), weight.scale, scale, bias, channels)
    rounding = Rounding(scale, zero_point, *x.dtype.limits)
    q = np.empty((*x.shape[:-1], channels), x.int_repr.dtype)
    rows = q.reshape(-1, channels)
    step = np.divide if requantize.divides(stage) else np.multiply
    for part, total in quantized_linear.sums(x, weight, target):
        with np.errstate(over="ignore", invalid="ignore"):
            real = bent(requantize.real_values(total, constants))
            steps = step(real, constants.output)
            rows[part] = requantize.round_clamped(steps, rounding)
    return QTensor(q, scale, zero_point, None, x.dtype)


def infer(
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    scale: float,
    zero_point: int,
    negative_slope: float = 0.0,
) -> TensorType:
    """Check operands and attributes; the last size becomes that of the weight."""
    return quantized_linear.infer(x, weight, bias, scale, zero_point)


def kernel(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    negative_slope: float,
    target: Target = Target(Engine.ONEDNN),
) -> QTensor:
    """Compute :func:`reference` from the sums of the compiled tile."""
    loop, slope = requantize_jit.requantize_leaky_relu, np.float32(negative_slope)
    return _tiled("linear_leaky_relu", x, weight, bias, scale, zero_point, target, loop, slope)


def kernel_tanh(
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target = Target(Engine.ONEDNN),
) -> QTensor:
    """Compute :func:`reference_tanh` from the sums of the compiled tile."""
    loop, slope = requantize_jit.requantize_tanh, np.float32(0)
    return _tiled("linear_tanh", x, weight, bias, scale, zero_point, target, loop, slope)


def _tiled(
    op: str,
    x: QTensor,
    weight: QTensor,
    bias: F32 | None,
    scale: float,
    zero_point: int,
    target: Target,
    loop: Callable[..., None],
    slope: np.float32,
) -> QTensor:
    stage = quantized_linear.stage(op, x, weight, target)
    total = linear_sums(x, quantized_linear.pack(weight), quantized_linear.sums_of(x, target))
    channels = total.shape[-1]
    constants = stage.constants(float(x.scale), weight.scale, scale, bias, channels)
    y = np.empty(total.shape, np.uint8)
    limits = tuple(map(np.float32, (zero_point, *x.dtype.limits)))
    loop(
        *(total.reshape(-1, channels), constants.addend, constants.factor, constants.multiplier),
        *(constants.output, requantize.divides(stage), slope, limits, y.reshape(-1, channels)),
    )
    return QTensor(y.view(x.int_repr.dtype), scale, zero_point, None, x.dtype)


_X = QTensor(np.array([[3, 1]], np.uint8), 0.5, 1)
_SIGNED = QTensor(np.array([[2, 0]], np.int8), 0.5, 0, None, qint8)
_WEIGHT = QTensor(np.array([[4, 0], [-4, 0]], np.int8), 0.5, 0, None, qint8)
_OUT = {"scale": 0.25, "zero_point": 10}
_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/qlinear.cpp"
    "::PackedLinearWeightsOnednn::apply_impl",
)

OPS = (
    Op(
        name="quantized::linear_leaky_relu",
        reference=reference,
        infer=infer,
        kernels={Engine.ONEDNN: kernel},
        pack=quantized_linear.pack,
        source=_SOURCE,
        cases=(
            Case(
                "tie",
                (_X, _WEIGHT, None),
                {**_OUT, "negative_slope": 0.0625},
                [[18, 10]],
                "-2 becomes -0.125, half a step: 9.5 goes to 10",
            ),
            Case(
                "signed",
                (_SIGNED, _WEIGHT, None),
                {**_OUT, "negative_slope": 0.25},
                [[18, 8]],
                "qint8 in, qint8 out",
            ),
        ),
    ),
    Op(
        name="quantized::linear_tanh",
        reference=reference_tanh,
        infer=infer,
        kernels={Engine.ONEDNN: kernel_tanh},
        pack=quantized_linear.pack,
        source=_SOURCE,
        cases=(Case("both", (_X, _WEIGHT, None), _OUT, [[14, 6]], "0.964 is 3.86 steps"),),
    ),
)
