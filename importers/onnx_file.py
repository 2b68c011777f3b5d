"""Reading ONNX files: protobuf into plain records. No other file of the importer imports onnx."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import defs, helper, numpy_helper

from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError
from refquant.ir.types import DType, TensorType, dtype_of

Array = npt.NDArray[Any]

# Of one tensor: a larger one is refused before memory is taken.
MOST_BYTES = 2**31
# Of functions and subgraphs within each other.
MOST_DEPTH = 64
LEAST_OPSET = 7
NEWEST_OPSET = defs.onnx_opset_version()
# Domains by the names that models use; the empty one is ONNX's own.
ONNX_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Declared:
    """An input or output as a file declares it.

    Parameters
    ----------
    name : str
    kind : str
        ``tensor``, or what it is instead: ``sequence``, ``optional``, ...
    dtype : DType or None
        None where the file does not say.
    shape : tuple of int, str or None; or None
        Lengths, their symbols, and None for a length without either; None for a rank that is
        not said.
    """

    name: str
    kind: str
    dtype: DType | None
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Reference:
    """An attribute of a function's node that is an attribute of the function."""

    name: str


@dataclass(frozen=True)
class OnnxNode:
    """One node; attributes are Python values, arrays and graphs, defaults included."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    overload: str = ""

    @property
    def label(self) -> str:
        """Name for messages: the node's own, or that of its first result."""
        return self.name or next(filter(None, self.outputs), "") or self.op

    @property
    def qualified(self) -> str:
        """Operator with its domain, as the tables of rules name it."""
        return self.op if self.domain in ONNX_DOMAINS else f"{self.domain}.{self.op}"


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes with the constants and the names around them."""

    name: str
    inputs: tuple[Declared, ...]
    outputs: tuple[Declared, ...]
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Array]
    proto: Any = field(default=None, compare=False, repr=False)  # as it was read


@dataclass(frozen=True)
class OnnxFunction:
    """A function: nodes over formal inputs, outputs and attributes."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    nodes: tuple[OnnxNode, ...]
    opsets: Mapping[str, int]


@dataclass(frozen=True)
class OnnxModel:
    """A model file."""

    graph: OnnxGraph
    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str, str], OnnxFunction] = field(default_factory=dict)
    producer: str = ""


def read(model: Any) -> OnnxModel:
    """Read a model.

    Parameters
    ----------
    model : path, bytes or onnx.ModelProto
        Tensors in files beside it may only lie in the model's folder or below.

    Raises
    ------
    VerifyError
        If it is not an ONNX model, or breaks a rule of the format.
    UnsupportedError
        If it needs a newer opset than the installed onnx package knows, one before 7, or an
        element type without numbers.
    """
    folder: Path | None = None
    where = "model"
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        where, folder = str(path), path.parent
        try:
            model = path.read_bytes()
        except (OSError, ValueError) as error:  # a ValueError: the path holds a zero byte
            reason = getattr(error, "strerror", None) or error
            raise VerifyError(f"{path}: {reason}") from None
    if isinstance(model, bytes | bytearray):
        parsed = onnx.ModelProto()
        try:
            parsed.ParseFromString(bytes(model))
        except DecodeError:
            raise VerifyError(f"{where}: not an ONNX model (no protobuf message)") from None
        model = parsed
    if not isinstance(model, onnx.ModelProto):
        raise VerifyError(
            f"from_onnx: expected a path, bytes or an onnx.ModelProto, got {type(model).__name__}"
        )
    try:
        return _Reader(folder).model(model)
    except RefquantError as error:
        raise type(error)(f"{where}: {error}") from None
    except UnicodeDecodeError:
        raise VerifyError(f"{where}: not an ONNX model (a name is not text)") from None


