"""Convolution by the compiled tiles: where the input is read, and the calls."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.kernels import job
from refquant.kernels.accumulate import Sums
from refquant.kernels.convolve_pairs import convolve_in_pairs
from refquant.kernels.layout import raveled
from refquant.kernels.packing import Lanes, PackedWeight
from refquant.kernels.registers import SLACK
from refquant.kernels.requantize import UNREAD, Rounding, Stage, finish_sums
from refquant.kernels.transpose import channels_side_by_side
from refquant.kernels.walk import Map, Placement, Window, place, placement, walk_of

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int32]

# Below this size one fill of the whole map costs less than finding its borders.
SMALL_MAP = 1 << 15

_local = threading.local()


def buffer(size: int) -> Bytes:
    """Return this thread's scratch memory: it grows to the largest map and is used again."""
    kept: Bytes | None = getattr(_local, "buffer", None)
    if kept is None or kept.size < size:
        kept = np.empty(size, np.uint8)
        _local.buffer = kept
    return kept


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
    if stage.loop is None and is_tiled(weight, sums):
        lanes = weight.lanes(stage.constants, x, rounding.scale, bias)
        _run(x, weight, window, lanes, stage.form, rounding.whole, y, sums is Sums.PAIRED)
    else:
        total = convolution_sums(x, weight, window, sums)
        constants = stage.constants(float(x.scale), weight.scale, rounding.scale, bias, outputs)
        finish_sums(stage, np.moveaxis(total, 1, -1), constants, rounding, y)
    return np.moveaxis(y, -1, 1)


def convolution_sums(
    x: QTensor, weight: PackedWeight, window: Window, sums: Sums = Sums.EXACT
) -> npt.NDArray[np.int32]:
    """Return the sums of a convolution, (N, OC, ...) with channels-last memory."""
    y = np.empty((x.shape[0], *window.out, weight.sums.size), np.int32)
    if is_tiled(weight, sums):
        lanes = weight.lanes(None, x, 1.0, None)
        _run(x, weight, window, lanes, "sum", UNREAD, y, sums is Sums.PAIRED)
    else:
        convolve_in_pairs(x, weight, window, sums, y)
    return np.moveaxis(y, -1, 1)


def is_tiled(weight: PackedWeight, sums: Sums) -> bool:
    """Whether the tile does these sums; of saturating ones, those of depthwise layers."""
    layout = weight.layout
    depthwise = layout.depthwise and not layout.transposed
    return sums is Sums.EXACT or (sums is Sums.PAIRED and depthwise)


def _run(
    x: QTensor,
    weight: PackedWeight,
    window: Window,
    lanes: Lanes,
    form: str,
    whole: Ints,
    y: Array,
    saturating: bool,
) -> None:
    """Lead the compiled tile over (N, C, ...), into (N, ..., OC) in C order."""
    if y.size == 0:
        return
    layout = weight.layout
    images, channels, *spatial = x.shape
    outputs, copies = weight.sums.size, weight.copies
    source = Map.dense(tuple(spatial))
    depth = layout.run * channels * layout.merged // layout.groups
    is_direct = not layout.reads_beyond and depth % 4 == 0 and source.holds(window)
    rows = channels_side_by_side(x.int_repr)
    if is_direct:
        memory = raveled(rows)
    else:
        source = Map(window.lead, window.seen)
        how = placement(tuple(spatial), source.sizes, window.lead, window.spread)
        memory = placed(rows, int(x.zero_point), how, (images, *source.sizes, channels, copies))
    geometry = (source, window, layout, weight.passes, outputs, Map.dense(window.out))
    walk = walk_of(images, channels * copies, *geometry)
    common = (walk, weight, lanes, form, whole, y.size)
    work = (
        job.depthwise(*common, window.out[-1], saturating)
        if layout.depthwise
        else job.dense(*common)
    )
    work.run(memory, y.reshape(-1))


def placed(rows: Array, zero_point: int, how: Placement, shape: tuple[int, ...]) -> Bytes:
    """Lay an (N, ..., C) input into a padded map in this thread's memory."""
    size = prod(shape)
    memory = buffer(size + SLACK)
    if how.borders and size < SMALL_MAP:
        how = how._replace(borders=None)
    place(rows, zero_point, how, memory[:size].reshape(shape))
    return memory
