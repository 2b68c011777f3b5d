"""Samples of pt2e's operators of oneDNN."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.qtensor import QTensor
from refquant.ir.types import DType, bfloat16, float16, float32, int8, uint8
from refquant.kernels.layout import channels_last
from refquant.kernels.quantized_conv import Geometry
from refquant.ledger.cell import Call, Cell, Sampler
from refquant.ledger.draw import weighted
from refquant.ledger.draw.tensors import Array, Rng, laid_out, shape_of
from refquant.ledger.ties import at_tie

_DTYPES = (None, uint8, int8, float32, bfloat16)
_UNARY = ("none", "relu", "hardtanh", "leaky_relu", "hardswish", "swish", "tanh", "gelu")


def _function(
    rng: Rng, unit: float, names: tuple[str, ...] = _UNARY
) -> tuple[str, tuple[float, ...]]:
    """Draw a post op; the limits of hardtanh are some steps of the result."""
    name = str(rng.choice(names))
    low, high = (float(n) * unit for n in (-rng.uniform(0, 90), rng.uniform(0, 90)))
    return name, {"hardtanh": (low, high), "leaky_relu": (float(rng.uniform(0, 1.2)),)}.get(
        name, ()
    )


_CURVED = ("swish", "tanh", "gelu")


def _of_units(
    rng: Rng, weight: QTensor, bias: Array | None, unit: float
) -> tuple[QTensor, Array | None, float]:
    """Scale a product so that its results are a few units, where functions are curved."""
    step = float(np.exp(rng.uniform(-5, -2)))
    scale = np.asarray(weight.scale) * (step / unit)
    scaled = QTensor(weight.int_repr, scale, weight.zero_point, weight.axis, weight.dtype)
    return scaled, None if bias is None else (bias * (step / unit)).astype(np.float32), step


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
    curved = call.attributes.get("post_op_name", call.attributes.get("attr")) in _CURVED
    if call.attributes["output_scale"] == 1.0 or (rng.random() < 0.5 and not curved):
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
    name, args = _function(rng, unit)
    if name in _CURVED and "binary" not in cell.name:
        weight, bias, unit = _of_units(rng, weight, bias, unit)
    result = _result(rng, cell.dtype, unit, zero_point)
    numbers = {"x_scale": float(x.scale), "x_zero_point": int(x_zero_point), **result}
    parameters = _parameters(weight)
    if "binary" not in cell.name:
        post: dict[str, Any] = {
            "post_op_name": name,
            "post_op_args": args,
            "post_op_algorithm": str(rng.choice(["none", "tanh"])),
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


# Functions that torch accepts, by the number of spatial axes; swish is among the curved ones.
_OF_MAPS = {
    1: ("none", "relu"),
    2: ("none", "relu", "hardtanh", "hardswish", "swish"),
    3: ("none",),
}


def convolution(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw maps, a weight, a function and the dtype of the result."""
    binary = "binary" in cell.name
    given = [rank for rank in (1, 2, 3) if f"conv{rank}d" in cell.name]
    rank = 2 if binary else int(rng.choice(given or [1, 2, 3]))
    kinds = weighted.KINDS[:4] if rank == 1 else weighted.KINDS
    kind = str(rng.choice(kinds))
    per_channel, with_bias = rng.random(2) < 0.5
    drawn = weighted.convolution(rng, kind, rank, per_channel, with_bias, True, "onednn", size)
    (x, weight, bias), attributes = drawn.operands, drawn.attributes
    unit, zero_point = attributes["scale"], attributes["zero_point"]
    geometry = {key: attributes[key] for key in ("stride", "padding", "dilation", "groups")}
    qx = channels_last(x.int_repr) if rank > 1 and rng.random() < 0.5 else x.int_repr
    name, args = _function(rng, unit, _OF_MAPS[rank])
    if name in _CURVED and not binary:
        weight, bias, unit = _of_units(rng, weight, bias, unit)
    result = _result(rng, uint8, unit, zero_point)
    numbers = {"x_scale": float(x.scale), "x_zero_point": int(x.zero_point), **geometry}
    parameters = _parameters(weight)
    if not binary:
        post: dict[str, Any] = {"attr": name, "scalars": args, "algorithm": None}
        call = Call((qx, *parameters, bias), {**numbers, **result, **post})
    else:
        spatial = geometry["stride"], geometry["padding"], geometry["dilation"]
        shape = Geometry(weight.shape[2:], *spatial, geometry["groups"]).out(qx.shape[2:])
        shape = (qx.shape[0], weight.shape[0], *shape)
        dtype = result["output_dtype"] or uint8
        other, scale, zero = _other(rng, "sum", dtype, shape, unit)
        post = {"accum_scale": scale, "accum_zero_point": zero, "binary_attr": "sum"}
        post |= {"alpha": 1.0, "unary_attr": [None, "none", "relu"][int(rng.integers(3))]}
        post |= {"unary_scalars": (), "unary_algorithm": None}
        operands = (qx, *parameters, channels_last(other), bias)
        call = Call(operands, {**numbers, **result, **post})
    return _at_tie(rng, cell, _as_given(call, "tensor" in cell.name), unit)


