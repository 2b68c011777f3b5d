"""Fusion: what follows a convolution, a linear layer or a batch norm, folded or contained."""

from __future__ import annotations

from typing import Any

import qconfigs
import torch
import torch.nn.functional as F
from flow import Case, net
from torch import nn
from torch.ao.quantization.backend_config import get_onednn_backend_config

IMAGE = (2, 3, 6, 6)
SHAPES = {1: (2, 3, 8), 2: (2, 3, 6, 6), 3: (2, 3, 4, 4, 4)}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

CASES: dict[str, Case] = {}


def _all_modes(name: str, model: nn.Module, *inputs: Any, **options: Any) -> None:
    """Fuse, prepare and train the same model."""
    CASES[f"fuse {name}"] = Case(model, inputs, qconfigs.static, mode="fuse")
    CASES[f"{name}"] = Case(model, inputs, qconfigs.static, **options)
    CASES[f"{name}, trained"] = Case(model, inputs, qconfigs.qat, mode="qat", steps=1)


for rank, shape in SHAPES.items():
    conv, norm = CONV[rank], NORM[rank]
    _all_modes(f"conv{rank}d bn", nn.Sequential(conv(3, 4, 3), norm(4)), shape)
    _all_modes(f"conv{rank}d bn relu", nn.Sequential(conv(3, 4, 3), norm(4), nn.ReLU()), shape)
    _all_modes(f"conv{rank}d relu", nn.Sequential(conv(3, 4, 3, bias=False), nn.ReLU()), shape)
    _all_modes(
        f"conv{rank}d bn F.relu",
        net(lambda m, x: F.relu(m.bn(m.conv(x))), conv=conv(3, 4, 1), bn=norm(4)),
        shape,
    )
    CASES[f"conv_transpose{rank}d bn"] = Case(
        nn.Sequential(TRANSPOSED[rank](3, 4, 2), norm(4), nn.ReLU()), (shape,), qconfigs.static
    )
_all_modes(
    "conv2d F.relu and torch.relu",
    net(
        lambda m, x: torch.relu(m.b(F.relu(m.a(x), inplace=True))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 3, 1),
    ),
    IMAGE,
)
_all_modes("linear relu", nn.Sequential(nn.Linear(5, 4), nn.ReLU()), (3, 5))
_all_modes(
    "linear F.relu keyword",
    net(lambda m, x: m.b(F.relu(input=m.a(x))), a=nn.Linear(5, 4), b=nn.Linear(4, 2)),
    (3, 5),
)
_all_modes("linear bn", nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), (3, 5))
_all_modes("linear bn relu", nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU()), (3, 5))
for rank in (2, 3):
    name = f"bn{rank}d relu"
    model = nn.Sequential(NORM[rank](3), nn.ReLU(), CONV[rank](3, 2, 1))
    CASES[name] = Case(model, (SHAPES[rank],), qconfigs.static)
    CASES[f"fuse {name}"] = Case(model, (SHAPES[rank],), qconfigs.static, mode="fuse")
    CASES[f"{name}, trained"] = Case(model, (SHAPES[rank],), qconfigs.qat, mode="qat")
CASES["bn2d F.relu"] = Case(
    net(lambda m, x: F.relu(m.bn(x)), bn=nn.BatchNorm2d(3)), (IMAGE,), qconfigs.static
)
CASES["conv2d bn with two users of the conv"] = Case(
    net(
        lambda m, x: (lambda y: m.bn(y) + y)(m.conv(x)),
        conv=nn.Conv2d(3, 4, 3),
        bn=nn.BatchNorm2d(4),
    ),
    (IMAGE,),
    qconfigs.static,
)
CASES["conv2d relu with two users of the relu"] = Case(
    net(
        lambda m, x: (lambda y: m.other(y) + y)(m.relu(m.conv(x))),
        conv=nn.Conv2d(3, 4, 3),
        relu=nn.ReLU(),
        other=nn.Conv2d(4, 4, 1),
    ),
    (IMAGE,),
    qconfigs.static,
)
CASES["one relu for two convs"] = Case(
    net(
        lambda m, x: m.relu(m.b(m.relu(m.a(x)))),
        a=nn.Conv2d(3, 4, 3),
        b=nn.Conv2d(4, 4, 1),
        relu=nn.ReLU(),
    ),
    (IMAGE,),
    qconfigs.static,
)
CASES["conv2d bn without bias and affine"] = Case(
    nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)),
    (IMAGE,),
    qconfigs.static,
)
CASES["conv2d bn grouped, strided, dilated"] = Case(
    nn.Sequential(
        nn.Conv2d(4, 8, 3, 2, 2, dilation=2, groups=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
    ),
    ((2, 4, 7, 7),),
    qconfigs.static,
)
CASES["conv2d bn grouped, trained without fused observers"] = Case(
    nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)),
    ((2, 4, 7, 7),),
    qconfigs.qat_0,
    mode="qat",
    steps=2,
)
CASES["nested fusion paths"] = Case(
    nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1, padding_mode="reflect", padding=0)),
    ),
    (IMAGE,),
    qconfigs.static,
)
CASES["fuse in training mode fails"] = Case(
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)),
    (IMAGE,),
    qconfigs.qat,
    mode="qat",
    raises={"prepared": "0"},
)
CASES["trained bn of other features"] = Case(
    net(lambda m, x: m.bn(m.conv(x)), conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(5)),
    (IMAGE,),
    qconfigs.qat,
    mode="qat",
    raises={"prepared": "conv"},
)
CASES["trained conv_transpose2d bn"] = Case(
    net(lambda m, x: m.bn(m.up(x)), up=nn.ConvTranspose2d(3, 4, 3), bn=nn.BatchNorm2d(4)),
    (IMAGE,),
    qconfigs.qat,
    mode="qat",
    raises={"prepared": "up"},
)

