"""Matrix products of bytes beside onnxruntime and onnx.reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx_oracle import run_ort, run_reference

from refquant.ir.op import OPS
from refquant.ir.target import Target
from refquant.kernels.rounding import fma

F = np.float32
ORT, ONNX = Target("ort"), Target("onnx")
CODES = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
PAIRS: list[Any] = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)]
RNG = np.random.default_rng(5)


def some(dtype: Any, *shape: int) -> Any:
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)


def short(*shape: int, wide: float = 1.0) -> Any:
    """Return scales of few bits, with which products lie on ties."""
    return (2.0 ** RNG.integers(-6, 0, shape) * RNG.integers(1, 32, shape) / 16 * wide).astype(F)


def close_to(zero: Any, *shape: int) -> Any:
    """Return integers near their zero point, whose sums of products are small."""
    limits = np.iinfo(zero.dtype)
    near = zero.astype(int) + RNG.integers(-3, 4, shape)
    return np.clip(near, limits.min, limits.max).astype(zero.dtype)


def tied(unit: float) -> Any:
    """Return an output scale with which some small sums lie next to k + 0.5."""
    whole, half = RNG.integers(1, 24), RNG.integers(0, 12) + 0.5
    scale = F(unit * whole / half)
    return np.nextafter(scale, F(scale * RNG.choice([0.5, 1, 2])), dtype=F)


def ours(name: str, operands: Any, attributes: dict[str, Any], target: Target = ORT) -> Any:
    """Return the kernel's result with a constant weight, which all ways must share."""
    op = OPS[name]
    slow = op.bind(target, fast=False)(*operands, **attributes)
    kernel = op.bind(target, fast=True)
    assert op.pack is not None
    kept = list(operands)
    kept[op.weight] = op.pack(kept[op.weight], **attributes)
    fast = kernel(*kept, **attributes)
    np.testing.assert_array_equal(slow, fast)
    np.testing.assert_array_equal(slow, kernel(*operands, **attributes))
    assert slow.dtype == fast.dtype
    return fast


def requantized(total: Any, m: Any, zero: Any) -> Any:
    limits = np.iinfo(zero.dtype)
    z = int(zero)
    steps = np.clip(total.astype(F) * m, F(limits.min - z), F(limits.max - z))
    return np.rint(steps) + z


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_qlinear_matmul(left: Any, right: Any) -> None:
    found = {"zero point before": 0, "double": 0, "away": 0}
    for trial in range(40):
        rows, depth, columns = 41, int(RNG.integers(1, 9)), 67
        each = trial % 3 == 0
        sa = F(RNG.uniform(0.01, 0.1))
        sb = RNG.uniform(0.01, 0.1, columns).astype(F) if each else F(RNG.uniform(0.01, 0.1))
        zb = some(right, columns) if each else some(right)
        za, zy = some(left), some(left)
        a, b = close_to(za, rows, depth), close_to(zb, depth, columns)
        sy = tied(float(sa) * float(np.ravel(sb)[0]))
        if trial % 5 == 0:
            a, b = some(left, rows, depth), some(right, depth, columns)
        o = (a, sa, za, b, sb, zb, sy, zy)
        constants = (3,) if trial % 4 else ()
        y = run_ort("onnx::QLinearMatMul", o, {}, (CODES[left],), constants)
        np.testing.assert_array_equal(ours("onnx::QLinearMatMul", o, {}), y)
        limits = np.iinfo(left)
        total = (a.astype(np.int64) - int(za)) @ (b.astype(np.int64) - zb.astype(np.int64))
        m, z = F(sa * sb) / sy, int(zy)
        steps = total.astype(F) * m
        wrong = {
            "zero point before": np.rint(steps + F(z)),
            "double": np.rint(total * (float(sa) * sb.astype(float) / float(sy))) + z,
            "away": np.copysign(np.floor(np.abs(steps) + F(0.5)), steps) + z,
        }
        for name, whole in wrong.items():
            found[name] += int((np.clip(whole, limits.min, limits.max) != y).sum())
        if each:
            continue  # onnx.reference spreads scales of columns as numpy does, so does this
        spec = ours("onnx::QLinearMatMul", o, {}, ONNX)
        reference = run_reference("onnx::QLinearMatMul", o, {}, (CODES[left],))
        exact = total * float(m)
        tie = (np.floor(exact) + 0.5 == exact) & (z % 2 == 1)
        np.testing.assert_array_equal(spec[~tie], reference[~tie])
    assert min(found.values()) > 0, found


