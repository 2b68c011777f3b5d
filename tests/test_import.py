"""Importing float torch modules: every node kind of common CNNs and small ViTs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import BLOCKS
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping, quantize_fx

from refquant.importers import from_fx
from refquant.ir import Graph, UnsupportedError, VerifyError, parse

Forward = Callable[[torch.Tensor], Any]


class Call(nn.Module):
    """A module that is one function of its input."""

    def __init__(self, function: Forward) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


IMAGE, VOLUME, SEQUENCE, TABLE = (2, 4, 8, 8), (2, 4, 4, 6, 6), (2, 4, 10), (2, 12)

MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), SEQUENCE),
    "conv2d": (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), IMAGE),
    "conv2d-same": (nn.Conv2d(4, 4, 4, padding="same", groups=2), IMAGE),
    "conv2d-valid": (nn.Conv2d(4, 4, (1, 3), padding="valid", dilation=2), IMAGE),
    "conv2d-reflect": (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv3d": (nn.Conv3d(4, 2, 3, padding=1), VOLUME),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 3, 3, stride=2), SEQUENCE),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 3, 3, 2, 1, output_padding=1), IMAGE),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 3, 2), VOLUME),
    "linear": (nn.Linear(12, 5), TABLE),
    "batch_norm1d": (nn.BatchNorm1d(4), SEQUENCE),
    "batch_norm2d": (nn.BatchNorm2d(4, affine=False), IMAGE),
    "batch_norm3d": (nn.BatchNorm3d(4), VOLUME),
    "layer_norm": (nn.LayerNorm([8, 8]), IMAGE),
    "group_norm": (nn.GroupNorm(2, 4), IMAGE),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True), IMAGE),
    "relu": (nn.ReLU(), TABLE),
    "relu-inplace": (nn.ReLU(inplace=True), TABLE),
    "relu6": (nn.ReLU6(), TABLE),
    "gelu": (nn.GELU(), TABLE),
    "gelu-tanh": (nn.GELU("tanh"), TABLE),
    "silu": (nn.SiLU(), TABLE),
    "sigmoid": (nn.Sigmoid(), TABLE),
    "hardsigmoid": (nn.Hardsigmoid(), TABLE),
    "hardswish": (nn.Hardswish(), TABLE),
    "hardtanh": (nn.Hardtanh(-0.3, 0.6), TABLE),
    "leaky_relu": (nn.LeakyReLU(0.2), TABLE),
    "prelu": (nn.PReLU(4), IMAGE),
    "elu": (nn.ELU(0.7), TABLE),
    "tanh": (nn.Tanh(), TABLE),
    "softmax": (nn.Softmax(-1), TABLE),
    "log_softmax": (nn.LogSoftmax(1), TABLE),
    "threshold": (nn.Threshold(0.1, 2.0), TABLE),
    "celu": (nn.CELU(0.7), TABLE),
    "selu": (nn.SELU(), TABLE),
    "rrelu": (nn.RReLU(), TABLE),
    "glu": (nn.GLU(1), TABLE),
    "mish": (nn.Mish(), TABLE),
    "softplus": (nn.Softplus(2.0), TABLE),
    "softsign": (nn.Softsign(), TABLE),
    "softmin": (nn.Softmin(1), TABLE),
    "softmax2d": (nn.Softmax2d(), IMAGE),
    "tanhshrink": (nn.Tanhshrink(), TABLE),
    "hardshrink": (nn.Hardshrink(), TABLE),
    "softshrink": (nn.Softshrink(), TABLE),
    "log_sigmoid": (nn.LogSigmoid(), TABLE),
    "local_response_norm": (nn.LocalResponseNorm(3), IMAGE),
    "local_response_norm-1d": (nn.LocalResponseNorm(2), SEQUENCE),
    "adaptive_max_pool2d": (nn.AdaptiveMaxPool2d((3, None)), IMAGE),
    "unfold": (nn.Unfold(3, padding=1), IMAGE),
    "dropout": (nn.Dropout(), TABLE),
    "dropout2d": (nn.Dropout2d(), IMAGE),
    "identity": (nn.Identity(), TABLE),
    "max_pool1d": (nn.MaxPool1d(3, 2), SEQUENCE),
    "max_pool2d": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "max_pool3d": (nn.MaxPool3d(2), VOLUME),
    "avg_pool1d": (nn.AvgPool1d(3, 2, 1), SEQUENCE),
    "avg_pool2d": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "avg_pool3d": (nn.AvgPool3d(2), VOLUME),
    "adaptive_avg_pool1d": (nn.AdaptiveAvgPool1d(3), SEQUENCE),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((3, None)), IMAGE),
    "adaptive_avg_pool3d": (nn.AdaptiveAvgPool3d(2), VOLUME),
    "lp_pool2d": (nn.LPPool2d(2, 2), IMAGE),
    "upsample-nearest": (nn.Upsample(scale_factor=2), IMAGE),
    "upsample-bilinear": (nn.Upsample((13, 5), mode="bilinear"), IMAGE),
    "upsample-bilinear-corners": (nn.UpsamplingBilinear2d(scale_factor=2), IMAGE),
    "flatten": (nn.Flatten(), IMAGE),
    "unflatten": (nn.Unflatten(1, (3, 4)), TABLE),
    "pixel_shuffle": (nn.PixelShuffle(2), IMAGE),
    "pixel_unshuffle": (nn.PixelUnshuffle(2), IMAGE),
    "channel_shuffle": (nn.ChannelShuffle(2), IMAGE),
    "zero_pad": (nn.ZeroPad2d((1, 2, 0, 1)), IMAGE),
    "constant_pad": (nn.ConstantPad2d(1, 0.5), IMAGE),
    "reflection_pad": (nn.ReflectionPad2d(2), IMAGE),
    "replication_pad": (nn.ReplicationPad2d(1), IMAGE),
}

_WEIGHT = torch.arange(24, dtype=torch.float32).reshape(6, 4) / 8 - 1

CALLS: dict[str, tuple[Forward, tuple[int, ...]]] = {
    "F.relu": (lambda x: F.relu(x, inplace=False), TABLE),
    "relu_": (lambda x: (x + 0).relu_(), TABLE),
    "F.relu6": (lambda x: F.relu6(x), TABLE),
    "F.gelu": (lambda x: F.gelu(x), TABLE),
    "F.silu": (lambda x: F.silu(x), TABLE),
    "F.hardswish": (lambda x: F.hardswish(x), TABLE),
    "F.hardsigmoid": (lambda x: F.hardsigmoid(x), TABLE),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.1), TABLE),
    "F.elu": (lambda x: F.elu(x), TABLE),
    "torch.sigmoid": (lambda x: torch.sigmoid(x) * x.sigmoid(), TABLE),
    "torch.tanh": (lambda x: torch.tanh(x) + x.tanh(), TABLE),
    "F.softmax": (lambda x: F.softmax(x, dim=1) + x.softmax(-1), TABLE),
    "F.dropout": (lambda x: F.dropout(x, 0.5, False), TABLE),
    "F.max_pool2d": (lambda x: F.max_pool2d(x, 2), IMAGE),
    "F.avg_pool2d": (lambda x: F.avg_pool2d(x, (2, 4)), IMAGE),
    "F.adaptive_avg_pool2d": (lambda x: F.adaptive_avg_pool2d(x, 1), IMAGE),
    "F.lp_pool2d": (lambda x: F.lp_pool2d(x, 3.0, 2), IMAGE),
    "F.interpolate": (lambda x: F.interpolate(x, scale_factor=1.5, mode="nearest"), IMAGE),
    "F.interpolate-size": (
        lambda x: F.interpolate(x, size=x.shape[2:], mode="bilinear", align_corners=False),
        IMAGE,
    ),
    "F.normalize": (lambda x: F.normalize(x, dim=-1), TABLE),
    "F.pad": (lambda x: F.pad(x, (1, 1)), IMAGE),
    "F.layer_norm": (lambda x: F.layer_norm(x, x.shape[1:]), TABLE),
    "cat": (lambda x: torch.cat([x, x * 2], 1), IMAGE),
    "cat-batch": (lambda x: torch.cat((x, x), dim=0), IMAGE),
    "stack": (lambda x: torch.stack([x, x], dim=-1), TABLE),
    "chunk": (lambda x: x.chunk(3, dim=1)[1], TABLE),
    "chunk-uneven": (lambda x: torch.chunk(x, 5, 1)[-1], TABLE),
    "split": (lambda x: torch.split(x, 5, dim=1)[2], TABLE),
    "split-sizes": (lambda x: x.split([2, 10], 1)[1], TABLE),
    "unbind": (lambda x: x.unbind(1)[0] + torch.unbind(x, -1)[3], TABLE),
    "getitem": (lambda x: x[:, 1:3, ::2, -1], IMAGE),
    "getitem-none": (lambda x: x[:, None, 0], IMAGE),
    "getitem-ellipsis": (lambda x: x[..., :3], IMAGE),
    "getitem-tensor": (lambda x: x[:, torch.tensor([2, 0, 2])], TABLE),
    "arithmetic": (lambda x: (x + 1.5) * 2 - x / 4 + (3 - x) - 1 / (x.abs() + 1), TABLE),
    "methods": (lambda x: x.add(1).sub(0.5).mul(x).div(2), TABLE),
    "floordiv": (lambda x: (x * 8) // 3, TABLE),
    "pow": (lambda x: x**2 + torch.pow(x, 3) + x.pow(2), TABLE),
    "add-alpha": (lambda x: torch.add(x, x, alpha=2), TABLE),
    "matmul": (lambda x: torch.matmul(x, x.transpose(-2, -1)), SEQUENCE),
    "operator.matmul": (lambda x: x @ x.transpose(1, 2), SEQUENCE),
    "bmm": (lambda x: torch.bmm(x, x.permute(0, 2, 1)), SEQUENCE),
    "einsum": (lambda x: torch.einsum("bci,bdi->bcd", x, x), SEQUENCE),
    "sdpa": (lambda x: F.scaled_dot_product_attention(x, x, x), SEQUENCE),
    "sdpa-causal": (lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True), SEQUENCE),
    "mean": (lambda x: x.mean([2, 3]) + torch.mean(x, dim=(-1, -2)), IMAGE),
    "mean-keepdim": (lambda x: x.mean((2, 3), keepdim=True), IMAGE),
    "sum": (lambda x: x.sum(1) + torch.sum(x, dim=1), IMAGE),
    "amax": (lambda x: torch.amax(x, 1, keepdim=True) - x.amin(1, keepdim=True), IMAGE),
    "max-all": (lambda x: x / x.max(), TABLE),
    "var": (lambda x: x.var(1, unbiased=False), TABLE),
    "norm": (lambda x: x.norm(2, 1), TABLE),
    "permute": (lambda x: x.permute(0, 2, 3, 1), IMAGE),
    "permute-tuple": (lambda x: torch.permute(x, (0, 3, 1, 2)), IMAGE),
    "reshape": (lambda x: x.reshape(x.shape[0], 2, -1), IMAGE),
    "view-size": (lambda x: x.view(x.size(0), -1), IMAGE),
    "view-arithmetic": (lambda x: x.view(x.size(0) * x.size(1), x.size(2) // 2, -1), IMAGE),
    "flatten": (lambda x: torch.flatten(x, 1) + x.flatten(1), IMAGE),
    "squeeze": (lambda x: x[:, :1].squeeze(1).unsqueeze(-1), IMAGE),
    "expand": (lambda x: x[:, :1].expand(-1, 4, -1, -1), IMAGE),
    "expand-batch": (lambda x: x.mean((1, 2, 3), keepdim=True).expand(x.shape[0], 4, 8, 8), IMAGE),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), IMAGE),
    "roll": (lambda x: torch.roll(x, shifts=(-1, 2), dims=(2, 3)), IMAGE),
    "flip": (lambda x: torch.flip(x, [1]) + x.flip(1), IMAGE),
    "contiguous": (lambda x: x.transpose(1, 2).contiguous(), IMAGE),
    "channels_last": (lambda x: x.contiguous(memory_format=torch.channels_last), IMAGE),
    "clamp": (lambda x: x.clamp(-0.5, 0.5) + torch.clamp(x, min=0.1), TABLE),
    "topk": (lambda x: torch.topk(x, 3, dim=1)[0], TABLE),
    "embedding": (lambda x: F.embedding(torch.tensor([[0, 5], [2, 2]]), _WEIGHT), TABLE),
    "F.linear": (lambda x: F.linear(x[:, :4], _WEIGHT), TABLE),
    "F.conv2d": (lambda x: F.conv2d(x, _WEIGHT.reshape(6, 4, 1, 1), stride=2), IMAGE),
    "masked_fill": (lambda x: x.masked_fill(x > 0.2, -1.0), TABLE),
    "where": (lambda x: torch.where(x > 0, x, x * 0.5), TABLE),
    "to": (lambda x: x.to(torch.float64).float(), TABLE),
    "max-dim": (lambda x: x.max(1)[0] + torch.max(x, dim=1).values, TABLE),
    "min-dim": (lambda x: x.min(1, keepdim=True).indices, TABLE),
    "max-two": (lambda x: torch.max(x, -x), TABLE),
    "std": (lambda x: x.std(1), TABLE),
    "addmm": (lambda x: torch.addmm(x, x, torch.eye(12), beta=2, alpha=0.5), TABLE),
    "T": (lambda x: x @ (x[0] * _WEIGHT.reshape(2, 12)).T, TABLE),
    "zeros_like": (lambda x: torch.zeros_like(x) + torch.ones_like(x) * x, TABLE),
    "new_zeros": (lambda x: torch.cat([x.new_zeros(x.size(0), 1), x], 1), TABLE),
    "logical": (lambda x: x * ((x > 0) & ~(x > 1) | (x < -1)), TABLE),
    "where-number": (lambda x: torch.where(x > 0, x, 0.5), TABLE),
    "clamp-tensor": (lambda x: torch.clamp(x, x * 0.5, torch.ones(12)), TABLE),
    "casts": (lambda x: x.int().double() + x.long() + x.half().float(), TABLE),
    "movedim": (lambda x: x.movedim(1, -1) + torch.movedim(x, (1, 2), (3, 1)), IMAGE),
    "tile": (lambda x: x.tile(2, 1) + x.repeat_interleave(2, dim=1), SEQUENCE),
    "x.unfold": (lambda x: x.unfold(2, 4, 2), SEQUENCE),
    "getitem-list": (lambda x: x[:, [2, 0]], IMAGE),
    "number-power": (lambda x: 2**x, TABLE),
    "F.glu": (lambda x: F.glu(x, 1), IMAGE),
    "dict": (lambda x: {"out": x + 1, "parts": [x * 2, (x,)]}, TABLE),
}


def example(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def flat(result: Any) -> list[Any]:
    if isinstance(result, dict):
        return [part for value in result.values() for part in flat(value)]
    if isinstance(result, tuple | list):
        return [part for value in result for part in flat(value)]
    return [result]


def assert_close_to_torch(graph: Graph, module: nn.Module, x: torch.Tensor) -> None:
    """Float sums have torch's order nowhere promised: 1e-5 relative to the largest result."""
    with torch.no_grad():
        expected = module(x.clone())
    actual = graph(x.numpy())
    assert str(type(actual)) == str(type(expected)) or isinstance(expected, torch.Tensor)
    for ours, theirs in zip(flat(actual), flat(expected), strict=True):
        theirs = theirs.numpy()
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        limit = 1e-5 * max(1.0, float(np.abs(theirs).max(initial=0)))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


