"""Linears and convolutions of machines that add products of bytes in pairs of 16 bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ledger import Ledger
from oracle import assert_same

from refquant.ir.errors import UnsupportedError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor
from refquant.ir.target import Engine, Isa, Target
from refquant.ir.types import float32, qint8, quint8
from refquant.kernels.accumulate import dot, dot_saturating
from refquant.ledger import check
from refquant.ledger.cell import Cell
from refquant.ledger.run import run_all

NAMES = (
    *(f"quantized::{name}" for name in ("linear", "conv1d", "conv2d", "conv3d")),
    *(f"quantized::conv_transpose{rank}d" for rank in (1, 2, 3)),
    *("quantized::linear_dynamic", "quantized::conv2d_dynamic"),
)
CELLS = [
    Cell(name, Target(engine, isa), float32 if name.endswith("dynamic") else quint8)
    for isa in (Isa.AVX512, Isa.AVX2)
    for engine in (Engine.FBGEMM, Engine.X86, Engine.ONEDNN)
    for name in NAMES
]


def test_torch_without_vnni(ledger: Ledger) -> None:
    found = run_all(CELLS, ledger.size(20_000, 1_000_000), 0, 2, lambda _cell, _outcome: None)
    for cell, outcome in found.items():
        assert outcome.status in ("equal", "partial"), (cell, outcome)
        ledger.run(f"{cell.name} without VNNI", True, str(cell))
    assert min(outcome.elements for outcome in found.values()) > 10_000


@pytest.mark.parametrize("engine", [Engine.FBGEMM, Engine.ONEDNN])
@pytest.mark.parametrize("name", NAMES)
def test_kernel_is_the_reference(name: str, engine: Engine) -> None:
    dtype = float32 if name.endswith("dynamic") else quint8
    cell = Cell(name, Target(engine, Isa.AVX2), dtype)
    saturated = 0
    for index in range(12):
        _, call = check.sample(cell, index)
        results = [check.by_refquant(cell, call, fast=fast) for fast in (True, False)]
        if isinstance(results[1], Exception):
            assert type(results[0]) is type(results[1])
            continue
        assert_same(results[0], results[1])
        exact = replace(cell, target=replace(cell.target, isa=Isa.AVX512_VNNI))
        saturated += check.different(check.by_refquant(exact, call, fast=True), results[0])[1]
    assert saturated


def test_no_pair_saturates_below_the_limit() -> None:
    x, weight = np.uint8([[[255, 1]], [[255, 2]], [[255, 128]]]), np.int8([[[127, 127]]])
    zero = np.int64([0])
    exact, pairs = dot(x, 3, weight, zero), dot_saturating(x, 3, weight, zero)
    lost = 255 * 127 + np.array([1, 2, 128]) * 127 - 32767
    np.testing.assert_array_equal(exact[:, 0] - pairs[:, 0], np.maximum(lost, 0))


def test_padding_left_out_does_not_count() -> None:
    x, weight = np.uint8([[[255, 255, 7, 7]]]), np.int8([[[127, 127, 3, 3]]])
    inside = np.array([[False, False, True, False]])
    total = dot_saturating(x, 5, weight, np.int64([0]), inside)
    assert total.tolist() == [[(7 - 5) * 3]]


def run(isa: str, *operands: Any, **attributes: Any) -> Any:
    return OPS["quantized::linear"].reference(*operands, **attributes, target=Target(isa=isa))


def test_default_changes_only_what_torch_itself_computes() -> None:
    x = QTensor(np.uint8([[255, 255]]), 1.0, 0)
    weight = QTensor(np.int8([[127, 127]]), 1.0, 0, None, qint8)
    attributes = {"scale": 512.0, "zero_point": 0}
    results = {str(i): int(run(i, x, weight, None, **attributes).int_repr[0, 0]) for i in Isa}
    assert results == {"avx512_vnni": 127, "default": 127, "avx512": 64, "avx2": 64}


def test_onednn_depthwise_that_loses_the_zero_point_is_refused() -> None:
    x = QTensor(np.full((1, 16, 3, 3), 9, np.uint8), 1.0, 5)
    weight = QTensor(np.ones((16, 1, 1, 1), np.int8), 1.0, 0, None, qint8)
    attributes = {"stride": (1, 1), "dilation": (1, 1), "groups": 16, "scale": 1.0}
    run = OPS["quantized::conv2d"].reference
    for padding, target in (((1, 0), "onednn"), ((1, 0), "x86")):
        with pytest.raises(UnsupportedError, match="leaves out the input's zero point"):
            run(
                x,
                weight,
                None,
                **attributes,
                padding=padding,
                zero_point=0,
                target=Target.parse(target),
            )
    for padding, target in (((1, 1), "onednn"), ((1, 0), "onednn/avx512"), ((1, 0), "fbgemm")):
        y = run(
            x,
            weight,
            None,
            **attributes,
            padding=padding,
            zero_point=0,
            target=Target.parse(target),
        )
        assert set(np.unique(y.int_repr)) == {0, 4}
