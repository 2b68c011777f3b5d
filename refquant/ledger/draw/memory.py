"""Samples of operators that write to a given tensor, and of what looks at memory."""

from __future__ import annotations

import numpy as np

from refquant.ir.qtensor import QTensor
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw.pointwise import any_layout, binary, values
from refquant.ledger.draw.tensors import Rng, laid_out, moved, quantized, zero_point
from refquant.ledger.ties import at_tie


def _place(rng: Rng, shape: tuple[int, ...], like: QTensor) -> QTensor:
    """Return a tensor to write to: dense in any order of dimensions, or with gaps."""
    layout = any_layout(rng)
    if layout == "every_second":
        shape = (*shape[:-1], 2 * shape[-1])
    if layout == "permuted":
        shape = (shape[-1], *shape[:-1])
    empty = laid_out(np.zeros(shape, like.int_repr.dtype), layout)
    return like.with_int_repr(empty)


def binary_out(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a sum or product with a result of any strides."""
    plain = Cell(cell.name.removesuffix(".out"), cell.target, cell.dtype)
    (a, b), attributes = binary(rng, plain, size)
    shape = np.broadcast_shapes(a.shape, b.shape)
    given = attributes["zero_point"]
    start = float(attributes["scale"])
    place = _place(rng, shape, QTensor(np.zeros(1, cell.dtype.storage), 1.0, given, None, a.dtype))

    def make(scale: float) -> Call:
        return Call((a, b, QTensor(place.int_repr, scale, given, None, a.dtype)), {})

    return at_tie(rng, cell, make, start)


def leaky_relu_out(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a slope and a result with parameters and strides of its own."""
    x = values(rng, cell, size)
    slope = float(rng.choice([0.01, rng.uniform(0.001, 1.2), -0.3]))
    start = float(x.scale) * float(np.exp(rng.uniform(-1, 1)))
    to = zero_point(rng, cell.dtype)
    place = _place(rng, x.shape, x)

    def make(scale: float) -> Call:
        out = QTensor(place.int_repr, scale, to, None, x.dtype)
        return Call((x, out), {"negative_slope": slope})

    return at_tie(rng, cell, make, start)


def _number(rng: Rng, x: QTensor) -> float:
    half = (int(rng.integers(-60, 60)) + 0.5) * float(np.float32(x.scale))
    return moved(half, int(rng.integers(-3, 4)))


def fill(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a number next to half a step; the tensor is dense, other ones torch refuses."""
    x = values(rng, cell, size)
    layout = "channels_last" if rng.random() < 0.4 else "contiguous"
    x = x.with_int_repr(laid_out(np.ascontiguousarray(x.int_repr), layout))
    number = _number(rng, x)
    if cell.name.endswith(".Tensor"):
        return Call((x, np.asarray(number, np.float32)), {})
    return Call((x,), {"value": number})


def masked_fill(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a mask and a tensor of one number next to half a step."""
    x = values(rng, cell, size)
    mask = rng.random(x.shape if rng.random() < 0.7 else x.shape[-1:]) < 0.4
    return Call((x, mask, np.asarray(_number(rng, x), np.float32)), {})


def equal(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw two tensors that are the same, or differ in one element or a parameter."""
    x = values(rng, cell, size)
    y = x.with_int_repr(x.int_repr.copy())
    change = int(rng.integers(0, 4))
    if change == 1:
        y.int_repr.flat[int(rng.integers(y.int_repr.size))] ^= 1
    if change == 2:
        y = QTensor(y.int_repr, float(y.scale) * 2, y.zero_point, None, y.dtype)
    if change == 3:
        y = y.with_int_repr(y.int_repr.reshape(1, *y.shape))
    return Call((x, y), {})


def as_strided(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw steps that stay inside the memory; elements may be there twice."""
    x = quantized(rng, (size,), cell.dtype)
    rank = int(rng.integers(1, 4))
    offset = int(rng.integers(0, 3))
    lengths: list[int] = []
    steps: list[int] = []
    left = size - 1 - offset
    for _ in range(rank):
        step = int(rng.integers(0, 5))
        length = int(rng.integers(1, max(2, left // max(step, 1) // 2 + 1)))
        length = min(length, 50 if step else 4)
        lengths, steps = [*lengths, length], [*steps, step]
        left -= (length - 1) * step
    return Call((x,), {"size": tuple(lengths), "stride": tuple(steps), "storage_offset": offset})


_BINARY = ("add", "add_relu", "mul", "mul_relu")

SAMPLERS: dict[str, Sampler] = {
    **{f"quantized::{name}.out": binary_out for name in _BINARY},
    "aten::leaky_relu.out": leaky_relu_out,
    "aten::fill.Scalar": fill,
    "aten::fill.Tensor": fill,
    "aten::masked_fill.Tensor": masked_fill,
    "aten::equal": equal,
    "aten::as_strided": as_strided,
}
