"""Samples of pt2e's operators of oneDNN."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.qtensor import QTensor
from refquant.ir.types import DType, bfloat16, float32, int8, uint8
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw import weighted
from refquant.ledger.draw.tensors import Array, Rng
from refquant.ledger.ties import at_tie

_DTYPES = (None, uint8, int8, float32, bfloat16)
_UNARY = ("none", "relu", "hardtanh", "leaky_relu", "hardswish")


def _function(rng: Rng, unit: float) -> tuple[str, tuple[float, ...]]:
    """Draw a post op; the limits of hardtanh are some steps of the result."""
    name = str(rng.choice(_UNARY))
    low, high = (float(n) * unit for n in (-rng.uniform(0, 90), rng.uniform(0, 90)))
    return name, {"hardtanh": (low, high), "leaky_relu": (float(rng.uniform(0, 1.2)),)}.get(
        name, ()
    )


def _parameters(weight: QTensor) -> tuple[Array, Array, Array]:
    """Return a weight, its scales and its zero points as pt2e holds them."""
    scale = np.atleast_1d(np.asarray(weight.scale, np.float32))
    return weight.int_repr, scale, np.zeros(scale.size, np.int32)


def _result(rng: Rng, given: DType, scale: float, zero_point: int) -> dict[str, Any]:
    """Draw the dtype of the result and its quantization parameters."""
    dtype = _DTYPES[int(rng.integers(len(_DTYPES)))]
    stored = given if dtype is None else dtype
    if stored not in (uint8, int8):
        return {"output_scale": 1.0, "output_zero_point": 0, "output_dtype": dtype}
    zero_point -= 128 if stored == int8 else 0
    if rng.random() < 0.1:  # outside the range, which torch takes
        zero_point += int(rng.integers(-300, 300))
    return {"output_scale": scale, "output_zero_point": zero_point, "output_dtype": dtype}


def _other(
    rng: Rng, how: str, dtype: DType, shape: tuple[int, ...], unit: float
) -> tuple[Array, float, int]:
    """Draw what is added, its scale and its zero point."""
    if how == "add":
        dtype = float32 if rng.random() < 0.7 else bfloat16
    if dtype in (uint8, int8):
        low = 0 if dtype == uint8 else -128
        integers = rng.integers(low, low + 256, shape).astype(dtype.storage)
        scale = unit * float(np.exp(rng.uniform(-2, 1)))
        return integers, scale, int(rng.integers(low, low + 256))
    return (rng.normal(size=shape) * 20 * unit).astype(dtype.storage), 1.0, 0


def _at_tie(rng: Rng, cell: Cell, call: Call, unit: float) -> Call:
    """Move the scale of the result, so that one more value is tied."""
    if call.attributes["output_scale"] == 1.0 or rng.random() < 0.5:
        return call
    start = unit * float(np.exp(rng.uniform(-0.5, 0.5)))
    return at_tie(
        rng,
        cell,
        lambda scale: Call(call.operands, {**call.attributes, "output_scale": scale}),
        start,
    )


def _as_given(call: Call, tensors: bool) -> Call:
    """Return a call whose input's scale and zero point are tensors, where they have to be."""
    if not tensors:
        return call
    x, *rest = call.operands
    attributes = dict(call.attributes)
    scale = np.array([attributes.pop("x_scale")], np.float32)
    zero_point = np.array([attributes.pop("x_zero_point")], np.int64)
    return Call((x, scale, zero_point, *rest), attributes)


def linear(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw rows, a weight, a function and the dtype of the result."""
    per_channel, with_bias = rng.random(2) < 0.5
    drawn = weighted.linear(rng, per_channel, with_bias, True, "onednn", size)
    x, weight, bias = drawn.operands
    unit, zero_point = drawn.attributes["scale"], drawn.attributes["zero_point"]
    qx, x_zero_point = x.int_repr, x.zero_point
    if cell.dtype == int8:
        qx, x_zero_point = (qx ^ np.uint8(128)).view(np.int8), x_zero_point - 128
    if rng.random() < 0.2:
        qx = qx.reshape(1, *qx.shape)
    result = _result(rng, cell.dtype, unit, zero_point)
    name, args = _function(rng, unit)
    numbers = {"x_scale": float(x.scale), "x_zero_point": int(x_zero_point), **result}
    parameters = _parameters(weight)
    if "binary" not in cell.name:
        post: dict[str, Any] = {
            "post_op_name": name,
            "post_op_args": args,
            "post_op_algorithm": "",
        }
        call = Call((qx, *parameters, bias), {**numbers, **post})
    else:
        how = str(rng.choice(["sum", "add"]))
        shape = (*qx.shape[:-1], len(weight.int_repr))
        dtype = result["output_dtype"] or cell.dtype
        other, scale, zero = _other(rng, how, dtype, shape, unit)
        post = {"other_scale": scale, "other_zp": zero, "binary_post_op": how}
        post |= {"binary_alpha": 1.0, "unary_post_op": str(rng.choice(["none", "relu"]))}
        post |= {"unary_post_op_args": (), "unary_post_op_algorithm": ""}
        call = Call((qx, *parameters, other, bias), {**numbers, **post})
    return _at_tie(rng, cell, _as_given(call, "tensor" in cell.name), unit)


_FORMS = ("", ".tensor", ".binary", ".binary_tensor")
SAMPLERS: dict[str, Sampler] = {
    **{f"onednn::qlinear_pointwise{form}": linear for form in _FORMS},
}
DTYPES: dict[str, tuple[DType, ...]] = dict.fromkeys(SAMPLERS, (uint8, int8))
