"""Back-end configs against torch's: every pattern, field for field and in order."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import described
import pytest
import torch
import torch.ao.quantization.fx
from ledger import Ledger
from torch.ao.quantization import backend_config as torch_backend_config
from torch.ao.quantization import fuser_method_mappings
from torch.ao.quantization.backend_config import native, tensorrt, x86
from torch.ao.quantization.backend_config import utils as torch_lookup
from torch.ao.quantization.fx.pattern_utils import _sorted_patterns_dict

from refquant import backend_config, importers, qint8, quint8
from refquant.backend_config import MATCH_ALL, Fuser, lookup
from refquant.backend_config import native as our_native
from refquant.ir.errors import VerifyError

COUNTS = {
    "native": 194,
    "fbgemm": 192,
    "qnnpack": 190,
    "x86": 192,
    "onednn": 221,
    "executorch": 84,
    "tensorrt": 149,
    "test_only_legacy_native": 194,
}
F = torch.nn.functional
nni = torch.ao.nn.intrinsic


def theirs_of(name: str) -> Any:
    getter = f"get_{name}_backend_config"
    places = (torch_backend_config, x86, native)
    return next(getattr(place, getter)() for place in places if hasattr(place, getter))


def ours_of(name: str) -> Any:
    return getattr(backend_config, f"get_{name}_backend_config")()


@pytest.mark.parametrize("name", COUNTS)
def test_every_pattern(name: str, ledger: Ledger) -> None:
    theirs, ours = theirs_of(name), ours_of(name)
    assert len(ours.configs) == COUNTS[name]
    expected = described.backend_config(theirs)
    translated = described.backend_config(importers.from_torch_config(theirs))
    actual = described.backend_config(ours)
    assert (actual[0], translated[0]) == (expected[0], expected[0])
    for mine, imported, wanted in zip(actual[1:], translated[1:], expected[1:], strict=True):
        ledger.run(f"backend config {name}", mine == wanted, f"{mine} is not {wanted}")
        assert imported == wanted


@pytest.mark.parametrize("name", COUNTS)
def test_dictionaries(name: str) -> None:
    theirs, ours = theirs_of(name), ours_of(name)
    given = getattr(backend_config, f"get_{name}_backend_config_dict")()
    assert list(given) == list(theirs.to_dict()) == ["name", "configs"]
    for mine, wanted in zip(given["configs"], theirs.to_dict()["configs"], strict=True):
        assert list(mine) == list(wanted)
        assert [list(d) for d in mine["dtype_configs"]] == [
            list(d) for d in wanted["dtype_configs"]
        ]
    expected = described.backend_config(ours)
    assert given == ours.to_dict()
    again = backend_config.BackendConfig.from_dict(given)
    assert described.backend_config(again) == expected
    translated = importers.from_torch_config(theirs.to_dict())
    assert translated == given
    assert described.backend_config(backend_config.BackendConfig.from_dict(translated)) == expected


TABLES = (
    "get_pattern_to_dtype_configs",
    "get_pattern_to_input_type_to_index",
    "get_root_module_to_quantized_reference_module",
    "get_module_to_qat_module",
    "get_fusion_pattern_to_root_node_getter",
    "get_fusion_pattern_to_extra_inputs_getter",
)


def table(found: dict[Any, Any]) -> list[Any]:
    rows = []
    for key, value in found.items():
        if isinstance(value, list):
            value = list(map(described.dtype_config, value))
        elif isinstance(value, str | type):
            value = described.names(value)
        rows.append((described.names(key), described.plain(value)))
    return rows


@pytest.mark.parametrize("name", COUNTS)
def test_lookup_tables(name: str) -> None:
    theirs, ours = theirs_of(name), ours_of(name)
    for getter in TABLES:
        expected = table(getattr(torch_lookup, getter)(theirs))
        assert table(getattr(lookup, getter)(ours)) == expected
    for getter in ("get_qat_module_classes", "get_fused_module_classes"):
        wanted = set(map(described.names, getattr(torch_lookup, getter)(theirs)))
        found = getattr(lookup, getter)(ours)
        assert (set(found), len(found)) == (wanted, len(wanted))
    fusers = lookup.get_fuser_method_mapping(ours)
    assert list(map(described.names, fusers)) == list(
        map(described.names, torch_lookup.get_fuser_method_mapping(theirs))
    )
    for pattern, fuser in fusers.items():
        assert fuser is ours._pattern_complex_format_to_config[pattern].fuser_method
    for one, other in (
        (ours._pattern_complex_format_to_config, theirs._pattern_complex_format_to_config),
        (fusers, torch_lookup.get_fuser_method_mapping(theirs)),
    ):
        expected = list(map(described.names, _sorted_patterns_dict(other)))
        assert list(map(described.names, lookup.sorted_patterns_dict(one))) == expected


def test_nodes_of_conv_and_add() -> None:
    theirs, ours = theirs_of("onednn"), ours_of("onednn")
    roots = torch_lookup.get_fusion_pattern_to_root_node_getter(theirs)
    extras = torch_lookup.get_fusion_pattern_to_extra_inputs_getter(theirs)
    assert len(roots) == len(extras) == 16
    for getters, other in (
        (lookup.get_fusion_pattern_to_root_node_getter(ours), roots),
        (lookup.get_fusion_pattern_to_extra_inputs_getter(ours), extras),
    ):
        for (pattern, getter), their_getter in zip(getters.items(), other.values(), strict=True):
            matched = numbered(pattern, iter("abcdefgh"))
            assert getter(matched) == their_getter(matched)


def numbered(pattern: Any, nodes: Any) -> Any:
    if isinstance(pattern, tuple):
        return tuple(numbered(part, nodes) for part in pattern)
    return next(nodes)


def test_fusers_with_wildcards() -> None:
    conv, add, relu = torch.nn.Conv2d, operator.add, torch.nn.ReLU
    theirs = torch_lookup.get_fuser_method_mapping(theirs_of("onednn"))
    ours = lookup.get_fuser_method_mapping(ours_of("onednn"))
    for pattern in (
        (relu, (add, conv, conv)),
        (add, torch.nn.Linear, conv),
        (add, (torch.nn.BatchNorm2d, conv), torch.nn.Linear),
        (relu, (torch.add, "x", (torch.nn.BatchNorm2d, conv))),
    ):
        wanted = described.plain(fuser_method_mappings.get_fuser_method_new(pattern, theirs))
        assert (
            described.plain(lookup.get_fuser_method_new(described_or_any(pattern), ours)) == wanted
        )
    for find, fusers in (
        (fuser_method_mappings.get_fuser_method_new, theirs),
        (lookup.get_fuser_method_new, ours),
    ):
        with pytest.raises(AssertionError, match="did not find"):
            find(("view", "view"), fusers)


def described_or_any(pattern: Any) -> Any:
    return (
        tuple(map(described_or_any, pattern))
        if isinstance(pattern, tuple)
        else lookup.remove_boolean_dispatch_from_name(pattern)
    )


def fuse_two(is_qat: bool, linear: Any, relu: Any) -> Any:
    return is_qat, linear, relu


def fuse_three(is_qat: bool, linear: Any, bn: Any, relu: Any) -> Any:
    return is_qat, linear, bn, relu


def fuse_nested(is_qat: bool, add: Any, conv: Any, other: Any) -> Any:
    return is_qat, add, conv, other


def own(api: Any, quint: Any, qint: Any, wildcard: Any) -> Any:
    """Return a user's config, made with torch's classes and functions."""
    weighted = api.DTypeConfig(quint, quint, api.DTypeWithConstraints(qint, -127, 127), None, True)
    both = api.ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT
    pattern = api.BackendPatternConfig
    return (
        api.BackendConfig("first")
        .set_name("mine")
        .set_backend_pattern_config(
            pattern(torch.nn.Linear)
            .add_dtype_config(weighted)
            .set_root_module(torch.nn.Linear)
            .set_qat_module(torch.ao.nn.qat.Linear)
            .set_reference_quantized_module(torch.ao.nn.quantized.reference.Linear)
        )
        .set_backend_pattern_configs(
            [
                pattern((torch.nn.Linear, F.relu))
                .set_dtype_configs([weighted, api.DTypeConfig()])
                .set_fuser_method(fuse_two)
                .set_fused_module(nni.LinearReLU),
                pattern()
                .set_pattern((torch.nn.Linear, torch.nn.BatchNorm1d, torch.relu))
                .set_fuser_method(fuse_three),
                pattern()
                ._set_pattern_complex_format((torch.add, torch.nn.Conv2d, wildcard))
                .set_fuser_method(fuse_nested)
                ._set_root_node_getter(max)
                ._set_extra_inputs_getter(min),
                pattern(torch.conv2d)._set_input_type_to_index({"weight": 1}),
                pattern("size").set_observation_type(both),
                pattern(torch.add)._set_num_tensor_args_to_observation_type({1: both}),
                pattern(torch.nn.Linear).set_observation_type(both),
            ]
        )
    )


def test_own() -> None:
    theirs = own(
        torch_backend_config,
        *(torch.quint8, torch.qint8, torch.ao.quantization.utils.MatchAllNode),
    )
    for wildcard in (MATCH_ALL, torch.ao.quantization.utils.MatchAllNode):
        ours = own(backend_config, quint8, qint8, wildcard)
        assert described.backend_config(ours) == described.backend_config(theirs)
    translated = importers.from_torch_config(theirs)
    assert described.backend_config(translated) == described.backend_config(ours)
    assert ours.configs[0].pattern == "torch.nn.Linear"
    assert ours.configs[0].root_module is None
    assert ours.configs[4].pattern == "torch.nn.functional.conv2d"
    fusers = lookup.get_fuser_method_mapping(ours).values()
    their_fusers = torch_lookup.get_fuser_method_mapping(theirs).values()
    calls = [(True, 1, 2), (False, 1, (2, 3)), (True, 1, 2, 3)]
    results = [fuse(*call) for fuse, call in zip(fusers, calls, strict=True)]
    assert results == [(True, 2, 1), (False, 3, 2, 1), (True, 1, 2, 3)]
    assert results == [fuse(*call) for fuse, call in zip(their_fusers, calls, strict=True)]
    again = backend_config.BackendConfig.from_dict(ours.to_dict())
    assert described.backend_config(again) == described.backend_config(
        torch_backend_config.BackendConfig.from_dict(theirs.to_dict())
    )
    assert described.backend_config(copy.deepcopy(ours)) == described.backend_config(ours)


def test_configs_are_fresh_and_share_dtypes_as_in_torch() -> None:
    counts = []
    for config, api, dtype in (
        (theirs_of("native"), torch_backend_config, torch.qint8),
        (ours_of("native"), backend_config, qint8),
    ):
        config._pattern_complex_format_to_config.popitem()
        config.configs.clear()
        linear = next(c for c in config.configs if described.names(c.pattern) == "torch.nn.Linear")
        linear.add_dtype_config(api.DTypeConfig(dtype, dtype))
        counts.append([len(c.dtype_configs) for c in config.configs])
    assert counts[0] == counts[1]
    assert described.backend_config(ours_of("native")) == described.backend_config(
        theirs_of("native")
    )


def test_text() -> None:
    for name in ("size", "view"):
        theirs, ours = (
            next(c for c in config.configs if c.pattern == name)
            for config in (theirs_of("native"), ours_of("native"))
        )
        assert repr(ours) == repr(theirs).replace("torch.", "refquant.")
        assert lookup.entry_to_pretty_str(
            {**ours.to_dict(), "num_tensor_args_to_observation_type": {0: 1}}
        ) == torch_lookup.entry_to_pretty_str(
            {**theirs.to_dict(), "num_tensor_args_to_observation_type": {0: 1}}
        ).replace("torch.", "refquant.")
    assert repr(backend_config.BackendConfig("x")) == repr(torch_backend_config.BackendConfig("x"))
    assert lookup.pattern_to_human_readable((F.max_pool2d, "x", MATCH_ALL)) == (
        *("torch.nn.functional.max_pool2d", "x"),
        MATCH_ALL,
    )
    assert repr(MATCH_ALL) == "MATCH_ALL"


ERRORS: dict[str, Callable[[Any, Any], Any]] = {
    "only one of": lambda api, _: api.BackendPatternConfig("a")._set_pattern_complex_format("b"),
    "one of 'pattern'|only one of": lambda api, _: (
        api.BackendPatternConfig()._set_pattern_complex_format("a").set_pattern("b")
    ),
    "ither": lambda api, _: api.BackendConfig().set_backend_pattern_config(
        api.BackendPatternConfig()
    ),
    "2 or 3": lambda api, _: api.BackendConfig().set_backend_pattern_config(
        api.BackendPatternConfig(("a", "b", "c", "d"))
    ),
    "configs": lambda api, _: api.BackendConfig.from_dict({"configs": [1]}),
    "dtype_configs": lambda api, _: api.BackendPatternConfig.from_dict({"dtype_configs": [1]}),
    "input_dtype": lambda api, _: api.DTypeConfig.from_dict({"input_dtype": "quint8"}),
    "output_dtype": lambda api, _: api.DTypeConfig.from_dict({"output_dtype": 1}),
    "weight_dtype": lambda api, _: api.DTypeConfig.from_dict({"weight_dtype": float}),
    "expected a pattern of 2|must be a tuple|to be a tuple": lambda api, lookup: (
        lookup.get_fuser_method_mapping(
            api.BackendConfig().set_backend_pattern_config(
                api.BackendPatternConfig("a").set_fuser_method(max)
            )
        )
    ),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors_are_torchs(message: str) -> None:
    with pytest.raises(ValueError, match=f"(?i){message}"):
        ERRORS[message](torch_backend_config, torch_lookup)
    with pytest.raises(VerifyError, match=f"(?i){message}") as error:
        ERRORS[message](backend_config, lookup)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: backend_config.DTypeConfig(torch.quint8),
        lambda: backend_config.DTypeConfig(bias_dtype=torch.float32),
        lambda: backend_config.BackendPatternConfig().set_observation_type(1),
        lambda: backend_config.BackendPatternConfig().add_dtype_config({}),
        lambda: backend_config.BackendPatternConfig().set_dtype_configs([None]),
        lambda: backend_config.BackendPatternConfig().set_fuser_method("conv_bn"),
        lambda: backend_config.BackendPatternConfig(5),
        lambda: backend_config.BackendPatternConfig(["nn.Linear", "nn.ReLU"]),
        lambda: backend_config.BackendConfig().set_backend_pattern_config(
            torch_backend_config.BackendPatternConfig("view")
        ),
        lambda: lookup.get_fuser_method_in_reversed_nested_tuple_format(
            backend_config.BackendPatternConfig(("a", "b"))
        ),
        lambda: lookup.get_fuser_method_in_reversed_nested_tuple_format(
            backend_config.BackendPatternConfig(("a", "b", "c", "d")).set_fuser_method(max)
        ),
    ],
)
def test_other_errors(wrong: Callable[[], Any]) -> None:
    with pytest.raises(VerifyError, match=r"must be|expected") as error:
        wrong()
    assert "\n" not in str(error.value)


def test_names_of_torch_are_here() -> None:
    public = [*torch_backend_config.__all__, *x86.__all__, *tensorrt.__all__]
    assert [name for name in public if not hasattr(backend_config, name)] == []
    assert [name for name in native.__all__ if not hasattr(our_native, name)] == []
    assert [name for name in torch_lookup.__all__ if not hasattr(lookup, name)] == []
    for name in native.__all__:
        if name.endswith("_dtype_config"):
            one, other = getattr(our_native, name), getattr(native, name)
            assert described.dtype_config(one) == described.dtype_config(other)
    assert Fuser("sequential", "nni.ConvReLU2d") == Fuser(
        "sequential", "torch.ao.nn.intrinsic.ConvReLU2d"
    )
