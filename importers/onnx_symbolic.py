"""Arithmetic on lengths that depend on the batch, as models do it to compute shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refquant.importers.onnx_builder import (
    Array,
    Constant,
    DataDependentError,
    OnnxBuilder,
    Operand,
    check_size,
)
from refquant.importers.onnx_file import element_type
from refquant.ir.types import Dim, TensorType, int32, int64


def _axes(b: OnnxBuilder, axes: tuple[Array, ...]) -> tuple[int, ...] | None:
    given = axes[0].reshape(-1) if axes else b.get("axes")
    return None if given is None else tuple(int(axis) for axis in given)


def _gather(b: OnnxBuilder, x: Array, indices: Array) -> Any:
    return np.take(x, np.asarray(indices, np.int64), axis=b.get("axis"))


def _slice(b: OnnxBuilder, x: Array, *bounds: Array) -> Any:
    if bounds:
        starts, ends, *more = (tuple(map(int, bound.reshape(-1))) for bound in bounds)
    else:
        starts, ends, more = b.get("starts"), b.get("ends"), [b.get("axes") or (0,)]
    axes = more[0] if more else tuple(range(len(starts)))
    steps = more[1] if len(more) > 1 else (1,) * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        lengths = range(x.shape[axis])[start:end:step]
        x = np.take(x, list(lengths), axis)
    return x


def _concat(b: OnnxBuilder, *parts: Array) -> Any:
    return np.concatenate([np.asarray(part, object) for part in parts], b.get("axis"))


def _squeeze(b: OnnxBuilder, x: Array, *axes: Array) -> Any:
    return np.squeeze(x, _axes(b, axes))


def _unsqueeze(b: OnnxBuilder, x: Array, *axes: Array) -> Any:
    found = _axes(b, axes)
    return np.expand_dims(x, found or ())


def _reshape(b: OnnxBuilder, x: Array, shape: Array) -> Any:
    return x.reshape(tuple(map(int, shape)))


def _quotient(x: Any, y: Any) -> Any:
    """Divide as ONNX divides integers, towards zero; lengths are not negative."""
    if isinstance(x, Dim) or isinstance(y, Dim):
        return x // y
    if not y:
        return 0
    return abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)


def _remainder(x: Any, y: Any) -> Any:
    if isinstance(x, Dim):
        return x - x // y * y
    return x % y


def _is_equal(x: Any, y: Any) -> bool:
    """Compare lengths; whether one that depends on the batch is a given number is not known."""
    if x == y:
        return True
    for one, other in ((x, y), (y, x)):
        if isinstance(one, Dim) and (isinstance(other, Dim) or other >= 0):
            raise DataDependentError(f"{one} == {other} depends on the batch")
    return False


def _larger(x: Any, y: Any) -> Any:
    for one, other in ((x, y), (y, x)):
        if isinstance(one, Dim):
            if one == other or (isinstance(other, int) and other <= 0):
                return one
            raise DataDependentError(f"the larger of {one} and {other} depends on the batch")
    return max(x, y)


def _each(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda b, x, y: np.frompyfunc(function, 2, 1)(x, y)


def _equal(b: OnnxBuilder, x: Array, y: Array) -> Array:
    return np.asarray(np.frompyfunc(_is_equal, 2, 1)(x, y), np.bool_)


def _cast(b: OnnxBuilder, x: Array) -> Array:
    if element_type(b.get("to"), "the result") not in (int32, int64):
        raise DataDependentError("a length as a float depends on the batch; give its shape")
    return x


def _expand(b: OnnxBuilder, x: Array, shape: Array) -> Array:
    sizes = tuple(int(n) for n in shape)
    check_size(TensorType(int64, sizes))
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, sizes))


def _product(b: OnnxBuilder, x: Array, *axes: Array) -> Any:
    found: Any = np.prod(x, axis=_axes(b, axes), keepdims=bool(b.get("keepdims", 1)))
    return found


SYMBOLIC: dict[str, Callable[..., Any]] = {
    "Add": _each(lambda x, y: x + y),
    "Cast": _cast,
    "Concat": _concat,
    "Div": _each(_quotient),
    "Equal": _equal,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": lambda b, x: x,
    "Max": _each(_larger),
    "Mod": _each(_remainder),
    "Mul": _each(lambda x, y: x * y),
    "ReduceProd": _product,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(lambda x, y: x - y),
    "Unsqueeze": _unsqueeze,
    "Where": lambda b, condition, x, y: np.where(condition, x, y),
}

# Whose later operands say where or how much, not what.
_OF_FIRST = ("Cast", "Expand", "Gather", "ReduceProd", "Reshape", "Slice", "Squeeze", "Unsqueeze")


def is_arithmetic_of_lengths(op: str, operands: Sequence[Operand]) -> bool:
    """Whether an operator computes from lengths that depend on the batch, and constants."""
    constants = [x for x in operands if isinstance(x, Constant)]
    if op not in SYMBOLIC or len(constants) != len(operands):
        return False
    return any(x.is_symbolic for x in (constants[:1] if op in _OF_FIRST else constants))
