"""``aten::permute`` and ``aten::transpose``: dimensions in another order, always a view."""

from __future__ import annotations

from typing import Any

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Tensor
from refquant.ir.types import TensorType
from refquant.kernels.checks import dimension
from refquant.kernels.movement import example, move, moved, movement


def permute(x: Tensor, dims: tuple[int, ...]) -> Any:
    """Reorder the dimensions without moving data.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    dims : tuple of int
        Old dimension for each new one; negative counts from the end.

    Returns
    -------
    A view of ``x``.

    Raises
    ------
    VerifyError
        If ``dims`` is not a permutation.

    Examples
    --------
    >>> permute(np.zeros((2, 3, 4)), (2, 0, 1)).shape
    (4, 2, 3)
    """
    return move(x, lambda array: array.transpose(dims))


def infer_permute(x: TensorType, dims: tuple[int, ...]) -> TensorType:
    """Reorder the lengths."""
    order = [dimension("permute", dim, x.rank) for dim in dims]
    if sorted(order) != list(range(x.rank)):
        raise VerifyError(f"permute: dims {dims} is not a permutation of {x.rank} dimensions")
    return moved(x, [x.shape[dim] for dim in order], "permute")


def transpose(x: Tensor, dim0: int, dim1: int) -> Any:
    """Swap two dimensions without moving data.

    Parameters
    ----------
    x : any tensor
        Quantization parameters are kept.
    dim0, dim1 : int
        The dimensions; negative counts from the end.

    Returns
    -------
    A view of ``x``.

    Raises
    ------
    VerifyError
        If there is no such dimension.

    Examples
    --------
    >>> transpose(np.zeros((2, 3, 4)), 0, -1).shape
    (4, 3, 2)
    """
    return move(x, lambda array: array.swapaxes(dim0, dim1) if array.ndim else array)


def infer_transpose(x: TensorType, dim0: int, dim1: int) -> TensorType:
    """Swap two lengths."""
    first, second = (dimension("transpose", dim, max(x.rank, 1)) for dim in (dim0, dim1))
    shape = list(x.shape)
    if shape:
        shape[first], shape[second] = shape[second], shape[first]
    return moved(x, shape, "transpose")


_X = example(2, 3)

OPS = (
    movement(
        "aten::permute",
        permute,
        infer_permute,
        Case("negative", (_X,), {"dims": (-1, 0)}, [[0, 3], [1, 4], [2, 5]], "from the end"),
    ),
    movement(
        "aten::transpose",
        transpose,
        infer_transpose,
        Case("swap", (_X,), {"dim0": 0, "dim1": -1}, [[0, 3], [1, 4], [2, 5]], "from the end"),
        Case("self", (_X,), {"dim0": 1, "dim1": 1}, _X, "nothing to do"),
    ),
)
