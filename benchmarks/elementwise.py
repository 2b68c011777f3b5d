"""Pairs of the operators that are no products: pointwise, pools, norms, movement of data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pairs import Pair, image, kernel

from refquant import QTensor, quint8
from refquant.importers.fx_torch import to_torch

# channels and size of the image; 1,024, 100,352 and 802,816 elements
SHAPES = ((16, 8), (32, 56), (64, 112))
Call = tuple[str, tuple[Any, ...], tuple[Any, ...], dict[str, Any]]


def _pointwise(rng: np.random.Generator, channels: int, edge: int) -> Iterator[Call]:
    a, b = image(rng, 1, channels, edge, edge), image(rng, 1, channels, edge, edge)
    ta, tb = to_torch(a), to_torch(b)
    one, two = ((a,), (ta,)), ((a, b), (ta, tb))
    given = {"scale": 0.05, "zero_point": 3}
    output = {"output_scale": 1 / 256, "output_zero_point": 0}
    for name in ("add", "add_relu", "mul", "mul_relu"):
        yield f"quantized::{name}", *two, given
    gate = image(rng, 1, channels, 1, 1)
    yield "quantized::mul by channel", (a, gate), (ta, to_torch(gate)), given
    for name in ("add_scalar", "mul_scalar"):
        yield f"quantized::{name}", (a, 0.7), (ta, 0.7), {}
    yield "quantized::cat", (a, b), ([ta, tb],), {"dim": 1, **given}
    other = QTensor(b.int_repr, given["scale"], int(given["zero_point"]))
    yield "quantized::cat one copied", (a, other), ([ta, to_torch(other)],), {"dim": 1, **given}
    for name in ("relu", "sigmoid", "tanh", "hardsigmoid"):
        yield f"aten::{name}", *one, {}
    yield "aten::hardtanh", *one, {"min_val": 0.0, "max_val": 3.0}
    yield "aten::clamp", *one, {"min": 0.0, "max": 3.0}
    yield "quantized::hardswish", *one, output
    elu = {**output, "alpha": 1.0, "scale": 1.0, "input_scale": 1.0}
    yield "quantized::elu", *one, elu
    yield "quantized::celu", *one, {**output, "alpha": 1.0}
    slope = {"negative_slope": 0.1, "inplace": False, **output}
    yield "quantized::leaky_relu", *one, slope
    yield "quantized::softmax", *one, {"dim": 1, **output}
    rows = QTensor(np.ascontiguousarray(a.int_repr).reshape(edge, -1), a.scale, a.zero_point)
    yield "quantized::softmax", (rows,), (to_torch(rows),), {"dim": -1, **output}


def _pools(rng: np.random.Generator, channels: int, edge: int) -> Iterator[Call]:
    a = image(rng, 1, channels, edge, edge)
    plain = QTensor(np.ascontiguousarray(a.int_repr), a.scale, a.zero_point)
    window = {"kernel_size": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    half = {"kernel_size": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    both = ((a,), (to_torch(a),)), ((plain,), (to_torch(plain),))
    for one in both:
        yield "aten::max_pool2d", *one, {**window, "dilation": (1, 1)}
        yield "aten::max_pool2d", *one, {**half, "dilation": (1, 1)}
        yield "aten::avg_pool2d", *one, window
        yield "aten::avg_pool2d", *one, half
        yield "aten::adaptive_avg_pool2d", *one, {"output_size": (1, 1)}
        yield "aten::adaptive_avg_pool2d", *one, {"output_size": (7, 7)}
        yield "aten::mean", *one, {"dim": (2, 3)}
        scaled = {"output_size": None, "scale_factors": [2.0, 2.0]}
        yield "aten::upsample_nearest2d", *one, scaled
        yield "aten::upsample_bilinear2d", *one, {**scaled, "align_corners": False}


def _norms(rng: np.random.Generator, channels: int, edge: int) -> Iterator[Call]:
    a = image(rng, 1, channels, edge, edge)
    ta = to_torch(a)
    vectors = [rng.uniform(0.5, 1.5, channels).astype(np.float32) for _ in range(4)]
    tensors = [torch.from_numpy(x) for x in vectors]
    output = {"output_scale": 0.05, "output_zero_point": 100}
    for name in ("batch_norm2d", "batch_norm2d_relu"):
        yield f"quantized::{name}", (a, *vectors, 1e-5, 0.05, 9), (ta, *tensors, 1e-5, 0.05, 9), {}
    affine, torch_affine = vectors[:2], tensors[:2]
    plain = QTensor(np.ascontiguousarray(a.int_repr), a.scale, a.zero_point)
    more = {"eps": 1e-5, **output}
    for x in (a, plain):
        tx = to_torch(x)
        groups = channels // 8
        yield "quantized::group_norm", (x, *affine, groups), (tx, groups, *torch_affine), more
        yield "quantized::instance_norm", (x, *affine), (tx, *torch_affine), more
    width = channels * 16
    q = rng.integers(0, 128, (max(1, a.int_repr.size // width), width), np.uint8)
    rows = QTensor(q, 0.03, 11)
    wide = [rng.uniform(0.5, 1.5, width).astype(np.float32) for _ in range(2)]
    yield (
        "quantized::layer_norm",
        (rows, *wide, (width,)),
        (to_torch(rows), (width,), *map(torch.from_numpy, wide)),
        more,
    )


def _conversions(rng: np.random.Generator, channels: int, edge: int) -> Iterator[Call]:
    a = image(rng, 1, channels, edge, edge)
    ta = to_torch(a)
    yield "aten::dequantize", (a,), (ta,), {}
    real = np.moveaxis(rng.normal(size=(1, edge, edge, channels)).astype(np.float32), -1, 1)
    for x in (real, np.ascontiguousarray(real)):
        tx = torch.from_numpy(x)
        yield (
            "aten::quantize_per_tensor",
            (x, 0.02, 7, quint8),
            (tx, 0.02, 7, torch.quint8),
            {},
        )
    for name, arguments in (
        ("aten::permute", ([0, 2, 3, 1],)),
        ("aten::reshape", ([1, -1],)),
        ("aten::flatten", (1, -1)),
        ("aten::transpose", (2, 3)),
    ):
        yield name, (a, *arguments), (ta, *arguments), {}


def elementwise(engine: str) -> Iterator[Pair]:
    """Yield what works on single elements, pools, norms and conversions, at three sizes."""
    torch.backends.quantized.engine = engine
    for channels, edge in SHAPES:
        rng = np.random.default_rng([1, channels])
        for family in (_pointwise, _pools, _norms, _conversions):
            for call, ours, theirs, attributes in family(rng, channels, edge):
                name, _, note = call.partition(" ")
                function = kernel(name, engine)
                space, _, op = name.partition("::")
                other = getattr(torch.ops, space)
                for part in op.split("."):
                    other = getattr(other, part)
                note = f"{note} " if note else _describe(attributes)
                kind = "" if _is_nhwc(ours[0]) else " C order"
                yield Pair(
                    f"{op} {note}1 x {channels} x {edge} x {edge}{kind}",
                    lambda f=function, x=ours, k=attributes: f(*x, **k),
                    lambda f=other, x=theirs, k=attributes: f(*x, **k),
                    other=engine,
                )


def _is_nhwc(x: Any) -> bool:
    return (x.int_repr if isinstance(x, QTensor) else x).strides[-1] > 4


def _describe(attributes: dict[str, Any]) -> str:
    size = attributes.get("kernel_size") or attributes.get("output_size")
    return f"{size[0]}x{size[1]} " if size else ""
