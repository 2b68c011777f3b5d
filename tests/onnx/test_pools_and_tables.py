"""Pools, tables, softmax, concat and where beside onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx_oracle import run_ort

from refquant.ir.op import OPS
from refquant.ir.target import Target
from refquant.kernels.onnx.operands import limits_of

F = np.float32
ORT = Target("ort")
TYPES: list[Any] = [(np.uint8, TensorProto.UINT8), (np.int8, TensorProto.INT8)]
RNG = np.random.default_rng(17)


def some(dtype: Any, *shape: int) -> Any:
    low, high = limits_of(np.dtype(dtype))
    return RNG.integers(low, high, shape, endpoint=True).astype(dtype)


def near(zero: Any, *shape: int) -> Any:
    """Return integers near a zero point."""
    return np.clip(int(zero) + RNG.integers(-3, 4, shape), *limits_of(zero.dtype)).astype(
        zero.dtype
    )


def tied(unit: float) -> Any:
    """Return a scale with which some small multiples of a unit lie next to k + 0.5."""
    scale = F(unit * RNG.integers(1, 24) / (RNG.integers(0, 12) + 0.5))
    return np.nextafter(scale, F(scale * RNG.choice([0.5, 1, 2])), dtype=F)


def check(name: str, operands: Any, attributes: Any, code: int, constants: Any = ()) -> Any:
    y = run_ort(f"com.microsoft::{name}", operands, attributes, (code,), constants)
    op = OPS[f"com.microsoft::{name}"]
    for fast in (False, True):
        found = op.bind(ORT, fast=fast)(*operands, **attributes)
        np.testing.assert_array_equal(found, y)
    return y


@pytest.mark.parametrize(("dtype", "code"), TYPES)
@pytest.mark.parametrize("last", [0, 1])
def test_global_average_pool(dtype: Any, code: int, last: int) -> None:
    double = count = 0
    for _ in range(150):
        zx, zy, (h, w) = some(dtype), some(dtype), map(int, RNG.integers(1, 9, 2))
        x = near(zx, *((2, h, w, 37) if last else (2, 37, h, w)))
        sx = F(RNG.uniform(0.01, 0.1))
        sy = tied(float(sx) / (h * w))
        o = (x, sx, zx, sy, zy)
        y = check("QLinearGlobalAveragePool", o, {"channels_last": last}, code)
        axes = (1, 2) if last else (2, 3)
        total = (x.astype(int) - int(zx)).sum(axes, keepdims=True)
        wrong = np.rint(total * (float(sx) / float(sy) / (h * w))) + int(zy)
        double += int((np.clip(wrong, *limits_of(x.dtype)) != y).sum())
        count += y.size
    assert count > 10_000
    assert double > 0


POOLS: list[Any] = [
    ((2, 5, 7, 9), {"kernel_shape": (3, 2), "pads": (1, 0, 1, 1), "strides": (2, 1)}),
    ((2, 5, 7, 9), {"kernel_shape": (2, 2), "strides": (2, 2), "ceil_mode": 1}),
    ((2, 5, 7, 9), {"kernel_shape": (3, 3), "auto_pad": "SAME_UPPER", "strides": (2, 2)}),
    ((2, 5, 7, 9), {"kernel_shape": (7, 9)}),
    ((1, 3, 17), {"kernel_shape": (3,), "pads": (1, 1), "strides": (2,)}),
    ((1, 3, 5, 4, 6), {"kernel_shape": (2, 2, 3), "pads": (0, 1, 1, 1, 0, 1)}),
]


@pytest.mark.parametrize(("dtype", "code"), TYPES)
@pytest.mark.parametrize(("shape", "attributes"), POOLS)
@pytest.mark.parametrize("last", [0, 1])
def test_average_pool(dtype: Any, code: int, shape: Any, attributes: Any, last: int) -> None:
    before = 0
    for trial in range(24):
        zx, zy = some(dtype), some(dtype)
        x = near(zx, *shape)
        if last:
            x = np.ascontiguousarray(np.moveaxis(x, 1, -1))
        sx = F(RNG.uniform(0.01, 0.1))
        sy = tied(float(sx) / np.prod(attributes["kernel_shape"]))
        more = {**attributes, "count_include_pad": trial % 2, "channels_last": last}
        y = check("QLinearAveragePool", (x, sx, zx, sy, zy), more, code)
        even = check("QLinearAveragePool", (x, sx, zx, sy, dtype(0)), more, code)
        moved = np.clip(even.astype(int) + int(zy), *limits_of(x.dtype))
        before += int((moved != y).sum())
    if attributes["kernel_shape"] != shape[2:]:  # of windows, the zero point is rounded, too
        assert before > 0


@pytest.mark.parametrize(("dtype", "code"), TYPES)
def test_tables(dtype: Any, code: int) -> None:
    x = np.arange(256, dtype=np.uint8).view(dtype)
    for trial in range(400):
        sx, zx, zy = F(RNG.uniform(1e-3, 0.3)), some(dtype), some(dtype)
        check("QLinearSigmoid", (x, sx, zx, F(RNG.uniform(5e-4, 0.02)), zy), {}, code)
        alpha = float(F(RNG.uniform(0, 0.3)))
        sy = tied(float(sx) * alpha) if trial % 2 else F(RNG.uniform(0.5, 3)) * sx
        check("QLinearLeakyRelu", (x, sx, zx, sy, zy), {"alpha": alpha}, code)


@pytest.mark.parametrize(("dtype", "code"), TYPES)
def test_softmax(dtype: Any, code: int) -> None:
    for trial in range(240):
        opset = (12, 13)[trial % 2]
        x = some(dtype, 3, 4, int(RNG.integers(1, 50)))
        if trial % 3 == 0:
            x = (x // 64 * 64).astype(dtype)
        sx, sy = F(RNG.uniform(1e-3, 0.3)), F(1 / RNG.uniform(40, 600))
        more = {"axis": int(RNG.integers(-3, 3)), "opset": opset}
        o = (x, sx, some(dtype), sy, some(dtype))
        check("QLinearSoftmax", o, more, code, (1,) if trial % 5 else ())


@pytest.mark.parametrize(("dtype", "code"), TYPES)
def test_concat_and_where(dtype: Any, code: int) -> None:
    for trial in range(60):
        sx, sy = F(RNG.uniform(0.01, 0.1)), F(RNG.uniform(0.01, 0.1))
        zx, zy, zz = some(dtype), some(dtype), some(dtype)
        sz = (tied(float(sx)), sy)[trial % 2]
        if trial % 4 == 1:
            zz = zy
        x, y = some(dtype, 3, 40, 5), some(dtype, 3, 70, 5)
        o = (sz, zz, x, sx, zx, y, sy, zy)
        check("QLinearConcat", o, {"axis": 1}, code, (0, 1, 3, 4, 6, 7) if trial % 3 else ())
        condition = RNG.random((40, 1) if trial % 3 else (3, 40, 5)) < 0.5
        o = (condition, x, sx, zx, y[:, :40], sy, zy, sz, zz)
        check("QLinearWhere", o, {}, code, (2, 3, 5, 6, 7, 8) if trial % 3 else ())


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize(
    ("kernel", "strides", "dilations", "pads"),
    [
        ((3, 3), (2, 2), (1, 1), (1, 1, 1, 1)),
        ((2, 3), (1, 2), (2, 1), (1, 2, 0, 1)),
        ((3,), (2,), (2,), (2, 1)),
    ],
)
def test_max_pool_of_integers(
    dtype: Any, kernel: Any, strides: Any, dilations: Any, pads: Any
) -> None:
    """Few values, so that the first of equals matters; positions in both orders."""
    values, both = OPS["onnx::MaxPool"], OPS["onnx::MaxPool.indices"]
    limits = np.iinfo(dtype)
    x = np.random.default_rng(3).integers(limits.min, limits.min + 4, (2, 3, 9, 8)).astype(dtype)
    x = x if len(kernel) == 2 else x[..., 0]
    window = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
    for ceil in (0, 1):
        for order in (0, 1):
            how = {**window, "ceil_mode": bool(ceil)}
            attributes = {**window, "ceil_mode": ceil, "storage_order": order}
            code = TensorProto.UINT8 if dtype == np.uint8 else TensorProto.INT8
            expected = run_ort("onnx::MaxPool", [x], attributes, (code, TensorProto.INT64))
            found = [*both.reference(x, **how, storage_order=order)]
            found += [values.bind(Target("ort"), fast=fast)(x, **how) for fast in (False, True)]
            for one, other in zip(found, [*expected, *[expected[0]] * 2], strict=True):
                np.testing.assert_array_equal(one, other)
                assert one.dtype == other.dtype
