"""The running histogram of torch's HistogramObserver: counting, widening the range, adding up."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.target import Target
from refquant.kernels import rounding
from refquant.kernels.float_sum import F32, sum_dims, total
from refquant.kernels.jit import fma, jit
from refquant.kernels.layout import memory_order
from refquant.kernels.min_max import min_max, min_max_compiled

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Real = float | np.float32

ACCEPTED = tuple(map(np.dtype, ("float64", "float32", "float16", ml_dtypes.bfloat16)))
UPSAMPLE = 16
# Elements below which torch.histc gives a thread no share of its own.
GRAIN = 200


class Histogram(NamedTuple):
    """What a HistogramObserver has seen.

    Parameters
    ----------
    counts : float32 [bins]
        How many elements fell into each bin; fractions once the range has grown.
    minimum, maximum : float32
        The range that the bins divide; ``+inf`` and ``-inf`` before the first element.
    """

    counts: F32
    minimum: np.float32
    maximum: np.float32

    @classmethod
    def empty(cls, bins: int) -> Self:
        """Return the state before the first element.

        Examples
        --------
        >>> state = Histogram.empty(2)
        >>> state.counts, float(state.minimum), float(state.maximum)
        (array([0., 0.], dtype=float32), inf, -inf)
        """
        if bins < 1:
            raise VerifyError(f"histogram: bins must be > 0, got {bins}")
        return cls(np.zeros(bins, np.float32), np.float32(np.inf), np.float32(-np.inf))


class Extremes(NamedTuple):
    """The smallest and the largest element, NaN if there is one, in float32 or float64."""

    minimum: Any
    maximum: Any

    @property
    def has_infinity(self) -> bool:
        """Whether elements are infinite; torch warns, and :func:`observe` leaves them out."""
        return bool(self.minimum == -np.inf or self.maximum == np.inf)


def extremes(x: Array) -> Extremes:
    """Return the smallest and the largest element; float64 is not rounded.

    Examples
    --------
    >>> extremes(np.float32([3, np.inf, -1])).has_infinity
    True
    """
    return Extremes(*(min_max(x) if x.dtype != np.float64 else (x.min(), x.max())))


def extremes_compiled(x: Array) -> Extremes:
    """Compute :func:`extremes` in one pass over the memory, where that is worth its set-up."""
    large = x.dtype == np.float32 and x.size >= 1 << 15
    return Extremes(*min_max_compiled(x)) if large else extremes(x)


def linspace(start: Real, end: Real, steps: int, target: Target = Target()) -> F32:
    r"""Return evenly spaced float32 numbers as ``torch.linspace`` does.

    .. math:: y_i = \mathrm{fma}(i, \Delta, start) \;(i < n/2), \qquad
              y_i = \mathrm{fma}(n - 1 - i, -\Delta, end)

    with :math:`\Delta = (end - start) / (n - 1)` in float32. Where the target does not contract,
    product and sum are rounded separately.

    Examples
    --------
    >>> linspace(0.0, 1.0, 3)
    array([0. , 0.5, 1. ], dtype=float32)
    """
    if steps < 2:
        return np.full(steps, start, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        first, last = np.float32(start), np.float32(end)
        step = (last - first) / np.float32(steps - 1)
        i = np.arange(steps)
        lower = i < steps // 2
        multiple = np.where(lower, i, steps - 1 - i).astype(np.float32)
        signed, origin = np.where(lower, step, -step), np.where(lower, first, last)
        if target.fused_multiply_add:
            return rounding.fma(multiple, signed, origin)
        points: F32 = multiple * signed + origin
        return points


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


def _fitting(value: float, dtype: np.dtype[Any]) -> Any:
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
    return _fitting(left, x.dtype), _fitting(right, x.dtype)


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


def _histc_compiled(x: Array, bins: int, low: Any, high: Any, target: Target) -> Array:
    """Compute :func:`histc` of elements that are all in the range."""
    if target.threads > 1 and x.size > _limit(x.dtype):
        x = np.ascontiguousarray(x).reshape(-1)  # torch splits the logical order
    else:
        x = memory_order(x)
    left, right = _edges(x, low, high)
    shares = _shares(x.size, target.threads) if x.size > _limit(x.dtype) else [(0, x.size)]
    counts = np.stack([_count_one(x[start:end], bins, left, right) for start, end in shares])
    return _join(counts, x.dtype, target)


def upscale(
    counts: F32,
    minimum: np.float32,
    maximum: np.float32,
    new_minimum: float,
    new_maximum: float,
    target: Target = Target(),
) -> F32:
    """Spread the counts of one range over the bins of a wider one.

    Every bin is cut into 16 parts with a sixteenth of its count; each part is added, in order
    and in float32, to the new bin in which its centre lies.

    Raises
    ------
    VerifyError
        If an end of the new range does not fit float32.

    Examples
    --------
    >>> upscale(np.float32([16, 32]), np.float32(0), np.float32(1), 0.0, 2.0)
    array([48.,  0.], dtype=float32)
    """
    dtype = np.dtype(np.float32)
    first, last = _fitting(new_minimum, dtype), _fitting(new_maximum, dtype)
    bins = counts.size
    parts = bins * UPSAMPLE
    with np.errstate(over="ignore", invalid="ignore"):
        weights = np.repeat(counts, UPSAMPLE) / np.float32(UPSAMPLE)
        half = np.float32(0.5) * ((maximum - minimum) / np.float32(parts))
        centres = linspace(minimum, maximum, parts + 1, target)[:-1] + half
    bounds = linspace(first, last, bins + 1, target)
    bin_of = np.clip(_count_up_to(centres, bounds) - 1, 0, bins - 1)
    result = np.zeros(bins, np.float32)
    np.add.at(result, bin_of, weights)
    return result


def _count_up_to(values: F32, bounds: F32) -> Counts:
    """Return how many bounds are not above each value, by the bisection of torch.bucketize.

    Bounds of tiny ranges need not be in order; hence the very same steps.
    """
    low, high = np.zeros(values.size, np.int64), np.full(values.size, bounds.size)
    while np.any(low < high):
        middle = low + (high - low) // 2
        above = bounds[np.minimum(middle, bounds.size - 1)] > values
        searching = low < high
        high = np.where(searching & above, middle, high)
        low = np.where(searching & ~above, middle + 1, low)
    return low


@jit
def _fill_linspace(first: np.float32, last: np.float32, fused: bool, out: F32) -> None:
    step = np.float32(last - first) / np.float32(out.size - 1)
    half = out.size // 2
    for i in range(half):
        if fused:
            out[i] = fma(np.float32(i), step, first)
        else:
            out[i] = np.float32(first + np.float32(np.float32(i) * step))
    for i in range(half, out.size):
        back = np.float32(out.size - 1 - i)
        if fused:
            out[i] = fma(back, -step, last)
        else:
            out[i] = np.float32(last - np.float32(back * step))


@jit
def _in_order(x: F32) -> Any:
    descents = 0
    for i in range(1, x.size):
        descents += not x[i - 1] <= x[i]
    return descents == 0


@jit
def _add_parts(counts: F32, centres: F32, half: np.float32, bounds: F32, out: F32) -> None:
    bins = counts.size
    for i in range(centres.size - 1):
        centres[i] = np.float32(centres[i] + half)
    merge = _in_order(centres[:-1]) and _in_order(bounds)
    low = 0
    for i in range(centres.size - 1):
        centre = centres[i]
        if merge:
            while low < bounds.size and bounds[low] <= centre:
                low += 1
        else:
            low, high = 0, bounds.size
            while low < high:
                middle = (low + high) // 2
                if bounds[middle] > centre:
                    high = middle
                else:
                    low = middle + 1
        bin_of = min(max(low - 1, 0), bins - 1)
        out[bin_of] += np.float32(counts[i // UPSAMPLE] / np.float32(UPSAMPLE))


def _upscale_compiled(
    counts: F32,
    minimum: np.float32,
    maximum: np.float32,
    new_minimum: float,
    new_maximum: float,
    target: Target,
) -> F32:
    """Compute :func:`upscale` by walking through both ranges at once."""
    dtype = np.dtype(np.float32)
    first, last = _fitting(new_minimum, dtype), _fitting(new_maximum, dtype)
    fused = target.fused_multiply_add
    parts = counts.size * UPSAMPLE
    centres, bounds = np.empty(parts + 1, np.float32), np.empty(counts.size + 1, np.float32)
    out = np.zeros(counts.size, np.float32)
    half = np.float32(0.5) * ((maximum - minimum) / np.float32(parts))
    _fill_linspace(minimum, maximum, fused, centres)
    _fill_linspace(first, last, fused, bounds)
    _add_parts(counts, centres, half, bounds, out)
    return out


class _Steps(NamedTuple):
    """The parts of :func:`observe`, plain or compiled."""

    extremes: Callable[[Array], Extremes]
    histc: Callable[..., Array]
    upscale: Callable[..., F32]


_PLAIN = _Steps(extremes, histc, upscale)
_COMPILED = _Steps(extremes_compiled, _histc_compiled, _upscale_compiled)


def observe(
    state: Histogram, x: Array, target: Target = Target(), seen: Extremes | None = None
) -> Histogram:
    """Return the histogram after one more batch, as ``HistogramObserver.forward`` leaves it.

    The first batch sets the range. Later, if the batch lies within the range, its counts are
    added. Otherwise the range grows and the old counts are carried over: by :func:`upscale`, or,
    if all elements so far were equal, into the one bin that holds them.

    Parameters
    ----------
    state : Histogram
        What was seen before; it is not changed.
    x : float64, float32, float16 or bfloat16, any shape and strides
        The batch. Infinities are left out; an empty batch changes nothing.
    target : Target
        Whether ``linspace`` contracts, and how many threads count.
    seen : Extremes, optional
        ``extremes(x)``, if it is known already.

    Returns
    -------
    Histogram

    Raises
    ------
    VerifyError
        If ``x`` holds NaN or is not of an accepted dtype, or the new range is not finite or does
        not fit float32 or the dtype of ``x``: where torch raises. Also where float16 or bfloat16
        cannot index the bins; see :func:`histc`.

    Examples
    --------
    >>> state = observe(Histogram.empty(2), np.float32([0, 1, 1]))
    >>> observe(state, np.float32([4])).counts
    array([3., 1.], dtype=float32)
    """
    return _observe(_PLAIN, state, x, target, seen)


def observe_compiled(
    state: Histogram, x: Array, target: Target = Target(), seen: Extremes | None = None
) -> Histogram:
    """Compute :func:`observe` in two compiled passes over the batch: its range, its counts."""
    return _observe(_COMPILED, state, x, target, seen)


@np.errstate(over="ignore", invalid="ignore")
def _observe(
    steps: _Steps, state: Histogram, x: Array, target: Target, seen: Extremes | None
) -> Histogram:
    if x.dtype not in ACCEPTED:
        accepted = ", ".join(dtype.name for dtype in ACCEPTED)
        raise VerifyError(f"histogram: the dtype must be one of {accepted}, got {x.dtype}")
    if x.size == 0:
        return state
    seen = steps.extremes(x) if seen is None else seen
    if seen.minimum != seen.minimum:
        raise VerifyError("histogram: elements must be numbers, got NaN")
    if seen.has_infinity:
        x = x[np.isfinite(x)]
        if x.size == 0:
            return state
        seen = steps.extremes(x)
    bins = state.counts.size
    if state.minimum == np.inf or state.maximum == -np.inf:
        counts = steps.histc(x, bins, *seen, target)
        return _stored(counts, seen.minimum, seen.maximum)
    # float64 bounds stay float64 here, so float32 ones that were rounded may lie inside.
    low, high = np.minimum(state.minimum, seen.minimum), np.maximum(state.maximum, seen.maximum)
    added = steps.histc(x, bins, low, high, target)
    if low == state.minimum and high == state.maximum:
        return _stored(state.counts + added, state.minimum, state.maximum)
    if state.minimum == state.maximum:
        where = histc(np.array([state.minimum]), bins, low, high)
        before = where * total(state.counts, target)
    else:
        before = steps.upscale(state.counts, state.minimum, state.maximum, low, high, target)
    return _stored(added + before, low, high)


def _stored(counts: Array, minimum: Any, maximum: Any) -> Histogram:
    """Return the state in float32."""
    counts = counts.astype(np.float32, copy=False)
    return Histogram(counts, np.float32(minimum), np.float32(maximum))
