"""How the compiled tile is led over an input: offset tables, padded maps, and the calls."""

from __future__ import annotations

import threading
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.ir.types import quint8
from refquant.kernels.accumulate import Sums, weight_zero_points
from refquant.kernels.packing import Ints, Lanes, Layout, PackedWeight, ceil, depthwise_slots
from refquant.kernels.pairs import multiply_pairs
from refquant.kernels.registers import SLACK
from refquant.kernels.requantize import Constants, Rounding, Stage
from refquant.kernels.tile import DEPTHWISE, MULTIPLY

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
    stage: Stage,
    sums: Sums = Sums.EXACT,
) -> Bytes:
    """Convolve (N, C, ...) and requantise; the result has channels-last memory."""
    images, outputs = x.shape[0], weight.sums.size
    y = np.empty((images, *window.out, outputs), np.uint8)
    if stage.loop is None and _is_tiled(weight, sums):
        lanes = weight.lanes(stage.constants, x, rounding.scale, bias)
        limits = _limits(stage, rounding)
        _run(x, weight, window, lanes, stage.form, limits, y, sums is Sums.PAIRED)
    else:
        total = convolution_sums(x, weight, window, sums)
        constants = stage.constants(float(x.scale), weight.scale, rounding.scale, bias, outputs)
        finish(stage, np.moveaxis(total, 1, -1), constants, rounding, y)
    return np.moveaxis(y, -1, 1)


def convolution_sums(
    x: QTensor, weight: PackedWeight, window: Window, sums: Sums = Sums.EXACT
) -> npt.NDArray[np.int32]:
    """Return the sums of a convolution, (N, OC, ...) with channels-last memory."""
    y = np.empty((x.shape[0], *window.out, weight.sums.size), np.int32)
    if _is_tiled(weight, sums):
        lanes = weight.lanes(None, x, 1.0, None)
        _run(x, weight, window, lanes, "sum", (0, 0, 0), y, sums is Sums.PAIRED)
    else:
        _run_in_pairs(x, weight, window, sums, y)
    return np.moveaxis(y, -1, 1)


def _is_tiled(weight: PackedWeight, sums: Sums) -> bool:
    """Whether the tile does these sums; of saturating ones, those of depthwise layers."""
    layout = weight.layout
    depthwise = layout.depthwise and not layout.transposed
    return sums is Sums.EXACT or (sums is Sums.PAIRED and depthwise)


def _limits(stage: Stage, rounding: Rounding) -> Ints:
    """Return low, high and zero point as the tile takes them."""
    _, zero_point, low, high = rounding
    if stage.form == "fused":
        return low - zero_point, high - zero_point, zero_point
    return low, high, zero_point


def finish(stage: Stage, total: Array, constants: Constants, rounding: Rounding, y: Array) -> None:
    """Requantise sums (..., channels) into ``y``, both in C order."""
    channels = total.shape[-1]
    if stage.loop is None:
        y[...] = stage.finish(total, constants, rounding).astype(np.uint8)
        return
    integer = constants.integer
    stage.loop(
        total.reshape(-1, channels),
        np.zeros(0, np.int32) if integer is None else integer,
        *(constants.addend, constants.factor, constants.multiplier, constants.output),
        *rounding[1:],
        y.reshape(-1, channels).view(np.uint8),
    )


