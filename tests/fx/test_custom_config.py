"""Custom configs of prepare, convert and fuse against torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import described
import numpy as np
import pytest
import torch
from torch.ao.quantization import backend_config as torch_backend_config
from torch.ao.quantization import qconfig as torch_qconfig
from torch.ao.quantization import qconfig_mapping as torch_mapping
from torch.ao.quantization.fx import custom_config as torch_custom_config
from torch.ao.quantization.quant_type import QuantType as TorchQuantType

from refquant import backend_config, importers, qconfig, qconfig_mapping
from refquant.fx import custom_config
from refquant.fx.custom_config import (
    ConvertCustomConfig,
    FuseCustomConfig,
    PrepareCustomConfig,
    QuantType,
    quant_type_from_str,
)
from refquant.ir.errors import VerifyError


class Float(torch.nn.Module):
    """A module of the user."""


class Observed(torch.nn.Module):
    """What it becomes."""


class Quantized(torch.nn.Module):
    """What that becomes."""


NAME = f"{Float.__module__}.Float"


def filled(api: Any, mapping: Any, backend: Any, inputs: Any) -> Any:
    child = api.PrepareCustomConfig().set_input_quantized_indexes([1])
    return (
        api.PrepareCustomConfig()
        .set_standalone_module_name("a.b", mapping, inputs, child, backend)
        .set_standalone_module_name("c", None, (), None, None)
        .set_standalone_module_class(Float, None, inputs, None, backend)
        .set_standalone_module_class(torch.nn.Identity, mapping, (), child, None)
        .set_float_to_observed_mapping(Float, Observed)
        .set_float_to_observed_mapping(torch.nn.LSTM, torch.ao.nn.quantizable.LSTM)
        .set_non_traceable_module_names(["d", "e"])
        .set_non_traceable_module_classes([Float, torch.nn.Transformer])
        .set_input_quantized_indexes([0])
        .set_output_quantized_indexes([1, 2])
        .set_preserved_attributes(["version"])
    )


def entry(given: Any) -> Any:
    """Return a standalone module's entry as plain data."""
    return (
        given.qconfig_mapping and described.qconfig_mapping(given.qconfig_mapping),
        [np.asarray(x).tolist() for x in given.example_inputs],
        given.prepare_custom_config and plain(given.prepare_custom_config),
        given.backend_config and described.backend_config(given.backend_config),
    )


def kept(kind: Any) -> Any:
    """Return a class as it should be kept: the user's as it is."""
    return kind if kind in (Observed, Quantized, "x.Observed") else described.names(kind)


