"""The same linears and convolutions by torch in float32, by onnxruntime and by onnx.reference."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import nets
import networks
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_nets import MICROSOFT, session, to_onnx
from operators import CONVOLUTIONS, DEPTHWISE, PRODUCTS, convolution, elementwise, linear
from pairs import Pair
from torch import nn
from torch.nn import functional as F


def geometries() -> Iterator[tuple[int, ...]]:
    """Yield every convolution of the suite, as ``operators.convolution`` takes it."""
    yield from CONVOLUTIONS
    for channels, size, stride, edge in DEPTHWISE:
        yield channels, channels, size, stride, edge, channels, 1


def in_float() -> Iterator[Pair]:
    """Yield the products against torch's float32 ones."""
    for rows, depth, columns in PRODUCTS:
        x, weight, bias = (
            torch.randn(rows, depth),
            torch.randn(columns, depth),
            torch.randn(columns),
        )
        yield linear("fbgemm", rows, depth, columns)._replace(
            theirs=lambda x=x, w=weight, b=bias: F.linear(x, w, b), other="float32", exact=False
        )
    for geometry in geometries():
        inputs, outputs, size, stride, edge, groups, dilation = geometry
        x = torch.randn(1, inputs, edge, edge).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(outputs, inputs // groups, size, size)
        weight, bias = weight.contiguous(memory_format=torch.channels_last), torch.randn(outputs)
        more = (stride, dilation * (size - 1) // 2, dilation, groups)
        yield convolution("fbgemm", *geometry)._replace(
            theirs=lambda x=x, w=weight, b=bias, m=more: torch.relu_(F.conv2d(x, w, b, *m)),
            other="float32",
            exact=False,
        )


def _model(
    op: str, domain: str, shape: tuple[int, ...], constants: dict[str, Any], **more: Any
) -> onnx.ModelProto:
    """Return a model of one operator: ``x`` and constants in, ``y`` out."""
    inputs = ["x", *constants]
    node = helper.make_node(op, inputs, ["y"], domain=domain, **more)
    made = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, None)],
        [numpy_helper.from_array(np.asarray(data), name) for name, data in constants.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def _constants(rng: Any, weight: Any, outputs: int, depth: int) -> dict[str, Any]:
    return {
        "x.scale": np.float32(0.03),
        "x.zero": np.uint8(11),
        "w": weight,
        "w.scale": rng.uniform(0.001, 0.01, outputs).astype(np.float32),
        "w.zero": np.zeros(outputs, np.int8),
        "y.scale": np.float32(0.02 * depth**0.5),
        "y.zero": np.uint8(3),
    }


def _weight(rng: Any, *shape: int) -> Any:
    return rng.integers(-127, 128, shape).astype(np.int8)


def linear_model(rows: int, depth: int, columns: int) -> tuple[onnx.ModelProto, Any]:
    """Return a linear without bias in ONNX, and its input."""
    rng = np.random.default_rng(0)
    constants = _constants(rng, _weight(rng, depth, columns), columns, depth)
    model = _model("QLinearMatMul", "", (rows, depth), constants)
    return model, rng.integers(0, 128, (rows, depth)).astype(np.uint8)


def convolution_model(
    geometry: tuple[int, ...], *, channels_last: bool
) -> tuple[onnx.ModelProto, Any]:
    """Return a convolution with bias in ONNX, and its input.

    ``channels_last`` is the form that onnxruntime itself makes of the convolutions in a network.
    """
    inputs, outputs, size, stride, edge, groups, dilation = geometry
    rng = np.random.default_rng(0)
    weight = _weight(rng, outputs, inputs // groups, size, size)
    constants = _constants(rng, weight, outputs, inputs // groups * size * size)
    constants["b"] = rng.integers(-999, 999, outputs).astype(np.int32)
    more = {
        "group": groups,
        "strides": [stride] * 2,
        "dilations": [dilation] * 2,
        "pads": [dilation * (size - 1) // 2] * 4,
    }
    shape = (1, edge, edge, inputs) if channels_last else (1, inputs, edge, edge)
    domain = MICROSOFT if channels_last else ""
    if channels_last:
        more["channels_last"] = 1
    model = _model("QLinearConv", domain, shape, constants, **more)
    return model, rng.integers(0, 128, shape).astype(np.uint8)


def in_onnxruntime(threads: int) -> Iterator[Pair]:
    """Yield the products against onnxruntime's; its linears have no bias."""

    def of(pair: Pair, model: onnx.ModelProto, x: Any) -> Pair:
        runs = session(model, threads)
        return pair._replace(
            theirs=lambda: runs.run(None, {"x": x}), other="onnxruntime", exact=False
        )

    for shape in PRODUCTS:
        yield of(linear("fbgemm", *shape), *linear_model(*shape))
    for geometry in geometries():
        model = convolution_model(geometry, channels_last=True)
        yield of(convolution("fbgemm", *geometry), *model)


def pointwise_in_onnxruntime(threads: int) -> Iterator[Pair]:
    """Yield the elementwise operators and pools that onnxruntime has for bytes."""
    shape = (1, 112, 112, 64)
    rng = np.random.default_rng(0)
    given = {"x.scale": np.float32(0.03), "x.zero": np.uint8(11)}
    result = {"y.scale": np.float32(0.05), "y.zero": np.uint8(3)}
    second = {"b": rng.integers(0, 128, shape).astype(np.uint8)}
    other = {f"b.{key[2:]}": value for key, value in given.items()}
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    both, one = {**given, **second, **other, **result}, {**given, **result}
    models: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
        "add": ("QLinearAdd", both, {}),
        "mul": ("QLinearMul", both, {}),
        "sigmoid": ("QLinearSigmoid", one, {}),
        "leaky_relu": ("QLinearLeakyRelu", one, {"alpha": 0.1}),
        "max_pool2d 3x3": ("NhwcMaxPool", {}, window),
        "avg_pool2d 3x3": ("QLinearAveragePool", one, {**window, "channels_last": 1}),
        "adaptive_avg_pool2d 1x1": ("QLinearGlobalAveragePool", one, {"channels_last": 1}),
    }
    x = rng.integers(0, 128, shape).astype(np.uint8)
    for pair in elementwise("fbgemm"):
        name = pair.name.removesuffix(" 1 x 64 x 112 x 112")
        if name in models:  # the first of that name
            op, constants, more = models.pop(name)
            runs = session(_model(op, MICROSOFT, shape, constants, **more), threads)
            yield pair._replace(
                theirs=lambda runs=runs: runs.run(None, {"x": x}),
                other="onnxruntime",
                exact=False,
                wanted=None,
            )


def in_onnx_reference() -> Iterator[Pair]:
    """Yield a few products against the evaluator that comes with onnx."""

    def of(pair: Pair, model: onnx.ModelProto, x: Any) -> Pair:
        runs = ReferenceEvaluator(model)
        return pair._replace(
            theirs=lambda: runs.run(None, {"x": x}),
            other="onnx.reference",
            exact=False,
            wanted=200.0,
        )

    for shape in ((1, 512, 1000), (64, 64, 64), (128, 768, 768)):
        yield of(linear("fbgemm", *shape), *linear_model(*shape))
    for geometry in (
        (64, 64, 3, 1, 56, 1, 1),
        (256, 256, 3, 1, 14, 1, 1),
        (64, 256, 1, 1, 56, 1, 1),
    ):
        model = convolution_model(geometry, channels_last=False)
        yield of(convolution("fbgemm", *geometry), *model)


class _Small(nn.Module):
    """Two convolutions and a pool."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.pool = nn.MaxPool2d(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return 32 maps."""
        return F.relu(self.second(self.pool(F.relu(self.first(x)))))


def network_in_onnx_reference() -> Iterator[Pair]:
    """Yield a small network against the evaluator that comes with onnx."""
    made = nets.quantized(_Small().eval(), torch.randn(1, 3, 32, 32))
    graph = networks.imported(*made, "fbgemm")
    runs, x = ReferenceEvaluator(to_onnx(graph)), made[1][0].numpy()
    entry = graph.inputs[0].name
    yield Pair(
        "two convolutions and a pool at 32",
        lambda: graph(x),
        lambda: runs.run(None, {entry: x}),
        200.0,
        "onnx.reference",
        False,
    )
