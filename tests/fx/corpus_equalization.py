"""Equalization: layers one after another, functions, branches.

torch takes the root of the scales with a function that does not round correctly, so weights and
inputs have ranges whose quotient is a power of 4.
"""

from __future__ import annotations

from typing import Any

import qconfigs
import torch
import torch.nn.functional as F
from flow import FORMS, SUMS_FLOATS, Case, net
from torch import nn
from torch.ao.quantization import QConfigMapping, default_qconfig
from torch.ao.quantization.fx._equalize import default_equalization_qconfig

CASES: dict[str, Case] = {}


def everywhere() -> QConfigMapping:
    return QConfigMapping().set_global(default_equalization_qconfig)


def _case(name: str, model: nn.Module, *inputs: Any, **options: Any) -> None:
    defaults: dict[str, Any] = {
        "qconfigs": qconfigs.per_tensor,
        "equalization": everywhere,
        "fill": False,
    }
    CASES[f"equalization: {name}"] = Case(model, inputs, **{**defaults, **options})


def powers(columns: int, *spatial: int) -> Any:
    """Return what draws inputs: in each row one column is a power of 4, plus and minus."""

    def draw(generator: torch.Generator) -> torch.Tensor:
        scale = 4.0 ** (1 + torch.randint(0, 3, (columns,), generator=generator))
        rows = torch.cat([torch.diag(scale), -torch.diag(scale)])
        return rows.reshape(*rows.shape, *(1,) * len(spatial)).expand(*rows.shape, *spatial)

    return draw


def weights(rows: int, columns: int, after_relu: bool = False) -> torch.Tensor:
    """Return weights that keep ranges powers of 4: one in each row, both signs in each column.

    Behind a relu, where inputs range from 0, there is no minus.
    """
    made = torch.zeros(rows, columns)
    for row in range(rows):
        turn, column = divmod(row, columns)
        other = 0.5 if after_relu else -1.0
        made[row, column] = 4.0 ** (column % 2) * (1.0 if turn == 0 else other)
    return made


def layer(module: nn.Module, after_relu: bool = False, bias: float = 0.0) -> nn.Module:
    """Fill a layer."""
    with torch.no_grad():
        shape = module.weight.shape
        made = weights(shape[0], shape[1], after_relu)
        module.weight.copy_(made.reshape(*made.shape, *(1,) * (len(shape) - 2)).expand(shape))
        if module.bias is not None:
            module.bias.fill_(bias)
    return module


LINEAR = layer(nn.Linear(2, 4)), layer(nn.Linear(4, 8)), layer(nn.Linear(8, 16), bias=0.3)
BEHIND = layer(nn.Linear(4, 8), True), layer(nn.Linear(8, 16, bias=False), True)
X = powers(2)
_case("linear", nn.Sequential(LINEAR[0]), X)
_case("three of linear", nn.Sequential(*LINEAR), X)
_case("linear and relu", nn.Sequential(LINEAR[0], nn.ReLU(), BEHIND[0], nn.ReLU(), BEHIND[1]), X)
for rank, conv in {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}.items():
    first, second = layer(conv(2, 4, 1)), layer(conv(4, 8, 1), True, 0.7)
    _case(f"conv{rank}d", nn.Sequential(first, nn.ReLU(), second), powers(2, *(3,) * rank))
_case(
    "conv2d, no relu",
    nn.Sequential(layer(nn.Conv2d(2, 4, 1)), layer(nn.Conv2d(4, 8, 1))),
    powers(2, 2, 2),
)


def _functions(kind: Any) -> nn.Module:
    """Weights of functions, as parameters or buffers."""
    model = net(lambda m, x: F.linear(F.relu(F.linear(x, m.a, m.bias)), m.b))
    for name, value in (
        ("a", weights(4, 2)),
        ("b", weights(8, 4, True)),
        ("bias", torch.zeros(4)),
    ):
        kind(model, name, value)
    return model


# torch writes a buffer over the parameter, and dies; ours has no such difference.
_case(
    "F.linear of parameters",
    _functions(lambda m, name, value: m.register_parameter(name, nn.Parameter(value))),
    X,
    raises=dict.fromkeys(FORMS, ""),
)
_case("F.linear of buffers", _functions(lambda m, name, value: m.register_buffer(name, value)), X)
_case(
    "one layer only",
    nn.Sequential(*LINEAR[:2]),
    X,
    equalization=lambda: QConfigMapping().set_module_name("1", default_equalization_qconfig),
)
_case(
    "by object type, from a dict",
    nn.Sequential(*LINEAR[:2]),
    X,
    equalization=lambda: {"object_type": [(nn.Linear, default_equalization_qconfig)]},
)
_case(
    "a branch is left out",
    net(lambda m, x: m.a(x) + m.b(x), a=LINEAR[0], b=layer(nn.Linear(2, 4))),
    X,
)
_case(
    "a layer that is not quantized",
    nn.Sequential(*LINEAR[:2]),
    X,
    qconfigs=lambda: QConfigMapping().set_module_name("0", default_qconfig),
    runs=SUMS_FLOATS,
)
_case("another layer between", nn.Sequential(LINEAR[0], nn.Dropout(), LINEAR[1]), X)
_case(
    "an add before",
    net(lambda m, x: m.b(m.a(x) + 1.0), a=LINEAR[0], b=LINEAR[1]),
    X,
    runs=SUMS_FLOATS,
    defects=frozenset({"equalized-shared-observer"}),
)
_case(
    "a shared observer before",
    nn.Sequential(LINEAR[0], nn.Hardtanh(-64.0, 64.0), LINEAR[1]),
    X,
    defects=frozenset({"equalized-shared-observer"}),
)
_case("default mapping", nn.Sequential(*LINEAR), X, qconfigs=qconfigs.static)
_case(
    "columns that do not fit",
    net(lambda m, x: m.linear(x), linear=nn.Linear(8, 4)),
    (4, 3, 8),
    fill=True,
    raises=dict.fromkeys(FORMS, "linear"),
)
