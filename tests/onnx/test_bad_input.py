"""Files and graphs that are no model, or too much of one: a clear line, little memory and time."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from refquant.importers.onnx import from_onnx
from refquant.ir.errors import RefquantError, UnsupportedError, VerifyError

HEAD = '<ir_version: 10, opset_import: ["" : 18, "own" : 1, "com.microsoft" : 1]>\n'
HUGE = 2**62
# Constants for control flow: true, and three turns.
YES = "o = Constant <value_int = 1> () c = Cast <to = 9> (o) n = Constant <value_int = 3> () "


def parsed(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEAD + text)


def body(nodes: str, inputs: str = "float[2, 3] x") -> onnx.ModelProto:
    return parsed(f"m ({inputs}) => (y) {{ {nodes} }}")


def refused(
    model: Any, kind: type[RefquantError], text: str, seconds: float = 2.0, **more: Any
) -> str:
    """Check how a model is refused: class, text, one line, time and memory."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(kind, match=text) as caught:
            from_onnx(model, **more)
        taken = time.perf_counter() - begin
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
    assert taken < 8 * seconds  # tracing slows Python down, and machines differ
    assert most < 2**27
    return message


# ---- files

NO_MODEL = {
    "empty": (b"", "not an ONNX model"),
    "text": (b"These are words, and not a model.\n" * 9, "not an ONNX model"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01", "not an ONNX model"),
    "zeros": (bytes(100), "not an ONNX model"),
    "random": (np.random.default_rng(1).bytes(5000), "not an ONNX model"),
    "no graph": (onnx.ModelProto(ir_version=10).SerializeToString(), "it has no graph"),
    "a name that is not text": (
        body("y = Relu (x)").SerializeToString().replace(b"Relu", b"Re\xffu"),
        "a name is not text",
    ),
}


@pytest.mark.parametrize("name", NO_MODEL)
def test_a_file_that_is_no_model(name: str, tmp_path: Path) -> None:
    data, text = NO_MODEL[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    assert refused(path, VerifyError, text).startswith(str(path))
    refused(data, VerifyError, f"^model: .*{text}")


def test_every_truncation_of_a_file_is_refused_or_read() -> None:
    data = body("a = Relu (x) y = Neg (a)").SerializeToString()
    read = []
    for end in range(len(data)):
        try:
            from_onnx(data[:end])
            read.append(end)
        except RefquantError as error:
            assert str(error).isprintable()  # noqa: PT017
    # What is left is a model where only opsets of other domains are cut off.
    assert all(end > data.index(b"own") - 9 for end in read)


def test_paths_without_a_file(tmp_path: Path) -> None:
    refused(tmp_path, VerifyError, f"^{tmp_path}: Is a directory")
    refused(tmp_path / "none.onnx", VerifyError, "none.onnx: No such file")
    refused("a\0b", VerifyError, "null byte")
    refused(3, VerifyError, "expected a path, bytes or an onnx.ModelProto, got int")


# ---- external tensors


def outside(**entries: str) -> onnx.ModelProto:
    model = body("y = Add (x, w)")
    w = model.graph.initializer.add(name="w", data_type=1, dims=[3])
    w.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        w.external_data.add(key=key, value=value)
    return model


EXTERNAL: list[tuple[dict[str, str], str]] = [
    ({"location": "../secret"}, r"tensor w: no file '../secret' in the model's folder"),
    ({"location": "link"}, "tensor w: no file 'link' in the model's folder"),
    ({"location": "folder"}, "no file 'folder'"),
    ({"location": "none"}, "no file 'none'"),
    ({"location": ""}, "no file ''"),
    ({}, "no file ''"),
    ({"location": "data", "offset": "100"}, "outside the file 'data'"),
    ({"location": "data", "offset": "-4"}, "outside the file 'data'"),
    ({"location": "data", "length": "13"}, "13 bytes at 0 are outside the file 'data'"),
    ({"location": "data", "length": "-1"}, "outside the file 'data'"),
    ({"location": "data", "length": str(HUGE)}, "outside the file 'data'"),
    ({"location": "data", "length": "8"}, r"tensor w: \(3,\) of float32 holds other data"),
    ({"location": "data", "offset": "x"}, "whole numbers"),
    ({"location": "data\0"}, "no file"),
    ({"location": "long" * 65}, "no file"),
    ({"location": "loop"}, "no file"),
]


@pytest.mark.parametrize(("entries", "text"), EXTERNAL, ids=str)
def test_external_data(entries: dict[str, str], text: str, tmp_path: Path) -> None:
    inside = tmp_path / "model"
    (inside / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(12))
    (inside / "link").symlink_to(tmp_path / "secret")
    (inside / "loop").symlink_to(inside / "loop")
    (inside / "data").write_bytes(bytes(12))
    path = inside / "model.onnx"
    path.write_bytes(outside(**entries).SerializeToString())
    assert str(path) in refused(path, VerifyError, text)


def test_external_data_by_an_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(12))
    inside = tmp_path / "model"
    inside.mkdir()
    path = inside / "model.onnx"
    path.write_bytes(outside(location=str(tmp_path / "secret")).SerializeToString())
    refused(path, VerifyError, "in the model's folder")


def test_external_data_without_a_folder() -> None:
    refused(outside(location="data"), UnsupportedError, "tensor w: .* give the model's path")
    data = outside(location="data").SerializeToString()
    refused(data, UnsupportedError, "tensor w: .* give the model's path")


# ---- tensors

FLOAT = TensorProto.FLOAT
TENSORS: list[tuple[dict[str, Any], type[RefquantError], str]] = [
    ({"data_type": FLOAT, "dims": [2, 3], "raw_data": bytes(20)}, VerifyError, "other data"),
    ({"data_type": FLOAT, "dims": [2, 3], "raw_data": bytes(28)}, VerifyError, "other data"),
    ({"data_type": FLOAT, "dims": [2, 3], "raw_data": bytes(23)}, VerifyError, "other data"),
    ({"data_type": FLOAT, "dims": [2, 3]}, VerifyError, "other data"),
    ({"data_type": FLOAT, "dims": [-2, 3]}, VerifyError, r"negative length in shape \(-2, 3\)"),
    ({"data_type": FLOAT, "dims": [2**40, 2**40]}, UnsupportedError, "more than 2 GiB"),
    ({"data_type": FLOAT, "dims": [HUGE, HUGE, 0]}, UnsupportedError, "too large"),
    ({"data_type": FLOAT, "dims": [2**29 + 1]}, UnsupportedError, "more than 2 GiB"),
    ({"data_type": 0, "dims": [3]}, UnsupportedError, "element type undefined"),
    ({"data_type": 99, "dims": [3]}, UnsupportedError, "element type 99"),
    ({"data_type": 8, "dims": [1], "string_data": [b"a"]}, UnsupportedError, "type string"),
]


@pytest.mark.parametrize(("fields", "kind", "text"), TENSORS, ids=str)
def test_a_malformed_initialiser(
    fields: dict[str, Any], kind: type[RefquantError], text: str
) -> None:
    model = body("y = Add (x, w)")
    model.graph.initializer.add(name="w", **fields)
    assert refused(model, kind, text).startswith("model: tensor w: ")


# ---- graphs


def changed(change: Callable[[onnx.ModelProto], Any]) -> onnx.ModelProto:
    """Return a model of two nodes, changed."""
    model = body("a = Relu (x) y = Neg (a)")
    change(model)
    return model


def _twice(model: onnx.ModelProto) -> None:
    stored = [numpy_helper.from_array(np.ones(3, np.float32), "w") for _ in range(2)]
    model.graph.initializer.extend(stored)


def _rank(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


CHANGED: dict[str, tuple[Callable[[Any], Any], type[RefquantError], str]] = {
    "cycle": (
        lambda m: m.graph.node[0].input.__setitem__(0, "y"),
        VerifyError,
        r"node a \(Relu\): operand 'y' is not defined before it is used \(a cycle",
    ),
    "an initialiser is missing": (
        lambda m: m.graph.node[0].input.__setitem__(0, "w"),
        VerifyError,
        "operand 'w' is not defined .* a missing initialiser",
    ),
    "no outputs": (lambda m: m.graph.ClearField("output"), VerifyError, "has no outputs"),
    "an output is not defined": (
        lambda m: setattr(m.graph.output[0], "name", "z"),
        VerifyError,
        "output 'z' is not defined",
    ),
    "a node without results": (
        lambda m: m.graph.node[1].ClearField("output"),
        VerifyError,
        r"node Neg \(Neg\): it has no results",
    ),
    "a result twice": (
        lambda m: m.graph.node[1].output.__setitem__(0, "a"),
        VerifyError,
        "'a' is defined twice",
    ),
    "an input twice": (
        lambda m: m.graph.input.add().CopyFrom(m.graph.input[0]),
        VerifyError,
        "'x' is defined twice",
    ),
    "an initialiser twice": (_twice, VerifyError, "initialiser 'w' is defined twice"),
    "no opset": (lambda m: m.ClearField("opset_import"), VerifyError, "imports no opset"),
    "opset 6": (
        lambda m: setattr(m.opset_import[0], "version", 6),
        UnsupportedError,
        r"opset 6 is not supported; .* 7 to \d+",
    ),
    "opset 10,000": (
        lambda m: setattr(m.opset_import[0], "version", 10_000),
        UnsupportedError,
        r"opset 10000 is not supported; .* 7 to \d+",
    ),
    "a huge version of a domain": (
        lambda m: m.opset_import.add(domain="com.example", version=2**40),
        UnsupportedError,
        f"version {2**40} of domain 'com.example' is not supported",
    ),
    "no shape": (_rank, UnsupportedError, r"x of unknown rank; give shapes=\{name: \(...\)\}"),
    "no type": (
        lambda m: m.graph.input[0].ClearField("type"),
        UnsupportedError,
        r"bind it: constants=\{'x': ...\}",
    ),
    "a huge input": (
        lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[1], "dim_value", 2**40),
        UnsupportedError,
        "input x: .* more than 2 GiB",
    ),
    "a line break in a name": (
        lambda m: setattr(m.graph.node[0], "op_type", "Re\nlu"),
        UnsupportedError,
        r"not supported: Re\\nlu",
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_malformed_graph(name: str) -> None:
    change, kind, text = CHANGED[name]
    refused(changed(change), kind, text)


SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"shapes": {"x": (-1, 3)}}, "input x: "),
    ({"shapes": {"x": (1, 2, 3)}}, "input x: expected 2 lengths, got 3"),
    ({"shapes": {"x": (2.5, 3)}}, "input x: expected a length or its name, got 2.5"),
    ({"shapes": {"x": 3}}, "input x: expected lengths, got 3"),
    ({"shapes": {"z": (3,)}}, "no input 'z'; it has x"),
    ({"constants": {"x": np.ones(3)}}, "input x: expected float32, got float64"),
]


