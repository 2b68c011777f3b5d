"""``batch_norm`` in evaluation, quantized (1d, 2d, 3d, each with relu) and float."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType, qint32, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.jit import fma, jit
from refquant.kernels.layout import (
    empty_channels_last,
    empty_suggested,
    flat,
    is_channels_last,
)
from refquant.kernels.norms import multiply_add, multiply_add_one
from refquant.kernels.rounding_jit import narrow_after, quantize_after, quantize_before

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

RANKS = {
    "batch_norm": (2, 3, 4, 5),
    "batch_norm1d": (2, 3),
    "batch_norm2d": (4,),
    "batch_norm3d": (5,),
}
# Without vector instructions torch still works on blocks of channels of this length.
PLAIN_WIDTH = 8


def _inverse_deviation(var: F32, eps: float) -> F32:
    """Return ``1 / sqrt(var + eps)``; sum and root in float32, quotient in float64."""
    root = np.sqrt(var + np.float32(eps))
    return np.asarray(1.0 / root.astype(np.float64)).astype(np.float32)


def coefficients(
    weight: F32, bias: F32, mean: F32, var: F32, eps: float, scale: float, output_scale: float
) -> tuple[F32, F32]:
    """Return the factor and the summand of each channel, in steps of the result."""
    inverse = _inverse_deviation(var, eps)
    alpha = (inverse * weight).astype(np.float64) * (scale / output_scale)
    beta = (bias - mean * inverse * weight).astype(np.float64) / output_scale
    return alpha.astype(np.float32), beta.astype(np.float32)


def reference(
    qx: QTensor,
    weight: F32,
    bias: F32,
    mean: F32,
    var: F32,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    r"""Normalise each channel of a quantized tensor by running statistics.

    .. math::
        i &= 1 / \sqrt{var + \epsilon}, \quad
        \alpha = (i \cdot weight) \cdot (s / s_o), \quad
        \beta = (bias - (mean \cdot i) \cdot weight) / s_o \\
        q_o &= \mathrm{clamp}(\mathrm{rint}(\mathrm{fma}(q - z, \alpha, \beta)) + z_o)

    Each step is rounded to float32; the quotient :math:`s / s_o`, its product and the division
    by :math:`s_o` are float64 before that. Without vector instructions the last product and sum
    are rounded separately, and of the channels the first multiple of 8 adds :math:`z_o` before
    rounding.

    Parameters
    ----------
    qx : QTensor, quint8, qint8 or qint32
        (N, C, ...), quantized per tensor; qint32 adds :math:`z_o` before rounding in the
        first multiple of 8 channels.
    weight, bias, mean, var : float32, shape (C,)
        Scale, shift, running mean and running variance.
    eps : float
        Added to the variance.
    output_scale : float, > 0
        Scale of the result.
    output_zero_point : int
        Zero point of the result.

    Returns
    -------
    QTensor
        Channels-last for rank 4 and 5, C-contiguous for rank 2 and 3.

    Raises
    ------
    VerifyError
        If the rank or the number of channels does not fit, or an output parameter is out of
        range.

    Examples
    --------
    >>> x = QTensor(np.uint8([[1, 3]]), 0.5, 0)
    >>> one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    >>> reference(x, one, zero, zero, one, 0.0, 0.25, 7).int_repr
    array([[ 9, 13]], dtype=uint8)
    """
    return _normalise(
        *(qx, weight, bias, mean, var, eps, output_scale, output_zero_point, target),
        relu=False,
    )


def reference_relu(
    qx: QTensor,
    weight: F32,
    bias: F32,
    mean: F32,
    var: F32,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Normalise each channel of a quantized tensor by running statistics and clamp at 0.

    No integer of the result is below its zero point; everything else is as in
    ``quantized::batch_norm``.

    Examples
    --------
    >>> x = QTensor(np.uint8([[1, 3]]), 0.5, 2)
    >>> one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    >>> reference_relu(x, one, zero, zero, one, 0.0, 0.25, 7).int_repr
    array([[7, 9]], dtype=uint8)
    """
    return _normalise(
        *(qx, weight, bias, mean, var, eps, output_scale, output_zero_point, target),
        relu=True,
    )


