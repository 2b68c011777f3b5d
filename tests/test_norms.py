"""Batch, layer, group and instance norm against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracle import (
    assert_matches_torch,
    assert_same_strides,
    call_torch,
    this_machine,
)

from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import OPS
from refquant.ir.target import Target
from refquant.ir.types import Dim, DType, QParams, TensorType, float32, float64, qint8, quint8
from refquant.ledger.draw.tensors import (
    LAYOUTS,
    Array,
    Rng,
    laid_out,
    moved,
    quantized,
    real,
    scale_at_tie,
)
from refquant.ledger.draw.tensors import zero_point as draw_zero_point

DTYPES = [pytest.param(dtype, id=dtype.name) for dtype in (quint8, qint8)]
TARGET = this_machine()
TWO_THREADS = Target(TARGET.engine, TARGET.isa, 2)
EPS = 1e-5


def normalised(x: Array) -> Array:
    """Return values of zero mean and unit variance along the last dimension."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)


def output(rng: Rng, y: Array, dtype: DType) -> dict[str, Any]:
    """Return output parameters for which one of the values lies next to a tie."""
    return {
        **{"eps": EPS, "output_scale": max(scale_at_tie(rng, y), 1e-3)},
        "output_zero_point": draw_zero_point(rng, dtype, 90),
    }


