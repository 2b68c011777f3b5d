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
from refquant.kernels.llvm import I8, I64, call, constant, data_of, load, pick, store, vector

Bytes = npt.NDArray[np.uint8]
STEP = 64
SHORT = 16
_UINT8 = np.dtype(np.uint8)
_BYTES = vector(I8, STEP)


def _has_vectors() -> bool:
    """Whether a register of 128 bytes can be looked up in; ``REFQUANT_ISA`` rules it out."""
    if nb.config.DISABLE_JIT or os.environ.get("REFQUANT_ISA", "avx512vnni") != "avx512vnni":
        return False
    return "+avx512vbmi" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def _look_up(b: ir.IRBuilder, parts: list[ir.Value], index: ir.Value) -> ir.Value:
    """Look up 64 bytes in a table of four registers."""
    name = "llvm.x86.avx512.vpermi2var.qi.512"
    low = call(b, name, _BYTES, parts[0], index, parts[1])
    high = call(b, name, _BYTES, parts[2], index, parts[3])
    is_high = b.icmp_signed("<", index, constant(_BYTES, 0))
    return b.select(is_high, high, low)


@intrinsic  # type: ignore[misc,untyped-decorator,unused-ignore]
def _look_up_rows(
    _typing: Any,
    q: Any,
    q0: Any,
    pitch: Any,
    table: Any,
    rows: Any,
    width: Any,
    out: Any,
    out0: Any,
    out_pitch: Any,
) -> Any:
    """Look up rows of at least 16 bytes; the last step of a row overlaps the one before."""
    i64 = nb.types.int64
    signature = nb.types.void(q, i64, i64, table, i64, i64, out, i64, i64)

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kinds = signature.args
        source = data_of(context, b, kinds[0], args[0], args[1])
        into = data_of(context, b, kinds[6], args[6], args[7])
        entries = data_of(context, b, kinds[3], args[3], I64(0))
        parts = [load(b, entries, I64(STEP * i), _BYTES) for i in range(4)]
        width = args[5]

        def steps(lanes: int, here: ir.Value, there: ir.Value) -> None:
            kind = vector(I8, lanes)

            def step(at: ir.Value) -> None:
                index = load(b, here, at, kind)
                spread = pick(b, index, index, [i % lanes for i in range(STEP)])
                found = _look_up(b, parts, spread)
                store(b, pick(b, found, found, list(range(lanes))), there, at)

            with cgutils.for_range(b, b.udiv(width, I64(lanes))) as i:
                step(b.mul(i.index, I64(lanes)))
            with b.if_then(b.icmp_unsigned("!=", b.urem(width, I64(lanes)), I64(0))):
                step(b.sub(width, I64(lanes)))

        with cgutils.for_range(b, args[4]) as r:
            here = b.gep(source, [b.mul(r.index, args[2])])
            there = b.gep(into, [b.mul(r.index, args[8])])
            with b.if_else(b.icmp_unsigned(">=", width, I64(STEP))) as (wide, narrow):
                with wide:
                    steps(STEP, here, there)
                with narrow:
                    steps(SHORT, here, there)
        return context.get_dummy_value()

    return signature, codegen


@jit
def _in_vectors(
    q: Bytes,
    q0: int,
    pitch: int,
    table: Bytes,
    rows: int,
    width: int,
    out: Bytes,
    out0: int,
    out_pitch: int,
) -> None:
    if width >= SHORT:
        _look_up_rows(q, q0, pitch, table, rows, width, out, out0, out_pitch)
    else:
        _one_by_one(q, q0, pitch, table, rows, width, out, out0, out_pitch)


@jit
def _one_by_one(
    q: Bytes,
    q0: int,
    pitch: int,
    table: Bytes,
    rows: int,
    width: int,
    out: Bytes,
    out0: int,
    out_pitch: int,
) -> None:
    for r in range(rows):
        row = q[q0 + r * pitch : q0 + r * pitch + width]
        into = out[out0 + r * out_pitch : out0 + r * out_pitch + width]
        for i in range(row.size):
            into[i] = table[row[i]]


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
    look_up_rows(q, 0, 0, table, 1, q.size, out, 0, 0)


def look_up_rows(
    q: npt.NDArray[Any],
    q0: int,
    pitch: int,
    table: npt.NDArray[Any],
    rows: int,
    width: int,
    out: npt.NDArray[Any],
    out0: int,
    out_pitch: int,
) -> None:
    """Do :func:`look_up` for rows of ``width`` bytes that begin ``pitch`` apart."""
    if q.dtype is not _UINT8:
        q, table, out = q.view(_UINT8), table.view(_UINT8), out.view(_UINT8)
    _chosen(q, q0, pitch, table, rows, width, out, out0, out_pitch)
