"""qnnpack's sum of two quint8 tensors in fixed point, which ``quantized::add`` takes there."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError
from refquant.kernels.jit import jit

Array = npt.NDArray[Any]


class FixedPoint(NamedTuple):
    """Integer factors of both operands, the offset of their zero points, and the shift."""

    a: int
    b: int
    offset: int
    shift: int


def fixed_point(sa: float, za: int, sb: float, zb: int, scale: float) -> FixedPoint:
    r"""Return the integers that stand for the ratios of the scales.

    The larger of :math:`s_a / s` and :math:`s_b / s` (float32 quotients) gets 22 significant
    bits; both are rounded to integers at that shift, ties to even.

    Parameters
    ----------
    sa, za, sb, zb : float, int
        Quantization parameters of the operands.
    scale : float
        Scale of the sum.

    Raises
    ------
    UnsupportedError
        If a ratio is below 2**-14 or not below 2**8, where torch raises too.

    Examples
    --------
    >>> fixed_point(0.5, 3, 0.25, 0, 0.5)
    FixedPoint(a=2097152, b=1048576, offset=-6291456, shift=21)
    """
    ratios = np.float32(sa) / np.float32(scale), np.float32(sb) / np.float32(scale)
    if not all(2.0**-14 <= ratio < 2.0**8 for ratio in ratios):
        raise UnsupportedError(
            f"quantized::add: qnnpack needs scales within 2**-14 to 2**8 of the sum's, got ratios "
            f"{ratios[0]} and {ratios[1]}"
        )
    _, exponent = np.frexp(max(ratios))
    shift = 21 - (int(exponent) - 1)
    a, b = (int(np.rint(np.float64(ratio) * 2.0**shift)) for ratio in ratios)
    return FixedPoint(a, b, -(a * za + b * zb), shift)


def reference(a: Array, b: Array, numbers: FixedPoint, zero_point: int, low: int) -> Array:
    r"""Add two arrays of uint8 with one rounding shift.

    .. math:: q = \mathrm{clamp}(\mathrm{sat}_{16}(\mathrm{round}((A q_a + B q_b + o) / 2^n)) + z)

    Rounding is to nearest, ties away from zero, of a sum that wraps to int32.

    Parameters
    ----------
    a, b : uint8, one shape
        The operands' integers.
    numbers : FixedPoint
        A, B, o and n.
    zero_point, low : int
        Of the result; ``low`` is the zero point with relu, else 0.

    Examples
    --------
    >>> numbers = fixed_point(0.5, 0, 0.5, 0, 1.0)
    >>> reference(np.uint8([1, 2]), np.uint8([0, 3]), numbers, 10, 0)
    array([11, 13], dtype=uint8)
    """
    exact = a.astype(np.int64) * numbers.a + b.astype(np.int64) * numbers.b + numbers.offset
    total = exact.astype(np.int32).astype(np.int64)
    half = 1 << (numbers.shift - 1)
    size = (np.abs(total) + half) >> numbers.shift
    rounded = np.where(total < 0, -size, size)
    limited = np.clip(rounded, -(2**15), 2**15 - 1) + zero_point
    q: Array = np.clip(limited, low, 255).astype(np.uint8)
    return q


@jit
def fill(
    a: Any, fa: int, b: Any, fb: int, offset: int, shift: int, zero_point: int, low: int, out: Any
) -> None:
    """Compute :func:`reference` on flat arrays: the remainder decides, as in qnnpack."""
    mask = (1 << shift) - 1
    threshold = mask >> 1
    for i in range(out.size):
        exact = np.int64(a[i]) * fa + np.int64(b[i]) * fb + offset
        total = np.int64(np.int32(exact & 0xFFFFFFFF))
        remainder = (total & mask) - (1 if total < 0 else 0)
        rounded = (total >> shift) + (1 if remainder > threshold else 0)
        value = zero_point + (
            -32768 if rounded < -32768 else 32767 if rounded > 32767 else rounded
        )
        out[i] = np.uint8(low if value < low else 255 if value > 255 else value)
