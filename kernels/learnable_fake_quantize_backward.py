"""The gradients of the learnable fake-quants: LSQ, by input, scale and zero point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import type_of
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType, bfloat16, float32, format_shape
from refquant.kernels.fake_quantize_per_channel import F32, check_channels
from refquant.kernels.fake_quantize_per_tensor import Array
from refquant.kernels.float_sum import block, block_compiled, sum_dims, total, total_compiled
from refquant.kernels.layout import memory_order
from refquant.kernels.learnable_fake_quantize import (
    PER_CHANNEL,
    PER_TENSOR,
    check_vectors,
    limited,
)
from refquant.kernels.learnable_gradients import Triple, elements, elements_compiled

Elements = Callable[..., Triple]


def per_tensor(
    grad: Array,
    x: Array,
    scale: Array,
    zero_point: Array,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
    target: Target = Target(),
) -> Triple:
    r"""Return the gradients of ``_fake_quantize_learnable_per_tensor_affine`` (LSQ).

    With :math:`z` = ``zero_point + 0.5`` limited to the range and *truncated* (the forward pass
    rounds to even instead), :math:`q = \mathrm{rint}(\mathrm{fma}(x, 1/s, z))` and the incoming
    gradient :math:`g`, each element contributes, rounded to float32 after every operation,

    ===========  ==========  =================================  =================
    where        by ``x``    by ``scale``                       by ``zero_point``
    ===========  ==========  =================================  =================
    in range     ``g``       ``g * fma(q - z, s, -x) * (1/s)``  ``0``
    below, NaN   ``g * 0``   ``g * (quant_min - z)``            ``-g * s``
    above        ``g * 0``   ``g * (quant_max - z)``            ``-g * s``
    ===========  ==========  =================================  =================

    The last two columns are then multiplied by ``grad_factor``.
    Everything beyond 2**63 counts as below. Without fused multiply-add both fma's round twice.
    The contributions by scale and zero point are then added in the order of ``torch.sum``, which
    depends on the memory layout and, from 32,768 elements on, on the number of threads.

    Parameters
    ----------
    grad : float32 (or bfloat16, where ``x`` is), shape of ``x``
        Gradient of the loss by the result.
    x : float32 or bfloat16, any shape
        Real values.
    scale, zero_point : float32 (or bfloat16, where ``x`` is), rank 1
        Their first elements count.
    quant_min, quant_max : int
        Range of the quantized values, which must hold 0.
    grad_factor : float
        Rounded to float32.
    target : Target
        ``fused_multiply_add`` and ``threads``.

    Returns
    -------
    by_x : float32, shape of ``x``
    by_scale, by_zero_point : float32, one element
        For an empty ``x`` all three are the operands themselves.

    Raises
    ------
    VerifyError
        If a dtype or shape does not fit, the range does not hold 0, or the zero point is NaN.

    Examples
    --------
    >>> grad, x = np.float32([1, 1, 1]), np.float32([0.3, 0.7, 9.0])
    >>> per_tensor(grad, x, np.float32([0.5]), np.float32([1.0]), 0, 7)
    (array([1., 1., 0.], dtype=float32), array([6.], dtype=float32), array([-0.5], dtype=float32))
    """
    sizes = quant_min, quant_max, grad_factor
    return _per_tensor(elements, total, grad, x, scale, zero_point, *sizes, target)


def per_tensor_compiled(
    grad: Array,
    x: Array,
    scale: Array,
    zero_point: Array,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
    target: Target = Target(),
) -> Triple:
    """Compute :func:`per_tensor`, compiled."""
    sizes = quant_min, quant_max, grad_factor
    return _per_tensor(
        elements_compiled, _total_compiled, grad, x, scale, zero_point, *sizes, target
    )


def _per_tensor(
    function: Elements,
    add: Callable[[F32, Target], np.float32],
    grad: Array,
    x: Array,
    scale: Array,
    zero_point: Array,
    quant_min: int,
    quant_max: int,
    grad_factor: float,
    target: Target,
) -> Triple:
    s, z = type_of(scale), type_of(zero_point)
    _infer_per_tensor(type_of(grad), type_of(x), s, z, quant_min, quant_max)
    if x.size == 0:
        return x, scale, zero_point
    raised = zero_point[:1].astype(np.float32) + np.float32(0.5)
    zero = np.trunc(limited(PER_TENSOR, raised, quant_min, quant_max))
    arguments = None, quant_min, quant_max, grad_factor, target.fused_multiply_add
    by_x, *parts = function(grad, x, scale[:1].astype(np.float32), zero, *arguments)
    # Dense memory, whatever its order, is one loop to torch.sum.
    by_scale, by_zero = (np.array([add(memory_order(part), target)]) for part in parts)
    return by_x, by_scale, by_zero


def _total_compiled(x: F32, target: Target) -> np.float32:
    return np.float32(total_compiled(x, target.threads))


def per_channel(
    grad: Array,
    x: Array,
    scale: F32,
    zero_point: F32,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
    target: Target = Target(),
) -> Triple:
    """Return the gradients of ``_fake_quantize_learnable_per_channel_affine`` (LSQ).

    As ``_fake_quantize_learnable_per_tensor_affine_backward``, with two differences: the zero
    points are rounded to even, then limited to the range, as in the forward pass; and the
    contributions by scale and zero point are added over all dimensions but ``axis``, in the order
    of ``torch.sum``. Where ``x`` has rank 1 no dimension remains, and torch adds all of them.

    Parameters
    ----------
    grad : float32 (or bfloat16, where ``x`` is), shape of ``x``
        Gradient of the loss by the result.
    x : float32 or bfloat16, any shape
        Real values.
    scale, zero_point : float32 (or bfloat16, where ``x`` is), shape (C,)
        Parameters of each channel.
    axis : int, >= 0
        The channel axis.
    quant_min, quant_max : int
        Range of the quantized values, which must hold 0.
    grad_factor : float
        Rounded to float32.
    target : Target
        ``fused_multiply_add`` and ``threads``.

    Returns
    -------
    by_x : float32, shape of ``x``
    by_scale, by_zero_point : float32, shape (C,), or () where ``x`` has rank 1
        For an empty ``x`` all three are the operands themselves.

    Raises
    ------
    VerifyError
        If a dtype or shape does not fit, the range does not hold 0, or a zero point is NaN.

    Examples
    --------
    >>> grad, x = np.float32([[1, 1], [1, 1]]), np.float32([[0.3, 9.0], [-9.0, 0.5]])
    >>> per_channel(grad, x, np.float32([0.5, 1]), np.float32([1, 0]), 0, 0, 7)[1:]
    (array([ 6.4, -0.5], dtype=float32), array([-0.5, -1. ], dtype=float32))
    """
    sizes = axis, quant_min, quant_max, grad_factor
    return _per_channel(elements, block, grad, x, scale, zero_point, *sizes, target)


def per_channel_compiled(
    grad: Array,
    x: Array,
    scale: F32,
    zero_point: F32,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
    target: Target = Target(),
) -> Triple:
    """Compute :func:`per_channel`, compiled."""
    sizes = axis, quant_min, quant_max, grad_factor
    return _per_channel(
        elements_compiled, block_compiled, grad, x, scale, zero_point, *sizes, target
    )


def _per_channel(
    function: Elements,
    inner: Any,
    grad: Array,
    x: Array,
    scale: F32,
    zero_point: F32,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float,
    target: Target,
) -> Triple:
    s, z = type_of(scale), type_of(zero_point)
    _infer_per_channel(type_of(grad), type_of(x), s, z, axis, quant_min, quant_max)
    if x.size == 0:
        return x, scale, zero_point
    zero = limited(PER_CHANNEL, np.rint(zero_point.astype(np.float32)), quant_min, quant_max)
    arguments = axis, quant_min, quant_max, grad_factor, target.fused_multiply_add
    by_x, *parts = function(grad, x, scale.astype(np.float32), zero, *arguments)
    others = [d for d in range(x.ndim) if d != axis] or [0]
    shape = scale.shape if x.ndim > 1 else ()
    by_scale, by_zero = (sum_dims(part, others, target, inner).reshape(shape) for part in parts)
    return by_x, by_scale, by_zero


# ---- types


def _check(
    op: str,
    grad: TensorType,
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    quant_min: int,
    quant_max: int,
) -> TensorType:
    """Check what both backward passes demand; return the type of the gradient by ``x``."""
    if x.dtype not in (float32, bfloat16):
        raise VerifyError(f"{op}: dtype must be float32 or bfloat16, got {x.dtype}")
    accepted = {float32, x.dtype}
    for operand, given in (("grad", grad), ("scale", scale), ("zero_point", zero_point)):
        if given.dtype not in accepted:
            names = " or ".join(sorted(map(str, accepted)))
            raise VerifyError(f"{op}: {operand} must be {names}, got {given.dtype}")
    if grad.shape != x.shape:
        shapes = f"{format_shape(grad.shape)} and {format_shape(x.shape)}"
        raise VerifyError(f"{op}: grad and x must have one shape, got {shapes}")
    if not quant_min <= 0 <= quant_max:
        raise VerifyError(
            f"{op}: the range must hold 0, got quant_min {quant_min} and quant_max {quant_max}"
        )
    return x if 0 in x.shape else TensorType(float32, x.shape)


def _infer_per_tensor(
    grad: TensorType,
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> tuple[TensorType, TensorType, TensorType]:
    op = f"{PER_TENSOR}_backward"
    by_x = _check(op, grad, x, scale, zero_point, quant_min, quant_max)
    check_vectors(op, scale, zero_point)
    if 0 in x.shape:
        return by_x, scale, zero_point
    return by_x, TensorType(float32, (1,)), TensorType(float32, (1,))


def _infer_per_channel(
    grad: TensorType,
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> tuple[TensorType, TensorType, TensorType]:
    op = f"{PER_CHANNEL}_backward"
    by_x = _check(op, grad, x, scale, zero_point, quant_min, quant_max)
    check_channels(op, x, scale, zero_point, axis)
    if 0 in x.shape:
        return by_x, scale, zero_point
    one = TensorType(float32, scale.shape if x.rank > 1 else ())
    return by_x, one, one


_X = np.array([[0.25, 0.75, -9.0, 9.0]], np.float32)
_ONES, _HALF, _ONE = np.ones_like(_X), np.array([0.5], np.float32), np.array([1], np.float32)
_RANGE = {"quant_min": -3, "quant_max": 7}
_SPECIAL = np.array([[np.nan, np.inf, -np.inf, 1e38]], np.float32)

OPS = (
    Op(
        name=f"aten::{PER_TENSOR}_backward",
        reference=per_tensor,
        infer=_infer_per_tensor,
        kernels=dict.fromkeys(TORCH_ENGINES, per_tensor_compiled),
        source=(
            "pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::_fake_quantize_grad_learnable_tensor_kernel_cpu",
        ),
        cases=(
            Case(
                "both ends",
                (_ONES, _X, _HALF, _ONE),
                _RANGE,
                ([[1, 1, 0, 0]], [2.0], [-1.0]),
                "-4 below, +6 above, +0.5 and -0.5 at the ties",
            ),
            Case(
                "zero point",
                (_ONES[:, 2:3], _X[:, 2:3], _HALF, np.array([-2.3], np.float32)),
                _RANGE,
                ([[0]], [-2.0], [-0.5]),
                "-2.3 + 0.5 is truncated to -1",
            ),
            Case(
                "specials",
                (_ONES, _SPECIAL, _HALF, _ONE),
                _RANGE,
                ([[0, 0, 0, 0]], [-16.0], [-2.0]),
                "all of them count as below",
            ),
            Case(
                "empty",
                (_ONES[:0], _X[:0], _HALF, _ONE),
                _RANGE,
                (_X[:0], [0.5], [1.0]),
                "the operands come back",
            ),
        ),
    ),
    Op(
        name=f"aten::{PER_CHANNEL}_backward",
        reference=per_channel,
        infer=_infer_per_channel,
        kernels=dict.fromkeys(TORCH_ENGINES, per_channel_compiled),
        source=(
            "pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::_fake_quantize_grad_learnable_channel_kernel_cpu",
        ),
        cases=(
            Case(
                "columns",
                (_ONES, _X, _HALF.repeat(4), _ONE.repeat(4)),
                _RANGE | {"axis": 1},
                ([[1, 1, 0, 0]], [0.5, -0.5, -4, 6], [0, 0, -0.5, -0.5]),
                "1.5 and 2.5 round to 2",
            ),
        ),
    ),
)
