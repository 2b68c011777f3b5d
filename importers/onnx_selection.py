"""Rules of operators that choose or write elements by position, or by their values."""

from __future__ import annotations

from math import ceil, prod
from typing import Any

import numpy as np

from refquant.importers.onnx_boxes import suppress
from refquant.importers.onnx_builder import (
    Array,
    Constant,
    Known,
    OnnxBuilder,
    Operand,
    Rule,
    check_size,
)
from refquant.importers.onnx_reductions import position
from refquant.ir.errors import VerifyError
from refquant.ir.types import TensorType, int64


def _gather(b: OnnxBuilder, x: Known, indices: Known) -> Known:
    axis = position(b.get("axis", 0), x.type.rank)
    if not x.type.rank:
        raise VerifyError("a scalar has no elements to choose from")
    if (
        isinstance(indices, Constant)
        and indices.data.ndim == 0
        and indices.data.dtype.kind in "iu"
    ):
        return b.emit("aten::select", x, dim=axis, index=int(indices.data))
    return b.emit("aten::index", x, *(None,) * axis, indices)


def _gather_elements(b: OnnxBuilder, x: Known, indices: Known) -> Known:
    return b.emit("aten::gather", x, indices, dim=position(b.get("axis", 0), x.type.rank))


def _gather_nd(b: OnnxBuilder, x: Known, indices: Known) -> Known:
    return b.emit("onnx::GatherND", x, indices, batch_dims=b.get("batch_dims", 0))


def _scatter_elements(b: OnnxBuilder, x: Known, indices: Known, updates: Known) -> Known:
    axis = position(b.get("axis", 0), x.type.rank)
    how = b.get("reduction", "none")
    return b.emit("onnx::ScatterElements", x, indices, updates, axis=axis, reduction=how)


def _scatter_nd(b: OnnxBuilder, x: Known, indices: Known, updates: Known) -> Known:
    how = b.get("reduction", "none")
    return b.emit("onnx::ScatterND", x, indices, updates, reduction=how)


def _tensor_scatter(b: OnnxBuilder, cache: Known, update: Known, at: Operand = None) -> Known:
    axis, mode = position(b.get("axis", -2), cache.type.rank), b.get("mode", "linear")
    return b.emit("onnx::TensorScatter", cache, update, at, axis=axis, mode=mode)


def _one_hot(b: OnnxBuilder, indices: Known, depth: Known, values: Known) -> Known:
    count = b.array(depth, "the depth").reshape(-1)
    if count.size != 1:
        raise VerifyError(f"the depth must be one number, got {depth.type}")
    return b.emit("onnx::OneHot", indices, values, depth=int(count[0]), axis=b.get("axis", -1))


# ---- how many there are depends on the values


def _compress(b: OnnxBuilder, x: Known, condition: Known) -> Known:
    kept = np.flatnonzero(b.array(condition, "the condition"))
    axis = b.get("axis")
    if axis is None:
        x, axis = b.emit("aten::reshape", x, shape=(-1,)), 0
    at = position(axis, x.type.rank)
    return b.emit("aten::index_select", x, b.constant(kept, np.int64), dim=at)


def _non_zero(b: OnnxBuilder, x: Known) -> Constant:
    data = b.array(x, "a tensor whose elements are counted")
    return b.constant(np.reshape(np.nonzero(np.atleast_1d(data)), (data.ndim, -1)), np.int64)


def _unique(b: OnnxBuilder, x: Known) -> list[Operand]:
    data, axis = b.array(x, "a tensor whose elements are counted"), b.get("axis")
    if axis is None:
        data, axis = data.reshape(-1), 0
    axis = position(axis, data.ndim)
    rows = np.moveaxis(data, axis, 0)
    keys = rows.reshape(len(rows), prod(rows.shape[1:]))
    # Bits would not order numbers; columns from the last to the first do.
    columns = tuple(_sortable(column) for column in keys.T[::-1])
    order = np.lexsort(columns) if keys.size else np.arange(len(keys))
    of, first, counts = _groups(keys, order)
    if not b.get("sorted", 1):
        turn = np.argsort(first, kind="stable")
        first, counts = first[turn], counts[turn]
        of = np.argsort(turn, kind="stable")[of]
    made = np.moveaxis(rows[first], 0, axis)
    return [b.constant(made), *(b.constant(v, np.int64) for v in (first, of, counts))]


