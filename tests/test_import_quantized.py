"""Importing prepared, converted, reference, decomposed, dynamic and QAT graphs of torch."""

from __future__ import annotations

from typing import Any

import flows
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refquant.compare import graph_diff, run_diff
from refquant.importers import from_fx
from refquant.importers.fx_torch import as_arrays, record_fx
from refquant.ir import Graph, QTensor, UnsupportedError, load
from refquant.kernels.layout import is_channels_last

SHAPE = (2, 3, 12, 12)


class Everything(nn.Module):
    """The node kinds that fbgemm lowers, and float islands between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.dw = nn.Sequential(
            nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.group = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(16)
        self.layer_norm = nn.LayerNorm(6)
        self.instance_norm = nn.InstanceNorm2d(16, affine=True)
        self.group_norm = nn.GroupNorm(4, 16)
        self.leaky, self.elu, self.hardswish = nn.LeakyReLU(0.1), nn.ELU(), nn.Hardswish()
        self.prelu, self.gelu = nn.PReLU(), nn.GELU()
        self.up = nn.ConvTranspose2d(16, 8, 3, 2)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.drop = nn.Dropout(0.3)
        self.fc1, self.fc2 = nn.Linear(64, 20), nn.Linear(20, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.dw(x)
        x = F.relu(x + y) * self.leaky(self.group(y))
        x = torch.cat([x, self.hardswish(self.norm(x))], 1)[:, :16]
        x = self.elu(x) + 0.5
        x = self.instance_norm(x) * 2.0
        x = self.layer_norm(x)
        x = x + torch.sigmoid(x) * torch.tanh(y)
        x = self.prelu(x) + self.gelu(y)
        x = F.hardsigmoid(x) + F.avg_pool2d(F.max_pool2d(y, 3, 1, 1), 3, 1, 1)
        x = self.group_norm(x).clamp(-0.7, 1.5)
        z = F.interpolate(x, scale_factor=2.0)
        z = z.mean([2, 3]) + self.up(x).mean((2, 3)).repeat(1, 2)
        x = self.drop(torch.flatten(self.pool(x), 1))
        x = F.relu(self.fc1(x)) + z.sum(1, keepdim=True)
        return self.fc2(x)


class Mobile(nn.Module):
    """Squeeze-excite and hard activations, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1, bias=False)
        self.act = nn.Hardswish(inplace=True)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.gate = nn.Hardsigmoid(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.conv(x))
        s = F.adaptive_avg_pool2d(x, 1)
        s = self.gate(self.excite(F.relu(self.squeeze(s), inplace=True)))
        return (s * x).reshape(x.shape[0], -1)


class Dimensions(nn.Module):
    """Convolutions of one and three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(3, 8, 3, padding=1)
        self.conv3 = nn.Conv3d(2, 4, 3, padding=1)
        self.norm3 = nn.BatchNorm3d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.conv1(x.flatten(2)))
        z = F.relu(self.norm3(self.conv3(y.reshape(x.size(0), 2, 4, 12, 12))))
        return F.avg_pool3d(z, 2).flatten(1)


class Attention(nn.Module):
    """Quantized linears around float attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(12, 36), nn.Linear(12, 12), nn.LayerNorm(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.flatten(1, 2))
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q @ k.transpose(-2, -1) * 0.4).softmax(-1)
        return x + self.out((a @ v).transpose(1, 2).reshape(b, n, c))


NETS: dict[str, type[nn.Module]] = {
    "everything": Everything,
    "mobile": Mobile,
    "dimensions": Dimensions,
    "attention": Attention,
}
# Ops whose float sums or transcendentals have torch's order or last bit nowhere promised.
UNPROMISED = {
    "aten::gelu": 1e-6,
    "aten::matmul": 1e-5,
    "aten::softmax": 1e-6,
    "aten::group_norm": 1e-5,
    "aten::layer_norm": 1e-5,
}


@pytest.fixture(scope="module")
def prepared() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: flows.prepare(make(), SHAPE) for name, make in NETS.items()}


def example() -> tuple[torch.Tensor]:
    return (torch.randn(SHAPE, generator=torch.Generator().manual_seed(5)),)


