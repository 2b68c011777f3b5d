"""Exported graphs: what the contract calls exact is onnxruntime's result to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from quantized_digits import DATA, Way, images, quantized
from runtime import run
from torch import nn
from torch.ao.quantization import (
    QConfigMapping,
    default_dynamic_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.quantize_fx import (
    _convert_to_reference_decomposed_fx,
    convert_fx,
    convert_to_reference_fx,
    prepare_fx,
    prepare_qat_fx,
)

import refquant
from refquant import QTensor, Target, qint8
from refquant.importers import from_fx, from_onnx
from refquant.importers.builder import Builder
from refquant.ir.graph import Graph, Origin
from refquant.ir.types import Dim, QParams, TensorType, quint8
from refquant.kernels.accumulate import Sums as Adding
from refquant.kernels.requantize import FLOAT_BIAS, Rounding
from refquant.onnx_export import onnx_model
from refquant.onnx_export.quantized import may_saturate
from refquant.onnx_export.requantization import Sums, bounds, is_same, linear, spelled, steps

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
ENGINES = ("fbgemm", "qnnpack", "onednn")
rng = np.random.default_rng(11)


def layer(op: str, x: Any, weight: Any, bias: Any, engine: str, **attributes: Any) -> Graph:
    """Return a graph of one quantized layer on quantized input."""
    b = Builder()
    kind = TensorType(quint8, (Dim("N"), *x.shape[1:]), QParams(x.scale, x.zero_point))
    value = b.input("x", kind)
    b.open(Origin("onnx", op, "y"))
    packed = b.parameter("w", weight)
    added = None if bias is None else b.parameter("b", bias)
    y = b.close("y", b.emit(op, value, packed, added, **attributes))
    b.graph.outputs = (y,)
    b.graph.provenance = {"target": str(Target(engine))}
    b.graph.verify()
    return b.graph


def quantized_weight(shape: tuple[int, ...], per_channel: bool) -> QTensor:
    values = rng.integers(-128, 128, shape).astype(np.int8)
    if not per_channel:
        return QTensor(values, float(rng.uniform(0.001, 0.1)), 0, None, qint8)
    scales = rng.uniform(0.001, 0.1, shape[0])
    return QTensor(values, scales, np.zeros(shape[0], np.int64), 0, qint8)


def output_scale(weight: QTensor, x: QTensor) -> float:
    """Return a scale that lets results fill the range without leaving it much."""
    depth = int(np.prod(weight.shape[1:]))
    return float(np.max(weight.scale)) * float(x.scale) * 74 * 60 * depth**0.5 / 128


def compare(graph: Graph, x: QTensor, *, exact: bool = True) -> str:
    model, contract = onnx_model(graph, "qoperator")
    (promise,) = contract
    expected = graph(x).int_repr
    (found,) = run(model, x.int_repr)
    if exact:
        assert promise.exact, promise
    if promise.exact:
        np.testing.assert_array_equal(found, expected)
    return promise.written


CONVOLUTIONS = [
    ((4, 16, 9, 11), (24, 16, 3, 3), {"padding": (1, 1)}),
    ((4, 16, 9, 11), (24, 16, 1, 1), {}),
    ((3, 12, 10, 10), (18, 4, 3, 3), {"groups": 3, "stride": (2, 2)}),
    ((2, 3, 15, 15), (8, 3, 5, 5), {"dilation": (2, 2), "padding": (2, 1)}),
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("sizes", "kernel", "how"), CONVOLUTIONS)
def test_convolutions_are_exact(
    engine: str,
    per_channel: bool,
    relu: bool,
    bias: bool,
    sizes: Any,
    kernel: Any,
    how: dict[str, Any],
) -> None:
    x = QTensor(rng.integers(0, 256, sizes).astype(np.uint8), float(rng.uniform(0.01, 0.1)), 113)
    weight = quantized_weight(kernel, per_channel)
    scale = output_scale(weight, x)
    added = rng.standard_normal(kernel[0]).astype(np.float32) * scale * 30 if bias else None
    attributes = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, **how}
    op = f"quantized::conv2d{'_relu' if relu else ''}"
    graph = layer(op, x, weight, added, engine, **attributes, scale=scale, zero_point=117)
    compare(graph, x)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("leading", [(2000,), (40, 50)])
def test_linears_are_exact(
    engine: str, per_channel: bool, relu: bool, bias: bool, leading: tuple[int, ...]
) -> None:
    values = rng.integers(0, 256, (*leading, 70)).astype(np.uint8)
    x = QTensor(values, float(rng.uniform(0.01, 0.1)), 3)
    weight = quantized_weight((30, 70), per_channel)
    scale = output_scale(weight, x)
    added = rng.standard_normal(30).astype(np.float32) * scale * 30 if bias else None
    op = f"quantized::linear{'_relu' if relu else ''}"
    graph = layer(op, x, weight, added, engine, scale=scale, zero_point=9)
    compare(graph, x)


def test_an_operator_that_rounds_is_taken_where_it_is_proved() -> None:
    x = QTensor(rng.integers(0, 256, (2, 8, 6, 6)).astype(np.uint8), 0.05, 0)
    weight = quantized_weight((8, 8, 3, 3), True)
    how = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}
    graph = layer("quantized::conv2d", x, weight, None, "fbgemm", **how, scale=1.5, zero_point=0)
    assert compare(graph, x) == "QLinearConv"
    bias = rng.standard_normal(8).astype(np.float32)
    graph = layer("quantized::conv2d", x, weight, bias, "fbgemm", **how, scale=1.5, zero_point=0)
    assert compare(graph, x).startswith("ConvInteger Cast")


def test_a_depthwise_layer_that_may_saturate_is_not_promised() -> None:
    x = QTensor(np.full((1, 16, 5, 5), 255, np.uint8), 1.0, 0)
    how = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 16}
    strong = QTensor(np.full((16, 1, 3, 3), 127, np.int8), 1.0, 0, None, qint8)
    arguments = ("quantized::conv2d", x)
    graph = layer(*arguments, strong, None, "fbgemm", **how, scale=1500.0, zero_point=0)
    model, (promise,) = onnx_model(graph, "qoperator")
    assert not promise.exact
    assert "saturate" in promise.why
    assert np.any(run(model, x.int_repr)[0] != graph(x).int_repr)
    weak = QTensor(np.full((16, 1, 3, 3), 64, np.int8), 1.0, 0, None, qint8)
    graph = layer(*arguments, weak, None, "fbgemm", **how, scale=1500.0, zero_point=0)
    compare(graph, x)
    assert may_saturate(strong.int_repr, Adding.PAIRED)
    assert not may_saturate(weak.int_repr, Adding.PAIRED)


# ---- the proof


def sums(bias: Any, scale: float = 0.3) -> Sums:
    weight = np.int8([[100, -100, 3], [7, 7, 7]])
    constants = FLOAT_BIAS.constants(0.11, np.array([0.01, 0.02]), scale, bias, 2)
    ends = bounds(weight, np.zeros(2, np.int64), 5)
    return Sums(FLOAT_BIAS, constants, Rounding(scale, 13), *ends)


def test_steps_are_where_brute_force_finds_them() -> None:
    case = sums(np.float32([0.7, -0.2]))
    found = steps(case.finish, case)
    for channel in range(2):
        every = np.arange(case.low[channel], case.high[channel] + 1, dtype=np.int32)
        results = case.finish(np.stack([every, every], 1))[:, channel]
        for k, step in enumerate(found[:, channel], 1):
            reached = np.flatnonzero(results >= k)
            expected = every[reached[0]] if len(reached) else case.high[channel] + 1
            assert step == expected


def test_forms_that_differ_anywhere_are_told_apart() -> None:
    bias = np.float32([0.7, -0.2])
    case = sums(bias)
    form = linear(case, np.float32([0.0011, 0.0022]), bias)
    assert not is_same(lambda total: form.finish(total, case.rounding), case)
    chain = spelled(case)
    assert chain is not None
    assert is_same(chain.finish, case)
    step = steps(case.finish, case)[60, 0]
    for wrong in (
        lambda total: case.finish(total + 1),
        lambda total: np.minimum(case.finish(total), 50),
        lambda total: case.finish(total - (total == step)),
    ):
        assert not is_same(wrong, case)


# ---- whole networks


class Net(nn.Module):
    """Convolutions and linears, what moves values between them, and functions of a byte."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 24, 3, stride=2, groups=2)
        self.c = nn.Linear(24 * 9, 20)
        self.d = nn.Linear(20, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.a(x)), 2)
        x = torch.nn.functional.hardswish(self.b(x)).flatten(1)
        return torch.sigmoid(self.d(torch.relu(self.c(x))))


