"""The compiled core of depthwise convolution: channels are lanes, taps multiply in fours.

Four taps of sixteen neighbouring channels are interleaved so that each lane finds its own four
bytes; several pixels share the weights and constants in registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from refquant.kernels import tile_numpy
from refquant.kernels.dot import dot4, dot4_saturating
from refquant.kernels.epilogue import FORMS, load_constants, read_numbers
from refquant.kernels.jit import jit
from refquant.kernels.llvm import (
    BYTES,
    FLOATS,
    I8,
    I32,
    I64,
    INTS,
    LONGS,
    constant,
    data_of,
    load,
    new_function,
    pick,
    store,
    vector,
)
from refquant.kernels.registers import ISA, SHAPES, depthwise_order

Array = npt.NDArray[Any]


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


def _by_channel(b: ir.IRBuilder, taps: list[ir.Value]) -> list[ir.Value]:
    """Turn four taps of a block of channels into four vectors of four bytes a lane."""
    a, c = (_interleave(b, taps[0], taps[1], high, 1) for high in (0, 1))
    d, e = (_interleave(b, taps[2], taps[3], high, 1) for high in (0, 1))
    kind = vector(I32, taps[0].type.count // 4)
    mixed = [_interleave(b, m, n, high, 2) for m, n in ((a, d), (c, e)) for high in (0, 1)]
    return [b.bitcast(part, kind) for part in mixed]


def _spread(b: ir.IRBuilder, tap: ir.Value) -> list[ir.Value]:
    """Do :func:`_by_channel` for one tap beside three zeros."""
    count = tap.type.count
    zeros = constant(tap.type, 0)
    kind = vector(I32, count // 4)
    parts = []
    for j in range(4):
        lanes = []
        for k in range(count):
            lane, place = divmod(k, 16)
            lanes.append(16 * lane + 4 * j + place // 4 if place % 4 == 0 else count)
        parts.append(b.bitcast(pick(b, tap, zeros, lanes), kind))
    return parts


def _pixels_function(
    module: ir.Module, isa: str, form: str, saturating: bool, pixels: int
) -> ir.Function:
    """Emit ``pixels`` pixels of one block of channels: all taps, then the last step."""
    types = [BYTES, I64, LONGS, I64, I64, BYTES, INTS, FLOATS, FLOATS, FLOATS]
    types += [FLOATS, INTS, BYTES, I64]
    name = f"refquant_depthwise_{isa}_{form}_{saturating}_{pixels}"
    function, new = new_function(module, name, types)
    if not new:
        return function
    x, step, taps, count, fours, weights, correction, *floats = function.args[:10]
    real, whole, y, pitch = function.args[10:]
    b = ir.IRBuilder(function.append_basic_block("entry"))
    lanes = SHAPES[isa].lanes
    kind, small = vector(I32, lanes), vector(I8, 4 * lanes)
    dot = dot4_saturating if saturating else dot4
    totals = [[b.alloca(kind) for _ in range(4)] for _ in range(pixels)]
    for j in range(4):
        begin = load(b, correction, I64(j * lanes), kind)
        for parts in totals:
            b.store(begin, parts[j])
    heads = [b.gep(x, [b.mul(step, I64(pixel))]) for pixel in range(pixels)]

    def add(group: ir.Value, taken: int) -> None:
        first = b.shl(group, I64(2))
        at = [b.load(b.gep(taps, [b.add(first, I64(k))])) for k in range(taken)]
        base = b.mul(group, I64(16 * lanes))
        factors = [load(b, weights, b.add(base, I64(4 * lanes * j)), kind) for j in range(4)]
        for head, parts in zip(heads, totals, strict=True):
            loaded = [load(b, head, tap, small) for tap in at]
            mixed = _spread(b, loaded[0]) if taken == 1 else _by_channel(b, loaded)
            for total, four_bytes, factor in zip(parts, mixed, factors, strict=True):
                b.store(dot(b, isa, b.load(total), four_bytes, factor), total)

    with cgutils.for_range(b, fours) as group:
        add(group.index, 4)
    with cgutils.for_range(b, b.sub(count, fours)) as group:
        add(b.add(fours, group.index), 1)
    numbers = read_numbers(b, whole, real, lanes)
    constants = [load_constants(b, tuple(floats), j * lanes, lanes) for j in range(4)]
    finish, narrow, *_ = FORMS[form]
    for pixel, parts in enumerate(totals):
        finished = [
            finish(b, isa, b.load(total), constants[j], numbers) for j, total in enumerate(parts)
        ]
        start = b.mul(pitch, I64(pixel * FORMS[form].bytes))
        result = _in_order(b, finished) if narrow is None else narrow(b, isa, finished, numbers)
        store(b, result, y, start)
    b.ret_void()
    return function


def _in_order(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Return four vectors as one, in the order of the channels."""
    lanes = parts[0].type.count
    low, high = (pick(b, parts[i], parts[i + 1], list(range(2 * lanes))) for i in (0, 2))
    return pick(b, low, high, np.argsort(depthwise_order(lanes)).tolist())


