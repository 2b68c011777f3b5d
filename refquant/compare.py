"""Comparing with torch: values node by node, and graphs node for node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from refquant.graph_diff import graph_diff
from refquant.graph_report import GraphDiff, GraphRow
from refquant.ir.errors import RefquantError
from refquant.ir.execute import attributes_of, check_inputs
from refquant.ir.graph import Executor, Graph, Node, Value
from refquant.ir.op import OPS
from refquant.ir.qtensor import Array, QTensor, Tensor, type_of
from refquant.ir.target import Target

__all__ = [
    "GraphDiff",
    "GraphRow",
    "NodeDiff",
    "RunDiff",
    "compare_values",
    "graph_diff",
    "run_diff",
]

_ACCUMULATING = ("conv", "linear", "matmul", "bmm", "einsum", "attention")


@dataclass(frozen=True)
class NodeDiff:
    """One node's result against torch's.

    Parameters
    ----------
    name, op, type : str
        The value, the op that made it, and its type.
    elements : int
        How many elements were compared.
    different : int
        How many differ.
    max_step : float
        Largest difference: in quantized steps, or as a real number for floats.
    first_index : tuple of int or None
        The first element that differs, in row-major order.
    ours, torch : float or None
        The two values there.
    inherited : bool
        Whether the node agrees with torch when given torch's operands, so that the difference
        comes from above.
    cause : str
        What kind of difference it is, where that can be told; empty if equal.
    """

    name: str
    op: str
    type: str
    elements: int
    different: int = 0
    max_step: float = 0.0
    first_index: tuple[int, ...] | None = None
    ours: float | None = None
    torch: float | None = None
    inherited: bool = False
    cause: str = ""

    @property
    def equal(self) -> bool:
        """Whether every element, shape, dtype and quantization parameter is equal."""
        return not self.cause


@dataclass(frozen=True)
class RunDiff:
    """A run against torch's run, one row for each value that both have."""

    target: Target
    executor: str
    rows: tuple[NodeDiff, ...]
    unmatched: tuple[str, ...] = ()

    @property
    def bit_exact(self) -> bool:
        """Whether at least one value was compared and all are equal."""
        return bool(self.rows) and all(row.equal for row in self.rows)

    @property
    def first(self) -> NodeDiff | None:
        """The first node whose own arithmetic diverges, else the first that differs at all."""
        differing = [row for row in self.rows if not row.equal]
        own = [row for row in differing if not row.inherited]
        return next(iter(own or differing), None)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "bit_exact": self.bit_exact,
            "target": str(self.target),
            "executor": self.executor,
            "first": self.first.name if self.first else None,
            "rows": [asdict(row) | {"equal": row.equal} for row in self.rows],
            "unmatched": list(self.unmatched),
        }

    def __str__(self) -> str:
        lines = [
            f"{'node':28} {'op':30} {'elements':>10} {'different':>10} {'max step':>9}  cause"
        ]
        for row in self.rows:
            origin = f"{row.cause}{' (inherited)' if row.inherited else ''}" or "equal"
            lines.append(
                f"{row.name:28} {row.op:30} {row.elements:10} {row.different:10} "
                f"{row.max_step:9.3g}  {origin}"
            )
        if self.first is not None:
            row = self.first
            lines.append(
                f"first diverging node: {row.name} at {row.first_index}: "
                f"ours {row.ours}, torch {row.torch} ({row.cause})"
            )
        verdict = "bit-exact" if self.bit_exact else "NOT bit-exact"
        lines.append(f"{verdict}: {len(self.rows)} values, {self.executor}, {self.target}")
        return "\n".join(lines)


def _integers(tensor: Tensor) -> Array:
    return tensor.int_repr if isinstance(tensor, QTensor) else tensor


def differing(ours: Array, torch: Array) -> Array:
    """Return where two arrays differ; NaN equals NaN."""
    unequal = ours != torch
    if ours.dtype.kind == "f":
        unequal &= ~(np.isnan(ours) & np.isnan(torch))
    return np.asarray(unequal)


def _cause(node_op: str, ours: Tensor, torch: Tensor, where: Array, step: float) -> str:
    if not isinstance(ours, QTensor):
        if ours.dtype.kind != "f":
            return "value differs"
        theirs = _integers(torch)
        # A norm of equal values is 0, or what the rounding of their mean leaves.
        least = 1.0 if node_op.endswith("_norm") else 1e-30
        scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=least)
        return "float order or last bit" if step <= 1e-4 * scale else "value differs"
    low, high = ours.dtype.limits
    a, b = ours.int_repr[where], _integers(torch)[where]
    if np.all((a == low) | (a == high) | (b == low) | (b == high)):
        return "clamp"
    if step == 1:
        return "rounding tie"
    if any(word in node_op for word in _ACCUMULATING):
        return "saturation"
    return "value differs"


