"""A quantized graph as an ONNX model of integer operators, to time onnxruntime on the same work.

The weights are the graph's; biases become int32, as ONNX wants them, so that some results differ
from torch's by a step. Convolutions, linears (also dynamic), sums, pools, and what an encoder
needs between its linears.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refquant.ir.graph import Graph, Node, Value
from refquant.ir.qtensor import QTensor

MICROSOFT = "com.microsoft"
NAMES = {
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.float32): TensorProto.FLOAT,
}


class Writer:
    """Collects nodes and constants."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, array: Any) -> str:
        """Add a constant; return its name."""
        self.constants[name] = numpy_helper.from_array(np.asarray(array, order="C"), name)
        return name

    def add(self, op: str, inputs: list[str], output: str, domain: str = "", **more: Any) -> str:
        """Add a node of one result."""
        made = helper.make_node(op, inputs, [output], domain=domain, **more)
        self.nodes.append(made)
        return output

    def qparams(self, value: Value) -> list[str]:
        """Return constants for the scale and zero point of a value."""
        qparams = value.type.qparams
        assert qparams is not None
        return [
            self.constant(f"{value.name}.scale", np.array(qparams.scale, np.float32)),
            self.constant(f"{value.name}.zero", np.array(qparams.zero_point, np.uint8)),
        ]

    def weight(self, node: Node, *, transposed: bool) -> tuple[list[str], str]:
        """Return the names of weight, scale and zero point, and of the int32 bias."""
        x, weight, bias = (*node.inputs, None)[:3]
        assert x is not None
        assert weight is not None
        q = self.graph.parameter(weight.name)
        assert isinstance(q, QTensor)
        assert not np.any(q.zero_point)
        scale = np.broadcast_to(np.asarray(q.scale, np.float32), (q.shape[0],))
        integers = q.int_repr.T if transposed else q.int_repr
        names = [
            self.constant(f"{node.name}.w", integers),
            self.constant(f"{node.name}.w.scale", scale),
            self.constant(f"{node.name}.w.zero", np.zeros(len(scale), np.int8)),
        ]
        if bias is None or x.type.qparams is None:
            return names, ""
        step = np.float64(x.type.qparams.scale) * scale
        rounded = np.rint(np.asarray(self.graph.parameter(bias.name)) / step).astype(np.int32)
        return names, self.constant(f"{node.name}.b", rounded)


def _inputs(node: Node) -> list[Value]:
    return [value for value in node.inputs if value is not None]


def _pads(attributes: Any) -> dict[str, Any]:
    padding = list(attributes["padding"])
    return {"strides": list(attributes["stride"]), "pads": padding * 2}


def _conv(to: Writer, node: Node) -> None:
    (x, *_), (y,) = _inputs(node), node.outputs
    assert "relu" not in node.op or node.attributes["zero_point"] == 0  # saturation is relu
    weight, bias = to.weight(node, transposed=False)
    more = {**_pads(node.attributes), "dilations": list(node.attributes["dilation"])}
    inputs = [x.name, *to.qparams(x), *weight, *to.qparams(y), *([bias] if bias else [])]
    to.add("QLinearConv", inputs, y.name, group=node.attributes["groups"], **more)


def _linear(to: Writer, node: Node) -> None:
    (x, *_), (y,) = _inputs(node), node.outputs
    assert "relu" not in node.op or node.attributes["zero_point"] == 0
    weight, bias = to.weight(node, transposed=True)
    to.add("QGemm", [x.name, *to.qparams(x), *weight, bias, *to.qparams(y)], y.name, MICROSOFT)


def _linear_dynamic(to: Writer, node: Node) -> None:
    (x, _, bias), (y,) = _inputs(node), node.outputs
    (integers, scale, zero), _ = to.weight(node, transposed=True)
    q = [f"{x.name}.q", f"{x.name}.q.scale", f"{x.name}.q.zero"]
    if not any(q[0] in made.output for made in to.nodes):
        to.nodes.append(helper.make_node("DynamicQuantizeLinear", [x.name], q))
    sums = to.add("MatMulInteger", [q[0], integers, q[2], zero], f"{y.name}.sums")
    number = to.add("Cast", [sums], f"{y.name}.float", to=TensorProto.FLOAT)
    step = to.add("Mul", [q[1], scale], f"{y.name}.step")
    product = to.add("Mul", [number, step], f"{y.name}.product")
    data = to.constant(f"{y.name}.bias", to.graph.parameter(bias.name))
    to.add("Add", [product, data], y.name)


def _add(to: Writer, node: Node) -> None:
    (a, b), (y,) = _inputs(node), node.outputs
    assert "relu" not in node.op or node.attributes["zero_point"] == 0
    inputs = [a.name, *to.qparams(a), b.name, *to.qparams(b), *to.qparams(y)]
    to.add("QLinearAdd", inputs, y.name, MICROSOFT)


