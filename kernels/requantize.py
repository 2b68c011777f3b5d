"""From the int32 sums of a linear or a convolution to 8 bits, as each engine rounds it.

A requantiser here gives numbers per output channel, and the value is
``rint(fma(addend, factor, float(sum + integer)) * multiplier) + zero_point``, clamped. The
compiled tile applies the same numbers in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.target import Engine, Isa, Target
from refquant.kernels.rounding import F32, fma

Integers = npt.NDArray[Any]


class Constants(NamedTuple):
    """What the requantisation of one output channel multiplies and adds; float32 arrays.

    ``integer`` (int32, or None for 0) is added to the sum, which wraps.
    """

    addend: F32
    factor: F32
    multiplier: F32
    integer: npt.NDArray[np.int32] | None = None

    def of(self, channels: slice) -> Constants:
        """Return the constants of some channels."""
        integer = None if self.integer is None else self.integer[channels]
        floats = (self.addend[channels], self.factor[channels], self.multiplier[channels])
        return Constants(*floats, integer)


def accumulator_scale(input_scale: float, weight_scale: float | npt.NDArray[Any]) -> F32:
    """Return the real size of one unit of the sum: a float32 product of rounded scales."""
    return np.float32(input_scale) * np.asarray(weight_scale, np.float32)


def float_bias_constants(
    input_scale: float,
    weight_scale: float | npt.NDArray[Any],
    scale: float,
    bias: F32 | None,
    channels: int,
) -> Constants:
    """Return fbgemm's constants: the bias stays float32.

    With a weight quantized per tensor the bias enters as ``fma(bias, 1 / a, sum)``, with one
    quantized per channel as ``sum + bias / a``, where ``a`` is the size of one unit of the sum.

    Examples
    --------
    >>> float_bias_constants(0.5, 0.5, 0.125, np.float32([3]), 1)
    Constants(addend=array([3.], dtype=float32), factor=array([4.], dtype=float32), \
multiplier=array([2.], dtype=float32), integer=None)
    """
    unit = accumulator_scale(input_scale, weight_scale)
    addend = np.zeros(channels, np.float32)
    factor = np.ones(channels, np.float32)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        if bias is not None and unit.ndim:
            addend[:] = bias / unit
        elif bias is not None:
            addend[:] = bias
            factor[:] = np.float32(1.0 / np.float64(unit))
        multiplier = unit / np.float32(scale)
    return Constants(addend, factor, np.full(channels, multiplier, np.float32))


def apply(
    total: npt.NDArray[np.int32], constants: Constants, zero_point: int, low: int
) -> npt.NDArray[np.uint8]:
    """Requantise sums whose last axis is the output channel.

    The conversion to int32 gives the smallest integer where the product is 2**31 or more (or
    NaN), so a sum that is far too large comes out as ``low``, not as 255.

    Examples
    --------
    >>> c = Constants(np.float32([0.5]), np.float32([1]), np.float32([1]))
    >>> apply(np.int32([[0], [1], [300]]), c, 3, 0).ravel()
    array([  3,   5, 255], dtype=uint8)
    """
    if constants.integer is not None:
        total = total + constants.integer
    with np.errstate(over="ignore", invalid="ignore"):
        real = fma(constants.addend, constants.factor, total.astype(np.float32))
        scaled = real * constants.multiplier
        whole = np.where(np.abs(scaled) < 2.0**31, np.rint(scaled).astype(np.float64), -(2.0**31))
    q: npt.NDArray[np.uint8] = np.clip(whole + zero_point, low, 255).astype(np.uint8)
    return q


def dequantize_constants(
    input_scale: float,
    weight_scale: float | npt.NDArray[Any],
    _scale: float,
    bias: F32 | None,
    channels: int,
) -> Constants:
    """Return what turns sums into float32: ``fma(float(sum), multiplier, addend)``.

    Without a bias the addend is -0.0, which leaves every product as it is.
    """
    unit = accumulator_scale(input_scale, weight_scale)
    addend = np.full(channels, -0.0, np.float32) if bias is None else bias
    return Constants(addend, np.ones(channels, np.float32), np.full(channels, unit, np.float32))


def integer_bias_constants(
    input_scale: float,
    weight_scale: float | npt.NDArray[Any],
    scale: float,
    bias: F32 | None,
    channels: int,
) -> Constants:
    """Return qnnpack's constants: the bias becomes an integer in units of the sum.

    It is ``rint(bias * (1 / unit))`` with the unit multiplied in float64 and then rounded, and
    saturates at the ends of int32; the output scale enters as its reciprocal.

    Examples
    --------
    >>> integer_bias_constants(0.5, 0.5, 0.125, np.float32([3]), 1)
    Constants(addend=array([-0.], dtype=float32), factor=array([1.], dtype=float32), \
multiplier=array([2.], dtype=float32), integer=array([12], dtype=int32))
    """
    unit = accumulator_scale(input_scale, weight_scale)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        multiplier = unit * (np.float32(1) / np.float32(scale))
        integer = np.zeros(channels, np.int32)
        if bias is not None:
            exact = np.asarray(weight_scale, np.float64) * np.float64(input_scale)
            units = np.rint(bias * (np.float32(1) / exact.astype(np.float32)))
            integer[:] = np.clip(units.astype(np.float64), -(2.0**31), 2.0**31 - 1)
    plain = (np.full(channels, -0.0, np.float32), np.ones(channels, np.float32))
    return Constants(*plain, np.full(channels, multiplier, np.float32), integer)


def product_constants(
    input_scale: float,
    weight_scale: float | npt.NDArray[Any],
    _scale: float,
    _bias: F32 | None,
    channels: int,
) -> Constants:
    """Return what turns sums into float32 without the bias, which qnnpack adds afterwards."""
    return dequantize_constants(input_scale, weight_scale, 1.0, None, channels)


Rule = Callable[[float, Any, float, F32 | None, int], Constants]


class Dynamic(NamedTuple):
    """How an engine finishes a dynamic product: its constants, and two things it leaves out."""

    constants: Rule
    adds_bias_after: bool = False  # with a rounding of its own
    reduces_range: bool = True  # whether ``reduce_range`` has an effect


LINEAR: dict[Engine, Rule] = {
    Engine.FBGEMM: float_bias_constants,
    Engine.X86: float_bias_constants,
    Engine.QNNPACK: integer_bias_constants,
}
LINEAR_DYNAMIC: dict[Engine, Dynamic] = {
    Engine.FBGEMM: Dynamic(dequantize_constants),
    Engine.X86: Dynamic(dequantize_constants),
    Engine.QNNPACK: Dynamic(product_constants, adds_bias_after=True, reduces_range=False),
}
CONVOLUTION: dict[Engine, Rule] = {
    Engine.FBGEMM: float_bias_constants,
    Engine.QNNPACK: integer_bias_constants,
}
# Their machines without VNNI add pairs of products in 16 bits; qnnpack multiplies in 32 bits.
_SATURATES = (Engine.FBGEMM, Engine.X86)

R = TypeVar("R")


def rule_for(op: str, rules: Mapping[Engine, R], target: Target) -> R:
    """Return the rule of an engine.

    Raises
    ------
    UnsupportedError
        If the engine is not in ``rules``, or the sums of ``target.isa`` are not reproduced:
        without VNNI fbgemm saturates pairs of products to 16 bits in every kernel.
    """
    if target.engine not in rules:
        has = ", ".join(rules)
        raise UnsupportedError(f"{op}: no numerics for engine {target.engine!s}; it has {has}")
    if target.isa is not Isa.AVX512_VNNI and target.engine in _SATURATES:
        raise UnsupportedError(
            f"{op}: isa {target.isa!s} saturates sums to 16 bits, which is not reproduced; "
            f"use {Isa.AVX512_VNNI!s}"
        )
    return rules[target.engine]
