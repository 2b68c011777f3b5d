"""The judges: run_diff finds the first diverging node, graph_diff every mutation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import flows
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refquant.compare import compare_values, graph_diff, run_diff
from refquant.importers import from_fx
from refquant.ir import Graph, Node, QTensor, Value
from refquant.ir.types import QParams, quint8

SHAPE = (2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a(x))
        x = F.relu(x + self.b(x))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(scope="module")
def converted() -> nn.Module:
    torch.manual_seed(0)
    return flows.convert(flows.prepare(Net(), SHAPE))


@pytest.fixture(scope="module")
def prepared() -> nn.Module:
    torch.manual_seed(0)
    return flows.prepare(Net(), SHAPE)


def example() -> tuple[torch.Tensor]:
    return (torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)),)


def imported(model: nn.Module) -> Graph:
    return from_fx(model, example())


def diff(graph: Graph, model: nn.Module) -> Any:
    with flows.fbgemm():
        return run_diff(graph, model, example())


def test_the_same_model_is_bit_exact(converted: nn.Module) -> None:
    report = diff(imported(converted), converted)
    assert report.bit_exact
    assert report.first is None
    assert [row.name for row in report.rows] == [n.name for n in imported(converted).nodes]
    assert "bit-exact" in str(report)
    assert "NOT" not in str(report)


def change_weight(graph: Graph) -> str:
    weight = graph.parameter("b.weight")
    assert isinstance(weight, QTensor)
    integers = weight.int_repr.copy()
    integers[0, 0] += np.int8(5)
    graph.parameters["b.weight"] = weight.with_int_repr(integers)
    return "b"


def change_bias(graph: Graph) -> str:
    bias = np.asarray(graph.parameter("fc.bias")).copy()
    bias[2] += 1
    graph.parameters["fc.bias"] = bias
    return "fc"


def find(graph: Graph, op: str) -> int:
    return next(i for i, node in enumerate(graph.nodes) if op in node.op)


def change_qparams(graph: Graph) -> str:
    i = find(graph, "add_relu")
    node = graph.nodes[i]
    scale = float(node.attributes["scale"]) * 1.01  # type: ignore[arg-type]
    set_attributes(graph, i, scale=scale)
    return node.name


def change_zero_point(graph: Graph) -> str:
    i = find(graph, "quantize_per_tensor")
    set_attributes(graph, i, zero_point=int(str(graph.nodes[i].attributes["zero_point"])) + 1)
    return graph.nodes[i].name


def set_attributes(graph: Graph, i: int, **attributes: Any) -> None:
    """Change attributes, and the types that follow from them to the end of the graph."""
    node = graph.nodes[i]
    graph.nodes[i] = replace(node, attributes={**node.attributes, **attributes})
    infer_again(graph)


def infer_again(graph: Graph) -> None:
    from refquant.ir.verify import infer_node

    renamed: dict[str, Value] = {}

    def now(value: Value | None) -> Value | None:
        return None if value is None else renamed.get(value.name, value)

    for j, node in enumerate(graph.nodes):
        node = replace(node, inputs=tuple(map(now, node.inputs)))
        types = infer_node(node)
        outputs = tuple(Value(v.name, t) for v, t in zip(node.outputs, types, strict=True))
        renamed.update({v.name: v for v in outputs})
        graph.nodes[j] = replace(node, outputs=outputs)
    graph.outputs = tuple(renamed[v.name] for v in graph.outputs)


FAULTS = [change_weight, change_bias, change_qparams, change_zero_point]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_planted_fault_is_found_at_its_node(
    converted: nn.Module, fault: Callable[[Graph], str]
) -> None:
    graph = imported(converted)
    culprit = fault(graph)
    report = diff(graph, converted)
    assert not report.bit_exact
    assert report.first is not None
    assert report.first.name == culprit
    assert f"first diverging node: {culprit}" in str(report)
    below = [row for row in report.rows if not row.equal and row.name != culprit]
    assert all(row.inherited for row in below)
    if fault in (change_qparams, change_zero_point):
        assert report.first.cause == "qparams differ"


def q(*values: int, scale: float = 0.5) -> QTensor:
    return QTensor(np.array(values, np.uint8), scale, 7)


@pytest.mark.parametrize(
    ("op", "ours", "torchs", "cause", "step"),
    [
        ("quantized::add", q(1, 2, 3), q(1, 2, 3), "", 0),
        ("quantized::add", q(1, 2, 3), q(1, 3, 3), "rounding tie", 1),
        ("quantized::add", q(0, 255), q(9, 200), "clamp", 55),
        ("quantized::linear", q(10, 90), q(10, 50), "saturation", 40),
        ("quantized::add", q(10, 90), q(10, 50), "value differs", 40),
        ("quantized::add", q(1), q(1, scale=0.25), "qparams differ", 0),
        ("quantized::add", q(1), q(1, 2), "type differs: torch has quint8<0.5:7>[2]", 0),
        ("aten::linear", np.float32([1]), np.float32([1 + 1e-6]), "float order or last bit", 1e-6),
        ("aten::linear", np.float32([1]), np.float32([2]), "value differs", 1),
        ("aten::linear", np.float32([np.nan]), np.float32([np.nan]), "", 0),
        ("aten::linear", np.float32([np.nan]), np.float32([1]), "value differs", np.inf),
    ],
)
def test_the_cause_is_named(op: str, ours: Any, torchs: Any, cause: str, step: float) -> None:
    row = compare_values("v", op, ours, torchs)
    assert row.cause == cause
    assert row.max_step == pytest.approx(step, rel=0.1)
    assert row.equal == (not cause)


def test_the_first_index_is_row_major() -> None:
    ours = QTensor(np.zeros((2, 3), np.uint8), 1.0, 0)
    integers = np.zeros((2, 3), np.uint8)
    integers[1, 1:] = 4, 9
    row = compare_values("v", "op", ours, ours.with_int_repr(integers))
    assert (row.first_index, row.ours, row.torch, row.different) == ((1, 1), 0.0, 4.0, 2)


def mutate(graph: Graph, i: int, kind: str) -> None:
    """Change node ``i`` in one way."""
    nodes = graph.nodes
    node = nodes[i]
    if kind == "drop":
        before = node.inputs[0]
        del nodes[i]
        redirect(graph, node.outputs[0].name, before)
    elif kind == "duplicate":
        twin = replace(
            node, outputs=tuple(replace(v, name=v.name + "_twin") for v in node.outputs)
        )
        nodes.insert(i + 1, twin)
    elif kind == "swap":
        nodes[i], nodes[i - 1] = nodes[i - 1], node
    elif kind == "attribute":
        key = next(iter(node.attributes))
        nodes[i] = replace(node, attributes={**node.attributes, key: "changed"})
    elif kind == "op":
        nodes[i] = replace(node, op="aten::alias")
    elif kind == "origin":
        assert node.origin is not None
        nodes[i] = replace(node, origin=replace(node.origin, path="elsewhere"))
    elif kind == "operand":
        nodes[i] = replace(node, inputs=(graph.inputs[0], *node.inputs[1:]))
    elif kind == "qparams":
        value = node.outputs[0]
        changed = replace(value.type, qparams=QParams(0.123, 3), dtype=quint8)
        nodes[i] = replace(node, outputs=(replace(value, type=changed),))


def redirect(graph: Graph, name: str, to: Value | None) -> None:
    def now(value: Value | None) -> Value | None:
        return to if value is not None and value.name == name else value

    graph.nodes = [replace(n, inputs=tuple(map(now, n.inputs))) for n in graph.nodes]
    graph.outputs = tuple(v for v in map(now, graph.outputs) if v is not None)


KINDS = ["drop", "duplicate", "swap", "attribute", "op", "origin", "operand", "qparams"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ["converted", "prepared"])
def test_graph_diff_sees_every_mutation_of_every_node(
    state: str, kind: str, converted: nn.Module, prepared: nn.Module
) -> None:
    model = converted if state == "converted" else prepared
    assert not graph_diff(imported(model), model)
    tried = 0
    for i, node in enumerate(imported(model).nodes):
        graph = imported(model)
        if kind == "attribute" and not node.attributes:
            continue
        if (kind == "swap" and i == 0) or (kind == "operand" and node.inputs[0] in graph.inputs):
            continue
        mutate(graph, i, kind)
        found = graph_diff(graph, model)
        assert found, f"{kind} of {node}"
        assert found.differences
        assert "differ" in str(found)
        tried += 1
    assert tried >= 5


def test_graph_diff_sees_constants_and_observers(
    converted: nn.Module, prepared: nn.Module
) -> None:
    graph = imported(converted)
    change_weight(graph)
    assert any(
        "operand 1" in d for row in graph_diff(graph, converted).rows for d in row.differences
    )
    for name in list(imported(prepared).modules):
        for change in ("state", "kind", "config", "shared"):
            graph = imported(prepared)
            module = copy.deepcopy(graph.modules[name])
            if change == "state":
                module.state["min_val"] = module.state["min_val"] + np.float32(1)
            elif change == "kind":
                module.kind = "other.Observer"
            elif change == "config":
                module.config["bins"] = 7
            else:
                other = next(n for n in graph.modules if n != name)
                for i, node in enumerate(graph.nodes):
                    if node.attributes.get("module") == name:
                        graph.nodes[i] = replace(node, attributes={"module": other})
            graph.modules[name] = module
            assert graph_diff(graph, prepared), f"{change} of {name}"


def test_graph_diff_of_another_architecture_prints_both_sides(converted: nn.Module) -> None:
    torch.manual_seed(0)
    other = flows.convert(flows.prepare(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), SHAPE))
    found = graph_diff(imported(converted), other)
    assert found
    assert "only in ours" in str(found)
    assert found.as_dict()["equal"] is False


def test_a_value_torch_does_not_have_is_listed(converted: nn.Module) -> None:
    graph = imported(converted)
    value = graph.outputs[0]
    extra = Value("extra", value.type)
    graph.nodes.append(Node("aten::clone", (value,), {}, (extra,)))
    report = diff(graph, converted)
    assert report.bit_exact
    assert report.unmatched == ("extra",)
