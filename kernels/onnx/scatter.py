"""``onnx::ScatterElements``, ``ScatterND``, ``TensorScatter`` and ``GatherND``: by positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import Shape, TensorType, bool_, format_shape
from refquant.kernels.checks import dimension, known_length
from refquant.kernels.onnx.operator import index, operator, plain

_COMBINE = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _put(data: Array, where: tuple[Any, ...], updates: Array, reduction: str) -> Array:
    made = np.array(data, order="C")
    if reduction == "none":
        made[where] = updates
    else:
        with np.errstate(all="ignore"):
            _COMBINE[reduction].at(made, where, updates)
    return made


def _wrapped(op: str, positions: Array, lengths: Any) -> Array:
    """Return positions counted from the front."""
    if np.any((positions < -np.asarray(lengths)) | (positions >= lengths)):
        raise VerifyError(f"{op}: a position is outside the data")
    return np.where(positions < 0, positions + lengths, positions)


def _check(op: str, data: TensorType, indices: TensorType, updates: TensorType, how: str) -> None:
    plain(op, data)
    index(op, indices)
    if updates.dtype != data.dtype:
        raise VerifyError(f"{op}: updates must be {data.dtype}, got {updates}")
    if how != "none" and how not in _COMBINE:
        raise VerifyError(f"{op}: reduction must be none, add, mul, max or min, got {how!r}")
    if how != "none" and data.dtype == bool_:
        raise VerifyError(f"{op}: reduction {how} of bool")


def elements(
    data: Array, indices: Array, updates: Array, axis: int = 0, reduction: str = "none"
) -> Array:
    """Return the data with elements replaced or combined, one for each entry of the indices.

    ``out[..., indices[..., i, ...], ...] = updates[..., i, ...]`` along ``axis``. Where a
    position occurs twice, the last update stays; a reduction takes all, in their order.

    Parameters
    ----------
    data : tensor that is not quantized
        Any shape.
    indices : integer tensor of the rank of ``data``
        Positions along ``axis``; negative counts from the end.
    updates : tensor of the type of ``data`` and the shape of ``indices``
        New elements.
    axis : int
        The dimension; negative counts from the end.
    reduction : str
        ``none``, ``add``, ``mul``, ``max`` or ``min``.

    Returns
    -------
    A contiguous copy.

    Raises
    ------
    VerifyError
        If types or shapes do not fit, or a position is outside the data.

    Examples
    --------
    >>> elements(np.array([1, 2, 3]), np.array([0, 0]), np.array([5, 6]), reduction="add")
    array([12,  2,  3])
    """
    place: list[Any] = list(np.indices(indices.shape, sparse=True))
    place[axis] = _wrapped("ScatterElements", indices, data.shape[axis])
    return _put(data, tuple(place), updates, reduction)


def infer_elements(
    data: TensorType,
    indices: TensorType,
    updates: TensorType,
    axis: int = 0,
    reduction: str = "none",
) -> TensorType:
    """Check types and shapes; the result has the type of the data."""
    op = "ScatterElements"
    _check(op, data, indices, updates, reduction)
    at = dimension(op, axis, data.rank)
    if indices.rank != data.rank or indices.shape != updates.shape:
        raise VerifyError(f"{op}: data {data}, indices {indices} and updates {updates}")
    for d, (few, many) in enumerate(zip(indices.shape, data.shape, strict=True)):
        if d != at and isinstance(few, int) and isinstance(many, int) and few > many:
            raise VerifyError(f"{op}: {indices} has more entries than {data} in dimension {d}")
    return data


def nd(data: Array, indices: Array, updates: Array, reduction: str = "none") -> Array:
    """Return the data with parts replaced or combined, one for each row of the indices.

    The last dimension of the indices holds positions in the leading dimensions of the data.
    Where a position occurs twice, the last update stays; a reduction takes all, in their order.

    Parameters
    ----------
    data : tensor that is not quantized
        Rank 1 or more.
    indices : integer tensor (..., k)
        Positions; negative counts from the end.
    updates : tensor of the type of ``data``
        Of shape ``indices.shape[:-1] + data.shape[k:]``.
    reduction : str
        ``none``, ``add``, ``mul``, ``max`` or ``min``.

    Returns
    -------
    A contiguous copy.

    Raises
    ------
    VerifyError
        If types or shapes do not fit, or a position is outside the data.

    Examples
    --------
    >>> nd(np.array([1, 2, 3]), np.array([[2], [0]]), np.array([9, 8]))
    array([8, 2, 9])
    """
    depth = indices.shape[-1]
    rows = _wrapped("ScatterND", indices, data.shape[:depth])
    return _put(data, tuple(np.moveaxis(rows, -1, 0)), updates, reduction)


def infer_nd(
    data: TensorType, indices: TensorType, updates: TensorType, reduction: str = "none"
) -> TensorType:
    """Check types and shapes; the result has the type of the data."""
    op = "ScatterND"
    _check(op, data, indices, updates, reduction)
    expected = _parts(op, data, indices, 0)
    if updates.shape != expected:
        shown = format_shape(expected)
        raise VerifyError(f"{op}: updates must be of shape {shown}, got {updates}")
    return data


def _parts(op: str, data: TensorType, indices: TensorType, batch_dims: int) -> Shape:
    if not indices.rank or not data.rank:
        raise VerifyError(f"{op}: data {data} and indices {indices} must not be scalars")
    depth = known_length(op, indices.shape[-1], indices.rank - 1)
    if depth > data.rank - batch_dims:
        raise VerifyError(f"{op}: {depth} positions for {data}")
    return (*indices.shape[:-1], *data.shape[batch_dims + depth :])


def tensor_scatter(
    past_cache: Array,
    update: Array,
    write_indices: Array | None = None,
    axis: int = -2,
    mode: str = "linear",
) -> Array:
    """Return a cache with new entries written behind the old ones.

    Entry *i* of batch *b* is written at ``write_indices[b] + i`` along ``axis``.

    Parameters
    ----------
    past_cache : tensor (batch, ..., length, ...)
        What was there.
    update : tensor like ``past_cache`` but for its length
        What is written; not longer than the cache.
    write_indices : integer tensor (batch,), optional
        Where each batch goes on; 0 by default.
    axis : int
        The dimension; not the first.
    mode : str
        ``linear``, where all must fit in, or ``circular``, which goes on at the start.

    Returns
    -------
    Tensor like ``past_cache``

    Raises
    ------
    VerifyError
        If types or shapes do not fit, or an entry would be written outside the cache.

    Examples
    --------
    >>> tensor_scatter(np.zeros((1, 3, 1)), np.ones((1, 2, 1)), np.array([2]), mode="circular")[
    ...     0, :, 0
    ... ]
    array([1., 0., 1.])
    """
    at = axis % past_cache.ndim
    made = np.array(past_cache, order="C")
    length, count = past_cache.shape[at], update.shape[at]
    starts = np.zeros(len(made), np.int64) if write_indices is None else write_indices
    for batch, start in enumerate(starts):
        rows = np.arange(count) + int(start)
        if mode == "circular":
            rows %= length
        elif count and (rows[0] < 0 or rows[-1] >= length):
            raise VerifyError(f"TensorScatter: entries {rows[0]} to {rows[-1]} of {length}")
        np.moveaxis(made[batch], at - 1, 0)[rows] = np.moveaxis(update[batch], at - 1, 0)
    return made


def infer_tensor_scatter(
    past_cache: TensorType,
    update: TensorType,
    write_indices: TensorType | None = None,
    axis: int = -2,
    mode: str = "linear",
) -> TensorType:
    """Check types and shapes; the result has the type of the cache."""
    op = "TensorScatter"
    plain(op, past_cache)
    at = dimension(op, axis, past_cache.rank)
    if mode not in ("linear", "circular"):
        raise VerifyError(f"{op}: mode must be linear or circular, got {mode!r}")
    if at == 0 or update.rank != past_cache.rank or update.dtype != past_cache.dtype:
        raise VerifyError(f"{op}: cache {past_cache}, update {update}, axis {axis}")
    for d, (new, old) in enumerate(zip(update.shape, past_cache.shape, strict=True)):
        if d == at and known_length(op, new, d) > known_length(op, old, d):
            raise VerifyError(f"{op}: {update} is longer than {past_cache}")
        if d != at and new != old:
            raise VerifyError(f"{op}: {update} does not fit {past_cache} in dimension {d}")
    if write_indices is not None:
        index(op, write_indices)
        if write_indices.shape != past_cache.shape[:1]:
            raise VerifyError(f"{op}: one position for each batch, got {write_indices}")
    return past_cache


def gather_nd(data: Array, indices: Array, batch_dims: int = 0) -> Array:
    """Return parts of the data, one for each row of the indices.

    The last dimension of the indices holds positions in the dimensions of the data that follow
    the batches.

    Parameters
    ----------
    data : tensor that is not quantized
        Rank 1 or more.
    indices : integer tensor (..., k)
        Positions; negative counts from the end.
    batch_dims : int
        How many leading dimensions the two share.

    Returns
    -------
    Tensor of shape ``indices.shape[:-1] + data.shape[batch_dims + k:]``

    Raises
    ------
    VerifyError
        If shapes do not fit, or a position is outside the data.

    Examples
    --------
    >>> gather_nd(np.array([[1, 2], [3, 4]]), np.array([[1], [0]]), batch_dims=1)
    array([2, 3])
    """
    depth = indices.shape[-1]
    lengths = data.shape[batch_dims : batch_dims + depth]
    rows = _wrapped("GatherND", indices, lengths)
    batches: tuple[Array, ...] = np.indices(indices.shape[:batch_dims], sparse=True)
    spread = [b.reshape(b.shape + (1,) * (rows.ndim - 1 - batch_dims)) for b in batches]
    where = (*spread, *np.moveaxis(rows, -1, 0))
    return np.array(
        data[where] if where else np.broadcast_to(data, (*rows.shape[:-1], *data.shape))
    )


def infer_gather_nd(data: TensorType, indices: TensorType, batch_dims: int = 0) -> TensorType:
    """Check the shapes."""
    plain("GatherND", data)
    index("GatherND", indices)
    if not 0 <= batch_dims < max(min(data.rank, indices.rank), 1):
        raise VerifyError(f"GatherND: batch_dims {batch_dims} of {data} and {indices}")
    if data.shape[:batch_dims] != indices.shape[:batch_dims]:
        raise VerifyError(f"GatherND: batches of {data} and {indices} differ")
    return TensorType(data.dtype, _parts("GatherND", data, indices, batch_dims))


_X = np.array([[1, 2], [3, 4]], np.float32)
_ROWS = np.array([[-1, 0]])

OPS = (
    operator(
        "ScatterElements",
        elements,
        infer_elements,
        Case("rows", (_X, _ROWS, _X[:1] + 6), {}, [[1, 8], [7, 4]], "negative from the end"),
        Case(
            *("twice", (_X, _ROWS * 0, _X[:1] + 6), {"axis": 1, "reduction": "add"}),
            *([[16, 2], [3, 4]], "both are added"),
        ),
    ),
    operator(
        "ScatterND",
        nd,
        infer_nd,
        Case("element", (_X, _ROWS, _X[0, :1] + 8), {}, [[1, 2], [9, 4]], "a row is a position"),
        Case(
            *("rows", (_X, np.array([[0], [0]]), _X), {"reduction": "max"}),
            *([[3, 4], [3, 4]], "one after the other"),
        ),
    ),
    operator(
        "TensorScatter",
        tensor_scatter,
        infer_tensor_scatter,
        Case(
            *("circular", (_X[None], _X[None, :1] + 7, np.array([1])), {"mode": "circular"}),
            *([[[1, 2], [8, 9]]], "at the end"),
        ),
        Case("start", (_X[None], _X[None, :1] + 7), {}, [[[8, 9], [3, 4]]], "at the start"),
    ),
    operator(
        "GatherND",
        gather_nd,
        infer_gather_nd,
        Case("elements", (_X, np.array([[0, 1], [1, -1]])), {}, [2, 4], "from the end"),
        Case("rows", (_X, np.array([[[1]]])), {}, [[[3, 4]]], "parts"),
        Case("batches", (_X, np.array([[1], [0]])), {"batch_dims": 1}, [2, 3], "one each"),
    ),
)
