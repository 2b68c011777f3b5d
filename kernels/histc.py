"""``torch.histc``: how many elements fall into each of evenly spaced bins."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.target import Target
from refquant.kernels.float_sum import sum_dims
from refquant.kernels.jit import jit
from refquant.kernels.layout import memory_order

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]

# Elements below which torch.histc gives a thread no share of its own.
GRAIN = 200


@cache
def _finfo(dtype: np.dtype[Any]) -> Any:
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def _limit(dtype: np.dtype[Any]) -> int:
    """Return the count at which adding one in ``dtype`` no longer changes it.

    Examples
    --------
    >>> _limit(np.dtype(np.float32)) == 2**24, _limit(np.dtype(ml_dtypes.bfloat16))
    (True, 256)
    """
    return int(2 ** (_finfo(dtype).nmant + 1))


def fitting(value: float, dtype: np.dtype[Any]) -> Any:
    """Return an end of the range in ``dtype``, if it is not too large for it."""
    if abs(value) > float(_finfo(dtype).max):
        raise VerifyError(f"histogram: an end of the range is too large for {dtype}, got {value}")
    return dtype.type(value)


def _widened(value: float, dtype: np.dtype[Any]) -> tuple[float, float]:
    """Return a range around one value: one less and one more, at least the next numbers.

    In float16 and bfloat16 torch does not look for the next numbers.
    """
    if dtype.itemsize == 2:
        return value - 1, value + 1
    one, centre, last = dtype.type(1), dtype.type(value), np.finfo(dtype).max
    left = min(centre - one, np.nextafter(centre, -last))
    return float(left), float(max(centre + one, np.nextafter(centre, last)))


def _edges(x: Array, low: Any, high: Any) -> tuple[Any, Any]:
    """Return the ends between which the elements of ``x`` are counted, in its dtype.

    A range without width becomes that of the data; if that has none either, it is widened.
    """
    left, right = float(low), float(high)
    if left == right and x.size:
        left, right = float(x.min()), float(x.max())
    if not (math.isfinite(left) and math.isfinite(right)):
        raise VerifyError(f"histogram: the range must be finite, got [{left}, {right}]")
    if left == right:
        left, right = _widened(left, x.dtype)
    if not left < right:
        raise VerifyError(
            f"histogram: the range must have a width in float64, got [{low}, {high}]"
        )
    return fitting(left, x.dtype), fitting(right, x.dtype)


def _bins_of(x: Array, bins: int, left: Any, right: Any) -> Counts:
    """Return the bin of each element, or -1; every operation is rounded to the dtype of ``x``."""
    with np.errstate(all="ignore"):
        scale = np.asarray(bins).astype(x.dtype)
        width = right - left
        if np.isinf(width):  # the ends that torch compares with are NaN
            return np.full(x.shape, -1, np.int64)
        position = ((x - left) * scale / width).astype(np.float64)
    # torch converts NaN and infinities to an index that wraps to the first element.
    position = np.where(np.isfinite(position), np.trunc(position), 0)
    inside = (x >= left) & (x <= right)
    if np.any(position[inside] > bins):
        raise VerifyError(
            f"histogram: {x.dtype} cannot index {bins} bins; torch writes past the last one"
        )
    return np.where(inside, np.minimum(position, bins - 1), -1).astype(np.int64)


def _shares(n: int, threads: int) -> list[tuple[int, int]]:
    """Return start and end of each thread's part of ``n`` elements."""
    parts = max(1, min(threads, -(-n // GRAIN)))
    size = max(1, -(-n // parts))
    return [(start, min(start + size, n)) for start in range(0, n, size)]


def _join(counts: Counts, dtype: np.dtype[Any], target: Target) -> Array:
    """Add the counts of the threads, each of which stops at :func:`_limit`."""
    counts = np.minimum(counts, _limit(dtype))
    if len(counts) == 1 or dtype != np.float32:  # the other sums are exact in int64
        joined: Array = counts.sum(axis=0).astype(dtype)
        return joined
    return sum_dims(counts.astype(np.float32), [0], target).reshape(-1)


def histc(x: Array, bins: int, low: float, high: float, target: Target = Target()) -> Array:
    r"""Count the elements that fall into ``bins`` equal parts of ``[low, high]``.

    .. math:: b = \min(\mathrm{trunc}((x - low) \cdot bins / (high - low)), bins - 1)

    with every operation rounded to the dtype of ``x``. A position that overflows counts in the
    first bin, and a range whose width overflows counts nothing: both as torch on x86.

    Counts are kept in the dtype of ``x`` by each thread, whose ``+= 1`` stops at :math:`2^{24}`
    in float32, 2048 in float16 and 256 in bfloat16.

    Parameters
    ----------
    x : float64, float32, float16 or bfloat16, any shape
        What is counted; NaN and elements outside of the range are left out.
    bins : int
        Number of bins.
    low, high : float
        The range, both ends included. If they are equal, the range of the data; if that has no
        width either, one less and one more.

    Returns
    -------
    [bins], dtype of ``x``

    Raises
    ------
    VerifyError
        If an end is not finite or does not fit the dtype, or if a rounded position lies beyond
        the last bin, where torch writes outside of its memory.

    Examples
    --------
    >>> histc(np.float32([0, 0.5, 1, 4]), 2, 0, 4)
    array([3., 1.], dtype=float32)
    """
    x = np.ascontiguousarray(x).reshape(-1)
    bin_of = _bins_of(x, bins, *_edges(x, low, high))
    counts = np.zeros((target.threads, bins), np.int64)
    for share, (start, end) in zip(counts, _shares(x.size, target.threads), strict=False):
        part = bin_of[start:end]
        share += np.bincount(part[part >= 0], minlength=bins)
    return _join(counts, x.dtype, target)


_BLOCK = 1024
_TABLES = 4


@jit
def _count(x: Any, left: Any, scale: Any, width: Any, counts: Any) -> None:
    """Count in-range elements, in several tables: an increment waits for one of the same bin."""
    last = np.int32(counts.size - 1)
    tables = np.zeros((_TABLES, counts.size), np.int64)
    bin_of = np.empty(_BLOCK, np.uint32)
    for start in range(0, x.size, _BLOCK):
        part = x[start : start + _BLOCK]
        for i in range(part.size):
            position = (part[i] - left) * scale / width
            inside = position < scale + scale  # neither NaN nor infinite
            whole = np.int32(position) if inside else np.int32(0)
            bin_of[i] = np.uint32(min(whole, last))
        rows = part.size // _TABLES * _TABLES
        for i in range(0, rows, _TABLES):
            tables[0, bin_of[i]] += 1
            tables[1, bin_of[i + 1]] += 1
            tables[2, bin_of[i + 2]] += 1
            tables[3, bin_of[i + 3]] += 1
        for i in range(rows, part.size):
            counts[bin_of[i]] += 1
    for i in range(counts.size):
        for table in tables:
            counts[i] += table[i]


@jit
def _count_patterns(x: Any, counts: Any) -> None:
    for i in range(x.size):
        counts[x[i]] += 1


def _count_one(x: Array, bins: int, left: Any, right: Any) -> Counts:
    """Count the elements of one thread, all of them in the range."""
    if x.dtype.itemsize == 2:  # few values: count each of them, then ask where it belongs
        patterns = np.zeros(1 << 16, np.int64)
        _count_patterns(x.view(np.uint16), patterns)
        seen = np.flatnonzero(patterns)
        bin_of = _bins_of(seen.astype(np.uint16).view(x.dtype), bins, left, right)
        counts = np.zeros(bins, np.int64)
        np.add.at(counts, bin_of[bin_of >= 0], patterns[seen][bin_of >= 0])
        return counts
    width = right - left
    if np.isinf(width):
        return np.zeros(bins, np.int64)
    counts = np.zeros(bins, np.int64)
    _count(x, left, x.dtype.type(bins), width, counts)
    return counts


def histc_compiled(x: Array, bins: int, low: Any, high: Any, target: Target) -> Array:
    """Compute :func:`histc` of elements that are all in the range."""
    if target.threads > 1 and x.size > _limit(x.dtype):
        x = np.ascontiguousarray(x).reshape(-1)  # torch splits the logical order
    else:
        x = memory_order(x)
    left, right = _edges(x, low, high)
    shares = _shares(x.size, target.threads) if x.size > _limit(x.dtype) else [(0, x.size)]
    counts = np.stack([_count_one(x[start:end], bins, left, right) for start, end in shares])
    return _join(counts, x.dtype, target)
