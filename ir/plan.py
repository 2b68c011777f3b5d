"""The order of work of a graph: a function for each node, or for several at once.

The plain plan runs node after node, so that every value can be looked at. The prepared plan
binds constants, shapes and memory before the run and does several nodes in one where their ops
know how; its results are the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, NamedTuple

import numpy as np

from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.graph import Graph, Node
from refquant.ir.memory import Lifetime, assign
from refquant.ir.op import OPS
from refquant.ir.prepared import Margins, Operand, Place, Prepared
from refquant.ir.qtensor import QTensor, Tensor
from refquant.ir.target import Target
from refquant.ir.types import Dim, TensorType

ALIGNMENT = 64
_TORCH_NAMES = ("aten::", "quantized", "onednn::", "_quantized::")
Sizes = dict[str, int]


class Step(NamedTuple):
    """A function with the names of its operands and results, and those that are dead after it."""

    node: Node
    function: Callable[..., Any]
    operands: tuple[str | None, ...]
    attributes: Mapping[str, Any] | None  # None: they hold symbols or name a module
    results: tuple[str, ...]
    dead: tuple[str, ...]


class Plan(NamedTuple):
    """Steps, and the nodes, sizes and constants (plain ones by content) they were made for."""

    nodes: tuple[Node, ...]
    steps: tuple[Step, ...]
    sizes: Sizes | None = None
    constants: Mapping[str, Tensor] = {}
    contents: Mapping[str, bytes] = {}

    def fits(self, graph: Graph, sizes: Sizes | None) -> bool:
        """Whether nothing was changed since."""
        old, new = self.nodes, graph.nodes
        return (
            len(old) == len(new)
            and all(map(is_, old, new))
            and (self.sizes is None or self.sizes == sizes)
            and all(map(is_, self.constants.values(), map(graph.parameters.get, self.constants)))
            and self._holds(graph.parameters)
        )

    def _holds(self, parameters: Mapping[str, Any]) -> bool:
        """Whether the plain constants hold what they held."""
        contents = self.contents.items()
        return all(parameters[name].tobytes() == known for name, known in contents)


def bound_attribute(attribute: Any, sizes: Sizes) -> Any:
    """Return an attribute with the length of each symbol."""
    if isinstance(attribute, tuple):
        return tuple(bound_attribute(part, sizes) for part in attribute)
    return attribute.bind(sizes) if isinstance(attribute, Dim) else attribute


def _is_symbolic(attribute: object) -> bool:
    if isinstance(attribute, tuple):
        return any(map(_is_symbolic, attribute))
    return isinstance(attribute, Dim)


def _is_open(node: Node) -> bool:
    """Whether attributes are known only in the run."""
    return "module" in node.attributes or any(map(_is_symbolic, node.attributes.values()))


@dataclass
class _Task:
    """One or several nodes that are done at once."""

    nodes: list[Node]
    function: Callable[..., Any]
    operands: list[str | None]
    prepared: Prepared | None = None

    @property
    def results(self) -> tuple[str, ...]:
        return tuple(value.name for value in self.nodes[-1].outputs)


def plain(graph: Graph, target: Target, executor: str) -> Plan:
    """Look up the function of every node and pack constant weights."""
    if executor not in ("fast", "reference"):
        raise VerifyError(f"executor must be 'fast' or 'reference', got {executor!r}")
    tasks = [_task(graph, node, target, executor == "fast") for node in graph.nodes]
    return Plan(tuple(graph.nodes), _steps(graph, tasks))


def _task(graph: Graph, node: Node, target: Target, fast: bool) -> _Task:
    op = OPS.lookup(node.op, f"node {node.name}")
    try:
        function = op.bind(target, fast=fast)
    except RefquantError as error:
        raise type(error)(f"node {node.name}: {error}") from None
    if fast and op.pack is not None:
        _pack_weight(graph, node, op.pack, op.weight)
    names = [None if value is None else value.name for value in node.inputs]
    return _Task([node], function, names)


def _pack_weight(graph: Graph, node: Node, pack: Callable[..., Tensor], position: int) -> None:
    """Replace a constant weight by its packed form, so that memory holds it once."""
    weight = node.inputs[position]
    if weight is None or weight.name not in graph.parameters:
        return
    data = graph.parameter(weight.name)
    plain = (np.int8,) if node.op.startswith(_TORCH_NAMES) else (np.int8, np.uint8)
    if isinstance(data, QTensor) or data.dtype in plain:
        graph.parameters[weight.name] = pack(data, **node.attributes)


def _steps(graph: Graph, tasks: Sequence[_Task]) -> tuple[Step, ...]:
    """Find where each value dies."""
    kept = {value.name for value in graph.outputs} | set(graph.parameters)
    last_use: dict[str, int] = {}
    for index, task in enumerate(tasks):
        for name in (*task.operands, *task.results):
            if name is not None and name not in kept:
                last_use[name] = index
    dead: list[list[str]] = [[] for _ in tasks]
    for name, index in last_use.items():
        dead[index].append(name)
    steps = []
    for task, names in zip(tasks, dead, strict=True):
        node = task.nodes[0]
        known = None if _is_open(node) else node.attributes
        attributes = {} if task.prepared else known
        operands = tuple(task.operands)
        steps.append(Step(node, task.function, operands, attributes, task.results, tuple(names)))
    return tuple(steps)


# ---- the prepared plan


def prepared(graph: Graph, target: Target, sizes: Sizes) -> Plan:
    """Bind constants, shapes and memory, and join nodes."""
    builder = _Builder(graph, target, sizes)
    tasks = builder.tasks()
    _bind(graph, tasks)
    constants = {name: graph.parameter(name) for name in builder.constants}
    # Plain arrays can be changed in place; packed weights cannot.
    plain_ones = [
        name
        for name, data in constants.items()
        if isinstance(data, np.ndarray) and not getattr(data, "frozen", False)
    ]
    contents = {name: np.asarray(constants[name]).tobytes() for name in plain_ones}
    return Plan(tuple(graph.nodes), _steps(graph, tasks), dict(sizes), constants, contents)


@dataclass
class _Builder:
    """Prepares nodes and lets them absorb the only users of their results."""

    graph: Graph
    target: Target
    sizes: Sizes
    constants: set[str] = field(default_factory=set)

    def tasks(self) -> list[_Task]:
        """Return what is to be done, in order."""
        nodes = self.graph.nodes
        tasks = [self._prepare(node) for node in nodes]
        made: set[str] = set()  # surely channels-last
        for task in tasks:
            keeps = OPS[task.nodes[0].op].keeps_channels_last and task.operands[0] in made
            if task.prepared is not None or keeps:
                made.add(task.results[0])
        users = _users([task.operands for task in tasks])
        kept = {value.name for value in self.graph.outputs}
        position = list(range(len(nodes)))
        gone = set()
        for index, task in enumerate(tasks):
            while index not in gone and task.prepared is not None:
                (name,) = task.results
                uses = users.get(name, [])
                if name in kept or len(uses) != 1:
                    break
                at, operand = uses[0]
                if at in gone or not self._absorb(task, tasks[at], operand, made):
                    break
                gone.add(at)
                made.add(task.results[0])
                position[index] = at
        order = sorted(set(range(len(nodes))) - gone, key=position.__getitem__)
        return [tasks[index] for index in order]

    def _prepare(self, node: Node) -> _Task:
        task = _task(self.graph, node, self.target, fast=True)
        prepare = OPS[node.op].prepare
        if prepare is None or "module" in node.attributes:
            return task
        operands = self._operands(node)
        result = self._type(node.outputs[0].type)
        try:
            task.prepared = prepare(operands, self._attributes(node), result, self.target)
        except RefquantError:
            return task  # which says so where it runs
        if task.prepared is not None:
            self._note_constants(node)
            task.operands = self._names_in_run(node)
        return task

    def _absorb(self, task: _Task, user: _Task, position: int, made: set[str]) -> bool:
        """Let a task do its only user, too."""
        assert task.prepared is not None
        (node,) = user.nodes
        others = self._names_in_run(node)
        others.remove(task.results[0])
        if user.prepared is not None or not made.issuperset(others) or len(node.outputs) != 1:
            return False
        more = task.prepared.absorb(
            *(node.op, position, self._operands(node), self._attributes(node)),
            self._type(node.outputs[0].type),
        )
        if more is None:
            return False
        self._note_constants(node)
        task.prepared = more
        task.nodes.append(node)
        task.operands += others
        return True

    def _attributes(self, node: Node) -> dict[str, Any]:
        return {key: bound_attribute(value, self.sizes) for key, value in node.attributes.items()}

    def _type(self, kind: TensorType) -> TensorType:
        shape = bound_attribute(kind.shape, self.sizes)
        return TensorType(kind.dtype, shape, kind.qparams)

    def _operands(self, node: Node) -> tuple[Operand, ...]:
        parameters = self.graph.parameters
        return tuple(
            None
            if value is None
            else self.graph.parameter(value.name)
            if value.name in parameters
            else self._type(value.type)
            for value in node.inputs
        )

    def _names_in_run(self, node: Node) -> list[str | None]:
        names = (value.name for value in node.inputs if value is not None)
        return [name for name in names if name not in self.graph.parameters]

    def _note_constants(self, node: Node) -> None:
        names = {value.name for value in node.inputs if value is not None}
        self.constants |= names & self.graph.parameters.keys()


def _users(operands: Iterable[Sequence[str | None]]) -> dict[str, list[tuple[int, int]]]:
    """Return by name which tasks use it as which operand."""
    users: dict[str, list[tuple[int, int]]] = {}
    for index, names in enumerate(operands):
        for position, name in enumerate(names):
            if name is not None:
                users.setdefault(name, []).append((index, position))
    return users


def _last_uses(graph: Graph, tasks: Sequence[_Task]) -> dict[str, int]:
    """Return until when the memory of each value is needed; for ever is the number of tasks.

    A result of a plain function may be a view of its operands, and a module may keep them.
    """
    ends = {value.name: len(tasks) for value in graph.outputs}
    for index in range(len(tasks) - 1, -1, -1):
        task = tasks[index]
        end = index
        if task.prepared is None:
            keeps = "module" in task.nodes[0].attributes
            end = len(tasks) if keeps else max(ends.get(n, index) for n in task.results)
        for name in task.operands:
            if name is not None:
                ends[name] = max(ends.get(name, index), end)
    return ends


def _margins(tasks: Sequence[_Task], uses: list[tuple[int, int]]) -> Margins | None:
    """Return what all users of a value like to find around it."""
    wanted: Margins | None = None
    for index, operand in uses:
        user = tasks[index].prepared
        if user is None:
            return None
        more = user.margins(operand)
        if more is not None:
            wanted = more if wanted is None else wanted.union(more)
    return wanted


def _bind(graph: Graph, tasks: list[_Task]) -> None:
    """Give each prepared task the memory of its operands and of its result."""
    ends = _last_uses(graph, tasks)
    users = _users([task.operands for task in tasks])
    names, margins, lifetimes = [], [], []
    makers: list[Prepared] = []
    for index, task in enumerate(tasks):
        name = task.results[0]
        end = ends.get(name, index)
        if task.prepared is not None and end < len(tasks):
            around = _margins(tasks, users.get(name, []))
            names.append(name)
            margins.append(around)
            makers.append(task.prepared)
            lifetimes.append(Lifetime(index, end, task.prepared.size(around)))
    offsets, size = assign(lifetimes)
    block = np.empty(size + ALIGNMENT, np.uint8)
    first = -int(block.__array_interface__["data"][0]) % ALIGNMENT
    places: dict[str | None, Place] = {}
    for name, around, maker, offset, life in zip(
        names, margins, makers, offsets, lifetimes, strict=True
    ):
        memory = block[first + offset : first + offset + life.size]
        places[name] = maker.place(memory, around)
    for task in tasks:
        if task.prepared is not None:
            operands = tuple(map(places.get, task.operands))
            task.function = task.prepared.bind(operands, places.get(task.results[0]))
