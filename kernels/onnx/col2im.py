"""``onnx::Col2Im``: overlapping blocks added up to an image of any rank."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.onnx.operator import operator, plain

Ints = tuple[int, ...]


def blocks(image: Ints, block: Ints, dilations: Ints, pads: Ints, strides: Ints) -> Ints:
    """Return how many blocks lie along each dimension of an image.

    Examples
    --------
    >>> blocks((5, 5), (1, 5), (1, 1), (0, 0, 0, 0), (1, 1))
    (5, 1)
    """
    rank = len(image)
    return tuple(
        (n + pads[i] + pads[rank + i] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1
        for i, n in enumerate(image)
    )


def reference(
    input: Array, image_shape: Ints, block_shape: Ints, dilations: Ints, pads: Ints, strides: Ints
) -> Array:
    """Return the image to which the blocks add up; the inverse of taking blocks.

    Block *j* is column *j*; its elements are the rows of a channel. Elements in the padding are
    lost, and those of several blocks are added, in the order of the places in a block.

    Parameters
    ----------
    input : tensor (batch, channels * block size, number of blocks)
        The columns.
    image_shape, block_shape, dilations, strides : tuple of int
        One entry for each dimension of the image.
    pads : tuple of int
        What lies before each dimension, then what lies behind.

    Returns
    -------
    Tensor (batch, channels, *image_shape)

    Raises
    ------
    VerifyError
        If the numbers do not fit.

    Examples
    --------
    >>> reference(np.ones((1, 2, 3)), (4,), (2,), (1,), (0, 0), (1,))
    array([[[1., 2., 2., 1.]]])
    """
    rank, size = len(image_shape), prod(block_shape)
    counts = blocks(image_shape, block_shape, dilations, pads, strides)
    batch, rows, _ = input.shape
    columns = input.reshape(batch, rows // size, size, *counts)
    around = [n + pads[i] + pads[rank + i] for i, n in enumerate(image_shape)]
    whole = np.zeros((batch, rows // size, *around), input.dtype)
    for i, place in enumerate(product(*map(range, block_shape))):
        where = tuple(
            slice(at * d, at * d + (count - 1) * step + 1, step)
            for at, d, count, step in zip(place, dilations, counts, strides, strict=True)
        )
        whole[(slice(None), slice(None), *where)] += columns[:, :, i]
    kept = tuple(slice(pads[i], pads[i] + n) for i, n in enumerate(image_shape))
    return np.ascontiguousarray(whole[(slice(None), slice(None), *kept)])


def infer(
    input: TensorType,
    image_shape: Ints,
    block_shape: Ints,
    dilations: Ints,
    pads: Ints,
    strides: Ints,
) -> TensorType:
    """Check the geometry against the number of rows and columns."""
    plain("Col2Im", input)
    rank = len(image_shape)
    given: dict[str, Any] = {"block_shape": block_shape, "dilations": dilations}
    for name, values in {**given, "strides": strides, "image_shape": image_shape}.items():
        if len(values) != rank or min(values, default=1) < 1:
            raise VerifyError(f"Col2Im: {name} needs {rank} entries >= 1, got {list(values)}")
    if len(pads) != 2 * rank or min(pads, default=0) < 0 or not rank:
        raise VerifyError(f"Col2Im: pads needs {2 * rank} entries >= 0, got {list(pads)}")
    if input.rank != 3:
        raise VerifyError(f"Col2Im: expected rank 3, got {input}")
    counts = blocks(image_shape, block_shape, dilations, pads, strides)
    rows, columns = input.with_shape(input.shape[1:]).sizes
    if min(counts) < 1 or columns != prod(counts) or rows % prod(block_shape):
        raise VerifyError(f"Col2Im: blocks {counts} of {block_shape} do not fit {input}")
    return TensorType(input.dtype, (input.shape[0], rows // prod(block_shape), *image_shape))


_GEOMETRY = {"block_shape": (2,), "dilations": (1,), "strides": (1,)}

OPS = (
    operator(
        "Col2Im",
        reference,
        infer,
        Case(
            "overlap",
            (np.array([[[1, 2], [3, 4]]], np.float32),),
            {**_GEOMETRY, "image_shape": (3,), "pads": (0, 0)},
            [[[1, 5, 4]]],
            "added",
        ),
        Case(
            "padding",
            (np.array([[[1, 2], [3, 4]]], np.float32),),
            {**_GEOMETRY, "image_shape": (2,), "pads": (1, 0)},
            [[[5, 4]]],
            "1 is lost",
        ),
    ),
)