@pytest.mark.parametrize("executor", ["reference", "fast"])
@pytest.mark.parametrize("name", NETS)
def test_a_converted_network_is_bit_exact(
    prepared: dict[str, nn.Module], name: str, executor: Any
) -> None:
    model = flows.convert(prepared[name])
    graph = from_fx(model, example())
    with flows.fbgemm():
        diff = run_diff(graph, model, example(), executor=executor)
    assert len(diff.rows) > 5
    own = [row for row in diff.rows if not row.equal and not row.inherited]
    for row in own:
        assert row.op in UNPROMISED, str(row)
        assert row.max_step <= UNPROMISED[row.op] * 10, str(row)
    if name in ("mobile", "dimensions"):
        assert diff.bit_exact, str(diff)


@pytest.mark.parametrize("name", NETS)
def test_a_converted_network_has_torchs_nodes(prepared: dict[str, nn.Module], name: str) -> None:
    model = flows.convert(prepared[name])
    graph = from_fx(model, example())
    assert not graph_diff(graph, model)
    imported = {node.origin.node for node in graph.nodes if node.origin}
    tensors = record_fx(model, example(), graph.target)
    computed = {
        node.name
        for node in model.graph.nodes
        if node.op.startswith("call") and (node.name in tensors or f"{node.name}.0" in tensors)
    }
    parts = {name for name in computed - imported if name.startswith("getitem")}
    computed -= parts  # what a node with several results gives has the node's name
    assert imported == computed


@pytest.mark.parametrize("name", NETS)
def test_a_prepared_network_keeps_every_observer(
    prepared: dict[str, nn.Module], name: str
) -> None:
    model = prepared[name]
    graph = from_fx(model, example())
    observers = {
        path: module
        for path, module in model.named_modules()
        if path.startswith("activation_post_process") and "." not in path
    }
    used = {node.target for node in model.graph.nodes if node.op == "call_module"}
    assert set(graph.modules) == set(observers) & used
    for path, module in graph.modules.items():
        for key, value in observers[path].state_dict().items():
            np.testing.assert_array_equal(module.state[key], value.numpy())
    close(graph, model)


@pytest.mark.parametrize("form", ["reference", "decomposed"])
@pytest.mark.parametrize("name", NETS)
def test_a_reference_network_agrees(prepared: dict[str, nn.Module], name: str, form: str) -> None:
    model = flows.convert(prepared[name], form)
    graph = from_fx(model, example())
    ops = {node.op for node in graph.nodes}
    prefix = "quantized_decomposed::" if form == "decomposed" else "aten::"
    assert f"{prefix}quantize_per_tensor" in ops
    quantizers_are_exact_on_torchs_operands(graph, model)


@pytest.mark.parametrize("form", ["lowered", "reference"])
def test_a_dynamic_network_agrees(form: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(432, 30), nn.ReLU(), nn.Linear(30, 5))
    model = flows.dynamic(net, SHAPE, form)
    graph = from_fx(model, example())
    if form == "lowered":
        assert "quantized::linear_relu_dynamic" in {node.op for node in graph.nodes}
        for executor in ("reference", "fast"):
            with flows.fbgemm():
                assert run_diff(graph, model, example(), executor=executor).bit_exact
    else:
        quantizers_are_exact_on_torchs_operands(graph, model)


def test_a_qat_network_keeps_its_fake_quants() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(800, 5)
    )
    model = flows.prepare_qat(net, SHAPE)
    model.apply(torch.ao.quantization.disable_observer)
    graph = from_fx(model, example())
    kinds = [node.op for node in graph.nodes]
    assert kinds.count("observer::fake_quantize") == sum(
        "fake_quant" in path or path.startswith("activation_post_process")
        for path, _ in model.named_modules()
        if not path.endswith(".activation_post_process")
    )
    close(graph, model, 0.05)


def close(graph: Graph, model: nn.Module, limit: float = 1e-4) -> None:
    """Float networks: within ``limit`` of the largest result (float sums are not promised)."""
    with flows.fbgemm():
        expected = model(*example()).numpy()
    actual = graph(example()[0].numpy())
    largest = float(np.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit * largest)