def _sortable(column: Array) -> Array:
    return column if column.dtype.kind in "biuf" else column.astype(np.float64)


def _groups(keys: Array, order: Array) -> tuple[Array, Array, Array]:
    """Return the group of each row, the first row of each group, and its size."""
    if not len(order):
        return (np.zeros(0, np.int64),) * 3
    ordered = keys[order]
    is_new = np.append(True, np.any(ordered[1:] != ordered[:-1], axis=1))
    of = np.empty(len(order), np.int64)
    of[order] = np.cumsum(is_new) - 1
    first = order[is_new]  # the sort keeps the order of equal rows
    return of, first, np.bincount(of)


def _range(b: OnnxBuilder, *bounds: Known) -> Constant:
    values = [b.array(bound, "a bound") for bound in bounds]
    start, limit, step = (v.reshape(-1)[0] for v in values)
    if step == 0 or not all(np.isfinite(float(v)) for v in (start, limit, step)):
        raise VerifyError(f"a range from {start} to {limit} by {step}")
    dtype = values[0].dtype
    if dtype.kind in "iu":
        count = len(range(int(start), int(limit), int(step)))
        wide: np.dtype[Any] = np.dtype(np.int64)
    else:
        wide = np.dtype(np.float64 if dtype == np.float64 else np.float32)
        start, limit, step = (v.astype(wide) for v in (start, limit, step))
        count = max(ceil(float(limit - start) / float(step)), 0)
    check_size(TensorType(int64, (count,)))
    places = np.arange(count).astype(wide)
    return b.constant((start.astype(wide) + places * step.astype(wide)).astype(dtype))


def _non_max_suppression(
    b: OnnxBuilder,
    boxes: Known,
    scores: Known,
    most: Operand = None,
    overlap: Operand = None,
    least: Operand = None,
) -> Constant:
    def number(operand: Operand, default: Any) -> Any:
        if operand is None:
            return default
        return b.array(operand, "a threshold").reshape(-1)[0]

    all_boxes, all_scores = (b.array(x, "boxes and scores") for x in (boxes, scores))
    if all_boxes.ndim != 3 or all_scores.ndim != 3 or all_boxes.shape[2] != 4:
        raise VerifyError(f"boxes {boxes.type} and scores {scores.type}")
    if all_boxes.shape[:2] != (len(all_scores), all_scores.shape[2]):
        raise VerifyError(f"boxes {boxes.type} and scores {scores.type}")
    found = [
        (batch, kind, at)
        for batch, (own, kinds) in enumerate(zip(all_boxes, all_scores, strict=True))
        for kind, values in enumerate(kinds)
        for at in suppress(
            own,
            values,
            int(number(most, 0)),
            np.float32(number(overlap, 0)),
            number(least, None),
            bool(b.get("center_point_box", 0)),
        )
    ]
    return b.constant(np.array(found, np.int64).reshape(-1, 3))


def _features(b: OnnxBuilder, x: Known, indices: Known) -> Known:
    """Choose columns, as classical models do; a vector is one row."""
    rank = max(x.type.rank, 2)
    x = b.emit("aten::unsqueeze", x, dim=0) if x.type.rank == 1 else x
    columns = b.emit("aten::reshape", indices, shape=(-1,))
    return b.emit("aten::index", x, *(None,) * (rank - 1), columns)


SELECTION: dict[str, Rule] = {
    "Compress": _compress,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonMaxSuppression": _non_max_suppression,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Range": _range,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
    "Unique": _unique,
    "ai.onnx.ml.ArrayFeatureExtractor": _features,
}
