"""From the int32 sums of a linear or a convolution to the result, as each engine rounds it.

A *rule* gives numbers per output channel; a *stage* says what is done with them:

* fused: ``rint(fma(addend, factor, float(sum + integer)) * multiplier) + zero_point``, clamped;
* scaled: the real value is ``float(sum) * multiplier * factor + addend``, rounded at each step;
  that times ``output``, plus the zero point, is clamped and then rounded;
* divided: the same with the quotient by ``output``;
* wide: as fused, with a float64 product.

The compiled tile does the first two in registers, ``requantize_jit.py`` the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.ir.target import Engine, Isa, Target
from refquant.ir.types import quint8
from refquant.kernels import requantize_jit, rounding
from refquant.kernels.rounding import F32, fma

Integers = npt.NDArray[Any]
Sums = npt.NDArray[np.int32]
Scale = float | npt.NDArray[Any]


class Rounding(NamedTuple):
    """Quantization parameters of the result and its limits; with relu ``low`` is its zero."""

    scale: float
    zero_point: int
    low: int = 0
    high: int = 255

    @property
    def whole(self) -> npt.NDArray[np.int32]:
        """Zero point and limits as the compiled tiles take them."""
        return _whole_numbers(*self[1:])


@lru_cache(maxsize=1024)
def _whole_numbers(zero_point: int, low: int, high: int) -> npt.NDArray[np.int32]:
    return np.array([zero_point, low, high, 0, 0, 0], np.int32)


# For tiles that store sums or real values.
UNREAD = _whole_numbers(0, 0, 255)


class Constants(NamedTuple):
    """What the output stage of one channel multiplies and adds; float32 arrays.

    ``integer`` (int32, or None for 0) is added to the sum, which wraps. ``output`` turns real
    values into steps of the result, as a factor or as a divisor.
    """

    addend: F32
    factor: F32
    multiplier: F32
    integer: npt.NDArray[np.int32] | None = None
    output: np.float32 = np.float32(1)

    def of(self, channels: slice) -> Constants:
        """Return the constants of some channels."""
        integer = None if self.integer is None else self.integer[channels]
        floats = (self.addend[channels], self.factor[channels], self.multiplier[channels])
        return Constants(*floats, integer, self.output)


# ---- what is done with the constants


def finish_fused(total: Sums, constants: Constants, rounding: Rounding) -> Integers:
    """Requantise sums whose last axis is the output channel.

    The conversion to int32 gives the smallest integer where the product is 2**31 or more (or
    NaN), so a sum that is far too large comes out as ``low``, not as 255.

    Examples
    --------
    >>> c = Constants(np.float32([0.5]), np.float32([1]), np.float32([1]))
    >>> finish_fused(np.int32([[0], [1], [300]]), c, Rounding(1.0, 3)).ravel()
    array([  3,   5, 255], dtype=int16)
    """
    if constants.integer is not None:
        total = total + constants.integer
    with np.errstate(over="ignore", invalid="ignore"):
        real = fma(constants.addend, constants.factor, total.astype(np.float32))
        return _whole(real * constants.multiplier, rounding)


def finish_wide(total: Sums, constants: Constants, rounding: Rounding) -> Integers:
    """Do :func:`finish_fused` with a float64 product of integers and multiplier."""
    if constants.integer is not None:
        total = total + constants.integer
    return _whole(total.astype(np.float64) * constants.multiplier, rounding)


def _whole(scaled: npt.NDArray[Any], rounding: Rounding) -> Integers:
    whole = np.where(np.abs(scaled) < 2.0**31, np.rint(scaled).astype(np.float64), -(2.0**31))
    _, zero_point, low, high = rounding
    return np.asarray(np.clip(whole + zero_point, low, high), np.int16)


def real_values(total: Sums, constants: Constants) -> F32:
    """Return ``float(sum) * multiplier * factor + addend``, each step rounded to float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = total.astype(np.float32) * constants.multiplier * constants.factor
        return np.asarray(scaled + constants.addend)


def round_clamped(steps: F32, rounding: Rounding) -> Integers:
    """Add the zero point in float32, clamp, then round.

    Examples
    --------
    >>> round_clamped(np.float32([0.5, 1.5, 1e30, -9]), Rounding(1.0, 3))
    array([  4,   4, 255,   0], dtype=int16)
    """
    _, zero_point, low, high = rounding
    return np.asarray(np.rint(np.clip(steps + np.float32(zero_point), low, high)), np.int16)


