"""The verifier: every rule a graph must keep, checked in one pass."""

from __future__ import annotations

from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.graph import Graph, Node, Value
from refquant.ir.op import OPS
from refquant.ir.text import format_attribute
from refquant.ir.types import Dim, TensorType


def infer_node(node: Node) -> tuple[TensorType, ...]:
    """Return the types that the node's op infers for its results."""
    op = OPS.lookup(node.op, f"node {node.name}")
    types = [None if value is None else value.type for value in node.inputs]
    try:
        inferred = op.infer(*types, **node.attributes)
    except RefquantError as error:
        raise type(error)(f"node {node}: {error}") from None
    except TypeError as error:
        raise VerifyError(f"node {node}: operands or attributes do not fit: {error}") from None
    return (inferred,) if isinstance(inferred, TensorType) else inferred


def verify(graph: Graph) -> None:
    """Check single assignment, order, types, attributes and references.

    Raises
    ------
    VerifyError
        With the node, the rule and the value.
    """
    defined: dict[str, Value] = {}

    def define(value: Value, where: str) -> None:
        if value.name in defined:
            raise VerifyError(f"{where}: single assignment: {value.name} is defined twice")
        defined[value.name] = value

    def check_use(value: Value, where: str) -> None:
        if value.name not in defined:
            raise VerifyError(f"{where}: order: {value.name} is used before it is defined")
        if defined[value.name] != value:
            raise VerifyError(
                f"{where}: type: {value.name} is {defined[value.name].type}, used as {value.type}"
            )

    symbols: set[str] = set()
    for value in graph.inputs:
        define(value, f"input {value.name}")
        symbols |= {size.symbol for size in value.type.shape if isinstance(size, Dim)}
    everything = graph.values()
    for name in graph.parameters:
        define(everything[name], f"parameter {name}")
    for node in graph.nodes:
        where = f"node {node}"
        for operand in node.inputs:
            if operand is not None:
                check_use(operand, where)
        for attribute in node.attributes.values():
            format_attribute(attribute)
        module = node.attributes.get("module")
        if module is not None and module not in graph.modules:
            raise VerifyError(f"{where}: reference: the graph has no module {module!r}")
        inferred = infer_node(node)
        declared = tuple(value.type for value in node.outputs)
        if inferred != declared:
            expected = ", ".join(map(str, inferred))
            got = ", ".join(map(str, declared))
            raise VerifyError(f"{where}: type: the op gives {expected}, declared is {got}")
        for value in node.outputs:
            free = {s.symbol for s in value.type.shape if isinstance(s, Dim)} - symbols
            if free:
                raise VerifyError(f"{where}: symbol: no input has the length {min(free)}")
            define(value, where)
    for value in graph.outputs:
        check_use(value, "return")
    leaves = _leaves(graph.returns)
    if any(not 0 <= leaf < len(graph.outputs) for leaf in leaves):
        raise VerifyError(
            f"return: structure {graph.returns} does not index {len(graph.outputs)} outputs"
        )


def _leaves(returns: object) -> list[int]:
    if isinstance(returns, dict):
        return [leaf for part in returns.values() for leaf in _leaves(part)]
    if isinstance(returns, tuple | list):
        return [leaf for part in returns for leaf in _leaves(part)]
    return [returns] if isinstance(returns, int) else []