def _run(
    x: QTensor,
    weight: PackedWeight,
    window: Window,
    lanes: Lanes,
    form: str,
    limits: Ints,
    y: Array,
    saturating: bool,
) -> None:
    """Lead the compiled tile over (N, C, ...), into (N, ..., OC) in C order."""
    if y.size == 0:
        return
    layout = weight.layout
    images, channels = x.shape[:2]
    outputs = weight.sums.size
    groups = layout.groups // layout.merged
    copies = outputs // layout.groups if layout.depthwise else 1
    depth = layout.run * channels // groups
    tables = _tables(x.shape, window, layout, depth, copies, weight.passes)
    rows = np.moveaxis(x.int_repr, 1, -1)
    source = _flat(rows) if tables.direct else _place(rows, int(x.zero_point), tables, copies)
    into = y.reshape(-1)
    if layout.depthwise:
        DEPTHWISE[form](
            *(source, images, tables.step, tables.rows, tables.pixel_step, window.out[-1]),
            *(tables.taps, weight.data, outputs, *lanes, *limits, saturating, into),
        )
    else:
        MULTIPLY[form](
            *(source, tables.step, tables.rows, y.size // outputs, tables.taps),
            *(tables.depth4, weight.data, groups, channels // groups, outputs // groups),
            *(*lanes, *limits, into),
        )


def _run_in_pairs(x: QTensor, weight: PackedWeight, window: Window, sums: Sums, y: Array) -> None:
    """Multiply in saturating pairs what each output of (N, C, ...) sees, image by image."""
    zero_point, groups = int(x.zero_point), weight.layout.groups
    in_taps = sums is Sums.PAIRED_IN_TAPS
    fill = 0 if sums.leaves_out_padding else zero_point
    unseen = None
    if sums.leaves_out_padding and zero_point and y.size:
        ones = np.ones((x.shape[1] // groups, *x.shape[2:]), np.uint8)
        unseen = 1 - seen_rows(ones, weight.layout._replace(groups=1), window, 0, in_taps)
    for image, total in zip(x.int_repr, y, strict=True):
        rows = seen_rows(image, weight.layout, window, fill, in_taps)
        _multiply_rows(rows, x, weight, in_taps, total, unseen)


def seen_rows(image: Array, layout: Layout, window: Window, fill: int, in_taps: bool) -> Bytes:
    """Return what each output of one image sees, (outputs, groups, K), in the weight's order."""
    kernel, stride, dilation, lead, spread, out = window
    spans = zip(out, stride, dilation, kernel, strict=True)
    sizes = tuple((o - 1) * s + d * (k - 1) + 1 for o, s, d, k in spans)
    channels = image.shape[0]
    taken, placed, _ = _placement(image.shape[1:], sizes, lead, spread)
    padded = np.full((*sizes, channels), fill, np.uint8)
    padded[placed[1:]] = np.moveaxis(image, 0, -1)[taken[1:]]
    each, taps = channels // layout.groups, prod(kernel)
    wide = ceil(each, 2) if in_taps else each
    rows = np.zeros((prod(out), layout.groups, ceil(taps * wide, 2)), np.uint8)
    for number, tap in enumerate(np.ndindex(*kernel)):
        axes = zip(out, stride, dilation, tap, strict=True)
        at = tuple(slice(t * d, t * d + (o - 1) * s + 1, s) for o, s, d, t in axes)
        begin = wide * (taps - 1 - number if layout.transposed else number)
        rows[..., begin : begin + each] = padded[at].reshape(-1, layout.groups, each)
    return rows


def _multiply_rows(
    rows: Bytes,
    x: QTensor,
    weight: PackedWeight,
    in_taps: bool,
    y: Array,
    unseen: Bytes | None = None,
) -> None:
    """Multiply rows that end in K by a weight, in saturating pairs."""
    if y.size == 0:
        return
    matrix = weight.pairs(in_taps)
    groups, pairs, channels, _ = matrix.shape
    if rows.shape[-1] % 2:
        rows = np.pad(rows, (*((0, 0),) * (rows.ndim - 1), (0, 1)))
    zero_point = weight_zero_points(weight, groups * channels).astype(np.int32)
    multiply_pairs(
        *(_flat(rows), matrix.reshape(-1), groups, pairs, channels, int(x.zero_point)),
        *(weight.sums, zero_point),
        *(np.zeros(0, np.uint8) if unseen is None else unseen.reshape(-1), y.reshape(-1)),
    )


def matrix_product(
    x: Bytes, weight: PackedWeight, lanes: Lanes, form: str, limits: Ints, y: Array
) -> None:
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
    MULTIPLY[form](
        *(source, rows.size * depth, rows, count, segments, ceil(depth, 4) // 4, weight.data),
        *(1, 0, weight.sums.size, *lanes, *limits, y.reshape(-1)),
    )


def linear_product(
    x: QTensor,
    weight: PackedWeight,
    bias: npt.NDArray[np.float32] | None,
    rounding: Rounding,
    stage: Stage,
    sums: Sums = Sums.EXACT,
) -> Array:
    """Multiply the rows of (..., K) by a packed weight and requantise; bytes of the result."""
    y = np.empty((*x.shape[:-1], weight.sums.size), np.uint8)
    if stage.loop is None and sums is Sums.EXACT:
        rows = as_unsigned(x)
        flat = np.ascontiguousarray(rows.int_repr).reshape(-1, x.shape[-1])
        lanes = weight.lanes(stage.constants, rows, rounding.scale, bias)
        matrix_product(flat, weight, lanes, stage.form, _limits(stage, rounding), y)
    else:
        total = linear_sums(x, weight, sums)
        channels = weight.sums.size
        constants = stage.constants(float(x.scale), weight.scale, rounding.scale, bias, channels)
        finish(stage, total, constants, rounding, y)
    return y


def linear_sums(
    x: QTensor, weight: PackedWeight, sums: Sums = Sums.EXACT
) -> npt.NDArray[np.int32]:
    """Return the sums of a linear, (..., channels) in C order."""
    rows = as_unsigned(x)
    flat = np.ascontiguousarray(rows.int_repr).reshape(-1, x.shape[-1])
    y = np.empty((*x.shape[:-1], weight.sums.size), np.int32)
    if sums is not Sums.EXACT:
        _multiply_rows(flat, rows, weight, False, y)
        return y
    matrix_product(flat, weight, weight.lanes(None, rows, 1.0, None), "sum", (0, 0, 0), y)
    return y


def as_unsigned(x: QTensor) -> QTensor:
    """Return a qint8 tensor as quint8, integers and zero point moved by 128; quint8 as it is.

    Examples
    --------
    >>> from refquant.ir.types import qint8
    >>> y = as_unsigned(QTensor(np.int8([-128, 5]), 0.5, -3, None, qint8))
    >>> y.int_repr, y.zero_point
    (array([  0, 133], dtype=uint8), 125)
    """
    if x.dtype == quint8:
        return x
    return QTensor(x.int_repr.view(np.uint8) ^ np.uint8(128), x.scale, int(x.zero_point) + 128)


@lru_cache(maxsize=256)
def _matrix_rows(count: int, depth: int) -> Offsets:
    return np.arange(count, dtype=np.int64) * depth
