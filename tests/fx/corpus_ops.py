"""Operators: binary, sharing their observer, with fixed qparams, norms, shapes, and the rest."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import qconfigs
import torch
import torch.nn.functional as F
from corpus_layers import CONV, IMAGE, ROWS, SHAPES
from flow import SUMS_FLOATS, Case, mask, net
from torch import nn
from torch.ao.quantization import (
    QConfig,
    default_observer,
    default_per_channel_weight_observer,
)

CASES: dict[str, Case] = {}


def _case(name: str, model: nn.Module, *inputs: Any, qconfig: Any = None, **options: Any) -> None:
    CASES[name] = Case(model, inputs, qconfig or qconfigs.static, **options)


def _between(name: str, op: Callable[..., Any], *inputs: Any, **options: Any) -> None:
    """The operator between two convolutions."""
    model = net(
        lambda m, x: m.after(op(m.before(x))),
        before=nn.Conv2d(4, 4, 1),
        after=nn.Conv2d(options.pop("channels", 4), 2, 1),
    )
    _case(name, model, *(inputs or (IMAGE,)), **options)


def _alone(name: str, op: Callable[..., Any], *inputs: Any, **options: Any) -> None:
    """The operator on the model's inputs."""
    CASES[name] = Case(net(op), inputs or (IMAGE,), qconfigs.static, **options)


