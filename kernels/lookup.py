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
from refquant.kernels.llvm import I8, I64, call, constant, data_of, load, store, vector

Bytes = npt.NDArray[np.uint8]
STEP = 64
_BYTES = vector(I8, STEP)


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
        bytes_, entries, out = (
            data_of(context, b, signature.args[i], args[i], I64(0)) for i in (0, 1, 3)
        )
        parts = [load(b, entries, I64(STEP * i), _BYTES) for i in range(4)]
        with cgutils.for_range(b, args[2]) as step:
            at = b.mul(step.index, I64(STEP))
            index = load(b, bytes_, at, _BYTES)
            name = "llvm.x86.avx512.vpermi2var.qi.512"
            low = call(b, name, _BYTES, parts[0], index, parts[1])
            high = call(b, name, _BYTES, parts[2], index, parts[3])
            is_high = b.icmp_signed("<", index, constant(_BYTES, 0))
            store(b, b.select(is_high, high, low), out, at)
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
