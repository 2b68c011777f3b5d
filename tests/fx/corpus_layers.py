"""Layers with weights: modules and functions, embeddings, recurrent ones."""

from __future__ import annotations

from typing import Any

import qconfigs
import torch
import torch.nn.functional as F
from flow import SUMS_FLOATS, Case, indices, net
from torch import nn

IMAGE = (2, 4, 6, 6)
SHAPES = {1: (2, 4, 8), 2: IMAGE, 3: (2, 4, 4, 4, 4)}
ROWS = (3, 8)
CASES: dict[str, Case] = {}


def _case(name: str, model: nn.Module, *inputs: Any, qconfig: Any = None, **options: Any) -> None:
    CASES[name] = Case(model, inputs, qconfig or qconfigs.static, **options)


CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CONV_FUNCTION = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED_FUNCTION = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
RELUS = {"F.relu": F.relu, "nn.ReLU": nn.ReLU(), "torch.relu": torch.relu}


def _conv_function(rank: int, relu: Any, bias: bool) -> nn.Module:
    function, ints = CONV_FUNCTION[rank], (1,) * rank
    zeros, parts = (0,) * rank, {"relu": relu} if isinstance(relu, nn.Module) else {}

    def forward(m: Any, x: Any) -> Any:
        made = function(x, m.weight, m.bias if bias else None, ints, zeros, ints, 1)
        return made if relu is None else (m.relu if parts else relu)(made)

    weight = torch.ones(4, 4, *(3,) * rank)
    return net(forward, weight=weight, bias=torch.ones(4), **parts)


def _conv_transpose_function(rank: int) -> nn.Module:
    function, ones, zeros = TRANSPOSED_FUNCTION[rank], (1,) * rank, (0,) * rank
    return net(
        lambda m, x: F.relu(function(x, m.weight, m.bias, ones, zeros, zeros, 1, ones)),
        weight=torch.ones(4, 6, *(3,) * rank),
        bias=torch.ones(6),
    )


for rank, shape in SHAPES.items():
    geometry: dict[str, Any] = {"stride": 2, "padding": 1, "groups": 2}
    _case(f"conv{rank}d", nn.Sequential(CONV[rank](4, 6, 3, **geometry)), shape)
    up = TRANSPOSED[rank](4, 6, 3, stride=2, output_padding=1, groups=2)
    _case(f"conv_transpose{rank}d", nn.Sequential(up, nn.ReLU()), shape)
    for what, relu in {"": None, **RELUS}.items():
        name = f"F.conv{rank}d {what}".rstrip()
        _case(name, _conv_function(rank, relu, bias=what != "F.relu"), shape)
    _case(f"F.conv_transpose{rank}d", _conv_transpose_function(rank), shape)
_case(
    "conv2d reflected",
    nn.Sequential(nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect")),
    IMAGE,
)
_case(
    "F.conv1d with plain numbers",
    net(
        lambda m, x: F.conv1d(x, m.weight, m.bias, 2, 1, 1, 2),
        weight=torch.ones(2, 2, 3),
        bias=torch.ones(2),
    ),
    SHAPES[1],
)
_case("linear", nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3, bias=False)), ROWS)
_case("linear of three dimensions", nn.Sequential(nn.Linear(8, 4)), (2, 3, 8))


def _linear_function(relu: Any) -> nn.Module:
    return net(
        lambda m, x: relu(F.linear(x, m.weight, m.bias)),
        weight=torch.ones(4, 8),
        bias=torch.ones(4),
    )