def _normalise(
    qx: QTensor,
    weight: F32,
    bias: F32,
    mean: F32,
    var: F32,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target,
    *,
    relu: bool,
) -> QTensor:
    x, dtype, one = qx.int_repr, qx.dtype, np.float32(1)
    per_channel = (-1, *(1,) * (x.ndim - 2))
    alpha, beta = (
        part.reshape(per_channel)
        for part in coefficients(weight, bias, mean, var, eps, float(qx.scale), output_scale)
    )
    distance = (x.astype(np.int64) - qx.zero_point).astype(np.float32)
    y = multiply_add(distance, alpha, beta, target)
    after = rounding.round_after(y, one, output_zero_point, dtype)
    before = rounding.round_before(y, one, output_zero_point, dtype)
    in_blocks = np.arange(x.shape[1]) < _blocks(qx, target)
    q = np.where(in_blocks.reshape(per_channel), before, after)
    out = _empty_result(x)
    np.maximum(q, output_zero_point if relu else dtype.limits[0], out=out)
    return QTensor(out, output_scale, output_zero_point, None, dtype)


def _blocks(x: QTensor, target: Target) -> int:
    """Return how many channels add the zero point before rounding."""
    if target.fused_multiply_add and x.dtype != qint32:
        return 0
    return x.shape[1] // PLAIN_WIDTH * PLAIN_WIDTH


def _empty_result(x: Array) -> Array:
    if x.ndim > 3 and x.size:
        return empty_channels_last(x.shape, x.dtype)
    return np.empty(x.shape, x.dtype)


def reference_float(
    input: F32,
    weight: F32 | None,
    bias: F32 | None,
    running_mean: F32,
    running_var: F32,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
    target: Target = Target(),
) -> F32:
    r"""Normalise each channel of a float32 array by running statistics.

    .. math::
        \alpha = \frac{1}{\sqrt{var + \epsilon}} \cdot weight, \quad
        \beta = \mathrm{fma}(-mean, \alpha, bias), \quad
        y = \mathrm{fma}(x, \alpha, \beta)

    Each step is rounded to float32 (products and sums separately without vector instructions).
    Exact for an input in C order or channels-last; for a view with gaps torch computes another
    way, so compare with a tolerance of ``1e-6 * max(1, |y|)`` there.

    Parameters
    ----------
    input : float32
        (N, C, ...).
    weight, bias : float32, shape (C,), or None
        Scale and shift; 1 and 0 if None.
    running_mean, running_var : float32, shape (C,)
        Statistics.
    training : bool
        Must be False.
    momentum, cudnn_enabled
        Without effect.
    eps : float
        Added to the variance.

    Returns
    -------
    float32 array
        Channels-last for a channels-last image, otherwise C-contiguous.

    Raises
    ------
    UnsupportedError
        If ``training`` is True.
    VerifyError
        If the number of channels does not fit.

    Examples
    --------
    >>> x, one, zero = np.float32([[1, 3]]), np.ones(2, np.float32), np.zeros(2, np.float32)
    >>> reference_float(x, one, zero, one, one, False, 0.1, 0.0, False)
    array([[0., 2.]], dtype=float32)
    """
    channels = input.shape[1]
    per_channel = (-1, *(1,) * (input.ndim - 2))
    alpha = np.float32(1) / np.sqrt(running_var + np.float32(eps))
    alpha = alpha if weight is None else alpha * weight
    shift = np.zeros(channels, np.float32) if bias is None else bias
    beta = multiply_add(-running_mean, alpha, shift, target)
    out = empty_suggested(input, np.float32)
    out[...] = multiply_add(input, alpha.reshape(per_channel), beta.reshape(per_channel), target)
    return out