def compare_values(name: str, op: str, ours: Tensor, torch: Tensor) -> NodeDiff:
    """Compare one value with torch's."""
    kind = type_of(ours)
    size = int(_integers(ours).size)
    theirs = type_of(torch)
    row = {"name": name, "op": op, "type": str(kind), "elements": size}
    if kind.shape != theirs.shape or kind.dtype != theirs.dtype:
        return NodeDiff(**row, different=size, cause=f"type differs: torch has {theirs}")  # type: ignore[arg-type]
    a, b = _integers(ours), _integers(torch)
    where = differing(a, b)
    count = int(where.sum())
    cause = ""
    details: dict[str, Any] = {"different": count}
    if count:
        with np.errstate(invalid="ignore"):
            steps = np.abs(a[where].astype(np.float64) - b[where].astype(np.float64))
        finite = steps[np.isfinite(steps)]
        step = float(finite.max()) if finite.size == steps.size else float("inf")
        first = tuple(int(i) for i in np.argwhere(where)[0]) if a.ndim else ()
        details |= {"max_step": step, "first_index": first}
        details |= {"ours": float(a[first]), "torch": float(b[first])}
        cause = _cause(op, ours, torch, where, step)
    if kind.qparams != theirs.qparams:
        cause = "qparams differ"
    return NodeDiff(**row, **details, cause=cause)  # type: ignore[arg-type]


def run_diff(
    graph: Graph,
    model: Any,
    inputs: Sequence[Any],
    target: Target | str | None = None,
    executor: Executor = "fast",
) -> RunDiff:
    """Run the graph and the torch model on the same inputs and compare every value.

    Parameters
    ----------
    graph : Graph
        Imported from ``model``.
    model : torch.nn.Module or torch.fx.GraphModule
        What torch runs.
    inputs : sequence of arrays or tensors
        Positional inputs.
    target : Target or str, optional
        The machine; torch's engine and thread count are set to it for the run.
    executor : {"fast", "reference"}
        Which of our executors runs.

    Returns
    -------
    RunDiff
        Per node: equal or not, how many elements, the largest step, the first index, a cause.

    Raises
    ------
    UnsupportedError
        If torch of the version whose bits are meant is not installed.
    """
    from refquant.importers.fx_torch import as_arrays, record_fx

    machine = Target.parse(target) if isinstance(target, str) else target or graph.target
    arrays = as_arrays(inputs)
    alone = _Alone(
        graph,
        record_fx(model, inputs, machine),
        check_inputs(graph, tuple(arrays)),
        machine,
        executor == "fast",
    )
    result = graph.run(*arrays, target=machine, executor=executor, record=True)
    rows, unmatched = [], []
    for node in graph.nodes:
        for value in node.outputs:
            if value.name not in alone.expected:
                unmatched.append(value.name)
                continue
            torch_value = alone.expected[value.name]
            row = compare_values(value.name, node.op, result.values[value.name], torch_value)
            if not row.equal and alone.agrees(node, value):
                row = NodeDiff(**{**asdict(row), "inherited": True})
            rows.append(row)
    return RunDiff(machine, executor, tuple(rows), tuple(unmatched))


@dataclass(frozen=True)
class _Alone:
    """Single nodes of a graph, run on torch's operands."""

    graph: Graph
    expected: dict[str, Tensor]
    sizes: dict[str, int]
    target: Target
    fast: bool

    def agrees(self, node: Node, value: Value) -> bool:
        """Whether the node, given torch's operands, gives torch's result."""
        try:
            ours = self.results(node)[node.outputs.index(value)]
        except RefquantError:
            return False
        return compare_values(value.name, node.op, ours, self.expected[value.name]).equal

    def results(self, node: Node) -> tuple[Tensor, ...]:
        operands = [operand and self.operand(operand) for operand in node.inputs]
        attributes = attributes_of(self.graph, node, self.sizes)
        found = OPS[node.op].bind(self.target, fast=self.fast)(*operands, **attributes)
        return found if isinstance(found, tuple) else (found,)

    def operand(self, value: Value) -> Tensor:
        """Return torch's value; what torch does not name, a step inside a node, is computed."""
        if value.name in self.expected:
            return self.expected[value.name]
        if value.name in self.graph.parameters:
            return self.graph.parameter(value.name)
        maker = next(node for node in self.graph.nodes if value in node.outputs)
        return self.results(maker)[maker.outputs.index(value)]
