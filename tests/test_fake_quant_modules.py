"""Fake-quants against torch's modules: outputs, gradients, scale and zero point, state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ledger import Ledger
from oracle import this_machine, to_torch, torch_as
from test_observers import assert_same_qparams, assert_same_state, both
from torch import nn
from torch.ao.quantization import fake_quantize as torch_fake_quantize
from torch.ao.quantization import observer as torch_observer
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

import refquant
from refquant import fake_quantize, observer
from refquant.importers import to_torch_state_dict
from refquant.ir.errors import VerifyError
from refquant.ir.target import Target
from refquant.ir.types import QScheme

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
FACTORIES = [name for name in torch_fake_quantize.__all__ if name.islower() and "_fake" in name]
FACTORIES = [name for name in FACTORIES if not name.startswith(("enable", "disable"))]
RANGES = {
    refquant.quint8: ((0, 255), (0, 127), (0, 15)),
    refquant.qint8: ((-128, 127), (-64, 63), (-127, 127), (-8, 7)),
}


def batch(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = np.float32) -> Any:
    """Draw values of which a third are ties of some power of two."""
    x = rng.standard_normal(shape) * np.exp(rng.uniform(-9, 3))
    if rng.random() < 0.2:
        x = np.abs(x)
    if rng.random() < 0.05:
        x = x * 0
    ties = rng.random(shape) < 0.3
    step = 2.0 ** np.floor(np.log2(np.abs(x).max() / 64 + 1e-30))
    return np.where(ties, (np.rint(x / step) + 0.5) * step, x).astype(dtype)


def assert_equal(ledger: Ledger, subject: str, actual: Any, expected: torch.Tensor) -> None:
    ledger.equal(subject, actual, np.asarray(expected.detach().numpy()))


@pytest.mark.parametrize("name", FACTORIES)
def test_predefined_factories_have_torchs_settings(name: str) -> None:
    ours, theirs = both(name)
    assert type(ours).__name__ == type(theirs).__name__
    assert_same_state(ours, theirs)
    for mine, other in (
        (ours, theirs),
        (ours.activation_post_process, theirs.activation_post_process),
    ):
        for key, expected in vars(other).items():
            if key.startswith("_") or key in ("training", "upsample_rate"):
                continue
            assert to_torch(getattr(mine, key)) == expected, key
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    np.testing.assert_array_equal(ours(x), theirs(torch.from_numpy(x)).numpy())
    assert_same_state(ours, theirs)


@pytest.mark.parametrize("kind", ["FakeQuantize", "FusedMovingAvgObsFakeQuantize"])
def test_several_batches_with_the_switches_moved(kind: str, ledger: Ledger) -> None:
    rng = np.random.default_rng(0)
    with torch_as(this_machine()):
        for _ in range(ledger.size(60, 400)):
            scheme = tuple(QScheme)[rng.integers(5)]
            dtype = (refquant.quint8, refquant.qint8)[rng.integers(2)]
            ranges = RANGES[dtype]
            low, high = ranges[rng.integers(len(ranges))]
            prefix = "MovingAveragePerChannel" if scheme.is_per_channel else "MovingAverage"
            settings = {
                "quant_min": low,
                "quant_max": high,
                "dtype": dtype,
                "qscheme": scheme,
                "averaging_constant": float(rng.choice([0.01, 0.3, 1.0, 0.9])),
            }
            ours = getattr(fake_quantize, kind)(
                getattr(observer, f"{prefix}MinMaxObserver"), **settings
            )
            theirs = getattr(torch_fake_quantize, kind)(
                getattr(torch_observer, f"{prefix}MinMaxObserver"),
                **{key: to_torch(value) for key, value in settings.items()},
            )
            channels = int(rng.integers(1, 5))
            for step in range(4):
                for switch, chance in (("observer", 0.8), ("fake_quant", 0.8)):
                    on = step == 0 or rng.random() < chance
                    for module in (ours, theirs):
                        getattr(module, f"enable_{switch}")(on)
                _one_step(ledger, rng, ours, theirs, (channels, int(rng.integers(1, 400))))
            assert_same_state(ours, theirs)
            assert_same_qparams(ours, theirs)
            ledger.run(f"{kind}, 4 batches", True)


def _one_step(
    ledger: Ledger, rng: np.random.Generator, ours: Any, theirs: Any, shape: tuple[int, ...]
) -> None:
    x = batch(rng, shape)
    grad = rng.standard_normal(x.shape).astype(np.float32)
    tensor = torch.from_numpy(x).requires_grad_()
    expected = theirs(tensor)
    expected.backward(torch.from_numpy(grad))
    kind = type(ours).__name__
    assert_equal(ledger, f"{kind} output", ours(x), expected)
    assert_equal(ledger, f"{kind} gradient", ours.backward(grad), tensor.grad)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, refquant.bfloat16.storage])
def test_other_dtypes(dtype: Any, ledger: Ledger) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        ours, theirs = both("FakeQuantize", quant_min=0, quant_max=255)
        x = batch(rng, (5, 33), dtype)
        expected = to_torch(x).requires_grad_()
        y = theirs(expected)
        y.backward(torch.ones_like(y))
        actual = ours(x)
        assert actual.dtype == x.dtype
        wide = np.asarray(actual, np.float64)
        np.testing.assert_array_equal(wide, y.detach().double().numpy())
        gradient = ours.backward(np.ones_like(x))
        assert gradient.dtype == x.dtype
        np.testing.assert_array_equal(
            np.asarray(gradient, np.float64), expected.grad.double().numpy()
        )
        ledger.run(f"FakeQuantize {np.dtype(dtype).name}", True)


@pytest.mark.parametrize("threads", [1, 2])
def test_learnable(threads: int, ledger: Ledger) -> None:
    rng = np.random.default_rng(threads)
    machine = this_machine()
    target = Target(machine.engine, machine.isa, threads)
    with torch_as(target):
        for run in range(ledger.size(30, 300)):
            scheme = tuple(QScheme)[run % 4]
            per_channel = scheme.is_per_channel
            channels = int(rng.integers(1, 9)) if per_channel else -1
            settings = {
                "quant_min": -8,
                "quant_max": 7,
                "scale": float(np.exp(rng.uniform(-6, 1))),
                "zero_point": float(np.float32(rng.uniform(-9, 8))),
                "channel_len": channels,
                "use_grad_scaling": bool(rng.integers(2)),
                "dtype": refquant.qint8,
                "qscheme": scheme,
            }
            name = "PerChannelMinMaxObserver" if per_channel else "MinMaxObserver"
            ours = fake_quantize.LearnableFakeQuantize(
                getattr(observer, name), target=target, **settings
            )
            theirs = _LearnableFakeQuantize(
                getattr(torch_observer, name),
                **{key: to_torch(value) for key, value in settings.items()},
            )
            steps = ("enable_static_estimate", "enable_param_learning", "enable_param_learning")
            for switch in (*steps[:: rng.choice([1, -1])], "enable_static_observation"):
                for module in (ours, theirs):
                    getattr(module, switch)()
                width = int(rng.choice([5, 100, 40_000 // max(channels, 1)]))
                _learnable_step(ledger, rng, ours, theirs, (abs(channels), width))
            assert_same_state(ours, theirs)
            ledger.run(f"LearnableFakeQuantize, 4 batches, threads={threads}", True)


def _learnable_step(
    ledger: Ledger, rng: np.random.Generator, ours: Any, theirs: Any, shape: tuple[int, ...]
) -> None:
    x = batch(rng, shape)
    grad = rng.standard_normal(x.shape).astype(np.float32)
    tensor = torch.from_numpy(x).requires_grad_()
    theirs.scale.grad = theirs.zero_point.grad = None
    expected = theirs(tensor)
    expected.backward(torch.from_numpy(grad))
    assert_equal(ledger, "LSQ output", ours(x), expected)
    for name, actual, parameter in zip(
        ("input", "scale", "zero point"),
        ours.backward(grad),
        (tensor, theirs.scale, theirs.zero_point),
        strict=True,
    ):
        if parameter.grad is not None:
            assert_equal(ledger, f"LSQ gradient by {name}", actual, parameter.grad)
    for actual, wanted in zip(ours.calculate_qparams(), theirs.calculate_qparams(), strict=True):
        np.testing.assert_array_equal(actual, wanted.numpy())


def test_switches_work_on_any_module() -> None:
    ours, theirs = both("default_fake_quant")
    for switch in ("disable_fake_quant", "disable_observer", "enable_observer"):
        getattr(fake_quantize, switch)(ours)
        getattr(fake_quantize, switch)(observer.MinMaxObserver())
        theirs.apply(getattr(torch_fake_quantize, switch))
        assert_same_state(ours, theirs)
    fake_quantize.enable_fake_quant(ours)
    assert ours.fake_quant_enabled[0] == 1


@pytest.mark.parametrize("name", ["default_fake_quant", "default_fused_per_channel_wt_fake_quant"])
def test_states_load_both_ways(name: str) -> None:
    ours, theirs = both(name)
    theirs(torch.randn(3, 4))
    ours.load_state_dict(theirs.state_dict())
    assert_same_state(ours, theirs)
    fresh, torch_fresh = both(name)
    fresh.load_state_dict(ours.state_dict())
    if "per_channel" not in name:  # torch cannot load an observer's channels through a fake-quant
        torch_fresh.load_state_dict(to_torch_state_dict(ours.state_dict()))
        assert_same_state(ours, torch_fresh)
    assert_same_state(fresh, theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fake_quantize.FusedMovingAvgObsFakeQuantize(observer.MinMaxObserver),
            "MovingAverage",
        ),
        (
            lambda: fake_quantize.FixedQParamsFakeQuantize(observer.MinMaxObserver),
            "FixedQParamsObserver",
        ),
        (
            lambda: fake_quantize.LearnableFakeQuantize(observer.MinMaxObserver, 5, 5),
            "below quant_max",
        ),
        (
            lambda: fake_quantize.LearnableFakeQuantize(observer.MinMaxObserver, channel_len=0),
            "channel_len",
        ),
        (
            lambda: fake_quantize.LearnableFakeQuantize(
                observer.PerChannelMinMaxObserver, channel_len=3
            )(np.ones((2, 2), np.float32)),
            "2 channels were observed",
        ),
    ],
)
def test_mistakes(make: Any, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        make()


def test_a_module_of_torch_holds_the_same() -> None:
    """The whole state of a trained torch model's fake-quant moves over."""
    theirs = nn.Sequential(torch_fake_quantize.default_fake_quant())
    theirs(torch.linspace(-2, 3, 50))
    ours = fake_quantize.default_fake_quant()
    ours.load_state_dict(theirs[0].state_dict())
    x = np.linspace(-1, 4, 77).astype(np.float32)
    ours.disable_observer()
    theirs.apply(torch_fake_quantize.disable_observer)
    np.testing.assert_array_equal(ours(x), theirs(torch.from_numpy(x)).numpy())


