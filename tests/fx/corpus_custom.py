"""Quantized inputs and outputs, modules left whole, and the user's own module classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qconfigs
import torch
import torch.nn.functional as F
from flow import SUMS_FLOATS, Case, net, quantized
from torch import nn
from torch.ao.quantization import QConfigMapping, default_per_channel_qconfig
from torch.ao.quantization.backend_config import get_fbgemm_backend_config
from torch.ao.quantization.fx.custom_config import ConvertCustomConfig, PrepareCustomConfig

from refquant.fx import custom_config as ours
from refquant.ir.module import Module
from refquant.ir.names import object_type

ROWS, IMAGE = (3, 8), (2, 4, 6, 6)
CASES: dict[str, Case] = {}


def _case(name: str, model: nn.Module, *inputs: Any, **options: Any) -> None:
    options.setdefault("qconfigs", qconfigs.static)
    CASES[name] = Case(model, inputs, **options)


def _indexes(inputs: Any = (), outputs: Any = ()) -> Callable[[], PrepareCustomConfig]:
    return lambda: (
        PrepareCustomConfig()
        .set_input_quantized_indexes(list(inputs))
        .set_output_quantized_indexes(list(outputs))
    )


# ---- quantized inputs and outputs

TWO = {"a": nn.Conv2d(4, 4, 1), "b": nn.Conv2d(4, 4, 1)}
SUM = net(lambda m, x, y: m.a(x) + m.b(y), **TWO)
PAIR = net(lambda m, x, y: (m.a(x), m.b(y)), **TWO)
LIST = net(lambda m, x, y: [m.a(x), (m.b(y), m.a(x) * 2)], **TWO)
DICT = net(lambda m, x, y: {"a": m.a(x), "b": m.b(y)}, **TWO)
Q = quantized(*IMAGE)
for name, model, given, indexes in (
    ("no index", SUM, (IMAGE, IMAGE), ((), ())),
    ("the first input", SUM, (IMAGE, IMAGE), ((0,), ())),
    ("both inputs", SUM, (IMAGE, IMAGE), ((0, 1), ())),
    ("the output", SUM, (IMAGE, IMAGE), ((), (0,))),
    ("all", SUM, (IMAGE, IMAGE), ((0, 1), (0,))),
    ("one output of two", PAIR, (IMAGE, IMAGE), ((), (1,))),
    ("both outputs of two", PAIR, (IMAGE, IMAGE), ((), (0, 1))),
    ("an output in a list", LIST, (IMAGE, IMAGE), ((), (0,))),
    ("a nested output", LIST, (IMAGE, IMAGE), ((), (1,))),
    ("a dict", DICT, (IMAGE, IMAGE), ((), (0,))),
    ("a dict, another index", DICT, (IMAGE, IMAGE), ((), (1,))),
):
    inputs, outputs = indexes
    options = (
        {} if not inputs else {"run_inputs": tuple(Q if i in inputs else IMAGE for i in (0, 1))}
    )
    _case(f"quantized: {name}", model, *given, prepare_custom=_indexes(*indexes), **options)
_case(
    "quantized: an input to ops that share its observer",
    net(lambda m, x: F.relu(torch.flatten(x, 1)).unsqueeze(1)),
    IMAGE,
    prepare_custom=_indexes((0,), (0,)),
    run_inputs=(Q,),
)
_case(
    "quantized: an input to cat, with a float one",
    net(lambda m, x, y: m.a(torch.cat([x, y], 1)), a=nn.Conv2d(8, 4, 1)),
    IMAGE,
    IMAGE,
    prepare_custom=_indexes((0,), ()),
    run_inputs=(Q, IMAGE),
    defects=frozenset({"declared-not-observed"}),
    runs=SUMS_FLOATS,
)
_case(
    "quantized: an output that is not",
    net(lambda m, x: torch.abs(m.a(x)), a=nn.Conv2d(4, 4, 1)),
    IMAGE,
    prepare_custom=_indexes((), (0,)),
)
_case(
    "quantized: an index out of range",
    PAIR,
    IMAGE,
    IMAGE,
    prepare_custom=_indexes((), (2,)),
    raises=dict.fromkeys(("reference", "decomposed", "lowered"), "output"),
)
_case(
    "quantized, from a dict",
    SUM,
    IMAGE,
    IMAGE,
    prepare_custom=lambda: {"input_quantized_idxs": [1], "output_quantized_idxs": [0]},
    run_inputs=(IMAGE, Q),
)

# ---- modules that are not traced into


class Untraceable(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if x.sum() > 0 else x * 2


class Child(nn.Module):
    """A part that could be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x)) + x