def _infer(name: str) -> Callable[..., TensorType]:
    op = f"quantized::{name}"
    ranks = RANKS[name.removesuffix("_relu")]

    def infer(
        qx: TensorType,
        weight: TensorType,
        bias: TensorType,
        mean: TensorType,
        var: TensorType,
        eps: float,
        output_scale: float,
        output_zero_point: int,
    ) -> TensorType:
        """Check rank, number of channels and output parameters."""
        checks.per_tensor(op, qx)
        if qx.rank not in ranks:
            accepted = " or ".join(map(str, ranks))
            raise VerifyError(f"{op}: expected rank {accepted}, got {qx}")
        named = {"weight": weight, "bias": bias, "mean": mean, "var": var}
        for operand, x in named.items():
            if x is None:
                raise VerifyError(f"{op}: {operand} must be given")
            checks.vector(op, x, qx.shape[1], operand)
        qparams = checks.output_qparams(op, qx.dtype, output_scale, output_zero_point)
        return TensorType(qx.dtype, qx.shape, qparams)

    return infer


def infer_float(
    input: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    running_mean: TensorType | None,
    running_var: TensorType | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> TensorType:
    """Check dtypes and the number of channels; training is refused."""
    op = "aten::batch_norm"
    checks.is_float32(op, input)
    if training:
        raise UnsupportedError(f"{op}: training is not supported; use eval mode")
    if input.rank < 2:
        raise VerifyError(f"{op}: expected rank 2 or more, got {input}")
    if running_mean is None or running_var is None:
        raise VerifyError(f"{op}: running_mean and running_var must be given")
    named = {
        **{"weight": weight, "bias": bias},
        **{"running_mean": running_mean, "running_var": running_var},
    }
    for operand, x in named.items():
        checks.vector(op, x, input.shape[1], operand)
    return input


@jit
def _fill(
    x: Any,
    zero_point: int,
    alpha: F32,
    beta: F32,
    to: int,
    floor: int,
    high: int,
    fused: bool,
    blocks: int,
    y: Any,
) -> None:
    """Normalise rows of channels, of which the first ``blocks`` add ``to`` before rounding."""
    channels = alpha.size
    one = np.float32(1)
    ordinary = x.itemsize == 1
    for c in range(channels):
        ordinary = ordinary and abs(alpha[c]) < 1e30 and abs(beta[c]) < 1e30
    if ordinary and fused and blocks == 0:
        _fill_8bit(x, zero_point, alpha, beta, to, floor, high, y)
        return
    for i in range(x.size // channels):
        for c in range(channels):
            distance = np.float32(np.int64(x[i * channels + c]) - zero_point)
            real = multiply_add_one(distance, alpha[c], beta[c], fused)
            if c < blocks:
                y[i * channels + c] = quantize_before(real, one, to, floor, high)
            else:
                y[i * channels + c] = quantize_after(real, one, to, floor, high)


@jit
def _fill_8bit(
    x: Any, zero_point: int, alpha: F32, beta: F32, to: int, floor: int, high: int, y: Any
) -> None:
    """Normalise with finite coefficients by a loop that vectorises."""
    one, zero, channels = np.float32(1), np.float32(zero_point), alpha.size
    least, most = np.float32(floor - to), np.float32(high - to)
    several = min(x.size // channels, max(1, 1024 // channels))  # pixels that one loop takes
    a, b = np.empty(several * channels, np.float32), np.empty(several * channels, np.float32)
    for i in range(several):
        a[i * channels : (i + 1) * channels] = alpha
        b[i * channels : (i + 1) * channels] = beta
    for first in range(0, x.size, a.size):
        row, into = x[first : first + a.size], y[first : first + a.size]
        for c in range(into.size):
            real = fma(np.float32(np.float32(row[c]) - zero), a[c], b[c])
            into[c] = narrow_after(real, one, to, least, most)


def _run(
    qx: QTensor,
    weight: F32,
    bias: F32,
    mean: F32,
    var: F32,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target,
    *,
    relu: bool,
) -> QTensor:
    x, (low, high) = qx.int_repr, qx.dtype.limits
    if not x.size:
        out = _empty_result(x)
        return QTensor(out, output_scale, output_zero_point, None, qx.dtype)
    alpha, beta = coefficients(weight, bias, mean, var, eps, float(qx.scale), output_scale)
    if x.ndim == 4 and is_channels_last(x):
        rows, y, out = flat(x, x.dtype)
    else:
        moved = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        filled = np.empty(moved.shape, x.dtype)
        rows, y, out = moved.reshape(-1), filled.reshape(-1), np.moveaxis(filled, -1, 1)
    floor = output_zero_point if relu else low
    _fill(
        *(rows, int(qx.zero_point), alpha, beta, output_zero_point),
        *(floor, high, target.fused_multiply_add, _blocks(qx, target), y),
    )
    out = np.ascontiguousarray(out) if x.ndim < 4 else out
    return QTensor(out, output_scale, output_zero_point, None, qx.dtype)


def kernel(
    qx: QTensor,
    weight: F32,
    bias: F32,
    mean: F32,
    var: F32,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` in one compiled pass."""
    return _run(
        *(qx, weight, bias, mean, var, eps, output_scale, output_zero_point, target), relu=False
    )


def kernel_relu(
    qx: QTensor,
    weight: F32,
    bias: F32,
    mean: F32,
    var: F32,
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference_relu` in one compiled pass."""
    return _run(
        *(qx, weight, bias, mean, var, eps, output_scale, output_zero_point, target), relu=True
    )


_SOURCE = (
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/Normalization.cpp::compute_fused_params",
    "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
    "::q_batch_norm_kernel",
)
_ONE, _ZERO = np.ones(2, np.float32), np.zeros(2, np.float32)
_OUTPUT = {"eps": 0.0, "output_scale": 1.0, "output_zero_point": 7}


def _example(rank: int) -> QTensor:
    values = np.reshape(np.array([1, 8], np.uint8), (1, 2, *(1,) * (rank - 2)))
    return QTensor(values, 0.5, 4, None, quint8)


def _op(name: str, *, relu: bool) -> Op:
    rank = RANKS[name][0]
    operands = (_example(rank), _ONE, np.array([0, 0.5], np.float32), _ZERO, _ONE)
    expected = [7 if relu else 5, 9]
    return Op(
        name=f"quantized::{name}_relu" if relu else f"quantized::{name}",
        reference=reference_relu if relu else reference,
        infer=_infer(f"{name}_relu" if relu else name),
        kernels=dict.fromkeys(TORCH_ENGINES, kernel_relu if relu else kernel),
        source=_SOURCE,
        cases=(
            Case(
                *("ties", operands, _OUTPUT, np.reshape(expected, operands[0].shape)),
                "-1.5 goes to -2, 2.5 to 2, then 7 is added" + (" and clamped" if relu else ""),
            ),
        ),
    )


OPS = (
    *(_op(name, relu=relu) for name in RANKS for relu in (False, True)),
    Op(
        name="aten::batch_norm",
        reference=reference_float,
        infer=infer_float,
        kernels=dict.fromkeys(TORCH_ENGINES, reference_float),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/cpu/batch_norm_kernel.cpp::batch_norm_cpu_kernel",
        ),
        cases=(
            Case(
                "exact",
                (
                    np.array([[1, 3]], np.float32),
                    None,
                    _ONE,
                    _ONE,
                    np.array([4, 0.25], np.float32),
                ),
                {
                    **{"training": False, "momentum": 0.1},
                    **{"eps": 0.0, "cudnn_enabled": False},
                },
                [[1, 5]],
                "(1 - 1) / 2 + 1 and (3 - 1) / 0.5 + 1",
            ),
        ),
    ),
)
