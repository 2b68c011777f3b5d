"""For how much of a tensor a scale holds: all of it, a channel, or a block along an axis."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.types import Dim, TensorType, format_shape
from refquant.kernels.onnx.operands import axis_of

Array = npt.NDArray[Any]


def spread(parameter: Array, shape: tuple[int, ...], axis: int, block_size: int) -> Array:
    """Lay a scale or a zero point out so that it broadcasts with a tensor.

    Examples
    --------
    >>> spread(np.array([1, 2]), (3, 2, 4), 1, 0).shape
    (2, 1)
    >>> spread(np.array([[1, 2]]), (1, 3), 1, 2)
    array([[1, 1, 2]])
    """
    if parameter.shape in ((), (1,)):
        return parameter.reshape(())
    axis %= len(shape)
    if parameter.ndim == 1 and not block_size:
        return parameter.reshape((-1,) + (1,) * (len(shape) - 1 - axis))
    whole = np.repeat(parameter, block_size, axis)
    return whole[(slice(None),) * axis + (slice(shape[axis]),)]


def run_length(shape: tuple[int, ...], parameter: Array, axis: int, block_size: int) -> int:
    """Return how many neighbours in memory share a scale, at most.

    Examples
    --------
    >>> run_length((3, 2, 4), np.ones(2), 1, 0), run_length((3, 5), np.ones((3, 3)), 1, 2)
    (4, 2)
    """
    if parameter.shape in ((), (1,)):
        return prod(shape)
    inner = prod(shape[axis % len(shape) + 1 :])
    return min(block_size, shape[axis]) if block_size and inner == 1 else inner


def check(
    op: str,
    x: TensorType,
    scale: TensorType,
    zero_point: TensorType | None,
    axis: int,
    block_size: int,
) -> None:
    """Check the shapes of scale and zero point."""
    one = zero_point is not None and {zero_point.shape, scale.shape} <= {(), (1,)}
    if zero_point is not None and zero_point.shape != scale.shape and not one:
        shapes = f"{format_shape(zero_point.shape)} and {format_shape(scale.shape)}"
        raise VerifyError(f"{op}: zero point and scale must have one shape, got {shapes}")
    if block_size < 0:
        raise VerifyError(f"{op}: block_size must be >= 0, got {block_size}")
    if scale.shape in ((), (1,)):
        return
    along = axis_of(op, axis, x.shape)
    length = x.shape[along]
    if not block_size:
        if scale.shape != (length,):
            raise VerifyError(
                f"{op}: scale must be a scalar or [{length}], as axis {along} of "
                f"{format_shape(x.shape)}, got {format_shape(scale.shape)}"
            )
        return
    if isinstance(length, Dim):
        raise VerifyError(f"{op}: axis {along}, which has blocks, must have a known length")
    blocks = -(-length // block_size)
    expected = (*x.shape[:along], blocks, *x.shape[along + 1 :])
    if scale.shape != expected:
        raise VerifyError(
            f"{op}: scale must be {format_shape(expected)} for blocks of {block_size} along "
            f"axis {along}, got {format_shape(scale.shape)}"
        )
