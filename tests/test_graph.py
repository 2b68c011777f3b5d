"""The verifier and the executors."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from graphs import chain, quantize

from refquant.ir import Dim, Graph, Module, Node, QTensor, Target, Value, VerifyError
from refquant.ir.types import TensorType, float32, float64


def broken(change: str) -> Graph:
    """A good graph with one rule broken."""
    graph = chain(quantize(), ("aten::dequantize", {}))
    first, second = graph.nodes
    if change == "order":
        graph.nodes.reverse()
    elif change == "twice":
        graph.nodes.append(second)
    elif change == "op":
        graph.nodes[0] = replace(first, op="aten::nothing")
    elif change == "type":
        wrong = Value("v0", TensorType(float32, (Dim("N"), 4)))
        graph.nodes[0] = replace(first, outputs=(wrong,))
    elif change == "attribute":
        graph.nodes[0] = replace(first, attributes={**first.attributes, "zero_point": 300})
    elif change == "missing":
        graph.nodes[0] = replace(first, attributes={})
    elif change == "module":
        graph.nodes.append(
            Node(
                "observer::observe",
                second.outputs,
                {"module": "m"},
                (Value("o", second.outputs[0].type),),
            )
        )
    elif change == "output":
        graph.outputs = (Value("nowhere", second.outputs[0].type),)
    elif change == "returns":
        graph.returns = (0, 1)
    elif change == "symbol":
        graph.inputs[0] = Value("x", TensorType(float32, (2, 4)))
    return graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("order", r"node v1 \(aten::dequantize\): order: v0 is used before"),
        ("twice", r"single assignment: v1 is defined twice"),
        ("op", r"node v0: unknown op 'aten::nothing'"),
        ("type", r"node v0 .*type: the op gives quint8<0.5:7>\[N, 4\], declared is float32"),
        ("attribute", r"node v0 .*zero_point must be in \[0, 255\], got 300"),
        ("missing", r"node v0 .*operands or attributes do not fit"),
        ("module", r"node o .*reference: the graph has no module 'm'"),
        ("output", r"return: order: nowhere is used before it is defined"),
        ("returns", r"return: structure \(0, 1\) does not index 1 outputs"),
        ("symbol", r"node v0 .*type: x is float32\[2, 4\], used as float32\[N, 4\]"),
    ],
)
def test_the_verifier_names_node_rule_and_value(change: str, message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        broken(change).verify()


X = np.array([[0.1, 0.5, 1.0, 900.0]], np.float32)


def test_both_executors_agree_and_record() -> None:
    graph = chain(quantize(), ("aten::dequantize", {}))
    results = [graph.run(X, executor=e, record=True) for e in ("fast", "reference")]  # type: ignore[arg-type]
    for result in results:
        np.testing.assert_array_equal(result.outputs, [[0.0, 0.5, 1.0, 124.0]])
        assert set(result.values) == {"x", "v0", "v1"}
    first, second = (result.values["v0"] for result in results)
    assert isinstance(first, QTensor)
    assert isinstance(second, QTensor)
    np.testing.assert_array_equal(first.int_repr, second.int_repr)


def test_recording_some_values_only() -> None:
    graph = chain(quantize(), ("aten::dequantize", {}))
    assert set(graph.run(X, record=["v0"]).values) == {"v0"}
    assert graph.run(X).values == {}
    with pytest.raises(VerifyError, match="record: the graph has no value 'v9'"):
        graph.run(X, record=["v9"])


def test_the_batch_is_symbolic() -> None:
    graph = chain(("aten::reshape", {"shape": (4 * Dim("N"),)}), ("aten::unsqueeze", {"dim": 0}))
    assert str(graph.outputs[0].type) == "float32[1, 4*N]"
    for batch in (1, 3, 0):
        assert graph(np.zeros((batch, 4), np.float32)).shape == (1, 4 * batch)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), r"expected 1 inputs \(x\), got 0"),
        ((np.zeros((1, 4)),), r"input x: expected dtype float32, got float64"),
        ((np.zeros((1, 5), np.float32),), r"input x: expected shape \[N, 4\].*got \[1, 5\]"),
        ((np.zeros(4, np.float32),), r"input x: expected shape \[N, 4\], got \[4\]"),
        (([1, 2],), r"input x: expected an array, got list"),
        ((np.zeros((1, 4), "S1"),), r"array dtype \|S1 is not supported"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: tuple[object, ...], message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        chain(quantize()).run(*inputs)  # type: ignore[arg-type]


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(VerifyError, match="executor must be 'fast' or 'reference'"):
        chain(quantize()).run(X, executor="slow")  # type: ignore[arg-type]


def test_an_edited_graph_is_planned_again() -> None:
    graph = chain(quantize(scale=0.5))
    before = graph(X).int_repr
    node = graph.nodes[0]
    kind = chain(quantize(scale=1.0)).outputs[0].type
    graph.nodes[0] = replace(
        node, attributes={**node.attributes, "scale": 1.0}, outputs=(Value("v0", kind),)
    )
    graph.outputs = graph.nodes[0].outputs
    assert not np.array_equal(graph(X).int_repr, before)


def test_structured_results() -> None:
    graph = chain(quantize(), ("aten::dequantize", {}))
    graph.outputs = (graph.outputs[0], graph.inputs[0])
    graph.returns = {"out": 0, "rest": [1, None]}
    result = graph(X)
    assert list(result) == ["out", "rest"]
    assert result["rest"][0] is X
    assert result["rest"][1] is None


def test_an_observer_node_refers_to_a_module_of_the_graph() -> None:
    graph = chain(quantize(), ("aten::dequantize", {}))
    graph.modules["obs"] = Module("MinMaxObserver")
    value = graph.outputs[0]
    node = Node("observer::observe", (value,), {"module": "obs"}, (Value("o", value.type),))
    graph.nodes.append(node)
    graph.outputs = node.outputs
    graph.verify()
    np.testing.assert_array_equal(graph(X), [[0.0, 0.5, 1.0, 124.0]])


def test_dead_values_are_freed() -> None:
    """A long chain needs two values at a time, not all of them."""
    steps = [("aten::clone", {})] * 30
    graph = chain(*steps, shape=(Dim("N"), 1000))
    x = np.zeros((1000, 1000), np.float32)
    graph(x)
    tracemalloc.start()
    graph(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1.3 * 2 * x.nbytes


def test_wrong_dtype_message_names_both() -> None:
    value = Value("x", TensorType(float64, (1,)))
    node = Node(*quantize()[:1], (value,), quantize()[1], (value,))
    with pytest.raises(VerifyError, match="quantize_per_tensor: expected float32, got float64"):
        Graph([value], [node], (value,)).verify()


def test_targets() -> None:
    assert Target.parse(str(Target("fbgemm", "avx2", 3))) == Target("fbgemm", "avx2", 3)  # type: ignore[arg-type]
    with pytest.raises(VerifyError, match="engine 'mkl' is not one of fbgemm, qnnpack"):
        Target.parse("mkl")
    with pytest.raises(VerifyError, match="threads must be >= 1, got 0"):
        Target(threads=0)
    with pytest.raises(VerifyError, match="expected engine/isa/threads=n"):
        Target.parse("fbgemm/avx2/threads=x")
