"""Matching: which calls belong to which pattern of a back-end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from refquant.backend_config import MATCH_ALL, BackendConfig, ObservationType
from refquant.backend_config.lookup import (
    get_fusion_pattern_to_root_node_getter,
    sorted_patterns_dict,
)
from refquant.backend_config.pattern import Pattern
from refquant.defects import fixes
from refquant.ir.errors import VerifyError
from refquant.ir.program import Call, Program


def object_type_of(call: Call, program: Program) -> str:
    """Return what a pattern compares: the class of the module, the function, or the method."""
    if call.kind == "call_module":
        return str(program.root.get(call.target).kind)
    return call.target if call.kind in ("call_function", "call_method") else ""


def is_match(program: Program, call: Any, pattern: Any, max_uses: int = sys.maxsize) -> bool:
    """Whether a call, and what it is computed from, fits a pattern.

    Only the last call of a pattern may have more than one user. Keyword arguments do not count.
    """
    own, *operands = pattern if isinstance(pattern, tuple) else (pattern,)
    if own is MATCH_ALL:
        return isinstance(call, Call)  # torch takes a number, too, and then fails to fuse it
    if not isinstance(call, Call) or len(call.users) > max_uses:
        return False
    if object_type_of(call, program) != own:
        return False
    if own == "builtins.getattr" and isinstance(pattern, tuple):
        return bool(call.args[1] == pattern[1])
    if not operands:
        return True
    return len(operands) == len(call.args) and all(
        is_match(program, arg, part, 1) for arg, part in zip(call.args, operands, strict=True)
    )


class PatternTable:
    """The patterns in the order in which they are tried, found by what their last call is.

    Parameters
    ----------
    patterns : mapping
        In the order of the back-end; the value is kept with the pattern.
    """

    def __init__(self, patterns: Mapping[Pattern, Any]) -> None:
        self._by_last: dict[Any, list[tuple[Pattern, Any]]] = {}
        for pattern, value in sorted_patterns_dict(patterns).items():
            last = pattern[0] if isinstance(pattern, tuple) else pattern
            self._by_last.setdefault(last, []).append((pattern, value))

    def first(self, program: Program, call: Call) -> tuple[Pattern, Any] | None:
        """Return the first pattern that ends in ``call``."""
        for pattern, value in self._by_last.get(object_type_of(call, program), ()):
            if is_match(program, call, pattern):
                return pattern, value
        return None


def default_root(matched: Any) -> Any:
    """Return the first call of a match: the last of the innermost nesting."""
    while isinstance(matched, list | tuple):
        matched = matched[-1]
    return matched


@dataclass
class Match:
    """A pattern found in a program, or a module treated as one unit.

    Attributes
    ----------
    last : Call
        Whose result is the pattern's.
    matched : nested list
        The calls, the last first; literals where the pattern has a wildcard.
    pattern : Pattern or None
        None for custom and standalone modules.
    root : object
        The call whose arguments are the pattern's inputs.
    shares_observer : bool
        Whether the output has the observer of the input.
    """

    last: Call
    matched: Any
    pattern: Pattern | None
    root: Any
    shares_observer: bool = False
    is_custom_module: bool = False
    is_standalone_module: bool = False
    qconfig: Any = field(default=None)


class NoTensors:
    """Whether calls are known to depend on no tensor, as torch guesses it.

    An int is no tensor; any other literal that is not a call counts as one.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._known: dict[Call, bool] = {}
        self.size_arithmetic: set[Call] = set()  # where torch takes numbers for tensors

    def __call__(self, value: Any) -> bool:
        """Whether the value is made of plain numbers only."""
        if not isinstance(value, Call):
            return True
        # Filled from the inputs on: a chain may be longer than Python's recursion.
        pending = [value]
        while pending:
            call = pending[-1]
            if call in self._known:
                pending.pop()
                continue
            needed = [source for source in self._sources(call) if source not in self._known]
            if needed:
                pending += needed
            else:
                self._known[call] = self._of(call)
                pending.pop()
        return self._known[value]

    def _sources(self, call: Call) -> Iterable[Call]:
        if call.kind in ("placeholder", "get_attr"):
            return ()
        if call.kind == "call_module" and not is_observer(self._program.root.get(call.target)):
            return ()
        return call.inputs

    def _of(self, call: Call) -> bool:
        known = self._known
        if call.kind in ("placeholder", "get_attr"):
            return False
        if call.kind == "call_module":
            is_one = is_observer(self._program.root.get(call.target))
            return is_one and known.get(call.args[0], True)
        if call.target == "operator.getitem":
            return known.get(call.args[0], True)
        if call.target == "builtins.getattr" and call.args[1] in ("ndim", "shape"):
            return True
        if call.kind == "call_method" and call.target == "size":
            return True
        return bool(call.args) and all(self._harmless(call, arg) for arg in call.args)

    def _harmless(self, call: Call, arg: Any) -> bool:
        if isinstance(arg, list):
            return all(self._known[part] for part in arg if isinstance(part, Call))
        if isinstance(arg, Call):
            return self._known[arg]
        if isinstance(arg, tuple) and self._is_size(arg):
            self.size_arithmetic.add(call)
            return fixes()
        return isinstance(arg, int)

    def _is_size(self, value: tuple[Any, ...]) -> bool:
        """Whether a tuple holds plain numbers only."""
        calls = [part for part in value if isinstance(part, Call)]
        plain = all(isinstance(part, int | Call) for part in value)
        return plain and all(self._known.get(part, False) for part in calls)


