"""The page of the benchmarks: it says what was missed, what differs, and nothing by hand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import limits  # noqa: E402
import nets  # noqa: E402
import page  # noqa: E402
from onnx_nets import to_onnx  # noqa: E402
from results import Result, geometric_mean  # noqa: E402
from torch import nn, randn  # noqa: E402

from refquant.importers import from_fx  # noqa: E402


def result(name: str, ratio: float, **more: Any) -> Result:
    defaults = Result("products", name, "fbgemm", 1, True, 1e-3, 1e-3 * ratio, ratio, 1.0, "")
    return defaults._replace(**more)


def found(*results: Result) -> dict[str, Any]:
    return {"machine": {"CPU": "one"}, "results": results, "startup": [], "memory": None}


def test_targets_and_what_limits_a_missed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = {"products/fbgemm/": "too general", "products/fbgemm/linear 2": "one row"}
    monkeypatch.setattr(limits, "REASONS", reasons)
    text = page.page(found(result("linear 1", 4.0), result("linear 2", 0.5)))
    assert "| fbgemm, each dense shape | 1 | 0.50 | missed by 1 of 2; worst linear 2 |" in text
    assert "| fbgemm, geometric mean of dense shapes | 1.5 | 1.41 | missed |" in text
    assert "| linear 2 | fbgemm | 1 | 0.50 | 50% |  | one row |" in text
    assert "| linear 2 | 1.0 ms | **0.50 (0.50)** |" in text
    assert "too general" not in text
    assert "2 of them compared bit for bit: 0 differ" in text


def test_what_differs_is_said() -> None:
    text = page.page(found(result("linear 1", 2.0, equal=False), result("x", 2.0, equal=None)))
    assert "1 of them compared bit for bit: 1 differ" in text
    assert "2.00 (2.00) NOT EQUAL" in text


def test_many_misses_of_a_kind_are_one_line() -> None:
    rows = [result(f"linear {i}", 0.5 + i / 100) for i in range(page.MANY + 1)]
    text = page.page(found(*rows))
    assert f"| {page.MANY + 1} shapes; worst linear 0 | fbgemm | 1 | 0.50 | 50% |" in text


def test_the_peak_bounds_what_can_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "REASONS", {})
    macs = 10**8
    peak = result("linear 1", 0.5, section="peak", other="peak", wanted=None, macs=macs)
    slow = result("linear 1", 4.0, other="qnnpack", wanted=10.0, macs=macs)  # 8 times the peak
    text = page.page(found(peak, slow))
    assert "does 200 GMAC/s on one thread" in text
    assert "| linear 1 | qnnpack | 10 | 4.00 | 60% | 8.00 |  |" in text
    assert "| linear 1 | 1.0 ms | 50% | **4.00 (4.00)** |" in text


def test_two_threads_over_one() -> None:
    text = page.page(found(result("linear 1", 2.0), result("linear 1", 2.0, threads=2, ours=5e-4)))
    assert "| linear 1 | 2.00 | 1.00 |" in text


def test_geometric_mean() -> None:
    assert geometric_mean([result("a", 4.0), result("b", 0.25)]) == pytest.approx(1.0)


def test_a_plot_is_the_same_each_time(tmp_path: Path) -> None:
    rows = [result("linear 1", 2.0), result("depthwise 1", 0.5, other="qnnpack")]
    for name in ("a.svg", "b.svg"):
        page.plot(rows, tmp_path / name)
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


def test_a_network_in_onnx_computes_nearly_the_same() -> None:
    """ONNX rounds biases to int32: at most a step apart, and seldom."""
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(8, 16, 3)
    made = nets.quantized(nn.Sequential(*layers).eval(), randn(1, 3, 16, 16))
    graph = from_fx(*made)
    model, x = to_onnx(graph), made[1][0].numpy()
    (theirs,) = ReferenceEvaluator(model).run(None, {graph.inputs[0].name: x})
    scale = graph.nodes[-1].inputs[0].type.qparams.scale  # type: ignore[union-attr]
    steps = np.rint(np.abs(graph(x) - theirs) / scale)
    assert steps.max() <= 1
    assert steps.mean() < 0.02
