"""HistogramObserver's search for the range with the smallest quantization error."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.errors import VerifyError
from refquant.ir.target import Target
from refquant.kernels.arithmetic import floor_divide
from refquant.kernels.float_sum import F32, total, total_compiled
from refquant.kernels.histogram import Histogram
from refquant.kernels.jit import fma, jit

# Share of the elements by which an end of the range is moved at a time.
STEP = 1e-5


class Search(NamedTuple):
    """What the search found.

    Parameters
    ----------
    minimum, maximum : float32
        The range to quantize.
    start_bin, end_bin : int
        The same in bins, both included.
    errors : float64 [visited, 3]
        First bin, last bin and error of every range that was tried, in order. The search stops
        at the first error that is larger than the one before, which is the last row then.
    """

    minimum: np.float32
    maximum: np.float32
    start_bin: int
    end_bin: int
    errors: npt.NDArray[np.float64]


def _cumulative(counts: F32) -> F32:
    """Return running sums: added in float64, each rounded to float32, as ``torch.cumsum``."""
    with np.errstate(over="ignore"):
        return np.cumsum(counts, dtype=np.float64).astype(np.float32)


def _check(state: Histogram, dst_bins: int) -> None:
    if state.counts.ndim != 1 or state.counts.size == 0 or state.counts.dtype != np.float32:
        raise VerifyError(
            f"histogram: counts must be a non-empty float32 vector, "
            f"got {state.counts.dtype} {state.counts.shape}"
        )
    if not 1 <= dst_bins <= 2**32:
        raise VerifyError(f"histogram: dst_bins must be in [1, 2**32], got {dst_bins}")


def error(
    state: Histogram, start_bin: int, end_bin: int, dst_bins: int, target: Target = Target()
) -> float:
    r"""Return the squared error of quantizing all elements to the range of some bins.

    The elements of a bin are taken as evenly spread over it. The range has ``dst_bins`` steps of
    width :math:`d`; a distance :math:`t` from the centre of a step costs :math:`t^2`, so a piece
    :math:`[p, q]` of a bin of density :math:`\rho` costs :math:`\rho (q^3 - p^3) / 3`. A bin is
    the rest of the step it begins in, whole steps, and the start of the step it ends in.

    Widths are float64 until they meet the vector of bins; everything else is float32, the sum in
    torch's order.

    Parameters
    ----------
    state : Histogram
        What was observed.
    start_bin, end_bin : int
        The range, both included.
    dst_bins : int
        ``2 ** bits`` of the quantized dtype; quint4x2 counts as 8 bits.
    target : Target
        How many threads add more than 32,767 bins.

    Returns
    -------
    float

    Examples
    --------
    >>> state = Histogram(np.float32([0, 4, 4, 0]), np.float32(0), np.float32(4))
    >>> error(state, 0, 3, 4), error(state, 1, 2, 4)
    (0.6666666865348816, 0.1666666716337204)
    """
    bins = state.counts.size
    with np.errstate(all="ignore"):
        bin_width = (float(state.maximum) - float(state.minimum)) / bins
        step_width = bin_width * (end_bin - start_bin + 1) / dst_bins
        if step_width == 0.0:
            return 0.0
        b, d, half = (np.float32(v) for v in (bin_width, step_width, step_width / 2))
        begin = (np.arange(bins) - start_bin).astype(np.float32) * b
        end = begin + b
        last = np.float32(dst_bins - 1)
        first_step = np.clip(floor_divide(begin, np.asarray(d)), np.float32(0), last)
        last_step = np.clip(floor_divide(end, np.asarray(d)), np.float32(0), last)
        density = state.counts / b
        cost = _cost(begin - (first_step + np.float32(0.5)) * d, half, density)
        cost = cost + (last_step - first_step - np.float32(1)) * _cost(-half, half, density)
        cost = cost + _cost(-half, end - (last_step * d + half), density)
        return float(total(cost, target))


def _cost(p: Any, q: Any, density: F32) -> F32:
    """Return ``density * (q**3 - p**3) / 3``."""
    result: F32 = density * ((q * q * q - p * p * p) / np.float32(3))
    return result


def search(state: Histogram, dst_bins: int, target: Target = Target()) -> Search:
    """Return the range that ``HistogramObserver._non_linear_param_search`` chooses.

    From the whole range, the end is moved inwards that passes more bins when another 1e-5 of the
    elements are given up on its side, as long as :func:`error` does not grow.

    Parameters
    ----------
    state : Histogram
        What was observed. Nothing is checked about its values: those that torch would take from
        a ``state_dict``, such as NaN or negative counts, give what torch gives.
    dst_bins : int
        ``2 ** bits`` of the quantized dtype; quint4x2 counts as 8 bits.
    target : Target
        How many threads add more than 32,767 bins.

    Returns
    -------
    Search

    Raises
    ------
    VerifyError
        If there are no bins, or ``dst_bins`` is not in ``[1, 2**32]``.

    Examples
    --------
    >>> counts = np.rint(1e6 * np.exp(-(np.linspace(-9, 9, 100) ** 2) / 2)).astype(np.float32)
    >>> found = search(Histogram(counts, np.float32(-9), np.float32(9)), 256)
    >>> found.start_bin, found.end_bin, len(found.errors)
    (27, 71, 5)
    >>> float(found.minimum), float(found.maximum)
    (-4.139999866485596, 3.960000991821289)
    """
    _check(state, dst_bins)
    with np.errstate(over="ignore", invalid="ignore"):
        start_bin, end_bin, errors = _search_bins(state, dst_bins, target)
    return _found(state, start_bin, end_bin, np.array(errors).reshape(-1, 3))


def _search_bins(
    state: Histogram, dst_bins: int, target: Target
) -> tuple[int, int, list[tuple[int, int, float]]]:
    amount = float(total(state.counts, target))
    below = _cumulative(state.counts).tolist()
    alpha, beta = 0.0, 1.0
    start_bin, end_bin = 0, state.counts.size - 1
    smallest = np.inf
    errors: list[tuple[int, int, float]] = []
    while alpha < beta:
        next_alpha, next_beta = alpha + STEP, beta - STEP
        # torch compares in float32
        low, high = float(np.float32(next_alpha * amount)), float(np.float32(next_beta * amount))
        left, right = start_bin, end_bin
        while left < end_bin and below[left] < low:
            left += 1
        while right > start_bin and below[right] > high:
            right -= 1
        next_start, next_end = start_bin, end_bin
        if left - start_bin > end_bin - right:
            next_start, alpha = left, next_alpha
        else:
            next_end, beta = right, next_beta
        if (next_start, next_end) == (start_bin, end_bin):
            continue
        cost = error(state, next_start, next_end, dst_bins, target)
        errors.append((next_start, next_end, cost))
        if cost > smallest:
            break
        smallest = cost
        start_bin, end_bin = next_start, next_end
    return start_bin, end_bin, errors


def _found(
    state: Histogram, start_bin: int, end_bin: int, errors: npt.NDArray[np.float64]
) -> Search:
    """Return the result with the range of the bins, in float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        width = (state.maximum - state.minimum) / np.float32(state.counts.size)
        minimum = state.minimum + width * np.float32(start_bin)
        maximum = state.minimum + width * np.float32(end_bin + 1)
    return Search(np.float32(minimum), np.float32(maximum), start_bin, end_bin, errors)


