"""``aten::reshape``, ``aten::view`` and ``aten::flatten``: the same elements in another shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, Tensor
from refquant.ir.types import Shape, Size, TensorType, element_count, format_shape
from refquant.kernels.checks import dimension
from refquant.kernels.movement import example, move, moved, movement


def reshape(x: Tensor, shape: tuple[int, ...]) -> Any:
    """Give the elements, in row-major order of the old shape, a new shape.

    A view where the strides allow it, otherwise a contiguous copy, as in torch.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    shape : tuple of int
        One entry may be -1: what remains.

    Returns
    -------
    Like ``x``, with the new shape.

    Raises
    ------
    VerifyError
        If the number of elements differs.

    Examples
    --------
    >>> reshape(np.arange(6), (3, -1))
    array([[0, 1],
           [2, 3],
           [4, 5]])
    """
    return move(x, lambda array: array.reshape(shape))


def infer_reshape(x: TensorType, shape: Shape, op: str = "reshape") -> TensorType:
    """Resolve -1 and check the number of elements."""
    total = element_count(x.shape)
    if shape.count(-1) > 1:
        raise VerifyError(f"{op}: only one entry may be -1, got {format_shape(shape)}")
    if -1 in shape:
        known = element_count(tuple(size for size in shape if size != -1))
        if known == 0:
            raise VerifyError(f"{op}: -1 is ambiguous in {format_shape(shape)}")
        rest: Size = _divide(total, known, x, shape, op)
        shape = tuple(rest if size == -1 else size for size in shape)
    if element_count(shape) != total:
        raise VerifyError(
            f"{op}: {format_shape(x.shape)} has {total} elements, "
            f"{format_shape(shape)} has {element_count(shape)}"
        )
    return moved(x, shape, op)


def _divide(total: Size, known: Size, x: TensorType, shape: Shape, op: str) -> Size:
    if isinstance(total, int) and isinstance(known, int) and total % known:
        raise VerifyError(
            f"{op}: {format_shape(x.shape)} cannot become {format_shape(shape)}: "
            f"{total} is not a multiple of {known}"
        )
    if isinstance(total, int) and not isinstance(known, int):
        raise VerifyError(f"{op}: {total} elements cannot become {format_shape(shape)}")
    return total // known  # type: ignore[operator]


def view(x: Tensor, size: tuple[int, ...]) -> Any:
    """Reshape without copying.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    size : tuple of int
        One entry may be -1.

    Returns
    -------
    A view of ``x``.

    Raises
    ------
    VerifyError
        If the strides do not allow a view; torch stops there too (``view`` of a channels-last
        tensor, for example).

    Examples
    --------
    >>> view(np.arange(6), (2, 3)).shape
    (2, 3)
    """

    def without_copy(array: Array) -> Array:
        result = array.reshape(size)
        if array.size and not np.shares_memory(result, array):
            raise VerifyError(
                f"view: strides {array.strides} of {list(array.shape)} do not allow "
                f"{list(size)}; torch refuses it too, use reshape"
            )
        return result

    return move(x, without_copy)


def infer_view(x: TensorType, size: Shape) -> TensorType:
    """Resolve -1 and check the number of elements."""
    return infer_reshape(x, size, "view")


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Merge dimensions ``start_dim`` to ``end_dim`` into one.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    start_dim, end_dim : int
        First and last dimension merged; negative counts from the end.

    Returns
    -------
    Like ``x``, a view where the strides allow it.

    Raises
    ------
    VerifyError
        If ``start_dim`` lies behind ``end_dim``.

    Examples
    --------
    >>> flatten(np.zeros((2, 3, 4)), 1).shape
    (2, 12)
    """

    def merge(array: Array) -> Array:
        rank = max(array.ndim, 1)
        first, last = start_dim % rank, end_dim % rank
        if array.ndim == 0 or array.size:
            return array.reshape((*array.shape[:first], -1, *array.shape[last + 1 :]))
        merged = int(np.prod(array.shape[first : last + 1]))
        return array.reshape((*array.shape[:first], merged, *array.shape[last + 1 :]))

    return move(x, merge)


def infer_flatten(x: TensorType, start_dim: int = 0, end_dim: int = -1) -> TensorType:
    """Multiply the lengths of the merged dimensions."""
    if x.rank == 0:
        return moved(x, (1,), "flatten")
    first = dimension("flatten", start_dim, x.rank)
    last = dimension("flatten", end_dim, x.rank)
    if first > last:
        raise VerifyError(f"flatten: start_dim {start_dim} lies behind end_dim {end_dim}")
    merged = element_count(x.shape[first : last + 1])
    return moved(x, (*x.shape[:first], merged, *x.shape[last + 1 :]), "flatten")


_X = example(2, 3)

OPS = (
    movement(
        "aten::reshape",
        reshape,
        infer_reshape,
        Case("rest", (_X,), {"shape": (-1, 2)}, [[0, 1], [2, 3], [4, 5]], "-1 is what remains"),
        Case("copy", (_X.T,), {"shape": (6,)}, [0, 3, 1, 4, 2, 5], "row-major order of x.T"),
        Case("empty", (_X[:0],), {"shape": (3, 0)}, np.zeros((3, 0)), "no elements"),
    ),
    movement(
        "aten::view",
        view,
        infer_view,
        Case("split", (_X,), {"size": (2, 1, -1)}, _X[:, None], "a new dimension of length 1"),
    ),
    movement(
        "aten::flatten",
        flatten,
        infer_flatten,
        Case("middle", (_X[None],), {"start_dim": 1}, [[0, 1, 2, 3, 4, 5]], "batch is kept"),
        Case("nothing", (_X,), {"start_dim": 1, "end_dim": 1}, _X, "one dimension stays"),
    ),
)
