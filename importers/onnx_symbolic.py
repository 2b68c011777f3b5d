"""Arithmetic on lengths that depend on the batch, as models do it to compute shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.importers.onnx_builder import Array, OnnxBuilder
from refquant.ir.types import Dim


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
    return int(x / y) if y else 0


def _each(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    return lambda b, x, y: np.frompyfunc(function, 2, 1)(x, y)


SYMBOLIC: dict[str, Callable[..., Any]] = {
    "Add": _each(lambda x, y: x + y),
    "Cast": lambda b, x: x,
    "Concat": _concat,
    "Div": _each(_quotient),
    "Gather": _gather,
    "Identity": lambda b, x: x,
    "Mul": _each(lambda x, y: x * y),
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _each(lambda x, y: x - y),
    "Unsqueeze": _unsqueeze,
}