@jit
def _floor_quotient(a: np.float32, b: np.float32) -> Any:
    """Return torch's float32 floor division."""
    if b == 0:
        return np.float32(a / b)
    remainder = np.float32(np.fmod(a, b))
    quotient = np.float32(np.float32(a - remainder) / b)
    if remainder != 0 and (b < 0) != (remainder < 0):
        quotient = np.float32(quotient - np.float32(1))
    if quotient == 0:
        return np.float32(0)
    whole = np.float32(np.floor(quotient))
    if np.float32(quotient - whole) > np.float32(0.5):
        whole = np.float32(whole + np.float32(1))
    return whole


@jit
def _step_of(position: np.float32, width: np.float32, last: np.float32) -> Any:
    """Return the step a position lies in: any operands, ends not limited to finite ones."""
    step = _floor_quotient(position, width)
    if step < 0:  # NaN stays
        step = np.float32(0)
    if step > last:
        step = last
    return step


@jit
def _near_step_of(position: np.float32, width: np.float32, last: np.float32) -> Any:
    """Return :func:`_step_of` for finite operands and at most 2**16 steps, without a remainder.

    Division rounds up to a whole number at most; the exact product shows whether it did.
    """
    quotient = np.float32(position / width)
    quotient = quotient if quotient > np.float32(0) else np.float32(0)
    quotient = quotient if quotient < last else last
    step = np.float32(np.int32(quotient))
    past = fma(-step, width, position) < np.float32(0)
    return np.float32(step - np.float32(1)) if past and step > 0 else step