class _Reader:
    """Converts messages; knows the folder of external tensors."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.depth = 0

    def model(self, proto: onnx.ModelProto) -> OnnxModel:
        if not proto.HasField("graph"):
            raise VerifyError("not an ONNX model (it has no graph)")
        opsets = _opsets(proto.opset_import)
        if not opsets:
            raise VerifyError("the model imports no opset")
        functions = {
            (_text(f.domain), _text(f.name), _text(f.overload)): self.function(f, opsets)
            for f in proto.functions
        }
        graph = self.graph(proto.graph)
        producer = f"{_text(proto.producer_name)} {_text(proto.producer_version)}".strip()
        return OnnxModel(graph, opsets, functions, producer)

    def function(
        self, proto: onnx.FunctionProto, opsets: Mapping[str, int] | None = None
    ) -> OnnxFunction:
        attributes: dict[str, Any] = dict.fromkeys(map(_text, proto.attribute))
        attributes |= {a.name: self.attribute(a) for a in proto.attribute_proto}
        own = {**(opsets or {}), **_opsets(proto.opset_import)}
        nodes = tuple(map(self.node, proto.node))
        names = _texts(proto.input), _texts(proto.output)
        return OnnxFunction(*names, attributes, nodes, own)

    def graph(self, proto: onnx.GraphProto) -> OnnxGraph:
        if self.depth > MOST_DEPTH:
            raise VerifyError(f"subgraphs more than {MOST_DEPTH} deep")
        self.depth += 1
        constants = {_text(t.name): self.tensor(t) for t in proto.initializer}
        for sparse in proto.sparse_initializer:
            constants[_text(sparse.values.name)] = self.sparse(sparse)
        nodes = tuple(map(self.node, proto.node))
        self.depth -= 1
        ends = tuple(map(_declared, proto.input)), tuple(map(_declared, proto.output))
        results = [*(x.name for x in ends[0]), *(name for node in nodes for name in node.outputs)]
        stored = [_text(t.name) for t in proto.initializer]
        for names, what in ((results, "input or result"), (stored, "initialiser")):
            twice = [name for name, count in Counter(names).items() if name and count > 1]
            if twice:
                raise VerifyError(f"{what} {twice[0]!r} is defined twice")
        return OnnxGraph(_text(proto.name), *ends, nodes, constants, proto)

    def node(self, proto: onnx.NodeProto) -> OnnxNode:
        names = _texts(proto.input), _texts(proto.output)
        op, domain, name = _text(proto.op_type), _text(proto.domain), _text(proto.name)
        bare = OnnxNode(op, domain, name, *names, {}, _text(proto.overload))
        try:
            attributes = {_text(a.name): self.attribute(a) for a in proto.attribute}
        except RefquantError as error:
            if self.depth > 1 and str(error).startswith("node "):
                raise
            raise type(error)(f"node {bare.label} ({bare.qualified}): {error}") from None
        return replace(bare, attributes=attributes)

    def attribute(self, proto: onnx.AttributeProto) -> Any:
        if proto.ref_attr_name:
            return Reference(_text(proto.ref_attr_name))
        kinds = onnx.AttributeProto
        match proto.type:
            case kinds.FLOAT:
                return float(proto.f)
            case kinds.INT:
                return int(proto.i)
            case kinds.STRING:
                return proto.s.decode()
            case kinds.TENSOR:
                return self.tensor(proto.t)
            case kinds.GRAPH:
                return self.graph(proto.g)
            case kinds.SPARSE_TENSOR:
                return self.sparse(proto.sparse_tensor)
            case kinds.FLOATS:
                return tuple(map(float, proto.floats))
            case kinds.INTS:
                return tuple(map(int, proto.ints))
            case kinds.STRINGS:
                return tuple(text.decode() for text in proto.strings)
            case kinds.TENSORS:
                return tuple(map(self.tensor, proto.tensors))
            case kinds.GRAPHS:
                return tuple(map(self.graph, proto.graphs))
            case kinds.TYPE_PROTO:
                return _declared(onnx.ValueInfoProto(type=proto.tp))
        raise VerifyError(f"attribute {proto.name!r} has a type that is not known: {proto.type}")

    def tensor(self, proto: onnx.TensorProto) -> Array:
        """Return the array, after a look at what it declares: nothing large is made in vain."""
        name = _text(proto.name) or "constant"
        shape = tuple(proto.dims)
        kind = element_type(proto.data_type, f"tensor {name}")
        if any(n < 0 for n in shape):
            raise VerifyError(f"tensor {name}: negative length in shape {shape}")
        size = prod(shape) * kind.storage.itemsize
        if size > MOST_BYTES:
            raise UnsupportedError(f"tensor {name}: {shape} takes {size} bytes, more than 2 GiB")
        if proto.data_location == onnx.TensorProto.EXTERNAL:
            proto = self.external(proto, name)
        if prod(n for n in shape if n) > MOST_BYTES:
            raise UnsupportedError(f"tensor {name}: lengths {shape} are too large")
        try:
            array = np.asarray(numpy_helper.to_array(proto))
        except (ValueError, TypeError, KeyError, OverflowError, IndexError) as error:
            reason = str(error).split("\n")[0]
            raise VerifyError(
                f"tensor {name}: {shape} of {kind} holds other data: {reason}"
            ) from None
        if array.dtype != kind.storage or array.shape != shape:
            raise VerifyError(
                f"tensor {name}: declared {shape} of {kind}, holds {array.shape} of {array.dtype}"
            )
        return array

    def external(self, proto: onnx.TensorProto, name: str) -> onnx.TensorProto:
        """Return the tensor with the bytes of its file, which must lie in the model's folder."""
        entries = {_text(entry.key): _text(entry.value) for entry in proto.external_data}
        location = entries.get("location", "")
        if self.folder is None:
            raise UnsupportedError(
                f"tensor {name}: its data is in the file {location!r}; give the model's path"
            )
        folder = self.folder.resolve()
        try:
            path = (folder / location).resolve()
            inside = bool(location) and path.is_relative_to(folder) and path.is_file()
        except (
            OSError,
            ValueError,
            RuntimeError,
        ):  # a name too long, a zero byte, a loop of links
            inside = False
        if not inside:
            raise VerifyError(f"tensor {name}: no file {location!r} in the model's folder")
        try:
            offset, length = (int(entries.get(key, 0)) for key in ("offset", "length"))
        except ValueError:
            raise VerifyError(f"tensor {name}: offset and length must be whole numbers") from None
        available = path.stat().st_size - offset
        length = length or available
        if offset < 0 or length < 0 or length > available:
            raise VerifyError(
                f"tensor {name}: {length} bytes at {offset} are outside the file {location!r}"
            )
        if length > MOST_BYTES:
            raise UnsupportedError(f"tensor {name}: {length} bytes, more than 2 GiB")
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(length)
        except OSError as error:
            raise VerifyError(f"tensor {name}: {location!r}: {error.strerror}") from None
        return onnx.TensorProto(
            name=proto.name, data_type=proto.data_type, dims=proto.dims, raw_data=data
        )

    def sparse(self, proto: onnx.SparseTensorProto) -> Array:
        """Return a sparse tensor with its zeros."""
        values, indices = self.tensor(proto.values), self.tensor(proto.indices)
        name, shape = _text(proto.values.name) or "sparse constant", tuple(proto.dims)
        size = prod(shape)
        if any(n < 0 for n in shape) or size * values.itemsize > MOST_BYTES:
            raise UnsupportedError(f"tensor {name}: shape {shape} is not one of up to 2 GiB")
        if indices.ndim == 2:
            columns = indices.T
            inside = len(columns) == len(shape) and all(
                np.all((i >= 0) & (i < n)) for i, n in zip(columns, shape, strict=False)
            )
            flat = np.ravel_multi_index(tuple(columns), shape) if inside else np.array([size])
        else:
            flat = indices
        if flat.shape != values.shape or np.any((flat < 0) | (flat >= size)):
            raise VerifyError(f"tensor {name}: indices do not fit the shape {shape}")
        whole = np.zeros(size, values.dtype)
        whole[flat] = values
        return whole.reshape(shape)


