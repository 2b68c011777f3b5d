"""The graph: values in single assignment, nodes in order, parameters and stateful modules."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, cast

from refquant.ir.errors import VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Program
from refquant.ir.qtensor import QTensor, Tensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import DType, Size, TensorType

Attribute = None | bool | int | float | str | DType | Size | tuple["Attribute", ...]
Executor = Literal["fast", "reference"]


@dataclass(frozen=True)
class Value:
    """What a node computes, an input, or a parameter; its name is unique in the graph."""

    name: str
    type: TensorType


class Scope(NamedTuple):
    """One enclosing module: its path in the model and its qualified class name."""

    path: str
    type: str


@dataclass(frozen=True)
class Origin:
    """Where a node came from, in the terms of the model that was imported.

    Parameters
    ----------
    kind : str
        ``call_module``, ``call_function``, ``call_method``, ``get_attr``, ``placeholder`` or
        ``onnx``.
    target : str
        Qualified name: of the module's class, of the function, or the method's bare name.
    node : str
        Name of the node in the imported graph; an imported node may become several of ours.
    path : str
        Path of the called module, or of the module that encloses the call.
    scope : tuple of Scope
        All enclosing modules, the outermost first.
    """

    kind: str
    target: str
    node: str
    path: str = ""
    scope: tuple[Scope, ...] = ()


@dataclass(frozen=True)
class Node:
    """One operation: ``outputs = op(inputs, attributes)``."""

    op: str
    inputs: tuple[Value | None, ...]
    attributes: Mapping[str, Attribute]
    outputs: tuple[Value, ...]
    origin: Origin | None = None

    @property
    def name(self) -> str:
        """Name of the first output, which names the node in reports."""
        return self.outputs[0].name

    def __str__(self) -> str:
        return f"{self.name} ({self.op})"


@dataclass(frozen=True)
class Absent:
    """A tensor of which only the type and the digest are known, as in a parsed text."""

    type: TensorType
    digest: str


class Result(NamedTuple):
    """What a run returned, and the values it was asked to record, by name."""

    outputs: Any
    values: dict[str, Tensor]


@dataclass(eq=False)
class Graph:
    """A model: inputs, nodes in order of execution, outputs, parameters and modules.

    Parameters
    ----------
    inputs : list of Value
        Arguments of the model. Equal symbols in their shapes are equal lengths.
    nodes : list of Node
        In an order in which every value is defined before it is used.
    outputs : tuple of Value
        The returned values.
    returns : nested tuple, list or dict of int
        How ``outputs`` are arranged in what the model returns: numbers index ``outputs``.
    parameters : dict
        Constants by the name of their value.
    modules : dict
        Stateful modules by path.
    provenance : dict of str
        Facts about where the model came from, such as the torch version and the target.
    program : Program, optional
        The calls that the graph was made from, which graph mode works on.
    """

    inputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: tuple[Value, ...] = ()
    returns: Any = 0
    parameters: dict[str, Tensor | Absent] = field(default_factory=dict)
    modules: dict[str, Module] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    program: Program | None = field(default=None, repr=False)
    _plans: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the plans, which hold functions and memory of this graph alone."""
        return {**vars(self), "_plans": {}}

    def __call__(self, *inputs: Tensor, executor: Executor = "fast") -> Any:
        """Run the model on arrays; the result is arranged as the model returns it."""
        return self.run(*inputs, executor=executor).outputs

    def run(
        self,
        *inputs: Tensor,
        target: Target | None = None,
        executor: Executor = "fast",
        record: bool | Collection[str] = False,
        observe: Callable[[Node, tuple[Tensor, ...]], None] | None = None,
        modules: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Result:
        """Run the model.

        Parameters
        ----------
        *inputs : ndarray or QTensor
            One for each of ``inputs``.
        target : Target, optional
            The machine to reproduce; by default the one in ``provenance``, else fbgemm on
            AVX512-VNNI with one thread.
        executor : {"fast", "reference"}
            Compiled kernels, or each op's NumPy formula. They agree bit for bit.
        record : bool or names
            Which intermediate values to keep; the others are freed after their last use.
        observe : callable, optional
            Called with each node and its results as soon as they are computed.
        modules : mapping, optional
            What is called in place of the stateful modules of these paths, such as observers
            that take note of what they see.

        Returns
        -------
        Result
            ``outputs`` and the recorded ``values``.

        Raises
        ------
        VerifyError
            If an input does not fit, or an op rejects its operands; the node is named.
        UnsupportedError
            If the target's numerics of an op are not known.
        """
        from refquant.ir.execute import run

        return run(self, inputs, target or self.target, executor, record, observe, modules)

    @property
    def target(self) -> Target:
        """The machine the model was made for."""
        return Target.parse(self.provenance.get("target", "fbgemm"))

    def verify(self) -> None:
        """Check every rule of the IR; the error names node, rule and value."""
        from refquant.ir.verify import verify

        verify(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a ``.rq`` file: text and arrays in a zip, no pickle; whole or not at all."""
        from refquant.ir.file import save

        save(self, path)

    def parameter(self, name: str) -> Tensor:
        """Return a parameter's data.

        Raises
        ------
        VerifyError
            If the graph was parsed from text and holds no data.
        """
        value = self.parameters[name]
        if isinstance(value, Absent):
            raise VerifyError(
                f"parameter {name}: this graph was parsed from text, which holds no data; "
                "give parse(text, tensors) the arrays or load the .rq file"
            )
        return value

    def values(self) -> dict[str, Value]:
        """Return every value by name: inputs, parameters, then results in order."""
        found = {value.name: value for value in self.inputs}
        found.update(
            {
                name: Value(
                    name, data.type if isinstance(data, QTensor | Absent) else type_of(data)
                )
                for name, data in self.parameters.items()
            }
        )
        found.update({value.name: value for node in self.nodes for value in node.outputs})
        return found

    def arrange(self, outputs: Iterable[Any]) -> Any:
        """Arrange flat outputs, or what stands for them, as ``returns`` says."""
        flat = tuple(outputs)

        def build(shape: Any) -> Any:
            if isinstance(shape, dict):
                return {key: build(part) for key, part in shape.items()}
            if isinstance(shape, tuple | list):
                return type(shape)(map(build, shape))
            return None if shape is None else flat[cast(int, shape)]

        return build(self.returns)

    def __str__(self) -> str:
        from refquant.ir.text import format_graph

        return format_graph(self)

    def __eq__(self, other: object) -> bool:
        """Equal structure, types, origins and, by digest, equal data."""
        return str(self) == str(other) if isinstance(other, Graph) else NotImplemented

    __hash__ = None  # type: ignore[assignment]
