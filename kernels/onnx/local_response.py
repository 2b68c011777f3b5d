"""``onnx::LRN`` and ``onnx::Hardmax``: what a channel is beside its neighbours."""

from __future__ import annotations

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType
from refquant.kernels.checks import dimension
from refquant.kernels.onnx.operator import operator


def lrn(X: Array, *, size: int, alpha: float, beta: float, bias: float) -> Array:  # noqa: N803
    r"""Return :math:`x / (bias + \alpha / size \cdot \sum x_j^2)^\beta`.

    The sum is over ``(size - 1) // 2`` channels before and ``size // 2`` behind.

    Parameters
    ----------
    X : float tensor (N, C, ...)
    size : int
        Number of channels in the sum, fewer at the ends.
    alpha, beta, bias : float

    Returns
    -------
    float tensor like ``X``

    Raises
    ------
    VerifyError
        If ``size`` is below 1 or there are no channels.

    Examples
    --------
    >>> lrn(np.float32([[1, 2]]), size=1, alpha=1.0, beta=1.0, bias=0.0)
    array([[1. , 0.5]], dtype=float32)
    """
    channels = X.shape[1]
    square = np.square(X)
    total = np.zeros_like(X)
    for c in range(channels):
        near = slice(max(0, c - (size - 1) // 2), min(channels, c + size // 2 + 1))
        total[:, c] = square[:, near].sum(1)
    return np.asarray(X / (bias + alpha / size * total) ** beta).astype(X.dtype)


def infer_lrn(x: TensorType, *, size: int, alpha: float, beta: float, bias: float) -> TensorType:
    """Check rank and size."""
    if x.rank < 2 or size < 1:
        raise VerifyError(f"LRN: expected (N, C, ...) and size >= 1, got {x} and {size}")
    return x


def hardmax(X: Array, *, axis: int) -> Array:  # noqa: N803
    """Return 1 for the first largest element along an axis, 0 for all others.

    Parameters
    ----------
    X : float tensor
    axis : int

    Returns
    -------
    float tensor like ``X``

    Raises
    ------
    VerifyError
        If there is no such axis.

    Examples
    --------
    >>> hardmax(np.float32([3, 7, 7]), axis=0)
    array([0., 1., 0.], dtype=float32)
    """
    first = np.expand_dims(np.argmax(X, axis), axis)
    out = np.zeros_like(X)
    np.put_along_axis(out, first, 1, axis)
    return out


def infer_hardmax(x: TensorType, *, axis: int) -> TensorType:
    """Check the axis."""
    dimension("Hardmax", axis, x.rank)
    return x


_X = np.array([[[3, 1], [3, 2]]], np.float32)

OPS = (
    operator(
        "LRN",
        lrn,
        infer_lrn,
        Case(
            "even size",
            (np.full((1, 2, 1), 2, np.float32),),
            {"size": 2, "alpha": 2.0, "beta": 1.0, "bias": 0.0},
            [[[0.25], [0.5]]],
            "one channel behind, none before",
        ),
    ),
    operator(
        "Hardmax",
        hardmax,
        infer_hardmax,
        Case("tie", (_X,), {"axis": 1}, [[[1, 0], [0, 1]]], "of equals the first"),
    ),
)
