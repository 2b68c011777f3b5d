"""The prepared plan: several nodes at once, in memory of its own, with the same bits."""

from __future__ import annotations

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from refquant import Graph, QTensor, Target, UnsupportedError, qint8, quint8
from refquant.ir.graph import Node, Value
from refquant.ir.memory import Lifetime, assign
from refquant.ir.op import OPS
from refquant.ir.plan import prepared
from refquant.ir.types import Dim, QParams, TensorType, float32

ENGINES = ("fbgemm", "qnnpack", "onednn", "x86")


class Builder:
    """Builds a random quantized network, node by node."""

    def __init__(self, seed: int, engine: str) -> None:
        self.rng = np.random.default_rng(seed)
        size = int(self.rng.integers(5, 12))
        channels = int(self.rng.choice([3, 4, 16, 32, 40]))
        x = Value("x", TensorType(float32, (Dim("N"), channels, size, size)))
        target = str(Target(engine))
        self.graph = Graph(inputs=[x], provenance={"target": target})
        attributes = {"scale": 0.05, "zero_point": 60, "dtype": quint8}
        self.values = [self.add("aten::quantize_per_tensor", (x,), attributes)]

    def add(self, op: str, inputs: tuple[Value | None, ...], attributes: dict[str, Any]) -> Value:
        kind = OPS[op].infer(*(v and v.type for v in inputs), **attributes)
        assert isinstance(kind, TensorType)
        result = Value(f"v{len(self.graph.nodes)}", kind)
        self.graph.nodes.append(Node(op, inputs, attributes, (result,)))
        return result

    def parameter(self, data: Any) -> Value:
        name = f"p{len(self.graph.parameters)}"
        self.graph.parameters[name] = data
        kind = data.type if isinstance(data, QTensor) else TensorType(float32, data.shape)
        return Value(name, kind)

    def scale(self) -> dict[str, Any]:
        rng = self.rng
        return {"scale": float(rng.uniform(0.02, 0.2)), "zero_point": int(rng.integers(0, 200))}

    def convolution(self, x: Value, outputs: int | None = None) -> Value:
        rng = self.rng
        channels, size = (int(n) for n in x.type.shape[1:3])  # type: ignore[arg-type]
        kernel = int(rng.choice([1, 1, 3, 3, 5]))
        groups = int(rng.choice([1, 1, channels, 2 if channels % 2 == 0 else 1]))
        if outputs is not None and outputs % groups:
            groups = 1
        if outputs is None:
            outputs = groups * int(rng.integers(1, max(2, 70 // groups)))
            outputs = channels if groups == channels else outputs
        stride = 1 if outputs == channels else int(rng.choice([1, 2]))
        padding = kernel // 2 if size <= kernel or rng.random() < 0.8 else 0
        if outputs == channels:
            padding = kernel // 2
        weight = self.weight(outputs, channels // groups, kernel, kernel)
        bias = None
        if rng.random() < 0.7:
            bias = self.parameter(rng.normal(size=outputs).astype(np.float32))
        geometry = {"stride": (stride,) * 2, "padding": (padding,) * 2, "dilation": (1, 1)}
        suffix = "_relu" if rng.random() < 0.3 else ""
        attributes = {**geometry, "groups": groups, **self.scale()}
        return self.add(f"quantized::conv2d{suffix}", (x, weight, bias), attributes)

    def weight(self, *shape: int) -> Value:
        integers = self.rng.integers(-128, 128, shape).astype(np.int8)
        if self.rng.random() < 0.5:
            return self.parameter(QTensor(integers, 0.004, 0, None, qint8))
        scales = self.rng.uniform(0.001, 0.01, shape[0])
        zeros = np.zeros(shape[0], np.int64)
        return self.parameter(QTensor(integers, scales, zeros, 0, qint8))

    def clamp(self, x: Value) -> Value:
        name, attributes = [
            ("aten::relu", {}),
            ("aten::relu6", {}),
            ("aten::hardtanh", {"min_val": -0.5, "max_val": 1.5}),
            ("aten::clamp", {"min": 0.3, "max": None}),
        ][self.rng.integers(4)]
        return self.add(name, (x,), attributes)

    def step(self) -> None:
        rng, values = self.rng, self.values
        maps = [v for v in values if v.type.rank == 4]
        x = maps[-1] if rng.random() < 0.7 else maps[rng.integers(len(maps))]
        kind = rng.choice(["conv", "conv", "conv", "clamp", "residual", "add", "pool", "keep"])
        if kind == "conv":
            values.append(self.convolution(x))
        elif kind == "clamp":
            values.append(self.clamp(x))
        elif kind == "residual":
            y = self.convolution(x, int(x.type.shape[1]))  # type: ignore[arg-type]
            if y.type.shape == x.type.shape:
                order = (x, y) if rng.random() < 0.5 else (y, x)
                y = self.add(f"quantized::add{rng.choice(['', '_relu'])}", order, self.scale())
            values.append(y)
        elif kind == "add":
            alike = [v for v in maps if v.type.shape == x.type.shape]
            other = alike[rng.integers(len(alike))]
            values.append(self.add("quantized::add", (x, other), self.scale()))
        elif kind == "pool" and int(x.type.shape[2]) > 2:  # type: ignore[arg-type]
            window = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1)}
            more = {"dilation": (1, 1), "ceil_mode": False}
            values.append(self.add("aten::max_pool2d", (x,), {**window, **more}))
        else:
            values.append(self.add("aten::dropout", (x,), {"p": 0.5, "train": False}))

    def finish(self) -> Graph:
        rng, graph = self.rng, self.graph
        pooled = self.add("aten::adaptive_avg_pool2d", (self.values[-1],), {"output_size": (1, 1)})
        rows = self.add("aten::flatten", (pooled,), {"start_dim": 1, "end_dim": -1})
        inputs = int(rows.type.shape[1])  # type: ignore[arg-type]
        bias = self.parameter(rng.normal(size=37).astype(np.float32))
        operands = (rows, self.weight(37, inputs), bias)
        y = self.add("quantized::linear", operands, self.scale())
        if rng.random() < 0.5:
            y = self.clamp(y)
            y = self.add("quantized::linear", (y, self.weight(10, 37), None), self.scale())
        outputs = [y]
        if rng.random() < 0.5:
            outputs.append(self.values[rng.integers(len(self.values))])
        graph.outputs = tuple(outputs)
        graph.returns = tuple(range(len(outputs)))
        graph.verify()
        return graph


def network(seed: int, engine: str = "fbgemm") -> Graph:
    builder = Builder(seed, engine)
    for _ in range(int(builder.rng.integers(2, 12))):
        builder.step()
    return builder.finish()


def images(graph: Graph, batch: int, seed: int = 0) -> Any:
    shape = [batch, *graph.inputs[0].type.shape[1:]]
    return np.random.default_rng(seed).normal(scale=3, size=shape).astype(np.float32)


def assert_same(actual: Any, expected: Any) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert type(a) is type(b)
        np.testing.assert_array_equal(a.int_repr, b.int_repr)
        assert a.type == b.type
        assert a.int_repr.strides == b.int_repr.strides


def assert_alike(graph: Graph, x: Any) -> None:
    """Compare both plans: results, or what they refuse."""
    try:
        expected = plain(graph, x)
    except UnsupportedError as error:
        with pytest.raises(UnsupportedError, match=re.escape(str(error))):
            graph(x)
    else:
        assert_same(graph(x), expected)


def plain(graph: Graph, x: Any) -> Any:
    """Run node after node, as for a comparison with torch."""
    return graph.run(x, record=True).outputs


@pytest.mark.parametrize("engine", ENGINES)
def test_random_networks_run_as_their_nodes_do(engine: str) -> None:
    for seed in range(40):
        graph = network(seed, engine)
        for batch in (1, 3, 3, 1):  # the memory of a plan is used again
            assert_alike(graph, images(graph, batch, batch))


def test_a_residual_block_is_one_step_for_each_convolution() -> None:
    builder = Builder(3, "fbgemm")

    def convolution(x: Value) -> Value:
        geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
        weight = builder.weight(64, int(x.type.shape[1]), 3, 3)  # type: ignore[arg-type]
        return builder.add("quantized::conv2d", (x, weight, None), geometry | builder.scale())

    x = convolution(builder.values[0])
    y = convolution(builder.add("aten::relu6", (convolution(x),), {}))
    builder.values.append(builder.add("quantized::add_relu", (x, y), builder.scale()))
    graph = builder.finish()
    names = [step.node.op for step in prepared(graph, graph.target, {"N": 1}).steps]
    assert names[:4] == ["aten::quantize_per_tensor", *["quantized::conv2d"] * 3]
    assert names[4] == "aten::adaptive_avg_pool2d"
    assert_same(graph(images(graph, 2)), plain(graph, images(graph, 2)))


def test_plans_of_a_few_sizes_are_kept() -> None:
    graph = network(13)
    for batch in (1, 2, 3, 1, 2, 3):
        graph(images(graph, batch))
    shelf = graph._plans[graph.target]
    assert [plan.sizes for plan in shelf] == [{"N": 1}, {"N": 2}, {"N": 3}]
    kept = {id(plan) for plan in shelf}
    for batch in (3, 1, 2, 5, 6):
        graph(images(graph, batch))
    assert len(shelf) == 4
    assert len(kept & {id(plan) for plan in shelf}) == 2


def test_a_sum_with_a_pooled_map_is_fused() -> None:
    builder = Builder(3, "fbgemm")
    x = builder.convolution(builder.values[0], 64)
    window = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    x = builder.add("aten::max_pool2d", (x,), {**window, "ceil_mode": False})
    geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    operands = (x, builder.weight(64, 64, 3, 3), None)
    y = builder.add("quantized::conv2d", operands, geometry | builder.scale())
    builder.values.append(builder.add("quantized::add", (y, x), builder.scale()))
    graph = builder.finish()
    names = [step.node.op for step in prepared(graph, graph.target, {"N": 1}).steps]
    assert "quantized::add" not in names
    assert_same(graph(images(graph, 2)), plain(graph, images(graph, 2)))


def test_a_changed_parameter_or_node_is_noticed() -> None:
    graph = network(5)
    x = images(graph, 2)
    before = graph(x)
    name = graph.nodes[-1].inputs[1].name  # type: ignore[union-attr]
    weight = graph.parameters[name]
    assert isinstance(weight, QTensor)
    graph.parameters[name] = QTensor(-weight.int_repr, weight.scale, 0, weight.axis, qint8)
    if weight.axis is not None:
        zeros = np.zeros(weight.shape[0], np.int64)
        graph.parameters[name] = QTensor(-weight.int_repr, weight.scale, zeros, 0, qint8)
    after = graph(x)
    assert_same(after, plain(graph, x))
    assert not np.array_equal(before[0].int_repr, after[0].int_repr)
    bias = next(data for data in graph.parameters.values() if isinstance(data, np.ndarray))
    bias += 3
    assert_same(graph(x), plain(graph, x))
    last = graph.nodes[-1]
    kind = TensorType(quint8, last.outputs[0].type.shape, QParams(1.0, 3))
    result = Value(last.name, kind)
    attributes = {**last.attributes, "scale": 1.0, "zero_point": 3}
    graph.nodes[-1] = Node(last.op, last.inputs, attributes, (result,))
    graph.outputs = (result, *graph.outputs[1:])
    assert_same(graph(x), plain(graph, x))


def test_results_are_not_overwritten_by_the_next_run() -> None:
    graph = network(8)
    first = graph(images(graph, 1, 0))
    kept = [y.int_repr.copy() for y in first]
    graph(images(graph, 1, 1))
    for y, integers in zip(first, kept, strict=True):
        np.testing.assert_array_equal(y.int_repr, integers)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda graph: pickle.loads(pickle.dumps(graph))]
)
def test_a_copy_has_plans_of_its_own(copied: Any) -> None:
    graph = network(21)
    x = images(graph, 2)
    expected = graph(x)
    plain(graph, x)
    other = copied(graph)
    assert not other._plans
    assert_same(other(x), expected)
    assert_same(plain(other, x), expected)


def test_threads_may_run_one_graph() -> None:
    graph = network(11)
    inputs = [images(graph, 2, seed) for seed in range(24)]
    expected = [plain(graph, x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(graph, inputs), expected, strict=True):
            assert_same(actual, wanted)


def test_memory_is_shared_by_values_that_do_not_meet() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        first = rng.integers(0, 20, 12)
        ends = first + rng.integers(0, 8, 12)
        sizes = rng.integers(1, 5000, 12)
        lives = [Lifetime(*map(int, life)) for life in zip(first, ends, sizes, strict=True)]
        offsets, size = assign(lives)
        for i, a in enumerate(lives):
            assert offsets[i] % 64 == 0
            assert offsets[i] + a.size <= size
            for j, b in enumerate(lives[:i]):
                apart = offsets[i] >= offsets[j] + b.size or offsets[j] >= offsets[i] + a.size
                assert apart or not a.meets(b)
    offsets, size = assign([Lifetime(i, i + 1, 640) for i in range(10)])
    assert size == 1280
