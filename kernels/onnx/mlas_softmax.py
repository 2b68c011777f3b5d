"""onnxruntime's softmax of float32 along rows, on AVX512.

The exponential is a polynomial of fused multiply-adds, exact to about a unit in the last place. A
row is added up in sixteen lanes, which are then folded: the upper half onto the lower one, then
neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import fma, jit
from refquant.kernels.onnx.literals import f32
from refquant.kernels.rounding import fma as fma_of_arrays

F32 = npt.NDArray[np.float32]
_F = np.float32
LANES = 16
# Below it the exponential is a denormal or 0.
_LEAST = _F(-103.9720840454)
_BIAS = _F(1.5 * 2**23)  # what is added to it loses its fraction
_LOG2_E = _F(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = _F(-6.93145752e-1), _F(-1.42860677e-6)
_POLYNOMIAL = f32([float.fromhex(x) for x in (
    "0x1.694000p-10", "0x1.125edcp-7", "0x1.555b5ap-5", "0x1.555450p-3", "0x1.fffff6p-2",
    "0x1p0", "0x1p0")])  # fmt: skip


def exp(x: F32) -> F32:
    """Return onnxruntime's exponential of values that are not positive.

    Examples
    --------
    >>> exp(np.float32([0, -200]))
    array([1., 0.], dtype=float32)
    """
    x = np.maximum(x, _LEAST)
    power = fma_of_arrays(x, _LOG2_E, _BIAS) - _BIAS
    rest = fma_of_arrays(power, _LN2_LOW, fma_of_arrays(power, _LN2_HIGH, x))
    p: Any = np.full_like(x, _POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        p = fma_of_arrays(p, rest, coefficient)
    return np.asarray(p.astype(np.float64) * np.exp2(power.astype(np.float64)), np.float32)


def reference(rows: F32) -> F32:
    """Return the softmax of each row (M, N), which is ``e * (1 / sum)``.

    Examples
    --------
    >>> reference(np.float32([[0, 0]]))
    array([[0.5, 0.5]], dtype=float32)
    """
    with np.errstate(all="ignore"):
        e = exp(rows - rows.max(axis=1, keepdims=True, initial=np.finfo(np.float32).min))
        width = rows.shape[1]
        filled = np.zeros((len(rows), -(-width // LANES) * LANES), np.float32)
        filled[:, :width] = e
        lanes: Any = np.zeros((len(rows), LANES), np.float32)
        for k in range(0, filled.shape[1], LANES):
            lanes = lanes + filled[:, k : k + LANES]
        lanes = lanes[:, 8:] + lanes[:, :8]
        for _ in range(3):
            lanes = lanes[:, 0::2] + lanes[:, 1::2]
        return np.asarray(e * (_F(1) / lanes), np.float32)


@jit
def _exp_of(x: Any) -> Any:
    x = _LEAST if x < _LEAST else x
    power = np.float32(fma(x, _LOG2_E, _BIAS) - _BIAS)
    rest = fma(power, _LN2_LOW, fma(power, _LN2_HIGH, x))
    p = _POLYNOMIAL[0]
    for i in range(1, 7):
        p = fma(p, rest, _POLYNOMIAL[i])
    # Two powers of two, of which only the second product can be a denormal and be rounded.
    whole = np.int32(power)
    half = whole >> np.int32(1)
    first = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    second = np.int32((whole - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(np.float32(p * first) * second)


@jit
def _fill(x: Any, y: Any) -> None:
    lanes = np.empty(LANES, np.float32)
    width = x.shape[1]
    for row in range(x.shape[0]):
        whole = width // LANES * LANES
        lanes[:] = _LOWEST  # NaN is never the largest; the sum will be NaN
        for k in range(0, whole, LANES):
            for i in range(LANES):
                lanes[i] = x[row, k + i] if x[row, k + i] > lanes[i] else lanes[i]
        for j in range(whole, width):
            i = j - whole
            lanes[i] = x[row, j] if x[row, j] > lanes[i] else lanes[i]
        most = lanes.max()
        for j in range(width):
            y[row, j] = _exp_of(np.float32(x[row, j] - most))
        lanes[:] = 0
        for k in range(0, whole, LANES):
            for i in range(LANES):
                lanes[i] = np.float32(lanes[i] + y[row, k + i])
        for j in range(whole, width):
            lanes[j - whole] = np.float32(lanes[j - whole] + y[row, j])
        for i in range(8):
            lanes[i] = np.float32(lanes[i + 8] + lanes[i])
        for half in (4, 2, 1):
            for i in range(half):
                lanes[i] = np.float32(lanes[2 * i] + lanes[2 * i + 1])
        scale = np.float32(np.float32(1) / lanes[0])
        for j in range(width):
            y[row, j] = np.float32(y[row, j] * scale)


_LOWEST = np.finfo(np.float32).min


def kernel(rows: F32) -> F32:
    """Compute :func:`reference` in a compiled loop."""
    y = np.empty(rows.shape, np.float32)
    _fill(np.ascontiguousarray(rows), y)
    return y