def check(module: nn.Module, shape: tuple[int, ...], *, symbolic: bool = True) -> Graph:
    torch.manual_seed(0)
    module = module.eval()
    x = example(shape)
    graph = from_fx(module, (x.clone(),))
    graph.verify()
    assert parse(str(graph)) == graph
    assert_close_to_torch(graph, module, x)
    if symbolic:
        assert str(graph.inputs[0].type.shape[0]) == "N"
        assert_close_to_torch(graph, module, example((3, *shape[1:])))
    return graph


@pytest.mark.parametrize("name", MODULES)
def test_a_module(name: str) -> None:
    module, shape = MODULES[name]
    check(nn.Sequential(module), shape)


@pytest.mark.parametrize("name", CALLS)
def test_a_call(name: str) -> None:
    function, shape = CALLS[name]
    check(Call(function), shape)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_of_a_known_architecture(name: str) -> None:
    make, shape = BLOCKS[name]
    torch.manual_seed(0)
    check(make(), shape)


def test_an_in_place_call_changes_what_later_nodes_see() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = x + 0
        F.relu(y, inplace=True)
        return y.mul_(2) + y

    check(Call(forward), TABLE)


def test_a_change_in_place_of_shared_memory() -> None:
    """A view shows a change of its base, which values cannot; the same tensor changes its name."""

    def same(x: torch.Tensor) -> torch.Tensor:
        y = x + 0
        z = F.dropout(y, 0.5, False)
        z.relu_()
        return y + z

    def last_use(x: torch.Tensor) -> torch.Tensor:
        return (x + 0).flatten(1).relu_()

    def view(x: torch.Tensor) -> torch.Tensor:
        y = x + 0
        y[:, :2].relu_()
        return y

    check(Call(same), TABLE)
    check(Call(last_use), IMAGE)
    with pytest.raises(
        UnsupportedError, match="relu_: a change in place of memory that add shares"
    ):
        from_fx(Call(view), (example(TABLE),))


