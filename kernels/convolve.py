"""How the compiled tile is led over an input: offset tables, padded maps, and the calls."""

from __future__ import annotations

import threading
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.kernels.packing import Ints, Lanes, Layout, PackedWeight, ceil, depthwise_slots
from refquant.kernels.registers import SLACK
from refquant.kernels.requantize import Rule
from refquant.kernels.tile import depthwise, multiply

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

# Rows of one offset table; larger batches go block by block through the same table.
TABLE_ROWS = 4096
# Below this size one fill of the whole map costs less than finding its borders.
SMALL_MAP = 1 << 15


class Window(NamedTuple):
    """How outputs look at inputs, one entry per spatial axis.

    Output ``o`` multiplies tap ``k`` with position ``o * stride + k * dilation`` of a map in
    which input ``i`` lies at ``lead + i * spread``; everything else there is the zero point. A
    convolution has ``spread`` 1 and ``lead`` equal to its padding. A transposed convolution has
    stride 1, its own stride as ``spread`` and a ``lead`` that may be negative.
    """

    kernel: Ints
    stride: Ints
    dilation: Ints
    lead: Ints
    spread: Ints
    out: Ints


class Rounding(NamedTuple):
    """Quantization parameters of the result; ``low`` is the zero point where relu is fused."""

    scale: float
    zero_point: int
    low: int


class _Tables(NamedTuple):
    """Byte offsets of one input shape, weight layout and window."""

    direct: bool  # whether the input itself is read, not a padded map
    map: Ints  # (N, ..., C) of the memory that is read
    step: int  # bytes from one block of rows to the next
    rows: Offsets
    taps: Offsets  # of each segment (panels) or each tap slot (depthwise)
    depth4: int
    pixel_step: int  # bytes from output to output (depthwise)
    taken: tuple[slice, ...]  # part of the input that lies in the map, and where
    placed: tuple[slice, ...]
    borders: tuple[tuple[slice, ...], ...] | None  # None: fill the whole map


def _offsets(counts: Ints, steps: Ints) -> Offsets:
    """Return the sums of one multiple of each step, last axis fastest."""
    total = np.zeros(1, np.int64)
    for count, step in zip(counts, steps, strict=True):
        total = (total[:, None] + np.arange(count) * step).reshape(-1)
    return total


