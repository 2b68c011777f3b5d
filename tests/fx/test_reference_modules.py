"""Reference modules: the attributes and buffers of torch's from_float, for every qparams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flows
import numpy as np
import pytest
import torch
import torch.ao.nn.quantized.reference as nnqr
from ledger import Ledger
from torch import nn
from torch.ao.quantization.observer import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    default_float_qparams_observer,
    default_float_qparams_observer_4bit,
    default_per_channel_weight_observer,
    default_weight_observer,
)
from torch.ao.quantization.utils import get_qparam_dict

from refquant.fx.reference_modules import reference_module
from refquant.importers.fx_torch import to_tensor
from refquant.importers.torch_capture import capture_graph_module, plain_value
from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Program
from refquant.ir.types import per_channel_affine_float_qparams, per_tensor_symmetric, qint8
from refquant.program_diff import program_diff

WEIGHTED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "Linear": ("Linear", lambda: nn.Linear(3, 4)),
    "Linear without bias": ("Linear", lambda: nn.Linear(3, 4, bias=False)),
    **{
        f"{kind}{rank}d{what}": (
            f"{kind}{rank}d",
            lambda kind=kind, rank=rank, bias=bias: getattr(nn, f"{kind}{rank}d")(
                4, 6, 3, 2, 1, groups=2, bias=bias
            ),
        )
        for rank in (1, 2, 3)
        for kind in ("Conv", "ConvTranspose")
        for what, bias in (("", True), (" without bias", False))
    },
    "Conv2d same": ("Conv2d", lambda: nn.Conv2d(3, 4, 3, padding="same")),
    "Conv2d valid": ("Conv2d", lambda: nn.Conv2d(3, 4, 3, padding="valid")),
    "Conv2d circular": ("Conv2d", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular")),
}
TABLES: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "Embedding": ("Embedding", lambda: nn.Embedding(5, 4, padding_idx=2, max_norm=1.0)),
    "EmbeddingBag": ("EmbeddingBag", lambda: nn.EmbeddingBag(5, 4, include_last_offset=True)),
}
RECURRENT: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "LSTM": ("LSTM", lambda: nn.LSTM(3, 4, 2, bidirectional=True, dropout=0.5)),
    "LSTM with projection": ("LSTM", lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True)),
    "GRU without bias": ("GRU", lambda: nn.GRU(3, 4, bias=False)),
    "LSTMCell": ("LSTMCell", lambda: nn.LSTMCell(3, 4)),
    "GRUCell": ("GRUCell", lambda: nn.GRUCell(3, 4, bias=False)),
    "RNNCell": ("RNNCell", lambda: nn.RNNCell(3, 4, nonlinearity="relu")),
}
OBSERVERS: dict[str, Any] = {
    "by tensor": default_weight_observer,
    "by channel": default_per_channel_weight_observer,
    "by channel along axis 1": PerChannelMinMaxObserver.with_args(ch_axis=1, dtype=torch.quint8),
    "quint8": MinMaxObserver.with_args(dtype=torch.quint8, quant_min=0, quant_max=200),
    "qint32": MinMaxObserver.with_args(dtype=torch.qint32, quant_min=-(2**20), quant_max=2**20),
    "uint8": MinMaxObserver.with_args(dtype=torch.uint8),
    "float16": PlaceholderObserver.with_args(dtype=torch.float16),
}
FLOAT_QPARAMS = {
    "8 bits": default_float_qparams_observer,
    "4 bits": default_float_qparams_observer_4bit,
}


def ours(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return to_tensor(value.clone())
    if isinstance(value, dict):
        return {key: ours(part) for key, part in value.items()}
    return plain_value(value)


def program_of(module: nn.Module) -> Program:
    """Return a program that calls the module."""
    graph = torch.fx.Graph()
    graph.output(graph.call_module("m", (graph.placeholder("x"),)))
    return capture_graph_module(torch.fx.GraphModule({"m": module}, graph))


def assert_reference(ledger: Ledger, name: str, module: nn.Module, qparams: Any) -> None:
    with flows.fbgemm():
        expected = program_of(getattr(nnqr, name).from_float(module, qparams))
        found = program_of(module)
    found.root.parts["m"] = reference_module(found.root.parts["m"], ours(qparams))
    diff = program_diff(found, expected)
    ledger.run("reference module from_float", not diff, str(diff))


def qparams_of(observer: Any, weight: torch.Tensor) -> dict[str, Any]:
    with flows.fbgemm():
        made = observer()
        made(weight)
        return dict(get_qparam_dict(made))


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_as_torch(name: str, observer: str, decomposed: bool, ledger: Ledger) -> None:
    torch.manual_seed(0)
    kind, make = WEIGHTED[name]
    module = make()
    qparams = {"is_decomposed": decomposed, **qparams_of(OBSERVERS[observer], module.weight)}
    assert_reference(ledger, kind, module, qparams)


@pytest.mark.parametrize("observer", FLOAT_QPARAMS)
@pytest.mark.parametrize("name", TABLES)
def test_tables_as_torch(name: str, observer: str, ledger: Ledger) -> None:
    torch.manual_seed(0)
    kind, make = TABLES[name]
    module = make()
    qparams = {"is_decomposed": False, **qparams_of(FLOAT_QPARAMS[observer], module.weight)}
    assert_reference(ledger, kind, module, qparams)


@pytest.mark.parametrize("observer", ["by tensor", "by channel", "quint8", "float16"])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_as_torch(name: str, observer: str, ledger: Ledger) -> None:
    torch.manual_seed(0)
    kind, make = RECURRENT[name]
    module = make()
    qparams: dict[str, Any] = {"is_decomposed": False}
    for key, value in module.named_parameters():
        if key.startswith("weight"):
            qparams[key] = qparams_of(OBSERVERS[observer], value)
    assert_reference(ledger, kind, module, qparams)


def test_numbers_become_buffers_as_in_torch(ledger: Ledger) -> None:
    qparams = {"dtype": torch.qint8, "scale": 0.1, "zero_point": 3, "is_decomposed": False}
    by_tensor = {"qscheme": torch.per_tensor_affine, **qparams}
    assert_reference(ledger, "Linear", nn.Linear(3, 4), by_tensor)


def linear() -> Module:
    config = {"in_features": 1, "out_features": 1}
    return Module("torch.nn.Linear", config, {"weight": np.ones((1, 1), np.float32), "bias": None})


def test_weights_are_shared_and_qparams_are_not() -> None:
    scale, source = np.float32([0.5]), linear()
    qparams = {"qscheme": None, "dtype": qint8, "scale": scale, "zero_point": np.array([0])}
    made = reference_module(source, qparams)
    assert made.weight is source.weight
    assert made.weight_scale is not scale


@pytest.mark.parametrize(
    ("module", "scheme", "message"),
    [
        (Module("torch.nn.ReLU"), None, "torch.nn.ReLU has no reference module; use torch.nn.Lin"),
        (Module("torch.ao.nn.qat.Linear"), None, "torch.ao.nn.qat.Linear has no reference module"),
        (linear(), per_tensor_symmetric, "reference.Linear: the weight's scheme is one of None, "),
    ],
)
def test_refused(module: Module, scheme: Any, message: str) -> None:
    qparams = {"qscheme": scheme, "dtype": qint8, "scale": 1.0, "zero_point": 0}
    with pytest.raises(VerifyError, match=message):
        reference_module(module, qparams)


def test_float_qparams_are_for_tables_only() -> None:
    cell = {"input_size": 1, "hidden_size": 1, "bias": False}
    module = Module("torch.nn.LSTMCell", cell)
    weight = {"qscheme": per_channel_affine_float_qparams, "dtype": qint8}
    with pytest.raises(VerifyError, match=r"reference\.LSTMCell: the weight's scheme is one of"):
        reference_module(module, {"weight_ih": weight, "is_decomposed": False})
