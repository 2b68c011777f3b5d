"""Settings that leave few traces in a graph: qconfigs on modules, entries in training."""

from __future__ import annotations

import copy
from typing import Any

import flows
import pytest
import torch
from torch import nn
from torch.ao.quantization import (
    default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    quantize_fx,
)

from refquant import quantize_fx as ours_fx
from refquant.compare import graph_diff
from refquant.importers import from_torch_config
from refquant.ir.module import Module

X = (torch.zeros(2, 4),)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid())


def with_qconfig(root: Any) -> set[str]:
    if isinstance(root, nn.Module):
        return {path for path, part in root.named_modules() if getattr(part, "qconfig", None)}
    modules = [(p, m) for p, m in root.program.root.named_modules() if isinstance(m, Module)]
    return {path for path, module in modules if module.config.get("qconfig") is not None}


@pytest.mark.parametrize("form", ["convert_fx", "convert_to_reference_fx"])
@pytest.mark.parametrize("remove", [True, False])
def test_qconfigs_are_removed_or_kept(form: str, remove: bool) -> None:
    mapping = get_default_qconfig_mapping("fbgemm")
    with flows.fbgemm():
        theirs = quantize_fx.prepare_fx(model().eval(), mapping, X)
        theirs(*X)
        ours = ours_fx.prepare_fx(model().eval(), from_torch_config(mapping), X)
        ours(*(x.numpy() for x in X))
        expected = with_qconfig(getattr(quantize_fx, form)(theirs, _remove_qconfig=remove))
    made = with_qconfig(getattr(ours_fx, form)(ours, _remove_qconfig=remove))
    assert bool(made) is not remove or form == "convert_fx"
    assert made - {""} == {path for path in expected - {""} if made or not remove}


@pytest.mark.parametrize("kind", [nn.Linear, nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("qconfig", [None, default_qat_qconfig])
def test_entries_by_object_type_hold_in_training(kind: type, qconfig: Any) -> None:
    mapping = get_default_qat_qconfig_mapping("fbgemm")
    for part in (kind, nn.ReLU) if kind is nn.Linear else (kind,):
        mapping.set_object_type(part, qconfig)
    net = model().train()
    if kind is nn.ReLU:  # fused parts need one qconfig
        net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.ReLU(), nn.Linear(4, 4)).train()
    with flows.fbgemm():
        if kind is nn.Linear and qconfig is None:  # inside a fused module that has one
            with pytest.raises(AssertionError, match="qconfig must be provided"):
                quantize_fx.prepare_qat_fx(copy.deepcopy(net), mapping, X)
            with pytest.raises(AssertionError, match="must have a qconfig"):
                ours_fx.prepare_qat_fx(net, from_torch_config(mapping), X)
            return
        theirs = quantize_fx.prepare_qat_fx(copy.deepcopy(net), mapping, X)
    ours = ours_fx.prepare_qat_fx(net, from_torch_config(mapping), X)
    assert not graph_diff(ours, theirs)
