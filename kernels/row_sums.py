"""Sums of rows in the order of :mod:`refquant.kernels.float_sum`, all columns at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import jit
from refquant.kernels.row_blocks import real_sums

F32 = npt.NDArray[np.float32]


@jit
def _add_floats(
    x: Any,
    first: int,
    step: int,
    size: int,
    begin: int,
    _scale: np.float32,
    _zero_point: int,
    total: Any,
) -> None:
    total[:] = 0
    for i in range(size):
        row = x[first + i * step][begin : begin + total.size]
        for c in range(total.size):
            total[c] += row[c]


@jit
def _add_bytes(
    x: Any,
    first: int,
    step: int,
    size: int,
    begin: int,
    scale: np.float32,
    zero_point: int,
    total: Any,
) -> None:
    pitch = x.shape[1]
    at = first * pitch + begin
    real_sums(x, at, size, step * pitch, total.size, total, 0, scale, zero_point)


def _make(add: Callable[..., None]) -> Callable[..., None]:
    @jit
    def cascade(
        x: Any,
        first: int,
        step: int,
        size: int,
        begin: int,
        scale: np.float32,
        zero_point: int,
        out: Any,
    ) -> None:
        """Cascade the rows ``first + i * step``, the columns from ``begin``."""
        length, rest = 0, size - 1
        while rest > 0:
            rest >>= 1
            length += 1
        bits = max(4, max(1, length) // 4)
        block, mask = 1 << bits, (1 << bits) - 1
        levels = np.zeros((4, out.size), np.float32)
        a, b, c, d = levels[0], levels[1], levels[2], levels[3]
        done = 0
        while done + block <= size:
            add(x, first + done * step, step, block, begin, scale, zero_point, a)
            done += block
            b += a
            if done & (mask << bits) == 0:
                c += b
                b[:] = 0
                if done & (mask << (2 * bits)) == 0:
                    d += c
                    c[:] = 0
        add(x, first + done * step, step, size - done, begin, scale, zero_point, a)
        for k in range(out.size):
            out[k] = np.float32(np.float32(np.float32(a[k] + b[k]) + c[k]) + d[k])

    @jit
    def total(x: Any, scale: float, zero_point: int, out: F32) -> None:
        reduced, kept = x.shape
        s = np.float32(scale)
        whole = kept // 32 * 32
        if whole:
            cascade(x, 0, 1, reduced, 0, s, zero_point, out[:whole])
        if whole == kept:
            return
        into, column = out[whole:], np.empty(kept - whole, np.float32)
        quarter = reduced // 4
        cascade(x, 0, 4, quarter, whole, s, zero_point, into)
        for i in range(4 * quarter, reduced):
            add(x, i, 1, 1, whole, s, zero_point, column)
            into += column
        for k in range(1, 4):
            cascade(x, k, 4, quarter, whole, s, zero_point, column)
            into += column

    return total


# Both sum the first axis of an array in C order with at least two rows and 8 columns:
# ``sum_rows(x, scale, zero_point, out)``; bytes stand for ``scale * (q - zero_point)``.
sum_rows, sum_bytes = map(_make, (_add_floats, _add_bytes))
