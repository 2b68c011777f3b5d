"""Every back-end's config, and the user's own."""

from __future__ import annotations

import operator
from typing import Any

import qconfigs
import torch
import torch.nn.functional as F
from flow import SUMS_FLOATS, Case, net
from torch import nn
from torch.ao.quantization import (
    MinMaxObserver,
    QConfig,
    QConfigMapping,
    default_embedding_qat_qconfig,
    default_per_channel_qconfig,
    default_qconfig,
)
from torch.ao.quantization.backend_config import (
    BackendConfig,
    BackendPatternConfig,
    DTypeConfig,
    DTypeWithConstraints,
    ObservationType,
    get_executorch_backend_config,
    get_fbgemm_backend_config,
    get_native_backend_config,
    get_onednn_backend_config,
    get_qnnpack_backend_config,
    get_tensorrt_backend_config,
)
from torch.ao.quantization.backend_config.native import (
    get_test_only_legacy_native_backend_config,
)
from torch.ao.quantization.backend_config.x86 import get_x86_backend_config
from torch.ao.quantization.utils import MatchAllNode

from refquant.ir.module import Module

ROWS, IMAGE = (3, 8), (2, 4, 6, 6)
CASES: dict[str, Case] = {}
# torch converts activations of qint8, which its engines here then refuse to compute with.
NO_QINT8: dict[str, Any] = {"raises": {"run": "must be one of quint8, got qint8"}}


def _case(name: str, model: nn.Module, *inputs: Any, qconfig: Any, **options: Any) -> None:
    CASES[name] = Case(model, inputs, qconfig, **options)


