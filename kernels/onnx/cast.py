"""``onnx::Cast`` to element types of a byte or less, and ``onnx::BitCast``."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import (
    DType,
    TensorType,
    float4_e2m1fn,
    float8_e4m3fn,
    float8_e4m3fnuz,
    float8_e5m2,
    float8_e5m2fnuz,
    float8_e8m0fnu,
    int4,
    uint8,
    uint32,
)
from refquant.kernels.onnx.operator import operator, plain

SATURATING = (float8_e4m3fn, float8_e4m3fnuz, float8_e5m2, float8_e5m2fnuz)
ROUND_MODES = ("up", "down", "nearest")
_LOWEST, _HIGHEST = -127, 127  # exponents of float8_e8m0fnu


def reference(input: Array, to: DType, saturate: bool = True, round_mode: str = "up") -> Array:
    """Return the elements as another type.

    * to a float8 of four or five bits of exponent: the nearest number, ties to even. With
      ``saturate`` what is too large, infinity too, becomes the largest number; without, infinity
      where the type has one and NaN elsewhere;
    * to float8_e8m0fnu, whose numbers are powers of two from 2^-127 to 2^127: the power at or
      above the absolute value (``up``), at or below it (``down``), or the nearest with ties up
      (``nearest``). What is outside, 0 and infinity too, becomes the nearest end with
      ``saturate``, and NaN without;
    * to float4_e2m1fn: the nearest number, ties to even; what is too large becomes the largest;
    * to an integer: without its fraction, and of that the lowest bits;
    * otherwise as ``aten::to``.

    Parameters
    ----------
    input : tensor that is not quantized
        Any type and shape.
    to : DType
        A type that is not quantized.
    saturate : bool
        What becomes of numbers outside a float8 type.
    round_mode : str
        ``up``, ``down`` or ``nearest``; of float8_e8m0fnu.

    Returns
    -------
    Tensor of type ``to``

    Raises
    ------
    VerifyError
        If a type is quantized or the rounding is unknown.

    Examples
    --------
    >>> reference(np.float32([500, 0.3]), float8_e4m3fn)
    array([448, 0.3125], dtype='float8_e4m3fn')
    """
    with np.errstate(all="ignore"):
        if to == float8_e8m0fnu:
            return _power_of_two(input.astype(np.float64), saturate, round_mode)
        if to in SATURATING and saturate and input.dtype != to.storage:
            most = float(ml_dtypes.finfo(to.storage).max)  # type: ignore[no-untyped-call]
            wide = np.float64 if input.dtype == np.float64 else np.float32
            input = np.clip(input.astype(wide), -most, most)
        return np.asarray(input.astype(to.storage))


def _power_of_two(x: Array, saturate: bool, round_mode: str) -> Array:
    mantissa, exponent = np.frexp(np.abs(x))  # of 0.5 <= mantissa < 1
    more = {"up": 0.5, "down": 1.0, "nearest": np.nextafter(0.75, 0)}[round_mode]
    power = np.where(x == 0, _LOWEST - 1, exponent - 1 + (mantissa > more))
    power = np.where(np.isinf(x), _HIGHEST + 1, power)
    inside = np.clip(power, _LOWEST, _HIGHEST)
    is_number = ~np.isnan(x) & (saturate | (inside == power))
    bits = np.where(is_number, inside - _LOWEST, 255).astype(np.uint8)
    return np.asarray(bits.view(float8_e8m0fnu.storage))


def infer(
    input: TensorType, to: DType, saturate: bool = True, round_mode: str = "up"
) -> TensorType:
    """Check the types and the rounding."""
    plain("Cast", input)
    if to.is_quantized:
        raise VerifyError(f"Cast: expected a type that is not quantized, got {to}")
    if round_mode not in ROUND_MODES:
        raise VerifyError(f"Cast: round_mode must be up, down or nearest, got {round_mode!r}")
    return TensorType(to, input.shape)


def bit_cast(input: Array, to: DType) -> Array:
    """Return the bits of the elements as another type of the same width.

    Parameters
    ----------
    input : tensor that is not quantized
        Any shape.
    to : DType
        A type of as many bits.

    Returns
    -------
    Tensor of type ``to``

    Raises
    ------
    VerifyError
        If the widths differ or a type is quantized.

    Examples
    --------
    >>> hex(int(bit_cast(np.float32([1]), uint32)[0]))
    '0x3f800000'
    """
    return np.asarray(np.asarray(input, order="C").view(to.storage))


def _bits(dtype: DType) -> int:
    for bits in (2, 4, 6):
        if dtype.name in (f"int{bits}", f"uint{bits}") or dtype.name.startswith(f"float{bits}_"):
            return bits
    return dtype.storage.itemsize * 8


def infer_bits(input: TensorType, to: DType) -> TensorType:
    """Check the widths."""
    plain("BitCast", input)
    if to.is_quantized or _bits(to) != _bits(input.dtype):
        raise VerifyError(f"BitCast: {input.dtype} and {to} have different widths")
    return TensorType(to, input.shape)


def _powers(*exponents: int) -> Array:
    return np.exp2(np.array(exponents, np.float64)).astype(float8_e8m0fnu.storage)


_X = np.array([0.3, 1e6, -np.inf], np.float32)
_P = np.array([0, 1.1, 1.5, 2, np.inf], np.float32)

OPS = (
    operator(
        "Cast",
        reference,
        infer,
        Case("saturate", (_X,), {"to": float8_e4m3fn}, [0.3125, 448, -448], "infinity too"),
        Case(
            *("infinite", (_X,), {"to": float8_e5m2, "saturate": False}),
            *([0.3125, np.inf, -np.inf], "the type has infinity"),
        ),
        Case(
            *("up", (_P,), {"to": float8_e8m0fnu}),
            *(_powers(-127, 1, 1, 1, 127), "0 and infinity become the ends"),
        ),
        Case(
            *("nearest", (_P[1:4],), {"to": float8_e8m0fnu, "round_mode": "nearest"}),
            *(_powers(0, 1, 1), "ties go up"),
        ),
        Case("four", (_X,), {"to": float4_e2m1fn}, [0.5, 6, -6], "ends at 6"),
        Case("wrap", (np.array([-9, 8]),), {"to": int4}, [7, -8], "the lowest bits"),
    ),
    operator(
        "BitCast",
        bit_cast,
        infer_bits,
        Case("float", (np.array([1.0], np.float32),), {"to": uint32}, [0x3F800000], "its bits"),
        Case("sign", (np.array([-1], np.int8),), {"to": uint8}, [255], "two's complement"),
    ),
)