AROUND = net(
    lambda m, x: m.b(m.whole(m.a(x))), a=nn.Linear(8, 8), whole=Untraceable(), b=nn.Linear(8, 2)
)
OPAQUE = "Untraceable"
_case("not traceable", AROUND, ROWS, raises={"prepared": "traced"})
_case(
    "not traceable, by name",
    AROUND,
    ROWS,
    prepare_custom=lambda: PrepareCustomConfig().set_non_traceable_module_names(["whole"]),
    runs=OPAQUE,
)
_case(
    "not traceable, by class",
    AROUND,
    ROWS,
    prepare_custom=lambda: PrepareCustomConfig().set_non_traceable_module_classes([Untraceable]),
    runs=OPAQUE,
)
_case(
    "not traceable, from a dict",
    AROUND,
    ROWS,
    prepare_custom=lambda: {"non_traceable_module_name": ["whole"]},
    runs=OPAQUE,
)
_case(
    "not traceable, trained",
    AROUND,
    ROWS,
    qconfigs=qconfigs.qat,
    mode="qat",
    prepare_custom=lambda: PrepareCustomConfig().set_non_traceable_module_classes([Untraceable]),
    runs=OPAQUE,
)
_case(
    "a leaf of torch.nn is not traced",
    net(lambda m, x: m.b(m.a(x)), a=nn.TransformerEncoderLayer(8, 2, 16), b=nn.Linear(8, 2)),
    (2, 3, 8),
    runs="torch.nn.TransformerEncoderLayer",
)

# ---- standalone modules

PARENT = net(
    lambda m, x: m.last(m.child(m.first(x))),
    first=nn.Conv2d(4, 4, 1),
    child=Child(),
    last=nn.Conv2d(4, 2, 1),
)


def _standalone(
    by: str,
    mapping: Any = None,
    custom: Any = None,
    backend: Any = None,
    **more: Any,
) -> Callable[[], PrepareCustomConfig]:
    def make() -> PrepareCustomConfig:
        entry = (mapping and mapping(), (torch.zeros(IMAGE),), custom and custom(), backend)
        made = PrepareCustomConfig()
        if by == "name":
            return made.set_standalone_module_name("child", *entry)
        if by == "both":
            made.set_standalone_module_name("child", *entry)
            return made.set_standalone_module_class(Child, qconfigs.dynamic(), (), None, None)
        return made.set_standalone_module_class(Child, *entry)

    return make


STANDALONE: dict[str, Any] = {
    "by name": _standalone("name"),
    "by class": _standalone("class"),
    "by name, which wins": _standalone("both", qconfigs.static),
    "with a mapping of its own": _standalone(
        "class", lambda: QConfigMapping().set_global(default_per_channel_qconfig)
    ),
    "left float": _standalone("name", lambda: QConfigMapping().set_global(None)),
    "with a back-end of its own": _standalone(
        "name", qconfigs.static, None, get_fbgemm_backend_config()
    ),
    "with quantized input": _standalone("name", qconfigs.static, _indexes((0,), ())),
    "with quantized output": _standalone("name", qconfigs.static, _indexes((), (0,))),
    "with quantized input and output": _standalone("class", qconfigs.static, _indexes((0,), (0,))),
}
for name, custom in STANDALONE.items():
    _case(
        f"standalone {name}",
        PARENT,
        IMAGE,
        prepare_custom=custom,
        runs=SUMS_FLOATS if "float" in name else "",
    )
_case(
    "standalone, trained",
    PARENT,
    IMAGE,
    qconfigs=qconfigs.qat,
    mode="qat",
    prepare_custom=_standalone("name", qconfigs.qat, _indexes((0,), (0,))),
)
_case(
    "standalone on the input, quantized",
    net(lambda m, x: m.child(x) * 2, child=Child()),
    IMAGE,
    prepare_custom=_standalone("name", qconfigs.static, _indexes((0,), ())),
)
_case(
    "standalone with an unknown output index",
    PARENT,
    IMAGE,
    prepare_custom=_standalone("name", qconfigs.static, _indexes((), (1,))),
    raises=dict.fromkeys(("reference", "decomposed", "lowered"), "child"),
)


