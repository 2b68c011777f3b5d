"""QLinearConv and ConvInteger beside onnxruntime and onnx.reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx_oracle import run_ort, run_reference

from refquant.ir.op import OPS
from refquant.ir.qtensor import type_of
from refquant.ir.target import Target

F = np.float32
ORT, ONNX = Target("ort"), Target("onnx")
CODES = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
PAIRS: list[Any] = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)]
RNG = np.random.default_rng(3)

# Input, weight, attributes.
LAYERS: list[Any] = [
    ((2, 3, 9, 7), (5, 3, 3, 3), {"pads": (1, 1, 1, 1)}),
    ((1, 8, 11, 11), (16, 8, 3, 3), {"pads": (0, 1, 2, 1), "strides": (2, 2)}),
    ((1, 16, 6, 6), (16, 1, 3, 3), {"group": 16, "pads": (1, 1, 1, 1)}),
    ((1, 16, 9, 9), (32, 1, 3, 3), {"group": 16, "strides": (2, 1)}),
    ((1, 12, 6, 6), (9, 4, 3, 3), {"group": 3, "auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    ((1, 4, 7, 8), (6, 4, 2, 3), {"auto_pad": "SAME_LOWER"}),
    ((1, 4, 9, 9), (6, 4, 3, 3), {"dilations": (2, 2), "auto_pad": "VALID"}),
    ((3, 20, 5, 5), (33, 20, 1, 1), {}),
    ((2, 6, 17), (7, 6, 5), {"pads": (2, 2), "strides": (3,)}),
    ((1, 2, 5, 6, 4), (3, 2, 2, 3, 2), {"pads": (1, 0, 1, 0, 1, 0)}),
]


def some(dtype: Any, *shape: int) -> Any:
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def ours(name: str, operands: Any, attributes: dict[str, Any], target: Target) -> Any:
    """Return the result that all ways must share."""
    op = OPS[name]
    types = [None if o is None else type_of(np.asarray(o)) for o in operands]
    kernel = op.bind(target, fast=True)
    assert op.pack is not None
    kept = list(operands)
    kept[op.weight] = op.pack(kept[op.weight], **attributes)
    slow = op.bind(target, fast=False)(*operands, **attributes)
    for ways in (operands, kept, kept):
        np.testing.assert_array_equal(kernel(*ways, **attributes), slow)
    assert op.infer(*types, **attributes) == type_of(slow)
    return slow


@pytest.mark.parametrize(("left", "right"), PAIRS)
@pytest.mark.parametrize(("x", "w", "attributes"), LAYERS)
def test_conv_integer(left: Any, right: Any, x: Any, w: Any, attributes: Any) -> None:
    name = "onnx::ConvInteger"
    for zeros in (False, True):
        zx, zw = (some(left), some(right)) if zeros else (None, None)
        o = [some(left, *x), some(right, *w), zx, zw]
        y = run_ort(name, o, attributes, (TensorProto.INT32,))
        np.testing.assert_array_equal(ours(name, o, attributes, ORT), y)
        if zeros:  # onnxruntime has no zero point for each channel
            o[3] = some(right, w[0])
            alone = [(o[1][c : c + 1], o[3][c]) for c in range(w[0])]
            if attributes.get("group", 1) == 1:
                each = [ours(name, [o[0], one, zx, z], attributes, ORT) for one, z in alone]
                found = ours(name, o, attributes, ONNX)
                np.testing.assert_array_equal(found, np.concatenate(each, 1))


def draw(left: Any, right: Any, x: Any, w: Any, trial: int) -> Any:
    """Return operands whose sums are small, with scales that put many on ties."""
    each = trial % 2 == 1
    zx, zw, zy = some(left), some(right), some(left)
    limits = np.iinfo(left), np.iinfo(right)
    near = [int(zero) + RNG.integers(-2, 3, shape) for zero, shape in ((zx, x), (zw, w))]
    a, b = (np.clip(v, lim.min, lim.max) for v, lim in zip(near, limits, strict=True))
    sx = F(RNG.uniform(0.01, 0.1))
    sw = RNG.uniform(0.01, 0.1, w[0]).astype(F) if each else F(RNG.uniform(0.01, 0.1))
    scale = float(sx) * float(np.ravel(sw)[0]) * RNG.integers(1, 16) / (RNG.integers(0, 5) + 0.5)
    sy = np.nextafter(F(scale), F(scale * RNG.choice([0.5, 1, 2])), dtype=F)
    bias = RNG.integers(-20, 20, w[0]).astype(np.int32) if trial % 3 else None
    zeros = np.full(w[0], zw) if each else zw
    return a.astype(left), sx, zx, b.astype(right), sw, zeros, sy, zy, bias


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_qlinear_conv(left: Any, right: Any) -> None:
    name = "onnx::QLinearConv"
    limits = np.iinfo(left)
    found, count = {"zero point before": 0, "double": 0}, 0
    for trial in range(80):
        x, w, attributes = LAYERS[trial % len(LAYERS)]
        o = draw(left, right, x, w, trial // len(LAYERS))
        y = run_ort(name, o, attributes, (CODES[left],), (3, 4, 5, 8) if trial % 5 else ())
        np.testing.assert_array_equal(ours(name, o, attributes, ORT), y)
        count += y.size
        spread = (-1, *(1,) * (len(x) - 2))
        total = ours("onnx::ConvInteger", (o[0], o[3], o[2], o[5]), attributes, ORT)
        if o[8] is not None:
            total = total + o[8].reshape(spread)
        sw = np.asarray(o[4]).reshape(spread) if np.ndim(o[4]) else o[4]
        wrong = {
            "zero point before": np.rint(total.astype(F) * (o[1] * sw / o[6]) + F(o[7])),
            "double": np.rint(total * (float(o[1]) * sw.astype(float) / float(o[6]))) + int(o[7]),
        }
        for kind, whole in wrong.items():
            found[kind] += int((np.clip(whole, limits.min, limits.max) != y).sum())
        if len(x) == 4:
            spec = run_reference(name, o, attributes, (CODES[left],))
            np.testing.assert_array_equal(ours(name, o, attributes, ONNX), spec)
    assert count > 30_000
    assert min(found.values()) > 0, found


@pytest.mark.parametrize(("left", "right"), PAIRS)
@pytest.mark.parametrize("scale", [1e-4, 3.0, 1e12])
def test_wide_range(left: Any, right: Any, scale: float) -> None:
    x, w, attributes = LAYERS[0]
    o = [
        some(left, *x),
        F(scale),
        some(left),
        some(right, *w),
        F(1),
        some(right),
        F(1),
        some(left),
    ]
    y = run_ort("onnx::QLinearConv", o, attributes, (CODES[left],))
    np.testing.assert_array_equal(ours("onnx::QLinearConv", o, attributes, ORT), y)
