"""Real input and real sizes: the digits networks and three ImageNet architectures."""

from __future__ import annotations

import gc
import math
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import flows
import numpy as np
import pytest

from refquant.compare import graph_diff, run_diff
from refquant.demo import run_demo
from refquant.importers import from_fx
from refquant.ir import Graph, QTensor, load

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


def _bytes(tensor: Any) -> int:
    if isinstance(tensor, QTensor):
        return int(tensor.int_repr.nbytes)
    return int(tensor.nbytes)


def _largest_live_set(graph: Graph) -> int:
    """Bytes of the values that are alive at once, for a batch of one, at the worst node."""
    last = {v.name: i for i, node in enumerate(graph.nodes) for v in node.inputs if v}
    size = {
        v.name: math.prod(s if isinstance(s, int) else s.factor for s in v.type.shape)
        * v.type.dtype.storage.itemsize
        for v in [*graph.inputs, *(v for node in graph.nodes for v in node.outputs)]
    }
    live = {v.name for v in graph.inputs}
    largest = 0
    for i, node in enumerate(graph.nodes):
        live |= {v.name for v in node.outputs}
        largest = max(largest, sum(size[name] for name in live))
        live -= {name for name in live if last.get(name, len(graph.nodes)) <= i}
    return largest


@pytest.mark.parametrize("executor", ["reference", "fast"])
def test_memory_is_bounded_by_parameters_and_live_values(tmp_path: Path, executor: Any) -> None:
    model, inputs = nets.quantized_net("resnet18")
    path = tmp_path / "net.rq"
    from_fx(model, inputs).save(path)
    x = inputs[0].numpy()
    load(path).run(
        x, executor=executor
    )  # loads the compiled kernels, which are not the network's memory
    tracemalloc.start()
    graph = load(path)
    parameters = sum(map(_bytes, graph.parameters.values()))
    bound = 1.3 * (parameters + _largest_live_set(graph))
    tracemalloc.reset_peak()
    graph.run(x, executor=executor)
    first = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    graph.run(x, executor=executor)
    second = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert first <= bound
    assert second <= bound


def test_memory_does_not_grow_from_run_to_run() -> None:
    """Nor when the size of the batch changes now and then."""
    graph = load(ROOT / "refquant" / "data" / "digits_cnn.rq")
    batches = [np.zeros((n, 1, 8, 8), np.float32) for n in (1, 2, 3)]

    def held(runs: int) -> int:
        for x in batches:
            for _ in range(runs):
                graph(x)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    graph(batches[0])
    tracemalloc.start()
    before = held(10)
    grown = held(330) - before
    tracemalloc.stop()
    assert grown < 20_000
