"""The back end as any runner of ONNX models uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized_digits import Way, images, quantized

import refquant
from refquant import VerifyError, onnx_backend
from refquant.importers import from_onnx

X = np.float32([[1, -2, 3], [4, 5, -6]])


def test_a_node() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    outputs = onnx_backend.run_node(node, [X])
    np.testing.assert_array_equal(outputs.y, np.maximum(X, 0))


def test_a_node_of_an_older_opset_and_a_tensor_of_protobuf() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], axis=0)
    # Shares are rounded one by one, so that their sum is 1 to a few units in the last place.
    (flat,) = onnx_backend.run_node(node, [numpy_helper.from_array(X)], opset=11)
    np.testing.assert_allclose(flat.sum(), 1, rtol=1e-6)  # all axes from the first on are one
    (columns,) = onnx_backend.run_node(node, [X], opset=13)
    np.testing.assert_allclose(columns.sum(0), [1, 1, 1], rtol=1e-6)


def test_a_node_of_onnxruntime() -> None:
    node = helper.make_node(
        "QLinearSigmoid", ["x", "s", "z", "t", "u"], ["y"], domain="com.microsoft"
    )
    x = np.arange(256, dtype=np.uint8)
    small, zero = np.float32(1 / 256), np.uint8(0)
    (y,) = onnx_backend.run_node(node, [x, np.float32(0.05), np.uint8(128), small, zero])
    assert y[128] == 128
    assert np.all(np.diff(y.astype(int)) >= 0)


def test_a_shape_that_is_an_input() -> None:
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("shape", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    prepared = onnx_backend.prepare(helper.make_model(graph))
    for shape in ((3, 2), (6, 1)):
        (y,) = prepared.run([X, np.array(shape)])
        np.testing.assert_array_equal(y, X.reshape(shape))
    (y,) = prepared.run({"shape": np.array([1, 6]), "x": X})
    assert y.shape == (1, 6)


def test_the_machine_is_chosen(tmp_path: Path) -> None:
    model = onnx.load(quantized(Way("mlp", "qoperator", "u8s8", False), tmp_path))
    x = images()["Xt"][:10]
    prepared = onnx_backend.prepare(model, target="ort")
    np.testing.assert_array_equal(prepared.run([x])[0], from_onnx(model, target="ort")(x))


def test_devices() -> None:
    assert onnx_backend.supports_device("CPU")
    assert not onnx_backend.supports_device("CUDA")
    with pytest.raises(VerifyError, match="runs on the CPU"):
        onnx_backend.prepare(onnx.ModelProto(), "CUDA")


def test_too_many_inputs() -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    info = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    model = helper.make_model(helper.make_graph([node], "g", [info], [out]))
    with pytest.raises(VerifyError, match="expected 1 inputs, got 2"):
        onnx_backend.run_model(model, [X, X])


def test_a_graph_from_onnx_is_saved_and_loaded(tmp_path: Path) -> None:
    for way in (Way("cnn", "qoperator", "u8s8", True), Way("cnn", "qdq", "s8s8", False)):
        graph = from_onnx(quantized(way, tmp_path), target="ort")
        graph.save(tmp_path / "m.rq")
        again = refquant.load(tmp_path / "m.rq")
        assert str(again) == str(graph)
        x = images()["Xt"][:9]
        np.testing.assert_array_equal(again(x), graph(x))
