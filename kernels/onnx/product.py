"""``onnx::ReduceProd``, ``ReduceSum``, ``CumSum`` and ``CumProd``: products and sums."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, type_of
from refquant.ir.types import TensorType, bfloat16
from refquant.kernels.checks import dimension
from refquant.kernels.onnx.operator import numeric, operator


def _wide(x: Array) -> Any:
    """Return the type in which elements are combined: floats in float64, integers as they are."""
    return np.float64 if type_of(x).dtype.is_floating_point else x.dtype


def reference(data: Array, axes: tuple[int, ...], keepdims: bool = True) -> Array:
    """Return the product over dimensions.

    Floats are multiplied in float64 and rounded once, integers wrap around. The product of
    nothing is 1.

    Parameters
    ----------
    data : tensor of numbers
        Any shape.
    axes : tuple of int
        The dimensions; negative counts from the end.
    keepdims : bool
        Whether they stay with length 1.

    Returns
    -------
    Tensor of the type of ``data``

    Raises
    ------
    VerifyError
        If there is no such dimension.

    Examples
    --------
    >>> reference(np.float32([[1, 2], [3, 4]]), (1,), keepdims=False)
    array([ 2., 12.], dtype=float32)
    """
    with np.errstate(all="ignore"):
        made: Any = np.prod(data, axis=axes, dtype=_wide(data), keepdims=keepdims)
        return np.asarray(made).astype(data.dtype)


def infer(data: TensorType, axes: tuple[int, ...], keepdims: bool = True) -> TensorType:
    """Drop the lengths."""
    numeric("ReduceProd", data)
    gone = {dimension("ReduceProd", axis, data.rank) for axis in axes}
    kept = [1 if d in gone else n for d, n in enumerate(data.shape) if keepdims or d not in gone]
    return TensorType(data.dtype, tuple(kept))


def running_sum(data: Array, axes: tuple[int, ...], keepdims: bool = True) -> Array:
    """Return the sum over dimensions of bfloat16, each partial sum rounded.

    Elements are added one after the other, the last dimension fastest, as the standard's
    expected results are; torch adds in float32 (``aten::sum``, which other types go through).

    Parameters
    ----------
    data : bfloat16 tensor
        Any shape.
    axes : tuple of int
        The dimensions; negative counts from the end.
    keepdims : bool
        Whether they stay with length 1.

    Returns
    -------
    bfloat16 tensor

    Raises
    ------
    VerifyError
        If there is no such dimension, or the type is another.

    Examples
    --------
    >>> x = np.array([256, 1, 1], bfloat16.storage)
    >>> float(running_sum(x, (0,), keepdims=False))
    256.0
    """
    gone = sorted(axis % data.ndim for axis in axes)
    kept = [d for d in range(data.ndim) if d not in gone]
    lengths = [data.shape[d] for d in kept]
    count = prod(data.shape[d] for d in gone)
    rows = data.transpose(*kept, *gone).reshape(*lengths, count)
    total: Array = np.zeros(rows.shape[:-1], data.dtype)
    with np.errstate(all="ignore"):
        for i in range(rows.shape[-1]):
            total = np.asarray(total + rows[..., i])
    return np.expand_dims(total, tuple(gone)) if keepdims else total


def infer_sum(data: TensorType, axes: tuple[int, ...], keepdims: bool = True) -> TensorType:
    """Check the type and drop the lengths."""
    if data.dtype != bfloat16:
        raise VerifyError(f"ReduceSum: expected bfloat16, got {data}")
    return infer(data, axes, keepdims)


def _running(name: str, word: str, ufunc: np.ufunc, start: int, expected: list[list[int]]) -> Op:
    def reference(x: Array, axis: int, exclusive: bool = False, reverse: bool = False) -> Array:
        order: Callable[[Array], Array] = (lambda a: np.flip(a, axis)) if reverse else np.asarray
        with np.errstate(all="ignore"):
            made = ufunc.accumulate(order(x), axis=axis, dtype=_wide(x)).astype(x.dtype)
        if exclusive and x.shape[axis]:
            first = np.full_like(np.take(made, [0], axis), start)
            made = np.concatenate([first, np.delete(made, -1, axis)], axis)
        return np.ascontiguousarray(order(made))

    reference.__doc__ = f"""Return the {word} of the elements up to each one of a dimension.

    Floats are combined in float64 and rounded once each, integers wrap around.

    Parameters
    ----------
    x : tensor of numbers
        Any shape but that of a scalar.
    axis : int
        The dimension; negative counts from the end.
    exclusive : bool
        Whether the element itself is left out; the first result is then {start}.
    reverse : bool
        Whether the dimension is gone through from its end.

    Returns
    -------
    Tensor like ``x``

    Raises
    ------
    VerifyError
        If there is no such dimension.
    """

    def infer(
        x: TensorType, axis: int, exclusive: bool = False, reverse: bool = False
    ) -> TensorType:
        numeric(name, x)
        dimension(name, axis, x.rank)
        return x

    x = np.array([[2, 3, 4]], np.int32)
    plain, alone, backwards = expected
    return operator(
        name,
        reference,
        infer,
        Case("all", (x,), {"axis": 1}, [plain], "the element too"),
        Case("exclusive", (x,), {"axis": -1, "exclusive": True}, [alone], "those before"),
        Case("reverse", (x,), {"axis": 1, "exclusive": True, "reverse": True}, [backwards], "end"),
    )


_X = np.array([[2, 3], [4, 5]], np.float32)

OPS = (
    operator(
        "ReduceSum",
        running_sum,
        infer_sum,
        Case(
            *("rounded", (np.array([[256, 1, 1], [1, 1, 256]], bfloat16.storage),)),
            {"axes": (1,)},
            *([[256], [258]], "256 + 1 goes to even"),
        ),
    ),
    operator(
        "ReduceProd",
        reference,
        infer,
        Case("rows", (_X,), {"axes": (1,)}, [[6], [20]], "length 1 stays"),
        Case(
            "empty",
            (_X[:, :0],),
            {"axes": (-1,), "keepdims": False},
            [1, 1],
            "1",
        ),
    ),
    _running("CumSum", "sum", np.add, 0, [[2, 5, 9], [0, 2, 5], [7, 4, 0]]),
    _running("CumProd", "product", np.multiply, 1, [[2, 6, 24], [1, 2, 6], [12, 4, 1]]),
)
