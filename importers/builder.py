"""Building a graph node by node, with types inferred as it grows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from refquant.ir.errors import RefquantError, UnsupportedError
from refquant.ir.graph import Graph, Node, Origin, Value
from refquant.ir.op import OPS
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.types import TensorType


class Builder:
    """A graph under construction.

    The nodes that one imported node becomes are emitted under temporary names; :meth:`close`
    gives the results the imported node's name.
    """

    def __init__(self) -> None:
        self.graph = Graph()
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}  # the last number appended to a name
        self._origin: Origin | None = None
        self._pending: list[Node] = []

    def unique(self, name: str) -> str:
        """Return ``name``, or with a number appended if it is taken."""
        candidate = name
        while candidate in self._names:
            count = self._counts[name] = self._counts.get(name, 0) + 1
            candidate = f"{name}.{count}"
        self._names.add(candidate)
        return candidate

    def input(self, name: str, value_type: TensorType) -> Value:
        """Add an argument of the model."""
        value = Value(self.unique(name), value_type)
        self.graph.inputs.append(value)
        return value

    def parameter(self, name: str, data: Tensor) -> Value:
        """Add a constant, or return the one of that name if it holds the same data."""
        known = self.graph.parameters.get(name)
        if known is not None and _same(known, data):
            return Value(name, type_of(data))
        name = self.unique(name)
        self.graph.parameters[name] = _copy(data)
        return Value(name, type_of(data))

    def open(self, origin: Origin) -> None:
        """Start the nodes of one imported node."""
        self._origin, self._pending = origin, []

    def emit(self, op: str, /, *inputs: Any, **attributes: Any) -> Value:
        """Append a node of one result; return its value."""
        (value,) = self.emit_all(op, *inputs, **attributes)
        return value

    def emit_all(self, op: str, /, *inputs: Any, **attributes: Any) -> tuple[Value, ...]:
        """Append a node; return the values of all its results."""
        if op not in OPS:
            raise UnsupportedError(f"no op {op}")
        try:
            types = OPS[op].infer(*(v and v.type for v in inputs), **attributes)
        except RefquantError as error:
            raise type(error)(f"{op}: {error}") from None
        index = len(self._pending)
        flat: tuple[TensorType, ...] = (types,) if isinstance(types, TensorType) else types
        outputs = tuple(Value(f"?{index}.{i}", kind) for i, kind in enumerate(flat))
        self._pending.append(Node(op, inputs, attributes, outputs, self._origin))
        return outputs

    def close(self, name: str, result: Any, names: Iterable[str] = ()) -> Any:
        """Name the results and append the nodes; return ``result`` with the final values.

        The parts of a tuple are called ``name.0``, ``name.1``, ..., or have ``names``.
        """
        rename: dict[str, str] = {}
        made = {value.name for node in self._pending for value in node.outputs}

        def name_parts(part: Any, path: str) -> None:
            if isinstance(part, Value) and part.name in made and part.name not in rename:
                rename[part.name] = self.unique(path)
            elif isinstance(part, tuple):
                for i, inner in enumerate(part):
                    name_parts(inner, f"{path}.{i}")

        if names:
            for part, own in zip(result, names, strict=False):
                if own:
                    name_parts(part, own)
        else:
            name_parts(result, name)
        for node in self._pending:
            for value in node.outputs:
                if value.name not in rename:
                    rename[value.name] = self.unique(f"{name}.step")

        def final(value: Any) -> Any:
            if isinstance(value, tuple):
                return rebuild(value, map(final, value))
            if isinstance(value, Value) and value.name in rename:
                return replace(value, name=rename[value.name])
            return value

        self.graph.nodes += [
            replace(node, inputs=final(node.inputs), outputs=final(node.outputs))
            for node in self._pending
        ]
        self._pending = []
        return final(result)

    def drop_unused_nodes(self) -> None:
        """Forget nodes on which no output depends."""
        used = {value.name for value in self.graph.outputs}
        kept = []
        for node in reversed(self.graph.nodes):
            if any(value.name in used for value in node.outputs):
                kept.append(node)
                used |= {value.name for value in node.inputs if value is not None}
        self.graph.nodes = kept[::-1]

    def drop_unused_parameters(self) -> None:
        """Forget constants whose number was read into an attribute."""
        used = {v.name for node in self.graph.nodes for v in node.inputs if v is not None}
        used |= {v.name for v in self.graph.outputs}
        for name in set(self.graph.parameters) - used:
            del self.graph.parameters[name]


def rebuild(sequence: Any, parts: Iterable[Any]) -> Any:
    """Return a list, tuple or named tuple like ``sequence`` with other parts."""
    if hasattr(sequence, "_fields"):
        return type(sequence)(*parts)
    return type(sequence)(parts)


def _copy(data: Tensor) -> Tensor:
    """Return data of our own: the imported model may be trained on."""
    if isinstance(data, QTensor):
        return data.with_int_repr(data.int_repr.copy(order="K"))
    return data.copy(order="K")


def _same(one: Any, other: Tensor) -> bool:
    if one is other:
        return True
    if isinstance(one, QTensor) and isinstance(other, QTensor):
        return one.type == other.type and bool(np.array_equal(one.int_repr, other.int_repr))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and bool(np.array_equal(one, other))
    return False


Rule = Callable[..., Any]
