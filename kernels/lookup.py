"""Tables of 256 bytes: 64 lookups at once where the CPU has them, otherwise one by one."""

from __future__ import annotations

import os
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from refquant.kernels.jit import jit

Bytes = npt.NDArray[np.uint8]
STEP = 64
_BYTES = ir.VectorType(ir.IntType(8), STEP)


def _has_vectors() -> bool:
    """Whether a register of 128 bytes can be looked up in; ``REFQUANT_ISA`` rules it out."""
    if nb.config.DISABLE_JIT or os.environ.get("REFQUANT_ISA", "avx512vnni") != "avx512vnni":
        return False
    return "+avx512vbmi" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


@intrinsic  # type: ignore[misc,untyped-decorator,unused-ignore]
def _look_up_steps(_typing: Any, q: Any, table: Any, steps: Any, out: Any) -> Any:
    """Look up ``steps`` times 64 bytes, the table in four registers."""
    signature = nb.types.void(q, table, nb.types.int64, out)

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        def vector(index: int, at: ir.Value) -> ir.Value:
            kind = signature.args[index]
            data = context.make_array(kind)(context, b, args[index]).data
            return b.bitcast(b.gep(data, [at]), ir.PointerType(_BYTES))

        def load(index: int, at: ir.Value) -> ir.Value:
            loaded = b.load(vector(index, at))
            loaded.align = 1
            return loaded

        name = "llvm.x86.avx512.vpermi2var.qi.512"
        kind = ir.FunctionType(_BYTES, [_BYTES] * 3)
        permute = cgutils.get_or_insert_function(b.module, kind, name)
        parts = [load(1, ir.IntType(64)(STEP * i)) for i in range(4)]
        zero = ir.Constant(_BYTES, [0] * STEP)
        with cgutils.for_range(b, args[2]) as step:
            at = b.mul(step.index, ir.IntType(64)(STEP))
            index = load(0, at)
            low = b.call(permute, [parts[0], index, parts[1]])
            high = b.call(permute, [parts[2], index, parts[3]])
            found = b.select(b.icmp_signed("<", index, zero), high, low)
            b.store(found, vector(3, at)).align = 1
        return context.get_dummy_value()

    return signature, codegen


@jit
def _in_vectors(q: Bytes, table: Bytes, out: Bytes) -> None:
    steps = q.size // STEP
    _look_up_steps(q, table, steps, out)
    for i in range(steps * STEP, q.size):
        out[i] = table[q[i]]


@jit
def _one_by_one(q: Bytes, table: Bytes, out: Bytes) -> None:
    for i in range(q.size):
        out[i] = table[q[i]]


_chosen = _in_vectors if _has_vectors() else _one_by_one


def look_up(q: npt.NDArray[Any], table: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Store the entry of each byte, all contiguous; signed bytes count as unsigned ones.

    Examples
    --------
    >>> out = np.empty(3, np.int8)
    >>> look_up(np.int8([0, 1, -1]), np.arange(256)[::-1].astype(np.uint8), out)
    >>> out
    array([-1, -2,  0], dtype=int8)
    """
    _chosen(q.view(np.uint8), table.view(np.uint8), out.view(np.uint8))
