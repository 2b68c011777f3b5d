"""The steps of the compiled tile in NumPy, where compilation is switched off.

They read the same packed bytes, offset tables and constants as the LLVM functions of ``tile.py``
and take the same arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.registers import SHAPES, VECTORS, depthwise_order
from refquant.kernels.rounding import fma

Array = npt.NDArray[Any]


def _finish(
    form: str,
    total: Array,
    constants: list[Array],
    output: np.float32,
    low: int,
    high: int,
    zero_point: int,
) -> Array:
    addend, factor, multiplier = constants
    total = total.astype(np.int32)
    if form == "sum":
        return total
    real = total.astype(np.float32)
    if form == "real":
        return fma(real, multiplier, addend)
    with np.errstate(over="ignore", invalid="ignore"):
        if form == "scaled":
            steps = (real * multiplier * factor + addend) * output + np.float32(zero_point)
            return np.asarray(np.rint(np.clip(steps, low, high)), np.int32) & 255
        scaled = fma(addend, factor, real) * multiplier
        whole = np.where(np.abs(scaled) < 2.0**31, np.rint(scaled).astype(np.float64), -(2.0**31))
    return np.clip(whole, low, high) + zero_point


def tile(
    isa: str,
    form: str,
    height: int,
    x: Array,
    x0: int,
    rows: Array,
    row: int,
    weights: Array,
    w0: int,
    segments: Array,
    depth4: int,
    correction: Array,
    addend: Array,
    factor: Array,
    multiplier: Array,
    n0: int,
    output: np.float32,
    low: int,
    high: int,
    zero_point: int,
    y: Array,
    y0: int,
    pitch: int,
) -> None:
    """Compute ``height`` rows of one panel of output channels."""
    columns = slice(n0, n0 + VECTORS * SHAPES[isa].lanes)
    depth = np.arange(4 * depth4)
    at = x0 + rows[row : row + height, None, None] + segments[:, None] + depth
    taken = x[np.minimum(at, x.size - 1)].reshape(height, -1).astype(np.int64)
    count = taken.shape[1]
    width = columns.stop - n0
    panel = weights[w0 : w0 + count * width].reshape(-1, width, 4).transpose(0, 2, 1)
    total = taken @ panel.reshape(count, width).astype(np.int64) + correction[columns]
    constants = [values[columns] for values in (addend, factor, multiplier)]
    finished = _finish(form, total, constants, output, low, high, zero_point)
    for m in range(height):
        y[y0 + m * pitch : y0 + m * pitch + width] = finished[m]


def depthwise_row(
    isa: str,
    form: str,
    saturating: int,
    x: Array,
    x0: int,
    step: int,
    pixels: int,
    taps: Array,
    weights: Array,
    w0: int,
    correction: Array,
    addend: Array,
    factor: Array,
    multiplier: Array,
    n0: int,
    output: np.float32,
    low: int,
    high: int,
    zero_point: int,
    y: Array,
    y0: int,
    pitch: int,
) -> None:
    """Compute a row of pixels of one block of channels, four taps at a time."""
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
    finished = _finish(form, total, constants, output, low, high, zero_point)
    for pixel in range(pixels):
        y[y0 + pixel * pitch + order] = finished[pixel]
