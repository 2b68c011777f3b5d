"""Patterns: the object types, and their order in the graph, that an entry is about."""

from __future__ import annotations

from enum import Enum
from typing import Any, TypeAlias

from refquant.ir.errors import VerifyError
from refquant.ir.names import object_type


class Wildcard(Enum):
    """What stands in a pattern for any node."""

    MATCH_ALL = "torch.ao.quantization.utils.MatchAllNode"

    def __repr__(self) -> str:
        return self.name


MATCH_ALL = Wildcard.MATCH_ALL
Pattern: TypeAlias = "str | Wildcard | tuple[Pattern, ...]"


def normalize(pattern: Any) -> Pattern:
    """Return a pattern with one name for each class, function and method in it.

    Raises
    ------
    VerifyError
        If a part is none of these.

    Examples
    --------
    >>> normalize(("nn.Conv2d", "torch.relu", MATCH_ALL))
    ('torch.nn.Conv2d', 'torch.relu', MATCH_ALL)
    """
    if isinstance(pattern, tuple):
        return tuple(map(normalize, pattern))
    if isinstance(pattern, Wildcard):
        return pattern
    name = object_type(pattern)
    return MATCH_ALL if name == MATCH_ALL.value else name


def reverse(pattern: Pattern) -> Pattern:
    """Return a pattern as the matcher takes it, the last node first.

    Raises
    ------
    VerifyError
        If it is a tuple of another length than 2 or 3.

    Examples
    --------
    >>> reverse(("conv", "bn", "relu"))
    ('relu', ('bn', 'conv'))
    """
    if not isinstance(pattern, tuple):
        return pattern
    if len(pattern) == 2:
        return pattern[1], pattern[0]
    if len(pattern) == 3:
        return pattern[2], (pattern[1], pattern[0])
    raise VerifyError(f"expected a pattern of 2 or 3 elements, got {pattern}")


def leaves(pattern: Pattern) -> int:
    """Return how many nodes a pattern has."""
    return sum(map(leaves, pattern)) if isinstance(pattern, tuple) else 1
