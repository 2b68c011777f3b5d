"""QConfigs against torch's: every predefined one constructs what torch's constructs."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from oracle import to_torch
from torch.ao.quantization import qconfig as torch_qconfig

import refquant
from refquant import qconfig
from refquant.factory import Factory
from refquant.ir.errors import VerifyError
from refquant.observer import MinMaxObserver

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
NAMES = [
    name for name in vars(torch_qconfig) if name.endswith(("_qconfig", "qconfig_4bit", "_v2"))
]
NAMES = [name for name in NAMES if isinstance(getattr(torch_qconfig, name), torch_qconfig.QConfig)]


def describe(constructor: Any) -> Any:
    """Return a constructor's class name and arguments, ours and torch's alike."""
    if isinstance(constructor, Factory | torch_qconfig._PartialWrapper):
        inner: functools.partial[Any] = constructor.p
        keywords = {
            key: describe(value) if callable(value) else to_torch(value)
            for key, value in inner.keywords.items()
        }
        return describe(inner.func), inner.args, keywords
    return getattr(constructor, "__name__", constructor)


def assert_same(ours: Any, theirs: Any) -> None:
    assert describe(ours.activation) == describe(theirs.activation)
    assert describe(ours.weight) == describe(theirs.weight)


@pytest.mark.parametrize("name", NAMES)
def test_predefined(name: str) -> None:
    assert_same(getattr(qconfig, name), getattr(torch_qconfig, name))


def test_all_are_here() -> None:
    assert len(NAMES) >= 20
    missing = [name for name in torch_qconfig.__all__ if not hasattr(qconfig, name)]
    assert missing == ["get_default_qconfig_dict", "get_default_qat_qconfig_dict", "QConfigAny"]


@pytest.mark.parametrize("backend", qconfig.BACKENDS)
def test_defaults_of_a_backend(backend: str) -> None:
    ours = qconfig.get_default_qconfig(backend)
    assert_same(ours, torch_qconfig.get_default_qconfig(backend))
    for version in (0, 1):
        assert_same(
            qconfig.get_default_qat_qconfig(backend, version),
            torch_qconfig.get_default_qat_qconfig(backend, version),
        )


@pytest.mark.parametrize("name", ["get_default_qconfig", "get_default_qat_qconfig"])
@pytest.mark.parametrize("arguments", [("arm",), ("fbgemm", 2)])
def test_unknown_backends_and_versions(name: str, arguments: Any) -> None:
    with pytest.raises(AssertionError):
        getattr(torch_qconfig, name)(*arguments)
    with pytest.raises(VerifyError, match="must be") as error:
        getattr(qconfig, name)(*arguments)
    assert isinstance(error.value, AssertionError)


def test_equality_is_torchs() -> None:
    pairs = [(getattr(qconfig, name), getattr(torch_qconfig, name)) for name in NAMES]
    pairs += [
        (getattr(qconfig, maker)(name), getattr(torch_qconfig, maker)(name))
        for name in qconfig.BACKENDS
        for maker in ("get_default_qconfig", "get_default_qat_qconfig")
    ]
    for ours, theirs in [*pairs, (None, None)]:
        for other, their_other in [*pairs, (None, None)]:
            expected = torch_qconfig.qconfig_equals(theirs, their_other)
            assert qconfig.qconfig_equals(ours, other) == expected


def test_instances_are_refused() -> None:
    for make, instance in (
        (qconfig.QConfig, MinMaxObserver()),
        (torch_qconfig.QConfig, torch.ao.quantization.MinMaxObserver()),
    ):
        with pytest.raises(ValueError, match="instance"):
            make(activation=instance, weight=MinMaxObserver)
        with pytest.raises(ValueError, match="instance"):
            make(activation=MinMaxObserver, weight=instance)


def test_a_nested_factory_for_training() -> None:
    made = qconfig.QConfig(
        activation=refquant.fake_quantize.FakeQuantize.with_args(
            observer=MinMaxObserver.with_args(dtype=refquant.qint8)
        ),
        weight=refquant.fake_quantize.default_weight_fake_quant,
    )
    assert made.activation is not None
    assert made.activation().activation_post_process.dtype == refquant.qint8
    assert made.activation() is not made.activation()


def test_the_dynamic_variant_warns() -> None:
    with pytest.warns(FutureWarning, match="QConfigDynamic"):
        made = qconfig.QConfigDynamic(weight=MinMaxObserver)
    assert made.activation is qconfig.Identity
    assert made.activation()(5) == 5
    with pytest.warns(FutureWarning), pytest.raises(VerifyError, match="instance"):
        qconfig.QConfigDynamic(weight=MinMaxObserver())
