"""``aten::cat`` and ``aten::stack``: tensors one behind the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import OPS as REGISTRY
from refquant.ir.op import Case
from refquant.ir.qtensor import Array, QTensor, Tensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import Shape, TensorType, format_shape, quint8
from refquant.kernels.checks import dimension
from refquant.kernels.layout import c_order, channels_last, is_channels_last
from refquant.kernels.movement import example, move, movement
from refquant.kernels.promotion import result_dtype


def cat(*tensors: Tensor, dim: int = 0, target: Target = Target()) -> Any:
    """Join tensors along a dimension.

    Quantized tensors go through ``quantized::cat`` with the parameters of the first one.

    Parameters
    ----------
    *tensors : tensors of one rank
        Lengths agree except along ``dim``; plain types are promoted as in torch.
    dim : int
        Dimension to join along; negative counts from the end.

    Returns
    -------
    Tensor, channels-last if all are, otherwise contiguous

    Raises
    ------
    VerifyError
        If shapes do not fit, or quantized and plain tensors are mixed.

    Examples
    --------
    >>> cat(np.array([1, 2]), np.array([3]))
    array([1, 2, 3])
    """
    if isinstance(tensors[0], QTensor):
        place = dimension("cat", dim, len(tensors[0].shape))  # which may choose the kernel
        return REGISTRY["quantized::cat"].reference(*tensors, dim=place, target=target)
    arrays = _promoted(tensors)
    result = np.concatenate(arrays, dim)
    return channels_last(result) if all(map(is_channels_last, arrays)) else c_order(result)


def _promoted(tensors: tuple[Tensor, ...]) -> list[Array]:
    dtype = result_dtype("cat", *map(type_of, tensors))
    return [np.asarray(x).astype(dtype.storage, copy=False) for x in tensors]


def infer_cat(*tensors: TensorType, dim: int = 0) -> TensorType:
    """Add the lengths along ``dim``."""
    if not tensors:
        raise VerifyError("cat: expected at least one tensor")
    first = tensors[0]
    if first.dtype.is_quantized:
        inferred = REGISTRY["quantized::cat"].infer(*tensors, dim=dim)
        assert isinstance(inferred, TensorType)
        return inferred
    axis = dimension("cat", dim, first.rank)
    length = first.shape[axis]
    for x in tensors[1:]:
        if _without(x.shape, axis) != _without(first.shape, axis):
            shapes = f"{format_shape(first.shape)} and {format_shape(x.shape)}"
            raise VerifyError(f"cat: shapes {shapes} differ outside dim {dim}")
        length = length + x.shape[axis]
    shape = (*first.shape[:axis], length, *first.shape[axis + 1 :])
    return TensorType(result_dtype("cat", *tensors), shape)


def _without(shape: Shape, axis: int) -> Shape:
    return shape[:axis] + shape[axis + 1 :]


def stack(*tensors: Tensor, dim: int = 0, target: Target = Target()) -> Any:
    """Join tensors along a new dimension: :func:`cat`, whose dimension is then split.

    Parameters
    ----------
    *tensors : tensors of one shape
        Plain types are promoted as in torch; quantized ones take the first one's parameters.
    dim : int
        Where the new dimension stands; negative counts from the end.

    Returns
    -------
    Tensor of one more dimension

    Raises
    ------
    VerifyError
        If shapes differ, or quantized and plain tensors are mixed.

    Examples
    --------
    >>> stack(np.array([1, 2]), np.array([3, 4]), dim=1)
    array([[1, 3],
           [2, 4]])
    """
    rank = len(tensors[0].shape)
    place = dimension("stack", dim, rank + 1)
    if place == rank:
        tensors = tuple(move(x, lambda array: array[..., None]) for x in tensors)
        return cat(*tensors, dim=place, target=target)
    shape = tensors[0].shape
    whole = (*shape[:place], len(tensors), *shape[place:])
    return move(cat(*tensors, dim=place, target=target), lambda array: array.reshape(whole))


def infer_stack(*tensors: TensorType, dim: int = 0) -> TensorType:
    """Insert the number of tensors as a length."""
    if not tensors:
        raise VerifyError("stack: expected at least one tensor")
    first = tensors[0]
    for x in tensors[1:]:
        if x.shape != first.shape:
            raise VerifyError(f"stack: expected {first} for all, got {x}")
    place = dimension("stack", dim, first.rank + 1)
    joined = infer_cat(*(x.with_shape((1, *x.shape)) for x in tensors))
    return joined.with_shape((*first.shape[:place], len(tensors), *first.shape[place:]))


_X = example(1, 2)
_Q = QTensor(np.array([1, 2], np.uint8), 0.5, 1, None, quint8)

OPS = (
    movement(
        "aten::cat",
        cat,
        infer_cat,
        Case("rows", (_X, _X + 2), {"dim": 0}, [[0, 1], [2, 3]], "one below the other"),
        Case("negative", (_X, _X[:, :0]), {"dim": -1}, _X, "an empty one adds nothing"),
        Case("quantized", (_Q, _Q), {"dim": 0}, [1, 2, 1, 2], "parameters of the first"),
    ),
    movement(
        "aten::stack",
        stack,
        infer_stack,
        Case("last", (_X, _X + 2), {"dim": -1}, [[[0, 2], [1, 3]]], "behind the others"),
    ),
)
