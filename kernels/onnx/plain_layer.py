"""Layers on the compiled tiles whose operands and results are plain arrays of uint8."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.prepared import Operand
from refquant.ir.target import Target
from refquant.ir.types import QParams, TensorType, quint8
from refquant.kernels import layer
from refquant.kernels.accumulate import Sums
from refquant.kernels.layer import Layer
from refquant.kernels.onnx import rescale
from refquant.kernels.packing import PackedWeight
from refquant.kernels.requantize import Rounding
from refquant.kernels.walk import Window

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class PlainLayer(Layer):
    """A layer that onnxruntime requantises; what follows it is not taken in."""

    def absorb(
        self,
        name: str,
        position: int,
        operands: tuple[Operand, ...],
        attributes: Mapping[str, Any],
        result: TensorType,
    ) -> Layer | None:
        """Take in nothing."""
        return None

    def _tensor(self, rows: Array) -> Array:
        found: Array = super()._tensor(rows).int_repr
        return found

    def _integers(self, x: Any) -> Array:
        return np.asarray(x)


def plain_layer(
    shape: tuple[int, ...],
    x_scale: float,
    x_zero: int,
    weight: PackedWeight,
    bias: Any,
    window: Window | None,
    rounding: Rounding,
    out: tuple[int, ...],
    target: Target,
) -> PlainLayer | None:
    """Bind a layer; None if the tiles do not do it."""
    x = TensorType(quint8, shape, QParams(x_scale, x_zero))
    result = TensorType(quint8, out, QParams(rounding.scale, rounding.zero_point))
    parameters = (rescale.STAGE, Sums.EXACT, rounding, result, target)
    made = layer.prepare(x, weight, bias, window, *parameters)
    if made is None:
        return None
    return PlainLayer(*(getattr(made, field.name) for field in fields(made)))
