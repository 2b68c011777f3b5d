"""What graph mode works on and returns: a model that is called, observed, trained or converted."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from refquant.importers.fx import graph_of
from refquant.ir.errors import VerifyError
from refquant.ir.execute import check_inputs
from refquant.ir.graph import Graph
from refquant.ir.module import Module
from refquant.ir.program import Program
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.types import Dim, TensorType
from refquant.stateful import StateDict, as_array


class GraphModule:
    """A model as calls, and, as soon as it is run or printed, as a dataflow graph.

    Parameters
    ----------
    program : Program
        The calls and modules.
    types : sequence of TensorType, optional
        Of the inputs; without them the first call of the model tells.
    target : str
        The machine it is for.

    Attributes that a custom config preserves are attributes here, and so is
    ``original_weights_lookup`` where convert kept the float weights.
    """

    def __init__(
        self, program: Program, types: Sequence[TensorType] = (), target: str = "fbgemm"
    ) -> None:
        self.program = program
        self.types = tuple(types)
        self.target = target
        self._graph: Graph | None = None
        if "original_weights_lookup" in program.meta:
            self.original_weights_lookup = program.meta["original_weights_lookup"]

    @property
    def graph(self) -> Graph:
        """The dataflow graph, with the observers' present state.

        Raises
        ------
        VerifyError
            If the types of the inputs are not known.
        UnsupportedError
            Listing every call that has no rule.
        """
        graph = self._dataflow()
        for path, module in graph.modules.items():
            live = self.program.root.get(path)
            if not isinstance(live, Module):
                module.state = dict(live.state_dict())
        return graph

    def _dataflow(self) -> Graph:
        if self._graph is None:
            if not self.types:
                raise VerifyError(
                    "the types of the inputs are not known; give prepare_fx example_inputs"
                )
            types = [_example(t) for t in self.types]
            self._graph = graph_of(self.program, types, target=self.target, batch="N")
        return self._graph

    def __call__(self, *inputs: Tensor) -> Any:
        """Run the model; observers take note of what they see."""
        return self.run(*inputs).outputs

    def run(self, *inputs: Tensor, **options: Any) -> Any:
        """Run the model as :meth:`Graph.run` does; observers take note of what they see."""
        if not self.types or not self._takes(inputs):
            self.types, self._graph = tuple(map(type_of, inputs)), None
        graph = self._dataflow()
        live = {
            path: found for path in graph.modules if callable(found := self.program.root.get(path))
        }
        return graph.run(*inputs, modules=live, **options)

    def _takes(self, inputs: tuple[Tensor, ...]) -> bool:
        """Whether the graph as it is was made for such inputs; else it is made again."""
        try:
            check_inputs(self._dataflow(), inputs)
        except VerifyError:
            return len(inputs) != len(self.types) or not all(
                isinstance(value, np.ndarray | QTensor) for value in inputs
            )
        return True

    def train(self, mode: bool = True) -> GraphModule:
        """Put all modules into training mode, or out of it."""
        for _, module in self.program.root.named_modules():
            if isinstance(module, Module):
                module.training = mode
        self._graph = None
        return self

    def eval(self) -> GraphModule:
        """Put all modules into evaluation mode."""
        return self.train(False)

    def state_dict(self) -> StateDict:
        """Return all parameters, buffers and statistics under torch's names."""
        state = StateDict()
        for path, module in self.program.root.named_modules(shared=True):
            prefix = f"{path}." if path else ""
            if isinstance(module, Module):
                state.update(
                    (prefix + key, value)
                    for key, value in module.state.items()
                    if value is not None and key not in module.plain
                )
            else:
                own = module.state_dict()
                state.update({prefix + key: value for key, value in own.items()})
                for place, metadata in own._metadata.items():
                    state._metadata[(prefix + place).rstrip(".")] = metadata
        return state

    def load_state_dict(self, state_dict: Any) -> None:
        """Take over parameters and statistics of the same model; all of them, or on an error none.

        Parameters
        ----------
        state_dict : mapping of str to arrays or torch tensors
            As ``state_dict()`` of this model or of torch's returns it.

        Raises
        ------
        VerifyError
            If a name is missing, or a shape does not fit.
        """
        loaded: list[tuple[Module, str, Any]] = []
        live: dict[str, Any] = {}
        for path, module in self.program.root.named_modules(shared=True):
            if not isinstance(module, Module):
                live[path] = module
                continue
            for name, value in module.state.items():
                if value is not None and name not in module.plain and hasattr(value, "shape"):
                    key = f"{path}.{name}" if path else name
                    loaded.append((module, name, _like(key, value, state_dict)))
        parts = _by_path(state_dict, live)
        with ExitStack() as restored:
            for path, module in live.items():
                restored.enter_context(module.unchanged_on_error())
                try:
                    module.load_state_dict(parts[path])
                except VerifyError as error:
                    raise VerifyError(f"{path}: {error}") from None
        for module, name, value in loaded:
            module.state[name] = value
        self._graph = None

    def copy(self) -> GraphModule:
        """Return a copy with observers of its own."""
        made = GraphModule(self.program.copy(), self.types, self.target)
        own = vars(made)
        vars(made).update({name: value for name, value in vars(self).items() if name not in own})
        return made

    __copy__ = copy

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        return self.copy()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the dataflow graph; see :meth:`Graph.save`."""
        self.graph.save(path)

    def __str__(self) -> str:
        return str(self.graph) if self.types else str(self.program)


def _like(key: str, value: Any, state_dict: Any) -> Any:
    if key not in state_dict:
        raise VerifyError(f"state_dict has no {key}")
    found = as_array(state_dict[key])
    if tuple(found.shape) != tuple(value.shape):
        raise VerifyError(
            f"state_dict: {key} has shape {list(found.shape)}, expected {list(value.shape)}"
        )
    return found


def _by_path(state_dict: Any, paths: Collection[str]) -> dict[str, StateDict]:
    """Return the part of a state below each path, with the version of its format."""
    found = {path: StateDict() for path in paths}
    for key, value in state_dict.items():
        for path in _above(key):
            if path in found:
                found[path][key[len(path) + 1 :]] = value
    for place, version in getattr(state_dict, "_metadata", {}).items():
        for path in (place, *_above(place)):
            if path in found:
                found[path]._metadata[place[len(path) + 1 :]] = version
    return found


def _above(key: str) -> Iterator[str]:
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _example(kind: TensorType) -> TensorType:
    """Return a type with lengths for symbols, which :func:`graph_of` makes symbolic again."""
    shape = tuple(2 * s.factor if isinstance(s, Dim) else s for s in kind.shape)
    return TensorType(kind.dtype, shape, kind.qparams)
