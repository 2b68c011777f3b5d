"""A traced model: the calls of modules, functions and methods, in the order they were made.

Graph mode decides on calls: which class, which function, with which literal arguments, used by
how many others. A :class:`Program` keeps exactly that, in torch's names; the dataflow
:class:`~refquant.ir.graph.Graph` that runs is made from it.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from refquant.ir.errors import VerifyError
from refquant.ir.module import Module

KINDS = ("placeholder", "get_attr", "call_module", "call_function", "call_method", "output")
_ILLEGAL = frozenset((*keyword.kwlist, *vars(builtins), "inf", "nan", "NoneType", "torch"))
_ILLEGAL_TOO = frozenset(("device", "fx_pytree", "pytree"))
_CHARACTER = re.compile("[^0-9a-zA-Z_]+")
_NUMBERED = re.compile(r"^([a-zA-Z_][0-9a-zA-Z_]*?)(?:_(\d+))?$")
_SNAKE = re.compile(r"(?<=[a-z])([A-Z])")
# Calls with an effect, which stay although nobody uses their result.
_EFFECTS = frozenset(("torch._assert", "torch._assert_async", "operator.setitem"))


class Owner(NamedTuple):
    """The module in whose ``forward`` a call stands, or that is called."""

    path: str
    kind: str | None


class Call:
    """One step of a program.

    Attributes
    ----------
    kind : str
        One of ``KINDS``.
    target : str
        Path of the module or attribute, name of the function or method.
    args, kwargs : tuple, dict
        Calls, literals, and nested tuples, lists, dicts and slices of them.
    name : str
        Unique in the program.
    users : dict
        The calls that use the result, in the order in which they came to use it.
    owner : Owner or None
        Where the call stands; None for calls that graph mode inserts.
    notes : dict
        Facts that a pass leaves for the next one.
    """

    __slots__ = (
        *("_args", "_kwargs", "_next", "_previous", "inputs", "kind", "name"),
        *("notes", "owner", "program", "target", "users"),
    )

    def __init__(self, program: Program | None, kind: str, target: str, name: str) -> None:
        self.program, self.kind, self.target, self.name = program, kind, target, name
        self.inputs: dict[Call, None] = {}
        self.users: dict[Call, None] = {}
        self.owner: Owner | None = None
        self.notes: dict[str, Any] = {}
        self._args: tuple[Any, ...] = ()
        self._kwargs: dict[str, Any] = {}
        self._previous = self._next = self

    def __repr__(self) -> str:
        return self.name

    @property
    def args(self) -> tuple[Any, ...]:
        """Positional arguments."""
        return self._args

    @args.setter
    def args(self, args: tuple[Any, ...]) -> None:
        self.set_arguments(args, self._kwargs)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments."""
        return self._kwargs

    @kwargs.setter
    def kwargs(self, kwargs: dict[str, Any]) -> None:
        self.set_arguments(self._args, kwargs)

    def set_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Replace all arguments; the call becomes the latest user of each of its inputs."""
        for old in self.inputs:
            old.users.pop(self, None)
        self._args, self._kwargs = tuple(args), dict(kwargs)
        self.inputs = {}
        each(self._args, self._use)
        each(self._kwargs, self._use)

    def _use(self, call: Call) -> Call:
        self.inputs.setdefault(call)
        call.users.setdefault(self)
        return call

    def replace_input(self, old: Call, new: Call) -> None:
        """Use ``new`` wherever ``old`` is an argument."""

        def swap(call: Call) -> Call:
            return new if call is old else call

        self.set_arguments(each(self._args, swap), each(self._kwargs, swap))

    def replace_all_uses_with(self, new: Call) -> None:
        """Make every user use ``new`` instead."""
        for user in list(self.users):
            user.replace_input(self, new)


def each(value: Any, change: Callable[[Any], Any], kind: type = Call) -> Any:
    """Return an argument with every call in it (or object of another ``kind``) replaced."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple):
        parts = [each(part, change, kind) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list):
        return [each(part, change, kind) for part in value]
    if isinstance(value, dict):
        return {key: each(part, change, kind) for key, part in value.items()}
    if isinstance(value, slice):
        parts = [each(part, change, kind) for part in (value.start, value.stop, value.step)]
        return slice(*parts)
    return value


@dataclass(frozen=True)
class _Index:
    """Stands for a call where a program is pickled."""

    number: int