def network(engine: str) -> tuple[Any, Any]:
    torch.manual_seed(3)
    x = torch.randn(64, 3, 14, 14)
    prepared = prepare_fx(Net().eval(), get_default_qconfig_mapping(engine), (x[:1],))
    prepared(x)
    return prepared, x


@pytest.mark.parametrize("engine", ["fbgemm", "x86", "qnnpack"])
def test_a_network_of_torch_is_exact(engine: str, tmp_path: Path) -> None:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        prepared, x = network(engine)
        model = convert_fx(prepared)
        with torch.no_grad():
            expected = model(x).numpy()
        graph = from_fx(model, (x,), target=engine)
    finally:
        torch.backends.quantized.engine = before
    contract = refquant.export_onnx(graph, tmp_path / "m.onnx", "qoperator")
    assert {promise.op for promise in contract.inexact} <= {"aten::quantize_per_tensor"}
    np.testing.assert_array_equal(run(tmp_path / "m.onnx", x.numpy())[0], expected)
    evaluator = ReferenceEvaluator(str(tmp_path / "m.onnx"))
    np.testing.assert_array_equal(evaluator.run(None, {"x": x.numpy()})[0], expected)
    again = from_onnx(tmp_path / "m.onnx", target="ort")
    np.testing.assert_array_equal(again(x.numpy()), expected)
    # The other form may move a result by a step here and there.
    refquant.export_onnx(graph, tmp_path / "q.onnx", "qdq")
    found = run(tmp_path / "q.onnx", x.numpy())[0]
    assert np.mean(found != expected) < 0.1
    np.testing.assert_array_equal(from_onnx(tmp_path / "q.onnx", target="ort")(x.numpy()), found)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
