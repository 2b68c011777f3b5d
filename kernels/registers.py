"""Register shapes: how many rows and output channels a tile holds on each instruction set.

The instruction set is that of the CPU for which Numba compiles. The environment variable
``REFQUANT_ISA`` (one of ``avx512vnni``, ``avxvnni``, ``avx512``, ``avx2``, ``generic``), read on
import, overrides the choice, so that one machine can test them all; ``generic`` is plain LLVM for
any CPU. All give the same bits.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt
from numba.core.registry import cpu_target

from refquant.ir.errors import RefquantError

VECTORS = 2  # vectors of output channels in a tile


class Shape(NamedTuple):
    """How the registers of an instruction set are used.

    Parameters
    ----------
    lanes : int
        32-bit lanes of a vector.
    tall, short : int
        Rows of the tiles.
    pixels : int
        Pixels that a depthwise step computes together.
    """

    lanes: int
    tall: int
    short: int
    pixels: int


SHAPES = {
    "avx512vnni": Shape(16, 12, 4, 4),
    "avxvnni": Shape(8, 6, 2, 2),
    "avx512": Shape(16, 8, 4, 4),
    "avx2": Shape(8, 4, 2, 1),
    "generic": Shape(4, 4, 2, 1),
}


def _choose_isa() -> str:
    forced = os.environ.get("REFQUANT_ISA")
    if forced:
        if forced not in SHAPES:
            raise RefquantError(f"REFQUANT_ISA must be one of {', '.join(SHAPES)}, got {forced!r}")
        return forced
    if nb.config.DISABLE_JIT:
        return "generic"
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    if "+avx512vnni" in features and "+avx512bw" in features:
        return "avx512vnni"
    if "+avxvnni" in features:
        return "avxvnni"
    if "+avx512bw" in features:
        return "avx512"
    return "avx2" if "+avx2" in features else "generic"


ISA = _choose_isa()
LANES = SHAPES[ISA].lanes
PANEL = VECTORS * LANES  # output channels that lie together in packed weights
BLOCK = 4 * LANES  # channels that a depthwise step computes together
# Bytes that may be read (never used) past the last row of an input.
SLACK = 4 * BLOCK


def depthwise_order(lanes: int) -> npt.NDArray[Any]:
    """Return the channel of each int32 lane, vector after vector, of a depthwise block."""
    in_lane = np.arange(lanes // 4)[:, None] * 16 + np.arange(4)
    return np.concatenate([in_lane.ravel() + 4 * j for j in range(4)])