class Program:
    """Calls in order, and the module tree they refer to.

    Parameters
    ----------
    root : Module
        The model: its parts are the modules that the calls name.
    """

    def __init__(self, root: Module) -> None:
        self.root = root
        self.meta: dict[str, Any] = {}
        self._end = Call(self, "end", "", "")
        self._names: set[str] = set()
        self._counts: dict[str, int] = {}

    def __iter__(self) -> Iterator[Call]:
        call = self._end._next
        while call is not self._end:
            yield call
            call = call._next
            while call.program is None:  # erased meanwhile
                call = call._next

    def __reversed__(self) -> Iterator[Call]:
        call = self._end._previous
        while call is not self._end:
            yield call
            call = call._previous
            while call.program is None:
                call = call._previous

    def __getstate__(self) -> dict[str, Any]:
        """Return flat rows: the links between the calls would recurse once for each call."""
        numbers = {call: _Index(i) for i, call in enumerate(self)}
        rows = [
            (
                *(call.kind, call.target, call.name, call.owner, call.notes),
                each((call.args, call.kwargs), numbers.__getitem__),
                [numbers[user].number for user in call.users],
            )
            for call in self
        ]
        kept = {key: value for key, value in vars(self).items() if key != "_end"}
        return {**kept, "rows": rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Link the calls again."""
        rows = state.pop("rows")
        vars(self).update(state)
        self._end = Call(self, "end", "", "")
        calls: list[Call] = []
        for kind, target, name, owner, notes, arguments, _ in rows:
            call = Call(self, kind, target, name)
            call.owner, call.notes = owner, notes
            self._link(call, self._end)
            calls.append(call)
            call.set_arguments(*each(arguments, lambda at: calls[at.number], _Index))
        for call, row in zip(calls, rows, strict=True):
            call.users = dict.fromkeys(calls[number] for number in row[-1])

    @property
    def output(self) -> Call:
        """The call that returns."""
        return self._end._previous

    def unique_name(self, candidate: str) -> str:
        """Return a name that no call has, numbered as torch.fx numbers them."""
        candidate = _CHARACTER.sub("_", candidate) or "_unnamed"
        if candidate[0].isdigit():
            candidate = f"_{candidate}"
        match = _NUMBERED.match(candidate)
        assert match is not None
        base, number = match.group(1, 2)
        if number is None or candidate in self._names:
            count = self._counts.get(base, 0)
            if candidate in _ILLEGAL or candidate in _ILLEGAL_TOO:
                count += 1
                candidate = f"{base}_{count}"
        else:
            count = int(number)
        while candidate in self._names:
            count += 1
            candidate = f"{base}_{count}"
        self._names.add(candidate)
        self._counts[base] = count
        return candidate

    def call(
        self,
        kind: str,
        target: str,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        name: str | None = None,
        after: Call | None = None,
        before: Call | None = None,
    ) -> Call:
        """Insert a call, at the end unless told otherwise."""
        if kind not in KINDS:
            raise VerifyError(f"a call is one of {', '.join(KINDS)}, got {kind!r}")
        made = Call(self, kind, target, self.unique_name(name or base_name(kind, target)))
        made.set_arguments(args, kwargs or {})
        self._link(made, before=(after._next if after else before or self._end))
        return made

    def copy_call(self, source: Call, argument: Callable[[Call], Any]) -> Call:
        """Append a copy of another program's call."""
        made = self.call(
            source.kind,
            source.target,
            each(source.args, argument),
            each(source.kwargs, argument),
            name=source.name,
        )
        made.owner, made.notes = source.owner, dict(source.notes)
        return made

    def _link(self, call: Call, before: Call) -> None:
        call._previous, call._next = before._previous, before
        before._previous._next = call
        before._previous = call

    def erase(self, call: Call) -> None:
        """Remove a call that nobody uses."""
        if call.users:
            users = ", ".join(user.name for user in call.users)
            raise VerifyError(f"{call.name} cannot be removed: {users} uses it")
        call._previous._next, call._next._previous = call._next, call._previous
        call.set_arguments((), {})
        call.program = None

    def move(self, call: Call, after: Call) -> None:
        """Let a call stand right after another one."""
        call._previous._next, call._next._previous = call._next, call._previous
        self._link(call, before=after._next)

    def eliminate_dead_code(self) -> None:
        """Remove calls without users and without effect, the last first."""
        for call in reversed(self):
            pure = call.kind not in ("placeholder", "output") and call.target not in _EFFECTS
            if pure and not call.users:
                self.erase(call)

    def copy(self) -> Program:
        """Return a copy that shares the arrays."""
        root = self.root.copy()
        if self.root.program is self:
            return root.program  # type: ignore[no-any-return]
        return self.copy_onto(root)

    def copy_onto(self, root: Module) -> Program:
        """Return a copy of the calls for a copy of the modules."""
        made = Program(root)
        made.meta = dict(self.meta)
        same: dict[Call, Call] = {}
        for call in self:
            same[call] = made.copy_call(call, same.__getitem__)
        return made

    def owners(self) -> Iterator[tuple[Call, Any]]:
        """Yield the calls of modules with the module."""
        for call in self:
            if call.kind == "call_module":
                yield call, self.root.get(call.target)

    def keep_only_used(self) -> None:
        """Make a new root that holds only what the calls name, as a new GraphModule does.

        Modules between the root and a called one become plain containers.
        """
        new = Module("torch.fx.GraphModule", training=self.root.training)
        for call in self:
            if call.kind not in ("call_module", "get_attr"):
                continue
            found: Any = self.root
            owner: Any = new
            *above, last = call.target.split(".")
            for name in above:
                found = getattr(found, name)
                if name not in owner.parts:
                    owner.parts[name] = Module("torch.nn.Module", training=True)
                owner = owner.parts[name]
                if owner is found:
                    break  # a called module holds it
            else:
                owner.set(last, getattr(found, last))
                if last in getattr(found, "plain", ()):
                    owner.plain |= {last}
        if self.root.program is self:
            new.program = self
        self.root = new

    def __str__(self) -> str:
        rows = []
        for call in self:
            arguments = [_show(value) for value in call.args]
            arguments += [f"{key}={_show(value)}" for key, value in call.kwargs.items()]
            rows.append(f"{call.name} = {call.kind} {call.target}({', '.join(arguments)})")
        return "\n".join(rows)


def base_name(kind: str, target: str) -> str:
    """Return the name that a new call starts from: the bare name of what is called."""
    if kind == "call_function":
        stem = target.removeprefix("torch.ops.")
        target = stem.partition(".")[2] if stem != target else target.rpartition(".")[2]
    if target.startswith("__") and target.endswith("__") and len(target) > 4:
        target = target[2:-2]
    return _SNAKE.sub(r"_\1", target).lower()


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_show, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(_show, value))}]"
    return value.name if isinstance(value, Call) else repr(value)
