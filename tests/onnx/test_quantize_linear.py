"""QuantizeLinear and DequantizeLinear beside onnxruntime and onnx.reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto
from onnx_oracle import run_ort, run_reference

from refquant.ir.op import OPS
from refquant.ir.target import Target
from refquant.kernels.onnx.operands import limits_of

F = np.float32
ORT, ONNX = Target("ort"), Target("onnx")
Q, D = OPS["onnx::QuantizeLinear"], OPS["onnx::DequantizeLinear"]
INTEGERS: list[tuple[Any, int]] = [
    (np.uint8, TensorProto.UINT8),
    (np.int8, TensorProto.INT8),
    (np.uint16, TensorProto.UINT16),
    (np.int16, TensorProto.INT16),
    (ml_dtypes.uint4, TensorProto.UINT4),
    (ml_dtypes.int4, TensorProto.INT4),
    (ml_dtypes.uint2, TensorProto.UINT2),
    (ml_dtypes.int2, TensorProto.INT2),
]
FLOAT8: list[tuple[Any, int]] = [
    (ml_dtypes.float8_e4m3fn, TensorProto.FLOAT8E4M3FN),
    (ml_dtypes.float8_e4m3fnuz, TensorProto.FLOAT8E4M3FNUZ),
    (ml_dtypes.float8_e5m2, TensorProto.FLOAT8E5M2),
    (ml_dtypes.float8_e5m2fnuz, TensorProto.FLOAT8E5M2FNUZ),
]
EXTREMES = F([np.nan, np.inf, -np.inf, 0, -0.0, 1e30, -1e30, 3e9, -3e9, 1e-40])
HALVES = np.arange(65536, dtype=np.uint16).view(np.float16)
RNG = np.random.default_rng(7)


def near_ties(scale: Any, low: int, high: int, count: int = 25_000) -> Any:
    """Return values whose quotient is within an ulp of k + 0.5."""
    k = RNG.integers(low - 20, high + 20, count)
    x = (k + 0.5).astype(F) * F(scale)
    side = RNG.integers(-1, 2, count)
    moved = np.nextafter(x, np.where(side > 0, np.inf, -np.inf), dtype=F)
    return np.concatenate([np.where(side == 0, x, moved), EXTREMES]).astype(F)


def both(op: Any, target: Target, operands: tuple[Any, ...], **attributes: Any) -> Any:
    """Return the kernel's result, which the reference must share."""
    slow = op.bind(target, fast=False)(*operands, **attributes)
    fast = op.bind(target, fast=True)(*operands, **attributes)
    np.testing.assert_array_equal(slow.astype(F), fast.astype(F))
    assert slow.dtype == fast.dtype
    return fast


@pytest.mark.parametrize(("dtype", "code"), INTEGERS)
def test_rounding_of_ties_is_onnxruntimes(dtype: Any, code: int) -> None:
    low, high = limits_of(np.dtype(dtype))
    found = {"reciprocal": 0, "double": 0, "away": 0}
    for scale in (F(0.37), F(0.1), F(0.0011), F(0.25)):
        zero = np.array(RNG.integers(low, high + 1)).astype(dtype)
        x = near_ties(scale, low - int(zero), high - int(zero))
        y = run_ort("onnx::QuantizeLinear", [x, scale, zero], {}, (code,), opset=25, cast=True)
        np.testing.assert_array_equal(both(Q, ORT, (x, scale, zero)).astype(F), y)
        inner = x[: -len(EXTREMES)]
        wrong = {
            "reciprocal": np.rint(inner * (F(1) / scale)),
            "double": np.rint(inner.astype(float) / float(scale)),
            "away": np.copysign(np.floor(np.abs(inner / scale) + F(0.5)), inner),
        }
        for name, whole in wrong.items():
            planted = np.clip(whole + int(zero), low, high)
            found[name] += int((planted != y[: inner.size]).sum())
    if high - low > 15:  # few ties lie in the range of the others
        assert min(found.values()) > 0, found


