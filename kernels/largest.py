"""The largest of a few rows of bytes, held in registers until all have been seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from refquant.kernels.llvm import (
    BYTES,
    I8,
    I64,
    call,
    constant,
    data_of,
    load,
    new_function,
    store,
    vector,
)
from refquant.kernels.registers import LANES

Bytes = npt.NDArray[Any]
STEP = 4 * LANES


# Windows whose loops are unrolled.
UNROLLED = ((2, 2), (3, 3))


def _function(module: ir.Module, signed: bool) -> ir.Function:
    """Emit ``y[o, c] = max(x[o * step + d * plane + h * row + w * pixel + c])`` over d, h, w."""
    arguments = [BYTES, *[I64] * 9, BYTES]
    function, new = new_function(module, f"refquant_largest_{signed}", arguments)
    if not new:
        return function
    b = ir.IRBuilder(function.append_basic_block("entry"))
    x, outputs, step, planes, plane, rows, row, pixels, pixel, channels, y = function.args
    name, lowest = ("smax", -128) if signed else ("umax", 0)

    def larger(kind: ir.Type, best: ir.Value, pointer: ir.Value, offset: ir.Value) -> ir.Value:
        value = load(b, pointer, offset, kind)
        return call(b, f"llvm.{name}.v{kind.count}i8", kind, best, value)

    def window(kind: ir.Type, begin: ir.Value) -> ir.Value:
        with b.goto_entry_block():
            best = b.alloca(kind)
        b.store(constant(kind, lowest), best)
        with cgutils.for_range(b, planes) as d:
            in_plane = b.gep(begin, [b.mul(d.index, plane)])
            with cgutils.for_range(b, rows) as h:
                in_row = b.gep(in_plane, [b.mul(h.index, row)])
                with cgutils.for_range(b, pixels) as w:
                    offset = b.mul(w.index, pixel)
                    b.store(larger(kind, b.load(best), in_row, offset), best)
        return b.load(best)

    def unrolled(kind: ir.Type, shape: tuple[int, int], begin: ir.Value) -> ir.Value:
        best = constant(kind, lowest)
        height, width = shape
        for h in range(height):
            in_row = b.gep(begin, [b.mul(I64(h), row)])
            for w in range(width):
                best = larger(kind, best, in_row, b.mul(I64(w), pixel))
        return best

    def is_window(height: int, width: int) -> ir.Value:
        pairs = ((planes, 1), (rows, height), (pixels, width))
        same = [b.icmp_unsigned("==", have, I64(want)) for have, want in pairs]
        return b.and_(same[0], b.and_(same[1], same[2]))

    def block(kind: ir.Type, at: ir.Value, of_window: Callable[[ir.Value], ir.Value]) -> None:
        with cgutils.for_range(b, outputs) as output:
            begin = b.gep(x, [b.add(at, b.mul(output.index, step))])
            best = of_window(begin)
            store(b, best, y, b.add(at, b.mul(output.index, channels)))

    def blocks(kind: ir.Type, of_window: Callable[[ir.Value], ir.Value]) -> None:
        """Blocks of a width; the last one overlaps its neighbour."""
        width = I64(kind.count)
        with cgutils.for_range(b, b.udiv(channels, width)) as part:
            block(kind, b.mul(part.index, width), of_window)
        with b.if_then(b.icmp_unsigned("!=", b.urem(channels, width), I64(0))):
            block(kind, b.sub(channels, width), of_window)

    for width in (STEP, STEP // 2, STEP // 4, 4, 1):
        kind = vector(I8, width)
        with b.if_then(b.icmp_unsigned(">=", channels, I64(width))):
            for shape in UNROLLED:
                with b.if_then(is_window(*shape)):
                    blocks(kind, partial(unrolled, kind, shape))
                    b.ret_void()
            blocks(kind, partial(window, kind))
            b.ret_void()
    b.ret_void()
    return function


@intrinsic  # type: ignore[misc,untyped-decorator,unused-ignore]
def _largest(
    _typing: Any,
    x: Any,
    x0: Any,
    outputs: Any,
    step: Any,
    planes: Any,
    plane: Any,
    rows: Any,
    row: Any,
    pixels: Any,
    pixel: Any,
    channels: Any,
    y: Any,
    y0: Any,
) -> Any:
    i64 = nb.types.int64
    signature = nb.types.void(x, *[i64] * 10, y, i64)

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds = signature.args
        function = _function(b.module, kinds[0].dtype.signed)
        source = data_of(context, b, kinds[0], args[0], args[1])
        into = data_of(context, b, kinds[11], args[11], args[12])
        b.call(function, [source, *args[2:11], into])
        return context.get_dummy_value()

    return signature, codegen


def _largest_in_numpy(
    x: Bytes,
    x0: int,
    outputs: int,
    step: int,
    planes: int,
    plane: int,
    rows: int,
    row: int,
    pixels: int,
    pixel: int,
    channels: int,
    y: Bytes,
    y0: int,
) -> None:
    for o in range(outputs):
        best = np.full(channels, np.iinfo(x.dtype).min, x.dtype)
        for d in range(planes):
            for h in range(rows):
                for w in range(pixels):
                    first = x0 + o * step + d * plane + h * row + w * pixel
                    np.maximum(best, x[first : first + channels], out=best)
        y[y0 + o * channels : y0 + (o + 1) * channels] = best


largest = _largest_in_numpy if nb.config.DISABLE_JIT else _largest
