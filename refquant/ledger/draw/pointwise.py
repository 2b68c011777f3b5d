"""Samples of elementwise ops, of softmax and of concatenation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from refquant.ir.qtensor import QTensor
from refquant.ir.types import DType, float32, qint8, qint32, quint8
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw.tensors import (
    LAYOUTS,
    Rng,
    laid_out,
    moved,
    quantized,
    shape_of,
    zero_point,
)
from refquant.ledger.ties import at_tie

Attributes = dict[str, Any]


def any_layout(rng: Rng) -> str:
    """Return a layout; the dense ones more often."""
    return str(rng.choice(LAYOUTS, p=[0.4, 0.35, 0.1, 0.15]))


def values(rng: Rng, cell: Cell, size: int) -> QTensor:
    """Return a tensor of any shape and layout; now and then of every integer, or of the ends."""
    shape = shape_of(rng, size)
    x = quantized(rng, shape, cell.dtype, any_layout(rng))
    if cell.dtype == qint32 and rng.random() < 0.7:
        return QTensor(x.int_repr, x.scale, int(rng.integers(-100, 100)), None, qint32)
    return x


def output(rng: Rng, dtype: DType, scale: float, prefix: str = "") -> Attributes:
    """Return the quantization parameters of a result."""
    margin = int(rng.choice([0, 10]))
    return {f"{prefix}scale": scale, f"{prefix}zero_point": zero_point(rng, dtype, margin)}


def _placed(attributes: Attributes, key: str, number: float) -> Attributes:
    return {**attributes, key: number}


def binary(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a sum or product; some operands are broadcast, some differ in layout."""
    shape = shape_of(rng, size)
    layout = any_layout(rng)
    a, b = (quantized(rng, shape, cell.dtype, layout) for _ in range(2))
    if rng.random() < 0.2:
        other = list(b.shape[int(rng.integers(0, len(b.shape))) :])
        other = [1 if rng.random() < 0.4 else n for n in other]
        b = quantized(rng, tuple(other), cell.dtype)
    elif rng.random() < 0.1:
        b = b.with_int_repr(np.ascontiguousarray(b.int_repr))
    if rng.random() < 0.3:
        a, b = b, a
    product = "mul" in cell.name
    start = float(a.scale) * float(b.scale) * 150 if product else float(a.scale) + float(b.scale)
    start *= float(np.exp(rng.uniform(-1, 1)))
    if cell.dtype == qint32 and rng.random() < 0.3:  # sums far beyond float32's integers
        wide = rng.integers(-(2**31), 2**31, a.shape).astype(np.int32)
        a = QTensor(wide, a.scale, a.zero_point, None, qint32)
    attributes = output(rng, cell.dtype, start)
    return at_tie(rng, cell, lambda s: Call((a, b), _placed(attributes, "scale", s)), start)


