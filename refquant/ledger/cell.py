"""One field of the ledger: an operator, a machine, a dtype; and how its samples are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from refquant.ir.target import Target
from refquant.ir.types import DType


class Call(NamedTuple):
    """One call of an op: operands and attributes as its reference takes them."""

    operands: tuple[Any, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """An operator under one engine and instruction set, with one dtype of activations.

    Parameters
    ----------
    name : str
        torch's name, ``namespace::op`` or ``namespace::op.overload``.
    target : Target
        The machine.
    dtype : DType
        Of the first quantized operand; of the result where none is quantized.
    """

    name: str
    target: Target
    dtype: DType

    def __str__(self) -> str:
        return f"{self.name} {self.target.engine}/{self.target.isa} {self.dtype}"


Sampler = Callable[[np.random.Generator, Cell, int], Call]
"""Draws one call of a cell whose result has about so many elements."""
