"""Float products for engine ort have onnxruntime's bits: the order of summation is its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from runtime import run

from refquant.importers import from_onnx

rng = np.random.default_rng(7)


def draw(*shape: int) -> Any:
    """Return numbers of many sizes, so that every order of summation gives other bits."""
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 6, shape)).astype(np.float32)


def model(op: str, x: Any, constants: dict[str, Any], inputs: list[str], **attributes: Any) -> Any:
    node = helper.make_node(op, inputs, ["y"], **attributes)
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [info], [out], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def equal(made: Any, *inputs: Any) -> None:
    graph = from_onnx(made, target="ort")
    (expected,) = run(made, *inputs)
    for executor in ("fast", "reference"):
        np.testing.assert_array_equal(graph(*inputs, executor=executor), expected)


SHAPES = [
    (8, 32, 10),
    (1, 64, 10),
    (7, 300, 17),
    (1, 300, 1),
    (5, 600, 200),
    (4, 1, 1),
    (3, 257, 64),
]


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_with_a_constant(m: int, k: int, n: int, transposed: int) -> None:
    x, w, c = draw(m, k), draw(*(n, k) if transposed else (k, n)), draw(n)
    equal(model("Gemm", x, {"w": w, "c": c}, ["x", "w", "c"], transB=transposed), x)


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_matmul_with_a_constant(m: int, k: int, n: int) -> None:
    x = draw(2, m, k)
    equal(model("MatMul", x, {"w": draw(k, n)}, ["x", "w"]), x)


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_matmul_of_two_inputs(m: int, k: int, n: int) -> None:
    a, b = draw(m, k), draw(k, n)
    made = model("MatMul", a, {}, ["x", "z"])
    made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, b.shape))
    equal(made, a, b)


@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_gemm_of_two_inputs(m: int, k: int, n: int, transposed: int, bias: bool) -> None:
    a, b = draw(m, k), draw(*(n, k) if transposed else (k, n))
    constants = {"c": draw(n)} if bias else {}
    made = model("Gemm", a, constants, ["x", "z", *constants], transB=transposed)
    made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, b.shape))
    equal(made, a, b)


# inputs, outputs, length, kernel, stride, padding, dilation, groups
CONVOLUTIONS = [
    (1, 16, 8, 3, 1, 1, 1, 1),
    (16, 16, 8, 3, 1, 1, 1, 16),
    (32, 32, 4, 1, 1, 0, 1, 1),
    (3, 8, 20, 5, 2, 2, 1, 1),
    (64, 32, 7, 3, 1, 1, 1, 1),
    (8, 24, 13, 3, 1, 1, 2, 4),
    (16, 64, 1, 1, 1, 0, 1, 1),
    (20, 40, 3, 3, 1, 0, 1, 1),
    (40, 6, 23, 3, 1, 1, 1, 2),
    (12, 12, 40, 5, 1, 2, 1, 12),
]


@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_convolution(geometry: tuple[int, ...]) -> None:
    channels, outputs, size, kernel, stride, padding, dilation, groups = geometry
    x, w = draw(2, channels, size, size), draw(outputs, channels // groups, kernel, kernel)
    how = {"strides": [stride] * 2, "pads": [padding] * 4, "dilations": [dilation] * 2}
    constants = {"w": w, "b": draw(outputs)}
    equal(model("Conv", x, constants, ["x", "w", "b"], **how, group=groups), x)


@pytest.mark.parametrize("pads", [[0, 1, 2, 1], [2, 0, 0, 3], [1, 1, 0, 0]])
def test_convolution_padded_unequally(pads: list[int]) -> None:
    x, w = draw(2, 3, 9, 8), draw(5, 3, 3, 2)
    equal(model("Conv", x, {"w": w}, ["x", "w"], pads=pads), x)


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (3, 3), (5, 13), (2, 1)])
def test_global_average(size: tuple[int, int]) -> None:
    x = draw(40, 2, *size)
    equal(model("GlobalAveragePool", x, {}, ["x"]), x)


# kernel, stride, padding, count_include_pad
@pytest.mark.parametrize("window", [(3, 2, 1, 0), (2, 2, 0, 0), (3, 1, 1, 1), (5, 3, 2, 0)])
def test_average(window: tuple[int, int, int, int]) -> None:
    kernel, stride, padding, counts = window
    x = draw(2, 3, 19, 21)
    how = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
    equal(model("AveragePool", x, {}, ["x"], **how, count_include_pad=counts), x)


def test_another_order_gives_other_bits() -> None:
    x, w = draw(5, 600), draw(600, 20)
    made = model("MatMul", x, {"w": w}, ["x", "w"])
    assert np.any(from_onnx(made, target="onnx")(x) != run(made, x)[0])