def finish_scaled(total: Sums, constants: Constants, rounding: Rounding) -> Integers:
    """Multiply real values by ``output``; what is far too large comes out as ``high``.

    Examples
    --------
    >>> one = np.float32([1])
    >>> c = Constants(np.float32([0.5]), one, one, None, np.float32(2))
    >>> finish_scaled(np.int32([[0], [1], [300]]), c, Rounding(0.5, 3)).ravel()
    array([  4,   6, 255], dtype=int16)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return round_clamped(real_values(total, constants) * constants.output, rounding)


def finish_divided(total: Sums, constants: Constants, rounding: Rounding) -> Integers:
    """Divide real values by ``output``."""
    with np.errstate(over="ignore", invalid="ignore"):
        return round_clamped(real_values(total, constants) / constants.output, rounding)


def finish_real(total: Sums, constants: Constants) -> F32:
    """Return the real value ``fma(float(sum), multiplier, addend)``."""
    return fma(total.astype(np.float32), constants.multiplier, constants.addend)


# ---- the constants of each engine


def accumulator_scale(input_scale: float, weight_scale: Scale) -> F32:
    """Return the real size of one unit of the sum: a float32 product of rounded scales."""
    return np.float32(input_scale) * np.asarray(weight_scale, np.float32)


def twice_inverted(scale: Scale) -> F32:
    """Return ``1 / (1 / scale)``, where oneDNN is given a reciprocal that it inverts again.

    A single scale is inverted in float64 first and then rounded, one of each channel is rounded
    first.

    Examples
    --------
    >>> float(twice_inverted(0.1)), twice_inverted(np.array([0.1, 0.3])).tolist()
    (0.10000000149011612, [0.10000000149011612, 0.30000001192092896])
    """
    with np.errstate(divide="ignore", over="ignore"):
        if np.ndim(scale) == 0:
            return np.asarray(np.float32(1) / np.float32(1.0 / np.float64(scale)))
        return np.float32(1) / (np.float32(1) / np.asarray(scale, np.float32))


def float_bias_constants(
    input_scale: float, weight_scale: Scale, scale: float, bias: F32 | None, channels: int
) -> Constants:
    """Return fbgemm's constants: the bias stays float32.

    With a weight quantized per tensor the bias enters as ``fma(bias, 1 / a, sum)``, with one
    quantized per channel as ``sum + bias / a``, where ``a`` is the size of one unit of the sum.

    Examples
    --------
    >>> float_bias_constants(0.5, 0.5, 0.125, np.float32([3]), 1)[:3]
    (array([3.], dtype=float32), array([4.], dtype=float32), array([2.], dtype=float32))
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


def integer_bias_constants(
    input_scale: float, weight_scale: Scale, scale: float, bias: F32 | None, channels: int
) -> Constants:
    """Return qnnpack's constants: the bias becomes an integer in units of the sum.

    It is ``rint(bias * (1 / unit))`` with the unit multiplied in float64 and then rounded, and
    saturates at the ends of int32; the output scale enters as its reciprocal.

    Examples
    --------
    >>> integer_bias_constants(0.5, 0.5, 0.125, np.float32([3]), 1)[2:4]
    (array([2.], dtype=float32), array([12], dtype=int32))
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


def _scaled(
    unit: npt.ArrayLike, factor: npt.ArrayLike, scale: float, bias: F32 | None, channels: int
) -> Constants:
    """Return constants of oneDNN for a stage that multiplies by ``output``."""
    addend = np.full(channels, -0.0, np.float32) if bias is None else bias
    factors = np.full(channels, factor, np.float32)
    with np.errstate(divide="ignore", over="ignore"):
        output = np.float32(1) / twice_inverted(scale)
    units = np.full(channels, unit, np.float32)
    return Constants(addend, factors, units, None, np.float32(output))


def scaled_constants(
    input_scale: float, weight_scale: Scale, scale: float, bias: F32 | None, channels: int
) -> Constants:
    """Return oneDNN's constants of a linear: all scales are inverted twice.

    Examples
    --------
    >>> scaled_constants(0.5, 0.25, 0.125, None, 1)[1:]
    (array([0.25], dtype=float32), array([0.5], dtype=float32), None, np.float32(8.0))
    """
    factor = twice_inverted(weight_scale)
    return _scaled(twice_inverted(input_scale), factor, scale, bias, channels)


def scaled_convolution_constants(
    input_scale: float, weight_scale: Scale, scale: float, bias: F32 | None, channels: int
) -> Constants:
    """Return oneDNN's constants of a convolution: the weight's scale is taken as it is."""
    factor = np.asarray(weight_scale, np.float32)
    return _scaled(twice_inverted(input_scale), factor, scale, bias, channels)


def combined_linear_constants(
    input_scale: float, weight_scale: Scale, scale: float, bias: F32 | None, channels: int
) -> Constants:
    """Return oneDNN's constants of a linear on its GEMM kernel: one product of both scales."""
    factor = twice_inverted(input_scale) * twice_inverted(weight_scale)
    return _scaled(1.0, factor, scale, bias, channels)