class Everything(nn.Module):
    """A little of each family."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.second, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.up, self.pool = nn.ConvTranspose2d(8, 4, 2), nn.AdaptiveAvgPool2d(1)
        self.flat, self.act = nn.Flatten(), nn.Hardswish()
        self.linear, self.leaky, self.ln = nn.Linear(4, 4), nn.LeakyReLU(0.1), nn.LayerNorm(4)
        self.weight = nn.Parameter(torch.ones(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn(self.conv(x)))
        y = self.norm(F.relu(self.second(x) + x))
        y = self.up(torch.cat([y, self.act(x)], 1))
        y = self.flat(self.pool(y)).reshape(x.size(0), -1)
        y = torch.sigmoid(self.leaky(self.linear(y))) - 0.5
        return F.linear(self.ln(y * 0.5), self.weight)


BACKENDS: dict[str, Any] = {
    "native": get_native_backend_config,
    "native and float16": get_test_only_legacy_native_backend_config,
    "fbgemm": get_fbgemm_backend_config,
    "x86": get_x86_backend_config,
    "qnnpack": get_qnnpack_backend_config,
    "onednn": get_onednn_backend_config,
    "executorch": get_executorch_backend_config,
    "tensorrt": get_tensorrt_backend_config,
}
EVERYTHING = Everything()
OPTIONS: dict[str, dict[str, Any]] = {
    "executorch": {"defects": frozenset({"fixed-qparams-ignored"})},
    "onednn": {"runs": "writes to it in channels-last memory only"},
    "tensorrt": {"qconfig": qconfigs.symmetric, **NO_QINT8},
}
for name, backend in BACKENDS.items():
    options = {"qconfig": qconfigs.static, "runs": SUMS_FLOATS, **OPTIONS.get(name, {})}
    _case(f"backend {name}", EVERYTHING, IMAGE, backend=backend, **options)
    _case(
        f"backend {name}, dynamic",
        nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)),
        ROWS,
        qconfig=qconfigs.dynamic,
        backend=backend,
        runs=SUMS_FLOATS if name == "tensorrt" else "",
    )
    _case(
        f"backend {name}, float16",
        net(
            lambda m, x: torch.sigmoid(F.relu(m.a(x) + m.b(x)).permute(1, 0)),
            a=nn.Linear(8, 4),
            b=nn.Linear(8, 4),
        ),
        ROWS,
        qconfig=qconfigs.static_float16,
        backend=backend,
        runs=SUMS_FLOATS,
    )
    if name not in ("tensorrt", "onednn"):
        _case(
            f"backend {name}, trained",
            nn.Sequential(
                nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
            ),
            IMAGE,
            qconfig=qconfigs.qat,
            mode="qat",
            backend=backend,
            steps=1,
            runs=SUMS_FLOATS,
        )

# ---- symmetric qnnpack

SMALL = net(lambda m, x: m.b(F.relu(m.a(x)) + 1.0), a=nn.Conv2d(4, 4, 1), b=nn.Conv2d(4, 2, 1))
QNNPACK: dict[str, Any] = {
    "per tensor": qconfigs.qnnpack_symmetric,
    "per channel": qconfigs.qnnpack_symmetric_per_channel,
    "default": lambda: qconfigs.static("qnnpack"),
    "without constraints": qconfigs.symmetric,
}
for name, mapping in QNNPACK.items():
    _case(
        f"qnnpack symmetric, {name}",
        SMALL,
        IMAGE,
        qconfig=mapping,
        backend=get_qnnpack_backend_config,
        runs=SUMS_FLOATS if name == "without constraints" else "",
        **(NO_QINT8 if name.startswith("per") else {}),
    )
_case(
    "qnnpack symmetric mapping",
    EVERYTHING,
    IMAGE,
    qconfig=torch.ao.quantization.qconfig_mapping._get_symmetric_qnnpack_qconfig_mapping,
    backend=get_qnnpack_backend_config,
    defects=frozenset({"fixed-qparams-input"}),
    **NO_QINT8,
)
_case(
    "qnnpack symmetric mapping, trained",
    nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Linear(6, 3)),
    IMAGE,
    qconfig=torch.ao.quantization.qconfig_mapping._get_symmetric_qnnpack_qat_qconfig_mapping,
    backend=get_qnnpack_backend_config,
    mode="qat",
    steps=1,
    **NO_QINT8,
)

# ---- what only some have

_case(
    "onednn embedding of qint8",
    net(lambda m, x: m.embedding(x), embedding=nn.Embedding(12, 8)),
    lambda generator: torch.randint(0, 12, (3,), generator=generator),
    qconfig=qconfigs.embedding,
    backend=get_onednn_backend_config,
    defects=frozenset({"float-module-between-quantizers"}),
)
_case(
    "executorch embedding, trained",
    net(lambda m, x: m.embedding(x), embedding=nn.Embedding(12, 8)),
    lambda generator: torch.randint(0, 12, (3,), generator=generator),
    qconfig=qconfigs.only(default_embedding_qat_qconfig),
    backend=get_executorch_backend_config,
    mode="qat",
)
_case(
    "executorch function embedding",
    net(lambda m, x: F.embedding(x, m.weight), weight=torch.ones(12, 8)),
    lambda generator: torch.randint(0, 12, (3,), generator=generator),
    qconfig=qconfigs.embedding,
    backend=get_executorch_backend_config,
    runs=SUMS_FLOATS,
)
_case(
    "executorch: sub, pad, permute, concat, flatten",
    net(
        lambda m, x: m.flat(
            torch.concat(
                [torch.permute(F.pad(m.a(x) - x, (1, 1)), (0, 1, 3, 2)).reshape(2, 4, -1)] * 2, 1
            )
        ),
        a=nn.Conv2d(4, 4, 1),
        flat=nn.Flatten(),
    ),
    IMAGE,
    qconfig=qconfigs.static,
    backend=get_executorch_backend_config,
    runs=SUMS_FLOATS,
)
_case(
    "tensorrt addmm",
    net(
        lambda m, x: torch.addmm(m.bias, x, m.weight), bias=torch.ones(4), weight=torch.ones(8, 4)
    ),
    ROWS,
    qconfig=qconfigs.symmetric,
    backend=get_tensorrt_backend_config,
    runs=SUMS_FLOATS,
)

# ---- the user's own

QUINT8 = DTypeConfig(
    input_dtype=torch.quint8,
    output_dtype=torch.quint8,
    weight_dtype=torch.qint8,
    bias_dtype=torch.float,
)
PLAIN = DTypeConfig(input_dtype=torch.quint8, output_dtype=torch.quint8)
NARROW = DTypeConfig(
    input_dtype=DTypeWithConstraints(
        torch.quint8, quant_min_lower_bound=0, quant_max_upper_bound=127
    ),
    output_dtype=DTypeWithConstraints(
        torch.quint8, quant_min_lower_bound=0, quant_max_upper_bound=127
    ),
    weight_dtype=DTypeWithConstraints(torch.qint8, scale_min_lower_bound=2**-12),
    bias_dtype=torch.float,
)


def _linear_pattern(dtypes: Any) -> BackendPatternConfig:
    return (
        BackendPatternConfig(nn.Linear)
        .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
        .add_dtype_config(dtypes)
        .set_root_module(nn.Linear)
        .set_qat_module(torch.ao.nn.qat.Linear)
        .set_reference_quantized_module(torch.ao.nn.quantized.reference.Linear)
    )


def _fuse(is_qat: bool, *parts: Any) -> Any:
    """Fuse torch's modules, and ours: a fuser of the user is called with either."""
    first, second = parts
    if isinstance(first, nn.Module):
        return torch.ao.nn.intrinsic.LinearReLU(first, second)
    named = {"0": first, "1": second}
    return Module("torch.ao.nn.intrinsic.LinearReLU", {}, {}, named, True)


