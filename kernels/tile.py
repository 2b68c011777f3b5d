"""The compiled core of linear and convolution: uint8 rows times packed int8 weights.

One *tile* holds a few rows times two vectors of output channels in registers, runs along K four
bytes at a time and finishes the sums before they leave the registers, see ``epilogue.py``. Rows
are byte offsets into the input and K is cut into equal *segments*, so a matrix, a pointwise
convolution and a strided or dilated one are the same loop and no patches are copied; *places*
are offsets into the result, which may lie inside a larger map.
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
from refquant.kernels.dot import dot4
from refquant.kernels.epilogue import FORMS, Numbers, load_constants, read_numbers
from refquant.kernels.jit import jit
from refquant.kernels.llvm import (
    BYTES,
    FLOATS,
    I8,
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
from refquant.kernels.registers import ISA, SHAPES, VECTORS

Array = npt.NDArray[Any]

# A single row has too few sums to keep the multipliers busy: it works on four K steps at once.
STEPS_OF_ONE_ROW = 4


def _tile_function(
    module: ir.Module, isa: str, form: str, gathered: bool, height: int
) -> ir.Function:
    """Emit ``height`` rows times ``VECTORS`` vectors: all of K, then the last step."""
    types = [BYTES, LONGS, BYTES, LONGS, I64, I64, LONGS, INTS, INTS, FLOATS, FLOATS, FLOATS]
    types += [FLOATS, INTS, BYTES, LONGS, BYTES, LONGS]
    name = f"refquant_tile_{isa}_{form}_{gathered}_{height}"
    function, new = new_function(module, name, types)
    if not new:
        return function
    x, rows, weights, segments, count, depth4, vectors, taken, correction = function.args[:9]
    *floats, real, whole, y, places, other, others = function.args[9:]
    b = ir.IRBuilder(function.append_basic_block("entry"))
    lanes = SHAPES[isa].lanes
    starts = [b.gep(x, [b.load(b.gep(rows, [I64(m)]))]) for m in range(height)]
    begin = [load(b, correction, I64(n * lanes), vector(I32, lanes)) for n in range(VECTORS)]
    fetch = _gathering(b, isa, vectors, taken) if gathered else _broadcasting(b, lanes)
    totals = _multiply(b, isa, fetch, starts, weights, segments, count, depth4, begin)
    numbers = read_numbers(b, whole, real, lanes)
    constants = [load_constants(b, tuple(floats), n * lanes, lanes) for n in range(VECTORS)]
    into = [b.load(b.gep(places, [I64(m)])) for m in range(height)]
    beside = [
        b.gep(other, [b.load(b.gep(others, [I64(m)]))]) if FORMS[form].adds else None
        for m in range(height)
    ]
    # Rows upwards: what the last panel writes past a row's end is overwritten by the next row.
    for m in range(0, height, 2):
        pair = range(m, min(m + 2, height))
        finished = [
            _finished(b, isa, form, totals[row], constants, numbers, beside[row]) for row in pair
        ]
        for row, parts in zip(pair, _stored(b, isa, form, finished, numbers), strict=True):
            start = b.mul(into[row], I64(FORMS[form].bytes))
            size = lanes * FORMS[form].bytes
            for n, part in enumerate(parts):
                store(b, part, y, b.add(start, I64(n * size)))
    b.ret_void()
    return function


Fetch = Callable[[ir.Value, ir.Value], list[ir.Value]]


def _broadcasting(b: ir.IRBuilder, lanes: int) -> Fetch:
    """Return what gives every lane the four bytes of a step."""

    def fetch(head: ir.Value, step: ir.Value) -> list[ir.Value]:
        four = splat(b, load(b, head, b.shl(step, I64(2)), I32), lanes)
        return [four] * VECTORS

    return fetch


def _gathering(b: ir.IRBuilder, isa: str, vectors: ir.Value, taken: ir.Value) -> Fetch:
    """Return what gives each lane the four bytes of its group.

    ``vectors`` says where each vector begins to read, ``taken`` which fours its lanes take there.
    """
    lanes = SHAPES[isa].lanes
    kind = vector(I32, lanes)
    first = [b.load(b.gep(vectors, [I64(n)])) for n in range(VECTORS)]
    index = load(b, taken, I64(0), kind)

    def fetch(head: ir.Value, step: ir.Value) -> list[ir.Value]:
        at = b.add(index, splat(b, b.trunc(step, I32), lanes))
        fours = [b.gep(head, [start]) for start in first]
        if isa == "generic":
            return [_picked(b, four, at) for four in fours]
        name = {16: "llvm.x86.avx512.permvar.si.512", 8: "llvm.x86.avx2.permd"}[lanes]
        return [call(b, name, kind, load(b, four, I64(0), kind), at) for four in fours]

    return fetch


def _picked(b: ir.IRBuilder, pointer: ir.Value, index: ir.Value) -> ir.Value:
    """Load the four bytes of each lane one by one."""
    result = ir.Constant(index.type, ir.Undefined)
    for lane in range(index.type.count):
        at = b.shl(b.sext(b.extract_element(index, I32(lane)), I64), I64(2))
        result = b.insert_element(result, load(b, pointer, at, I32), I32(lane))
    return result


def _multiply(
    b: ir.IRBuilder,
    isa: str,
    fetch: Fetch,
    starts: list[ir.Value],
    weights: ir.Value,
    segments: ir.Value,
    count: ir.Value,
    depth4: ir.Value,
    begin: list[ir.Value],
) -> list[list[ir.Value]]:
    """Emit the loops along K; return the sums of each row."""
    kind = begin[0].type
    width = 4 * kind.count
    steps = STEPS_OF_ONE_ROW if len(starts) == 1 else 1
    totals = [[[b.alloca(kind) for _ in begin] for _ in starts] for _ in range(steps)]
    for step, copy in enumerate(totals):
        for row in copy:
            for total, first in zip(row, begin, strict=True):
                b.store(constant(kind, 0) if step else first, total)
    panel = b.alloca(BYTES)
    b.store(weights, panel)

    next_panel = b.neg(b.mul(b.mul(count, depth4), I64(VECTORS * width)))

    def advance(heads: list[ir.Value], step: ir.Value, copies: list[list[list[ir.Value]]]) -> None:
        here = b.load(panel)
        if len(starts) == SHAPES[isa].tall:
            _prefetch(b, b.gep(here, [next_panel]), VECTORS * width)
        for i, copy in enumerate(copies):
            base = i * VECTORS * width
            factors = [load(b, here, I64(base + n * width), kind) for n in range(VECTORS)]
            at = b.add(step, I64(i))
            for head, row in zip(heads, copy, strict=True):
                for total, four, factor in zip(row, fetch(head, at), factors, strict=True):
                    b.store(dot4(b, isa, b.load(total), four, factor), total)
        b.store(b.gep(here, [I64(len(copies) * VECTORS * width)]), panel)

    with cgutils.for_range(b, count) as segment:
        offset = b.load(b.gep(segments, [segment.index]))
        heads = [b.gep(start, [offset]) for start in starts]
        whole = b.udiv(depth4, I64(steps))
        if steps > 1:
            with cgutils.for_range(b, whole) as loop:
                advance(heads, b.mul(loop.index, I64(steps)), totals)
        done = b.mul(whole, I64(steps)) if steps > 1 else I64(0)
        with cgutils.for_range(b, b.sub(depth4, done)) as loop:
            advance(heads, b.add(done, loop.index), totals[:1])
    sums = [[b.load(total) for total in row] for row in totals[0]]
    for copy in totals[1:]:
        sums = [
            [b.add(left, b.load(right)) for left, right in zip(row, more, strict=True)]
            for row, more in zip(sums, copy, strict=True)
        ]
    return sums


def _prefetch(b: ir.IRBuilder, pointer: ir.Value, size: int) -> None:
    """Bring bytes that will be read soon into the second cache; any address is allowed."""
    for line in range(0, size, 64):
        to_read, second_cache, data = I32(0), I32(2), I32(1)
        at = b.gep(pointer, [I64(line)])
        call(b, "llvm.prefetch.p0", ir.VoidType(), at, to_read, second_cache, data)


def _finished(
    b: ir.IRBuilder,
    isa: str,
    form: str,
    totals: list[ir.Value],
    constants: list[tuple[ir.Value, ...]],
    numbers: Numbers,
    other: ir.Value | None,
) -> list[ir.Value]:
    """Finish the sums of a row."""
    lanes = totals[0].type.count
    finished = []
    for n, total in enumerate(totals):
        more = () if other is None else (load(b, other, I64(n * lanes), vector(I8, lanes)),)
        finished.append(FORMS[form].finish(b, isa, total, constants[n], numbers, *more))
    return finished


def _stored(
    b: ir.IRBuilder, isa: str, form: str, rows: list[list[ir.Value]], numbers: Numbers
) -> list[list[ir.Value]]:
    """Return what is stored for each of one or two rows, part after part."""
    narrow = FORMS[form].narrow
    if narrow is None:
        return rows
    lanes = rows[0][0].type.count
    mixed = narrow(b, isa, [*rows[0], *rows[-1]], numbers)
    words = b.bitcast(mixed, vector(I32, lanes))
    quarter = range(lanes // 4)
    result = []
    for first in range(0, 2 * len(rows), 2):  # of the four parts, two belong to a row
        order = [4 * lane + part for part in (first, first + 1) for lane in quarter]
        row = pick(b, words, words, order)
        result.append([b.bitcast(row, vector(I8, 2 * lanes))])
    return result


@intrinsic(prefer_literal=True)  # type: ignore[misc,untyped-decorator,unused-ignore]
def _tile(
    _typing: Any,
    isa: Any,
    form: Any,
    gathered: Any,
    height: Any,
    x: Any,
    x0: Any,
    rows: Any,
    row: Any,
    weights: Any,
    w0: Any,
    segments: Any,
    depth4: Any,
    vectors: Any,
    v0: Any,
    taken: Any,
    correction: Any,
    addend: Any,
    factor: Any,
    multiplier: Any,
    n0: Any,
    real: Any,
    whole: Any,
    y: Any,
    y0: Any,
    places: Any,
    place: Any,
    other: Any,
    other0: Any,
    others: Any,
) -> Any:
    i64 = nb.types.int64
    signature = nb.types.void(
        *(isa, form, gathered, height, x, i64, rows, i64, weights, i64, segments, i64),
        *(vectors, i64, taken),
        *(correction, addend, factor, multiplier, i64, real, whole),
        *(y, i64, places, i64, other, i64, others),
    )

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds = signature.args

        def data(index: int, first: ir.Value) -> ir.Value:
            return data_of(context, b, kinds[index], args[index], first)

        literals = isa.literal_value, form.literal_value, bool(gathered.literal_value)
        function = _tile_function(b.module, *literals, height.literal_value)
        count = context.make_array(kinds[10])(context, b, args[10]).nitems
        arguments = [
            *(data(4, args[5]), data(6, args[7]), b.bitcast(data(8, args[9]), BYTES)),
            *(data(10, I64(0)), count, args[11], data(12, args[13]), data(14, I64(0))),
            *(data(index, args[19]) for index in (15, 16, 17, 18)),
            *(data(20, I64(0)), data(21, I64(0))),
            *(b.bitcast(data(22, args[23]), BYTES), data(24, args[25])),
            *(data(26, args[27]), data(28, args[7])),
        ]
        b.call(function, arguments)
        return context.get_dummy_value()

    return signature, codegen


if nb.config.DISABLE_JIT:  # intrinsics exist only in compiled code
    _tile = tile_numpy.tile

# Bytes of input and result that stay in a near cache while all panels of a chunk pass by.
CHUNK = 64 << 10
# At most, where the weight alone fills the second cache.
LARGE_CHUNK = 256 << 10
SMALL_WEIGHT = 512 << 10


def _make_multiply(isa: str, form: str, gathered: int) -> Callable[..., None]:
    # Free variables are part of Numba's cache key, so each ISA and form has its own entry.
    tall, short = SHAPES[isa].tall, SHAPES[isa].short
    panel = VECTORS * SHAPES[isa].lanes
    chunk_bytes, large_chunk, small_weight = CHUNK, LARGE_CHUNK, SMALL_WEIGHT

    @jit
    def multiply(
        x: Array,
        step: int,
        rows: Array,
        segments: Array,
        depth4: int,
        vectors: Array,
        taken: Array,
        weights: Array,
        groups: int,
        group_step: int,
        outputs: int,
        correction: Array,
        addend: Array,
        factor: Array,
        multiplier: Array,
        real: Array,
        whole: Array,
        y: Array,
        places: Array,
        place_step: int,
        other: Array,
        others: Array,
        other_step: int,
        begin: int,
        end: int,
        bound: int,
        first_panel: int,
        last_panel: int,
    ) -> None:
        """Compute rows ``begin`` to ``end`` of some panels of each group into ``y``.

        Row ``r`` begins at byte ``r // rows.size * step + rows[r % rows.size]`` of ``x``, plus
        ``group_step`` per group, and likewise its place in ``y``. Elements of ``y`` from
        ``bound`` on are not touched.
        """
        panels = (outputs + panel - 1) // panel
        alone = groups == 1 and first_panel == 0  # nobody else writes where a panel overhangs
        depth = segments.size * depth4 * 4
        panel_bytes = depth * panel
        scratch = np.empty(tall * panel, y.dtype)
        aside = np.arange(tall) * panel
        # Rows whose bytes stay in a cache while all panels pass by.
        room = chunk_bytes if panels * panel_bytes <= small_weight else large_chunk
        chunk = max(4 * tall, room // (depth + groups * outputs) // tall * tall)
        r = begin
        while r < end:
            block = r // rows.size
            start = r - block * rows.size
            stop = min(start + chunk, start + end - r, rows.size)
            for group in range(groups):
                x0 = block * step + group * group_step
                # Panels downwards: where the last one overhangs, others write later.
                for p in range(last_panel - 1, first_panel - 1, -1):
                    n0 = p * panel
                    live = min(panel, outputs - n0)
                    lane = (group * panels + p) * panel
                    w0 = (group * panels + p) * panel_bytes
                    y0 = block * place_step + group * outputs + n0
                    v0 = p * VECTORS if gathered else 0
                    o0 = block * other_step + group * outputs + n0
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
                        last = y0 + places[m + height - 1] + panel
                        direct = live == panel or (alone and last <= bound)
                        if direct:
                            out, out0, at, place = y, y0, places, m
                        else:
                            out, out0, at, place = scratch, 0, aside, 0
                        if height == tall:
                            _tile(
                                isa, form, gathered, tall, x, x0, rows, m, weights, w0, segments,
                                depth4, vectors, v0, taken, correction, addend, factor, multiplier,
                                lane, real, whole, out, out0, at, place, other, o0, others,
                            )  # fmt: skip
                        elif height == short:
                            _tile(
                                isa, form, gathered, short, x, x0, rows, m, weights, w0, segments,
                                depth4, vectors, v0, taken, correction, addend, factor, multiplier,
                                lane, real, whole, out, out0, at, place, other, o0, others,
                            )  # fmt: skip
                        else:
                            _tile(
                                isa, form, gathered, 1, x, x0, rows, m, weights, w0, segments,
                                depth4, vectors, v0, taken, correction, addend, factor, multiplier,
                                lane, real, whole, out, out0, at, place, other, o0, others,
                            )  # fmt: skip
                        if not direct:
                            for i in range(height):
                                for j in range(live):
                                    y[y0 + places[m + i] + j] = scratch[i * panel + j]
                        m += height
            r += stop - start

    return multiply


MULTIPLY = {
    (form, gathered): _make_multiply(ISA, form, int(gathered))
    for form in FORMS
    for gathered in (False, True)
}
