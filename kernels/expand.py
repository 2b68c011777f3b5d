"""``aten::expand`` and ``aten::repeat``: the same elements several times."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, Tensor
from refquant.ir.types import Shape, TensorType, format_shape
from refquant.kernels.movement import example, move, moved, movement


def expand(x: Tensor, size: tuple[int, ...]) -> Any:
    """Broadcast dimensions of length 1, without copying.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    size : tuple of int
        Wanted shape; -1 keeps a length; more entries than dimensions add leading ones.

    Returns
    -------
    A read-only view whose expanded dimensions have stride 0.

    Raises
    ------
    VerifyError
        If a length other than 1 would change.

    Examples
    --------
    >>> expand(np.zeros((3, 1)), (2, -1, 4)).shape
    (2, 3, 4)
    """

    def stretch(array: Array) -> Array:
        kept = (1,) * (len(size) - array.ndim) + array.shape
        shape = [old if new == -1 else new for old, new in zip(kept, size, strict=True)]
        return np.broadcast_to(array, shape)

    return move(x, stretch)


def infer_expand(x: TensorType, size: Shape) -> TensorType:
    """Check that only lengths of 1 change."""
    extra = len(size) - x.rank
    if extra < 0:
        raise VerifyError(f"expand: {format_shape(size)} has fewer dimensions than {x}")
    old = (1,) * extra + x.shape
    shape = [have if want == -1 else want for have, want in zip(old, size, strict=True)]
    for have, want in zip(old, shape, strict=True):
        if have not in (1, want):
            raise VerifyError(
                f"expand: {format_shape(x.shape)} cannot become {format_shape(size)}"
            )
    return moved(x, shape, "expand")


def repeat(x: Tensor, repeats: tuple[int, ...]) -> Any:
    """Tile a tensor.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    repeats : tuple of int
        How often along each dimension; more entries than dimensions add leading ones.

    Returns
    -------
    A contiguous copy.

    Raises
    ------
    VerifyError
        If there are fewer entries than dimensions.

    Examples
    --------
    >>> repeat(np.array([1, 2]), (2, 2))
    array([[1, 2, 1, 2],
           [1, 2, 1, 2]])
    """
    return move(x, lambda array: np.ascontiguousarray(np.tile(array, repeats)))


def infer_repeat(x: TensorType, repeats: Shape) -> TensorType:
    """Multiply the lengths."""
    extra = len(repeats) - x.rank
    if extra < 0:
        raise VerifyError(f"repeat: {len(repeats)} repeats for {x.rank} dimensions")
    old = (1,) * extra + x.shape
    shape = [n * r if isinstance(r, int) else r * n for n, r in zip(old, repeats, strict=True)]  # type: ignore[operator]
    return moved(x, shape, "repeat")


_X = example(1, 2)

OPS = (
    movement(
        "aten::expand",
        expand,
        infer_expand,
        Case("keep", (_X,), {"size": (2, -1)}, [[0, 1], [0, 1]], "-1 keeps the length"),
        Case("lead", (_X,), {"size": (2, 1, 2)}, [[[0, 1]], [[0, 1]]], "a new dimension"),
    ),
    movement(
        "aten::repeat",
        repeat,
        infer_repeat,
        Case("tile", (_X,), {"repeats": (2, 2)}, [[0, 1, 0, 1]] * 2, "both dimensions"),
        Case("none", (_X,), {"repeats": (0, 1)}, np.zeros((0, 2)), "zero times"),
    ),
)
