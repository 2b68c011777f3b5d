"""ONNX models into the IR: constants are folded, subgraphs and functions unfolded."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from refquant.importers.onnx_builder import (
    Array,
    Constant,
    DataDependentError,
    OnnxBuilder,
    Operand,
    vector,
)
from refquant.importers.onnx_checks import check_node, operand_type
from refquant.importers.onnx_control import CONTROL
from refquant.importers.onnx_file import (
    MOST_DEPTH,
    NEWEST_OPSET,
    ONNX_DOMAINS,
    Declared,
    OnnxFunction,
    OnnxGraph,
    OnnxModel,
    OnnxNode,
    Reference,
    Schema,
    body_of,
    may_have_body,
    read,
    schema_of,
)
from refquant.importers.onnx_rules import REFUSED, REFUSED_DOMAINS, RULES
from refquant.importers.onnx_symbolic import SYMBOLIC, is_arithmetic_of_lengths
from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError
from refquant.ir.graph import Graph, Origin, Value
from refquant.ir.qtensor import QTensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import Dim, Size, TensorType

# Nodes, calls and turns of loops that a model may have beyond the nodes in its file: the file's
# size bounds the rest of the work.
MOST_UNROLLED = 30_000
# What a malformed node makes a rule or a kernel raise.
_MISUSE = (
    *(TypeError, AttributeError, LookupError, ValueError, ArithmeticError, RuntimeError),
    *(AssertionError, MemoryError, np.exceptions.AxisError, RecursionError),
)


def from_onnx(
    model: Any,
    *,
    shapes: Mapping[str, Sequence[int | str]] | None = None,
    constants: Mapping[str, Any] | None = None,
    target: str = "onnx",
) -> Graph:
    """Import an ONNX model of opset 7 or later.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        Quantized in any of ONNX's ways, or float.
    shapes : mapping of str to lengths, optional
        Shape of an input, where the model leaves lengths open. A length may be a name: the
        symbol of the batch, as any open first length is by itself.
    constants : mapping of str to arrays, optional
        Inputs that are bound to a value; the graph does not have them. A shape or a branch must
        not depend on an input that is not bound.
    target : str
        The machine the model is meant for, as :meth:`Target.parse` reads it: ``onnx``, the
        specification, or ``ort``, onnxruntime.

    Returns
    -------
    Graph
        Verified; a model of one output returns it, any other a tuple.

    Raises
    ------
    VerifyError
        If the file is no ONNX model or breaks a rule; the node is named.
    UnsupportedError
        Listing every operator that has no rule, with node and opset; or a node that asks for
        what refquant does not do.
    """
    wanted = Target.parse(target)
    try:
        return _Import(read(model), wanted).run(dict(shapes or {}), dict(constants or {}))
    except RefquantError as error:
        raise type(error)(_one_line(str(error))) from None


def _one_line(text: str) -> str:
    """Return a message with the line breaks and the like that names hold written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class _Import:
    """The import of one model."""

    def __init__(self, model: OnnxModel, target: Target) -> None:
        self.model = model
        self.builder = OnnxBuilder(target, self.subgraph)
        self.opsets: Mapping[str, int] = model.opsets
        self.env: ChainMap[str, Operand] = ChainMap()
        self.formal: Mapping[str, Any] = {}  # attributes of the function in hand
        self.prefix = ""  # of names in a function or a repeated subgraph
        self.count = self.depth = 0
        self.most = MOST_UNROLLED

    def run(self, shapes: dict[str, Any], constants: dict[str, Any]) -> Graph:
        """Import the whole model."""
        graph = self.model.graph
        self.refuse_unknown()
        self.env.update(
            {name: Constant(name, data, True) for name, data in graph.constants.items()}
        )
        self.inputs(graph.inputs, shapes, constants)
        self.nodes(graph.nodes)
        return self.finish(graph.outputs)

    # ---- ends of the graph

    def inputs(
        self, declared: Sequence[Declared], shapes: dict[str, Any], constants: dict[str, Any]
    ) -> None:
        """Define the inputs: values, or constants where the caller binds them."""
        names = {d.name for d in declared}
        for name in (*shapes, *constants):
            if name not in names:
                known = ", ".join(sorted(names)) or "none"
                raise VerifyError(f"from_onnx: the model has no input {name!r}; it has {known}")
        unknown = []
        for d in declared:
            if d.name in constants:
                self.env[d.name] = bound(d, constants[d.name])
            elif d.name not in self.env:
                given = shapes.get(d.name, d.shape)
                if d.kind != "tensor" or d.dtype is None:
                    kind = "tensor of unknown type" if d.kind == "tensor" else d.kind
                    raise DataDependentError(
                        f"input {d.name}: {kind}; bind it: constants={{{d.name!r}: ...}}"
                    )
                if given is not None and not isinstance(given, list | tuple):
                    raise VerifyError(f"input {d.name}: expected lengths, got {given!r}")
                if given is None or any(n is None or isinstance(n, str) for n in given[1:]):
                    unknown.append(f"{d.name} {_shown(given)}")
                    continue
                self.env[d.name] = self.builder.input(
                    d.name, TensorType(d.dtype, _sizes(d, given))
                )
        if unknown:
            raise UnsupportedError(
                f"lengths of inputs are open: {', '.join(unknown)}; give "
                "shapes={name: (...)} (only the first length may stay open, as the batch)"
            )

    def finish(self, declared: Sequence[Declared]) -> Graph:
        """Return the graph with its outputs under their names."""
        b = self.builder
        graph = b.graph
        outputs: list[Value] = []

        def result(operand: Operand, name: str) -> Any:
            if operand is None:
                return None
            if isinstance(operand, tuple):
                return [result(part, f"{name}.{i}") for i, part in enumerate(operand)]
            if isinstance(operand, Constant):
                value = b.parameter(name, b.array(operand, f"output {name}"))
            elif operand.name == name:
                value = operand
            else:
                b.open(Origin("onnx", "Identity", name))
                value = b.close(name, b.emit("aten::alias", operand))
            outputs.append(value)
            return len(outputs) - 1

        if not declared:
            raise VerifyError("the graph has no outputs")
        returned = tuple(result(self.value(d.name, "output"), d.name) for d in declared)
        graph.returns = returned[0] if len(returned) == 1 else returned
        graph.outputs = tuple(outputs)
        b.drop_unused_nodes()
        b.drop_unused_parameters()
        graph.provenance = {"target": str(b.target), "opset": str(self.opsets.get("", "none"))}
        if self.model.producer:
            graph.provenance["producer"] = self.model.producer
        graph.verify()
        return graph

    # ---- nodes

    def nodes(self, nodes: Sequence[OnnxNode]) -> None:
        """Import nodes in order; the error of one names it."""
        for node in nodes:
            try:
                self.work()
                self.node(node)
            except RefquantError as error:
                if self.depth and str(error).startswith("node "):
                    raise
                raise type(error)(f"node {node.label} ({node.qualified}): {error}") from None
            except _MISUSE as error:
                reason = str(error).strip().split("\n")[0] or type(error).__name__
                raise VerifyError(
                    f"node {node.label} ({node.qualified}): operands or attributes do not fit: "
                    f"{reason}"
                ) from None

    def node(self, node: OnnxNode) -> None:
        """Import one node."""
        opset = self.opset(node.domain)
        if not node.outputs:
            raise VerifyError("it has no results")
        function = self.model.functions.get((node.domain, node.op, node.overload))
        operands = [self.value(name, "operand") if name else None for name in node.inputs]
        schema = None if function else schema_of(node.op, node.domain, opset)
        node = replace(node, attributes=self.attributes(node, schema))
        if function is None:
            check_node(node, schema, opset, operands)
            while operands and operands[-1] is None:
                operands.pop()
        results = self.results(node, function, schema, opset, operands)
        for name, value in zip(node.outputs, results, strict=False):
            if name:
                self.env[name] = value
        missing = [name for name in node.outputs[len(results) :] if name]
        if missing:
            raise UnsupportedError(f"output {missing[0]} is not computed")

    def results(
        self,
        node: OnnxNode,
        function: OnnxFunction | None,
        schema: Schema | None,
        opset: int,
        operands: list[Operand],
    ) -> list[Operand]:
        """Return what a node gives: by a rule, or by the nodes of its function."""
        b = self.builder
        key = node.qualified
        if function is not None:
            return self.call(function, node, operands)
        b.node, b.version = node, schema.since if schema else 1
        if is_arithmetic_of_lengths(key, operands):
            arrays = [x.data for x in operands if isinstance(x, Constant)]
            found = SYMBOLIC[key](b, *arrays)
            return [Constant(node.label, vector_like(found))]
        if key in CONTROL:
            return CONTROL[key](b, *operands)
        rule = RULES.get(key)
        names = [f"{self.prefix}{name}" if name else "" for name in node.outputs]
        b.open(Origin("onnx", key, node.label))
        made = NotImplemented if rule is None else rule(b, *operands)
        if made is NotImplemented:
            return self.call(self.body(node, opset, operands), node, operands)
        flat = made if isinstance(made, list) else [made]
        return list(b.close(names[0] or node.label, tuple(flat), names))

    def body(self, node: OnnxNode, opset: int, operands: Sequence[Operand]) -> OnnxFunction:
        """Return the standard's function of an operator, of the newest opset if it came late."""
        types = tuple(operand_type(x) for x in operands)
        for version in (opset, NEWEST_OPSET) if node.domain in ONNX_DOMAINS else (opset,):
            found = body_of(node, version, types)
            if found is not None:
                return found
        raise UnsupportedError(f"no rule for {node.qualified} of opset {opset}")

    def attributes(self, node: OnnxNode, schema: Schema | None) -> dict[str, Any]:
        """Return the node's attributes, with those of the function and the defaults filled in."""
        given: dict[str, Any] = dict(schema.defaults) if schema else {}
        for name, value in node.attributes.items():
            if isinstance(value, Reference):
                found = self.formal.get(value.name)
                if found is not None:
                    given[name] = found
            else:
                given[name] = value
        return given

    def value(self, name: str, what: str) -> Operand:
        """Return what a name stands for."""
        if name not in self.env:
            raise VerifyError(
                f"{what} {name!r} is not defined before it is used (a cycle, a missing "
                "initialiser, or nodes out of order)"
            )
        return self.env[name]

    def opset(self, domain: str) -> int:
        """Return the version of a domain that is in force."""
        return self.opsets.get("" if domain == "ai.onnx" else domain, 1)

    # ---- functions and subgraphs

    def call(
        self, function: OnnxFunction, node: OnnxNode, operands: Sequence[Operand]
    ) -> list[Operand]:
        """Import the nodes of a function in place."""
        if len(operands) > len(function.inputs):
            raise VerifyError(
                f"{len(operands)} operands for a function of {len(function.inputs)} inputs"
            )
        padded = [*operands, *[None] * (len(function.inputs) - len(operands))]
        outer = self.env, self.formal, self.opsets, self.prefix
        self.env = ChainMap(dict(zip(function.inputs, padded, strict=True)))
        self.formal = {**function.attributes, **node.attributes}
        self.opsets = {**self.opsets, **function.opsets}
        self.prefix = f"{self.prefix}{node.label}."
        self.enter()
        try:
            self.nodes(function.nodes)
            wanted = dict(zip(function.outputs, node.outputs, strict=False))
            return [
                self.value(name, "output") if wanted.get(name) else None
                for name in function.outputs
            ]
        finally:
            self.env, self.formal, self.opsets, self.prefix = outer
            self.depth -= 1

    def subgraph(self, graph: OnnxGraph, operands: Sequence[Operand]) -> list[Operand]:
        """Import the nodes of a subgraph, which see the names around it."""
        if len(operands) != len(graph.inputs):
            raise VerifyError(
                f"subgraph {graph.name}: {len(graph.inputs)} inputs, got {len(operands)}"
            )
        outer, node, version = self.env, self.builder.node, self.builder.version
        given = {d.name: x for d, x in zip(graph.inputs, operands, strict=True)}
        self.env = outer.new_child({**stored(graph), **given})
        self.enter()
        try:
            self.nodes(graph.nodes)
            return [self.value(d.name, "output") for d in graph.outputs]
        finally:
            self.env = outer
            self.builder.node, self.builder.version = node, version
            self.depth -= 1

    def enter(self) -> None:
        """Count how deep functions and subgraphs lie in each other."""
        if self.depth == MOST_DEPTH:
            raise VerifyError(f"functions or subgraphs more than {MOST_DEPTH} deep, or recursive")
        self.work()
        self.depth += 1

    def work(self) -> None:
        """Count a node, a call or a turn of a loop."""
        self.count += 1
        if self.count > self.most:
            raise UnsupportedError(
                f"loops and functions unroll to more than {self.most} nodes and turns"
            )

    # ---- refusals

    def refuse_unknown(self) -> None:
        """List every operator that has no rule, before anything is made."""
        found: dict[str, list[str]] = {}

        def look(nodes: Sequence[OnnxNode], opsets: Mapping[str, int]) -> None:
            self.most += len(nodes)
            for node in nodes:
                for value in node.attributes.values():
                    for graph in value if isinstance(value, tuple) else (value,):
                        if isinstance(graph, OnnxGraph):
                            look(graph.nodes, opsets)
                domain = "" if node.domain == "ai.onnx" else node.domain
                if not self.is_known(node, opsets.get(domain)):
                    version = f"opset {opsets.get(domain, 'not imported')}"
                    reason = REFUSED.get(node.qualified, REFUSED_DOMAINS.get(node.domain))
                    why = f"{version}; {reason}" if reason else version
                    found.setdefault(f"{node.qualified} ({why})", []).append(node.label)

        look(self.model.graph.nodes, self.opsets)
        for function in self.model.functions.values():
            look(function.nodes, function.opsets)
        if found:
            rows = [f"{op}: {_some(nodes)}" for op, nodes in sorted(found.items())]
            count = len(rows)
            noun = "operator is" if count == 1 else "operators are"
            raise UnsupportedError(f"{count} {noun} not supported: {'; '.join(rows)}")

    def is_known(self, node: OnnxNode, opset: int | None) -> bool:
        """Whether a node has a rule or a function."""
        if (node.domain, node.op, node.overload) in self.model.functions:
            return True
        key = node.qualified
        if opset is None:
            return False
        if node.domain in ("", "ai.onnx") and schema_of(node.op, "", opset) is None:
            return False
        if key in RULES or key in CONTROL:
            return True
        if key in REFUSED or node.domain in REFUSED_DOMAINS:
            return False
        versions = (opset, NEWEST_OPSET) if node.domain in ONNX_DOMAINS else (opset,)
        return any(may_have_body(node.op, node.domain, version) for version in versions)


