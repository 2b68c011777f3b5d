"""Elementwise ops, concatenation and (de)quantization against torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from oracle import assert_matches_torch, assert_same, call_torch, this_machine

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Target
from refquant.ir.types import (
    Dim,
    DType,
    QParams,
    TensorType,
    float32,
    float64,
    qint8,
    qint32,
    quint4x2,
    quint8,
)
from refquant.kernels import elementary, elementary_jit, tanh_float
from refquant.kernels.jit import jit
from refquant.ledger.draw.tensors import (
    LAYOUTS,
    Rng,
    argument_at_tie,
    floats,
    laid_out,
    moved,
    quantized,
    real,
    scale_at_tie,
    zero_point,
)

DTYPES = [pytest.param(dtype, id=dtype.name) for dtype in (quint8, qint8, qint32)]
EIGHT_BITS = [pytest.param(dtype, id=dtype.name) for dtype in (quint8, qint8)]
SHAPES = ((63,), (64,), (130,), (2, 3, 5, 8), (2, 64, 3, 3), (1, 70, 2, 3, 2))
TARGET = this_machine()
TWO_THREADS = Target(TARGET.engine, TARGET.isa, 2)


def shapes_and_layouts(rng: Rng, count: int) -> list[tuple[tuple[int, ...], str]]:
    return [
        (SHAPES[i % len(SHAPES)], LAYOUTS[int(rng.integers(len(LAYOUTS)))]) for i in range(count)
    ]


# --------------------------------------------------------------------- add, mul and scalars


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["add", "add_relu", "mul", "mul_relu"])
def test_sums_and_products_at_ties(name: str, dtype: DType) -> None:
    rng = np.random.default_rng(1)
    for shape, layout in shapes_and_layouts(rng, 48):
        a, b = (quantized(rng, shape, dtype, layout) for _ in range(2))
        exact = real(a) + real(b) if name.startswith("add") else real(a) * real(b)
        attributes = {"scale": scale_at_tie(rng, exact), "zero_point": zero_point(rng, dtype)}
        assert_matches_torch(f"quantized::{name}", (a, b), attributes)


@pytest.mark.parametrize("name", ["add", "mul"])
def test_operands_of_different_shape_and_layout(name: str) -> None:
    rng = np.random.default_rng(2)
    shapes = (
        *((2, 70, 1, 1), (1, 70, 1, 1), (9,), (5, 1), (1,)),
        *((2, 1, 5, 9), (), (1, 70, 5, 9), (2, 70, 5, 9)),
    )
    for i in range(90):
        a, b = (
            quantized(rng, shape, quint8, LAYOUTS[int(rng.integers(2))])
            for shape in ((2, 70, 5, 9), shapes[i % len(shapes)])
        )
        if i % 5 == 0 and np.broadcast_shapes(a.shape, b.shape) == a.shape != b.shape:
            a, b = b, a
        exact = real(a) + real(b) if name == "add" else real(a) * real(b)
        attributes = {"scale": scale_at_tie(rng, exact), "zero_point": 3}
        assert_matches_torch(f"quantized::{name}", (a, b), attributes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_image_times_a_factor_for_each_channel(layout: str) -> None:
    rng = np.random.default_rng(9)
    for channels in (1, 3, 70):
        a, b = (
            quantized(rng, (1, channels, *lengths), quint8, layout) for lengths in ((5, 9), (1, 1))
        )
        attributes = {"scale": scale_at_tie(rng, real(a) * real(b)), "zero_point": 3}
        assert_matches_torch("quantized::mul", (a, b), attributes)


@pytest.mark.parametrize("size", [32_768, 32_769, 100_000])
@pytest.mark.parametrize("target", [TARGET, TWO_THREADS], ids=str)
def test_each_thread_has_a_tail(size: int, target: Target) -> None:
    rng = np.random.default_rng(3)
    for _ in range(3):
        a, b = (quantized(rng, (size,), quint8) for _ in range(2))
        attributes = {"scale": scale_at_tie(rng, real(a) + real(b)), "zero_point": 3}
        assert_matches_torch("quantized::add", (a, b), attributes, target)
        x = floats(rng, (size,))
        for name in ("aten::sigmoid", "aten::silu"):
            assert_matches_torch(name, (x,), {}, target)


@pytest.mark.parametrize("dtype", DTYPES)
def test_overflow_of_the_product(dtype: DType) -> None:
    rng = np.random.default_rng(4)
    for i in range(20):
        a, b = (quantized(rng, (100,), dtype, scale=0.05) for _ in range(2))
        if dtype == qint32:
            wide = rng.integers(-(2**31), 2**31, 100).astype(np.int32)
            a = QTensor(wide, 0.05, 7, None, dtype)
        scale = float(10 ** rng.uniform(-12, -6)) if i % 3 else 0.1
        for name in ("mul", "mul_relu", "add"):
            attributes = {"scale": scale, "zero_point": 3}
            assert_matches_torch(f"quantized::{name}", (a, b), attributes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["add_scalar", "mul_scalar"])
def test_a_constant_changes_the_parameters(name: str, dtype: DType) -> None:
    rng = np.random.default_rng(5)
    for i, (shape, layout) in enumerate(shapes_and_layouts(rng, 48)):
        x = quantized(rng, shape, dtype, layout)
        constant = float(rng.normal() * x.scale * (500 if i % 2 else 50)) if i else 0.0
        if i % 3 == 0:  # half a step
            x = QTensor(x.int_repr, 0.5, x.zero_point, None, dtype)
            constant = (int(rng.integers(-90, 90)) + 0.5) * 0.5
        for suffix in ("", "_relu"):
            assert_matches_torch(f"quantized::{name}{suffix}", (x,), {"b": constant})


# ------------------------------------------------------------------------------------- cat


@pytest.mark.parametrize("dtype", DTYPES)
def test_cat_at_ties(dtype: DType) -> None:
    rng = np.random.default_rng(6)
    channels = (1, 7, 8, 9, 40, 65)
    for i in range(72):
        spatial = ((3, 3), (1, 1), (2,), (2, 2, 2))[i % 4]
        layout = LAYOUTS[int(rng.integers(2))]
        a = quantized(rng, (2, channels[i % 6], *spatial), dtype, layout)
        b = quantized(rng, (2, 65, *spatial), dtype, layout if i % 7 else "contiguous")
        dim = 1 if i % 5 else -len(spatial) - 1
        attributes: dict[str, Any] = {
            **{"dim": dim, "scale": scale_at_tie(rng, real(a))},
            "zero_point": zero_point(rng, dtype),
        }
        if i % 9 == 0:  # b already has the parameters of the result
            attributes |= {"scale": b.scale, "zero_point": b.zero_point}
        if i % 11 == 0:
            attributes |= {"scale": None, "zero_point": None}
        for suffix in ("", "_relu"):
            assert_matches_torch(f"quantized::cat{suffix}", (a, b, a), attributes)


def test_cat_along_other_dimensions() -> None:
    rng = np.random.default_rng(7)
    for dim in (0, 2, 3, -1):
        for layout in LAYOUTS[:2]:
            a, b = (quantized(rng, (2, 9, 3, 4), quint8, layout) for _ in range(2))
            attributes = {"dim": dim, "scale": scale_at_tie(rng, real(a)), "zero_point": 5}
            assert_matches_torch("quantized::cat", (a, b), attributes)


# ----------------------------------------------------------------- quantize and dequantize


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_per_tensor(dtype: DType) -> None:
    rng = np.random.default_rng(8)
    for shape, layout in shapes_and_layouts(rng, 24):
        assert_matches_torch("aten::dequantize", (quantized(rng, shape, dtype, layout),), {})
    extremes = np.array([-(2**31), -1, 0, 2**31 - 1], np.int32)
    assert_matches_torch("aten::dequantize", (QTensor(extremes, 0.1, 9, None, qint32),), {})


def per_channel(
    rng: Rng, dtype: DType, *, float_zero_points: bool
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return values within 2 ulp of ties, and some that do not round at all."""
    shape = ((7,), (4, 6), (4, 6, 3, 3), (4, 5, 2, 3, 2))[int(rng.integers(4))]
    axis = int(rng.integers(min(len(shape), 2)))
    scales = np.exp(rng.uniform(-5, 0, shape[axis]))
    along = np.expand_dims(scales, [d for d in range(len(shape)) if d != axis])
    x = ((np.round(rng.normal(size=shape) * 10 / along) + 0.5) * along).astype(np.float32)
    x = (x.view(np.int32) + rng.integers(-2, 3, shape).astype(np.int32)).view(np.float32)
    x.flat[0] = rng.choice(np.float32([np.nan, np.inf, -np.inf, 3e9, 5e9, -0.0, 1e-45]))
    low, high = (-1000, 1000) if dtype == qint32 else dtype.limits
    zero_points: Any = rng.integers(low, high + 1, shape[axis])
    if float_zero_points:
        zero_points = rng.normal(size=shape[axis]) * 5
        scales = np.where(rng.random(shape[axis]) < 0.1, 0, scales)
    layout = LAYOUTS[int(rng.integers(2))]
    attributes = {"scales": scales, "zero_points": zero_points, "axis": axis, "dtype": dtype}
    return (laid_out(x, layout),), attributes


