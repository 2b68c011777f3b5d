"""Where torch itself fails, or silently changes the result."""

from __future__ import annotations

from typing import Any

import qconfigs
import torch
import torch.nn.functional as F
from flow import SUMS_FLOATS, Case, net
from torch import nn
from torch.ao.quantization import (
    MinMaxObserver,
    QConfig,
    default_dynamic_qconfig,
)
from torch.ao.quantization.backend_config import get_onednn_backend_config

ROWS, IMAGE = (3, 8), (2, 4, 6, 6)
CASES: dict[str, Case] = {}


def _case(name: str, model: nn.Module, *inputs: Any, defects: str = "", **options: Any) -> None:
    options.setdefault("qconfigs", qconfigs.static)
    CASES[f"defect: {name}"] = Case(model, inputs, defects=frozenset(defects.split()), **options)


_case(
    "alpha is dropped",
    net(lambda m, x: torch.add(m.a(x), x, alpha=2), a=nn.Conv2d(4, 4, 1)),
    IMAGE,
    defects="dropped-alpha",
)
_case(
    "a shared module, relu after one call",
    net(lambda m, x: m.relu(m.conv(m.conv(x))), conv=nn.Conv2d(4, 4, 1), relu=nn.ReLU()),
    IMAGE,
    defects="shared-module-fusion",
)
_case(
    "a shared module, batch norm after one call",
    net(lambda m, x: m.conv(m.bn(m.conv(x))), conv=nn.Conv2d(4, 4, 1), bn=nn.BatchNorm2d(4)),
    IMAGE,
    defects="shared-module-fusion",
)
_case(
    "reshape of a float input",
    net(lambda m, x: m.b(m.a(x.reshape(-1, 8))), a=nn.Linear(8, 8), b=nn.Linear(8, 2)),
    (2, 3, 8),
    defects="declared-not-observed",
    runs=SUMS_FLOATS,
)
_case(
    "dynamic before static",
    nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)),
    ROWS,
    qconfigs=qconfigs.changed(
        qconfigs.per_tensor, lambda m: m.set_module_name("0", default_dynamic_qconfig)
    ),
    defects="declared-not-observed",
    runs=SUMS_FLOATS,
)
_case(
    "fixed qparams with another qconfig",
    net(lambda m, x: m.b(torch.sigmoid(m.a(x))), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 4, 1)),
    IMAGE,
    qconfigs=qconfigs.per_tensor,
    defects="fixed-qparams-ignored",
)
_case(
    "sigmoid of a graph input",
    net(lambda m, x: m.a(torch.sigmoid(x)), a=nn.Conv2d(4, 4, 1)),
    IMAGE,
    defects="fixed-qparams-input",
)
_case(
    "an unsupported weight dtype",
    nn.Sequential(nn.Linear(8, 8)),
    ROWS,
    qconfigs=qconfigs.only(
        QConfig(
            MinMaxObserver.with_args(dtype=torch.quint8),
            MinMaxObserver.with_args(dtype=torch.qint32),
        )
    ),
    defects="float-module-between-quantizers",
    runs=SUMS_FLOATS,
)
_case(
    "a module skipped by regex, trained",
    nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
    ROWS,
    qconfigs=qconfigs.changed(qconfigs.qat, lambda m: m.set_module_name_regex("2", None)),
    mode="qat",
    defects="regex-none-in-training",
    runs=SUMS_FLOATS,
    steps=1,
)
_case(
    "a module skipped by name, trained",
    nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)),
    ROWS,
    qconfigs=qconfigs.changed(qconfigs.qat, lambda m: m.set_module_name("2", None)),
    mode="qat",
    runs=SUMS_FLOATS,
    steps=1,
)