@lru_cache(maxsize=512)
def _tables(
    shape: Ints, window: Window, layout: Layout, depth: int, copies: int, passes: int
) -> _Tables:
    """Lay out the walk over an (N, C, ...) input whose segments are ``depth`` bytes."""
    kernel, stride, dilation, lead, spread, out = window
    images, channels, *spatial = shape
    spans = zip(out, stride, dilation, kernel, strict=True)
    needed = tuple((o - 1) * s + d * (k - 1) + 1 for o, s, d, k in spans)
    direct = (
        not layout.depthwise
        and depth % 4 == 0
        and not any(lead)
        and set(spread) <= {1}
        and all(n <= have for n, have in zip(needed, spatial, strict=True))
    )
    sizes = tuple(spatial) if direct else needed
    pixel = channels * copies
    pitch = [pixel * prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    image = pixel * prod(sizes)
    steps = tuple(s * p for s, p in zip(stride, pitch, strict=True))
    taps = _offsets(kernel, tuple(d * p for d, p in zip(dilation, pitch, strict=True)))
    if layout.depthwise:
        slots = np.full(depthwise_slots(taps.size, passes), taps[-1])
        slots[: taps.size] = taps
        for i in range(1, passes):
            begin = ceil(taps.size, 2) + 2 * taps.size * (i - 1)
            slots[begin : begin + 2 * taps.size : 2] = taps
        step, rows, taps = image, _offsets(out[:-1], steps[:-1]), slots
    else:
        together = min(images, max(1, TABLE_ROWS // max(prod(out), 1)))
        step, rows = together * image, _offsets((together, *out), (image, *steps))
        taps = np.tile(taps[:: layout.run], passes)
    taken, placed, borders = _placement(tuple(spatial), sizes, lead, spread)
    whole = (images, *sizes, channels)
    if borders and prod(whole) * copies < SMALL_MAP:
        borders = None
    depth4 = ceil(depth, 4) // 4
    return _Tables(direct, whole, step, rows, taps, depth4, steps[-1], taken, placed, borders)


def _placement(
    spatial: Ints, sizes: Ints, lead: Ints, spread: Ints
) -> tuple[tuple[slice, ...], tuple[slice, ...], tuple[tuple[slice, ...], ...] | None]:
    """Say which inputs lie in a map of ``sizes``, where, and what is left to be filled."""
    everything = slice(None)
    taken, placed = [everything], [everything]
    borders: list[tuple[slice, ...]] | None = []
    for n, size, begin, apart in zip(spatial, sizes, lead, spread, strict=True):
        first = max(0, -(begin // apart))
        last = max(first, min(n, (size - begin - 1) // apart + 1))
        start = begin + first * apart
        stop = start + (last - first) * apart
        if apart > 1 or start >= size:
            borders = None
        if borders is not None:
            sides = (slice(0, start), slice(stop, size))
            borders += [(*placed, side) for side in sides if side.start < side.stop]
        taken.append(slice(first, last))
        placed.append(slice(start, stop, apart))
    return tuple(taken), tuple(placed), None if borders is None else tuple(borders)


_local = threading.local()


def _buffer(size: int) -> Bytes:
    """Return this thread's scratch memory: it grows to the largest map and is used again."""
    kept: Bytes | None = getattr(_local, "buffer", None)
    if kept is None or kept.size < size:
        kept = np.empty(size, np.uint8)
        _local.buffer = kept
    return kept


def _place(rows: Array, zero_point: int, tables: _Tables, copies: int) -> Bytes:
    """Lay an (N, ..., C) input into a padded map, each channel ``copies`` times."""
    size = prod(tables.map) * copies
    buffer = _buffer(size + SLACK)
    padded = buffer[:size].reshape(*tables.map, copies)
    if tables.borders is None:
        buffer[:size] = zero_point
    else:
        for border in tables.borders:
            padded[border] = zero_point
    source, inner = rows[tables.taken], padded[tables.placed]
    if copies == 1 and rows.shape[-1] <= 4 and rows.strides[-1] != 1:
        for c in range(rows.shape[-1]):  # long strided runs instead of many short ones
            inner[..., c, 0] = source[..., c]
    else:
        inner[...] = source[..., None]
    return buffer


def _flat(x: Array) -> Array:
    """Return the array in one dimension, writeable: Numba compiles anew for a read-only one."""
    flat = np.ascontiguousarray(x).reshape(-1)
    return flat if flat.flags.writeable else flat.copy()


def convolve(
    x: QTensor,
    weight: PackedWeight,
    bias: npt.NDArray[np.float32] | None,
    window: Window,
    rounding: Rounding,
    rule: Rule,
    saturating: bool = False,
) -> Bytes:
    """Run the compiled tile over (N, C, ...); the result has channels-last memory."""
    layout = weight.layout
    images, channels = x.shape[:2]
    outputs = weight.sums.size
    groups = layout.groups // layout.merged
    copies = outputs // layout.groups if layout.depthwise else 1
    depth = layout.run * channels // groups
    tables = _tables(x.shape, window, layout, depth, copies, weight.passes)
    scale, zero_point, low = rounding
    lanes = weight.lanes(rule, x, scale, bias)
    limits = (low - zero_point, 255 - zero_point, zero_point)
    y = np.empty(images * prod(window.out) * outputs, np.uint8)
    axes = range(1, len(window.out) + 1)
    if y.size:
        rows = x.int_repr.transpose(0, *(axis + 1 for axis in axes), 1)
        source = _flat(rows) if tables.direct else _place(rows, int(x.zero_point), tables, copies)
        if layout.depthwise:
            depthwise(
                *(source, images, tables.step, tables.rows, tables.pixel_step, window.out[-1]),
                *(tables.taps, weight.data, outputs, *lanes, *limits, saturating, y),
            )
        else:
            multiply(
                *(source, tables.step, tables.rows, y.size // outputs, tables.taps),
                *(tables.depth4, weight.data, groups, channels // groups, outputs // groups),
                *(*lanes, *limits, y),
            )
    return y.reshape(images, *window.out, outputs).transpose(0, len(window.out) + 1, *axes)


def matrix_product(x: Bytes, weight: PackedWeight, lanes: Lanes, limits: Ints, y: Array) -> None:
    """Run the compiled tile over contiguous (rows, K), into contiguous (rows, channels)."""
    count, depth = x.shape
    if y.size == 0:
        return
    if depth % 4:
        source = _buffer(x.size + SLACK)
        source[: x.size] = x.reshape(-1)
    else:
        source = _flat(x)
    rows = _matrix_rows(min(count, TABLE_ROWS), depth)
    segments = np.zeros(weight.passes, np.int64)
    multiply(
        *(source, rows.size * depth, rows, count, segments, ceil(depth, 4) // 4, weight.data),
        *(1, 0, weight.sums.size, *lanes, *limits, y.reshape(-1)),
    )


@lru_cache(maxsize=256)
def _matrix_rows(count: int, depth: int) -> Offsets:
    return np.arange(count, dtype=np.int64) * depth
