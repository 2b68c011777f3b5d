"""Bytes of channels in C order laid side by side: (N, C, ...) to (N, ..., C)."""

from __future__ import annotations

from math import prod
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.extending import intrinsic

from refquant.kernels.jit import jit
from refquant.kernels.llvm import BYTES, I8, I64, data_of, load, new_function, pick, store, vector

Bytes = npt.NDArray[np.uint8]
EDGE = 16  # rows and columns of a block


def _block_function(module: ir.Module) -> ir.Function:
    """Emit the transposition of a block: four rounds, each of which interleaves halves."""
    function, new = new_function(module, "refquant_transpose_16", [BYTES, I64, BYTES, I64])
    if not new:
        return function
    x, pitch, y, step = function.args
    b = ir.IRBuilder(function.append_basic_block("entry"))
    row = vector(I8, EDGE)
    rows = [load(b, x, b.mul(pitch, I64(i)), row) for i in range(EDGE)]
    half = EDGE // 2
    low = [i // 2 + EDGE * (i % 2) for i in range(EDGE)]
    high = [half + lane for lane in low]
    for _ in range(4):
        rows = [
            pick(b, rows[i], rows[i + half], lanes) for i in range(half) for lanes in (low, high)
        ]
    for i, part in enumerate(rows):
        store(b, part, y, b.mul(step, I64(i)))
    b.ret_void()
    return function


@intrinsic  # type: ignore[misc,untyped-decorator,unused-ignore]
def _block(_typing: Any, x: Any, x0: Any, pitch: Any, y: Any, y0: Any, step: Any) -> Any:
    i64 = nb.types.int64
    signature = nb.types.void(x, i64, i64, y, i64, i64)

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds = signature.args
        from_, into = (data_of(context, b, kinds[i], args[i], args[i + 1]) for i in (0, 3))
        b.call(_block_function(b.module), [from_, args[2], into, args[5]])
        return context.get_dummy_value()

    return signature, codegen


def _block_in_numpy(x: Bytes, x0: int, pitch: int, y: Bytes, y0: int, step: int) -> None:
    each = np.arange(EDGE)
    y[y0 + step * each[:, None] + each] = x[x0 + pitch * each[:, None] + each].T


if nb.config.DISABLE_JIT:  # intrinsics exist only in compiled code
    _block = _block_in_numpy


@jit
def _transpose(x: Bytes, images: int, channels: int, pixels: int, y: Bytes) -> None:
    """Turn (images, channels, pixels), at least a block, into (images, pixels, channels)."""
    for image in range(images):
        start = image * channels * pixels
        p = 0
        while p < pixels:
            p = min(p, pixels - EDGE)  # do a few again: same values
            c = 0
            while c < channels:
                c = min(c, channels - EDGE)
                first = start + c * pixels + p
                _block(x, first, pixels, y, start + p * channels + c, channels)
                c += EDGE
            p += EDGE


def channels_side_by_side(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return (N, C, ...) as (N, ..., C): large bytes in C order copied, all else as a view.

    Examples
    --------
    >>> x = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    >>> channels_side_by_side(x)
    array([[[0, 3],
            [1, 4],
            [2, 5]]], dtype=uint8)
    """
    images, channels, *spatial = x.shape
    pixels = prod(spatial)
    small = channels < EDGE or pixels < EDGE
    if small or not x.flags.c_contiguous or x.dtype != np.uint8:
        return np.moveaxis(x, 1, -1)
    y = np.empty((images, *spatial, channels), np.uint8)
    _transpose(x.reshape(-1), images, channels, pixels, y.reshape(-1))
    return y
