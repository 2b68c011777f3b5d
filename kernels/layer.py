"""Linear and convolution with constants, shapes and memory bound, and what follows in registers.

A layer takes in the clamp (relu, relu6, ...) or the ``quantized::add`` that is the only user of
its result, reads its input where the layer before has put it, padding included, and writes its
result where the next one looks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.op import OPS
from refquant.ir.prepared import Margins, Operand, Place
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import TensorType, quint8
from refquant.kernels import convolve, job
from refquant.kernels.accumulate import Sums
from refquant.kernels.fused_add import Addition, addition
from refquant.kernels.job import Job
from refquant.kernels.layout import raveled
from refquant.kernels.packing import Ints, Lanes, PackedWeight
from refquant.kernels.registers import SLACK
from refquant.kernels.requantize import Rounding, Stage
from refquant.kernels.transpose import channels_side_by_side
from refquant.kernels.walk import Map, Walk, Window, placement, walk_of

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
# Memory of a sum's other operand, places of its rows, step of a block of rows.
Other = tuple[Bytes, npt.NDArray[np.int64], int]


class _Shape(NamedTuple):
    """An (N, C, ...) operand or result; that of a linear has rows for images."""

    images: int
    channels: int
    spatial: Ints

    def map(self, margins: Margins | None) -> Map:
        """Return its memory with margins."""
        if margins is None:
            return Map.dense(self.spatial)
        sides = zip(margins.before, self.spatial, margins.after, strict=True)
        return Map(margins.before, tuple(a + n + b for a, n, b in sides))


@dataclass(frozen=True)
class Layer:
    """A linear or convolution with all that does not change from run to run."""

    source: _Shape
    result: TensorType
    input: TensorType
    weight: PackedWeight
    bias: npt.NDArray[np.float32] | None
    window: Window
    stage: Stage
    rounding: Rounding
    saturating: bool
    target: Target
    sum: Addition | None = None

    # ---- what the plan asks

    def margins(self, operand: int) -> Margins | None:
        """Return the padding of a convolution; a linear and the addend of a sum need none."""
        if operand > 0 or not self.window.out or self.weight.copies > 1:
            return None
        axes = zip(self.window.seen, self.window.lead, self.source.spatial, strict=True)
        after = tuple(max(0, seen - lead - n) for seen, lead, n in axes)
        return Margins(self.window.lead, after)

    def absorb(
        self,
        name: str,
        position: int,
        operands: tuple[Operand, ...],
        attributes: Mapping[str, Any],
        result: TensorType,
    ) -> Layer | None:
        """Take in a clamp, or the sum with another tensor."""
        if len(self.window.out) == 1:  # whose clamp changes the memory format
            return None
        limits = OPS[name].limits
        if limits is not None:
            kind = operands[position]
            assert isinstance(kind, TensorType)
            found = limits(kind, self.target, **attributes)
            return None if found is None else self._limited(*found)
        if self.sum is not None or self.weight.layout.depthwise:
            return None
        added = addition(name, position, operands, result, self.target)
        return None if added is None else replace(self, sum=added, result=result)

    def _limited(self, low: int, high: int) -> Layer:
        last = self.rounding if self.sum is None else self.sum.rounding
        limits = (min(max(end, low), high) for end in last[2:])
        clamped = Rounding(last.scale, last.zero_point, *limits)
        if self.sum is None:
            return replace(self, rounding=clamped)
        return replace(self, sum=self.sum._replace(rounding=clamped))

    def size(self, margins: Margins | None) -> int:
        """Return the bytes of the result, with those that tiles may read past it."""
        shape = self._result_shape()
        return shape.images * prod(shape.map(margins).sizes) * shape.channels + SLACK

    def place(self, memory: Bytes, margins: Margins | None) -> Place:
        """Return the result as a view into its map."""
        shape = self._result_shape()
        whole = shape.map(margins)
        maps = memory[: len(memory) - SLACK].reshape(shape.images, *whole.sizes, shape.channels)
        inside = tuple(slice(a, a + n) for a, n in zip(whole.lead, shape.spatial, strict=True))
        return Place(memory, margins, self._tensor(maps[:, *inside]))

    def _result_shape(self) -> _Shape:
        return _Shape(self.source.images, self.weight.sums.size, self.window.out)

    @property
    def _last(self) -> Rounding:
        """The rounding of the result."""
        return self.rounding if self.sum is None else self.sum.rounding

    def _tensor(self, rows: Array) -> Any:
        """Return (N, ..., C) as the result."""
        rounding = self._last
        y = rows.transpose(self._to_result) if self.window.out else rows.reshape(self._sizes)
        return QTensor(y, rounding.scale, rounding.zero_point)

    # ---- binding

    def bind(self, operands: tuple[Place | None, ...], result: Place | None) -> Callable[..., Any]:
        """Return the function of the run."""
        whole = self._result_shape().map(None if result is None else result.margins)
        read, walk = self._in_place(operands[0], whole) or self._reader(whole)
        add = None if self.sum is None else self._adder(operands[1])
        size = self.size(None if result is None else result.margins) - SLACK
        run = self._job(walk, size).run
        if result is None:
            return self._fresh(read, run, add, size)
        y = result.memory[:size]
        borders = self._borders(y, whole)
        tensor = result.tensor
        zero_point = int(self._last.zero_point)

        def placed(x: QTensor, *others: QTensor) -> Any:
            run(read(x), y, None if add is None else add(*others))
            for border in borders:
                border.fill(zero_point)
            return tensor

        return placed

    def _fresh(
        self,
        read: Callable[[QTensor], Bytes],
        run: Callable[..., None],
        add: Callable[..., Other] | None,
        size: int,
    ) -> Callable[..., Any]:
        """Return a function whose result is new."""
        shape = self._result_shape()
        rows = (shape.images, *shape.spatial, shape.channels)

        def fresh(x: QTensor, *others: QTensor) -> Any:
            y = np.empty(size + SLACK, np.uint8)[:size]  # a sum may read past it
            run(read(x), y, None if add is None else add(*others))
            return self._tensor(y.reshape(rows))

        return fresh

    def _job(self, walk: Walk, size: int) -> Job:
        whole = self.rounding.whole if self.sum is None else self.sum.whole(self.rounding)
        form = self.stage.form if self.sum is None else f"{self.stage.form}_added"
        common = (walk, self.weight, self._lanes(), form, whole, size)
        if self.weight.layout.depthwise:
            return job.depthwise(*common, self.window.out[-1], self.saturating)
        return job.dense(*common)

    @cached_property
    def _sizes(self) -> Ints:
        return self.result.sizes

    @cached_property
    def _to_rows(self) -> Ints:
        """Axes of (N, C, ...) that give (N, ..., C)."""
        return (0, *range(2, len(self.window.out) + 2), 1)

    @cached_property
    def _to_result(self) -> Ints:
        """Axes of (N, ..., C) that give (N, C, ...)."""
        last = len(self.window.out) + 1
        return (0, last, *range(1, last))

    def _lanes(self) -> Lanes:
        lanes = self.weight.lanes(
            self.stage.constants, stand_in(self.input), self.rounding.scale, self.bias
        )
        if self.sum is None:
            return lanes
        return lanes._replace(real=np.array([lanes.real[0], *self.sum.real], np.float32))

    def _walk(self, source: Map, pixel: int, result: Map) -> Walk:
        geometry = (source, self.window, self.weight.layout, self.weight.passes)
        return walk_of(self.source.images, pixel, *geometry, self.weight.sums.size, result)

    def _in_place(
        self, operand: Place | None, result: Map
    ) -> tuple[Callable[[QTensor], Bytes], Walk] | None:
        """Return what finds the input in its place, if all that the window sees lies there."""
        if operand is None or self.weight.copies > 1:
            return None
        source = self.source.map(operand.margins)
        if not source.holds(self.window):
            return None
        memory = operand.memory
        return lambda _x: memory, self._walk(source, self.source.channels, result)

    def _reader(self, result: Map) -> tuple[Callable[[QTensor], Bytes], Walk]:
        """Return what takes the input as it lies, or lays it into this thread's memory."""
        images, channels, spatial = self.source
        pixel = channels * self.weight.copies
        source = Map.dense(spatial)
        layout = self.weight.layout
        depth = layout.run * channels * layout.merged // layout.groups
        if not layout.reads_beyond and depth % 4 == 0 and source.holds(self.window):
            return lambda x: raveled(self._rows(x)), self._walk(source, pixel, result)
        source = Map(self.window.lead, self.window.seen)
        how = placement(spatial, source.sizes, self.window.lead, self.window.spread)
        shape = (images, *source.sizes, channels, self.weight.copies)
        _, zero_point = self.input.per_tensor()
        walk = self._walk(source, pixel, result)
        return lambda x: convolve.placed(self._rows(x), zero_point, how, shape), walk

    def _rows(self, x: QTensor) -> Array:
        integers = self._integers(x)
        if self.window.out:
            return channels_side_by_side(integers)
        return integers.reshape(self.source.images, self.source.channels)

    def _integers(self, x: Any) -> Array:
        return np.asarray(x.int_repr)

    def _adder(self, operand: Place | None) -> Callable[[QTensor], Other]:
        """Return what finds the other operand of the sum."""
        whole = self._result_shape().map(None if operand is None else operand.margins)
        seen = Map(self.window.lead, self.window.seen)
        walk = self._walk(seen, self.source.channels, whole)
        where = walk.places, walk.place_step
        if operand is not None:
            place = (operand.memory, *where)
            return lambda _x: place
        size = self.size(None)

        def beside(x: QTensor) -> Other:
            memory = np.empty(size, np.uint8)  # with bytes that tiles may read past it
            memory[: size - SLACK] = raveled(x.int_repr.transpose(self._to_rows))
            return (memory, *where)

        return beside

    def _borders(self, y: Bytes, whole: Map) -> list[Bytes]:
        """Return the margins of the result, which are filled after the tiles wrote over them."""
        shape = self._result_shape()
        how = placement(shape.spatial, whole.sizes, whole.lead, (1,) * len(shape.spatial))
        maps = y.reshape(shape.images, *whole.sizes, shape.channels)
        assert how.borders is not None
        return [maps[border] for border in how.borders]


