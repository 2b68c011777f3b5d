"""Reductions of float and integer tensors: sums, extremes and where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array, QTensor, Tensor, type_of
from refquant.ir.target import Target
from refquant.ir.types import Shape, TensorType, bool_, int64
from refquant.kernels.checks import dimension, known_length, per_tensor
from refquant.kernels.float_sum import sum_dims
from refquant.kernels.movement import example, movement

Ints = tuple[int, ...]
_SOURCE = "pytorch/aten/src/ATen/native/ReduceOps.cpp"


def _axes(rank: int, dim: Ints | int | None, op: str) -> Ints:
    if dim is None or dim == ():
        return tuple(range(rank))
    dims = (dim,) if isinstance(dim, int) else dim
    return tuple(dimension(op, d, max(rank, 1)) for d in dims if rank)


def _reduced(shape: Shape, axes: Ints, keepdim: bool) -> Shape:
    if keepdim:
        return tuple(1 if d in axes else size for d, size in enumerate(shape))
    return tuple(size for d, size in enumerate(shape) if d not in axes)


def _plain(x: TensorType, op: str) -> None:
    if x.dtype.is_quantized:
        raise VerifyError(f"{op}: expected a tensor that is not quantized, got {x}")


def sum_(
    x: Array, dim: Ints | None = None, keepdim: bool = False, target: Target = Target()
) -> Array:
    """Return the sum over dimensions.

    Float32 adds in torch's order, with its vector lanes and cascaded accumulators, so the
    result is torch's to the last bit; with several threads large tensors are split as in torch.
    Integers and bool add in int64.

    Parameters
    ----------
    x : float or integer tensor
        Any shape.
    dim : tuple of int or None
        None means all.
    keepdim : bool
        Whether the summed dimensions stay with length 1.

    Returns
    -------
    Tensor of the type of ``x``, int64 for integers

    Raises
    ------
    VerifyError
        If there is no such dimension.

    Examples
    --------
    >>> sum_(np.float32([[1, 2], [3, 4]]), (0,))
    array([4., 6.], dtype=float32)
    """
    axes = _axes(x.ndim, dim, "sum")
    if x.dtype != np.float32:
        if not type_of(x).dtype.is_floating_point:
            return np.asarray(x.sum(axis=axes, keepdims=keepdim, dtype=np.int64))
        wide = np.float64 if x.dtype == np.float64 else np.float32
        return np.asarray(x.sum(axis=axes, keepdims=keepdim, dtype=wide)).astype(x.dtype)
    total = sum_dims(x, axes, target)
    return total if keepdim else total.reshape([n for d, n in enumerate(x.shape) if d not in axes])


def infer_sum(x: TensorType, dim: Ints | None = None, keepdim: bool = False) -> TensorType:
    """Drop the lengths."""
    _plain(x, "sum")
    dtype = x.dtype if x.dtype.is_floating_point else int64
    return TensorType(dtype, _reduced(x.shape, _axes(x.rank, dim, "sum"), keepdim))


def _extreme(name: str, function: Callable[..., Any], word: str) -> Op:
    def reference(x: Array, dim: Ints = (), keepdim: bool = False) -> Array:
        return np.asarray(function(x, axis=_axes(x.ndim, dim, name), keepdims=keepdim))

    reference.__doc__ = f"""Return the {word} over dimensions; NaN if there is one.

    Parameters
    ----------
    x : float or integer tensor
        Any shape.
    dim : tuple of int
        Empty means all.
    keepdim : bool
        Whether the dimensions stay with length 1.

    Returns
    -------
    Tensor of the type of ``x``

    Raises
    ------
    VerifyError
        If there is no such dimension, or nothing to choose from.
    """

    def infer(x: TensorType, dim: Ints = (), keepdim: bool = False) -> TensorType:
        _plain(x, name)
        axes = _axes(x.rank, dim, name)
        if any(x.shape[d] == 0 for d in axes):
            raise VerifyError(f"{name}: dim {dim} of {x} is empty")
        return TensorType(x.dtype, _reduced(x.shape, axes, keepdim))

    x = np.array([[1, -2], [3, np.nan]], np.float32)
    expected = [3, np.nan] if name == "amax" else [1, np.nan]
    return movement(
        f"aten::{name}",
        reference,
        infer,
        Case("NaN", (x,), {"dim": (0,)}, expected, "NaN wins"),
        source=_SOURCE,
    )


def _extreme_of_dim(name: str, function: Callable[..., Any], word: str) -> Op:
    def reference(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Any, Array]:
        elements = x.int_repr if isinstance(x, QTensor) else x
        at = np.ascontiguousarray(function(elements, axis=dim, keepdims=True), np.int64)
        values = np.take_along_axis(np.ascontiguousarray(elements), at, dim)
        if not keepdim:
            values, at = values.squeeze(dim), at.squeeze(dim)
        return (x.with_int_repr(values) if isinstance(x, QTensor) else values), at

    reference.__doc__ = f"""Return the {word} of a dimension and where it is.

    NaN wins; among equal elements the first, where torch's choice is not defined.

    Parameters
    ----------
    x : float or integer tensor, or QTensor quantized per tensor
        Any shape; quantized values keep their parameters.
    dim : int
        The dimension; negative counts from the end.
    keepdim : bool
        Whether it stays with length 1.

    Returns
    -------
    values, int64 indices

    Raises
    ------
    VerifyError
        If there is no such dimension.
    """

    def infer(x: TensorType, dim: int, keepdim: bool = False) -> tuple[TensorType, TensorType]:
        if x.dtype.is_quantized:
            per_tensor(name, x)
        shape = _reduced(x.shape, _axes(x.rank, dim, name), keepdim)
        return x.with_shape(shape), TensorType(int64, shape)

    x = np.array([[1, 3], [4, 4]], np.float32)
    expected = ([3, 4], [1, 0]) if name == "max" else ([1, 4], [0, 0])
    return movement(
        f"aten::{name}.dim",
        reference,
        infer,
        Case("rows", (x,), {"dim": 1}, expected, "the first of two"),
        source=_SOURCE,
    )


def _argument(name: str, function: Callable[..., Any], word: str) -> Op:
    def reference(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
        found = function(x, axis=dim, keepdims=keepdim)
        return np.asarray(found, np.int64)

    reference.__doc__ = f"""Return where the {word} is: the first, if there are several.

    Parameters
    ----------
    x : float or integer tensor
        Any shape.
    dim : int or None
        None means the position in the flattened tensor.
    keepdim : bool
        Whether the dimension stays with length 1.

    Returns
    -------
    int64 tensor

    Raises
    ------
    VerifyError
        If there is no such dimension, or nothing to choose from.
    """

    def infer(x: TensorType, dim: int | None = None, keepdim: bool = False) -> TensorType:
        _plain(x, name)
        axes = _axes(x.rank, dim, name)
        if any(x.shape[d] == 0 for d in axes):
            raise VerifyError(f"{name}: dim {dim} of {x} is empty")
        return TensorType(int64, _reduced(x.shape, axes, keepdim))

    x = np.array([[1, 3], [3, 1]], np.float32)
    expected = [1, 0] if name == "argmax" else [0, 1]
    return movement(
        f"aten::{name}",
        reference,
        infer,
        Case("rows", (x,), {"dim": 1}, expected, "one for each row"),
        source=_SOURCE,
    )


def var(x: Array, dim: Ints | None = None, correction: int = 1, keepdim: bool = False) -> Array:
    """Return the variance over dimensions, summed in float64 and rounded once.

    torch uses Welford's recurrence, so the last bits may differ: 1e-6 relative.

    Parameters
    ----------
    x : float tensor
        Any shape.
    dim : tuple of int or None
        None means all.
    correction : int
        Subtracted from the number of elements in the divisor.
    keepdim : bool
        Whether the dimensions stay with length 1.

    Returns
    -------
    Tensor of the type of ``x``

    Raises
    ------
    VerifyError
        If ``x`` is not a float.

    Examples
    --------
    >>> float(var(np.float32([1, 3])))
    2.0
    """
    axes = _axes(x.ndim, dim, "var")
    with np.errstate(all="ignore"):
        result = x.astype(np.float64).var(axis=axes, ddof=correction, keepdims=keepdim)
    return np.asarray(result).astype(x.dtype)


def infer_var(
    x: TensorType, dim: Ints | None = None, correction: int = 1, keepdim: bool = False
) -> TensorType:
    """Drop the lengths."""
    if not x.dtype.is_floating_point:
        raise VerifyError(f"var: expected a float tensor, got {x}")
    return TensorType(x.dtype, _reduced(x.shape, _axes(x.rank, dim, "var"), keepdim))


def vector_norm(x: Array, ord: float = 2.0, dim: Ints = (), keepdim: bool = False) -> Array:
    """Return the p-norm over dimensions, summed in float64 and rounded once.

    torch sums in float32, so the last bits may differ: 1e-6 relative.

    Parameters
    ----------
    x : float tensor
        Any shape.
    ord : float
        The exponent; inf means the largest absolute value.
    dim : tuple of int
        Empty means all.
    keepdim : bool
        Whether the dimensions stay with length 1.

    Returns
    -------
    Tensor of the type of ``x``

    Raises
    ------
    VerifyError
        If ``x`` is not a float.

    Examples
    --------
    >>> float(vector_norm(np.float32([3, 4])))
    5.0
    """
    axes = _axes(x.ndim, dim, "linalg_vector_norm")
    size = np.abs(x.astype(np.float64))
    if ord == np.inf:
        result = size.max(axis=axes, keepdims=keepdim)
    else:
        result = (size**ord).sum(axis=axes, keepdims=keepdim) ** (1 / ord)
    return np.asarray(result).astype(x.dtype)


def infer_norm(
    x: TensorType, ord: float = 2.0, dim: Ints = (), keepdim: bool = False
) -> TensorType:
    """Drop the lengths."""
    if not x.dtype.is_floating_point:
        raise VerifyError(f"linalg_vector_norm: expected a float tensor, got {x}")
    return TensorType(x.dtype, _reduced(x.shape, _axes(x.rank, dim, "norm"), keepdim))


def cumsum(x: Array, dim: int) -> Array:
    """Return the running sum along a dimension.

    Float32 accumulates in float64 and rounds every result, as torch does; integers in int64.

    Parameters
    ----------
    x : float or integer tensor
        Any shape.
    dim : int
        The dimension; negative counts from the end.

    Returns
    -------
    Tensor of the shape of ``x``

    Raises
    ------
    VerifyError
        If there is no such dimension.

    Examples
    --------
    >>> cumsum(np.array([1, 2, 3]), 0)
    array([1, 3, 6])
    """
    if type_of(x).dtype.is_floating_point:
        return np.cumsum(x, axis=dim, dtype=np.float64).astype(x.dtype)
    return np.cumsum(x, axis=dim, dtype=np.int64)


def infer_cumsum(x: TensorType, dim: int) -> TensorType:
    """Check the dimension."""
    _plain(x, "cumsum")
    dimension("cumsum", dim, max(x.rank, 1))
    return x if x.dtype.is_floating_point else TensorType(int64, x.shape)


def topk(
    x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Any, Array]:
    """Return the ``k`` largest (or smallest) elements of a dimension and where they are.

    Always sorted; among equal elements the first comes first, where torch's order is not
    defined.

    Parameters
    ----------
    x : float or integer tensor, or QTensor quantized per tensor
        Any shape; quantized values keep their parameters.
    k : int
        How many.
    dim : int
        The dimension; negative counts from the end.
    largest, sorted : bool
        Which end; ``sorted`` changes nothing here.

    Returns
    -------
    values, int64 indices

    Raises
    ------
    VerifyError
        If ``k`` exceeds the length.

    Examples
    --------
    >>> topk(np.array([3, 9, 5]), 2)
    (array([9, 5]), array([1, 2]))
    """
    elements = np.ascontiguousarray(x.int_repr if isinstance(x, QTensor) else x)
    keys = elements
    if largest:
        keys = -elements if type_of(elements).dtype.is_floating_point else ~elements
    order = np.argsort(keys, axis=dim, kind="stable")
    first = np.take(order, range(k), axis=dim).astype(np.int64)
    values = np.take_along_axis(elements, first, dim)
    return (x.with_int_repr(values) if isinstance(x, QTensor) else values), first


def infer_topk(
    x: TensorType, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[TensorType, TensorType]:
    """Replace one length by ``k``."""
    if x.dtype.is_quantized:
        per_tensor("topk", x)
    if x.dtype == bool_:
        raise VerifyError("topk: bool tensors have no order")
    at = dimension("topk", dim, x.rank)
    length = known_length("topk", x.shape[at], at)
    if not 0 <= k <= length:
        raise VerifyError(f"topk: k must be in [0, {length}], got {k}")
    shape = (*x.shape[:at], k, *x.shape[at + 1 :])
    return x.with_shape(shape), TensorType(int64, shape)


def log_softmax(x: Array, dim: int) -> Array:
    """Return the logarithm of the softmax, in float64 and rounded once.

    torch computes in float32 with its own exponential: 1e-6 absolute.

    Parameters
    ----------
    x : float tensor
        Any shape.
    dim : int
        The dimension that adds up to 1; negative counts from the end.

    Returns
    -------
    Tensor of the shape of ``x``

    Raises
    ------
    VerifyError
        If ``x`` is not a float.

    Examples
    --------
    >>> log_softmax(np.float32([0, 0]), 0)
    array([-0.6931472, -0.6931472], dtype=float32)
    """
    shifted = x.astype(np.float64) - x.max(axis=dim, keepdims=True)
    total = np.exp(shifted).sum(axis=dim, keepdims=True)
    return np.asarray(shifted - np.log(total)).astype(x.dtype, order="C")


def infer_log_softmax(x: TensorType, dim: int) -> TensorType:
    """Check the dimension."""
    if not x.dtype.is_floating_point:
        raise VerifyError(f"log_softmax: expected a float tensor, got {x}")
    dimension("log_softmax", dim, max(x.rank, 1))
    return x


_X = example(2, 3)

OPS = (
    movement(
        "aten::sum",
        sum_,
        infer_sum,
        Case("all", (_X,), {}, 15, "a number"),
        Case("keep", (_X,), {"dim": (1,), "keepdim": True}, [[3], [12]], "length 1 stays"),
        source=_SOURCE,
    ),
    _extreme("amax", np.max, "largest element"),
    _extreme("amin", np.min, "smallest element"),
    _extreme_of_dim("max", np.argmax, "largest element"),
    _extreme_of_dim("min", np.argmin, "smallest element"),
    _argument("argmax", np.argmax, "largest element"),
    _argument("argmin", np.argmin, "smallest element"),
    movement(
        "aten::var",
        var,
        infer_var,
        Case("biased", (_X,), {"dim": (0,), "correction": 0}, [2.25] * 3, "divided by n"),
        source=_SOURCE,
    ),
    movement(
        "aten::linalg_vector_norm",
        vector_norm,
        infer_norm,
        Case("infinite", (_X,), {"ord": np.inf, "dim": (1,)}, [2, 5], "largest"),
        source="pytorch/aten/src/ATen/native/LinearAlgebra.cpp",
    ),
    movement(
        "aten::cumsum",
        cumsum,
        infer_cumsum,
        Case("rows", (_X,), {"dim": 1}, [[0, 1, 3], [3, 7, 12]], "along each row"),
        source=_SOURCE,
    ),
    movement(
        "aten::topk",
        topk,
        infer_topk,
        Case("smallest", (_X,), {"k": 1, "largest": False}, ([[0], [3]], [[0], [0]]), "last dim"),
        source="pytorch/aten/src/ATen/native/Sorting.cpp",
    ),
    movement(
        "aten::log_softmax",
        log_softmax,
        infer_log_softmax,
        Case("one", (_X[:, :1],), {"dim": 1}, [[0], [0]], "a single class is certain"),
        source="pytorch/aten/src/ATen/native/SoftMax.cpp",
    ),
)
