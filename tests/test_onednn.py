"""oneDNN's products and which engine x86 takes, against torch at rounding ties."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.nn.intrinsic.quantized as nniq
import torch.ao.nn.quantized.dynamic as nnqd
from oracle import assert_same, assert_same_strides, call_torch, torch_as
from torch import nn

from refquant.importers import from_fx
from refquant.ir.errors import UnsupportedError
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Engine, Target
from refquant.ir.types import DType, qint8, quint8
from refquant.kernels.engines import MOST_GROUPS, resolve
from refquant.ledger.cell import Call, Cell
from refquant.ledger.draw import SAMPLERS, products

pytestmark = pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
ENGINES = (Engine.ONEDNN, Engine.X86)
CONV = {"stride": (1,), "padding": (0,), "dilation": (1,), "groups": 1}
OUT = {"scale": 1.0, "zero_point": 0}


def cells() -> Iterator[Cell]:
    for name in products.SAMPLERS:
        if name not in OPS or name.startswith("_") or name.endswith(("tanh", "fp16")):
            continue
        for engine in ENGINES:
            if engine in OPS[name].kernels:
                yield Cell(name, Target(engine), products.DTYPES[name][0])
    for name in ("quantized::linear", "quantized::linear_relu", "quantized::linear_leaky_relu"):
        yield Cell(name, Target("onednn"), qint8)


def by_torch(cell: Cell, call: Call) -> Any:
    with torch_as(cell.target):
        return call_torch(cell.name, *call)


@pytest.mark.parametrize("cell", list(cells()), ids=str)
def test_products_at_ties(cell: Cell) -> None:
    op, rng = OPS[cell.name], np.random.default_rng(len(str(cell)))
    for _ in range(12):
        call = SAMPLERS[cell.name](rng, cell, 600)
        expected = by_torch(cell, call)
        for fast in (False, True):
            actual = op.bind(cell.target, fast=fast)(*call.operands, **call.attributes)
            assert_same(actual, expected)
            assert_same_strides(actual, expected)
        types = [None if x is None else type_of(x) for x in call.operands]
        assert op.infer(*types, **call.attributes) == type_of(actual)


def weight(shape: tuple[int, ...], zero_point: int = 0, value: int = 1) -> QTensor:
    return QTensor(np.full(shape, value, np.int8), 1.0, zero_point, None, qint8)


def feed(shape: tuple[int, ...], dtype: DType = quint8) -> QTensor:
    return QTensor(np.ones(shape, dtype.storage), 1.0, 0, None, dtype)


@pytest.mark.parametrize(
    ("factor", "groups", "transposed", "padding", "expected"),
    [
        (weight((1, 1, 1)), 1, False, (), Engine.ONEDNN),
        (weight((1, 1, 1)), MOST_GROUPS, False, (), Engine.ONEDNN),
        (weight((1, 1, 1)), MOST_GROUPS + 1, False, (), Engine.FBGEMM),
        (weight((1, 1, 1), 3), 1, False, (), Engine.FBGEMM),
        (weight((1, 1, 1)), 1, True, (0,), Engine.ONEDNN),
        (weight((1, 1, 1)), 1, True, (1,), Engine.FBGEMM),
    ],
)
def test_x86_is_one_of_two_engines(
    factor: QTensor, groups: int, transposed: bool, padding: tuple[int, ...], expected: Engine
) -> None:
    target = Target("x86", threads=3)
    resolved = resolve(target, factor, groups, transposed=transposed, output_padding=padding)
    assert resolved == Target(expected, threads=3)
    same = Target("qnnpack")
    assert resolve(same, factor, groups, transposed=transposed) == same


def refused(name: str, message: str, call: Call, engine: str = "onednn") -> None:
    for fast in (False, True):
        with pytest.raises(UnsupportedError, match=message):
            OPS[name].bind(Target(engine), fast=fast)(*call.operands, **call.attributes)


def test_what_torch_refuses_is_refused() -> None:
    rows, shifted = feed((2, 3)), weight((4, 3), 1)
    maps, kernel = feed((1, 3, 5)), weight((4, 3, 2), 1)
    shift = Call((rows, shifted, None), OUT)
    conv = Call((maps, kernel, None), {**CONV, **OUT})
    extra = Call(
        (feed((1, 3, 5)), weight((3, 3, 2)), None),
        {**CONV, "stride": (2,), "output_padding": (1,), **OUT},
    )
    for name, call, said, message in (
        ("quantized::linear", shift, "symmetric", "needs weight zero points 0, got 1"),
        ("quantized::conv1d", conv, "symmetric", "needs weight zero points 0, got 1"),
        ("quantized::conv_transpose1d", extra, "output_padding", "needs output_padding 0"),
    ):
        with pytest.raises(RuntimeError, match=f"(?i){said}|zero"):
            by_torch(Cell(name, Target("onednn"), quint8), call)
        refused(name, message, call)
    signed = Call((feed((2, 3), qint8), weight((4, 3)), None), OUT)
    refused("quantized::linear", "engine fbgemm takes quint8, got qint8", signed, "fbgemm")
    with pytest.raises(RuntimeError, match="QUInt8 but got QInt8"):
        by_torch(Cell("quantized::linear", Target("fbgemm"), qint8), signed)


def test_what_torch_computes_wrongly_is_refused() -> None:
    unequal = Call((feed((1, 3, 5)), weight((3, 4, 2)), None), {**CONV, "output_padding": (0,)})
    unequal.attributes.update(OUT)
    refused("quantized::conv_transpose1d", "weight in the wrong order", unequal)
    refused("quantized::conv_transpose1d", "weight in the wrong order", unequal, "x86")
    multiplied = Call((feed((1, 3, 5)), weight((6, 1, 2)), None), {**CONV, "groups": 3, **OUT})
    refused("quantized::conv1d", "depth multiplier", multiplied)
    column = {**CONV, "stride": (1, 1), "padding": (1, 0), "dilation": (1, 1), "groups": 2}
    narrow = Call((feed((1, 4, 3, 1)), weight((4, 2, 1, 1)), None), {**column, **OUT})
    refused("quantized::conv2d", "results of width 1", narrow)
    padded = {**CONV, "stride": (2,), "padding": (1,), **OUT}
    unseen = Call((feed((1, 3, 1)), weight((4, 3, 1)), None), padded)
    refused("quantized::conv1d", "no output sees an input", unseen)
    apart = {**CONV, "stride": (3, 1), "padding": (0, 0), "dilation": (1, 1), **OUT}
    apart["output_padding"] = (0, 0)
    maps = QTensor(np.ones((1, 3, 2, 2), np.uint8), 1.0, 1)
    gaps = Call((maps, weight((3, 3, 1, 2)), None), apart)
    refused("quantized::conv_transpose2d", "two rows or planes see no input", gaps)


def test_tanh_is_known_to_a_step() -> None:
    cell, rng = Cell("quantized::linear_tanh", Target("onednn"), qint8), np.random.default_rng(5)
    for dtype, most in ((qint8, 0), (quint8, 1)):
        cell = replace(cell, dtype=dtype)
        for _ in range(12):
            call = SAMPLERS[cell.name](rng, cell, 600)
            expected = by_torch(cell, call)
            for fast in (False, True):
                actual = OPS[cell.name].bind(cell.target, fast=fast)(
                    *call.operands, **call.attributes
                )
                apart = actual.int_repr.astype(int) - expected.int_repr
                assert np.abs(apart).max() <= most
                assert np.count_nonzero(apart) <= 0.01 * apart.size


class Fused(nn.Module):
    """Modules that torch has under engine onednn only, one of each; and a dynamic convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nniq.LinearLeakyReLU(6, 5, 0.1)
        self.second = nniq.LinearTanh(5, 4)
        self.added, self.added_relu = nniq.ConvAdd2d(1, 1, 3), nniq.ConvAddReLU2d(1, 1, 3)
        self.dynamic = nnqd.Conv2d(1, 2, 2)
        self.transposed = nnqd.ConvTranspose2d(1, 1, 2)
        for module in (self.first, self.second, self.added, self.added_relu):
            module.scale, module.zero_point = 0.05, 100

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        q = torch.quantize_per_tensor(x, 0.05, 100, torch.quint8)
        small = q.view(1, 1, 4, 6)
        part = x[:2, :4].reshape(1, 1, 2, 4)
        other = torch.quantize_per_tensor(part, 0.1, 9, torch.quint8)
        added = self.added_relu(small, self.added(small, other))
        rows = self.second(self.first(q)).dequantize()
        maps = x.view(1, 1, 4, 6)
        return rows, added.dequantize(), self.dynamic(maps) + self.transposed(maps)[:, :, :3, :5]


@pytest.mark.filterwarnings("ignore:The current implementation of the Dynamic:UserWarning")
def test_fused_and_dynamic_modules_import() -> None:
    target = Target("onednn")
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3)) * 3
    with torch_as(target):
        torch.manual_seed(0)
        model = Fused().eval()
        expected = model(x)
        graph = from_fx(model, (x,))
    results = graph.run(x.numpy(), target=target).outputs
    for actual, theirs in zip(results, expected, strict=True):
        np.testing.assert_array_equal(actual, theirs.numpy())
