"""Attributes that a pass adds to the model, under names nobody has."""

from __future__ import annotations

from typing import Any

from refquant.ir.module import Module


class Attributes:
    """Adds modules and constants to a model as ``<prefix><number>``, the lowest number free.

    Parameters
    ----------
    root : Module
        The model.
    """

    def __init__(self, root: Module) -> None:
        self._root = root
        self._from: dict[str, int] = {}  # below which all numbers are taken

    def add(self, prefix: str, value: Any) -> str:
        """Add a value; return its name."""
        prefix = prefix.replace(".", "_")
        number = self._from.get(prefix, 0)
        while self._root.has(f"{prefix}{number}"):
            number += 1
        self._from[prefix] = number + 1
        self._root.set(f"{prefix}{number}", value)
        return f"{prefix}{number}"
