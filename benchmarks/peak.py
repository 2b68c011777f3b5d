"""How much of what the chip can do is reached: a loop of products that never leaves registers.

``python benchmarks/peak.py``. The loop does as many products as the operator beside it, in turn
with it, so that their ratio is the fraction of the peak at the clock of the moment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from math import prod
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numba as nb
import numpy as np
from llvmlite import ir
from numba.extending import intrinsic
from operators import CONVOLUTIONS, DEPTHWISE, PRODUCTS, convolution, linear
from pairs import Pair, report

from refquant.kernels.dot import dot4
from refquant.kernels.jit import jit
from refquant.kernels.llvm import I32, I64, call, splat, vector
from refquant.kernels.registers import ISA, LANES

CHAINS = 16  # independent sums, enough to hide an instruction's latency
MACS = CHAINS * LANES * 4  # of one turn of the loop


@intrinsic
def _products(_typing: Any, _turns: Any, _seed: Any) -> Any:
    def codegen(_context: Any, b: Any, _signature: Any, args: Any) -> Any:
        turns, seed = args
        kind = vector(I32, LANES)
        u, s = (splat(b, b.add(seed, I32(more)), LANES) for more in (0x01020304, 0x04030201))
        before, body, after = b.block, b.append_basic_block("turn"), b.append_basic_block("end")
        b.branch(body)
        b.position_at_end(body)
        turn = b.phi(I64)
        sums = [b.phi(kind) for _ in range(CHAINS)]
        turn.add_incoming(I64(0), before)
        following = b.add(turn, I64(1))
        turn.add_incoming(following, body)
        for i, total in enumerate(sums):
            total.add_incoming(ir.Constant(kind, [i] * LANES), before)
            total.add_incoming(dot4(b, ISA, total, u, s), body)
        b.cbranch(b.icmp_signed("<", following, turns), body, after)
        b.position_at_end(after)
        results = [total.incomings[1][0] for total in sums]
        for other in results[1:]:
            results[0] = b.add(results[0], other)
        return call(b, f"llvm.vector.reduce.add.v{LANES}i32", I32, results[0])

    return nb.int32(nb.int64, nb.int32), codegen


@jit
def _loop(turns: int, seed: int) -> int:
    return _products(np.int64(turns), np.int32(seed))  # type: ignore[no-any-return]


def loop_of(macs: int) -> int:
    """Do about so many products of bytes, in registers."""
    return _loop(max(1, macs // MACS), 7)


def _of_convolution(geometry: tuple[int, ...]) -> tuple[int, int]:
    """Return the products in a convolution, and in one of its sums."""
    inputs, outputs, size, stride, edge, groups, _ = geometry
    depth = inputs // groups * size * size
    return outputs * (-(-edge // stride)) ** 2 * depth, depth


def products() -> Iterator[tuple[Pair, int, int]]:
    """Yield linears and convolutions with their products, and those in one of their sums."""
    for shape in PRODUCTS:
        yield linear("fbgemm", *shape), prod(shape), shape[1]
    for geometry in CONVOLUTIONS:
        yield convolution("fbgemm", *geometry), *_of_convolution(geometry)
    for channels, size, stride, edge in DEPTHWISE:
        geometry = (channels, channels, size, stride, edge, channels, 1)
        yield convolution("fbgemm", *geometry), *_of_convolution(geometry)


@cache
def macs_by_name() -> dict[str, int]:
    """Return the products in each linear and convolution."""
    return {pair.name: macs for pair, macs, _ in products()}


def against_peak() -> Iterator[Pair]:
    """Yield large dense operators of at least 256 products a sum, against the peak."""
    for pair, macs, depth in products():
        if depth >= 256 and macs >= 10_000_000:
            yield pair._replace(
                theirs=lambda macs=macs: loop_of(macs),
                other="peak",
                exact=False,
                wanted=0.9,
                macs=macs,
            )


if __name__ == "__main__":
    print(f"{ISA}: {CHAINS} chains of {LANES} sums; the ratio is the fraction of the peak")
    report(against_peak())