# ---- oneDNN's

ONEDNN = get_onednn_backend_config


def _onednn(name: str, model: nn.Module, *inputs: Any, **options: Any) -> None:
    def make() -> Any:
        return qconfigs.static("onednn")

    options = {"backend": ONEDNN, "engine": "onednn", **options}
    CASES[f"onednn {name}"] = Case(model, inputs, make, **options)


for side, add in {
    "left": lambda m, x: m.a(x) + m.b(x),
    "right": lambda m, x: m.other(x) + m.a(m.relu(x)),
}.items():
    parts = {"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1), "other": nn.MaxPool2d(1)}
    _onednn(f"conv add {side}", net(add, relu=nn.ReLU(), **parts), IMAGE)
_onednn(
    "conv add relu",
    net(
        lambda m, x: m.relu(torch.add(m.a(x), m.b(x))),
        a=nn.Conv2d(3, 3, 1),
        b=nn.Conv2d(3, 3, 1),
        relu=nn.ReLU(),
    ),
    IMAGE,
)
_onednn(
    "conv bn add with an input",
    net(lambda m, x: m.bn(m.a(x)) + x, a=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3)),
    IMAGE,
)
_onednn(
    "conv bn add relu, the conv on the right",
    net(
        lambda m, x: m.relu(m.pool(x) + m.bn(m.a(x))),
        a=nn.Conv2d(3, 3, 1),
        bn=nn.BatchNorm2d(3),
        relu=nn.ReLU(),
        pool=nn.MaxPool2d(1),
    ),
    IMAGE,
)
_onednn("linear leaky_relu", nn.Sequential(nn.Linear(5, 4), nn.LeakyReLU(0.1)), (3, 5))
_onednn(
    "linear bn leaky_relu",
    nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.LeakyReLU(0.2)),
    (3, 5),
)
CASES["onednn linear tanh"] = Case(
    nn.Sequential(nn.Linear(5, 4), nn.Tanh()),
    ((3, 5),),
    qconfigs.per_tensor,
    backend=ONEDNN,
    engine="onednn",
)
CASES["onednn fuse conv add relu"] = Case(
    net(
        lambda m, x: m.relu(m.a(x) + m.b(x)),
        a=nn.Conv2d(3, 3, 1),
        b=nn.Conv2d(3, 3, 1),
        relu=nn.ReLU(),
    ),
    (IMAGE,),
    qconfigs.static,
    mode="fuse",
    backend=ONEDNN,
)
CASES["onednn trained conv bn add"] = Case(
    net(
        lambda m, x: m.n(m.a(x)) + m.b(x),
        a=nn.Conv2d(3, 3, 1),
        n=nn.BatchNorm2d(3),
        b=nn.MaxPool2d(1),
    ),
    (IMAGE,),
    qconfigs.qat,
    mode="qat",
    backend=ONEDNN,
    raises={"prepared": "a"},
)
CASES["onednn conv add of a number"] = Case(
    net(lambda m, x: m.conv(x) + 0.5, conv=nn.Conv2d(3, 3, 1)),
    (IMAGE,),
    qconfigs.static,
    backend=ONEDNN,
    raises={"prepared": ""},
)
CASES["onednn overlapping conv adds"] = Case(
    net(
        lambda m, x: (lambda y: m.b(y) + y)(m.a(x) + x),
        a=nn.Conv2d(3, 3, 1),
        b=nn.Conv2d(3, 3, 1),
    ),
    (IMAGE,),
    qconfigs.static,
    backend=ONEDNN,
    engine="onednn",
)
CASES["onednn two convs to add"] = Case(
    net(
        lambda m, x: torch.relu(m.a(x) + m.b(x)) + m.c(x),
        a=nn.Conv2d(3, 3, 1),
        b=nn.Conv2d(3, 3, 1),
        c=nn.Conv2d(3, 3, 1),
    ),
    (IMAGE,),
    qconfigs.static,
    backend=ONEDNN,
    engine="onednn",
)
# The convolution is left and right operand: torch loses one of them.
CASES["onednn conv added to itself"] = Case(
    net(lambda m, x: (lambda y: y + y)(m.conv(x)), conv=nn.Conv2d(3, 3, 1)),
    (IMAGE,),
    qconfigs.static,
    backend=ONEDNN,
    raises={"prepared": "add"},
)
CASES["onednn conv bn added to itself"] = Case(
    net(
        lambda m, x: (lambda y: y + y)(m.bn(m.conv(x))),
        conv=nn.Conv2d(3, 3, 1),
        bn=nn.BatchNorm2d(3),
    ),
    (IMAGE,),
    qconfigs.static,
    backend=ONEDNN,
    raises={"prepared": "add"},
)
CASES["onednn shared conv, one call added to"] = Case(
    net(lambda m, x: torch.add(m.conv(F.relu(m.conv(x))), x), conv=nn.Conv2d(3, 3, 1)),
    (IMAGE,),
    qconfigs.static,
    backend=ONEDNN,
    raises={"calibrated": "ConvAdd2d"},
    defects=frozenset({"shared-module-fusion"}),
)
