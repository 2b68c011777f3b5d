"""Running one cell: samples by refquant and by torch, compared bit for bit and counted."""

from __future__ import annotations

import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from refquant.ir.errors import RefquantError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ledger import oracle
from refquant.ledger.cell import Call, Cell
from refquant.ledger.draw import SAMPLERS
from refquant.ledger.known import why_undefined

SMALL, LARGE = 600, 350_000  # elements of a sample
LARGE_EVERY = 6
REFERENCE_UP_TO = 5_000  # elements of operands or result; the NumPy formula is slow
ENOUGH = 400  # samples of a cell whose results are single numbers, for each million elements
REFUSED_AFTER = 12  # samples that torch refused, with none accepted


@dataclass
class Outcome:
    """What one cell gave.

    Parameters
    ----------
    status
        ``equal``, ``differs``, ``refused`` (by torch, always), ``missing`` (no sample could be
        run here that torch runs), ``partial`` (equal, but some samples are refused here only),
        ``undefined`` (torch is known to corrupt memory and is not run), ``broken`` (an error here
        that was not raised on purpose) or ``crash`` (the process died).
    samples, elements, mismatches
        Calls compared, elements of their results, and how many of those differ.
    worst
        Largest difference: integer steps, for floats units in the last place.
    refused, refusal
        Samples that torch refuses, and what it said of the last one.
    unsupported
        Samples that torch runs and refquant does not, by reason.
    error
        What was raised here and is not one of refquant's errors.
    first
        Index of the first sample that differs or is broken, with which it can be reproduced.
    seconds
        Time taken.
    """

    status: str = ""
    samples: int = 0
    elements: int = 0
    mismatches: int = 0
    worst: float = 0
    refused: int = 0
    refusal: str = ""
    unsupported: Counter[str] = field(default_factory=Counter)
    error: str = ""
    first: int | None = None
    seconds: float = 0.0

    def close(self) -> Outcome:
        """Conclude what the counts mean."""
        if self.error:
            self.status = "broken"
        elif self.mismatches:
            self.status = "differs"
        elif self.samples:
            self.status = "partial" if self.unsupported else "equal"
        else:
            self.status = "missing" if self.unsupported else "refused"
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, as JSON holds them."""
        return {**vars(self), "unsupported": dict(self.unsupported)}


def sample(cell: Cell, index: int, seed: int = 0) -> tuple[Cell, Call]:
    """Draw one sample of a cell: the same one for the same index and seed.

    Some large samples are for two threads.
    """
    rng = np.random.default_rng([zlib.crc32(str(cell).encode()), index, seed])
    large = index % LARGE_EVERY == LARGE_EVERY - 1
    if large and index // LARGE_EVERY % 3 == 2:
        cell = replace(cell, target=replace(cell.target, threads=2))
    return cell, SAMPLERS[cell.name](rng, cell, LARGE if large else SMALL)


def parts(result: Any) -> Iterator[Any]:
    """Return the plain arrays and numbers that a result holds."""
    if isinstance(result, tuple | list):
        for part in result:
            yield from parts(part)
    elif isinstance(result, QTensor):
        yield result.int_repr
        yield np.asarray(result.scale, np.float64)
        yield np.asarray(result.zero_point)
    else:
        yield np.asarray(result)


def different(actual: Any, expected: Any) -> tuple[int, int, float]:
    """Return how many elements were compared, how many differ, and the largest difference."""
    compared = mismatches = 0
    worst = 0.0
    for one, other in zip(parts(actual), parts(expected), strict=True):
        compared += other.size
        if one.shape != other.shape or (one.dtype != other.dtype and one.ndim):
            mismatches, worst = mismatches + max(other.size, 1), np.inf
            continue
        if one.tobytes() == other.tobytes():
            continue
        same = (one == other) | ((one != one) & (other != other))
        if same.all():
            continue
        mismatches += int(np.count_nonzero(~same))
        worst = max(worst, _distance(one[~same], other[~same]))
    return compared, mismatches, worst


def _distance(one: Any, other: Any) -> float:
    """Return the largest distance: steps of integers, units in the last place of floats."""
    if one.dtype.kind in "iub":
        return float(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())
    if one.dtype.kind != "f":
        one, other = one.astype(np.float32), other.astype(np.float32)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return np.inf
    with np.errstate(over="ignore"):
        return float((np.abs(one - other) / np.spacing(np.abs(other))).max())


def _reason(error: Exception) -> str:
    """Return one line; what was not raised on purpose is named."""
    line = next(iter(str(error).splitlines()), "")[:300]
    return line if isinstance(error, RefquantError) else f"{type(error).__name__}: {line}"


def by_torch(cell: Cell, call: Call) -> Any:
    """Run a call by torch; the error if torch refuses it."""
    with oracle.torch_as(cell.target), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return oracle.call_torch(cell.name, *call)
        except Exception as error:
            return error


def by_refquant(cell: Cell, call: Call, *, fast: bool) -> Any:
    """Run a call by the kernel or the reference; the error if it is refused."""
    op = OPS[cell.name]
    try:
        op.kernel(cell.target.engine)
        types = [None if x is None else type_of(x) for x in call.operands]
        op.infer(*types, **call.attributes)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return op.bind(cell.target, fast=fast)(*call.operands, **call.attributes)
    except Exception as error:
        return error


def run(
    cell: Cell, elements: int, seed: int = 0, executors: Sequence[str] = ("fast", "reference")
) -> Outcome:
    """Run samples of a cell until so many elements were compared.

    Parameters
    ----------
    elements : int
        Of results of torch; reached by the kernel, the reference runs on small samples.
    seed : int
        Another seed draws other samples.
    executors
        ``fast``, ``reference`` or both.
    """
    started = time.perf_counter()
    outcome = Outcome()
    if why := why_undefined(cell):
        outcome.status, outcome.refusal = "undefined", why
        return outcome
    index = 0
    most = max(4 * LARGE_EVERY, ENOUGH * elements // 1_000_000)
    while outcome.elements < elements and index < most:
        _compare(cell, index, seed, executors, outcome)
        index += 1
        if index == REFUSED_AFTER and not outcome.samples:
            break
    if elements:  # at least a large sample; the third one is for two threads
        least = LARGE_EVERY * (3 if elements >= 1_000_000 else 1)
        while outcome.samples and index < least:
            _compare(cell, index, seed, executors, outcome)
            index += 1
    outcome.seconds = round(time.perf_counter() - started, 3)
    return outcome.close()


def _compare(
    cell: Cell, index: int, seed: int, executors: Sequence[str], outcome: Outcome
) -> None:
    """Run one sample by both and count."""
    cell, call = sample(cell, index, seed)
    expected = by_torch(cell, call)
    if isinstance(expected, Exception):
        outcome.refused += 1
        outcome.refusal = _reason(expected)
        return
    size = max(sum(part.size for part in parts(value)) for value in (expected, call.operands))
    counted = False
    for executor in executors:
        if executor == "reference" and size > REFERENCE_UP_TO and "fast" in executors:
            continue
        actual = by_refquant(cell, call, fast=executor == "fast")
        if isinstance(actual, RefquantError):
            outcome.unsupported[_reason(actual)] += 1
            return
        if isinstance(actual, Exception):
            outcome.error = outcome.error or _reason(actual)
            outcome.first = index if outcome.first is None else outcome.first
            return
        compared, mismatches, worst = different(actual, expected)
        if not counted:
            outcome.samples += 1
            outcome.elements += compared
            counted = True
        outcome.mismatches += mismatches
        outcome.worst = max(outcome.worst, worst)
        if mismatches and outcome.first is None:
            outcome.first = index


def text_of(value: Any) -> str:
    """Return a value in a line: type and first elements, or the error."""
    if isinstance(value, Exception):
        return _reason(value)
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(text_of, value)) + ")"
    if isinstance(value, QTensor):
        return f"{value.type} {value.int_repr.ravel()[:8].tolist()}..."
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)} {value.ravel()[:8].tolist()}..."
    return repr(value)


def differences(actual: Any, expected: Any, limit: int = 5) -> Iterator[str]:
    """Yield the first places where results differ, with both values."""
    for number, (one, other) in enumerate(zip(parts(actual), parts(expected), strict=True)):
        if one.shape != other.shape:
            yield f"part {number}: shape {list(one.shape)}, torch {list(other.shape)}"
            continue
        places = np.argwhere((one != other) & ~((one != one) & (other != other)))
        for place in places[:limit]:
            at = tuple(place.tolist())
            yield f"part {number} {list(at)}: {one[at]!r}, torch {other[at]!r}"