def plain(config: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in vars(config).items():
        if key.startswith("standalone"):
            made[key] = [(described.names(name), entry(e)) for name, e in value.items()]
        elif key.endswith("_mapping"):
            made[key] = {
                mode.name: {kept(k): kept(v) for k, v in classes.items()}
                for mode, classes in value.items()
            }
        elif key == "non_traceable_module_classes":
            made[key] = list(map(described.names, value))
        else:
            made[key] = value
    return made


def both() -> tuple[Any, Any]:
    backends = (
        torch_backend_config.get_tensorrt_backend_config(),
        backend_config.get_tensorrt_backend_config(),
    )
    theirs = filled(
        *(torch_custom_config, torch_mapping.get_default_qconfig_mapping("fbgemm")),
        *(backends[0], (torch.ones(2),)),
    )
    ours = filled(
        *(custom_config, qconfig_mapping.get_default_qconfig_mapping("fbgemm")),
        *(backends[1], (np.ones(2, np.float32),)),
    )
    return theirs, ours


def test_prepare() -> None:
    theirs, ours = both()
    expected = plain(theirs)
    assert plain(ours) == expected
    assert plain(importers.from_torch_config(theirs)) == expected
    assert list(ours.standalone_module_classes) == [NAME, "torch.nn.Identity"]
    assert ours.float_to_observed_mapping[QuantType.STATIC] == {
        NAME: Observed,
        "torch.nn.LSTM": "torch.ao.nn.quantizable.LSTM",
    }
    assert ours.non_traceable_module_classes == [NAME, "torch.nn.Transformer"]


def test_prepare_dictionaries() -> None:
    theirs, ours = both()
    assert list(ours.to_dict()) == list(theirs.to_dict())
    again = PrepareCustomConfig.from_dict(ours.to_dict())
    assert plain(again) == plain(ours)
    translated = importers.from_torch_config(theirs.to_dict())
    assert list(translated) == list(theirs.to_dict())
    assert plain(PrepareCustomConfig.from_dict(translated)) == plain(ours)
    rows = ours.to_dict()["standalone_module_name"]
    assert isinstance(rows[0][4], backend_config.BackendConfig)  # as in torch, not a dictionary
    assert [type(x) for x in rows[1]] == [str, type(None), tuple, type(None), type(None)]
    objects = {
        "standalone_module_name": [
            (
                *("a", qconfig_mapping.QConfigMapping(), (), PrepareCustomConfig()),
                backend_config.get_tensorrt_backend_config_dict(),
            )
        ]
    }
    made = PrepareCustomConfig.from_dict(objects).standalone_module_names["a"]
    assert len(made.backend_config.configs) == 149  # type: ignore[union-attr]
    for empty in (PrepareCustomConfig(), PrepareCustomConfig.from_dict({})):
        assert empty.to_dict() == torch_custom_config.PrepareCustomConfig().to_dict() == {}
        assert list(vars(empty)) == list(vars(theirs))


def test_convert() -> None:
    configs = []
    apis: list[Any] = [(torch_custom_config, TorchQuantType), (custom_config, QuantType)]
    for api, kind in apis:
        config = (
            api.ConvertCustomConfig()
            .set_observed_to_quantized_mapping(Observed, Quantized)
            .set_observed_to_quantized_mapping(Observed, Quantized, kind.WEIGHT_ONLY)
            .set_observed_to_quantized_mapping(
                *(torch.ao.nn.quantizable.LSTM, torch.ao.nn.quantized.LSTM, kind.DYNAMIC)
            )
            .set_preserved_attributes(["x"])
        )
        configs.append(config)
    theirs, ours = configs
    assert plain(ours) == plain(theirs)
    assert plain(importers.from_torch_config(theirs)) == plain(ours)
    assert list(ours.to_dict()) == list(theirs.to_dict())
    modes = ours.to_dict()["observed_to_quantized_custom_module_class"]
    assert list(modes) == ["static", "weight_only", "dynamic"]
    assert modes["static"] == {Observed: Quantized}
    assert modes["dynamic"] == {"torch.ao.nn.quantizable.LSTM": "torch.ao.nn.quantized.LSTM"}
    assert importers.from_torch_config(theirs.to_dict()) == ours.to_dict()
    assert plain(ConvertCustomConfig.from_dict(ours.to_dict())) == plain(ours)
    assert list(vars(ours)) == list(vars(theirs))


def test_fuse() -> None:
    theirs = torch_custom_config.FuseCustomConfig().set_preserved_attributes(["x"])
    ours = FuseCustomConfig().set_preserved_attributes(["x"])
    assert (repr(ours), ours.to_dict()) == (repr(theirs), theirs.to_dict())
    assert repr(importers.from_torch_config(theirs)) == repr(theirs)
    assert repr(FuseCustomConfig.from_dict(theirs.to_dict())) == repr(theirs)


def test_text() -> None:
    for api in ("PrepareCustomConfig", "ConvertCustomConfig"):
        theirs = getattr(torch_custom_config, api)().set_preserved_attributes(["x"])
        ours = getattr(custom_config, api)().set_preserved_attributes(["x"])
        assert repr(ours) == repr(theirs)


def test_quant_types() -> None:
    assert {t.name: t.value for t in QuantType} == {t.name: t.value for t in TorchQuantType}
    for kind in TorchQuantType:
        name = {"STATIC": "static", "WEIGHT_ONLY": "weight_only"}.get(kind.name, kind.name.lower())
        assert quant_type_from_str(name) == importers.from_torch_config(kind) == kind


ERRORS: dict[str, Callable[[Any], Any]] = {
    "static": lambda api: api.PrepareCustomConfig().set_float_to_observed_mapping(
        Float, Observed, 0
    ),
    "Unknown QuantType": lambda api: api.ConvertCustomConfig.from_dict(
        {"observed_to_quantized_custom_module_class": {"eager": {Observed: Quantized}}}
    ),
    "only supported for static": lambda api: api.PrepareCustomConfig.from_dict(
        {"float_to_observed_custom_module_class": {"dynamic": {Float: Observed}}}
    ),
    "standalone_module_name": lambda api: api.PrepareCustomConfig.from_dict(
        {"standalone_module_name": [("a", 1, (), None, None)]}
    ),
    "standalone_module_class": lambda api: api.PrepareCustomConfig.from_dict(
        {"standalone_module_class": [(Float, None, (), 1, None)]}
    ),
    "BackendConfig": lambda api: api.PrepareCustomConfig.from_dict(
        {"standalone_module_class": [(Float, None, (), None, 1)]}
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_torchs(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ERRORS[message](torch_custom_config)
    with pytest.raises(VerifyError, match=message) as error:
        ERRORS[message](custom_config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_torchs_configs_are_refused(place: int) -> None:
    given: list[Any] = [None, None, None]
    given[place] = (
        *(torch_mapping.QConfigMapping(), torch_custom_config.PrepareCustomConfig()),
        torch_backend_config.BackendConfig(),
    )[place]
    with pytest.raises(VerifyError, match="from_torch_config"):
        PrepareCustomConfig().set_standalone_module_name("a", given[0], (), given[1], given[2])


def test_a_standalone_entry() -> None:
    theirs = torch_custom_config.StandaloneModuleConfigEntry(
        torch_mapping.QConfigMapping().set_global(torch_qconfig.default_qconfig),
        *((torch.ones(1),), None, None),
    )
    ours = importers.from_torch_config(theirs)
    assert entry(ours) == entry(theirs)
    assert qconfig.qconfig_equals(ours.qconfig_mapping.global_qconfig, qconfig.default_qconfig)


def test_names_of_torch_are_here() -> None:
    assert [n for n in torch_custom_config.__all__ if not hasattr(custom_config, n)] == []
