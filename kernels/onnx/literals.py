"""Short arrays for hand-written cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def u8(values: Any) -> Array:
    """Return a uint8 array."""
    return np.array(values, np.uint8)


def i8(values: Any) -> Array:
    """Return an int8 array."""
    return np.array(values, np.int8)


def i32(values: Any) -> Array:
    """Return an int32 array."""
    return np.array(values, np.int32)


def f16(values: Any) -> Array:
    """Return a float16 array."""
    return np.array(values, np.float16)


def f32(values: Any) -> Array:
    """Return a float32 array."""
    return np.array(values, np.float32)
