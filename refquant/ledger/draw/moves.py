"""Samples of what moves, selects, orders or averages elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.qtensor import QTensor
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw.pointwise import alone, any_layout, values
from refquant.ledger.draw.tensors import Rng, moved, quantized, shape_of
from refquant.ledger.ties import at_tie


def _dimension(rng: Rng, x: QTensor) -> int:
    rank = x.int_repr.ndim
    return int(rng.integers(-rank, rank))


def _dimensions(rng: Rng, x: QTensor) -> list[int]:
    rank = x.int_repr.ndim
    count = int(rng.integers(1, rank + 1))
    if rng.random() < 0.5:
        return list(range(rank - count, rank))
    return [int(d) for d in rng.choice(rank, count, replace=False)]


def _few(rng: Rng, x: QTensor) -> QTensor:
    """Return few different integers, so that many are equal."""
    if rng.random() < 0.5:
        return x
    low, high = x.dtype.limits
    start = int(rng.integers(max(low, -200), min(high, 200) - 5))
    return x.with_int_repr((start + (x.int_repr % 5)).astype(x.int_repr.dtype))


def mean(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw the dimensions; sums of integers lie on ties by themselves where the count is even."""
    if rng.random() < 0.4:
        count = int(rng.integers(1, 9))
        x = quantized(rng, (max(1, size // 3), 3, count), cell.dtype)
        return Call((x,), {"dim": [2], "keepdim": bool(rng.integers(2))})
    x = values(rng, cell, size * int(rng.choice([1, 8])))
    return Call((x,), {"dim": _dimensions(rng, x), "keepdim": bool(rng.integers(2))})


def std(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw the dimensions and the correction."""
    x = values(rng, cell, size * 8)
    attributes: dict[str, Any] = {"dim": _dimensions(rng, x), "keepdim": bool(rng.integers(2))}
    return Call((x,), {**attributes, "correction": int(rng.integers(0, 3))})


def extreme_along(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw the dimension; many elements are equal, which decides the index."""
    x = _few(rng, values(rng, cell, size * 4))
    return Call((x,), {"dim": _dimension(rng, x), "keepdim": bool(rng.integers(2))})


def sort(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a dimension and a direction."""
    x = _few(rng, values(rng, cell, size))
    direction = bool(rng.integers(2))
    return Call((x,), {"stable": True, "dim": _dimension(rng, x), "descending": direction})


def topk(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a dimension without equal elements, whose order torch leaves open."""
    low, high = cell.dtype.limits
    length = int(rng.integers(1, 200))
    rows = max(1, size // length)
    lowest = max(low, -100_000)
    start = rng.integers(lowest, min(high, 100_000) - length + 2, (rows, 1))
    integers = rng.permuted(start + np.arange(length), axis=1).astype(cell.dtype.storage)
    x = QTensor(integers, 0.3, int(np.clip(3, low, high)), None, cell.dtype)
    attributes = {"k": int(rng.integers(1, length + 1)), "dim": -1}
    return Call((x,), {**attributes, "largest": bool(rng.integers(2)), "sorted": True})


def index(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw places along some dimensions, some negative, broadcast against each other."""
    x = quantized(rng, shape_of(rng, size, (2, 3, 4)), cell.dtype, any_layout(rng))
    count = int(rng.integers(1, x.int_repr.ndim + 1))
    shapes = ((1,), (4,), (3, 4), (3, 1))
    places: list[Any] = [
        rng.integers(-n, n, shapes[int(rng.integers(len(shapes)))]) for n in x.shape[:count]
    ]
    if count > 1 and rng.random() < 0.4:
        places[int(rng.integers(count))] = None
    return Call((x, *places), {})


def index_select(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw the places along one dimension."""
    x = values(rng, cell, size)
    dim = _dimension(rng, x)
    places = rng.integers(0, x.shape[dim], int(rng.integers(1, 9)))
    return Call((x, places.astype(rng.choice(["int32", "int64"]))), {"dim": dim})


def masked_fill(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a mask and a number next to half a step."""
    x = values(rng, cell, size)
    number = (int(rng.integers(-60, 60)) + 0.5) * float(np.float32(x.scale))
    mask = rng.random(x.shape if rng.random() < 0.7 else x.shape[-1:]) < 0.4
    return Call((x, mask), {"value": moved(number, int(rng.integers(-3, 4)))})


def index_put(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw places to write to, all different, and values at ties of the target's scale."""
    x = quantized(rng, shape_of(rng, size, (2, 3)), cell.dtype)
    rows = rng.choice(x.shape[0], int(rng.integers(1, x.shape[0] + 1)), replace=False)
    steps = rng.integers(-60, 60, (rows.size, *x.shape[1:])) + 0.5
    floats = (steps * float(np.float32(x.scale))).astype(np.float32)
    return Call((x, floats, rows), {"accumulate": False})


def cat_alike(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw tensors to join whose scales differ from the first one's, which the result takes."""
    x = quantized(rng, shape_of(rng, size // 2, (2, 3, 4)), cell.dtype)
    dim = _dimension(rng, x)
    others = [quantized(rng, x.shape, cell.dtype) for _ in range(int(rng.integers(0, 3)))]

    def make(scale: float) -> Call:
        first = QTensor(x.int_repr, scale, x.zero_point, None, x.dtype)
        return Call((first, *others), {"dim": dim})

    return at_tie(rng, cell, make, float(x.scale)) if others else make(float(x.scale))


def view(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a shape that a contiguous tensor can be seen in, or one that strides may forbid."""
    x = values(rng, cell, size)
    inner = int(x.shape[-1])
    shapes = ((-1,), (-1, inner), (1, *x.shape), (*x.shape, 1))
    return Call((x,), {"size": shapes[int(rng.integers(len(shapes)))]})


def flip(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw the dimensions to turn."""
    x = values(rng, cell, size)
    return Call((x,), {"dims": sorted(_dimensions(rng, x))})


def squeeze(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw dimensions to leave out, some of which are not 1 long."""
    x = quantized(rng, (1, *shape_of(rng, size, (2, 3)), 1), cell.dtype)
    rank = x.int_repr.ndim
    if cell.name == "aten::squeeze.dims" or rng.random() < 0.3:
        return Call((x,), {"dim": tuple(sorted({0, int(rng.integers(1, rank))}))})
    return Call((x,), {"dim": int(rng.integers(-rank, rank))} if rng.random() < 0.7 else {})


def unsqueeze(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw the place of a new dimension."""
    x = values(rng, cell, size)
    rank = x.int_repr.ndim
    return Call((x,), {"dim": int(rng.integers(-rank - 1, rank + 1))})


def unfold(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw windows along one dimension."""
    x = values(rng, cell, size)
    dim = _dimension(rng, x)
    length = int(rng.integers(1, min(x.shape[dim], 5) + 1))
    attributes = {"dimension": dim, "size": length, "step": int(rng.integers(1, 4))}
    return Call((x,), attributes)


def per_tensor_or_channel(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a tensor, now and then quantized per channel."""
    x = values(rng, cell, size)
    if rng.random() < 0.6:
        return Call((x,), {})
    axis = int(rng.integers(x.int_repr.ndim))
    scales = np.exp(rng.uniform(-9, 4, x.shape[axis]))
    zero_points = rng.integers(max(cell.dtype.limits[0], 0), 100, x.shape[axis])
    return Call((QTensor(x.int_repr, scales, zero_points, axis, x.dtype),), {})


SAMPLERS: dict[str, Sampler] = {
    "aten::mean": mean,
    "aten::std": std,
    "aten::max": alone,
    "aten::min": alone,
    "aten::max.dim": extreme_along,
    "aten::min.dim": extreme_along,
    "aten::sort.stable": sort,
    "aten::topk": topk,
    "aten::index": index,
    "aten::index_select": index_select,
    "aten::masked_fill.Scalar": masked_fill,
    "aten::index_put": index_put,
    "aten::cat": cat_alike,
    "aten::view": view,
    "aten::flip": flip,
    "aten::squeeze": squeeze,
    "aten::unsqueeze": unsqueeze,
    "aten::unfold": unfold,
    "aten::clone": per_tensor_or_channel,
    "aten::int_repr": per_tensor_or_channel,
    "aten::dequantize": per_tensor_or_channel,
}
