"""``aten::select``, ``slice``, ``split_with_sizes`` and ``unbind``: parts of a tensor as views."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, Tensor
from refquant.ir.types import TensorType
from refquant.kernels.checks import dimension, known_length
from refquant.kernels.movement import example, move, moved, movement


def _along(array: Array, dim: int, part: Any) -> Array:
    index: list[Any] = [slice(None)] * array.ndim
    index[dim] = part
    return np.asarray(array[tuple(index)])


def select(x: Tensor, dim: int, index: int) -> Any:
    """Take one entry of a dimension, which disappears.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    dim, index : int
        Dimension and entry; negative counts from the end.

    Returns
    -------
    A view of ``x``.

    Raises
    ------
    VerifyError
        If the index is out of range.

    Examples
    --------
    >>> select(np.arange(6).reshape(2, 3), 1, -1)
    array([2, 5])
    """
    return move(x, lambda array: _along(array, dim, index))


def infer_select(x: TensorType, dim: int, index: int) -> TensorType:
    """Drop one length."""
    at = dimension("select", dim, x.rank)
    length = x.shape[at]
    if isinstance(length, int) and not -length <= index < length:
        raise VerifyError(f"select: index must be in [{-length}, {length - 1}], got {index}")
    return moved(x, (*x.shape[:at], *x.shape[at + 1 :]), "select")


def slice_(x: Tensor, dim: int = 0, start: int = 0, end: int | None = None, step: int = 1) -> Any:
    """Take every ``step``-th entry of a range.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    dim : int
        The dimension; negative counts from the end.
    start, end : int, end may be None
        The range, as Python slices clip it.
    step : int, >= 1
        Distance between entries.

    Returns
    -------
    A view of ``x``.

    Raises
    ------
    VerifyError
        If ``step`` is not positive.

    Examples
    --------
    >>> slice_(np.arange(6), 0, 1, None, 2)
    array([1, 3, 5])
    """
    return move(x, lambda array: _along(array, dim, slice(start, end, step)))


def infer_slice(
    x: TensorType, dim: int = 0, start: int = 0, end: int | None = None, step: int = 1
) -> TensorType:
    """Count the entries; a symbolic length can only be taken whole."""
    at = dimension("slice", dim, x.rank)
    if step < 1:
        raise VerifyError(f"slice: step must be >= 1, got {step}")
    length = x.shape[at]
    whole = start == 0 and step == 1 and (end is None or end == length or end == 2**63 - 1)
    if not whole:
        known = known_length("slice", length, at)
        length = len(range(*slice(start, end, step).indices(known)))
    return moved(x, (*x.shape[:at], length, *x.shape[at + 1 :]), "slice")


def split_with_sizes(x: Tensor, split_sizes: tuple[int, ...], dim: int = 0) -> tuple[Any, ...]:
    """Cut a dimension into pieces of given lengths.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    split_sizes : tuple of int
        Lengths; they add up to the dimension's.
    dim : int
        The dimension; negative counts from the end.

    Returns
    -------
    tuple of views

    Raises
    ------
    VerifyError
        If the lengths do not add up.

    Examples
    --------
    >>> [part.tolist() for part in split_with_sizes(np.arange(5), (2, 3))]
    [[0, 1], [2, 3, 4]]
    """
    ends = np.cumsum(split_sizes)
    return tuple(
        move(x, lambda array, a=end - size, b=end: _along(array, dim, slice(a, b)))  # type: ignore[misc]
        for size, end in zip(split_sizes, ends, strict=True)
    )


def infer_split(
    x: TensorType, split_sizes: tuple[int, ...], dim: int = 0
) -> tuple[TensorType, ...]:
    """Check that the lengths add up."""
    at = dimension("split_with_sizes", dim, x.rank)
    if sum(split_sizes) != known_length("split_with_sizes", x.shape[at], at):
        raise VerifyError(
            f"split_with_sizes: {split_sizes} does not add up to {x.shape[at]} (dim {at})"
        )
    shapes = [(*x.shape[:at], size, *x.shape[at + 1 :]) for size in split_sizes]
    return tuple(moved(x, shape, "split_with_sizes") for shape in shapes)


def unbind(x: Tensor, dim: int = 0) -> tuple[Any, ...]:
    """Return the entries of a dimension, which disappears.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    dim : int
        The dimension; negative counts from the end.

    Returns
    -------
    tuple of views

    Raises
    ------
    VerifyError
        If there is no such dimension, or its length is symbolic.

    Examples
    --------
    >>> [part.tolist() for part in unbind(np.arange(4).reshape(2, 2))]
    [[0, 1], [2, 3]]
    """
    return tuple(select(x, dim, i) for i in range(x.shape[dim]))


def infer_unbind(x: TensorType, dim: int = 0) -> tuple[TensorType, ...]:
    """Return one type for each entry."""
    at = dimension("unbind", dim, x.rank)
    return (infer_select(x, at, 0),) * known_length("unbind", x.shape[at], at)


_X = example(2, 3)

OPS = (
    movement(
        "aten::select",
        select,
        infer_select,
        Case("last", (_X,), {"dim": 1, "index": -1}, [2, 5], "from the end"),
    ),
    movement(
        "aten::slice",
        slice_,
        infer_slice,
        Case("step", (_X,), {"dim": 1, "start": 0, "step": 2}, [[0, 2], [3, 5]], "every second"),
        Case("beyond", (_X,), {"dim": 0, "start": 1, "end": 9}, [[3, 4, 5]], "the end is clipped"),
        Case("empty", (_X,), {"dim": 0, "start": 2}, np.zeros((0, 3)), "nothing left"),
    ),
    movement(
        "aten::split_with_sizes",
        split_with_sizes,
        infer_split,
        Case(
            "uneven",
            (_X,),
            {"split_sizes": (1, 2), "dim": -1},
            ([[0], [3]], [[1, 2], [4, 5]]),
            "parts of different length",
        ),
    ),
    movement(
        "aten::unbind",
        unbind,
        infer_unbind,
        Case("columns", (_X,), {"dim": 1}, ([0, 3], [1, 4], [2, 5]), "one result an entry"),
    ),
)
