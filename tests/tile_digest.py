"""Print a hash of what the compiled tile computes: it must not depend on the instruction set."""

from __future__ import annotations

import hashlib

import numpy as np

import refquant  # noqa: F401  (registers the ops)
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import qint8
from refquant.ledger.draw.weighted import KINDS, convolution, dynamic, linear, transposed


def digest() -> str:
    """Run a few cases of every kind through the compiled tile; return a hash of the results."""
    rng = np.random.default_rng(7)
    calls = [("quantized::linear", linear(rng, i % 2 > 0, True, i % 3 > 0)) for i in range(12)]
    calls += [
        ("quantized::linear_dynamic", dynamic(rng, i % 2 > 0, i % 3 > 0, False)) for i in range(4)
    ]
    calls += [
        ("quantized::conv2d", convolution(rng, kind, 2, i % 2 > 0, True, i % 3 > 0))
        for kind in KINDS
        for i in range(6)
    ]
    calls += [("quantized::conv_transpose2d", transposed(rng, 2, True)) for _ in range(4)]
    huge = QTensor(np.full((3, 64), 127, np.int8), 1e5, 0, None, qint8)
    white = QTensor(np.full((5, 64), 255, np.uint8), 0.5, 0)
    calls.append(("quantized::linear", ((white, huge, None), {"scale": 1.0, "zero_point": 9})))
    seen = hashlib.sha256()
    for name, (operands, attributes) in calls:
        result = OPS[name].bind(Target(), fast=True)(*operands, **attributes)
        array = result.int_repr if isinstance(result, QTensor) else result
        seen.update(np.ascontiguousarray(array).tobytes())
    return seen.hexdigest()


if __name__ == "__main__":
    print(digest())
