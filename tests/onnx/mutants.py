"""Damaged ONNX models, each made from a real one and a number that is its seed.

In the bytes: flip, overwrite, delete, insert, repeat, truncate, and splice of two files; half of
the places lie outside the weights, which are most of a file. In the graph: operands and results
dropped, swapped, repeated, renamed and rewired (also into cycles); nodes dropped, repeated and
exchanged; operators, domains and opsets changed; attributes dropped, renamed, retyped, and given
negative, huge and empty values; initialisers dropped, reshaped, retyped, cut and overwritten;
inputs and outputs dropped, repeated, renamed, reshaped and retyped. Nodes of subgraphs and
functions are damaged like all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from quantized_digits import DATA, WAYS, quantized

CONTROL = """
<ir_version: 10, opset_import: ["" : 18, "own" : 1]>
control (float[2, 3] x) => (y, rows, last) {
    count = Constant <value_int = 3> ()
    yes = Constant <value_int = 1> ()
    go = Cast <to = 9> (yes)
    start = Constant <value_floats = [0.0, 1.0, 2.0]> ()
    sum, rows = Loop <body = turn (int64 i, bool c, float[M] s) => (d, t, r)
        { d = Identity (c) t = Add (s, start) r = Mul (t, t) }> (count, go, start)
    last, seen = Scan <num_scan_inputs = 1, body = step (float[3] a, float[3] b) => (e, f)
        { e = Add (a, b) f = Neg (e) }> (sum, x)
    z = If <then_branch = one () => (p) { p = own.scaled <alpha = 2.0> (x, sum) },
            else_branch = two () => (q) { q = Relu (x) }> (go)
    y = Softmax <axis = -1> (z)
}
<domain: "own", opset_import: ["" : 18]>
scaled <alpha> (u, v) => (w) { k = Constant <value_float: float = @alpha> () m = Mul (u, k)
    w = Add (m, v) }