def _text(value: str | bytes) -> str:
    """Return a text; protobuf gives the bytes of one that is not UTF-8, which is an error."""
    return value.decode() if isinstance(value, bytes) else value


def _texts(values: Iterable[str | bytes]) -> tuple[str, ...]:
    return tuple(map(_text, values))


def tensor(proto: onnx.TensorProto) -> Array:
    """Return the array of a tensor that holds its data itself."""
    return _Reader(None).tensor(proto)


def element_type(code: int, where: str) -> DType:
    """Return the element type of ONNX's number for it."""
    try:
        return dtype_of(np.empty(0, helper.tensor_dtype_to_np_dtype(code)))
    except (KeyError, VerifyError):
        known = {number: name for name, number in onnx.TensorProto.DataType.items()}
        name = known.get(code, str(code)).lower()
        raise UnsupportedError(f"{where}: element type {name} is not supported") from None


def code_of(dtype: DType) -> int:
    """Return ONNX's number of an element type."""
    return int(helper.np_dtype_to_tensor_dtype(dtype.storage))


def _declared(proto: onnx.ValueInfoProto) -> Declared:
    kind, name = proto.type.WhichOneof("value") or "unknown", _text(proto.name)
    if kind != "tensor_type":
        return Declared(name, kind.removesuffix("_type"), None, None)
    tensor = proto.type.tensor_type
    dtype = element_type(tensor.elem_type, name) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Declared(name, "tensor", dtype, None)

    def length(dim: Any) -> int | str | None:
        if dim.HasField("dim_value"):
            return int(dim.dim_value) if dim.dim_value >= 0 else None
        return _text(dim.dim_param) or None

    return Declared(name, "tensor", dtype, tuple(map(length, tensor.shape.dim)))


