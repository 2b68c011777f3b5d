"""Observing weights when a model is converted."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.backend_config import BackendConfig
from refquant.fx.match import is_observer
from refquant.fx.node_qconfigs import QConfigAny
from refquant.importers.fx import graph_of
from refquant.ir.module import Module
from refquant.ir.program import Call, Program
from refquant.ir.types import (
    QScheme,
    per_channel_affine,
    per_channel_symmetric,
    per_tensor_affine,
    qint8,
)
from refquant.observer import PlaceholderObserver


def run_weight_observers(program: Program, backend: BackendConfig) -> None:
    """Show every observed weight of a function to its observer once more."""
    entries = backend._pattern_complex_format_to_config
    for call in program:
        if call.kind != "call_function":
            continue
        entry = entries.get(call.target)
        index = entry._input_type_to_index.get("weight") if entry else None
        for position, arg in enumerate(call.args):
            is_weight = position == index or call.kwargs.get("weight") is arg
            if isinstance(arg, Call) and is_weight:
                calls = producers(arg)
                if calls and any(_is_observed(program, made) for made in calls):
                    run_constant(program, calls)


def _is_observed(program: Program, call: Call) -> bool:
    return call.kind == "call_module" and is_observer(program.root.get(call.target))


def producers(call: Call) -> list[Call] | None:
    """Return the calls that compute a constant, in order; None if an input is among them."""
    found: dict[Call, None] = {}
    pending = [call]
    while pending:
        last = pending[-1]
        if last.kind == "placeholder":
            return None
        needed = [source for source in last.inputs if source not in found]
        if needed:
            pending += needed
        else:
            found[pending.pop()] = None
    return list(found)


def run_constant(program: Program, calls: list[Call]) -> Any:
    """Run calls that depend on no input; return the result of the last. Observers take note."""
    alone = Program(program.root)
    same: dict[Call, Call] = {}
    for call in calls:
        same[call] = alone.copy_call(call, same.__getitem__)
    alone.call("output", "output", (same[calls[-1]],))
    graph = graph_of(alone, (), batch=None)
    live = {path: program.root.get(path) for path in graph.modules}
    return graph.run(modules=live).outputs


def weight_qparams(
    module: Module, qconfig: QConfigAny, fake_quant: Any, run: bool
) -> dict[str, Any]:
    """Return the quantization parameters of a module's weight, or of each of its weights.

    Parameters
    ----------
    fake_quant : fake-quant or None
        Of a training module.
    run : bool
        Whether observer or fake-quant sees the weight once more.
    """
    name = module.kind.rpartition(".")[2]
    if name.endswith("Cell"):
        found = {}
        for weight in ("weight_ih", "weight_hh"):
            observer = qconfig.weight()
            observer(module.state[weight])
            found[weight] = qparam_dict(observer)
        return found
    if name in ("LSTM", "GRU"):
        found = {}
        for weight, value in module.state.items():
            if weight.startswith("weight"):
                observer = qconfig.weight()
                if observer.dtype == qint8:
                    observer(value)
                found[weight] = qparam_dict(observer)
        return found
    observer = qconfig.weight() if fake_quant is None else fake_quant
    if run:
        observer(module.state["weight"])
    return qparam_dict(observer)


def qparam_dict(observer: Any) -> dict[str, Any]:
    """Return the quantization parameters of an observer or fake-quant by name."""
    qscheme = getattr(observer, "qscheme", None)
    if not qscheme or isinstance(observer, PlaceholderObserver):
        return {"qscheme": None, "dtype": observer.dtype}
    qscheme = QScheme(qscheme)
    made: dict[str, Any] = {"qscheme": qscheme, "dtype": observer.dtype}
    if qscheme.is_per_channel:
        made["qscheme"] = per_channel_affine if qscheme == per_channel_symmetric else qscheme
        made["axis"] = observer.ch_axis
    else:
        made["qscheme"] = per_tensor_affine
    scale, zero_point = observer.calculate_qparams()
    made |= {"scale": np.asarray(scale), "zero_point": np.asarray(zero_point)}
    for limit in ("quant_min", "quant_max"):
        if hasattr(observer, limit):
            made[limit] = getattr(observer, limit)
    return made
