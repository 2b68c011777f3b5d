"""Comparing two graphs node for node: the judge behind ``compare.graph_diff``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from refquant.graph_report import GraphDiff, GraphRow
from refquant.ir.errors import VerifyError
from refquant.ir.graph import Absent, Graph, Node, Value
from refquant.ir.program import Program
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.text import digest, format_attribute, format_node
from refquant.ir.types import Dim, TensorType
from refquant.program_diff import program_diff


def graph_diff(ours: Any, torch_model: Any) -> GraphDiff:
    """Compare a model with a torch GraphModule (or another model) node for node.

    Nodes are aligned in order; operands must come from aligned nodes; attributes, types with
    their quantization parameters, constants (by value) and the class, arguments and state of
    observers must be equal. Programs are compared call for call, see
    :func:`~refquant.program_diff.program_diff`.

    Parameters
    ----------
    ours : Graph, Program, or a model that has a ``program``
        The model in question.
    torch_model : torch.fx.GraphModule, torch.nn.Module, Graph, Program, or what has one
        What it should be.

    Returns
    -------
    GraphDiff
        False in a boolean context when the graphs are the same; prints a side by side table.

    Raises
    ------
    VerifyError
        If ``ours`` is no model of refquant, or a program is compared with a graph without one.
    """
    if isinstance(ours, Graph):
        theirs = getattr(torch_model, "graph", None)
        if isinstance(torch_model, Graph):
            theirs = torch_model
        return _align(
            ours, theirs if isinstance(theirs, Graph) else _import_like(ours, torch_model)
        )
    program = ours if isinstance(ours, Program) else getattr(ours, "program", None)
    if not isinstance(program, Program):
        raise VerifyError(
            f"graph_diff: expected a Graph, a Program or a model that has one, "
            f"got {type(ours).__name__}"
        )
    return program_diff(program, _program_of(torch_model))


def _program_of(model: Any) -> Program:
    if isinstance(model, Program):
        return model
    program = getattr(model, "program", None)
    if isinstance(program, Program):
        return program
    if isinstance(model, Graph):
        raise VerifyError("graph_diff: the graph was not made from calls; compare two graphs")
    from refquant.importers.fx_torch import is_graph_module
    from refquant.importers.torch_capture import capture, capture_graph_module

    return capture_graph_module(model) if is_graph_module(model) else capture(model)


def _import_like(ours: Graph, torch_model: Any) -> Graph:
    """Import a torch model with example inputs of the types that ``ours`` has."""
    from refquant.importers.fx import from_fx

    examples = []
    for value in ours.inputs:
        shape = tuple(2 * s.factor if isinstance(s, Dim) else s for s in value.type.shape)
        array = np.zeros(shape, value.type.dtype.storage)
        q = value.type.qparams
        examples.append(
            array if q is None else QTensor(array, q.scale, q.zero_point, q.axis, value.type.dtype)  # type: ignore[arg-type]
        )
    symbols = {s.symbol for v in ours.inputs for s in v.type.shape if isinstance(s, Dim)}
    batch = min(symbols) if symbols else None
    return from_fx(torch_model, tuple(examples), batch=batch)


def _signature(node: Node) -> tuple[str, str, str]:
    origin = node.origin
    return (node.op, origin.kind, origin.target) if origin else (node.op, "", "")


def _align(ours: Graph, theirs: Graph) -> GraphDiff:
    rows: list[GraphRow] = []
    same: dict[str, str] = {}
    for a, b in _pairs(ours.inputs, theirs.inputs):
        differences = []
        if a and b:
            same[a.name] = b.name
            differences = _type_differences(a.type, b.type)
        rows.append(GraphRow(_input(a), _input(b), tuple(differences)))
    matcher = SequenceMatcher(
        None, [_signature(n) for n in ours.nodes], [_signature(n) for n in theirs.nodes], False
    )
    for tag, i0, i1, j0, j1 in matcher.get_opcodes():
        if tag != "equal":
            rows += [GraphRow(_line(n, ours), "", ("only in ours",)) for n in ours.nodes[i0:i1]]
            rows += [
                GraphRow("", _line(n, theirs), ("only in torch's",)) for n in theirs.nodes[j0:j1]
            ]
            continue
        for left, right in zip(ours.nodes[i0:i1], theirs.nodes[j0:j1], strict=True):
            differences = _node_differences(left, right, ours, theirs, same)
            same.update(
                {x.name: y.name for x, y in zip(left.outputs, right.outputs, strict=False)}
            )
            rows.append(GraphRow(_line(left, ours), _line(right, theirs), tuple(differences)))
    returned = [
        f"output {i}: {a.name} against {b.name}"
        for i, (a, b) in enumerate(zip(ours.outputs, theirs.outputs, strict=False))
        if not _same_operand(a, b, ours, theirs, same)
    ]
    if len(ours.outputs) != len(theirs.outputs) or ours.returns != theirs.returns:
        returned.append(f"structure: {ours.returns} against {theirs.returns}")
    rows.append(GraphRow(_return(ours), _return(theirs), tuple(returned)))
    return GraphDiff(tuple(rows))


def _pairs(
    ours: Sequence[Value], theirs: Sequence[Value]
) -> Iterator[tuple[Value | None, Value | None]]:
    for i in range(max(len(ours), len(theirs))):
        yield (ours[i] if i < len(ours) else None, theirs[i] if i < len(theirs) else None)


def _input(value: Value | None) -> str:
    return f"input {value.name} : {value.type}" if value else ""


def _return(graph: Graph) -> str:
    return f"return {', '.join(value.name for value in graph.outputs)}"


def _line(node: Node, graph: Graph) -> str:
    return format_node(node, graph.parameters, origin=False)


def _type_differences(ours: TensorType, theirs: TensorType) -> list[str]:
    found = []
    if ours.dtype != theirs.dtype:
        found.append(f"dtype: {ours.dtype} against {theirs.dtype}")
    if ours.shape != theirs.shape:
        found.append(f"shape: {ours.with_shape(ours.shape)} against {theirs}")
    if ours.qparams != theirs.qparams:
        found.append(f"qparams: {ours.qparams} against {theirs.qparams}")
    return found


def _node_differences(
    left: Node, right: Node, ours: Graph, theirs: Graph, same: dict[str, str]
) -> list[str]:
    found = []
    for i in range(max(len(left.inputs), len(right.inputs))):
        a = left.inputs[i] if i < len(left.inputs) else None
        b = right.inputs[i] if i < len(right.inputs) else None
        if not _same_operand(a, b, ours, theirs, same):
            names = [x.name if x else "None" for x in (a, b)]
            found.append(f"operand {i}: {names[0]} against {names[1]}")
    for key in sorted(set(left.attributes) | set(right.attributes)):
        texts = [
            format_attribute(n.attributes[key]) if key in n.attributes else "(absent)"
            for n in (left, right)
        ]
        if key == "module":
            found += _module_differences(
                str(left.attributes[key]), str(right.attributes[key]), ours, theirs
            )
        elif texts[0] != texts[1]:
            found.append(f"{key}: {texts[0]} against {texts[1]}")
    for x, y in zip(left.outputs, right.outputs, strict=False):
        found += _type_differences(x.type, y.type)
    paths = [n.origin.path if n.origin else "" for n in (left, right)]
    if paths[0] != paths[1]:
        found.append(f"module path: {paths[0]!r} against {paths[1]!r}")
    return found


def _same_operand(
    a: Value | None, b: Value | None, ours: Graph, theirs: Graph, same: dict[str, str]
) -> bool:
    if a is None or b is None:
        return a is b
    if (a.name in ours.parameters) != (b.name in theirs.parameters):
        return False
    if a.name in ours.parameters:
        return _same_data(ours.parameters[a.name], theirs.parameters[b.name])
    return same.get(a.name) == b.name


def _same_data(a: Tensor | Absent, b: Tensor | Absent) -> bool:
    types = [x.type if isinstance(x, Absent) else type_of(x) for x in (a, b)]
    digests = [x.digest if isinstance(x, Absent) else digest(x) for x in (a, b)]
    return types[0] == types[1] and digests[0] == digests[1]


def _module_differences(left: str, right: str, ours: Graph, theirs: Graph) -> list[str]:
    """Compare two stateful modules; a shared one must be shared on both sides."""
    found = []
    if left != right:
        found.append(f"module: {left} against {right}")
    a, b = ours.modules.get(left), theirs.modules.get(right)
    if a is None or b is None:
        return [*found, f"module {left if a is None else right} is not in its graph"]
    if a.kind != b.kind:
        found.append(f"module class: {a.kind} against {b.kind}")
    if a.config != b.config:
        keys = sorted(k for k in a.config | b.config if a.config.get(k) != b.config.get(k))
        found.append(f"module arguments: {', '.join(keys)}")
    found += [
        f"module state: {key}"
        for key in sorted(set(a.state) | set(b.state))
        if key not in a.state or key not in b.state or not _same_data(a.state[key], b.state[key])
    ]
    return found
