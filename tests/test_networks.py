"""Real input and real sizes: the digits networks and three ImageNet architectures."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import flows
import pytest

from refquant.compare import graph_diff, run_diff
from refquant.demo import run_demo
from refquant.importers import from_fx

ROOT = Path(__file__).parent.parent
sys.path += [str(ROOT / "examples"), str(ROOT / "benchmarks")]

import digits  # noqa: E402
import nets  # noqa: E402


def check(model: Any, inputs: Any) -> int:
    """Every node of the network is torch's, in both executors; return how many."""
    graph = from_fx(model, inputs)
    assert not graph_diff(graph, model)
    for executor in ("reference", "fast"):
        with flows.fbgemm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = run_diff(graph, model, inputs, executor=executor)  # type: ignore[arg-type]
        assert report.bit_exact, str(report)
        assert not report.unmatched
    return len(report.rows)


@pytest.mark.parametrize("name", ["cnn", "cnnr", "mlp"])
def test_digits(name: str) -> None:
    model, inputs = digits.quantized(name)
    assert inputs[0].shape[0] == 450
    assert check(model, inputs) >= 6


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_imagenet_architectures(name: str) -> None:
    model, inputs = nets.quantized_net(name)
    assert inputs[0].shape == (1, 3, 224, 224)
    assert check(model, inputs) >= 34


@pytest.mark.parametrize("executor", ["reference", "fast"])
def test_the_demo(executor: Any) -> None:
    report = run_demo(executor)
    assert report.bit_exact
    assert (report.equal_logits, report.total_logits) == (4500, 4500)
    assert round(report.accuracy, 2) == 0.98
    assert len(report.rows) == 16
