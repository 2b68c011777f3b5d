"""Fusion: modules that a back-end computes in one step become one module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from refquant.backend_config import MATCH_ALL, BackendConfig
from refquant.backend_config.fuser import NodeGetter
from refquant.backend_config.lookup import (
    get_fuser_method_mapping,
    get_fuser_method_new,
    get_fusion_pattern_to_extra_inputs_getter,
    get_fusion_pattern_to_root_node_getter,
)
from refquant.backend_config.pattern import Pattern
from refquant.defects import reproduce
from refquant.fx.fuser_methods import run_fuser
from refquant.fx.match import PatternTable, default_root
from refquant.ir.errors import RefquantError, VerifyError
from refquant.ir.module import Module
from refquant.ir.program import Call, Program, each


class _Found:
    """A match: its last call, its pattern, and the calls in it."""

    def __init__(self, last: Call, pattern: Pattern, matched: list[Any]) -> None:
        self.last, self.pattern, self.matched = last, pattern, matched


def fuse(program: Program, is_qat: bool, backend: BackendConfig) -> Program:
    """Return the program with every pattern fused that the back-end has a fuser for.

    The fused module takes the place of the pattern's first module, and its call stands where the
    pattern's last call stood. The module tree is changed.

    Raises
    ------
    VerifyError
        If modules cannot be fused; the call is named.
    """
    found, parts = _find(program, backend)
    roots = get_fusion_pattern_to_root_node_getter(backend)
    _keep_shared_modules(program, found, roots)
    fusers = get_fuser_method_mapping(backend)
    extras = get_fusion_pattern_to_extra_inputs_getter(backend)
    modules = dict(program.root.named_modules())
    fused = Program(program.root)
    fused.meta = program.meta
    same: dict[str, Call] = {}

    def load(call: Call) -> Call:
        return same[call.name]

    for call in program:
        match = found.get(call.name)
        if match is None or (match.last is not call and parts.get(call) is MATCH_ALL):
            same[call.name] = fused.copy_call(call, load)
        elif match.last is call:
            root = _apply(roots.get(match.pattern, default_root), match)
            if root.kind != "call_module":
                raise VerifyError(f"{root.name}: the root of a fused pattern must be a module")
            parted = _modules(match.matched, modules, modules[root.target].training)
            fuser = get_fuser_method_new(_kinds(parted), fusers)
            try:
                made = run_fuser(fuser, is_qat, parted)
            except RefquantError as error:
                raise type(error)(f"{root.target}: {error}") from None
            program.root.set(root.target, made)
            getter = extras.get(match.pattern)
            extra = [each(value, load) for value in _apply(getter, match)] if getter else []
            same[call.name] = node = fused.copy_call(root, load)
            if extra:
                node.args = (*node.args, *extra)
    return fused


def _find(program: Program, backend: BackendConfig) -> tuple[dict[str, _Found], dict[Call, Any]]:
    table = PatternTable(
        {
            pattern: config
            for pattern, config in backend._pattern_complex_format_to_config.items()
            if config.fuser_method is not None
        }
    )
    found: dict[str, _Found] = {}
    parts: dict[Call, Any] = {}

    def apply(part: Any, call: Any, last: Call, pattern: Pattern, matched: list[Any]) -> None:
        if isinstance(part, tuple):
            own, *operands = part
            inner: list[Any] = []
            apply(own, call, last, pattern, inner)
            for operand, arg in zip(operands, call.args, strict=False):
                apply(operand, arg, last, pattern, inner)
            matched.append(tuple(inner))
            if call is last:
                found[last.name].matched = inner
        elif not isinstance(call, Call) or call.name not in found:
            matched.append(call)
            if part is not MATCH_ALL:
                parts[call] = part
                found[call.name] = _Found(last, pattern, matched)

    for call in reversed(program):
        if call.name not in found and (hit := table.first(program, call)):
            apply(hit[0], call, call, hit[0], [])
    return found, parts


def _keep_shared_modules(
    program: Program, found: dict[str, _Found], roots: Mapping[Pattern, NodeGetter]
) -> None:
    """Where calls of one module would be fused differently, fuse none of them, or do as torch."""
    calls = Counter(call.target for call in program if call.kind == "call_module")
    fused: dict[str, list[_Found]] = {}
    for match in {id(m.last): found[m.last.name] for m in found.values()}.values():
        root = _apply(roots.get(match.pattern, default_root), match)
        if calls[root.target] > 1:
            fused.setdefault(root.target, []).append(match)
    for target, matches in fused.items():
        forms = {str(_targets(match.matched)) for match in matches}
        alike = len(matches) == calls[target] and len(forms) == 1
        if not alike and not reproduce("shared-module-fusion", target):
            lasts = [match.last for match in matches]
            for name in [name for name, match in found.items() if match.last in lasts]:
                del found[name]


def _apply(getter: NodeGetter, match: _Found) -> Any:
    try:
        return getter(match.matched)
    except (TypeError, ValueError, IndexError):
        raise VerifyError(
            f"{match.last.name}: the pattern {match.pattern} cannot be fused where two of its "
            "parts are one call, which torch cannot either"
        ) from None


def _targets(matched: Any) -> Any:
    if isinstance(matched, list | tuple):
        return [_targets(part) for part in matched]
    return getattr(matched, "target", matched)


def _modules(matched: Any, modules: dict[str, Any], training: bool) -> Any:
    """Return the modules of matched calls, the names of functions, and wildcards."""
    if isinstance(matched, list | tuple):
        return tuple(_modules(part, modules, training) for part in matched)
    if matched.kind == "call_module":
        return modules[matched.target]
    if matched.target == "torch.nn.functional.relu":
        return Module("torch.nn.ReLU", {"inplace": False}, training=training)
    return matched.target if matched.kind in ("call_function", "call_method") else MATCH_ALL


def _kinds(modules: Any) -> Any:
    if isinstance(modules, tuple):
        return tuple(map(_kinds, modules))
    return getattr(modules, "kind", modules)
