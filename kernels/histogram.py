"""The running histogram of torch's HistogramObserver: counting, widening the range, adding up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.target import Target
from refquant.kernels import rounding
from refquant.kernels.float_sum import F32, total
from refquant.kernels.histc import fitting, histc, histc_compiled
from refquant.kernels.jit import fma, jit
from refquant.kernels.min_max import min_max, min_max_compiled

Array = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]
Real = float | np.float32

ACCEPTED = tuple(map(np.dtype, ("float64", "float32", "float16", ml_dtypes.bfloat16)))
UPSAMPLE = 16


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
    """Compute :func:`extremes` in one pass over the memory."""
    return extremes(x) if x.dtype == np.float64 else Extremes(*min_max_compiled(x))


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
    first, last = fitting(new_minimum, dtype), fitting(new_maximum, dtype)
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
    first, last = fitting(new_minimum, dtype), fitting(new_maximum, dtype)
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
_COMPILED = _Steps(extremes_compiled, histc_compiled, _upscale_compiled)


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
        raise UnsupportedError(f"histogram: the dtype must be one of {accepted}, got {x.dtype}")
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
