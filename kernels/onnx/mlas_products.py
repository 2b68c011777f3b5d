"""Float32 products in the order in which onnxruntime adds them up (MLAS, AVX512, one thread).

* A *chain* adds products one by one from 0, each with a fused multiply-add. A product of two
  matrices is one chain for each element, or, where there are more products than a block takes,
  a chain for each block; the sums of the blocks are added from the left. A constant right operand
  has blocks of 256, any other those of :func:`blocks`. What a Gemm adds comes first.
* One row times a matrix: four products at a time (then two, then one) are rounded and added from
  the left, and their sum is added to those before.
* A matrix times one column: eight sums side by side, which are then added in pairs.
* A convolution multiplies the filters by the windows, some columns at a time, with the same rules
  for each part, and adds the bias last.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels import rounding
from refquant.kernels.jit import fma, jit

F32 = npt.NDArray[np.float32]
Ints = tuple[int, ...]
# Multiplies two matrices, the products of one block: (a, b) -> sums.
Chain = Callable[[F32, F32], F32]
PACKED = 256


def blocks(columns: int, depth: int) -> Ints:
    """Return how many columns a part has, and how many products a chain.

    Examples
    --------
    >>> blocks(200, 600), blocks(17, 300), blocks(64, 9)
    ((128, 128), (32, 512), (1024, 16))
    """
    width, length = 128, 128
    if columns >= depth:
        while length // 2 >= depth:
            width, length = width * 2, length // 2
    else:
        while width > 16 and width // 2 >= columns:
            width, length = width // 2, length * 2
    return width, length


def chain(a: F32, b: F32) -> F32:
    """Return the product of two matrices as one chain for each element.

    Examples
    --------
    >>> chain(np.float32([[1, 2]]), np.float32([[3], [4]]))
    array([[11.]], dtype=float32)
    """
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(len(b)):
        total = rounding.fma(a[:, k : k + 1], b[k : k + 1], total)
    return total


def chain_compiled(a: F32, b: F32) -> F32:
    """Compute :func:`chain` in compiled loops."""
    total = np.zeros((len(a), b.shape[1]), np.float32)
    _chain(np.ascontiguousarray(a), np.ascontiguousarray(b), total)
    return total


@jit
def _chain(a: Any, b: Any, total: Any) -> None:
    for m in range(a.shape[0]):
        for k in range(a.shape[1]):
            factor = a[m, k]
            for n in range(b.shape[1]):
                total[m, n] = fma(factor, b[k, n], total[m, n])


def one_row(a: F32, b: F32, start: F32 | None = None) -> F32:
    """Return the product of a row (1, K) and a matrix.

    Examples
    --------
    >>> one_row(np.float32([[1, 2]]), np.float32([[3], [4]]))
    array([[11.]], dtype=float32)
    """
    total = np.zeros((1, b.shape[1]), np.float32) if start is None else start
    depth, k = len(b), 0
    while k < depth:
        count = 4 if depth - k >= 4 else 2 if depth - k >= 2 else 1
        part = a[:, k : k + 1] * b[k]
        for i in range(k + 1, k + count):
            part = part + a[:, i : i + 1] * b[i]
        total = part + total
        k += count
    return total


def one_column(a: F32, b: F32) -> F32:
    """Return the product of a matrix and a column (K, 1).

    Examples
    --------
    >>> one_column(np.float32([[1, 2]]), np.float32([[3], [4]]))
    array([[11.]], dtype=float32)
    """
    rows, depth = a.shape
    lanes = np.zeros((rows, 8), np.float32)
    for k in range(0, depth, 8):
        products = a[:, k : k + 8] * b[k : k + 8, 0]
        lanes[:, : products.shape[1]] += products
    low, high = lanes[:, :4], lanes[:, 4:]
    fours = rows // 4 * 4
    y = np.empty((rows, 1), np.float32)
    y[:fours, 0] = (_in_turn(low) + _in_turn(high))[:fours]
    rest = slice(fours, fours + (rows - fours) // 2 * 2)
    crossed = [half[rest, 2:] + half[rest, :2] for half in (low, high)]
    pairs = crossed[0] + crossed[1]
    y[rest, 0] = pairs[:, 0] + pairs[:, 1]
    if rows % 2:
        sums = [(half[-1, 0] + half[-1, 1]) + (half[-1, 2] + half[-1, 3]) for half in (low, high)]
        y[-1, 0] = sums[0] + sums[1]
    return y


def _in_turn(lanes: F32) -> F32:
    return np.asarray(((lanes[:, 0] + lanes[:, 1]) + lanes[:, 2]) + lanes[:, 3])


def product(a: F32, b: F32, start: F32 | None = None, multiply: Chain = chain) -> F32:
    """Return the product of two matrices that the model computes.

    Parameters
    ----------
    a, b : float32 (M, K), (K, N)
    start : float32 (M, N), optional
        What the first block is added to.
    multiply : callable
        :func:`chain` or :func:`chain_compiled`.
    """
    if len(a) == 1:
        return one_row(a, b, start)
    if b.shape[1] == 1:
        y = one_column(a, b)
        return y if start is None else y + start
    return _in_blocks(a, b, blocks(b.shape[1], len(b))[1], start, multiply)


def product_of_constant(a: F32, b: F32, start: F32 | None = None, multiply: Chain = chain) -> F32:
    """Return the product with a constant right operand, as :func:`product`."""
    return _in_blocks(a, b, PACKED, start, multiply)


def _in_blocks(a: F32, b: F32, length: int, start: F32 | None, multiply: Chain) -> F32:
    total = start
    for k in range(0, len(b), length):
        part = multiply(a[:, k : k + length], b[k : k + length])
        total = part if total is None else total + part
    return np.zeros((len(a), b.shape[1]), np.float32) if total is None else total


# ---- the operators of torch's names


def matmul(a: F32, b: F32, multiply: Chain = chain) -> F32:
    """Return ``aten::matmul`` of computed operands, matrix by matrix."""
    left = a[None] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    if right.ndim == 2:
        y = product(left.reshape(-1, left.shape[-1]), right, None, multiply)
        y = y.reshape(*left.shape[:-1], right.shape[-1])
    else:
        outer = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        lefts = np.broadcast_to(left, (*outer, *left.shape[-2:])).reshape(-1, *left.shape[-2:])
        rights = np.broadcast_to(right, (*outer, *right.shape[-2:]))
        rights = rights.reshape(-1, *right.shape[-2:])
        pairs = zip(lefts, rights, strict=True)
        parts = [product(one, other, None, multiply) for one, other in pairs]
        y = np.stack(parts) if parts else np.zeros((0, lefts.shape[1], rights.shape[2]), a.dtype)
        y = y.reshape(*outer, lefts.shape[1], rights.shape[2])
    y = y[..., 0, :] if a.ndim == 1 else y
    return y[..., 0] if b.ndim == 1 else y


def linear(x: F32, weight: F32, bias: F32 | None, multiply: Chain = chain) -> F32:
    """Return ``aten::linear`` of a constant weight."""
    rows = x.reshape(-1, x.shape[-1])
    start = None if bias is None else np.broadcast_to(bias, (len(rows), len(bias)))
    y = product_of_constant(rows, weight.T, start, multiply)
    return y.reshape(*x.shape[:-1], len(weight))


def convolve(filters: F32, windows: F32, multiply: Chain = chain) -> F32:
    """Return the filters of a group (OC, K) times the windows of an image (K, outputs)."""
    depth, outputs = windows.shape
    width, length = blocks(outputs, depth)
    parts = []
    for n in range(0, outputs, width):
        total: F32 | None = None
        for k in range(0, depth, length):
            block = windows[k : k + length, n : n + width]
            part = product(filters[:, k : k + length], block, None, multiply)
            total = part if total is None else total + part
        assert total is not None
        parts.append(total)
    return np.concatenate(parts, axis=1)


def conv(
    x: F32,
    weight: F32,
    bias: F32 | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    multiply: Chain = chain,
) -> F32:
    """Return ``aten::conv1d``, ``conv2d`` or ``conv3d``."""
    images, channels, *_ = x.shape
    filters = weight.reshape(groups, weight.shape[0] // groups, -1)
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    kernel = weight.shape[2:]
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    axes = tuple(range(2, x.ndim))
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    every: tuple[Any, ...] = tuple(slice(None, None, s) for s in stride)
    taps: tuple[Any, ...] = tuple(slice(None, None, d) for d in dilation)
    seen = seen[(slice(None), slice(None), *every, *taps)]
    out = seen.shape[2 : x.ndim]
    # (N, C, outputs, taps) as (N, groups, C / groups x taps, outputs).
    rows = seen.reshape(images, channels, prod(out), -1).swapaxes(2, 3)
    rows = rows.reshape(images, groups, -1, prod(out))
    y = np.empty((images, groups, filters.shape[1], prod(out)), np.float32)
    for image in range(images):
        for group in range(groups):
            y[image, group] = convolve(filters[group], rows[image, group], multiply)
    y = y.reshape(images, weight.shape[0], *out)
    return y if bias is None else y + bias.reshape(-1, *(1,) * len(out))