class Heads(nn.Module):
    """The guide's refactored ``transpose_for_scores``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        shape = x.size()[:-1] + (2, 4)  # noqa: RUF005
        return x.view(shape).permute(0, 2, 1, 3)


_case(
    "the guide's transpose_for_scores",
    Heads(),
    (2, 3, 8),
    defects="tuple-counts-as-tensor",
    raises={"calibrated": "activation_post_process_2"},
)
_case(
    "the guide's transpose_for_scores, dynamically", Heads(), (2, 3, 8), qconfigs=qconfigs.dynamic
)
_case(
    "max_pool with indices",
    net(
        lambda m, x: m.pool(m.a(x))[0],
        a=nn.Conv2d(4, 4, 1),
        pool=nn.MaxPool2d(2, return_indices=True),
    ),
    IMAGE,
    defects="observed-tuple",
    raises={"calibrated": "pool"},
)
_case(
    "the weight of a fused module, read",
    net(
        lambda m, x: F.linear(m.relu(m.linear(x)), m.linear.weight),
        linear=nn.Linear(8, 8),
        relu=nn.ReLU(),
    ),
    ROWS,
    raises={"calibrated": "linear.weight"},
)
_case(
    "a weight of a folded and of another use",
    net(lambda m, x: F.linear(x, m.weight) + (m.weight * 0.5).sum(), weight=torch.ones(4, 8)),
    ROWS,
    raises={"lowered": "weight"},
)
_case(
    "a weight of two linear functions, one left out",
    net(
        lambda m, x: F.linear(F.relu(F.linear(x, m.weight)), m.weight),
        weight=torch.ones(8, 8),
    ),
    ROWS,
    qconfigs=qconfigs.changed(
        qconfigs.per_tensor,
        lambda m: m.set_module_name_object_type_order("", F.linear, 1, None),
    ),
    raises={"lowered": "weight"},
)
for name, forward in {
    "missing arguments": lambda m, x: F.conv2d(x, m.weight),
    "ints": lambda m, x: F.conv2d(x, m.weight, None, 1, 0, 1, 1),
    "keywords": lambda m, x: F.conv2d(x, m.weight, stride=(1, 1), padding=(0, 0)),
}.items():
    _case(
        f"F.conv2d, {name}",
        net(forward, weight=torch.ones(4, 4, 1, 1)),
        IMAGE,
        raises={"lowered": "conv2d"},
    )
_case(
    "F.linear with the weight as a keyword",
    net(lambda m, x: F.linear(x, weight=m.weight), weight=torch.ones(4, 8)),
    ROWS,
    raises={"lowered": "linear"},
)
_case(
    "Conv2d(padding='same')",
    net(lambda m, x: m.conv(x), conv=nn.Conv2d(4, 4, 3, padding="same")),
    IMAGE,
    raises={"lowered": "conv"},
)


def _then(op: Any) -> nn.Module:
    return net(lambda m, x: op(m.first(x)), first=nn.Linear(8, 4))


for name, op in {"leaky_relu": lambda x: F.leaky_relu(x, 0.1), "tanh": torch.tanh}.items():
    _case(
        f"onednn, function {name}",
        _then(op),
        ROWS,
        qconfigs=qconfigs.per_tensor,
        backend=get_onednn_backend_config,
        raises={"prepared": "first"},
    )
_case(
    "onednn, its default mapping with Linear and Tanh",
    net(lambda m, x: m.tanh(m.linear(x)), linear=nn.Linear(8, 4), tanh=nn.Tanh()),
    ROWS,
    qconfigs=lambda: qconfigs.static("onednn"),
    backend=get_onednn_backend_config,
    raises={"prepared": "linear"},
)
for name, op in {"sigmoid": lambda x: x.sigmoid_(), "tanh": lambda x: x.tanh_()}.items():
    _case(f"{name}_ in place", _then(op), ROWS, raises={"run": ""})
_case(
    "qint8 activations on qnnpack",
    nn.Sequential(nn.Conv2d(4, 4, 1)),
    IMAGE,
    qconfigs=qconfigs.qnnpack_symmetric,
    backend=torch.ao.quantization.backend_config.get_qnnpack_backend_config,
    engine="qnnpack",
    raises={"run": "qint8"},
)
