"""What the rules of an importer share: argument forms and refusals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from refquant.importers.builder import Builder, Rule
from refquant.ir.errors import UnsupportedError
from refquant.ir.graph import Value
from refquant.ir.qtensor import Tensor

Ints = int | Sequence[int]


class Prepacked(NamedTuple):
    """Parameters that a model packs in its own graph: weight, bias, geometry of a convolution."""

    weight: Value
    bias: Value | None
    geometry: dict[str, Any]


class PrepackedCell(NamedTuple):
    """Parameters of a recurrent cell that a model makes in its own graph.

    ``ih`` and ``hh`` are packed parameters, ``op`` is the product of int8 weights; see
    :class:`refquant.ir.packed_cell.PackedCell`.
    """

    ih: Any
    hh: Any
    reduce_range: bool | None
    op: str = "quantized::linear_dynamic"


class TorchBuilder(Builder, ABC):
    """The builder with what rules need to know of torch's modules and constants."""

    @abstractmethod
    def number(self, value: Any, kind: Any) -> Any:
        """Return a Python number from a number or a tensor of one element."""

    @abstractmethod
    def constant(self, value: Value) -> Tensor:
        """Return a tensor that the model holds; refuse one that is computed."""

    @abstractmethod
    def path(self, module: Any) -> str:
        """Return where a module sits in the model."""

    @abstractmethod
    def of(self, module: Any, name: str, rows: slice | None = None) -> Value | None:
        """Return a module's tensor as a parameter, or a part of its rows; None if absent."""

    @abstractmethod
    def packed(
        self, packed: Any, module: Any = None, rank: int = 0
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return weight, bias and, for a convolution of ``rank``, its geometry."""

    @abstractmethod
    def rule_of(self, module: Any) -> Rule:
        """Return the rule of a module."""

    @abstractmethod
    def stateful(self, module: Any) -> str:
        """Add an observer or fake-quant with its state; return its path."""

    @abstractmethod
    def overwrite(self, value: Value) -> None:
        """Let the result of the call in hand stand for ``value``: the call writes to it."""

    @abstractmethod
    def spoil(self, value: Value) -> None:
        """Refuse later uses of ``value``: whether the call in hand writes to it is not known."""

    @abstractmethod
    def is_view(self, value: Value) -> bool:
        """Whether a tensor may be a view of another one's memory."""

    def weight(self, module: Any) -> Value:
        """Return a module's weight."""
        weight = self.of(module, "weight")
        if weight is None:
            raise UnsupportedError(f"{self.path(module)} has no weight")
        return weight


def is_tensor(value: Any) -> bool:
    """Whether a rule's argument is a tensor."""
    return isinstance(value, Value)


def repeat(value: Ints, rank: int) -> tuple[int, ...]:
    """Return one entry per spatial dimension, as torch's modules expand an int."""
    if isinstance(value, int):
        return (value,) * rank
    return tuple(value) * rank if len(value) == 1 else tuple(value)


def ints(value: Any) -> tuple[Any, ...]:
    """Return ``(2, 3)`` for both ``f(2, 3)`` and ``f((2, 3))``."""
    if len(value) == 1 and isinstance(value[0], tuple | list):
        return tuple(value[0])
    return tuple(value)


def only(condition: bool, message: str) -> None:
    """Refuse what the op does not support."""
    if not condition:
        raise UnsupportedError(message)


def evaluation_only(training: bool, name: str) -> None:
    """Refuse training behaviour."""
    only(not training, f"{name} in training mode; call model.eval() first")


def unary(op: str) -> Rule:
    """Return the rule of an op of one tensor, with or without ``inplace``."""

    def rule(b: TorchBuilder, input: Value, inplace: bool = False) -> Value:
        return b.emit(op, input)

    return rule
