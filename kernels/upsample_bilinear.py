"""``aten::upsample_bilinear2d``: weighted averages of four neighbours."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refquant.ir.op import Case, Op
from refquant.ir.qtensor import QTensor
from refquant.ir.target import TORCH_ENGINES, Target
from refquant.ir.types import TensorType, qint32, quint8
from refquant.kernels import rounding
from refquant.kernels.jit import fma, jit
from refquant.kernels.layout import empty_suggested
from refquant.kernels.resample import (
    Factors,
    Neighbours,
    Sizes,
    infer_upsample,
    linear,
    output_lengths,
    takes_float_vectors,
)
from refquant.kernels.rounding_jit import narrow_before, quantize_before
from refquant.kernels.windows import (
    as_volume,
    from_volume,
    in_torch_memory,
    is_pooled_channels_last,
)

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]
CHANNELS_PER_STEP = 8


def _neighbours(
    shape: tuple[int, ...],
    output_size: Sizes,
    align_corners: bool,
    scale_factors: Factors,
    *,
    fused: bool,
    vectors: bool = False,
) -> list[Neighbours]:
    lengths = shape[2:]
    sizes = output_lengths(lengths, output_size, scale_factors)
    factors = (None, None) if scale_factors is None else scale_factors
    return [
        linear(n, size, factor, align_corners, fused=fused, vectors=vectors)
        for n, size, factor in zip(lengths, sizes, factors, strict=True)
    ]


def _kind(
    x: QTensor, output_size: Sizes, scale_factors: Factors, target: Target
) -> tuple[bool, bool]:
    """Whether products are fused, and whether pixels are copied: C order where the size stays."""
    nhwc = is_pooled_channels_last(x.int_repr, 2)
    lengths = x.shape[2:]
    copies = not nhwc and output_lengths(lengths, output_size, scale_factors) == list(lengths)
    return nhwc and target.fused_multiply_add, copies


def _corners(x: Array, h: Neighbours, w: Neighbours) -> list[Array]:
    rows, columns = (h.first, h.second), (w.first, w.second)
    return [x[:, :, r[:, np.newaxis], c] for r in rows for c in columns]


def _plain(x: F32, h: Neighbours, w: Neighbours) -> F32:
    """Blend along the width, then along the height; every step rounded."""
    a, b, c, d = _corners(x, h, w)
    h0, h1 = h.first_weight[:, np.newaxis], h.second_weight[:, np.newaxis]
    top = w.first_weight * a + w.second_weight * b
    bottom = w.first_weight * c + w.second_weight * d
    return h0 * top + h1 * bottom


def _second_fused(x: F32, h: Neighbours, w: Neighbours) -> F32:
    """Blend with the second product fused into the sum."""
    a, b, c, d = _corners(x, h, w)
    h0, h1 = h.first_weight[:, np.newaxis], h.second_weight[:, np.newaxis]
    top = rounding.fma(w.second_weight, b, w.first_weight * a)
    bottom = rounding.fma(w.second_weight, d, w.first_weight * c)
    return rounding.fma(h1, bottom, h0 * top)


def _first_fused(x: F32, h: Neighbours, w: Neighbours) -> F32:
    """Blend with the first product fused into the sum."""
    a, b, c, d = _corners(x, h, w)
    h0, h1 = h.first_weight[:, np.newaxis], h.second_weight[:, np.newaxis]
    top = rounding.fma(w.first_weight, a, w.second_weight * b)
    bottom = rounding.fma(w.first_weight, c, w.second_weight * d)
    return rounding.fma(h0, top, h1 * bottom)


def reference(
    input: QTensor | Array,
    output_size: Sizes,
    align_corners: bool,
    scale_factors: Factors,
    target: Target = Target(),
) -> QTensor | Array:
    r"""Return an image of another size, interpolated between four pixels.

    An output pixel lies at source position :math:`x = \max(r (i + 0.5) - 0.5, 0)`, with *r* the
    ratio of lengths or the reciprocal of the scale factor; with ``align_corners`` at
    :math:`x = r i`, :math:`r = (n_{in} - 1) / (n_{out} - 1)`. With :math:`l_1 = x - \lfloor x
    \rfloor`, :math:`l_0 = 1 - l_1`,

    .. math::
        v = h_0 (w_0 a + w_1 b) + h_1 (w_0 c + w_1 d), \quad
        q = \mathrm{clamp}(\mathrm{rint}((v - z) + z))

    on the integers themselves. In C order every step is rounded to float32. Channels-last the
    position is ``fma(r, i + 0.5, -0.5)`` and one product of each sum is fused: the second one in
    the first ``C // 8 * 8`` channels, the first one in the others (in all of qint32; none
    without vector instructions). In C order an image whose size stays is copied, whatever the
    factors.

    float32: the position and the weights as above, the blend in float64, rounded once. torch has
    several float kernels, chosen by layout and size: compare with a tolerance of
    ``3e-6 * max|x|``.

    Parameters
    ----------
    input : QTensor (quint8, qint8, qint32, per tensor) or float32 array
        (N, C, H, W).
    output_size : sequence of int, optional
        Height and width of the result.
    align_corners : bool
        Whether the corners of input and output are the centres of the corner pixels.
    scale_factors : sequence of float, optional
        Factors; exactly one of the two is given. The size is rounded down.

    Returns
    -------
    QTensor or float32 array
        In the memory format of the input. A defect of torch is reproduced: a quantized map of
        one pixel in NCHW memory comes out scrambled, its values in NHWC order.

    Raises
    ------
    VerifyError
        If the rank does not fit, or not exactly one of size and factors is given.

    Examples
    --------
    >>> x = QTensor(np.uint8([[[[0, 4]]]]), 0.5, 7)
    >>> reference(x, [1, 4], False, None).int_repr
    array([[[[0, 1, 3, 4]]]], dtype=uint8)
    """
    arguments = (input.shape, output_size, align_corners, scale_factors)
    if not isinstance(input, QTensor):
        sizes = output_lengths(input.shape[2:], output_size, scale_factors)
        vectors = takes_float_vectors(input, sizes)
        h, w = _neighbours(*arguments, fused=target.fused_multiply_add, vectors=vectors)
        y = _plain(input.astype(np.float64), h, w)
        out = empty_suggested(input, np.float32, y.shape)
        out[...] = y
        return out
    x, zero_point = input.int_repr.astype(np.float32), int(input.zero_point)
    fused, copies = _kind(input, output_size, scale_factors, target)
    h, w = _neighbours(*arguments, fused=fused, vectors=copies)
    if fused:
        in_vectors = np.arange(x.shape[1]) < _vector_channels(input)
        body, tail = _second_fused(x, h, w), _first_fused(x, h, w)
        value = np.where(in_vectors.reshape(-1, 1, 1), body, tail)
    else:
        value = _plain(x, h, w)
    centred = value - np.float32(zero_point)
    q = rounding.round_before(centred, np.float32(1), zero_point, input.dtype)
    return input.with_int_repr(in_torch_memory(q, input.int_repr, 2))


def _vector_channels(x: QTensor) -> int:
    """Return how many channels are blended in vectors, which torch has for 8 bits."""
    return 0 if x.dtype == qint32 else x.shape[1] // CHANNELS_PER_STEP * CHANNELS_PER_STEP


def infer(
    input: TensorType, output_size: Sizes, align_corners: bool, scale_factors: Factors
) -> TensorType:
    """Check rank, size and factors."""
    return infer_upsample("upsample_bilinear2d", input, 2, output_size, scale_factors)


@jit
def _blend(u: np.float32, a: np.float32, v: np.float32, b: np.float32, fuse: int) -> Any:
    """Return ``u * a + v * b``; fused is no product (0), the first (1) or the second (2)."""
    if fuse == 1:
        return fma(u, a, np.float32(v * b))
    if fuse == 2:
        return fma(v, b, np.float32(u * a))
    return np.float32(np.float32(u * a) + np.float32(v * b))


@jit
def _blend_rows(
    x: Any, columns: Any, weights: F32, fused: bool, vector_channels: int, line: F32
) -> None:
    """Blend the pixels of a row along the width."""
    channels = x.shape[1]
    for j in range(columns.shape[1]):
        first, second = x[columns[0, j]], x[columns[1, j]]
        u, v = weights[0, j], weights[1, j]
        place = line[j * channels : (j + 1) * channels]
        body = vector_channels if fused else 0
        for c in range(body):
            place[c] = _blend(u, np.float32(first[c]), v, np.float32(second[c]), 2)
        first, second, place = first[body:], second[body:], place[body:]
        if fused:
            for c in range(place.size):
                place[c] = _blend(u, np.float32(first[c]), v, np.float32(second[c]), 1)
        else:
            for c in range(place.size):
                place[c] = _blend(u, np.float32(first[c]), v, np.float32(second[c]), 0)


@jit
def _round(
    top: F32, bottom: F32, u: np.float32, v: np.float32, fuse: int, limits: Any, y: Any
) -> None:
    """Blend along the height and round; 8-bit values by a loop that vectorises."""
    z, one = np.float32(limits[0]), np.float32(1)
    least, most = np.float32(limits[1]), np.float32(limits[2])
    for c in range(y.size):
        centred = np.float32(_blend(u, top[c], v, bottom[c], fuse) - z)
        if y.itemsize == 1:
            y[c] = narrow_before(centred, one, z, least, most)
        else:
            y[c] = quantize_before(centred, one, limits[0], limits[1], limits[2])


@jit
def _fill(
    x: Any,
    rows: Any,
    row_weights: F32,
    columns: Any,
    column_weights: F32,
    fused: bool,
    vector_channels: int,
    zero_point: int,
    low: int,
    high: int,
    y: Any,
) -> None:
    channels, width = x.shape[3], y.shape[2] * x.shape[3]
    limits = (zero_point, low, high)
    lines = np.empty((2, width), np.float32)
    held = np.empty(2, np.int64)  # the rows whose blends are in the lines
    for n in range(y.shape[0]):
        held[:] = -1
        for i in range(y.shape[1]):
            upper, lower = rows[0, i], rows[1, i]
            for row, other in ((upper, lower), (lower, upper)):
                if held[0] != row and held[1] != row:
                    k = 1 if held[0] == other else 0
                    _blend_rows(
                        x[n, row], columns, column_weights, fused, vector_channels, lines[k]
                    )
                    held[k] = row
            top = lines[0] if held[0] == upper else lines[1]
            bottom = lines[0] if held[0] == lower else lines[1]
            u, v = row_weights[0, i], row_weights[1, i]
            into = y[n, i].reshape(width)
            if not fused:
                _round(top, bottom, u, v, 0, limits, into)
            elif vector_channels == channels:
                _round(top, bottom, u, v, 2, limits, into)
            else:
                for first in range(0, width, channels):
                    middle, last = first + vector_channels, first + channels
                    one, two = slice(first, middle), slice(middle, last)
                    _round(top[one], bottom[one], u, v, 2, limits, into[one])
                    _round(top[two], bottom[two], u, v, 1, limits, into[two])


class _Places(NamedTuple):
    """Neighbours and weights as the compiled loop takes them."""

    rows: Array
    row_weights: F32
    columns: Array
    column_weights: F32


@lru_cache(maxsize=1024)
def _places(
    shape: tuple[int, ...],
    output_size: Sizes,
    align_corners: bool,
    scale_factors: Factors,
    fused: bool,
    copies: bool,
) -> _Places:
    h, w = _neighbours(
        shape, output_size, align_corners, scale_factors, fused=fused, vectors=copies
    )
    return _Places(np.stack(h[:2]), np.stack(h[2:]), np.stack(w[:2]), np.stack(w[2:]))


def kernel(
    input: QTensor | Array,
    output_size: Sizes,
    align_corners: bool,
    scale_factors: Factors,
    target: Target = Target(),
) -> QTensor | Array:
    """Compute :func:`reference` in one compiled pass."""
    if not isinstance(input, QTensor):
        return reference(input, output_size, align_corners, scale_factors, target)
    x = input.int_repr
    size = None if output_size is None else tuple(output_size)
    factors = None if scale_factors is None else tuple(scale_factors)
    fused, copies = _kind(input, size, factors, target)
    places = _places(x.shape, size, align_corners, factors, fused, copies)
    volume = as_volume(x, 2)
    lengths = (places.rows.shape[1], places.columns.shape[1])
    y = np.empty((volume.shape[0], *lengths, volume.shape[4]), x.dtype)
    _fill(
        *(volume[:, 0], *places, fused, _vector_channels(input)),
        *(int(input.zero_point), *input.dtype.limits, y),
    )
    return input.with_int_repr(from_volume(y, lengths, x, 2))


def _u8(values: Any) -> QTensor:
    return QTensor(np.asarray(values, np.uint8), 0.5, 7, None, quint8)


OPS = (
    Op(
        name="aten::upsample_bilinear2d",
        reference=reference,
        infer=infer,
        kernels=dict.fromkeys(TORCH_ENGINES, kernel),
        source=(
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/UpSampleBilinear2d.cpp"
            "::upsample_bilinear2d_out_frame",
            "pytorch/pytorch/aten/src/ATen/native/quantized/cpu/kernels/QuantizedOpKernels.cpp"
            "::qupsample_bilinear2d_nhwc_kernel",
        ),
        cases=(
            Case(
                "twice",
                (_u8([[[[0, 4]]]]),),
                {"output_size": None, "align_corners": False, "scale_factors": [1.0, 2.0]},
                [[[[0, 1, 3, 4]]]],
                "weights 1/4 and 3/4; the edge is repeated",
            ),
            Case(
                "ties",
                (_u8([[[[0, 1, 2]]]]),),
                {"output_size": [1, 5], "align_corners": True, "scale_factors": None},
                [[[[0, 0, 1, 2, 2]]]],
                "0.5 and 1.5 go to even: the zero point cancels",
            ),
            Case(
                "scrambled",
                (_u8([[[[1]], [[5]]]]),),
                {"output_size": [1, 2], "align_corners": False, "scale_factors": None},
                [[[[1, 5]], [[1, 5]]]],
                "torch's defect on a 1 x 1 map: NHWC values in NCHW",
            ),
            Case(
                "float",
                (np.array([[[[0, 4]]]], np.float32),),
                {"output_size": [1, 3], "align_corners": True, "scale_factors": None},
                [[[[0, 2, 4]]]],
                "exact values",
            ),
        ),
    ),
)
