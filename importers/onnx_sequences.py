"""Rules of sequences and optionals, which exist only while a model is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.importers.onnx_builder import Constant, OnnxBuilder, Operand, Rule
from refquant.importers.onnx_reductions import position
from refquant.ir.errors import UnsupportedError, VerifyError
from refquant.ir.graph import Value

MOST_PARTS = 10_000


def _sequence(operand: Operand) -> tuple[Any, ...]:
    if not isinstance(operand, tuple):
        raise VerifyError("expected a sequence")
    return operand


def _index(b: OnnxBuilder, at: Operand, count: int) -> int:
    index = int(b.array(at, "a position").reshape(()))
    if not -count <= index < count:
        raise VerifyError(f"position {index} is outside a sequence of {count}")
    return index % count if count else 0


def _at(b: OnnxBuilder, sequence: Operand, at: Operand) -> Operand:
    parts = _sequence(sequence)
    found: Operand = parts[_index(b, at, len(parts))]
    return found


def _insert(b: OnnxBuilder, sequence: Operand, tensor: Operand, where: Operand = None) -> Operand:
    parts = list(_sequence(sequence))
    count = len(parts)
    at = count
    if where is not None:
        at = int(b.array(where, "a position").reshape(()))
        if not -count <= at <= count:
            raise VerifyError(f"position {at} is outside a sequence of {count}")
    parts.insert(at, tensor)
    return tuple(parts)


def _erase(b: OnnxBuilder, sequence: Operand, where: Operand = None) -> Operand:
    parts = list(_sequence(sequence))
    del parts[-1 if where is None else _index(b, where, len(parts))]
    return tuple(parts)


def _length(b: OnnxBuilder, sequence: Operand) -> Constant:
    return b.constant(len(_sequence(sequence)), np.int64)


def _concatenated(b: OnnxBuilder, sequence: Operand) -> Operand:
    parts, axis = _sequence(sequence), b.get("axis")
    if b.get("new_axis"):
        return b.emit("aten::stack", *parts, dim=axis)
    return b.emit("aten::cat", *parts, dim=axis)


def _split(b: OnnxBuilder, x: Operand, split: Operand = None) -> Operand:
    if not isinstance(x, Value | Constant):
        raise VerifyError("expected a tensor")
    axis = position(b.get("axis", 0), x.type.rank)
    length = x.type.shape[axis]
    if not isinstance(length, int):
        raise UnsupportedError(f"the length of dimension {axis} of {x.type} must be known")
    sizes: tuple[int, ...] = (1,) * length
    if split is not None:
        given = b.integers(split, "the lengths")
        sizes = given
        if isinstance(split, Constant) and split.type.rank == 0:
            (each,) = given
            if each < 1:
                raise VerifyError(f"the length of a part must be positive, got {each}")
            rest = (length % each,) if length % each else ()
            sizes = (each,) * (length // each) + rest
    if any(n < 0 for n in sizes):
        raise VerifyError(f"a length is negative in {list(sizes)}")
    if len(sizes) > MOST_PARTS:
        raise UnsupportedError(f"a sequence of {len(sizes)} parts, more than {MOST_PARTS}")
    parts = b.emit_all("aten::split_with_sizes", x, split_sizes=sizes, dim=axis)
    if split is None and not b.get("keepdims", 1):
        return tuple(b.emit("aten::squeeze", part, dim=axis) for part in parts)
    return tuple(parts)


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
    "SplitToSequence": _split,
}