@intrinsic(prefer_literal=True)  # type: ignore[misc,untyped-decorator,unused-ignore]
def _depthwise_pixels(
    _typing: Any,
    isa: Any,
    form: Any,
    saturating: Any,
    pixels: Any,
    x: Any,
    x0: Any,
    step: Any,
    taps: Any,
    fours: Any,
    weights: Any,
    w0: Any,
    correction: Any,
    addend: Any,
    factor: Any,
    multiplier: Any,
    n0: Any,
    real: Any,
    whole: Any,
    y: Any,
    y0: Any,
    pitch: Any,
) -> Any:
    i64 = nb.types.int64
    signature = nb.types.void(
        *(isa, form, saturating, pixels, x, i64, i64, taps, i64, weights, i64),
        *(correction, addend, factor, multiplier, i64, real, whole, y, i64, i64),
    )

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds = signature.args

        def data(index: int, first: ir.Value) -> ir.Value:
            return data_of(context, b, kinds[index], args[index], first)

        literals = isa.literal_value, form.literal_value, bool(saturating.literal_value)
        function = _pixels_function(b.module, *literals, pixels.literal_value)
        count = context.make_array(kinds[7])(context, b, args[7]).nitems
        arguments = [
            *(data(4, args[5]), args[6], data(7, I64(0)), b.lshr(count, I64(2)), args[8]),
            *(b.bitcast(data(9, args[10]), BYTES), *(data(i, args[15]) for i in range(11, 15))),
            *(data(16, I64(0)), data(17, I64(0))),
            *(b.bitcast(data(18, args[19]), BYTES), args[20]),
        ]
        b.call(function, arguments)
        return context.get_dummy_value()

    return signature, codegen


if nb.config.DISABLE_JIT:  # intrinsics exist only in compiled code
    _depthwise_pixels = tile_numpy.depthwise_pixels


def _make_depthwise(isa: str, form: str, saturating: int) -> Callable[..., None]:
    block, several = 4 * SHAPES[isa].lanes, SHAPES[isa].pixels

    @jit
    def depthwise(
        x: Array,
        step: int,
        rows: Array,
        pixel_step: int,
        pixels: int,
        taps: Array,
        fours: int,
        weights: Array,
        channels: int,
        correction: Array,
        addend: Array,
        factor: Array,
        multiplier: Array,
        real: Array,
        whole: Array,
        y: Array,
        places: Array,
        place_step: int,
        begin: int,
        end: int,
        bound: int,
    ) -> None:
        """Compute rows ``begin`` to ``end`` of ``pixels`` pixels into ``y``.

        Row ``r`` begins at byte ``r // rows.size * step + rows[r % rows.size]``, and likewise
        its place in ``y``; its pixels are ``pixel_step`` bytes apart and tap ``t`` of a pixel
        lies ``taps[t]`` bytes further. The first ``fours`` groups of taps are four, the others
        one beside zeros. Elements of ``y`` from ``bound`` on are not touched.
        """
        blocks = (channels + block - 1) // block
        scratch = np.empty(several * block, y.dtype)
        for row in range(begin, end):
            image = row // rows.size
            x0 = image * step + rows[row - image * rows.size]
            y0 = image * place_step + places[row - image * rows.size]
            # Blocks downwards: where the last one overhangs, others write later.
            for part in range(blocks - 1, -1, -1):
                lane = part * block
                w0 = lane * taps.size
                pixel = 0
                while pixel < pixels:
                    count = several if pixels >= several else 1
                    pixel = min(pixel, pixels - count)  # do a few pixels again: same values
                    first = y0 + pixel * channels + lane
                    from_ = x0 + pixel * pixel_step + lane
                    direct = first + (count - 1) * channels + block <= bound
                    if direct:
                        out, out0, pitch = y, first, channels
                    else:
                        out, out0, pitch = scratch, 0, block
                    if count == several:
                        _depthwise_pixels(
                            isa, form, saturating, several, x, from_, pixel_step, taps, fours,
                            weights, w0, correction, addend, factor, multiplier, lane, real, whole,
                            out, out0, pitch,
                        )  # fmt: skip
                    else:
                        _depthwise_pixels(
                            isa, form, saturating, 1, x, from_, pixel_step, taps, fours,
                            weights, w0, correction, addend, factor, multiplier, lane, real, whole,
                            out, out0, pitch,
                        )  # fmt: skip
                    if not direct:
                        live = min(block, channels - lane)
                        for i in range(count):
                            for j in range(live):
                                y[first + i * channels + j] = scratch[i * block + j]
                    pixel += count

    return depthwise


DEPTHWISE = {
    (form, saturating): _make_depthwise(ISA, form, int(saturating))
    for form in ("fused", "scaled", "sum")
    for saturating in (False, True)
}
