"""A call of a compiled tile with all its arguments, divided among threads where it is large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels import threads
from refquant.kernels.depthwise import DEPTHWISE
from refquant.kernels.packing import Lanes, PackedWeight, ceil
from refquant.kernels.registers import ISA, LANES, PANEL, SHAPES
from refquant.kernels.tile import MULTIPLY
from refquant.kernels.walk import Walk

Array = npt.NDArray[Any]

# What the tile takes for the operand that only sums have: memory, places, step of a block.
NOTHING = np.zeros(0, np.uint8), np.zeros(0, np.int64), 0
# And for lanes that all take the same four bytes.
PLAIN = np.zeros(0, np.int64), np.zeros(0, np.int32)
TALL = SHAPES[ISA].tall
# Below so many rows each, threads divide the channels: each then reads a part of the weight.
FEW_ROWS = 8 * TALL
# A product of a depthwise layer takes as long as so many of a dense one.
DEPTHWISE_COST = 8


@dataclass(frozen=True)
class Job:
    """A compiled function, most of its arguments, and how the work can be divided.

    Parameters
    ----------
    function : callable
        A tile's driver.
    before, after : tuple
        The arguments between input and result, and those after the result.
    walk : Walk
        The rows.
    size : int
        Elements of the result.
    panels : int
        Panels of output channels in each group; 0 for a depthwise layer.
    divisible : bool
        Whether the panels can be divided, too.
    work : int
        Products.
    """

    function: Callable[..., None]
    before: tuple[Any, ...]
    after: tuple[Any, ...]
    walk: Walk
    size: int
    panels: int
    divisible: bool
    work: int

    def run(self, memory: Array, y: Array, other: tuple[Any, ...] | None = None) -> None:
        """Do the work, in as many threads as it is worth.

        Parameters
        ----------
        memory : uint8 array
            The map that is read.
        y : array
            The flat map of the result.
        other : tuple, optional
            Memory, places and step of a sum's other operand.
        """
        count = threads.parts(self.work)
        after = self.after if other is None else (*self.after[:2], *other)
        if count == 1:
            self.function(memory, *self.before, y, *after, *self._all)
            return
        arguments = (memory, *self.before, y, *after)
        threads.run(self.function, [(*arguments, *part) for part in self.divided(count)])

    @cached_property
    def _all(self) -> tuple[int, ...]:
        return self._rows(0, self.walk.total)

    def divided(self, count: int) -> list[tuple[int, ...]]:
        """Return up to ``count`` ranges of rows, or of panels where the rows are few."""
        total = self.walk.total
        if self.divisible and total < count * FEW_ROWS and self.panels >= count:
            ends = [self.panels * i // count for i in range(count + 1)]
            return [(0, total, self.size, first, last) for first, last in pairwise(ends)]
        step = TALL if self.panels else 1
        each = ceil(-(-total // count), step)
        return [self._rows(i, min(i + each, total)) for i in range(0, total, each)]

    def _rows(self, begin: int, end: int) -> tuple[int, ...]:
        panels = (0, self.panels) if self.panels else ()
        return (begin, end, self.walk.bound(end, self.size), *panels)


def depthwise(
    walk: Walk,
    weight: PackedWeight,
    lanes: Lanes,
    form: str,
    whole: Array,
    size: int,
    pixels: int,
    saturating: bool,
) -> Job:
    """Return the job of a depthwise layer whose lines have ``pixels`` pixels."""
    outputs = weight.sums.size
    before = (
        *(walk.step, walk.rows, walk.pixel_step, pixels, walk.taps, walk.depth4),
        *(weight.data, outputs, *lanes, whole),
    )
    work = walk.total * pixels * walk.taps.size * outputs * DEPTHWISE_COST
    after = (walk.places, walk.place_step)
    return Job(DEPTHWISE[form, saturating], before, after, walk, size, 0, False, work)


@lru_cache(maxsize=256)
def _gather(inputs: int, each: int, outputs: int) -> tuple[Array, Array]:
    """Return where each vector of channels begins to read, and which four bytes a lane takes.

    ``inputs`` and ``each`` are the channels of a group.
    """
    first = np.minimum(np.arange(0, ceil(outputs, PANEL), LANES), outputs - 1)
    lanes = np.arange(LANES) // each * (inputs // 4) if each < LANES else np.zeros(LANES)
    return first // each * inputs, lanes.astype(np.int32)


def dense(
    walk: Walk, weight: PackedWeight, lanes: Lanes, form: str, whole: Array, size: int
) -> Job:
    """Return the job of any other layer."""
    layout, outputs = weight.layout, weight.sums.size
    groups = 1 if layout.gathered else layout.groups // layout.merged
    inputs = weight.shape[0] if layout.transposed else weight.shape[1] * layout.groups
    gather = PLAIN
    if layout.gathered:
        gather = _gather(4 * walk.depth4, outputs // layout.groups, outputs)
    before = (
        *(walk.step, walk.rows, walk.taps, walk.depth4, *gather),
        *(weight.data, groups, inputs // groups, outputs // groups, *lanes, whole),
    )
    panels = -(-(outputs // groups) // PANEL)
    work = walk.total * walk.taps.size * walk.depth4 * 4 * outputs
    after = (walk.places, walk.place_step, *NOTHING)
    function = MULTIPLY[form, layout.gathered]
    return Job(function, before, after, walk, size, panels, groups == 1, work)
