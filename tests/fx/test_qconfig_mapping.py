"""QConfigMappings against torch's: the default ones, their five levels, their text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import product
from typing import Any

import described
import pytest
import torch
from ledger import Ledger
from torch.ao.quantization import qconfig as torch_qconfig
from torch.ao.quantization import qconfig_mapping as torch_mapping

from refquant import importers, qconfig, qconfig_mapping
from refquant.equalization import default_equalization_qconfig
from refquant.ir.errors import VerifyError
from refquant.qconfig_mapping import QConfigMapping

MAKERS = [
    *(("get_default_qconfig_mapping", (backend, 0)) for backend in qconfig.BACKENDS),
    *(
        ("get_default_qat_qconfig_mapping", arguments)
        for arguments in product(qconfig.BACKENDS, (0, 1))
    ),
    *(("get_default_qconfig_mapping", ()), ("get_default_qat_qconfig_mapping", ())),
    ("_get_symmetric_qnnpack_qconfig_mapping", ()),
    ("_get_symmetric_qnnpack_qat_qconfig_mapping", ()),
]


@pytest.mark.parametrize(("maker", "arguments"), MAKERS)
def test_defaults(maker: str, arguments: Any, ledger: Ledger) -> None:
    theirs = getattr(torch_mapping, maker)(*arguments)
    ours = getattr(qconfig_mapping, maker)(*arguments)
    expected = described.qconfig_mapping(theirs)
    same = described.qconfig_mapping(ours) == expected
    ledger.run("default qconfig mapping", same, f"{maker}{arguments}")
    translated = importers.from_torch_config(theirs)
    assert described.qconfig_mapping(translated) == expected
    for key, chosen in ours.object_type_qconfigs.items():
        assert qconfig.qconfig_equals(chosen, translated.object_type_qconfigs[key])


@pytest.mark.parametrize("is_qat", [False, True])
def test_another_default(is_qat: bool) -> None:
    make = "_get_default_qconfig_mapping_with_default_qconfig"
    theirs = getattr(torch_mapping, make)(is_qat, "x86", torch_qconfig.default_debug_qconfig)
    ours = getattr(qconfig_mapping, make)(is_qat, "x86", qconfig.default_debug_qconfig)
    assert described.qconfig_mapping(ours) == described.qconfig_mapping(theirs)


def five_levels(mapping: Any, one: Any, other: Any) -> Any:
    linear = torch.nn.functional.linear
    return (
        mapping.set_global(one)
        .set_object_type(torch.nn.Conv2d, one)
        .set_object_type(torch.conv2d, other)
        .set_object_type("reshape", None)
        .set_object_type(torch.nn.Conv2d, other)
        .set_module_name_regex("foo.*bar[0-9]+", one)
        .set_module_name_regex("foo.*", other)
        .set_module_name_regex("foo.*bar[0-9]+", None)
        .set_module_name("a.b", one)
        .set_module_name("a", None)
        .set_module_name_object_type_order("a.b", linear, 0, other)
        .set_module_name_object_type_order("a.b", linear, 1, one)
        .set_module_name_object_type_order("", torch.nn.Linear, 0, None)
    )


def test_five_levels() -> None:
    names = ("default_qconfig", "default_qat_qconfig")
    theirs = five_levels(
        torch_mapping.QConfigMapping(), *(getattr(torch_qconfig, name) for name in names)
    )
    ours = five_levels(QConfigMapping(), *(getattr(qconfig, name) for name in names))
    expected = described.qconfig_mapping(theirs)
    assert described.qconfig_mapping(ours) == expected
    assert list(ours.object_type_qconfigs) == [
        *("torch.nn.Conv2d", "torch.nn.functional.conv2d", "reshape")
    ]
    again = QConfigMapping.from_dict(ours.to_dict())
    assert described.qconfig_mapping(again) == expected
    assert again.to_dict() == ours.to_dict()
    translated = importers.from_torch_config(theirs.to_dict())
    assert list(translated) == list(theirs.to_dict())
    assert described.qconfig_mapping(QConfigMapping.from_dict(translated)) == expected
    assert described.qconfig_mapping(QConfigMapping.from_dict({})) == described.qconfig_mapping(
        torch_mapping.QConfigMapping.from_dict({})
    )
    for name, value in vars(ours).items():
        assert name == "global_qconfig" or isinstance(value, OrderedDict)
    assert list(vars(ours)) == list(vars(theirs))


def test_text() -> None:
    def fill(mapping: Any) -> Any:
        mapping.set_object_type("torch.nn.Linear", None).set_module_name_regex("a.*", None)
        return mapping.set_module_name_object_type_order("a", "torch.nn.Linear", 3, None)

    theirs, ours = torch_mapping.QConfigMapping(), QConfigMapping()
    assert repr(ours) == repr(theirs)
    assert repr(fill(ours)) == repr(fill(theirs))
    assert repr(ours.set_module_name("b", qconfig.default_qconfig)).count("\n") == 11
    assert fill(QConfigMapping()).to_dict() == fill(torch_mapping.QConfigMapping()).to_dict()


def test_equalization_has_mappings_too() -> None:
    mapping = QConfigMapping().set_object_type("nn.Linear", default_equalization_qconfig)
    assert mapping.object_type_qconfigs["torch.nn.Linear"] is default_equalization_qconfig


@pytest.mark.parametrize(
    "name", ["get_default_qconfig_mapping", "get_default_qat_qconfig_mapping"]
)
@pytest.mark.parametrize("arguments", [("arm",), ("fbgemm", 2)])
def test_unknown_backends_and_versions(name: str, arguments: Any) -> None:
    with pytest.raises(AssertionError):
        getattr(torch_mapping, name)(*arguments)
    with pytest.raises(VerifyError, match="must be"):
        getattr(qconfig_mapping, name)(*arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda m: m.set_global(torch_qconfig.default_qconfig), "from_torch_config"),
        (lambda m: m.set_global("fbgemm"), "expected a QConfig"),
        (lambda m: m.set_object_type(5, None), "expected a class"),
        (lambda m: m.set_object_type("view", 1), "expected a QConfig"),
        (lambda m: m.set_module_name_regex("(", None), "not a regular expression"),
        (lambda m: m.set_module_name_regex(b"a", None), "must be a str"),
        (lambda m: m.set_module_name_regex("a", 1), "expected a QConfig"),
        (lambda m: m.set_module_name(torch.nn.Linear, None), "must be a str"),
        (lambda m: m.set_module_name("a", 1), "expected a QConfig"),
        (lambda m: m.set_module_name_object_type_order(1, "view", 0, None), "must be a str"),
        (lambda m: m.set_module_name_object_type_order("a", 1, 0, None), "expected a class"),
        (lambda m: m.set_module_name_object_type_order("a", "view", "0", None), "must be an int"),
        (lambda m: m.set_module_name_object_type_order("a", "view", True, None), "must be an int"),
        (lambda m: m.set_module_name_object_type_order("a", "view", 0, 1), "expected a QConfig"),
        (lambda m: m.from_dict({"object_type": [("view",)]}), "expected tuples of 2"),
        (lambda m: m.from_dict({"module_name": ["ab"]}), "expected tuples of 2"),
        (lambda m: m.from_dict({"module_name_object_type_order": [("a",)]}), "of 4"),
    ],
)
def test_errors(wrong: Callable[[QConfigMapping], Any], message: str) -> None:
    mapping = QConfigMapping()
    with pytest.raises(VerifyError, match=message) as error:
        wrong(mapping)
    assert "\n" not in str(error.value)
    assert described.qconfig_mapping(mapping) == described.qconfig_mapping(QConfigMapping())


def test_names_of_torch_are_here() -> None:
    assert [n for n in torch_mapping.__all__ if not hasattr(qconfig_mapping, n)] == []