"""


class Source(NamedTuple):
    """A model that is damaged, and what the importer is told."""

    name: str
    data: bytes
    shapes: dict[str, Any]
    constants: dict[str, Any]
    places: Any  # outside the weights


# Installed models by package, file, shapes and constants.
_VOICE = {"input": (1, 576), "state": (2, 1, 128)}
_RATE = {"sr": np.array(16_000, np.int64)}
_INSTALLED: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("silero_vad", "data/silero_vad.onnx", _VOICE, _RATE),
    ("silero_vad", "data/silero_vad_16k_op15.onnx", _VOICE, _RATE),
    ("magika", "models/standard_v3_3/model.onnx", {}, {}),
]


def sources(folder: Path) -> list[Source]:
    """Return the models; one that is not installed is left out."""
    found = [_source("control", onnx.parser.parse_model(CONTROL).SerializeToString())]
    found += [_source(p.name, p.read_bytes()) for p in sorted(DATA.glob("digits_*.onnx"))]
    chosen = {"cnn-qdq-u8s8-channel", "cnn-qoperator-s8s8-tensor", "mlp-qoperator-u8u8-tensor"}
    chosen |= {"mlp-dynamic-u8u8-tensor", "mlp-qdq-s8s8-tensor"}
    for way in WAYS:
        if str(way) in chosen:
            found.append(_source(str(way), quantized(way, folder).read_bytes()))
    for package, file, shapes, constants in _INSTALLED:
        spec = find_spec(package)
        if spec and spec.submodule_search_locations:
            path = Path(spec.submodule_search_locations[0]) / file
            found.append(_source(path.name, path.read_bytes(), shapes, constants))
    return found


def _source(name: str, data: bytes, shapes: Any = None, constants: Any = None) -> Source:
    outside = np.ones(len(data), bool)
    for graph in graphs(onnx.ModelProto.FromString(data)):
        constant = [a.t for node in graph.node for a in node.attribute if a.HasField("t")]
        for tensor in (*getattr(graph, "initializer", ()), *constant):
            at = data.find(tensor.raw_data) if len(tensor.raw_data) > 64 else -1
            if at >= 0:
                outside[at : at + len(tensor.raw_data)] = False
    return Source(name, data, shapes or {}, constants or {}, np.flatnonzero(outside))


def mutant(known: list[Source], seed: int) -> tuple[Source, str, bytes]:
    """Return the source of a mutant, what was done, and its bytes."""
    rng = np.random.default_rng(seed)
    # The small ones more often: they take less time.
    weights = np.array([1.0 if len(source.data) < 2**18 else 0.4 for source in known])
    source = known[rng.choice(len(known), p=weights / weights.sum())]
    if rng.random() < 0.25:
        other = known[rng.integers(len(known))]
        return source, *damaged_bytes(rng, source, other)
    model = onnx.ModelProto.FromString(source.data)
    done = []
    for _ in range(rng.choice([1, 2, 4], p=[0.7, 0.2, 0.1])):
        change = CHANGES[rng.integers(len(CHANGES))]
        change(rng, model)
        done.append(change.__name__.strip("_"))
    return source, " ".join(done), model.SerializeToString()


# ---- bytes


def damaged_bytes(rng: Any, source: Source, other: Source) -> tuple[str, bytes]:
    """Return what was done and the damaged bytes."""
    data = bytearray(source.data)
    done = []
    for _ in range(rng.choice([1, 2, 6], p=[0.6, 0.2, 0.2])):
        places = source.places if rng.random() < 0.7 else range(len(source.data))
        at = min(int(places[rng.integers(len(places))]), len(data))
        length = int(2 ** rng.uniform(0, 7))
        kind = rng.choice(["flip", "set", "delete", "insert", "repeat", "splice", "truncate"])
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == "set" and at < len(data):
            data[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == "delete":
            del data[at : at + length]
        elif kind == "insert":
            data[at:at] = rng.bytes(length)
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "splice":
            start = int(rng.integers(len(other.data)))
            data[at : at + length] = other.data[start : start + length]
        elif rng.random() < 0.2:
            del data[at:]
        done.append(str(kind))
    return "bytes " + " ".join(done), bytes(data)


# ---- the graph

NUMBERS = [0, 1, -1, 2, 3, -2, 5, 7, 64, 1000, -1000, 2**16, 2**31 - 1, 2**31, -(2**31)]
NUMBERS += [2**32, 2**40, 2**62, 2**63 - 1, -(2**63), -(2**62)]
FLOATS = [0.0, -0.0, 1.0, -1.0, 1e-45, 1e30, -1e30, 3e38, float("inf"), float("nan"), 0.5]
WORDS = ["", "SAME_UPPER", "NOTSET", "linear", "reverse", "Tanh", "nearest", "DCR", "ij,jk->ik"]
DOMAINS = ["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "own", "unheard.of"]
OPS = {
    schema.name: (schema.min_input, schema.max_input)
    for schema in onnx.defs.get_all_schemas()
    if schema.domain == ""
}


def graphs(holder: Any) -> Iterator[Any]:
    """Yield the graphs and functions of a model, those of attributes too."""
    if isinstance(holder, onnx.ModelProto):
        yield from graphs(holder.graph)
        for function in holder.functions:
            yield from graphs(function)
        return
    yield holder
    for node in holder.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from graphs(inner)


def pick(rng: Any, items: Any) -> Any:
    """Return one of the items; None if there are none."""
    items = list(items)
    return items[rng.integers(len(items))] if items else None


def _graph(rng: Any, model: Any) -> Any:
    return pick(rng, (g for g in graphs(model) if g.node)) or model.graph


def _node(rng: Any, model: Any) -> Any:
    return pick(rng, _graph(rng, model).node) or onnx.NodeProto()


def _names(rng: Any, graph: Any, before: int) -> list[str]:
    """Return names to choose from: of the first nodes, seldom of all nodes or of none."""
    chance = rng.random()
    if chance < 0.05:
        return ["", "nowhere", "line\nbreak"]
    nodes = graph.node if chance < 0.15 else graph.node[: before + 1]
    names = [name for node in nodes for name in node.input]
    return [*names, *(name for node in nodes[:-1] for name in node.output)]


def _operands(rng: Any, model: Any) -> None:
    graph = _graph(rng, model)
    place = int(rng.integers(max(len(graph.node), 1)))
    node = graph.node[place] if graph.node else onnx.NodeProto()
    inputs = node.input if rng.random() < 0.95 else node.output
    kind = rng.integers(6)
    if kind == 0 or not inputs:
        inputs.append(pick(rng, _names(rng, graph, place)) or "")
    elif kind == 1:
        del inputs[rng.integers(len(inputs))]
    elif kind == 2:
        inputs[rng.integers(len(inputs))] = ""
    elif kind == 3:
        order = list(rng.permutation(list(inputs)))
        del inputs[:]
        inputs.extend(map(str, order))
    else:
        inputs[rng.integers(len(inputs))] = pick(rng, _names(rng, graph, place)) or ""


def _nodes(rng: Any, model: Any) -> None:
    nodes = _graph(rng, model).node
    if not nodes:
        return
    i, j = rng.integers(len(nodes), size=2)
    kind = rng.integers(3)
    if kind == 0:
        del nodes[i]
    elif kind == 1:
        nodes.append(nodes[i])
        nodes[-1].output[:] = [f"{name}.again" for name in nodes[-1].output]
    else:
        copy = onnx.NodeProto()
        copy.CopyFrom(nodes[i])
        nodes[i].CopyFrom(nodes[j])
        nodes[j].CopyFrom(copy)


def _operator(rng: Any, model: Any) -> None:
    node = _node(rng, model)
    if rng.random() < 0.8:
        count = len(node.input)
        fitting = [name for name, (least, most) in OPS.items() if least <= count <= most]
        node.op_type = pick(rng, fitting if rng.random() < 0.9 else OPS)
        if rng.random() < 0.5:
            del node.attribute[:]
    else:
        node.domain = pick(rng, DOMAINS)


def _opset(rng: Any, model: Any) -> None:
    imports = model.opset_import
    entry = pick(rng, imports) or imports.add()
    if rng.random() < 0.8:
        entry.version = int(pick(rng, [*range(6, 28), *NUMBERS]))
    elif rng.random() < 0.5:
        entry.domain = pick(rng, DOMAINS)
    else:
        imports.remove(entry)


def _attribute(rng: Any, model: Any) -> None:
    nodes = [node for graph in graphs(model) for node in graph.node]
    node = pick(rng, (n for n in nodes if n.attribute)) or onnx.NodeProto()
    attribute = pick(rng, node.attribute) or node.attribute.add()
    kind = rng.integers(8)
    if kind == 0:
        node.attribute.remove(attribute)
    elif kind == 1:
        attribute.type = int(rng.integers(15))
    elif kind == 2:
        names = [a.name for n in nodes for a in n.attribute]
        attribute.name = pick(rng, [*names, "axis", "axes", "group", ""])
    elif kind == 3:
        node.attribute.add().CopyFrom((pick(rng, nodes[0].attribute)) or attribute)
    else:
        _value(rng, attribute)


def _value(rng: Any, attribute: Any) -> None:
    number = int(pick(rng, NUMBERS[:9] if rng.random() < 0.6 else NUMBERS))
    attribute.i, attribute.f = number, pick(rng, FLOATS)
    if attribute.type == attribute.STRING:
        attribute.s = pick(rng, WORDS).encode() + (b"\xff" if rng.random() < 0.1 else b"")
    for values, drawn in ((attribute.ints, number), (attribute.floats, pick(rng, FLOATS))):
        kind = rng.integers(4)
        if values and kind < 2:
            values[rng.integers(len(values))] = drawn
        elif values and kind == 2:
            values.pop()
        elif values:
            values.append(drawn)
    if attribute.HasField("t"):
        _tensor(rng, attribute.t)


def _tensor(rng: Any, tensor: Any) -> None:
    kind = rng.integers(6)
    number = int(pick(rng, NUMBERS))
    if kind == 0:
        tensor.data_type = int(rng.integers(30))
    elif kind == 1 and tensor.dims:
        tensor.dims[rng.integers(len(tensor.dims))] = number
    elif kind == 2:
        tensor.dims.append(number)
    elif kind == 3:
        tensor.raw_data = tensor.raw_data[: rng.integers(len(tensor.raw_data) + 1)]
    elif kind == 4 and tensor.dims:
        tensor.dims.pop()
    elif tensor.data_type == tensor.INT64 and tensor.raw_data:
        values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 8 * 8], np.int64).copy()
        values[rng.integers(len(values)) :][:1] = number
        tensor.raw_data = values.tobytes()
    else:
        data = bytearray(tensor.raw_data)
        for at in rng.integers(max(len(data), 1), size=min(len(data), 3)):
            data[at] = int(rng.choice([0, 127, 128, 255]))
        tensor.raw_data = bytes(data)


def _initializer(rng: Any, model: Any) -> None:
    stored = pick(rng, (g.initializer for g in graphs(model) if hasattr(g, "initializer")))
    tensor = pick(rng, stored)
    if tensor is None:
        return
    kind = rng.random()
    if kind < 0.1:
        stored.remove(tensor)
    elif kind < 0.2:
        tensor.name = pick(rng, stored).name
    elif kind < 0.25:
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=pick(rng, ["../x", "/etc/passwd", "w"]))
    else:
        _tensor(rng, tensor)


def _ends(rng: Any, model: Any) -> None:
    graph = pick(rng, (g for g in graphs(model) if isinstance(g, onnx.GraphProto)))
    ends = graph.input if rng.random() < 0.6 else graph.output
    end = pick(rng, ends) or ends.add()
    tensor = end.type.tensor_type
    kind = rng.integers(7)
    if kind == 0:
        ends.remove(end)
    elif kind == 1:
        ends.add().CopyFrom(end)
    elif kind == 2:
        end.name = pick(rng, _names(rng, graph, len(graph.node))) or ""
    elif kind == 3:
        tensor.elem_type = int(rng.integers(30))
    elif kind == 4:
        tensor.ClearField("shape")
    elif kind == 5 or not tensor.shape.dim:
        tensor.shape.dim.add().dim_value = int(pick(rng, NUMBERS))
    else:
        pick(rng, tensor.shape.dim).dim_value = int(pick(rng, NUMBERS))


Change = Callable[[Any, Any], None]
CHANGES: list[Change] = [_operands, _nodes, _operator, _opset, _attribute, _initializer, _ends]
CHANGES += [_operands, _operator, _attribute, _attribute, _initializer]
