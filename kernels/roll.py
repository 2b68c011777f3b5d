"""``aten::roll`` and ``aten::flip``: elements of a dimension in another order."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, Tensor
from refquant.ir.types import TensorType
from refquant.kernels.checks import dimension
from refquant.kernels.layout import channels_last, empty_like, is_channels_last
from refquant.kernels.movement import example, move, movement

Ints = tuple[int, ...]


def roll(x: Tensor, shifts: Ints, dims: Ints) -> Any:
    """Shift elements along dimensions; those that fall off come in again at the other end.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    shifts, dims : tuple of int
        How far, and along which dimension.

    Returns
    -------
    A copy: channels-last where the input is, otherwise contiguous.

    Raises
    ------
    VerifyError
        If the numbers of shifts and dims differ.

    Examples
    --------
    >>> roll(np.arange(5), (2,), (0,))
    array([3, 4, 0, 1, 2])
    """
    for shift, dim in zip(shifts, dims, strict=True):
        x = move(x, lambda array, by=shift, at=dim: _turn(array, by, at))  # type: ignore[misc]
    return x


def _turn(x: Array, shift: int, dim: int) -> Array:
    """Join the last ``shift`` entries and the rest, as torch does: both name the strides."""
    if x.size == 0:
        return x
    first, last = np.split(x, [-shift % x.shape[dim]], dim)
    result = np.ascontiguousarray(np.concatenate((last, first), dim))
    return channels_last(result) if is_channels_last(last) and is_channels_last(first) else result


def infer_roll(x: TensorType, shifts: Ints, dims: Ints) -> TensorType:
    """Check that there is one shift for each dimension."""
    if len(shifts) != len(dims):
        raise VerifyError(f"roll: {len(shifts)} shifts for {len(dims)} dims")
    for dim in dims:
        dimension("roll", dim, x.rank)
    return x


def flip(x: Tensor, dims: Ints) -> Any:
    """Reverse the order along dimensions.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    dims : tuple of int
        Which dimensions; negative counts from the end.

    Returns
    -------
    A copy with the strides of ``x`` where dense.

    Raises
    ------
    VerifyError
        If there is no such dimension.

    Examples
    --------
    >>> flip(np.arange(3), (0,))
    array([2, 1, 0])
    """

    def reverse(array: Array) -> Array:
        result = empty_like(array, array.dtype)
        result[...] = np.flip(array, dims)
        return result

    return move(x, reverse)


def infer_flip(x: TensorType, dims: Ints) -> TensorType:
    """Check the dimensions."""
    for dim in dims:
        dimension("flip", dim, x.rank)
    return x


_X = example(2, 3)

OPS = (
    movement(
        "aten::roll",
        roll,
        infer_roll,
        Case("both", (_X,), {"shifts": (1, -1), "dims": (0, 1)}, [[4, 5, 3], [1, 2, 0]], "two"),
        source="pytorch/aten/src/ATen/native/TensorTransformations.cpp",
    ),
    movement(
        "aten::flip",
        flip,
        infer_flip,
        Case("last", (_X,), {"dims": (-1,)}, [[2, 1, 0], [5, 4, 3]], "from the end"),
        source="pytorch/aten/src/ATen/native/TensorTransformations.cpp",
    ),
)
