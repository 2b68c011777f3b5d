"""How torch splits a pointwise kernel into threads, vector bodies and scalar tails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from refquant.ir.target import Isa, Target
from refquant.ir.types import DType, qint32
from refquant.kernels import rounding
from refquant.kernels.jit import jit
from refquant.kernels.layout import is_dense
from refquant.kernels.rounding import F32, Integers
from refquant.kernels.rounding_jit import AFTER, BEFORE, FUSED
from refquant.kernels.tensor_iterator import from_loop_order, loops

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

GRAIN = 32_768


def vector_width(dtype: DType) -> int:
    """Elements per step of ATen's quantized vector loop: 64 for 8-bit types, 16 for qint32."""
    return 64 if dtype.storage.itemsize == 1 else 16


def chunks(n: int, target: Target, width: int = 64) -> list[tuple[int, int, int]]:
    """Return ``(start, body_end, end)`` of each thread's part of ``n`` elements.

    Elements ``start..body_end`` go through the vector kernel, ``body_end..end`` through the
    scalar one, whose roundings differ.

    Examples
    --------
    >>> chunks(100, Target())
    [(0, 64, 100)]
    >>> chunks(100_000, Target(threads=2))
    [(0, 49984, 50000), (50000, 99984, 100000)]
    """
    if n and (n <= GRAIN or target.threads == 1):
        return [(0, n // width * width, n)]
    parts = min(target.threads, -(-n // GRAIN)) if n > GRAIN else 1
    size = -(-n // parts) if n else 0
    ends = [(start, min(start + size, n)) for start in range(0, n, size)] if n else []
    return [(start, start + (end - start) // width * width, end) for start, end in ends]


def float_width(target: Target) -> int:
    """Elements per step of ATen's float32 vector loop: two registers.

    Examples
    --------
    >>> float_width(Target(isa="avx2"))
    16
    """
    return {Isa.AVX2: 16, Isa.DEFAULT: 16}.get(target.isa, 32)


def same_memory(out: Array, *inputs: Array) -> bool:
    """Whether all arrays are dense with the same strides, so that one flat loop covers them."""
    steps = [stride // out.itemsize for stride in out.strides]
    return is_dense(out) and all(
        x.shape == out.shape
        and all(
            n == 1 or step == stride // x.itemsize
            for n, step, stride in zip(out.shape, steps, x.strides, strict=True)
        )
        for x in inputs
    )


def body_mask(out: Array, inputs: Sequence[Array], target: Target, width: int = 64) -> Mask:
    """Return which elements of a pointwise kernel's result come from its vector body.

    The body of a loop is its first ``n // width * width`` elements, where the innermost loop is
    contiguous in every operand, or constant in one input and contiguous in all others; other
    loops are scalar throughout. A thread's share of the elements starts and ends loops anew.

    Examples
    --------
    >>> x = np.zeros((2, 100), np.uint8)
    >>> int(body_mask(x, [x], Target()).sum())
    192
    >>> int(body_mask(x, [x, np.broadcast_to(x[0], x.shape)], Target()).sum())
    128
    """
    nest = loops([out, *(np.broadcast_to(x, out.shape) for x in inputs)])
    expected = [out.itemsize, *(x.itemsize for x in inputs)]
    wrong = [i for i, (a, b) in enumerate(zip(nest.strides[0], expected, strict=True)) if a != b]
    constant = len(wrong) == 1 and wrong[0] > 0 and nest.strides[0][wrong[0]] == 0
    if wrong and not constant:
        return np.zeros(out.shape, np.bool_)
    share = max((end - start for start, _, end in chunks(out.size, target)), default=1)
    return from_loop_order(run_mask(out.size, nest.shape[0], share, width), nest, out.shape)


def run_mask(n: int, row: int, share: int, width: int) -> Mask:
    """Return which of ``n`` elements are in vectors of ``width``.

    A run of vectors starts anew at every multiple of ``row`` and of ``share``, a thread's part.

    Examples
    --------
    >>> run_mask(6, 3, 6, 2).astype(int)
    array([1, 1, 0, 1, 1, 0])
    """
    mask = np.zeros(n, np.bool_)
    fill(
        mask,
        partial(_in_vectors, n=n, row=row, share=share, width=width),
        np.arange(n, dtype=np.int32),
    )
    return mask


def _in_vectors(position: Array, n: int, row: int, share: int, width: int) -> Mask:
    first = np.maximum(position // row * row, position // share * share)
    last = np.minimum((position // row + 1) * row, (position // share + 1) * share)
    inside: Mask = position - first < (np.minimum(last, n) - first) // width * width
    return inside


def fill(out: Array, formula: Callable[..., Any], *inputs: Array) -> None:
    """Fill ``out`` with an elementwise formula of inputs that broadcast to it.

    A block at a time, so that a formula's float temporaries do not count in memory.

    Examples
    --------
    >>> out = np.empty((2, 2), np.uint8)
    >>> fill(out, lambda a, b: a + b, np.uint8([[1], [2]]), np.uint8([10, 20]))
    >>> out
    array([[11, 21],
           [12, 22]], dtype=uint8)
    """
    blocks: Any = np.nditer(
        [*inputs, out],
        ["external_loop", "buffered", "zerosize_ok"],
        [["readonly"]] * len(inputs) + [["writeonly"]],  # type: ignore[arg-type]
        buffersize=1 << 14,
    )
    with blocks:
        for *block, part in blocks:
            part[...] = formula(*block)


def dequantize_body(q: Integers, scale: float, zero_point: int, target: Target) -> F32:
    """Dequantize as ATen's vector bodies do."""
    if target.fused_multiply_add:
        return rounding.dequantize_fused(q, scale, zero_point)
    return rounding.dequantize_plain(q, scale, zero_point)


def quantize_body(x: F32, scale: float, zero_point: int, dtype: DType, target: Target) -> Integers:
    """Quantize as ATen's vector bodies do."""
    if dtype == qint32:
        return rounding.quantize_before(x, scale, zero_point, dtype)
    if target.fused_multiply_add:
        return rounding.quantize_after(x, scale, zero_point, dtype)
    return rounding.quantize_fused(x, scale, zero_point, dtype)


def body_rule(dtype: DType, target: Target) -> int:
    """Return the rule of :func:`quantize_body` for the compiled kernels."""
    if dtype == qint32:
        return BEFORE
    return AFTER if target.fused_multiply_add else FUSED


@jit
def limit(q: Any, low: int, high: int, out: Any) -> None:
    """Limit contiguous integers to ``[low, high]``, compiled: NumPy's maximum is slow."""
    # Comparisons in the dtype itself become single instructions; min and max widen.
    least, most = q.dtype.type(low), q.dtype.type(high)
    for i in range(q.size):
        value = q[i]
        value = least if value < least else value
        out[i] = most if value > most else value
