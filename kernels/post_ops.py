"""What oneDNN does between the sum and the result of pt2e's products: post ops and rounding.

The real value of a sum is ``float(sum) * x_scale * w_scale + bias``, each step rounded to
float32. To it another tensor is added and a function is applied, then it is stored in the dtype
of the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.target import Isa, Target
from refquant.ir.types import (
    DType,
    Shape,
    TensorType,
    bfloat16,
    float16,
    float32,
    format_shape,
    int8,
    uint8,
)
from refquant.kernels import requantize
from refquant.kernels.jit import fma, jit
from refquant.kernels.onednn_functions import (
    CALLS_LIBRARY,
    CODES,
    COUNTS,
    GENERATED,
    INEXACT,
    REFERENCE,
    Args,
    bent,
    floats,
)
from refquant.kernels.requantize import Constants, Rounding
from refquant.kernels.requantize_jit import clamped, real_of
from refquant.kernels.rounding import fma as fused

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]

LIMITS = {uint8: (0, 255), int8: (-128, 127)}
FLOATS = (float32, bfloat16, float16)
CONVOLUTION = (*LIMITS, float32, bfloat16)  # no float16
BINARY = ("none", "sum", "add")


class Other(NamedTuple):
    """The tensor that is added, less its zero point, and its scale."""

    shifted: F32
    scale: np.float32


class Stage(NamedTuple):
    """What is done with sums.

    Parameters
    ----------
    constants : Constants
        Of the real value; ``output`` multiplies or divides it.
    divides : bool
        Whether oneDNN's reference runs: ``output`` is a divisor, a tensor is added with two
        roundings instead of one, and functions are those of the C library.
    unary, args
        The function, and its numbers.
    dtype : DType
        Of the result.
    zero_point : int
        Of the result.
    """

    constants: Constants
    divides: bool
    unary: str
    args: Args
    dtype: DType
    zero_point: int


def stage(
    x_scale: float,
    w_scale: F32,
    bias: Array | None,
    channels: int,
    output_scale: float,
    output_zero_point: int,
    dtype: DType,
    unary: str,
    args: Args,
    *,
    divides: bool = False,
    combines: bool = False,
) -> Stage:
    """Return the numbers of a product; all scales are taken as they are, in float32.

    With ``combines`` the scales of input and weight are multiplied before the sum.
    """
    unit, factor = np.float32(x_scale), np.broadcast_to(np.ravel(w_scale), (channels,))
    if combines:
        unit, factor = np.float32(1), unit * factor
    addend = np.full(channels, -0.0) if bias is None else bias
    with np.errstate(divide="ignore", over="ignore"):
        output = np.float32(output_scale) if divides else np.float32(1) / np.float32(output_scale)
    constants = Constants(
        np.ascontiguousarray(addend, np.float32),
        np.ascontiguousarray(factor, np.float32),
        np.full(channels, unit, np.float32),
        None,
        output,
    )
    return Stage(constants, divides, unary, args, dtype, output_zero_point)


def other_of(other: Array | None, binary: str, scale: float, zero_point: int) -> Other | None:
    """Return what is added; ``add`` takes the numbers as they are, without scale."""
    if other is None or binary == "none":
        return None
    plain = other.astype(np.float32)
    if binary == "add":
        return Other(plain, np.float32(1))
    return Other(plain - np.float32(zero_point), np.float32(scale))


# ---- NumPy


def _add_rounding_each(shifted: F32, scale: np.float32, real: F32) -> F32:
    return np.asarray(shifted * scale + real)


# How the kernel that multiplies by ``output`` and the one that divides by it add a tensor.
ADD: dict[bool, Callable[[F32, np.float32, F32], F32]] = {False: fused, True: _add_rounding_each}


def finish(total: Array, chosen: Stage, other: Other | None) -> Array:
    """Turn sums whose last axis is the channel into the result."""
    with np.errstate(over="ignore", invalid="ignore"):
        real = requantize.real_values(total, chosen.constants)
        if other is not None:
            real = ADD[chosen.divides](other.shifted, other.scale, real)
        functions = REFERENCE if chosen.divides else GENERATED
        real = functions[chosen.unary](real, chosen.args)
        if chosen.dtype not in LIMITS:
            return real.astype(chosen.dtype.storage)
        output = chosen.constants.output
        steps = real / output if chosen.divides else real * output
    rounding = Rounding(1.0, chosen.zero_point, *LIMITS[chosen.dtype])
    return requantize.round_clamped(steps, rounding).astype(chosen.dtype.storage)


# ---- compiled


@jit
def _reals(
    total: Array,
    other: Array,
    other_scale: np.float32,
    rounds_each: bool,
    addend: Array,
    factor: Array,
    multiplier: Array,
    unary: int,
    low: np.float32,
    high: np.float32,
    y: Array,
) -> None:
    added = other.size > 0
    for row in range(total.shape[0]):
        for c in range(total.shape[1]):
            real = real_of(total[row, c], multiplier[c], factor[c], addend[c])
            if added and rounds_each:
                real = np.float32(np.float32(other[row, c] * other_scale) + real)
            elif added:
                real = fma(other[row, c], other_scale, real)
            y[row, c] = bent(real, unary, low, high)


@jit
def _store(
    real: Array,
    output: np.float32,
    divides: bool,
    zero_point: np.float32,
    low: np.float32,
    high: np.float32,
    y: Array,
) -> None:
    for i in range(real.size):
        steps = np.float32(real[i] / output) if divides else np.float32(real[i] * output)
        y[i] = clamped(steps, zero_point, low, high)


def run(total: npt.NDArray[np.int32], chosen: Stage, other: Other | None) -> Array:
    """Do :func:`finish` on sums in C order; they are overwritten."""
    channels = total.shape[-1]
    addend, factor, multiplier, _, output = chosen.constants
    real = total.view(np.float32)
    added = np.zeros((0, 1), np.float32)
    if other is not None:
        added = np.ascontiguousarray(other.shifted).reshape(-1, channels)
    low, high = floats(chosen.args)
    code = CODES[chosen.unary] + chosen.divides * CALLS_LIBRARY
    _reals(
        total.reshape(-1, channels),
        added,
        np.float32(1) if other is None else other.scale,
        chosen.divides,
        *(addend, factor, multiplier, code, low, high),
        real.reshape(-1, channels),
    )
    if chosen.dtype not in LIMITS:
        return real.astype(chosen.dtype.storage, copy=False)
    y = np.empty(total.shape, np.uint8)
    zero, least, most = map(np.float32, (chosen.zero_point, *LIMITS[chosen.dtype]))
    _store(real.reshape(-1), output, chosen.divides, zero, least, most, y.reshape(-1))
    return y.view(chosen.dtype.storage)


def in_registers(chosen: Stage, other: Other | None) -> tuple[requantize.Stage, Rounding] | None:
    """Return how the compiled tile finishes its sums at once, where it can: to uint8.

    A relu is a clamp at the zero point.
    """
    plain = other is None and chosen.unary in ("none", "relu") and not chosen.divides
    if not plain or chosen.dtype != uint8:
        return None
    zero_point = chosen.zero_point
    low = min(max(zero_point, 0), 255) if chosen.unary == "relu" else 0
    fast = requantize.SCALED._replace(constants=lambda *_scales: chosen.constants)
    return fast, Rounding(1.0, zero_point, low, 255)


# ---- checks


def check_machine(op: str, target: Target) -> None:
    """Refuse machines without VNNI, whose sums oneDNN saturates in part.

    ``default`` restricts ATen's kernels, not oneDNN's.
    """
    if target.isa not in (Isa.AVX512_VNNI, Isa.DEFAULT):
        raise UnsupportedError(
            f"{op}: oneDNN's sums are reproduced for isa {Isa.AVX512_VNNI!s}, got {target.isa!s}"
        )


def check_contiguous(op: str, **operands: Array | None) -> None:
    """Refuse operands with strides, which torch reads as if they had none."""
    for name, operand in operands.items():
        if operand is not None and operand.size > 1 and not operand.flags.c_contiguous:
            raise UnsupportedError(
                f"{op}: torch reads {name} from memory as if it were contiguous, "
                f"got strides {operand.strides}"
            )


def check_functions(
    op: str, binary: str, unary: str, args: Args, accepted: tuple[str, ...] = tuple(COUNTS)
) -> None:
    """Check the names of the post ops and the numbers they take."""
    if binary not in BINARY:
        raise VerifyError(f"{op}: binary post op must be one of {_list(BINARY)}, got {binary!r}")
    accepted = accepted if binary == "none" else ("none", "relu")
    if unary not in accepted:
        raise VerifyError(f"{op}: post op must be one of {_list(accepted)}, got {unary!r}")
    if COUNTS[unary] and (len(args) != COUNTS[unary] or None in args):
        raise VerifyError(f"{op}: {unary} takes {COUNTS[unary]} numbers, got {list(args)}")


def check_exact(op: str, unary: str, x: DType, dtype: DType) -> None:
    """Refuse a float result of a function whose last bits are not reproduced."""
    if unary in INEXACT and x == uint8 and dtype not in LIMITS:
        raise UnsupportedError(
            f"{op}: the last bits of oneDNN's {unary} are not reproduced; with uint8 input the "
            f"result must be uint8 or int8, got {dtype}"
        )


def check_input(op: str, x: TensorType, zero_point: int, accepted: tuple[DType, ...]) -> None:
    """Check the dtype of the activations and the range of their zero point."""
    if x.dtype.name.startswith("float8"):
        raise UnsupportedError(f"{op}: input must be uint8 or int8, got {x.dtype}")
    if x.dtype not in accepted:
        raise VerifyError(f"{op}: input must be {_list(accepted)}, got {x.dtype}")
    low, high = LIMITS[x.dtype]
    if not low <= zero_point <= high:
        raise VerifyError(f"{op}: x_zero_point must be in [{low}, {high}], got {zero_point}")


def check_weight(op: str, weight: TensorType, scale: TensorType, bias: TensorType | None) -> None:
    """Check an int8 weight with one float32 scale, or one of each output channel."""
    if weight.dtype != int8:
        raise VerifyError(f"{op}: weight must be int8, got {weight.dtype}")
    channels = weight.shape[0]
    if scale.dtype != float32 or scale.shape not in ((), (1,), (channels,)):
        raise VerifyError(f"{op}: w_scale must be float32 [1] or [{channels}], got {scale}")
    if bias is not None and (not bias.dtype.is_floating_point or bias.shape != (channels,)):
        raise VerifyError(f"{op}: bias must be a float [{channels}], got {bias}")


def result_dtype(
    op: str,
    given: DType | None,
    default: DType,
    scale: float,
    zero_point: int,
    accepted: tuple[DType, ...] = (*LIMITS, *FLOATS),
) -> DType:
    """Return the dtype of the result; a float one has neither scale nor zero point."""
    dtype = default if given is None else given
    if dtype not in accepted:
        names = _list(accepted)
        raise VerifyError(f"{op}: output_dtype must be one of {names}, got {dtype}")
    if dtype in LIMITS:
        if not scale > 0:
            raise VerifyError(f"{op}: output_scale must be > 0, got {scale}")
    elif scale != 1 or zero_point != 0:
        raise VerifyError(
            f"{op}: output_dtype {dtype} needs output_scale 1 and output_zero_point 0, "
            f"got {scale} and {zero_point}"
        )
    return dtype


def check_other(
    op: str,
    other: TensorType | None,
    binary: str,
    shape: Shape,
    dtype: DType,
    scale: float,
    zero_point: int,
) -> None:
    """Check the tensor that a binary post op adds."""
    if binary == "none":
        return
    if other is None:
        raise VerifyError(f"{op}: binary post op {binary!r} needs another tensor")
    if other.shape != shape:
        raise VerifyError(
            f"{op}: the other tensor must have the shape of the result, {format_shape(shape)}, "
            f"got {format_shape(other.shape)}"
        )
    if binary == "sum" and other.dtype != dtype:
        raise VerifyError(
            f"{op}: 'sum' needs another tensor of the result's dtype {dtype}, got {other.dtype}"
        )
    if other.dtype not in (*LIMITS, float32, bfloat16):
        raise VerifyError(f"{op}: the other tensor must be 8 bits or float, got {other.dtype}")
    if dtype not in LIMITS and (scale != 1 or zero_point != 0):
        raise VerifyError(
            f"{op}: output_dtype {dtype} needs the other scale 1 and zero point 0, "
            f"got {scale} and {zero_point}"
        )


def _list(names: Any) -> str:
    return ", ".join(map(str, names))
