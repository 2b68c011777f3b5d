"""``quantized::layer_norm`` and ``aten::layer_norm``: normalised over the last dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType, format_shape, qint32, quint8
from refquant.kernels import checks, rounding
from refquant.kernels.jit import fma, jit
from refquant.kernels.norms import (
    VECTOR_WIDTH,
    Squares,
    are_moderate,
    float_squares,
    float_squares_compiled,
    moments,
    moments_one,
    multiply_add,
    multiply_add_one,
    quantize_one,
    quantize_split,
    sum_and_squares,
    sums,
)
from refquant.kernels.pointwise import body_rule
from refquant.kernels.rounding_jit import narrow_after, narrow_before

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def reference(
    input: QTensor,
    weight: F32 | None,
    bias: F32 | None,
    normalized_shape: Sequence[int],
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    r"""Normalise a quantized tensor over its last dimensions.

    With exact integer sums over the *n* elements of a row (of the integers themselves), and each
    step rounded to float32 unless float64 is written:

    .. math::
        m &= \textstyle\sum q / n, \quad
        v = \max(\mathrm{fma}(-m, m, \sum q^2 / n), 0) \\
        r &= s / \sqrt{(v s) s + \epsilon} \quad\text{(sum, root and quotient in float64)} \\
        y &= \mathrm{fma}(((q - z) - (m - z)) \cdot r, weight, bias)

    The first ``n // 32 * 32`` elements of a row are quantized with the rule of the vector body,
    the others with that of the scalar tail; see ``quantized::add``. Without vector instructions
    products and sums are rounded separately.

    Parameters
    ----------
    input : QTensor, quint8, qint8 or qint32
        Quantized per tensor. Squares of qint32 are added in float32, in eight columns first.
    weight, bias : float32 of the normalised shape, or None
        Scale and shift; 1 and 0 if None.
    normalized_shape : sequence of int
        The last lengths of the input.
    eps : float
        Added to the variance.
    output_scale : float, > 0
        Scale of the result.
    output_zero_point : int
        Zero point of the result.

    Returns
    -------
    QTensor
        C-contiguous.

    Raises
    ------
    VerifyError
        If shapes do not fit or an output parameter is out of range.

    Examples
    --------
    >>> x = QTensor(np.uint8([[1, 3]]), 0.5, 0)
    >>> reference(x, None, None, [2], 1e-5, 0.5, 10).int_repr
    array([[ 8, 12]], dtype=uint8)
    """
    parameters = (normalized_shape, eps, output_scale, output_zero_point, target)
    return _normalise(input, weight, bias, *parameters, float_squares)


def _normalise(
    input: QTensor,
    weight: F32 | None,
    bias: F32 | None,
    normalized_shape: Sequence[int],
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target,
    squares: Squares,
) -> QTensor:
    n = int(np.prod(normalized_shape, dtype=np.int64))
    scale, zero_point = float(input.scale), int(input.zero_point)
    q = np.ascontiguousarray(input.int_repr).reshape(-1, n).astype(np.int64)
    mean, r = moments(*sums(q, input.dtype, target, squares), n, scale, zero_point, eps, target)
    distance = (q - zero_point).astype(np.float32) - mean[:, np.newaxis]
    gain = np.ones(n, np.float32) if weight is None else weight.reshape(-1)
    shift = np.zeros(n, np.float32) if bias is None else bias.reshape(-1)
    y = multiply_add(distance * r[:, np.newaxis], gain, shift, target)
    in_body = np.arange(n) < n // VECTOR_WIDTH * VECTOR_WIDTH
    out = quantize_split(y, in_body, output_scale, output_zero_point, input.dtype, target)
    result = out.reshape(input.shape)
    return QTensor(result, output_scale, output_zero_point, None, input.dtype)


def reference_float(
    input: F32,
    weight: F32 | None = None,
    bias: F32 | None = None,
    *,
    normalized_shape: Sequence[int],
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> F32:
    r"""Normalise a float32 array over its last dimensions.

    .. math:: y = (x - \mu) / \sqrt{\sigma^2 + \epsilon} \cdot weight + bias

    Computed in float64 and rounded once. torch works in float32 and sums in the order of its
    vector registers: compare with an absolute tolerance of ``2e-6 * max(1, |y|)`` times the
    largest weight, as long as the mean is not large against the deviation.

    Examples
    --------
    >>> reference_float(np.float32([[1, 3]]), normalized_shape=[2], eps=0.0)
    array([[-1.,  1.]], dtype=float32)
    """
    axes = tuple(range(input.ndim - len(normalized_shape), input.ndim))
    x = input.astype(np.float64)
    centred = x - x.mean(axis=axes, keepdims=True)
    y = centred / np.sqrt((centred * centred).mean(axis=axes, keepdims=True) + eps)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return np.ascontiguousarray(y.astype(np.float32))


def _check_shapes(
    op: str,
    input: TensorType,
    normalized_shape: Sequence[int],
    weight: TensorType | None,
    bias: TensorType | None,
) -> None:
    shape = tuple(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise VerifyError(
            f"{op}: normalized_shape {list(shape)} is not the end of {format_shape(input.shape)}"
        )
    for name, x in (("weight", weight), ("bias", bias)):
        if x is not None:
            checks.is_float32(op, x, name)
            if x.shape != shape:
                got = format_shape(x.shape)
                raise VerifyError(f"{op}: {name} must be {format_shape(shape)}, got {got}")


def infer(
    input: TensorType,
    weight: TensorType | None,
    bias: TensorType | None,
    normalized_shape: Sequence[int],
    eps: float,
    output_scale: float,
    output_zero_point: int,
) -> TensorType:
    """Check shapes and output parameters."""
    op = "quantized::layer_norm"
    checks.per_tensor(op, input)
    _check_shapes(op, input, normalized_shape, weight, bias)
    qparams = checks.output_qparams(op, input.dtype, output_scale, output_zero_point)
    return TensorType(input.dtype, input.shape, qparams)


def infer_float(
    input: TensorType,
    weight: TensorType | None = None,
    bias: TensorType | None = None,
    *,
    normalized_shape: Sequence[int],
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> TensorType:
    """Check dtypes and shapes."""
    checks.is_float32("aten::layer_norm", input)
    _check_shapes("aten::layer_norm", input, normalized_shape, weight, bias)
    return input


@jit
def _fill(
    x: Any,
    scale: np.float32,
    zero_point: int,
    gain: F32,
    shift: F32,
    eps: float,
    fused: bool,
    inverse: np.float32,
    to: int,
    low: int,
    high: int,
    rule: int,
    y: Any,
) -> None:
    n = x.shape[1]
    body = n // 32 * 32
    moderate: Any = fused and rule == 0 and are_moderate(gain) and are_moderate(shift)
    moderate = moderate and 1e-15 < inverse < 1e15
    zero, z = np.float32(zero_point), np.float32(to)
    least, most = np.float32(low - to), np.float32(high - to)
    bottom, top = np.float32(low), np.float32(high)
    for i in range(x.shape[0]):
        row, into = x[i], y[i]
        total, squares = sum_and_squares(row)
        mean, r = moments_one(
            np.float32(total), np.float32(squares), n, scale, zero_point, eps, fused
        )
        if not (moderate and r < 1e15):
            for j in range(n):
                distance = np.float32(np.float32(np.int64(row[j]) - zero_point) - mean)
                real = multiply_add_one(np.float32(distance * r), gain[j], shift[j], fused)
                into[j] = quantize_one(real, j < body, inverse, to, low, high, rule)
            continue
        for j in range(body):
            distance = np.float32(np.float32(np.float32(row[j]) - zero) - mean)
            real = fma(np.float32(distance * r), gain[j], shift[j])
            into[j] = narrow_after(real, inverse, to, least, most)
        row, into, factors, summands = row[body:], into[body:], gain[body:], shift[body:]
        for j in range(into.size):
            distance = np.float32(np.float32(np.float32(row[j]) - zero) - mean)
            real = fma(np.float32(distance * r), factors[j], summands[j])
            into[j] = narrow_before(real, inverse, z, bottom, top)


def kernel(
    input: QTensor,
    weight: F32 | None,
    bias: F32 | None,
    normalized_shape: Sequence[int],
    eps: float,
    output_scale: float,
    output_zero_point: int,
    target: Target = Target(),
) -> QTensor:
    """Compute :func:`reference` row by row, compiled."""
    if input.dtype == qint32:
        parameters = (normalized_shape, eps, output_scale, output_zero_point, target)
        return _normalise(input, weight, bias, *parameters, float_squares_compiled)
    n = prod(normalized_shape)
    x = np.ascontiguousarray(input.int_repr).reshape(-1, n)
    y = np.empty(x.shape, x.dtype)
    gain = np.ones(n, np.float32) if weight is None else np.ascontiguousarray(weight).reshape(-1)
    shift = np.zeros(n, np.float32) if bias is None else np.ascontiguousarray(bias).reshape(-1)
    _fill(
        x,
        np.float32(input.scale),
        int(input.zero_point),
        gain,
        shift,
        float(eps),
        target.fused_multiply_add,
        rounding.reciprocal(output_scale),
        output_zero_point,
        *input.dtype.limits,
        body_rule(input.dtype, target),
        y,
    )
    result = y.reshape(input.shape)
    return QTensor(result, output_scale, output_zero_point, None, input.dtype)


_X = QTensor(np.array([[1, 3], [7, 7]], np.uint8), 0.5, 5, None, quint8)
_OUTPUT = {"eps": 1e-5, "output_scale": 0.5, "output_zero_point": 10}

OPS = (
    Op(
        name="quantized::layer_norm",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::quantized_normalize_kernel",
        ),
        cases=(
            Case(
                "plain",
                (_X, None, None),
                {"normalized_shape": [2], **_OUTPUT},
                [[8, 12], [10, 10]],
                "-1 and 1; a constant row becomes 0",
            ),
            Case(
                "affine",
                (_X, np.array([2, 3], np.float32), np.array([1, 0], np.float32)),
                {"normalized_shape": [2], **_OUTPUT},
                [[8, 16], [12, 10]],
                "2 * -1 + 1 and 3 * 1",
            ),
        ),
    ),
    Op(
        name="aten::layer_norm",
        reference=reference_float,
        infer=infer_float,
        kernels=dict.fromkeys(TORCH_ENGINES, reference_float),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/cpu/layer_norm_kernel.cpp::LayerNormKernelImpl",
        ),
        cases=(
            Case(
                "exact",
                (np.array([[1, 3]], np.float32),),
                {"normalized_shape": [2], "eps": 0.0},
                [[-1, 1]],
                "variance 1",
            ),
        ),
    ),
)
