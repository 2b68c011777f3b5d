"""Samples of batch, layer, group and instance norm."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.qtensor import QTensor
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw.pointwise import any_layout, output
from refquant.ledger.draw.tensors import Array, Rng, quantized, shape_of
from refquant.ledger.ties import at_tie

EPS = (1e-5, 1e-3, 0.1)
RANKS = {"batch_norm1d": (2, 3), "batch_norm2d": (4,), "batch_norm3d": (5,)}


def _values(rng: Rng, cell: Cell, shape: tuple[int, ...]) -> QTensor:
    """Return integers of the whole range; some deviate little, a few not at all."""
    x = quantized(rng, shape, cell.dtype, any_layout(rng))
    if rng.random() < 0.2:
        spread = int(rng.integers(0, 4))
        near = int(x.zero_point) + rng.integers(-spread, spread + 1, x.shape)
        x = x.with_int_repr(np.clip(near, *cell.dtype.limits).astype(cell.dtype.storage))
    return x


def _affine(rng: Rng, shape: tuple[int, ...]) -> tuple[Array | None, Array | None]:
    """Return weight and bias, or neither."""
    if rng.random() < 0.25:
        return None, None
    weight, bias = rng.normal(size=(2, *shape)).astype(np.float32)
    return weight, bias


def _scaled(
    rng: Rng, cell: Cell, operands: tuple[Any, ...], attributes: dict[str, Any], start: float
) -> Call:
    """Return the call whose output scale lies at a tie."""
    given = {
        "eps": float(rng.choice(EPS)),
        **attributes,
        **output(rng, cell.dtype, start, "output_"),
    }
    return at_tie(rng, cell, lambda s: Call(operands, {**given, "output_scale": s}), start)


def batch_norm(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw statistics and affine parameters of each channel."""
    kind = cell.name.partition("::")[2].removesuffix("_relu")
    x = _values(rng, cell, shape_of(rng, size, RANKS.get(kind, (2, 3, 4, 5))))
    channels = x.shape[1]
    weight, bias, mean = rng.normal(size=(3, channels)).astype(np.float32)
    variance = np.exp(rng.normal(size=channels)).astype(np.float32)
    start = float(np.exp(rng.uniform(-5, -2)))
    return _scaled(rng, cell, (x, weight, bias, mean, variance), {}, start)


def layer_norm(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw rows of every length around the vectors', over one or more dimensions."""
    length = int(rng.choice([1, 2, 7, 16, 31, 32, 33, 63, 64, 65, 100, 300, 768]))
    ends = (*(1, 1, 1, 2, 3)[int(rng.integers(2, 5)) :], length)
    rows = max(1, size // int(np.prod(ends)))
    x = _values(rng, cell, (rows, *ends) if rng.random() < 0.5 else (1, rows, *ends))
    ends = x.shape[x.int_repr.ndim - len(ends) :]
    start = float(np.exp(rng.uniform(-4, -2)))
    return _scaled(rng, cell, (x, *_affine(rng, ends)), {"normalized_shape": list(ends)}, start)


def group_norm(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw groups of channels; an instance norm has one channel in each."""
    x = _values(rng, cell, shape_of(rng, size, (3, 4, 4, 5)))
    channels = x.shape[1]
    attributes = {}
    if "group_norm" in cell.name:
        divisors = [n for n in range(1, channels + 1) if channels % n == 0]
        attributes["num_groups"] = int(rng.choice(divisors))
    start = float(np.exp(rng.uniform(-4, -2)))
    return _scaled(rng, cell, (x, *_affine(rng, (channels,))), attributes, start)


SAMPLERS: dict[str, Sampler] = {
    **{
        f"quantized::batch_norm{rank}{relu}": batch_norm
        for rank in ("", "1d", "2d", "3d")
        for relu in ("", "_relu")
    },
    "quantized::layer_norm": layer_norm,
    "quantized::group_norm": group_norm,
    "quantized::instance_norm": group_norm,
}
