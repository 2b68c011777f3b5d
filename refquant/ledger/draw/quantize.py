"""Samples of quantization itself, and of the product of two quantized tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.types import DType, qint8, qint32, quint4x2, quint8
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw.floats import a_scale, a_zero_point, hugging
from refquant.ledger.draw.pointwise import output
from refquant.ledger.draw.tensors import Rng, laid_out, quantized
from refquant.ledger.ties import at_tie

LENGTHS = (1, 7, 8, 15, 16, 33, 64, 65, 129)


def per_tensor(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw values at ties, of any length around the vectors'."""
    n = size + int(rng.integers(0, 130)) if rng.random() < 0.6 else int(rng.choice(LENGTHS))
    scale = float(a_scale(rng))
    zero_point = int(a_zero_point(rng, cell.dtype.limits))
    x = hugging(rng, n, scale, zero_point, cell.dtype.limits)
    return Call((x,), {"scale": scale, "zero_point": zero_point, "dtype": cell.dtype})


def per_channel(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw scales and zero points, integers or floats, along any axis and layout."""
    channels = int(rng.choice([1, 3, 8, 17, 33]))
    scales = a_scale(rng, channels)
    zero_points = a_zero_point(rng, cell.dtype.limits, channels).astype(np.int64)
    if rng.random() < 0.2 and cell.dtype != qint32:
        scales = scales.astype(np.float32)
        zero_points = rng.uniform(-5, 100, channels).astype(np.float32)
    spatial = max(1, size // channels // 6)
    x = hugging(rng, 6 * spatial, scales[:, None], zero_points[:, None], cell.dtype.limits)
    x = x.reshape(channels, 2, 3, spatial)
    axis = int(rng.integers(4))
    x = np.ascontiguousarray(np.moveaxis(x, 0, axis))
    layout = "channels_last" if rng.random() < 0.3 and axis == 1 else "contiguous"
    x = laid_out(x, layout)
    return Call((x, scales, zero_points), {"axis": axis, "dtype": cell.dtype})


def matmul(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw matrices, batched or not; the output scale lies at a tie."""
    batch = (((),) * 3 + ((2,), (3, 1)))[int(rng.integers(5))]
    depth = int(rng.choice([1, 2, 7, 16, 64, 100, 300]))
    columns = int(rng.choice([2, 3, 8, 17, 64]))
    rows = max(1, size // columns // max(1, int(np.prod(batch))))
    a = quantized(rng, (*batch, min(rows, 2000), depth), cell.dtype)
    b = quantized(rng, (*batch, depth, columns), cell.dtype)
    start = float(a.scale) * float(b.scale) * 60 * depth**0.5
    attributes: dict[str, Any] = output(rng, cell.dtype, start)
    return at_tie(rng, cell, lambda s: Call((a, b), {**attributes, "scale": s}), start)


SAMPLERS: dict[str, Sampler] = {
    "aten::quantize_per_tensor": per_tensor,
    "aten::quantize_per_channel": per_channel,
    "quantized::matmul": matmul,
}
DTYPES: dict[str, tuple[DType, ...]] = {
    "aten::quantize_per_tensor": (quint8, qint8, qint32, quint4x2),
}
