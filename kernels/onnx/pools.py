"""``onnx::AveragePool``, ``MaxPool``, ``LpPool`` ...: windows with ONNX's own paddings.

Windows may be dilated and padded unequally at the two ends; what torch also has is
``aten::avg_pool2d`` and ``aten::max_pool2d``.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import EVERY_ENGINE, Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.types import TensorType, format_shape, int64
from refquant.kernels.checks import known_length
from refquant.kernels.onnx.max_windows import max_windows

Ints = tuple[int, ...]


def output_length(
    length: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int], ceil_mode: bool
) -> int:
    """Return the number of windows; with ``ceil_mode`` a last one may hang over the end.

    It never starts beyond the input and its left padding.

    Examples
    --------
    >>> output_length(4, 3, 2, 1, (0, 0), False), output_length(4, 3, 2, 1, (0, 0), True)
    (1, 2)
    """
    room = length + sum(pads) - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= length + pads[0]:
        count -= 1
    return count


def windows(
    x: Array,
    fill: Any,
    kernel_shape: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    ceil_mode: bool,
) -> Array:
    """Return every window of the padded spatial axes: (..., *outputs, *kernel_shape).

    Examples
    --------
    >>> windows(np.arange(4), -1, (2,), (2,), (1,), (0, 1), True).tolist()
    [[0, 1], [2, 3]]
    """
    rank = len(kernel_shape)
    spatial = x.shape[x.ndim - rank :]
    reach = [d * (k - 1) + 1 for d, k in zip(dilations, kernel_shape, strict=True)]
    ends = list(zip(pads[:rank], pads[rank:], strict=True))
    geometry = zip(spatial, kernel_shape, strides, dilations, ends, strict=True)
    counts = [output_length(*axis, ceil_mode) for axis in geometry]
    after = [
        max(0, (count - 1) * stride + r - before - length)
        for count, stride, r, (before, _), length in zip(
            counts, strides, reach, ends, spatial, strict=True
        )
    ]
    around = [(0, 0)] * (x.ndim - rank) + [(e[0], a) for e, a in zip(ends, after, strict=True)]
    padded = np.pad(x, around, constant_values=fill)
    axes = tuple(range(x.ndim - rank, x.ndim))
    seen = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    every = [slice(0, (n - 1) * s + 1, s) for n, s in zip(counts, strides, strict=True)]
    taps = [slice(None, None, d) for d in dilations]
    index: Any = (..., *every, *taps)
    return np.asarray(seen[index])


def average_pool(
    X: Array,  # noqa: N803
    *,
    kernel_shape: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    ceil_mode: bool,
    count_include_pad: bool,
) -> Array:
    """Return the average of each window.

    The divisor is the number of elements inside the input, or, with ``count_include_pad``,
    inside the input and its padding; what hangs over the end is never counted. Sums are
    onnxruntime's: with a stride of at most 2 along the last of several axes the rows of a window
    are added to each other first, then their columns; otherwise all elements one by one.

    Parameters
    ----------
    X : float tensor (N, C, *spatial)
    kernel_shape, strides, dilations : tuple of int
        One entry per spatial axis.
    pads : tuple of int
        All paddings before the axes, then all behind them.
    ceil_mode, count_include_pad : bool

    Returns
    -------
    float tensor (N, C, *outputs)

    Raises
    ------
    VerifyError
        If no window fits.

    Examples
    --------
    >>> x = np.float32([[[1, 2, 6]]])
    >>> how = dict(kernel_shape=(2,), strides=(1,), dilations=(1,), ceil_mode=False)
    >>> average_pool(x, **how, pads=(0, 1), count_include_pad=False)
    array([[[1.5, 4. , 6. ]]], dtype=float32)
    """
    rank = len(kernel_shape)
    geometry = (kernel_shape, strides, dilations, pads, ceil_mode)
    own = np.ones(X.shape[2:], X.dtype)
    if count_include_pad:
        own = np.pad(own, list(zip(pads[:rank], pads[rank:], strict=True)), constant_values=1)
        counted = windows(own, 0, kernel_shape, strides, dilations, (0,) * 2 * rank, ceil_mode)
    else:
        counted = windows(own, 0, *geometry)
    seen = windows(X, 0, *geometry)
    columns = kernel_shape[-1] if rank > 1 and strides[-1] <= 2 else 1
    total = in_turn(in_turn(seen.reshape(*seen.shape[: X.ndim], -1, columns), -2), -1)
    counts = counted.sum(tuple(range(-rank, 0)))[tuple(slice(n) for n in total.shape[2:])]
    return np.asarray((total / counts).astype(X.dtype))


def in_turn(x: Array, axis: int) -> Array:
    """Add the elements along an axis one by one.

    Examples
    --------
    >>> in_turn(np.float32([2**24, 1, 1]), 0).item(), np.float32([1, 1, 2**24]).sum().item()
    (16777216.0, 16777218.0)
    """
    parts = np.moveaxis(x, axis, 0)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return np.asarray(total)


def global_average_pool(X: Array) -> Array:  # noqa: N803
    """Return the average of each channel.

    As onnxruntime adds them, elements lie in four sums side by side, which are added crosswise,
    then the last up to three elements.

    Parameters
    ----------
    X : float tensor (N, C, *spatial)

    Returns
    -------
    float tensor (N, C, 1, ...)

    Raises
    ------
    VerifyError
        If there is no spatial axis.

    Examples
    --------
    >>> global_average_pool(np.float32([[[1, 2, 3, 4, 5]]]))
    array([[[3.]]], dtype=float32)
    """
    flat = X.reshape(*X.shape[:2], -1)
    count = flat.shape[2]
    fours = count // 4 * 4
    total = np.zeros(X.shape[:2], X.dtype)
    if fours:
        lanes = in_turn(flat[..., :fours].reshape(*X.shape[:2], -1, 4), 2)
        total = (lanes[..., 0] + lanes[..., 2]) + (lanes[..., 1] + lanes[..., 3])
    for i in range(fours, count):
        total = total + flat[..., i]
    average = (total / X.dtype.type(count)).astype(X.dtype)
    return np.asarray(average.reshape(*X.shape[:2], *(1,) * (X.ndim - 2)))


def infer_global(x: TensorType) -> TensorType:
    """Check the rank; every spatial length becomes 1."""
    if x.rank < 3 or not x.dtype.is_floating_point:
        raise VerifyError(f"GlobalAveragePool: expected floats (N, C, ...), got {x}")
    lengths = [known_length("GlobalAveragePool", n, i + 2) for i, n in enumerate(x.shape[2:])]
    if min(lengths) < 1:
        raise VerifyError(f"GlobalAveragePool: no elements in {x}")
    return x.with_shape((*x.shape[:2], *(1,) * len(lengths)))


def max_pool(
    X: Array,  # noqa: N803
    *,
    kernel_shape: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    ceil_mode: bool,
    storage_order: int,
) -> tuple[Array, Array]:
    """Return the largest element of each window and where it stands.

    Parameters
    ----------
    X : float or 8-bit integer tensor (N, C, *spatial)
    kernel_shape, strides, dilations, pads, ceil_mode
        As of ``onnx::AveragePool``; padding is never the largest.
    storage_order : int
        0 counts positions with the last axis fastest, 1 with the first spatial axis fastest.

    Returns
    -------
    tensor (N, C, *outputs), and its positions in the whole of ``X``, int64

    Raises
    ------
    VerifyError
        If no window fits.

    Examples
    --------
    >>> how = dict(kernel_shape=(2,), strides=(1,), dilations=(1,), pads=(0, 0))
    >>> max_pool(np.float32([[[1, 3, 2]]]), **how, ceil_mode=False, storage_order=0)
    (array([[[3., 3.]]], dtype=float32), array([[[1, 1]]]))
    """
    rank = len(kernel_shape)
    lowest = -np.inf if X.dtype.kind not in "iu" else np.iinfo(X.dtype).min
    geometry = (kernel_shape, strides, dilations, pads, ceil_mode)
    seen = windows(X, lowest, *geometry)
    flat = seen.reshape(*seen.shape[: X.ndim], -1)
    spatial = X.shape[2:]
    order = "F" if storage_order else "C"
    numbers = np.arange(prod(spatial)).reshape(spatial, order=order)  # type: ignore[call-overload]
    where = windows(numbers, -1, *geometry).reshape(*seen.shape[2 : X.ndim], -1)
    # Padding is never chosen, not even beside elements that are as low.
    first = np.argmax(np.where(where < 0, False, flat == flat.max(-1, keepdims=True)), axis=-1)
    chosen = np.take_along_axis(np.broadcast_to(where, flat.shape), first[..., None], -1)[..., 0]
    maps = np.arange(prod(X.shape[:2])).reshape(*X.shape[:2], *(1,) * rank)
    return np.asarray(flat.max(-1)), np.asarray(chosen + maps * prod(spatial), np.int64)


def kernel_max_pool(
    X: Array,  # noqa: N803
    *,
    kernel_shape: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    ceil_mode: bool,
    storage_order: int,
) -> tuple[Array, Array]:
    """Compute :func:`max_pool`, of integers along one or two axes in a compiled loop."""
    rank = len(kernel_shape)
    window = kernel_shape, strides, dilations
    if X.dtype.kind not in "iu" or rank > 2:
        return max_pool(
            X,
            kernel_shape=kernel_shape,
            strides=strides,
            dilations=dilations,
            pads=pads,
            ceil_mode=ceil_mode,
            storage_order=storage_order,
        )
    ends = zip(pads[:rank], pads[rank:], strict=True)
    axes = zip(X.shape[2:], *window, ends, strict=True)
    outputs = tuple(output_length(*axis, ceil_mode) for axis in axes)
    return max_windows(X, *window, pads, outputs, by_columns=bool(storage_order))


def lp_pool(
    X: Array,  # noqa: N803
    *,
    kernel_shape: Ints,
    strides: Ints,
    dilations: Ints,
    pads: Ints,
    ceil_mode: bool,
    p: int,
) -> Array:
    """Return the p-norm of each window; padding counts as 0.

    Parameters
    ----------
    X : float tensor (N, C, *spatial)
    kernel_shape, strides, dilations, pads, ceil_mode
        As of ``onnx::AveragePool``.
    p : int
        Exponent of the norm.

    Returns
    -------
    float tensor (N, C, *outputs)

    Raises
    ------
    VerifyError
        If no window fits.

    Examples
    --------
    >>> how = dict(kernel_shape=(2,), strides=(1,), dilations=(1,), pads=(0, 0))
    >>> lp_pool(np.float32([[[3, -4, 0]]]), **how, ceil_mode=False, p=2)
    array([[[5., 4.]]], dtype=float32)
    """
    rank = len(kernel_shape)
    seen = windows(np.abs(X), 0, kernel_shape, strides, dilations, pads, ceil_mode)
    total = (seen**p).sum(tuple(range(-rank, 0)))
    return np.asarray(total ** (1.0 / p)).astype(X.dtype)


def max_unpool(X: Array, indices: Array, *, output_shape: Ints) -> Array:  # noqa: N803
    """Put pooled elements back where they stood; everything else is 0.

    Parameters
    ----------
    X : float tensor
    indices : int64 tensor of the same shape
        Positions in the whole of the result.
    output_shape : tuple of int
        Shape of the result.

    Returns
    -------
    float tensor of ``output_shape``

    Raises
    ------
    VerifyError
        If a position lies outside.

    Examples
    --------
    >>> max_unpool(np.float32([[[7]]]), np.int64([[[2]]]), output_shape=(1, 1, 4))
    array([[[0., 0., 7., 0.]]], dtype=float32)
    """
    size = prod(output_shape)
    if indices.size and not 0 <= indices.min() <= indices.max() < size:
        raise VerifyError(f"MaxUnpool: positions must lie in [0, {size})")
    flat = np.zeros(size, X.dtype)
    flat[indices.reshape(-1)] = X.reshape(-1)
    return flat.reshape(output_shape)


def _infer(name: str, results: int = 1) -> Callable[..., Any]:
    def infer(x: TensorType, **how: Any) -> TensorType | tuple[TensorType, ...]:
        kernel, pads = how["kernel_shape"], how["pads"]
        rank = len(kernel)
        geometry = (how["strides"], how["dilations"])
        if x.rank != rank + 2 or any(len(g) != rank for g in geometry) or len(pads) != 2 * rank:
            raise VerifyError(f"{name}: kernel_shape, strides, dilations, pads do not fit {x}")
        if min((*kernel, *geometry[0], *geometry[1])) < 1 or min(pads) < 0:
            raise VerifyError(f"{name}: lengths of windows and steps must be positive")
        ends = zip(pads[:rank], pads[rank:], strict=True)
        lengths = [known_length(name, n, i + 2) for i, n in enumerate(x.shape[2:])]
        axes = zip(lengths, kernel, *geometry, ends, strict=True)
        out = tuple(output_length(*axis, how["ceil_mode"]) for axis in axes)
        if min(out) < 1:
            raise VerifyError(f"{name}: no window fits: {format_shape(x.shape)} gives {out}")
        found = x.with_shape((*x.shape[:2], *out))
        return found if results == 1 else (found, TensorType(int64, found.shape))

    return infer


def infer_unpool(x: TensorType, indices: TensorType, *, output_shape: Ints) -> TensorType:
    """Check that each element has a position."""
    if x.shape != indices.shape or indices.dtype != int64:
        raise VerifyError(f"MaxUnpool: expected int64 positions for {x}, got {indices}")
    return x.with_shape(output_shape)


_X = np.array([[[1, 5, 2, 4]]], np.float32)
_HOW = {"kernel_shape": (2,), "strides": (2,), "dilations": (1,), "pads": (1, 0)}


def _op(
    name: str,
    reference: Callable[..., Any],
    infer: Callable[..., Any],
    *cases: Case,
    kernel: Callable[..., Any] | None = None,
) -> Op:
    return Op(
        name=f"onnx::{name}",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(EVERY_ENGINE, kernel or reference),
        source=(f"onnx/docs/Operators.md::{name}",),
        cases=cases,
    )


OPS = (
    _op(
        "AveragePool",
        average_pool,
        _infer("AveragePool"),
        Case(
            "hang over",
            (_X,),
            {**_HOW, "ceil_mode": True, "count_include_pad": True},
            [[[0.5, 3.5, 4]]],
            "padding counts, what hangs over the end does not",
        ),
    ),
    _op(
        "GlobalAveragePool",
        global_average_pool,
        infer_global,
        Case("five", (np.array([[[1, 2, 3, 4, 5]]], np.float32),), {}, [[[3]]], "four and one"),
    ),
    _op(
        "MaxPool",
        max_pool,
        _infer("MaxPool", 2),
        Case(
            "padding",
            (-_X,),
            {**_HOW, "ceil_mode": False, "storage_order": 0},
            ([[[-1, -2]]], [[[0, 2]]]),
            "padding is below every element",
        ),
        kernel=kernel_max_pool,
    ),
    _op(
        "LpPool",
        lp_pool,
        _infer("LpPool"),
        Case("p=1", (-_X,), {**_HOW, "ceil_mode": False, "p": 1}, [[[1, 7]]], "absolute values"),
    ),
    _op(
        "MaxUnpool",
        max_unpool,
        infer_unpool,
        Case(
            "one",
            (_X[..., :1], np.array([[[1]]], np.int64)),
            {"output_shape": (1, 1, 2)},
            [[[0, 1]]],
            "the rest is 0",
        ),
    ),
)
