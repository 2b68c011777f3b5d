"""Comparing two programs call for call: the judge behind ``compare.graph_diff`` of graph mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from refquant.graph_report import GraphDiff, GraphRow
from refquant.ir.module import Module, Packed
from refquant.ir.packed_cell import PackedCell
from refquant.ir.program import Call, Program
from refquant.ir.qtensor import Array, QTensor
from refquant.qconfig import QConfig, qconfig_equals

# Plain attributes that one side may have alone. Of torch: what only its constructor or its
# compiler reads, and the qconfig, which a module may be given late. Ours: the machine meant and
# the counts of an observer.
ONE_SIDED = frozenset(
    (
        *("batches", "elements", "target", "factory_kwargs", "init", "qconfig", "shape_env"),
        "tensor_val",
    )
)
# Arrays that torch leaves random and that nothing reads: the bias that counts is packed.
RANDOM_STATE = {
    **{
        f"torch.ao.nn.quantized.dynamic.{name}": frozenset(("bias_ih", "bias_hh"))
        for name in ("RNNCell", "LSTMCell", "GRUCell")
    },
    "torch.ao.nn.quantizable.MultiheadAttention": frozenset(
        ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    ),
}


def program_diff(ours: Program, theirs: Program) -> GraphDiff:
    """Compare two programs call for call.

    Calls are aligned in order. Kind, target, name, arguments and literals must be equal, bits of
    floats included, and operands must come from aligned calls. Constants that a ``get_attr``
    reads count by value wherever they are used, not by name or position. Modules count by
    class, plain attributes, arrays and parts, not by path; a module called twice must be one
    instance on both sides. Whether an observer is in training is not compared, for it behaves
    the same; nor are the attributes ``ONE_SIDED`` that only one side has.

    Parameters
    ----------
    ours, theirs : Program
        The program in question, and what it should be.

    Returns
    -------
    GraphDiff
        False in a boolean context when the programs are the same; prints a side by side table.

    Examples
    --------
    >>> def program(other):
    ...     made = Program(Module("torch.nn.Module"))
    ...     x = made.call("placeholder", "x")
    ...     made.call("output", "output", (made.call("call_function", "torch.add", (x, other)),))
    ...     return made
    >>> bool(program_diff(program(1), program(1)))
    False
    >>> program_diff(program(1), program(True)).differences[0].differences
    ('argument 1: 1 against True',)
    """
    mine, yours = list(_steps(ours)), list(_steps(theirs))
    job = _Comparison(ours.root, theirs.root)
    rows: list[GraphRow] = []
    for left, right in _aligned(mine, yours, ours.root, theirs.root):
        if left is None or right is None:
            side = "ours" if right is None else "torch's"
            differences = [f"only in {side}"]
        else:
            job.same[left] = right
            differences = list(job.calls(left, right))
        lines = _line(left, ours.root), _line(right, theirs.root)
        rows.append(GraphRow(*lines, tuple(differences)))
    if ours.root.training != theirs.root.training:
        training = f"training: {ours.root.training} against {theirs.root.training}"
        rows.append(GraphRow("(model)", "(model)", (training,)))
    return GraphDiff(tuple(rows))


def _steps(program: Program) -> Iterator[Call]:
    """Yield what is compared as a row: everything but the constants that something uses."""
    for call in program:
        if call.kind != "get_attr" or not call.users:
            yield call


def _signature(call: Call, root: Module) -> tuple[str, str]:
    if call.kind == "call_module":
        return call.kind, str(getattr(_found(root, call.target), "kind", "(no module)"))
    return call.kind, "" if call.kind == "get_attr" else call.target


def _aligned(
    ours: Sequence[Call], theirs: Sequence[Call], our_root: Module, their_root: Module
) -> Iterator[tuple[Call | None, Call | None]]:
    left = [_signature(call, our_root) for call in ours]
    right = [_signature(call, their_root) for call in theirs]
    if left == right:
        yield from zip(ours, theirs, strict=True)
        return
    for tag, i0, i1, j0, j1 in SequenceMatcher(None, left, right, False).get_opcodes():
        if tag == "equal":
            yield from zip(ours[i0:i1], theirs[j0:j1], strict=True)
        else:
            yield from ((call, None) for call in ours[i0:i1])
            yield from ((None, call) for call in theirs[j0:j1])


@dataclass
class _Comparison:
    """One comparison: which call and which module of theirs stands for which of ours."""

    our_root: Module
    their_root: Module
    same: dict[Call, Call] = field(default_factory=dict)
    instances: dict[int, Any] = field(default_factory=dict)
    reverse: dict[int, Any] = field(default_factory=dict)
    known: dict[tuple[int, int], list[str]] = field(default_factory=dict)

    def calls(self, left: Call, right: Call) -> Iterator[str]:
        """Yield how two aligned calls differ."""
        if left.name != right.name:
            yield f"name: {left.name} against {right.name}"
        if left.kind == "get_attr":
            yield from self.values("value", left, right)
        elif left.kind == "call_module":
            module = _found(self.our_root, left.target)
            yield from self.modules(module, _found(self.their_root, right.target))
        for i in range(max(len(left.args), len(right.args))):
            sides = [call.args[i] if i < len(call.args) else _ABSENT for call in (left, right)]
            yield from self.values(f"argument {i}", *sides)
        for key in _keys(left.kwargs, right.kwargs):
            sides = [call.kwargs.get(key, _ABSENT) for call in (left, right)]
            yield from self.values(f"argument {key}", *sides)

    def values(self, where: str, a: Any, b: Any) -> Iterator[str]:
        """Yield how two arguments, or two constants, differ."""
        if isinstance(a, Call) and isinstance(b, Call):
            if a.kind == b.kind == "get_attr":
                mine, yours = _found(self.our_root, a.target), _found(self.their_root, b.target)
                yield from self.values(where, mine, yours)
            elif self.same.get(a) is not b:
                yield f"{where}: {a.name} against {b.name}"
        elif _is_module(a) and _is_module(b):
            yield from (f"{where}: {difference}" for difference in self.modules(a, b))
        else:
            yield from _differences(where, a, b, self.values)

    def modules(self, a: Any, b: Any) -> list[str]:
        """Return how two modules differ, and in which instance."""
        if not (_is_module(a) and _is_module(b)):
            return [] if a is b else [f"module: {_show(a)} against {_show(b)}"]
        pair = id(a), id(b)
        if pair not in self.known:
            self.known[pair] = list(_contents("", a, b))
        return [*self.sharing("", a, b), *self.known[pair]]

    def sharing(self, path: str, a: Any, b: Any) -> Iterator[str]:
        """Yield which parts are one instance on one side only."""
        met_in_ours = self.instances.setdefault(id(a), b) is not b
        met_in_theirs = self.reverse.setdefault(id(b), a) is not a
        if met_in_ours or met_in_theirs:
            side = "ours" if met_in_ours else "torch's"
            yield f"module sharing: {path or 'the module'} was called before in {side} only"
        for name in a.parts:
            if _is_module(a.parts[name]) and _is_module(b.parts.get(name)):
                yield from self.sharing(_join(path, name), a.parts[name], b.parts[name])


def _contents(path: str, a: Any, b: Any) -> Iterator[str]:
    """Yield how class, attributes, arrays and parts of two modules differ."""
    for name, mine, yours in (("class", a.kind, b.kind), ("role", a.role, b.role)):
        if mine != yours:
            yield f"module {_join(path, name)}: {mine} against {yours}"
    modes = [getattr(module, "training", None) for module in (a, b)]
    if not a.role and modes[0] != modes[1]:
        yield f"module {_join(path, 'training')}: {modes[0]} against {modes[1]}"
    mine, yours = getattr(a, "program", None), getattr(b, "program", None)
    if mine is not None and yours is not None:
        for row in program_diff(mine, yours).differences:
            yield f"in {path}: {row.ours} against {row.torch}: {'; '.join(row.differences)}"
        return
    mine, yours = a.config, b.config
    for key in _keys(mine, yours):
        if key in ONE_SIDED and not (key in mine and key in yours):
            continue
        where = f"module argument {_join(path, key)}"
        yield from _differences(where, mine.get(key, _ABSENT), yours.get(key, _ABSENT))
    mine, yours = a.state, b.state
    random = RANDOM_STATE.get(a.kind, frozenset())
    for key in _keys(mine, yours):
        x, y = mine.get(key, _ABSENT), yours.get(key, _ABSENT)
        if key in random and isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            x, y = x.shape, y.shape
        yield from _differences(f"module state {_join(path, key)}", x, y)
    mine, yours = a.parts, b.parts
    for key in _keys(mine, yours):
        x, y = mine.get(key, _ABSENT), yours.get(key, _ABSENT)
        if _is_module(x) and _is_module(y):
            yield from _contents(_join(path, key), x, y)
        else:
            yield f"module part {_join(path, key)}: {_show(x)} against {_show(y)}"


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


_ABSENT = _Absent()
Compare = Callable[[str, Any, Any], Iterator[str]]


def _differences(where: str, a: Any, b: Any, inner: Compare | None = None) -> Iterator[str]:
    """Yield how two values differ; ``inner`` compares the parts of containers."""
    inner = inner or _differences
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in _keys(a, b):
            yield from inner(f"{where}[{key!r}]", a.get(key, _ABSENT), b.get(key, _ABSENT))
    elif isinstance(a, np.ndarray | QTensor) and isinstance(b, np.ndarray | QTensor):
        yield from (f"{where}: {difference}" for difference in _tensors(a, b))
    elif isinstance(a, QConfig) and isinstance(b, QConfig):
        if not qconfig_equals(a, b):
            yield f"{where}: {a} against {b}"
    elif type(a) is not type(b):
        yield f"{where}: {_show(a)} against {_show(b)}"
    elif isinstance(a, Packed | PackedCell):
        for name in a._fields:
            yield from inner(f"{where}.{name}", getattr(a, name), getattr(b, name))
    elif isinstance(a, tuple | list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from inner(f"{where}[{i}]", x, y)
    elif isinstance(a, slice):
        for name in ("start", "stop", "step"):
            yield from inner(f"{where}.{name}", getattr(a, name), getattr(b, name))
    elif isinstance(a, float | complex):
        if not _same_bits(np.asarray(a), np.asarray(b)):
            yield f"{where}: {a!r} against {b!r}"
    elif a is not b and not bool(a == b):
        yield f"{where}: {_show(a)} against {_show(b)}"


def _tensors(a: Array | QTensor, b: Array | QTensor) -> Iterator[str]:
    """Yield how two tensors differ: type, shape, quantization parameters, bits."""
    if isinstance(a, QTensor) and isinstance(b, QTensor):
        if (a.dtype, a.axis, a.group_size) != (b.dtype, b.axis, b.group_size):
            yield f"{a.dtype} along {a.axis} against {b.dtype} along {b.axis}"
        for name in ("scale", "zero_point"):
            x, y = np.asarray(getattr(a, name)), np.asarray(getattr(b, name))
            same_kind = x.dtype.kind == y.dtype.kind
            if not same_kind or not _same_bits(x.astype(np.float64), y.astype(np.float64)):
                yield f"{name} {x.tolist()} against {y.tolist()}"
        a, b = a.int_repr, b.int_repr
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)):
        yield f"{_show(a)} against {_show(b)}"
    elif a.shape != b.shape or a.dtype != b.dtype:
        yield f"{a.dtype}{list(a.shape)} against {b.dtype}{list(b.shape)}"
    elif not _same_bits(a, b):
        yield f"{a.item()!r} against {b.item()!r}" if a.size == 1 else "values differ"


def _same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays of one dtype are equal to the last bit; NaN equals NaN."""
    if a.shape != b.shape:
        return False
    x, y = (np.ascontiguousarray(side).reshape(-1) for side in (a, b))
    if np.array_equal(x.view(np.uint8), y.view(np.uint8)):
        return True
    if not np.any(x != x):  # not NaN anywhere
        return False
    kept = ~((x != x) & (y != y))
    return bool(np.array_equal(x[kept].view(np.uint8), y[kept].view(np.uint8)))


def _found(root: Module, path: str) -> Any:
    return root.get(path) if root.has(path) else _ABSENT


def _is_module(value: Any) -> bool:
    """Whether it is a module, or a live observer, which has the same properties."""
    return isinstance(value, Module) or all(
        hasattr(value, name) for name in ("kind", "config", "state", "parts", "role")
    )


def _keys(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> list[Any]:
    return [*a, *(key for key in b if key not in a)]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _show(value: Any) -> str:
    if isinstance(value, QTensor):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Call):
        return value.name
    return str(value.kind) if _is_module(value) else repr(value)


def _line(call: Call | None, root: Module) -> str:
    if call is None:
        return ""
    target = call.target
    if call.kind == "call_module":
        target = f"{target}: {_signature(call, root)[1]}"
    arguments = [_text(value) for value in call.args]
    arguments += [f"{key}={_text(value)}" for key, value in call.kwargs.items()]
    return f"{call.name} = {call.kind} {target}({', '.join(arguments)})"


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))})"
    return f"[{', '.join(map(_text, value))}]" if isinstance(value, list) else _show(value)
