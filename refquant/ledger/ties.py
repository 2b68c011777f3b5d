"""Finding rounding ties without knowing the formula.

Plain random data does not tell one order of roundings from another: almost no value comes near
a tie. Between two neighbouring float32 numbers where an integer of the result changes, there is
one; it is found by bisection with the op itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ledger.cell import Call, Cell

_NEAR = 3  # units in the last place


def _bits(x: float) -> int:
    return int(np.float32(x).view(np.int32))


def _float(bits: int) -> float:
    return float(np.int32(bits).view(np.float32))


def number_at_tie(
    rng: np.random.Generator, run: Callable[[float], Any], start: float, factor: float = 1.25
) -> float:
    """Return a float32 number within 3 ulp of one where an integer that ``run`` returns changes.

    Parameters
    ----------
    run
        From a positive number to an array of integers.
    start : float, > 0
        Where to begin; the end is ``start * factor``.

    Returns
    -------
    float
        ``start`` itself if nothing changes in between.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> found = number_at_tie(rng, lambda s: np.rint(np.float32([7.3]) / np.float32(s)), 1.4)
    >>> round(7.3 / found, 5)  # between 5 and 4 steps
    4.5
    """
    low, high = _bits(start), _bits(start * factor)
    first, last = (np.ravel(run(_float(bits))) for bits in (low, high))
    changed = np.flatnonzero(first != last)
    if not changed.size:
        return _float(low)
    at = rng.choice(changed)
    below = first[at]
    while high - low > 1:
        middle = (low + high) // 2
        if np.ravel(run(_float(middle)))[at] == below:
            low = middle
        else:
            high = middle
    return _float(low + int(rng.integers(-_NEAR + 1, _NEAR + 1)))


def at_tie(
    rng: np.random.Generator, cell: Cell, make: Callable[[float], Call], start: float
) -> Call:
    """Return a call with the number at which one of the integers of its result changes.

    ``make`` puts a number, usually the scale of the result, into a call of the cell's op. Where
    the op does not run, the call is made with ``start``.
    """
    op = OPS[cell.name]
    if cell.target.engine not in op.kernels:
        return make(start)
    function = op.bind(cell.target, fast=True)

    def run(number: float) -> Any:
        operands, attributes = make(number)
        result = function(*operands, **attributes)
        result = result[0] if isinstance(result, tuple) else result
        return result.int_repr if isinstance(result, QTensor) else result

    try:
        return make(number_at_tie(rng, run, start))
    except (NotImplementedError, ValueError):
        return make(start)