def _steps(rng: Rng) -> dict[str, Any]:
    """Draw the dtype of a result; a scale is found later."""
    dtype = (uint8, uint8, float32, bfloat16, float16)[int(rng.integers(5))]
    if dtype != uint8:
        return {"output_scale": 1.0, "output_zero_point": 0, "output_dtype": dtype}
    zero_point = int(rng.integers(0, 256) if rng.random() < 0.9 else rng.integers(-300, 600))
    return {"output_scale": 0.5, "output_zero_point": zero_point, "output_dtype": dtype}


def _scale(rng: Rng) -> float:
    """Draw a scale; a power of two makes many ties."""
    return float(2.0 ** rng.integers(-6, 1) if rng.random() < 0.4 else np.exp(rng.uniform(-5, 0)))


def arithmetic(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw two tensors of bytes; the vector loop's tail is at most 15 elements."""
    small = rng.random() < 0.5 and size < 5000
    shape = (int(rng.integers(1, 50)),) if small else shape_of(rng, size)
    layout = str(rng.choice(["contiguous", "channels_last", "permuted"]))
    x, y = (laid_out(rng.integers(0, 256, shape).astype(np.uint8), layout) for _ in range(2))
    numbers = {
        **{"self_scale": _scale(rng), "self_zero_point": int(rng.integers(0, 256))},
        **{"other_scale": _scale(rng), "other_zero_point": int(rng.integers(0, 256))},
        **_steps(rng),
    }
    call = Call((x, y), {**numbers})
    unit = float(numbers["self_scale"]) * (1 if "add" in cell.name else 60)
    if numbers["output_dtype"] == uint8 and rng.random() < 0.5:
        return Call((x, y), {**numbers, "output_scale": unit * float(2.0 ** rng.integers(-1, 2))})
    return _at_tie(rng, cell, call, unit)


def batch_norm(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw images, statistics, and what is normal for them."""
    shape = shape_of(rng, size, (4,))
    x = laid_out(
        rng.integers(0, 256, shape).astype(np.uint8),
        str(rng.choice(["contiguous", "channels_last", "every_second"])),
    )
    parts = rng.normal(size=(3, shape[1])).astype(np.float32)
    var = np.exp(rng.normal(size=shape[1])).astype(np.float32)
    if rng.random() < 0.3:
        parts, var = (np.rint(parts * 4) / 4).astype(np.float32), np.ones_like(var)
        parts[2] = 0
    weight, bias, mean = parts
    numbers = {
        **{"qx_scale": _scale(rng), "qx_zero_point": int(rng.integers(0, 256))},
        **{"eps": float(rng.choice([0, 1e-5, 1e-3])), **_steps(rng)},
    }
    call = Call((x, weight, bias, mean, var), numbers)
    return _at_tie(rng, cell, call, float(numbers["qx_scale"]))


def linear_fp16(rng: Rng, cell: Cell, size: int) -> Call:
    """Draw float rows and weights; some weights lie at ties of float16 or beyond its range."""
    depth = int(rng.choice([1, 7, 8, 17, 64, 300, 511, 512, 513, 1024, 1025, 1100, 2050]))
    channels = int(rng.choice([1, 2, 5, 31, 32, 33, 64, 95, 130]))
    rows = 1 if rng.random() < 0.2 else max(1, size // channels)
    if size < 5000:
        rows = min(rows, 4)
    elif channels == 1:
        rows = min(rows, 3000)
    x = rng.normal(size=(rows, depth)).astype(np.float32)
    weight = (rng.normal(size=(channels, depth)) * np.exp(rng.uniform(-12, 3))).astype(np.float32)
    half = weight.astype(np.float16)
    tied = (half.astype(np.float32) + np.nextafter(half, np.float16(9)).astype(np.float32)) / 2
    weight = np.where(rng.random(weight.shape) < 0.3, tied, weight)
    if rng.random() < 0.1:
        weight[0, 0] = rng.choice([1e6, -7e4])
    if rng.random() < 0.2 and rows % 2 == 0:
        x = x.reshape(2, -1, depth)
    bias = rng.normal(size=channels).astype(np.float32) if rng.random() < 0.5 else None
    return Call((x, weight, bias), {})


_FORMS = ("", ".tensor", ".binary", ".binary_tensor")
_LINEAR = tuple(f"onednn::qlinear_pointwise{form}" for form in _FORMS)
_CONVOLUTIONS = (
    *(f"onednn::qconv{rank}_pointwise" for rank in ("", "1d", "2d", "3d")),
    *(f"onednn::qconv{rank}_pointwise.tensor" for rank in ("", "2d")),
    *(f"onednn::qconv2d_pointwise.{form}" for form in ("binary", "binary_tensor")),
)
_ARITHMETIC = tuple(f"onednn::{name}.tensor" for name in ("qadd", "qadd_relu", "qmul"))
_FP16 = ("onednn::linear_dynamic_fp16", "onednn::linear_relu_dynamic_fp16")
SAMPLERS: dict[str, Sampler] = {
    **dict.fromkeys(_LINEAR, linear),
    **dict.fromkeys(_CONVOLUTIONS, convolution),
    **dict.fromkeys(_ARITHMETIC, arithmetic),
    "onednn::qbatch_norm2d": batch_norm,
    **dict.fromkeys(_FP16, linear_fp16),
}
DTYPES: dict[str, tuple[DType, ...]] = {
    **dict.fromkeys(_LINEAR, (uint8, int8)),
    **dict.fromkeys((*_CONVOLUTIONS, *_ARITHMETIC, "onednn::qbatch_norm2d"), (uint8,)),
    **dict.fromkeys(_FP16, (float32,)),
}
