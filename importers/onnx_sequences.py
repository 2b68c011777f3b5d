"""Rules of sequences and optionals, which exist only while a model is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.importers.onnx_builder import Constant, OnnxBuilder, Operand, Rule
from refquant.ir.errors import VerifyError


def _sequence(operand: Operand) -> tuple[Any, ...]:
    if not isinstance(operand, tuple):
        raise VerifyError("expected a sequence")
    return operand


def _index(b: OnnxBuilder, position: Operand, count: int) -> int:
    index = int(b.array(position, "a position"))
    if not -count <= index < count:
        raise VerifyError(f"position {index} is outside a sequence of {count}")
    return index % count if count else 0


def _at(b: OnnxBuilder, sequence: Operand, position: Operand) -> Operand:
    parts = _sequence(sequence)
    found: Operand = parts[_index(b, position, len(parts))]
    return found


def _insert(
    b: OnnxBuilder, sequence: Operand, tensor: Operand, position: Operand = None
) -> Operand:
    parts = list(_sequence(sequence))
    count = len(parts)
    at = count
    if position is not None:
        at = int(b.array(position, "a position"))
        if not -count <= at <= count:
            raise VerifyError(f"position {at} is outside a sequence of {count}")
    parts.insert(at, tensor)
    return tuple(parts)


def _erase(b: OnnxBuilder, sequence: Operand, position: Operand = None) -> Operand:
    parts = list(_sequence(sequence))
    del parts[-1 if position is None else _index(b, position, len(parts))]
    return tuple(parts)


def _length(b: OnnxBuilder, sequence: Operand) -> Constant:
    return b.constant(len(_sequence(sequence)), np.int64)


def _concatenated(b: OnnxBuilder, sequence: Operand) -> Operand:
    parts, axis = _sequence(sequence), b.get("axis")
    if b.get("new_axis"):
        return b.emit("aten::stack", *parts, dim=axis)
    return b.emit("aten::cat", *parts, dim=axis)


def _element(b: OnnxBuilder, optional: Operand) -> Operand:
    if optional is None:
        raise VerifyError("an optional that holds nothing")
    return optional


SEQUENCES: dict[str, Rule] = {
    "ConcatFromSequence": _concatenated,
    "Optional": lambda b, x=None: x,
    "OptionalGetElement": _element,
    "OptionalHasElement": lambda b, x=None: b.constant(x is not None),
    "SequenceAt": _at,
    "SequenceConstruct": lambda b, *parts: tuple(parts),
    "SequenceEmpty": lambda b: (),
    "SequenceErase": _erase,
    "SequenceInsert": _insert,
    "SequenceLength": _length,
}
