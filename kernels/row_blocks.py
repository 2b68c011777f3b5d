"""The largest or the sum of a few rows of bytes, in registers until all have been seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from refquant.kernels.llvm import (
    BYTES,
    F32,
    I8,
    I32,
    I64,
    call,
    constant,
    data_of,
    load,
    new_function,
    splat,
    store,
    vector,
)
from refquant.kernels.registers import LANES

Bytes = npt.NDArray[Any]
STEP = 4 * LANES


# Windows whose loops are unrolled.
UNROLLED = ((2, 2), (3, 3))
# Of a vector of results so far and one of bytes, with a scale and a zero point.
Step = Callable[[ir.IRBuilder, ir.Value, ir.Value, ir.Value, ir.Value], ir.Value]


class _Reducer(NamedTuple):
    """How the elements of a window become one.

    Parameters
    ----------
    name : str
        For the function's name.
    result : ir.Type
        What is stored for each channel.
    first : int
        The result of no elements.
    step : function
        Builds a vector of results from the ones so far and a vector of bytes.
    """

    name: str
    result: ir.Type
    first: int
    step: Step


def _maximum(name: str) -> Step:
    def step(
        b: ir.IRBuilder, best: ir.Value, value: ir.Value, _scale: ir.Value, _zero: ir.Value
    ) -> ir.Value:
        return call(b, f"llvm.{name}.v{value.type.count}i8", value.type, best, value)

    return step


def _sum_of(widen: str) -> Step:
    def step(
        b: ir.IRBuilder, total: ir.Value, value: ir.Value, _scale: ir.Value, _zero: ir.Value
    ) -> ir.Value:
        return b.add(total, getattr(b, widen)(value, total.type))

    return step


def _real_sum_of(widen: str) -> Step:
    def step(
        b: ir.IRBuilder, total: ir.Value, value: ir.Value, scale: ir.Value, zero: ir.Value
    ) -> ir.Value:
        lanes = value.type.count
        whole = getattr(b, widen)(value, vector(I32, lanes))
        difference = b.sitofp(b.sub(whole, splat(b, zero, lanes)), total.type)
        return b.fadd(total, b.fmul(difference, splat(b, scale, lanes)))

    return step


# By what is computed and whether bytes are signed.
_REDUCERS = {
    ("largest", False): _Reducer("umax", I8, 0, _maximum("umax")),
    ("largest", True): _Reducer("smax", I8, -128, _maximum("smax")),
    ("sums", False): _Reducer("usum", I32, 0, _sum_of("zext")),
    ("sums", True): _Reducer("ssum", I32, 0, _sum_of("sext")),
    ("real_sums", False): _Reducer("ureal", F32, 0, _real_sum_of("zext")),
    ("real_sums", True): _Reducer("sreal", F32, 0, _real_sum_of("sext")),
}


def _function(module: ir.Module, reducer: _Reducer) -> ir.Function:
    """Emit what :data:`largest` and :data:`sums` call."""
    into = ir.PointerType(reducer.result)
    arguments = [BYTES, *[I64] * 9, into, F32, I32]
    function, new = new_function(module, f"refquant_{reducer.name}", arguments)
    if not new:
        return function
    b = ir.IRBuilder(function.append_basic_block("entry"))
    x, outputs, step, planes, plane, rows, row, pixels, pixel, channels, y = function.args[:11]
    parameters = function.args[11:]

    def start(width: int) -> ir.Constant:
        return constant(vector(reducer.result, width), reducer.first)

    def with_bytes(lanes: int, so_far: ir.Value, pointer: ir.Value, offset: ir.Value) -> ir.Value:
        value = load(b, pointer, offset, vector(I8, lanes))
        return reducer.step(b, so_far, value, *parameters)

    def window(lanes: int, begin: ir.Value) -> ir.Value:
        with b.goto_entry_block():
            so_far = b.alloca(vector(reducer.result, lanes))
        b.store(start(lanes), so_far)
        with cgutils.for_range(b, planes) as d:
            in_plane = b.gep(begin, [b.mul(d.index, plane)])
            with cgutils.for_range(b, rows) as h:
                in_row = b.gep(in_plane, [b.mul(h.index, row)])
                with cgutils.for_range(b, pixels) as w:
                    offset = b.mul(w.index, pixel)
                    b.store(with_bytes(lanes, b.load(so_far), in_row, offset), so_far)
        return b.load(so_far)

    def unrolled(lanes: int, shape: tuple[int, int], begin: ir.Value) -> ir.Value:
        so_far = start(lanes)
        height, width = shape
        for h in range(height):
            in_row = b.gep(begin, [b.mul(I64(h), row)])
            for w in range(width):
                so_far = with_bytes(lanes, so_far, in_row, b.mul(I64(w), pixel))
        return so_far

    def is_window(height: int, width: int) -> ir.Value:
        pairs = ((planes, 1), (rows, height), (pixels, width))
        same = [b.icmp_unsigned("==", have, I64(want)) for have, want in pairs]
        return b.and_(same[0], b.and_(same[1], same[2]))

    def block(at: ir.Value, of_window: Callable[[ir.Value], ir.Value]) -> None:
        with cgutils.for_range(b, outputs) as output:
            begin = b.gep(x, [b.add(at, b.mul(output.index, step))])
            store(b, of_window(begin), y, b.add(at, b.mul(output.index, channels)))

    def blocks(lanes: int, of_window: Callable[[ir.Value], ir.Value]) -> None:
        """Blocks of a width; the last one overlaps its neighbour."""
        width = I64(lanes)
        with cgutils.for_range(b, b.udiv(channels, width)) as part:
            block(b.mul(part.index, width), of_window)
        with b.if_then(b.icmp_unsigned("!=", b.urem(channels, width), I64(0))):
            block(b.sub(channels, width), of_window)

    for lanes in (STEP, STEP // 2, STEP // 4, 4, 1):
        with b.if_then(b.icmp_unsigned(">=", channels, I64(lanes))):
            for shape in UNROLLED:
                with b.if_then(is_window(*shape)):
                    blocks(lanes, partial(unrolled, lanes, shape))
                    b.ret_void()
            blocks(lanes, partial(window, lanes))
            b.ret_void()
    b.ret_void()
    return function


def _intrinsic(name: str) -> Callable[..., None]:
    @intrinsic  # type: ignore[misc,untyped-decorator,unused-ignore]
    def reduce(
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

        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
            kinds = signature.args
            function = _function(b.module, _REDUCERS[name, kinds[0].dtype.signed])
            source = data_of(context, b, kinds[0], args[0], args[1])
            into = data_of(context, b, kinds[11], args[11], args[12])
            b.call(function, [source, *args[2:11], into, F32(0), I32(0)])
            return context.get_dummy_value()

        return signature, codegen

    return cast(Callable[..., None], reduce)


@intrinsic  # type: ignore[misc,untyped-decorator,unused-ignore]
def _real_sums(
    _typing: Any,
    x: Any,
    x0: Any,
    rows: Any,
    row: Any,
    channels: Any,
    y: Any,
    y0: Any,
    scale: Any,
    zero_point: Any,
) -> Any:
    i64 = nb.types.int64
    signature = nb.types.void(x, i64, i64, i64, i64, y, i64, nb.types.float32, nb.types.int32)

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        kinds = signature.args
        function = _function(b.module, _REDUCERS["real_sums", kinds[0].dtype.signed])
        source = data_of(context, b, kinds[0], args[0], args[1])
        into = data_of(context, b, kinds[5], args[5], args[6])
        one, none = I64(1), I64(0)
        windows = (one, none, one, none, args[2], args[3], one, none, args[4])
        b.call(function, [source, *windows, into, *args[7:]])
        return context.get_dummy_value()

    return signature, codegen


def _in_numpy(name: str) -> Callable[..., None]:
    def reduce(
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
        reducer = _REDUCERS[name, x.dtype.kind == "i"]
        operation = np.maximum if name == "largest" else np.add
        for o in range(outputs):
            so_far = np.full(channels, reducer.first, y.dtype)
            for d, h, w in np.ndindex(planes, rows, pixels):
                first = x0 + o * step + d * plane + h * row + w * pixel
                so_far = operation(so_far, x[first : first + channels])
            y[y0 + o * channels : y0 + (o + 1) * channels] = so_far

    return reduce


def _real_sums_in_numpy(
    x: Bytes,
    x0: int,
    rows: int,
    row: int,
    channels: int,
    y: Bytes,
    y0: int,
    scale: np.float32,
    zero_point: int,
) -> None:
    total = np.zeros(channels, np.float32)
    for first in range(x0, x0 + rows * row, row):
        whole = x[first : first + channels].astype(np.int32) - zero_point
        total += whole.astype(np.float32) * np.float32(scale)
    y[y0 : y0 + channels] = total


# Called as ``largest(x, x0, outputs, step, planes, plane, rows, row, pixels, pixel, channels, y,
# y0)``: windows of ``planes`` times ``rows`` times ``pixels`` rows of ``channels`` bytes, the
# first of which begins at ``x0``; the windows begin ``step`` apart. ``y`` holds bytes for
# ``largest`` and int32 for ``sums``.
largest, sums = map(_in_numpy if nb.config.DISABLE_JIT else _intrinsic, ("largest", "sums"))
# ``real_sums(x, x0, rows, row, channels, y, y0, scale, zero_point)`` adds dequantized rows one
# after the other in float32.
real_sums = _real_sums_in_numpy if nb.config.DISABLE_JIT else _real_sums
