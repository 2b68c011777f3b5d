"""The observers and fake-quants of a graph as objects."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from refquant import fake_quantize, observer
from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Graph
from refquant.ir.module import Module
from refquant.ir.qtensor import Array
from refquant.ir.types import QScheme
from refquant.stateful import StateDict, Stateful

_OTHER_NAMES = {"_LearnableFakeQuantize": "LearnableFakeQuantize"}


def observer_of(module: Module) -> Any:
    """Return the observer or fake-quant that a graph's module stands for, as an object.

    Parameters
    ----------
    module : Module
        From ``graph.modules``. The object has its own copy of the state.

    Returns
    -------
    ObserverBase or FakeQuantizeBase

    Raises
    ------
    UnsupportedError
        If the class is none of torch's.

    Examples
    --------
    >>> state = {"eps": np.float32([1e-7]), "min_val": np.float32(-1), "max_val": np.float32(3)}
    >>> module = Module("torch.ao.quantization.observer.MinMaxObserver", {}, state)
    >>> observer_of(module).calculate_qparams()
    (array([0.01568628], dtype=float32), array([64], dtype=int32))
    """
    inner = {
        key.partition(".")[2]: value
        for key, value in module.config.items()
        if key.startswith("observer.")
    }
    own = {key: value for key, value in module.config.items() if not key.startswith("observer")}
    if "observer" in module.config:
        kind = str(module.config["observer"])
        part = Module(kind, inner, _below(module.state, "activation_post_process"))
        made = _construct(module.kind, own, module.state, lambda **_: observer_of(part))
    else:
        made = _construct(module.kind, own, module.state)
    state = StateDict(module.state)
    for place, owner in made.named_modules():
        state._metadata[place] = {"version": owner._version}
    made.load_state_dict(state, strict=False)
    return made


def _construct(
    kind: str, config: Mapping[str, Any], state: Mapping[str, Array], *inner: Any
) -> Any:
    name = kind.rpartition(".")[2]
    name = _OTHER_NAMES.get(name, name)
    cls = getattr(observer, name, None) or getattr(fake_quantize, name, None)
    if cls is None or not kind.startswith("torch.ao.quantization"):
        raise UnsupportedError(f"{kind} is not an observer or fake-quant of torch")
    settings = dict(config)
    if "qscheme" in settings:
        settings["qscheme"] = QScheme(settings["qscheme"])
    accepted = inspect.signature(cls).parameters
    given = {key: settings[key] for key in accepted if key in settings}
    for key in ("quant_min", "quant_max", "reduce_range"):  # the range itself is set below
        given.pop(key, None)
    if "scale" in accepted and "channel_len" not in accepted:
        given |= {"scale": float(state["scale"][0]), "zero_point": int(state["zero_point"][0])}
    if "channel_len" in accepted:
        length = len(state["scale"])
        given |= {"quant_min": settings["quant_min"], "quant_max": settings["quant_max"]}
        given["channel_len"] = length if length > 1 else -1
    made = cls(*inner, **given)
    for key, value in settings.items():
        if key in vars(made):
            setattr(made, key, value)
    return made


def _below(state: Mapping[str, Array], part: str) -> dict[str, Array]:
    return {
        key.removeprefix(f"{part}."): value
        for key, value in state.items()
        if key.startswith(f"{part}.")
    }


def get_observer_dict(
    model: Graph | Stateful, target_dict: dict[str, Any], prefix: str = ""
) -> None:
    """Add all observers of a model to a dictionary, under their dotted names.

    Parameters
    ----------
    model : Graph or fake-quant
        Fake-quants give the observer in them, under ``name.activation_post_process``.
    target_dict : dict
        Gets an object for each observer, with its own copy of the statistics.
    prefix : str
        Put before the names.

    Examples
    --------
    >>> found = {}
    >>> get_observer_dict(fake_quantize.default_weight_fake_quant(), found, "conv")
    >>> list(found)
    ['conv.activation_post_process']
    """
    roots: dict[str, Any] = {prefix: model}
    if isinstance(model, Graph):
        roots = {
            f"{prefix}.{path}" if prefix else path: observer_of(module)
            for path, module in model.modules.items()
        }
    for path, root in roots.items():
        parts = root.named_modules(path)
        target_dict.update(
            (place, part) for place, part in parts if isinstance(part, observer.ObserverBase)
        )
