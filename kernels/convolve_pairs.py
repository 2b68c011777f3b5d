"""Linear and convolution where products are added in pairs that saturate to 16 bits."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.qtensor import QTensor
from refquant.kernels.accumulate import Sums, weight_zero_points
from refquant.kernels.layout import raveled
from refquant.kernels.packing import Layout, PackedWeight, ceil
from refquant.kernels.pairs import multiply_pairs
from refquant.kernels.walk import Window, placement

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]


def convolve_in_pairs(
    x: QTensor, weight: PackedWeight, window: Window, sums: Sums, y: Array
) -> None:
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
        multiply_rows(rows, x, weight, in_taps, total, unseen)


def seen_rows(image: Array, layout: Layout, window: Window, fill: int, in_taps: bool) -> Bytes:
    """Return what each output of one image sees, (outputs, groups, K), in the weight's order."""
    kernel, stride, dilation, lead, spread, out = window
    sizes, channels = window.seen, image.shape[0]
    taken, placed, _ = placement(image.shape[1:], sizes, lead, spread)
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


def multiply_rows(
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
        *(raveled(rows), matrix.reshape(-1), groups, pairs, channels, int(x.zero_point)),
        *(weight.sums, zero_point),
        *(np.zeros(0, np.uint8) if unseen is None else unseen.reshape(-1), y.reshape(-1)),
    )
