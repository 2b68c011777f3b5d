"""``aten::unfold`` and ``aten::im2col``: sliding windows side by side."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, Tensor
from refquant.ir.types import TensorType
from refquant.kernels.checks import dimension as counted
from refquant.kernels.checks import known_length
from refquant.kernels.movement import example, move, moved, movement

Pair = tuple[int, int]


def unfold(self: Tensor, dimension: int, size: int, step: int) -> Any:
    """Return the windows along a dimension; their elements become the last dimension.

    Parameters
    ----------
    self : any tensor
        Quantization parameters are kept.
    dimension : int
        Which one; negative counts from the end.
    size : int
        Length of a window.
    step : int, >= 1
        Distance between the starts of windows.

    Returns
    -------
    A view of ``self``.

    Raises
    ------
    VerifyError
        If no window fits, or ``step`` is not positive.

    Examples
    --------
    >>> unfold(np.arange(5), 0, 3, 2)
    array([[0, 1, 2],
           [2, 3, 4]])
    """

    def windows(array: Array) -> Array:
        axis = dimension % array.ndim
        every = np.lib.stride_tricks.sliding_window_view(array, size, axis)
        return every[(*(slice(None),) * axis, slice(None, None, step))]

    return move(self, windows)


def infer_unfold(self: TensorType, dimension: int, size: int, step: int) -> TensorType:
    """Count the windows."""
    at = counted("unfold", dimension, self.rank)
    length = known_length("unfold", self.shape[at], at)
    if step < 1 or not 0 < size <= length:
        raise VerifyError(f"unfold: size {size} and step {step} do not fit a length of {length}")
    count = (length - size) // step + 1
    return moved(self, (*self.shape[:at], count, *self.shape[at + 1 :], size), "unfold")


def im2col(
    self: Array,
    kernel_size: Pair,
    dilation: Pair = (1, 1),
    padding: Pair = (0, 0),
    stride: Pair = (1, 1),
) -> Array:
    """Return what a convolution multiplies: one column for each output pixel.

    Parameters
    ----------
    self : tensor (N, C, H, W), not quantized
        Padded with zeros.
    kernel_size, dilation, padding, stride : pair of int
        As of a convolution.

    Returns
    -------
    Tensor (N, C * kernel, pixels), contiguous

    Raises
    ------
    VerifyError
        If ``self`` is quantized or has another rank, or no window fits.

    Examples
    --------
    >>> im2col(np.arange(4.0).reshape(1, 1, 2, 2), (1, 2))
    array([[[0., 2.],
            [1., 3.]]])
    """
    n, c, *spatial = self.shape
    outputs = _outputs(tuple(spatial), kernel_size, dilation, padding, stride)
    padded = np.pad(self, [(0, 0), (0, 0), *((p, p) for p in padding)])
    columns = np.empty((n, c, *kernel_size, *outputs), self.dtype)
    for i, j in np.ndindex(*kernel_size):
        rows, across = (
            slice(t * d, t * d + (length - 1) * s + 1, s)
            for t, d, s, length in zip((i, j), dilation, stride, outputs, strict=True)
        )
        columns[:, :, i, j] = padded[:, :, rows, across]
    return columns.reshape(n, c * kernel_size[0] * kernel_size[1], -1)


def _outputs(
    spatial: tuple[Any, ...], kernel: Pair, dilation: Pair, padding: Pair, stride: Pair
) -> tuple[int, ...]:
    return tuple(
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, d, p, s in zip(spatial, kernel, dilation, padding, stride, strict=True)
    )


def infer_im2col(
    self: TensorType,
    kernel_size: Pair,
    dilation: Pair = (1, 1),
    padding: Pair = (0, 0),
    stride: Pair = (1, 1),
) -> TensorType:
    """Count the pixels."""
    if self.rank != 4 or self.dtype.is_quantized:
        raise VerifyError(f"im2col: expected (N, C, H, W), not quantized, got {self}")
    batch, *known = self.shape
    c, *spatial = (known_length("im2col", size, d + 1) for d, size in enumerate(known))
    outputs = _outputs(tuple(spatial), kernel_size, dilation, padding, stride)
    if min(outputs) < 1:
        raise VerifyError(f"im2col: kernel {kernel_size} does not fit {self}")
    depth = c * kernel_size[0] * kernel_size[1]
    return self.with_shape((batch, depth, outputs[0] * outputs[1]))


OPS = (
    movement(
        "aten::unfold",
        unfold,
        infer_unfold,
        Case(
            "step",
            (example(2, 5),),
            {"dimension": 1, "size": 2, "step": 3},
            [[[0, 1], [3, 4]], [[5, 6], [8, 9]]],
            "windows apart",
        ),
    ),
    movement(
        "aten::im2col",
        im2col,
        infer_im2col,
        Case(
            "padded",
            (example(1, 1, 2, 2),),
            {"kernel_size": (2, 1), "padding": (1, 0), "stride": (2, 1)},
            [[[0, 0, 2, 3], [0, 1, 0, 0]]],
            "zeros outside",
        ),
        source="pytorch/aten/src/ATen/native/Im2Col.cpp",
    ),
)
