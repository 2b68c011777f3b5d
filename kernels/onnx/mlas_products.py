"""``aten::matmul``, ``linear`` and convolutions of float32 as onnxruntime adds them up.

The orders are those of ``mlas_gemm.py``. A weight that is a constant is packed; a convolution
multiplies the filters by the windows, some columns at a time, and adds the bias last.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.kernels.onnx import mlas_gemm

F32 = npt.NDArray[np.float32]
Ints = tuple[int, ...]
# Multiplies two matrices: (a, b, length of a piece, start).
Multiply = Callable[[F32, F32, int, F32 | None], F32]


def product(
    a: F32, b: F32, start: F32 | None = None, multiply: Multiply = mlas_gemm.reference
) -> F32:
    """Return the product of two matrices that the model computes.

    Parameters
    ----------
    a, b : float32 (M, K), (K, N)
    start : float32 (M, N), optional
        What the first piece is added to.
    multiply : callable
        ``mlas_gemm.reference`` or ``mlas_gemm.gemm``.
    """
    if len(a) == 1:
        return mlas_gemm.row_product(a[0], b, None if start is None else start[0])[None]
    if b.shape[1] == 1:
        return mlas_gemm.dot_products(b[:, 0], a, None if start is None else start[:, 0])[:, None]
    return multiply(a, b, mlas_gemm.piece_of(b.shape[1], len(b)), start)


# ---- the operators of torch's names


def matmul(a: F32, b: F32, multiply: Multiply = mlas_gemm.reference) -> F32:
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


def linear(x: F32, weight: F32, bias: F32 | None, multiply: Multiply = mlas_gemm.reference) -> F32:
    """Return ``aten::linear`` of a constant weight."""
    rows = x.reshape(-1, x.shape[-1])
    start = None if bias is None else np.broadcast_to(bias, (len(rows), len(bias)))
    y = multiply(rows, weight.T, mlas_gemm.PACKED_PIECE, start)
    return y.reshape(*x.shape[:-1], len(weight))


def convolve(filters: F32, windows: F32, multiply: Multiply = mlas_gemm.reference) -> F32:
    """Return the filters of a group (OC, K) times the windows of an image (K, outputs)."""
    depth, outputs = windows.shape
    width, length = mlas_gemm.parts_of(outputs, depth)
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
    multiply: Multiply = mlas_gemm.reference,
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
