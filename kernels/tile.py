"""The compiled core of linear and convolution: uint8 rows times packed int8 weights.

One *tile* holds a few rows times two vectors of output channels in registers, runs along K four
bytes at a time and rounds the sums to 8 bits (or to float32) before they leave the registers.
Rows are byte offsets into the input and K is cut into equal *segments*, so a matrix, a pointwise
convolution and a strided or dilated one are the same loop and no patches are copied.

The instruction that multiplies four bytes is chosen when the code is generated, see
``registers.py``; all choices are exact. Intrinsics and drivers share this file because Numba's
cache only notices changes in the file of the function that it caches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from refquant.kernels import tile_numpy
from refquant.kernels.jit import jit
from refquant.kernels.llvm import (
    BYTES,
    F32,
    FLOATS,
    I8,
    I16,
    I32,
    I64,
    INTS,
    LONGS,
    call,
    constant,
    data_of,
    load,
    new_function,
    pick,
    splat,
    store,
    vector,
)
from refquant.kernels.registers import ISA, SHAPES, VECTORS, depthwise_order

Array = npt.NDArray[Any]


def _widened_pairs(b: ir.IRBuilder, u: ir.Value, s: ir.Value) -> list[tuple[ir.Value, ir.Value]]:
    """Split bytes into even and odd ones, widened to int16: unsigned ``u``, signed ``s``."""
    wide = vector(I16, 2 * u.type.count)
    u, s = b.bitcast(u, wide), b.bitcast(s, wide)
    eight = constant(wide, 8)
    even = b.and_(u, constant(wide, 255)), b.ashr(b.shl(s, eight), eight)
    odd = b.lshr(u, eight), b.ashr(s, eight)
    return [even, odd]


def _add_neighbours(b: ir.IRBuilder, isa: str, x: ir.Value, y: ir.Value) -> ir.Value:
    """``x[2i] * y[2i] + x[2i+1] * y[2i+1]`` of int16 vectors, in int32."""
    lanes = x.type.count // 2
    name = {
        ("avx512", 16): "llvm.x86.avx512.pmaddw.d.512",
        ("avx512vnni", 16): "llvm.x86.avx512.pmaddw.d.512",
        ("avx2", 8): "llvm.x86.avx2.pmadd.wd",
        ("avxvnni", 8): "llvm.x86.avx2.pmadd.wd",
    }.get((isa, lanes))
    if name:
        return call(b, name, vector(I32, lanes), x, y)
    wide = vector(I32, 2 * lanes)
    product = b.mul(b.sext(x, wide), b.sext(y, wide))
    even = pick(b, product, product, list(range(0, 2 * lanes, 2)))
    odd = pick(b, product, product, list(range(1, 2 * lanes, 2)))
    return b.add(even, odd)


def _dot4(b: ir.IRBuilder, isa: str, total: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
    """Add to each int32 the products of four unsigned with four signed bytes; exact."""
    if isa in ("avx512vnni", "avxvnni"):
        bits = 32 * total.type.count
        return call(b, f"llvm.x86.avx512.vpdpbusd.{bits}", total.type, total, u, s)
    for x, y in _widened_pairs(b, u, s):
        total = b.add(total, _add_neighbours(b, isa, x, y))
    return total


def _dot4_saturating(
    b: ir.IRBuilder, isa: str, total: ir.Value, u: ir.Value, s: ir.Value
) -> ir.Value:
    """Like ``_dot4``, but the sum of each pair of products saturates to int16."""
    lanes = total.type.count
    wide = vector(I16, 2 * lanes)
    name = {16: "llvm.x86.avx512.pmaddubs.w.512", 8: "llvm.x86.avx2.pmadd.ub.sw"}.get(lanes)
    if name:
        small = vector(I8, 4 * lanes)
        pair = call(b, name, wide, b.bitcast(u, small), b.bitcast(s, small))
    else:
        even, odd = _widened_pairs(b, u, s)
        pair = call(b, f"llvm.sadd.sat.v{2 * lanes}i16", wide, b.mul(*even), b.mul(*odd))
    return b.add(total, _add_neighbours(b, isa, pair, constant(wide, 1)))


def _to_int(b: ir.IRBuilder, isa: str, x: ir.Value) -> ir.Value:
    """Round half to even; NaN and what int32 cannot hold give the smallest int32."""
    lanes = x.type.count
    kind = vector(I32, lanes)
    if isa == "generic":
        magnitude = call(b, f"llvm.fabs.v{lanes}f32", x.type, x)
        fits = b.fcmp_ordered("<", magnitude, constant(x.type, 2.0**31))
        safe = b.select(fits, x, constant(x.type, 0.0))
        whole = b.fptosi(call(b, f"llvm.rint.v{lanes}f32", x.type, safe), kind)
        return b.select(fits, whole, constant(kind, -(2**31)))
    if lanes == 8:
        return call(b, "llvm.x86.avx.cvt.ps2dq.256", kind, x)
    name = "llvm.x86.avx512.mask.cvtps2dq.512"
    return call(b, name, kind, x, constant(kind, 0), I16(-1), I32(4))


def _fma(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    return call(b, f"llvm.fma.v{x.type.count}f32", x.type, x, y, z)


class _Limits(NamedTuple):
    """What all channels share.

    Where the zero point is added to integers the limits hold before, so that the addition cannot
    overflow.
    """

    output: ir.Value
    low: ir.Value
    high: ir.Value
    zero_point: ir.Value


def _requantize_fused(
    b: ir.IRBuilder,
    isa: str,
    total: ir.Value,
    constants: tuple[ir.Value, ...],
    limits: _Limits,
) -> ir.Value:
    addend, factor, multiplier = constants
    lanes = total.type.count
    real = _fma(b, addend, factor, b.sitofp(total, vector(F32, lanes)))
    whole = _to_int(b, isa, b.fmul(real, multiplier))
    whole = call(b, f"llvm.smin.v{lanes}i32", whole.type, whole, splat(b, limits.high, lanes))
    whole = call(b, f"llvm.smax.v{lanes}i32", whole.type, whole, splat(b, limits.low, lanes))
    return b.add(whole, splat(b, limits.zero_point, lanes))


def _requantize_scaled(
    b: ir.IRBuilder,
    isa: str,
    total: ir.Value,
    constants: tuple[ir.Value, ...],
    limits: _Limits,
) -> ir.Value:
    addend, factor, multiplier = constants
    lanes = total.type.count
    kind = vector(F32, lanes)
    zero, high, low = (
        splat(b, b.sitofp(limit, F32), lanes)
        for limit in (limits.zero_point, limits.high, limits.low)
    )
    real = b.fmul(b.fmul(b.sitofp(total, kind), multiplier), factor)
    real = b.fadd(real, addend)
    steps = b.fadd(b.fmul(real, splat(b, limits.output, lanes)), zero)
    steps = b.select(b.fcmp_ordered("<", steps, high), steps, high)
    steps = b.select(b.fcmp_ordered(">", steps, low), steps, low)
    return _to_int(b, isa, steps)


def _sum(
    _b: ir.IRBuilder,
    _isa: str,
    total: ir.Value,
    _constants: tuple[ir.Value, ...],
    _limits: _Limits,
) -> ir.Value:
    return total


def _real(
    b: ir.IRBuilder,
    _isa: str,
    total: ir.Value,
    constants: tuple[ir.Value, ...],
    _limits: _Limits,
) -> ir.Value:
    addend, _, multiplier = constants
    return _fma(b, b.sitofp(total, vector(F32, total.type.count)), multiplier, addend)


class _Form(NamedTuple):
    """The last step of a tile and what it stores."""

    finish: Callable[..., ir.Value]
    element: ir.Type

    @property
    def bytes(self) -> int:
        return 4 if self.element is F32 else self.element.width // 8


FORMS = {
    "fused": _Form(_requantize_fused, I8),
    "scaled": _Form(_requantize_scaled, I8),
    "sum": _Form(_sum, I32),
    "real": _Form(_real, F32),
}


def _tile_function(module: ir.Module, isa: str, form: str, height: int) -> ir.Function:
    """Emit ``height`` rows times ``VECTORS`` vectors: all of K, then the last step."""
    types = [BYTES, LONGS, BYTES, LONGS, I64, I64, INTS, FLOATS, FLOATS, FLOATS]
    types += [F32, I32, I32, I32, BYTES, I64]
    function, new = new_function(module, f"refquant_tile_{isa}_{form}_{height}", types)
    if not new:
        return function
    x, rows, weights, segments, count, depth4, correction, *floats = function.args[:10]
    limits, (y, pitch) = _Limits(*function.args[10:14]), function.args[14:]
    b = ir.IRBuilder(function.append_basic_block("entry"))
    lanes = SHAPES[isa].lanes
    kind = vector(I32, lanes)
    width = 4 * lanes
    totals = [[b.alloca(kind) for _ in range(VECTORS)] for _ in range(height)]
    panel = b.alloca(BYTES)
    starts = [b.gep(x, [b.load(b.gep(rows, [I64(m)]))]) for m in range(height)]
    for n in range(VECTORS):
        begin = load(b, correction, I64(n * lanes), kind)
        for row in totals:
            b.store(begin, row[n])
    b.store(weights, panel)
    with cgutils.for_range(b, count) as segment:
        offset = b.load(b.gep(segments, [segment.index]))
        heads = [b.gep(start, [offset]) for start in starts]
        with cgutils.for_range(b, depth4) as step:
            here = b.load(panel)
            factors = [load(b, here, I64(n * width), kind) for n in range(VECTORS)]
            at = b.shl(step.index, I64(2))
            for head, row in zip(heads, totals, strict=True):
                four = splat(b, load(b, head, at, I32), lanes)
                for total, factor in zip(row, factors, strict=True):
                    b.store(_dot4(b, isa, b.load(total), four, factor), total)
            b.store(b.gep(here, [I64(VECTORS * width)]), panel)
    real = vector(F32, lanes)
    constants = [
        tuple(load(b, pointer, I64(n * lanes), real) for pointer in floats) for n in range(VECTORS)
    ]
    # Rows upwards: what the last panel writes past a row's end is overwritten by the next row.
    for m, row in enumerate(totals):
        for n, total in enumerate(row):
            value = FORMS[form].finish(b, isa, b.load(total), constants[n], limits)
            if FORMS[form].element is I8:
                value = b.trunc(value, vector(I8, lanes))
            size = FORMS[form].bytes
            first = b.add(b.mul(pitch, I64(m * size)), I64(n * lanes * size))
            store(b, value, y, first)
    b.ret_void()
    return function


@intrinsic(prefer_literal=True)  # type: ignore[misc,untyped-decorator,unused-ignore]
def _tile(
    _typing: Any,
    isa: Any,
    form: Any,
    height: Any,
    x: Any,
    x0: Any,
    rows: Any,
    row: Any,
    weights: Any,
    w0: Any,
    segments: Any,
    depth4: Any,
    correction: Any,
    addend: Any,
    factor: Any,
    multiplier: Any,
    n0: Any,
    output: Any,
    low: Any,
    high: Any,
    zero_point: Any,
    y: Any,
    y0: Any,
    pitch: Any,
) -> Any:
    i32, i64 = nb.types.int32, nb.types.int64
    signature = nb.types.void(
        *(isa, form, height, x, i64, rows, i64, weights, i64, segments, i64),
        *(correction, addend, factor, multiplier, i64, nb.types.float32, i32, i32, i32),
        *(y, i64, i64),
    )

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds = signature.args
        n0 = args[15]

        def data(index: int, first: ir.Value) -> ir.Value:
            return data_of(context, b, kinds[index], args[index], first)

        literals = (literal.literal_value for literal in (isa, form, height))
        function = _tile_function(b.module, *literals)
        count = context.make_array(kinds[9])(context, b, args[9]).nitems
        arguments = [
            *(data(3, args[4]), data(5, args[6]), b.bitcast(data(7, args[8]), BYTES)),
            *(data(9, I64(0)), count, args[10]),
            *(data(index, n0) for index in (11, 12, 13, 14)),
            *args[16:20],
            *(b.bitcast(data(20, args[21]), BYTES), args[22]),
        ]
        b.call(function, arguments)
        return context.get_dummy_value()

    return signature, codegen


def _interleave(b: ir.IRBuilder, x: ir.Value, y: ir.Value, high: int, size: int) -> ir.Value:
    """Interleave elements of ``size`` bytes of the low or high halves of each 16 bytes."""
    count = x.type.count // size
    kind = vector(ir.IntType(8 * size), count)
    per = 16 // size
    lanes = [
        index
        for lane in range(0, count, per)
        for k in range(per // 2)
        for index in (lane + k + high * per // 2, lane + k + high * per // 2 + count)
    ]
    mixed = pick(b, b.bitcast(x, kind), b.bitcast(y, kind), lanes)
    return b.bitcast(mixed, x.type)


def _in_order(b: ir.IRBuilder, isa: str, element: ir.Type, parts: list[ir.Value]) -> ir.Value:
    """Turn four int32 vectors in the order of ``_interleave`` into bytes in channel order.

    Or leave them int32, where that is the element.
    """
    lanes = parts[0].type.count
    if isa != "generic" and element is I8:
        word, byte = {
            16: ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512"),
            8: ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
        }[lanes]
        half = vector(I16, 2 * lanes)
        words = [call(b, word, half, parts[i], parts[i + 1]) for i in (0, 2)]
        return call(b, byte, vector(I8, 4 * lanes), *words)
    pairs = [pick(b, parts[i], parts[i + 1], list(range(2 * lanes))) for i in (0, 2)]
    order = np.argsort(depthwise_order(lanes)).tolist()
    ordered = pick(b, pairs[0], pairs[1], order)
    return b.trunc(ordered, vector(I8, 4 * lanes)) if element is I8 else ordered


def _depthwise_function(module: ir.Module, isa: str, form: str, saturating: bool) -> ir.Function:
    """Emit a row of pixels of one block of channels: taps four at a time, then the last step."""
    types = [BYTES, I64, I64, LONGS, I64, BYTES, INTS, FLOATS, FLOATS, FLOATS]
    types += [F32, I32, I32, I32, BYTES, I64]
    function, new = new_function(module, f"refquant_depthwise_{isa}_{form}_{saturating}", types)
    if not new:
        return function
    x, step, pixels, taps, fours, weights, correction, *floats = function.args[:10]
    limits, (y, pitch) = _Limits(*function.args[10:14]), function.args[14:]
    size = FORMS[form].bytes
    b = ir.IRBuilder(function.append_basic_block("entry"))
    lanes = SHAPES[isa].lanes
    kind, real = vector(I32, lanes), vector(F32, lanes)
    small = vector(I8, 4 * lanes)
    dot = _dot4_saturating if saturating else _dot4
    totals = [b.alloca(kind) for _ in range(4)]
    with cgutils.for_range(b, pixels) as pixel:
        here = b.gep(x, [b.mul(pixel.index, step)])
        for j, total in enumerate(totals):
            b.store(load(b, correction, I64(j * lanes), kind), total)
        with cgutils.for_range(b, fours) as four:
            first = b.shl(four.index, I64(2))
            t = []
            for k in range(4):
                tap = b.load(b.gep(taps, [b.add(first, I64(k))]))
                t.append(load(b, here, tap, small))
            a, c = (_interleave(b, t[0], t[1], h, 1) for h in (0, 1))
            d, e = (_interleave(b, t[2], t[3], h, 1) for h in (0, 1))
            mixed = [_interleave(b, m, n, h, 2) for m, n in ((a, d), (c, e)) for h in (0, 1)]
            base = b.mul(four.index, I64(16 * lanes))
            for j, (total, u) in enumerate(zip(totals, mixed, strict=True)):
                s = load(b, weights, b.add(base, I64(4 * lanes * j)), kind)
                b.store(dot(b, isa, b.load(total), b.bitcast(u, kind), s), total)
        parts = []
        for j, total in enumerate(totals):
            constants = tuple(load(b, pointer, I64(j * lanes), real) for pointer in floats)
            parts.append(FORMS[form].finish(b, isa, b.load(total), constants, limits))
        ordered = _in_order(b, isa, FORMS[form].element, parts)
        store(b, ordered, y, b.mul(pixel.index, b.mul(pitch, I64(size))))
    b.ret_void()
    return function


@intrinsic(prefer_literal=True)  # type: ignore[misc,untyped-decorator,unused-ignore]
def _depthwise_row(
    _typing: Any,
    isa: Any,
    form: Any,
    saturating: Any,
    x: Any,
    x0: Any,
    step: Any,
    pixels: Any,
    taps: Any,
    weights: Any,
    w0: Any,
    correction: Any,
    addend: Any,
    factor: Any,
    multiplier: Any,
    n0: Any,
    output: Any,
    low: Any,
    high: Any,
    zero_point: Any,
    y: Any,
    y0: Any,
    pitch: Any,
) -> Any:
    i32, i64 = nb.types.int32, nb.types.int64
    signature = nb.types.void(
        *(isa, form, saturating, x, i64, i64, i64, taps, weights, i64),
        *(correction, addend, factor, multiplier, i64, nb.types.float32, i32, i32, i32),
        *(y, i64, i64),
    )

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds = signature.args
        n0 = args[14]

        def data(index: int, first: ir.Value) -> ir.Value:
            return data_of(context, b, kinds[index], args[index], first)

        literals = isa.literal_value, form.literal_value, bool(saturating.literal_value)
        function = _depthwise_function(b.module, *literals)
        count = context.make_array(kinds[7])(context, b, args[7]).nitems
        arguments = [
            *(data(3, args[4]), args[5], args[6], data(7, I64(0)), b.lshr(count, I64(2))),
            *(b.bitcast(data(8, args[9]), BYTES), *(data(i, n0) for i in (10, 11, 12, 13))),
            *args[15:19],
            *(b.bitcast(data(19, args[20]), BYTES), args[21]),
        ]
        b.call(function, arguments)
        return context.get_dummy_value()

    return signature, codegen


if nb.config.DISABLE_JIT:  # intrinsics exist only in compiled code
    _tile, _depthwise_row = tile_numpy.tile, tile_numpy.depthwise_row

# ---- drivers ---------------------------------------------------------------------------------


def _make_multiply(isa: str, form: str) -> Callable[..., None]:
    # Free variables are part of Numba's cache key, so each ISA and form has its own entry.
    tall, short = SHAPES[isa].tall, SHAPES[isa].short
    panel = VECTORS * SHAPES[isa].lanes

    @jit
    def multiply(
        x: Array,
        step: int,
        rows: Array,
        count: int,
        segments: Array,
        depth4: int,
        weights: Array,
        groups: int,
        group_step: int,
        outputs: int,
        correction: Array,
        addend: Array,
        factor: Array,
        multiplier: Array,
        output: np.float32,
        low: int,
        high: int,
        zero_point: int,
        y: Array,
    ) -> None:
        """Compute ``count`` rows of ``groups * outputs`` channels into the flat array ``y``.

        Row ``r`` begins at byte ``r // rows.size * step + rows[r % rows.size]`` of ``x``, plus
        ``group_step`` per group.
        """
        panels = (outputs + panel - 1) // panel
        panel_bytes = segments.size * depth4 * 4 * panel
        pitch = groups * outputs
        scratch = np.empty(tall * panel, y.dtype)
        # Rows whose bytes stay in the L2 cache while all panels pass by.
        chunk = max(tall, 262144 // max(1, segments.size * depth4 * 4) // tall * tall)
        for block in range((count + rows.size - 1) // rows.size):
            done = block * rows.size
            size = min(rows.size, count - done)
            for start in range(0, size, chunk):
                stop = min(start + chunk, size)
                for group in range(groups):
                    x0 = block * step + group * group_step
                    # Panels downwards: where the last one overhangs, others write later.
                    for p in range(panels - 1, -1, -1):
                        n0 = p * panel
                        live = min(panel, outputs - n0)
                        lane = (group * panels + p) * panel
                        w0 = (group * panels + p) * panel_bytes
                        m = start
                        while m < stop:
                            left = stop - m
                            if left > 2 * short and stop - start >= tall:
                                height = tall
                                m = min(m, stop - tall)  # do a few rows again: same values
                            elif stop - start >= short:
                                height = short
                                m = min(m, stop - short)
                            else:
                                height = 1
                            first = (done + m) * pitch + group * outputs + n0
                            end = first + (height - 1) * pitch + panel
                            direct = live == panel or (groups == 1 and end <= y.size)
                            if direct:
                                out, y0, ldy = y, first, pitch
                            else:
                                out, y0, ldy = scratch, 0, panel
                            if height == tall:
                                _tile(
                                    isa, form, tall, x, x0, rows, m, weights, w0, segments,
                                    depth4, correction, addend, factor, multiplier, lane,
                                    output, low, high, zero_point, out, y0, ldy,
                                )  # fmt: skip
                            elif height == short:
                                _tile(
                                    isa, form, short, x, x0, rows, m, weights, w0, segments,
                                    depth4, correction, addend, factor, multiplier, lane,
                                    output, low, high, zero_point, out, y0, ldy,
                                )  # fmt: skip
                            else:
                                _tile(
                                    isa, form, 1, x, x0, rows, m, weights, w0, segments,
                                    depth4, correction, addend, factor, multiplier, lane,
                                    output, low, high, zero_point, out, y0, ldy,
                                )  # fmt: skip
                            if not direct:
                                for i in range(height):
                                    for j in range(live):
                                        y[first + i * pitch + j] = scratch[i * panel + j]
                            m += height

    return multiply


def _make_depthwise(isa: str, form: str) -> Callable[..., None]:
    block = 4 * SHAPES[isa].lanes

    @jit
    def depthwise(
        x: Array,
        images: int,
        image_step: int,
        rows: Array,
        step: int,
        pixels: int,
        taps: Array,
        weights: Array,
        channels: int,
        correction: Array,
        addend: Array,
        factor: Array,
        multiplier: Array,
        output: np.float32,
        low: int,
        high: int,
        zero_point: int,
        saturating: bool,
        y: Array,
    ) -> None:
        """Compute ``images`` maps of ``rows.size`` rows of ``pixels`` pixels into ``y``.

        Row ``r`` begins at byte ``rows[r]`` of its image, its pixels are ``step`` bytes apart and
        tap ``t`` of a pixel lies ``taps[t]`` bytes further.
        """
        blocks = (channels + block - 1) // block
        scratch = np.empty(pixels * block, y.dtype)
        for image in range(images):
            for row in range(rows.size):
                x0 = image * image_step + rows[row]
                first = (image * rows.size + row) * pixels * channels
                # Blocks downwards: where the last one overhangs, others write later.
                for part in range(blocks - 1, -1, -1):
                    lane = part * block
                    w0 = part * taps.size * block
                    end = first + (pixels - 1) * channels + lane + block
                    direct = end <= y.size
                    if direct:
                        out, y0, ldy = y, first + lane, channels
                    else:
                        out, y0, ldy = scratch, 0, block
                    if saturating:
                        _depthwise_row(
                            isa, form, 1, x, x0 + lane, step, pixels, taps, weights, w0,
                            correction, addend, factor, multiplier, lane,
                            output, low, high, zero_point, out, y0, ldy,
                        )  # fmt: skip
                    else:
                        _depthwise_row(
                            isa, form, 0, x, x0 + lane, step, pixels, taps, weights, w0,
                            correction, addend, factor, multiplier, lane,
                            output, low, high, zero_point, out, y0, ldy,
                        )  # fmt: skip
                    if not direct:
                        live = min(block, channels - lane)
                        for i in range(pixels):
                            for j in range(live):
                                y[first + i * channels + lane + j] = scratch[i * block + j]

    return depthwise


MULTIPLY = {form: _make_multiply(ISA, form) for form in FORMS}
DEPTHWISE = {form: _make_depthwise(ISA, form) for form in ("fused", "scaled", "sum")}
