"""Lowering: call for call what torch's convert_fx makes of the same reference model."""

from __future__ import annotations

import copy
import operator
import re
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import flows
import pytest
import torch
import torch.nn.functional as F
from ledger import Ledger
from oracle import assert_same, from_torch, this_machine
from torch import nn
from torch.ao.quantization import (
    QConfig,
    QConfigMapping,
    default_dynamic_qconfig,
    default_weight_observer,
    float16_dynamic_qconfig,
    float16_static_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    get_default_qconfig_mapping,
    per_channel_dynamic_qconfig,
    quantize_fx,
)
from torch.ao.quantization.backend_config import get_onednn_backend_config
from torch.ao.quantization.fx._lower_to_native_backend import _lower_to_native_backend
from torch.ao.quantization.observer import HistogramObserver, MinMaxObserver

from refquant.defects import TorchDefectWarning, quirks_mode
from refquant.fx import lower_tables as tables
from refquant.fx.lower import lower
from refquant.importers.fx import graph_of
from refquant.importers.torch_capture import capture_graph_module
from refquant.ir.errors import VerifyError
from refquant.ir.program import Call, Owner, Program
from refquant.ir.qtensor import type_of
from refquant.ir.target import Isa
from refquant.program_diff import program_diff


class Body(nn.Module):
    """Modules and parameters by name, and a function of them as forward."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)
        self.function = forward

    def forward(self, given: torch.Tensor) -> Any:
        return self.function(self, given)


class Pair(Body):
    """Likewise with two inputs."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> Any:
        return self.function(self, first, second)


class Case(NamedTuple):
    model: nn.Module
    inputs: tuple[torch.Tensor, ...]
    mapping: QConfigMapping | None = None
    backend: Any = None


def mapping_of(qconfig: Any) -> QConfigMapping:
    return QConfigMapping().set_global(qconfig)


def static() -> QConfigMapping:
    """Return torch's default mapping without histograms, whose search takes most of the time."""
    mapping = get_default_qconfig_mapping("fbgemm")

    def plain(qconfig: Any) -> Any:
        if not isinstance(qconfig.activation(), HistogramObserver):
            return qconfig
        return QConfig(MinMaxObserver.with_args(quant_min=0, quant_max=127), qconfig.weight)

    for kind, qconfig in list(mapping.object_type_qconfigs.items()):
        mapping.set_object_type(kind, plain(qconfig))
    return mapping.set_global(plain(mapping.global_qconfig))


DYNAMIC = mapping_of(default_dynamic_qconfig)
DYNAMIC_BY_CHANNEL = mapping_of(per_channel_dynamic_qconfig)
HALF = mapping_of(float16_dynamic_qconfig)
TABLE = mapping_of(float_qparams_weight_only_qconfig)
TABLE_4BIT = mapping_of(float_qparams_weight_only_qconfig_4bit)


