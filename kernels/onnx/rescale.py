"""From exact integer sums to the steps of a result, as onnxruntime and the specification do.

* onnxruntime: ``clamp(float(sum) * m, low - z, high - z)``, rounded half to even, plus ``z``;
* the specification: the product in float64, which is exact.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import jit
from refquant.kernels.onnx.operands import limits_of
from refquant.kernels.requantize import Constants, Rounding, Stage, finish_fused

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def multiplier(x_scale: Any, w_scale: Any, y_scale: Any) -> F32:
    """Return ``x_scale * w_scale / y_scale``, each step rounded to float32.

    Examples
    --------
    >>> multiplier(np.float32(0.5), np.float32([0.5, 1]), np.float32(0.25))
    array([1., 2.], dtype=float32)
    """
    with np.errstate(all="ignore"):
        unit = np.asarray(x_scale, np.float32) * np.asarray(w_scale, np.float32)
        return np.asarray(unit / np.asarray(y_scale, np.float32), np.float32)


def clamped(total: Array, m: Any, zero_point: int, dtype: np.dtype[Any]) -> Array:
    """Return what onnxruntime makes of sums; NaN gives the lowest integer.

    Examples
    --------
    >>> clamped(np.int32([1, 3, 999]), np.float32(0.5), 7, np.dtype(np.uint8))
    array([  7,   9, 255], dtype=uint8)
    """
    low, high = limits_of(dtype)
    with np.errstate(all="ignore"):
        steps = total.astype(np.float32) * m
        steps = np.where(np.isnan(steps), np.float32(low - zero_point), steps)
        inside = np.clip(steps, np.float32(low - zero_point), np.float32(high - zero_point))
    return np.asarray((np.rint(inside).astype(np.int32) + zero_point).astype(dtype))


def rounded_then_moved(total: Array, m: Array, zero_point: int, dtype: np.dtype[Any]) -> Array:
    """Return the specification's result where it rounds before it adds the zero point.

    Examples
    --------
    >>> rounded_then_moved(np.int32([1]), np.float32(0.5), 7, np.dtype(np.uint8))
    array([7], dtype=uint8)
    """
    return _limited(np.rint(_product(total, m)) + zero_point, dtype)


def moved_then_rounded(total: Array, m: Array, zero_point: int, dtype: np.dtype[Any]) -> Array:
    """Return the specification's result where it adds the zero point before it rounds.

    Examples
    --------
    >>> moved_then_rounded(np.int32([1]), np.float32(0.5), 7, np.dtype(np.uint8))
    array([8], dtype=uint8)
    """
    return _limited(np.rint(_product(total, m) + zero_point), dtype)


def _product(total: Array, m: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(total.astype(np.float64) * np.asarray(m, np.float64))


def _limited(whole: Array, dtype: np.dtype[Any]) -> Array:
    low, high = limits_of(dtype)
    return np.asarray(np.clip(np.where(np.isnan(whole), low, whole), low, high).astype(dtype))


def constants(
    input_scale: float, weight_scale: Any, scale: float, bias: Any, channels: int
) -> Constants:
    """Return what the tiles multiply and add; the bias is whole."""
    m = np.full(channels, multiplier(input_scale, weight_scale, scale), np.float32)
    plain = np.full(channels, -0.0, np.float32), np.ones(channels, np.float32)
    return Constants(*plain, m, None if bias is None else np.asarray(bias, np.int32))


STAGE = Stage(constants, finish_fused)


def fits_tiles(m: Array) -> bool:
    """Whether no sum can leave int32: the tiles treat what does otherwise."""
    return bool(np.all(np.abs(m) < 1))


def rounding(y_scale: Any, zero_point: int, dtype: np.dtype[Any]) -> Rounding:
    """Return how the tiles round to uint8; int8 is moved by 128."""
    shift = 128 if dtype == np.int8 else 0
    return Rounding(float(y_scale), zero_point + shift)


def as_result(y: Array, dtype: np.dtype[Any]) -> Array:
    """Return the bytes of :func:`rounding` as the result, changed in place."""
    if dtype == np.int8:
        np.bitwise_xor(y, np.uint8(128), out=y)
        return y.view(np.int8)
    return y


@jit
def fill_clamped(total: Any, m: Any, zero: int, low: int, high: int, y: Any) -> None:
    """Fill rows (pixels, channels) as :func:`clamped` does."""
    least, most = np.float32(low - zero), np.float32(high - zero)
    for i in range(total.shape[0]):
        for c in range(total.shape[1]):
            v = np.float32(np.float32(total[i, c]) * m[c])
            v = v if v > least else least
            v = v if v < most else most
            y[i, c] = np.int32(np.rint(v)) + np.int32(zero)


@jit
def fill_exact(total: Any, m: Any, zero: int, early: bool, low: int, high: int, y: Any) -> None:
    """Fill rows with the product in float64; ``early`` adds the zero point before rounding."""
    before, after = (np.float64(zero), 0.0) if early else (0.0, np.float64(zero))
    least, most = np.float64(low), np.float64(high)
    for i in range(total.shape[0]):
        for c in range(total.shape[1]):
            v = np.rint(np.float64(total[i, c]) * np.float64(m[c]) + before) + after
            v = v if v > least else least
            v = v if v < most else most
            y[i, c] = np.int32(v)
