"""Rules of reductions, running sums and norms over dimensions."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import ml_dtypes
import numpy as np

from refquant.importers.onnx_builder import DataDependentError, Known, OnnxBuilder, Operand, Rule
from refquant.importers.onnx_elementwise import alike
from refquant.ir.errors import VerifyError
from refquant.ir.types import DType, Size, bfloat16, bool_, float32, float64

Axes = tuple[int, ...]


def position(axis: int, rank: int, what: str = "axis") -> int:
    """Return a dimension counted from the front."""
    if not -rank <= axis < rank:
        raise VerifyError(f"{what} {axis} is outside a tensor of rank {rank}")
    return axis % rank


def given_axes(b: OnnxBuilder, operand: Operand = None) -> Axes | None:
    """Return the axes of an operand or, in older opsets, an attribute; None where absent."""
    if operand is not None:
        return b.integers(operand, "axes")
    axes: Axes | None = b.get("axes")
    return axes


def _axes(b: OnnxBuilder, x: Known, operand: Operand) -> Axes:
    rank = x.type.rank
    given = given_axes(b, operand)
    if not given:
        return () if b.get("noop_with_empty_axes", 0) else tuple(range(rank))
    if not rank and set(given) <= {0, -1}:
        return ()
    axes = tuple(position(axis, rank) for axis in given)
    if len(set(axes)) != len(axes):
        raise VerifyError(f"axes {list(given)} name a dimension twice")
    return axes


def _keeps(b: OnnxBuilder) -> bool:
    return bool(b.get("keepdims", 1))


def _lengths(x: Known, axes: Axes) -> list[Size]:
    return [x.type.shape[axis] for axis in axes]


def _sum(b: OnnxBuilder, x: Known, axes: Axes) -> Known:
    if not axes:
        return x
    if x.type.dtype == bfloat16:
        return b.emit("onnx::ReduceSum", x, axes=axes, keepdims=_keeps(b))
    return b.cast(b.emit("aten::sum", x, dim=axes, keepdim=_keeps(b)), x.type.dtype)


def _mean(b: OnnxBuilder, x: Known, axes: Axes) -> Known:
    if not axes:
        return x
    dtype = x.type.dtype
    if dtype.is_floating_point and dtype != float64:
        mean = b.emit("aten::mean", b.cast(x, float32), dim=axes, keepdim=_keeps(b))
        return b.cast(mean, dtype)
    lengths = _lengths(x, axes)
    if not all(isinstance(n, int) for n in lengths):
        raise DataDependentError(f"a mean over {x.type} depends on the batch")
    count = alike(b, prod(n for n in lengths if isinstance(n, int)), x)
    mode = None if dtype.is_floating_point else "trunc"
    return b.emit("aten::div", _sum(b, x, axes), count, rounding_mode=mode)


def _extreme(op: str, is_max: bool) -> Callable[[OnnxBuilder, Known, Axes], Known]:
    def rule(b: OnnxBuilder, x: Known, axes: Axes) -> Known:
        if not axes:
            return x
        if 0 not in _lengths(x, axes):
            return b.emit(op, x, dim=axes, keepdim=_keeps(b))
        kept = _keeps(b)
        shape = [
            1 if d in axes else n for d, n in enumerate(x.type.shape) if kept or d not in axes
        ]
        value = b.constant(_end(x.type.dtype, lowest=is_max))
        return b.emit("aten::expand", value, size=tuple(shape))

    return rule


def _end(dtype: DType, lowest: bool) -> Any:
    """Return the lowest or highest value of a type: the extreme of nothing."""
    if dtype == bool_:
        return np.asarray(not lowest)
    if dtype.is_floating_point:
        return np.asarray(-np.inf if lowest else np.inf).astype(dtype.storage)
    limits = ml_dtypes.iinfo(dtype.storage)  # type: ignore[no-untyped-call]
    return np.asarray(limits.min if lowest else limits.max, dtype.storage)


def _product(b: OnnxBuilder, x: Known, axes: Axes) -> Known:
    return b.emit("onnx::ReduceProd", x, axes=axes, keepdims=_keeps(b))


def _through_double(
    function: Callable[[OnnxBuilder, Known, Axes], Known],
) -> Callable[[OnnxBuilder, Known, Axes], Known]:
    """Return a reduction computed in float64 and rounded once."""
    return lambda b, x, axes: b.cast(function(b, b.cast(x, float64), axes), x.type.dtype)


def _square_sum(b: OnnxBuilder, x: Known, axes: Axes) -> Known:
    return _sum(b, b.emit("aten::mul", x, x), axes)


def _reduction(function: Callable[[OnnxBuilder, Known, Axes], Known]) -> Rule:
    return lambda b, x, axes=None: function(b, x, _axes(b, x, axes))


def _argument(op: str) -> Rule:
    def rule(b: OnnxBuilder, x: Known) -> Known:
        axis = position(b.get("axis", 0), x.type.rank)
        if not b.get("select_last_index", 0):
            return b.emit(op, x, dim=axis, keepdim=_keeps(b))
        length = x.type.shape[axis]
        if not isinstance(length, int):
            raise DataDependentError(f"the last index of {x.type} depends on the batch")
        turned = b.emit(op, b.emit("aten::flip", x, dims=(axis,)), dim=axis, keepdim=_keeps(b))
        return b.emit("aten::rsub.Scalar", turned, other=length - 1)

    return rule


def _running(op: str) -> Rule:
    def rule(b: OnnxBuilder, x: Known, axis: Known) -> Known:
        (at,) = b.integers(axis, "the axis")
        options = {name: bool(b.get(name, 0)) for name in ("exclusive", "reverse")}
        return b.emit(op, x, axis=position(at, x.type.rank), **options)

    return rule


def _top(b: OnnxBuilder, x: Known, count: Operand = None) -> list[Operand]:
    counts = (b.get("k"),) if count is None else b.integers(count, "k")
    if len(counts) != 1:
        raise VerifyError(f"k must be one number, got {list(counts)}")
    (k,) = counts
    axis = position(b.get("axis", -1), x.type.rank)
    return list(b.emit_all("aten::topk", x, k=k, dim=axis, largest=bool(b.get("largest", 1))))


def _lp_normalization(b: OnnxBuilder, x: Known) -> Known:
    axes, p = (position(b.get("axis", -1), x.type.rank),), b.get("p", 2)
    if p not in (1, 2):
        raise VerifyError(f"p must be 1 or 2, got {p}")
    powers = b.emit("aten::abs", x) if p == 1 else b.emit("aten::mul", x, x)
    norm = b.emit("aten::sum", powers, dim=axes, keepdim=True)
    norm = norm if p == 1 else b.emit("aten::sqrt", norm)
    zero = alike(b, 0, x)
    return b.emit(
        "aten::where", b.emit("aten::eq", norm, zero), zero, b.emit("aten::div", x, norm)
    )


REDUCTIONS: dict[str, Rule] = {
    "ArgMax": _argument("aten::argmax"),
    "ArgMin": _argument("aten::argmin"),
    "CumProd": _running("onnx::CumProd"),
    "CumSum": _running("onnx::CumSum"),
    "LpNormalization": _lp_normalization,
    "ReduceL1": _reduction(lambda b, x, axes: _sum(b, b.emit("aten::abs", x), axes)),
    "ReduceL2": _reduction(
        _through_double(lambda b, x, axes: b.emit("aten::sqrt", _square_sum(b, x, axes)))
    ),
    "ReduceLogSum": _reduction(
        _through_double(lambda b, x, axes: b.emit("aten::log", _sum(b, x, axes)))
    ),
    "ReduceLogSumExp": _reduction(
        _through_double(
            lambda b, x, axes: b.emit("aten::log", _sum(b, b.emit("aten::exp", x), axes))
        )
    ),
    "ReduceMax": _reduction(_extreme("aten::amax", is_max=True)),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_extreme("aten::amin", is_max=False)),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(_sum),
    "ReduceSumSquare": _reduction(_square_sum),
    "TopK": _top,
}
