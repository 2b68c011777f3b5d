"""A module: its class by name, plain attributes, arrays, and the modules in it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from refquant.ir.qtensor import Array, QTensor, Tensor


class Packed(NamedTuple):
    """Parameters packed for an engine: weight, bias and, for a convolution, its geometry."""

    weight: Tensor
    bias: Array | None
    geometry: Mapping[str, Any]


@dataclass(eq=False)
class Module:
    """A module of a model, or an observer or fake-quant with its state.

    Attributes of torch's class are attributes here: those of ``config``, ``state`` and ``parts``.

    Parameters
    ----------
    kind : str
        Public name of torch's class.
    config : dict
        Plain attributes: what it was constructed with.
    state : dict
        Parameters and buffers under torch's names; None for an absent one, such as a bias.
    parts : dict
        The modules in it by name, in order.
    training : bool
        Whether it behaves as in training.
    role : str
        ``observer``, ``fake_quantize``, ``equalization``, or empty.
    plain : frozenset of str
        Arrays in ``state`` that are no parameter or buffer, which a ``state_dict`` leaves out.
    program : Program, optional
        The calls in it, for a module that is prepared and converted by itself.
    """

    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    training: bool = False
    role: str = ""
    plain: frozenset[str] = frozenset()
    program: Any = None

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            for table in ("state", "parts", "config"):
                found = self.__dict__.get(table, {})
                if name in found:
                    return found[name]
        raise AttributeError(f"{self.__dict__.get('kind')} has no attribute {name!r}")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.parts.values())

    def __getitem__(self, index: int) -> Any:
        return list(self.parts.values())[index]

    def named_modules(
        self, prefix: str = "", *, shared: bool = False
    ) -> Iterator[tuple[str, Any]]:
        """Yield the module and all in it with their paths.

        Parameters
        ----------
        prefix : str
            Path of this module.
        shared : bool
            Yield a module again under each further path.
        """
        yield from _named(self, prefix, None if shared else set())

    def get(self, path: str) -> Any:
        """Return what is at a dotted path: a module, an array, or a plain attribute."""
        found: Any = self
        for name in path.split(".") if path else ():
            found = getattr(found, name)
        return found

    def has(self, path: str) -> bool:
        """Whether something is at a dotted path."""
        try:
            self.get(path)
        except AttributeError:
            return False
        return True

    def set(self, path: str, value: Any) -> None:
        """Put a module, array or packed parameters at a dotted path."""
        parent, _, name = path.rpartition(".")
        owner = self.get(parent)
        for table in (owner.state, owner.parts, owner.config):
            table.pop(name, None) if table is not _table(owner, value) else None
        _table(owner, value)[name] = value

    def copy(self, memo: dict[int, Any] | None = None) -> Module:
        """Return a copy that shares the arrays; a module used twice stays one module."""
        memo = {} if memo is None else memo
        if id(self) not in memo:
            made = copy.copy(self)
            memo[id(self)] = made
            made.config, made.state = dict(self.config), dict(self.state)
            made.parts = {
                name: part.copy(memo) if isinstance(part, Module) else _copied(part, memo)
                for name, part in self.parts.items()
            }
            if self.program is not None:
                made.program = self.program.copy_onto(made)
        return memo[id(self)]  # type: ignore[no-any-return]


def _copied(part: Any, memo: dict[int, Any]) -> Any:
    if id(part) not in memo:
        memo[id(part)] = copy.deepcopy(part)
    return memo[id(part)]


def _table(owner: Module, value: Any) -> dict[str, Any]:
    return owner.state if isinstance(value, np.ndarray | QTensor | Packed) else owner.parts


def _named(module: Any, path: str, seen: set[int] | None) -> Iterator[tuple[str, Any]]:
    if seen is not None:
        if id(module) in seen:
            return
        seen.add(id(module))
    yield path, module
    for name, part in getattr(module, "parts", {}).items():
        yield from _named(part, f"{path}.{name}" if path else name, seen)
