"""The float32 hyperbolic tangent of torch: MKL's, which is not correctly rounded.

MKL differs from the correctly rounded tangent at 82,383 positive arguments and their negatives,
always by one unit in the last place. They are in a table, made once by comparing all positive
float32 numbers; it holds for torch's own build of MKL on processors with AVX2 or AVX512.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import jit

F32 = npt.NDArray[np.float32]
_SHIFT = 10  # arguments whose bits agree above these share a bucket


@cache
def exceptions() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int8]]:
    """Return the bits of the positive arguments in order, and +1 or -1 for each."""
    with np.load(Path(__file__).with_name("tanh_mkl.npz")) as stored:
        steps = np.ascontiguousarray(stored["steps"].T).view("<u4").reshape(-1)
        up = np.unpackbits(stored["up"], count=steps.size)
    return np.cumsum(steps, dtype=np.int64).astype(np.int32), (2 * up.astype(np.int8) - 1)


@cache
def _buckets() -> npt.NDArray[np.int32]:
    """Return where in the table each bucket begins; the first is that of the first argument."""
    bits, _ = exceptions()
    first, last = int(bits[0]) >> _SHIFT, int(bits[-1]) >> _SHIFT
    return np.searchsorted(bits >> _SHIFT, np.arange(first, last + 2)).astype(np.int32)


def reference(x: F32) -> F32:
    """Return the tangent.

    Examples
    --------
    >>> x = np.int32([968399779]).view(np.float32)
    >>> int((reference(x).view(np.int32) - np.tanh(x.astype(np.float64)).astype(np.float32).view(
    ...     np.int32))[0])
    1
    """
    y = np.tanh(x.astype(np.float64)).astype(np.float32)
    bits, steps = exceptions()
    positive = np.abs(x).view(np.int32)
    at = np.minimum(np.searchsorted(bits, positive), bits.size - 1)
    step = np.where(bits[at] == positive, steps[at], 0)
    return (y.view(np.int32) + step).view(np.float32)


@jit
def _correct(x: Any, bits: Any, steps: Any, buckets: Any, shift: int, y: Any) -> None:
    first = bits[0] >> shift
    for i in range(x.size):
        positive = x[i] & 0x7FFFFFFF
        bucket = (positive >> shift) - first
        if 0 <= bucket < buckets.size - 1:
            for at in range(buckets[bucket], buckets[bucket + 1]):
                if bits[at] == positive:
                    y[i] += steps[at]


def kernel(x: F32) -> F32:
    """Compute :func:`reference`, looking into the table by buckets."""
    y = np.tanh(x.astype(np.float64)).astype(np.float32)
    flat = np.ascontiguousarray(x).reshape(-1).view(np.int32)
    result = y.reshape(-1)
    _correct(flat, *exceptions(), _buckets(), _SHIFT, result.view(np.int32))
    return result.reshape(x.shape)
