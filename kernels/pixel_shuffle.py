"""``aten::pixel_shuffle``, ``pixel_unshuffle`` and ``channel_shuffle``."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor
from refquant.ir.types import TensorType
from refquant.kernels.checks import known_length
from refquant.kernels.layout import c_order, channels_last, is_channels_last
from refquant.kernels.movement import example, move, moved, movement


def pixel_shuffle(x: Tensor, upscale_factor: int) -> Any:
    """Turn groups of channels into blocks of pixels.

    Parameters
    ----------
    x : tensor (..., C * r * r, H, W)
        Quantization parameters are kept.
    upscale_factor : int
        The side ``r`` of a block.

    Returns
    -------
    Tensor (..., C, H * r, W * r)

    Raises
    ------
    VerifyError
        If the channels are not a multiple of ``r * r``.

    Examples
    --------
    >>> pixel_shuffle(np.arange(4).reshape(4, 1, 1), 2)
    array([[[0, 1],
            [2, 3]]])
    """
    r = upscale_factor

    def spread(array: Array) -> Array:
        *lead, channels, h, w = array.shape
        blocks = array.reshape(*lead, channels // (r * r), r, r, h, w)
        n = len(lead)
        order = (*range(n), n, n + 3, n + 1, n + 4, n + 2)
        result = blocks.transpose(order).reshape(*lead, channels // (r * r), h * r, w * r)
        keeps = is_channels_last(array) and not isinstance(x, QTensor)
        return channels_last(result) if keeps else c_order(result)

    return move(x, spread)


def infer_pixel_shuffle(x: TensorType, upscale_factor: int) -> TensorType:
    """Divide the channels."""
    lead, (channels, h, w) = x.shape[:-3], _image(x, "pixel_shuffle")
    if upscale_factor < 1 or channels % upscale_factor**2:
        raise VerifyError(
            f"pixel_shuffle: {channels} channels are not a multiple of {upscale_factor} squared"
        )
    r = upscale_factor
    return moved(x, (*lead, channels // (r * r), h * r, w * r), "pixel_shuffle")


def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Any:
    """Turn blocks of pixels into groups of channels, the inverse of :func:`pixel_shuffle`.

    Parameters
    ----------
    x : tensor (..., C, H * r, W * r)
        Quantization parameters are kept.
    downscale_factor : int
        The side ``r`` of a block.

    Returns
    -------
    Tensor (..., C * r * r, H, W)

    Raises
    ------
    VerifyError
        If height or width is not a multiple of ``r``.

    Examples
    --------
    >>> pixel_unshuffle(np.arange(4).reshape(1, 2, 2), 2).ravel()
    array([0, 1, 2, 3])
    """
    r = downscale_factor

    def collect(array: Array) -> Array:
        *lead, channels, h, w = array.shape
        blocks = array.reshape(*lead, channels, h // r, r, w // r, r)
        n = len(lead)
        order = (*range(n), n, n + 2, n + 4, n + 1, n + 3)
        result = blocks.transpose(order).reshape(*lead, channels * r * r, h // r, w // r)
        keeps = is_channels_last(array) and not isinstance(x, QTensor)
        return channels_last(result) if keeps else c_order(result)

    return move(x, collect)


def infer_pixel_unshuffle(x: TensorType, downscale_factor: int) -> TensorType:
    """Divide height and width."""
    r = downscale_factor
    lead, (channels, h, w) = x.shape[:-3], _image(x, "pixel_unshuffle")
    if r < 1 or h % r or w % r:
        raise VerifyError(f"pixel_unshuffle: {h} x {w} pixels are not multiples of {r}")
    return moved(x, (*lead, channels * r * r, h // r, w // r), "pixel_unshuffle")


def channel_shuffle(x: Tensor, groups: int) -> Any:
    """Interleave groups of channels.

    Parameters
    ----------
    x : tensor (N, C, ...)
        Quantization parameters are kept.
    groups : int
        Number of groups.

    Returns
    -------
    Tensor of the shape of ``x``

    Raises
    ------
    VerifyError
        If the channels are not a multiple of ``groups``.

    Examples
    --------
    >>> channel_shuffle(np.arange(4).reshape(1, 4, 1), 2).ravel()
    array([0, 2, 1, 3])
    """

    def interleave(array: Array) -> Array:
        n, channels, *rest = array.shape
        parts = array.reshape(n, groups, channels // groups, *rest)
        result = parts.swapaxes(1, 2).reshape(array.shape)
        return channels_last(result) if is_channels_last(array) else c_order(result)

    return move(x, interleave)


def infer_channel_shuffle(x: TensorType, groups: int) -> TensorType:
    """Check the number of channels."""
    if x.rank < 3:
        raise VerifyError(f"channel_shuffle: expected at least 3 dimensions, got {x}")
    channels = known_length("channel_shuffle", x.shape[1], 1)
    if groups < 1 or channels % groups:
        raise VerifyError(f"channel_shuffle: {channels} channels are not a multiple of {groups}")
    return moved(x, x.shape, "channel_shuffle")


def _image(x: TensorType, op: str) -> tuple[int, int, int]:
    if x.rank < 3:
        raise VerifyError(f"{op}: expected at least 3 dimensions, got {x}")
    channels, h, w = (known_length(op, size, i) for i, size in enumerate(x.shape[-3:]))
    return channels, h, w


_X = example(1, 4, 1, 2)
_SOURCE = "pytorch/aten/src/ATen/native/PixelShuffle.cpp"

OPS = (
    movement(
        "aten::pixel_shuffle",
        pixel_shuffle,
        infer_pixel_shuffle,
        Case("block", (_X,), {"upscale_factor": 2}, [[[[0, 2, 1, 3], [4, 6, 5, 7]]]], "2 x 2"),
        source=_SOURCE,
    ),
    movement(
        "aten::pixel_unshuffle",
        pixel_unshuffle,
        infer_pixel_unshuffle,
        Case(
            "block",
            (example(1, 1, 2, 2),),
            {"downscale_factor": 2},
            np.arange(4).reshape(1, 4, 1, 1),
            "2 x 2",
        ),
        source=_SOURCE,
    ),
    movement(
        "aten::channel_shuffle",
        channel_shuffle,
        infer_channel_shuffle,
        Case(
            "halves",
            (example(1, 4, 1),),
            {"groups": 2},
            np.array([0, 2, 1, 3]).reshape(1, 4, 1),
            "alternate",
        ),
        source="pytorch/aten/src/ATen/native/ChanelShuffle.cpp",
    ),
)
