"""Weights rearranged once for the compiled tile, and the offset tables that lead it."""

from __future__ import annotations

import threading
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.kernels.layout import empty_channels_last
from refquant.kernels.requantize import Constants, Rule
from refquant.kernels.tile import (
    BLOCK,
    LANES,
    PANEL,
    SLACK,
    depthwise,
    depthwise_order,
    multiply,
)

Array = npt.NDArray[Any]
Ints = tuple[int, ...]

# Rows of one offset table; larger batches go image by image through the same table.
TABLE_ROWS = 4096


class Layout(NamedTuple):
    """How the bytes of a packed weight are arranged.

    Parameters
    ----------
    groups : int
        Groups of the convolution; 1 for a matrix.
    run : int
        Taps in one segment, whose inputs lie side by side in memory: the last kernel size, or 1
        where dilation or other groups' channels lie between them.
    depthwise : bool
        One input channel per group: channels are lanes and taps are multiplied in fours.
    transposed : bool
        Weight of a transposed convolution: (in, out / groups, ...), applied back to front.
    """

    groups: int = 1
    run: int = 1
    depthwise: bool = False
    transposed: bool = False


def _matrix(weight: Array, layout: Layout) -> Array:
    """Return (groups, channels, taps, inputs): each output channel's taps in reading order."""
    groups = layout.groups
    first, second, *kernel = weight.shape
    if layout.transposed:
        split = weight.reshape(groups, first // groups, second, *kernel)
        flipped = np.flip(split.swapaxes(1, 2), tuple(range(3, split.ndim)))
    else:
        flipped = weight.reshape(groups, first // groups, second, *kernel)
    channels, inputs = flipped.shape[1:3]
    return np.moveaxis(flipped, 2, -1).reshape(groups, channels, prod(kernel), inputs)


def _unmatrix(matrix: Array, layout: Layout, shape: Ints) -> Array:
    groups, channels, _, inputs = matrix.shape
    kernel = shape[2:]
    split = np.moveaxis(matrix.reshape(groups, channels, *kernel, inputs), -1, 2)
    if layout.transposed:
        split = np.flip(split, tuple(range(3, split.ndim))).swapaxes(1, 2)
    return np.ascontiguousarray(split).reshape(shape)


def _passes(zero_point: Array) -> list[Array]:
    """Split ``-zero_point`` into int8 terms; none where all zero points are 0.

    A weight zero point subtracts ``zero_point * sum(x)``: one more pass over the same inputs
    with a constant weight.
    """
    left = -zero_point.astype(np.int64)
    terms = []
    while left.any():
        term = np.clip(left, -128, 127)
        terms.append(term)
        left = left - term
    return terms


def _ceil(value: int, step: int) -> int:
    return -(-value // step) * step


class PackedWeight(QTensor):
    """A constant weight in the layout that the compiled tile reads.

    It holds the packed bytes only; ``int_repr`` unpacks them on each access.

    Examples
    --------
    >>> from refquant.ir.types import qint8
    >>> w = QTensor(np.int8([[1, 2, 3], [4, 5, 6]]), 0.5, 0, None, qint8)
    >>> packed = PackedWeight.of(w, Layout())
    >>> packed.int_repr.tolist(), PackedWeight.of(packed, Layout()) is packed
    ([[1, 2, 3], [4, 5, 6]], True)
    """

    layout: Layout
    data: npt.NDArray[np.int8]
    sums: npt.NDArray[np.int64]  # of weight less zero point, per output channel
    passes: int  # 1, and one more for each term of the zero points
    _shape: Ints
    _constants: dict[Any, _Lanes]

    def __init__(self, weight: QTensor, layout: Layout) -> None:
        matrix = _matrix(weight.int_repr, layout)
        zero_point = np.asarray(weight.zero_point)
        per_channel = np.broadcast_to(zero_point, (layout.groups * matrix.shape[1],))
        terms = _passes(per_channel.reshape(matrix.shape[:2]))
        pack = _pack_depthwise if layout.depthwise else _pack_panels
        taps_and_inputs = matrix.shape[2] * matrix.shape[3]
        sums = matrix.sum((2, 3), dtype=np.int64).ravel() - per_channel * taps_and_inputs
        state = {
            "layout": layout,
            "data": pack(matrix, terms, layout),
            "sums": sums,
            "passes": 1 + len(terms),
            "_shape": weight.shape,
            "scale": weight.scale,
            "zero_point": weight.zero_point,
            "axis": weight.axis,
            "dtype": weight.dtype,
            "group_size": weight.group_size,
            "_constants": {},
        }
        self.__dict__.update(state)

    @classmethod
    def of(cls, weight: QTensor, layout: Layout) -> PackedWeight:
        """Return the weight in ``layout``, repacked only if it is not."""
        if isinstance(weight, cls) and weight.layout == layout:
            return weight
        return cls(weight, layout)

    @property
    def shape(self) -> Ints:
        """Shape of the weight before packing."""
        return self._shape

    @property
    def int_repr(self) -> Array:  # type: ignore[override]
        """The weight as it was before packing; a new array on each access."""
        first, second, *kernel = self.shape
        groups = self.layout.groups
        inputs, channels = second, first // groups
        if self.layout.transposed:
            inputs, channels = channels, inputs
        sizes = (groups, channels, prod(kernel), inputs)
        unpack = _unpack_depthwise if self.layout.depthwise else _unpack_panels
        matrix = unpack(self.data, sizes, self.layout, self.passes)
        return _unmatrix(matrix, self.layout, self.shape)

    def constants(
        self, rule: Rule, x: QTensor, scale: float, bias: npt.NDArray[np.float32] | None
    ) -> _Lanes:
        """Return what the tile adds and multiplies, one entry per lane; the last is kept."""
        key = (rule, x.scale, x.zero_point, scale, None if bias is None else bias.tobytes())
        kept = self._constants
        if key not in kept:
            kept.clear()
            each = rule(float(x.scale), self.scale, scale, bias, self.sums.size)
            kept[key] = self._in_lanes(int(x.zero_point), each)
        return kept[key]

    def _in_lanes(self, zero_point: int, each: Constants) -> _Lanes:
        correction = (-zero_point * self.sums).astype(np.int32)
        if self.layout.depthwise:
            channels = self.sums.size
            order = depthwise_order(LANES) + np.arange(0, channels, BLOCK)[:, None]
            lanes = np.minimum(order, channels - 1).ravel()
        else:
            groups = self.layout.groups
            outputs = self.sums.size // groups
            within = np.minimum(np.arange(_ceil(outputs, PANEL)), outputs - 1)
            lanes = (np.arange(groups)[:, None] * outputs + within).ravel()
        return _Lanes(correction[lanes], *(values[lanes] for values in each))


class _Lanes(NamedTuple):
    """Constants of the rounding in the order of packed channels."""

    correction: npt.NDArray[np.int32]
    addend: npt.NDArray[np.float32]
    factor: npt.NDArray[np.float32]
    multiplier: npt.NDArray[np.float32]


def _pack_panels(matrix: Array, terms: list[Array], layout: Layout) -> npt.NDArray[np.int8]:
    """Pack as [group][panel][pass][segment][k / 4][channel of the panel][4], zero filled."""
    groups, channels, taps, inputs = matrix.shape
    segments, depth = taps // layout.run, layout.run * inputs
    wide, deep = _ceil(channels, PANEL), _ceil(depth, 4)
    padded = np.zeros((groups, wide, 1 + len(terms), segments, deep), np.int8)
    padded[:, :channels, 0, :, :depth] = matrix.reshape(groups, channels, segments, depth)
    for i, term in enumerate(terms):
        padded[:, :channels, i + 1, :, :depth] = term[:, :, None, None]
    split = padded.reshape(groups, wide // PANEL, PANEL, -1, 4)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2, 4)).reshape(-1)


def _unpack_panels(data: Array, sizes: Ints, layout: Layout, passes: int) -> Array:
    groups, channels, taps, inputs = sizes
    segments, depth = taps // layout.run, layout.run * inputs
    wide, deep = _ceil(channels, PANEL), _ceil(depth, 4)
    split = data.reshape(groups, wide // PANEL, passes * segments * deep // 4, PANEL, 4)
    padded = split.transpose(0, 1, 3, 2, 4).reshape(groups, wide, passes, segments, deep)
    return padded[:, :channels, 0, :, :depth].reshape(sizes)


def _depthwise_slots(taps: int, passes: int) -> int:
    return _ceil(_ceil(taps, 2) + 2 * taps * (passes - 1), 4)


def _pack_depthwise(matrix: Array, terms: list[Array], layout: Layout) -> npt.NDArray[np.int8]:
    """Pack as [block][four taps][lane][4]; zero point terms stand alone in their pair.

    The saturating kernel multiplies pairs of neighbours. One product alone cannot saturate, so a
    zero point term beside 0 stays exact there too.
    """
    channels, taps = matrix.shape[0] * matrix.shape[1], matrix.shape[2]
    slots = np.zeros((_ceil(channels, BLOCK), _depthwise_slots(taps, 1 + len(terms))), np.int8)
    slots[:channels, :taps] = matrix.reshape(channels, taps)
    for i, term in enumerate(terms):
        begin = _ceil(taps, 2) + 2 * taps * i
        slots[:channels, begin : begin + 2 * taps : 2] = term.reshape(channels, 1)
    split = slots.reshape(-1, BLOCK, slots.shape[1] // 4, 4)[:, depthwise_order(LANES)]
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(-1)


def _unpack_depthwise(data: Array, sizes: Ints, _layout: Layout, passes: int) -> Array:
    groups, channels, taps, _ = sizes
    count = _depthwise_slots(taps, passes)
    split = data.reshape(-1, count // 4, BLOCK, 4).transpose(0, 2, 1, 3)
    slots = split[:, np.argsort(depthwise_order(LANES))].reshape(-1, count)
    return slots[: groups * channels, :taps].reshape(sizes)


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

    map: Ints  # sizes of the spatial axes in the memory that is read
    direct: bool  # whether that is the input itself
    step: int  # bytes from one block of rows to the next
    rows: npt.NDArray[np.int64]
    taps: npt.NDArray[np.int64]  # of each segment (panels) or each tap slot (depthwise)
    depth4: int
    row_step: int  # bytes from pixel to pixel (depthwise)


@lru_cache(maxsize=512)
def _tables(
    images: int, spatial: Ints, inputs: int, window: Window, layout: Layout, passes: int
) -> _Tables:
    kernel, stride, dilation, lead, spread, out = window
    needed = tuple(
        (o - 1) * s + d * (k - 1) + 1
        for o, s, d, k in zip(out, stride, dilation, kernel, strict=True)
    )
    pixel = inputs * layout.groups
    depth = layout.run * inputs
    direct = (
        not layout.depthwise
        and depth % 4 == 0
        and not any(lead)
        and all(s == 1 for s in spread)
        and all(n <= have for n, have in zip(needed, spatial, strict=True))
    )
    sizes = spatial if direct else needed
    pitch = [pixel * prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    image = pixel * prod(sizes)

    def offsets(counts: Ints, steps: Ints) -> npt.NDArray[np.int64]:
        total = np.zeros((1,) * len(counts), np.int64)
        for axis, (count, step) in enumerate(zip(counts, steps, strict=True)):
            along = np.arange(count, dtype=np.int64) * (step * pitch[axis])
            total = total + along.reshape((-1,) + (1,) * (len(counts) - axis - 1))
        return total.reshape(-1)

    taps = offsets(kernel, dilation)
    if layout.depthwise:
        slots = np.full(_depthwise_slots(taps.size, passes), taps[-1])
        slots[: taps.size] = taps
        for i in range(passes - 1):
            begin = _ceil(taps.size, 2) + 2 * taps.size * i
            slots[begin : begin + 2 * taps.size : 2] = taps
        rows = offsets((*out[:-1], 1), stride)
        return _Tables(sizes, False, image, rows, slots, 0, stride[-1] * pixel)
    segments = np.tile(taps[:: layout.run], passes)
    rows = offsets(out, stride)
    together = min(images, max(1, TABLE_ROWS // max(rows.size, 1)))
    rows = (np.arange(together)[:, None] * image + rows).reshape(-1)
    return _Tables(sizes, direct, together * image, rows, segments, _ceil(depth, 4) // 4, 0)


_local = threading.local()


def _buffer(size: int) -> npt.NDArray[np.uint8]:
    """Return this thread's scratch memory: it grows to the largest map and is used again."""
    kept: npt.NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if kept is None or kept.size < size:
        kept = np.empty(size, np.uint8)
        _local.buffer = kept
    return kept


def _place(
    x: Array, zero_point: int, window: Window, sizes: Ints, copies: int
) -> npt.NDArray[np.uint8]:
    """Lay (N, C, ...) into maps of (N, ``sizes``, C * copies) filled with the zero point."""
    images, inputs = x.shape[:2]
    count = images * prod(sizes) * inputs * copies
    buffer = _buffer(count + SLACK)
    maps = buffer[:count].reshape(images, *sizes, inputs, copies)
    source, target = [slice(None)], [slice(None)]
    covered = True
    for n, size, lead, spread in zip(x.shape[2:], sizes, window.lead, window.spread, strict=True):
        first = max(0, -(lead // spread))
        last = min(n, (size - lead - 1) // spread + 1)
        source.append(slice(first, max(last, first)))
        begin = lead + first * spread
        target.append(slice(begin, begin + max(last - first, 0) * spread, spread))
        covered = covered and spread == 1 and last - first == size
    if not covered:
        buffer[:count] = zero_point
    rows = np.moveaxis(x, 1, -1)[tuple(source)]
    inner = maps[tuple(target)]
    if inputs <= 4 and rows.strides[-1] != 1:
        for c in range(inputs):  # long strided runs instead of many short ones
            inner[..., c, :] = rows[..., c, None]
    else:
        inner[...] = rows[..., None]
    return buffer


def _flat(x: Array) -> Array:
    """Return the array in one dimension, writeable: Numba compiles anew for a read-only one."""
    flat = np.ascontiguousarray(x).reshape(-1)
    return flat if flat.flags.writeable else flat.copy()


class Rounding(NamedTuple):
    """Quantization parameters of the result; ``low`` is the zero point where relu is fused."""

    scale: float
    zero_point: int
    low: int


def convolve(
    x: QTensor,
    weight: PackedWeight,
    bias: npt.NDArray[np.float32] | None,
    window: Window,
    rounding: Rounding,
    rule: Rule,
    saturating: bool = False,
) -> Array:
    """Run the compiled tile over (N, C, ...); the result has channels-last memory."""
    layout = weight.layout
    images, channels = x.shape[:2]
    outputs = weight.sums.size
    inputs = channels // layout.groups
    copies = outputs // layout.groups if layout.depthwise else 1
    tables = _tables(
        images, x.shape[2:], inputs * copies, window, layout, weight.passes
    )
    scale, zero_point, low = rounding
    lanes = weight.constants(rule, x, scale, bias)
    limits = (low - zero_point, 255 - zero_point, zero_point)
    y = empty_channels_last((images, outputs, *window.out), np.uint8)
    if y.size == 0:
        return y
    flat = np.moveaxis(y, 1, -1).reshape(-1)
    if tables.direct:
        source = _flat(np.moveaxis(x.int_repr, 1, -1))
    else:
        source = _place(x.int_repr, int(x.zero_point), window, tables.map, copies)
    if layout.depthwise:
        depthwise(
            *(source, images, tables.step, tables.rows, tables.row_step, window.out[-1]),
            *(tables.taps, weight.data, outputs, *lanes, *limits, saturating, flat),
        )
    else:
        multiply(
            *(source, tables.step, tables.rows, images * prod(window.out), tables.taps),
            *(tables.depth4, weight.data, layout.groups, inputs, outputs // layout.groups),
            *(*lanes, *limits, flat),
        )
    return y


def matrix_product(
    x: npt.NDArray[np.uint8], weight: PackedWeight, lanes: _Lanes, limits: Ints, y: Array
) -> None:
    """Run the compiled tile over contiguous (rows, K), into contiguous (rows, channels)."""
    count, depth = x.shape
    outputs = weight.sums.size
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
        *(source, rows.size * depth, rows, count, segments, _ceil(depth, 4) // 4, weight.data),
        *(1, 0, outputs, *lanes, *limits, y.reshape(-1)),
    )


@lru_cache(maxsize=256)
def _matrix_rows(count: int, depth: int) -> npt.NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * depth
