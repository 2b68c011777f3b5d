"""The steps of the compiled tiles in NumPy, where compilation is switched off.

They read the same packed bytes, offset tables and constants as the LLVM functions of ``tile.py``
and ``depthwise.py`` and take the same arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.registers import SHAPES, VECTORS, depthwise_order
from refquant.kernels.rounding import fma

Array = npt.NDArray[Any]


def _whole(scaled: Array) -> Array:
    return np.where(np.abs(scaled) < 2.0**31, np.rint(scaled).astype(np.float64), -(2.0**31))


def _finish(
    form: str,
    total: Array,
    constants: list[Array],
    real: Array,
    whole: Array,
    other: Array | None = None,
) -> Array:
    addend, factor, multiplier = constants
    zero_point, low, high, *of_sum = (int(number) for number in whole)
    total = total.astype(np.int32)
    if form == "sum":
        return total
    sums = total.astype(np.float32)
    if form == "real":
        return fma(sums, multiplier, addend)
    with np.errstate(over="ignore", invalid="ignore"):
        if form.startswith("scaled"):
            steps = (sums * multiplier * factor + addend) * real[0] + np.float32(zero_point)
            q = np.asarray(np.rint(np.clip(steps, low, high)), np.int32)
        else:
            q = _whole(fma(addend, factor, sums) * multiplier)
            q = np.clip(q + zero_point, low, high)
        if other is None:
            return np.asarray(q, np.int32) & 255
        ours = fma(real[1], q.astype(np.float32), real[2])
        both = ours + fma(real[3], other.astype(np.float32), real[4])
        added = _whole(both * real[5]) + of_sum[0]
    return np.asarray(np.clip(added, of_sum[1], of_sum[2]))


def tile(
    isa: str,
    form: str,
    gathered: int,
    height: int,
    x: Array,
    x0: int,
    rows: Array,
    row: int,
    weights: Array,
    w0: int,
    segments: Array,
    depth4: int,
    vectors: Array,
    v0: int,
    taken: Array,
    correction: Array,
    addend: Array,
    factor: Array,
    multiplier: Array,
    n0: int,
    real: Array,
    whole: Array,
    y: Array,
    y0: int,
    places: Array,
    place: int,
    other: Array,
    other0: int,
    others: Array,
) -> None:
    """Compute ``height`` rows of one panel of output channels."""
    columns = slice(n0, n0 + VECTORS * SHAPES[isa].lanes)
    width = columns.stop - n0
    depth = np.arange(4 * depth4)
    begin = np.zeros(width, np.int64)  # of each lane
    if gathered:
        starts = np.repeat(vectors[v0 : v0 + VECTORS], SHAPES[isa].lanes)
        begin = starts + 4 * np.tile(taken, VECTORS)
    at = x0 + rows[row : row + height, None, None, None] + segments[:, None] + depth
    seen = x[np.minimum(at + begin[:, None, None], x.size - 1)]
    seen = seen.reshape(height, width, -1).astype(np.int64)
    count = seen.shape[2]
    panel = weights[w0 : w0 + count * width].reshape(-1, width, 4).transpose(1, 0, 2)
    total = (seen * panel.reshape(width, count)).sum(-1) + correction[columns]
    constants = [values[columns] for values in (addend, factor, multiplier)]
    lanes = np.arange(width)
    beside = None
    if form.endswith("added"):
        index = other0 + others[row : row + height, None] + lanes
        beside = other[np.minimum(index, other.size - 1)]
    finished = _finish(form, total, constants, real, whole, beside)
    for m in range(height):
        y[y0 + places[place + m] + lanes] = finished[m]


def depthwise_pixels(
    isa: str,
    form: str,
    saturating: int,
    pixels: int,
    x: Array,
    x0: int,
    step: int,
    taps: Array,
    fours: int,
    weights: Array,
    w0: int,
    correction: Array,
    addend: Array,
    factor: Array,
    multiplier: Array,
    n0: int,
    real: Array,
    whole: Array,
    y: Array,
    y0: int,
    pitch: int,
) -> None:
    """Compute a few pixels of one block of channels, four taps at a time."""
    order = depthwise_order(SHAPES[isa].lanes)
    block = order.size
    columns = slice(n0, n0 + block)
    at = x0 + np.arange(pixels)[:, None, None] * step + order[:, None] + taps
    factors = weights[w0 : w0 + taps.size * block].reshape(-1, block, 4)
    product = x[at].astype(np.int64) * factors.transpose(1, 0, 2).reshape(block, -1)
    if saturating:
        product = np.clip(product[..., 0::2] + product[..., 1::2], -(2**15), 2**15 - 1)
    total = product.sum(-1) + correction[columns]
    constants = [values[columns] for values in (addend, factor, multiplier)]
    finished = _finish(form, total, constants, real, whole)
    for pixel in range(pixels):
        y[y0 + pixel * pitch + order] = finished[pixel]
