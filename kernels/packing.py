"""Weights rearranged once into the layout that the compiled tile reads."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import chain
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.ir.types import qint8
from refquant.kernels.registers import BLOCK, LANES, PANEL, depthwise_order
from refquant.kernels.requantize import Constants, Rule

Array = npt.NDArray[Any]
Int8 = npt.NDArray[np.int8]
Ints = tuple[int, ...]

# Output channels packed at a time: temporaries are a few times the bytes of one piece.
PIECE = PANEL


class Layout(NamedTuple):
    """How the bytes of a packed weight are arranged.

    Parameters
    ----------
    groups : int
        Groups of the convolution; 1 for a matrix.
    merged : int
        Groups that are computed together, as one with zeros between them, to fill the lanes.
    run : int
        Taps in one segment, whose inputs lie side by side in memory: the last kernel size, or 1
        where dilation or other groups' channels lie between them.
    gathered : bool
        Groups of few channels: the lanes of a vector belong to several, and each takes its own
        four bytes.
    depthwise : bool
        One input channel per group: channels are lanes and taps are multiplied in fours.
    transposed : bool
        Weight of a transposed convolution: (in, out / groups, ...), applied back to front.
    """

    groups: int = 1
    merged: int = 1
    run: int = 1
    gathered: bool = False
    depthwise: bool = False
    transposed: bool = False

    @property
    def reads_beyond(self) -> bool:
        """Whether whole vectors are read, past the last channel of a pixel."""
        return self.depthwise or self.gathered

    @classmethod
    def of(
        cls, inputs: int, outputs: int, kernel: Ints, dilation: Ints, groups: int, transposed: bool
    ) -> Layout:
        """Choose the layout of a convolution with ``inputs`` and ``outputs`` in each group."""
        if groups == 1:
            run = kernel[-1] if dilation[-1] == 1 else 1
            return cls(run=run, transposed=transposed)
        if inputs == 1 and outputs <= 4:
            return cls(groups, depthwise=True, transposed=transposed)
        if _can_gather(inputs, outputs):
            return cls(groups, gathered=True, transposed=transposed)
        fitting = range(max(1, min(groups, PANEL // outputs)), 0, -1)
        merged = next(m for m in fitting if groups % m == 0)
        return cls(groups, merged, transposed=transposed)


def _can_gather(inputs: int, outputs: int) -> bool:
    """Whether whole vectors hold whole groups, or the other way round, and one load its bytes."""
    whole = LANES % outputs == 0 or outputs % LANES == 0
    span = max(1, LANES // outputs) * inputs
    return outputs < PANEL and inputs % 4 == 0 and whole and span <= 4 * LANES


def ceil(value: int, step: int) -> int:
    """Round up to a multiple of ``step``."""
    return -(-value // step) * step


def _matrix(weight: Array, layout: Layout) -> Array:
    """Return (groups, channels, taps, inputs): each output channel's taps in reading order."""
    first, second, *kernel = weight.shape
    split = weight.reshape(layout.groups, first // layout.groups, second, *kernel)
    if layout.transposed:
        split = np.flip(split.swapaxes(1, 2), tuple(range(3, split.ndim)))
    channels, inputs = split.shape[1:3]
    return np.moveaxis(split, 2, -1).reshape(layout.groups, channels, prod(kernel), inputs)


def _inputs(integers: Array, layout: Layout) -> int:
    first, second = integers.shape[:2]
    return int(first // layout.groups if layout.transposed else second)


def _pieces(integers: Array, layout: Layout) -> list[slice]:
    """Return parts that are packed one after the other, so that memory holds few copies.

    Without groups the panels of output channels follow each other in the packed bytes.
    """
    if layout.groups > 1 or layout.transposed:
        return [slice(None)]
    return [slice(start, start + PIECE) for start in range(0, len(integers), PIECE)]


def _collect(parts: Iterator[Int8], channels: int) -> Int8:
    """Concatenate the packed pieces, of which only the last may be shorter."""
    first = next(parts)
    panels = ceil(min(channels, PIECE), PANEL) // PANEL
    if channels <= PIECE:
        return first
    result = np.empty(first.size // panels * (ceil(channels, PANEL) // PANEL), np.int8)
    end = 0
    for part in chain((first,), parts):
        result[end : end + part.size] = part
        end += part.size
    return result


def _unmatrix(matrix: Array, layout: Layout, shape: Ints) -> Array:
    groups, channels, _, inputs = matrix.shape
    split = np.moveaxis(matrix.reshape(groups, channels, *shape[2:], inputs), -1, 2)
    if layout.transposed:
        split = np.flip(split, tuple(range(3, split.ndim))).swapaxes(1, 2)
    return np.ascontiguousarray(split).reshape(shape)


def _zero_point_terms(zero_point: Array) -> list[Array]:
    """Split ``-zero_point`` into int8 terms; none where all zero points are 0.

    A weight zero point subtracts ``zero_point * sum(x)``: one more pass over the same inputs
    with a constant weight, two for -128, whose opposite is not an int8.
    """
    left = -zero_point.astype(np.int64)
    terms = []
    while left.any():
        term = np.clip(left, -128, 127)
        terms.append(term)
        left = left - term
    return terms


class Lanes(NamedTuple):
    """What the tile adds and multiplies, in the order of packed channels.

    ``real`` holds what all channels share: first the steps of the result in 1.
    """

    correction: npt.NDArray[np.int32]
    addend: npt.NDArray[np.float32]
    factor: npt.NDArray[np.float32]
    multiplier: npt.NDArray[np.float32]
    real: npt.NDArray[np.float32]


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
    data: Int8
    sums: npt.NDArray[np.int32]  # of weight less zero point, per output channel
    passes: int  # 1, and one more for each term of the zero points
    _shape: Ints
    _lanes: dict[Any, Lanes]
    _pairs: dict[bool, Int8]
    ready: dict[Any, Any]  # what layers of the last calls keep, see layer.py

    def __init__(self, weight: QTensor, layout: Layout) -> None:
        integers = weight.int_repr
        groups = layout.groups
        channels = integers.size // (prod(integers.shape[2:]) * _inputs(integers, layout) * groups)
        zero_point = np.broadcast_to(np.asarray(weight.zero_point), (groups * channels,))
        terms = _zero_point_terms(zero_point.reshape(groups, channels, 1, 1))
        pack = _pack_depthwise if layout.depthwise else _pack_panels
        pieces = _pieces(integers, layout)
        sums: list[npt.NDArray[np.int64]] = []

        def packed(some: slice) -> Int8:
            matrix = _matrix(integers[some], layout)
            sums.append(matrix.sum((2, 3), dtype=np.int64).ravel())
            return pack(matrix, [term[:, some] for term in terms], layout)

        data = _collect(map(packed, pieces), channels if len(pieces) > 1 else 0)
        depth = integers.size // (groups * channels)
        state = {
            "layout": layout,
            "data": data,
            "sums": (np.concatenate(sums) - zero_point * depth).astype(np.int32),
            "passes": 1 + len(terms),
            "_shape": weight.shape,
            "_lanes": {},
            "_pairs": {},
            "ready": {},
            "scale": weight.scale,
            "zero_point": weight.zero_point,
            "axis": weight.axis,
            "dtype": weight.dtype,
            "group_size": weight.group_size,
        }
        self.__dict__.update(state)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was kept for the next calls."""
        return {**self.__dict__, "_lanes": {}, "_pairs": {}, "ready": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what cannot be assigned."""
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
    def int_repr(self) -> Array:
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

    @property
    def copies(self) -> int:
        """How often a depthwise layer reads each input channel."""
        return self.sums.size // self.layout.groups if self.layout.depthwise else 1

    def lanes(
        self, rule: Rule | None, x: QTensor, scale: float, bias: npt.NDArray[np.float32] | None
    ) -> Lanes:
        """Return the constants of the rounding for one input and output; the last are kept.

        Without a rule they are those of plain sums.
        """
        key = (rule, x.scale, x.zero_point, scale, None if bias is None else bias.tobytes())
        lanes = self._lanes.get(key)
        if lanes is None:
            each = (
                _unread(self.sums.size)
                if rule is None
                else rule(float(x.scale), self.scale, scale, bias, self.sums.size)
            )
            lanes = self._in_lanes(int(x.zero_point), each)
            self.__dict__["_lanes"] = {key: lanes}
        return lanes

    def pairs(self, in_taps: bool) -> Int8:
        """Return the weight as (groups, pairs, channels, 2), for machines that add pairs.

        Pairs are neighbours in reading order of taps and inputs, or of the inputs of each tap
        alone. Made on the first use and kept.
        """
        if in_taps not in self._pairs:
            matrix = _matrix(self.int_repr, self.layout)
            if self.layout.transposed:  # packed back to front
                matrix = matrix[:, :, ::-1]
            if in_taps:
                matrix = np.pad(matrix, ((0, 0), (0, 0), (0, 0), (0, matrix.shape[3] % 2)))
            groups, channels = matrix.shape[:2]
            rows = matrix.reshape(groups, channels, -1)
            rows = np.pad(rows, ((0, 0), (0, 0), (0, rows.shape[2] % 2)))
            split = rows.reshape(groups, channels, -1, 2).swapaxes(1, 2)
            self._pairs[in_taps] = np.ascontiguousarray(split)
        return self._pairs[in_taps]

    def lanes_of_any_input(
        self, rule: Rule, scale: float, zero_point: int, bias: npt.NDArray[np.float32] | None
    ) -> Lanes:
        """Return the constants for an input whose parameters change from call to call.

        The rule is applied to channels in their packed order, which its neighbours must not
        matter for; nothing is kept.
        """
        ordered = None if bias is None else bias[self._order]
        scales = self.scale if np.ndim(self.scale) == 0 else self._scales
        each = rule(scale, scales, 1.0, ordered, self._order.size)
        return self._with(self._sums * np.int32(-zero_point), each)

    def lanes_of_zero_point(self, zero_point: int) -> Lanes:
        """Return the constants of plain sums of an input of which only the zero point matters."""
        return self._with(self._sums * np.int32(-zero_point), _unread(self._order.size))

    def _in_lanes(self, zero_point: int, each: Constants) -> Lanes:
        correction = self._sums * np.int32(-zero_point)  # wraps, as the accumulator does
        floats = (each.addend, each.factor, each.multiplier)
        addend, factor, multiplier = (values[self._order] for values in floats)
        integer = None if each.integer is None else each.integer[self._order]
        return self._with(correction, Constants(addend, factor, multiplier, integer, each.output))

    @staticmethod
    def _with(correction: npt.NDArray[np.int32], each: Constants) -> Lanes:
        if each.integer is not None:
            correction = correction + each.integer
        real = np.array([each.output, 0, 0, 0, 0, 0], np.float32)
        return Lanes(correction, each.addend, each.factor, each.multiplier, real)

    @cached_property
    def _order(self) -> npt.NDArray[np.int64]:
        """The channel of each lane of the tiles; lanes without one repeat the last."""
        channels = self.sums.size
        if self.layout.depthwise:
            order = depthwise_order(LANES) + np.arange(0, channels, BLOCK)[:, None]
        else:
            together = self.layout.groups if self.layout.gathered else self.layout.merged
            outputs = channels * together // self.layout.groups
            within = np.minimum(np.arange(ceil(outputs, PANEL)), outputs - 1)
            order = np.arange(0, channels, outputs)[:, None] + within
        return np.minimum(order, channels - 1).ravel()

    @cached_property
    def _sums(self) -> npt.NDArray[np.int32]:
        return self.sums[self._order]

    @cached_property
    def _scales(self) -> Array:
        return np.asarray(self.scale)[self._order]


class PackedArray(np.ndarray[Any, np.dtype[np.int8]]):
    """A plain int8 weight that carries its packed form; read-only, so that both stay the same.

    Parts and copies of it are plain again.

    Examples
    --------
    >>> kept = PackedArray.of(np.int8([[1, 2, 3], [4, 5, 6]]), Layout())
    >>> packed_of(kept, Layout()) is kept.packed, kept[:1].packed
    (True, None)
    """

    packed: PackedWeight | None = None

    @classmethod
    def of(cls, weight: Array, layout: Layout) -> PackedArray:
        """Return the weight with its form in ``layout``."""
        kept = np.asarray(weight).view(cls)
        kept.packed = packed_of(weight, layout)
        kept.flags.writeable = False
        return kept


def packed_of(weight: Array, layout: Layout) -> PackedWeight:
    """Return a plain int8 weight in ``layout``, packed only if it is not; its scale is 1."""
    found = weight.packed if isinstance(weight, PackedArray) else None
    if found is None:
        found = PackedWeight(QTensor(np.asarray(weight), 1.0, 0, None, qint8), layout)
    return PackedWeight.of(found, layout)


def _unread(channels: int) -> Constants:
    """Return constants for a tile that stores its sums."""
    zeros = np.zeros(channels, np.float32)
    return Constants(zeros, zeros, zeros)


def _pack_panels(matrix: Array, terms: list[Array], layout: Layout) -> Int8:
    """Pack as [group][panel][pass][segment][k / 4][channel of the panel][4], zero filled."""
    if layout.gathered:  # channels side by side, each with the inputs of its group
        matrix = matrix.reshape(1, -1, *matrix.shape[2:])
        terms = [values.reshape(1, -1, 1, 1) for values in terms]
        layout = Layout()
    groups, channels, taps, inputs = matrix.shape
    merged, passes = layout.merged, 1 + len(terms)
    apart = (groups // merged, merged, channels, taps, inputs)
    apart_and_inputs = (groups // merged, merged, channels, passes, taps, merged, inputs)
    diagonal = np.zeros(apart_and_inputs, np.int8)
    for number, values in enumerate((matrix, *terms)):
        block = np.broadcast_to(values, matrix.shape).reshape(apart)
        for i in range(merged):
            diagonal[:, i, :, number, :, i] = block[:, i]
    wide, deep = ceil(merged * channels, PANEL), ceil(layout.run * merged * inputs, 4)
    segments = passes * taps // layout.run
    filled = np.zeros((groups // merged, wide, segments, deep), np.int8)
    rows = diagonal.reshape(groups // merged, merged * channels, segments, -1)
    filled[:, : rows.shape[1], :, : rows.shape[3]] = rows
    split = filled.reshape(groups // merged, wide // PANEL, PANEL, segments * deep // 4, 4)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 2, 4)).reshape(-1)


def _unpack_panels(data: Int8, sizes: Ints, layout: Layout, passes: int) -> Array:
    if layout.gathered:
        alone = (1, sizes[0] * sizes[1], *sizes[2:])
        return _unpack_panels(data, alone, Layout(), passes).reshape(sizes)
    groups, channels, taps, inputs = sizes
    merged = layout.merged
    depth = layout.run * merged * inputs
    wide, deep = ceil(merged * channels, PANEL), ceil(depth, 4)
    segments = taps // layout.run
    split = data.reshape(groups // merged, wide // PANEL, passes * segments * deep // 4, PANEL, 4)
    filled = split.transpose(0, 1, 3, 2, 4).reshape(groups // merged, wide, -1, deep)
    rows = filled[:, : merged * channels, :segments, :depth]
    diagonal = rows.reshape(groups // merged, merged, channels, taps, merged, inputs)
    blocks = [diagonal[:, i, :, :, i] for i in range(merged)]
    return np.stack(blocks, 1).reshape(sizes)


def depthwise_slots(taps: int, passes: int) -> int:
    """Return how many tap slots a depthwise weight has, a multiple of four."""
    return ceil(ceil(taps, 2) + 2 * taps * (passes - 1), 4)


def _pack_depthwise(matrix: Array, terms: list[Array], layout: Layout) -> Int8:
    """Pack as [block][four taps][lane][4]; zero point terms stand alone in their pair.

    The saturating kernel multiplies pairs of neighbours. One product alone cannot saturate, so a
    zero point term beside 0 stays exact there too.
    """
    channels, taps = matrix.shape[0] * matrix.shape[1], matrix.shape[2]
    slots = np.zeros((ceil(channels, BLOCK), depthwise_slots(taps, 1 + len(terms))), np.int8)
    slots[:channels, :taps] = matrix.reshape(channels, taps)
    for i, term in enumerate(terms):
        begin = ceil(taps, 2) + 2 * taps * i
        slots[:channels, begin : begin + 2 * taps : 2] = term.reshape(channels, 1)
    split = slots.reshape(-1, BLOCK, slots.shape[1] // 4, 4)[:, depthwise_order(LANES)]
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(-1)


def _unpack_depthwise(data: Int8, sizes: Ints, _layout: Layout, passes: int) -> Array:
    groups, channels, taps, _ = sizes
    count = depthwise_slots(taps, passes)
    split = data.reshape(-1, count // 4, BLOCK, 4).transpose(0, 2, 1, 3)
    slots = split[:, np.argsort(depthwise_order(LANES))].reshape(-1, count)
    return slots[: groups * channels, :taps].reshape(sizes)
