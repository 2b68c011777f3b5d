"""``aten::as_strided``: a view of the memory with any strides."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, Tensor
from refquant.ir.types import Shape, TensorType
from refquant.kernels.layout import is_dense, memory_order
from refquant.kernels.movement import example, move, moved, movement


def reference(
    self: Tensor,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    storage_offset: int | None = None,
) -> Any:
    """Return elements at given steps through the memory.

    Parameters
    ----------
    self : any dense tensor
        In any order of dimensions; the elements count as they lie in memory.
    size : tuple of int
        The shape.
    stride : tuple of int
        Steps in elements, one per dimension.
    storage_offset : int, optional
        Where the first element lies; 0 if None.

    Returns
    -------
    A view.

    Raises
    ------
    VerifyError
        If the lengths do not fit, a step is negative, the tensor has gaps, or an element would
        lie outside.

    Examples
    --------
    >>> reference(np.arange(6), (2, 2), (1, 2), 1)
    array([[1, 3],
           [2, 4]])
    """

    def view(array: Array) -> Array:
        if not is_dense(array):
            raise VerifyError("as_strided: the tensor must be dense, got one with gaps")
        memory = memory_order(array)
        last = _last(size, stride, storage_offset)
        if last >= memory.size:
            raise VerifyError(f"as_strided: element {last} is outside {memory.size} elements")
        steps = [step * memory.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(memory[storage_offset or 0 :], size, steps)

    return move(self, view)


def _last(size: Shape, stride: tuple[int, ...], storage_offset: int | None) -> Any:
    if 0 in size:
        return -1
    steps = ((n - 1) * step for n, step in zip(size, stride, strict=True) if n != 1)
    return (storage_offset or 0) + sum(steps)


def infer(
    self: TensorType,
    size: Shape,
    stride: tuple[int, ...],
    storage_offset: int | None = None,
) -> TensorType:
    """Check the number of steps; where they lead is checked in the run."""
    if len(size) != len(stride):
        raise VerifyError(f"as_strided: {len(size)} lengths but {len(stride)} strides")
    if min((*stride, storage_offset or 0), default=0) < 0:
        raise VerifyError(f"as_strided: strides must be >= 0, got {stride}, {storage_offset}")
    return moved(self, size, "as_strided")


_X = example(2, 3)

OPS = (
    movement(
        "aten::as_strided",
        reference,
        infer,
        Case(
            "overlap",
            (_X,),
            {"size": (2, 2), "stride": (1, 1), "storage_offset": 2},
            [[2, 3], [3, 4]],
            "an element may be there twice",
        ),
        Case(
            "columns",
            (_X.T,),
            {"size": (6,), "stride": (1,)},
            [0, 1, 2, 3, 4, 5],
            "in the order of the memory",
        ),
    ),
)
