"""How int32 sums become integers again, written in ONNX, with a proof that it is the same.

A rounding of sums is a staircase: for each of the results there is a smallest sum that reaches
it. Two staircases are equal on all sums that a layer can have if all their steps are at the same
sums. So a form is chosen by comparing its steps with those of the engine, channel by channel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refquant.kernels.requantize import Constants, Rounding, Stage, finish_fused, finish_scaled
from refquant.kernels.rounding import F32

Int64 = npt.NDArray[np.int64]
Staircase = Callable[[npt.NDArray[np.int32]], npt.NDArray[np.int16]]


@dataclass(frozen=True)
class Sums:
    """The sums of a layer: what is done with them, and how small and large they can be.

    Parameters
    ----------
    stage : Stage
        The engine's rounding.
    constants : Constants
        Its numbers, one of each per channel.
    rounding : Rounding
        Of the result.
    low, high : int64 array, one per channel
        Bounds of the sums.
    """

    stage: Stage
    constants: Constants
    rounding: Rounding
    low: Int64
    high: Int64

    def finish(self, total: npt.NDArray[np.int32]) -> npt.NDArray[np.int16]:
        """Round sums (..., channels) as the engine does."""
        return self.stage.finish(total, self.constants, self.rounding)


def bounds(weight: npt.NDArray[np.int8], zero: Int64, x_zero_point: int) -> tuple[Int64, Int64]:
    """Return the smallest and largest sums of a weight (channels, ...) over all 8-bit inputs.

    Examples
    --------
    >>> bounds(np.int8([[1, -2]]), np.int64([0]), 5)
    (array([-505]), array([260]))
    """
    rows = weight.reshape(len(weight), -1).astype(np.int64) - zero.reshape(-1, 1)
    positive, negative = np.maximum(rows, 0).sum(1), np.minimum(rows, 0).sum(1)
    above, below = 255 - x_zero_point, -x_zero_point
    return positive * below + negative * above, positive * above + negative * below


def steps(finish: Staircase, sums: Sums) -> Int64:
    """Return the smallest sum that gives at least each result, (results, channels).

    Where no sum does, it is one more than the largest.
    """
    results = np.arange(sums.rounding.low + 1, sums.rounding.high + 1).reshape(-1, 1)
    shape = (len(results), len(sums.low))
    low = np.broadcast_to(sums.low, shape).copy()
    high = np.broadcast_to(sums.high + 1, shape).copy()
    while np.any(low < high):
        middle = (low + high) // 2
        inside = np.minimum(middle, sums.high).astype(np.int32)
        reached = (finish(inside) >= results) & (middle <= sums.high)
        high = np.where((low < high) & reached, middle, high)
        low = np.where((low < high) & ~reached, middle + 1, low)
    return low


def is_same(finish: Staircase, sums: Sums) -> bool:
    """Whether a rounding gives the engine's results for all sums that the layer can have."""
    if np.any(sums.low < -(2**31)) or np.any(sums.high >= 2**31):
        return False
    extremes = np.stack([sums.low, sums.high]).astype(np.int32)
    with np.errstate(all="ignore"):
        largest = np.abs(extremes * sums.constants.multiplier.astype(np.float64)).max()
        # Beyond int32 the engine's conversion is no staircase.
        if not largest < 2.0**30:
            return False
        ends = np.array_equal(finish(extremes), sums.finish(extremes))
        return ends and np.array_equal(steps(finish, sums), steps(sums.finish, sums))


# ---- forms that ONNX has


@dataclass(frozen=True)
class Linear:
    """An int32 bias and one float32 multiplier a channel, as QLinearConv has them."""

    bias: npt.NDArray[np.int32]
    multiplier: F32

    def finish(self, total: npt.NDArray[np.int32], rounding: Rounding) -> npt.NDArray[np.int16]:
        """Round sums as onnxruntime does: limited, then rounded half to even."""
        _, zero_point, low, high = rounding
        scaled = (total + self.bias).astype(np.float32) * self.multiplier
        limited = np.clip(scaled, np.float32(0 - zero_point), np.float32(255 - zero_point))
        whole = np.rint(limited).astype(np.int64) + zero_point
        return np.asarray(np.clip(whole, low, high), np.int16)


def linear(sums: Sums, unit: F32, bias: F32 | None) -> Linear:
    """Return the integer form nearest to the engine's."""
    channels = len(sums.low)
    integer = np.zeros(channels, np.int32)
    with np.errstate(all="ignore"):
        if sums.constants.integer is not None:
            integer = sums.constants.integer.astype(np.int32)
        elif bias is not None:
            whole = np.rint(bias.astype(np.float64) / unit.astype(np.float64))
            integer = np.clip(whole, -(2.0**31), 2.0**31 - 1).astype(np.int32)
        multiplier = np.full(channels, unit / np.float32(sums.rounding.scale), np.float32)
    return Linear(integer, multiplier)


@dataclass(frozen=True)
class Spelled:
    """Float operators one by one; ``wide`` adds in float64, where a product is exact."""

    sums: Sums
    wide: bool

    def finish(self, total: npt.NDArray[np.int32]) -> npt.NDArray[np.int16]:
        """Round sums as the operators do."""
        c = self.sums.constants
        _, zero_point, low, high = self.sums.rounding
        if c.integer is not None:
            total = total + c.integer
        real = total.astype(np.float32)
        if self.sums.stage.finish is finish_scaled:
            scaled = real * c.multiplier * c.factor + c.addend
            steps = scaled * c.output + np.float32(zero_point)
            return np.asarray(np.rint(np.clip(steps, low, high)), np.int16)
        moved = (real + self.addend).astype(np.float32)
        if self.wide:
            moved = (real.astype(np.float64) + self.addend).astype(np.float32)
        whole = np.rint(moved * c.multiplier) + np.float32(zero_point)
        return np.asarray(np.clip(whole, low, high), np.int16)

    @property
    def addend(self) -> npt.NDArray[np.floating]:
        """Return what is added to the sums."""
        c = self.sums.constants
        if self.wide:
            return c.addend.astype(np.float64) * c.factor.astype(np.float64)
        return c.addend * c.factor


def spelled(sums: Sums) -> Spelled | None:
    """Return the shortest list of operators that is the engine's rounding; None if none is."""
    if sums.stage.finish not in (finish_fused, finish_scaled):
        return None
    for wide in (False, True):
        form = Spelled(sums, wide)
        if is_same(form.finish, sums):
            return form
    return None