@pytest.mark.parametrize("dtype", DTYPES)
def test_per_channel(dtype: DType) -> None:
    rng = np.random.default_rng(9)
    for _ in range(60):
        operands, attributes = per_channel(rng, dtype, float_zero_points=False)
        assert_matches_torch("aten::quantize_per_channel", operands, attributes)
        q = call_torch("aten::quantize_per_channel", operands, attributes)
        assert_matches_torch("aten::dequantize", (q,), {})


@pytest.mark.parametrize("dtype", [*EIGHT_BITS, pytest.param(quint4x2, id="quint4x2")])
def test_per_channel_with_float_zero_points(dtype: DType) -> None:
    rng = np.random.default_rng(10)
    for _ in range(60):
        operands, attributes = per_channel(rng, dtype, float_zero_points=True)
        assert_matches_torch("aten::quantize_per_channel", operands, attributes)
        q = call_torch("aten::quantize_per_channel", operands, attributes)
        if dtype != quint4x2:  # torch cannot make one from its integers
            assert_matches_torch("aten::dequantize", (q,), {})


def test_parameters_as_operands() -> None:
    op = OPS["aten::quantize_per_channel"]
    (x,), attributes = per_channel(np.random.default_rng(0), qint8, float_zero_points=False)
    scales, zero_points = attributes.pop("scales"), attributes.pop("zero_points")
    values = op.reference(x, scales, zero_points, **attributes)
    assert_same(op.kernel(Engine.FBGEMM)(x, scales, zero_points, **attributes), values)
    types = (
        TensorType(float32, x.shape),
        *(TensorType(dtype, (len(scales),)) for dtype in (float64, float32)),
    )
    inferred = op.infer(*types, axis=attributes["axis"], dtype=quint8)
    assert inferred == TensorType(quint8, x.shape)