@pytest.mark.parametrize(("given", "text"), SHAPES, ids=str)
def test_shapes_and_constants_that_do_not_fit(given: dict[str, Any], text: str) -> None:
    refused(body("y = Relu (x)", "float[N, 3] x"), VerifyError, text, **given)


def test_open_lengths_are_asked_for_at_once() -> None:
    model = body("y = Add (x, z)", "float[N, C, H] x, float[N, K, 2] z")
    text = r"x \[N, C, H\], z \[N, K, 2\]; give shapes="
    refused(model, UnsupportedError, text)


def test_one_error_lists_all_unknown_operators() -> None:
    nodes = "a = Foo (x) b = Foo (a) d = Bernoulli (b) e = unheard.Op (d) y = own.Bar (e)"
    message = refused(body(nodes), UnsupportedError, "^4 operators are not supported: ")
    for part in ("Foo (opset 18): a, b", "Bernoulli (opset 18; random", "own.Bar (opset 1): y"):
        assert part in message
    assert "unheard.Op (opset not imported): e" in message


# ---- control flow and functions

LOOP = "<body = b (int64 i, bool g, float[2, 3] s) => (g, t) "
CONTROL: dict[str, tuple[type[RefquantError], str]] = {
    "y = If <then_branch = t () => (p) { p = Relu (x) }> (c)": (VerifyError, "'else_branch'"),
    "y = If <else_branch = t () => (p) { p = Relu (x) }> (c)": (VerifyError, "'then_branch'"),
    "y = If <then_branch = 3, else_branch = 4> (c)": (VerifyError, "expected a graph, got int"),
    "y = Loop (n, c, x)": (VerifyError, "attribute 'body' is missing"),
    "y = Loop <body = b (int64 i) => (i) { }> (n, c, x)": (VerifyError, "1 inputs, got 3"),
    "y = Loop <body = b (int64 i, bool g, float s) => (g) { }> (n, c, x)": (
        VerifyError,
        "the body gives 0 results",
    ),
    "y = Scan <num_scan_inputs = 1> (x)": (VerifyError, "attribute 'body' is missing"),
    "y = Scan <num_scan_inputs = -1, body = b (float[3] a) => (a) { }> (x)": (
        VerifyError,
        "num_scan_inputs -1 of 1 operands",
    ),
    f"m = Constant <value_int = {HUGE}> () y = Loop {LOOP} {{ t = Relu (s) }}> (m, c, x)": (
        UnsupportedError,
        r"node y \(Loop\): .*unroll to more than",
    ),
    f"m = Constant <value_int = {HUGE}> () y = Loop {LOOP} "
    "{ u = Add (s, x) v = Mul (u, x) w = Neg (v) t = Relu (w) }> (m, c, x)": (
        UnsupportedError,
        r"node y \(Loop\): .*unroll to more than",
    ),
    f"y = Loop {LOOP} {{ t = Relu (s) }}> (, c, x)": (UnsupportedError, "unroll to more than"),
    f"m = Constant <value_int = {HUGE}> () y = Loop <body = b (int64 i, bool g, float s) "
    "=> (g, s) { }> (m, c, x)": (UnsupportedError, "unroll to more than"),
    f"m = Constant <value_int = {HUGE}> () y = Loop {LOOP} {{ t = Loop <body = d (int64 j, "
    "bool h, float q) => (h, r) { r = Relu (q) }> (n, c, s) }> (m, c, x)": (
        UnsupportedError,
        "unroll to more than",
    ),
    f"m = Constant <value_int = {HUGE}> () y = Loop {LOOP} {{ t = Concat <axis = 0> (s, s) }}> "
    "(m, c, x)": (UnsupportedError, "more than 2 GiB"),
    "y = own.again (x)": (VerifyError, "64 deep, or recursive"),
    "y = own.f0 (x)": (UnsupportedError, "unroll to more than"),
}
# One that calls itself, and forty of which each calls the next one twice.
OWN = '\n<domain: "own", opset_import: ["" : 18, "own" : 1]> '
FUNCTIONS = f"{OWN}again (a) => (b) {{ c = own.again (a) b = Relu (c) }}"
FUNCTIONS += "".join(
    f"{OWN}f{i} (a) => (b) {{ c = own.f{i + 1} (a) b = own.f{i + 1} (c) }}" for i in range(40)
)
FUNCTIONS += f"{OWN}f40 (a) => (b) {{ b = Relu (a) }}"