def _relu6(to: Writer, node: Node) -> None:
    (x,), (y,) = _inputs(node), node.outputs
    qparams = x.type.qparams
    assert qparams is not None
    top = min(255, round(6.0 / qparams.scale) + qparams.zero_point)
    limits = [
        to.constant(f"{y.name}.{end}", np.array(code, np.uint8))
        for end, code in (("low", qparams.zero_point), ("high", top))
    ]
    to.add("Clip", [x.name, *limits], y.name)


def _max_pool(to: Writer, node: Node) -> None:
    (x,), (y,) = _inputs(node), node.outputs
    size = list(node.attributes["kernel_size"])
    to.add("MaxPool", [x.name], y.name, kernel_shape=size, **_pads(node.attributes))


def _global_average(to: Writer, node: Node) -> None:
    (x,), (y,) = _inputs(node), node.outputs
    inputs = [x.name, *to.qparams(x), *to.qparams(y)]
    to.add("QLinearGlobalAveragePool", inputs, y.name, MICROSOFT, channels_last=0)


def _transpose(to: Writer, node: Node) -> None:
    (x,), (y,) = _inputs(node), node.outputs
    order = list(range(len(x.type.shape)))
    first, second = node.attributes["dim0"], node.attributes["dim1"]
    order[first], order[second] = order[second], order[first]
    to.add("Transpose", [x.name], y.name, perm=order)


def _reshape(to: Writer, node: Node) -> None:
    (x,), (y,) = _inputs(node), node.outputs
    sizes = [size if isinstance(size, int) else -1 for size in y.type.shape]
    to.add("Reshape", [x.name, to.constant(f"{y.name}.shape", np.array(sizes))], y.name)


def _norm(to: Writer, node: Node) -> None:
    x, *parameters = _inputs(node)
    names = [to.constant(value.name, to.graph.parameter(value.name)) for value in parameters]
    to.add("LayerNormalization", [x.name, *names], node.name, epsilon=node.attributes["eps"])


def _divide(to: Writer, node: Node) -> None:
    (x,) = _inputs(node)
    other = to.constant(f"{node.name}.by", np.array(node.attributes["other"], np.float32))
    to.add("Div", [x.name, other], node.name)


def _quantize(to: Writer, node: Node) -> None:
    (x,), (y,) = _inputs(node), node.outputs
    to.add("QuantizeLinear", [x.name, *to.qparams(y)], y.name)


def _dequantize(to: Writer, node: Node) -> None:
    (x,), (y,) = _inputs(node), node.outputs
    to.add("DequantizeLinear", [x.name, *to.qparams(x)], y.name)


def _same(op: str, **more: Any) -> Callable[[Writer, Node], None]:
    def write(to: Writer, node: Node) -> None:
        to.add(op, [value.name for value in _inputs(node)], node.name, **more)

    return write


WRITERS: dict[str, Callable[[Writer, Node], None]] = {
    "quantized::conv2d": _conv,
    "quantized::conv2d_relu": _conv,
    "quantized::linear": _linear,
    "quantized::linear_relu": _linear,
    "quantized::linear_dynamic": _linear_dynamic,
    "quantized::add": _add,
    "quantized::add_relu": _add,
    "aten::relu6": _relu6,
    "aten::max_pool2d": _max_pool,
    "aten::adaptive_avg_pool2d": _global_average,
    "aten::flatten": _reshape,
    "aten::reshape": _reshape,
    "aten::transpose": _transpose,
    "aten::layer_norm": _norm,
    "aten::div.Scalar": _divide,
    "aten::add": _same("Add"),
    "aten::matmul": _same("MatMul"),
    "aten::softmax": _same("Softmax"),
    "aten::gelu": _same("Gelu"),
    "aten::dropout": _same("Identity"),
    "aten::quantize_per_tensor": _quantize,
    "aten::dequantize": _dequantize,
}


def _described(value: Value) -> onnx.ValueInfoProto:
    shape = [size if isinstance(size, int) else str(size) for size in value.type.shape]
    return helper.make_tensor_value_info(value.name, NAMES[value.type.dtype.storage], shape)


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """Return the model; a node that is not in the table is a ``KeyError``."""
    to = Writer(graph)
    for node in graph.nodes:
        WRITERS[node.op](to, node)
    made = helper.make_graph(
        to.nodes,
        "network",
        [_described(value) for value in graph.inputs],
        [_described(value) for value in graph.outputs],
        list(to.constants.values()),
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def session(model: onnx.ModelProto, threads: int = 1) -> Any:
    """Return onnxruntime's default optimisation of a model."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers = ["CPUExecutionProvider"]
    return ort.InferenceSession(model.SerializeToString(), options, providers=providers)
