"""QConfigs and mappings: dtypes and schemes, the five levels, None, and what convert is told."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import qconfigs
import torch
import torch.nn.functional as F
from flow import FORMS, SUMS_FLOATS, Case, net
from torch import nn
from torch.ao.quantization import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    NoopObserver,
    PlaceholderObserver,
    QConfig,
    QConfigMapping,
    default_activation_only_qconfig,
    default_debug_qconfig,
    default_dynamic_qconfig,
    default_observer,
    default_per_channel_qconfig,
    default_qat_qconfig,
    default_qconfig,
    default_weight_observer,
    float16_static_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
)

ROWS, IMAGE = (3, 8), (2, 4, 6, 6)
CASES: dict[str, Case] = {}


def _linear(*sizes: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


def _case(name: str, model: nn.Module, *inputs: Any, qconfig: Any, **options: Any) -> None:
    CASES[name] = Case(model, inputs, qconfig, **options)


# ---- one qconfig for all

MIXED = net(
    lambda m, x: m.last(F.relu(F.linear(m.relu(m.first(x)), m.weight)) + 1.5),
    first=nn.Linear(8, 6),
    relu=nn.ReLU(),
    weight=torch.ones(4, 6),
    last=nn.Linear(4, 2),
)
WHOLE: dict[str, Any] = {
    "default": qconfigs.per_tensor,
    "per channel": qconfigs.only(default_per_channel_qconfig),
    "dynamic": qconfigs.dynamic,
    "dynamic per channel": qconfigs.dynamic_per_channel,
    "dynamic float16": qconfigs.dynamic_float16,
    "static float16": qconfigs.static_float16,
    "weight only": qconfigs.weight_only,
    "activation only": qconfigs.only(default_activation_only_qconfig),
    "recording": qconfigs.only(default_debug_qconfig),
    "None": qconfigs.only(None),
    "empty": QConfigMapping,
    "as a dict": lambda: {
        "": default_qconfig,
        "object_type": [(F.linear, default_per_channel_qconfig)],
    },
    "affine weight": qconfigs.only(
        QConfig(default_observer, MinMaxObserver.with_args(dtype=torch.qint8))
    ),
    "weight of few bits": qconfigs.only(
        QConfig(
            MinMaxObserver.with_args(dtype=torch.quint8, quant_min=0, quant_max=15),
            MinMaxObserver.with_args(dtype=torch.qint8, quant_min=-8, quant_max=7),
        )
    ),
    "moving averages": qconfigs.only(
        QConfig(
            MovingAverageMinMaxObserver.with_args(averaging_constant=0.3, reduce_range=True),
            MovingAveragePerChannelMinMaxObserver.with_args(
                dtype=torch.qint8, qscheme=torch.per_channel_symmetric
            ),
        )
    ),
    "histogram of few bins": qconfigs.only(
        QConfig(HistogramObserver.with_args(bins=64, dtype=torch.quint8), default_weight_observer)
    ),
    "qint8 activations": qconfigs.symmetric,
    "quint8 symmetric activations": qconfigs.only(
        QConfig(
            MinMaxObserver.with_args(qscheme=torch.per_tensor_symmetric, dtype=torch.quint8),
            default_weight_observer,
        )
    ),
    "qint32 activations": qconfigs.only(
        QConfig(MinMaxObserver.with_args(dtype=torch.qint32), default_weight_observer)
    ),
    "quint8 weight": qconfigs.only(
        QConfig(default_observer, MinMaxObserver.with_args(dtype=torch.quint8))
    ),
    "noop activation": qconfigs.only(
        QConfig(NoopObserver.with_args(dtype=torch.quint8), default_weight_observer)
    ),
    "per channel activations": qconfigs.per_channel_activation,
}
NO_QPARAMS = {"raises": dict.fromkeys(FORMS, "activation_post_process_0")}
FLOAT = {"runs": SUMS_FLOATS}
LEFT_FLOAT = frozenset({"float-module-between-quantizers"})
OPTIONS: dict[str, dict[str, Any]] = {
    "dynamic float16": {
        "raises": {"decomposed": "activation_post_process_0"},
    },
    "weight only": {"raises": {"prepared": "last"}},
    "activation only": {"raises": {"prepared": "last"}},
    "quint8 weight": {"defects": LEFT_FLOAT},
    "recording": NO_QPARAMS,
    "noop activation": NO_QPARAMS,
    **dict.fromkeys(("static float16", "None", "empty"), FLOAT),
    **dict.fromkeys(("qint8 activations", "qint32 activations"), FLOAT),
}
for name, mapping in WHOLE.items():
    _case(f"qconfig {name}", MIXED, ROWS, qconfig=mapping, **OPTIONS.get(name, {}))
_case(
    "qconfig per channel activations of a convolution",
    nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
    IMAGE,
    qconfig=qconfigs.per_channel_activation,
)

# ---- one for all, in training

TRAINED = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
QAT: dict[str, Any] = {
    "default of version 1": qconfigs.qat,
    "default of version 0": qconfigs.qat_0,
    "without a mapping": qconfigs.only(default_qat_qconfig),
    "nested factories": qconfigs.only(
        QConfig(
            FakeQuantize.with_args(observer=MinMaxObserver.with_args(dtype=torch.quint8)),
            FakeQuantize.with_args(
                observer=MinMaxObserver, quant_min=-128, quant_max=127, dtype=torch.qint8
            ),
        )
    ),
    "dynamic": qconfigs.only(torch.ao.quantization.qconfig.default_dynamic_qat_qconfig),
    "per channel learned": qconfigs.only(torch.ao.quantization.default_qat_qconfig_v2),
    "observers only": qconfigs.per_tensor,
}
for name, mapping in QAT.items():
    _case(f"trained, qconfig {name}", TRAINED, ROWS, qconfig=mapping, mode="qat", steps=2)
_case(
    "trained, nothing but one layer",
    TRAINED,
    ROWS,
    qconfig=qconfigs.changed(
        QConfigMapping, lambda m: m.set_module_name("2", default_qat_qconfig)
    ),
    mode="qat",
    steps=1,
    runs=SUMS_FLOATS,
)
_case(
    "trained, object type None",
    nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Linear(6, 5)),
    IMAGE,
    qconfig=qconfigs.changed(qconfigs.qat, lambda m: m.set_object_type(nn.Linear, None)),
    mode="qat",
    steps=1,
    runs=SUMS_FLOATS,
)

_case(
    "trained, another qconfig for a type",
    nn.Sequential(nn.Linear(8, 8), nn.Conv1d(3, 3, 1)),
    (2, 3, 8),
    qconfig=qconfigs.changed(
        qconfigs.only(default_qat_qconfig),
        lambda m: m.set_object_type(
            nn.Linear,
            QConfig(
                FakeQuantize.with_args(observer=MinMaxObserver, quant_min=0, quant_max=63),
                default_qat_qconfig.weight,
            ),
        ),
    ),
    mode="qat",
    steps=1,
)

# ---- levels and priorities

INNER = net(
    lambda m, x: F.relu(m.linear(x) + m.other(x)),
    linear=nn.Linear(8, 8),
    other=nn.Linear(8, 8),
)
TREE = net(
    lambda m, x: m.head(m.block.b(m.block.a(m.first(x))) * 2.0),
    first=nn.Linear(8, 8),
    block=nn.ModuleDict({"a": INNER, "b": nn.Sequential(nn.Linear(8, 8), nn.Hardswish())}),
    head=nn.Linear(8, 3),
)
FIRST, SECOND = default_qconfig, default_per_channel_qconfig
THIRD = QConfig(
    MinMaxObserver.with_args(quant_min=0, quant_max=63, dtype=torch.quint8),
    default_weight_observer,
)


def _levels(name: str, change: Any, **options: Any) -> None:
    base = qconfigs.per_tensor
    mapping = qconfigs.changed(base, change)
    _case(f"levels: {name}", TREE, ROWS, qconfig=mapping, **{"runs": SUMS_FLOATS, **options})


_levels("type", lambda m: m.set_object_type(nn.Linear, SECOND))
_levels("type None", lambda m: m.set_object_type(nn.Linear, None))
_levels("function", lambda m: m.set_object_type(F.relu, THIRD).set_object_type(torch.add, None))
_levels("operator", lambda m: m.set_object_type("add", THIRD).set_object_type(F.hardswish, THIRD))
_levels("regex", lambda m: m.set_module_name_regex("block.a.*", SECOND))
_levels("regex None", lambda m: m.set_module_name_regex("block", None))
_levels(
    "two regexes, the first counts",
    lambda m: m.set_module_name_regex("block.*linear", THIRD).set_module_name_regex(
        "block.a", None
    ),
)
_levels("name", lambda m: m.set_module_name("block.a.linear", SECOND))
_levels("name of a container", lambda m: m.set_module_name("block.a", None))
_levels(
    "name of a container and of a child",
    lambda m: m.set_module_name("block", None).set_module_name("block.b.0", SECOND),
)
_levels(
    "order",
    lambda m: m.set_module_name_object_type_order("block.a", nn.Linear, 1, SECOND),
)
_levels(
    "order at the top and of functions",
    lambda m: (
        m.set_module_name_object_type_order("", nn.Linear, 1, None)
        .set_module_name_object_type_order("block.a", F.relu, 0, THIRD)
        .set_module_name_object_type_order("", torch.ops.aten.mul, 0, None)
    ),
)
_levels(
    "all five",
    lambda m: (
        m.set_object_type(nn.Linear, SECOND)
        .set_module_name_regex("block", THIRD)
        .set_module_name("block.a.other", None)
        .set_module_name("head", SECOND)
        .set_module_name_object_type_order("block.a", nn.Linear, 0, FIRST)
    ),
)
_levels(
    "dynamic in one part, static in another",
    lambda m: (
        m.set_global(None)
        .set_module_name("block.a", default_dynamic_qconfig)
        .set_module_name("head", default_qconfig)
    ),
)
_levels("global None, one name", lambda m: m.set_global(None).set_module_name("first", SECOND))
_levels(
    "enclosing type",
    lambda m: m.set_object_type(type(INNER), None),
)
_case(
    "method entries",
    net(
        lambda m, x: m.b(m.a(x).reshape(-1, 4).sigmoid().permute(1, 0).permute(1, 0)),
        a=nn.Linear(8, 8),
        b=nn.Linear(4, 2),
    ),
    ROWS,
    qconfig=qconfigs.changed(
        qconfigs.static,
        lambda m: m.set_object_type("permute", None).set_object_type("sigmoid", None),
    ),
    runs=SUMS_FLOATS,
)
_case(
    "fused parts need one entry",
    nn.Sequential(nn.Linear(8, 4), nn.ReLU()),
    ROWS,
    qconfig=qconfigs.changed(
        qconfigs.per_tensor, lambda m: m.set_object_type(nn.Linear, default_per_channel_qconfig)
    ),
    raises={"prepared": "0"},
)
_case(
    "fused parts with one entry",
    nn.Sequential(nn.Linear(8, 4), nn.ReLU()),
    ROWS,
    qconfig=qconfigs.changed(
        qconfigs.per_tensor,
        lambda m: m.set_object_type(nn.Linear, SECOND).set_object_type(nn.ReLU, SECOND),
    ),
)
_case(
    "per channel weight of a transposed convolution",
    net(lambda m, x: m.up(x), up=nn.ConvTranspose2d(4, 4, 2)),
    IMAGE,
    qconfig=qconfigs.only(default_per_channel_qconfig),
    raises={"prepared": "up"},
)


def _with_attributes() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    model[0].qconfig = default_per_channel_qconfig
    model[1].qconfig = None
    return model


for name, mapping in {"global": qconfigs.per_tensor, "empty": QConfigMapping}.items():
    _case(
        f"qconfig attributes, {name} mapping",
        _with_attributes(),
        ROWS,
        qconfig=mapping,
        runs=SUMS_FLOATS,
    )
_case(
    "qconfig attributes, trained",
    _with_attributes(),
    ROWS,
    qconfig=qconfigs.only(default_qat_qconfig),
    mode="qat",
    runs=SUMS_FLOATS,
)
_case(
    "observers of different classes on one value",
    net(
        lambda m, x: m.b(m.a(x)) + m.c(m.a(x)),
        a=nn.Linear(8, 8),
        b=nn.Linear(8, 4),
        c=nn.Linear(8, 4),
    ),
    ROWS,
    qconfig=qconfigs.changed(
        qconfigs.per_tensor,
        lambda m: m.set_module_name(
            "b",
            QConfig(
                MovingAverageMinMaxObserver.with_args(dtype=torch.quint8), default_weight_observer
            ),
        ),
    ),
)
_case(
    "observers of different classes on the input",
    net(
        lambda m, x: m.b(x) + m.c(x),
        b=nn.Linear(8, 4),
        c=nn.Linear(8, 4),
    ),
    ROWS,
    qconfig=qconfigs.changed(
        qconfigs.per_tensor,
        lambda m: m.set_module_name(
            "c",
            QConfig(
                HistogramObserver.with_args(dtype=torch.quint8, bins=32), default_weight_observer
            ),
        ),
    ),
)
_case(
    "float16 in one layer, uint8 around",
    _linear(8, 8, 8, 2),
    ROWS,
    qconfig=qconfigs.changed(
        qconfigs.per_tensor, lambda m: m.set_module_name("1", float16_static_qconfig)
    ),
    runs=SUMS_FLOATS,
)
_case(
    "dynamic functions",
    net(
        lambda m, x: F.linear(m.relu(F.linear(F.relu(F.linear(x, m.a, m.bias)), m.b)), m.c),
        a=torch.ones(8, 8),
        b=torch.ones(8, 8),
        c=torch.ones(2, 8),
        bias=torch.ones(8),
        relu=nn.ReLU(),
    ),
    ROWS,
    qconfig=qconfigs.dynamic,
)
_case(
    "dynamic float16 functions",
    net(
        lambda m, x: m.relu(F.linear(F.linear(x, m.a, m.bias), m.b)),
        a=torch.ones(8, 8),
        b=torch.ones(8, 8),
        bias=torch.ones(8),
        relu=nn.ReLU(),
    ),
    ROWS,
    qconfig=qconfigs.dynamic_float16,
    raises={"decomposed": "activation_post_process"},
)
_case(
    "dynamic convolutions stay reference modules",
    nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
    IMAGE,
    qconfig=qconfigs.dynamic,
    runs=SUMS_FLOATS,
)
_case(
    "dynamic modules on another engine",
    _linear(8, 4, 2),
    ROWS,
    qconfig=qconfigs.dynamic,
    engine="qnnpack",
)
_case(
    "placeholder activations",
    _linear(8, 4),
    ROWS,
    qconfig=qconfigs.only(QConfig(PlaceholderObserver, default_weight_observer)),
    runs=SUMS_FLOATS,
)

for name, mapping in {"static": qconfigs.static, "dynamic": qconfigs.dynamic}.items():
    _case(f"never calibrated, {name}", MIXED, ROWS, qconfig=mapping, batches=0)
_case("calibrated once", MIXED, ROWS, qconfig=qconfigs.histogram, batches=1)
_case(
    "weights of functions, observed once more in convert",
    MIXED,
    ROWS,
    qconfig=qconfigs.only(
        QConfig(
            default_observer,
            MovingAverageMinMaxObserver.with_args(
                dtype=torch.qint8, qscheme=torch.per_tensor_symmetric
            ),
        )
    ),
    mode="qat",
    steps=2,
)

# ---- the mapping of convert

SAME = qconfigs.changed(
    qconfigs.per_tensor,
    lambda m: m.set_module_name("block.a", SECOND).set_object_type(nn.Linear, FIRST),
)


def _converted(name: str, change: Any, **options: Any) -> None:
    _case(
        f"convert mapping: {name}",
        TREE,
        ROWS,
        qconfig=SAME,
        convert_qconfigs=qconfigs.changed(SAME, change),
        **{"runs": SUMS_FLOATS, **options},
    )


_converted("the same", lambda m: m)
_converted("a name None", lambda m: m.set_module_name("block.a", None))
_converted("a type None", lambda m: m.set_object_type(nn.Linear, None))
_converted("more names None", lambda m: m.set_module_name("head", None))
_converted("a regex None", lambda m: m.set_module_name_regex("block.b", None))
_converted(
    "an operator None", lambda m: m.set_object_type(F.relu, None).set_object_type(torch.mul, None)
)
_converted(
    "an order None", lambda m: m.set_module_name_object_type_order("block.a", nn.Linear, 0, None)
)
EVERYWHERE = dict.fromkeys(FORMS, "convert")
_converted("another qconfig", lambda m: m.set_module_name("block.a", THIRD), raises=EVERYWHERE)
_converted("global None", lambda m: m.set_global(None), raises=EVERYWHERE)
_converted("a new qconfig", lambda m: m.set_module_name("head", SECOND), raises=EVERYWHERE)
_case(
    "convert mapping: an entry is missing",
    TREE,
    ROWS,
    qconfig=SAME,
    convert_qconfigs=qconfigs.per_tensor,
    raises=EVERYWHERE,
)
_case(
    "convert mapping: a function None",
    MIXED,
    ROWS,
    qconfig=qconfigs.per_tensor,
    convert_qconfigs=qconfigs.changed(
        qconfigs.per_tensor, lambda m: m.set_object_type(F.linear, None)
    ),
    runs=SUMS_FLOATS,
)
_case(
    "convert mapping after training",
    nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    IMAGE,
    qconfig=qconfigs.qat,
    convert_qconfigs=qconfigs.changed(qconfigs.qat, lambda m: m.set_module_name("3", None)),
    mode="qat",
    steps=1,
    runs=SUMS_FLOATS,
)
_case("qconfigs kept", MIXED, ROWS, qconfig=qconfigs.per_tensor, remove_qconfig=False)
_case(
    "original weights kept", MIXED, ROWS, qconfig=qconfigs.per_tensor, keep_original_weights=True
)
_case(
    "default mappings of all engines: qnnpack",
    nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2)),
    IMAGE,
    qconfig=lambda: get_default_qconfig_mapping("qnnpack"),
)
_case(
    "default mappings of all engines: x86",
    nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2)),
    IMAGE,
    qconfig=lambda: get_default_qconfig_mapping("x86"),
)
for version in (0, 1):
    _case(
        f"default mappings of all engines: qnnpack, trained, version {version}",
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Linear(4, 2)),
        IMAGE,
        qconfig=partial(get_default_qat_qconfig_mapping, "qnnpack", version),
        mode="qat",
    )