@pytest.mark.parametrize(("left", "right"), PAIRS)
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((5, 7), (7, 3)),
        ((2, 5, 7), (7, 3)),
        ((2, 1, 5, 7), (3, 7, 4)),
        ((7,), (7,)),
        ((7,), (7, 3)),
        ((3, 7), (7,)),
        ((4, 1000), (1000, 33)),
        ((1, 1), (1, 1)),
    ],
)
def test_matmul_integer(left: Any, right: Any, a: Any, b: Any) -> None:
    for zeros in (False, True):
        za, zb = some(left), some(right)
        if len(b) == 2 and zeros:
            zb = some(right, b[1])
        o = [some(left, *a), some(right, *b), za if zeros else None, zb if zeros else None]
        y = run_ort("onnx::MatMulInteger", o, {}, (TensorProto.INT32,))
        np.testing.assert_array_equal(ours("onnx::MatMulInteger", o, {}), y)
        spec = run_reference("onnx::MatMulInteger", o, {}, (TensorProto.INT32,))
        np.testing.assert_array_equal(ours("onnx::MatMulInteger", o, {}, ONNX), spec)


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_matmul_integer_to_float(left: Any, right: Any) -> None:
    name = "com.microsoft::MatMulIntegerToFloat"
    fused = 0
    for trial in range(24):
        depth, columns, each = int(RNG.integers(1, 60)), 53, trial % 2
        a, b = some(left, 37, depth), some(right, depth, columns)
        zb = some(right, columns) if each else some(right)
        sb = RNG.uniform(0.01, 0.1, columns if each else ()).astype(F)
        bias = RNG.normal(0, 10, columns).astype(F) if trial % 3 else None
        o = (a, b, F(RNG.uniform(0.01, 0.1)), sb, some(left), zb, bias)
        y = run_ort(name, o, {}, (TensorProto.FLOAT,), (1,) if trial % 4 else ())
        np.testing.assert_array_equal(ours(name, o, {}), y)
        if bias is not None:
            total = (a.astype(F) - F(o[4])) @ (b.astype(F) - zb.astype(F))
            fused += int((fma(total, np.broadcast_to(o[2] * sb, (columns,)), bias) != y).sum())
    assert fused > 0


@pytest.mark.parametrize("right", [np.uint8, np.int8])
def test_dynamic_quantize_matmul(right: Any) -> None:
    name = "com.microsoft::DynamicQuantizeMatMul"
    for trial in range(24):
        depth, columns, each = int(RNG.integers(1, 60)), 53, trial % 2
        a, b = RNG.normal(0, 2, (37, depth)).astype(F), some(right, depth, columns)
        zb = some(right, columns) if each else some(right)
        sb = RNG.uniform(0.01, 0.1, columns if each else ()).astype(F)
        bias = RNG.normal(0, 10, columns).astype(F) if trial % 3 else None
        o = (a, b, sb, None if trial % 5 == 0 else zb, bias)
        y = run_ort(name, o, {}, (TensorProto.FLOAT,), (1,) if trial % 4 else ())
        np.testing.assert_array_equal(ours(name, o, {}), y)


@pytest.mark.parametrize(("left", "right"), PAIRS)
def test_qgemm(left: Any, right: Any) -> None:
    name = "com.microsoft::QGemm"
    addends = [(53,), (37, 53), (37, 1), (), (1, 53)]
    for trial in range(48):
        depth, turn = int(RNG.integers(1, 60)), (trial % 2, trial // 2 % 2)
        a = some(left, *((depth, 37) if turn[0] else (37, depth)))
        b = some(right, *((53, depth) if turn[1] else (depth, 53)))
        each = trial % 3 == 0
        sb, zb = (short(53), some(right, 53)) if each else (short(), some(right))
        c = None
        if trial % 6:
            c = RNG.integers(-9999, 9999, addends[trial % 5]).astype(np.int32)
        y = (short(wide=256.0), some(left)) if trial % 4 != 3 else ()
        o = (a, short(), some(left), b, sb, zb, c, *y)
        code = CODES[left] if y else TensorProto.FLOAT
        more = {
            "alpha": float(F((1.0, 0.3, 2.5)[trial % 3])),
            "transA": turn[0],
            "transB": turn[1],
        }
        expected = run_ort(name, o, more, (code,), (3,) if trial % 5 else ())
        np.testing.assert_array_equal(ours(name, o, more), expected)


def test_dynamic_quantize_linear() -> None:
    op = OPS["onnx::DynamicQuantizeLinear"]
    codes = (TensorProto.UINT8, TensorProto.FLOAT, TensorProto.UINT8)
    for trial in range(150):
        x = RNG.normal(RNG.uniform(-3, 3), RNG.uniform(1e-3, 5), RNG.integers(1, 3000)).astype(F)
        if trial % 7 == 0:
            x = np.abs(x)
        if trial % 11 == 0:
            x[:] = 0
        if trial % 13 == 0:
            x[:] = F(-2.5)
        if trial % 17 == 0:
            x[0] = F(np.inf) * (-1) ** trial
        with np.errstate(all="ignore"):
            oracles = (
                (ORT, run_ort("onnx::DynamicQuantizeLinear", [x], {}, codes)),
                (ONNX, run_reference("onnx::DynamicQuantizeLinear", [x], {}, codes)),
            )
        for target, expected in oracles[: 1 if trial % 17 == 0 else 2]:
            for fast in (False, True):
                found = op.bind(target, fast=fast)(x)
                for part, other in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(part, other)


@pytest.mark.parametrize(
    ("a", "b", "each"),
    [
        ((2, 5, 7), (7, 3), ()),
        ((2, 5, 7), (2, 7, 3), (2, 1, 3)),
        ((2, 1, 5, 7), (3, 7, 4), ()),
        ((7,), (7, 3), (3,)),
        ((3, 7), (7, 3), (3,)),
    ],
)
def test_qlinear_matmul_of_any_rank(a: Any, b: Any, each: Any) -> None:
    sb = RNG.uniform(0.01, 0.02, each).astype(F)
    zb = some(np.uint8, *each)
    x, w = some(np.uint8, *a), some(np.uint8, *b)
    o = (x, F(0.02), np.uint8(7), w, sb, zb, F(0.3), np.uint8(9))
    y = run_ort("onnx::QLinearMatMul", o, {}, (TensorProto.UINT8,))
    np.testing.assert_array_equal(ours("onnx::QLinearMatMul", o, {}), y)