def stored(graph: OnnxGraph) -> dict[str, Constant]:
    """Return the constants of a graph by name."""
    return {name: Constant(name, data, stored=True) for name, data in graph.constants.items()}


def bound(declared: Declared, value: Any) -> Operand:
    """Return what the caller binds to an input as an operand, of the declared type."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return tuple(bound(declared, part) for part in value)
    if isinstance(value, QTensor):
        raise VerifyError(f"input {declared.name}: expected an array, got a QTensor")
    array: Array = np.asarray(value)
    kind = type_of(array)
    if declared.dtype is not None and kind.dtype != declared.dtype:
        raise VerifyError(f"input {declared.name}: expected {declared.dtype}, got {kind.dtype}")
    return Constant(declared.name, array)


def vector_like(found: Any) -> Array:
    """Return an array of lengths as int64 where none is symbolic."""
    if isinstance(found, np.ndarray) and found.dtype == np.bool_:
        return found
    array = np.asarray(found, object)
    if any(isinstance(n, Dim) for n in array.reshape(-1)):
        return array
    return np.asarray(vector(tuple(int(n) for n in array.reshape(-1))).reshape(array.shape))


def _sizes(declared: Declared, given: Sequence[Any]) -> tuple[Size, ...]:
    """Return a shape; an open first length becomes a symbol."""

    def size(n: Any) -> Size:
        if isinstance(n, int | np.integer):
            if n < 0:
                raise VerifyError(f"input {declared.name}: negative length {n}")
            return int(n)
        if n is not None and not isinstance(n, str):
            raise VerifyError(f"input {declared.name}: expected a length or its name, got {n!r}")
        return Dim(n if n is not None and n.isidentifier() else "N")

    if declared.shape is not None and len(declared.shape) != len(given):
        raise VerifyError(
            f"input {declared.name}: expected {len(declared.shape)} lengths, got {len(given)}"
        )
    for own, n in zip(declared.shape or (), given, strict=False):
        if isinstance(own, int) and own != n:
            raise VerifyError(f"input {declared.name}: the model says {_shown(declared.shape)}")
    return tuple(map(size, given))


def _shown(shape: Sequence[Any] | None) -> str:
    if shape is None:
        return "of unknown rank"
    return f"[{', '.join('?' if n is None else str(n) for n in shape)}]"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


__all__ = ["DataDependentError", "from_onnx"]