def _applied(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda m, x: op(x)


# ---- binary

BINARY = {
    "operator.add": operator.add,
    "torch.add": torch.add,
    "operator.mul": operator.mul,
    "torch.mul": torch.mul,
}


def _binary(name: str, op: Any) -> None:
    parts = {"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1), "relu": nn.ReLU()}
    _case(name, net(lambda m, x: op(m.a(x), m.b(x)), **parts), IMAGE)
    _alone(f"{name} of inputs", lambda m, x, y: op(x, y), IMAGE, IMAGE)
    _case(f"{name} and nn.ReLU", net(lambda m, x: m.relu(op(m.a(x), m.b(x))), **parts), IMAGE)
    _alone(f"{name} and F.relu", lambda m, x, y: F.relu(op(x, y)), IMAGE, IMAGE)
    _alone(f"{name} and torch.relu", lambda m, x, y: torch.relu(op(x, y)), IMAGE, IMAGE)
    _between(f"{name} with a number", lambda x: op(x, 0.75))
    _between(f"{name} with an int and relu", lambda x: F.relu(op(x, 2)))
    _case(
        f"{name} with a parameter",
        net(lambda m, x: op(m.a(x), m.scale), a=nn.Conv2d(4, 4, 1), scale=torch.ones(4, 1, 1)),
        IMAGE,
    )
    _case(
        f"{name} with relu of two users",
        net(lambda m, x: (lambda y: F.relu(y) + y)(op(m.a(x), m.b(x))), **parts),
        IMAGE,
    )


for name, op in BINARY.items():
    _binary(name, op)
_between("number first", lambda x: 2.0 * x + 1)
_case(
    "a value added to itself",
    net(lambda m, x: (lambda y: y + y)(m.a(x)), a=nn.Conv2d(4, 4, 1)),
    IMAGE,
)
_alone(
    "torch.matmul",
    lambda m, x, y: torch.matmul(x, y.transpose(1, 2)),
    (2, 3, 8),
    (2, 5, 8),
)
_alone(
    "operator.matmul is left alone",
    lambda m, x, y: (x + 0.5) @ y,
    (3, 8),
    (8, 2),
    runs=SUMS_FLOATS,
)
_between("torch.sub and div are left alone", lambda x: torch.div(torch.sub(x, 0.5), 3.0))
_case(
    "FloatFunctional",
    net(
        lambda m, x: m.f.cat(
            [m.g.add_relu(m.a(x), x), m.h.mul_scalar(m.i.mul(x, m.j.add(x, x)), 0.5)], 1
        ),
        a=nn.Conv2d(4, 4, 1),
        **{name: torch.ao.nn.quantized.FloatFunctional() for name in "fghij"},
    ),
    IMAGE,
)

# ---- cat

_between("cat", lambda x: torch.cat([x, F.relu(x)], 1), channels=8)
_between("cat of one tensor twice", lambda x: torch.cat((x, x), dim=1), channels=8)
_between(
    "cat, tensors by keyword",
    lambda x: torch.cat(tensors=[x, x], dim=1),
    channels=8,
    defects=frozenset({"declared-not-observed"}),
    runs=SUMS_FLOATS,
)
_between("cat nested", lambda x: torch.cat([torch.cat([x, x + 1], 1), x * 2], 1), channels=12)
_alone("cat of inputs", lambda m, x, y: torch.cat([x, y], 1), IMAGE, IMAGE)
_case(
    "cat of two convs and an input, whose observers are shared",
    net(
        lambda m, x: m.c(torch.cat([m.a(x), m.b(x), x], 1)),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 1),
        c=nn.Conv2d(12, 2, 1),
    ),
    IMAGE,
)
_between("stack", lambda x: torch.stack([x, x + 1.0], 1).flatten(1, 2), channels=8)

# ---- ops that share their input's observer

SHARED: dict[str, Any] = {
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "max_pool2d": lambda x: F.max_pool2d(x, 3, stride=2, padding=1),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.5),
    "relu6": F.relu6,
    "interpolate": lambda x: F.interpolate(x, scale_factor=2),
    "pixel_shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2),
    "clamp": lambda x: torch.clamp(x, -0.5, 0.5).clamp(min=0),
    "flatten": lambda x: torch.flatten(x, 2).unsqueeze(2),
    "mean": lambda x: torch.mean(x, (2, 3), keepdim=True).mean([2, 3], keepdim=True),
    "narrow": lambda x: torch.narrow(x, 2, 1, 3),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 3),
    "transpose": lambda x: torch.transpose(x, 2, 3).transpose(2, 3).contiguous(),
    "squeeze": lambda x: torch.squeeze(torch.unsqueeze(x, 0), 0).unsqueeze(0).squeeze(0),
    "permute": lambda x: x.permute(0, 1, 3, 2),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "view": lambda x: x.contiguous().view(2, 4, 4, 9),
    "reshape": lambda x: x.reshape(2, 4, 9, 4),
    "relu method": lambda x: x.relu().detach(),
    "F.relu and torch.relu": lambda x: torch.relu(F.relu(x)),
}
_between("floordiv, shared", lambda x: x // 2, raises={"run": "floor_divide"})
for name, op in SHARED.items():
    _between(f"{name}, shared", op)
    _alone(f"{name} of the input", _applied(op))
MODULES: dict[str, Any] = {
    **{
        f"AdaptiveAvgPool{r}d": (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[
            r - 1
        ](2)
        for r in (1, 2, 3)
    },
    **{f"AvgPool{r}d": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[r - 1](2) for r in (1, 2, 3)},
    **{f"MaxPool{r}d": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[r - 1](2) for r in (1, 2, 3)},
    **{"Hardtanh": nn.Hardtanh(-0.5, 0.5), "Identity": nn.Identity(), "ReLU": nn.ReLU()},
    **{
        "ReLU6": nn.ReLU6(),
        "PixelShuffle": nn.PixelShuffle(2),
        "PixelUnshuffle": nn.PixelUnshuffle(2),
    },
}
for name, module in MODULES.items():
    rank = int(name[-2]) if name[-2].isdigit() else 2
    _case(f"nn.{name}", nn.Sequential(CONV[rank](4, 4, 1), module, nn.ELU()), SHAPES[rank])
_alone(
    "a chain of sharing ops from the input",
    lambda m, x: F.relu(x.permute(0, 2, 3, 1).flatten(1)).unsqueeze(1),
)
_case(
    "flatten and linear",
    nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ),
    IMAGE,
)
_between(
    "reshape with reuse of the input's observer",
    lambda x: (x.reshape(2, 4, 36) + 1).reshape(2, 4, 6, 6),
)
_case(
    "reshape of an input",
    net(lambda m, x: m.linear(x.reshape(-1, 8)), linear=nn.Linear(8, 2)),
    (2, 3, 8),
    runs=SUMS_FLOATS,
    defects=frozenset({"declared-not-observed"}),
)

# ---- fixed quantization parameters

FIXED: dict[str, Any] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid method": lambda x: x.sigmoid(),
    "tanh method": lambda x: x.tanh(),
    "F.sigmoid": F.sigmoid,
}
for name, op in FIXED.items():
    _between(f"{name}, fixed qparams", op)
