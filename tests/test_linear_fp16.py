"""Linear layers with float16 weights: NumPy formula == compiled loops == torch, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import flows
import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import from_torch, to_torch
from torch import nn
from torch.ao.quantization import float16_dynamic_qconfig, quantize_dynamic

from refquant.importers import from_fx
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.op import OPS
from refquant.ir.qtensor import type_of
from refquant.ir.target import Target
from refquant.ir.types import Dim, TensorType, float32

Array = Any
Rng = np.random.Generator
NAMES = ("linear_dynamic_fp16", "linear_relu_dynamic_fp16")
AWKWARD = (0.0, -0.0, np.inf, -np.inf, np.nan, 65504.0, 65519.0, 65520.0, -7e4, 1e38, 2.0**-25)


def run_torch(name: str, x: Array, weight: Array, bias: Array | None, engine: str) -> Array:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        quantized = torch.ops.quantized
        if name.endswith("unpacked_weight"):
            return from_torch(getattr(quantized, name)(*map(to_torch, (x, weight, bias))))
        packed = quantized.linear_prepack_fp16(to_torch(weight), to_torch(bias))
        return from_torch(getattr(quantized, name)(to_torch(x), packed))
    finally:
        torch.backends.quantized.engine = before


def check(ledger: Ledger, name: str, *operands: Any, engine: str = "fbgemm") -> None:
    op, expected = OPS[f"quantized::{name}"], run_torch(name, *operands, engine)
    assert op.infer(*(None if v is None else type_of(v) for v in operands)) == type_of(expected)
    for fast in (False, True):
        actual = op.bind(Target(engine), fast=fast)(*operands)
        ledger.equal(f"{name} {engine}", actual, expected)


def weights(rng: Rng, shape: tuple[int, int]) -> Array:
    """Return weights of which half lie next to the middle of two float16 numbers."""
    w = rng.normal(size=shape) * np.exp(rng.uniform(-9, 3))
    below = w.astype(np.float16)
    above = np.nextafter(below, np.float16(np.inf))
    middle = ((below.astype(np.float32) + above.astype(np.float32)) / 2).view(np.int32)
    near = (middle + rng.integers(-1, 2, shape).astype(np.int32)).view(np.float32)
    return np.where(rng.random(shape) < 0.5, near, w).astype(np.float32)


@pytest.mark.parametrize("engine", ["fbgemm", "x86"])
@pytest.mark.parametrize("name", NAMES)
def test_every_shape_is_added_up_in_torchs_order(name: str, engine: str, ledger: Ledger) -> None:
    rng = np.random.default_rng([len(name), len(engine)])
    for i in range(ledger.size(24, 400)):
        rows = int(rng.choice([0, 1, 2, 5, 14, 15, 37, 121]))
        channels = int(rng.choice([1, 7, 16, 17, 31, 32, 33, 64, 70, 97]))
        depth = int(rng.choice([1, 3, 64, 511, 512, 513, 700, 1024, 1025, 1300, 2049]))
        if rows * channels * depth > 2_000_000 and not ledger.sweep:
            rows = 2
        x = (rng.normal(size=(rows, depth)) * np.exp(rng.uniform(-3, 3))).astype(np.float32)
        bias = rng.normal(size=channels).astype(np.float32) if i % 2 else None
        check(ledger, name, x, weights(rng, (channels, depth)), bias, engine=engine)


def test_numbers_out_of_range(ledger: Ledger) -> None:
    rng = np.random.default_rng(7)
    for i in range(ledger.size(12, 400)):
        x = rng.normal(size=(3, 20)).astype(np.float32)
        weight = weights(rng, (40, 20))
        weight = np.where(
            rng.random(weight.shape) < 0.1, rng.choice(AWKWARD, weight.shape), weight
        )
        if i % 2:
            x = np.where(rng.random(x.shape) < 0.1, rng.choice(AWKWARD, x.shape), x)
        operands = x.astype(np.float32), weight.astype(np.float32), None
        for name in (*NAMES, "linear_dynamic_fp16_unpacked_weight"):
            check(ledger, name, *operands)


def test_leading_dimensions_and_strides(ledger: Ledger) -> None:
    rng = np.random.default_rng(9)
    weight, bias = weights(rng, (33, 24)), rng.normal(size=33).astype(np.float32)
    cube = rng.normal(size=(2, 3, 24)).astype(np.float32)
    for x in (cube, cube.transpose(1, 0, 2), cube[:, ::2], np.asfortranarray(cube[0])):
        check(ledger, "linear_dynamic_fp16", x, weight, bias)


def test_refusals() -> None:
    op = OPS["quantized::linear_dynamic_fp16"]
    x, weight = TensorType(float32, (Dim("N"), 4)), TensorType(float32, (3, 4))
    assert op.infer(x, weight, None) == TensorType(float32, (Dim("N"), 3))
    for operands, message in (
        ((x, TensorType(float32, (3, 5)), None), "input features must be 5, got 4"),
        ((TensorType(float32, (4,)), weight, None), "at least 2 dimensions"),
        ((x, TensorType(float32, (3, 4, 1)), None), "must have 2 dimensions, got 3"),
        ((x, weight, TensorType(float32, (4,))), r"bias must be \[3\], got \[4\]"),
    ):
        with pytest.raises(VerifyError, match=message):
            op.infer(*operands)
    for fast in (False, True):
        function = op.bind(Target("fbgemm", "avx2"), fast=fast)
        with pytest.raises(UnsupportedError, match="known for avx512, got avx2"):
            function(np.ones((1, 4), np.float32), np.ones((3, 4), np.float32), None)
    with pytest.raises(UnsupportedError, match="no kernel for engine qnnpack"):
        op.bind(Target("qnnpack"), fast=True)


# ---- models


class Net(nn.Module):
    """Linear layers alone, with relu, and of more columns than a block has."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(24, 70), nn.Linear(70, 32), nn.Linear(32, 5)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.three(self.relu(self.two(self.relu(self.one(x)) + 0.5)))


