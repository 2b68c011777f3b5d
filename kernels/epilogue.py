"""The last step of a tile, in LLVM: int32 sums become bytes, float32, or stay what they are.

A *form* is one way of doing it; ``requantize.py`` says which engine takes which. The numbers that
all channels share come in two arrays, in the order of :class:`Whole` and :class:`Real`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from llvmlite import ir

from refquant.kernels.llvm import (
    F32,
    I8,
    I16,
    I32,
    I64,
    call,
    constant,
    load,
    pick,
    splat,
    vector,
)


class Whole(NamedTuple):
    """Whole numbers: zero point and limits of the result, and of a sum it goes into."""

    zero_point: ir.Value
    low: ir.Value
    high: ir.Value
    sum_zero_point: ir.Value
    sum_low: ir.Value
    sum_high: ir.Value


class Real(NamedTuple):
    """Real numbers: steps of the result in 1, and for a sum what dequantizes both operands."""

    output: ir.Value
    scale: ir.Value
    offset: ir.Value
    other_scale: ir.Value
    other_offset: ir.Value
    inverse: ir.Value


class Numbers(NamedTuple):
    """What all channels share, in vectors."""

    whole: Whole
    real: Real


def read_numbers(b: ir.IRBuilder, whole: ir.Value, real: ir.Value, lanes: int) -> Numbers:
    """Load both arrays once, before anything is stored."""
    return Numbers(
        Whole(*(splat(b, b.load(b.gep(whole, [I64(i)])), lanes) for i in range(6))),
        Real(*(splat(b, b.load(b.gep(real, [I64(i)])), lanes) for i in range(6))),
    )


def to_int(b: ir.IRBuilder, isa: str, x: ir.Value) -> ir.Value:
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


def _float(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.sitofp(x, vector(F32, x.type.count))


def _limited(
    b: ir.IRBuilder, whole: ir.Value, zero_point: ir.Value, low: ir.Value, high: ir.Value
) -> ir.Value:
    """Add the zero point and limit; the limits come first, so that nothing overflows."""
    name, kind = f"v{whole.type.count}i32", whole.type
    whole = call(b, f"llvm.smin.{name}", kind, whole, b.sub(high, zero_point))
    whole = call(b, f"llvm.smax.{name}", kind, whole, b.sub(low, zero_point))
    return b.add(whole, zero_point)


# ---- from a vector of sums to what is stored


def _fused(
    b: ir.IRBuilder, isa: str, total: ir.Value, constants: tuple[ir.Value, ...], _n: Numbers
) -> ir.Value:
    addend, factor, multiplier = constants
    return to_int(b, isa, b.fmul(_fma(b, addend, factor, _float(b, total)), multiplier))


def _scaled(
    b: ir.IRBuilder, isa: str, total: ir.Value, constants: tuple[ir.Value, ...], n: Numbers
) -> ir.Value:
    addend, factor, multiplier = constants
    zero, low, high = (
        _float(b, limit) for limit in (n.whole.zero_point, n.whole.low, n.whole.high)
    )
    real = b.fadd(b.fmul(b.fmul(_float(b, total), multiplier), factor), addend)
    steps = b.fadd(b.fmul(real, n.real.output), zero)
    steps = b.select(b.fcmp_ordered("<", steps, high), steps, high)
    steps = b.select(b.fcmp_ordered(">", steps, low), steps, low)
    return to_int(b, isa, steps)


def _fused_added(
    b: ir.IRBuilder,
    isa: str,
    total: ir.Value,
    constants: tuple[ir.Value, ...],
    n: Numbers,
    other: ir.Value,
) -> ir.Value:
    q = _limited(b, _fused(b, isa, total, constants, n), *n.whole[:3])
    return _added(b, isa, q, n, other)


def _scaled_added(
    b: ir.IRBuilder,
    isa: str,
    total: ir.Value,
    constants: tuple[ir.Value, ...],
    n: Numbers,
    other: ir.Value,
) -> ir.Value:
    return _added(b, isa, _scaled(b, isa, total, constants, n), n, other)


def _added(b: ir.IRBuilder, isa: str, q: ir.Value, n: Numbers, other: ir.Value) -> ir.Value:
    """Add the other operand to a result as ``quantized::add`` does."""
    ours = _fma(b, n.real.scale, _float(b, q), n.real.offset)
    bytes_ = b.zext(other, q.type)
    theirs = _fma(b, n.real.other_scale, _float(b, bytes_), n.real.other_offset)
    return to_int(b, isa, b.fmul(b.fadd(ours, theirs), n.real.inverse))


def _sum(
    _b: ir.IRBuilder, _isa: str, total: ir.Value, _constants: tuple[ir.Value, ...], _n: Numbers
) -> ir.Value:
    return total


def _real(
    b: ir.IRBuilder, _isa: str, total: ir.Value, constants: tuple[ir.Value, ...], _n: Numbers
) -> ir.Value:
    addend, _, multiplier = constants
    return _fma(b, _float(b, total), multiplier, addend)


# ---- from four vectors to bytes


def _saturated(
    b: ir.IRBuilder,
    isa: str,
    parts: list[ir.Value],
    zero_point: ir.Value,
    low: ir.Value,
    high: ir.Value,
) -> ir.Value:
    """Add the zero point to integers of any size and limit them.

    Saturation to 16 and then to 8 bits keeps the order of what the limits tell apart.
    """
    if isa == "generic":
        return _joined(b, [_limited(b, part, zero_point, low, high) for part in parts])
    lanes = parts[0].type.count
    half, whole = vector(I16, 2 * lanes), vector(I8, 4 * lanes)
    zero = _narrow_splat(b, zero_point, I16, 2 * lanes)
    name = f"llvm.sadd.sat.v{2 * lanes}i16"
    words = [call(b, name, half, pair, zero) for pair in _words(b, parts)]
    result = call(b, _PACK_BYTES[lanes], whole, *words)
    for name, limit in (("umax", low), ("umin", high)):
        bound = _narrow_splat(b, limit, I8, 4 * lanes)
        result = call(b, f"llvm.{name}.v{4 * lanes}i8", whole, result, bound)
    return result


def _saturated_sum(b: ir.IRBuilder, isa: str, parts: list[ir.Value], n: Numbers) -> ir.Value:
    return _saturated(b, isa, parts, *n.whole[3:])


def _truncated(b: ir.IRBuilder, isa: str, parts: list[ir.Value]) -> ir.Value:
    """Keep the low byte of integers from -128 to 255."""
    if isa == "generic":
        return _joined(b, parts)
    lanes = parts[0].type.count
    low = [b.and_(part, constant(part.type, 255)) for part in parts]
    return call(b, _PACK_BYTES[lanes], vector(I8, 4 * lanes), *_words(b, low))


_PACK_WORDS = {16: "llvm.x86.avx512.packssdw.512", 8: "llvm.x86.avx2.packssdw"}
_PACK_BYTES = {16: "llvm.x86.avx512.packuswb.512", 8: "llvm.x86.avx2.packuswb"}


def _words(b: ir.IRBuilder, parts: list[ir.Value]) -> list[ir.Value]:
    lanes = parts[0].type.count
    half = vector(I16, 2 * lanes)
    return [call(b, _PACK_WORDS[lanes], half, parts[i], parts[i + 1]) for i in (0, 2)]


def _narrow_splat(b: ir.IRBuilder, value: ir.Value, element: ir.Type, lanes: int) -> ir.Value:
    return splat(b, b.trunc(b.extract_element(value, I32(0)), element), lanes)


def _joined(b: ir.IRBuilder, parts: list[ir.Value]) -> ir.Value:
    """Return the low bytes of four vectors of one 16-byte lane each."""
    lanes = parts[0].type.count
    low, high = (pick(b, parts[i], parts[i + 1], list(range(2 * lanes))) for i in (0, 2))
    return b.trunc(pick(b, low, high, list(range(4 * lanes))), vector(I8, 4 * lanes))


class Form(NamedTuple):
    """One way of finishing sums.

    Parameters
    ----------
    finish : callable
        From a vector of sums to int32 or float32; one that adds takes the other operand's bytes.
    narrow : callable or None
        From four vectors to bytes: in each 16 bytes of the result four of each vector. None
        where results are stored as they are.
    element : llvmlite type
        What is stored.
    adds : bool
        Whether there is another operand.
    """

    finish: Callable[..., ir.Value]
    narrow: Callable[[ir.IRBuilder, str, list[ir.Value], Numbers], ir.Value] | None = None
    element: ir.Type = I8
    adds: bool = False

    @property
    def bytes(self) -> int:
        """Size of an element."""
        return 4 if self.element is F32 else int(self.element.width) // 8


FORMS = {
    "fused": Form(_fused, lambda b, isa, parts, n: _saturated(b, isa, parts, *n.whole[:3])),
    "scaled": Form(_scaled, lambda b, isa, parts, _n: _truncated(b, isa, parts)),
    "fused_added": Form(_fused_added, _saturated_sum, adds=True),
    "scaled_added": Form(_scaled_added, _saturated_sum, adds=True),
    "sum": Form(_sum, element=I32),
    "real": Form(_real, element=F32),
}
"""Forms by name."""


def load_constants(
    b: ir.IRBuilder, pointers: tuple[ir.Value, ...], first: int, lanes: int
) -> tuple[ir.Value, ...]:
    """Load addend, factor and multiplier of some channels."""
    return tuple(load(b, pointer, I64(first), vector(F32, lanes)) for pointer in pointers)
