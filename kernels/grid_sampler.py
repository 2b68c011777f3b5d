"""``aten::grid_sampler_2d`` of a quantized image: bilinear values at given places."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, QTensor
from refquant.ir.target import TORCH_ENGINES
from refquant.ir.types import TensorType, format_shape, quint8
from refquant.kernels import checks
from refquant.kernels.jit import jit

ZEROS, BORDER, REFLECTION = 0, 1, 2
_ONE, _TWO = np.float32(1), np.float32(2)


def reference(
    input: QTensor,
    grid: Array,
    interpolation_mode: int = 0,
    padding_mode: int = 0,
    align_corners: bool = False,
) -> QTensor:
    r"""Interpolate between the four integers around each place of a grid.

    A coordinate :math:`g` from -1 to 1 spans the image: :math:`x = (g + 1) / 2 \cdot (W - 1)`
    with ``align_corners``, else :math:`x = ((g + 1) W - 1) / 2`. Beyond it padding takes the
    zero point (0), the border (1), or what is reflected there (2). The integers of the corners,
    zero point included, times the weights are added from the upper left to the lower right, row
    by row, and rounded half to even. All of it is float32, each operation rounded.

    Parameters
    ----------
    input : QTensor, quint8 (N, C, H, W), quantized per tensor
        Images.
    grid : float32 (N, h, w, 2)
        Finite coordinates x and y.
    interpolation_mode : int
        Must be 0, bilinear.
    padding_mode : int
        0, 1 or 2.
    align_corners : bool
        Whether -1 and 1 are the centres of the corner pixels, not their outer edges.

    Returns
    -------
    QTensor (N, C, h, w), contiguous, with the parameters of the input

    Raises
    ------
    VerifyError
        If types, shapes or modes do not fit.

    Notes
    -----
    Every engine gives the same.

    Examples
    --------
    >>> image = QTensor(np.uint8([[[[10, 20], [30, 41]]]]), 0.5, 0)
    >>> reference(image, np.float32([[[[0, 0], [-0.5, -0.5]]]])).int_repr
    array([[[[25, 10]]]], dtype=uint8)
    """
    q = input.int_repr
    height, width = q.shape[2:]
    with np.errstate(invalid="ignore"):
        x = _places(grid[..., 0], width, padding_mode, align_corners)
        y = _places(grid[..., 1], height, padding_mode, align_corners)
    left, top = np.floor(x), np.floor(y)
    total = np.zeros((*q.shape[:2], *grid.shape[1:3]), np.float32)
    batch = np.arange(len(q))[:, None, None]
    for row, high in ((top, top + _ONE - y), (top + _ONE, y - top)):
        for column, wide in ((left, left + _ONE - x), (left + _ONE, x - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = np.where(inside, row, 0).astype(int), np.where(inside, column, 0).astype(int)
            values = np.moveaxis(q.transpose(0, 2, 3, 1)[(batch, *at)], -1, 1)
            values = np.where(inside[:, None], values, np.uint8(int(input.zero_point)))
            total += values.astype(np.float32) * (wide * high)[:, None]
    return input.with_int_repr(np.rint(total).astype(np.uint8))


def _places(g: Array, length: int, padding: int, align: bool) -> Array:
    size = np.float32(length)
    x = (g + _ONE) / _TWO * (size - _ONE) if align else ((g + _ONE) * size - _ONE) / _TWO
    if padding == REFLECTION:
        low, span = (np.float32(0), size - _ONE) if align else (np.float32(-0.5), size)
        if span == 0:
            x = np.zeros_like(x)
        else:
            beyond = np.abs(x - low)
            extra, flips = np.fmod(beyond, span), np.floor(beyond / span)
            x = np.where(flips % 2 == 0, extra + low, span - extra + low)
    if padding != ZEROS:
        x = np.minimum(size - _ONE, np.maximum(x, np.float32(0)))
    return np.asarray(x)


def infer(
    input: TensorType,
    grid: TensorType,
    interpolation_mode: int = 0,
    padding_mode: int = 0,
    align_corners: bool = False,
) -> TensorType:
    """Check operands and modes; the grid gives height and width."""
    op = "grid_sampler_2d"
    checks.per_tensor(op, input, (quint8,))
    checks.is_float32(op, grid, "grid")
    if input.rank != 4 or grid.rank != 4 or grid.shape[3] != 2 or grid.shape[0] != input.shape[0]:
        raise VerifyError(
            f"{op}: expected [N, C, H, W] and a grid [N, h, w, 2], got "
            f"{format_shape(input.shape)} and {format_shape(grid.shape)}"
        )
    if 0 in input.shape[1:]:
        raise VerifyError(f"{op}: {input} is empty")
    if interpolation_mode != 0:
        raise VerifyError(f"{op}: interpolation_mode must be 0, got {interpolation_mode}")
    if padding_mode not in (ZEROS, BORDER, REFLECTION):
        raise VerifyError(f"{op}: padding_mode must be 0, 1 or 2, got {padding_mode}")
    return input.with_shape((*input.shape[:2], *grid.shape[1:3]))


@jit
def _place(g: np.float32, length: int, padding: int, align: bool) -> np.float32:
    one, two, size = np.float32(1), np.float32(2), np.float32(length)
    if align:
        x = np.float32(np.float32(np.float32(g + one) / two) * np.float32(size - one))
    else:
        x = np.float32(np.float32(np.float32(np.float32(g + one) * size) - one) / two)
    if padding == 2:
        low = np.float32(0) if align else np.float32(-0.5)
        span = np.float32(size - one) if align else size
        if span == 0:
            x = np.float32(0)
        else:
            beyond = np.float32(abs(np.float32(x - low)))
            flips = np.int64(np.floor(np.float32(beyond / span)))
            extra = np.float32(np.fmod(beyond, span))
            x = np.float32(extra + low) if flips % 2 == 0 else np.float32(span - extra) + low
    if padding != 0:
        x = min(np.float32(size - one), max(x, np.float32(0)))
    return np.float32(x)


@jit
def _fill(q: Any, grid: Any, zero_point: int, padding: int, align: bool, out: Any) -> None:
    height, width = q.shape[2], q.shape[3]
    weights = np.empty(4, np.float32)
    for n in range(out.shape[0]):
        for i in range(out.shape[2]):
            for j in range(out.shape[3]):
                x = _place(grid[n, i, j, 0], width, padding, align)
                y = _place(grid[n, i, j, 1], height, padding, align)
                left, top = np.int64(np.floor(x)), np.int64(np.floor(y))
                right_part = np.float32(x - np.float32(left))
                left_part = np.float32(np.float32(left + 1) - x)
                lower_part = np.float32(y - np.float32(top))
                upper_part = np.float32(np.float32(top + 1) - y)
                weights[0] = left_part * upper_part
                weights[1] = right_part * upper_part
                weights[2] = left_part * lower_part
                weights[3] = right_part * lower_part
                for c in range(out.shape[1]):
                    total = np.float32(0)
                    for corner in range(4):
                        row, column = top + corner // 2, left + corner % 2
                        value = np.float32(zero_point)
                        if 0 <= row < height and 0 <= column < width:
                            value = np.float32(q[n, c, row, column])
                        total = np.float32(total + np.float32(value * weights[corner]))
                    out[n, c, i, j] = np.uint8(np.rint(total))


def kernel(
    input: QTensor,
    grid: Array,
    interpolation_mode: int = 0,
    padding_mode: int = 0,
    align_corners: bool = False,
) -> QTensor:
    """Compute :func:`reference` place by place."""
    out = np.empty((*input.shape[:2], *grid.shape[1:3]), np.uint8)
    q = np.ascontiguousarray(input.int_repr)
    places = np.ascontiguousarray(grid)
    _fill(q, places, int(input.zero_point), padding_mode, align_corners, out)
    return input.with_int_repr(out)


_IMAGE = QTensor(np.array([[[[10, 20], [30, 42]]]], np.uint8), 0.5, 7)
_GRID = np.array([[[[0, 0], [-1, -1], [2, 0.5], [0.25, -1]]]], np.float32)

OPS = (
    Op(
        name="aten::grid_sampler_2d",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=("pytorch/aten/src/ATen/native/GridSampler.cpp::_grid_sampler_2d_cpu_quantized",),
        cases=(
            Case("zeros", (_IMAGE, _GRID), {}, [[[[26, 8, 7, 12]]]], "25.5 goes to 26"),
            Case(
                *("corners", (_IMAGE, _GRID), {"align_corners": True}),
                *([[[[26, 10, 22, 16]]]], "the centres of the corners"),
            ),
            Case(
                *("border", (_IMAGE, _GRID), {"padding_mode": 1}),
                *([[[[26, 10, 42, 18]]]], "the nearest pixel"),
            ),
            Case(
                *("reflection", (_IMAGE, _GRID), {"padding_mode": 2}),
                *([[[[26, 10, 36, 18]]]], "back into the image"),
            ),
        ),
    ),
)
