"""The state of observers: to and from torch, of one observer and of a whole model."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from flows import prepare, prepare_qat
from test_observers import (
    PER_CHANNEL,
    PER_TENSOR,
    assert_same_qparams,
    assert_same_state,
    both,
)
from torch import nn
from torch.ao.quantization import fake_quantize as torch_fake_quantize
from torch.ao.quantization import observer as torch_observer

import refquant
from refquant import fake_quantize, observer
from refquant.graph_observers import get_observer_dict, observer_of
from refquant.importers import from_fx, to_torch_state_dict
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.graph import Graph
from refquant.ir.module import Module

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.mark.parametrize("name", ["MinMaxObserver", *PER_TENSOR, *PER_CHANNEL])
@pytest.mark.parametrize("used", [False, True])
def test_states_load_both_ways(name: str, used: bool) -> None:
    ours, theirs = both(name, eps=2**-12)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    if used:
        theirs(torch.from_numpy(x))
    ours.load_state_dict(theirs.state_dict())
    assert_same_state(ours, theirs)
    fresh, torch_fresh = both(name)
    torch_fresh.load_state_dict(to_torch_state_dict(ours.state_dict()))
    fresh.load_state_dict(ours.state_dict())
    assert_same_state(fresh, torch_fresh)
    assert_same_state(fresh, theirs)
    fresh(x * 2)
    theirs(torch.from_numpy(x * 2))
    assert_same_state(fresh, theirs)


def test_histogram_states_load_both_ways() -> None:
    ours, theirs = both("HistogramObserver", bins=64)
    theirs(torch.linspace(-3, 2, 999))
    ours.load_state_dict(theirs.state_dict())
    assert_same_qparams(ours, theirs)
    _, fresh = both("HistogramObserver", bins=64)
    fresh.load_state_dict(to_torch_state_dict(ours.state_dict()))
    assert_same_qparams(ours, fresh)


def test_old_states() -> None:
    """Versions without eps as a buffer, with other names, with an empty range."""
    ours, theirs = both("PerChannelMinMaxObserver")
    old = refquant.stateful.StateDict(
        {"eps": ours.eps, "min_vals": np.float32([-1]), "max_vals": np.float32([2])}
    )
    old._metadata[""] = {"version": 2}
    ours.load_state_dict(old)
    np.testing.assert_array_equal(ours.max_val, [2])
    ours, theirs = both("HistogramObserver", bins=2)
    old = refquant.stateful.StateDict(
        {"histogram": np.zeros(2), "min_val": np.empty(0), "max_val": np.empty(0)}
    )
    ours.load_state_dict(old)
    theirs.load_state_dict(to_torch_state_dict(old))
    assert_same_state(ours, theirs)


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    ours, _ = both("MinMaxObserver")
    state = {"eps": np.ones(1), "min_val": np.array(-1.0), "max_val": np.ones(3)}
    for wrong in (state, {"eps": np.ones(1)}, {**state, "max_val": np.array(1.0), "more": 1}):
        with pytest.raises(VerifyError, match="state_dict"):
            ours.load_state_dict(wrong)
    assert ours.min_val == np.inf


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"min_val": np.ones(3), "max_val": np.ones(2)}, "min_val has shape"),
        ({"min_val": np.ones(2, complex), "max_val": np.ones(2)}, "real numbers"),
        ({5: np.ones(2)}, "names must be str"),
    ],
)
def test_states_that_make_no_sense(state: Any, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        observer.PerChannelMinMaxObserver().load_state_dict(state, strict=False)


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


def test_statistics_of_a_whole_model() -> None:
    prepared = prepare(_Net(), (2, 3, 8, 8))
    graph = from_fx(prepared, (torch.zeros(2, 3, 8, 8),))
    expected = torch_observer.get_observer_state_dict(prepared)
    actual = observer.get_observer_state_dict(graph)
    # torch's state names an observer that two values share twice.
    assert {key.partition(".")[0] for key in actual} == {
        name for name, module in prepared.named_modules() if hasattr(module, "eps")
    }
    for key, value in actual.items():
        np.testing.assert_array_equal(value, expected[key].numpy())
    changed = {key: value * 2 if "val" in key else value for key, value in actual.items()}
    loaded = copy.deepcopy(prepared)
    torch_observer.load_observer_state_dict(loaded, to_torch_state_dict(changed))
    observer.load_observer_state_dict(graph, changed)
    again = from_fx(loaded, (torch.zeros(2, 3, 8, 8),))
    assert graph.modules.keys() == again.modules.keys()
    for path, module in again.modules.items():
        for name, value in module.state.items():
            np.testing.assert_array_equal(graph.modules[path].state[name], value)
    path = next(iter(graph.modules))
    graph.modules[path].state["eps"] = np.array([0.5], np.float32)
    with pytest.warns(UserWarning, match="eps"):
        observer.load_observer_state_dict(graph, changed)
    assert graph.modules[path].state["eps"] == np.float32(2**-23)
    key = next(key for key in changed if "histogram" in key)
    before = observer.get_observer_state_dict(graph)
    with pytest.raises(VerifyError, match="has shape"):
        observer.load_observer_state_dict(graph, {**changed, key: np.ones(3)})
    after = observer.get_observer_state_dict(graph)
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("training", [False, True])
def test_observers_of_a_model_as_objects(training: bool) -> None:
    prepared = (prepare_qat if training else prepare)(_Net(), (2, 3, 8, 8))
    graph = from_fx(prepared, (torch.zeros(2, 3, 8, 8),))
    x = np.random.default_rng(0).standard_normal((4, 4, 6, 6)).astype(np.float32)
    for path, module in graph.modules.items():
        theirs = prepared.get_submodule(path)
        ours = observer_of(module)
        assert_same_state(ours, theirs)
        assert_same_qparams(ours, theirs)
        y = ours(x)
        expected = copy.deepcopy(theirs)(torch.from_numpy(x)).detach().numpy()
        np.testing.assert_array_equal(y, expected)
    found: dict[str, Any] = {}
    get_observer_dict(graph, found, "model")
    ending = ".activation_post_process" if training else ""
    assert list(found) == [f"model.{path}{ending}" for path in graph.modules]
    with pytest.raises(UnsupportedError, match=r"my\.Observer is not"):
        observer_of(Module("my.Observer"))


def test_loading_statistics_resets_eps_as_torch_does() -> None:
    """An observation worth a warning: torch forgets a custom eps here."""
    ours = fake_quantize.FakeQuantize(eps=2**-12)
    theirs = torch_fake_quantize.FakeQuantize(eps=2**-12)
    state = torch_observer.get_observer_state_dict(nn.ModuleDict({"a": theirs}))
    torch_observer.load_observer_state_dict(nn.ModuleDict({"a": theirs}), state)
    with pytest.warns(UserWarning, match="eps"):
        observer.load_observer_state_dict(ours, observer.get_observer_state_dict(ours))
    assert_same_state(ours, theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.load_state_dict(ours.state_dict())
    with pytest.warns(UserWarning, match="no observer has"):
        observer.load_observer_state_dict(ours, {"elsewhere.min_val": np.ones(1)})


def test_fixed_qparams_of_a_graph_load_into_the_fake_quant_too() -> None:
    state = {
        "scale": np.float32([1.0]),
        "zero_point": np.int32([0]),
        "activation_post_process.scale": np.float32([1.0]),
        "activation_post_process.zero_point": np.int32([0]),
    }
    kind = "torch.ao.quantization.fake_quantize.FixedQParamsFakeQuantize"
    config = {
        "observer": "torch.ao.quantization.observer.FixedQParamsObserver",
        "observer.dtype": refquant.quint8,
    }
    graph = Graph(modules={"a": Module(kind, config, state)})
    observer.load_observer_state_dict(graph, {"a.activation_post_process.scale": [0.5]})
    assert graph.modules["a"].state["scale"] == 0.5
    assert observer_of(graph.modules["a"]).scale == 0.5
