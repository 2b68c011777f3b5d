"""Running a graph: by the reference formulas or by the compiled kernels, one node at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from threading import Lock
from typing import Any

import numpy as np

from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.graph import Executor, Graph, Node, Result
from refquant.ir.plan import Plan, bound_attribute, plain, prepared
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import Dim, TensorType, format_shape

Observe = Callable[[Node, tuple[Tensor, ...]], None]


def attributes_of(graph: Graph, node: Node, sizes: dict[str, int]) -> dict[str, Any]:
    """Return a node's attributes with the length of each symbol and with its module."""
    attributes = {key: bound_attribute(value, sizes) for key, value in node.attributes.items()}
    if "module" in attributes:
        attributes["module"] = graph.modules[attributes["module"]]
    return attributes


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
    if executor == "fast" and not (record or observe or modules):
        # Prepared plans that are not running: each has memory of its own.
        shelf: list[Plan] = graph._plans.setdefault(target, [])
        plan = _taken(shelf, graph, sizes) or prepared(graph, target, sizes)
        try:
            return _follow(graph, plan, inputs, sizes, set(), None, None)
        finally:
            _put_back(shelf, plan)
    plan = _plain(graph, target, executor)
    return _follow(graph, plan, inputs, sizes, _wanted(graph, record), observe, modules)


def _plain(graph: Graph, target: Target, executor: Executor) -> Plan:
    plan: Plan | None = graph._plans.get((target, executor))
    if plan is None or not plan.fits(graph, None):
        plan = graph._plans[target, executor] = plain(graph, target, executor)
    return plan


# Prepared plans that a graph keeps for each target.
KEPT = 4
_lock = Lock()


def _taken(shelf: list[Plan], graph: Graph, sizes: dict[str, int]) -> Plan | None:
    """Take a plan from the shelf, if one fits that no other thread uses."""
    with _lock:
        for index, plan in enumerate(shelf):
            if plan.fits(graph, sizes):
                return shelf.pop(index)
    return None


def _put_back(shelf: list[Plan], plan: Plan) -> None:
    """Keep a plan for the next run; the one that was used longest ago goes."""
    with _lock:
        shelf.append(plan)
        del shelf[:-KEPT]


def _follow(
    graph: Graph,
    plan: Plan,
    inputs: tuple[Tensor, ...],
    sizes: dict[str, int],
    wanted: set[str],
    observe: Observe | None,
    modules: Mapping[str, Callable[..., Tensor]] | None,
) -> Result:
    """Run the steps of a plan."""
    live: dict[str, Tensor] = {
        value.name: data for value, data in zip(graph.inputs, inputs, strict=True)
    }
    recorded = {name: live[name] for name in live if name in wanted}

    def read(name: str) -> Tensor:
        return live[name] if name in live else graph.parameter(name)

    for step in plan.steps:
        node = step.node
        operands = [None if name is None else read(name) for name in step.operands]
        called = modules.get(str(node.attributes.get("module"))) if modules else None
        attributes = step.attributes
        if attributes is None:
            attributes = attributes_of(graph, node, sizes)
        try:
            results = called(*operands) if called else step.function(*operands, **attributes)
        except RefquantError as error:
            raise type(error)(f"node {node}: {error}") from None
        del operands
        if not isinstance(results, tuple):
            results = (results,)
        for name, result in zip(step.results, results, strict=True):
            live[name] = result
            if name in wanted:
                recorded[name] = result
        if observe is not None:
            observe(node, results)
        del results
        for name in step.dead:
            live.pop(name, None)
    return Result(graph.arrange(read(value.name) for value in graph.outputs), recorded)