# Layers that a weight keeps for calls without a plan.
KEPT = 4


def ready(
    x: QTensor,
    weight: QTensor,
    bias: npt.NDArray[np.float32] | None,
    how: tuple[Any, ...],
    make: Callable[[PackedWeight], Layer | None],
) -> Callable[[QTensor], QTensor] | None:
    """Return the function of a layer that a packed weight keeps from the last calls, or makes.

    ``how`` holds all that it depends on beside the operands. None where the weight is not
    packed, or ``make`` finds no layer.
    """
    if not isinstance(weight, PackedWeight):
        return None
    key = (x.shape, x.scale, x.zero_point, how, None if bias is None else bias.tobytes())
    if key in weight.ready:
        known: Callable[[QTensor], QTensor] | None = weight.ready[key]
        return known
    layer = make(weight)
    function = None if layer is None else layer.bind((None,), None)
    if len(weight.ready) >= KEPT:
        weight.ready.clear()
    weight.ready[key] = function
    return function


def stand_in(x: TensorType) -> QTensor:
    """Return a tensor of a type, for what depends on its shape and parameters only.

    It takes no memory.
    """
    scale, zero_point = x.per_tensor()
    values = np.broadcast_to(x.dtype.storage.type(0), x.sizes)
    return QTensor(values, scale, zero_point, None, x.dtype)


def prepare(
    x: Operand,
    weight: Operand,
    bias: Operand,
    window: Window | None,
    stage: Stage,
    sums: Sums,
    rounding: Rounding,
    result: TensorType,
    target: Target,
) -> Layer | None:
    """Bind a layer whose weight is packed; None if the tiles do not do it.

    ``window`` is None for a linear, whose rows are images without axes.
    """
    ready = isinstance(x, TensorType) and isinstance(weight, PackedWeight)
    if not ready or isinstance(bias, TensorType) or result.dtype != quint8:
        return None
    assert isinstance(x, TensorType)
    assert isinstance(weight, PackedWeight)
    assert not isinstance(bias, QTensor)
    sizes = x.sizes
    if x.qparams is None or stage.loop is not None or prod(sizes) == 0:
        return None
    if not convolve.is_tiled(weight, sums):
        return None
    source = _Shape(prod(sizes[:-1]), sizes[-1], ())
    if window is not None:
        source = _Shape(sizes[0], sizes[1], tuple(sizes[2:]))
    nothing = Window((), (), (), (), (), ())
    return Layer(
        *(source, result, x, weight, bias, window or nothing, stage, rounding),
        *(sums is Sums.PAIRED, target),
    )