def quantizers_are_exact_on_torchs_operands(graph: Graph, model: nn.Module) -> None:
    """Float sums are not promised, so a value near a tie may land one step beside torch's.

    Each quantizer is therefore checked on torch's own input, where it must be exact.
    """
    with flows.fbgemm():
        diff = run_diff(graph, model, example(), executor="reference")
    quantizers = [row for row in diff.rows if "quantize" in row.op]
    assert quantizers
    assert all(row.equal or row.inherited for row in quantizers), str(diff)
    close(graph, model, 0.1)


def test_a_quantized_network_survives_its_file(
    prepared: dict[str, nn.Module], tmp_path: Any
) -> None:
    model = flows.convert(prepared["everything"])
    graph = from_fx(model, example())
    x = example()[0].numpy()
    before = graph.run(x, record=True).values
    graph.save(tmp_path / "net.rq")
    after = load(tmp_path / "net.rq").run(x, record=True).values
    assert before.keys() == after.keys()
    for name, value in before.items():
        other = after[name]
        if isinstance(value, QTensor):
            assert isinstance(other, QTensor)
            value, other = value.int_repr, other.int_repr
        np.testing.assert_array_equal(value, other)


def test_the_batch_of_a_quantized_network_is_symbolic(prepared: dict[str, nn.Module]) -> None:
    model = flows.convert(prepared["mobile"])
    graph = from_fx(model, example())
    assert str(graph.inputs[0].type) == "float32[N, 3, 12, 12]"
    inputs = (torch.randn(5, 3, 12, 12),)
    with flows.fbgemm():
        assert run_diff(graph, model, inputs).bit_exact


class Layouts(nn.Module):
    """Layers whose operands differ in memory format, scale or origin."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.dw = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.reflect = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
        self.attend = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.squeeze, self.shuffle = nn.AdaptiveAvgPool2d(1), nn.PixelShuffle(2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.a(x)
        y = 0.3 * self.reflect(F.relu(self.dw(x))) - 1
        gate = self.attend(self.squeeze(x).squeeze(-1).transpose(-1, -2)).transpose(-1, -2)
        x = torch.stack([x, y], 1)[:, 1] * gate.unsqueeze(-1).sigmoid().expand_as(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)
        z = self.shuffle(torch.roll(x, 1, 3))
        up = F.interpolate(self.squeeze(z), size=(h, w), mode="nearest")
        return up, z.mean((2, 3)), self.fc(x.mean(3)), F.leaky_relu(x, 0.2).amax(1)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("executor", ["reference", "fast"])
def test_memory_formats_are_torchs(executor: Any, memory_format: Any) -> None:
    torch.manual_seed(0)
    model = flows.convert(flows.prepare(Layouts(), SHAPE))
    inputs = (example()[0].contiguous(memory_format=memory_format),)
    graph = from_fx(model, inputs)
    with flows.fbgemm():
        expected = record_fx(model, inputs, graph.target)
        diff = run_diff(graph, model, inputs, executor=executor)
    assert [row for row in diff.rows if not row.equal and not row.inherited] == []
    values = graph.run(*as_arrays(inputs), executor=executor, record=True).values
    for name in expected.keys() & values.keys():
        theirs, ours = (getattr(v, "int_repr", v) for v in (expected[name], values[name]))
        assert is_channels_last(ours) == is_channels_last(theirs), name


def test_a_reference_convolution_pads_with_zeros_as_torchs_does() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    model = flows.convert(flows.prepare(net, SHAPE), "decomposed")
    quantizers_are_exact_on_torchs_operands(from_fx(model, example()), model)


def test_a_transposed_convolution_that_torch_computes_arbitrarily_is_refused() -> None:
    net = nn.Sequential(nn.ConvTranspose2d(16, 8, 2, 2))
    model = flows.convert(flows.prepare(net, (1, 16, 4, 4)))
    graph = from_fx(model, (torch.zeros(1, 16, 4, 4),))
    with pytest.raises(UnsupportedError, match="its results are not defined"):
        graph.run(np.zeros((1, 16, 4, 4), np.float32))