class TwoResults(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x * 2


_case(
    "standalone with two results",
    net(lambda m, x: m.child(x)[0], child=TwoResults()),
    IMAGE,
    prepare_custom=_standalone("name", qconfigs.static),
    raises={"prepared": "child"},
)

# ---- custom modules: torch's class, and ours under the same name


class FloatScale(nn.Module):
    """A module of the user."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.factor


class ObservedScale(FloatScale):
    @classmethod
    def from_float(cls, given: FloatScale) -> ObservedScale:
        made = cls(given.factor)
        made.qconfig = given.qconfig
        made.linear = given.linear
        return made


class QuantizedScale(FloatScale):
    @classmethod
    def from_observed(cls, given: ObservedScale) -> QuantizedScale:
        made = cls(given.factor)
        del made.linear
        return made

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class DynamicScale(FloatScale):
    @classmethod
    def from_observed(cls, given: FloatScale) -> DynamicScale:
        made = cls(given.factor)
        made.linear = given.linear
        return made


def _twin(kind: type, method: str) -> type:
    """Return a class of ours that makes a Module under the name of torch's class."""

    def make(given: Module) -> Module:
        kept = {k: v for k, v in given.config.items() if method == "from_float" or k != "qconfig"}
        kept_parts = () if kind is QuantizedScale else ("linear",)
        parts = {name: part for name, part in given.parts.items() if name in kept_parts}
        return Module(object_type(kind), kept, dict(given.state), parts, True)

    return type(kind.__name__, (), {method: staticmethod(make), "__module__": kind.__module__})


TWIN_OBSERVED = _twin(ObservedScale, "from_float")
TWIN_QUANTIZED = _twin(QuantizedScale, "from_observed")
TWIN_DYNAMIC = _twin(DynamicScale, "from_observed")
CUSTOM = net(
    lambda m, x: m.b(m.scale(m.a(x))), a=nn.Linear(8, 8), scale=FloatScale(), b=nn.Linear(8, 2)
)
STATIC: dict[str, Any] = {
    "prepare_custom": lambda: PrepareCustomConfig().set_float_to_observed_mapping(
        FloatScale, ObservedScale
    ),
    "our_prepare_custom": lambda: ours.PrepareCustomConfig().set_float_to_observed_mapping(
        FloatScale, TWIN_OBSERVED
    ),
    "convert_custom": lambda: ConvertCustomConfig().set_observed_to_quantized_mapping(
        ObservedScale, QuantizedScale
    ),
    "our_convert_custom": lambda: ours.ConvertCustomConfig().set_observed_to_quantized_mapping(
        TWIN_OBSERVED, TWIN_QUANTIZED
    ),
}
_case("custom module", CUSTOM, ROWS, **STATIC, runs="QuantizedScale")
_case(
    "custom module, trained",
    CUSTOM,
    ROWS,
    **STATIC,
    qconfigs=qconfigs.qat,
    mode="qat",
    runs="QuantizedScale",
)
_case(
    "custom module of the input, called twice",
    net(lambda m, x: m.scale(m.scale(x)), scale=FloatScale()),
    ROWS,
    **STATIC,
    runs="QuantizedScale",
)
_case(
    "custom module, from dicts",
    CUSTOM,
    ROWS,
    prepare_custom=lambda: {
        "float_to_observed_custom_module_class": {"static": {FloatScale: ObservedScale}}
    },
    our_prepare_custom=lambda: {
        "float_to_observed_custom_module_class": {"static": {FloatScale: TWIN_OBSERVED}}
    },
    convert_custom=lambda: {
        "observed_to_quantized_custom_module_class": {"static": {ObservedScale: QuantizedScale}}
    },
    our_convert_custom=lambda: {
        "observed_to_quantized_custom_module_class": {"static": {TWIN_OBSERVED: TWIN_QUANTIZED}}
    },
    runs="QuantizedScale",
)
_case(
    "custom module whose qconfig is None",
    CUSTOM,
    ROWS,
    **STATIC,
    qconfigs=qconfigs.changed(qconfigs.static, lambda m: m.set_module_name("scale", None)),
    runs="FloatScale",
)
_case(
    "custom module in dynamic mode, listed as not traceable",
    CUSTOM,
    ROWS,
    qconfigs=qconfigs.dynamic,
    prepare_custom=lambda: PrepareCustomConfig().set_non_traceable_module_classes([FloatScale]),
    convert_custom=lambda: ConvertCustomConfig.from_dict(
        {"observed_to_quantized_custom_module_class": {"dynamic": {FloatScale: DynamicScale}}}
    ),
    our_convert_custom=lambda: ours.ConvertCustomConfig.from_dict(
        {"observed_to_quantized_custom_module_class": {"dynamic": {FloatScale: TWIN_DYNAMIC}}}
    ),
    runs="DynamicScale",
)
_case(
    "custom module, weight only, listed as not traceable",
    CUSTOM,
    ROWS,
    qconfigs=qconfigs.changed(
        QConfigMapping,
        lambda m: m.set_object_type(
            FloatScale, torch.ao.quantization.float_qparams_weight_only_qconfig
        ),
    ),
    prepare_custom=lambda: PrepareCustomConfig().set_non_traceable_module_classes([FloatScale]),
    convert_custom=lambda: ConvertCustomConfig.from_dict(
        {"observed_to_quantized_custom_module_class": {"weight_only": {FloatScale: DynamicScale}}}
    ),
    our_convert_custom=lambda: ours.ConvertCustomConfig.from_dict(
        {"observed_to_quantized_custom_module_class": {"weight_only": {FloatScale: TWIN_DYNAMIC}}}
    ),
    runs="DynamicScale",
)
_case(
    "custom module in dynamic mode is not swapped",
    CUSTOM,
    ROWS,
    qconfigs=qconfigs.dynamic,
    **{key: value for key, value in STATIC.items() if "prepare" in key},
    runs="FloatScale",
    defects=frozenset({"dynamic-custom-module"}),
)
_case(
    "custom module without a quantized class",
    CUSTOM,
    ROWS,
    **{key: value for key, value in STATIC.items() if "prepare" in key},
    runs="ObservedScale",
)

# ---- torch's own quantizable modules

LSTM: dict[str, Any] = {
    "prepare_custom": lambda: PrepareCustomConfig().set_float_to_observed_mapping(
        nn.LSTM, torch.ao.nn.quantizable.LSTM
    ),
    "convert_custom": lambda: ConvertCustomConfig().set_observed_to_quantized_mapping(
        torch.ao.nn.quantizable.LSTM, torch.ao.nn.quantized.LSTM
    ),
    "qconfigs": qconfigs.per_tensor,
}
STATE = ((1, 2, 3), (1, 2, 3))
_case(
    "quantizable lstm",
    net(lambda m, x, h, c: m.lstm(x, (h, c))[0], lstm=nn.LSTM(4, 3)),
    (5, 2, 4),
    *STATE,
    **LSTM,
)


def _all_results(m: Any, x: Any, h: Any, c: Any) -> Any:
    y, (h, c) = m.lstm(m.first(x), (h, c))
    return m.linear(y), h * 2, c + 1


PARTS = {"first": nn.Linear(4, 4), "lstm": nn.LSTM(4, 3), "linear": nn.Linear(3, 3)}
_case("quantizable lstm, all results used", net(_all_results, **PARTS), (5, 2, 4), *STATE, **LSTM)
# torch's short cut through the rebuilt tuples loses track when they are indexed again and again.
_case(
    "quantizable lstm, results taken one by one",
    net(
        lambda m, x, h, c: (lambda out: m.linear(out[0]) + out[1][0] * 2 - out[1][1])(
            m.lstm(m.first(x), (h, c))
        ),
        **PARTS,
    ),
    (5, 2, 4),
    *STATE,
    **LSTM,
    raises={"calibrated": "getitem"},
)
_case(
    "quantizable lstm without a state",
    net(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(4, 3)),
    (5, 2, 4),
    **LSTM,
    raises=dict.fromkeys(("reference", "decomposed", "lowered"), "lstm"),
)
_case(
    "quantizable attention",
    net(lambda m, q, k, v: m.attention(q, k, v)[0], attention=nn.MultiheadAttention(8, 2)),
    (4, 2, 8),
    (4, 2, 8),
    (4, 2, 8),
    prepare_custom=lambda: PrepareCustomConfig().set_float_to_observed_mapping(
        nn.MultiheadAttention, torch.ao.nn.quantizable.MultiheadAttention
    ),
    qconfigs=qconfigs.per_tensor,
    raises={"calibrated": "attention"},
    defects=frozenset({"observed-tuple"}),
)
