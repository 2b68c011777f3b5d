"""Products of four bytes added to int32 lanes, in LLVM: what the tiles are made of.

The instruction is chosen when the code is generated, see ``registers.py``; all choices are exact,
but for the one that saturates on purpose.
"""

from __future__ import annotations

from llvmlite import ir

from refquant.kernels.llvm import I8, I16, I32, call, constant, pick, vector


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


def dot4(b: ir.IRBuilder, isa: str, total: ir.Value, u: ir.Value, s: ir.Value) -> ir.Value:
    """Add to each int32 the products of four unsigned with four signed bytes; exact."""
    if isa in ("avx512vnni", "avxvnni"):
        bits = 32 * total.type.count
        return call(b, f"llvm.x86.avx512.vpdpbusd.{bits}", total.type, total, u, s)
    for x, y in _widened_pairs(b, u, s):
        total = b.add(total, _add_neighbours(b, isa, x, y))
    return total


def dot4_saturating(
    b: ir.IRBuilder, isa: str, total: ir.Value, u: ir.Value, s: ir.Value
) -> ir.Value:
    """Like ``dot4``, but the sum of each pair of products saturates to int16."""
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