def test_statistics_of_fixed_qparams_load() -> None:
    """In torch the fake-quant's scale is the observer's."""
    ours, theirs = both("default_fixed_qparams_range_0to1_fake_quant")
    other, torch_other = both("default_fixed_qparams_range_neg1to1_fake_quant")
    saved = torch_observer.get_observer_state_dict(nn.ModuleDict({"a": torch_other}))
    torch_observer.load_observer_state_dict(nn.ModuleDict({"a": theirs}), saved)
    observer.load_observer_state_dict(ours, observer.get_observer_state_dict(other))
    assert_same_state(ours, theirs)
    x = np.linspace(-2, 2, 33).astype(np.float32)
    np.testing.assert_array_equal(ours(x), theirs(torch.from_numpy(x)).numpy())


@pytest.mark.parametrize("kind", ["FakeQuantize", "FusedMovingAvgObsFakeQuantize"])
def test_an_empty_batch_changes_nothing(kind: str) -> None:
    ours, theirs = both(kind, quant_min=0, quant_max=255)
    empty = np.empty((0, 3), np.float32)
    for x in (empty, np.array([[-1.0, 2.0]], np.float32), empty):
        assert ours(x).shape == theirs(torch.from_numpy(x)).shape
        assert_same_state(ours, theirs)


