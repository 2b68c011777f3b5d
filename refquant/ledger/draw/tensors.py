"""Random operands for elementwise ops, pools and norms, with values near rounding ties.

Plain random data does not tell one order of roundings from another, so scales are solved for:
one element's value before rounding lies within 3 ulp of k + 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.ir.types import DType, qint32

Array = npt.NDArray[Any]
Rng = np.random.Generator

LAYOUTS = ("contiguous", "channels_last", "every_second", "permuted")


def laid_out(x: Array, layout: str) -> Array:
    """Return the values in another memory layout; the last two change the shape."""
    if layout == "channels_last" and x.ndim > 3:
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    if layout == "every_second":
        return x[..., ::2]
    if layout == "permuted":
        return x.transpose(*range(1, x.ndim), 0)
    return x


def quantized(
    rng: Rng,
    shape: tuple[int, ...],
    dtype: DType,
    layout: str = "contiguous",
    scale: float | None = None,
) -> QTensor:
    """Return integers over the whole range (qint32: thousands) with a random zero point."""
    low, high = (-1000, 1000) if dtype == qint32 else dtype.limits
    integers = laid_out(rng.integers(low, high + 1, shape).astype(dtype.storage), layout)
    if scale is None:
        scale = float(np.exp(rng.uniform(-5, -1)))
    zero = int(rng.integers(low, high + 1))
    if rng.random() < 0.25:  # libraries have other kernels for it
        zero = 0
    return QTensor(integers, scale, zero, None, dtype)


def floats(rng: Rng, shape: tuple[int, ...], layout: str = "contiguous") -> Array:
    """Return float32 values with one NaN, infinity, minus infinity or minus zero among them."""
    x = (rng.normal(size=shape) * 4).astype(np.float32)
    if x.size:
        x.flat[0] = rng.choice(np.array([np.nan, np.inf, -np.inf, -0.0]))
    return laid_out(x, layout)


def real(x: QTensor) -> Array:
    """Return the real values in float64."""
    return (x.int_repr.astype(np.int64) - x.zero_point) * np.float64(x.scale)


def shape_of(rng: Rng, size: int, ranks: tuple[int, ...] = (1, 2, 3, 4, 5)) -> tuple[int, ...]:
    """Return a shape of about ``size`` elements; dimension 1 of images is often awkward."""
    rank = int(rng.choice(ranks))
    if rank == 1:
        return (max(1, size - int(rng.integers(0, 70))),)
    channels = int(rng.choice([1, 2, 3, 5, 7, 8, 9, 16, 17, 31, 32, 33, 40, 63, 64, 65, 70, 130]))
    images = int(rng.integers(1, 4)) if rank > 2 else max(1, size // channels)
    left = max(1, size // (images * channels))
    inner: list[int] = []
    for more in range(rank - 2, 0, -1):
        edge = max(1, round(left ** (1 / more)))
        inner.append(max(1, edge + int(rng.integers(-1, 2))) if more > 1 else max(1, left))
        left = max(1, left // inner[-1])
    return (images, channels, *inner)


def moved(x: float, ulps: int) -> float:
    """Move a float32 number by a few units in the last place."""
    value = np.float32(x)
    for _ in range(abs(ulps)):
        value = np.nextafter(value, np.float32(np.inf if ulps > 0 else 0))
    return float(value)


def scale_at_tie(rng: Rng, values: npt.ArrayLike, *, largest: float = 50.0) -> float:
    """Return an output scale for which one of the values lies next to k + 0.5 steps."""
    value = abs(float(np.ravel(values)[rng.integers(np.size(values))]))
    scale = value / (int(rng.integers(0, 90)) + 0.5)
    return min(max(moved(scale, int(rng.integers(-3, 4))), 1e-4), largest) if value else 0.05


def argument_at_tie(rng: Rng, function: Callable[[float], float], steps: float) -> float:
    """Return a float32 number next to the one where a rising function reaches ``steps``."""
    low, high = 1e-7, 8.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < steps else (low, middle)
    return moved(low, int(rng.integers(-2, 3)))


def zero_point(rng: Rng, dtype: DType, margin: int = 0) -> int:
    """Return a zero point at least ``margin`` away from both ends."""
    low, high = (-900, 900) if dtype == qint32 else dtype.limits
    return int(rng.integers(low + margin, high - margin + 1))
