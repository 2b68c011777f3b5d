"""torch's configs into ours: what they consist of, and what has no equivalent."""

from __future__ import annotations

import operator
import subprocess
import sys
import warnings
from functools import partial
from typing import Any

import described
import numpy as np
import pytest
import torch
from torch.ao.quantization import (
    _learnable_fake_quantize,
    fake_quantize,
    fuser_method_mappings,
    observer,
    qconfig,
)
from torch.ao.quantization.backend_config import (
    BackendPatternConfig,
    DTypeConfig,
    DTypeWithConstraints,
    ObservationType,
)
from torch.ao.quantization.fx import _equalize
from torch.ao.quantization.fx._model_report.model_report_observer import ModelReportObserver

import refquant
from refquant import backend_config, importers
from refquant import equalization as our_equalization
from refquant import qconfig as our_qconfig
from refquant.factory import Factory
from refquant.fake_quantize import LearnableFakeQuantize
from refquant.fx.custom_config import PrepareCustomConfig
from refquant.importers import from_torch_config
from refquant.ir.errors import UnsupportedError
from refquant.ir.types import TORCH_DTYPES, QScheme
from refquant.observer import HistogramObserver, MinMaxObserver
from refquant.qconfig_mapping import QConfigMapping


def test_dtypes_and_qschemes() -> None:
    for name, dtype in TORCH_DTYPES.items():
        assert from_torch_config(getattr(torch, name)) is dtype
    for scheme in QScheme:
        assert from_torch_config(getattr(torch, scheme.value)) is scheme
    assert from_torch_config(torch.float) is refquant.float32
    for kind in ObservationType:
        assert from_torch_config(kind) is backend_config.ObservationType[kind.name]


# torchao's, which FX graph mode does not know.
ABSENT = {
    *("AffineQuantizedObserverBase", "Granularity", "MappingType", "PerAxis", "PerBlock"),
    *("PerGroup", "PerRow", "PerTensor", "PerToken", "TorchAODType", "ZeroPointDomain"),
}


@pytest.mark.parametrize("module", [observer, fake_quantize])
def test_every_observer_and_fake_quant(module: Any) -> None:
    place = getattr(refquant, module.__name__.rpartition(".")[2])
    absent = set()
    for name in module.__all__:
        public = getattr(module, name)
        if not isinstance(public, type | observer._PartialWrapper):
            continue
        if not hasattr(place, name):
            absent.add(name)
            continue
        translated = from_torch_config(public)
        assert described.plain(translated) == described.plain(public)
        assert isinstance(public, observer._PartialWrapper) or translated is getattr(place, name)
    assert absent == (ABSENT if module is observer else set())


@pytest.mark.parametrize(
    "name", [n for n, q in vars(qconfig).items() if isinstance(q, qconfig.QConfig)]
)
def test_every_qconfig(name: str) -> None:
    translated = from_torch_config(getattr(qconfig, name))
    assert isinstance(translated, our_qconfig.QConfig)
    assert our_qconfig.qconfig_equals(translated, getattr(our_qconfig, name))


def test_nested_factories() -> None:
    fresh = iter(range(10))
    theirs = (
        fake_quantize.FakeQuantize.with_args(
            observer=observer.MinMaxObserver.with_args(dtype=torch.qint8),
            quant_min=-8,
        )
        .with_args(quant_max=7)
        .with_callable_args(factory_kwargs=lambda: {"device": torch.device("cpu"), "dtype": None})
    )
    ours = from_torch_config(theirs)
    assert isinstance(ours, Factory)
    assert described.plain(ours) == described.plain(theirs)
    made = ours()
    assert isinstance(made.activation_post_process, MinMaxObserver)
    assert (made.dtype, made.quant_min, made.quant_max) == (refquant.qint8, -8, 7)
    late = from_torch_config(observer.MinMaxObserver.with_callable_args(dtype=lambda: torch.qint8))
    assert late().dtype is refquant.qint8
    counting = observer.MinMaxObserver.with_callable_args(quant_max=lambda: next(fresh) + 100)
    ours = from_torch_config(counting.with_args(quant_min=0))
    assert [ours().quant_max, ours().quant_max] == [100, 101]
    plain = from_torch_config(partial(observer.HistogramObserver, 64, dtype=torch.qint8))
    assert (plain.func, plain.args) == (HistogramObserver, (64,))
    assert plain.keywords == {"dtype": refquant.qint8}


def test_qconfigs() -> None:
    theirs = qconfig.QConfig(torch.nn.Identity, None)
    assert from_torch_config(theirs) == our_qconfig.QConfig(our_qconfig.Identity, None)
    with pytest.warns(FutureWarning):
        dynamic = qconfig.QConfigDynamic(weight=observer.MinMaxObserver)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        translated = from_torch_config(dynamic)
    assert isinstance(translated, our_qconfig.QConfigDynamic)
    assert tuple(translated) == (our_qconfig.Identity, MinMaxObserver)


