"""Linear and convolution: NumPy formula == compiled tile == torch's fbgemm, bit for bit."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import ties
from oracle import assert_same, from_torch, to_torch
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Target
from refquant.kernels.layout import channels_last

Array = npt.NDArray[Any]
pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
GEOMETRY = ("stride", "padding", "output_padding", "dilation")
FLAGS = list(product((False, True), repeat=3))


def run_torch(name: str, operands: tuple[Any, ...], attributes: dict[str, Any]) -> Any:
    """Prepack the weight, run the packed op of fbgemm; return the result and its strides."""
    x, weight, bias = map(to_torch, operands)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        quantized = torch.ops.quantized
        bare = name.split("::")[1]
        prepack = getattr(quantized, bare.replace("_relu", "").replace("_dynamic", "") + "_prepack")
        axes = [list(attributes[key]) for key in GEOMETRY if key in attributes]
        groups = [attributes["groups"]] if "groups" in attributes else []
        packed = prepack(weight, bias, *axes, *groups)
        rest = [v for k, v in attributes.items() if k not in (*GEOMETRY, "groups")]
        y = getattr(quantized, bare)(x, packed, *rest)
        return from_torch(y), y.stride()
    finally:
        torch.backends.quantized.engine = before


def has_strides(value: Any, expected: tuple[int, ...]) -> bool:
    """Whether all lengths above one have torch's strides."""
    array = value.int_repr if isinstance(value, QTensor) else value
    steps = zip(array.shape, array.strides, expected, strict=True)
    return all(size == 1 or a == array.itemsize * b for size, a, b in steps)


def check(name: str, operands: tuple[Any, ...], attributes: dict[str, Any]) -> None:
    op = OPS[name]
    expected, strides = run_torch(name, operands, attributes)
    inferred = op.infer(*(None if v is None else type_of(v) for v in operands), **attributes)
    assert inferred == type_of(expected)
    packed = op.pack(operands[1], **attributes)
    np.testing.assert_array_equal(packed.int_repr, operands[1].int_repr)
    x, _, bias = operands
    for function, weight in (
        (op.bind(Target(), fast=False), operands[1]),
        (op.bind(Target(), fast=True), operands[1]),
        (op.bind(Target(), fast=True), packed),
    ):
        for _ in range(1 + (weight is packed)):  # the second time with cached tables
            actual = function(x, weight, bias, **attributes)
            assert_same(actual, expected)
            assert has_strides(actual, strides)


@pytest.mark.parametrize(("per_channel", "with_bias", "relu"), FLAGS)
def test_linear_at_ties(per_channel: bool, with_bias: bool, relu: bool) -> None:
    rng = np.random.default_rng([per_channel, with_bias, relu])
    for i in range(60):
        operands, attributes = ties.linear(rng, per_channel, with_bias, symmetric=i % 3 > 0)
        check(f"quantized::linear{'_relu' * relu}", operands, attributes)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", ties.KINDS)
def test_convolution_at_ties(kind: str, rank: int) -> None:
    if rank == 1 and kind in ("fast", "nearly_fast"):
        kind = "depthwise"
    rng = np.random.default_rng([rank, ties.KINDS.index(kind)])
    for i, (per_channel, with_bias, relu) in enumerate(FLAGS * 3):
        operands, attributes = ties.convolution(
            rng, kind, rank, per_channel, with_bias, symmetric=i % 3 > 0
        )
        if i % 2 and rank > 1:
            x = operands[0]
            operands = (x.with_int_repr(channels_last(x.int_repr)), *operands[1:])
        check(f"quantized::conv{rank}d{'_relu' * relu}", operands, attributes)