def with_scalar(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a tensor and a constant; a third of the constants is half a step from a whole one."""
    x = values(rng, cell, size)
    steps = 50 if rng.random() < 0.5 else 500
    constant = float(rng.normal() * float(x.scale) * steps)
    if rng.random() < 0.35:
        x = QTensor(x.int_repr, 0.5, x.zero_point, None, x.dtype)
        constant = (int(rng.integers(-90, 90)) + 0.5) * 0.5
    if rng.random() < 0.05:
        constant = 0.0
    return Call((x,), {"b": constant})


def cat(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw tensors to join, mostly along the channels; scales may equal those of the result."""
    count = int(rng.integers(1, 4))
    spatial = ((3, 3), (1, 1), (2,), (2, 2, 2), ())[int(rng.integers(5))]
    layout = LAYOUTS[int(rng.integers(2))]
    dim = int(rng.choice([1, 1, 1, 0, len(spatial) + 1, -len(spatial) - 1]))
    images = max(1, size // max(1, 65 * int(np.prod(spatial)) * count))
    tensors = []
    for _ in range(count):
        channels = (
            int(rng.choice([1, 7, 8, 9, 40, 64, 65])) if dim in (1, -len(spatial) - 1) else 9
        )
        tensors.append(quantized(rng, (images, channels, *spatial), cell.dtype, layout))
    if rng.random() < 0.1:
        tensors[0] = tensors[0].with_int_repr(np.ascontiguousarray(tensors[0].int_repr))
    start = float(tensors[0].scale) * float(np.exp(rng.uniform(-1, 1)))
    attributes = {"dim": dim, **output(rng, cell.dtype, start)}
    last = tensors[-1]
    if rng.random() < 0.1:
        same = {"scale": float(last.scale), "zero_point": int(last.zero_point)}
        return Call(tuple(tensors), {**attributes, **same})
    if rng.random() < 0.1:
        return Call(tuple(tensors), {"dim": dim, "scale": None, "zero_point": None})
    return at_tie(
        rng, cell, lambda s: Call(tuple(tensors), _placed(attributes, "scale", s)), start
    )


def to_output(
    rng: Rng, cell: Cell, size: int, draw: Callable[[Rng], Attributes] = lambda _: {}
) -> Call:
    """Draw an activation whose result has its own scale; ``draw`` gives its other attributes."""
    x = _narrow(rng, cell, size)
    start = float(np.exp(rng.uniform(-6, -2)))
    attributes = {**draw(rng), **output(rng, cell.dtype, start, "output_")}
    return at_tie(rng, cell, lambda s: Call((x,), _placed(attributes, "output_scale", s)), start)


def of_input(
    rng: Rng, cell: Cell, size: int, draw: Callable[[Rng], Attributes] = lambda _: {}
) -> Call:
    """Draw an activation whose result's scale is given: the scale of the operand is placed.

    Some scales are no float32 numbers.
    """
    x = _narrow(rng, cell, size)
    attributes = draw(rng)
    beyond = 1 + 2.0**-27 if rng.random() < 0.3 else 1.0

    def make(scale: float) -> Call:
        x_scaled = QTensor(x.int_repr, scale * beyond, x.zero_point, None, x.dtype)
        return Call((x_scaled,), attributes)

    return at_tie(rng, cell, make, float(x.scale))


def tanh(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw bit patterns where the tangent is neither its argument nor 1, and usual values."""
    if cell.dtype != float32:
        return of_input(rng, cell, size)
    x: Any = rng.normal(size=size).astype(np.float32)
    if rng.random() < 0.5:
        low, high = (int(np.float32(v).view(np.int32)) for v in (1e-4, 10.0))
        x = rng.integers(low, high, size).astype(np.int32).view(np.float32)
        x[::2] *= -1
    return Call((x,), {})


def _narrow(rng: Rng, cell: Cell, size: int) -> QTensor:
    """Return values whose real size suits an exponential."""
    x = values(rng, cell, size)
    span = 1000 if cell.dtype == qint32 else 128
    return QTensor(
        x.int_repr, float(np.exp(rng.uniform(-1, 3))) / span, x.zero_point, None, x.dtype
    )


def _elu(rng: Rng) -> Attributes:
    if rng.random() < 0.4:
        return {}
    return dict(
        zip(("alpha", "scale", "input_scale"), rng.uniform(0.5, 2, 3).tolist(), strict=True)
    )


def _gelu(rng: Rng) -> Attributes:
    return {"approximate": str(rng.choice(["none", "tanh"]))}


def _slope(rng: Rng) -> Attributes:
    return {"negative_slope": float(rng.choice([0.01, rng.uniform(0.001, 1.2), -0.3]))}


def bounded(rng: Rng, cell: Cell, size: int, keys: tuple[str, ...]) -> Call:
    """Draw a clamp whose bounds lie next to half a step; some have one bound only."""
    x = values(rng, cell, size)
    steps = np.sort(rng.integers(-60, 60, len(keys)) + rng.choice([0.0, 0.5], len(keys)))
    bounds = [moved(float(v) * float(x.scale), int(rng.integers(-3, 4))) for v in steps]
    given = dict(zip(keys, sorted(bounds), strict=True))
    if keys == ("min", "max") and rng.random() < 0.4:
        del given[str(rng.choice(keys))]
    return Call((x,), given)


def alone(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw one tensor."""
    return Call((values(rng, cell, size),), {})


def threshold(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a threshold next to one of the values."""
    x = values(rng, cell, size)
    at, value = rng.integers(-60, 60), rng.integers(-50, 50) + 0.5
    numbers = [moved(float(v) * float(x.scale), int(rng.integers(-3, 4))) for v in (at, value)]
    return Call((x,), dict(zip(("threshold", "value"), numbers, strict=True)))


def prelu(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw slopes, one or one a channel."""
    x = values(rng, cell, size)
    channels = x.shape[1] if x.int_repr.ndim > 1 and rng.random() < 0.6 else 1
    weight = quantized(rng, (channels,), cell.dtype, scale=float(np.exp(rng.uniform(-6, -3))))
    start = float(x.scale) * float(np.exp(rng.uniform(-1, 1)))
    attributes = output(rng, cell.dtype, start, "output_")
    return at_tie(
        rng, cell, lambda s: Call((x, weight), _placed(attributes, "output_scale", s)), start
    )


def softmax(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a softmax over any dimension, half of them with the usual output scale 1 / 256."""
    x = _narrow(rng, cell, size)
    dim = int(rng.integers(-x.int_repr.ndim, x.int_repr.ndim))
    start = float(rng.choice([1 / 300, 1 / 3000, 1 / 30]))
    attributes = {"dim": dim, **output(rng, cell.dtype, start, "output_")}
    if rng.random() < 0.5:
        usual = {"dim": dim, "output_scale": 1 / 256, "output_zero_point": cell.dtype.limits[0]}

        def scaled(scale: float) -> Call:
            return Call((QTensor(x.int_repr, scale, x.zero_point, None, x.dtype),), usual)

        return at_tie(rng, cell, scaled, float(x.scale))
    return at_tie(rng, cell, lambda s: Call((x,), _placed(attributes, "output_scale", s)), start)


def dropout(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw a dropout, which does nothing in evaluation."""
    x = values(rng, cell, size)
    if cell.name == "quantized::dropout":
        return Call((x,), {"output_scale": 0.3, "output_zero_point": 0})
    return Call((x,), {"p": 0.3, "train": False})


def comparison(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw few different integers, so that many are equal, beside a tensor or a number."""
    x = values(rng, cell, size)
    middle = int(np.clip(int(x.zero_point), -100, 100)) if cell.dtype != qint32 else 0
    low, high = cell.dtype.limits
    near = np.clip(rng.integers(-4, 5, x.shape) + middle, low, high).astype(cell.dtype.storage)
    x = x.with_int_repr(laid_out(near, "contiguous"))
    step = int(rng.integers(-5, 6))
    number = (step + middle - int(x.zero_point)) * float(np.float32(x.scale))
    if cell.name.endswith(".Scalar"):
        return Call((x,), {"other": moved(number, int(rng.integers(-1, 2)))})
    other = rng.permutation(near.reshape(-1)).reshape(near.shape)
    scale = float(x.scale) if rng.random() < 0.5 else float(x.scale) / 2
    return Call((x, QTensor(other, scale, x.zero_point, None, x.dtype)), {})


def _pair(name: str) -> tuple[str, str]:
    return f"quantized::{name}", f"quantized::{name}_relu"


_CLAMPS = {"aten::clamp": ("min", "max"), "aten::hardtanh": ("min_val", "max_val")}

SAMPLERS: dict[str, Sampler] = {
    **dict.fromkeys((*_pair("add"), *_pair("mul")), binary),
    **dict.fromkeys((*_pair("add_scalar"), *_pair("mul_scalar")), with_scalar),
    **dict.fromkeys(_pair("cat"), cat),
    "quantized::sigmoid": to_output,
    "quantized::hardswish": to_output,
    "quantized::elu": partial(to_output, draw=_elu),
    "quantized::celu": partial(to_output, draw=lambda r: {"alpha": float(r.uniform(0.3, 2))}),
    "quantized::leaky_relu": partial(to_output, draw=lambda r: {**_slope(r), "inplace": False}),
    "quantized::prelu": prelu,
    "quantized::softmax": softmax,
    "quantized::dropout": dropout,
    "aten::sigmoid": of_input,
    "aten::tanh": tanh,
    "aten::hardsigmoid": of_input,
    "aten::gelu": partial(of_input, draw=_gelu),
    "aten::leaky_relu": partial(of_input, draw=_slope),
    "aten::relu": alone,
    "aten::threshold": threshold,
    **{name: partial(bounded, keys=keys) for name, keys in _CLAMPS.items()},
    **{
        f"aten::{name}{form}": comparison
        for name in ("eq", "ne", "lt", "le", "gt", "ge")
        for form in ("", ".Scalar")
    },
}
DTYPES: dict[str, tuple[DType, ...]] = {"aten::tanh": (quint8, qint8, qint32, float32)}
