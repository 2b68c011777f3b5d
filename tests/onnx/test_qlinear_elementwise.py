"""QLinearAdd and QLinearMul beside onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto
from onnx_oracle import run_ort

from refquant.ir.op import OPS
from refquant.ir.target import Target
from refquant.kernels.rounding import fma

F = np.float32
ORT = Target("ort")
TYPES: list[tuple[Any, int]] = [(np.uint8, TensorProto.UINT8), (np.int8, TensorProto.INT8)]
RNG = np.random.default_rng(11)


def draw_scale() -> Any:
    """Return a scale of few bits, with which sums lie on ties."""
    return F(2.0 ** RNG.integers(-6, 0) * RNG.integers(1, 32) / 16)


def draw(dtype: Any, a: tuple[int, ...], b: tuple[int, ...], wide: int = 1) -> tuple[Any, ...]:
    limits = np.iinfo(dtype)

    def some(shape: tuple[int, ...]) -> Any:
        return RNG.integers(limits.min, limits.max, shape, endpoint=True).astype(dtype)

    sa, sb, sc = draw_scale(), draw_scale(), F(draw_scale() * wide)
    return (some(a), sa, some(()), some(b), sb, some(()), sc, some(()))


def check(name: str, operands: tuple[Any, ...], code: int) -> Any:
    y = run_ort(name, operands, {}, (code,))
    for fast in (False, True):
        np.testing.assert_array_equal(OPS[name].bind(ORT, fast=fast)(*operands), y)
    return y


SHAPES = [
    ((2000,), (2000,)),
    ((33,), (33,)),
    ((1,), (501,)),
    ((501,), (1,)),
    ((2, 7, 4, 5), (7, 1, 1)),
    ((7, 1, 1), (2, 7, 4, 5)),
    ((2, 3, 4, 5), (4, 5)),
    ((2, 3, 1), (2, 1, 1)),
    ((2, 1), (1, 3)),
    ((), ()),
]


@pytest.mark.parametrize(("dtype", "code"), TYPES)
@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_equal_for_every_way_of_spreading(
    dtype: Any, code: int, op: str, a: tuple[int, ...], b: tuple[int, ...]
) -> None:
    for _ in range(20):
        wide = 64 if op == "QLinearMul" else 1
        check(f"com.microsoft::{op}", draw(dtype, a, b, wide), code)


def sums(o: tuple[Any, ...], *, fused: bool, late: bool, swapped: bool) -> Any:
    """Return QLinearAdd by a wrong formula, or by the right one."""
    (a, sa, za, b, sb, zb, sc, zc) = (x.astype(F) for x in map(np.asarray, o))
    ra, rb = sa / sc, sb / sc
    if swapped:
        a, ra, za, b, rb, zb = b, rb, zb, a, ra, za
    if not fused:
        return (zc - (ra * za + rb * zb)) + a * ra + b * rb
    if late:
        return fma(a - za, ra, (b - zb) * rb) + zc
    return fma(a, ra, fma(b, rb, zc - fma(ra, za, rb * zb)))


@pytest.mark.parametrize(("dtype", "code"), TYPES)
def test_wrong_sums_are_caught(dtype: Any, code: int) -> None:
    limits = np.iinfo(dtype)
    planted = {
        "right": (True, False, False),
        "not fused": (False, False, False),
        "differences": (True, True, False),
        "swapped": (True, False, True),
    }
    found = dict.fromkeys(planted, 0)
    for _ in range(60):
        operands = draw(dtype, (2000,), (2000,))
        y = check("com.microsoft::QLinearAdd", operands, code)
        for name, (fused, late, swapped) in planted.items():
            steps = sums(operands, fused=fused, late=late, swapped=swapped)
            found[name] += int((np.clip(np.rint(steps), limits.min, limits.max) != y).sum())
    right = found.pop("right")
    assert right == 0
    assert min(found.values()) > 0, found


@pytest.mark.parametrize(("dtype", "code"), TYPES)
def test_wrong_products_are_caught(dtype: Any, code: int) -> None:
    limits = np.iinfo(dtype)
    found = {"zero point after": 0, "double": 0, "fused": 0}
    for trial in range(150):
        operands = draw(dtype, (2000,), (2000,), wide=(16, 64, 256)[trial % 3])
        y = check("com.microsoft::QLinearMul", operands, code)
        a, sa, za, b, sb, zb, sc, zc = operands
        product = (a.astype(F) - F(za)) * (b.astype(F) - F(zb))
        ratio = F(sa * sb) / sc
        wrong = {
            "zero point after": np.rint(product * ratio) + F(zc),
            "double": np.rint(product.astype(float) * (float(sa) * float(sb) / float(sc)) + zc),
            "fused": np.rint(fma(product, ratio, F(zc))),
        }
        for name, whole in wrong.items():
            found[name] += int((np.clip(whole, limits.min, limits.max) != y).sum())
    assert max(found["double"], found["fused"]) > 0, found
    assert found["zero point after"] > 0, found


def test_overflow_and_absent_zero_points() -> None:
    x = np.uint8([0, 1, 200, 255])
    for op in ("QLinearAdd", "QLinearMul"):
        name = f"com.microsoft::{op}"
        for scale in (F(1e30), F(1e9), F(1e-30)):
            check(name, (x, scale, np.uint8(3), x, F(1), np.uint8(5), F(1), np.uint8(9)), 2)
        one = np.uint8(1)  # onnxruntime takes none of the others without a zero point
        check(name, (x, F(0.3), one, x, F(0.7), one, F(0.9), None), 2)