def test_a_refused_batch_changes_nothing() -> None:
    x = np.array([[1, -2], [3, 4]], np.float32)
    per_channel = observer.PerChannelMinMaxObserver
    cases = [
        (
            fake_quantize.FakeQuantize(
                per_channel, qscheme=refquant.per_channel_affine, ch_axis=5
            ),
            x,
        ),
        (fake_quantize.FakeQuantize(), np.array([1, 2], np.int32)),
        (fake_quantize.LearnableFakeQuantize(per_channel, channel_len=3), x),
        (
            fake_quantize.LearnableFakeQuantize(
                observer.MinMaxObserver, -5, 0, use_grad_scaling=True, dtype=refquant.qint8
            ),
            x,
        ),
    ]
    for module, data in cases:
        before = module.state_dict()
        with pytest.raises(VerifyError):
            module(data)
        after = module.state_dict()
        assert all(np.array_equal(before[key], after[key]) for key in before)
        assert module.activation_post_process.batches == 0
    right = cases[2][0](np.ones((3, 2), np.float32))
    assert right.shape == (3, 2)


def test_what_a_fake_quant_takes_and_keeps() -> None:
    ours, _ = both("FakeQuantize", quant_min=0, quant_max=7)
    np.testing.assert_array_equal(ours([0.0, 7.0]), [0.0, 7.0])
    ours.enable_observer(5)
    assert ours.observer_enabled[0] == 1
    ours.disable_observer()
    ours.scale = np.ones(3, np.float32)
    with pytest.raises(VerifyError, match="needs one scale"):
        ours(np.ones(2, np.float32))
    learned = fake_quantize.LearnableFakeQuantize(
        observer.HistogramObserver, target=Target(isa="default")
    ).enable_param_learning()
    assert learned.activation_post_process.target == Target(isa="default")
    x = np.linspace(-3, 300, 40).astype(np.float32)
    learned(x[::-1])
    before = learned.backward(np.ones_like(x))
    learned(x[::-1].copy())
    for one, other in zip(before, learned.backward(np.ones_like(x)), strict=True):
        np.testing.assert_array_equal(one, other)
    learned(x)
    expected = learned.backward(np.ones_like(x))
    learned(x)
    x += 1
    for one, other in zip(expected, learned.backward(np.ones_like(x)), strict=True):
        np.testing.assert_array_equal(one, other)
