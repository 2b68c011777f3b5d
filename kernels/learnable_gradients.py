"""LSQ: what each element adds to the gradients of a learnable fake-quant."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.kernels import rounding
from refquant.kernels.fake_quantize_per_channel import F32, Rows, rows_of
from refquant.kernels.fake_quantize_per_tensor import EXACT, Array, widened
from refquant.kernels.jit import fma, jit
from refquant.kernels.layout import empty_preserved, memory_order

Triple = tuple[Array, Array, Array]


def elements(
    grad: Array,
    x: Array,
    scale: F32,
    zero_point: F32,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    grad_factor: float,
    fused: bool,
) -> Triple:
    """Return the three gradients of each element, float32, before they are summed.

    ``scale`` and ``zero_point`` (whole numbers) are one number for each index of ``axis``, or one
    for all.
    """
    shape = [1] * x.ndim
    if axis is not None:
        shape[axis] = -1
    s, zero = scale.reshape(shape), zero_point.reshape(shape)
    x, grad = x.astype(np.float32), grad.astype(np.float32)
    factor = np.float32(grad_factor)

    def multiply_add(a: Array, b: Array, c: Array) -> Array:
        return rounding.fma(a, b, c) if fused else a * b + c

    with np.errstate(all="ignore"):
        inverse = np.float32(1) / s
        q = rounding.to_int64(np.rint(multiply_add(x, inverse, zero)))
        inside = (quant_min <= q) & (q <= quant_max)
        z = zero.astype(np.float64)
        steps = (np.clip(q, quant_min, quant_max) - z).astype(np.float32)
        end = (np.where(q < quant_min, quant_min, quant_max) - z).astype(np.float32)
        by_x = grad * inside.astype(np.float32)
        rounding_error = multiply_add(steps, s, -x)
        by_scale = np.where(inside, grad * rounding_error * inverse * factor, grad * end * factor)
        by_zero = np.where(inside, np.float32(0), grad * np.float32(-1) * s * factor)
    return _placed(x, by_x), _placed(x, by_scale), _placed(x, by_zero)


def _placed(x: Array, values: Array) -> F32:
    out = empty_preserved(x, np.float32)
    out[...] = values
    return out


@jit
def _one(
    grad: np.float32,
    x: np.float32,
    inverse: np.float32,
    scale: np.float32,
    zero: np.float32,
    factor: np.float32,
    low: np.float32,
    high: np.float32,
    fused: bool,
) -> Any:
    real = np.rint(fma(x, inverse, zero) if fused else np.float32(x * inverse) + zero)
    inside = (low <= real) & (real <= high)
    steps = real - zero
    error = fma(steps, scale, -x) if fused else np.float32(steps * scale) - x
    above = (real > high) & (real < np.float32(2.0**63))
    end = (high if above else low) - zero
    by_scale = grad * error * inverse if inside else grad * end
    by_zero = np.float32(0) if inside else -grad * scale * factor
    return grad * np.float32(inside), by_scale * factor, by_zero


@jit
def _fill(
    grad: Any,
    x: Any,
    inverse: F32,
    scale: F32,
    zero: F32,
    factor: np.float32,
    low: np.float32,
    high: np.float32,
    by_row: bool,
    fused: bool,
    by_x: Any,
    by_scale: Any,
    by_zero: Any,
) -> None:
    rows, length = x.shape
    for r in range(rows):
        if by_row:
            c = r % scale.size
            i, s, z = inverse[c], scale[c], zero[c]
            for j in range(length):
                by_x[r, j], by_scale[r, j], by_zero[r, j] = _one(
                    grad[r, j], x[r, j], i, s, z, factor, low, high, fused
                )
        else:
            for j in range(length):
                by_x[r, j], by_scale[r, j], by_zero[r, j] = _one(
                    grad[r, j], x[r, j], inverse[j], scale[j], zero[j], factor, low, high, fused
                )


def elements_compiled(
    grad: Array,
    x: Array,
    scale: F32,
    zero_point: F32,
    axis: int | None,
    quant_min: int,
    quant_max: int,
    grad_factor: float,
    fused: bool,
) -> Triple:
    """Compute :func:`elements` in one compiled pass; ranges beyond 24 bits in NumPy."""
    if max(abs(quant_min), abs(quant_max)) > EXACT:
        arguments = axis, quant_min, quant_max, grad_factor, fused
        return elements(grad, x, scale, zero_point, *arguments)
    values = widened(x)
    grads = grad
    if grad.dtype != np.float32 or grad.strides != values.strides:
        grads = _placed(values, grad)
    like = values, np.float32
    results = empty_preserved(*like), empty_preserved(*like), empty_preserved(*like)
    rows = Rows((1, x.size), True, 1) if axis is None else rows_of(values, axis)
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / scale
        flat = [memory_order(a).reshape(rows.shape) for a in (grads, values, *results)]
        _fill(
            flat[0],
            flat[1],
            rows.parameters(inverse),
            rows.parameters(scale),
            rows.parameters(zero_point),
            np.float32(grad_factor),
            np.float32(quant_min),
            np.float32(quant_max),
            rows.by_row,
            fused,
            flat[2],
            flat[3],
            flat[4],
        )
    return results
