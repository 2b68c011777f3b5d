"""Graphs of ONNX's operators by plan, kernel by kernel and by formula, beside onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx_oracle import session

from refquant.importers.builder import Builder
from refquant.ir.graph import Graph, Origin
from refquant.ir.qtensor import type_of
from refquant.ir.target import Target
from refquant.ir.types import TensorType, dtype_of

F = np.float32
RNG = np.random.default_rng(1)


class Both:
    """Builds a graph and an ONNX model, node by node."""

    def __init__(self, x: Any) -> None:
        self.builder = Builder()
        kind = dtype_of(x)
        self.values = {"x": self.builder.input("x", TensorType(kind, x.shape))}
        code = helper.np_dtype_to_tensor_dtype(x.dtype)
        self.inputs = [helper.make_tensor_value_info("x", code, x.shape)]
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.code = code

    def node(self, name: str, *operands: Any, **attributes: Any) -> str:
        names, values = [], []
        for operand in operands:
            if not isinstance(operand, str):
                key = f"c{len(self.constants)}"
                self.constants.append(numpy_helper.from_array(np.asarray(operand), key))
                self.values[key] = self.builder.parameter(key, np.asarray(operand))
                operand = key
            names.append(operand)
            values.append(self.values[operand])
        result = f"n{len(self.nodes)}"
        domain, op = name.split("::")
        space = "" if domain == "onnx" else domain
        self.nodes.append(helper.make_node(op, names, [result], domain=space, **attributes))
        self.builder.open(Origin("onnx", op, result))
        made = self.builder.emit(name, *values, **attributes)
        self.values[result] = self.builder.close(result, made)
        return result

    def finish(self, name: str) -> tuple[Graph, onnx.ModelProto]:
        graph = self.builder.graph
        graph.outputs = (self.values[name],)
        output = helper.make_tensor_value_info(name, self.code, None)
        made = helper.make_graph(self.nodes, "g", self.inputs, [output], self.constants)
        sets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return graph, helper.make_model(made, opset_imports=sets, ir_version=10)


def convolution(both: Both, x: str, dtype: Any, inputs: int, outputs: int, **more: Any) -> str:
    group = more.get("group", 1)
    kernel = more.pop("kernel", 3)
    w = RNG.integers(-90, 90, (outputs, inputs // group, kernel, kernel)).astype(np.int8)
    sw = RNG.uniform(1e-3, 9e-3, outputs).astype(F)
    b = RNG.integers(-900, 900, outputs).astype(np.int32)
    zeros = np.zeros(outputs, np.int8)
    parameters = (F(0.02), dtype(100), w, sw, zeros, F(0.03), dtype(100), b)
    return both.node("onnx::QLinearConv", x, *parameters, **more)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_a_residual_network(dtype: Any) -> None:
    limits = np.iinfo(dtype)
    x = RNG.integers(limits.min, limits.max, (2, 3, 17, 15), endpoint=True).astype(dtype)
    both = Both(x)
    pads = (1, 1, 1, 1)
    first = convolution(both, "x", dtype, 3, 16, pads=pads, strides=(2, 2))
    deep = convolution(both, first, dtype, 16, 16, pads=pads, group=16)
    deep = convolution(both, deep, dtype, 16, 16, pads=(0, 0, 0, 0), kernel=1)
    deep = convolution(both, deep, dtype, 16, 16, pads=pads)
    q = (F(0.03), dtype(100))
    total = both.node("com.microsoft::QLinearAdd", deep, *q, first, *q, F(0.04), dtype(90))
    pooled = both.node("com.microsoft::QLinearAveragePool", total, *q, *q, kernel_shape=(2, 2))
    pooled = convolution(both, pooled, dtype, 16, 10, kernel=1, pads=(0, 0, 0, 0))
    mean = both.node("com.microsoft::QLinearGlobalAveragePool", pooled, *q, *q)
    graph, proto = both.finish(mean)
    graph.verify()
    (expected,) = session(proto).run(None, {"x": x})
    target = Target("ort")
    for _ in range(2):
        np.testing.assert_array_equal(graph.run(x, target=target).outputs, expected)
    slow = graph.run(x, target=target, executor="reference", record=True)
    fast = graph.run(x, target=target, record=True)
    np.testing.assert_array_equal(slow.outputs, expected)
    for name, value in slow.values.items():
        assert type_of(value) == type_of(fast.values[name])
        np.testing.assert_array_equal(value, fast.values[name])
    np.testing.assert_array_equal(
        graph.run(x, target=Target("onnx")).outputs,
        graph.run(x, target=Target("onnx"), executor="reference").outputs,
    )


def test_changed_constants_are_noticed() -> None:
    x = RNG.integers(0, 256, (1, 3, 9, 9)).astype(np.uint8)
    both = Both(x)
    graph, _ = both.finish(convolution(both, "x", np.uint8, 3, 8))
    before = graph.run(x, target=Target("ort")).outputs
    scale = graph.parameter("c5")
    assert isinstance(scale, np.ndarray)
    scale[...] = F(0.06)
    after = graph.run(x, target=Target("ort")).outputs
    expected = graph.run(x, target=Target("ort"), executor="reference").outputs
    assert (before != after).any()
    np.testing.assert_array_equal(after, expected)