@jit
def _cost_of(p: np.float32, q: np.float32, density: np.float32) -> Any:
    cube_q = np.float32(np.float32(q * q) * q)
    cube_p = np.float32(np.float32(p * p) * p)
    return np.float32(density * np.float32(np.float32(cube_q - cube_p) / np.float32(3)))


@jit
def _bin_cost(
    count: np.float32,
    begin: np.float32,
    end: np.float32,
    first_step: np.float32,
    last_step: np.float32,
    b: np.float32,
    d: np.float32,
    half: np.float32,
) -> Any:
    density = np.float32(count / b)
    centre = np.float32(np.float32(first_step + np.float32(0.5)) * d)
    cost = _cost_of(np.float32(begin - centre), half, density)
    between = np.float32(np.float32(last_step - first_step) - np.float32(1))
    cost = np.float32(cost + np.float32(between * _cost_of(-half, half, density)))
    centre = np.float32(np.float32(last_step * d) + half)
    return np.float32(cost + _cost_of(-half, np.float32(end - centre), density))


@jit
def _error(
    counts: F32, span: float, start_bin: int, end_bin: int, dst_bins: int, threads: int, cost: F32
) -> float:
    bins = counts.size
    bin_width = span / bins
    step_width = bin_width * (end_bin - start_bin + 1) / dst_bins
    if step_width == 0.0:
        return 0.0
    b, d, half = np.float32(bin_width), np.float32(step_width), np.float32(step_width / 2)
    last = np.float32(dst_bins - 1)
    reach = np.float32(np.float32(bins + 1) * b)
    if dst_bins <= 65536 and d > 0 and d < np.inf and np.abs(reach) < np.inf:
        for i in range(bins):
            begin = np.float32(np.float32(np.int32(i - start_bin)) * b)
            end = np.float32(begin + b)
            first_step, last_step = _near_step_of(begin, d, last), _near_step_of(end, d, last)
            cost[i] = _bin_cost(counts[i], begin, end, first_step, last_step, b, d, half)
    else:
        for i in range(bins):
            begin = np.float32(np.float32(i - start_bin) * b)
            end = np.float32(begin + b)
            first_step, last_step = _step_of(begin, d, last), _step_of(end, d, last)
            cost[i] = _bin_cost(counts[i], begin, end, first_step, last_step, b, d, half)
    return float(total_compiled(cost, threads))


@jit
def _search(
    counts: F32, below: F32, span: float, dst_bins: int, threads: int, errors: Any
) -> tuple[int, int, int]:
    amount = float(total_compiled(counts, threads))
    running = 0.0
    for i in range(counts.size):
        running += float(counts[i])
        below[i] = np.float32(running)
    cost = np.empty(counts.size, np.float32)
    alpha, beta = 0.0, 1.0
    start_bin, end_bin = 0, counts.size - 1
    smallest = np.inf
    visited = 0
    while alpha < beta:
        next_alpha, next_beta = alpha + STEP, beta - STEP
        low, high = np.float32(next_alpha * amount), np.float32(next_beta * amount)
        left, right = start_bin, end_bin
        while left < end_bin and below[left] < low:
            left += 1
        while right > start_bin and below[right] > high:
            right -= 1
        next_start, next_end = start_bin, end_bin
        if left - start_bin > end_bin - right:
            next_start, alpha = left, next_alpha
        else:
            next_end, beta = right, next_beta
        if next_start == start_bin and next_end == end_bin:
            continue
        found = _error(counts, span, next_start, next_end, dst_bins, threads, cost)
        errors[visited, 0], errors[visited, 1], errors[visited, 2] = next_start, next_end, found
        visited += 1
        if found > smallest:
            break
        smallest = found
        start_bin, end_bin = next_start, next_end
    return start_bin, end_bin, visited


def search_compiled(state: Histogram, dst_bins: int, target: Target = Target()) -> Search:
    """Compute :func:`search`: the bins of an error in vectors, without a remainder."""
    _check(state, dst_bins)
    counts = np.ascontiguousarray(state.counts)
    errors = np.empty((counts.size, 3), np.float64)
    span = float(state.maximum) - float(state.minimum)
    start_bin, end_bin, visited = _search(
        counts, np.empty_like(counts), span, dst_bins, target.threads, errors
    )
    return _found(state, start_bin, end_bin, errors[:visited].copy())