def combined_constants(
    input_scale: float, weight_scale: Scale, scale: float, bias: F32 | None, channels: int
) -> Constants:
    """Return oneDNN's constants where the scales of input and weight are multiplied before."""
    factor = twice_inverted(input_scale) * np.asarray(weight_scale, np.float32)
    return _scaled(1.0, factor, scale, bias, channels)


def divided(rule: Rule) -> Rule:
    """Return a rule of oneDNN for a stage that divides by ``output``."""

    def constants(
        input_scale: float, weight_scale: Scale, scale: float, bias: F32 | None, channels: int
    ) -> Constants:
        scaled = rule(input_scale, weight_scale, scale, bias, channels)
        return scaled._replace(output=np.float32(twice_inverted(scale)))

    return constants


def dequantize_constants(
    input_scale: float, weight_scale: Scale, _scale: float, bias: F32 | None, channels: int
) -> Constants:
    """Return what turns sums into float32: ``fma(float(sum), multiplier, addend)``.

    Without a bias the addend is -0.0, which leaves every product as it is.
    """
    unit = accumulator_scale(input_scale, weight_scale)
    addend = np.full(channels, -0.0, np.float32) if bias is None else bias
    return Constants(addend, np.ones(channels, np.float32), np.full(channels, unit, np.float32))


def product_constants(
    input_scale: float, weight_scale: Scale, _scale: float, bias: F32 | None, channels: int
) -> Constants:
    """Return what turns sums into float32 where product and bias are rounded one by one."""
    return dequantize_constants(input_scale, weight_scale, 1.0, bias, channels)


Rule = Callable[[float, Any, float, F32 | None, int], Constants]


# ---- stages


class Stage(NamedTuple):
    """How an engine turns sums into 8 bits.

    Parameters
    ----------
    constants : Rule
        Its numbers.
    finish : callable
        What is done with them, in NumPy.
    loop : callable or None
        The same, compiled, on sums in memory; None where the tile does it in registers.
    form : {"fused", "scaled"}
        What the tile does in registers.
    """

    constants: Rule
    finish: Callable[[Sums, Constants, Rounding], Integers]
    form: str = "fused"
    loop: Callable[..., None] | None = None


def finish_sums(
    stage: Stage,
    total: npt.NDArray[Any],
    constants: Constants,
    rounding: Rounding,
    y: npt.NDArray[Any],
) -> None:
    """Requantise sums (..., channels) into ``y``, both in C order."""
    channels = total.shape[-1]
    if stage.loop is None:
        y[...] = stage.finish(total, constants, rounding).astype(np.uint8)
        return
    integer = constants.integer
    stage.loop(
        total.reshape(-1, channels),
        np.zeros(0, np.int32) if integer is None else integer,
        *(constants.addend, constants.factor, constants.multiplier, constants.output),
        *rounding[1:],
        y.reshape(-1, channels).view(np.uint8),
    )


FLOAT_BIAS = Stage(float_bias_constants, finish_fused)
INTEGER_BIAS = Stage(integer_bias_constants, finish_fused)
INTEGER_BIAS_WIDE = Stage(integer_bias_constants, finish_wide, loop=requantize_jit.requantize_wide)
SCALED = Stage(scaled_constants, finish_scaled, "scaled")
COMBINED = Stage(combined_linear_constants, finish_scaled, "scaled")
DIVIDED = Stage(divided(scaled_constants), finish_divided, loop=requantize_jit.requantize_divided)
CONVOLUTION_SCALED = Stage(scaled_convolution_constants, finish_scaled, "scaled")
CONVOLUTION_COMBINED = Stage(combined_constants, finish_scaled, "scaled")
CONVOLUTION_DIVIDED = DIVIDED._replace(constants=divided(scaled_convolution_constants))


