"""Graphs without calls: graph mode works on them as on the torch module with the same layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping as torch_mapping
from torch.ao.quantization.quantize_fx import convert_fx as torch_convert
from torch.ao.quantization.quantize_fx import prepare_fx as torch_prepare
from torch.nn import functional as F

import refquant
from refquant import UnsupportedError, get_default_qconfig_mapping, quantize_fx
from refquant.importers import from_fx, from_onnx
from refquant.importers.lift import program_of

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"
)


class Net(nn.Module):
    """Small whole numbers times powers of two, so that every order of summation is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 8, 3, padding=1)
        self.n = nn.BatchNorm2d(8, eps=0)
        self.b = nn.Conv2d(8, 8, 3, groups=4, bias=False)
        self.c = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.d = nn.Linear(4 * 36, 12)
        self.e = nn.Linear(12, 5, bias=False)
        generator = torch.Generator().manual_seed(4)
        for parameter in self.parameters():
            whole = torch.randint(-3, 4, parameter.shape, generator=generator)
            parameter.data = whole.float() / 4
        self.n.weight.data.fill_(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.n(self.a(x)))
        x = F.max_pool2d(x, 2)
        y = self.c(self.b(x))
        x = F.relu(y + y)
        return self.e(F.relu(self.d(torch.flatten(x, 1))))


def images(count: int) -> Any:
    generator = torch.Generator().manual_seed(9)
    return torch.randint(-4, 5, (count, 2, 10, 10), generator=generator).float() / 2


def exported(model: nn.Module, x: torch.Tensor, folder: Path) -> Path:
    path = folder / "m.onnx"
    torch.onnx.export(
        model, (x,), str(path), dynamo=False, do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE, dynamic_axes={"x": {0: "n"}}, input_names=["x"],
    )  # fmt: skip
    return path


@pytest.mark.parametrize("engine", ["fbgemm", "qnnpack"])
def test_an_onnx_model_is_quantized_as_torchs(engine: str, tmp_path: Path) -> None:
    x = images(16)
    model = Net().eval()
    prepared = torch_prepare(model, torch_mapping(engine), (x[:1],))
    prepared(x)
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        with torch.no_grad():
            expected = torch_convert(prepared)(x).numpy()
    finally:
        torch.backends.quantized.engine = before

    graph = from_onnx(exported(Net().eval(), x[:1], tmp_path), target=engine)
    ours = quantize_fx.prepare_fx(graph, get_default_qconfig_mapping(engine), (x[:1].numpy(),))
    ours(x.numpy())
    converted = quantize_fx.convert_fx(ours)
    np.testing.assert_array_equal(converted(x.numpy()), expected)
    assert converted.graph.target.engine == engine


def test_a_graph_from_a_file_is_quantized_as_before(tmp_path: Path) -> None:
    x = images(16).numpy()
    graph = from_fx(Net().eval(), (x[:1],))
    graph.save(tmp_path / "m.rq")
    loaded = refquant.load(tmp_path / "m.rq")
    assert loaded.program is None
    results = []
    for source in (graph, loaded):
        mapping = get_default_qconfig_mapping("fbgemm")
        prepared = quantize_fx.prepare_fx(source, mapping, (x[:1],))
        prepared(x)
        results.append(quantize_fx.convert_fx(prepared)(x))
    np.testing.assert_array_equal(*results)


def test_layers_are_modules_named_after_their_nodes(tmp_path: Path) -> None:
    graph = from_onnx(exported(Net().eval(), images(1), tmp_path))
    program = program_of(graph)
    kinds = {path: module.kind for path, module in program.root.parts.items()}
    assert list(kinds.values()).count("torch.nn.Conv2d") == 2
    assert "torch.nn.BatchNorm2d" in kinds.values()
    assert "torch.nn.ConvTranspose2d" in kinds.values()
    assert list(kinds.values()).count("torch.nn.Linear") == 2
    assert kinds["a_Conv"] == "torch.nn.Conv2d"


def test_a_mapping_names_layers_by_node(tmp_path: Path) -> None:
    x = images(4).numpy()
    graph = from_onnx(exported(Net().eval(), images(1), tmp_path))
    mapping = get_default_qconfig_mapping("fbgemm").set_module_name("d_Gemm", None)
    prepared = quantize_fx.prepare_fx(graph, mapping, (x[:1],))
    prepared(x)
    ops = [node.op for node in quantize_fx.convert_fx(prepared).graph.nodes]
    assert "aten::linear" in ops
    assert "quantized::linear" in ops


def test_a_product_and_the_bias_behind_it_are_one_layer() -> None:
    import onnx
    from onnx import helper

    w = np.arange(6, dtype=np.float32).reshape(3, 2)
    b = np.float32([1, -1])
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [4, 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(w, "w"), onnx.numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (module,) = program_of(from_onnx(model)).root.parts.values()
    assert module.kind == "torch.nn.Linear"
    np.testing.assert_array_equal(module.bias, b)


def test_a_graph_with_observers_is_not_lifted() -> None:
    x = images(1).numpy()
    graph = from_fx(Net().eval(), (x,))
    prepared = quantize_fx.prepare_fx(graph, get_default_qconfig_mapping("fbgemm"), (x,))
    observed = prepared.graph
    observed.program = None
    with pytest.raises(UnsupportedError, match="has observers but not the calls"):
        program_of(observed)
