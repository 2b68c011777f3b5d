"""``quantized::add`` and ``add_relu`` as the last step of the layer that makes an operand."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.prepared import Operand
from refquant.ir.target import Target
from refquant.ir.types import TensorType, quint8
from refquant.kernels import rounding
from refquant.kernels.pointwise import body_rule, chunks
from refquant.kernels.quantized_add import IN_FIXED_POINT
from refquant.kernels.requantize import Rounding
from refquant.kernels.rounding_jit import AFTER

_RELU = {"quantized::add": False, "quantized::add_relu": True}


class Addition(NamedTuple):
    """What the tile needs for a sum all of whose elements are in torch's vector bodies.

    Parameters
    ----------
    real : tuple of float32
        Scale and offset of the layer's result and of the other operand, steps of the sum in 1.
    rounding : Rounding
        Of the sum.
    """

    real: tuple[np.float32, ...]
    rounding: Rounding

    def whole(self, first: Rounding) -> npt.NDArray[np.int32]:
        """Return zero points and limits of the layer's result and of the sum."""
        return np.array([*first[1:], *self.rounding[1:]], np.int32)


def addition(
    name: str, position: int, operands: tuple[Operand, ...], result: TensorType, target: Target
) -> Addition | None:
    """Return the constants of a sum of two maps of one memory format; None if it is not one.

    Nor where some elements are in a scalar tail, which rounds differently, or where the sum may
    be larger than int32 in steps of the result.
    """
    if name not in _RELU or target.engine in IN_FIXED_POINT or not target.fused_multiply_add:
        return None
    ours, other = operands[position], operands[1 - position]
    if not isinstance(ours, TensorType) or not isinstance(other, TensorType):
        return None
    alike = ours.shape == other.shape and ours.dtype == other.dtype == quint8
    if not alike or body_rule(quint8, target) != AFTER:
        return None
    if any(middle != end for _, middle, end in chunks(prod(result.sizes), target)):
        return None
    scale, zero_point = result.per_tensor()
    inverse = rounding.reciprocal(scale)
    scales, zero_points = zip(ours.per_tensor(), other.per_tensor(), strict=True)
    units = [np.float32(unit) for unit in scales]
    if not rounding.is_ordinary(*units, inverse) or 255 * sum(scales) * inverse > 2.0**30:
        return None
    offsets = [-unit * np.float32(zero) for unit, zero in zip(units, zero_points, strict=True)]
    real = (units[0], offsets[0], units[1], offsets[1], inverse)
    low = zero_point if _RELU[name] else 0
    return Addition(real, Rounding(scale, zero_point, low))
