"""Constant weights that keep what kernels make of them: their packed forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.ir.types import qint8
from refquant.kernels.packing import Layout, PackedWeight

Array = npt.NDArray[Any]
# Forms that a weight keeps: more would mean that parameters change from call to call.
KEPT = 8


class KeptArray(np.ndarray[Any, np.dtype[Any]]):
    """A weight that cannot change, with what was made of it.

    Parts and copies of it are plain again.

    Examples
    --------
    >>> w = KeptArray.of(np.int8([[1, 2]]))
    >>> w.made[1] = 2
    >>> KeptArray.of(w) is w, w[:1].made
    (True, {})
    """

    made: dict[Any, Any]
    frozen = True  # a plan need not look whether it changed

    def __array_finalize__(self, _source: Any) -> None:
        """Begin without forms."""
        self.made = {}

    @classmethod
    def of(cls, weight: Array) -> KeptArray:
        """Return a weight that keeps its forms, a copy that cannot be written."""
        if isinstance(weight, cls) and not weight.flags.writeable:
            return weight
        kept = np.array(weight, copy=True, order="C").view(cls)
        assert isinstance(kept.base, np.ndarray)
        kept.base.flags.writeable = False
        kept.flags.writeable = False
        return kept


def form(weight: Array, key: Any, make: Callable[[], Any]) -> Any:
    """Return what a weight keeps under ``key``, or make it; a plain array keeps nothing."""
    if not isinstance(weight, KeptArray) or weight.flags.writeable:
        return make()
    made = weight.made
    if key not in made:
        if len(made) >= KEPT:
            made.clear()
        made[key] = make()
    return made[key]


def pack(weight: Array, **_attributes: Any) -> Array:
    """Return a constant weight so that it keeps its forms."""
    return KeptArray.of(weight)


def signed(weight: Array, zero_point: Array) -> tuple[Array, Array]:
    """Return a weight of bytes and its zero points as int8; uint8 moves by 128.

    Examples
    --------
    >>> signed(np.uint8([0, 130]), np.uint8(128))
    (array([-128,    2], dtype=int8), np.int64(0))
    """
    zero = np.asarray(zero_point).astype(np.int64)
    if weight.dtype == np.int8:
        return np.asarray(weight), zero
    return (np.asarray(weight) ^ np.uint8(128)).view(np.int8), zero - 128


def unsigned(x: Array, zero_point: int) -> tuple[Array, int]:
    """Return an input of bytes and its zero point as uint8; int8 moves by 128."""
    if x.dtype == np.uint8:
        return x, zero_point
    return x.view(np.uint8) ^ np.uint8(128), zero_point + 128


def packed(
    weight: Array, zero_point: Array, scale: Array, layout: Layout, *, matrix: bool
) -> PackedWeight:
    """Return a weight in the layout of the tiles; a ``matrix`` is (inputs, outputs) as ONNX's.

    Zero points and scales have one entry, or one for each output.
    """
    zero_point, scale = np.asarray(zero_point).reshape(-1), np.asarray(scale).reshape(-1)
    key = ("packed", layout, zero_point.tobytes(), scale.tobytes())

    def make() -> PackedWeight:
        integers, zero = signed(weight, zero_point)
        if matrix:
            integers = np.ascontiguousarray(integers.T)
        if zero.size == 1 == scale.size:
            return PackedWeight(
                QTensor(integers, float(scale[0]), int(zero[0]), None, qint8), layout
            )
        outputs = (len(integers),)
        each = np.broadcast_to(scale, outputs).astype(np.float64)
        zeros = np.array(np.broadcast_to(zero, outputs))
        return PackedWeight(QTensor(integers, each, zeros, 0, qint8), layout)

    found: PackedWeight = form(weight, key, make)
    return found