@pytest.mark.parametrize(("dtype", "code"), INTEGERS)
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("columns", [35, 34])
def test_every_granularity(dtype: Any, code: int, kind: Any, columns: int) -> None:
    low, high = limits_of(np.dtype(dtype))
    values = np.concatenate([EXTREMES, RNG.normal(0, 10, 11)])
    with np.errstate(over="ignore"):
        x = RNG.permutation(np.resize(values, 6 * columns)).reshape(6, columns).astype(kind)
    for axis, block in ((0, 0), (1, 0), (0, 4), (1, 4)):
        shape = [6, columns] if block else [x.shape[axis]]
        if block:
            shape[axis] = -(-shape[axis] // block)
        scale = RNG.uniform(0.1, 0.5, shape).astype(kind)
        zero = RNG.integers(low, high + 1, shape).astype(dtype)
        more = {"axis": axis, "block_size": block}
        y = run_ort("onnx::QuantizeLinear", [x, scale, zero], more, (code,), opset=25, cast=True)
        found = both(Q, ORT, (x, scale, zero), **more)
        np.testing.assert_array_equal(found.astype(F), y, f"{more}")
        to = TensorProto.FLOAT if kind is np.float32 else TensorProto.FLOAT16
        real = run_ort("onnx::DequantizeLinear", [found, scale, zero], more, (to,), opset=25)
        np.testing.assert_array_equal(both(D, ORT, (found, scale, zero), **more), real)
        expected = run_reference(
            "onnx::DequantizeLinear", [found, scale, zero], more, (to,), opset=25
        )
        np.testing.assert_array_equal(both(D, ONNX, (found, scale, zero), **more), expected)


@pytest.mark.parametrize(("dtype", "code"), FLOAT8)
@pytest.mark.parametrize("saturate", [0, 1])
def test_float8(dtype: Any, code: int, saturate: int) -> None:
    bits = RNG.integers(0, 2**32, 60_000, dtype=np.uint64).astype(np.uint32)
    x = np.concatenate([HALVES.astype(F), bits.view(F), EXTREMES])
    for scale in (F(1), F(0.37)):
        operands = (x, scale, np.zeros((), dtype))
        more = {"saturate": saturate}
        y = run_ort("onnx::QuantizeLinear", operands, more, (code,), cast=True)
        np.testing.assert_array_equal(both(Q, ORT, operands, **more).astype(F), y)
        with np.errstate(all="ignore"):
            spec = run_reference("onnx::QuantizeLinear", operands, more, (code,))
        np.testing.assert_array_equal(both(Q, ONNX, operands, **more).astype(F), spec.astype(F))
    half = (HALVES, np.float16(0.37), np.zeros((), dtype))
    y = run_ort("onnx::QuantizeLinear", half, {"saturate": saturate}, (code,), cast=True)
    np.testing.assert_array_equal(both(Q, ORT, half, saturate=saturate).astype(F), y)


@pytest.mark.parametrize(("dtype", "code"), INTEGERS)
@pytest.mark.parametrize("kind", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_specification(dtype: Any, code: int, kind: Any) -> None:
    low, high = limits_of(np.dtype(dtype))
    scale, zero = np.array(0.37, kind), np.array(RNG.integers(low, high + 1)).astype(dtype)
    least, most = max(low, -20_000), min(high, 20_000)  # within float16
    x = near_ties(0.37, least, most, 5000)[: -len(EXTREMES)].astype(kind)
    with np.errstate(over="ignore"):
        spec = run_reference("onnx::QuantizeLinear", [x, scale, zero], {}, (code,), opset=25)
    np.testing.assert_array_equal(both(Q, ONNX, (x, scale, zero)).astype(F), spec.astype(F))


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (ml_dtypes.float4_e2m1fn, TensorProto.FLOAT4E2M1),
        (ml_dtypes.float6_e2m3fn, TensorProto.FLOAT6E2M3),
        (ml_dtypes.float6_e3m2fn, TensorProto.FLOAT6E3M2),
    ],
)
def test_floats_of_four_and_six_bits(dtype: Any, code: int) -> None:
    x = RNG.normal(0, 5, 4000).astype(F)
    scale = np.array(0.5, ml_dtypes.float8_e8m0fnu)
    for s in (F(0.37), scale):
        operands = (x, s, np.zeros((), dtype))
        spec = run_reference("onnx::QuantizeLinear", operands, {}, (code,), opset=28)
        found = both(Q, ONNX, operands)
        np.testing.assert_array_equal(found.astype(F), spec.astype(F))
    real = run_reference(
        "onnx::DequantizeLinear", [found, F(0.37)], {}, (TensorProto.FLOAT,), opset=28
    )
    np.testing.assert_array_equal(both(D, ONNX, (found, F(0.37))), real)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int16])
def test_dequantized_values(dtype: Any) -> None:
    limits = np.iinfo(dtype)
    q = RNG.integers(limits.min, limits.max, 50_000, endpoint=True).astype(dtype)
    zero = dtype(0 if dtype is np.int32 else limits.max // 3)
    y = run_ort("onnx::DequantizeLinear", [q, F(0.0037), zero], {}, (TensorProto.FLOAT,))
    np.testing.assert_array_equal(both(D, ORT, (q, F(0.0037), zero)), y)