@pytest.mark.parametrize("nodes", CONTROL)
def test_control_flow(nodes: str) -> None:
    kind, text = CONTROL[nodes]
    model = parsed(f"m (float[2, 3] x) => (y) {{ {YES} {nodes} }} {FUNCTIONS}")
    assert "node y" in refused(model, kind, text)


def test_a_branch_on_an_input() -> None:
    branches = (
        "then_branch = t () => (p) { p = Relu (x) }, else_branch = e () => (q) { q = Neg(x) }"
    )
    model = body(f"y = If <{branches}> (c)", "float[2] x, bool c")
    refused(model, UnsupportedError, "the condition must be a constant")
    for value in (True, False):
        from_onnx(model, constants={"c": np.array(value)})


def test_subgraphs_in_each_other_without_end() -> None:
    model = body("y = Relu (x)")
    node = model.graph.node[0]
    for _ in range(300):
        node.op_type = "If"
        attribute = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
        attribute.g.output.add(name="y")
        node = attribute.g.node.add(op_type="Relu", input=["x"], output=["y"])
    refused(model, VerifyError, "more than 64 deep")


# ---- too much

WORK: dict[str, str] = {
    f"k = Constant <value_ints = [{2**40}, 1, 1]> () y = Expand (x, k)": "more than 2 GiB",
    f"k = Constant <value_ints = [{HUGE}, {HUGE}]> () y = ConstantOfShape (k)": "2 GiB",
    "k = Constant <value_ints = [3000, 3000]> () a = ConstantOfShape (k) b = MatMul (a, a) "
    "y = Add (b, x)": r"node b \(MatMul\): a product of constants takes",
    f"a = Unsqueeze (x, z) y = Conv <pads = [{2**40}, {2**40}]> (a, w)": "more than 2 GiB",
    f"a = Unsqueeze (x, z) y = Conv <pads = [{2**40}, 0], strides = [{2**40}]> (a, w)": "2 GiB",
    f"a = Unsqueeze (x, z) y = Conv <dilations = [{HUGE}]> (a, w)": "larger than the padded",
    f"a = Unsqueeze (x, z) y = MaxPool <kernel_shape = [{HUGE}]> (a)": "MaxPool",
}