def affine(rng: Rng, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Return random weight and bias."""
    return tuple(rng.normal(size=(2, *shape)).astype(np.float32))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_at_ties(dtype: DType) -> None:
    rng = np.random.default_rng(1)
    lengths = (1, 2, 7, 16, 31, 32, 33, 64, 100, 300)
    for i in range(80):
        n = lengths[i % 10]
        x = quantized(rng, (3, n), dtype)
        if i % 7 == 0:  # a small deviation
            close = np.clip(x.zero_point + rng.integers(-2, 3, (3, n)), *dtype.limits)
            x = x.with_int_repr(close.astype(dtype.storage))
        weight, bias = affine(rng, (n,)) if i % 3 else (None, None)
        y = normalised(real(x))
        if weight is not None:
            y = y * weight + bias
        attributes = {"normalized_shape": [n], **output(rng, y, dtype)}
        assert_matches_torch("quantized::layer_norm", (x, weight, bias), attributes)


def test_layer_norm_over_two_dimensions_of_any_layout() -> None:
    rng = np.random.default_rng(2)
    for layout in LAYOUTS:
        x = quantized(rng, (2, 3, 6, 10), quint8, layout)
        shape = x.shape[2:]
        y = normalised(real(x).reshape(*x.shape[:2], -1))
        attributes = {"normalized_shape": list(shape), **output(rng, y, quint8)}
        assert_matches_torch("quantized::layer_norm", (x, *affine(rng, shape)), attributes)


@pytest.mark.parametrize("target", [TARGET, TWO_THREADS], ids=str)
@pytest.mark.parametrize("kind", ["signal", "image", "channels_last", "volume", "large"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_and_instance_norm_at_ties(dtype: DType, kind: str, target: Target) -> None:
    rng = np.random.default_rng(3)
    for i in range(12 if kind == "large" else 40):
        channels = int(rng.choice([4, 8, 40] if kind == "large" else [4, 8, 12, 64, 130]))
        h, w = int(rng.choice([1, 2, 5, 8, 13])), int(rng.choice([1, 3, 8, 10]))
        sizes = {"signal": (h * w,), "volume": (h, 2, w), "large": (57, 71)}
        images = 3 if kind == "large" else 2  # so that two threads share an image
        shape = (images, channels, *sizes.get(kind, (h, w)))
        layout = "channels_last" if kind in ("channels_last", "large") else "contiguous"
        x = quantized(rng, shape, dtype, layout)
        for groups in (channels, int(rng.choice([1, 2]))):
            instance = groups == channels
            if instance and shape[2:] == (1, 1):
                continue
            weight, bias = affine(rng, (channels,)) if i % 5 else (None, None)
            y = normalised(real(x).reshape(images, groups, -1)).reshape(images, channels, -1)
            if weight is not None and bias is not None:
                y = y * weight[:, np.newaxis] + bias[:, np.newaxis]
            attributes = output(rng, y, dtype)
            name = "instance_norm" if instance else "group_norm"
            if not instance:
                attributes["num_groups"] = groups
            assert_matches_torch(f"quantized::{name}", (x, weight, bias), attributes, target)


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_norm_at_ties(dtype: DType) -> None:
    rng = np.random.default_rng(4)
    for i in range(60):
        channels = int(rng.choice([3, 8, 16, 33, 40, 64, 130]))
        rank = 2 + i % 4
        shape = (2, channels, *(7, 3, 2)[: rank - 2])
        x = quantized(rng, shape, dtype, LAYOUTS[int(rng.integers(2))])
        weight, mean = affine(rng, (channels,))
        variance = np.abs(rng.normal(size=channels)).astype(np.float32) + np.float32(0.1)
        scale = float(np.exp(rng.uniform(-5, -2)))
        first = real(x).reshape(2, channels, -1)[0, :, 0]
        ties = (rng.integers(-60, 60, channels) + 0.5) * scale
        exact = ties - (first - mean) / np.sqrt(variance + EPS) * weight
        bias = np.float32([moved(v, int(rng.integers(-3, 4))) for v in exact])
        attributes = {
            **{"eps": EPS, "output_scale": scale},
            "output_zero_point": draw_zero_point(rng, dtype, 40),
        }
        name = {2: "1d", 3: "1d", 4: "2d", 5: "3d"}[rank] if i % 3 else ""
        for suffix in ("", "_relu"):
            assert_matches_torch(
                f"quantized::batch_norm{name}{suffix}",
                (x, weight, bias, mean, variance),
                attributes,
            )


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_float_batch_norm(layout: str) -> None:
    rng = np.random.default_rng(5)
    for shape in ((5, 9), (2, 33, 7), (2, 40, 5, 3), (2, 8, 2, 3, 4)):
        x = laid_out(rng.normal(size=shape).astype(np.float32), layout)
        weight, mean = affine(rng, shape[1:2])
        variance = np.abs(rng.normal(size=shape[1])).astype(np.float32) + np.float32(0.1)
        for operands in ((weight, mean), (None, mean), (weight, None), (None, None)):
            statistics = (x, *operands, mean, variance)
            common = {"momentum": 0.1, "eps": 1e-3, "cudnn_enabled": True}
            assert_matches_torch("aten::batch_norm", statistics, {"training": False, **common})
            if len(shape) > 2:
                fixed = {"use_input_stats": False, **common}
                assert_matches_torch("aten::instance_norm", statistics, fixed)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_float_norms_within_their_tolerance(layout: str) -> None:
    rng = np.random.default_rng(6)
    own = {"use_input_stats": True, "momentum": 0.1, "cudnn_enabled": False}
    for _ in range(20):
        shape = (2, int(rng.choice([4, 8, 64, 130])), *(int(n) for n in rng.integers(2, 30, 2)))
        x = (rng.normal(size=shape) * np.exp(rng.uniform(-2, 2)) + 0.5).astype(np.float32)
        x = laid_out(x, layout)
        per_channel, per_column = affine(rng, shape[1:2]), affine(rng, shape[3:])
        calls: list[tuple[str, tuple[Any, ...], dict[str, Any], float]] = [
            ("aten::layer_norm", per_column, {"normalized_shape": list(shape[3:])}, 2e-6),
            ("aten::group_norm", per_channel, {"num_groups": 2}, 5e-5),
            ("aten::instance_norm", (*per_channel, None, None), own, 2e-6),
        ]
        for name, operands, attributes, tolerance in calls:
            attributes = {"eps": EPS, **attributes}
            expected = call_torch(name, (x, *operands), attributes)
            actual = OPS[name].reference(x, *operands, **attributes)
            assert_same_strides(actual, expected)
            bound = tolerance * np.maximum(1, np.abs(expected)) * max(1, np.abs(operands[0]).max())
            assert (np.abs(actual.astype(np.float64) - expected) <= bound).all()


# ---------------------------------------------------------------------------------- checks

N = Dim("N")
U8 = TensorType(quint8, (N, 4, 6, 6), QParams(0.5, 7))
F = TensorType(float32, (N, 4, 6, 6))
FOUR, THREE = TensorType(float32, (4,)), TensorType(float32, (3,))
WIDE = TensorType(float64, (4,))
OUT = {"eps": EPS, "output_scale": 1.0, "output_zero_point": 0}
STATISTICS = {"momentum": 0.1, "eps": EPS, "cudnn_enabled": False}


@pytest.mark.parametrize(
    ("name", "operands", "attributes"),
    [
        ("quantized::batch_norm2d", (U8, FOUR, FOUR, FOUR, FOUR), OUT),
        ("quantized::group_norm", (U8, FOUR, None), {"num_groups": 2, **OUT}),
        ("quantized::instance_norm", (U8, None, None), OUT),
        ("quantized::layer_norm", (U8, None, None), {"normalized_shape": [6], **OUT}),
        ("aten::group_norm", (F,), {"num_groups": 4}),
        ("aten::layer_norm", (F,), {"normalized_shape": [6, 6]}),
    ],
)
def test_a_symbolic_batch_passes(
    name: str, operands: tuple[Any, ...], attributes: dict[str, Any]
) -> None:
    inferred = OPS[name].infer(*operands, **attributes)
    assert (inferred.dtype, inferred.shape) == (operands[0].dtype, operands[0].shape)


@pytest.mark.parametrize(
    ("name", "operands", "attributes", "message"),
    [
        ("quantized::batch_norm1d", (U8, *[FOUR] * 4), OUT, "expected rank 2 or 3"),
        ("quantized::batch_norm2d", (U8, THREE, *[FOUR] * 3), OUT, r"weight must be \[4\]"),
        ("quantized::batch_norm2d", (U8, None, *[FOUR] * 3), OUT, "weight must be given"),
        ("quantized::batch_norm2d", (U8, FOUR, WIDE, FOUR, FOUR), OUT, "got float64"),
        ("quantized::group_norm", (U8, None, None), {"num_groups": 3, **OUT}, "does not divide"),
        (
            "quantized::group_norm",
            (U8.with_shape((N, 4)), None, None),
            {"num_groups": 2, **OUT},
            "expected rank 3 or more",
        ),
        ("quantized::group_norm", (F, None, None), {"num_groups": 2, **OUT}, "got float32"),
        (
            "quantized::layer_norm",
            (U8, None, None),
            {"normalized_shape": [4], **OUT},
            "is not the end of",
        ),
        (
            "aten::layer_norm",
            (F, FOUR),
            {"normalized_shape": [6]},
            r"weight must be \[6\], got \[4\]",
        ),
        (
            "aten::batch_norm",
            (F, None, None, None, FOUR),
            {"training": False, **STATISTICS},
            "running_mean and running_var must be given",
        ),
        (
            "aten::instance_norm",
            (F, None, None, None, FOUR),
            {"use_input_stats": False, **STATISTICS},
            "running_mean is needed",
        ),
    ],
)
def test_checks(
    name: str, operands: tuple[Any, ...], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(VerifyError, match=message):
        OPS[name].infer(*operands, **attributes)


@pytest.mark.parametrize(
    ("name", "operands", "attributes", "message"),
    [
        (
            "aten::batch_norm",
            (F, None, None, FOUR, FOUR),
            {"training": True, **STATISTICS},
            "training is not supported",
        ),
        (
            "aten::instance_norm",
            (F, None, None, FOUR, FOUR),
            {"use_input_stats": True, **STATISTICS},
            "is not supported",
        ),
    ],
)
def test_what_is_not_supported(
    name: str, operands: tuple[Any, ...], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        OPS[name].infer(*operands, **attributes)


@pytest.mark.parametrize("fast", [False, True])
def test_images_that_torch_leaves_unwritten_are_refused(fast: bool) -> None:
    x = quantized(np.random.default_rng(8), (3, 4, 2, 1), quint8, "channels_last")
    run = OPS["quantized::instance_norm"].bind(TARGET, fast=fast)
    with pytest.raises(UnsupportedError, match=r"after the first 2, .* got 3 images"):
        run(x, None, None, **OUT)
    assert run(x.with_int_repr(x.int_repr[:2]), None, None, **OUT).shape == (2, 4, 2, 1)