@pytest.mark.parametrize("kind", ["reference", "decomposed", "fake-quantized", "float"])
def test_other_graphs(kind: str, form: Any, tmp_path: Path) -> None:
    prepared, x = network("fbgemm")
    if kind == "reference":
        model = convert_to_reference_fx(prepared)
    elif kind == "decomposed":
        model = _convert_to_reference_decomposed_fx(prepared)
    elif kind == "float":
        model = Net().eval()
    else:
        mapping = get_default_qat_qconfig_mapping("fbgemm")
        model = prepare_qat_fx(Net().train(), mapping, (x[:1],))
        model(x)
        model.eval()
    graph = from_fx(model, (x,))
    contract = refquant.export_onnx(graph, tmp_path / "m.onnx", form)
    assert len(contract) == len(graph.nodes)
    with torch.no_grad():
        expected = model(x).numpy()
    found = run(tmp_path / "m.onnx", x.numpy())[0]
    # A step of the last activation where values are quantized, else the order of float sums.
    np.testing.assert_allclose(found, expected, atol=1e-6 if kind == "float" else 2 / 256)
    evaluator = ReferenceEvaluator(str(tmp_path / "m.onnx"))
    again = evaluator.run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(again, found, atol=1e-6 if kind == "float" else 2 / 256)