@pytest.mark.parametrize("nodes", WORK)
def test_too_much_work(nodes: str) -> None:
    inputs = "float[2, 3] x, float[2, 2, 2] w"
    model = body(f"z = Constant <value_ints = [0]> () {nodes}", inputs)
    assert refused(model, RefquantError, WORK[nodes]).startswith("node ")


# ---- found by damaging models (tests/onnx/fuzz.py)

Q = "s = Constant <value_float = 0.5> () i = Constant <value_int = 3> () z = Cast <to = 2> (i) "
QUANTIZED: dict[str, str] = {
    "zs = Constant <value_ints = [1, 2]> () zz = Cast <to = 2> (zs) "
    "y = com.microsoft.QLinearAdd (q, s, z, q, s, z, s, zz)": "c_zero_point must hold one element",
    "y = com.microsoft.QGemm (q, s, , m, s, z)": "operand a_zero_point is missing",
    "y = com.microsoft.QGemm <alpha = [1.0]> (q, s, z, m, s, z)": "alpha: expected float",
    "y = QLinearConv (q, s, , k, s, z, s, z)": "operand 2 is missing",
    "y = LSTM <hidden_size = 1> (f, l, r, , , , , f)": r"expected P \[1, 3\], got",
    "y = Add ( , f)": "operand 0 is missing",
    "y = QLinearConv <strides = [9223372036854775807]> (p, s, z, k, s, z, s, z)": "strides must",
    f"y = QLinearConv <pads = [{2**40}, 0]> (p, s, z, k, s, z, s, z)": "pads must be <=",
    f"y = QLinearConv <pads = [{2**31}, 0], strides = [{2**31}]> (p, s, z, k, s, z, s, z)": "map",
    "y = Conv (f, g, g)": "rank of bias",
    "y = ConvTranspose (f, g, g)": "rank of bias",
}


@pytest.mark.parametrize("nodes", QUANTIZED)
def test_operands_of_layers(nodes: str) -> None:
    inputs = "uint8[2, 3] q, uint8[3, 2] m, uint8[1, 1, 3] p, uint8[1, 1, 2] k, "
    inputs += "float[1, 1, 3] f, float[1, 1, 2] g, float[1, 4, 3] l, float[1, 4, 1] r"
    message = refused(body(Q + nodes, inputs), RefquantError, QUANTIZED[nodes])
    assert message.startswith("node y (")
