"""Weights when a model is converted: quantized as by eager mode and FX, batch norms folded in."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from flows import convert, fbgemm
from ledger import Ledger
from oracle import from_torch
from test_observers import both
from torch import nn
from torch.ao import quantization
from torch.ao.nn.quantized.modules.utils import _quantize_weight as torch_quantize_weight
from torch.ao.quantization import quantize_fx
from torch.nn.utils import fusion

import refquant
from refquant import fake_quantize, observer
from refquant.ir.errors import RefquantError, VerifyError
from refquant.kernels.fuse_batch_norm import fuse_conv_bn_weights, fuse_linear_bn_weights
from refquant.kernels.min_max import (
    min_max,
    min_max_compiled,
    min_max_per_channel,
    min_max_per_channel_compiled,
)
from refquant.quantize_weight import quantize_weight, quantize_weight_eager

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
OBSERVERS = [
    "default_weight_observer",
    "default_per_channel_weight_observer",
    "weight_observer_range_neg_127_to_127",
    "per_channel_weight_observer_range_neg_127_to_127",
    "default_float_qparams_observer",
    "default_fused_per_channel_wt_fake_quant",
    "default_weight_fake_quant",
]


def assert_same(actual: Any, expected: torch.Tensor, ledger: Ledger, subject: str) -> None:
    wanted = from_torch(expected)
    assert actual.dtype == wanted.dtype
    ledger.equal(f"{subject} integers", actual.int_repr, wanted.int_repr)
    np.testing.assert_array_equal(actual.scale, wanted.scale)
    np.testing.assert_array_equal(actual.zero_point, wanted.zero_point)
    assert actual.axis == wanted.axis


@pytest.mark.parametrize("name", OBSERVERS)
def test_eager(name: str, ledger: Ledger) -> None:
    rng = np.random.default_rng(0)
    for _ in range(ledger.size(5, 100)):
        weight = (rng.standard_normal((7, 40)) * np.exp(rng.uniform(-8, 3))).astype(np.float32)
        ours, theirs = both(name)
        theirs(torch.from_numpy(weight))
        expected = torch_quantize_weight(torch.from_numpy(weight), theirs)
        assert_same(quantize_weight_eager(weight, ours), expected, ledger, "eager weight")


@pytest.mark.parametrize("per_channel", [False, True])
def test_eager_limits_to_the_observers_range_and_fx_does_not(
    per_channel: bool, ledger: Ledger
) -> None:
    prefix = "PerChannel" if per_channel else ""
    scheme = "per_channel_symmetric" if per_channel else "per_tensor_symmetric"
    settings = {
        "dtype": refquant.qint8,
        "qscheme": getattr(refquant, scheme),
        "quant_min": -64,
        "quant_max": 63,
    }
    ours, _ = both(f"{prefix}MinMaxObserver", **settings)
    make = getattr(quantization, f"{prefix}MinMaxObserver").with_args(
        dtype=torch.qint8, qscheme=getattr(torch, scheme), quant_min=-64, quant_max=63
    )
    qconfig = quantization.QConfig(activation=quantization.default_observer, weight=make)
    with fbgemm():
        torch.manual_seed(0)
        linear = nn.Linear(40, 30)
        x = torch.randn(2, 40)
        eager = nn.Sequential(quantization.QuantStub(), copy.deepcopy(linear))
        eager.qconfig = qconfig
        quantization.prepare(eager, inplace=True)
        eager(x)
        quantization.convert(eager, inplace=True)
        mapping = quantization.QConfigMapping().set_global(qconfig)
        prepared = quantize_fx.prepare_fx(nn.Sequential(linear).eval(), mapping, (x,))
        prepared(x)
        fx = quantize_fx.convert_fx(prepared)
    weight = linear.weight.detach().numpy()
    limited = quantize_weight_eager(weight, copy.deepcopy(ours))
    whole = quantize_weight(weight, ours)
    assert_same(limited, eager[1].weight(), ledger, "eager weight")
    assert_same(whole, getattr(fx, "0").weight(), ledger, "FX weight")
    assert limited.int_repr.max() == 63
    if per_channel:
        assert whole.int_repr.max() == 64


class _ConvBn(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.conv(x))


def test_qat_folds_observes_once_more_and_quantizes(ledger: Ledger) -> None:
    """Convert after training: the folded weight is one more batch for the moving average."""
    for channels in (1, 5, 16)[: ledger.size(2, 3)]:
        torch.manual_seed(channels)
        mapping = quantization.get_default_qat_qconfig_mapping("fbgemm")
        x = torch.randn(4, 3, 8, 8)
        with fbgemm(), torch.enable_grad():
            prepared = quantize_fx.prepare_qat_fx(_ConvBn(channels).train(), mapping, (x,))
            optimizer = torch.optim.SGD(prepared.parameters(), lr=0.5)
            for step in range(3):
                optimizer.zero_grad()
                prepared(x * (step + 1)).pow(2).sum().backward()
                optimizer.step()
        conv = prepared.conv
        parts = (conv.weight, conv.bias, conv.bn.running_mean, conv.bn.running_var)
        arrays = [None if t is None else t.detach().numpy().copy() for t in parts]
        affine = [t.detach().numpy().copy() for t in (conv.bn.weight, conv.bn.bias)]
        weight, bias = fuse_conv_bn_weights(*arrays, conv.bn.eps, *affine)
        ours = fake_quantize.default_fused_per_channel_wt_fake_quant()
        ours.load_state_dict(conv.weight_fake_quant.state_dict())
        converted = convert(prepared.eval()).conv
        q = quantize_weight(weight, ours)
        assert_same(q, converted.weight(), ledger, "QAT weight")
        ledger.equal("QAT bias", bias, converted.bias().detach().numpy())


def test_float16_and_what_a_weight_cannot_be() -> None:
    x = np.array([1e-8, 70000.0], np.float32)
    ours = observer.PlaceholderObserver(dtype=refquant.float16)
    expected = torch.from_numpy(x).to(torch.float16).numpy()
    np.testing.assert_array_equal(quantize_weight(x, ours), expected)
    with pytest.raises(RefquantError, match="int16 is not one of"):
        quantize_weight(x, observer.MinMaxObserver(dtype=refquant.int16))
    with pytest.raises(VerifyError, match="must be float32, got float64"):
        quantize_weight(x.astype(np.float64), observer.default_weight_observer())
    with pytest.raises(VerifyError, match="qint8, got quint8"):
        quantize_weight_eager(x, observer.MinMaxObserver())


@pytest.mark.parametrize("transpose", [False, True])
def test_conv_bn_folding(transpose: bool, ledger: Ledger) -> None:
    rng = np.random.default_rng(0)
    for _ in range(ledger.size(10, 400)):
        out, into = int(rng.choice([1, 3, 8, 17, 64, 257])), int(rng.integers(1, 20))
        shape = (into, out, 3, 3) if transpose else (out, into, 3, 3)
        weight = rng.standard_normal(shape).astype(np.float32)
        mean, factor, offset, bias = rng.standard_normal((4, out)).astype(np.float32)
        variance = np.exp(rng.uniform(-12, 8, out)).astype(np.float32)
        eps = float(rng.choice([1e-5, 1e-3, 1e-12]))
        norm: list[Any] = [mean, variance, eps, factor, offset]
        if rng.random() < 0.3:
            norm[3:] = None, None
        bias = bias if rng.random() < 0.5 else None
        tensors = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in norm]
        expected = fusion.fuse_conv_bn_weights(
            nn.Parameter(torch.from_numpy(weight)),
            None if bias is None else nn.Parameter(torch.from_numpy(bias)),
            *tensors,
            transpose=transpose,
        )
        actual = fuse_conv_bn_weights(weight, bias, *norm, transpose=transpose)
        for name, mine, theirs in zip(("weight", "bias"), actual, expected, strict=True):
            ledger.equal(f"conv-bn folding, {name}", mine, theirs.detach().numpy())


def test_linear_bn_folding(ledger: Ledger) -> None:
    rng = np.random.default_rng(0)
    for _ in range(ledger.size(10, 400)):
        out = int(rng.choice([1, 3, 64]))
        weight = rng.standard_normal((out, 20)).astype(np.float32)
        mean, factor, offset, bias = rng.standard_normal((4, out)).astype(np.float32)
        variance = np.exp(rng.uniform(-12, 8, out)).astype(np.float32)
        operands = (weight, bias, mean, variance, 1e-5, factor, offset)
        tensors = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in operands]
        expected = fusion.fuse_linear_bn_weights(*tensors)
        actual = fuse_linear_bn_weights(*operands)
        for name, mine, theirs in zip(("weight", "bias"), actual, expected, strict=True):
            ledger.equal(f"linear-bn folding, {name}", mine, theirs.detach().numpy())


def test_folding_refuses_what_does_not_fit() -> None:
    w, one = np.ones((2, 1, 1), np.float32), np.ones(2, np.float32)
    with pytest.raises(VerifyError, match=r"running mean must be float32 \[2\]"):
        fuse_conv_bn_weights(w, None, np.ones(3, np.float32), one, 1e-5, one, one)
    with pytest.raises(VerifyError, match="float32 weight, got float64"):
        fuse_conv_bn_weights(w.astype(np.float64), None, one, one, 1e-5, one, one)


@pytest.mark.parametrize("shape", [(1,), (7,), (64, 33), (3, 5, 8, 8), (2, 1, 70)])
def test_min_max(shape: tuple[int, ...], ledger: Ledger) -> None:
    """All signs, both zeros, NaNs of both signs, infinities, any layout."""
    rng = np.random.default_rng(0)
    for kind in range(8):
        x = rng.standard_normal(shape).astype(np.float32)
        if kind in (1, 2):
            x = np.abs(x) if kind == 1 else -np.abs(x)
        elif kind in (3, 4, 5, 6):
            x.flat[rng.integers(x.size)] = (np.nan, -np.nan, np.inf, -0.0)[kind - 3]
        x = x.T if kind == 7 else x
        low, high = torch.aminmax(torch.from_numpy(x))
        for function in (min_max, min_max_compiled):
            ledger.equal("min and max", function(x), np.array([low, high], np.float32))
        for axis in range(x.ndim):
            rows = torch.from_numpy(x).movedim(axis, 0).flatten(1) if x.ndim > 1 else None
            if rows is None:
                rows = torch.from_numpy(x)[:, None]
            expected = [v.numpy() for v in torch.aminmax(rows, dim=1)]
            for per_channel in (min_max_per_channel, min_max_per_channel_compiled):
                for mine, theirs in zip(per_channel(x, axis), expected, strict=True):
                    ledger.equal("min and max per channel", mine, theirs)
