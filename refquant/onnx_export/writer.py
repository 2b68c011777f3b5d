"""Collecting ONNX nodes and constants for a graph, and what they promise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from refquant.importers.onnx_file import code_of
from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Graph, Node, Value
from refquant.ir.qtensor import QTensor, Tensor
from refquant.ir.types import Dim, DType, QParams, TensorType, bfloat16, float32, int32, qint32

Array = npt.NDArray[Any]
MICROSOFT = "com.microsoft"
# The opset of the file: the oldest that onnx.reference also runs.
OPSET = 19
IR_VERSION = 9
# What integers of a quantized value are stored as.
_HALVES = {bfloat16: float32}


class Promise(NamedTuple):
    """What an ONNX runtime is bound to compute for one node.

    Parameters
    ----------
    node, op : str
        Our node and its operation.
    written : str
        The ONNX operators it became.
    exact : bool
        Whether every runtime that keeps to the standard gives our bits.
    why : str
        The reason.
    """

    node: str
    op: str
    written: str
    exact: bool
    why: str


class Contract(tuple[Promise, ...]):
    """The numerics of an exported file, node by node.

    Printed, it is a table of what may differ and a count of what may not.
    """

    __slots__ = ()

    @property
    def inexact(self) -> tuple[Promise, ...]:
        """The nodes that a runtime may compute otherwise."""
        return tuple(promise for promise in self if not promise.exact)

    def __str__(self) -> str:
        rows = [f"{len(self) - len(self.inexact)} of {len(self)} nodes are reproduced bit for bit"]
        rows += [f"{p.node} ({p.op} as {p.written}) may differ: {p.why}" for p in self.inexact]
        return "\n".join(rows)


class Writer:
    """An ONNX graph that grows with the nodes of ours.

    Attributes
    ----------
    graph : Graph
        What is written.
    qoperator : bool
        Whether quantized operators are written as operators on integers; else each stands
        between a DequantizeLinear and a QuantizeLinear.
    """

    def __init__(self, graph: Graph, *, qoperator: bool) -> None:
        self.graph = graph
        self.qoperator = qoperator
        self.target = graph.target
        self.types = {name: value.type for name, value in graph.values().items()}
        self.promises: list[Promise] = []
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._known: dict[Any, str] = {}
        self._names = {value.name: value.name for value in graph.inputs}
        # Constants that are computed from constants, such as a weight that is quantized.
        self._folded: dict[str, Tensor] = {}
        self._count = 0

    # ---- operands

    def data(self, value: Value | None) -> Tensor | None:
        """Return a constant's data; None for a value that is computed."""
        if value is None:
            return None
        if value.name in self._folded:
            return self._folded[value.name]
        return self.graph.parameter(value.name) if value.name in self.graph.parameters else None

    def fold(self, value: Value, data: Tensor) -> None:
        """Let a value be a constant."""
        self._folded[value.name] = data

    def operand(self, value: Value | None) -> str:
        """Return the ONNX name of a value, of its integers where it is quantized."""
        if value is None:
            return ""
        data = self.data(value)
        if data is not None:
            stored = data.int_repr if isinstance(data, QTensor) else data
            return self.constant(stored, value.name)
        return self._names[value.name]

    def constant(self, array: Any, hint: str = "constant") -> str:
        """Add a constant, or return the name of an equal one."""
        array = np.asarray(array, order="C")
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = name = self.fresh(hint)
            self._constants[name] = numpy_helper.from_array(array, name)
        return self._known[key]

    def fresh(self, hint: str) -> str:
        """Return a name that nothing has."""
        taken = self._constants.keys() | self.types.keys()
        name = hint
        while name in taken or name in self._known.values():
            self._count += 1
            name = f"{hint}.{self._count}"
        return name

    def qparams(self, kind: TensorType) -> list[str]:
        """Return constants for scale and zero point."""
        found = kind.qparams
        if found is None:
            raise UnsupportedError(f"scale and zero point of {kind} are chosen when it runs")
        return [
            self.constant(np.asarray(found.scale, np.float32), "scale"),
            self.constant(np.asarray(found.zero_point, kind.dtype.storage), "zero_point"),
        ]

    # ---- nodes

    def add(self, op: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one result; return its name."""
        return self.add_all(op, inputs, 1, domain=domain, **attributes)[0]

    def add_all(
        self, op: str, inputs: Sequence[str], count: int, *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node; return the names of its results."""
        self._count += 1
        names = [f"{op}_{self._count}.{i}" for i in range(count)]
        given = {key: value for key, value in attributes.items() if value is not None}
        last = list(inputs)
        while last and not last[-1]:
            last.pop()
        self._nodes.append(helper.make_node(op, last, names, domain=domain, **given))
        return names

    def cast(self, x: str, dtype: DType) -> str:
        """Add a Cast."""
        return self.add("Cast", x, to=code_of(dtype))

    def dequantize(self, x: str, kind: TensorType) -> str:
        """Return the real values of quantized ones."""
        axis = kind.qparams.axis if kind.qparams else None
        return self.add("DequantizeLinear", x, *self.qparams(kind), axis=axis)

    def quantize(self, x: str, kind: TensorType) -> str:
        """Return real values as integers."""
        if kind.dtype == qint32:
            raise UnsupportedError("QuantizeLinear gives no int32")
        axis = kind.qparams.axis if kind.qparams else None
        return self.add("QuantizeLinear", x, *self.qparams(kind), axis=axis)

    def real(self, value: Value | None) -> str:
        """Return the name of a value's real numbers."""
        if value is None:
            return ""
        name = self.operand(value)
        data = self.data(value)
        # A constant knows the scale that its type leaves open.
        kind = data.type if isinstance(data, QTensor) else value.type
        return self.dequantize(name, kind) if kind.dtype.is_quantized else name

    def real_value(self, value: Value) -> Value:
        """Return a quantized value's real numbers as a value."""
        kind = TensorType(float32, value.type.shape)
        made = Value(f"{value.name}:real", kind)
        self._names[made.name] = self.real(value)
        return made

    def shape(self, sizes: Sequence[Any]) -> str:
        """Return lengths as a constant; -1 for one that depends on the batch."""
        known = [-1 if isinstance(n, Dim) else int(n) for n in sizes]
        if known.count(-1) > 1:
            raise UnsupportedError(f"a shape with two open lengths: {sizes}")
        return self.constant(np.array(known, np.int64), "shape")

    def shape_of_run(self, sizes: Sequence[Any]) -> str:
        """Return lengths as a tensor that knows the batch of the run."""
        if not any(isinstance(n, Dim) for n in sizes):
            return self.shape(sizes)
        parts = [
            self._length(n) if isinstance(n, Dim) else self.constant(np.array([n], np.int64))
            for n in sizes
        ]
        return self.add("Concat", *parts, axis=0)

    def _length(self, wanted: Dim) -> str:
        """Return a symbolic length, read off an input."""
        for value in self.graph.inputs:
            for axis, size in enumerate(value.type.shape):
                if isinstance(size, Dim) and size.symbol == wanted.symbol:
                    shape = self.add("Shape", self._names[value.name])
                    place = self.constant(np.array([axis], np.int64))
                    length = self.add("Gather", shape, place, axis=0)
                    if size.factor == wanted.factor:
                        return length
                    own, factor = (
                        self.constant(np.array([d.factor], np.int64)) for d in (size, wanted)
                    )
                    return self.add("Mul", self.add("Div", length, own), factor)
        raise UnsupportedError(f"no input has the length {wanted.symbol}")

    # ---- the whole

    def define(self, node: Node, names: Sequence[str], *, exact: bool, why: str) -> None:
        """Let results be those of a node, under its names where they are new."""
        first = self._first
        made = {output for proto in self._nodes[first:] for output in proto.output}
        for value, name in zip(node.outputs, names, strict=True):
            if name in made:
                self._rename(name, value.name, first)
                name = value.name
            self._names[value.name] = name
        written = " ".join(proto.op_type for proto in self._nodes[first:]) or "nothing"
        self.promises.append(Promise(node.name, node.op, written, exact, why))

    def pretend(self, node: Node) -> None:
        """Let the results of a node that cannot be written have names, to look further."""
        self._names.update({value.name: value.name for value in node.outputs})

    def begin(self) -> None:
        """Start the nodes of one of our nodes."""
        self._first = len(self._nodes)

    def _rename(self, old: str, new: str, first: int) -> None:
        for proto in self._nodes[first:]:
            proto.output[:] = [new if name == old else name for name in proto.output]
            proto.input[:] = [new if name == old else name for name in proto.input]

    def model(self) -> Any:
        """Return the model."""
        outputs: list[Any] = []
        for index, value in enumerate(self.graph.outputs):
            name = self.operand(value)
            if name in {output.name for output in outputs} or name not in self.types:
                fresh = self.fresh(f"output_{index}")
                self._nodes.append(helper.make_node("Identity", [name], [fresh]))
                name = fresh
            outputs.append(_info(name, value.type))
        inputs = [_info(value.name, value.type) for value in self.graph.inputs]
        kept = self._used()
        made = helper.make_graph(
            self._nodes, "refquant", inputs, outputs, [self._constants[name] for name in kept]
        )
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            opsets.append(helper.make_opsetid(MICROSOFT, 1))
        model = helper.make_model(
            made, producer_name="refquant", opset_imports=opsets, ir_version=IR_VERSION
        )
        helper.set_model_props(model, {"target": str(self.target), **self._qparams()})
        return model

    def _used(self) -> list[str]:
        named = {name for node in self._nodes for name in node.input}
        return [name for name in self._constants if name in named]

    def _qparams(self) -> dict[str, str]:
        """Return scale and zero point of quantized inputs and outputs, for whoever feeds them."""
        ends = (*self.graph.inputs, *self.graph.outputs)
        return {v.name: _spelled(v.type.qparams) for v in ends if v.type.qparams is not None}


def _spelled(qparams: QParams) -> str:
    return f"scale={qparams.scale!r} zero_point={qparams.zero_point!r}"


def _info(name: str, kind: TensorType) -> Any:
    stored = int32 if kind.dtype == qint32 else kind.dtype
    shape = [str(n) if isinstance(n, Dim) else n for n in kind.shape]
    return helper.make_tensor_value_info(name, code_of(_HALVES.get(stored, stored)), shape)


def check(model: Any) -> None:
    """Run onnx's checker; what it finds is a mistake of ours."""
    onnx.checker.check_model(model, full_check=True)
