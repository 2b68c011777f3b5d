"""torch's own defects: reproduced with a warning, fixed, or refused; every one has a case."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import flows
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import (
    MinMaxObserver,
    QConfig,
    QConfigMapping,
    default_dynamic_qconfig,
    default_qconfig,
    default_reuse_input_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    quantize_fx,
)
from torch.ao.quantization.fx._equalize import default_equalization_qconfig
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig

from refquant import quantize_fx as ours_fx
from refquant.defects import DEFECTS, TorchDefectWarning
from refquant.importers import from_torch_config
from refquant.importers.torch_capture import capture_graph_module
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.program_diff import program_diff


class Body(nn.Module):
    """A model of some parts and a forward function."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Floating(nn.Module):
    """A custom module; its class is what matters."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class ObservedFloating(Floating):
    @classmethod
    def from_float(cls, module: Floating) -> ObservedFloating:
        return cls()


class Ours(Module):
    """What takes its place here."""

    @classmethod
    def from_float(cls, module: Module) -> Ours:
        return cls("mine.Observed", dict(module.config))


def default() -> QConfigMapping:
    return get_default_qconfig_mapping("fbgemm")


@dataclass
class Case:
    """A model in which torch has the defect, and how to see the fix in our graph."""

    model: nn.Module
    fixed: Callable[[str], bool]
    mapping: QConfigMapping = field(default_factory=default)
    shape: tuple[int, ...] = (2, 4)
    qat: bool = False
    convert: bool = False
    calibrates: bool = True
    options: Callable[[bool], dict[str, Any]] = lambda mine: {}


def fixed_without_observer() -> QConfigMapping:
    return QConfigMapping().set_global(default_qconfig)


def unsupported_weight() -> QConfigMapping:
    weight = MinMaxObserver.with_args(dtype=torch.quint8)
    qconfig = QConfig(default_qconfig.activation, weight)
    return QConfigMapping().set_global(default_qconfig).set_module_name("second", qconfig)


def equalized(mine: bool) -> dict[str, Any]:
    mapping = QConfigMapping().set_module_name("second", default_equalization_qconfig)
    return {"_equalization_config": from_torch_config(mapping) if mine else mapping}


def custom(mine: bool) -> dict[str, Any]:
    config = PrepareCustomConfig()
    config.set_float_to_observed_mapping(Floating, ObservedFloating)
    if not mine:
        return {"prepare_custom_config": config}
    translated = from_torch_config(config)
    (kind,) = translated.float_to_observed_mapping
    (name,) = translated.float_to_observed_mapping[kind]
    translated.float_to_observed_mapping[kind] = {name: Ours}
    return {"prepare_custom_config": translated}


CASES: dict[str, Callable[[], Case]] = {
    "dropped-alpha": lambda: Case(
        Body(
            lambda s, x: torch.add(s.first(x), s.second(x), alpha=2),
            first=nn.Linear(4, 4),
            second=nn.Linear(4, 4),
        ),
        lambda text: "torch.add" in text,
        convert=True,
    ),
    "shared-module-fusion": lambda: Case(
        Body(lambda s, x: s.first(F.relu(s.first(x))), first=nn.Linear(4, 4)),
        lambda text: "LinearReLU" not in text,
    ),
    "declared-not-observed": lambda: Case(
        Body(lambda s, x: s.second(x.reshape(2, 4)), second=nn.Linear(4, 4)),
        lambda text: "(reshape) : torch.ao" in text,
    ),
    "fixed-qparams-ignored": lambda: Case(
        Body(
            lambda s, x: s.second(torch.sigmoid(s.first(x))),
            first=nn.Linear(4, 4),
            second=nn.Linear(4, 4),
        ),
        lambda text: "sigmoid(dequantize" in text,
        mapping=fixed_without_observer(),
        convert=True,
    ),
    "fixed-qparams-input": lambda: Case(
        Body(lambda s, x: torch.sigmoid(x)),
        lambda text: "HistogramObserver" in text,
    ),
    "float-module-between-quantizers": lambda: Case(
        Body(lambda s, x: s.second(s.first(x)), first=nn.Linear(4, 4), second=nn.Linear(4, 4)),
        lambda text: "activation_post_process_2" not in text,
        mapping=unsupported_weight(),
    ),
    "equalized-shared-observer": lambda: Case(
        Body(
            lambda s, x: s.second(s.pool(s.first(x))),
            first=nn.Linear(4, 4),
            pool=nn.MaxPool1d(1),
            second=nn.Linear(4, 4),
        ),
        lambda text: True,
        options=equalized,
        convert=True,
    ),
    "dynamic-custom-module": lambda: Case(
        Body(lambda s, x: s.second(s.mine(x)), mine=Floating(), second=nn.Linear(4, 4)),
        lambda text: "mine.Observed" in text,
        mapping=QConfigMapping().set_global(default_dynamic_qconfig),
        options=custom,
        calibrates=False,
    ),
    "regex-none-in-training": lambda: Case(
        Body(lambda s, x: s.second(s.first(x)), first=nn.Linear(4, 4), second=nn.Linear(4, 4)),
        lambda text: "torch.nn.Linear" in text,
        mapping=get_default_qat_qconfig_mapping("fbgemm").set_module_name_regex("fir.*", None),
        qat=True,
    ),
    "tuple-counts-as-tensor": lambda: Case(
        Body(
            lambda s, x: s.first(x).view(x.size()[:-1] + (2, 2)),  # noqa: RUF005 the sum is meant
            first=nn.Linear(4, 4),
        ),
        lambda text: "(add" not in text,
        mapping=QConfigMapping().set_global(default_qconfig),
        calibrates=False,
    ),
    "observed-tuple": lambda: Case(
        Body(
            lambda s, x: s.pool(s.first(x))[0],
            first=nn.Conv1d(4, 4, 1),
            pool=nn.MaxPool1d(2, return_indices=True),
        ),
        lambda text: (
            "(pool"
            not in text.replace("getitem(pool", "").replace(
                "getitem = call_function operator.getitem(pool", ""
            )
        ),
        shape=(2, 4, 6),
        calibrates=False,
    ),
}


def both(case: Case) -> tuple[Any, Any]:
    """Prepare, and if the defect shows only there convert, with torch and with ours."""
    example = (torch.randn(case.shape, generator=torch.Generator().manual_seed(0)),)
    model = case.model.train() if case.qat else case.model.eval()
    name = "prepare_qat_fx" if case.qat else "prepare_fx"
    with flows.fbgemm():
        theirs = getattr(quantize_fx, name)(
            copy.deepcopy(model), case.mapping, example, **case.options(False)
        )
    mapping = from_torch_config(case.mapping)
    return theirs, lambda quirks: getattr(ours_fx, name)(
        model, mapping, example, quirks=quirks, **case.options(True)
    )


def finish(case: Case, prepare: Callable[[str], Any], quirks: str) -> Any:
    made = prepare(quirks)
    if case.convert:
        made(torch.randn(case.shape, generator=torch.Generator().manual_seed(1)).numpy())
        made = ours_fx.convert_fx(made, quirks=quirks)  # type: ignore[arg-type]
    return made


def described(made: Any) -> str:
    """The calls of a program with the classes of their modules."""
    program = made.program
    lines = str(program).splitlines()
    kinds = {call.name: module.kind for call, module in program.owners()}
    return "\n".join(f"{line} : {kinds.get(line.partition(' ')[0], '')}" for line in lines)


def test_every_defect_has_a_case_and_a_place_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "defects.md").read_text()
    assert set(CASES) == set(DEFECTS)
    assert all(f"`{name}`" in page for name in DEFECTS)


@pytest.mark.parametrize("name", DEFECTS)
def test_torchs_graph_comes_with_one_warning(name: str) -> None:
    case = CASES[name]()
    theirs, prepare = both(case)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ours = prepare("torch")
        assert not program_diff(ours.program, capture_graph_module(theirs))
        if case.convert:
            with flows.fbgemm():
                theirs(*flows.batches(case.shape, 1))
                theirs = quantize_fx.convert_fx(theirs)
            ours(flows.batches(case.shape, 1)[0].numpy())
            ours = ours_fx.convert_fx(ours)
    found = [w for w in seen if issubclass(w.category, TorchDefectWarning)]
    texts = [str(w.message) for w in found]
    assert any(f"({name})" in text for text in texts), texts
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize("name", DEFECTS)
def test_the_fix_is_in_the_graph(name: str) -> None:
    case = CASES[name]()
    _, prepare = both(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchs = finish(case, prepare, "torch") if case.calibrates else prepare("torch")
        warnings.simplefilter("error", TorchDefectWarning)
        fixed = finish(case, prepare, "fixed")
    assert program_diff(fixed.program, torchs.program)
    assert case.fixed(described(fixed)), described(fixed)


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_can_be_refused(name: str) -> None:
    case = CASES[name]()
    _, prepare = both(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(VerifyError, match=name):
            finish(case, prepare, "reject")


def test_an_unknown_mode_is_refused() -> None:
    case = CASES["fixed-qparams-input"]()
    _, prepare = both(case)
    with pytest.raises(VerifyError, match="'torch', 'fixed' or 'reject'"):
        prepare("ignore")


def test_a_model_without_defects_is_silent() -> None:
    model = Body(lambda s, x: F.relu(s.first(x)), first=nn.Linear(4, 4)).eval()
    mapping = from_torch_config(default())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", TorchDefectWarning)
        made = ours_fx.prepare_fx(model, mapping, (np.zeros((2, 4), np.float32),), quirks="reject")
        made(np.ones((2, 4), np.float32))
        ours_fx.convert_fx(made, quirks="reject")


def test_a_reused_input_observer_is_no_defect() -> None:
    model = Body(
        lambda s, x: s.second(s.first(x).reshape(2, 4)),
        first=nn.Linear(4, 4),
        second=nn.Linear(4, 4),
    ).eval()
    mapping = default().set_object_type("reshape", default_reuse_input_qconfig)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", TorchDefectWarning)
        ours_fx.prepare_fx(model, from_torch_config(mapping), (torch.zeros(2, 4),))