_case("F.linear", _linear_function(lambda y: y), ROWS)
_case("F.linear F.relu", _linear_function(F.relu), ROWS)
_case("F.linear torch.relu", _linear_function(torch.relu), ROWS)
_case(
    "F.linear with keywords and nn.ReLU",
    net(
        lambda m, x: m.relu(F.linear(x, m.weight, bias=m.bias)),
        weight=torch.ones(4, 8),
        bias=torch.ones(4),
        relu=nn.ReLU(),
    ),
    ROWS,
)
_case(
    "F.linear in a submodule, weight of another",
    net(
        lambda m, x: F.linear(m.inner(x), m.inner.other.weight),
        inner=net(
            lambda m, x: F.linear(x, m.weight),
            weight=torch.ones(8, 8),
            other=nn.Linear(8, 4),
        ),
    ),
    ROWS,
)
_case(
    "F.linear with a computed weight",
    net(
        lambda m, x: F.linear(x, (m.weight * 0.5).t() + 1.0, m.bias),
        weight=torch.ones(8, 4),
        bias=torch.ones(4),
    ),
    ROWS,
)
_case(
    "F.linear twice with one weight",
    net(lambda m, x: F.linear(F.linear(x, m.weight), m.weight), weight=torch.ones(8, 8)),
    ROWS,
)
_case(
    "F.linear with a weight from the input",
    net(lambda m, x, w: F.linear(x, w)),
    ROWS,
    (4, 8),
    runs="a weight quantized at run time",
)
_case(
    "embedding",
    nn.Sequential(nn.Embedding(12, 8)),
    indices(12, 3, 4),
    qconfig=qconfigs.embedding,
)
_case(
    "embedding bag",
    net(
        lambda m, x, o: m.bag(x, o),
        bag=nn.EmbeddingBag(12, 8, mode="sum", include_last_offset=True),
    ),
    indices(12, 6),
    lambda generator: torch.tensor([0, 2, 6]),
    qconfig=qconfigs.embedding,
)
_case(
    "embedding bag 4 bit",
    net(
        lambda m, x, o: m.bag(x, o),
        bag=nn.EmbeddingBag(12, 8, mode="sum", include_last_offset=True),
    ),
    indices(12, 6),
    lambda generator: torch.tensor([0, 2, 6]),
    qconfig=qconfigs.embedding_4bit,
)
_case(
    "embedding 4 bit",
    nn.Sequential(nn.Embedding(12, 8)),
    indices(12, 3),
    qconfig=qconfigs.embedding_4bit,
)
_case(
    "embedding, trained",
    nn.Sequential(nn.Embedding(12, 8)),
    indices(12, 3),
    qconfig=qconfigs.embedding_qat,
    mode="qat",
)
_case(
    "embedding statically is left alone",
    nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 4)),
    indices(12, 3),
)

# ---- recurrent, dynamically

FLOAT16: dict[str, Any] = {
    "raises": {"decomposed": "activation_post_process_0"},
}

for kind in (nn.LSTM, nn.GRU):
    layers = 2 if kind is nn.LSTM else 1
    module = kind(4, 3, num_layers=layers, bidirectional=layers == 2)
    name = kind.__name__.lower()
    model = net(lambda m, x: m.rnn(x)[0], rnn=module)
    _case(f"{name}, dynamic", model, (5, 2, 4), qconfig=qconfigs.dynamic)
    _case(
        f"{name}, dynamic float16", model, (5, 2, 4), qconfig=qconfigs.dynamic_float16, **FLOAT16
    )
for kind in (nn.LSTMCell, nn.GRUCell, nn.RNNCell):
    name = kind.__name__.lower()
    model = net(lambda m, x: m.cell(x), cell=kind(4, 3))
    _case(f"{name}, dynamic", model, (2, 4), qconfig=qconfigs.dynamic)
    _case(f"{name}, dynamic float16", model, (2, 4), qconfig=qconfigs.dynamic_float16, **FLOAT16)
_case(
    "lstm with a state, dynamic",
    net(lambda m, x, h, c: m.rnn(x, (h, c)), rnn=nn.LSTM(4, 3, batch_first=True)),
    (2, 5, 4),
    (1, 2, 3),
    (1, 2, 3),
    qconfig=qconfigs.dynamic,
)
_case(
    "lstm statically is left alone",
    net(lambda m, x: m.rnn(x)[0], rnn=nn.LSTM(4, 3)),
    (5, 2, 4),
    runs=SUMS_FLOATS,
)
