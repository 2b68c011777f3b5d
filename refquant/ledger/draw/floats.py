"""Float values on which one rounding differs from another, and scales and zero points for them."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
AWKWARD = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 1.0, -1.0, 3.4e38, -3.4e38, np.inf, -np.inf, np.nan]
)
# In steps: around the ends of int32 and int64, and where float32 has no fractions any more.
FAR = np.array([2.0**22, 2.0**23, 2.0**24, 2.0**31, 2.0**32 + 3, 3e9, 5e9, 2.0**63, 1e19, 1e25])


def hugging(
    rng: np.random.Generator,
    n: int,
    scale: Any,
    zero_point: Any,
    limits: tuple[int, int],
    dtype: Any = np.float32,
) -> Array:
    """Draw values of which most lie within 3 ulp of ``(k + 0.5 - z) * scale``.

    ``z`` is the zero point or 0. The others are far or awkward values, or log-uniform.
    ``scale`` and ``zero_point`` are numbers, or columns for rows of ``n`` values.
    """
    scale, zero_point = np.asarray(scale, np.float64), np.asarray(zero_point, np.float64)
    shape = (*np.broadcast_shapes(scale.shape, zero_point.shape)[:-1], n)
    low, high = (max(min(limit, 40_000), -40_000) for limit in limits)
    with np.errstate(over="ignore", invalid="ignore"):
        ties = rng.integers(low - 3, high + 4, shape) + 0.5
        shift = np.where(rng.random(shape) < 0.6, zero_point, 0)
        x = ((ties - shift) * scale).astype(dtype)
        bits = x.view(f"i{x.itemsize}")
        x = (bits + rng.integers(-3, 4, shape).astype(bits.dtype)).view(dtype)
        kind = rng.random(shape)
        wide = np.exp(rng.uniform(-95, 95, shape)) * rng.choice([-1, 1], shape)
        far = rng.choice(FAR, shape) * rng.choice([-1, 1], shape) * scale
        x = np.where(kind < 0.10, wide.astype(dtype), x)
        x = np.where(kind < 0.05, far.astype(dtype), x)
        return np.where(kind < 0.02, rng.choice(AWKWARD, shape).astype(dtype), x)


def a_scale(rng: np.random.Generator, size: Any = None) -> Any:
    """Draw log-uniform scales; one in three is a float32 number."""
    scale = np.exp(rng.uniform(-12, 4, size))
    return np.where(rng.random(size) < 1 / 3, np.float32(scale), scale)[()]


def a_zero_point(rng: np.random.Generator, limits: tuple[int, int], size: Any = None) -> Any:
    """Draw zero points of a dtype; half of them are not far from 0."""
    low, high = limits
    near = rng.integers(max(low, -300), min(high, 300) + 1, size)
    return np.where(rng.random(size) < 0.5, near, rng.integers(low, high + 1, size))[()]