# ----------------------------------------------------------------------------- activations


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def elu(x: float, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> float:
    return scale * (x if x > 0 else alpha * math.expm1(x * input_scale))


def leaky_relu(x: float, slope: float) -> float:
    return x if x > 0 else x * slope


def hardswish(x: float) -> float:
    return x * min(max(x + 3, 0), 6) / 6


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def activations_at_ties(rng: Rng, x: QTensor) -> list[tuple[str, QTensor, dict[str, Any]]]:
    """Return calls where the element of ``x`` that is drawn lies next to a tie."""
    low = -900 if x.dtype == qint32 else x.dtype.limits[0]
    element = float(real(x).flat[rng.integers(x.int_repr.size)])
    distance = max(abs(round(element / float(x.scale))), 1)
    alpha, scale, input_scale = (float(v) for v in rng.uniform(0.5, 2, 3))

    def at(value: float) -> dict[str, Any]:
        return {
            "output_scale": scale_at_tie(rng, value),
            "output_zero_point": zero_point(rng, x.dtype, 10),
        }

    def rescaled(function: Callable[[float], float], steps: float) -> QTensor:
        new = argument_at_tie(rng, lambda s: function(distance * s), steps)
        return QTensor(x.int_repr, new, x.zero_point, None, x.dtype)

    def kept(function: Callable[[float], float], steps: float) -> QTensor:
        new = argument_at_tie(rng, lambda s: function(distance * s) / s, steps)
        return QTensor(x.int_repr, new, x.zero_point, None, x.dtype)

    half = int(rng.integers(130, 255)) + 0.5
    positive = math.floor(distance * rng.uniform(0.55, 0.99)) + 0.5
    shape = {"alpha": alpha, "scale": scale, "input_scale": input_scale}
    slope = {"negative_slope": alpha, "inplace": False}
    kept_slope = moved((int(rng.integers(0, 90)) + 0.5) / distance, int(rng.integers(-2, 3)))
    value = (int(rng.integers(-50, 50)) + 0.5) * float(x.scale)
    ramp = argument_at_tie(rng, lambda s: (distance * s + 3) / 6 * 256, half)
    on_ramp = QTensor(x.int_repr, ramp, x.zero_point, None, x.dtype)
    assert low <= x.zero_point
    return [
        ("aten::sigmoid", rescaled(lambda v: sigmoid(v) * 256, half), {}),
        ("aten::tanh", rescaled(lambda v: math.tanh(v) * 128, half - 128), {}),
        ("aten::hardsigmoid", on_ramp, {}),
        ("quantized::sigmoid", x, at(sigmoid(element))),
        ("quantized::hardswish", x, at(hardswish(element))),
        ("quantized::elu", x, at(elu(element))),
        ("quantized::elu", x, {**at(elu(element, **shape)), **shape}),
        ("quantized::celu", x, {**at(elu(element, alpha, 1, 1 / alpha)), "alpha": alpha}),
        ("quantized::leaky_relu", x, {**slope, **at(leaky_relu(element, alpha))}),
        ("aten::leaky_relu", x, {"negative_slope": kept_slope}),
        ("aten::threshold", x, {"threshold": element, "value": value}),
        ("aten::gelu", kept(gelu, positive), {}),
        ("aten::gelu", kept(gelu_tanh, positive), {"approximate": "tanh"}),
        ("quantized::dropout", x, {"output_scale": 0.3, "output_zero_point": 0}),
        ("aten::dropout", x, {"p": 0.3, "train": False}),
        ("aten::relu", x, {}),
        ("aten::relu6", x, {}),
        ("aten::clamp", x, {"min": value}),
        ("aten::clamp", x, {"max": value}),
        ("aten::clamp", x, {"min": element, "max": value}),
        ("aten::hardtanh", x, {"min_val": min(element, value), "max_val": max(element, value)}),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_at_ties(dtype: DType, layout: str) -> None:
    rng = np.random.default_rng(11)
    for shape in SHAPES * 2:
        x = quantized(rng, shape, dtype, layout, scale=float(rng.uniform(0.001, 0.1)))
        if dtype == qint32:
            x = QTensor(x.int_repr, x.scale, int(rng.integers(-100, 100)), None, dtype)
        for name, operand, attributes in activations_at_ties(rng, x):
            assert_matches_torch(name, (operand,), attributes)


Tail = tuple[str, Callable[[float, float], float], tuple[float, float], dict[str, Any]]

# Each: the op, its value in output steps for a distance and a scale, and a range of such steps.
TAILS: dict[str, Tail] = {
    "sigmoid": ("aten::sigmoid", lambda d, s: sigmoid(d * s) * 256, (129, 254), {}),
    "tanh": ("aten::tanh", lambda d, s: math.tanh(d * s) * 128, (2, 126), {}),
    "gelu": ("aten::gelu", lambda d, s: gelu(d * s) / s, (0.55, 0.99), {}),
    "gelu_tanh": (
        *("aten::gelu", lambda d, s: gelu_tanh(d * s) / s, (0.55, 0.99)),
        {"approximate": "tanh"},
    ),
}


@pytest.mark.parametrize("name", TAILS)
def test_scalar_tails_call_the_c_library(name: str) -> None:
    """So few elements are all tail; many draws, because the libraries rarely differ."""
    rng = np.random.default_rng(19)
    op, function, span, attributes = TAILS[name]
    for _ in range(400):
        distance = int(rng.integers(20, 100))
        steps = math.floor(rng.uniform(*span) * (distance if span[1] < 1 else 1)) + 0.5
        scale = argument_at_tie(rng, partial(function, distance), steps)
        q = np.array([128 + distance, *rng.integers(0, 256, 3)], np.uint8)
        assert_matches_torch(op, (QTensor(q, scale, 128, None, quint8),), attributes)


@pytest.mark.parametrize("alpha", [1.0, 1.3])
def test_scalar_tails_of_exponential_units(alpha: float) -> None:
    rng = np.random.default_rng(20)
    for _ in range(400):
        distance, scale = int(rng.integers(20, 100)), float(rng.uniform(0.002, 0.05))
        q = np.array([128 - distance, *rng.integers(0, 256, 3)], np.uint8)
        below = elu(-distance * scale, alpha, 1, 1 / alpha)
        attributes = {"output_scale": scale_at_tie(rng, below), "output_zero_point": 128}
        x = QTensor(q, scale, 128, None, quint8)
        assert_matches_torch("quantized::celu", (x,), {"alpha": alpha, **attributes})
        if alpha == 1:
            assert_matches_torch("quantized::elu", (x,), attributes)


def ordered(min: float | None = None, max: float | None = None) -> bool:
    """Whether both bounds are given, the lower one first."""
    return min is not None and max is not None and min + 1e-3 < max


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_activations_of_every_integer_under_qnnpack(dtype: DType) -> None:
    rng = np.random.default_rng(12)
    target = Target(Engine.QNNPACK, TARGET.isa)
    integers = np.arange(256).astype(np.uint8).view(dtype.storage)
    for _ in range(10):
        x = QTensor(integers, float(rng.uniform(0.001, 0.1)), zero_point(rng, dtype), None, dtype)
        for name, operand, attributes in activations_at_ties(rng, x):
            if name == "quantized::sigmoid" and dtype == quint8:  # its table has one scale only
                usual = {"output_scale": 2.0**-8, "output_zero_point": 0}
                assert_matches_torch(name, (operand,), usual, target)
                with pytest.raises(UnsupportedError, match="qnnpack accepts"):
                    OPS[name].bind(target, fast=True)(operand, **attributes)
            elif name != "aten::clamp" or ordered(**attributes):  # or torch refuses
                assert_matches_torch(name, (operand,), attributes, target)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float_activations(layout: str) -> None:
    rng = np.random.default_rng(13)
    calls: list[tuple[str, dict[str, Any]]] = [
        *((f"aten::{name}", {}) for name in ("relu", "relu6", "hardswish", "hardsigmoid")),
        *((f"aten::{name}", {}) for name in ("sigmoid", "silu", "elu", "celu", "leaky_relu")),
        ("aten::elu", {"alpha": 1.3, "scale": 1.1, "input_scale": 0.7}),
        ("aten::celu", {"alpha": 1.3}),
        ("aten::leaky_relu", {"negative_slope": 0.3}),
        ("aten::threshold", {"threshold": 0.1, "value": 7.0}),
        ("aten::clamp", {"min": -0.3, "max": 0.7}),
        ("aten::hardtanh", {"min_val": -0.3, "max_val": 0.7}),
        ("aten::gelu", {"approximate": "tanh"}),
    ]
    for shape in (*SHAPES, (5,), (33,), (47,), (500,)):
        for name, attributes in calls:
            assert_matches_torch(name, (floats(rng, shape, layout),), attributes)


def test_float_gelu_within_its_tolerance() -> None:
    x = (np.random.default_rng(14).normal(size=100_000) * 4).astype(np.float32)
    difference = OPS["aten::gelu"].reference(x).astype(np.float64) - call_torch(
        "aten::gelu", (x,), {}
    )
    assert np.abs(difference).max() <= 1.3e-6


def test_float_tanh_where_it_is_not_correctly_rounded() -> None:
    exceptions = tanh_float.exceptions()[0].view(np.float32)
    usual = (np.random.default_rng(14).normal(size=100_000) * 4).astype(np.float32)
    for x in (exceptions, -exceptions, usual, usual.reshape(100, 1000)[:, 3:40]):
        assert_matches_torch("aten::tanh", (x,), {})


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_prelu_at_ties(dtype: DType) -> None:
    rng = np.random.default_rng(15)
    for i, (shape, layout) in enumerate(shapes_and_layouts(rng, 48)):
        x = quantized(rng, shape, dtype, layout)
        channels = x.shape[1] if x.int_repr.ndim > 1 and i % 2 else 1
        weight = quantized(rng, (channels,), dtype, scale=float(np.exp(rng.uniform(-6, -3))))
        slopes = real(weight).reshape(-1, *(1,) * (x.int_repr.ndim - 2))
        y = np.where(real(x) > 0, real(x), real(x) * (slopes if channels > 1 else slopes.flat[0]))
        attributes = {
            "output_scale": scale_at_tie(rng, y),
            "output_zero_point": zero_point(rng, dtype),
        }
        assert_matches_torch("quantized::prelu", (x, weight), attributes)
        values = floats(rng, shape, layout)
        slope = rng.normal(size=values.shape[1] if channels > 1 else 1).astype(np.float32)
        assert_matches_torch("aten::prelu", (values, slope), {})


@pytest.mark.parametrize("target", [TARGET, TWO_THREADS], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_softmax(layout: str, target: Target) -> None:
    rng = np.random.default_rng(16)
    for i in range(40):
        shape = ((150,), (5, 49), (2, 5, 37), (2, 7, 5, 6), (3, 33, 8), (4, 15))[i % 6]
        dim = int(rng.integers(-len(shape), len(shape)))
        x = quantized(rng, shape, (quint8, qint8)[i % 2], layout)
        e = np.exp(real(x))
        attributes = {
            **{"dim": dim, "output_zero_point": 3},
            "output_scale": scale_at_tie(rng, e / e.sum(dim, keepdims=True), largest=0.1),
        }
        assert_matches_torch("quantized::softmax", (x,), attributes, target)
        values = laid_out((rng.normal(size=shape) * 4).astype(np.float32), layout)
        assert_matches_torch("aten::softmax", (values,), {"dim": dim}, target)


# --------------------------------------------------------------------- elementary functions

ELEMENTARY = [
    *("exp_sleef", "expm1_sleef", "tanh_sleef", "erf_aten"),
    *("exp_glibc", "expm1_glibc", "tanh_glibc", "erf_glibc"),
]


@pytest.mark.parametrize("name", ELEMENTARY)
def test_the_compiled_functions_are_the_numpy_functions(name: str) -> None:
    rng = np.random.default_rng(17)
    patterns = rng.integers(0, 2**32, 30_000, dtype=np.uint32).view(np.float32)
    near = (rng.normal(size=30_000) * 5).astype(np.float32)
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38])
    x = np.concatenate([patterns, near, special])
    one = getattr(elementary_jit, name)

    @jit
    def every(x: Any, y: Any) -> None:
        for i in range(x.size):
            y[i] = one(x[i])

    y = np.empty_like(x)
    every.py_func(x[:300], y[:300]) if not hasattr(one, "signatures") else every(x, y)
    n = 300 if not hasattr(one, "signatures") else len(x)
    np.testing.assert_array_equal(y[:n], getattr(elementary, name)(x[:n]))


def test_the_c_library_is_the_one_that_is_reproduced() -> None:
    """The scalar tails of torch call it, so another C library needs other formulas."""
    x = (np.random.default_rng(18).normal(size=7) * 3).astype(np.float32)
    expected = call_torch("aten::elu", (x,), {})
    np.testing.assert_array_equal(np.where(x > 0, x, elementary.expm1_glibc(x)), expected)


# ---------------------------------------------------------------------------------- checks

N = Dim("N")
U8 = TensorType(quint8, (N, 4, 3, 3), QParams(0.5, 7))
I8 = TensorType(qint8, (N, 4, 3, 3), QParams(0.5, 7))
F = TensorType(float32, (N, 4, 3, 3))
D = TensorType(float64, (N, 4, 3, 3))
C = TensorType(qint8, (4, 3), QParams((0.5,) * 4, (0,) * 4, 0))
OUT = {"scale": 1.0, "zero_point": 0}
OUTPUT = {"output_scale": 1.0, "output_zero_point": 0}


@pytest.mark.parametrize(
    ("name", "operands", "attributes", "expected"),
    [
        ("quantized::add", (U8, U8), OUT, (N, 4, 3, 3)),
        ("quantized::mul", (U8, U8.with_shape((N, 4, 1, 1))), OUT, (N, 4, 3, 3)),
        ("quantized::add_scalar", (U8,), {"b": 1.0}, (N, 4, 3, 3)),
        ("quantized::mul_scalar", (U8,), {"b": -1.0}, (N, 4, 3, 3)),
        ("quantized::cat", (U8, U8), {"dim": 1}, (N, 8, 3, 3)),
        ("quantized::cat", (U8, U8), {"dim": 0}, (2 * N, 4, 3, 3)),
        ("aten::dequantize", (U8,), {}, (N, 4, 3, 3)),
        ("aten::sigmoid", (U8,), {}, (N, 4, 3, 3)),
        ("quantized::elu", (U8,), OUTPUT, (N, 4, 3, 3)),
        ("quantized::softmax", (U8,), {"dim": 1, **OUTPUT}, (N, 4, 3, 3)),
    ],
)
def test_a_symbolic_batch_passes(
    name: str, operands: tuple[Any, ...], attributes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert OPS[name].infer(*operands, **attributes).shape == expected


@pytest.mark.parametrize(
    ("name", "operands", "attributes", "message"),
    [
        ("quantized::add", (U8, I8), OUT, "dtypes differ: quint8 and qint8"),
        ("quantized::add", (F, F), OUT, "dtype must be one of quint8, qint8, qint32, got float32"),
        ("quantized::add", (C, C), OUT, "expected a value quantized per tensor"),
        ("quantized::add", (U8, U8), {"scale": 0.0, "zero_point": 0}, "scale must be > 0"),
        ("quantized::add", (U8, U8), {"scale": 1.0, "zero_point": 256}, "zero_point must be in"),
        ("quantized::add", (U8, U8.with_shape((N, 5, 3, 3))), OUT, "do not broadcast"),
        ("quantized::mul", (U8, I8), OUT, "dtypes differ"),
        ("quantized::add_scalar", (F,), {"b": 1.0}, "got float32"),
        ("quantized::mul_scalar", (F,), {"b": 1.0}, "got float32"),
        ("quantized::cat", (), {"dim": 0}, "at least one tensor"),
        ("quantized::cat", (U8, I8), {"dim": 0}, "dtypes differ"),
        ("quantized::cat", (U8, U8.with_shape((N, 4, 3, 4))), {"dim": 1}, "differ outside dim 1"),
        ("quantized::cat", (U8,), {"dim": 4}, "dim 4 is outside"),
        ("aten::relu", (C,), {}, "per tensor"),
        ("aten::relu", (D,), {}, "got float64"),
        ("aten::clamp", (U8,), {}, "at least one of min and max"),
        ("aten::hardtanh", (U8,), {"min_val": 2.0, "max_val": 1.0}, "is above max_val"),
        ("aten::hardswish", (U8,), {}, "must be float32, got quint8"),
        ("quantized::celu", (U8,), {**OUTPUT, "alpha": 0.0}, "alpha must not be 0"),
        ("aten::gelu", (U8,), {"approximate": "sigmoid"}, "must be none or tanh"),
        ("quantized::prelu", (U8, I8), OUTPUT, "dtypes differ"),
        ("aten::prelu", (F, TensorType(float32, (3,))), {}, r"weight must be \[1\] or \[4\]"),
        ("quantized::softmax", (U8,), {"dim": 4, **OUTPUT}, "dim 4 is outside"),
        ("aten::softmax", (F,), {"dim": 0, "dtype": float64}, "dtype must be float32 or None"),
    ],
)
def test_checks(
    name: str, operands: tuple[Any, ...], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(VerifyError, match=message):
        OPS[name].infer(*operands, **attributes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": quint4x2}, "dtype must be one of quint8, qint8, qint32, got quint4x2"),
        ({"zero_points": np.array([0.5] * 4), "dtype": qint32}, "got qint32"),
        ({"zero_points": np.array([999] * 4)}, "zero points must be in"),
        ({"scales": np.ones(3)}, r"scales must be \[4\], got \[3\]"),
        ({"axis": 2}, "axis 2 is outside"),
    ],
)
def test_checks_of_quantize_per_channel(change: dict[str, Any], message: str) -> None:
    attributes = {"scales": np.ones(4), "zero_points": np.zeros(4, np.int64), "axis": 0}
    x = TensorType(float32, (4, 3))
    with pytest.raises(VerifyError, match=message):
        OPS["aten::quantize_per_channel"].infer(x, **{**attributes, "dtype": qint8, **change})


def test_training_is_refused() -> None:
    for name, attributes in (
        ("aten::dropout", {"p": 0.5, "train": True}),
        ("quantized::dropout", {**OUTPUT, "training": True}),
    ):
        with pytest.raises(UnsupportedError, match="random numbers"):
            OPS[name].infer(U8, **attributes)