def own_fuser() -> BackendConfig:
    """A pair with a fuser of its own, a wildcard, and getters for the root and the rest."""

    def fuse_with_add(is_qat: bool, add: Any, linear: Any, other: Any) -> Any:
        return linear

    def root(matched: Any) -> Any:
        return matched[1]

    def rest(matched: Any) -> list[Any]:
        return []

    dropped = (
        BackendPatternConfig()
        ._set_pattern_complex_format((torch.sub, nn.Linear, MatchAllNode))
        .set_dtype_configs([QUINT8])
        .set_fuser_method(fuse_with_add)
        ._set_root_node_getter(root)
        ._set_extra_inputs_getter(rest)
    )
    pair = (
        BackendPatternConfig((nn.Linear, nn.ReLU))
        .add_dtype_config(QUINT8)
        .set_fuser_method(_fuse)
        .set_fused_module(torch.ao.nn.intrinsic.LinearReLU)
    )
    fused = (
        BackendPatternConfig(torch.ao.nn.intrinsic.LinearReLU)
        .add_dtype_config(QUINT8)
        .set_root_module(nn.Linear)
        .set_reference_quantized_module(torch.ao.nn.quantized.reference.Linear)
    )
    return own_linear().set_backend_pattern_configs([pair, fused, dropped])


def own_linear() -> BackendConfig:
    return BackendConfig("mine").set_backend_pattern_config(_linear_pattern(QUINT8))


def own_functions() -> BackendConfig:
    return own_linear().set_backend_pattern_configs(
        [
            BackendPatternConfig(torch.sub)
            .set_observation_type(ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT)
            .set_dtype_configs([PLAIN]),
            BackendPatternConfig((torch.div, F.relu)).add_dtype_config(PLAIN),
            BackendPatternConfig("softmax")
            .set_observation_type(ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT)
            .add_dtype_config(PLAIN),
            BackendPatternConfig(torch.amax)
            .set_observation_type(ObservationType.INPUT_OUTPUT_NOT_OBSERVED)
            .add_dtype_config(PLAIN),
            BackendPatternConfig(F.linear)
            .add_dtype_config(QUINT8)
            ._set_input_type_to_index({"weight": 1, "bias": 2}),
            BackendPatternConfig(operator.matmul)
            .add_dtype_config(PLAIN)
            ._set_num_tensor_args_to_observation_type(
                {
                    0: ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT,
                    1: ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT,
                    2: ObservationType.OUTPUT_USE_DIFFERENT_OBSERVER_AS_INPUT,
                }
            ),
        ]
    )


