"""``onnx::DeformConv``: a convolution whose taps are moved, each by an offset of its own."""

from __future__ import annotations

from itertools import product as positions
from typing import Any

import numpy as np

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.checks import known_length
from refquant.kernels.onnx.operator import operator
from refquant.kernels.onnx.pools import output_length

Ints = tuple[int, ...]


def reference(
    X: Array,  # noqa: N803
    W: Array,  # noqa: N803
    offset: Array,
    B: Array | None = None,  # noqa: N803
    mask: Array | None = None,
    *,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    group: int,
    offset_group: int,
) -> Array:
    """Convolve images whose pixels are read between their places; outside is 0.

    Products are summed in NumPy's order.

    Parameters
    ----------
    X : float tensor (N, C, H, W)
    W : float tensor (OC, C / group, KH, KW)
    offset : float tensor (N, offset_group * KH * KW * 2, OH, OW)
        How far each tap is moved, down and to the right.
    B : float tensor (OC,), optional
    mask : float tensor (N, offset_group * KH * KW, OH, OW), optional
        Factors of the pixels that are read.
    strides, dilations : tuple of int
    pads : tuple of int
        Before both axes, then behind them.
    group, offset_group : int

    Returns
    -------
    float tensor (N, OC, OH, OW)

    Raises
    ------
    VerifyError
        If shapes do not fit.

    Examples
    --------
    >>> x, w = np.float32([[[[1, 2, 4]]]]), np.ones((1, 1, 1, 1), np.float32)
    >>> how = dict(strides=(1, 1), dilations=(1, 1), pads=(0,) * 4, group=1, offset_group=1)
    >>> right = np.float32([[[[0.5, 0.5, 0.5]], [[0.5, 0.5, 0.5]]]])
    >>> reference(x, w, right * np.float32([[[[0]], [[1]]]]), **how)
    array([[[[1.5, 3. , 2. ]]]], dtype=float32)
    """
    n, channels, height, width = X.shape
    outputs, per_group, *kernel = W.shape
    out = offset.shape[2:]
    moved = offset.reshape(n, offset_group, *kernel, 2, *out)
    factors = None if mask is None else mask.reshape(n, offset_group, *kernel, *out)
    rows = (np.arange(out[0]) * strides[0] - pads[0])[:, None]
    columns = np.arange(out[1]) * strides[1] - pads[1]
    maps = X.reshape(n, offset_group, channels // offset_group, height, width)
    filters = W.reshape(group, outputs // group, per_group, *kernel)
    total = np.zeros((n, group, outputs // group, *out), X.dtype)
    for i, j in positions(range(kernel[0]), range(kernel[1])):
        down = rows + i * dilations[0] + moved[:, :, i, j, 0]
        right = columns + j * dilations[1] + moved[:, :, i, j, 1]
        seen = _between(maps, down, right)
        if factors is not None:
            seen = seen * factors[:, :, None, i, j]
        split = seen.reshape(n, group, per_group, *out)
        total += np.einsum("goc,ngchw->ngohw", filters[..., i, j], split)
    y = total.reshape(n, outputs, *out)
    return y if B is None else y + B.reshape(-1, 1, 1)


def _between(maps: Array, down: Array, right: Array) -> Array:
    """Read (N, G, C, H, W) at the places (N, G, OH, OW); return (N, G, C, OH, OW)."""
    n, groups, _, height, width = maps.shape
    image = np.arange(n)[:, None, None, None]
    part = np.arange(groups)[None, :, None, None]
    top, left = np.floor(down), np.floor(right)
    result: Any = 0
    for row, row_weight in ((top, 1 - (down - top)), (top + 1, down - top)):
        for column, column_weight in ((left, 1 - (right - left)), (left + 1, right - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            y = np.clip(row, 0, height - 1).astype(np.int64)
            x = np.clip(column, 0, width - 1).astype(np.int64)
            pixels = np.moveaxis(maps[image, part, :, y, x], -1, 2)
            weight = np.where(inside, row_weight * column_weight, 0).astype(maps.dtype)
            result = result + pixels * weight[:, :, None]
    return np.asarray(result)


def infer(
    x: TensorType,
    w: TensorType,
    offset: TensorType,
    b: TensorType | None = None,
    mask: TensorType | None = None,
    *,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    group: int,
    offset_group: int,
) -> TensorType:
    """Check ranks, channels and the shapes of offsets and factors."""
    if x.rank != 4 or w.rank != 4:
        raise UnsupportedError(f"DeformConv of images only, got {x} and {w}")
    outputs, per_group, *kernel = w.sizes
    sizes = [known_length("DeformConv", n, i + 1) for i, n in enumerate(x.shape[1:])]
    channels = sizes[0]
    fits = group > 0 and offset_group > 0 and channels == per_group * group
    if not fits or outputs % group or channels % offset_group:
        raise VerifyError(f"DeformConv: {group} and {offset_group} groups do not fit {x} and {w}")
    ends = zip(pads[:2], pads[2:], strict=True)
    axes = zip(sizes[1:], kernel, strides, dilations, ends, strict=True)
    out = tuple(output_length(*axis, ceil_mode=False) for axis in axes)
    taps = offset_group * kernel[0] * kernel[1]
    for operand, count in ((offset, 2 * taps), (mask, taps)):
        if operand is not None and operand.shape != (x.shape[0], count, *out):
            raise VerifyError(f"DeformConv: expected {count} maps of {out}, got {operand}")
    if b is not None and b.shape != (outputs,):
        raise VerifyError(f"DeformConv: expected B [{outputs}], got {b}")
    return x.with_shape((x.shape[0], outputs, *out))


OPS = (
    operator(
        "DeformConv",
        reference,
        infer,
        Case(
            "half way",
            (
                np.array([[[[2, 4]]]], np.float32),
                np.ones((1, 1, 1, 1), np.float32),
                np.array([[[[0, 0]], [[0.5, 0.5]]]], np.float32),
                np.array([1], np.float32),
                np.array([[[[1, 0.5]]]], np.float32),
            ),
            {
                **{"strides": (1, 1), "dilations": (1, 1), "pads": (0, 0, 0, 0)},
                **{"group": 1, "offset_group": 1},
            },
            [[[[4, 2]]]],
            "between 2 and 4, between 4 and nothing",
        ),
    ),
)