class Functional(nn.Module):
    """The same as functions of parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(40, 24)), nn.Parameter(torch.randn(8, 40))
        self.b = nn.Parameter(torch.randn(40))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.relu(nn.functional.linear(x, self.w, self.b))
        return nn.functional.linear(y, self.v)


def check_model(ledger: Ledger, model: nn.Module, *inputs: torch.Tensor) -> set[str]:
    """Compare a model's result in both executors; return its ops."""
    with flows.fbgemm():
        expected = leaves(from_torch(model(*inputs)))
        graph = from_fx(model, inputs)
    for executor in ("reference", "fast"):
        outputs = graph.run(*map(from_torch, inputs), executor=executor).outputs
        for actual, wanted in zip(leaves(outputs), expected, strict=True):
            ledger.equal("models with float16 weights", actual, wanted)
    return {node.op for node in graph.nodes}


def leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [part for parts in value for part in leaves(parts)]
    return [value]


@pytest.mark.parametrize("make", [Net, Functional])
def test_linear_models_are_bit_exact(make: type[nn.Module], ledger: Ledger) -> None:
    torch.manual_seed(0)
    mapping = torch.ao.quantization.QConfigMapping().set_global(float16_dynamic_qconfig)
    model = flows.convert(flows.prepare(make(), (3, 24), mapping))
    ops = check_model(ledger, model, torch.randn(3, 24))
    assert {"quantized::linear_dynamic_fp16", "quantized::linear_relu_dynamic_fp16"} <= ops


RECURRENT: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "LSTM": (nn.LSTM(6, 11, 2, batch_first=True, bidirectional=True), (2, 4, 6)),
    "GRU": (nn.GRU(6, 9), (3, 2, 6)),
    "LSTMCell": (nn.LSTMCell(6, 9), (2, 6)),
    "GRUCell": (nn.GRUCell(6, 9), (2, 6)),
    "RNNCell": (nn.RNNCell(6, 9, nonlinearity="relu"), (2, 6)),
}


class Recurrent(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: torch.Tensor) -> Any:
        return self.part(x)


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_models_are_bit_exact(name: str, ledger: Ledger) -> None:
    part, shape = RECURRENT[name]
    torch.manual_seed(1)
    with flows.fbgemm():
        model = quantize_dynamic(Recurrent(part).eval(), dtype=torch.float16)
    ops = check_model(ledger, model, torch.randn(shape))
    assert "quantized::linear_dynamic_fp16" in ops


def test_without_compiled_code() -> None:
    code = (
        "import numpy as np; from refquant.ir.op import OPS;"
        "from refquant.ir.target import Target;"
        "op = OPS['quantized::linear_dynamic_fp16'];"
        "x, w = np.ones((2, 5), np.float32), np.full((34, 5), 0.1, np.float32);"
        "y = op.bind(Target(), fast=True)(x, w, None);"
        "assert (y == op.reference(x, w, None)).all(); print(y.shape)"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "(2, 34)"
