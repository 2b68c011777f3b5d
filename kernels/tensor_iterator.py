"""The order in which ATen visits elements: ``TensorIterator`` sorts and merges dimensions.

Vector bodies and scalar tails are counted along its innermost loop, and float sums run in its
order, so both depend on the strides of every operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Loops(NamedTuple):
    """A nest of loops, innermost first.

    Parameters
    ----------
    dims : tuple of int
        The dimensions of the result, innermost first, before neighbours are merged.
    shape : tuple of int
        Length of each loop after merging.
    strides : tuple of tuple of int
        Bytes that each operand moves per step, one tuple per loop.
    """

    dims: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]


def _order(shape: Sequence[int], strides: Sequence[Sequence[int]], reduction: bool) -> list[int]:
    """Sort dimensions by stride, earlier operands first, ties by length (insertion sort)."""

    def compare(inner: int, outer: int) -> int:
        for operand, own in enumerate(strides):
            a, b = own[inner], own[outer]
            if reduction and operand == 0 and (a == 0) != (b == 0):
                return 1 if b == 0 else -1
            if a == 0 or b == 0:
                continue
            if a != b:
                return -1 if a < b else 1
            if shape[inner] > shape[outer]:
                return 1
        return 0

    order = list(range(len(shape) - 1, -1, -1))
    for i in range(1, len(order)):
        here = i
        for candidate in range(i - 1, -1, -1):
            verdict = compare(order[candidate], order[here])
            if verdict > 0:
                order[candidate], order[here] = order[here], order[candidate]
                here = candidate
            elif verdict < 0:
                break
    return order


def loops(operands: Sequence[Array], *, reduction: bool = False) -> Loops:
    """Return the loops over operands of one shape (broadcast dimensions have stride 0).

    Examples
    --------
    >>> a = np.zeros((4, 3, 5), np.float32)
    >>> loops([a, a]).shape
    (60,)
    >>> loops([a, np.broadcast_to(np.zeros((3, 1), np.float32), a.shape)]).shape
    (5, 3, 4)
    """
    shape = operands[0].shape
    strides = [operand.strides for operand in operands]
    order = _order(shape, strides, reduction)
    lengths: list[int] = []
    steps: list[tuple[int, ...]] = []
    for dim in order:
        step = tuple(own[dim] for own in strides)
        if lengths and (
            shape[dim] == 1
            or lengths[-1] == 1
            or all(lengths[-1] * a == b for a, b in zip(steps[-1], step, strict=True))
        ):
            if lengths[-1] == 1:
                steps[-1] = step
            lengths[-1] *= shape[dim]
        else:
            lengths.append(shape[dim])
            steps.append(step)
    return Loops(tuple(order), tuple(lengths) or (1,), tuple(steps) or ((0,) * len(strides),))


def empty_sorted(shape: tuple[int, ...], operands: Sequence[Array], dtype: npt.DTypeLike) -> Array:
    """Return the uninitialised result of a loop.

    Where all operands have its shape and are dense in one format, the result has that format; C
    order is tried first, then channels-last. Otherwise its dimensions are sorted like theirs.

    Examples
    --------
    >>> x = np.zeros((4, 6)).T[:, ::2]
    >>> empty_sorted(x.shape, [x], np.uint8).strides
    (1, 6)
    """
    if all(x.shape == shape for x in operands):
        if all(x.flags.c_contiguous for x in operands):
            return np.empty(shape, dtype)
        rows = [np.moveaxis(x, 1, -1) for x in operands if len(shape) in (4, 5)]
        if rows and all(x.flags.c_contiguous for x in rows):
            return np.moveaxis(np.empty(rows[0].shape, dtype), -1, 1)
    order = loops([_expand(x, shape) for x in operands]).dims[::-1]
    return np.empty([shape[d] for d in order], dtype).transpose(np.argsort(order))


def _expand(x: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast; unlike NumPy, a length of one that stays keeps its stride."""
    lengths = (*(0,) * (len(shape) - x.ndim), *x.shape)
    strides = (*(0,) * (len(shape) - x.ndim), *x.strides)
    steps = [s if n == m else 0 for n, m, s in zip(lengths, shape, strides, strict=True)]
    return np.lib.stride_tricks.as_strided(x, shape, steps)


def to_loop_order(x: Array, nest: Loops) -> Array:
    """Return the elements of ``x`` as a 1-D array in the order of the loops."""
    return x.transpose(nest.dims[::-1]).reshape(-1)


def from_loop_order(values: Array, nest: Loops, shape: tuple[int, ...]) -> Array:
    """Undo :func:`to_loop_order`."""
    outermost_first = nest.dims[::-1]
    placed = values.reshape([shape[d] for d in outermost_first])
    return placed.transpose(np.argsort(outermost_first)) if shape else placed.reshape(())