def x(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def chain(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


def function(function: Callable[..., Any], *shape: int, **parts: Any) -> Case:
    """A function between a linear layer, which gives quantized values, and another one."""

    def forward(self: Any, given: torch.Tensor) -> Any:
        return function(self, self.before(given))

    width = shape[-1]
    return Case(Body(forward, before=nn.Linear(width, width), **parts), (x(*shape),))


def between(module: nn.Module, *shape: int) -> Case:
    return function(lambda self, y: self.module(y), *shape, module=module)


def trained(norm: nn.Module) -> nn.Module:
    norm(x(2, 3, 4, 4))
    return norm


def conv_case(rank: int, relu: Any = None, **settings: Any) -> Case:
    conv = getattr(nn, f"Conv{rank}d")(4, 6, 3, **settings)
    parts = [conv] if relu is None else [conv, relu]
    return Case(chain(*parts), (x(2, 4, *(7,) * rank),))


def functional_conv(rank: int, relu: bool, bias: bool = True, **settings: Any) -> Case:
    ones, zeros = (1,) * rank, (0,) * rank

    def forward(self: Any, given: torch.Tensor) -> Any:
        given = getattr(F, f"conv{rank}d")(
            given,
            self.w,
            self.b if bias else None,
            settings.get("stride", ones),
            settings.get("padding", zeros),
            settings.get("dilation", ones),
            settings.get("groups", 1),
        )
        return F.relu(given) if relu else given

    groups = settings.get("groups", 1)
    parts = {"w": x(6, 4 // groups, *(3,) * rank), "b": x(6)}
    return Case(Body(forward, **parts), (x(2, 4, *(7,) * rank),))


def functional_transposed(rank: int) -> Case:
    def forward(self: Any, given: torch.Tensor) -> Any:
        ones = 1 if rank == 1 else (1,) * rank
        zeros = 0 if rank == 1 else (0,) * rank
        return getattr(F, f"conv_transpose{rank}d")(
            given, self.w, self.b, ones, zeros, zeros, 2, ones
        )

    return Case(Body(forward, w=x(4, 3, *(3,) * rank), b=x(6)), (x(2, 4, *(5,) * rank),))


def linear_weights(**parts: Any) -> dict[str, Any]:
    return {"w": x(6, 4), "b": x(6), **parts}


def recurrent(module: nn.Module, mapping: QConfigMapping) -> Case:
    shape = (5, 2, 4) if isinstance(module, nn.RNNBase) else (2, 4)
    return Case(chain(module), (x(*shape),), mapping)


def onednn(model: nn.Module, *inputs: torch.Tensor) -> Case:
    return Case(model, inputs, None, get_onednn_backend_config())


def shared_weight() -> Case:
    def forward(self: Any, given: torch.Tensor) -> Any:
        return F.linear(F.linear(given, self.w, self.b), self.w)

    return Case(Body(forward, w=x(4, 4), b=x(4)), (x(2, 4),))


def nested() -> Case:
    inner = Body(
        lambda self, y: F.relu(F.linear(y, self.w, self.b)) + self.lin(y), **linear_weights()
    )
    inner.lin = nn.Linear(4, 6)
    twice = Body(lambda self, y: F.linear(self.inner(y), self.w), inner=inner, w=x(5, 6))
    return Case(chain(twice, nn.Linear(5, 3)), (x(2, 4),))


def called_twice() -> Case:
    return Case(
        Body(
            lambda self, y: self.lin(self.relu(self.lin(y))), lin=nn.Linear(4, 4), relu=nn.ReLU()
        ),
        (x(2, 4),),
    )


def two_paths() -> Case:
    lin = nn.Linear(4, 4)
    return Case(Body(lambda self, y: self.a(self.b(y)), a=lin, b=lin), (x(2, 4),))


def unquantized(**entries: Any) -> Case:
    """Modules and functions of which some have no QConfig."""

    def forward(self: Any, given: torch.Tensor) -> Any:
        y = self.second(self.first(given))
        y = F.linear(y, self.w, self.b) + y
        return torch.sigmoid(torch.mul(y, 2.0))

    parts = {"first": nn.Linear(4, 6), "second": nn.Linear(6, 6), "w": x(6, 6), "b": x(6)}
    mapping = static()
    for name in entries.get("names", ()):
        mapping.set_module_name(name, None)
    for kind in entries.get("types", ()):
        mapping.set_object_type(kind, None)
    return Case(Body(forward, **parts), (x(2, 4),), mapping)


def half_static() -> Case:
    mapping = mapping_of(float16_static_qconfig)
    from torch.ao.quantization.backend_config.native import (
        get_test_only_legacy_native_backend_config,
    )

    def forward(self: Any, given: torch.Tensor) -> Any:
        y = torch.sigmoid(self.lin(given)).reshape(2, -1)
        return torch.cat((F.relu(y) + 1.0, torch.mean(y, 1, keepdim=True)), 1)

    model = Body(forward, lin=nn.Linear(4, 6))
    return Case(model, (x(2, 4),), mapping, get_test_only_legacy_native_backend_config())


CASES: dict[str, Callable[[], Case]] = {
    # static modules
    "Linear": lambda: Case(chain(nn.Linear(4, 6)), (x(2, 4),)),
    "Linear without bias": lambda: Case(chain(nn.Linear(4, 6, bias=False)), (x(2, 4),)),
    "Linear ReLU": lambda: Case(chain(nn.Linear(4, 6), nn.ReLU()), (x(2, 4),)),
    **{
        f"Conv{r}d {what}": lambda r=r, relu=relu, s=s: conv_case(r, relu, **s)
        for r in (1, 2, 3)
        for what, relu, s in (
            ("plain", None, {"stride": 2, "padding": 1, "dilation": 1}),
            ("relu", nn.ReLU(), {"groups": 2, "bias": False}),
        )
    },
    "Conv1d reflect": lambda: conv_case(1, padding=1, padding_mode="reflect"),
    "Conv2d reflect": lambda: conv_case(2, nn.ReLU(), padding=(1, 2), padding_mode="reflect"),
    **{
        f"ConvTranspose{r}d": lambda r=r: Case(
            chain(getattr(nn, f"ConvTranspose{r}d")(4, 6, 3, 2, 1, 1, groups=2)),
            (x(2, 4, *(4,) * r),),
        )
        for r in (1, 2, 3)
    },
    "ConvTranspose2d then ReLU": lambda: Case(
        chain(nn.ConvTranspose2d(4, 6, 3), nn.ReLU()), (x(1, 4, 4, 4),)
    ),
    "Conv BatchNorm ReLU": lambda: Case(
        chain(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), (x(1, 3, 5, 5),)
    ),
    "one module called twice": called_twice,
    "one module at two paths": two_paths,
    # two inputs, onednn
    "ConvAdd2d": lambda: onednn(
        Pair(lambda s, a, b: s.conv(a) + b, conv=nn.Conv2d(3, 3, 3, padding=1)),
        *(x(1, 3, 5, 5), x(1, 3, 5, 5)),
    ),
    "ConvAddReLU2d": lambda: onednn(
        Pair(
            lambda s, a, b: s.relu(torch.add(s.conv(a), b)),
            conv=nn.Conv2d(3, 3, 3, padding=1),
            relu=nn.ReLU(),
        ),
        *(x(1, 3, 5, 5), x(1, 3, 5, 5)),
    ),
    "LinearLeakyReLU": lambda: onednn(chain(nn.Linear(4, 5), nn.LeakyReLU(0.2)), x(2, 4)),
    "LinearTanh": lambda: Case(
        chain(nn.Linear(4, 5), nn.Tanh()),
        (x(2, 4),),
        mapping_of(static().global_qconfig),
        get_onednn_backend_config(),
    ),
    # dynamic modules
    **{
        f"dynamic {name} {kind}": lambda make=make, mapping=mapping: recurrent(make(), mapping)
        for kind, mapping in (("int8", DYNAMIC), ("fp16", HALF))
        for name, make in (
            ("Linear", lambda: nn.Linear(4, 5)),
            ("Linear without bias", lambda: nn.Linear(4, 5, bias=False)),
            ("LSTM", lambda: nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True, dropout=0.5)),
            ("LSTM with projection", lambda: nn.LSTM(4, 3, proj_size=2)),
            ("GRU", lambda: nn.GRU(4, 3)),
            ("LSTMCell", lambda: nn.LSTMCell(4, 3)),
            ("GRUCell", lambda: nn.GRUCell(4, 3, bias=False)),
            ("RNNCell", lambda: nn.RNNCell(4, 3, nonlinearity="relu")),
        )
    },
    "dynamic Linear by channel": lambda: recurrent(nn.Linear(4, 5), DYNAMIC_BY_CHANNEL),
    "dynamic LinearReLU": lambda: Case(
        chain(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (x(2, 4),), DYNAMIC
    ),
    "dynamic LinearReLU fp16": lambda: Case(
        chain(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), (x(2, 4),), HALF
    ),
    "dynamic Conv2d": lambda: Case(chain(nn.Conv2d(3, 4, 3)), (x(1, 3, 5, 5),), DYNAMIC),
    # weight only
    **{
        f"{name} {bits}": lambda make=make, mapping=mapping: Case(
            chain(make()), (torch.arange(6).reshape(2, 3),), mapping
        )
        for bits, mapping in (("8 bits", TABLE), ("4 bits", TABLE_4BIT))
        for name, make in (
            ("Embedding", lambda: nn.Embedding(7, 6, padding_idx=1)),
            ("EmbeddingBag", lambda: nn.EmbeddingBag(7, 4, include_last_offset=True)),
        )
    },
    # static functions
    "F.linear": lambda: Case(
        Body(lambda s, y: F.linear(y, s.w, s.b), **linear_weights()), (x(2, 4),)
    ),
    "F.linear, bias by keyword": lambda: Case(
        Body(lambda s, y: F.linear(y, s.w, bias=s.b), **linear_weights()), (x(2, 4),)
    ),
    "F.linear without bias, F.relu": lambda: Case(
        Body(lambda s, y: F.relu(F.linear(y, s.w)), **linear_weights()), (x(2, 4),)
    ),
    "F.linear, nn.ReLU": lambda: Case(
        Body(lambda s, y: s.relu(F.linear(y, s.w, s.b)), **linear_weights(relu=nn.ReLU())),
        (x(2, 4),),
    ),
    "F.linear by tensor": lambda: Case(
        Body(lambda s, y: F.linear(y, s.w, s.b), **linear_weights()),
        (x(2, 4),),
        mapping_of(QConfig(MinMaxObserver, default_weight_observer)),
    ),
    "F.linear, weight computed": lambda: Case(
        Body(lambda s, y: F.linear(y, s.w.t() * 2.0, s.b), w=x(4, 6), b=x(6)), (x(2, 4),)
    ),
    "one weight for two functions": shared_weight,
    "functions in nested modules": nested,
    **{
        f"F.conv{r}d {what}": lambda r=r, relu=relu, s=s: functional_conv(r, relu, **s)
        for r in (1, 2, 3)
        for what, relu, s in (
            ("plain", False, {"stride": (2,) * r, "padding": (1,) * r}),
            ("relu", True, {"bias": False, "groups": 2}),
        )
    },
    "F.conv1d with ints": lambda: functional_conv(1, False, stride=2, padding=1, dilation=1),
    "F.conv2d by keywords": lambda: Case(
        Body(
            lambda s, y: F.conv2d(
                y, s.w, bias=s.b, stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1
            ),
            w=x(6, 4, 3, 3),
            b=x(6),
        ),
        (x(1, 4, 5, 5),),
    ),
    **{f"F.conv_transpose{r}d": lambda r=r: functional_transposed(r) for r in (1, 2, 3)},
    # dynamic functions
    **{
        f"dynamic F.linear {kind}{what}": lambda f=f, m=m: Case(
            Body(f, **linear_weights(relu=nn.ReLU())), (x(2, 4),), m
        )
        for kind, m in (("int8", DYNAMIC), ("fp16", HALF), ("by channel", DYNAMIC_BY_CHANNEL))
        for what, f in (
            ("", lambda s, y: F.linear(y, s.w, s.b)),
            (", bias by keyword", lambda s, y: F.linear(y, s.w, bias=s.b)),
            (", F.relu", lambda s, y: F.relu(F.linear(y, s.w))),
            (", nn.ReLU", lambda s, y: s.relu(F.linear(y, s.w, s.b))),
        )
    },
    "dynamic F.conv2d": lambda: functional_conv(2, False)._replace(mapping=DYNAMIC),
    # binary
    **{
        f"{name}{what}": lambda f=f, relu=relu: function(
            lambda s, y: relu(s, f(y, s.other(y))), 2, 4, other=nn.Linear(4, 4), relu=nn.ReLU()
        )
        for name, f in (
            ("operator.add", operator.add),
            ("operator.mul", operator.mul),
            ("torch.add", torch.add),
            ("torch.mul", torch.mul),
            ("torch.add with alpha", lambda a, b: torch.add(a, b, alpha=2)),
        )
        for what, relu in (
            ("", lambda s, y: y),
            (" F.relu", lambda s, y: F.relu(y)),
            (" torch.relu", lambda s, y: torch.relu(y)),
            (" nn.ReLU", lambda s, y: s.relu(y)),
        )
    },
    "x + x": lambda: function(lambda s, y: y + y, 2, 4),
    "x + 2": lambda: function(lambda s, y: F.relu(torch.mul(y + 2, 0.5)), 2, 4),
    "2 + x": lambda: function(lambda s, y: 2 * (2 + y), 2, 4),
    "float input + quantized": lambda: Case(
        Body(lambda s, y: s.lin(y) + y, lin=nn.Linear(4, 4)), (x(2, 4),)
    ),
    "torch.matmul": lambda: function(
        lambda s, y: torch.matmul(y, s.other(y)), 4, 4, other=nn.Linear(4, 4)
    ),
    "operator.matmul": lambda: function(lambda s, y: y @ s.other(y), 4, 4, other=nn.Linear(4, 4)),
    # shapes
    "getattr shape": lambda: function(lambda s, y: y.reshape(y.shape[0], -1) + y, 2, 4),
    "size": lambda: function(lambda s, y: y.view(y.size(0), -1), 2, 4),
    # fixed quantization parameters
    **{
        name: lambda f=f: function(f, 2, 4)
        for name, f in (
            ("F.hardsigmoid", lambda s, y: F.hardsigmoid(y)),
            ("F.sigmoid", lambda s, y: F.sigmoid(y)),
            ("torch.sigmoid", lambda s, y: torch.sigmoid(y)),
            ("torch.tanh", lambda s, y: torch.tanh(y)),
            ("x.sigmoid()", lambda s, y: y.sigmoid()),
            ("x.tanh()", lambda s, y: y.tanh()),
        )
    },
    **{
        name: lambda name=name, args=args: between(getattr(nn, name)(*args), 2, 4)
        for name, args in (
            *(("Hardsigmoid", ()), ("Sigmoid", ()), ("Tanh", ()), ("Softmax", (1,))),
            *(("ELU", (0.7, True)), ("LeakyReLU", (0.2,)), ("Hardswish", ()), ("PReLU", ())),
            *(("LayerNorm", (4,)), ("Dropout", (0.3,)), ("Identity", ()), ("ReLU6", ())),
            *(("Hardtanh", (-1.0, 2.0)), ("GELU", ()), ("Flatten", ())),
        )
    },
    # those of the quantize
    "BatchNorm2d": lambda: between(trained(nn.BatchNorm2d(3)), 2, 3, 4, 4),
    "BatchNorm3d": lambda: between(nn.BatchNorm3d(3), 2, 3, 2, 4, 4),
    "BNReLU2d": lambda: between(chain(nn.BatchNorm2d(3), nn.ReLU()), 2, 3, 4, 4),
    "BNReLU3d": lambda: between(chain(nn.BatchNorm3d(3), nn.ReLU()), 2, 3, 2, 4, 4),
    **{
        f"InstanceNorm{r}d": lambda r=r: between(
            getattr(nn, f"InstanceNorm{r}d")(3, affine=r > 1), 2, 3, *(4,) * r
        )
        for r in (1, 2, 3)
    },
    "F.elu": lambda: function(lambda s, y: F.elu(y, 0.5, inplace=True), 2, 4),
    "F.hardswish": lambda: function(lambda s, y: F.hardswish(y, inplace=False), 2, 4),
    "F.leaky_relu": lambda: function(lambda s, y: F.leaky_relu(y, 0.2), 2, 4),
    "F.dropout": lambda: function(lambda s, y: F.dropout(y, 0.2, training=False), 2, 4),
    "F.layer_norm": lambda: function(lambda s, y: F.layer_norm(y, (4,), s.g, s.g), 2, 4, g=x(4)),
    "F.instance_norm": lambda: function(
        lambda s, y: F.instance_norm(y, weight=s.g, bias=s.g), 2, 3, 4, g=x(3)
    ),
    "F.group_norm": lambda: function(lambda s, y: F.group_norm(y, 2, s.g, s.g), 2, 4, g=x(4)),
    # those of the operand
    **{
        name: lambda f=f, shape=shape: function(f, *shape)
        for name, shape, f in (
            ("F.adaptive_avg_pool2d", (1, 2, 4, 4), lambda s, y: F.adaptive_avg_pool2d(y, 2)),
            ("F.adaptive_avg_pool1d", (1, 2, 4), lambda s, y: F.adaptive_avg_pool1d(y, 2)),
            ("F.hardtanh", (2, 4), lambda s, y: F.hardtanh(y, -0.5, 0.5)),
            ("F.interpolate", (1, 2, 4, 4), lambda s, y: F.interpolate(y, scale_factor=2)),
            ("F.max_pool1d", (1, 2, 4), lambda s, y: F.max_pool1d(y, 2)),
            ("F.max_pool2d", (1, 2, 4, 4), lambda s, y: F.max_pool2d(y, 2)),
            ("F.max_pool3d", (1, 2, 4, 4, 4), lambda s, y: F.max_pool3d(y, 2)),
            ("F.relu", (2, 4), lambda s, y: F.relu(y)),
            ("F.relu by keyword", (2, 4), lambda s, y: F.relu(input=y)),
            ("F.relu6", (2, 4), lambda s, y: F.relu6(y)),
            ("F.avg_pool1d", (1, 2, 4), lambda s, y: F.avg_pool1d(y, 2)),
            ("F.avg_pool2d", (1, 2, 4, 4), lambda s, y: F.avg_pool2d(y, 2)),
            ("F.avg_pool3d", (1, 2, 4, 4, 4), lambda s, y: F.avg_pool3d(y, 2)),
            ("torch.clamp", (2, 4), lambda s, y: torch.clamp(y, -0.5, 0.5)),
            ("torch.flatten", (1, 2, 4), lambda s, y: torch.flatten(y, 1)),
            ("torch.mean", (1, 2, 4), lambda s, y: torch.mean(y, 1)),
            ("x // 2", (2, 4), lambda s, y: y // 2),
            ("F.channel_shuffle", (1, 4, 2, 4), lambda s, y: F.channel_shuffle(y, 2)),
            ("x.clamp", (2, 4), lambda s, y: y.clamp(-0.5, 0.5)),
            ("x.mean", (2, 4), lambda s, y: y.mean(1)),
            ("x.relu", (2, 4), lambda s, y: y.relu()),
            ("torch.narrow", (2, 4), lambda s, y: torch.narrow(y, 1, 0, 2)),
            ("torch.transpose", (2, 4), lambda s, y: torch.transpose(y, 0, 1)),
            ("torch.squeeze", (1, 4), lambda s, y: torch.squeeze(y, 0)),
            ("torch.stack", (2, 4), lambda s, y: torch.stack([y, y], 0)),
            ("torch.unsqueeze", (2, 4), lambda s, y: torch.unsqueeze(y, 0)),
            ("repeat_interleave", (2, 4), lambda s, y: torch.repeat_interleave(y, 2, 0)),
            ("F.pixel_shuffle", (1, 4, 2, 4), lambda s, y: F.pixel_shuffle(y, 2)),
            ("F.pixel_unshuffle", (1, 4, 2, 4), lambda s, y: F.pixel_unshuffle(y, 2)),
            ("x.contiguous", (2, 4), lambda s, y: y.contiguous()),
            ("x.detach", (2, 4), lambda s, y: y.detach()),
            ("x.permute", (2, 4), lambda s, y: y.permute(1, 0)),
            ("x.repeat", (2, 4), lambda s, y: y.repeat(2, 1)),
            ("x.repeat_interleave", (2, 4), lambda s, y: y.repeat_interleave(2, 0)),
            ("x.reshape", (2, 4), lambda s, y: y.reshape(4, 2)),
            ("x.squeeze", (1, 4), lambda s, y: y.squeeze(0)),
            ("x.transpose", (2, 4), lambda s, y: y.transpose(0, 1)),
            ("x.unsqueeze", (2, 4), lambda s, y: y.unsqueeze(0)),
            ("x.view", (2, 4), lambda s, y: y.view(4, 2)),
            ("torch.cat", (2, 4), lambda s, y: torch.cat([y, y + 1.0], 1)),
            ("torch.cat of a tuple", (2, 4), lambda s, y: torch.cat((y, s.before(y)), dim=0)),
            ("torch.cat by keyword", (2, 4), lambda s, y: torch.cat(tensors=[y, y], dim=0)),
            ("x.expand", (1, 4), lambda s, y: y.expand(2, 4)),
            ("x.relu_", (2, 4), lambda s, y: y.relu_()),
            ("x.sigmoid_", (2, 4), lambda s, y: y.sigmoid_()),
            ("x.tanh_", (2, 4), lambda s, y: y.tanh_()),
            ("x.squeeze_", (1, 4), lambda s, y: y.squeeze_(0)),
            ("x.unsqueeze_", (2, 4), lambda s, y: y.unsqueeze_(0)),
            ("x.detach_", (2, 4), lambda s, y: y.detach_()),
            ("x.resize_", (2, 4), lambda s, y: y.resize_(2, 4)),
            ("F.hardtanh_", (2, 4), lambda s, y: F.hardtanh_(y, -0.5, 0.5)),
            ("F.adaptive_avg_pool3d", (1, 2, 4, 4, 4), lambda s, y: F.adaptive_avg_pool3d(y, 2)),
        )
    },
    **{
        name: lambda m=m, shape=shape: between(m, *shape)
        for name, shape, m in (
            ("AdaptiveAvgPool1d", (1, 2, 4), nn.AdaptiveAvgPool1d(2)),
            ("AdaptiveAvgPool2d", (1, 2, 4, 4), nn.AdaptiveAvgPool2d(2)),
            ("AdaptiveAvgPool3d", (1, 2, 4, 4, 4), nn.AdaptiveAvgPool3d(2)),
            ("AvgPool2d", (1, 2, 4, 4), nn.AvgPool2d(2)),
            ("MaxPool1d", (1, 2, 4), nn.MaxPool1d(2)),
            ("MaxPool3d", (1, 2, 4, 4, 4), nn.MaxPool3d(2)),
            ("AvgPool1d", (1, 2, 4), nn.AvgPool1d(2)),
            ("AvgPool3d", (1, 2, 4, 4, 4), nn.AvgPool3d(2)),
            ("MaxPool2d", (1, 2, 4, 4), nn.MaxPool2d(2)),
            ("ChannelShuffle", (1, 4, 2, 4), nn.ChannelShuffle(2)),
            ("PixelShuffle", (1, 4, 2, 4), nn.PixelShuffle(2)),
            ("PixelUnshuffle", (1, 4, 2, 4), nn.PixelUnshuffle(2)),
        )
    },
    # no QConfig in places
    "no QConfig for a module": lambda: unquantized(names=("second",)),
    "no QConfig for functions": lambda: unquantized(types=(F.linear, torch.mul)),
    "no QConfig for a sum": lambda: unquantized(types=(operator.add, nn.Linear)),
    "no QConfig for sigmoid": lambda: unquantized(types=(torch.sigmoid,), names=("first",)),
    "float16": half_static,
}


def prepared_model(case: Case) -> Any:
    prepared = quantize_fx.prepare_fx(
        copy.deepcopy(case.model).eval(),
        case.mapping or static(),
        case.inputs,
        backend_config=case.backend,
    )
    prepared(*case.inputs)
    return prepared


def reference_program(case: Case, prepared: Any = None) -> tuple[Program, Any]:
    """Return torch's reference program, with the place of its calls, and its QConfigs."""
    prepared = prepared or prepared_model(case)
    observed = prepared.meta["_observed_graph_module_attrs"]
    program = capture_graph_module(
        quantize_fx.convert_to_reference_fx(
            copy.deepcopy(prepared), _remove_qconfig=False, backend_config=case.backend
        )
    )
    return placed(program, observed.node_name_to_scope), observed.node_name_to_qconfig


def placed(program: Program, scopes: dict[str, Any]) -> Program:
    for call in program:
        if call.name in scopes:
            call.owner = Owner(scopes[call.name][0], None)
    return program


def torch_programs(case: Case, keep: bool = False) -> tuple[Program, Program, Any, nn.Module]:
    """Return torch's reference and lowered programs, its QConfigs, and the lowered model."""
    with flows.fbgemm():
        prepared = prepared_model(case)
        reference, qconfigs = reference_program(case, prepared)
        kept = {"keep_original_weights": True} if keep else {}
        lowered = quantize_fx.convert_fx(prepared, backend_config=case.backend, **kept)
        return reference, capture_graph_module(lowered), qconfigs, lowered


@cache
def of_case(name: str) -> tuple[Case, Program, Program, Any, nn.Module]:
    case = CASES[name]()
    return (case, *torch_programs(case))


def without_qconfigs(program: Program) -> Program:
    for _, module in program.root.named_modules():
        module.config.pop("qconfig", None)
    return program


# ATEN_CPU_CAPABILITY limits ATen but not fbgemm: no target stands for such a machine.
MIXED = this_machine().isa != Isa.AVX512_VNNI
# What has no kernel yet, or is refused by torch's kernels too.
NOT_RUN = (
    *("ConvAdd2d", "ConvAddReLU2d", "LinearLeakyReLU", "LinearTanh"),
    *("dynamic LSTM with projection", "fp16", "float16", "Embedding", "torch.matmul", "x // 2"),
    *("x.sigmoid_", "x.tanh_", "x.resize_"),
)
# What computes in float, in an order of summation or with functions that torch does not promise.
FLOAT = ("dynamic Conv2d", "dynamic F.conv2d", "operator.matmul", "GELU")


@pytest.mark.parametrize("name", CASES)
def test_lowered_as_torch(name: str, ledger: Ledger) -> None:
    case, reference, theirs, qconfigs, model = of_case(name)
    ours = reference.copy()
    with quiet():
        lower(ours, qconfigs)
    diff = program_diff(without_qconfigs(ours), theirs)
    ledger.run("convert_fx lowered, call for call", not diff, str(diff))
    assert str(ours) == str(theirs)
    assert set(ours.root.state) == set(theirs.root.state)
    paths = [{path for path, _ in p.root.named_modules(shared=True)} for p in (ours, theirs)]
    assert paths[0] == paths[1]
    if MIXED or any(word in name for word in (*NOT_RUN, *FLOAT)):
        return
    with flows.fbgemm():
        expected = flat(from_torch(model(*case.inputs)))
    arrays = tuple(map(from_torch, case.inputs))
    graph = graph_of(ours, tuple(map(type_of, arrays)), batch=None)
    found = flat(graph.run(*arrays, target=this_machine()).outputs)
    for mine, yours in zip(found, expected, strict=True):
        assert_same(mine, yours)


def quiet() -> Any:
    return warnings.catch_warnings(action="ignore", category=TorchDefectWarning)


def flat(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [part for parts in value for part in flat(parts)]
    return [value]


def test_the_cases_use_every_row_of_the_tables() -> None:
    found, before = set(), set()
    for name in CASES:
        _, reference, lowered, _, _ = of_case(name)
        before |= {kind_of(call, reference) for call in reference}
        found |= {kind_of(call, lowered) for call in lowered}
    modules = {*tables.STATIC.values(), *tables.DYNAMIC.values(), *tables.WEIGHT_ONLY.values()}
    modules |= {*tables.SPECIAL.values()}
    for fused in (tables.STATIC_FUSED, tables.STATIC_FUSED_TWO_INPUTS, tables.DYNAMIC_FUSED):
        modules |= {kind for _, kind in fused.values()}
    functions = {*tables.BINARY.values(), *tables.BINARY_RELU.values()}
    functions |= {*tables.DEFAULT_FUNCTIONS.values()}
    pairs = [*tables.STATIC_FUNCTIONS.values(), *tables.DYNAMIC_FUNCTIONS[tables.LINEAR].values()]
    functions |= {kind for pair in pairs for kind in pair if kind is not None}
    assert modules | functions <= found
    # Tensors have no such methods; F.sigmoid is traced as a method, and shape is no method.
    absent = {"hardsigmoid", "hardsigmoid_", "torch.nn.functional.sigmoid", "shape"}
    assert tables.ANYWHERE - before == absent


def kind_of(call: Call, program: Program) -> str:
    if call.kind == "call_module":
        return str(program.root.get(call.target).kind)
    return call.target


def assert_lowers_alike(model: Any, qconfigs: dict[str, Any], scopes: dict[str, Any]) -> None:
    """Compare with torch's lowering alone, for what its prepare would never make."""
    ours = placed(capture_graph_module(model), scopes)
    with flows.fbgemm(), quiet():
        lower(ours, qconfigs)
        theirs = _lower_to_native_backend(copy.deepcopy(model), qconfigs, scopes)
        expected = without_qconfigs(capture_graph_module(theirs))
    diff = program_diff(without_qconfigs(ours), expected)
    assert not diff, str(diff)
    assert str(ours) == str(expected)


def reference_model(case: Case) -> tuple[Any, dict[str, Any]]:
    with flows.fbgemm():
        prepared = prepared_model(case)
        observed = prepared.meta["_observed_graph_module_attrs"]
        model = quantize_fx.convert_to_reference_fx(
            prepared, _remove_qconfig=False, backend_config=case.backend
        )
    return model, observed.node_name_to_scope


@pytest.mark.parametrize(
    "name",
    [
        *("functions in nested modules", "Linear ReLU", "ConvAddReLU2d", "torch.mul nn.ReLU"),
        *("dynamic F.linear int8, F.relu", "dynamic F.linear fp16", "dynamic LinearReLU"),
        *("F.conv2d relu", "F.conv_transpose2d", "Embedding 8 bits", "F.elu", "x + 2"),
    ],
)
def test_any_call_may_be_without_qconfig(name: str) -> None:
    model, scopes = reference_model(CASES[name]())
    for node in model.graph.nodes:
        assert_lowers_alike(model, {node.name: None}, scopes)


def test_a_module_may_be_called_by_two_paths() -> None:
    model, scopes = reference_model(called_twice())
    model.twin = model.lin
    second = [node for node in model.graph.nodes if node.target == "lin"][1]
    second.target = "twin"
    assert_lowers_alike(model, {}, scopes)


def test_a_module_is_lowered_once_for_static_and_dynamic_calls() -> None:
    """What a pass has replaced is no reference module to the next pass."""
    model, scopes = reference_model(called_twice())
    first, second = (node for node in model.graph.nodes if node.target == "lin")
    dequantize = second.args[0]
    with model.graph.inserting_before(second):
        made = model.graph.call_function(
            torch.quantize_per_tensor_dynamic, (dequantize, torch.quint8, True)
        )
        second.args = (model.graph.call_method("dequantize", (made,)),)
    output = next(node for node in model.graph.nodes if node.op == "output")
    output.args = ((second, first),)
    model.graph.eliminate_dead_code()
    assert_lowers_alike(model, {}, scopes)


@pytest.mark.parametrize("name", ["torch.sigmoid", "Tanh", "Hardsigmoid", "Softmax", "torch.add"])
def test_no_defect_is_seen_where_none_is(name: str) -> None:
    reference, qconfigs = reference_program_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", TorchDefectWarning)
        lower(reference, qconfigs)
    assert not program_diff(without_qconfigs(reference), of_case(name)[2])


def reference_program_of(name: str) -> tuple[Program, Any]:
    _, reference, _, qconfigs, _ = of_case(name)
    return reference.copy(), qconfigs


@pytest.mark.parametrize(
    "name", ["F.linear", "Conv2d plain", "torch.add", "dynamic F.linear int8", "Sigmoid"]
)
def test_a_relu_may_stand_before_the_quantize(name: str) -> None:
    model, scopes = reference_model(CASES[name]())
    model.relu = nn.ReLU()
    for relu in (F.relu, torch.relu, "relu"):
        changed = copy.deepcopy(model)
        insert_relu(changed, relu, scopes)
        assert_lowers_alike(changed, {}, scopes)


def insert_relu(model: Any, relu: Any, scopes: dict[str, Any]) -> None:
    for node in list(model.graph.nodes):
        is_op = node.name in scopes and node.op in ("call_module", "call_function")
        for user in list(node.users) if is_op else ():
            with model.graph.inserting_after(node):
                kind = "call_module" if relu == "relu" else "call_function"
                made = model.graph.create_node(kind, relu, (node,))
            user.replace_input_with(node, made)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("F.conv_transpose2d", RuntimeError, "conv_transpose2d: .* with relu has no quantized"),
        ("torch.matmul", KeyError, "matmul: torch.matmul with relu has no quantized form"),
    ],
)
def test_a_relu_before_the_quantize_is_refused_as_in_torch(
    name: str, error: type[Exception], message: str
) -> None:
    model, scopes = reference_model(CASES[name]())
    insert_relu(model, F.relu, scopes)
    ours = placed(capture_graph_module(model), scopes)
    with pytest.raises(error):
        _lower_to_native_backend(model, {}, scopes)
    with pytest.raises(VerifyError, match=message):
        lower(ours, {})


def test_original_weights_are_kept() -> None:
    case = nested()
    ours, _, qconfigs, theirs = torch_programs(case, keep=True)
    lower(ours, qconfigs, keep_original_weights=True)
    found = ours.meta["original_weights_lookup"]
    assert list(found) == list(theirs.original_weights_lookup)
    for key, expected in theirs.original_weights_lookup.items():
        assert len(found[key]) == len(expected)
        for mine, yours in zip(found[key], expected, strict=True):
            assert_same(mine, from_torch(yours if yours is None else yours.detach()))


# What torch cannot convert: the model, torch's error, and a part of ours.
REFUSED: dict[str, tuple[Callable[[], Case], type[Exception], str]] = {
    "string padding": (
        lambda: Case(chain(nn.Conv2d(3, 4, 3, padding="same")), (x(1, 3, 5, 5),)),
        RuntimeError,
        "0: conv2d_prepack: padding must be a tuple of 2 ints, got 'same'",
    ),
    "padding mode": (
        lambda: conv_case(2, padding=1, padding_mode="circular"),
        ValueError,
        "0: a quantized Conv2d needs padding_mode zeros or reflect, got 'circular'",
    ),
    "reflection in three dimensions": (
        lambda: conv_case(3, padding=1, padding_mode="reflect"),
        AssertionError,
        "0: a quantized Conv3d needs padding_mode zeros, got 'reflect'",
    ),
    "int stride": (
        lambda: functional_conv(2, False, stride=1),
        RuntimeError,
        "conv2d: conv2d_prepack: stride must be a tuple of 2 ints, got 1",
    ),
    "missing arguments": (
        lambda: Case(
            Body(lambda s, y: F.conv2d(y, s.w, s.b), w=x(6, 4, 3, 3), b=x(6)), (x(1, 4, 5, 5),)
        ),
        RuntimeError,
        "conv2d: conv2d_prepack missing 4 required",
    ),
    "transposed by channel": (
        lambda: functional_transposed(2)._replace(mapping=mapping_of(static().global_qconfig)),
        RuntimeError,
        "conv_transpose2d: conv_transpose2d_prepack: the weight must be quantized per tensor",
    ),
    "recurrent without bias": (
        lambda: recurrent(nn.GRU(4, 3, bias=False), DYNAMIC),
        KeyError,
        "0: a dynamically quantized GRU must have a bias",
    ),
    "batch norm without weight": (
        lambda: between(nn.BatchNorm2d(3, affine=False), 2, 3, 4, 4),
        AttributeError,
        "module: a quantized BatchNorm must be affine",
    ),
    "weight by keyword": (
        lambda: Case(
            Body(lambda s, y: F.linear(y, weight=s.w, bias=s.b), **linear_weights()), (x(2, 4),)
        ),
        AssertionError,
        "linear: argument 1 must be positional",
    ),
    "weight also read elsewhere": (
        lambda: Case(
            Body(lambda s, y: F.linear(y, s.w, s.b) + torch.mul(s.w, 2.0), w=x(2, 2), b=x(2)),
            (x(2, 2),),
        ),
        KeyError,
        "w: this weight is packed for one use and read by",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_torch_refuses(name: str) -> None:
    make, error, message = REFUSED[name]
    with pytest.raises(error):
        torch_programs(make())
    case = make()
    with flows.fbgemm():
        reference, qconfigs = reference_program(case)
    with pytest.raises(VerifyError, match=re.escape(message)):
        lower(reference, qconfigs)


def sigmoid_without_qconfig() -> Case:
    """A sigmoid in float, whose result the next layer observes."""
    mapping = static().set_object_type("sigmoid", None)
    parts = {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)}
    return Case(Body(lambda s, y: s.second(s.first(y).sigmoid()), **parts), (x(2, 4),), mapping)


@pytest.mark.parametrize(
    ("make", "defect"),
    [
        (CASES["torch.add with alpha F.relu"], "add: .*dropped-alpha"),
        (sigmoid_without_qconfig, "sigmoid: .*fixed-qparams-ignored"),
    ],
)
def test_defects_are_reproduced_fixed_or_refused(make: Callable[[], Case], defect: str) -> None:
    ours, theirs, qconfigs, _ = torch_programs(make())
    refused, fixed = ours.copy(), ours.copy()
    with pytest.warns(TorchDefectWarning, match=defect):
        lower(ours, qconfigs)
    assert not program_diff(without_qconfigs(ours), theirs)
    with quirks_mode("reject"), pytest.raises(VerifyError, match=defect):
        lower(refused, qconfigs)
    with quirks_mode("fixed"):
        lower(fixed, qconfigs)
    kept = [call for call in fixed if call.target in ("torch.add", "sigmoid")]
    assert [call.args[0].target for call in kept] == ["dequantize"]
