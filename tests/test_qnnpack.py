"""Where qnnpack has an arithmetic of its own beside the products: sums and softmax."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from oracle import assert_same, call_torch

from refquant.ir.errors import UnsupportedError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Target
from refquant.ir.types import qint8, quint8
from refquant.kernels.layout import channels_last
from refquant.ledger.cell import Cell
from refquant.ledger.draw.pointwise import softmax

QNNPACK = Target("qnnpack")


@pytest.fixture(autouse=True)
def on_qnnpack() -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack"
    yield
    torch.backends.quantized.engine = before


def operands(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[QTensor, QTensor, float]:
    """Two tensors, and a scale at which one of the sums is a tie."""
    integers = [rng.integers(0, 256, shape).astype(np.uint8) for _ in range(2)]
    scales = np.exp(rng.uniform(-6, 0, 2))
    zeros = [int(z) for z in rng.integers(0, 256, 2)]
    a, b = (QTensor(x, float(s), z) for x, s, z in zip(integers, scales, zeros, strict=True))
    at = tuple(int(rng.integers(n)) for n in shape)
    exact = (int(integers[0][at]) - zeros[0]) * scales[0]
    exact += (int(integers[1][at]) - zeros[1]) * scales[1]
    scale = abs(exact) / (int(rng.integers(0, 100)) + 0.5)
    if not all(2**-13 < s / max(scale, 1e-30) < 2**7 for s in scales):
        scale = float(2 * scales.max())
    return a, b, float(np.float32(scale))


@pytest.mark.parametrize("name", ["quantized::add", "quantized::add_relu"])
def test_add_in_fixed_point(name: str) -> None:
    rng = np.random.default_rng(len(name))
    op = OPS[name]
    for i, shape in enumerate([(1,), (7,), (64,), (517,), (2, 3, 5, 7), (3, 70, 4, 4)] * 60):
        a, b, scale = operands(rng, shape)
        if len(shape) == 4 and i % 2:
            a = a.with_int_repr(channels_last(a.int_repr))
            b = b.with_int_repr(channels_last(b.int_repr)) if i % 4 == 1 else b
        attributes = {"scale": scale, "zero_point": int(rng.integers(0, 255))}
        expected = call_torch(name, (a, b), attributes)
        for fast in (False, True):
            assert_same(op.bind(QNNPACK, fast=fast)(a, b, **attributes), expected)


def test_every_pair_of_integers() -> None:
    grid = np.array(list(product(range(256), repeat=2)), np.uint8)
    a, b = QTensor(grid[:, 0], 0.3, 7), QTensor(grid[:, 1], 0.017, 200)
    for scale, zero_point in ((0.31, 3), (0.15, 128), (0.6, 255), (2.0, 0)):
        attributes = {"scale": scale, "zero_point": zero_point}
        expected = call_torch("quantized::add", (a, b), attributes)
        for fast in (False, True):
            result = OPS["quantized::add"].bind(QNNPACK, fast=fast)(a, b, **attributes)
            assert_same(result, expected)


def test_other_dtypes_and_shapes_are_added_as_real_numbers() -> None:
    rng = np.random.default_rng(3)
    a, b, scale = operands(rng, (4, 70))
    row = QTensor(b.int_repr[0], b.scale, b.zero_point)
    signed = [QTensor((x.int_repr - 128).astype(np.int8), x.scale, 0, None, qint8) for x in (a, b)]
    attributes = {"scale": scale, "zero_point": 9}
    expected = OPS["quantized::add"].bind(Target(), fast=False)(a, row, **attributes)
    assert_same(OPS["quantized::add"].bind(QNNPACK, fast=True)(a, row, **attributes), expected)
    expected = OPS["quantized::add"].bind(Target(), fast=False)(*signed, **attributes)
    assert_same(OPS["quantized::add"].bind(QNNPACK, fast=True)(*signed, **attributes), expected)


def test_scales_too_far_apart_are_refused_as_in_torch() -> None:
    a, b = QTensor(np.uint8([1]), 1.0, 0), QTensor(np.uint8([1]), 1e-6, 0)
    attributes = {"scale": 1.0, "zero_point": 0}
    with pytest.raises(RuntimeError, match="QNNPACK"):
        call_torch("quantized::add", (a, b), attributes)
    with pytest.raises(UnsupportedError, match=r"2\*\*-14 to 2\*\*8"):
        OPS["quantized::add"].bind(QNNPACK, fast=True)(a, b, **attributes)
    attributes["zero_point"] = 255
    with pytest.raises(RuntimeError, match="QNNPACK"):
        call_torch("quantized::add_relu", (a, a), attributes)
    with pytest.raises(UnsupportedError, match="255"):
        OPS["quantized::add_relu"].bind(QNNPACK, fast=True)(a, a, **attributes)


@pytest.mark.parametrize("fast", [False, True])
def test_transposed_convolution_in_three_dimensions_is_refused(fast: bool) -> None:
    x = QTensor(np.ones((1, 1, 2, 2, 2), np.uint8), 1.0, 0)
    weight = QTensor(np.ones((1, 1, 2, 2, 2), np.int8), 1.0, 0, None, qint8)
    attributes = {"stride": (1,) * 3, "padding": (0,) * 3, "output_padding": (0,) * 3}
    attributes |= {"dilation": (1,) * 3, "groups": 1, "scale": 1.0, "zero_point": 0}
    op = OPS["quantized::conv_transpose3d"].bind(QNNPACK, fast=fast)
    with pytest.raises(UnsupportedError, match="reads memory that it did not write"):
        op(x, weight, None, **attributes)


def test_softmax_by_a_table_of_integers() -> None:
    """Elements that change within 3 ulp of the input's scale, in every layout."""
    name, rng = "quantized::softmax", np.random.default_rng(3)
    op, cell = OPS[name], Cell(name, QNNPACK, quint8)
    other = op.bind(Target("fbgemm"), fast=True)
    compared = apart = refused = 0
    for _ in range(400):
        (x,), attributes = softmax(rng, cell, 1000)
        usual = attributes["output_scale"] == 1 / 256 and attributes["output_zero_point"] == 0
        if not usual or attributes["dim"] < 0:  # torch takes no negative one
            continue
        try:
            for fast in (False, True):
                actual = op.bind(QNNPACK, fast=fast)(x, **attributes)
                assert_same(actual, call_torch(name, (x,), attributes))
        except UnsupportedError:
            refused += 1
            continue
        compared += 1
        apart += int((actual.int_repr != other(x, **attributes).int_repr).sum())
    assert compared > 60
    assert apart > 10
    assert 0 < refused < 30


def test_softmax_of_a_transposed_tensor_is_refused() -> None:
    x = QTensor(np.zeros((2, 3), np.uint8).T, 1.0, 0)
    attributes = {"dim": 0, "output_scale": 1 / 256, "output_zero_point": 0}
    for fast in (False, True):
        with pytest.raises(UnsupportedError, match="softmax: torch's qnnpack scrambles"):
            OPS["quantized::softmax"].bind(QNNPACK, fast=fast)(x, **attributes)
