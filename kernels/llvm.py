"""LLVM building blocks of the intrinsics: constants, lanes, unaligned memory, functions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
BYTES, INTS, LONGS, FLOATS = (ir.PointerType(kind) for kind in (I8, I32, I64, F32))


def vector(element: ir.Type, lanes: int) -> ir.VectorType:
    """Return the type of a vector."""
    return ir.VectorType(element, lanes)


def constant(kind: ir.VectorType, value: float) -> ir.Constant:
    """Return a vector of equal constants."""
    return ir.Constant(kind, [value] * kind.count)


def call(b: ir.IRBuilder, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
    """Call one of LLVM's intrinsics."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), args)


def splat(b: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    """Return a vector of one value."""
    undefined = ir.Constant(vector(value.type, lanes), ir.Undefined)
    single = b.insert_element(undefined, value, I32(0))
    return b.shuffle_vector(single, undefined, constant(vector(I32, lanes), 0))


def pick(b: ir.IRBuilder, x: ir.Value, y: ir.Value, lanes: list[int]) -> ir.Value:
    """Return lanes of two vectors, counted through."""
    return b.shuffle_vector(x, y, ir.Constant(vector(I32, len(lanes)), lanes))


def load(b: ir.IRBuilder, pointer: ir.Value, offset: ir.Value, kind: ir.Type) -> ir.Value:
    """Load a value that may be unaligned, ``offset`` elements after ``pointer``."""
    at = b.bitcast(b.gep(pointer, [offset]), ir.PointerType(kind))
    loaded = b.load(at)
    loaded.align = 1
    return loaded


def store(b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, offset: ir.Value) -> None:
    """Store where :func:`load` loads."""
    at = b.bitcast(b.gep(pointer, [offset]), ir.PointerType(value.type))
    b.store(value, at).align = 1


def new_function(
    module: ir.Module, name: str, arguments: list[ir.Type]
) -> tuple[ir.Function, bool]:
    """Return an out-of-line function and whether its body is still to be written."""
    if name in module.globals:
        return module.globals[name], False
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    function.attributes.add("nounwind")
    return function, True


def data_of(
    context: Any, b: ir.IRBuilder, kind: Any, value: ir.Value, first: ir.Value
) -> ir.Value:
    """Return the address of element ``first`` of a contiguous array."""
    return b.gep(context.make_array(kind)(context, b, value).data, [first])
