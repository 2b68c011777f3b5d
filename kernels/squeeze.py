"""``aten::squeeze`` and ``aten::unsqueeze``: dimensions of length 1 go and come."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.op import Case
from refquant.ir.qtensor import Array, Tensor
from refquant.ir.types import TensorType
from refquant.kernels.checks import dimension
from refquant.kernels.movement import example, move, moved, movement

Dims = int | tuple[int, ...] | None


def squeeze(x: Tensor, dim: Dims = None) -> Any:
    """Remove dimensions of length 1.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    dim : int, tuple of int or None
        Which ones to remove where their length is 1; None means all.

    Returns
    -------
    A view of ``x``.

    Raises
    ------
    VerifyError
        If there is no such dimension.

    Examples
    --------
    >>> squeeze(np.zeros((1, 3, 1))).shape, squeeze(np.zeros((1, 3, 1)), 0).shape
    ((3,), (3, 1))
    """

    def remove(array: Array) -> Array:
        return array.squeeze(_removed(array.shape, dim))

    return move(x, remove)


def _removed(shape: tuple[Any, ...], dim: Dims) -> tuple[int, ...]:
    if dim is None:
        asked = set(range(len(shape)))
    else:
        dims = (dim,) if isinstance(dim, int) else dim
        asked = {dimension("squeeze", d, max(len(shape), 1)) for d in dims}
    return tuple(d for d in sorted(asked) if d < len(shape) and shape[d] == 1)


def infer_squeeze(x: TensorType, dim: Dims = None) -> TensorType:
    """Drop the lengths of 1; a symbolic length stays."""
    gone = _removed(x.shape, dim)
    return moved(x, [size for d, size in enumerate(x.shape) if d not in gone], "squeeze")


def unsqueeze(x: Tensor, dim: int) -> Any:
    """Insert a dimension of length 1.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    dim : int
        Where it stands in the result; negative counts from the end.

    Returns
    -------
    A view of ``x``.

    Raises
    ------
    VerifyError
        If there is no such place.

    Examples
    --------
    >>> unsqueeze(np.zeros(3), -1).shape
    (3, 1)
    """

    def insert(array: Array) -> Array:
        place = dim % (array.ndim + 1)
        size = (*array.shape, 1)[place]
        step = (*array.strides, array.itemsize)[place]  # the new length steps over this one
        shape = (*array.shape[:place], 1, *array.shape[place:])
        strides = (*array.strides[:place], size * step, *array.strides[place:])
        bits = array.view(f"V{array.itemsize}")  # NumPy cannot spell every element type
        return np.lib.stride_tricks.as_strided(bits, shape, strides).view(array.dtype)

    return move(x, insert)


def infer_unsqueeze(x: TensorType, dim: int) -> TensorType:
    """Insert a length of 1."""
    place = dimension("unsqueeze", dim, x.rank + 1)
    return moved(x, (*x.shape[:place], 1, *x.shape[place:]), "unsqueeze")


_X = example(1, 3)

OPS = (
    movement(
        "aten::squeeze",
        squeeze,
        infer_squeeze,
        Case("all", (_X,), {}, [0, 1, 2], "every length 1"),
        Case("long", (_X,), {"dim": 1}, _X, "a longer dimension stays"),
        Case("several", (_X[..., None],), {"dim": (0, 2)}, [0, 1, 2], "a tuple"),
    ),
    movement(
        "aten::unsqueeze",
        unsqueeze,
        infer_unsqueeze,
        Case("end", (_X,), {"dim": -1}, [[[0], [1], [2]]], "behind the last"),
    ),
)
