"""Memory formats: torch's rules for the strides of tensors, on NumPy arrays.

Values keep torch's logical shape (N, C, H, W) and torch's strides, because a few kernels
compute differently on a channels-last tensor and the scalar tail of a vectorised kernel sits at
the end of the *memory*, not of the shape.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import jit
from refquant.kernels.tensor_iterator import empty_sorted

Array = npt.NDArray[Any]
Ints = tuple[int, ...]
SMALL = 1 << 17  # bytes whose alignment does not matter
LINE = 64  # bytes of a cache line


def is_channels_last(x: Array) -> bool:
    """Whether torch's ``suggest_memory_format`` calls a rank 4 or 5 array channels-last.

    Examples
    --------
    >>> x = np.zeros((2, 4, 4, 3)).transpose(0, 3, 1, 2)
    >>> is_channels_last(x), is_channels_last(np.ascontiguousarray(x))
    (True, False)
    """
    return x.ndim in (4, 5) and _is_channels_last(x.shape, x.strides)


@lru_cache(maxsize=4096)  # these questions are asked of every operand of every node
def _is_channels_last(shape: Ints, strides: Ints) -> bool:
    if strides[1] == 0:
        return False
    smallest = 0
    for dim in (1, *range(len(shape) - 1, 1, -1), 0):
        if shape[dim] == 0 or strides[dim] < smallest:
            return False
        if dim == 0 and smallest == strides[1]:
            return False
        smallest = strides[dim] * max(shape[dim], 1)
    return True


@lru_cache(maxsize=4096)
def _dense_permutation(shape: Ints, strides: Ints, itemsize: int) -> Ints | None:
    """Dimensions from outermost to innermost, or None if the array is not dense."""
    order = sorted(range(len(shape)), key=lambda d: (-strides[d], d) if shape[d] > 1 else (0, d))
    expected = itemsize
    for dim in reversed(order):
        if shape[dim] > 1:
            if strides[dim] != expected:
                return None
            expected *= shape[dim]
    return tuple(order)


def _permutation(x: Array) -> Ints | None:
    """Return the permutation of an array that is dense and not empty."""
    return _dense_permutation(x.shape, x.strides, x.itemsize) if x.size else None


def _with_channels_last(x: Array) -> Array:
    """Move the channels to the end; a view."""
    return x.transpose(0, *range(2, x.ndim), 1)


def _with_channels_second(x: Array) -> Array:
    """Move the channels back; a view."""
    return x.transpose(0, x.ndim - 1, *range(1, x.ndim - 1))


def memory_permutation(x: Array) -> tuple[int, ...]:
    """Return the dimensions of a dense array from outermost to innermost in memory.

    Examples
    --------
    >>> memory_permutation(np.zeros((2, 4, 4, 3)).transpose(0, 3, 1, 2))
    (0, 2, 3, 1)
    """
    permutation = _permutation(x)
    return tuple(range(x.ndim)) if permutation is None else permutation


class ChannelNest(NamedTuple):
    """The loops over a dense array with a channel axis.

    Parameters
    ----------
    order : tuple of int
        Dimensions from outermost to innermost in memory.
    shape : tuple of int
        What lies outside the channels, the channels, what lies inside them.
    columns : bool
        Whether the last two are one loop, over which parameters are spread, because few
        elements lie inside a channel.
    """

    order: tuple[int, ...]
    shape: tuple[int, int, int]
    columns: bool

    def view(self, x: Array) -> Array:
        """Return an array of the same memory format with the shape of the loops."""
        outer, channels, inner = self.shape
        shape = (outer, channels * inner) if self.columns else self.shape
        return x.transpose(self.order).reshape(shape)

    def spread(self, parameters: Array) -> Array:
        """Return one parameter for each column, or as they are for each channel."""
        return np.repeat(parameters, self.shape[2]) if self.columns else parameters


def channel_nest(x: Array, axis: int) -> ChannelNest:
    """Return the loops over a dense array that is not empty.

    Examples
    --------
    >>> channel_nest(np.zeros((64, 3, 7, 7)), 0).shape
    (1, 64, 147)
    >>> channel_nest(np.zeros((9, 64)), 1).columns
    True
    """
    order = memory_permutation(x)
    position = order.index(axis)
    lengths = [x.shape[d] for d in order]
    outer, inner = prod(lengths[:position]), prod(lengths[position + 1 :])
    return ChannelNest(order, (outer, lengths[position], inner), outer > 1 and inner < 32)


def is_dense(x: Array) -> bool:
    """Whether the elements fill their memory without gaps or overlap, in any order."""
    return x.size == 0 or _permutation(x) is not None


def memory_order(x: Array) -> Array:
    """Return the elements as a 1-D array in the order they lie in memory.

    A view where the array is dense (any permutation of its dimensions); otherwise, as torch's
    kernels do, a contiguous copy.

    Examples
    --------
    >>> memory_order(np.arange(6).reshape(2, 3).T)
    array([0, 1, 2, 3, 4, 5])
    """
    if x.flags.c_contiguous:
        return x.reshape(-1)
    permutation = _permutation(x)
    if permutation is None:
        return np.ascontiguousarray(x).reshape(-1)
    return x.transpose(permutation).reshape(-1)


def empty_aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return an uninitialised array in C order that, if large, starts at a cache line.

    Vector stores that cross cache lines make a loop that waits for memory a sixth slower.

    Examples
    --------
    >>> empty_aligned((1000, 1000), np.uint8).ctypes.data % 64
    0
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    if size < SMALL:
        return np.empty(shape, dtype)
    memory = np.empty(size + LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, _to_next_line(memory))


@jit
def _to_next_line(memory: Any) -> Any:
    # Compiled, because NumPy takes longer to tell an address than a small kernel runs.
    return -memory.ctypes.data % LINE


def flat(x: Array, dtype: npt.DTypeLike) -> tuple[Array, Array, Array]:
    """Return the elements of ``suggested(x)`` and of a result as they lie in memory, and this.

    The result is ``empty_suggested(x, dtype)``; all questions are asked once for each shape.

    Examples
    --------
    >>> x = channels_last(np.arange(8, dtype=np.uint8).reshape(1, 2, 2, 2))
    >>> elements, into, out = flat(x, np.float32)
    >>> into[:] = elements
    >>> np.array_equal(out, x), out.strides
    (True, (32, 4, 16, 8))
    """
    strides = _result_strides(x.shape, x.strides, x.itemsize, np.dtype(dtype))
    if strides is None:
        out = empty_suggested(x, dtype)
        return memory_order(suggested(x)), memory_order(out), out
    into, out = _with_strides(x, dtype, strides)
    return x.ravel("K"), into, out


def flat_pair(x: Array, y: Array) -> tuple[Array, Array, Array, Array] | None:
    """Return the elements of two operands and of a result like ``x``, and this, in one order.

    None if the operands are not dense in one memory format.

    Examples
    --------
    >>> x = np.zeros((2, 3), np.uint8)
    >>> [part.shape for part in flat_pair(x, x)], flat_pair(x, x[:1])
    ([(6,), (6,), (6,), (2, 3)], None)
    """
    if x.shape != y.shape or x.strides != y.strides:
        return None
    strides = _result_strides(x.shape, x.strides, x.itemsize, x.dtype)
    if strides is None:
        return None
    return x.ravel("K"), y.ravel("K"), *_with_strides(x, x.dtype, strides)


def _with_strides(x: Array, dtype: npt.DTypeLike, strides: Ints) -> tuple[Array, Array]:
    into = empty_aligned((x.size,), dtype)
    return into, np.ndarray(x.shape, dtype, into, 0, strides)


@lru_cache(maxsize=4096)
def _result_strides(
    shape: Ints, strides: Ints, itemsize: int, dtype: np.dtype[Any]
) -> Ints | None:
    """Strides of the suggested format where the operand is dense in it already."""
    last = len(shape) in (4, 5) and _is_channels_last(shape, strides)
    out = empty_channels_last(shape, dtype) if last else np.empty(shape, dtype)
    wanted = [step // out.itemsize * itemsize for step in out.strides]
    same = all(n == 1 or a == b for n, a, b in zip(shape, strides, wanted, strict=True))
    return out.strides if same or not out.size else None


def empty_like(x: Array, dtype: npt.DTypeLike) -> Array:
    """Return an uninitialised array with the shape of ``x`` and, where dense, its strides."""
    if _permutation(x) is None:
        return np.empty(x.shape, dtype)
    itemsize = np.dtype(dtype).itemsize
    strides = tuple(stride // x.itemsize * itemsize for stride in x.strides)
    return np.ndarray(x.shape, dtype, np.empty(x.size, dtype), strides=strides)


def empty_preserved(x: Array, dtype: npt.DTypeLike) -> Array:
    """Return an uninitialised array as ``torch.empty_like(x)`` does.

    The strides of ``x`` where it is dense, otherwise its order of dimensions without gaps.

    Examples
    --------
    >>> empty_preserved(np.zeros((2, 3, 4)).transpose(0, 2, 1)[:, ::2], np.uint8).strides
    (6, 1, 2)
    """
    return empty_like(x, dtype) if is_dense(x) else empty_sorted(x.shape, [x], dtype)


def empty_strided_like(x: Array) -> Array:
    """Return an uninitialised array with the strides of ``x``, gaps included.

    Examples
    --------
    >>> empty_strided_like(np.zeros((4, 6), np.uint8)[:, ::2]).strides
    (6, 2)
    """
    steps = [stride // x.itemsize for stride in x.strides]
    extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, steps, strict=True))
    memory = np.empty(extent if x.size else 0, x.dtype)
    return np.lib.stride_tricks.as_strided(memory, x.shape, x.strides)


def empty_channels_last(shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
    """Return an uninitialised (N, C, ...) array whose memory is (N, ..., C)."""
    n, c, *spatial = shape
    return _with_channels_second(empty_aligned((n, *spatial, c), dtype))


def channels_last(x: Array) -> Array:
    """Return the array with channels-last memory, copied only if needed.

    Examples
    --------
    >>> channels_last(np.zeros((1, 3, 4, 4), np.uint8)).strides
    (48, 1, 12, 3)
    """
    return _with_channels_second(c_order(_with_channels_last(x)))


def is_contiguous_channels_last(x: Array) -> bool:
    """Whether torch's ``is_contiguous(channels_last)`` holds: dense NHWC memory.

    Lengths of one do not count, so an (N, C, 1, 1) array is contiguous in both formats.

    Examples
    --------
    >>> x = np.zeros((2, 3, 1, 1))
    >>> is_contiguous_channels_last(x), is_channels_last(x)
    (True, False)
    """
    return x.ndim in (4, 5) and _with_channels_last(x).flags.c_contiguous


def empty_suggested(x: Array, dtype: npt.DTypeLike, shape: tuple[int, ...] | None = None) -> Array:
    """Return an uninitialised array in the memory format that torch suggests for ``x``.

    Channels-last where ``x`` is channels-last, otherwise C order.

    Examples
    --------
    >>> empty_suggested(np.zeros((2, 3)).T, np.uint8).strides
    (2, 1)
    """
    shape = x.shape if shape is None else shape
    if is_channels_last(x) and len(shape) == x.ndim:
        return empty_channels_last(shape, dtype)
    return empty_aligned(shape, dtype)


def suggested(x: Array) -> Array:
    """Return ``x.contiguous(x.suggest_memory_format())``: dense NHWC or dense C order."""
    return channels_last(x) if is_channels_last(x) else c_order(x)


def c_order(x: Array) -> Array:
    """Return C order with torch's strides for lengths of one, by which formats are told apart."""
    return np.ascontiguousarray(x).reshape(-1).reshape(x.shape)


def raveled(x: Array) -> Array:
    """Return the array in one dimension, writeable: Numba compiles anew for a read-only one."""
    one = np.ascontiguousarray(x).reshape(-1)
    return one if one.flags.writeable else one.copy()


def _in_order(x: Array, result: Array) -> bool:
    """Whether an operand leaves the result in C order: it is so itself, or a row for each."""
    return x.ndim < 2 or (x.shape == result.shape and x.flags.c_contiguous)


def elementwise(result: Array, *operands: Array) -> Array:
    """Return the result of an elementwise op with the strides that torch gives it.

    Examples
    --------
    >>> x = channels_last(np.zeros((2, 3, 4, 4), np.uint8))
    >>> elementwise(np.add(x, x[:, :, :1, :1]), x, x[:, :, :1, :1]).strides
    (48, 1, 12, 3)
    """
    if min(result.shape, default=0) > 1 and all(_in_order(x, result) for x in operands):
        return np.ascontiguousarray(result)
    # As bytes, because NumPy cannot make a strided view of float8.
    known = [x.view(np.uint8) if x.itemsize == 1 else x for x in operands]
    out = empty_sorted(result.shape, known, result.dtype)
    out[...] = result
    return out
