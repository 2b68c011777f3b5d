"""How the compiled tiles are led over an input: offset tables of maps and windows."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.kernels.packing import Ints, Layout, ceil, depthwise_slots

Offsets = npt.NDArray[np.int64]
Slices = tuple[slice, ...]

# Rows of one offset table; larger batches go block by block through the same table.
TABLE_ROWS = 4096


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

    @property
    def seen(self) -> Ints:
        """Sizes of the map that outputs see."""
        spans = zip(self.out, self.stride, self.dilation, self.kernel, strict=True)
        return tuple((o - 1) * s + d * (k - 1) + 1 for o, s, d, k in spans)


class Map(NamedTuple):
    """Channels-last memory in which a value lies, one entry per spatial axis.

    Position 0 of the value is at ``lead``; ``sizes`` are those of the whole map.
    """

    lead: Ints
    sizes: Ints

    @classmethod
    def dense(cls, sizes: Ints) -> Map:
        """Return a map without margins."""
        return cls((0,) * len(sizes), sizes)

    def holds(self, window: Window) -> bool:
        """Whether all that a convolution's window sees lies in the map."""
        axes = zip(self.lead, self.sizes, window.lead, window.seen, strict=True)
        return set(window.spread) <= {1} and all(
            own >= lead and size - own >= seen - lead for own, size, lead, seen in axes
        )


class Walk(NamedTuple):
    """Offsets of rows and taps in the input, and of rows in the result.

    A row is an output pixel, of a depthwise layer a line of pixels ``pixel_step`` bytes apart.
    Row ``r`` is at ``r // rows.size * step + rows[r % rows.size]``, and in the result likewise.
    """

    rows: Offsets
    step: int
    taps: Offsets  # of each segment, of a depthwise layer each tap
    depth4: int  # fours of bytes of a segment, of a depthwise layer full groups of four taps
    pixel_step: int
    places: Offsets
    place_step: int
    total: int  # rows of all images

    def bound(self, end: int, size: int) -> int:
        """Return how far rows before ``end`` may write in a result of ``size`` elements."""
        if end == self.total:
            return size
        block, row = divmod(end, len(self.places))
        return int(block * self.place_step + self.places[row])


def offsets(counts: Ints, steps: Ints) -> Offsets:
    """Return the sums of one multiple of each step, last axis fastest."""
    total = np.zeros(1, np.int64)
    for count, step in zip(counts, steps, strict=True):
        total = (total[:, None] + np.arange(count) * step).reshape(-1)
    return total


def pitches(sizes: Ints, pixel: int) -> Ints:
    """Return the steps along each axis of a map, and last that from image to image."""
    steps = tuple(pixel * prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
    return (*steps, pixel * prod(sizes))


@lru_cache(maxsize=512)
def walk_of(
    images: int,
    pixel: int,
    source: Map,
    window: Window,
    layout: Layout,
    passes: int,
    outputs: int,
    result: Map,
) -> Walk:
    """Lay out the walk of a convolution.

    Parameters
    ----------
    images : int
        Batch.
    pixel : int
        Bytes from pixel to pixel of the source.
    source, result : Map
        Memory of input and output, which :meth:`Map.holds` what the window sees.
    layout, passes : Layout, int
        Of the packed weight.
    outputs : int
        Elements from pixel to pixel of the result.
    """
    kernel, stride, dilation, lead, _, out = window
    *pitch, image = pitches(source.sizes, pixel)
    *out_pitch, out_image = pitches(result.sizes, outputs)
    steps = tuple(s * p for s, p in zip(stride, pitch, strict=True))
    first = sum((a - b) * p for a, b, p in zip(source.lead, lead, pitch, strict=True))
    start = sum(a * p for a, p in zip(result.lead, out_pitch, strict=True))
    taps = offsets(kernel, tuple(d * p for d, p in zip(dilation, pitch, strict=True)))
    if layout.depthwise:
        rows, places = offsets(out[:-1], steps[:-1]), offsets(out[:-1], tuple(out_pitch[:-1]))
        slots = _depthwise_taps(taps, passes)
        count = images * len(rows)
        alone = passes == 1 and taps.size % 4 == 1  # the last tap stands beside zeros
        fours = len(slots) // 4 - alone
        walk = (rows + first, image, slots, fours, steps[-1], places + start, out_image)
        return Walk(*walk, count)
    together = min(images, max(1, TABLE_ROWS // max(prod(out), 1)))
    rows = offsets((together, *out), (image, *steps)) + first
    places = offsets((together, *out), (out_image, *out_pitch)) + start
    depth = layout.run * pixel * layout.merged // layout.groups
    taps = np.tile(taps[:: layout.run], passes)
    walk = (rows, together * image, taps, ceil(depth, 4) // 4, 0, places, together * out_image)
    return Walk(*walk, images * prod(out))


def _depthwise_taps(taps: Offsets, passes: int) -> Offsets:
    """Fill the slots of a depthwise weight; unused ones read the last tap."""
    slots = np.full(depthwise_slots(taps.size, passes), taps[-1])
    slots[: taps.size] = taps
    for i in range(1, passes):
        begin = ceil(taps.size, 2) + 2 * taps.size * (i - 1)
        slots[begin : begin + 2 * taps.size : 2] = taps
    return slots


@lru_cache(maxsize=256)
def matrix_walk(count: int, depth: int, passes: int, outputs: int) -> Walk:
    """Lay out the walk over the rows of a matrix."""
    rows = np.arange(min(count, TABLE_ROWS), dtype=np.int64)
    segments = np.zeros(passes, np.int64)
    steps = len(rows) * depth, len(rows) * outputs
    depth4 = ceil(depth, 4) // 4
    return Walk(rows * depth, steps[0], segments, depth4, 0, rows * outputs, steps[1], count)


class Placement(NamedTuple):
    """Which inputs lie in a map, where, and what is left to be filled."""

    taken: Slices
    placed: Slices
    borders: tuple[Slices, ...] | None  # None: fill the whole map


@lru_cache(maxsize=512)
def placement(spatial: Ints, sizes: Ints, lead: Ints, spread: Ints) -> Placement:
    """Say how an (N, ..., C) input is laid into a map of ``sizes``."""
    everything = slice(None)
    taken, placed = [everything], [everything]
    borders: list[Slices] | None = []
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
    return Placement(tuple(taken), tuple(placed), None if borders is None else tuple(borders))


def place(
    rows: npt.NDArray[Any], zero_point: int, how: Placement, padded: npt.NDArray[Any]
) -> None:
    """Lay (N, ..., C) into a padded map (N, ..., C, copies), each channel ``copies`` times."""
    if how.borders is None:
        padded[...] = zero_point
    else:
        for border in how.borders:
            padded[border] = zero_point
    source, inner = rows[how.taken], padded[how.placed]
    if padded.shape[-1] == 1 and rows.shape[-1] <= 4 and rows.strides[-1] != 1:
        for c in range(rows.shape[-1]):  # long strided runs instead of many short ones
            inner[..., c, 0] = source[..., c]
    else:
        inner[...] = source[..., None]