def is_observer(module: Any) -> bool:
    """Whether a module is an observer or a fake-quant."""
    return getattr(module, "role", "") in ("observer", "fake_quantize")


def is_observed_standalone(module: Any) -> bool:
    """Whether a module is a standalone module that was prepared."""
    program = getattr(module, "program", None)
    return program is not None and "observed" in program.meta


def find_matches(
    program: Program,
    backend: BackendConfig,
    standalone_names: Collection[str] = (),
    standalone_kinds: Collection[str] = (),
    custom_kinds: Collection[str] = (),
) -> dict[str, Match]:
    """Return the match of every call that belongs to one, by the call's name.

    The program is searched from its end; the first pattern that fits is taken.
    """
    table = PatternTable(backend._pattern_complex_format_to_config)
    getters = get_fusion_pattern_to_root_node_getter(backend)
    no_tensors = NoTensors(program)
    found: dict[str, Match] = {}
    for call in reversed(program):
        if call.name in found:
            continue
        hit = table.first(program, call)
        if hit is None:
            continue
        pattern, config = hit
        matched: list[Any] = []
        _record(pattern, call, matched)
        root = getters.get(pattern, default_root)(matched)
        share = _shares(root, pattern, config, no_tensors)
        _note(matched, found, Match(call, matched, pattern, root, share))
    for call, module in program.owners():
        if module.kind in custom_kinds:
            found[call.name] = Match(call, call, None, call, is_custom_module=True)
    for call, module in program.owners():
        named = call.target in standalone_names or module.kind in standalone_kinds
        if named or is_observed_standalone(module):
            found[call.name] = Match(call, call, None, call, is_standalone_module=True)
    return found


def _shares(root: Any, pattern: Pattern, config: Any, no_tensors: Callable[[Any], bool]) -> bool:
    kind = config.observation_type
    by_count = config._num_tensor_args_to_observation_type
    if by_count:
        args = root.args if isinstance(root, Call) else ()
        count = sum(isinstance(arg, Call) and not no_tensors(arg) for arg in args)
        if count not in by_count:
            raise VerifyError(
                f"{root}: the back-end gives no observation type for {count} tensor arguments "
                f"of {pattern}; add it to num_tensor_args_to_observation_type"
            )
        kind = by_count[count]
    return bool(kind == ObservationType.OUTPUT_SHARE_OBSERVER_WITH_INPUT)


def _record(pattern: Any, call: Any, matched: list[Any]) -> None:
    """Note the calls of a match in the nesting of its pattern."""
    if not isinstance(pattern, tuple):
        matched.append(call)
        return
    own, *operands = pattern
    inner: list[Any] = []
    _record(own, call, matched)
    if own != "builtins.getattr":
        for part, arg in zip(operands, call.args, strict=False):
            _record(part, arg, inner)
    if len(inner) > 1:
        if len(operands) == 1:
            matched.append(tuple(inner))
        else:
            matched.extend(inner)
    elif inner:
        matched.append(inner[0])


def _note(matched: Any, found: dict[str, Match], match: Match) -> None:
    if isinstance(matched, Call):
        found[matched.name] = match
    elif isinstance(matched, list | tuple):
        for part in matched:
            _note(part, found, match)
