"""``aten::conv1d``, ``conv2d``, ``conv3d`` and their transposes, on floats."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product as positions
from typing import Any

import numpy as np

from refquant.ir.errors import VerifyError
from refquant.ir.op import Case, Op
from refquant.ir.qtensor import Array
from refquant.ir.target import Engine, Target
from refquant.ir.types import Size, TensorType
from refquant.kernels.checks import known_length
from refquant.kernels.layout import channels_last, is_channels_last
from refquant.kernels.onnx import mlas_gemm, mlas_products
from refquant.kernels.products import check_equal, check_float, is_onnxruntimes, product

Ints = tuple[int, ...]


def _last(index: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return an index of the last dimensions."""
    return (..., *index)


def conv(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    target: Target = Target(),
) -> Array:
    """Return the convolution (cross-correlation) of any rank.

    One matrix product per kernel tap, summed tap by tap. The order of summation is not torch's;
    see ``products.py`` for the bound. For engine ort it is onnxruntime's.

    Parameters
    ----------
    x : float tensor (N, C, *spatial)
        Input; padded with zeros.
    weight : float tensor (OC, C / groups, *kernel)
        One filter per output channel.
    bias : float tensor (OC,) or None
        Added last.
    stride, padding, dilation : tuple of int
        One entry per spatial dimension; padding on both sides.
    groups : int
        Output channels see the inputs of their group only.

    Returns
    -------
    float tensor (N, OC, *outputs), channels-last where ``x`` is

    Raises
    ------
    VerifyError
        If types, channels or lengths do not fit.

    Examples
    --------
    >>> x, w = np.float32([[[1, 2, 3]]]), np.float32([[[1, -1]]])
    >>> conv(x, w, None, (1,), (0,), (1,), 1)
    array([[[-1., -1.]]], dtype=float32)
    """
    if is_onnxruntimes(x, target):
        return mlas_products.conv(x, weight, bias, stride, padding, dilation, groups)
    n = x.shape[0]
    out_channels, per_group, *kernel = weight.shape
    outputs = _lengths(x.shape[2:], kernel, stride, padding, dilation)
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)])
    grouped = padded.reshape(n, groups, per_group, *padded.shape[2:])
    filters = weight.reshape(groups, out_channels // groups, per_group, *kernel)
    total = np.zeros((n, groups, out_channels // groups, int(np.prod(outputs))), x.dtype)
    for tap in positions(*map(range, kernel)):
        window: tuple[Any, ...] = tuple(
            slice(t * d, t * d + (length - 1) * s + 1, s)
            for t, d, s, length in zip(tap, dilation, stride, outputs, strict=True)
        )
        pixels = grouped[_last(window)].reshape(n, groups, per_group, total.shape[-1])
        total += filters[_last(tap)] @ pixels
    result = total.reshape(n, out_channels, *outputs)
    if bias is not None:
        result = result + bias.reshape(-1, *(1,) * len(outputs))
    return channels_last(result) if is_channels_last(x) else result


def conv_ort(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
) -> Array:
    """Compute :func:`conv` in onnxruntime's order."""
    geometry = (stride, padding, dilation, groups)
    if x.dtype != np.float32:
        return conv(x, weight, bias, *geometry)
    return mlas_products.conv(x, weight, bias, *geometry, mlas_gemm.gemm)


def _lengths(
    spatial: Ints, kernel: list[int], stride: Ints, padding: Ints, dilation: Ints
) -> Ints:
    return tuple(
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, s, p, d in zip(spatial, kernel, stride, padding, dilation, strict=True)
    )


def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None,
    stride: Ints,
    padding: Ints,
    output_padding: Ints,
    groups: int,
    dilation: Ints,
) -> Array:
    """Return the transposed convolution of any rank: the gradient of :func:`conv`.

    Every input element adds the scaled filter to the output. The order of summation is not
    torch's; see ``products.py`` for the bound.

    Parameters
    ----------
    x : float tensor (N, C, *spatial)
        Input.
    weight : float tensor (C, OC / groups, *kernel)
        One filter per input channel.
    bias : float tensor (OC,) or None
        Added last.
    stride, padding, output_padding, dilation : tuple of int
        ``padding`` is cut off on both sides, ``output_padding`` added at the end.
    groups : int
        Output channels see the inputs of their group only.

    Returns
    -------
    float tensor (N, OC, *outputs), channels-last where ``x`` is

    Raises
    ------
    VerifyError
        If types, channels or lengths do not fit.

    Examples
    --------
    >>> x, w = np.float32([[[1, 2]]]), np.float32([[[1, 10]]])
    >>> conv_transpose(x, w, None, (1,), (0,), (0,), 1, (1,))
    array([[[ 1., 12., 20.]]], dtype=float32)
    """
    n, channels, *spatial = x.shape
    _, per_group, *kernel = weight.shape
    full = [
        (length - 1) * s + d * (k - 1) + 1 + extra
        for length, k, s, d, extra in zip(
            spatial, kernel, stride, dilation, output_padding, strict=True
        )
    ]
    total = np.zeros((n, groups, per_group, *full), x.dtype)
    count = int(np.prod(x.shape[2:]))
    pixels = x.reshape(n, groups, channels // groups, count)
    filters = weight.reshape(groups, channels // groups, per_group, *kernel)
    for tap in positions(*map(range, kernel)):
        window: tuple[Any, ...] = tuple(
            slice(t * d, t * d + (length - 1) * s + 1, s)
            for t, d, s, length in zip(tap, dilation, stride, spatial, strict=True)
        )
        part = filters[_last(tap)].swapaxes(1, 2) @ pixels
        total[_last(window)] += part.reshape(n, groups, per_group, *spatial)
    cut = tuple(slice(p, length - p) for p, length in zip(padding, full, strict=True))
    result = total.reshape(n, groups * per_group, *full)[_last(cut)]
    if bias is not None:
        result = result + bias.reshape(-1, *(1,) * len(full))
    return channels_last(result) if is_channels_last(x) else np.ascontiguousarray(result)


def infer_conv(rank: int) -> Callable[..., TensorType]:
    """Return the shape rule of ``conv{rank}d``."""
    op = f"conv{rank}d"

    def infer(
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None,
        stride: Ints,
        padding: Ints,
        dilation: Ints,
        groups: int,
    ) -> TensorType:
        _check(op, rank, x, weight, bias, groups, stride, padding, dilation)
        out_channels, per_group, *kernel = _known(op, weight)
        check_equal(op, "number of input channels", x.shape[1], per_group * groups)
        check_equal(op, "output channels modulo groups", out_channels % groups, 0)
        if bias is not None:
            check_equal(op, "rank of bias", bias.rank, 1)
            check_equal(op, "length of bias", bias.shape[0], out_channels)
        spatial = tuple(known_length(op, s, i + 2) for i, s in enumerate(x.shape[2:]))
        outputs = _lengths(spatial, kernel, stride, padding, dilation)
        return _result(op, x, out_channels, outputs)

    return infer


def infer_conv_transpose(rank: int) -> Callable[..., TensorType]:
    """Return the shape rule of ``conv_transpose{rank}d``."""
    op = f"conv_transpose{rank}d"

    def infer(
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None,
        stride: Ints,
        padding: Ints,
        output_padding: Ints,
        groups: int,
        dilation: Ints,
    ) -> TensorType:
        _check(op, rank, x, weight, bias, groups, stride, padding, dilation)
        channels, per_group, *kernel = _known(op, weight)
        check_equal(op, "number of input channels", x.shape[1], channels)
        check_equal(op, "input channels modulo groups", channels % groups, 0)
        if bias is not None:
            check_equal(op, "rank of bias", bias.rank, 1)
            check_equal(op, "length of bias", bias.shape[0], per_group * groups)
        outputs = tuple(
            (known_length(op, length, i + 2) - 1) * s - 2 * p + d * (k - 1) + extra + 1
            for i, (length, k, s, p, d, extra) in enumerate(
                zip(x.shape[2:], kernel, stride, padding, dilation, output_padding, strict=True)
            )
        )
        return _result(op, x, per_group * groups, outputs)

    return infer


def _check(
    op: str,
    rank: int,
    x: TensorType,
    weight: TensorType,
    bias: TensorType | None,
    groups: int,
    *geometry: Ints,
) -> None:
    check_float(op, x, weight, bias)
    check_equal(op, "rank of the input", x.rank, rank + 2)
    check_equal(op, "rank of the weight", weight.rank, rank + 2)
    for entries in geometry:
        check_equal(op, "number of entries of stride, padding and dilation", len(entries), rank)
    if groups < 1:
        raise VerifyError(f"{op}: groups must be >= 1, got {groups}")


def _known(op: str, weight: TensorType) -> list[int]:
    return [known_length(op, size, i) for i, size in enumerate(weight.shape)]


def _result(op: str, x: TensorType, channels: int, outputs: Ints) -> TensorType:
    if min(outputs) < 1:
        raise VerifyError(f"{op}: the kernel is larger than the padded input, output {outputs}")
    shape: tuple[Size, ...] = (x.shape[0], channels, *outputs)
    return TensorType(x.dtype, shape)


def _ops(rank: int) -> tuple[Op, Op]:
    ones, zeros = (1,) * rank, (0,) * rank
    lead = (1,) * (rank - 1)
    x = np.array([1, 2, 3, 4], np.float32).reshape(1, 1, *lead, 4)
    w = np.array([1, -1], np.float32).reshape(1, 1, *lead, 2)
    strided = (*lead, 2)
    forward = {"stride": strided, "padding": zeros, "dilation": ones, "groups": 1}
    backward = forward | {"output_padding": zeros}
    name = f"aten::conv{rank}d"
    return (
        product(
            name,
            conv,
            infer_conv(rank),
            Case(
                "stride",
                (x, w, np.array([10], np.float32)),
                forward,
                np.array([9, 9]).reshape(1, 1, *lead, 2),
                "every second window",
            ),
            source="Convolution",
            kernels={Engine.ORT: conv_ort},
        ),
        product(
            f"aten::conv_transpose{rank}d",
            conv_transpose,
            infer_conv_transpose(rank),
            Case(
                "stride",
                (x[..., :2], w, None),
                backward,
                np.array([1, -1, 2, -2]).reshape(1, 1, *lead, 4),
                "windows side by side",
            ),
            source="Convolution",
        ),
    )


OPS = (*_ops(1), *_ops(2), *_ops(3))