def quantize_as_fbgemm(x: F32, scale: float, zero_point: int) -> Integers:
    """Quantize to quint8 as ``aten::quantize_per_tensor``."""
    return rounding.quantize_fused(x, scale, zero_point, quint8)


def onednn_inverse(scale: float) -> np.float32:
    """Return what oneDNN multiplies with to quantize: a scale that was inverted three times."""
    return np.float32(1) / np.float32(twice_inverted(scale))


def quantize_as_onednn(x: F32, scale: float, zero_point: int) -> Integers:
    """Quantize to quint8 with the zero point added in float32, before the rounding."""
    return rounding.round_before(x, onednn_inverse(scale), zero_point, quint8)


class Dynamic(NamedTuple):
    """How an engine quantizes the input of a dynamic product and finishes its sums.

    Parameters
    ----------
    constants : Rule
        Its numbers.
    finish : callable
        From sums to real values.
    quantize : callable
        The rounding of the input.
    rounds_each : bool
        Whether product, second product and sum are each rounded.
    reduces_range : bool
        Whether ``reduce_range`` has an effect.
    """

    constants: Rule
    finish: Callable[[Sums, Constants], F32] = finish_real
    quantize: Callable[[F32, float, int], Integers] = quantize_as_fbgemm
    rounds_each: bool = False
    reduces_range: bool = True


LINEAR: dict[Engine, Stage] = {
    Engine.FBGEMM: FLOAT_BIAS,
    Engine.X86: FLOAT_BIAS,
    Engine.QNNPACK: INTEGER_BIAS,
    Engine.ONEDNN: SCALED,
}
LINEAR_OF_SIGNED: dict[Engine, Stage] = {Engine.ONEDNN: DIVIDED}
LINEAR_DYNAMIC: dict[Engine, Dynamic] = {
    Engine.FBGEMM: Dynamic(dequantize_constants),
    Engine.X86: Dynamic(dequantize_constants),
    Engine.QNNPACK: Dynamic(product_constants, real_values, rounds_each=True, reduces_range=False),
    Engine.ONEDNN: Dynamic(scaled_constants, real_values, quantize_as_onednn, rounds_each=True),
}
# What oneDNN has for AVX2 instead: its GEMM kernel, for quint8 and qint8.
_LINEAR_OF_GEMM: dict[Any, Any] = {
    LINEAR[Engine.ONEDNN]: COMBINED,
    LINEAR_OF_SIGNED[Engine.ONEDNN]: COMBINED,
    LINEAR_DYNAMIC[Engine.ONEDNN]: LINEAR_DYNAMIC[Engine.ONEDNN]._replace(
        constants=combined_linear_constants
    ),
}

# Without VNNI their 8-bit products are added in pairs of 16 bits; qnnpack multiplies in 32 bits.
_SATURATES = (Engine.FBGEMM, Engine.X86, Engine.ONEDNN)
# isa default changes torch's own kernels only: fbgemm and oneDNN ask the processor.
_WITHOUT_VNNI = (Isa.AVX512, Isa.AVX2)


def divides(stage: Stage) -> bool:
    """Whether the stage divides by the output's scale instead of multiplying."""
    return stage.finish is finish_divided


def saturates(target: Target) -> bool:
    """Whether the machine adds products of bytes in pairs that saturate to 16 bits.

    Examples
    --------
    >>> saturates(Target("fbgemm", "avx2")), saturates(Target("qnnpack", "avx2"))
    (True, False)
    """
    return target.isa in _WITHOUT_VNNI and target.engine in _SATURATES


R = TypeVar("R")


def stage_for(op: str, stages: Mapping[Engine, R], target: Target) -> R:
    """Return the output stage of an engine.

    Raises
    ------
    UnsupportedError
        If the engine is not in ``stages``.
    """
    if target.engine not in stages:
        has = ", ".join(stages)
        raise UnsupportedError(f"{op}: no numerics for engine {target.engine!s}; it has {has}")
    chosen: R = stages[target.engine]
    if target.engine is Engine.ONEDNN and target.isa is Isa.AVX2:
        chosen = _LINEAR_OF_GEMM.get(chosen, chosen)
    return chosen