def test_origin_tells_path_class_and_scope() -> None:
    graph = check(nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1)), nn.ReLU()), IMAGE)
    origin = graph.nodes[0].origin
    assert origin is not None
    assert (origin.kind, origin.path) == ("call_module", "0.0")
    assert origin.target == "torch.nn.Conv2d"
    assert [scope.path for scope in origin.scope] == ["0"]
    assert list(graph.parameters) == ["0.0.weight", "0.0.bias"]


def test_shapes_that_are_not_multiples_of_the_batch_fix_it() -> None:
    graph = check(Call(lambda x: x.view(x.size(0) + 2, -1)), (2, 12), symbolic=False)
    assert graph.inputs[0].type.shape == (2, 12)


def test_every_unsupported_node_is_listed() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.FractionalMaxPool2d(2, 3), nn.ReLU())
            self.crelu = nn.LPPool3d(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.fft.fft(self.crelu(self.inner(x))).frexp()

    with pytest.raises(UnsupportedError) as error:
        from_fx(Strange().eval(), (torch.zeros(1, 4),))
    message = str(error.value)
    assert message.startswith("4 nodes are not supported: ")
    for part in ("inner.0: module torch.nn", "crelu: module", "fft_fft: ", "frexp: call_method"):
        assert part in message
    assert "\n" not in message


def test_a_training_module_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"0: dropout in training mode; call model.eval"):
        from_fx(nn.Sequential(nn.Dropout()), (torch.zeros(1, 4),))


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (DataDependent(), (torch.zeros(2),), "DataDependent cannot be traced by torch.fx"),
        (nn.ReLU(), None, "example_inputs is missing"),
        (nn.ReLU(), (), "example_inputs is missing"),
        ("model", (torch.zeros(2),), "from_fx: expected a torch.nn.Module, got str"),
        (nn.Linear(4, 2), (torch.zeros(2, 5),), r"node .*linear: .*5"),
        (nn.Conv2d(3, 2, 1), (torch.zeros(1, 4, 5, 5),), r"conv2d: .*4"),
        (nn.Sequential(nn.ReLU()), (torch.zeros(2), torch.zeros(2)), "1 example_inputs too many"),
        (nn.ReLU(), (torch.zeros(2, 2).to_sparse(),), "dense tensor on the CPU, got sparse_coo"),
        (nn.ReLU(), (torch.zeros(2, device="meta"),), "on the CPU, got strided on meta"),
        (nn.ReLU(), (torch.zeros(2, dtype=torch.complex64),), "dtype complex64 is not supported"),
    ],
)
def test_what_cannot_be_imported_says_why(model: Any, inputs: Any, message: str) -> None:
    with pytest.raises(VerifyError, match=message) as error:
        from_fx(model, inputs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("batch", ["", "2*N", "inf", "quint8"])
def test_the_name_of_the_batch_can_be_written(batch: str) -> None:
    with pytest.raises(VerifyError, match="batch must be a plain name"):
        from_fx(nn.Sequential(nn.ReLU()), (torch.zeros(2, 2),), batch=batch)


def test_the_target_is_checked_before_anything_is_imported() -> None:
    with pytest.raises(VerifyError, match="engine 'foo' is not one of"):
        from_fx(nn.Sequential(nn.ReLU()), (torch.zeros(2, 2),), target="foo")


def test_torch_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1")
    with pytest.raises(UnsupportedError, match=r"torch 2\.12\.1 is installed; .* torch 2\.13\.0"):
        from_fx(nn.ReLU(), (torch.zeros(2),))


def test_importing_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_fx(model, (example(IMAGE),))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_graph_does_not_share_memory_with_the_model() -> None:
    """The model may be trained or calibrated on; torch cannot resize what NumPy sees."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.randn(1, 3, 8, 8)
    graph = from_fx(model, (x,))
    before = graph(x.numpy())
    with torch.no_grad():
        model[0].weight.zero_()
    np.testing.assert_array_equal(graph(x.numpy()), before)
    mapping = get_default_qat_qconfig_mapping("fbgemm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        observed = quantize_fx.prepare_qat_fx(model.train(), mapping, (x,))
    graph = from_fx(observed, (x,))
    observed(x)
    scale = observed.get_submodule("0").weight_fake_quant.scale
    assert scale.numel() == 4
    state = next(m.state for path, m in graph.modules.items() if "weight" in path)
    assert state["activation_post_process.min_val"].size == 0