FIXED_MODULES = {
    "Sigmoid": nn.Sigmoid(),
    "Tanh": nn.Tanh(),
    "Hardsigmoid": nn.Hardsigmoid(),
    "Softmax": nn.Softmax(1),
}
for name, module in FIXED_MODULES.items():
    _case(f"nn.{name}", nn.Sequential(nn.Conv2d(4, 4, 1), module, nn.Conv2d(4, 2, 1)), IMAGE)
    _case(
        f"nn.{name}, trained",
        nn.Sequential(nn.Conv2d(4, 4, 1), module, nn.Conv2d(4, 2, 1)),
        IMAGE,
        qconfig=qconfigs.qat,
        mode="qat",
        steps=1,
    )
_alone(
    "sigmoid of the input",
    lambda m, x: torch.sigmoid(x),
    defects=frozenset({"fixed-qparams-input"}),
)
_alone("F.softmax is left alone", lambda m, x: F.softmax(x + 0.5, dim=1), runs=SUMS_FLOATS)

# ---- default ops, norms

DEFAULT: dict[str, Any] = {
    "elu": lambda x: F.elu(x, 0.5),
    "hardswish": F.hardswish,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "dropout": lambda x: F.dropout(x, 0.3, training=False),
    "instance_norm": F.instance_norm,
}
for name, op in DEFAULT.items():
    _between(f"F.{name}", op)
DEFAULT_MODULES: dict[str, tuple[nn.Module, int]] = {
    "ELU": (nn.ELU(0.5), 2),
    "LeakyReLU": (nn.LeakyReLU(0.2), 2),
    "Hardswish": (nn.Hardswish(), 2),
    "Dropout": (nn.Dropout(0.4), 2),
    "PReLU": (nn.PReLU(4), 2),
    "InstanceNorm1d": (nn.InstanceNorm1d(4, affine=True), 1),
    "InstanceNorm2d": (nn.InstanceNorm2d(4, affine=True), 2),
    "InstanceNorm3d": (nn.InstanceNorm3d(4, affine=True), 3),
    "BatchNorm2d": (nn.BatchNorm2d(4), 2),
    "BatchNorm3d": (nn.BatchNorm3d(4), 3),
    "LayerNorm": (nn.LayerNorm(6), 2),
}
for name, (module, rank) in DEFAULT_MODULES.items():
    model = nn.Sequential(nn.ReLU(), module, CONV[rank](4, 2, 1))
    _case(f"nn.{name}", model, SHAPES[rank])
_case(
    "F.layer_norm",
    net(
        lambda m, x: F.layer_norm(m.a(x), (6,), m.weight, m.bias),
        a=nn.Conv2d(4, 4, 1),
        weight=torch.ones(6),
        bias=torch.ones(6),
    ),
    IMAGE,
)
_case(
    "F.group_norm stays float between quantize and dequantize",
    net(
        lambda m, x: F.group_norm(m.a(x), 2, m.weight, m.bias),
        a=nn.Conv2d(4, 4, 1),
        weight=torch.ones(4),
        bias=torch.ones(4),
    ),
    IMAGE,
)
_case(
    "norms that are left alone",
    nn.Sequential(
        nn.Conv1d(4, 4, 1), nn.ReLU(), nn.BatchNorm1d(4), nn.GroupNorm(2, 4), nn.GELU(), nn.SiLU()
    ),
    SHAPES[1],
    runs=SUMS_FLOATS,
)
_case(
    "prelu, trained",
    nn.Sequential(nn.Conv2d(4, 4, 1), nn.PReLU()),
    IMAGE,
    qconfig=qconfigs.qat,
    mode="qat",
)

# ---- shapes, indices, masks