def test_identity_is_a_module_where_it_is_not_an_observer() -> None:
    entries = {"": None, "object_type": [(torch.nn.Identity, qconfig.default_qconfig)]}
    mapping = QConfigMapping.from_dict(from_torch_config(entries))
    assert list(mapping.object_type_qconfigs) == ["torch.nn.Identity"]
    assert from_torch_config(BackendPatternConfig(torch.nn.Identity)).pattern == (
        "torch.nn.Identity"
    )


def test_equalization() -> None:
    for theirs, ours in (
        (_equalize.default_equalization_qconfig, our_equalization.default_equalization_qconfig),
        (_equalize.EqualizationQConfig(), our_equalization.EqualizationQConfig()),
    ):
        translated = from_torch_config(theirs)
        assert isinstance(translated, our_equalization.EqualizationQConfig)
        assert described.plain(translated) == described.plain(ours) == described.plain(theirs)


def test_learnable() -> None:
    theirs = _learnable_fake_quantize._LearnableFakeQuantize
    assert from_torch_config(theirs) is LearnableFakeQuantize


def test_constraints_of_no_dtype() -> None:
    limits = DTypeWithConstraints(None, quant_min_lower_bound=3)
    entry = BackendPatternConfig("view").add_dtype_config(DTypeConfig(limits))
    translated = from_torch_config(entry).dtype_configs[0].input_dtype_with_constraints
    assert (translated.dtype, translated.quant_min_lower_bound) == (None, 3)


def own_fuser(is_qat: bool, first: Any, second: Any) -> Any:
    return first


def test_fusers() -> None:
    for name in ("conv_bn", "conv_bn_relu", "linear_bn", "convtranspose_bn"):
        translated = from_torch_config(getattr(fuser_method_mappings, f"fuse_{name}"))
        assert translated == backend_config.Fuser(name)
    sequential = fuser_method_mappings._sequential_wrapper2(torch.ao.nn.intrinsic.ConvReLU2d)
    assert from_torch_config(sequential) == backend_config.Fuser("sequential", "nni.ConvReLU2d")
    entry = BackendPatternConfig((torch.nn.Linear, torch.nn.ReLU)).set_fuser_method(own_fuser)
    assert from_torch_config(entry).fuser_method is own_fuser
    first = operator.itemgetter(1)  # not an object type where a rule is meant
    entry._set_root_node_getter(first)._set_extra_inputs_getter(torch.add)
    for translated in (
        from_torch_config(entry),
        backend_config.BackendPatternConfig.from_dict(from_torch_config(entry.to_dict())),
    ):
        assert translated._root_node_getter is first
        assert translated._extra_inputs_getter is torch.add


def test_functions_and_plain_values() -> None:
    assert from_torch_config(torch.conv2d) == "torch.nn.functional.conv2d"
    assert from_torch_config(torch.nn.Linear) == "torch.nn.Linear"
    for value in (None, True, 3, 0.5, "view", own_fuser, test_fusers, max):
        assert from_torch_config(value) is value
    array = from_torch_config(torch.arange(3.0))
    np.testing.assert_array_equal(array, np.float32([0, 1, 2]))
    assert from_torch_config([torch.qint8, (torch.quint8,)]) == [
        refquant.qint8,
        (refquant.quint8,),
    ]


def test_what_is_ours_stays() -> None:
    for config in (
        our_qconfig.default_qconfig,
        QConfigMapping(),
        backend_config.BackendConfig(),
        PrepareCustomConfig(),
        refquant.qint8,
        MinMaxObserver,
        our_qconfig.default_qconfig.weight,
    ):
        assert from_torch_config(config) is config


class OwnObserver(observer.MinMaxObserver):
    """A user's observer: its arithmetic is not known here."""


@pytest.mark.parametrize(
    "config",
    [
        OwnObserver,
        OwnObserver.with_args(dtype=torch.qint8),
        qconfig.QConfig(OwnObserver, observer.MinMaxObserver),
        observer.MinMaxObserver(),
        torch.nn.Linear(1, 1),
        ModelReportObserver,
        torch.complex64,
        torch.uint32,
        torch.Generator(),
        {"": torch.nn.ReLU()},
    ],
)
def test_what_has_no_equivalent(config: Any) -> None:
    with pytest.raises(UnsupportedError, match="from_torch_config: refquant has no") as error:
        from_torch_config(config)
    assert "\n" not in str(error.value)


def test_configs_need_no_torch() -> None:
    modules = (
        *("backend_config", "backend_config.lookup", "qconfig_mapping", "equalization"),
        *("fx.custom_config", "importers.torch_config"),
    )
    imports = "; ".join(f"import refquant.{module}" for module in modules)
    make = "refquant.backend_config.get_onednn_backend_config().to_dict()"
    mapping = "refquant.qconfig_mapping.get_default_qconfig_mapping().to_dict()"
    code = f"import sys; {imports}; {make}; {mapping}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert importers.from_torch_config is from_torch_config
