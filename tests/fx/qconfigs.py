"""torch's qconfig mappings for the cases: the defaults with cheap observers, and others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.ao.quantization import (
    HistogramObserver,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
    default_dynamic_qconfig,
    default_embedding_qat_qconfig,
    default_per_channel_symmetric_qnnpack_qconfig,
    default_qconfig,
    default_symmetric_qnnpack_qconfig,
    default_weight_observer,
    default_weight_only_qconfig,
    float16_dynamic_qconfig,
    float16_static_qconfig,
    float_qparams_weight_only_qconfig,
    float_qparams_weight_only_qconfig_4bit,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    per_channel_dynamic_qconfig,
)

Make = Callable[[], QConfigMapping]


def _cheap(qconfig: Any) -> Any:
    """Replace a histogram by the extremes, which take no search."""
    if qconfig is None:
        return qconfig
    if qconfig.activation is HistogramObserver:
        return QConfig(MinMaxObserver, qconfig.weight)
    made = getattr(qconfig.activation, "p", None)
    if made is None or made.func is not HistogramObserver:
        return qconfig
    return QConfig(MinMaxObserver.with_args(**made.keywords), qconfig.weight)


def static(engine: str = "fbgemm") -> QConfigMapping:
    """The default mapping with MinMaxObserver in place of HistogramObserver."""
    mapping = get_default_qconfig_mapping(engine)
    mapping.set_global(_cheap(mapping.global_qconfig))
    for kind, qconfig in mapping.object_type_qconfigs.items():
        mapping.set_object_type(kind, _cheap(qconfig))
    return mapping


def symmetric() -> QConfigMapping:
    """qint8 everywhere, as TensorRT wants it."""
    activation = MinMaxObserver.with_args(
        qscheme=torch.per_tensor_symmetric, dtype=torch.qint8, quant_min=-127, quant_max=127
    )
    return QConfigMapping().set_global(QConfig(activation, default_weight_observer))


histogram = get_default_qconfig_mapping
qat = partial(get_default_qat_qconfig_mapping, "fbgemm")
qat_0 = partial(get_default_qat_qconfig_mapping, "fbgemm", 0)


def only(qconfig: Any) -> Make:
    """Return what makes a mapping with nothing but a global qconfig."""
    return lambda: QConfigMapping().set_global(qconfig)


per_tensor = only(default_qconfig)
dynamic = only(default_dynamic_qconfig)
dynamic_per_channel = only(per_channel_dynamic_qconfig)
dynamic_float16 = only(float16_dynamic_qconfig)
static_float16 = only(float16_static_qconfig)
weight_only = only(default_weight_only_qconfig)
embedding = only(float_qparams_weight_only_qconfig)
embedding_4bit = only(float_qparams_weight_only_qconfig_4bit)
embedding_qat = only(default_embedding_qat_qconfig)
qnnpack_symmetric = only(default_symmetric_qnnpack_qconfig)
qnnpack_symmetric_per_channel = only(default_per_channel_symmetric_qnnpack_qconfig)
per_channel_activation = only(
    QConfig(
        PerChannelMinMaxObserver.with_args(ch_axis=1, dtype=torch.quint8), default_weight_observer
    )
)


def changed(base: Callable[[], QConfigMapping], change: Callable[[Any], Any]) -> Make:
    """Return what makes a mapping and changes it, such as by another entry."""

    def make() -> QConfigMapping:
        mapping = base()
        change(mapping)
        return mapping

    return make