OWN_MODEL = net(
    lambda m, x: torch.amax(
        F.linear(F.relu(torch.div(torch.sub(m.linear(x), 1.0), x)).softmax(1) @ m.other, m.weight),
        1,
    ),
    linear=nn.Linear(8, 8),
    other=torch.ones(8, 8),
    weight=torch.ones(4, 8),
)
_case(
    "own back-end: functions and methods",
    OWN_MODEL,
    ROWS,
    qconfig=qconfigs.per_tensor,
    backend=own_functions,
    runs=SUMS_FLOATS,
)
_case(
    "own back-end: linear without relu",
    nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Conv1d(3, 3, 1)),
    (3, 3, 8),
    qconfig=qconfigs.per_tensor,
    backend=own_linear,
    runs=SUMS_FLOATS,
)
_case(
    "own back-end: fusers and getters",
    net(
        lambda m, x: torch.sub(m.b(m.relu(m.a(x))), x),
        a=nn.Linear(8, 4),
        b=nn.Linear(4, 8),
        relu=nn.ReLU(),
    ),
    ROWS,
    qconfig=qconfigs.per_tensor,
    backend=own_fuser,
)
_case(
    "own back-end, trained",
    nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)),
    ROWS,
    qconfig=qconfigs.qat,
    backend=own_linear,
    mode="qat",
    steps=1,
    runs=SUMS_FLOATS,
)
_case(
    "own back-end as a dict",
    nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)),
    ROWS,
    qconfig=qconfigs.per_tensor,
    backend=lambda: own_linear().to_dict(),
)
NARROW_QCONFIG = QConfig(
    MinMaxObserver.with_args(dtype=torch.quint8, quant_min=0, quant_max=127),
    MinMaxObserver.with_args(dtype=torch.qint8, qscheme=torch.per_tensor_symmetric, eps=2**-12),
)
for name, qconfig in {"met": NARROW_QCONFIG, "not met": default_per_channel_qconfig}.items():
    _case(
        f"own back-end: constraints {name}",
        nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)),
        ROWS,
        qconfig=qconfigs.only(qconfig),
        backend=lambda: BackendConfig("mine").set_backend_pattern_config(_linear_pattern(NARROW)),
        runs="" if name == "met" else SUMS_FLOATS,
    )
_case(
    "an unsupported weight dtype leaves a float module between quantizers",
    nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)),
    ROWS,
    qconfig=qconfigs.only(
        QConfig(
            MinMaxObserver.with_args(dtype=torch.quint8),
            MinMaxObserver.with_args(dtype=torch.quint8),
        )
    ),
    backend=get_native_backend_config,
    runs=SUMS_FLOATS,
    defects=frozenset({"float-module-between-quantizers"}),
)
_case(
    "a back-end without patterns",
    nn.Sequential(nn.Linear(8, 4), nn.ReLU()),
    ROWS,
    qconfig=qconfigs.per_tensor,
    backend=lambda: BackendConfig("nothing"),
    runs=SUMS_FLOATS,
)
_case(
    "three tensors to add",
    net(lambda m, x, y: torch.add(x, y, x)),
    ROWS,
    ROWS,
    qconfig=qconfigs.per_tensor,
    raises={"prepared": "add"},
)
_case(
    "object type mapping for a back-end's function",
    OWN_MODEL,
    ROWS,
    qconfig=lambda: (
        QConfigMapping()
        .set_global(default_qconfig)
        .set_object_type(torch.sub, None)
        .set_object_type("softmax", None)
    ),
    backend=own_functions,
    runs=SUMS_FLOATS,
)
