"""Equalization between the input and the weight of a layer."""

from __future__ import annotations

from typing import Any

from refquant.ir.program import Call, Program


def supports_equalization(call: Call, program: Program) -> bool:
    """Whether a call's input and weight can be scaled against each other."""
    raise NotImplementedError


def equalize(program: Program, observed: Any) -> None:
    """Scale inputs and weights by what the equalization observers saw."""
