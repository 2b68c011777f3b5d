"""``aten::index``, ``index_select``, ``gather`` and ``embedding``: elements chosen by number."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, Tensor
from refquant.ir.types import Shape, TensorType, bool_
from refquant.kernels.checks import broadcast, dimension
from refquant.kernels.movement import example, move, moved, movement

_SOURCE = "pytorch/aten/src/ATen/native/TensorAdvancedIndexing.cpp"


def _check_index(op: str, index: TensorType) -> None:
    if index.dtype.is_quantized or index.dtype.is_floating_point or index.dtype == bool_:
        raise VerifyError(f"{op}: expected an integer index, got {index.dtype}")


def _in_range(op: str, index: Array, length: int) -> None:
    if index.size and not (-length <= index.min() and index.max() < length):
        bad = int(index.min()) if index.min() < -length else int(index.max())
        raise VerifyError(f"{op}: index {bad} is out of range for length {length}")


def index(x: Tensor, *indices: Array | None) -> Any:
    """Choose elements by integer tensors, one for each leading dimension.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    *indices : integer tensors that broadcast, or None
        None takes the whole dimension. With None between them the chosen dimensions move to
        the front, as in NumPy.

    Returns
    -------
    A copy.

    Raises
    ------
    VerifyError
        If an index is not an integer or out of range.

    Examples
    --------
    >>> index(np.arange(6).reshape(2, 3), None, np.array([2, 0]))
    array([[2, 0],
           [5, 3]])
    """
    for dim, part in enumerate(indices):
        if part is not None:
            _in_range("index", part, x.shape[dim])
    where = tuple(slice(None) if part is None else part for part in indices)
    return move(x, lambda array: np.ascontiguousarray(array[where]))


def infer_index(x: TensorType, *indices: TensorType | None) -> TensorType:
    """Replace the indexed lengths by the shape of the indices."""
    given = [d for d, part in enumerate(indices) if part is not None]
    for part in indices:
        if part is not None:
            _check_index("index", part)
    if len(indices) > x.rank or not given:
        raise VerifyError(f"index: {len(indices)} indices for {x}")
    chosen = broadcast("index", *(part.shape for part in indices if part is not None))
    rest = [size for d, size in enumerate(x.shape) if d not in given]
    adjacent = given == list(range(given[0], given[-1] + 1))
    at = given[0] if adjacent else 0
    return moved(x, (*rest[:at], *chosen, *rest[at:]), "index")


def index_select(x: Tensor, index: Array, dim: int) -> Any:
    """Choose entries of one dimension.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    index : integer tensor (n,)
        Which entries.
    dim : int
        The dimension; negative counts from the end.

    Returns
    -------
    A copy.

    Raises
    ------
    VerifyError
        If an index is not an integer or out of range.

    Examples
    --------
    >>> index_select(np.arange(3), np.array([2, 0, 2]), 0)
    array([2, 0, 2])
    """
    _in_range("index_select", index, x.shape[dim])
    return move(x, lambda array: np.take(array, index, dim))


def infer_index_select(x: TensorType, index: TensorType, dim: int) -> TensorType:
    """Replace one length."""
    _check_index("index_select", index)
    at = dimension("index_select", dim, x.rank)
    if index.rank != 1:
        raise VerifyError(f"index_select: expected an index of rank 1, got {index}")
    return moved(x, (*x.shape[:at], index.shape[0], *x.shape[at + 1 :]), "index_select")


def gather(x: Tensor, index: Array, dim: int) -> Any:
    """Choose one element for each entry of the index, along one dimension.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    index : integer tensor of the rank of ``x``
        Which entry along ``dim``.
    dim : int
        The dimension; negative counts from the end.

    Returns
    -------
    A copy of the shape of ``index``.

    Raises
    ------
    VerifyError
        If an index is not an integer or out of range.

    Examples
    --------
    >>> gather(np.array([[1, 2], [3, 4]]), np.array([[1], [0]]), 1)
    array([[2],
           [3]])
    """
    _in_range("gather", index, x.shape[dim])

    def choose(array: Array) -> Array:
        place: list[Any] = list(np.indices(index.shape, sparse=True))
        place[dim] = index
        return np.asarray(array[tuple(place)])

    return move(x, choose)


def infer_gather(x: TensorType, index: TensorType, dim: int) -> TensorType:
    """Return the shape of the index."""
    _check_index("gather", index)
    at = dimension("gather", dim, x.rank)
    if index.rank != x.rank:
        raise VerifyError(f"gather: expected an index of rank {x.rank}, got {index}")
    for d, (few, many) in enumerate(zip(index.shape, x.shape, strict=True)):
        if d != at and isinstance(few, int) and isinstance(many, int) and few > many:
            raise VerifyError(f"gather: index {index} is longer than {x} in dim {d}")
    return moved(x, index.shape, "gather")


def embedding(weight: Tensor, indices: Array) -> Any:
    """Look up rows of a table.

    Parameters
    ----------
    weight : tensor (rows, width)
        The table.
    indices : integer tensor
        Row numbers.

    Returns
    -------
    Tensor of the shape of ``indices`` and the width

    Raises
    ------
    VerifyError
        If an index is not an integer or out of range.

    Examples
    --------
    >>> embedding(np.float32([[1, 2], [3, 4]]), np.array([1, 1]))
    array([[3., 4.],
           [3., 4.]], dtype=float32)
    """
    if indices.size and indices.min() < 0:
        raise VerifyError(f"embedding: index {int(indices.min())} is negative")
    _in_range("embedding", indices, weight.shape[0])
    return move(weight, lambda table: np.take(table, indices, 0))


def infer_embedding(weight: TensorType, indices: TensorType) -> TensorType:
    """Append the width to the shape of the indices."""
    _check_index("embedding", indices)
    if weight.rank != 2:
        raise VerifyError(f"embedding: expected a table of rank 2, got {weight}")
    shape: Shape = (*indices.shape, weight.shape[1])
    return moved(weight, shape, "embedding")


_X = example(2, 3)

OPS = (
    movement(
        "aten::index",
        index,
        infer_index,
        Case(
            "column", (_X, None, np.array([2, -1])), {}, [[2, 2], [5, 5]], "negative from the end"
        ),
        Case("pair", (_X, np.array([0, 1]), np.array([1])), {}, [1, 4], "indices broadcast"),
        source=_SOURCE,
    ),
    movement(
        "aten::index_select",
        index_select,
        infer_index_select,
        Case("twice", (_X, np.array([1, 1])), {"dim": 1}, [[1, 1], [4, 4]], "may repeat"),
        source=_SOURCE,
    ),
    movement(
        "aten::gather",
        gather,
        infer_gather,
        Case("rows", (_X, np.array([[1, 0, 1]])), {"dim": 0}, [[3, 1, 5]], "one each"),
        source=_SOURCE,
    ),
    movement(
        "aten::embedding",
        embedding,
        infer_embedding,
        Case("matrix", (_X, np.array([[0], [1]])), {}, [[[0, 1, 2]], [[3, 4, 5]]], "any shape"),
        source="pytorch/aten/src/ATen/native/Embedding.cpp",
    ),
)