def _opsets(imports: Any) -> dict[str, int]:
    opsets = {_text(entry.domain): int(entry.version) for entry in imports}
    if "ai.onnx" in opsets:
        opsets[""] = opsets.pop("ai.onnx")
    for domain, version in opsets.items():
        if domain and not 0 < version < 2**31:
            raise UnsupportedError(f"version {version} of domain {domain!r} is not supported")
    own = opsets.get("")
    if own is not None and not LEAST_OPSET <= own <= NEWEST_OPSET:
        known = f"{LEAST_OPSET} to {NEWEST_OPSET}"
        raise UnsupportedError(f"opset {own} is not supported; the installed onnx knows {known}")
    return opsets


# ---- what the standard says of an operator


@dataclass(frozen=True)
class Schema:
    """Facts of one version of an operator."""

    since: int
    defaults: Mapping[str, Any]
    required: tuple[str, ...]
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    types: tuple[frozenset[str], ...]
    single: tuple[bool, ...]  # of each operand, whether it can neither be absent nor repeat
    attributes: frozenset[str]
    deprecated: bool


@cache
def schema_of(op: str, domain: str, opset: int) -> Schema | None:
    """Return what the standard says of an operator in an opset; None if it is not there."""
    try:
        found = defs.get_schema(op, opset, "" if domain in ONNX_DOMAINS else domain)
    except defs.SchemaError:
        return None
    read_attribute = _Reader(None).attribute
    given = {n: a for n, a in found.attributes.items() if a.default_value.type}
    return Schema(
        found.since_version,
        {name: read_attribute(a.default_value) for name, a in given.items()},
        tuple(name for name, a in found.attributes.items() if a.required),
        (found.min_input, found.max_input),
        (found.min_output, found.max_output),
        tuple(frozenset(formal.types) for formal in found.inputs),
        tuple(x.option == defs.OpSchema.FormalParameterOption.Single for x in found.inputs),
        frozenset(found.attributes),
        found.deprecated,
    )


def body_of(
    node: OnnxNode, opset: int, types: tuple[TensorType | None, ...]
) -> OnnxFunction | None:
    """Return the function by which the standard defines an operator; None if it has none."""
    domain = "" if node.domain in ONNX_DOMAINS else node.domain
    try:
        schema = defs.get_schema(node.op, opset, domain)
    except defs.SchemaError:
        return None
    versions = [v for v in schema.function_opset_versions if v <= opset]
    if versions:
        made = schema.get_function_with_opset_version(max(versions))
        body = onnx.FunctionProto.FromString(made)
    else:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= opset]
        if not versions:
            return None
        proto = _node_proto(node)
        given = [_type_proto(kind).SerializeToString() for kind in types]
        made = schema.get_context_dependent_function_with_opset_version(
            max(versions), proto.SerializeToString(), given
        )
        if not made:
            return None
        body = onnx.FunctionProto.FromString(made)
    return _Reader(None).function(body)


@cache
def may_have_body(op: str, domain: str, opset: int) -> bool:
    """Whether the standard defines an operator by a function, for some operands at least."""
    try:
        schema = defs.get_schema(op, opset, "" if domain in ONNX_DOMAINS else domain)
    except defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _node_proto(node: OnnxNode) -> onnx.NodeProto:
    def proto(value: Any) -> Any:
        if isinstance(value, OnnxGraph):
            return value.proto
        return numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value

    attributes = {
        name: proto(value)
        for name, value in node.attributes.items()
        if value is not None and not isinstance(value, Declared)
    }
    return helper.make_node(
        node.op, node.inputs, node.outputs, node.name, domain=node.domain, **attributes
    )


def _type_proto(kind: TensorType | None) -> onnx.TypeProto:
    if kind is None:
        return onnx.TypeProto()
    shape = [size if isinstance(size, int) else str(size) for size in kind.shape]
    return helper.make_tensor_type_proto(code_of(kind.dtype), shape)
