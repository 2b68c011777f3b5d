"""Running a graph: by the reference formulas or by the compiled kernels, one node at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.graph import Executor, Graph, Node, Result
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import Dim, TensorType, format_shape

Observe = Callable[[Node, tuple[Tensor, ...]], None]


class _Step(NamedTuple):
    """A node with its function, and the names that are dead after it."""

    node: Node
    function: Callable[..., Any]
    bound: bool  # whether attributes hold symbols or name a module
    dead: tuple[str, ...]


class _Plan(NamedTuple):
    nodes: tuple[Node, ...]
    steps: tuple[_Step, ...]


def _is_symbolic(attribute: object) -> bool:
    if isinstance(attribute, tuple):
        return any(map(_is_symbolic, attribute))
    return isinstance(attribute, Dim)


def _bind(attribute: Any, sizes: dict[str, int]) -> Any:
    if isinstance(attribute, tuple):
        return tuple(_bind(part, sizes) for part in attribute)
    return attribute.bind(sizes) if isinstance(attribute, Dim) else attribute


def attributes_of(graph: Graph, node: Node, sizes: dict[str, int]) -> dict[str, Any]:
    """Return a node's attributes with the length of each symbol and with its module."""
    attributes = {key: _bind(value, sizes) for key, value in node.attributes.items()}
    if "module" in attributes:
        attributes["module"] = graph.modules[attributes["module"]]
    return attributes


def _same_objects(old: Sequence[Node], new: Sequence[Node]) -> bool:
    return len(old) == len(new) and all(map(is_, old, new))


def _plan(graph: Graph, target: Target, executor: Executor) -> _Plan:
    """Look up every function, pack constant weights, and find where each value dies."""
    cached = graph._plans.get((target, executor))
    if cached is not None and _same_objects(cached.nodes, graph.nodes):
        return cached  # type: ignore[no-any-return]
    if executor not in ("fast", "reference"):
        raise VerifyError(f"executor must be 'fast' or 'reference', got {executor!r}")
    kept = {value.name for value in graph.outputs} | set(graph.parameters)
    last_use: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name not in kept:
                last_use[value.name] = index
    dead: list[list[str]] = [[] for _ in graph.nodes]
    for name, index in last_use.items():
        dead[index].append(name)
    steps = []
    for node, names in zip(graph.nodes, dead, strict=True):
        op = OPS.lookup(node.op, f"node {node.name}")
        try:
            function = op.bind(target, fast=executor == "fast")
        except RefquantError as error:
            raise type(error)(f"node {node.name}: {error}") from None
        if executor == "fast" and op.pack is not None:
            _pack_weight(graph, node, op.pack)
        bound = "module" in node.attributes or any(map(_is_symbolic, node.attributes.values()))
        steps.append(_Step(node, function, bound, tuple(names)))
    plan = _Plan(tuple(graph.nodes), tuple(steps))
    graph._plans[target, executor] = plan
    return plan


def _pack_weight(graph: Graph, node: Node, pack: Callable[..., Tensor]) -> None:
    """Replace a constant weight by its packed form, so that memory holds it once."""
    weight = node.inputs[1]
    if weight is None or weight.name not in graph.parameters:
        return
    data = graph.parameter(weight.name)
    if isinstance(data, QTensor) or data.dtype == np.int8:
        graph.parameters[weight.name] = pack(data, **node.attributes)


def check_inputs(graph: Graph, inputs: tuple[Tensor, ...]) -> dict[str, int]:
    """Check the arguments and return the length of each symbol."""
    if len(inputs) != len(graph.inputs):
        names = ", ".join(value.name for value in graph.inputs)
        raise VerifyError(f"expected {len(graph.inputs)} inputs ({names}), got {len(inputs)}")
    sizes: dict[str, int] = {}
    for value, data in zip(graph.inputs, inputs, strict=True):
        where = f"input {value.name}"
        if not isinstance(data, np.ndarray | QTensor):
            raise VerifyError(f"{where}: expected an array, got {type(data).__name__}")
        got = type_of(data)
        if got.dtype != value.type.dtype:
            raise VerifyError(f"{where}: expected dtype {value.type.dtype}, got {got.dtype}")
        if value.type.qparams is not None and got.qparams != value.type.qparams:
            raise VerifyError(f"{where}: expected qparams {value.type.qparams}, got {got.qparams}")
        earlier = _bound(sizes)
        if not _match(value.type, got, sizes):
            raise VerifyError(
                f"{where}: expected shape {format_shape(value.type.shape)}{earlier}, "
                f"got {format_shape(got.shape)}"
            )
    return sizes


def _bound(sizes: dict[str, int]) -> str:
    return "".join(f" with {symbol}={size}" for symbol, size in sizes.items())


def _match(expected: TensorType, got: TensorType, sizes: dict[str, int]) -> bool:
    if expected.rank != got.rank:
        return False
    for want, size in zip(expected.shape, got.shape, strict=True):
        assert isinstance(size, int)
        if isinstance(want, Dim):
            batch, rest = divmod(size, want.factor)
            if rest or sizes.setdefault(want.symbol, batch) != batch:
                return False
        elif want != size:
            return False
    return True


def _wanted(graph: Graph, record: bool | Collection[str]) -> set[str]:
    if not record:
        return set()
    known = {value.name for value in graph.inputs}
    known |= {value.name for node in graph.nodes for value in node.outputs}
    if record is True:
        return known
    unknown = set(record) - known
    if unknown:
        raise VerifyError(f"record: the graph has no value {min(unknown)!r}")
    return set(record)


def run(
    graph: Graph,
    inputs: tuple[Tensor, ...],
    target: Target,
    executor: Executor,
    record: bool | Collection[str],
    observe: Observe | None,
    modules: Mapping[str, Callable[..., Tensor]] | None = None,
) -> Result:
    """Run ``graph``; see :meth:`refquant.ir.graph.Graph.run`."""
    sizes = check_inputs(graph, inputs)
    plan = _plan(graph, target, executor)
    wanted = _wanted(graph, record)
    live: dict[str, Tensor] = {
        value.name: data for value, data in zip(graph.inputs, inputs, strict=True)
    }
    recorded = {name: live[name] for name in live if name in wanted}

    def read(name: str) -> Tensor:
        return live[name] if name in live else graph.parameter(name)

    for step in plan.steps:
        node = step.node
        operands = [None if value is None else read(value.name) for value in node.inputs]
        called = modules.get(str(node.attributes.get("module"))) if modules else None
        attributes = attributes_of(graph, node, sizes) if step.bound else node.attributes
        try:
            results = called(*operands) if called else step.function(*operands, **attributes)
        except RefquantError as error:
            raise type(error)(f"node {node}: {error}") from None
        del operands
        if not isinstance(results, tuple):
            results = (results,)
        for value, result in zip(node.outputs, results, strict=True):
            live[value.name] = result
            if value.name in wanted:
                recorded[value.name] = result
        if observe is not None:
            observe(node, results)
        del results
        for name in step.dead:
            live.pop(name, None)
    return Result(graph.arrange(read(value.name) for value in graph.outputs), recorded)