_case(
    "view with sizes",
    net(
        lambda m, x: m.linear(m.conv(x).view(x.size(0), -1)),
        conv=nn.Conv2d(4, 4, 3),
        linear=nn.Linear(64, 3),
    ),
    IMAGE,
    raises={"run": "view"},
)
_case(
    "reshape with shapes",
    net(
        lambda m, x: (lambda y: m.conv(y.reshape(y.shape[0], y.shape[1], -1, 1)))(m.conv(x)),
        conv=nn.Conv2d(4, 4, 1),
    ),
    IMAGE,
)
_between("size and arithmetic", lambda x: x.view(x.size(0), x.size(1), x.size(2) * x.size(3), 1))
_between("chunk", lambda x: (lambda parts: parts[1] + parts[0])(torch.chunk(x, 2, 1)), channels=2)
_between("split and getitem", lambda x: x.split(2, 1)[0][:, :, 1:], channels=2)
_between("getitem of two kinds", lambda x: torch.cat([x[:, 0:2], x[:, [0, 1]]], 1))
_case(
    "masked_fill",
    net(lambda m, x, k: m.b(m.a(x).masked_fill(k, 0.5)), a=nn.Linear(8, 8), b=nn.Linear(8, 2)),
    ROWS,
    mask(*ROWS),
)
_case(
    "masked_fill of a transposed value, with a mask that was reshaped",
    net(
        lambda m, x, k: m.b(
            m.a(x).transpose(0, 1).masked_fill(k.view(3, 8).transpose(0, 1), 0.0).permute(1, 0)
        ),
        a=nn.Linear(8, 8),
        b=nn.Linear(8, 2),
    ),
    ROWS,
    mask(*ROWS),
)
_case(
    "constants of the model",
    net(lambda m, x: m.conv(x) + torch.ones(1, 4, 6, 6) * 0.5, conv=nn.Conv2d(4, 4, 1)),
    IMAGE,
)
_case(
    "returned in a dict, a list and a tuple",
    net(
        lambda m, x: (lambda y: {"y": y, "more": [y + 1, (F.relu(y), None)]})(m.conv(x)),
        conv=nn.Conv2d(4, 4, 1),
    ),
    IMAGE,
)
_case(
    "the input is returned too",
    net(lambda m, x: (x, m.conv(x)), conv=nn.Conv2d(4, 4, 1)),
    IMAGE,
)
_case("nothing to quantize", net(lambda m, x: torch.abs(x)), ROWS)
_case(
    "an input that is not used, and one with a default",
    net(lambda m, x, y, scale=None: m.conv(x), conv=nn.Conv2d(4, 4, 1)),
    IMAGE,
    IMAGE,
)
_case(
    "functions called with keywords",
    net(
        lambda m, x: F.max_pool2d(input=torch.add(input=m.conv(input=x), other=x), kernel_size=2),
        conv=nn.Conv2d(4, 4, 1),
    ),
    IMAGE,
    raises={"lowered": "conv"},
)
_case(
    "only functions called with keywords",
    net(lambda m, x: F.max_pool2d(input=torch.add(input=x, other=x), kernel_size=2)),
    IMAGE,
    raises={"lowered": "add"},
)
_case(
    "a value with many users",
    net(
        lambda m, x: (lambda y: m.b(y) + m.c(y) * torch.sigmoid(y) + y.mean((2, 3), keepdim=True))(
            m.a(x)
        ),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 1),
        c=nn.Conv2d(4, 4, 1),
    ),
    IMAGE,
)
_case(
    "one module called twice",
    net(lambda m, x: m.a(m.a(x)), a=nn.Conv2d(4, 4, 1)),
    IMAGE,
)
_case(
    "one module under two names",
    (lambda conv: net(lambda m, x: m.a(x) + m.b(x), a=conv, b=conv))(nn.Conv2d(4, 4, 1)),
    IMAGE,
)
_case(
    "residual block",
    net(
        lambda m, x: m.head(m.relu(m.bn2(m.conv2(m.relu(m.bn1(m.conv1(x))))) + x)),
        conv1=nn.Conv2d(4, 4, 3, padding=1),
        bn1=nn.BatchNorm2d(4),
        conv2=nn.Conv2d(4, 4, 3, padding=1),
        bn2=nn.BatchNorm2d(4),
        relu=nn.ReLU(),
        head=nn.Conv2d(4, 2, 1),
    ),
    IMAGE,
)
_case(
    "prelu with a histogram",
    nn.Sequential(nn.Linear(8, 4), nn.PReLU()),
    ROWS,
    qconfig=qconfigs.histogram,
)
_case(
    "histograms",
    nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    IMAGE,
    qconfig=qconfigs.histogram,
)
PER_CHANNEL = QConfig(default_observer, default_per_channel_weight_observer)
_case(
    "attention of a transformer",
    net(
        lambda m, x: m.out(
            torch.matmul(
                torch.softmax(torch.matmul(m.q(x), m.k(x).transpose(-2, -1)) * 0.5, -1), m.v(x)
            )
        ),
        q=nn.Linear(8, 8),
        k=nn.Linear(8, 8),
        v=nn.Linear(8, 8),
        out=nn.Linear(8, 8),
    ),
    (2, 3, 8),
    qconfig=qconfigs.only(PER_CHANNEL),
)