class Others(nn.Module):
    """Layers that ONNX has for floats only, and functions of a byte."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3)
        self.t = nn.ConvTranspose2d(8, 4, 2, 2)
        self.n = nn.LayerNorm([4, 4, 4])
        self.l = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.n(self.t(torch.relu(self.a(x))))
        y = self.l(torch.nn.functional.elu(x.flatten(1)))
        return torch.softmax(y * y + 0.5, 1)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_layers_of_other_kinds(form: Any) -> None:
    torch.manual_seed(1)
    x = torch.randn(8, 3, 4, 4)
    prepared = prepare_fx(Others().eval(), get_default_qconfig_mapping("fbgemm"), (x,))
    prepared(x)
    graph = from_fx(convert_fx(prepared), (x,))
    model, _ = onnx_model(graph, form)
    # Layers between conversions may move an activation by a step, whose softmax moves by less.
    np.testing.assert_allclose(run(model, x.numpy())[0], graph(x.numpy()), atol=0.05)


@pytest.mark.parametrize("form", ["qdq", "qoperator"])
def test_dynamic_linears(form: Any) -> None:
    torch.manual_seed(2)
    x = torch.randn(40, 24)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 6)).eval()
    mapping = QConfigMapping().set_global(default_dynamic_qconfig)
    graph = from_fx(convert_fx(prepare_fx(model, mapping, (x,))), (x,))
    written, contract = onnx_model(graph, form)
    assert all("ONNX takes all 8 bits" in promise.why for promise in contract)
    with torch.no_grad():
        real = model(x).numpy()
    # Both quantize their inputs, to 8 and to 7 bits: they are near the float layer, not equal.
    for found in (run(written, x.numpy())[0], graph(x.numpy())):
        np.testing.assert_allclose(found, real, atol=0.05)


def test_an_onnx_network_is_quantized_and_written(tmp_path: Path) -> None:
    data = images()
    graph = from_onnx(DATA / "digits_cnn.onnx")
    mapping = refquant.get_default_qconfig_mapping("fbgemm")
    prepared = refquant.quantize_fx.prepare_fx(graph, mapping, (data["X"][:1],))
    prepared(data["X"][:256])
    quantized = refquant.quantize_fx.convert_fx(prepared)
    contract = refquant.export_onnx(quantized.graph, tmp_path / "m.onnx", "qoperator")
    exact = {promise.op for promise in contract if promise.exact}
    assert {"quantized::conv2d_relu", "quantized::linear", "quantized::linear_relu"} <= exact
    found = run(tmp_path / "m.onnx", data["Xt"])[0]
    np.testing.assert_array_equal(found, quantized(data["Xt"]))


def test_the_contract_reads_as_a_table() -> None:
    prepared, x = network("fbgemm")
    _, contract = onnx_model(from_fx(convert_fx(prepared), (x,)), "qoperator")
    first, *rows = str(contract).splitlines()
    assert (
        first == f"{len(contract) - len(rows)} of {len(contract)} nodes are reproduced bit for bit"
    )
    assert rows
    assert all(" may differ: " in row for row in rows)


@pytest.mark.parametrize("network", ["cnn", "mlp", "lstm"])
@pytest.mark.parametrize("form", ["qdq", "qoperator", "dynamic"])
def test_quantized_models_go_out_as_they_came(network: str, form: str, tmp_path: Path) -> None:
    model = quantized(Way(network, form, "u8s8", True), tmp_path)
    refquant.export_onnx(from_onnx(model, target="ort"), tmp_path / "m.onnx")
    few = images()["Xt"][:30]
    np.testing.assert_array_equal(run(tmp_path / "m.onnx", few)[0], run(model, few)[0])


class Selections(nn.Module):
    """Reductions, selections, norms and attention, with the batch in shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.GroupNorm(2, 8)
        self.i = nn.InstanceNorm1d(8)
        self.start = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.i(self.g(x))
        y = torch.cat([self.start.expand(x.shape[0], -1, -1), y], 1)
        y = torch.nn.functional.scaled_dot_product_attention(y, y, y)
        y = y.masked_fill(y > 0.5, 0.25) + y.sum(1, keepdim=True) - y.amax(1, keepdim=True)
        top = torch.topk(y, 3, 2)[0].index_select(1, torch.tensor([0, 2, 5]))
        rest = torch.where(y[:, :3, :3] > 0, y[:, 1:4, 1:4], y[:, :3, 3:]).repeat(1, 2, 1)
        return torch.cat([top, torch.cumsum(torch.tril(rest[:, :3]), 1), rest.rsqrt().square()], 1)


def test_a_length_that_is_a_multiple_of_the_batch() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.row = nn.Parameter(torch.arange(3.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = torch.cat([x, x])
            return both + self.row.expand(both.shape[0], -1)

    x = torch.rand(4, 3)
    model = Twice().eval()
    graph = from_fx(model, (x,))
    assert str(graph.outputs[0].type) == "float32[2*N, 3]"
    written, _ = onnx_model(graph)
    for batch in (4, 3):
        with torch.no_grad():
            expected = model(x[:batch]).numpy()
        np.testing.assert_array_equal(run(written, x[:batch].numpy())[0], expected)


def test_operations_on_axes() -> None:
    torch.manual_seed(5)
    x = torch.rand(4, 8, 6) + 1
    model = Selections().eval()
    graph = from_fx(model, (x,))
    written, _ = onnx_model(graph)
    for batch in (4, 2):
        with torch.no_grad():
            expected = model(x[:batch]).numpy()
        # Norms, softmax and sums in another order than torch's.
        np.testing.assert_allclose(run(written, x[:batch].numpy())[0], expected, atol=2e-5)


# ---- refusals


def test_what_cannot_be_written_is_listed(tmp_path: Path) -> None:
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.flip(torch.sort(x, stable=True)[0], (1,))

    graph = from_fx(Strange(), (torch.zeros(2, 3),))
    with pytest.raises(refquant.UnsupportedError, match=r"2 nodes have no form in ONNX: .*sort"):
        refquant.export_onnx(graph, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_another_format_is_refused() -> None:
    graph = from_fx(nn.ReLU(), (torch.zeros(2, 3),))
    with pytest.raises(refquant.VerifyError, match="'qdq' or 'qoperator', got 'q'"):
        refquant.export_onnx(graph, None, "q")  # type: ignore[arg-type]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    graph = from_fx(nn.ReLU(), (torch.zeros(2, 3),))
    with pytest.raises(refquant.VerifyError, match="No such file"):
        refquant.export_onnx(graph, tmp_path / "none" / "m.onnx")


def test_the_file_passes_the_checker(tmp_path: Path) -> None:
    prepared, x = network("fbgemm")
    graph = from_fx(convert_fx(prepared), (x,))
    for form in ("qdq", "qoperator"):
        refquant.export_onnx(graph, tmp_path / "m.onnx", form)  # type: ignore[arg-type]
        onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
