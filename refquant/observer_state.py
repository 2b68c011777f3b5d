"""The statistics of all observers of a model, to save and to load."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.graph import Graph
from refquant.ir.qtensor import Array
from refquant.observer_base import UniformQuantizationObserverBase, caller, default_eps
from refquant.stateful import StateDict, Stateful, as_array


def get_observer_state_dict(model: Graph | Stateful) -> StateDict:
    """Return the statistics of all observers of a model, under torch's names.

    Parameters
    ----------
    model : Graph or an observer or fake-quant
        In a graph the names are those of ``graph.modules`` followed by the buffer's.

    Returns
    -------
    StateDict
        Copies of the arrays whose name contains ``activation_post_process``.
    """
    state = _state_of(model) if isinstance(model, Graph) else model.state_dict()
    chosen = StateDict((k, v) for k, v in state.items() if "activation_post_process" in k)
    chosen._metadata = state._metadata
    return chosen


def load_observer_state_dict(model: Graph | Stateful, obs_dict: Mapping[str, Any]) -> None:
    """Load the statistics of all observers of a model back; names it lacks are left as they are.

    As torch does, this sets every observer's eps to the default, with a warning where it was
    another, and takes names that fit no observer for no error, but warns if none fits.

    Parameters
    ----------
    model : Graph or an observer or fake-quant
        Of the structure that the statistics were taken from.
    obs_dict : mapping of str to arrays or torch tensors
        From ``get_observer_state_dict`` of refquant or of torch.

    Raises
    ------
    VerifyError
        If a shape does not fit; then nothing has changed.
    """
    loaded = {key: as_array(value) for key, value in obs_dict.items()}
    if isinstance(model, Graph):
        known = set(_state_of(model))
        _load_into_graph(model, loaded)
    else:
        known = set(model.state_dict())
        model.load_state_dict(loaded, strict=False)
    if loaded and known.isdisjoint(loaded):
        warnings.warn(
            f"load_observer_state_dict: no observer has any of {', '.join(loaded)}",
            UserWarning,
            stacklevel=caller(),
        )


def _load_into_graph(graph: Graph, loaded: dict[str, Array]) -> None:
    states = {path: dict(module.state) for path, module in graph.modules.items()}
    for path, state in states.items():
        for name, buffer in state.items():
            key = f"{path}.{name}"
            if name.rpartition(".")[2] == "eps":
                state[name] = default_eps(key, loaded.get(key), buffer)
            elif (value := loaded.get(key)) is not None:
                if value.shape != buffer.shape and not _may_grow(name):
                    raise VerifyError(
                        f"load_observer_state_dict: {key} has shape {list(value.shape)}, "
                        f"expected {list(buffer.shape)}"
                    )
                state[name] = value.astype(buffer.dtype)
    for path, module in graph.modules.items():
        if module.kind.endswith(".FixedQParamsFakeQuantize"):  # its buffers are the observer's
            for name in ("scale", "zero_point"):
                states[path][name] = states[path][f"activation_post_process.{name}"]
        module.state.update(states[path])


def _state_of(graph: Graph) -> StateDict:
    state = StateDict()
    for path, module in graph.modules.items():
        for name, value in module.state.items():
            key = f"{path}.{name}"
            state[key] = np.array(value)
            owner, _, buffer = key.rpartition(".")
            if buffer == "eps":  # the observers whose format has a version of its own
                state._metadata[owner] = {"version": UniformQuantizationObserverBase._version}
    return state


def _may_grow(name: str) -> bool:
    """Whether a buffer gets the length of the channels with the first data."""
    return name.rpartition(".")[2] in ("min_val", "max_val", "scale", "zero_point")
