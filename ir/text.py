"""The text form of a graph, one line a value: printed, parsed, equal.

Data is not in the text; a digest stands for it, so that equal texts mean equal graphs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.graph import Absent, Attribute, Graph, Node, Origin, Scope, Value
from refquant.ir.module import Module
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.types import DTYPES, Dim, DType, QParams, Shape, TensorType

VERSION = 1
_NAME = re.compile(r"[A-Za-z_][\w.]*")
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<string>"(?:[^"\\]|\\.)*")
    | (?P<name>[A-Za-z_][\w.]*(?:::[\w.]+)?)
    | (?P<number>[-+]?(?:inf\b|\d+(?:\.\d*)?(?:e[-+]?\d+)?))
    | (?P<symbol>[%@!(){}\[\]<>=:,*])
    )""",
    re.VERBOSE,
)


def digest(tensor: Tensor) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the stored values.

    Examples
    --------
    >>> digest(np.zeros(4, np.uint8))
    'df3f619804a92fdb'
    """
    array = tensor.int_repr if isinstance(tensor, QTensor) else tensor
    stored = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return hashlib.sha256(stored.data).hexdigest()[:16]


# ---- printing


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _name(sigil: str, name: str) -> str:
    return sigil + (name if _NAME.fullmatch(name) else _quote(name))


def format_attribute(value: Attribute) -> str:
    """Return the text of an attribute.

    Examples
    --------
    >>> format_attribute((1, 0.5, None, "zeros", Dim("N", 3), DTYPES["quint8"]))
    '(1, 0.5, None, "zeros", 3*N, quint8)'
    """
    if isinstance(value, str):
        return _quote(value)
    if isinstance(value, tuple):
        items = ", ".join(map(format_attribute, value))
        return f"({items},)" if len(value) == 1 else f"({items})"
    if isinstance(value, bool | int | float | DType | Dim) or value is None:
        return str(value)
    raise VerifyError(f"an attribute cannot hold {type(value).__name__}: {value!r}")


def _attributes(attributes: Mapping[str, Attribute]) -> str:
    if not attributes:
        return ""
    pairs = ", ".join(f"{key}={format_attribute(value)}" for key, value in attributes.items())
    return f" {{{pairs}}}"


def _origin(origin: Origin | None) -> str:
    if origin is None:
        return ""
    scope = " ".join(f"{_quote(s.path)}:{_quote(s.type)}" for s in origin.scope)
    parts = (origin.target, origin.node, origin.path)
    return f" from {origin.kind}({', '.join(map(_quote, parts))}, [{scope}])"


def _declared(data: Tensor | Absent) -> str:
    if isinstance(data, Absent):
        return f"{data.type} sha256:{_quote(data.digest)}"
    return f"{type_of(data)} sha256:{_quote(digest(data))}"


def _returns(returns: Any) -> str:
    if isinstance(returns, dict):
        return "{" + ", ".join(f"{_quote(k)}: {_returns(v)}" for k, v in returns.items()) + "}"
    if isinstance(returns, list):
        return "[" + ", ".join(map(_returns, returns)) + "]"
    if isinstance(returns, tuple):
        return "(" + "".join(f"{_returns(part)}, " for part in returns).rstrip() + ")"
    return str(returns)


def format_node(node: Node, parameters: Mapping[str, Any], *, origin: bool = True) -> str:
    """Return one line: results, op, operands, attributes, types and, if asked, the origin."""
    results = ", ".join(_name("%", value.name) for value in node.outputs)
    operands = ", ".join(
        "None" if value is None else _name("@" if value.name in parameters else "%", value.name)
        for value in node.inputs
    )
    types = ", ".join(str(value.type) for value in node.outputs)
    line = f"{results} = {node.op}({operands}){_attributes(node.attributes)} : {types}"
    return line + _origin(node.origin) if origin else line


def format_graph(graph: Graph) -> str:
    """Return the text of a graph; :func:`parse` reads it back."""
    lines = [f"refquant {VERSION}"]
    lines += [
        f"provenance {_quote(key)} = {_quote(text)}" for key, text in graph.provenance.items()
    ]
    lines += [f"input {_name('%', v.name)} : {v.type}" for v in graph.inputs]
    lines += [
        f"parameter {_name('@', name)} : {_declared(data)}"
        for name, data in graph.parameters.items()
    ]
    for path, module in graph.modules.items():
        lines.append(
            f"module {_name('!', path)} : {_quote(module.kind)}{_attributes(module.config)}"
        )
        lines += [
            f"state {_name('!', path)} {_quote(key)} : {_declared(data)}"
            for key, data in module.state.items()
        ]
    lines += [format_node(node, graph.parameters) for node in graph.nodes]
    outputs = ", ".join(
        _name("@" if v.name in graph.parameters else "%", v.name) for v in graph.outputs
    )
    lines.append(f"return ({outputs}) as {_returns(graph.returns)}")
    return "\n".join(lines) + "\n"


# ---- parsing


class _Line:
    """The tokens of one line, consumed from the left."""

    def __init__(self, number: int, text: str) -> None:
        self.line, self.text, self.position = number, text, 0
        self.tokens: list[tuple[str, str]] = []
        end = len(text.rstrip())
        while self.position < end:
            match = _TOKEN.match(text, self.position)
            if match is None:
                raise self.error("a token")
            kind = match.lastgroup or ""
            self.tokens.append((kind, match.group(kind)))
            self.position = match.end()
        self.index = 0

    def error(self, expected: str) -> VerifyError:
        return VerifyError(f"text, line {self.line}: expected {expected} in {self.text[:120]!r}")

    def peek(self) -> str:
        return self.tokens[self.index][1] if self.index < len(self.tokens) else ""

    def next(self, kind: str) -> str:
        if self.index >= len(self.tokens) or self.tokens[self.index][0] != kind:
            raise self.error(f"a {kind}")
        self.index += 1
        return self.tokens[self.index - 1][1]

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.error(repr(text))

    def accept(self, text: str) -> bool:
        found = self.peek() == text
        self.index += found
        return found

    def end(self) -> None:
        if self.index != len(self.tokens):
            raise self.error("the end of the line")

    def string(self) -> str:
        body = self.next("string")[1:-1]
        return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], body)

    def name(self, sigils: str) -> str:
        for sigil in sigils:
            if self.accept(sigil):
                return self.string() if self.peek().startswith('"') else self.next("name")
        raise self.error(" or ".join(sigils))

    def number(self) -> int | float:
        text = self.peek()
        if text in ("nan", "inf"):
            self.index += 1
            return float(text)
        return _number(self.next("number"))

    def attribute(self) -> Attribute:
        kind, text = self.tokens[self.index] if self.index < len(self.tokens) else ("", "")
        if kind == "string":
            return self.string()
        if text == "(":
            return tuple(self.list_of("(", ")", self.attribute))
        if kind == "name" and text not in ("nan", "inf"):
            self.index += 1
            return _WORDS[text] if text in _WORDS else Dim(text)
        value = self.number()
        if isinstance(value, int) and self.accept("*"):
            return Dim(self.next("name"), value)
        return value

    def list_of(self, start: str, stop: str, item: Any) -> list[Any]:
        self.expect(start)
        items: list[Any] = []
        while not self.accept(stop):
            items.append(item())
            if self.peek() != stop:
                self.expect(",")
        return items

    def attributes(self) -> dict[str, Attribute]:
        def pair() -> tuple[str, Attribute]:
            key = self.next("name")
            self.expect("=")
            return key, self.attribute()

        return dict(self.list_of("{", "}", pair)) if self.peek() == "{" else {}

    def type(self) -> TensorType:
        name = self.next("name")
        if name not in DTYPES:
            raise self.error(f"one of the dtypes {', '.join(DTYPES)}")
        qparams = self.qparams() if self.accept("<") else None
        shape: Shape = tuple(self.list_of("[", "]", self.attribute))
        if not all(isinstance(size, int | Dim) for size in shape):
            raise self.error("a shape of whole numbers and symbols")
        return TensorType(DTYPES[name], shape, qparams)

    def qparams(self) -> QParams:
        axis, group = None, None
        if self.accept("axis"):
            self.expect("=")
            axis = int(self.next("number"))
            if self.accept("group"):
                self.expect("=")
                group = int(self.next("number"))
        scales: list[float] = []
        zero_points: list[int | float] = []
        while not self.accept(">"):
            scales.append(float(self.number()))
            self.expect(":")
            zero_points.append(self.number())
        if axis is None:
            if len(scales) != 1 or not isinstance(zero_points[0], int):
                raise self.error("one scale:zero_point")
            return QParams(scales[0], zero_points[0])
        return QParams(tuple(scales), tuple(zero_points), axis, group)

    def declared(self) -> Absent:
        declared_type = self.type()
        self.expect("sha256")
        self.expect(":")
        return Absent(declared_type, self.string())

    def origin(self) -> Origin | None:
        if not self.accept("from"):
            return None
        kind = self.next("name")
        self.expect("(")
        parts = []
        for _ in range(3):
            parts.append(self.string())
            self.expect(",")
        self.expect("[")
        scope = []
        while not self.accept("]"):
            path = self.string()
            self.expect(":")
            scope.append(Scope(path, self.string()))
        self.expect(")")
        target, node, path = parts
        return Origin(kind, target, node, path, tuple(scope))

    def returns(self) -> Any:
        if self.peek() == "{":

            def pair() -> tuple[str, Any]:
                key = self.string()
                self.expect(":")
                return key, self.returns()

            return dict(self.list_of("{", "}", pair))
        if self.peek() == "[":
            return self.list_of("[", "]", self.returns)
        if self.peek() == "(":
            return tuple(self.list_of("(", ")", self.returns))
        return None if self.accept("None") else int(self.next("number"))


_WORDS: dict[str, Attribute] = {"None": None, "True": True, "False": False, **DTYPES}
RESERVED = frozenset({*_WORDS, "nan", "inf"})
"""Names that a symbolic length cannot have."""


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _check_version(line: _Line) -> None:
    line.expect("refquant")
    version = line.next("number")
    if version != str(VERSION):
        raise VerifyError(f"text: version {version} is not known; this refquant reads {VERSION}")


def parse(text: str, tensors: Mapping[str, Tensor] | None = None) -> Graph:
    """Read the text form of a graph.

    Parameters
    ----------
    text : str
        What ``str(graph)`` gave.
    tensors : mapping, optional
        Data of the parameters by name and of module states as ``path/key``. Without it the graph
        is equal to the one printed but holds no data, so it cannot run.

    Raises
    ------
    VerifyError
        Naming the line, if the text is not well formed or data does not have its digest.
    """
    graph = Graph()
    values: dict[str, Value] = {}
    lines = [_Line(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise VerifyError("text: empty; expected 'refquant 1' on the first line")
    _check_version(lines[0])

    def define(line: _Line, name: str, value_type: TensorType) -> Value:
        if name in values:
            raise line.error(f"a new name, {name} is defined twice")
        values[name] = Value(name, value_type)
        return values[name]

    def operand(line: _Line) -> Value | None:
        if line.accept("None"):
            return None
        name = line.name("%@")
        if name not in values:
            raise line.error(f"a value that is defined, {name} is not")
        return values[name]

    def data(line: _Line, key: str) -> Any:
        absent = line.declared()
        if tensors is None or key not in tensors:
            return absent
        tensor = tensors[key]
        if digest(tensor) != absent.digest or type_of(tensor) != absent.type:
            raise VerifyError(f"{key}: the data is not what the text declares (altered?)")
        return tensor

    for line in lines[1:]:
        if line.accept("provenance"):
            key = line.string()
            line.expect("=")
            graph.provenance[key] = line.string()
        elif line.accept("input"):
            name = line.name("%")
            line.expect(":")
            graph.inputs.append(define(line, name, line.type()))
        elif line.accept("parameter"):
            name = line.name("@")
            line.expect(":")
            tensor = data(line, name)
            graph.parameters[name] = tensor
            define(line, name, tensor.type if isinstance(tensor, Absent) else type_of(tensor))
        elif line.accept("module"):
            path = line.name("!")
            line.expect(":")
            graph.modules[path] = Module(line.string(), line.attributes())
        elif line.accept("state"):
            path = line.name("!")
            key = line.string()
            line.expect(":")
            if path not in graph.modules:
                raise line.error(f"a module that is declared, {path} is not")
            graph.modules[path].state[key] = data(line, f"{path}/{key}")
        elif line.accept("return"):
            outputs = line.list_of("(", ")", lambda line=line: operand(line))
            graph.outputs = tuple(v for v in outputs if v is not None)
            line.expect("as")
            graph.returns = line.returns()
        else:
            names = [line.name("%")]
            while line.accept(","):
                names.append(line.name("%"))
            line.expect("=")
            op = line.next("name")
            inputs = tuple(line.list_of("(", ")", lambda line=line: operand(line)))
            attributes = line.attributes()
            line.expect(":")
            types = [line.type()]
            while line.accept(","):
                types.append(line.type())
            if len(types) != len(names):
                raise line.error(f"{len(names)} types")
            origin = line.origin()
            results = tuple(define(line, n, t) for n, t in zip(names, types, strict=True))
            graph.nodes.append(Node(op, inputs, attributes, results, origin))
        line.end()
    return graph
