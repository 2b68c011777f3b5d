"""A warning for entries of a QConfigMapping that match nothing, with the nearest names."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable
from difflib import get_close_matches

from refquant.ir.program import Program
from refquant.observer_base import caller
from refquant.qconfig_mapping import QConfigMapping


def warn_of_unmatched_entries(program: Program, mapping: QConfigMapping) -> None:
    """Warn of module names and patterns that no module of the model has.

    Object types are not warned of: default mappings name many that a model does not have.
    """
    paths = {path for path, _ in program.root.named_modules(shared=True)}
    owners = {call.owner.path for call in program if call.owner is not None}
    known = sorted({*paths, *owners, *_parents(owners)} - {""})
    for name in mapping.module_name_qconfigs:
        _warn(name, "module name", name in known, known)
    for pattern in mapping.module_name_regex_qconfigs:
        _warn(pattern, "module name regex", any(re.match(pattern, p) for p in known), known)
    for name, kind, _ in mapping.module_name_object_type_order_qconfigs:
        _warn(name, f"module name (for {kind})", name in (*known, ""), known)


def _parents(paths: Iterable[str]) -> set[str]:
    found = set()
    for path in paths:
        while path:
            found.add(path)
            path = path.rpartition(".")[0]
    return found


def _warn(name: str, what: str, matches: bool, known: Collection[str]) -> None:
    if matches:
        return
    near = get_close_matches(name, known, 3, 0.4)
    hint = f"; the nearest names are {', '.join(near)}" if near else ""
    warnings.warn(
        f"qconfig_mapping: {what} {name!r} matches no module of the model{hint}",
        UserWarning,
        stacklevel=caller(),
    )
