"""The compiled kernel of ``onnx::MaxPool``: integers in windows along one or two axes."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.jit import jit

Array = npt.NDArray[Any]
Ints = tuple[int, ...]


@jit
def _fill(x: Any, window: Any, low: int, by_columns: bool, y: Any, places: Any) -> None:
    height, width = x.shape[1:]
    count = y.shape[2]
    most, at = np.empty(count, np.int32), np.empty(count, np.int32)
    stride, pad = window[1, 1], window[3, 1]
    next_row, next_column = (1, height) if by_columns else (width, 1)
    for m in range(x.shape[0]):
        for i in range(y.shape[1]):
            most[:] = low - 1  # below every element, so that the first one is taken
            at[:] = -1
            for k in range(window[0, 0]):
                row = i * window[1, 0] - window[3, 0] + k * window[2, 0]
                if row < 0 or row >= height:
                    continue
                for n in range(window[0, 1]):
                    left = n * window[2, 1] - pad
                    first = max(0, -(left // stride))
                    end = min(count, (width - 1 - left) // stride + 1)
                    for j in range(first, end):
                        column = j * stride + left
                        value = np.int32(x[m, row, column])
                        larger = value > most[j]
                        most[j] = value if larger else most[j]
                        place = np.int32(row * next_row + column * next_column)
                        at[j] = place if larger else at[j]
            for j in range(count):
                y[m, i, j] = max(most[j], low)
                places[m, i, j] = at[j] + m * height * width


def max_windows(
    x: Array,
    kernel_shape: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    outputs: Ints,
    *,
    by_columns: bool,
) -> tuple[Array, Array]:
    """Return the largest integer of each window, and its position in the whole of ``x``.

    Examples
    --------
    >>> x = np.uint8([[[1, 3, 2]]])
    >>> max_windows(x, (2,), (1,), (1,), (0, 0), (2,), by_columns=False)
    (array([[[3, 3]]], dtype=uint8), array([[[1, 1]]]))
    """
    rank = len(kernel_shape)
    one = (1,) * (2 - rank)
    window = np.array(
        [
            (*one, *kernel_shape),
            (*one, *strides),
            (*one, *dilations),
            (*(0,) * (2 - rank), *pads[:rank]),
        ]
    )
    maps = np.ascontiguousarray(x).reshape(prod(x.shape[:2]), *one, *x.shape[2:])
    y = np.empty((len(maps), *one, *outputs), x.dtype)
    places = np.empty(y.shape, np.int64)
    _fill(maps, window, int(np.iinfo(x.dtype).min), by_columns, y, places)
    shape = (*x.shape[:2], *outputs)
    return y.reshape(shape), places.reshape(shape)
